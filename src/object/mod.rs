//! Objects: named bodies of bytes in a bucket, a container or a directory.
//!
//! This room knows nothing of blocks or disks. [`ObjectClient`] is its one contract; `cloud` implements it over real stores, and
//! the decorators (`retry`, `limit`, `count`) wrap any client in another. Only `retry` retries, and only `open` stacks them.

use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

pub mod cloud;
pub mod count;
pub mod limit;
pub mod location;
pub mod retry;

pub use cloud::{Connection, Environment, connect, connect_in};
pub use count::{Count, Traffic, TrafficSnapshot};
pub use limit::Limit;
pub use location::Location;
pub use retry::{Patience, Retry};

/// The most keys that one [`ObjectClient::delete_many`] request carries to the store, and the most entries of one page of a
/// listing: S3's own limits.
pub const BATCH: usize = 1000;

/// A bucket seen from one root (a prefix): keys are relative to that root, use `/` between parts, and never begin with it.
///
/// Calls may run at the same time from any number of tasks. Dropping a call's future gives it up; whether the store has applied
/// it by then, or applies it later, is unknown.
///
/// Errors, the same for every call: `Unreachable` (no answer, time-out, 5xx, 429, connection lost: may be tried again, and where
/// the store said when, `Error::retry_after` tells), `Denied` (401, 403), `NotFound` (no such object, or no such bucket: the
/// message says which), `Full` (no space, quota), `ReadOnly` (the store takes no writes), `Unsupported` (the store has not got the
/// operation), `System` (anything else). Every message names the operation and the key.
#[async_trait]
pub trait ObjectClient: Send + Sync + std::fmt::Debug {
    /// The whole body of an object. `NotFound` where there is none.
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// Stores a body under a key, replacing what was there. When it returns, the body is durable and every later `get` and
    /// `list` from anywhere sees it. Nobody ever sees half a body. After an error the old body, the new one, or (at any later
    /// moment) the new one may be there.
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// Stores a body under a key only if there is nothing: of any number of callers at most one is answered
    /// [`PutOutcome::Created`], and then its body is the object. After an error the body may or may not be there: read it back.
    /// `Exists` may also be the answer to a caller whose own earlier, unanswered try was applied.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome>;

    /// Deletes objects; one that is not there counts as deleted. Any number of keys: they are sent [`BATCH`] at a time. An
    /// error means that at least one, which is named, may still be there.
    async fn delete_many(&self, keys: &[String]) -> Result<()>;

    /// One page, at most [`BATCH`] entries, of the objects whose key begins with `folder` (which ends in `/`, or is empty for
    /// everything), in ascending order of key (bytes), beginning after the key `after`. A listing that began after a `put` or a
    /// delete returned reflects it.
    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage>;

    /// What this client reads and writes, as a user would name it: `s3://bucket/prefix`, `file:///directory`.
    fn location(&self) -> String;
}

/// The answer to a create-if-absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is the caller's.
    Created,
    /// There was one already; nothing was changed.
    Exists,
}

/// One page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPage {
    /// The objects, in ascending order of key.
    pub entries: Vec<ObjectEntry>,
    /// Whether there may be more after the last entry.
    pub more: bool,
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Relative to the client's root.
    pub key: String,
    /// Length of the body in bytes.
    pub size_bytes: u64,
    /// When the body was stored, by the store's clock.
    pub modified: SystemTime,
}

/// Every object under a folder, page by page, in ascending order of key.
///
/// # Errors
/// Those of [`ObjectClient::list`]; nothing is answered then.
pub async fn list_all(client: &dyn ObjectClient, folder: &str) -> Result<Vec<ObjectEntry>> {
    let mut entries: Vec<ObjectEntry> = Vec::new();
    loop {
        let page = client
            .list(folder, entries.last().map(|e| e.key.as_str()))
            .await?;
        let more = page.more && !page.entries.is_empty();
        entries.extend(page.entries);
        if !more {
            return Ok(entries);
        }
    }
}
