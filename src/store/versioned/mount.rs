//! Mounting: find out who holds the disk, claim it, and only then read the state that the claim has frozen.

use std::sync::Arc;

use crate::block::Seq;
use crate::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::object::ObjectClient;

use super::coding::Coding;
use super::load::{FirstLook, Loaded, Reading, Wanted, load};
use super::objects::{Objects, RecordPut};
use super::record::{Digest, Record, RecordBody, SessionId};
use super::upkeep::HEARTBEAT;
use super::volume::{Start, VersionedStore};
use super::{
    Holder, LastSession, MountOptions, Rollback, Superblock, SuperblockMark, TookOver, pin, probe,
};

/// How often a claim is tried, when others are quicker or its slot turns out to be void.
const CLAIMS: usize = 20;

/// Mounts a disk.
///
/// # Errors
/// `Held`, naming who holds the disk and since when; `RolledBack` where it does not go on from what this machine has seen, before anything is
/// written; what [`MountOptions::admit`] refuses with; `Unsupported` where the store cannot fence; `Damaged` where log or checkpoint
/// do not add up; the object client's own.
pub async fn mount(
    client: Arc<dyn ObjectClient>,
    superblock: Superblock,
    options: MountOptions,
) -> Result<Arc<VersionedStore>> {
    let mut objects = objects(client, &superblock, &options.codec);
    objects.cache.clone_from(&options.cache);
    let mark = SuperblockMark::of(&superblock);
    let mut rolled_back = None;
    if let Some(Err(rollback)) = options.pin.map(|pin| mark.follows(pin.superblock)) {
        accept(&objects, &options, rollback, &mut rolled_back)?;
    }
    if options.read_only {
        let loaded = read_state(&objects, &options, &mut rolled_back).await?;
        let claim = claim_of(&objects, &loaded).await?;
        return Ok(VersionedStore::start(Start {
            objects,
            superblock,
            options,
            loaded,
            claim,
            journal: None,
            leftovers: false,
            took_over: None,
            accepted: rolled_back,
        }));
    }
    // Who has accepted a store without it is kept from a second writer all the same where that can be done.
    let (id, accepted) = (options.sources.id(), options.unsafe_no_fencing);
    objects.fencing = probe::create_if_absent(&objects.client, id, accepted).await?;
    for _ in 0..CLAIMS {
        let since = options.sources.moment();
        let (look, rollback) = pin::look(&objects, options.pin.as_ref()).await?;
        let log_rolled_back = rollback.is_some();
        if let Some(rollback) = rollback {
            accept(&objects, &options, rollback, &mut rolled_back)?;
        }
        let holder = look.holder(&objects).await?;
        if let Some(holder) = &holder {
            may_claim(&objects, holder, &options)?;
        }
        (options.admit)(&LastSession {
            session: look.last_session(),
            released: holder.is_none(),
            rolled_back: log_rolled_back,
            journal: look.journal(),
        })?;
        let Some((end, digest)) = claim(&objects, &look, holder.as_ref(), &options).await? else {
            continue;
        };
        let wanted = Wanted {
            end,
            claimed: true,
            list_blocks: options.list_blocks,
            since,
            sources: &options.sources,
            requests: options.requests,
            progress: &options.progress,
        };
        // A void claim is left where it is: removing it could let a fenced writer in.
        if let Reading::State(loaded) = load(&objects, &wanted).await? {
            if let Some(rollback) = altered(&options, &loaded, digest) {
                accept(&objects, &options, rollback, &mut rolled_back)?;
            }
            // A session that went on after a crash may have ended before it had looked for what that left, or what a session
            // that it had fenced stored late.
            let leftovers =
                holder.is_some() || options.list_blocks || look.took_over(&objects).await?;
            let took_over = holder.map(|from| TookOver {
                was_dead: options.own_dead_sessions.contains(&from.session),
                from,
            });
            return Ok(VersionedStore::start(Start {
                objects,
                superblock,
                options,
                loaded: *loaded,
                claim: Some((end, digest)),
                journal: look.journal(),
                leftovers,
                took_over,
                accepted: rolled_back,
            }));
        }
    }
    Err(Error::new(
        ErrorKind::Held,
        format!(
            "{} is being mounted by others all the time; try again",
            objects.client.location()
        ),
    ))
}

pub(super) fn objects(
    client: Arc<dyn ObjectClient>,
    superblock: &Superblock,
    codec: &Arc<dyn Codec>,
) -> Objects {
    Objects {
        client,
        codec: Arc::clone(codec),
        blocks: Coding::new(Arc::clone(codec)),
        disk: superblock.id,
        geometry: superblock.geometry,
        cache: None,
        fencing: true,
    }
}

