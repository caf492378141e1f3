//! The image file: the disk's bytes, asked for by the kernel.
//!
//! A request that the disk answers from memory is answered on the thread that received it: no task, and for a read no copy but
//! the one into that thread's own buffer. Everything else is spawned with its reply on the disk's runtime.
//!
//! The end of the disk is the end of the space: a read stops there, a write is cut there, and one that begins there or beyond
//! gets `ENOSPC`, as on a block device. The same goes for a zeroed range that would make the file longer; where the size is to
//! be kept, the part beyond the end is left out.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{Errno, ReplyData, ReplyEmpty, ReplyWrite};
use rustix::fs::FallocateFlags;
use tracing::{debug, error};

use crate::block::Geometry;
use crate::disk::{Disk, Now};
use crate::error::{Error, ErrorKind};

use super::errno::errno;
use super::files::Moment;

/// When a change may be called done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Safety {
    /// Once the disk has taken it.
    Taken,
    /// Once a flush covers it: the file is open with `O_SYNC` or `O_DSYNC`, or the one write asks for it. The kernel leaves this
    /// to the file system where it bypasses the page cache.
    Flushed,
}

/// The image file of one mount.
pub(super) struct Image {
    disk: Arc<Disk>,
    geometry: Geometry,
    /// When it was last read, as far as anyone has said: reads do not count.
    pub(super) atime: Moment,
    /// When it was last written.
    pub(super) mtime: Moment,
}

