//! Making a disk.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::codec::keys::MasterKey;
use crate::error::{Error, ErrorKind, Result};
use crate::object::{ObjectClient, PutOutcome, list_all};
use crate::secret::Key;

use super::objects::found;
use super::unlocked::Unlocked;
use super::{DiskSpec, Superblock, keys, probe};

/// Makes a disk: tries the store's create-if-absent, and writes the superblock, only if there is none.
///
/// # Errors
/// `Exists` where there is a disk, or anything else by the superblock's name; it is not touched. `Unsupported` where the store has no
/// working create-if-absent, unless the spec accepts that.
pub async fn create(client: &Arc<dyn ObjectClient>, spec: &DiskSpec) -> Result<Unlocked> {
    refuse_if_there(client).await?;
    let id = Uuid::new_v4();
    let fencing = probe::create_if_absent(client, id, spec.unsafe_no_fencing).await?;
    let mut superblock = Superblock::plain(
        Uuid::new_v4(),
        spec.geometry,
        spec.label.clone(),
        whole_seconds(),
    );
    superblock.compression = spec.compression;
    let disk = match &spec.encryption {
        None => Unlocked::plain(superblock)?,
        Some(first) => Unlocked::encrypted(superblock, first, MasterKey(Key::fresh())),
    };
    forget_generations(client).await?;
    let object = disk.superblock().to_json();
    if !fencing {
        client.put(keys::SUPERBLOCK, object).await?;
        return Ok(disk);
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
    Ok(disk)
}

/// Refuses where there is a disk, or anything else by the superblock's name.
///
/// # Errors
/// `Exists`; those of the store.
pub async fn refuse_if_there(client: &Arc<dyn ObjectClient>) -> Result<()> {
    match found(client.get(keys::SUPERBLOCK).await)? {
        Some(there) => Err(exists(client, &there)),
        None => Ok(()),
    }
}

/// Removes what a disk that was deleted halfway, or a late request to it, has left of its superblock.
async fn forget_generations(client: &Arc<dyn ObjectClient>) -> Result<()> {
    let listed = list_all(&**client, keys::GENERATIONS_FOLDER).await?;
    let left = listed.into_iter().map(|entry| entry.key);
    let left: Vec<String> = left
        .filter(|key| keys::parse_generation(key).is_some())
        .collect();
    match left.is_empty() {
        true => Ok(()),
        false => client.delete_many(&left).await,
    }
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
