//! From a passphrase to a key: Argon2id (RFC 9106), with parameters that are recorded beside what the key wraps.
//!
//! Whoever has a copy of the superblock can try passphrases as fast as its machine computes this: so it is made to take about a second, and
//! as much memory as a machine can spare. One lane: this machine computes lanes one after the other, and would pay for an attacker's
//! parallelism. What a bucket asks for is bounded before anything is allocated.

use std::time::{Duration, Instant};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::{KEY_BYTES, Key, Passphrase};

/// Bytes of a salt.
pub const SALT_BYTES: usize = 16;
/// The most memory that is ever used: 4 GiB.
pub const MOST_MEMORY_KIB: u32 = 4 << 20;
/// The most work that is ever done, in KiB of memory times passes: 64 GiB, of which a slow core does one in a few seconds.
const MOST_WORK_KIB: u64 = 64 << 20;
/// The most lanes.
const MOST_LANES: u32 = 64;
/// The least memory, in KiB for each lane (RFC 9106, 3.1).
const LEAST_LANE_KIB: u32 = 8;

/// What a new slot has at least, whatever a slow machine would take for it, unless less memory was asked for: 32 MiB...
const LEAST_TUNED_KIB: u32 = 32 << 10;
/// ... and three passes over it.
const LEAST_TUNED_PASSES: u32 = 3;
/// Memory of the run by which a machine is measured.
const SAMPLE_KIB: u32 = 32 << 10;

/// The parameters of Argon2id, version 0x13.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Named", into = "Named")]
pub struct Kdf {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// The same with the name of the function, as a slot has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: Name,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The only function there is.
#[derive(Serialize, Deserialize)]
enum Name {
    #[serde(rename = "argon2id")]
    Argon2id,
}

impl From<Kdf> for Named {
    fn from(kdf: Kdf) -> Named {
        Named {
            name: Name::Argon2id,
            memory_kib: kdf.memory_kib,
            passes: kdf.passes,
            lanes: kdf.lanes,
        }
    }
}

impl From<Named> for Kdf {
    fn from(named: Named) -> Kdf {
        Kdf {
            memory_kib: named.memory_kib,
            passes: named.passes,
            lanes: named.lanes,
        }
    }
}

impl Kdf {
    /// Parameters that take about `target` on this machine: with as much memory as that allows, but not more than `most_bytes`, nor than
    /// half of what the machine has; more passes where there is time left. Takes some tenths of a second.
    ///
    /// # Errors
    /// Those of [`Kdf::derive`].
    pub fn tuned(target: Duration, most_bytes: u64) -> Result<Kdf> {
        let half_kib = rustix::system::sysinfo().totalram / 2048;
        let most = (most_bytes / 1024)
            .min(half_kib)
            .clamp(u64::from(LEAST_LANE_KIB), u64::from(MOST_MEMORY_KIB));
        let most = u32::try_from(most).unwrap_or(MOST_MEMORY_KIB);
        let sample = Kdf {
            memory_kib: SAMPLE_KIB.min(most),
            passes: LEAST_TUNED_PASSES,
            lanes: 1,
        };
        let begun = Instant::now();
        sample.derive(&Passphrase::new(Vec::new()), &[0; SALT_BYTES])?;
        Ok(sample.scaled(begun.elapsed(), target, most))
    }

    /// What takes `target` where these parameters took `took`.
    fn scaled(self, took: Duration, target: Duration, most_kib: u32) -> Kdf {
        let work = u128::from(self.memory_kib) * u128::from(self.passes);
        let affordable = work * target.as_nanos() / took.as_nanos().max(1);
        let affordable = u64::try_from(affordable)
            .unwrap_or(u64::MAX)
            .min(MOST_WORK_KIB);
        let memory = affordable / u64::from(LEAST_TUNED_PASSES);
        let memory = memory.clamp(
            u64::from(LEAST_TUNED_KIB.min(most_kib)),
            u64::from(most_kib),
        );
        let passes = (affordable / memory).max(u64::from(LEAST_TUNED_PASSES));
        Kdf {
            memory_kib: u32::try_from(memory).unwrap_or(most_kib),
            passes: u32::try_from(passes).unwrap_or(u32::MAX),
            lanes: 1,
        }
    }

