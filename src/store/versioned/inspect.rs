//! Looking at a disk without mounting it, and deleting one.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};

use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::object::{BATCH, ObjectClient, ObjectEntry, list_all};

use super::load::FirstLook;
use super::mount::{objects, read_state};
use super::record::SessionId;
use super::{
    DiskInfo, Holder, Inner, MountOptions, OnProgress, Pin, Progress, Rollback, Sources, Stored,
    Superblock, SuperblockMark, keys,
};

/// Requests at once of the listings here.
const REQUESTS: usize = 16;

/// Describes a disk: as far as that goes without the keys of an encrypted one, where there is no `codec`. `pin` is what this machine has
/// seen of it. With `count_stored`, lists every
/// object of it to count them.
///
/// # Errors
/// Those of reading the state.
pub async fn inspect(
    client: &Arc<dyn ObjectClient>,
    superblock: Superblock,
    codec: Option<&Arc<dyn Codec>>,
    pin: Option<Pin>,
    count_stored: bool,
    progress: &OnProgress,
) -> Result<DiskInfo> {
    let mark = SuperblockMark::of(&superblock);
    let older = |pin: Pin| mark.follows(pin.superblock).err();
    let mut rollback = pin.and_then(older);
    let inner = match codec {
        None => None,
        Some(codec) => {
            let looked = look_inside(client, &superblock, codec, pin, &mut rollback, progress);
            Some(looked.await?)
        }
    };
    let mut stored = None;
    if count_stored {
        let mut count = Stored::default();
        for_each_object(client, progress, |entries| {
            count.objects += entries.len() as u64;
            count.bytes += entries.iter().map(|e| e.size_bytes).sum::<u64>();
        })
        .await?;
        stored = Some(count);
    }
    Ok(DiskInfo {
        superblock,
        stored,
        inner,
        rollback,
    })
}

/// What log and map tell.
async fn look_inside(
    client: &Arc<dyn ObjectClient>,
    superblock: &Superblock,
    codec: &Arc<dyn Codec>,
    pin: Option<Pin>,
    rollback: &mut Option<Rollback>,
    progress: &OnProgress,
) -> Result<Inner> {
    let objects = objects(Arc::clone(client), superblock, codec);
    let options = MountOptions {
        codec: Arc::clone(codec),
        cache: None,
        read_only: true,
        list_blocks: false,
        take_over: false,
        unsafe_no_fencing: false,
        session: SessionId::fresh(),
        own_dead_sessions: Vec::new(),
        admit: Arc::new(|_| Ok(())),
        pin,
        accept_rollback: true,
        on_head: None,
        requests: REQUESTS,
        sources: Sources::system(),
        progress: Arc::clone(progress),
    };
    let loaded = read_state(&objects, &options, rollback).await?;
    let holder = FirstLook::take(&objects).await?.holder(&objects).await?;
    Ok(Inner {
        label: superblock.label.clone(),
        stored_blocks: loaded.replay.map.len(),
        head: loaded.replay.seq.0,
        holder,
    })
}

/// Deletes a disk's own objects: blocks, maps, records, snapshots and probes, and the superblock last. Answers how many were
/// deleted. Foreign objects under the prefix are left alone. Without `guard`, the superblock and
/// codec that tell who holds it, it is deleted also where a session does, or where it cannot be used.
///
/// # Errors
/// `Held` while a session holds the disk that is none of `own_dead_sessions`. Any request that failed for good: the disk is then partly deleted, and deleting again goes on.
pub async fn delete(
    client: &Arc<dyn ObjectClient>,
    guard: Option<(&Superblock, &Arc<dyn Codec>)>,
    own_dead_sessions: &[SessionId],
    progress: &OnProgress,
) -> Result<u64> {
    if let Some((superblock, codec)) = guard {
        refuse_if_held(client, superblock, codec, own_dead_sessions).await?;
    }
    let mut keys: Vec<String> = Vec::new();
    for_each_object(client, progress, |entries| {
        keys.extend(
            entries
                .into_iter()
                .map(|e| e.key)
                .filter(|key| key != keys::SUPERBLOCK),
        );
    })
    .await?;
    let found = keys.len() as u64 + 1;
    let mut done = 0;
    progress(Progress::Deleting { done, found });
    let batches: Vec<Vec<String>> = keys.chunks(BATCH).map(<[String]>::to_vec).collect();
    let mut deletions = stream::iter(batches)
        .map(|batch| async move {
            client
                .delete_many(&batch)
                .await
                .map(|()| batch.len() as u64)
        })
        .buffer_unordered(4);
    while let Some(deleted) = deletions.try_next().await? {
        done += deleted;
        progress(Progress::Deleting { done, found });
    }
    client.delete_many(&[keys::SUPERBLOCK.to_owned()]).await?;
    progress(Progress::Deleting { done: found, found });
    Ok(found)
}

async fn refuse_if_held(
    client: &Arc<dyn ObjectClient>,
    superblock: &Superblock,
    codec: &Arc<dyn Codec>,
    own_dead_sessions: &[SessionId],
) -> Result<()> {
    let objects = objects(Arc::clone(client), superblock, codec);
    match FirstLook::take(&objects).await?.holder(&objects).await? {
        None => Ok(()),
        Some(holder) if own_dead_sessions.contains(&holder.session) => Ok(()),
        Some(Holder { host, pid, .. }) => {
            let text = format!(
                "{} is held by {host} (process {pid}): unmount it there first",
                client.location()
            );
            Err(Error::new(ErrorKind::Held, text))
        }
    }
}

/// Lists the disk's own objects, several folders at once, and calls `each` with the entries of one folder at a time.
async fn for_each_object(
    client: &Arc<dyn ObjectClient>,
    progress: &OnProgress,
    mut each: impl FnMut(Vec<ObjectEntry>),
) -> Result<()> {
    let others = [
        keys::LOG_FOLDER,
        keys::MAP_FOLDER,
        keys::SNAPSHOTS_FOLDER,
        keys::PROBE_FOLDER,
        keys::GENERATIONS_FOLDER,
    ]
    .map(str::to_owned);
    let folders = (0..=u8::MAX).map(keys::shard_folder).chain(others);
    let mut listings = stream::iter(folders)
        .map(|folder| async move { list_all(&**client, &folder).await })
        .buffer_unordered(REQUESTS);
    let (mut shards, mut found) = (0, 0);
    while let Some(mut entries) = listings.try_next().await? {
        entries.retain(|entry| keys::is_own(&entry.key));
        shards = (shards + 1).min(keys::SHARDS);
        found += entries.len() as u64;
        progress(Progress::ListingBlocks { shards, found });
        each(entries);
    }
    // The superblock lies beside the folders.
    let superblock = client.get(keys::SUPERBLOCK).await?;
    each(vec![ObjectEntry {
        key: keys::SUPERBLOCK.to_owned(),
        size_bytes: superblock.len() as u64,
        modified: std::time::SystemTime::UNIX_EPOCH,
    }]);
    Ok(())
}
