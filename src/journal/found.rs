//! A journal as it is found on the local disk: whose it is, what it holds, and going on with it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::files::{LocalFile, LocalFiles};
use super::log::{Journal, Log, Mark, salt};
use super::record::{HEADER_BYTES, Record, may_be_header};
use super::replay::Entry;
use super::segment::{SEGMENT_BYTES, Segment, SegmentHeader};
use super::space::{Spare, unused_name};
use super::state::{MOST_SESSIONS, NAME, Owner, STATE_BYTES, State, StateFile};
use crate::codec::keys::DiskKeys;
use crate::error::{Error, ErrorKind, Result};

/// The least number of segments: one is written to while another waits for its release.
const LEAST_SEGMENTS: u64 = 4;
/// The least that a journal of the usual segments takes, in bytes.
pub const SMALLEST_BYTES: u64 = LEAST_SEGMENTS * SEGMENT_BYTES;
/// Every opening begins its records at a multiple of this.
const NUMBERS_OF_ONE_OPENING: u64 = 1 << 40;
/// Files without content that a journal begins with at least: one is written to while the content of the other is committed.
const SPARES_TO_BEGIN: usize = 2;
/// What is read at a time where a damaged part is searched.
const SEARCH_BYTES: usize = 1 << 20;

/// What was found of the log.
#[derive(Debug, Clone, Default)]
pub struct Replayed {
    /// How many records.
    pub records: u64,
    /// Bytes written, made zero not counted.
    pub written_bytes: u64,
    /// The segments that hold them, ascending, and where they end in each.
    segments: BTreeMap<u64, u64>,
    /// Bytes of the log.
    position: u64,
    /// The number that the next record would have had.
    end: u64,
}

impl Replayed {
    /// The number that the next record would have had.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }
}

/// A journal that nobody writes to yet.
#[derive(Debug)]
pub struct Found {
    files: Arc<dyn LocalFiles>,
    keys: Option<Arc<DiskKeys>>,
    state: StateFile,
    segments: BTreeMap<u64, Arc<Segment>>,
    /// Files of the journal that hold no segment.
    others: Vec<(String, Arc<dyn LocalFile>)>,
    /// Files that are too short to hold one.
    short: Vec<String>,
}

impl Found {
    /// Looks for a journal; `None` where there is none. `keys` are those of an encrypted disk: to them another disk's journal is a damaged
    /// one. Without them nothing of it is verified but checksums.
    ///
    /// # Errors
    /// `Damaged` where there are segments and no state that says whose they are; `System`.
    pub fn look(
        files: &Arc<dyn LocalFiles>,
        keys: Option<&Arc<DiskKeys>>,
    ) -> Result<Option<Found>> {
        let failed = |e| failed(files, "read", e);
        let names = files.names().map_err(failed)?;
        let names: Vec<String> = names.into_iter().filter(|n| is_segment(n)).collect();
        let state = match files.open(NAME).map_err(failed)? {
            Some(file) => StateFile::read(file, keys).map_err(failed)?,
            None => None,
        };
        let Some(state) = state else {
            if names.is_empty() {
                return Ok(None);
            }
            return Err(Error::new(
                ErrorKind::Damaged,
                format!(
                    "the journal in {} has {} segment files, but its file '{NAME}' is missing, damaged or altered: nobody can tell what \
                     they hold, and none of it is used",
                    files.location(),
                    names.len()
                ),
            ));
        };
        let mut found = Found {
            files: Arc::clone(files),
            keys: keys.cloned(),
            state,
            segments: BTreeMap::new(),
            others: Vec::new(),
            short: Vec::new(),
        };
        for name in names {
            if let Some(file) = files.open(&name).map_err(failed)? {
                found.take(name, file).map_err(failed)?;
            }
        }
        Ok(Some(found))
    }

