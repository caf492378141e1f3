//! The asking side: the verbs `umount` and `status`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{MAX_LINE_BYTES, Progress, Reply, Request, Unmounted, kind_of, socket_path};
use crate::error::{Error, ErrorKind, Result};

/// How long a daemon may be silent: it answers at once, and sends progress several times a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to the daemon of one mount.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    mountpoint: PathBuf,
}

impl Client {
    /// Connects to the daemon that serves a mount point (in the form of [`super::mount_point`]); `None` where there is none. A
    /// socket that a dead daemon left is removed.
    ///
    /// # Errors
    /// `Denied` where the socket is another user's; `System`.
    pub fn connect(directory: &Path, mountpoint: &Path) -> Result<Option<Client>> {
        let path = socket_path(directory, mountpoint);
        match UnixStream::connect(&path) {
            Ok(stream) => {
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
                    .map_err(|e| failed(mountpoint, e))?;
                Ok(Some(Client {
                    stream: BufReader::new(stream),
                    mountpoint: mountpoint.to_owned(),
                }))
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                // Where it cannot be removed it is still no daemon, and the next one says what is wrong with the directory.
                let _ = std::fs::remove_file(&path);
                Ok(None)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(mountpoint, e)),
        }
    }

    /// Asks for the figures: for people, and for programs.
    ///
    /// # Errors
    /// What the daemon answered; `System` where it does not answer.
    pub fn status(mut self) -> Result<(String, Value)> {
        self.ask(Request::Status)?;
        match self.reply()? {
            Some(Reply::Status { text, figures }) => Ok((text, figures)),
            Some(Reply::Failed { kind, message }) => Err(Error::new(kind_of(&kind), message)),
            Some(_) | None => Err(self.died()),
        }
    }

    /// Asks for the byte ranges that are not committed.
    ///
    /// # Errors
    /// What the daemon answered; `System` where it does not answer.
    pub fn dirty(mut self) -> Result<Vec<Range<u64>>> {
        self.ask(Request::Dirty)?;
        let mut all = Vec::new();
        loop {
            match self.reply()? {
                Some(Reply::Dirty { ranges, more }) => {
                    let ranges = ranges.into_iter();
                    all.extend(ranges.map(|(start, length)| start..start.saturating_add(length)));
                    if !more {
                        return Ok(all);
                    }
                }
                Some(Reply::Failed { kind, message }) => {
                    return Err(Error::new(kind_of(&kind), message));
                }
                Some(_) | None => return Err(self.died()),
            }
        }
    }

    /// Asks for everything written so far to be made durable, in the bucket if `bucket`; answers whether it is in the bucket.
    ///
    /// # Errors
    /// What the daemon answered: it stays dirty; `System` where it died before it was done.
    pub fn flush(mut self, bucket: bool, on_progress: impl Fn(&Progress)) -> Result<bool> {
        self.ask(Request::Flush { bucket })?;
        loop {
            match self.reply()? {
                Some(Reply::Progress(progress)) => on_progress(&progress),
                Some(Reply::Flushed { in_bucket }) => return Ok(in_bucket),
                Some(Reply::Failed { kind, message }) => {
                    return Err(Error::new(kind_of(&kind), message));
                }
                Some(_) | None => return Err(self.died()),
            }
        }
    }

    /// Asks to unmount, and returns when everything is in the bucket, the disk is released and the daemon has gone; with
    /// `discard`, what cannot be committed may be given up instead. Dropping the connection, by ending this process, leaves the
    /// daemon at it.
    ///
    /// # Errors
    /// What the daemon answered: `Busy` where the mount is in use, `Fenced` where something cannot be committed any more and is not
    /// to be given up. `System` where it died before it was done.
    pub fn unmount(mut self, discard: bool, on_progress: impl Fn(&Progress)) -> Result<Unmounted> {
        self.ask(Request::Unmount { discard })?;
        loop {
            match self.reply()? {
                Some(Reply::Progress(progress)) => on_progress(&progress),
                Some(Reply::Done(outcome)) => {
                    return self.wait_for_exit().map(|()| outcome);
                }
                Some(Reply::Failed { kind, message }) => {
                    return Err(Error::new(kind_of(&kind), message));
                }
                Some(_) | None => return Err(self.died()),
            }
        }
    }

    fn ask(&mut self, request: Request) -> Result<()> {
        let mut line = serde_json::to_vec(&request).map_err(|e| self.garbled(e))?;
        line.push(b'\n');
        self.stream
            .get_mut()
            .write_all(&line)
            .map_err(|e| failed(&self.mountpoint, e))
    }

    /// The next reply; `None` at the end of the connection.
    fn reply(&mut self) -> Result<Option<Reply>> {
        let mut line = String::new();
        let read = (&mut self.stream).take(MAX_LINE_BYTES).read_line(&mut line);
        match read {
            Ok(0) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(e) => Err(failed(&self.mountpoint, e)),
            Ok(_) => serde_json::from_str(&line)
                .map(Some)
                .map_err(|e| self.garbled(e)),
        }
    }

    fn wait_for_exit(mut self) -> Result<()> {
        match self.stream.read_to_end(&mut Vec::new()) {
            Err(e) if e.kind() != io::ErrorKind::ConnectionReset => {
                Err(failed(&self.mountpoint, e))
            }
            _ => Ok(()),
        }
    }

    fn died(&self) -> Error {
        let shown = self.mountpoint.display();
        let context = format!("the daemon of {shown} ended before it was done: see its log");
        Error::new(ErrorKind::System, context)
    }

    fn garbled(&self, cause: serde_json::Error) -> Error {
        let shown = self.mountpoint.display();
        let context = format!("the daemon of {shown} is of another version of this program");
        Error::new(ErrorKind::System, context).with_source(cause)
    }
}

fn failed(mountpoint: &Path, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        _ => ErrorKind::System,
    };
    let shown = mountpoint.display();
    let context = match cause.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
            "the daemon of {shown} has not answered for {} seconds: see its log",
            PATIENCE.as_secs()
        ),
        _ => format!("cannot talk to the daemon of {shown}"),
    };
    Error::new(kind, context).with_source(cause)
}
