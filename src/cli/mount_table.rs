//! The kernel's table of mounts, read without a request to any of them: a mount whose daemon has died answers none.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

const TABLE: &str = "/proc/self/mountinfo";
/// The type of our mounts.
const KIND: &str = "fuse.bucketdisk";
/// How long a process may take to die once it has begun to.
const DYING: Duration = Duration::from_secs(1);

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type, `fuse.bucketdisk` for ours.
    pub kind: String,
    /// The user who mounted it; `None` where it does not say.
    pub user: Option<u32>,
}

/// The mount that is to be seen at a path (absolute, without links); `None` where it is no mount point.
///
/// # Errors
/// `System` where the table cannot be read.
pub fn find(path: &Path) -> Result<Option<Mount>> {
    let table = std::fs::read(TABLE).map_err(|e| {
        Error::new(ErrorKind::System, format!("cannot read {TABLE}")).with_source(e)
    })?;
    Ok(find_in(&table, path))
}

/// What a mount point without a daemon of ours is.
#[derive(Debug)]
pub enum Without {
    /// A mount of ours whose daemon has died.
    Dead,
    /// Nothing that could be done anything about.
    Refused(Error),
}

/// Looks why nobody answers at a mount point (absolute, without links).
///
/// # Errors
/// `System` where the table of mounts cannot be read.
pub fn without_daemon(path: &Path) -> Result<Without> {
    let shown = path.display();
    let refused = |kind, text| Ok(Without::Refused(Error::new(kind, text)));
    let own = rustix::process::geteuid().as_raw();
    match find(path)? {
        Some(mount) if mount.kind == KIND && dies(path) => Ok(Without::Dead),
        Some(mount) if mount.kind == KIND && mount.user.is_some_and(|user| user != own) => {
            let user = mount.user.unwrap_or_default();
            refused(
                ErrorKind::Denied,
                format!("{shown} is a disk that user {user} has mounted: ask as that user"),
            )
        }
        Some(mount) if mount.kind == KIND => refused(
            ErrorKind::System,
            format!("{shown} is a bucketdisk mount, but its daemon cannot be reached: see its log"),
        ),
        _ => refused(
            ErrorKind::NotFound,
            format!("{shown} is not a bucketdisk mount"),
        ),
    }
}

fn find_in(table: &[u8], path: &Path) -> Option<Mount> {
    // The last one covers those before it.
    table
        .split(|b| *b == b'\n')
        .filter_map(parse)
        .rfind(|(place, _)| place == path)
        .map(|(_, mount)| mount)
}

/// A line as proc(5) describes it: the mount point is the fifth word; after a word `-` come type, source and options.
fn parse(line: &[u8]) -> Option<(PathBuf, Mount)> {
    let mut words = line.split(|b| *b == b' ');
    let place = unescape(words.nth(4)?);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let kind = String::from_utf8_lossy(words.next()?).into_owned();
    let options = String::from_utf8_lossy(words.nth(1)?).into_owned();
    let user = options
        .split(',')
        .find_map(|option| option.strip_prefix("user_id="))
        .and_then(|id| id.parse().ok());
    Some((place, Mount { kind, user }))
}

/// White space and backslashes are written as a backslash and three octal digits.
fn unescape(word: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                path.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                path.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

/// Whether a mount's server is dead, or about to be: a process that is killed loses its socket before the kernel ends its mount.
fn dies(path: &Path) -> bool {
    let begun = Instant::now();
    while !is_dead(path) {
        if begun.elapsed() > DYING {
            return false;
        }
        std::thread::sleep(DYING / 50);
    }
    true
}

/// Whether a path is that of a mount whose server has died.
pub fn is_dead(path: &Path) -> bool {
    let died = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED];
    matches!(rustix::fs::statfs(path.as_os_str().as_bytes()), Err(e) if died.contains(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"36 35 98:0 / / rw,noatime shared:1 - ext4 /dev/root rw\n\
        40 36 0:50 / /mnt/my\\040disk rw,nosuid - fuse.bucketdisk s3://b/p rw,user_id=1000,group_id=5\n\
        41 36 0:51 / /mnt/a rw shared:2 master:1 - tmpfs none rw\n\
        42 41 0:52 / /mnt/a rw - fuse.bucketdisk x rw,user_id=0\n";

    #[test]
    fn a_mount_is_found_by_its_unescaped_place() {
        let mount = find_in(TABLE, Path::new("/mnt/my disk")).expect("found");
        assert_eq!(mount.kind, "fuse.bucketdisk");
        assert_eq!(mount.user, Some(1000));
    }

    #[test]
    fn of_mounts_at_one_place_the_last_counts() {
        let mount = find_in(TABLE, Path::new("/mnt/a")).expect("found");
        assert_eq!(mount.kind, "fuse.bucketdisk");
        assert_eq!(find_in(TABLE, Path::new("/mnt")), None);
    }

    #[test]
    fn the_root_of_this_machine_is_a_mount() {
        assert!(find(Path::new("/")).expect("reads").is_some());
        assert!(!is_dead(Path::new("/")));
    }
}