    /// Whether they are parameters of Argon2id that this program is ready to compute.
    ///
    /// # Errors
    /// `Unsupported`, naming them.
    pub fn check(self) -> Result<()> {
        let Kdf {
            memory_kib,
            passes,
            lanes,
        } = self;
        let work = u64::from(memory_kib) * u64::from(passes);
        let sound = (1..=MOST_LANES).contains(&lanes) && passes > 0;
        if sound
            && (LEAST_LANE_KIB * lanes..=MOST_MEMORY_KIB).contains(&memory_kib)
            && work <= MOST_WORK_KIB
        {
            return Ok(());
        }
        let text = format!(
            "a key slot asks for Argon2id with {memory_kib} KiB of memory, {passes} passes and {lanes} lanes: more, or less, than this \
             program ever makes one with, so somebody else may have"
        );
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// The key of a passphrase. Takes as long as the parameters say; the memory is wiped.
    ///
    /// # Errors
    /// Those of [`Kdf::check`]; `System` where there is not so much memory.
    pub fn derive(self, passphrase: &Passphrase, salt: &[u8]) -> Result<Key> {
        self.check()?;
        let failed = |e: argon2::Error| {
            Error::new(ErrorKind::System, format!("cannot compute Argon2id: {e}"))
        };
        let params = Params::new(self.memory_kib, self.passes, self.lanes, Some(KEY_BYTES));
        let params = params.map_err(failed)?;
        let mut memory = Memory::of(params.block_count())?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let mut done = Ok(());
        let key = Key::fill(|key| {
            let outcome =
                argon2.hash_password_into_with_memory(passphrase.bytes(), salt, key, &mut memory.0);
            done = outcome.map_err(failed);
        });
        done.map(|()| key)
    }
}

/// What Argon2id works in; wiped when dropped, since parts of it give the key away.
struct Memory(Vec<Block>);

impl Memory {
    fn of(blocks: usize) -> Result<Memory> {
        let mut memory = Vec::new();
        memory.try_reserve_exact(blocks).map_err(|e| {
            let text = format!("there are no {blocks} KiB of memory for a key slot");
            Error::new(ErrorKind::System, text).with_source(e)
        })?;
        memory.resize(blocks, Block::new());
        Ok(Memory(memory))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.0.iter_mut().for_each(Zeroize::zeroize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::hex;

    /// RFC 9106, 5.3. It has a secret and associated data, which a slot has not: for these, the reference implementation's own
    /// vectors (`src/test.c` of phc-winner-argon2).
    #[test]
    fn it_is_the_published_function() {
        let mut builder = argon2::ParamsBuilder::new();
        let data = argon2::AssociatedData::new(&[4; 12]).expect("12 bytes");
        let params = builder.m_cost(32).t_cost(3).p_cost(4).data(data).build();
        let argon2 = Argon2::new_with_secret(
            &[3; 8],
            Algorithm::Argon2id,
            Version::V0x13,
            params.expect("parameters"),
        );
        let mut tag = [0; 32];
        argon2
            .expect("a secret")
            .hash_password_into(&[1; 32], &[2; 16], &mut tag)
            .expect("computes");
        assert_eq!(
            hex::encode(&tag),
            "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
        );
        for (memory_kib, lanes, published) in [
            (
                256,
                1,
                "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe",
            ),
            (
                256,
                2,
                "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037",
            ),
            (
                65536,
                1,
                "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7",
            ),
        ] {
            let kdf = Kdf {
                memory_kib,
                passes: 2,
                lanes,
            };
            let password = Passphrase::new(b"password".to_vec());
            let key = kdf.derive(&password, b"somesalt").expect("computes");
            assert_eq!(hex::encode(key.bytes()), published, "{kdf:?}");
        }
    }

    #[test]
    fn what_a_bucket_may_ask_for_is_bounded() {
        let sound = Kdf {
            memory_kib: 1 << 20,
            passes: 4,
            lanes: 4,
        };
        sound.check().expect("sound");
        let with = |memory_kib, passes, lanes| Kdf {
            memory_kib,
            passes,
            lanes,
        };
        for kdf in [
            with(u32::MAX, 1, 1),
            with(MOST_MEMORY_KIB + 1, 1, 1),
            with(1 << 20, 65, 1),
            with(8, u32::MAX, 1),
            with(1 << 20, 0, 1),
            with(1 << 20, 3, 0),
            with(1 << 20, 3, u32::MAX),
            with(7, 3, 1),
            with(31, 3, 4),
            with(0, 0, 0),
        ] {
            let refused = kdf.derive(&Passphrase::new(b"x".to_vec()), &[0; SALT_BYTES]);
            assert_eq!(
                refused.expect_err("too much").kind(),
                ErrorKind::Unsupported,
                "{kdf:?}"
            );
        }
    }

    #[test]
    fn parameters_follow_the_time_that_a_sample_took() {
        let sample = Kdf {
            memory_kib: 64 << 10,
            passes: 3,
            lanes: 1,
        };
        let scaled = |took_ms, target_ms, most_kib| {
            let (took, target) = (
                Duration::from_millis(took_ms),
                Duration::from_millis(target_ms),
            );
            let scaled = sample.scaled(took, target, most_kib);
            scaled.check().expect("what is made is accepted");
            (scaled.memory_kib, scaled.passes)
        };
        // Memory first, then passes.
        assert_eq!(scaled(100, 1000, 1 << 20), (640 << 10, 3));
        assert_eq!(scaled(100, 4000, 1 << 20), (1 << 20, 7));
        // Never less than the least, but what was asked for.
        assert_eq!(scaled(10_000, 1, 1 << 20), (LEAST_TUNED_KIB, 3));
        assert_eq!(scaled(10_000, 1, 1024), (1024, 3));
        // Nor more than is ever computed.
        assert_eq!(scaled(1, 1_000_000, 1 << 20), (1 << 20, 64));
    }
}
