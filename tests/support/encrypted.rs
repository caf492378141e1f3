//! Encrypted disks for tests: with passphrases that cost nothing to try.

use std::sync::Arc;

use bucketdisk::block::Geometry;
use bucketdisk::codec::kdf::Kdf;
use bucketdisk::codec::slots::{SlotKind, Wrapper};
use bucketdisk::error::Result;
use bucketdisk::object::ObjectClient;
use bucketdisk::secret::Passphrase;
use bucketdisk::store::versioned::{self, DiskSpec, Draft, Superblock, Unlocked};

/// The cheapest there is.
pub const CHEAP: Kdf = Kdf {
    memory_kib: 8,
    passes: 1,
    lanes: 1,
};

pub fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(text.as_bytes().to_vec())
}

/// A passphrase on its way into a slot.
pub fn wrapper(text: &str) -> Arc<Wrapper> {
    let created = "2025-01-31T12:00:00Z".to_owned();
    let wrapper = Wrapper::new(&passphrase(text), SlotKind::Passphrase, created, CHEAP);
    Arc::new(wrapper.expect("cheap"))
}

/// Makes an encrypted disk that a passphrase opens.
pub async fn create(client: &Arc<dyn ObjectClient>, text: &str) -> Unlocked {
    let spec = DiskSpec {
        geometry: Geometry::new(1 << 20, 4096).expect("valid"),
        label: "a private label".to_owned(),
        compression: bucketdisk::codec::compress::Compression::None,
        encryption: Some(wrapper(text)),
        unsafe_no_fencing: false,
    };
    versioned::create(client, &spec).await.expect("is made")
}

/// Opens a disk with a passphrase.
pub async fn open(client: &Arc<dyn ObjectClient>, text: &str) -> Result<Unlocked> {
    open_at(versioned::read_superblock(client).await?, text)
}

/// Opens a superblock with a passphrase.
pub fn open_at(superblock: Superblock, text: &str) -> Result<Unlocked> {
    Unlocked::open(superblock, &passphrase(text), SlotKind::Passphrase, None)
}

/// Adds a slot, unless it is there.
pub fn add(disk: &Unlocked, wrapper: &Wrapper, draft: &mut Draft) -> bool {
    if draft.slots.iter().any(|slot| wrapper.made(slot)) {
        return false;
    }
    let taken = |number: &u32| draft.slots.iter().any(|slot| slot.id == *number);
    let number = (0..).find(|number| !taken(number)).expect("a free number");
    draft.slots.extend(disk.wrap(wrapper, number));
    true
}