    /// Makes an empty journal where there is none; durable when it returns. `id` is to be random; `segment_bytes` a multiple of 4 KiB,
    /// [`super::SEGMENT_BYTES`] but in tests.
    ///
    /// # Errors
    /// `Full`, `System`.
    pub fn create(
        files: &Arc<dyn LocalFiles>,
        owner: Owner,
        id: u128,
        segment_bytes: u64,
        keys: Option<&Arc<DiskKeys>>,
    ) -> Result<Found> {
        let make = || -> io::Result<StateFile> {
            // What a crash left of an earlier try.
            if files.open(NAME)?.is_some() {
                files.remove(NAME)?;
            }
            let file = files.create(NAME, STATE_BYTES)?;
            let state = StateFile::begin(
                file,
                State {
                    generation: 0,
                    journal: id,
                    owner,
                    segment_bytes,
                    sessions: Vec::new(),
                    tail: Mark {
                        segment: 0,
                        at: 0,
                        record: 0,
                        position: 0,
                    },
                    reaches: 0,
                    durable: 0,
                },
                keys,
            )?;
            files.sync_names()?;
            Ok(state)
        };
        let state = make().map_err(|e| failed(files, "make", e))?;
        Ok(Found {
            files: Arc::clone(files),
            keys: keys.cloned(),
            state,
            segments: BTreeMap::new(),
            others: Vec::new(),
            short: Vec::new(),
        })
    }

    /// Removes all files of a journal, whatever state it is in.
    ///
    /// # Errors
    /// `System`.
    pub fn remove(files: &Arc<dyn LocalFiles>) -> Result<()> {
        let remove = || -> io::Result<()> {
            // The state goes last: segments without one are taken for a damaged journal.
            for name in files.names()?.iter().filter(|n| is_segment(n)) {
                files.remove(name)?;
            }
            files.sync_names()?;
            if files.open(NAME)?.is_some() {
                files.remove(NAME)?;
            }
            files.sync_names()
        };
        remove().map_err(|e| failed(files, "remove", e))
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.state.state.owner
    }

    /// Its id, random.
    pub fn id(&self) -> u128 {
        self.state.state.journal
    }

    /// The sessions that may have written to it.
    pub fn sessions(&self) -> &[u128] {
        &self.state.state.sessions
    }

    /// Adds a session that is about to claim the disk; durable when it returns.
    ///
    /// # Errors
    /// `System`.
    pub fn remember(&mut self, session: u128) -> Result<()> {
        let files = &self.files;
        let changed = self.state.change(|state| {
            if state.sessions.len() == MOST_SESSIONS {
                // The first one is the last that has written; those after it have only tried to mount.
                state.sessions.remove(1);
            }
            state.sessions.push(session);
        });
        changed.map_err(|e| failed(files, "write to", e))
    }

    /// Reads the log and hands its records to `visit`, in order.
    ///
    /// # Errors
    /// `Damaged` where something is missing or altered that was durable, after what can be read has been handed out; `System`.
    pub fn replay(&self, visit: &mut dyn FnMut(Entry)) -> Result<Replayed> {
        let tail = self.state.state.tail;
        let mut replayed = Replayed {
            end: tail.record,
            ..Replayed::default()
        };
        let mut at = tail.at;
        let mut current = match self.segments.get(&tail.segment) {
            Some(segment) => segment,
            None if self.state.state.is_empty() => return self.check_empty().map(|()| replayed),
            None => return Err(self.missing(tail.segment)),
        };
        loop {
            self.check_sealing(current)?;
            let ended = self
                .replay_segment(current, at, &mut replayed, visit)
                .map_err(|e| self.failed(e))??;
            replayed.segments.insert(current.header.number, ended);
            // Numbers ascend along the log, so it cannot lead back to itself.
            let later = self.segments.range(current.header.number + 1..);
            let next = later.map(|(_, segment)| segment).find(|s| {
                s.header.previous == current.header.number && s.header.previous_end == replayed.end
            });
            let Some(next) = next else {
                self.check_end(current, ended, replayed.end)?;
                return Ok(replayed);
            };
            replayed.end = next.header.first;
            current = next;
            at = HEADER_BYTES as u64;
        }
    }

