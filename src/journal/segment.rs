//! A segment: a file of fixed size that holds a part of the log, and places in it.
//!
//! Its header, 64 bytes, little-endian: `BDJs`, format version (4 bytes: 1), then eight bytes each: its number, the number of the segment
//! that it goes on after (0: none), the number of the record that it begins with, the number that the next record of the segment
//! before it would have had, then its salt (16 bytes; all zero where it is not sealed), and a checksum of the 56 bytes before; where it is
//! sealed, the first 8 bytes of a MAC of the journal's id and the 56 bytes before.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use super::cipher::{NO_SALT, Name, SALT_BYTES, Sealer, name_mac};
use super::files::LocalFile;
use super::record::{CHECK_BYTES, HEADER_BYTES, Kind, NO_NUMBER, Record, check, get, put};
use crate::codec::keys::DiskKeys;
use crate::error::{Error, ErrorKind, Result};

/// Size of the segment files of a new journal, in bytes.
pub const SEGMENT_BYTES: u64 = 16 << 20;

const MAGIC: [u8; 4] = *b"BDJs";
const VERSION: u32 = 1;
const CHECKED: usize = 56;
const ID_BYTES: usize = 16;
const SALT: usize = 40;

/// What a segment's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    /// The segment before it in the log; 0 where there is none.
    pub(super) previous: u64,
    /// The number of its first record.
    pub(super) first: u64,
    /// The end of the segment before it: the number that its next record would have had.
    pub(super) previous_end: u64,
    /// Makes its nonces; all zero where it is not sealed.
    pub(super) salt: [u8; SALT_BYTES],
}

impl SegmentHeader {
    /// Whether what it holds is encrypted.
    pub(super) fn is_sealed(&self) -> bool {
        self.salt != NO_SALT
    }

    /// `keys` are those of an encrypted disk.
    pub(super) fn encode(&self, journal: u128, keys: Option<&DiskKeys>) -> [u8; HEADER_BYTES] {
        let name = self.name(journal);
        let mut header = [0; HEADER_BYTES];
        header[..CHECKED].copy_from_slice(&name[ID_BYTES..]);
        let sum = match keys.filter(|_| self.is_sealed()) {
            Some(keys) => name_mac(keys, &name),
            None => check(&header[..CHECKED], seed(journal, 0)),
        };
        put(&mut header, CHECKED, sum);
        header
    }

    /// The journal's id, and what the header says.
    fn name(&self, journal: u128) -> Name {
        let mut name = [0; ID_BYTES + CHECKED];
        name[..ID_BYTES].copy_from_slice(&journal.to_le_bytes());
        let header = &mut name[ID_BYTES..];
        header[..4].copy_from_slice(&MAGIC);
        header[4..8].copy_from_slice(&VERSION.to_le_bytes());
        put(header, 8, self.number);
        put(header, 16, self.previous);
        put(header, 24, self.first);
        put(header, 32, self.previous_end);
        header[SALT..].copy_from_slice(&self.salt);
        name
    }

    /// `None` where it is no segment of this journal, or torn, or altered. What is sealed, and without the keys, is taken as it is: nothing
    /// of it can be read then.
    pub(super) fn decode(
        header: &[u8; HEADER_BYTES],
        journal: u128,
        keys: Option<&DiskKeys>,
    ) -> Option<SegmentHeader> {
        let plausible = header[..4] == MAGIC
            && header[4..8] == VERSION.to_le_bytes()
            && [8, 16, 24, 32]
                .iter()
                .all(|at| get(header, *at) < NO_NUMBER);
        let decoded = SegmentHeader {
            number: get(header, 8),
            previous: get(header, 16),
            first: get(header, 24),
            previous_end: get(header, 32),
            salt: header[SALT..CHECKED].try_into().ok()?,
        };
        let sound = match keys {
            None if decoded.is_sealed() => true,
            _ => decoded.encode(journal, keys) == *header,
        };
        (plausible && sound).then_some(decoded)
    }
}

