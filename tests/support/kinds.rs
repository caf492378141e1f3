//! The file systems that are put on disks.

/// A file system: how it is made, checked without changing anything, and the options it is mounted with.
#[derive(Debug)]
pub struct Kind {
    pub name: &'static str,
    pub make: &'static str,
    pub check: &'static str,
    pub options: &'static str,
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
