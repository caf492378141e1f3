//! Going into the background: the process that the user started runs the program once more, and returns when that says it is
//! ready, or with its exit code.
//!
//! The daemon is a new program from its first instruction, never the fork of one that has threads. It keeps the user's standard
//! output and error until it is ready, so that what it prints on the way is seen where it belongs. Its standard input is a socket
//! to its starter: one byte on it means ready, and its end tells the daemon that nobody waits any more.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;

use tokio::io::AsyncReadExt;

use crate::error::{Error, ErrorKind, Result};

/// glibc's limit of memory pools, which it reads when a program starts. It gives each busy thread a pool of its own, up to eight per
/// core, and keeps in each what that once needed: half as much again as `--memory` and `--max-dirty` together. With two the
/// same work takes the same time and stays within the limits.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// This program, to be started with few memory pools unless the user has said how many.
fn with_few_arenas(program: &Path) -> Command {
    let mut command = Command::new(program);
    if std::env::var_os(ARENAS.0).is_none() {
        command.env(ARENAS.0, ARENAS.1);
    }
    command
}

/// Starts this process over with few memory pools, before it has done anything; goes on as it is where it has them, or cannot.
pub fn settle(line: &[OsString]) {
    if std::env::var_os(ARENAS.0).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let failure = with_few_arenas(&program)
            .args(line.get(1..).unwrap_or_default())
            .exec();
        tracing::debug!(%failure, "goes on with the memory pools that it has");
    }
}

/// Starts the daemon with the given line (whose first word is the program's name) and waits for it. Answers the exit code: 0 when
/// the daemon is ready, else its own; what went wrong has been printed then.
///
/// # Errors
/// `System` where it cannot be started, or is killed on the way.
pub fn start(line: &[OsString]) -> Result<u8> {
    let cannot =
        |e: std::io::Error| Error::new(ErrorKind::System, "cannot start the daemon").with_source(e);
    let program = std::env::current_exe().map_err(cannot)?;
    let (mut ours, theirs) = UnixStream::pair().map_err(cannot)?;
    // The command goes at the end of the statement, and with it our copy of the daemon's end.
    let mut daemon = with_few_arenas(&program)
        .arg("--daemon")
        .args(line.get(1..).unwrap_or_default())
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .map_err(cannot)?;
    let mut word = [0];
    if ours.read_exact(&mut word).is_ok() {
        return Ok(0);
    }
    let status = daemon.wait().map_err(cannot)?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(code.max(1)),
        None => Err(Error::new(
            ErrorKind::System,
            format!(
                "the daemon was killed by signal {} before the disk was ready",
                status.signal().unwrap_or_default()
            ),
        )),
    }
}

/// The daemon's end of the channel to its starter.
#[derive(Debug)]
pub struct Starter {
    channel: UnixStream,
}

impl Starter {
    /// In the daemon, before anything else: leaves the user's session, so that what the terminal sends does not reach it.
    ///
    /// # Errors
    /// `System`.
    pub fn meet() -> Result<Starter> {
        let cannot = |e: std::io::Error| {
            Error::new(ErrorKind::System, "cannot leave the user's session").with_source(e)
        };
        rustix::process::setsid().map_err(|e| cannot(e.into()))?;
        let channel = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(cannot)?;
        Ok(Starter {
            channel: UnixStream::from(channel),
        })
    }

    /// Returns when the starter has gone without having been told that the disk is ready.
    pub async fn gone(&self) {
        let channel = self.channel.try_clone().and_then(|channel| {
            channel.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(channel)
        });
        match channel {
            // It never sends anything: whatever this returns is the end.
            Ok(mut channel) => drop(channel.read(&mut [0]).await),
            // Without a channel nobody can be missed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Lets go of the user's terminal and says that the disk is ready.
    ///
    /// # Errors
    /// `System` where the standard streams cannot be replaced. That the starter has gone is no error: the disk is ready.
    pub fn ready(mut self) -> Result<()> {
        let replace = || -> std::io::Result<()> {
            let null = OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/null")?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
            Ok(())
        };
        replace().map_err(|e| {
            Error::new(ErrorKind::System, "cannot let go of the terminal").with_source(e)
        })?;
        // The socket is shared with the reader in `gone`, which made it non-blocking; one byte always fits.
        let _ = self.channel.write_all(b"r");
        Ok(())
    }
}
