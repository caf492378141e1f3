//! What opens an encrypted disk: asked for when it is known that the disk is encrypted, tried, and changed.
//!
//! Nobody is asked before the superblock has been read, and nothing is touched before it has been opened and authenticated: no claim is
//! put, and nothing is written on this machine.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::head::Seen;
use super::{Target, client};
use crate::codec::compress::Compression;
use crate::codec::kdf::Kdf;
use crate::codec::slots::{KeySlot, SlotKind, Wrapper};
use crate::codec::timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::object::ObjectClient;
use crate::secret::Passphrase;
use crate::store::versioned::{self, Draft, Superblock, SuperblockMark, Unlocked};

/// How often somebody at a terminal may mistype a passphrase.
const ATTEMPTS: u32 = 3;

/// What opens a disk, and how it was come by.
#[derive(Debug)]
pub struct Secret {
    /// The passphrase, or the content of a key file.
    pub passphrase: Passphrase,
    /// Which of the two.
    pub kind: SlotKind,
    /// Somebody has typed it, and can be asked again.
    pub typed: bool,
}

/// Has what opens a disk, or asks for it.
#[async_trait]
pub trait Keyring: Send + Sync {
    /// Whether something was given for that disk, so that nobody need be asked.
    fn is_given(&self, disk: Uuid) -> bool;

    /// Whether something was given for any disk: then one that says that it is not encrypted is not believed, whatever its id, for who can
    /// write to the bucket chooses that too.
    fn expects_encryption(&self) -> bool;

    /// What opens a disk; at the first attempt, 0, and after others did not open it.
    ///
    /// # Errors
    /// `NoKey` where nothing was given, and nobody can be asked; those of getting at what was given.
    async fn existing(&self, disk: Uuid, attempt: u32) -> Result<Secret>;

    /// What is going to open a disk from now on. Somebody who types it does so twice.
    ///
    /// # Errors
    /// As for [`Keyring::existing`].
    async fn fresh(&self) -> Result<Secret>;
}

/// How a disk is opened, if it is encrypted.
#[derive(Clone)]
pub struct Access {
    /// Has the key, or asks for it.
    pub keyring: Arc<dyn Keyring>,
    /// The only slot to try; `None`: all.
    pub slot: Option<u32>,
}

impl Access {
    /// Whether a disk is to be opened also for what can be told without: something was given for it, or a slot was named, which is asked for.
    pub(super) fn is_wanted(&self, disk: Uuid) -> bool {
        self.slot.is_some() || self.keyring.is_given(disk)
    }
}

/// How long trying a passphrase is to take on this machine, and how much memory it may.
#[derive(Debug, Clone, Copy)]
pub struct KdfWish {
    /// How long.
    pub time: Duration,
    /// At most so many bytes.
    pub memory_bytes: u64,
}

/// Opens a disk.
///
/// # Errors
/// Those of [`Unlocked::open`] and [`Unlocked::plain`], and of the keyring.
pub(super) async fn unlock(superblock: Superblock, access: &Access) -> Result<Unlocked> {
    let disk = superblock.id;
    let expected = access.keyring.expects_encryption() || access.slot.is_some();
    if superblock.encryption.is_none() && !expected {
        return Unlocked::plain(superblock);
    }
    let mut attempt = 0;
    loop {
        let secret = match superblock.encryption.is_some() {
            true => access.keyring.existing(disk, attempt).await?,
            // Whatever it is, it is refused.
            false => Secret {
                passphrase: Passphrase::new(Vec::new()),
                kind: SlotKind::Passphrase,
                typed: false,
            },
        };
        attempt += 1;
        let may_ask_again = secret.typed && attempt < ATTEMPTS;
        let (superblock, slot) = (superblock.clone(), access.slot);
        let opened =
            computed(move || Unlocked::open(superblock, &secret.passphrase, secret.kind, slot));
        match opened.await {
            Err(error) if error.kind() == ErrorKind::NoKey && may_ask_again => {}
            outcome => return outcome,
        }
    }
}

/// Makes a wrapping key for a new slot.
///
/// # Errors
/// Those of the keyring and of [`Wrapper::new`].
pub(super) async fn wrapper(keyring: &dyn Keyring, wish: KdfWish) -> Result<Wrapper> {
    let secret = keyring.fresh().await?;
    wrap(Arc::new(secret), wish).await
}

async fn wrap(secret: Arc<Secret>, wish: KdfWish) -> Result<Wrapper> {
    let created = timestamp::to_seconds(SystemTime::now());
    computed(move || {
        let kdf = Kdf::tuned(wish.time, wish.memory_bytes)?;
        Wrapper::new(&secret.passphrase, secret.kind, created, kdf)
    })
    .await
}