    /// Makes as many files as a journal needs to go on, beside those with content that is not released, so that it does not begin only to
    /// stop.
    ///
    /// # Errors
    /// `Full`, `System`.
    pub fn reserve(&mut self) -> Result<()> {
        // Files of a journal without its state would be taken for a damaged one. It was made by somebody who may have died over it.
        let secured = self.state.secure().and_then(|()| self.files.sync_names());
        secured.map_err(|e| failed(&self.files, "write to", e))?;
        self.set_released_aside();
        while self.others.len() < SPARES_TO_BEGIN {
            let made = self.make_file();
            let file = made.map_err(|e| failed(&self.files, "make a file of", e))?;
            self.others.push(file);
        }
        Ok(())
    }

    /// Takes files whose content is released for what they are: such that hold nothing. After a crash, too, nobody asks for that content.
    fn set_released_aside(&mut self) {
        let kept = self.segments.split_off(&self.state.state.tail.segment);
        for segment in std::mem::replace(&mut self.segments, kept).into_values() {
            let file = Arc::clone(&segment.file);
            self.others.push((segment.name.clone(), file));
        }
    }

    fn make_file(&self) -> io::Result<(String, Arc<dyn LocalFile>)> {
        let names = self.files.names()?;
        let name = unused_name(names.iter().map(String::as_str).collect());
        let file = self.files.create(&name, self.state.state.segment_bytes)?;
        Ok((name, file))
    }

    /// Goes on with the journal: with what [`Found::replay`] answered for its content, which stays, or with `None` to give that up. The
    /// log will take `limit_bytes` at most (four segments at least), and more only where it holds more. From now on it is `session`'s alone.
    /// Durable when it returns.
    ///
    /// # Errors
    /// `Full`, `System`.
    pub fn begin(
        mut self,
        keep: Option<&Replayed>,
        session: u128,
        limit_bytes: u64,
    ) -> Result<Arc<Journal>> {
        let files = Arc::clone(&self.files);
        self.begin_anew(keep, session, limit_bytes)
            .map_err(|e| failed(&files, "begin", e))
    }

    fn begin_anew(
        &mut self,
        keep: Option<&Replayed>,
        session: u128,
        limit_bytes: u64,
    ) -> io::Result<Arc<Journal>> {
        let keep = keep.filter(|k| k.records > 0);
        let state = &self.state.state;
        let (id, bytes) = (state.journal, state.segment_bytes);
        let highest = self.segments.keys().next_back().copied().unwrap_or(0);
        let number = highest.max(state.reaches).max(state.tail.segment) + 1;
        let known = keep.map_or(0, |k| k.end);
        let newest = known.max(state.durable).max(state.tail.record);
        let first = (newest / NUMBERS_OF_ONE_OPENING + 1) * NUMBERS_OF_ONE_OPENING;
        let reaches = state.reaches;
        let kept = keep.map(|k| k.segments.clone()).unwrap_or_default();
        for name in std::mem::take(&mut self.short) {
            self.files.remove(&name)?;
        }

        // The last one is taken first.
        let mut spare = std::mem::take(&mut self.others);
        spare.sort_by(|(one, _), (other, _)| other.cmp(one));
        // A crash before the state has changed has to find all that it speaks of now.
        let (name, file) = match spare.pop() {
            Some(spare) => spare,
            None => self.make_file()?,
        };
        let mut older = std::collections::VecDeque::new();
        for (number, segment) in std::mem::take(&mut self.segments) {
            match kept.get(&number) {
                Some(end) => {
                    // After a crash of the program alone, what was read may never have reached the disk.
                    if number >= reaches {
                        write_again(&*segment.file, *end)?;
                    }
                    segment.file.sync()?;
                    older.push_back(segment);
                }
                None => spare.push((segment.name.clone(), Arc::clone(&segment.file))),
            }
        }
        let header = SegmentHeader {
            number,
            previous: kept.keys().next_back().copied().unwrap_or(0),
            first,
            previous_end: known,
            salt: salt(self.keys.as_ref()),
        };
        let active = Segment::new(header, name, file, id, bytes, self.keys.as_ref());
        active.write_header(id, self.keys.as_deref())?;
        active.file.sync()?;
        self.files.sync_names()?;
        let position = keep.map_or(0, |k| k.position);
        let begin = Mark {
            segment: number,
            at: HEADER_BYTES as u64,
            record: first,
            position,
        };
        let tail = match kept.is_empty() {
            true => begin,
            false => self.state.state.tail,
        };
        self.state.change(|state| {
            state.tail = tail;
            state.reaches = number;
            state.durable = first;
            state.sessions = vec![session];
        })?;
        let most = limit_bytes.max(LEAST_SEGMENTS * bytes) / bytes;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        while spare.len() >= SPARES_TO_BEGIN && older.len() + 1 + spare.len() > most {
            if let Some((name, _)) = spare.pop() {
                self.files.remove(&name)?;
            }
        }
        spare.sort_by(|(one, _), (other, _)| other.cmp(one));
        let log = Log {
            end: begin,
            active,
            older,
            spare: spare
                .into_iter()
                .map(|(name, file)| Spare::new(name, file, false))
                .collect(),
            tail,
            unsynced: Vec::new(),
            names_unsynced: false,
            flushes: 0,
        };
        let state = self.state.clone();
        Ok(Arc::new(Journal::new(
            Arc::clone(&self.files),
            state,
            log,
            most,
            self.keys.clone(),
        )))
    }

