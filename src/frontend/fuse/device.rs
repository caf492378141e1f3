//! Getting a connection to the kernel: `/dev/fuse`, and mount(2) or, where that is not permitted, fusermount.
//!
//! The library can mount, too, but what it mounts it also unmounts when a session ends, by path and without looking: that takes
//! away whatever has been mounted there since, and for an ordinary user lazily.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno as Os;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::error::{Error, ErrorKind, Result};

use super::options::Resolved;

const DEVICE: &str = "/dev/fuse";
/// The kind of file system, as the mount table shows it after `fuse.`.
const SUBTYPE: &str = "bucketdisk";
/// The programs through which an ordinary user mounts and unmounts, best first.
const FUSERMOUNT: [&str; 2] = ["fusermount3", "fusermount"];

/// Mounts at `directory`, which exists. What comes back speaks for the mount until it is closed; nothing is served yet.
pub(super) fn mount(directory: &Path, wanted: &Resolved) -> Result<OwnedFd> {
    let device = open()?;
    match mount_directly(&device, directory, wanted) {
        Ok(()) => Ok(device.into()),
        Err(Os::PERM) => mount_by_fusermount(directory, wanted),
        Err(e) => {
            let kind = match e {
                Os::BUSY => ErrorKind::Busy,
                _ => ErrorKind::System,
            };
            let text = format!("the kernel does not mount on {}", directory.display());
            Err(Error::new(kind, text).with_source(io::Error::from(e)))
        }
    }
}

fn open() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|e| {
            let text = match e.kind() {
                io::ErrorKind::PermissionDenied => {
                    "not permitted to open /dev/fuse: run as root, or give yourself access to it"
                }
                _ => {
                    "cannot open /dev/fuse: load the kernel's module with `modprobe fuse`, \
                     or give the container the device"
                }
            };
            Error::new(ErrorKind::System, text).with_source(e)
        })
}

fn mount_directly(device: &File, directory: &Path, wanted: &Resolved) -> Result<(), Os> {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if wanted.options.allow_other {
        data.push_str(",allow_other");
    }
    let data = CString::new(data).expect("numbers and words hold no zero byte");
    let kind = format!("fuse.{SUBTYPE}");
    let source = wanted.options.source.as_str();
    rustix::mount::mount(source, directory, kind, wanted.flags, data.as_c_str())
}

/// Mounts as an ordinary user may: fusermount, which is set-user-id, sends back the descriptor that it mounted.
fn mount_by_fusermount(directory: &Path, wanted: &Resolved) -> Result<OwnedFd> {
    let shown = directory.display();
    let failed = |e: io::Error| {
        let text = format!("cannot mount on {shown} with fusermount");
        Error::new(ErrorKind::System, text).with_source(e)
    };
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let child = start_fusermount(directory, &fusermount_options(wanted), theirs).map_err(|e| {
        let text = format!(
            "not permitted to mount on {shown}: run as root, or install fusermount3 (package fuse3)"
        );
        Error::new(ErrorKind::System, text).with_source(e)
    })?;
    let received = receive(&ours).map_err(failed)?;
    let output = child.wait_with_output().map_err(failed)?;
    if let Some(device) = received {
        return Ok(device);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("user_allow_other") {
        return Err(Error::new(
            ErrorKind::Usage,
            "only root may allow other users: put the line user_allow_other into /etc/fuse.conf",
        ));
    }
    let text = format!(
        "fusermount does not mount on {shown}: run as root, or choose a directory of your own"
    );
    Err(Error::new(ErrorKind::System, text).with_source(io::Error::other(said)))
}

/// Starts fusermount with its end of the socket as standard input: a descriptor made inheritable in any other way could end up
/// in another program that is being started at the moment, and the end of this one would not be noticed.
fn start_fusermount(directory: &Path, options: &str, socket: UnixStream) -> io::Result<Child> {
    let socket = OwnedFd::from(socket);
    let mut missing = io::Error::from(io::ErrorKind::NotFound);
    for program in FUSERMOUNT {
        let started = Command::new(program)
            .args(["-o", options, "--"])
            .arg(directory)
            .env("_FUSE_COMMFD", "0")
            .env("LC_ALL", "C")
            .stdin(Stdio::from(socket.try_clone()?))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        match started {
            Ok(child) => return Ok(child),
            Err(e) => missing = e,
        }
    }
    Err(missing)
}

fn fusermount_options(wanted: &Resolved) -> String {
    let flags = wanted.flags;
    let mut words = vec!["default_permissions".to_owned()];
    for (flag, yes, no) in [
        (MountFlags::RDONLY, "ro", "rw"),
        (MountFlags::NODEV, "nodev", "dev"),
        (MountFlags::NOSUID, "nosuid", "suid"),
        (MountFlags::NOEXEC, "noexec", "exec"),
        (MountFlags::NOATIME, "noatime", "atime"),
        (MountFlags::SYNCHRONOUS, "sync", "async"),
    ] {
        words.push(if flags.contains(flag) { yes } else { no }.to_owned());
    }
    if flags.contains(MountFlags::DIRSYNC) {
        words.push("dirsync".to_owned());
    }
    if wanted.options.allow_other {
        words.push("allow_other".to_owned());
    }
    let source = wanted.options.source.replace('\\', "\\\\");
    words.push(format!("fsname={}", source.replace(',', "\\,")));
    words.push(format!("subtype={SUBTYPE}"));
    words.join(",")
}

/// The descriptor that comes through the socket; `None` where the other end is closed without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        let mut into = [IoSliceMut::new(&mut byte)];
        recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            return Ok(descriptors.next());
        }
    }
    Ok(None)
}

/// Unmounts as an ordinary user may.
///
/// # Errors
/// What fusermount said, or that it could not be started.
pub(super) fn unmount_by_fusermount(directory: &Path, lazily: bool) -> io::Result<()> {
    let mut missing = io::Error::from(io::ErrorKind::NotFound);
    for program in FUSERMOUNT {
        let output = Command::new(program)
            .arg(if lazily { "-uz" } else { "-u" })
            .arg("--")
            .arg(directory)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(io::Error::other(said));
            }
            Err(e) => missing = e,
        }
    }
    Err(missing)
}
