//! Secrets in memory: keys and passphrases, kept out of swap where the limits allow it, wiped when dropped, and never shown.
//!
//! What this room refuses: to print a secret, to compare it, to copy it where it is not wiped. A process that is going to have one is
//! guarded as a whole, by [`guard_process`]: the content of an encrypted disk is a secret, too.

use std::fmt;

use rand::TryRng;
use rand::rngs::SysRng;
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use zeroize::Zeroizing;

mod wiping;

#[global_allocator]
static MEMORY: wiping::Wiping = wiping::Wiping::new();

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// A key of 256 bits.
pub struct Key(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl Key {
    /// A new one from the kernel's random numbers.
    pub fn fresh() -> Key {
        Key::fill(|bytes| random(bytes))
    }

    /// A key that `fill` writes into place, so that it is nowhere else.
    pub fn fill(fill: impl FnOnce(&mut [u8; KEY_BYTES])) -> Key {
        let mut key = Box::new(Zeroizing::new([0; KEY_BYTES]));
        keep_out_of_swap(&key[..]);
        fill(&mut key);
        Key(key)
    }

    /// Its bytes, for the primitive that needs them.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// What opens a key slot: the bytes of a passphrase, without a line's end, or of a key file.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// Takes bytes over, which are wiped with it.
    pub fn new(bytes: Vec<u8>) -> Passphrase {
        keep_out_of_swap(&bytes);
        Passphrase(Zeroizing::new(bytes))
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Fills bytes with the kernel's random numbers: they differ also between two copies of a virtual machine, and after a fork.
pub fn random(bytes: &mut [u8]) {
    SysRng
        .try_fill_bytes(bytes)
        .expect("the kernel gives random numbers once it has started, and no other program runs before that");
}

/// Forbids dumps of this process's memory, by a crash or by another process of the same user, and has all memory that is freed from now on
/// wiped. To be called before the first secret is there.
pub fn guard_process() {
    MEMORY.begin();
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "a crash may write keys into a core dump");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::debug!(%error, "other processes of this user can read this one's memory");
    }
}

/// Locks the pages of a secret into memory. They stay locked when it is gone: another one may lie on the same page.
#[allow(unsafe_code)]
fn keep_out_of_swap(secret: &[u8]) {
    // SAFETY: the range is that of a live slice, and locking changes nothing in it.
    let locked = unsafe { rustix::mm::mlock(secret.as_ptr().cast_mut().cast(), secret.len()) };
    if let Err(error) = locked {
        tracing::debug!(%error, "a key may be written to swap: the limit of locked memory is reached");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let key = Key::fill(|bytes| bytes.fill(7));
        assert_eq!(format!("{key:?}"), "Key(..)");
        let passphrase = Passphrase::new(b"secret".to_vec());
        assert_eq!(format!("{passphrase:?}"), "Passphrase(..)");
        assert_eq!(passphrase.bytes(), b"secret");
    }

    #[test]
    fn no_two_fresh_keys_are_the_same() {
        assert_ne!(Key::fresh().bytes(), Key::fresh().bytes());
    }

    #[test]
    fn a_key_lies_in_locked_memory() {
        let key = Key::fresh();
        let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let kib = locked.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
        assert!(kib.expect("a figure") > 0, "{locked:?} {key:?}");
    }
}
