//! What a mount is asked to be, checked before anything is mounted.

use fuser::{Config, SessionACL};
use rustix::mount::MountFlags;

use crate::error::{Error, ErrorKind, Result};

use super::files::STATS_NAME;

/// Most threads that serve the kernel where none are asked for: beyond it the kernel's own queue is what limits.
const DEFAULT_MAX_THREADS: usize = 4;
/// Most threads that can be asked for.
const MAX_THREADS: usize = 64;
/// Most bytes in a file name.
const MAX_NAME_BYTES: usize = 255;

/// How the mount looks and who may use it.
#[derive(Debug, Clone)]
pub struct FuseOptions {
    /// Name of the image file within the mount point; not `stats`, which is taken.
    pub filename: String,
    /// Permission bits of the image file (0600 is usual); the write bits are dropped where `read_only`.
    pub mode: u32,
    /// Owner of everything in the mount.
    pub uid: u32,
    /// Group of everything in the mount.
    pub gid: u32,
    /// Whether users other than the one who mounts may use it, as far as `mode` lets them.
    pub allow_other: bool,
    /// Whether the mount takes no writes.
    pub read_only: bool,
    /// What the mount table shows as mounted: the disk's URL.
    pub source: String,
    /// Options as mount(8) passes them after `-o`, one each. Those that mount(8) and systemd keep for themselves (`nofail`,
    /// `_netdev`, `x-...`) mean nothing to a mount and are dropped.
    pub extra: Vec<String>,
    /// Threads that serve the kernel; 0 chooses by the number of cores.
    pub threads: usize,
}

impl Default for FuseOptions {
    /// A private, writable mount of `disk.img`, owned by the user who mounts.
    fn default() -> Self {
        FuseOptions {
            filename: "disk.img".to_owned(),
            mode: 0o600,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            allow_other: false,
            read_only: false,
            source: "bucketdisk".to_owned(),
            extra: Vec::new(),
            threads: 0,
        }
    }
}

fn usage<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::Usage, text))
}

impl FuseOptions {
    /// Takes what `extra` says about the other fields into them (`ro`, `allow_other`, `fsname=`), and checks the rest.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming the option.
    pub(super) fn resolved(&self) -> Result<Resolved> {
        check_filename(&self.filename)?;
        if self.mode & !0o777 != 0 {
            return usage(format!(
                "mode {:o} is not a file's permissions: use one such as 600",
                self.mode
            ));
        }
        if self.threads > MAX_THREADS {
            return usage(format!(
                "{} threads are too many: use at most {MAX_THREADS}, or 0 to choose by cores",
                self.threads
            ));
        }
        let mut options = self.clone();
        let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
        for text in &self.extra {
            options.take(text, &mut flags)?;
        }
        if options.source.is_empty() || options.source.contains(|c: char| c.is_control()) {
            return usage(format!(
                "{:?} cannot be shown in the mount table: give fsname= a plain text",
                options.source
            ));
        }
        if options.read_only {
            options.mode &= !0o222;
            flags |= MountFlags::RDONLY;
        }
        Ok(Resolved { options, flags })
    }

    /// Takes in one option of `extra`; of two that contradict each other the later holds, but nothing undoes `read_only`.
    fn take(&mut self, text: &str, flags: &mut MountFlags) -> Result<()> {
        match text {
            "ro" => self.read_only = true,
            "allow_other" => self.allow_other = true,
            "dev" => flags.remove(MountFlags::NODEV),
            "nodev" => flags.insert(MountFlags::NODEV),
            "suid" => flags.remove(MountFlags::NOSUID),
            "nosuid" => flags.insert(MountFlags::NOSUID),
            "exec" => flags.remove(MountFlags::NOEXEC),
            "noexec" => flags.insert(MountFlags::NOEXEC),
            "atime" => flags.remove(MountFlags::NOATIME),
            "noatime" => flags.insert(MountFlags::NOATIME),
            "async" => flags.remove(MountFlags::SYNCHRONOUS),
            "sync" => flags.insert(MountFlags::SYNCHRONOUS),
            "dirsync" => flags.insert(MountFlags::DIRSYNC),
            "rw"
            | "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "_netdev"
            | "user"
            | "nouser"
            | "users"
            | "owner"
            | "group"
            | "relatime"
            | "default_permissions" => {}
            _ if text.starts_with("x-") || text.starts_with("comment=") => {}
            _ => match text.strip_prefix("fsname=") {
                Some(name) => name.clone_into(&mut self.source),
                None => return usage(format!("unknown mount option {text:?}")),
            },
        }
        Ok(())
    }
}

fn check_filename(name: &str) -> Result<()> {
    if name == STATS_NAME {
        return usage(format!(
            "file name {name:?} is taken by the mount's own file: choose another"
        ));
    }
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return usage(format!(
            "{name:?} cannot name a file: use a plain name such as disk.img"
        ));
    }
    if name.len() > MAX_NAME_BYTES {
        return usage(format!(
            "a file name of {} bytes is too long: use at most {MAX_NAME_BYTES}",
            name.len()
        ));
    }
    Ok(())
}

/// Options that were found to be sound.
#[derive(Debug)]
pub(super) struct Resolved {
    /// The options, with what `extra` said in its place.
    pub(super) options: FuseOptions,
    /// Flags of the mount itself.
    pub(super) flags: MountFlags,
}

impl Resolved {
    /// How the session is served. Who may use the mount is for the kernel alone to decide: it knows `allow_other`, and a process
    /// that was handed an open file keeps it.
    pub(super) fn config(&self) -> Config {
        let mut config = Config::default();
        config.acl = SessionACL::All;
        config.n_threads = Some(match self.options.threads {
            0 => std::thread::available_parallelism()
                // One may wait for the local disk in a flush while another answers reads.
                .map_or(2, usize::from)
                .clamp(2, DEFAULT_MAX_THREADS),
            n => n,
        });
        config.clone_fd = true;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(extra: &[&str]) -> Result<Resolved> {
        FuseOptions {
            extra: extra.iter().map(|&s| s.to_owned()).collect(),
            ..FuseOptions::default()
        }
        .resolved()
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = with(&["rw", "alow_other"]).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("alow_other"), "{error}");
    }

    #[test]
    fn options_of_mount_are_taken_in_or_dropped() {
        let resolved = with(&[
            "ro",
            "allow_other",
            "_netdev",
            "x-systemd.automount",
            "noexec",
        ])
        .expect("accepted");
        assert!(resolved.options.read_only && resolved.options.allow_other);
        assert_eq!(resolved.options.mode, 0o400);
        let expected = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        assert_eq!(resolved.flags, expected | MountFlags::RDONLY);
    }

    #[test]
    fn a_file_name_that_cannot_be_is_refused() {
        for name in ["", ".", "..", "a/b", "stats", "a\0", &"x".repeat(256)] {
            let options = FuseOptions {
                filename: name.to_owned(),
                ..FuseOptions::default()
            };
            let error = options.resolved().expect_err(name);
            assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
        }
    }
}
