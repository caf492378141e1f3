//! What a mount does with writes that it can commit no more, when it ends without having been told to give them up: it keeps them in a
//! file of this machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::sparse::{self, Copying, Draft, beside};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::local;

/// Writes what is not committed to a new file below [`local::rescue_directory`], with the list of its ranges beside it. Answers the
/// file's name and how many bytes that are.
///
/// # Errors
/// `System`, `Full`: nothing is kept then.
pub async fn keep(disk: &Arc<Disk>) -> Result<(PathBuf, u64)> {
    let disk = Arc::clone(disk);
    let runtime = Handle::current();
    let kept = spawn_blocking(move || keep_now(&disk, &runtime)).await;
    kept.map_err(|e| {
        Error::new(ErrorKind::System, "the thread that keeps them has failed").with_source(e)
    })?
}

fn keep_now(disk: &Disk, runtime: &Handle) -> Result<(PathBuf, u64)> {
    let folder = local::rescue_directory().ok_or_else(|| {
        let text = "there is no home directory to keep them in";
        Error::new(ErrorKind::System, text)
    })?;
    local::make_private(&folder)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let name = format!(
        "{}-{}.img",
        disk.status().store.disk_id,
        now.unwrap_or_default().as_secs()
    );
    let name = folder.join(name);
    let ranges = disk.dirty_ranges();
    let draft = Draft::begin(&name, false)?;
    let geometry = disk.geometry();
    let copying = Copying {
        size_bytes: geometry.size_bytes(),
        block_bytes: u64::from(geometry.block_bytes()),
        read: &mut |offset, buffer| runtime.block_on(disk.read(offset, buffer)),
        done: &mut |_| {},
    };
    let missing = copying.run(&draft, &ranges)?;
    if let Some(error) = missing.reason {
        // All of it is in memory.
        return Err(error);
    }
    sparse::write_ranges(&beside(&name, ".ranges"), false, &ranges)?;
    draft.finish()?;
    Ok((name, sparse::length(&ranges)))
}
