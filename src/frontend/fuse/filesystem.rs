//! The kernel's requests, answered from a [`Disk`].
//!
//! Which file and which operation is decided here; what happens to the disk's bytes is `image`'s. The directory never changes:
//! every request to make, remove or rename something gets `EPERM`, or `EROFS` where nothing at all may be written.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags};
use tracing::{debug, trace};

use crate::disk::Disk;

use super::StatsText;
use super::files::{Files, IMAGE, ROOT, STATS, STATS_NAME};
use super::image::{Image, Safety};
use super::options::FuseOptions;

/// Most bytes in one request: the largest that a kernel with default limits sends (256 pages).
const MAX_REQUEST_BYTES: u32 = 1 << 20;
/// Requests that the kernel keeps waiting here at a time beyond those that a caller waits for itself: asynchronous direct I/O
/// and read-ahead. The kernel's default of 12 starves a loop device.
const MAX_BACKGROUND: u16 = 64;
/// How many of those make the kernel call the mount congested.
const CONGESTION: u16 = 48;
/// How long the kernel may keep attributes. The allocated size changes behind its back when a commit finds zeros.
const ATTRIBUTES_KEPT: Duration = Duration::ZERO;
/// How long the kernel may keep names: they never change.
const NAMES_KEPT: Duration = Duration::from_secs(86_400);
const GENERATION: Generation = Generation(0);
/// Unit of the figures of statfs(2), in bytes.
const STATFS_UNIT_BYTES: u32 = 4096;

/// The file system of one mount.
pub(super) struct DiskFilesystem {
    image: Image,
    read_only: bool,
    files: Files,
    stats: StatsText,
    /// The text that each open handle of the stats file shows, so that it does not change while being read.
    open_stats: Mutex<HashMap<u64, Bytes>>,
    next_handle: AtomicU64,
}

impl DiskFilesystem {
    pub(super) fn new(disk: Arc<Disk>, stats: StatsText, options: &FuseOptions) -> Self {
        let geometry = disk.geometry();
        DiskFilesystem {
            read_only: options.read_only,
            files: Files::new(options, geometry.size_bytes(), geometry.block_bytes()),
            stats,
            open_stats: Mutex::new(HashMap::new()),
            next_handle: AtomicU64::new(1),
            image: Image::new(disk),
        }
    }

    fn attr(&self, ino: INodeNo) -> Option<fuser::FileAttr> {
        match ino {
            ROOT => Some(self.files.root()),
            IMAGE => {
                let allocated = self.image.allocated_bytes();
                let (atime, mtime) = (self.image.atime.get(), self.image.mtime.get());
                Some(self.files.image(allocated, atime, mtime))
            }
            STATS => Some(self.files.stats((self.stats)().len() as u64)),
            _ => None,
        }
    }

    fn takes_no_writes(&self) -> bool {
        self.read_only || self.image.is_read_only()
    }

    /// Why the directory cannot be changed: it holds what it holds.
    fn fixed(&self) -> Errno {
        if self.read_only {
            Errno::EROFS
        } else {
            Errno::EPERM
        }
    }

    fn read_stats(&self, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        let Some(text) = self.open_stats.lock().get(&fh.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        let start = usize::try_from(offset).map_or(text.len(), |at| at.min(text.len()));
        let end = start.saturating_add(size as usize).min(text.len());
        reply.data(&text[start..end]);
    }
}

fn moment_of(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(at) => at,
        TimeOrNow::Now => SystemTime::now(),
    }
}