/// Does what takes a second where nothing waits for the thread.
async fn computed<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work).await.map_err(|e| {
        let text = "the thread that computes a key has failed";
        Error::new(ErrorKind::System, text).with_source(e)
    })?
}

/// An encrypted disk whose superblock is to be changed.
struct Editing {
    client: Arc<dyn ObjectClient>,
    disk: Unlocked,
    unsafe_no_fencing: bool,
    /// What this machine has seen of it; `None` where there is no place for that.
    seen: Option<Seen>,
}

impl Editing {
    /// Opens a disk to change it.
    ///
    /// # Errors
    /// `RolledBack` where its superblock is older than this machine has seen, before anybody is asked; those of opening the disk.
    async fn begin(target: &Target, access: &Access, unsafe_no_fencing: bool) -> Result<Editing> {
        let client = client(target).await?;
        let superblock = versioned::read_superblock(&client).await?;
        let seen = Seen::of(superblock.id);
        // A change of an older superblock would bring back what was removed since.
        if let Some(pin) = seen.as_ref().and_then(Seen::pin) {
            let followed = SuperblockMark::of(&superblock).follows(pin.superblock);
            followed.map_err(|rollback| rollback.refusal(&target.url()))?;
        }
        Ok(Editing {
            disk: unlock(superblock, access).await?,
            client,
            unsafe_no_fencing,
            seen,
        })
    }

    /// The same of a disk that has key slots.
    async fn of_slots(
        target: &Target,
        access: &Access,
        unsafe_no_fencing: bool,
    ) -> Result<Editing> {
        let editing = Editing::begin(target, access, unsafe_no_fencing).await?;
        if editing.disk.keys().is_none() {
            let text = format!("{} is not encrypted: it has no key slots", target.url());
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Ok(editing)
    }

    /// Another passphrase, ready for a slot.
    async fn wrap_another(&self, new: &dyn Keyring, wish: KdfWish) -> Result<Wrapper> {
        let secret = Arc::new(new.fresh().await?);
        self.refuse_if_known(&secret).await?;
        wrap(secret, wish).await
    }

    /// Refuses a passphrase that opens a slot already: its owner would think to have one more than there is.
    async fn refuse_if_known(&self, secret: &Arc<Secret>) -> Result<()> {
        let (slots, id) = (self.disk.slots().to_vec(), self.disk.superblock().id);
        let secret = Arc::clone(secret);
        let known = computed(move || {
            for slot in slots.iter().filter(|slot| slot.kind == secret.kind) {
                // One that this machine cannot try is another's.
                if matches!(slot.open(&secret.passphrase, id), Ok(Some(_))) {
                    return Ok(Some(slot.id));
                }
            }
            Ok(None)
        });
        match known.await? {
            None => Ok(()),
            Some(number) => Err(Error::new(
                ErrorKind::Exists,
                format!("that passphrase or key file opens key slot {number} already"),
            )),
        }
    }

    async fn apply(
        &self,
        mut change: impl FnMut(&mut Draft) -> Result<bool> + Send,
    ) -> Result<Unlocked> {
        let fencing = versioned::fences(&self.client, self.unsafe_no_fencing).await?;
        let changed = versioned::change(&self.client, &self.disk, fencing, &mut change).await?;
        if let Some(seen) = &self.seen {
            seen.raise(SuperblockMark::of(changed.superblock()));
        }
        Ok(changed)
    }
}

/// Adds a key slot, and answers its number.
///
/// # Errors
/// `RolledBack`; those of opening the disk and of the keyrings; `Exists` where the new passphrase opens a slot already; `Usage` where there is no room;
/// those of [`versioned::change`].
pub async fn add_key(
    target: &Target,
    access: &Access,
    new: &dyn Keyring,
    wish: KdfWish,
    unsafe_no_fencing: bool,
) -> Result<u32> {
    let editing = Editing::of_slots(target, access, unsafe_no_fencing).await?;
    let wrapper = editing.wrap_another(new, wish).await?;
    let changed = editing
        .apply(|draft| add(&editing.disk, &wrapper, draft))
        .await?;
    slot_of(&changed, &wrapper)
}

/// Puts another passphrase in the place of the one that opens the disk, and answers the slot's number, which stays the same.
///
/// # Errors
/// As [`add_key`]; `NotFound` where somebody else has changed or removed that slot meanwhile.
pub async fn change_key(
    target: &Target,
    access: &Access,
    new: &dyn Keyring,
    wish: KdfWish,
    unsafe_no_fencing: bool,
) -> Result<u32> {
    let editing = Editing::of_slots(target, access, unsafe_no_fencing).await?;
    let wrapper = editing.wrap_another(new, wish).await?;
    let old = opened(&editing.disk)?;
    let changed = editing
        .apply(|draft| replace(&editing.disk, &old, &wrapper, draft))
        .await?;
    slot_of(&changed, &wrapper)
}

/// Removes a key slot, the one of that number or else the one that was opened, and answers its number.
///
/// # Errors
/// `RolledBack`; those of opening the disk; `NotFound` where there is no such slot; `Usage` where it is the last; those of [`versioned::change`].
pub async fn remove_key(
    target: &Target,
    access: &Access,
    number: Option<u32>,
    unsafe_no_fencing: bool,
) -> Result<u32> {
    let editing = Editing::of_slots(target, access, unsafe_no_fencing).await?;
    let old = match number {
        None => opened(&editing.disk)?,
        Some(number) => slot(&editing.disk, number)?,
    };
    editing
        .apply(|draft| {
            let before = draft.slots.len();
            draft.slots.retain(|slot| slot.salt != old.salt);
            Ok(draft.slots.len() < before)
        })
        .await?;
    Ok(old.id)
}

/// What `set` can set; `None` leaves it as it is.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// How new blocks are compressed.
    pub compression: Option<Compression>,
    /// A name for people.
    pub label: Option<String>,
}

