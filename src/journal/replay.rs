//! Reading the log: what its records say, and what of an open journal is durable for sure.

use std::io;
use std::sync::Arc;

use super::log::Journal;
use super::record::{HEADER_BYTES, Kind, Record};
use super::segment::{Place, Segment};
use crate::error::{Error, ErrorKind, Result};

/// What a record says.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Bytes were written.
    Write {
        /// Offset in the disk, in bytes.
        offset: u64,
        /// The bytes.
        place: Place,
    },
    /// A range became zero.
    Zeros {
        /// Offset in the disk, in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

impl Segment {
    /// The record of that number at a place; `None` where there is none, or not what was written.
    pub(super) fn sound_at(
        self: &Arc<Self>,
        at: u64,
        number: u64,
    ) -> io::Result<Option<(Record, Entry)>> {
        let Some(record) = self.record_at(at)?.filter(|r| r.number == number) else {
            return Ok(None);
        };
        if self.payload_at(at, &record)?.is_none() {
            return Ok(None);
        }
        let entry = match record.kind {
            Kind::Write => Entry::Write {
                offset: record.offset,
                place: Place {
                    segment: Arc::clone(self),
                    record: at as u32,
                    skip: 0,
                    len: record.len as u32,
                },
            },
            Kind::Zeros => Entry::Zeros {
                offset: record.offset,
                len: record.len,
            },
        };
        Ok(Some((record, entry)))
    }
}

impl Journal {
    /// Hands out, in order, the records that are not released and are durable for sure: what the next mount finds at least. All that
    /// was ever flushed is among them, also after the journal has failed.
    ///
    /// # Errors
    /// `Damaged` where one of them is not what was written any more; `System`.
    pub fn durable_records(&self, visit: &mut dyn FnMut(Entry)) -> Result<()> {
        let upto = {
            let leading = self.leader.lock();
            let durable = *self.durable.borrow();
            drop(leading);
            self.tell();
            durable
        };
        let (tail, segments) = {
            let log = self.log.lock();
            let all = log.older.iter().chain([&log.active]);
            let kept = all.filter(|s| s.header.number >= log.tail.segment);
            (log.tail, kept.cloned().collect::<Vec<_>>())
        };
        let (mut at, mut number) = (tail.at, tail.record);
        for segment in segments {
            let header = segment.header;
            if header.number != tail.segment {
                if header.previous_end != number {
                    break;
                }
                (at, number) = (HEADER_BYTES as u64, header.first);
            }
            while number < upto {
                let sound = segment.sound_at(at, number);
                let Some((record, entry)) = sound.map_err(|e| self.unreadable(e))? else {
                    break;
                };
                visit(entry);
                at += record.takes();
                number += 1;
            }
        }
        if number >= upto {
            return Ok(());
        }
        let text = format!(
            "the local disk has altered record {number} of the journal in {}, which a flush had made durable",
            self.files.location()
        );
        Err(Error::new(ErrorKind::Damaged, text))
    }

    fn unreadable(&self, cause: io::Error) -> Error {
        let text = format!("cannot read the journal in {}", self.files.location());
        Error::new(ErrorKind::System, text).with_source(cause)
    }
}