/// The seed of checksums in a segment of a journal.
pub(super) fn seed(journal: u128, number: u64) -> u64 {
    let mut text = [0; 24];
    text[..16].copy_from_slice(&journal.to_le_bytes());
    text[16..].copy_from_slice(&number.to_le_bytes());
    check(&text, 0)
}

/// A segment under one number. Whoever refers to it keeps its file from being written anew.
#[derive(Debug)]
pub struct Segment {
    pub(super) header: SegmentHeader,
    pub(super) name: String,
    pub(super) file: Arc<dyn LocalFile>,
    pub(super) seed: u64,
    /// Present if it is sealed, and the keys are known.
    sealer: Option<Sealer>,
    /// Size of the file.
    pub(super) bytes: u64,
}

impl Segment {
    pub(super) fn new(
        header: SegmentHeader,
        name: String,
        file: Arc<dyn LocalFile>,
        journal: u128,
        bytes: u64,
        keys: Option<&Arc<DiskKeys>>,
    ) -> Arc<Segment> {
        let keys = keys.filter(|_| header.is_sealed());
        Arc::new(Segment {
            seed: seed(journal, header.number),
            sealer: keys.map(|keys| Sealer::new(Arc::clone(keys), header.name(journal))),
            bytes,
            header,
            name,
            file,
        })
    }

    /// Writes the header; not durable when it returns. `keys` are those of an encrypted disk.
    pub(super) fn write_header(&self, journal: u128, keys: Option<&DiskKeys>) -> io::Result<()> {
        self.file.write_at(&[&self.header.encode(journal, keys)], 0)
    }

    /// The record at a place of the segment, its payload not looked at; `None` where there is none.
    pub(super) fn record_at(&self, at: u64) -> io::Result<Option<Record>> {
        if at + HEADER_BYTES as u64 > self.bytes {
            return Ok(None);
        }
        let mut header = [0; HEADER_BYTES];
        self.file.read_at(&mut header, at)?;
        let record = self.decode(&header, at);
        let fits = |r: &Record| r.payload_len() <= self.bytes - at - HEADER_BYTES as u64;
        Ok(record.filter(fits))
    }

    /// The record whose header was found at a place; `None` where it is none.
    pub(super) fn decode(&self, header: &[u8; HEADER_BYTES], at: u64) -> Option<Record> {
        Record::decode(header, at, self.seed, self.sealer.as_ref())
    }

    /// A record for a place of the segment as it is written there: header and payload. What its `check` says is made here.
    pub(super) fn encode<'a>(
        &self,
        at: u64,
        mut record: Record,
        payload: &'a [u8],
    ) -> ([u8; HEADER_BYTES], Cow<'a, [u8]>) {
        let payload = match &self.sealer {
            None => {
                let sum = check(payload, self.seed);
                record.check[..8].copy_from_slice(&sum.to_le_bytes());
                Cow::Borrowed(payload)
            }
            Some(sealer) => {
                let mut sealed = payload.to_vec();
                record.check = sealer.seal(at, &record.said(), &mut sealed);
                Cow::Owned(sealed)
            }
        };
        (record.encode(at, self.seed, self.sealer.as_ref()), payload)
    }

    /// The payload of a record at a place; `None` where it is not what was written.
    pub(super) fn payload_at(&self, at: u64, record: &Record) -> io::Result<Option<Vec<u8>>> {
        let len = usize::try_from(record.payload_len()).unwrap_or(usize::MAX);
        let mut payload = vec![0; len];
        let sound = self.payload_into(at, record, &mut payload)?;
        Ok(sound.then_some(payload))
    }

    /// Fills `payload`, of that length, with the payload of a record at a place; `false` where it is not what was written.
    fn payload_into(&self, at: u64, record: &Record, payload: &mut [u8]) -> io::Result<bool> {
        self.file.read_at(payload, at + HEADER_BYTES as u64)?;
        Ok(match &self.sealer {
            None => {
                let mut sum = [0; CHECK_BYTES];
                sum[..8].copy_from_slice(&check(payload, self.seed).to_le_bytes());
                sum == record.check
            }
            Some(sealer) => sealer.open(at, &record.said(), payload, &record.check),
        })
    }
}

