//! The open journal: appending records.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::cipher::{NO_SALT, SALT_BYTES, fresh_salt};
use super::files::LocalFiles;
use super::record::{CHECK_BYTES, HEADER_BYTES, Kind, Record, aligned};
use super::segment::{Place, Segment, SegmentHeader};
use super::space::Spare;
use super::state::StateFile;
use crate::codec::keys::DiskKeys;
use crate::error::{Error, ErrorKind, Result};

/// What a write is cut at where a segment ends.
const SECTOR: usize = 512;
/// The least that is left of a segment for another record to go into it.
pub(super) const LEAST: u64 = (HEADER_BYTES + SECTOR) as u64;

const PADDING: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// A moment of the log: between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub(super) segment: u64,
    /// Byte in the segment.
    pub(super) at: u64,
    /// The number of the next record.
    pub(super) record: u64,
    /// Bytes appended before, counted from the opening.
    pub(super) position: u64,
}

impl Mark {
    /// The number of the next record: all before have smaller ones.
    #[must_use]
    pub fn record(&self) -> u64 {
        self.record
    }

    /// Bytes that were appended since an earlier mark.
    #[must_use]
    pub fn since(&self, earlier: &Mark) -> u64 {
        self.position.saturating_sub(earlier.position)
    }
}

/// Bytes of the disk and where they are now.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Offset in the disk.
    pub offset: u64,
    /// Where the bytes are.
    pub place: Place,
}

/// Why a record was not appended. The log ends where it did.
#[derive(Debug)]
pub enum AppendError {
    /// There is no room before something is released.
    Full,
    /// The journal has failed, now or earlier.
    Failed(Error),
}

/// A journal that takes records.
///
/// Appends are in one order, that of their marks. [`Place`]s stay readable for as long as they are kept, across [`Journal::release`]
/// too. All calls block on the local disk; none waits for anything else.
#[derive(Debug)]
pub struct Journal {
    pub(super) files: Arc<dyn LocalFiles>,
    id: u128,
    /// Those of an encrypted disk.
    keys: Option<Arc<DiskKeys>>,
    pub(super) segment_bytes: u64,
    /// The most segments.
    pub(super) most: usize,
    pub(super) log: Mutex<Log>,
    pub(super) state: Mutex<StateFile>,
    /// The number of the next record.
    pub(super) appended: AtomicU64,
    /// Records with smaller numbers are durable.
    pub(super) durable: watch::Sender<u64>,
    /// Held by whoever makes records durable for all.
    pub(super) leader: Mutex<()>,
    pub(super) upkeep: Notify,
    /// Files are made ready no more; held while zeros are written.
    pub(super) no_more_zeros: Mutex<bool>,
    failed: OnceLock<String>,
}

#[derive(Debug)]
pub(super) struct Log {
    pub(super) end: Mark,
    pub(super) active: Arc<Segment>,
    /// Before the active one, ascending.
    pub(super) older: VecDeque<Arc<Segment>>,
    /// Files to write anew; the last one is taken first.
    pub(super) spare: Vec<Spare>,
    pub(super) tail: Mark,
    /// What was written to since it was last made durable.
    pub(super) unsynced: Vec<Arc<Segment>>,
    pub(super) names_unsynced: bool,
    /// How often the active segment was made durable.
    pub(super) flushes: u32,
}

/// A record that is about to be written.
struct Planned<'a> {
    at: u64,
    header: [u8; HEADER_BYTES],
    payload: Cow<'a, [u8]>,
}

impl Journal {
    pub(super) fn new(
        files: Arc<dyn LocalFiles>,
        state: StateFile,
        log: Log,
        most: usize,
        keys: Option<Arc<DiskKeys>>,
    ) -> Self {
        Journal {
            keys,
            files,
            id: state.state.journal,
            segment_bytes: state.state.segment_bytes,
            most,
            appended: AtomicU64::new(log.end.record),
            // What was found is durable: it was read from the files and then made so.
            durable: watch::Sender::new(log.end.record),
            log: Mutex::new(log),
            state: Mutex::new(state),
            leader: Mutex::new(()),
            upkeep: Notify::new(),
            no_more_zeros: Mutex::new(false),
            failed: OnceLock::new(),
        }
    }

    /// The end of the log.
    pub fn end(&self) -> Mark {
        self.log.lock().end
    }

    /// Its id, random.
    pub fn id(&self) -> u128 {
        self.id
    }

    /// Bytes of the log that are not released.
    pub fn used_bytes(&self) -> u64 {
        let log = self.log.lock();
        log.end.since(&log.tail)
    }

    /// The most bytes that there may be of it.
    pub fn limit_bytes(&self) -> u64 {
        self.most as u64 * self.segment_bytes
    }

    /// Where its files are, for people.
    pub fn location(&self) -> String {
        self.files.location()
    }

    /// Why it takes nothing any more; `None` while it does.
    pub fn failure(&self) -> Option<Error> {
        let why = self.failed.get()?;
        Some(Error::new(ErrorKind::System, why.clone()))
    }

