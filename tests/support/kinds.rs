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

    fn run(&self, line: &str) {
        match self.name {
            "btrfs" => sh(&format!("line='{line}'\n{SEEING_NO_MOUNTS}")),
            _ => sh(line),
        };
    }
}

/// The programs of btrfs look at every btrfs that is mounted, and give up where one is on an image whose daemon is dead: that of
/// another test, say. So they run in a root of their own, where none is. (A mount namespace of their own would keep every other
/// file system mounted for as long as they run, though it was unmounted meanwhile.)
const SEEING_NO_MOUNTS: &str = r#"
root=$(mktemp -d)
trap 'umount --lazy "$root"/dev "$root"/proc "$root"/sys "$root"/usr; rm "$root"/bin "$root"/lib* "$root"/sbin; rmdir "$root"/* "$root"' EXIT
for name in dev proc sys usr; do
    mkdir "$root/$name"
    mount --bind "/$name" "$root/$name"
done
cp -P /bin /lib* /sbin "$root"
chroot "$root" sh -euc "$line"
"#;

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
