//! What a journal held when it was found: writes that no commit is known to cover.
//!
//! It becomes one epoch. Some of it may have been committed before the crash, without the journal having been told; to commit
//! it all again, at once, makes the same state, since nobody else has written in between. To commit a part of it would not: an
//! older write of an epoch that is in the bucket would be seen without the newer ones over it.

use std::ops::Range;

use tokio::time::Instant;

use crate::block::Geometry;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Entry, Journal, Place};

use super::dirty::Elsewhere;
use super::epoch::Epoch;
use super::parts::Parts;
use super::ranges::joined;

/// The writes of a journal, the later ones over the earlier ones.
#[derive(Debug)]
pub struct Recovered {
    geometry: Geometry,
    epoch: Epoch,
}

impl Recovered {
    /// Nothing yet.
    pub fn new(geometry: Geometry) -> Recovered {
        Recovered {
            geometry,
            epoch: Epoch::default(),
        }
    }

    /// What of an open journal is durable for sure.
    ///
    /// # Errors
    /// Those of [`Journal::durable_records`].
    pub(super) fn durable_in(journal: &Journal, geometry: Geometry) -> Result<Recovered> {
        let mut recovered = Recovered::new(geometry);
        journal.durable_records(&mut |entry| recovered.take(entry))?;
        Ok(recovered)
    }

    /// Takes the next record. It has to lie within the disk.
    pub fn take(&mut self, entry: Entry) {
        let now = Instant::now();
        let geometry = self.geometry;
        match entry {
            Entry::Write { offset, place } => self.epoch.place_at(geometry, offset, &place, now),
            Entry::Zeros { offset, len } => {
                let parts = Parts::of(geometry, offset, len);
                for edge in &parts.edges {
                    for span in geometry.spans(edge.start, (edge.end - edge.start) as usize) {
                        self.epoch.zero_part(&span, now);
                    }
                }
                let whole = parts.blocks(geometry);
                if !whole.is_empty() {
                    self.epoch.punch(whole, now);
                }
            }
        }
    }

    /// Of the disk that they were written to.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.epoch.is_empty()
    }

    /// The bytes that were written or made zero: ascending ranges that do not touch.
    pub fn ranges(&self) -> Vec<Range<u64>> {
        joined(self.epoch.written(self.geometry).collect())
    }

    /// Fills `buf` from `offset`, as far as that was written.
    ///
    /// # Errors
    /// `Usage` where some of it was not; `Damaged`, `System`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut kept = Vec::new();
        let mut missing = false;
        for span in self.geometry.spans(offset, buf.len()) {
            let part = &mut buf[span.outer()];
            self.epoch
                .read(span.index, span.start, part, |elsewhere| match elsewhere {
                    Elsewhere::Below(..) => missing = true,
                    Elsewhere::Journal(place, start) => {
                        kept.push((place.clone(), span.at + (start - span.start)));
                    }
                });
        }
        if missing {
            let text = format!("the journal does not have all bytes from {offset}");
            return Err(Error::new(ErrorKind::Usage, text));
        }
        Place::read_all(&kept, buf)
    }

    pub(super) fn into_epoch(self) -> Epoch {
        self.epoch
    }
}
