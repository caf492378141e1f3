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
    let id = Uuid::new_v4();
    let fencing = probe::create_if_absent(client, id, spec.unsafe_no_fencing).await?;
    let superblock = Superblock {
        id: Uuid::new_v4(),
        geometry: spec.geometry,
        label: spec.label.clone(),
        created: whole_seconds(),
    };
    let object = superblock.to_json();
    if !fencing {
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
    let location = client.location();
    let what = match Superblock::parse(object) {
        Ok(disk) if disk.label.is_empty() => format!("disk {}", disk.id),
        Ok(disk) => format!("disk {} ({})", disk.id, disk.label),
        Err(_) => {
            let text = format!(
                "{location} already has an object {} that is not of this program, or damaged: choose another prefix, or put it \
                 back as it was",
                keys::SUPERBLOCK
            );
            return Error::new(ErrorKind::Exists, text);
        }
    };
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
    let object = match client.get(keys::SUPERBLOCK).await {
        Ok(object) => object,
        Err(error) => {
            let text = format!("cannot read the superblock of {location}");
            if error.kind() != ErrorKind::NotFound {
                return Err(error.within(text));
            }
            // A store says of a missing object what it says of a missing bucket, or nearly so; a listing tells them apart.
            return Err(match client.list(keys::LOG_FOLDER, None).await {
                Err(missing) if missing.kind() == ErrorKind::NotFound => missing.within(text),
                _ => Error::new(
                    ErrorKind::NotFound,
                    format!(
                        "no disk at {location}: check the URL and the prefix, or make one with `bucketdisk create`"
                    ),
                ),
            });
        }
    };
    Superblock::parse(&object).map_err(|error| {
        let (kind, remedy) = match error {
            SuperblockError::UnknownVersion { .. }
            | SuperblockError::UnknownFeature { .. }
            | SuperblockError::UnknownCompression { .. } => (
                ErrorKind::Unsupported,
                "use the newer bucketdisk that made it",
            ),
            _ => (
                ErrorKind::Damaged,
                "put back the object disk.json as it was",
            ),
        };
        let text = format!("cannot use the superblock of {location} ({remedy})");
        Error::new(kind, text).with_source(error)
    })
}