/// One fixed state, without a claim: the newest there is.
pub(super) async fn read_state(
    objects: &Objects,
    options: &MountOptions,
    accepted: &mut Option<Rollback>,
) -> Result<Loaded> {
    for _ in 0..CLAIMS {
        let since = options.sources.moment();
        let (look, rollback) = pin::look(objects, options.pin.as_ref()).await?;
        if let Some(rollback) = rollback {
            accept(objects, options, rollback, accepted)?;
        }
        let wanted = Wanted {
            end: look.head,
            claimed: false,
            list_blocks: options.list_blocks,
            since,
            sources: &options.sources,
            requests: options.requests,
            progress: &options.progress,
        };
        if let Reading::State(loaded) = load(objects, &wanted).await? {
            if let Some(rollback) = altered(options, &loaded, look.digest()) {
                accept(objects, options, rollback, accepted)?;
            }
            return Ok(*loaded);
        }
    }
    let text = format!(
        "{} is being written faster than its state can be read; try again",
        objects.client.location()
    );
    Err(Error::new(ErrorKind::Unreachable, text))
}

/// Refuses a disk that does not go on from what this machine has seen, unless that is accepted.
fn accept(
    objects: &Objects,
    options: &MountOptions,
    rollback: Rollback,
    accepted: &mut Option<Rollback>,
) -> Result<()> {
    if !options.accept_rollback {
        return Err(rollback.refusal(&objects.client.location()));
    }
    accepted.get_or_insert(rollback);
    Ok(())
}

/// Whether the state that was read is of another record than the one that was compared with what this machine has seen, or that follows
/// on it.
fn altered(options: &MountOptions, loaded: &Loaded, digest: Digest) -> Option<Rollback> {
    let end = loaded.replay.seq;
    let altered = options.pin.is_some() && loaded.replay.digest != digest;
    altered.then_some(Rollback::OtherBranch {
        seen: end,
        found: end,
    })
}

/// The newest claim at or before the end of a state, and its digest; `None` where there is none.
async fn claim_of(objects: &Objects, loaded: &Loaded) -> Result<Option<(Seq, Digest)>> {
    let Some(last) = &loaded.replay.last else {
        return Ok(None);
    };
    let stored = objects.record(last.claim).await?;
    Ok(stored.map(|stored| (last.claim, stored.digest)))
}

/// Whether a disk that somebody has not released may be claimed all the same.
fn may_claim(objects: &Objects, holder: &Holder, options: &MountOptions) -> Result<()> {
    if options.take_over || options.own_dead_sessions.contains(&holder.session) {
        return Ok(());
    }
    let text = format!(
        "{} is held by {}: unmount it there, or, if that session is dead (one that lives is heard of every {}), mount with \
         --take-over",
        objects.client.location(),
        holder.describe(options.sources.now()),
        humantime::format_duration(HEARTBEAT),
    );
    Err(Error::new(ErrorKind::Held, text))
}

/// Puts a claim on the number after the newest, and answers that and its digest. `None` where another was quicker.
async fn claim(
    objects: &Objects,
    look: &FirstLook,
    holder: Option<&Holder>,
    options: &MountOptions,
) -> Result<Option<(Seq, Digest)>> {
    let seq = next_number(look.head)?;
    let record = Record {
        seq,
        session: options.session,
        claim: look.newest_claim(),
        nonce: options.sources.number(),
        previous: look.digest(),
        time: options.sources.now(),
        journal: look.journal(),
        body: RecordBody::Claim {
            host: host_name(),
            pid: std::process::id(),
            took_over: holder.map(|h| h.session),
        },
    };
    let object = objects.encode_record(&record);
    match objects.put_record(seq, &object).await? {
        RecordPut::Ours => Ok(Some((seq, Digest::of(&*objects.codec, &object)))),
        RecordPut::Taken(_) => Ok(None),
    }
}

/// The number after another.
///
/// # Errors
/// `Unsupported` at the end of the number space, after four thousand million records.
pub(super) fn next_number(seq: Seq) -> Result<Seq> {
    seq.next().ok_or_else(|| {
        let text = "the disk's log has used up its numbers: copy the disk to a new one";
        Error::new(ErrorKind::Unsupported, text)
    })
}

/// This machine, as it calls itself.
pub(super) fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Names a session for messages.
pub(super) fn describe(record: &Record) -> String {
    let session: SessionId = record.session;
    let when = humantime::format_rfc3339_seconds(record.time);
    match &record.body {
        RecordBody::Claim { host, pid, .. } => {
            format!("{host} (process {pid}, session {session}) at {when}")
        }
        _ => format!("session {session}, by record {} at {when}", record.seq),
    }
}