    /// Takes a segment file into the right list.
    fn take(&mut self, name: String, file: Arc<dyn LocalFile>) -> io::Result<()> {
        let (id, bytes) = (self.state.state.journal, self.state.state.segment_bytes);
        if file.len()? < bytes {
            self.short.push(name);
            return Ok(());
        }
        let mut header = [0; HEADER_BYTES];
        file.read_at(&mut header, 0)?;
        match SegmentHeader::decode(&header, id, self.keys.as_deref()) {
            Some(header) => {
                let segment = Segment::new(header, name, file, id, bytes, self.keys.as_ref());
                self.segments.insert(header.number, segment);
            }
            None => self.others.push((name, file)),
        }
        Ok(())
    }

    /// Hands out the records of a segment from a place on; answers where they end.
    fn replay_segment(
        &self,
        segment: &Arc<Segment>,
        mut at: u64,
        replayed: &mut Replayed,
        visit: &mut dyn FnMut(Entry),
    ) -> io::Result<Result<u64>> {
        while let Some((record, entry)) = segment.sound_at(at, replayed.end)? {
            if let Err(error) = self.check_place(&record) {
                return Ok(Err(error));
            }
            visit(entry);
            at += record.takes();
            replayed.position += record.takes();
            replayed.written_bytes += record.payload_len();
            replayed.records += 1;
            replayed.end += 1;
        }
        Ok(Ok(at))
    }

    /// What an encrypted disk has written is sealed, and nothing else is.
    fn check_sealing(&self, segment: &Segment) -> Result<()> {
        match (segment.header.is_sealed(), &self.keys) {
            (true, None) => Err(Error::new(
                ErrorKind::NoKey,
                format!(
                    "the journal in {} is encrypted, and what its disk is opened with is not known here: copy disk.json of its bucket \
                     to superblock.json there",
                    self.files.location()
                ),
            )),
            (false, Some(_)) => Err(self.damaged(format!(
                "segment file {} is not encrypted, and the disk is: somebody else has put it there",
                segment.name
            ))),
            _ => Ok(()),
        }
    }

    fn check_place(&self, record: &Record) -> Result<()> {
        let size = self.owner().size_bytes;
        match record.offset.checked_add(record.len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(self.damaged(format!(
                "record {} lies beyond the disk's {size} bytes",
                record.number
            ))),
        }
    }