/// Where bytes of the disk lie in the journal: all of a record's payload, or a part. They stay there for as long as the place is kept.
#[derive(Debug, Clone)]
pub struct Place {
    pub(super) segment: Arc<Segment>,
    /// Where the record begins in the segment.
    pub(super) record: u32,
    /// The first byte, within the payload.
    pub(super) skip: u32,
    pub(super) len: u32,
}

impl Place {
    /// How many bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of the bytes; the range must lie within them.
    #[must_use]
    pub fn part(&self, range: std::ops::Range<usize>) -> Place {
        debug_assert!(range.start <= range.end && range.end <= self.len());
        Place {
            segment: Arc::clone(&self.segment),
            record: self.record,
            skip: self.skip + range.start as u32,
            len: range.len() as u32,
        }
    }

    /// Fills `buf`, of this length, with the bytes, once the whole record has been found sound; `buf` is undefined otherwise.
    ///
    /// # Errors
    /// `Damaged` where it is not what was written; `System`.
    pub fn read(&self, buf: &mut [u8]) -> Result<()> {
        let record = self.record()?;
        if self.skip != 0 || record.len != buf.len() as u64 {
            let payload = self.payload(&record)?;
            return self.copy_from(&payload, buf);
        }
        let sound = self.segment.payload_into(self.at(), &record, buf);
        match sound.map_err(|e| self.unreadable(e))? {
            true => Ok(()),
            false => Err(self.altered()),
        }
    }

    /// Fills parts of `buf`, each from the byte that is given with its place, as [`Place::read`] does. A record is read once, however many
    /// of the places are parts of it.
    ///
    /// # Errors
    /// Those of [`Place::read`].
    pub fn read_all(places: &[(Place, usize)], buf: &mut [u8]) -> Result<()> {
        let record = |place: &Place| (place.segment.header.number, place.record);
        let mut sorted: Vec<&(Place, usize)> = places.iter().collect();
        sorted.sort_by_key(|(place, _)| record(place));
        for parts in sorted.chunk_by(|(one, _), (other, _)| record(one) == record(other)) {
            match parts {
                [(place, at)] => place.read(&mut buf[*at..*at + place.len()])?,
                [(first, _), ..] => {
                    let payload = first.payload(&first.record()?)?;
                    for (place, at) in parts {
                        place.copy_from(&payload, &mut buf[*at..*at + place.len()])?;
                    }
                }
                [] => {}
            }
        }
        Ok(())
    }

    fn at(&self) -> u64 {
        u64::from(self.record)
    }

    /// What the record's header says.
    fn record(&self) -> Result<Record> {
        let found = self.segment.record_at(self.at());
        let found = found.map_err(|e| self.unreadable(e))?;
        let written = found.filter(|record| record.kind == Kind::Write);
        written.ok_or_else(|| self.altered())
    }

    fn payload(&self, record: &Record) -> Result<Vec<u8>> {
        let payload = self.segment.payload_at(self.at(), record);
        let payload = payload.map_err(|e| self.unreadable(e))?;
        payload.ok_or_else(|| self.altered())
    }

    fn copy_from(&self, payload: &[u8], buf: &mut [u8]) -> Result<()> {
        let skip = self.skip as usize;
        let part = payload.get(skip..skip + self.len());
        buf.copy_from_slice(part.ok_or_else(|| self.altered())?);
        Ok(())
    }

    fn altered(&self) -> Error {
        Error::new(
            ErrorKind::Damaged,
            format!(
                "the local disk has altered what was written to the journal (segment file {}, byte {})",
                self.segment.name, self.record
            ),
        )
    }

    fn unreadable(&self, cause: io::Error) -> Error {
        let text = format!(
            "cannot read the journal's segment file {}",
            self.segment.name
        );
        Error::new(ErrorKind::System, text).with_source(cause)
    }
}
