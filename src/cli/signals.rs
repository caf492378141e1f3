//! The signals that ask a daemon to end.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, ErrorKind, Result};

/// SIGTERM, SIGINT and SIGHUP, as they come; from its making on they do not kill the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Begins to listen, on the current runtime.
    ///
    /// # Errors
    /// `System`.
    pub fn listen() -> Result<Signals> {
        let listen = |kind| {
            signal(kind).map_err(|e| {
                Error::new(ErrorKind::System, "cannot listen for signals").with_source(e)
            })
        };
        Ok(Signals {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hang_up.recv() => "SIGHUP",
        }
    }
}
