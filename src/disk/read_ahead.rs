//! Sees sequential readers, and says which blocks they will want next.

use std::ops::Range;

use parking_lot::Mutex;

use crate::block::BlockIndex;

/// Sequential readers told apart at the same time.
const STREAMS: usize = 8;

/// The recent readers. A reader is known by the block that it reads now; one that goes on to the next block is sequential, and
/// the longer it goes on, the further ahead of it blocks are wanted, up to a limit.
#[derive(Debug)]
pub(super) struct ReadAhead {
    limit: u64,
    streams: Mutex<Vec<Stream>>,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// The block that it read last.
    at: u64,
    /// How far ahead of `at` to go.
    depth: u64,
    /// The block after the last that was asked for.
    asked: u64,
}

impl ReadAhead {
    /// Goes at most `limit` blocks ahead; 0 switches it off.
    pub(super) fn new(limit: u64) -> Self {
        ReadAhead {
            limit,
            streams: Mutex::new(Vec::with_capacity(STREAMS)),
        }
    }

    /// Notes that a block is read, and answers the blocks to fetch now: empty for a reader that jumps about.
    pub(super) fn observe(&self, index: BlockIndex) -> impl Iterator<Item = BlockIndex> + use<> {
        self.next(index.0).map(BlockIndex)
    }

    fn next(&self, index: u64) -> Range<u64> {
        if self.limit == 0 {
            return 0..0;
        }
        let mut streams = self.streams.lock();
        let known = streams
            .iter()
            .position(|s| s.at == index || s.at + 1 == index);
        let Some(place) = known else {
            if streams.len() == STREAMS {
                streams.remove(0);
            }
            streams.push(Stream {
                at: index,
                depth: 0,
                asked: index + 1,
            });
            return 0..0;
        };
        let mut stream = streams[place];
        if stream.at == index {
            return 0..0;
        }
        streams.remove(place);
        stream.at = index;
        stream.depth = (stream.depth * 2).clamp(1, self.limit);
        let wanted = stream.asked.max(index + 1)..index + 1 + stream.depth;
        stream.asked = stream.asked.max(wanted.end);
        streams.push(stream);
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_run_ahead_of_without_asking_twice() {
        let ahead = ReadAhead::new(8);
        let mut asked = Vec::new();
        for index in 10..40 {
            let wanted = ahead.next(index);
            assert!(wanted.is_empty() || wanted.start > index);
            asked.extend(wanted);
            assert!(
                ahead.next(index).is_empty(),
                "the same block again wants nothing"
            );
        }
        let expected: Vec<u64> = (12..48).collect();
        assert_eq!(asked, expected);
    }

    #[test]
    fn a_reader_that_jumps_wants_nothing_ahead() {
        let ahead = ReadAhead::new(8);
        for index in [5, 900, 3, 77, 1000, 20, 11, 640, 5, 2000] {
            assert!(ahead.next(index).is_empty());
        }
    }

    #[test]
    fn two_readers_side_by_side_are_both_sequential() {
        let ahead = ReadAhead::new(4);
        let mut asked = 0;
        for step in 0..20 {
            asked += ahead.next(step).count() + ahead.next(5000 + step).count();
        }
        assert!(asked > 30, "asked for {asked}");
    }
}
