//! The two files of a mount and the directory that holds them: names, attributes, times.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::block::SECTOR_BYTES;

use super::options::FuseOptions;

/// Name of the file that shows the mount's figures.
pub(super) const STATS_NAME: &str = "stats";
/// The directory.
pub(super) const ROOT: INodeNo = INodeNo::ROOT;
/// The disk.
pub(super) const IMAGE: INodeNo = INodeNo(2);
/// The figures.
pub(super) const STATS: INodeNo = INodeNo(3);

/// Largest preferred size of a request that stat(2) names: what one request can carry.
const MAX_PREFERRED_BYTES: u32 = 1 << 20;

/// A moment that many threads set and read, in nanoseconds since 1970. Good until the year 2262.
#[derive(Debug)]
pub(super) struct Moment(AtomicI64);

impl Moment {
    pub(super) fn now() -> Self {
        Moment(AtomicI64::new(nanoseconds(SystemTime::now())))
    }

    pub(super) fn set(&self, at: SystemTime) {
        self.0.store(nanoseconds(at), Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> SystemTime {
        let at = self.0.load(Ordering::Relaxed);
        let distance = Duration::from_nanos(at.unsigned_abs());
        if at < 0 {
            UNIX_EPOCH - distance
        } else {
            UNIX_EPOCH + distance
        }
    }
}

fn nanoseconds(at: SystemTime) -> i64 {
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, std::ops::Neg::neg)
        }
    }
}

/// What does not change about the files of one mount.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) image_name: String,
    image_mode: u16,
    root_mode: u16,
    uid: u32,
    gid: u32,
    image_bytes: u64,
    block_bytes: u32,
    mounted: SystemTime,
}

impl Files {
    pub(super) fn new(options: &FuseOptions, image_bytes: u64, block_bytes: u32) -> Self {
        Files {
            image_name: options.filename.clone(),
            // At most 0777: the options were checked.
            image_mode: (options.mode & 0o777) as u16,
            root_mode: if options.allow_other { 0o755 } else { 0o700 },
            uid: options.uid,
            gid: options.gid,
            image_bytes,
            block_bytes,
            mounted: SystemTime::now(),
        }
    }

    /// The directory's attributes.
    pub(super) fn root(&self) -> FileAttr {
        let attr = self.attr(ROOT, FileType::Directory, self.root_mode, self.mounted);
        FileAttr { nlink: 2, ..attr }
    }

    /// The image's attributes; `allocated_bytes` is what the disk really holds.
    pub(super) fn image(
        &self,
        allocated_bytes: u64,
        atime: SystemTime,
        mtime: SystemTime,
    ) -> FileAttr {
        let attr = self.attr(IMAGE, FileType::RegularFile, self.image_mode, mtime);
        FileAttr {
            size: self.image_bytes,
            blocks: allocated_bytes.div_ceil(SECTOR_BYTES),
            blksize: self.block_bytes.min(MAX_PREFERRED_BYTES),
            atime,
            ..attr
        }
    }

    /// The figures' attributes, for a text of `len` bytes.
    pub(super) fn stats(&self, len: u64) -> FileAttr {
        let attr = self.attr(STATS, FileType::RegularFile, 0o444, SystemTime::now());
        FileAttr { size: len, ..attr }
    }

    fn attr(&self, ino: INodeNo, kind: FileType, perm: u16, at: SystemTime) -> FileAttr {
        FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: self.mounted,
            kind,
            perm,
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Whether a request to change mode and owner changes nothing.
    pub(super) fn is_mode_and_owner(
        &self,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> bool {
        mode.is_none_or(|m| m & 0o7777 == u32::from(self.image_mode))
            && uid.is_none_or(|u| u == self.uid)
            && gid.is_none_or(|g| g == self.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_keeps_nanoseconds_on_both_sides_of_1970() {
        let moment = Moment::now();
        for at in [
            UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789),
            UNIX_EPOCH,
            UNIX_EPOCH - Duration::new(5, 1),
        ] {
            moment.set(at);
            assert_eq!(moment.get(), at);
        }
    }

    #[test]
    fn an_image_shows_what_it_really_holds() {
        let files = Files::new(&FuseOptions::default(), 100 << 30, 64 << 20);
        let attr = files.image(1 << 20, UNIX_EPOCH, UNIX_EPOCH);
        assert_eq!((attr.size, attr.blocks), (100 << 30, 2048));
        assert_eq!(attr.blksize, 1 << 20);
    }
}