    /// Appends writes, each an offset in the disk and its bytes, in this order. Where a segment ends one write may become two places;
    /// empty ones become none. Not durable before a flush.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn append(&self, writes: &[(u64, &[u8])]) -> Result<Vec<Placed>, AppendError> {
        let mut log = self.log.lock();
        let sizes = writes.iter().map(|(_, bytes)| bytes.len() as u64);
        self.make_room(&mut log, sizes)?;
        self.append_all(&mut log, |log| self.append_writes(log, writes))
    }

    /// Appends that a range of the disk became zero.
    ///
    /// # Errors
    /// See [`AppendError`].
    pub fn append_zeros(&self, offset: u64, len: u64) -> Result<(), AppendError> {
        let mut log = self.log.lock();
        self.make_room(&mut log, std::iter::once(0))?;
        self.append_all(&mut log, |log| {
            self.append_one(log, Kind::Zeros, offset, len, &[])
        })
    }

    /// All of it, or the log ends where it did.
    fn append_all<T>(
        &self,
        log: &mut Log,
        append: impl FnOnce(&mut Log) -> io::Result<T>,
    ) -> Result<T, AppendError> {
        let before = log.end;
        match append(log) {
            Ok(appended) => {
                self.appended.store(log.end.record, Ordering::Release);
                Ok(appended)
            }
            Err(cause) => {
                log.end = before;
                Err(AppendError::Failed(self.fail("write to", cause)))
            }
        }
    }

    /// Notes that it is broken, for good, and answers how.
    pub(super) fn fail(&self, verb: &str, cause: io::Error) -> Error {
        let text = format!(
            "cannot {verb} the journal in {}: {cause}",
            self.files.location()
        );
        if self.failed.set(text.clone()).is_ok() {
            tracing::error!(
                error = text,
                "the journal has failed: no more writes are taken, and flushes wait for the bucket"
            );
        }
        Error::new(ErrorKind::System, text)
    }

    fn append_writes(&self, log: &mut Log, writes: &[(u64, &[u8])]) -> io::Result<Vec<Placed>> {
        let mut placed = Vec::with_capacity(writes.len() + 1);
        let mut planned: Vec<Planned<'_>> = Vec::with_capacity(writes.len() + 1);
        for (offset, bytes) in writes {
            let (mut offset, mut rest) = (*offset, *bytes);
            while !rest.is_empty() {
                let left = self.segment_bytes - log.end.at;
                if left < LEAST {
                    write_out(log, &mut planned)?;
                    self.advance(log)?;
                    continue;
                }
                let fits = left as usize - HEADER_BYTES;
                let take = match rest.len() <= fits {
                    true => rest.len(),
                    // At the end of a sector of the disk, which no crash may leave in part.
                    false => fits - ((offset + fits as u64) % SECTOR as u64) as usize,
                };
                let (payload, after) = rest.split_at(take);
                planned.push(self.plan(log, Kind::Write, offset, take as u64, payload));
                let place = Place {
                    segment: Arc::clone(&log.active),
                    record: planned[planned.len() - 1].at as u32,
                    skip: 0,
                    len: take as u32,
                };
                placed.push(Placed { offset, place });
                offset += take as u64;
                rest = after;
            }
        }
        write_out(log, &mut planned)?;
        Ok(placed)
    }

    fn append_one(
        &self,
        log: &mut Log,
        kind: Kind,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> io::Result<()> {
        if self.segment_bytes - log.end.at < LEAST {
            self.advance(log)?;
        }
        let mut planned = vec![self.plan(log, kind, offset, len, payload)];
        write_out(log, &mut planned)
    }

    /// The next record, and the end of the log moved behind it.
    fn plan<'a>(
        &self,
        log: &mut Log,
        kind: Kind,
        offset: u64,
        len: u64,
        payload: &'a [u8],
    ) -> Planned<'a> {
        let at = log.end.at;
        let record = Record {
            kind,
            number: log.end.record,
            durable: *self.durable.borrow(),
            offset,
            len,
            check: [0; CHECK_BYTES],
        };
        let (header, payload) = log.active.encode(at, record, payload);
        let takes = HEADER_BYTES as u64 + aligned(payload.len() as u64);
        log.end.at += takes;
        log.end.position += takes;
        log.end.record += 1;
        Planned {
            at,
            header,
            payload,
        }
    }

    /// Goes on in a spare segment.
    fn advance(&self, log: &mut Log) -> io::Result<()> {
        let spare = log.take_spare();
        let spare = spare.ok_or_else(|| io::Error::other("no segment was kept for this"))?;
        let header = SegmentHeader {
            number: log.active.header.number + 1,
            previous: log.active.header.number,
            first: log.end.record,
            previous_end: log.end.record,
            salt: salt(self.keys.as_ref()),
        };
        let segment = Segment::new(
            header,
            spare.name,
            spare.file,
            self.id,
            self.segment_bytes,
            self.keys.as_ref(),
        );
        segment.write_header(self.id, self.keys.as_deref())?;
        log.older
            .push_back(std::mem::replace(&mut log.active, Arc::clone(&segment)));
        log.unsynced.push(segment);
        log.end.segment = header.number;
        log.end.at = HEADER_BYTES as u64;
        log.flushes = 0;
        self.upkeep.notify_one();
        Ok(())
    }
}

/// The salt of a new segment.
pub(super) fn salt(keys: Option<&Arc<DiskKeys>>) -> [u8; SALT_BYTES] {
    keys.map_or(NO_SALT, |_| fresh_salt())
}

/// Writes what is planned to the active segment.
fn write_out(log: &mut Log, planned: &mut Vec<Planned<'_>>) -> io::Result<()> {
    let Some(at) = planned.first().map(|first| first.at) else {
        return Ok(());
    };
    let mut parts: Vec<&[u8]> = Vec::with_capacity(planned.len() * 3);
    for record in planned.iter() {
        let padding = aligned(record.payload.len() as u64) as usize - record.payload.len();
        parts.push(&record.header);
        parts.push(&record.payload);
        parts.push(&PADDING[..padding]);
    }
    parts.pop(); // nothing follows the last one
    log.active.file.write_at(&parts, at)?;
    let known = log.unsynced.last();
    if known.is_none_or(|s| s.header.number != log.active.header.number) {
        log.unsynced.push(Arc::clone(&log.active));
    }
    planned.clear();
    Ok(())
}