thread_local! {
    /// Where a read that is answered at once is put together: one per serving thread, as large as its largest read.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Logs a request that the disk failed, and says what the kernel is told. That the disk is lost has been logged once, and is not
/// again for every write that is refused.
fn failed(operation: &'static str, offset: u64, length: u64, cause: &Error) -> Errno {
    if cause.kind() == ErrorKind::Fenced {
        debug!(
            operation,
            offset, length, "refused: the disk is lost to another session"
        );
        return errno(cause);
    }
    error!(operation, offset, length, error = %cause.chain(), "request failed");
    errno(cause)
}

impl Image {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Image {
            geometry: disk.geometry(),
            disk,
            atime: Moment::now(),
            mtime: Moment::now(),
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.geometry.size_bytes()
    }

    pub(super) fn block_bytes(&self) -> u32 {
        self.geometry.block_bytes()
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.disk.allocated_bytes()
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.disk.is_read_only()
    }

    pub(super) fn read(&self, offset: u64, size: u32, reply: ReplyData) {
        let length = u64::from(size).min(self.room(offset));
        // At most `size`, which is 32 bits.
        let len = length as usize;
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let part = &mut buffer[..len];
            match self.disk.read_now(offset, part) {
                Ok(Now::Done) => reply.data(part),
                Ok(Now::Wait) => self.read_later(offset, len, reply),
                Err(e) => reply.error(failed("read", offset, length, &e)),
            }
        });
    }

    fn read_later(&self, offset: u64, len: usize, reply: ReplyData) {
        let disk = Arc::clone(&self.disk);
        self.disk.spawn(async move {
            let mut buffer = vec![0; len];
            match disk.read(offset, &mut buffer).await {
                Ok(()) => reply.data(&buffer),
                Err(e) => reply.error(failed("read", offset, len as u64, &e)),
            }
        });
    }

    pub(super) fn write(&self, offset: u64, data: &[u8], safety: Safety, reply: ReplyWrite) {
        let room = self.room(offset);
        if room == 0 && !data.is_empty() {
            return reply.error(Errno::ENOSPC);
        }
        let data = match usize::try_from(room) {
            Ok(room) if room < data.len() => &data[..room],
            _ => data,
        };
        // A request carries its length in 32 bits.
        let (length, written) = (data.len() as u64, data.len() as u32);
        let answer = move |outcome| match outcome {
            Ok(()) => reply.written(written),
            Err(errno) => reply.error(errno),
        };
        self.mtime.set(SystemTime::now());
        match self.disk.write_now(offset, data) {
            Ok(Now::Done) => self.taken(safety, answer),
            Ok(Now::Wait) => {
                let (disk, data) = (Arc::clone(&self.disk), Bytes::copy_from_slice(data));
                self.disk.spawn(async move {
                    let mut outcome = disk.write(offset, data).await;
                    if outcome.is_ok() && safety == Safety::Flushed {
                        outcome = disk.flush().await;
                    }
                    answer(outcome.map_err(|e| failed("write", offset, length, &e)));
                });
            }
            Err(e) => answer(Err(failed("write", offset, length, &e))),
        }
    }

    /// Zeroes a range, as fallocate(2) with these flags asks.
    pub(super) fn fallocate(
        &self,
        offset: u64,
        length: u64,
        flags: FallocateFlags,
        safety: Safety,
        reply: ReplyEmpty,
    ) {
        use FallocateFlags as Flags;
        // Plain preallocation is refused: space in a bucket cannot be set aside, and saying that it was would be a lie.
        let keeps_size = match flags {
            f if f == Flags::PUNCH_HOLE | Flags::KEEP_SIZE => true,
            f if f == Flags::ZERO_RANGE | Flags::KEEP_SIZE => true,
            f if f == Flags::ZERO_RANGE => false,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let room = self.room(offset);
        if length > room && !keeps_size {
            return reply.error(Errno::ENOSPC);
        }
        match length.min(room) {
            0 => reply.ok(),
            within => self.zero(offset, within, safety, reply),
        }
    }

    fn zero(&self, offset: u64, length: u64, safety: Safety, reply: ReplyEmpty) {
        let answer = move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        };
        self.mtime.set(SystemTime::now());
        match self.disk.zero_now(offset, length) {
            Ok(Now::Done) => self.taken(safety, answer),
            Ok(Now::Wait) => {
                let disk = Arc::clone(&self.disk);
                self.disk.spawn(async move {
                    let mut outcome = disk.zero(offset, length).await;
                    if outcome.is_ok() && safety == Safety::Flushed {
                        outcome = disk.flush().await;
                    }
                    answer(outcome.map_err(|e| failed("zero", offset, length, &e)));
                });
            }
            Err(e) => answer(Err(failed("zero", offset, length, &e))),
        }
    }

    pub(super) fn flush(&self, reply: ReplyEmpty) {
        self.flush_then(move |outcome| match outcome {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        });
    }

    /// Answers a change that the disk has taken.
    fn taken(&self, safety: Safety, answer: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        match safety {
            Safety::Taken => answer(Ok(())),
            Safety::Flushed => self.flush_then(answer),
        }
    }

    fn flush_then(&self, answer: impl FnOnce(Result<(), Errno>) + Send + 'static) {
        let size = self.size_bytes();
        match self.disk.flush_now() {
            Ok(Now::Done) => answer(Ok(())),
            Ok(Now::Wait) => {
                let disk = Arc::clone(&self.disk);
                self.disk.spawn(async move {
                    let outcome = disk.flush().await;
                    answer(outcome.map_err(|e| failed("flush", 0, size, &e)));
                });
            }
            Err(e) => answer(Err(failed("flush", 0, size, &e))),
        }
    }

    /// The first byte of data at or after `from`, which must lie within the disk; `None` where only holes follow.
    pub(super) fn seek_data(&self, from: u64) -> Option<u64> {
        self.disk.seek_data(from)
    }

    /// The first byte of a hole at or after `from`, which must lie within the disk; the end of the disk counts as one.
    pub(super) fn seek_hole(&self, from: u64) -> u64 {
        self.disk.seek_hole(from)
    }

    /// Bytes from `offset` to the end of the disk.
    fn room(&self, offset: u64) -> u64 {
        self.size_bytes().saturating_sub(offset)
    }
}
