//! A bucket that is exchanged for another copy while a mount looks at it, before any of its requests: what is mounted goes on from what the
//! machine has seen, or nothing is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bucketdisk::block::Seq;
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bucketdisk::store::BlockStore;
use bytes::Bytes;

use crate::support::memory::Bucket;
use crate::support::volume::mount;
use crate::{Memory, commit, two_copies};

/// One bucket for so many requests, then the other.
#[derive(Debug)]
struct Exchanged {
    left: AtomicUsize,
    first: Bucket,
    then: Bucket,
}

impl Exchanged {
    fn now(&self) -> Arc<dyn ObjectClient> {
        let one_less = |left: usize| left.checked_sub(1);
        let (set, read) = (Ordering::AcqRel, Ordering::Acquire);
        match self.left.fetch_update(set, read, one_less) {
            Ok(_) => self.first.client(),
            Err(_) => self.then.client(),
        }
    }
}

#[async_trait]
impl ObjectClient for Exchanged {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.now().get(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.now().put(key, body).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.now().put_if_absent(key, body).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        self.now().delete_many(keys).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        self.now().list(folder, after).await
    }

    fn location(&self) -> String {
        self.first.client().location()
    }
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_exchanged_while_it_is_read_is_refused() {
    let (memory, bucket, copy) = two_copies(3).await;
    let pin = memory.pin().expect("was told");
    let other = Memory::default().mount(&copy).await;
    while Seq(other.status().head) < pin.seq {
        commit(&other, 7).await;
    }
    drop(other);
    let mut refused = 0;
    for list_blocks in [false, true] {
        for after in 0.. {
            let client = Arc::new(Exchanged {
                left: AtomicUsize::new(after),
                first: bucket.fork(),
                then: copy.fork(),
            });
            let told = Memory(Arc::default());
            let mut options = told.reading(list_blocks);
            options.pin = Some(pin);
            let as_dyn: Arc<dyn ObjectClient> = client.clone();
            match mount(&as_dyn, options).await {
                Ok(_) => assert_eq!(told.pin(), Some(pin), "before request {after}"),
                Err(error) if error.kind() == ErrorKind::RolledBack => refused += 1,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{error:?}"),
            }
            if client.left.load(Ordering::Acquire) > 0 {
                break;
            }
        }
    }
    assert!(refused > 5, "{refused}");
}
