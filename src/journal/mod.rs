//! The journal: dirty data on the machine's own disk, so that a flush need not wait for the bucket and a crash loses nothing that
//! was flushed.
//!
//! It is an append-only log of *records* (bytes written at an offset of the disk; a range made zero) in *segment* files of one size.
//! `disk` appends a record before it takes a write, keeps a [`Place`] instead of the bytes, and reads the bytes back from there, to
//! answer reads and to commit. This room knows bytes and offsets; what an epoch or a commit is, is `disk`'s affair.
//!
//! ```text
//! state          two slots of 4 KiB, written in turn: whose journal it is, where the log begins (the tail)
//! segment-00000  header, record, record, ...    a record: header of 64 bytes, then its payload, then up to a multiple of 64
//! segment-00001  ...
//! ```
//!
//! **Order.** Records are numbered without gaps, and each segment says after which record of which other segment it goes on. So the log
//! is the longest run of sound records from the tail on, and what lies behind it, such as what a crash wrote of records that
//! were never flushed, does not count: not now, and, since every opening begins a segment of its own under numbers that were
//! never used, not later either.
//!
//! **Torn or damaged.** A record that does not check out ends the log; that is what a crash leaves. But each record says up to which
//! one all were durable when it was written, and so does the state. Where anything behind the end says that what is missing was
//! durable, then it is not torn but lost, and the journal is *damaged*: nothing of it is applied, and nothing removed.
//!
//! **Space.** [`Journal::release`] moves the tail, durably, and only then may a segment before it be written anew. Its records check
//! out under its new number no more. Where flushes are many, new files are written to ahead, which makes flushes quicker.
//!
//! **Errors.** Of a failed `fdatasync` nobody knows what it has lost, so it is never tried again: the journal is *failed* from then
//! on, takes no more records and flushes nothing. What was durable before still is, and [`Journal::durable_records`] reads it for who
//! commits it; then [`Journal::disown`] has the next mount find nothing.
//!
//! One checksum (XXH3, 64 bits, seeded with the journal's id and the segment's number) covers a record's header, another its payload.
//! Of an encrypted disk the payload is sealed, with what the headers of record and segment say, and where it belongs in the disk is hidden
//! (`cipher`); the state and the headers of segments have MACs. Who can write to the local disk and has no keys can take away the end of
//! the log, as far as the state does not tell of it, or put back an older copy of all; but nothing out of its middle.

mod cipher;
mod directory;
mod files;
mod flush;
mod found;
mod log;
mod record;
mod replay;
mod segment;
mod space;
mod state;

pub use directory::Directory;
pub use files::{LocalFile, LocalFiles};
pub use found::{Found, Replayed, SMALLEST_BYTES};
pub use log::{AppendError, Journal, Mark, Placed};
pub use replay::Entry;
pub use segment::{Place, SEGMENT_BYTES};
pub use state::Owner;