/// Changes what of a disk can be changed.
///
/// # Errors
/// `RolledBack`; those of opening the disk; `Usage`; those of [`versioned::change`].
pub async fn set(
    target: &Target,
    access: &Access,
    settings: &Settings,
    unsafe_no_fencing: bool,
) -> Result<()> {
    let editing = Editing::begin(target, access, unsafe_no_fencing).await?;
    let changed = editing.apply(|draft| {
        let before = draft.clone();
        if let Some(compression) = settings.compression {
            draft.compression = compression;
        }
        if let Some(label) = &settings.label {
            draft.label.clone_from(label);
        }
        Ok(*draft != before)
    });
    changed.await.map(|_| ())
}

/// The superblock, for what can be told of the key slots without a key; authenticated where one was given, or a slot named.
///
/// # Errors
/// `NotFound`; those of the store, and of opening the disk.
pub async fn key_slots(target: &Target, access: &Access) -> Result<Superblock> {
    let superblock = versioned::read_superblock(&client(target).await?).await?;
    match access.is_wanted(superblock.id) {
        true => Ok(unlock(superblock, access).await?.superblock().clone()),
        false => Ok(superblock),
    }
}

/// Adds a slot for a new passphrase, under the lowest free number, unless it is there.
fn add(disk: &Unlocked, wrapper: &Wrapper, draft: &mut Draft) -> Result<bool> {
    if draft.slots.iter().any(|slot| wrapper.made(slot)) {
        return Ok(false);
    }
    let taken = |number: &u32| draft.slots.iter().any(|slot| slot.id == *number);
    let number = (0..).find(|number| !taken(number)).unwrap_or_default();
    draft.slots.extend(disk.wrap(wrapper, number));
    draft.slots.sort_by_key(|slot| slot.id);
    Ok(true)
}

/// Puts a slot for a new passphrase in the place of another, unless it is there.
fn replace(disk: &Unlocked, old: &KeySlot, wrapper: &Wrapper, draft: &mut Draft) -> Result<bool> {
    if draft.slots.iter().any(|slot| wrapper.made(slot)) {
        return Ok(false);
    }
    let place = draft.slots.iter_mut().find(|slot| slot.salt == old.salt);
    match (place, disk.wrap(wrapper, old.id)) {
        (Some(place), Some(new)) => {
            *place = new;
            Ok(true)
        }
        _ => {
            let text = format!(
                "somebody else has changed or removed key slot {} just now: nothing was changed",
                old.id
            );
            Err(Error::new(ErrorKind::NotFound, text))
        }
    }
}

fn slot(disk: &Unlocked, number: u32) -> Result<KeySlot> {
    let slot = disk.slots().iter().find(|slot| slot.id == number).cloned();
    slot.ok_or_else(|| {
        let text = format!("there is no key slot {number}: see 'bucketdisk key list'");
        Error::new(ErrorKind::NotFound, text)
    })
}

/// The slot that was opened.
fn opened(disk: &Unlocked) -> Result<KeySlot> {
    slot(disk, disk.opened_slot().unwrap_or_default())
}

/// The number under which a slot got in.
fn slot_of(disk: &Unlocked, wrapper: &Wrapper) -> Result<u32> {
    let slot = disk.slots().iter().find(|slot| wrapper.made(slot));
    slot.map(|slot| slot.id).ok_or_else(|| {
        let text = "the new key slot was removed by somebody else at once";
        Error::new(ErrorKind::NotFound, text)
    })
}