impl Filesystem for DiskFilesystem {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is worth having alone, and an older kernel may lack any. Not asked for: the write-back cache (dirty data would
        // live in the kernel, where neither a limit nor a commit reaches it).
        for capability in [
            // direct I/O of one caller as many requests at once
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // shared mappings of a file that is opened for direct I/O
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            // there are no set-user-id bits here to clear on a write, so the kernel need not look
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            if config.add_capabilities(capability).is_err() {
                debug!(?capability, "the kernel lacks a capability");
            }
        }
        let refused = |value: &str| io::Error::other(format!("the kernel refuses {value}"));
        config
            .set_max_write(MAX_REQUEST_BYTES)
            .map_err(|_| refused("1 MiB requests"))?;
        if let Err(most) = config.set_max_readahead(MAX_REQUEST_BYTES) {
            config
                .set_max_readahead(most)
                .map_err(|_| refused("its own read-ahead"))?;
        }
        config
            .set_max_background(MAX_BACKGROUND)
            .map_err(|_| refused("the number of requests at once"))?;
        config
            .set_congestion_threshold(CONGESTION)
            .map_err(|_| refused("the congestion threshold"))?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        trace!(?name, "lookup");
        let ino = match name.to_str() {
            Some(name) if parent == ROOT && name == self.files.image_name => IMAGE,
            Some(STATS_NAME) if parent == ROOT => STATS,
            _ => return reply.error(Errno::ENOENT),
        };
        match self.attr(ino) {
            Some(attr) => {
                reply.entry_with_ttls(&ATTRIBUTES_KEPT, &NAMES_KEPT, &attr, GENERATION);
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        trace!(ino = ino.0, "getattr");
        match self.attr(ino) {
            Some(attr) => reply.attr(&ATTRIBUTES_KEPT, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Times are kept for as long as the mount lasts. Size, mode and owner are the mount's: only what they are already is taken.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        trace!(ino = ino.0, ?size, ?mode, ?uid, ?gid, "setattr");
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let changes_nothing_fixed = ino == IMAGE
            && size.is_none_or(|s| s == self.image.size_bytes())
            && self.files.is_mode_and_owner(mode, uid, gid);
        if !changes_nothing_fixed {
            return reply.error(Errno::EPERM);
        }
        if let Some(time) = atime {
            self.image.atime.set(moment_of(time));
        }
        if let Some(time) = mtime {
            self.image.mtime.set(moment_of(time));
        }
        self.getattr(_req, ino, None, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        trace!(ino = ino.0, ?flags, "open");
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        match ino {
            IMAGE if writes && self.takes_no_writes() => reply.error(Errno::EROFS),
            IMAGE => reply.opened(image_handle(flags), image_flags()),
            STATS if writes => reply.error(self.fixed()),
            STATS => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                let text = Bytes::from((self.stats)());
                self.open_stats.lock().insert(handle, text);
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO);
            }
            ROOT => reply.error(Errno::EISDIR),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if ino == STATS {
            self.open_stats.lock().remove(&fh.0);
        }
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        trace!(ino = ino.0, offset, size, "read");
        match ino {
            IMAGE => self.image.read(offset, size, reply),
            STATS => self.read_stats(fh, offset, size, reply),
            _ => reply.error(Errno::EISDIR),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        trace!(ino = ino.0, offset, size = data.len(), "write");
        match ino {
            IMAGE if self.read_only => reply.error(Errno::EROFS),
            IMAGE => {
                let safety = if is_synchronous(flags) {
                    Safety::Flushed
                } else {
                    safety_of(fh)
                };
                self.image.write(offset, data, safety, reply);
            }
            _ => reply.error(Errno::EBADF),
        }
    }

    /// A close asks for nothing to be kept: `ENOSYS` makes the kernel stop telling.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        trace!(ino = ino.0, "fsync");
        match ino {
            IMAGE => self.image.flush(reply),
            _ => reply.ok(),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        trace!(ino = ino.0, offset, length, mode, "fallocate");
        if ino != IMAGE {
            return reply.error(Errno::EBADF);
        }
        if self.read_only {
            return reply.error(Errno::EROFS);
        }
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        self.image
            .fallocate(offset, length, flags, safety_of(fh), reply);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        trace!(ino = ino.0, offset, whence, "lseek");
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let size = match ino {
            IMAGE => self.image.size_bytes(),
            STATS => match self.open_stats.lock().get(&fh.0) {
                Some(text) => text.len() as u64,
                None => return reply.error(Errno::EBADF),
            },
            _ => return reply.error(Errno::EINVAL),
        };
        let from = match u64::try_from(offset) {
            Ok(from) if from < size => from,
            _ => return reply.error(Errno::ENXIO),
        };
        let found = match (whence, ino) {
            (SEEK_DATA, IMAGE) => self.image.seek_data(from),
            (SEEK_HOLE, IMAGE) => Some(self.image.seek_hole(from)),
            (SEEK_DATA, _) => Some(from),
            (SEEK_HOLE, _) => Some(size),
            _ => return reply.error(Errno::EINVAL),
        };
        match found.and_then(|at| i64::try_from(at).ok()) {
            Some(at) => reply.offset(at),
            None => reply.error(Errno::ENXIO),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if ino != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let entries = [
            (ROOT, FileType::Directory, "."),
            (ROOT, FileType::Directory, ".."),
            (IMAGE, FileType::RegularFile, self.files.image_name.as_str()),
            (STATS, FileType::RegularFile, STATS_NAME),
        ];
        for (at, (ino, kind, name)) in (1..).zip(entries) {
            if at > offset && reply.add(ino, at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// The preferred size is a whole block: a loop device takes it for the smallest discard that is worth sending, and less than
    /// a block frees no object.
    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let unit = u64::from(STATFS_UNIT_BYTES);
        let blocks = self.image.size_bytes() / unit;
        let free = blocks.saturating_sub(self.image.allocated_bytes().div_ceil(unit));
        let block_bytes = self.image.block_bytes();
        reply.statfs(
            blocks,
            free,
            free,
            3,
            0,
            block_bytes,
            255,
            STATFS_UNIT_BYTES,
        );
    }

    /// No extended attributes: `ENOSYS` makes the kernel stop asking, here and in `listxattr`.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _size: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(self.fixed());
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.fixed());
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(self.fixed());
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.fixed());
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(self.fixed());
    }

    fn unlink(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.fixed());
    }

    fn rmdir(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(self.fixed());
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(self.fixed());
    }
}

/// How the image is opened, whoever opens it: past the page cache, so that clean data is held once and its memory is what the
/// disk's limit says. A loop device with direct I/O is as fast either way; one without writes twice as fast like this and reads
/// at two thirds of the speed, and what is mounted on it has a page cache of its own.
fn image_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

/// Whether what is written has to be flushed before it is answered. `O_SYNC` is two bits, of which `O_DSYNC` is one; either asks.
fn is_synchronous(flags: OpenFlags) -> bool {
    OFlags::from_bits_retain(flags.0.cast_unsigned()).intersects(OFlags::SYNC)
}

/// The handle of an image that was opened with these flags: it remembers what fallocate is not told.
fn image_handle(flags: OpenFlags) -> FileHandle {
    FileHandle(u64::from(is_synchronous(flags)))
}

fn safety_of(image_handle: FileHandle) -> Safety {
    match image_handle {
        FileHandle(0) => Safety::Taken,
        FileHandle(_) => Safety::Flushed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_synchronous_files_are_flushed() {
        // The kernel's numbers on all machines but alpha, mips, parisc and sparc.
        let (direct, dsync, sync) = (0o40000, 0o10000, 0o4_010_000);
        assert!(is_synchronous(OpenFlags(dsync)));
        assert!(is_synchronous(OpenFlags(sync | direct)));
        assert!(!is_synchronous(OpenFlags(direct | 2)));
        assert_eq!(safety_of(image_handle(OpenFlags(dsync))), Safety::Flushed);
        assert_eq!(safety_of(image_handle(OpenFlags(2))), Safety::Taken);
    }
}
