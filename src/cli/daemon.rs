//! Going into the background: the process that the user started runs the program once more, and returns when that says it is
//! ready, or with its exit code.
//!
//! The daemon is a new program from its first instruction, never the fork of one that has threads. It keeps the user's standard
//! output and error until it is ready, so that what it prints on the way is seen where it belongs. Its standard input is a socket
//! to its starter: a word on it means ready, others ask for what opens the disk, since only the starter has the user's terminal and
//! standard input; and its end tells the daemon that nobody waits any more.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;

use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncReadExt;
use tokio::sync::{Mutex, mpsc, watch};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::exit::{EXIT_STATUS, exit_code};
use super::passphrase::Given;
use crate::codec::slots::SlotKind;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{Keyring, Secret};
use crate::secret::{Passphrase, guard_process};

/// The disk is ready.
const READY: u8 = b'r';
/// Asks for what opens a disk: its id and the number of the attempt follow.
const EXISTING: u8 = b'e';
/// Asks for what is going to open a disk.
const FRESH: u8 = b'f';
/// What begins an answer: there is a secret; else the exit code of an error.
const SECRET: u8 = 0;
/// The longest answer.
const MOST_ANSWER_BYTES: u32 = 2 << 20;

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

/// Starts the daemon with the given line (whose first word is the program's name) and waits for it, and gives it what opens the disk if
/// it asks. Answers the exit code: 0 when the daemon is ready, else its own; what went wrong has been printed then.
///
/// # Errors
/// `System` where it cannot be started, or is killed on the way.
pub fn start(line: &[OsString], given: &Given) -> Result<u8> {
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
    while ours.read_exact(&mut word).is_ok() {
        let secret = match word {
            [EXISTING] => {
                let mut about = [0; 17];
                if ours.read_exact(&mut about).is_err() {
                    break;
                }
                let [id @ .., attempt] = about;
                given.existing_now(Uuid::from_bytes(id), u32::from(attempt))
            }
            [FRESH] => given.fresh_now(),
            _ => return Ok(0),
        };
        if answer(&mut ours, secret).is_err() {
            break;
        }
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

/// Sends a secret, or why there is none.
fn answer(to: &mut UnixStream, secret: Result<Secret>) -> std::io::Result<()> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(64));
    let content = match &secret {
        Ok(secret) => {
            let key_file = u8::from(secret.kind == SlotKind::KeyFile);
            bytes.extend([SECRET, key_file, u8::from(secret.typed)]);
            secret.passphrase.bytes()
        }
        Err(error) => {
            bytes.extend([exit_code(error.kind()), 0, 0]);
            &error.chain().into_bytes()
        }
    };
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_le_bytes());
    to.write_all(&bytes)?;
    to.write_all(content)
}

/// Receives what [`answer`] has sent.
async fn receive(from: &mut tokio::net::UnixStream) -> std::io::Result<Result<Secret>> {
    let mut head = [0; 7];
    from.read_exact(&mut head).await?;
    let [status, key_file, typed, length @ ..] = head;
    let length = u32::from_le_bytes(length);
    if length > MOST_ANSWER_BYTES {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut content = Zeroizing::new(vec![0; length as usize]);
    from.read_exact(&mut content).await?;
    if status == SECRET {
        guard_process();
        return Ok(Ok(Secret {
            passphrase: Passphrase::new(content.to_vec()),
            kind: match key_file {
                0 => SlotKind::Passphrase,
                _ => SlotKind::KeyFile,
            },
            typed: typed != 0,
        }));
    }
    let kind = EXIT_STATUS.iter().find(|(_, code, _)| *code == status);
    let kind = kind.map_or(ErrorKind::System, |(kind, ..)| *kind);
    let text = String::from_utf8_lossy(&content).into_owned();
    Ok(Err(Error::new(kind, text)))
}

/// The daemon's end of the channel to its starter.
#[derive(Debug)]
pub struct Starter {
    channel: UnixStream,
    heard: Mutex<Option<mpsc::Receiver<Result<Secret>>>>,
    gone: watch::Sender<bool>,
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
            heard: Mutex::new(None),
            gone: watch::Sender::new(false),
        })
    }

    /// Listens to the starter until it has gone, on the current runtime.
    ///
    /// # Errors
    /// `System`.
    pub async fn listen(self: &Arc<Self>) -> Result<()> {
        let channel = self.channel.try_clone().and_then(|channel| {
            channel.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(channel)
        });
        let mut channel = channel.map_err(|e| {
            Error::new(ErrorKind::System, "cannot listen to the starter").with_source(e)
        })?;
        let (tell, heard) = mpsc::channel(1);
        *self.heard.lock().await = Some(heard);
        let starter = Arc::clone(self);
        // Ends with the starter, or with the runtime.
        tokio::spawn(async move {
            while let Ok(answer) = receive(&mut channel).await {
                if tell.send(answer).await.is_err() {
                    break;
                }
            }
            starter.gone.send_replace(true);
        });
        Ok(())
    }

    /// Returns when the starter has gone without having been told that the disk is ready.
    pub async fn gone(&self) {
        // This is the sender's own: it cannot be missing.
        let _ = self.gone.subscribe().wait_for(|gone| *gone).await;
    }

    /// Asks the starter for something, and waits for it.
    async fn ask(&self, question: &[u8]) -> Result<Secret> {
        let mut heard = self.heard.lock().await;
        let lost = || {
            let text =
                "stopped by the end of the process that started it before the disk was ready";
            Error::new(ErrorKind::System, text)
        };
        // The socket is shared with the reader, which made it non-blocking; so few bytes always fit.
        let sent = (&self.channel).write_all(question);
        sent.map_err(|e| lost().with_source(e))?;
        let heard = heard.as_mut().ok_or_else(lost)?;
        heard.recv().await.ok_or_else(lost)?
    }

    /// Lets go of the user's terminal and says that the disk is ready.
    ///
    /// # Errors
    /// `System` where the standard streams cannot be replaced. That the starter has gone is no error: the disk is ready.
    pub fn ready(&self) -> Result<()> {
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
        let _ = (&self.channel).write_all(&[READY]);
        Ok(())
    }
}

/// What opens the disk, from the process that has the user's terminal.
pub struct FromStarter {
    /// The channel to it.
    pub starter: Arc<Starter>,
    /// What the command line says, which is the same on both sides.
    pub given: Given,
}

#[async_trait]
impl Keyring for FromStarter {
    fn is_given(&self, disk: Uuid) -> bool {
        self.given.is_given(disk)
    }

    fn expects_encryption(&self) -> bool {
        self.given.expects_encryption()
    }

    async fn existing(&self, disk: Uuid, attempt: u32) -> Result<Secret> {
        let attempt = u8::try_from(attempt).unwrap_or(u8::MAX);
        let question = [&[EXISTING][..], disk.as_bytes(), &[attempt]].concat();
        self.starter.ask(&question).await
    }

    async fn fresh(&self) -> Result<Secret> {
        self.starter.ask(&[FRESH]).await
    }
}
