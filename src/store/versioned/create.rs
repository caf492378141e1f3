//! Making a disk, and reading its superblock.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::object::{ObjectClient, PutOutcome};

use super::objects::found;
use super::superblock::SuperblockError;
use super::{DiskSpec, Superblock, keys, probe};

/// Makes a disk: tries the store's create-if-absent, and writes the superblock, only if there is none.
///
/// # Errors
/// `Exists` where there is a disk, or anything else by the superblock's name; it is not touched. `Unsupported` where the store has no
/// working create-if-absent, unless the spec accepts that.
pub async fn create(client: &Arc<dyn ObjectClient>, spec: &DiskSpec) -> Result<Superblock> {
    if let Some(there) = found(client.get(keys::SUPERBLOCK).await)? {
        return Err(exists(client, &there));
    }
    if !spec.unsafe_no_fencing {
        probe::create_if_absent(client).await?;
    }
    let superblock = Superblock {
        id: Uuid::new_v4(),
        geometry: spec.geometry,
        label: spec.label.clone(),
        created: whole_seconds(),
    };
    let object = superblock.to_json();
    if spec.unsafe_no_fencing {
        client.put(keys::SUPERBLOCK, object).await?;
        return Ok(superblock);
    }
    if client
        .put_if_absent(keys::SUPERBLOCK, object.clone())
        .await?
        == PutOutcome::Exists
    {
        // Perhaps by an earlier try of this very call, whose answer was lost.
        let there = client.get(keys::SUPERBLOCK).await?;
        if there != object {
            return Err(exists(client, &there));
        }
    }
    Ok(superblock)
}

fn exists(client: &Arc<dyn ObjectClient>, object: &[u8]) -> Error {
    let what = match Superblock::parse(object) {
        Ok(disk) if disk.label.is_empty() => format!("disk {}", disk.id),
        Ok(disk) => format!("disk {} ({})", disk.id, disk.label),
        Err(_) => format!("an object {} that is not readable", keys::SUPERBLOCK),
    };
    let location = client.location();
    Error::new(
        ErrorKind::Exists,
        format!("{location} has {what} already: choose another prefix, or delete that disk first"),
    )
}

fn whole_seconds() -> SystemTime {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(now.as_secs())
}

/// Reads and checks the superblock.
///
/// # Errors
/// `NotFound` where there is no disk; `Damaged`; `Unsupported` where a newer program has made it.
pub async fn read_superblock(client: &Arc<dyn ObjectClient>) -> Result<Superblock> {
    let location = client.location();
    let object = client.get(keys::SUPERBLOCK).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            let text = format!("no disk at {location}: check the URL and the prefix, or make one with `bucketdisk create`");
            Error::new(ErrorKind::NotFound, text).with_source(error)
        }
        _ => error.within(format!("cannot read the superblock of {location}")),
    })?;
    Superblock::parse(&object).map_err(|error| {
        let kind = match error {
            SuperblockError::UnknownVersion { .. }
            | SuperblockError::UnknownFeature { .. }
            | SuperblockError::UnknownCompression { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Damaged,
        };
        Error::new(kind, format!("cannot use the superblock of {location}")).with_source(error)
    })
}
