//! A key slot that this machine cannot try: made by the owner's other, larger machine, or by a newer program.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::codec::slots::SlotKind;
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::object::{Connection, Location, ObjectClient, connect};
use bucketdisk::open::{self, Access, KdfWish, Keyring, Reach, Secret, Target};
use bucketdisk::store::versioned::{self, Unlocked};
use uuid::Uuid;

use crate::support::encrypted::{create, open, passphrase};
use crate::support::memory::Bucket;
use crate::{Do, change};

/// A disk whose slot 0, of "large", asks for more than this program computes, as its superblock's authentication confirms; "small" opens
/// slot 1.
async fn disk(client: &Arc<dyn ObjectClient>) {
    let disk = create(client, "large").await;
    let disk = change(client, &disk, &Do::Add("small"))
        .await
        .expect("adds");
    let mut enlarge = |draft: &mut versioned::Draft| {
        draft.slots[0].kdf.memory_kib = u32::MAX;
        Ok(true)
    };
    let changed = versioned::change(client, &disk, true, &mut enlarge).await;
    changed.expect("enlarges");
}

#[tokio::test]
async fn a_slot_that_cannot_be_tried_keeps_no_other_from_opening_the_disk() {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    disk(&client).await;
    let opened = open(&client, "small").await.expect("opens");
    assert_eq!(opened.opened_slot(), Some(1));
    let with = |slot| {
        let (superblock, large) = (opened.superblock().clone(), passphrase("large"));
        let outcome = Unlocked::open(superblock, &large, SlotKind::Passphrase, slot);
        outcome.expect_err("cannot be tried")
    };
    for slot in [None, Some(0)] {
        let error = with(slot);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        for part in ["key slot 0", "--key-slot", "4294967295 KiB"] {
            assert!(error.chain().contains(part), "{part}: {error:?}");
        }
    }
    assert_eq!(with(Some(1)).kind(), ErrorKind::NoKey);
}

/// One passphrase, whatever for.
struct Given(&'static str);

#[async_trait]
impl Keyring for Given {
    fn is_given(&self, _: Uuid) -> bool {
        true
    }

    fn expects_encryption(&self) -> bool {
        true
    }

    async fn existing(&self, _: Uuid, _: u32) -> Result<Secret> {
        Ok(Secret {
            passphrase: passphrase(self.0),
            kind: SlotKind::Passphrase,
            typed: false,
        })
    }

    async fn fresh(&self) -> Result<Secret> {
        self.existing(Uuid::nil(), 0).await
    }
}

#[tokio::test]
async fn a_key_can_be_added_beside_a_slot_that_cannot_be_tried() {
    let directory = tempfile::tempdir().expect("directory");
    let url = format!("file://{}", directory.path().display());
    let location = Location::parse(&url).expect("location");
    let client = connect(&location, &Connection::default()).await;
    let client = client.expect("connects");
    disk(&client).await;
    let reach = Reach {
        endpoint: None,
        region: None,
        path_style: false,
        profile: None,
        patience: Duration::from_secs(60),
        requests: 1,
    };
    let target = Target::new(&url, None, reach).expect("target");
    let access = Access {
        keyring: Arc::new(Given("small")),
        slot: None,
    };
    let wish = KdfWish {
        time: Duration::from_millis(1),
        memory_bytes: 64 << 10,
    };
    let add = |new| {
        let (target, access) = (&target, &access);
        async move { open::add_key(target, access, &Given(new), wish, false).await }
    };
    assert_eq!(add("new").await.expect("adds"), 2);
    let error = add("new").await.expect_err("is there");
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert_eq!(
        open(&client, "new").await.expect("opens").opened_slot(),
        Some(2)
    );
}
