//! A store in this process's memory, empty with every connection: for tests, and for trying things out.

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::Root;
use super::errors::{Operation, of_system};
use crate::error::{ErrorKind, Result};
use crate::object::{BATCH, ListPage, ObjectClient, ObjectEntry, PutOutcome};

/// See the module.
#[derive(Debug)]
pub(super) struct MemoryClient {
    store: InMemory,
    root: Root,
    location: String,
}

impl MemoryClient {
    pub(super) fn new(prefix: &str, location: String) -> MemoryClient {
        MemoryClient {
            store: InMemory::new(),
            root: Root::new(prefix),
            location,
        }
    }
}

#[async_trait]
impl ObjectClient for MemoryClient {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let operation = Operation::read(key);
        let path = self.root.path(operation, key)?;
        let body = async { self.store.get(&path).await?.bytes().await };
        body.await.map_err(|error| of_system(operation, error))
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let operation = Operation::write(key);
        let path = self.root.path(operation, key)?;
        match self.store.put(&path, PutPayload::from_bytes(body)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(of_system(operation, error)),
        }
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let operation = Operation::create(key);
        let path = self.root.path(operation, key)?;
        let payload = PutPayload::from_bytes(body);
        match self
            .store
            .put_opts(&path, payload, PutMode::Create.into())
            .await
        {
            Ok(_) => Ok(PutOutcome::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(PutOutcome::Exists),
            Err(error) => Err(of_system(operation, error)),
        }
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        for key in keys {
            let operation = Operation::delete(key);
            let path = self.root.path(operation, key)?;
            if let Err(error) = self.store.delete(&path).await {
                let error = of_system(operation, error);
                if error.kind() != ErrorKind::NotFound {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let all: Vec<_> = self
            .store
            .list(None)
            .try_collect()
            .await
            .map_err(|error| of_system(Operation::list(folder), error))?;
        let mut entries: Vec<ObjectEntry> = all
            .into_iter()
            .filter_map(|meta| {
                let key = self.root.relative(meta.location.as_ref())?;
                let wanted = key.starts_with(folder) && after.is_none_or(|after| key > after);
                wanted.then(|| ObjectEntry {
                    key: key.to_owned(),
                    size_bytes: meta.size,
                    modified: meta.last_modified.into(),
                })
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        let more = entries.len() > BATCH;
        entries.truncate(BATCH);
        Ok(ListPage { entries, more })
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}
