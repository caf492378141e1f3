//! The answering side: the daemon.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use super::{MAX_LINE_BYTES, Reply, Request, Service, kind_name, socket_path};
use crate::error::{Error, ErrorKind, Result};

/// Between two progress lines.
const TICK: Duration = Duration::from_millis(250);
/// How long a client may take to send its request, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many ranges fit into a line.
const RANGES_A_LINE: usize = 16_384;

/// A bound socket. Connections wait until it is served; dropping it removes the socket.
#[derive(Debug)]
pub struct Listening {
    path: PathBuf,
    listener: StdListener,
    serving: Option<Serving>,
}

#[derive(Debug)]
struct Serving {
    accepting: JoinHandle<()>,
    // Yields `None` once no answer is under way any more.
    answered: mpsc::Receiver<()>,
}

impl Listening {
    /// Binds the socket of a mount point (in the form of [`super::mount_point`]), in place of one that a dead daemon left. The
    /// directory is there, and nobody else can write to it: whoever can connect may unmount.
    ///
    /// # Errors
    /// `Busy` where a daemon that lives has it; `System` where the directory cannot be used.
    pub fn bind(directory: &Path, mountpoint: &Path) -> Result<Listening> {
        let path = socket_path(directory, mountpoint);
        let cannot = |e: io::Error| {
            let context = format!("cannot make the control socket {}", path.display());
            Error::new(ErrorKind::System, context).with_source(e)
        };
        // One at a time looks for a living daemon and replaces what a dead one left.
        let lock = File::open(directory).map_err(cannot)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| cannot(e.into()))?;
        if StdStream::connect(&path).is_ok() {
            let shown = mountpoint.display();
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the daemon of another mount on {shown} is at work: see 'bucketdisk status {shown}'"
                ),
            ));
        }
        let bind = || -> io::Result<StdListener> {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let listener = StdListener::bind(&path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = bind().map_err(cannot)?;
        Ok(Listening {
            path,
            listener,
            serving: None,
        })
    }

    /// Begins to answer, on tasks of the current runtime.
    ///
    /// # Errors
    /// `System`.
    pub fn serve(&mut self, service: Arc<dyn Service>) -> Result<()> {
        let listener = self
            .listener
            .try_clone()
            .and_then(UnixListener::from_std)
            .map_err(|e| {
                Error::new(ErrorKind::System, "cannot serve the control socket").with_source(e)
            })?;
        let (answering, answered) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, service, answering));
        self.serving = Some(Serving {
            accepting,
            answered,
        });
        Ok(())
    }

    /// Takes no more connections, and returns when those there are have been answered. The socket stays bound until the value
    /// is dropped.
    pub async fn finish(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.accepting.abort();
            // Nothing is ever sent: `None` means that the last sender has gone.
            if timeout(PATIENCE, serving.answered.recv()).await.is_err() {
                warn!("a client does not take its answer");
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // What stays is a socket that nobody answers; the next daemon replaces it.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(listener: UnixListener, service: Arc<dyn Service>, answering: mpsc::Sender<()>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (service, answering) = (Arc::clone(&service), answering.clone());
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, service, answering).await {
                        debug!(%error, "a control connection ended early");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "a control connection cannot be accepted");
                tokio::time::sleep(TICK).await;
            }
        }
    }
}

/// Answers one connection. `answering` is held until the answer is written.
async fn answer(
    stream: UnixStream,
    service: Arc<dyn Service>,
    answering: mpsc::Sender<()>,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    let mut limited = (&mut stream).take(MAX_LINE_BYTES);
    timeout(PATIENCE, limited.read_line(&mut line)).await??;
    if line.is_empty() {
        return Ok(());
    }
    match serde_json::from_str(&line) {
        Ok(Request::Status) => {
            let reply = match service.status() {
                Ok((text, figures)) => Reply::Status { text, figures },
                Err(error) => failure(&error),
            };
            send(&mut stream, &reply).await
        }
        Ok(Request::Dirty) => {
            let ranges = service.dirty();
            let mut left = ranges.chunks(RANGES_A_LINE).peekable();
            loop {
                let some = left.next().unwrap_or_default();
                let reply = Reply::Dirty {
                    ranges: some.iter().map(|r| (r.start, r.end - r.start)).collect(),
                    more: left.peek().is_some(),
                };
                send(&mut stream, &reply).await?;
                if left.peek().is_none() {
                    return Ok(());
                }
            }
        }
        Ok(Request::Flush { bucket }) => {
            let flushing = Arc::clone(&service);
            let flushing = async move { flushing.flush(bucket).await };
            let reply = match with_progress(&mut stream, &*service, flushing).await {
                Ok(in_bucket) => Reply::Flushed { in_bucket },
                Err(error) => failure(&error),
            };
            send(&mut stream, &reply).await
        }
        Ok(Request::Unmount { discard }) => {
            let unmounting = Arc::clone(&service);
            let unmounting = async move { unmounting.unmount(discard).await };
            let outcome = with_progress(&mut stream, &*service, unmounting).await;
            let reply = match &outcome {
                Ok(outcome) => Reply::Done(*outcome),
                Err(error) => failure(error),
            };
            send(&mut stream, &reply).await?;
            drop(answering);
            if outcome.is_ok() {
                // The client waits for the end of the connection, which is to be the end of this process and no sooner.
                std::mem::forget(stream.into_inner().into_std()?);
            }
            Ok(())
        }
        Err(e) => {
            let error = Error::new(ErrorKind::Unsupported, "unknown request").with_source(e);
            send(&mut stream, &failure(&error)).await
        }
    }
}

/// Does something that lasts, and tells how far it is. Goes on where the client has gone.
async fn with_progress<T: Send + 'static>(
    stream: &mut BufReader<UnixStream>,
    service: &dyn Service,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let mut task = tokio::spawn(work);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listening = true;
    loop {
        tokio::select! {
            outcome = &mut task => {
                return outcome.unwrap_or_else(|e| {
                    Err(Error::new(ErrorKind::System, "the request failed").with_source(e))
                });
            }
            _ = tick.tick(), if listening => {
                listening = send(stream, &Reply::Progress(service.progress())).await.is_ok();
            }
        }
    }
}

fn failure(error: &Error) -> Reply {
    Reply::Failed {
        kind: kind_name(error.kind()).to_owned(),
        message: error.chain(),
    }
}

async fn send(stream: &mut BufReader<UnixStream>, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.get_mut().write_all(&line)).await?
}