    /// Whether there may be no log: not where a record tells that one was durable which the state knows nothing of.
    fn check_empty(&self) -> Result<()> {
        let state = &self.state.state;
        let known = state.durable.max(state.tail.record);
        for segment in self.segments.values() {
            let from = HEADER_BYTES as u64;
            let lost = says_lost(segment, from, &|durable| durable > known);
            if lost.map_err(|e| self.failed(e))? {
                return Err(self.damaged(format!(
                    "its file '{NAME}' says that it holds nothing, which segment file {} belies",
                    segment.name
                )));
            }
        }
        Ok(())
    }

    /// Whether the log may end where it does: at a place of a segment, before the record of that number.
    fn check_end(&self, last: &Arc<Segment>, at: u64, number: u64) -> Result<()> {
        let state = &self.state.state;
        if last.header.number < state.reaches {
            return Err(self.missing(last.header.number + 1));
        }
        let lost = |durable: u64| durable > number;
        let torn = !lost(state.durable) && !self.is_lost(last, at, &lost)?;
        if torn {
            return Ok(());
        }
        Err(self.damaged(format!(
            "record {number} (segment file {}, byte {at}) is not what was written, though a flush had made it durable",
            last.name
        )))
    }

    /// Whether any record behind the end of the log says that something is lost.
    fn is_lost(&self, last: &Arc<Segment>, at: u64, lost: &dyn Fn(u64) -> bool) -> Result<bool> {
        let later = self.segments.range(last.header.number + 1..);
        let later = later.map(|(_, segment)| (segment, HEADER_BYTES as u64));
        for (segment, from) in std::iter::once((last, at)).chain(later) {
            if says_lost(segment, from, lost).map_err(|e| self.failed(e))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn missing(&self, number: u64) -> Error {
        self.damaged(format!(
            "the segment file with segment {number} or one after it is missing or damaged"
        ))
    }

    fn damaged(&self, how: String) -> Error {
        let text = format!("the journal in {} is damaged: {how}", self.files.location());
        Error::new(ErrorKind::Damaged, text)
    }

    fn failed(&self, cause: io::Error) -> Error {
        failed(&self.files, "read", cause)
    }
}

/// Looks through what follows a place for headers of records.
fn says_lost(segment: &Segment, from: u64, lost: &dyn Fn(u64) -> bool) -> io::Result<bool> {
    let mut piece = vec![0; SEARCH_BYTES];
    let mut at = from;
    while at < segment.bytes {
        let some = piece.len().min((segment.bytes - at) as usize);
        segment.file.read_at(&mut piece[..some], at)?;
        for (n, header) in piece[..some]
            .as_chunks::<HEADER_BYTES>()
            .0
            .iter()
            .enumerate()
        {
            let place = at + (n * HEADER_BYTES) as u64;
            if may_be_header(header)
                && segment
                    .decode(header, place)
                    .is_some_and(|record| lost(record.durable))
            {
                return Ok(true);
            }
        }
        at += some as u64;
    }
    Ok(false)
}

/// Writes what is there again, up to a place. What an `fdatasync` has failed for can be read, and another one takes it for done: only
/// what is written again is made durable.
fn write_again(file: &dyn LocalFile, end: u64) -> io::Result<()> {
    let mut piece = vec![0; SEARCH_BYTES];
    let mut at = 0;
    while at < end {
        let some = piece.len().min((end - at) as usize);
        file.read_at(&mut piece[..some], at)?;
        file.write_at(&[&piece[..some]], at)?;
        at += some as u64;
    }
    Ok(())
}

fn is_segment(name: &str) -> bool {
    let digits = name.strip_prefix("segment-").unwrap_or_default();
    digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit())
}

fn failed(files: &Arc<dyn LocalFiles>, verb: &str, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::System,
    };
    let text = format!("cannot {verb} the journal in {}", files.location());
    Error::new(kind, text).with_source(cause)
}
