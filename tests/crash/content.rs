//! What one file has held, sector by sector, since it was last made durable.

use std::ops::Range;

const PAGE_SECTORS: usize = 8;

/// A file's contents since it was last durable.
#[derive(Debug, Clone, Default)]
pub struct Content {
    pub durable: Vec<u32>,
    pub now: Vec<u32>,
    writes: Vec<(Range<usize>, u32)>,
    shortest: usize,
    longest: usize,
    /// The change after which it had the name that it was last given.
    pub named: usize,
}

impl Content {
    /// Of a file that is durable.
    pub fn new(durable: Vec<u32>) -> Content {
        let mut content = Content {
            now: durable,
            ..Content::default()
        };
        content.settle();
        content
    }

    /// Sectors are about to be written, from within the file or its end.
    pub fn write(&mut self, sectors: Range<usize>, generation: u32) {
        let length = self.now.len().max(sectors.end);
        self.now.resize(length, 0);
        self.now[sectors.clone()].fill(generation);
        self.longest = self.longest.max(length);
        self.writes.push((sectors, generation));
    }

    /// The file is about to get another length.
    pub fn resize(&mut self, length: usize) {
        self.now.resize(length, 0);
        self.shortest = self.shortest.min(length);
        self.longest = self.longest.max(length);
    }

    /// All of it is durable.
    pub fn settle(&mut self) {
        self.durable.clone_from(&self.now);
        self.writes.clear();
        self.shortest = self.now.len();
        self.longest = self.now.len();
    }

    /// Whether the file may be this after a crash; with `stale_tail`, with older data in what was the rest of its last page.
    pub fn fits(&self, found: &[u32], stale_tail: bool) -> Result<(), String> {
        if found.len() < self.shortest || found.len() > self.longest {
            let (shortest, longest) = (self.shortest, self.longest);
            let found = found.len();
            return Err(format!("{found} sectors, and not {shortest} to {longest}"));
        }
        for (at, generation) in found.iter().enumerate() {
            let durable = self.durable.get(at) == Some(generation);
            let zero = *generation == 0 && at >= self.shortest;
            let written = |(sectors, number): &(Range<usize>, u32)| {
                number == generation && sectors.contains(&at)
            };
            let end = self.durable.len();
            let stale = stale_tail && at >= end && at < end.next_multiple_of(PAGE_SECTORS);
            if !durable && !zero && !stale && !self.writes.iter().any(written) {
                let was = self.durable.get(at);
                return Err(format!(
                    "sector {at} is of generation {generation}; durable was {was:?}, written since then {:?}",
                    self.writes
                        .iter()
                        .filter(|(s, _)| s.contains(&at))
                        .collect::<Vec<_>>()
                ));
            }
        }
        Ok(())
    }
}
