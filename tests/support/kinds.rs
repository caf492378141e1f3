//! The file systems that are put on disks.

use super::real::sh;

/// A file system: how it is made, checked without changing anything, and the options it is mounted with.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    make: &'static str,
    check: &'static str,
    pub options: &'static str,
}

impl Kind {
    /// Makes one on a device, with some more arguments.
    ///
    /// # Panics
    /// Where its program fails.
    pub fn make(&self, more: &str, device: &str) {
        self.run(&format!("{} {more} {device}", self.make));
    }

    /// Checks the one on a device that is not mounted.
    ///
    /// # Panics
    /// Where its program finds anything wrong.
    pub fn check(&self, device: &str) {
        self.run(&format!("{} {device}", self.check));
    }

    /// The programs of btrfs look at every btrfs that is mounted, and give up where one is on an image whose daemon is dead: that of
    /// another test, say. So they are shown none.
    fn run(&self, line: &str) {
        match self.name {
            "btrfs" => sh(&format!(
                "unshare --mount sh -euc 'umount --all --lazy --types btrfs; {line}'"
            )),
            _ => sh(line),
        };
    }
}

pub const EXT4: Kind = Kind {
    name: "ext4",
    make: "mkfs.ext4 -q",
    check: "fsck.ext4 -fn",
    options: "noatime",
};
pub const XFS: Kind = Kind {
    name: "xfs",
    make: "mkfs.xfs -q",
    check: "xfs_repair -n",
    options: "noatime,nouuid",
};
pub const BTRFS: Kind = Kind {
    name: "btrfs",
    make: "mkfs.btrfs -q",
    check: "btrfs check --readonly",
    options: "noatime",
};
