//! The ceiling for the benchmarks: the least a FUSE file served with this crate can cost.
//!
//! One directory with one file, `disk.img`, kept in memory and answered on the thread that asks, with the session settings of
//! the real frontend and nothing else: no journal, no cache, no commit. `cargo run --release --example ceiling DIR SIZE [MS]` serves
//! it until it is unmounted; SIZE is in bytes, or with a suffix k, m or g. With MS it stands for a disk whose flush takes so long.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, WriteFlags,
};
use parking_lot::RwLock;

const FILE: INodeNo = INodeNo(2);
const FILE_NAME: &str = "disk.img";
const TTL: Duration = Duration::from_secs(1);
const REQUEST_BYTES: u32 = 1 << 20;
/// A lock covers this much, so that threads rarely meet.
const PIECE_BYTES: usize = 1 << 20;
/// fallocate(2): keep the size, and punch a hole.
const PUNCH_HOLE_KEEP_SIZE: i32 = 3;

/// A file of zeros in memory; a piece takes memory once it is written to.
struct MemoryFile {
    size: u64,
    /// What a flush takes.
    flush: Duration,
    pieces: Vec<RwLock<Option<Box<[u8]>>>>,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl MemoryFile {
    fn new(size: u64, flush: Duration) -> Self {
        let count = size.div_ceil(PIECE_BYTES as u64);
        MemoryFile {
            size,
            flush,
            pieces: (0..count).map(|_| RwLock::new(None)).collect(),
        }
    }

    /// Calls `each` with the pieces of a range: the piece, the part within it, and where that part begins in the range.
    fn walk(&self, offset: u64, len: usize, mut each: impl FnMut(&Piece, Part, usize)) {
        let mut done = 0;
        while done < len {
            let at = offset as usize + done;
            let start = at % PIECE_BYTES;
            let take = (PIECE_BYTES - start).min(len - done);
            let piece = &self.pieces[at / PIECE_BYTES];
            each(piece, start..start + take, done);
            done += take;
        }
    }

    fn within(&self, offset: u64, len: u64) -> usize {
        len.min(self.size.saturating_sub(offset)) as usize
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm, size) = match ino {
            FILE => (FileType::RegularFile, 0o600, self.size),
            _ => (FileType::Directory, 0o700, 0),
        };
        FileAttr {
            ino,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: REQUEST_BYTES,
            flags: 0,
        }
    }
}

type Piece = RwLock<Option<Box<[u8]>>>;
type Part = std::ops::Range<usize>;

impl Filesystem for MemoryFile {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ] {
            // An older kernel has fewer; the real frontend takes what there is, too.
            let _ = config.add_capabilities(capability);
        }
        let refused = |_| io::Error::other("the kernel refuses the session's settings");
        config.set_max_write(REQUEST_BYTES).map_err(refused)?;
        if let Err(most) = config.set_max_readahead(REQUEST_BYTES) {
            config.set_max_readahead(most).map_err(refused)?;
        }
        let refused = |_| io::Error::other("the kernel refuses the session's settings");
        config.set_max_background(128).map_err(refused)?;
        config.set_congestion_threshold(96).map_err(refused)?;
        Ok(())
    }

    /// The session is over: leaves at once, because the library would now unmount whatever else is mounted there by then.
    fn destroy(&mut self) {
        std::process::exit(0);
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == FILE_NAME {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = self.within(offset, u64::from(size));
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(buffer.len().max(len), 0);
            self.walk(offset, len, |piece, part, at| {
                let target = &mut buffer[at..at + part.len()];
                match &*piece.read() {
                    Some(bytes) => target.copy_from_slice(&bytes[part]),
                    None => target.fill(0),
                }
            });
            reply.data(&buffer[..len]);
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = self.within(offset, data.len() as u64);
        if len == 0 {
            return reply.error(Errno::ENOSPC);
        }
        self.walk(offset, len, |piece, part, at| {
            let source = &data[at..at + part.len()];
            piece
                .write()
                .get_or_insert_with(|| vec![0; PIECE_BYTES].into())[part]
                .copy_from_slice(source);
        });
        reply.written(len as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        std::thread::sleep(self.flush);
        reply.ok();
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != PUNCH_HOLE_KEEP_SIZE {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let len = self.within(offset, length);
        self.walk(offset, len, |piece, part, _| {
            let mut piece = piece.write();
            if part.len() == PIECE_BYTES {
                *piece = None;
            } else if let Some(bytes) = &mut *piece {
                bytes[part].fill(0);
            }
        });
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            // One entry always fits.
            let _ = reply.add(FILE, 1, FileType::RegularFile, FILE_NAME);
        }
        reply.ok();
    }
}

/// Serves a file of `size` bytes at `mountpoint` until it is unmounted.
fn serve(mountpoint: &Path, size: u64, flush: Duration) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("ceiling".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.n_threads = Some(std::thread::available_parallelism().map_or(1, |n| n.get().min(4)));
    config.clone_fd = true;
    Session::new(MemoryFile::new(size, flush), mountpoint, &config)?.run()
}

fn bytes_of(text: &str) -> Option<u64> {
    let (digits, unit) = match text.to_ascii_lowercase().strip_suffix(['k', 'm', 'g']) {
        Some(digits) => (digits.to_owned(), text.chars().last()?.to_ascii_lowercase()),
        None => (text.to_owned(), 'b'),
    };
    let shift = match unit {
        'k' => 10,
        'm' => 20,
        'g' => 30,
        _ => 0,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: ceiling DIR SIZE [MS]");
    let (directory, size, flush) = match arguments.as_slice() {
        [directory, size] => (directory, size, 0),
        [directory, size, ms] => (directory, size, ms.parse().map_err(|_| usage())?),
        _ => return Err(usage()),
    };
    let flush = Duration::from_millis(flush);
    serve(
        Path::new(directory),
        bytes_of(size).ok_or_else(usage)?,
        flush,
    )
}
