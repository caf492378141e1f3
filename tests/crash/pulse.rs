//! What those who work on a mount share with the one who kills it: when to stop, and which flushes count.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One for each round.
#[derive(Debug, Default)]
pub struct Pulse {
    /// Nobody asks for a flush: what is committed, and when, is the disk's own choice.
    quiet: bool,
    stopped: AtomicBool,
    killed: AtomicBool,
    begun: AtomicU64,
    acknowledged: AtomicU64,
}

impl Pulse {
    pub fn new(quiet: bool) -> Pulse {
        Pulse {
            quiet,
            ..Pulse::default()
        }
    }

    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Asks everyone to stop.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
    }

    /// To be said before the kill: errors are expected from here on, and no acknowledgement counts.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.stop();
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    /// Flushes that have begun.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// Flushes that were acknowledged before the kill.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Makes a flush, unless work is to be quiet. `true` where it was acknowledged before the kill; later an acknowledgement could come from a kernel that only
    /// believes so.
    pub fn flush<E>(&self, flush: impl FnOnce() -> Result<(), E>) -> Result<bool, E> {
        if self.quiet && !self.is_stopped() {
            return Ok(false);
        }
        self.begun.fetch_add(1, Ordering::SeqCst);
        flush()?;
        let counts = !self.killed.load(Ordering::SeqCst);
        self.acknowledged
            .fetch_add(u64::from(counts), Ordering::SeqCst);
        Ok(counts)
    }

    /// Takes steps until asked to stop. An error is one only before the kill.
    pub fn run(&self, mut step: impl FnMut() -> Result<(), String>) -> Result<(), String> {
        while !self.is_stopped() {
            if let Err(error) = step() {
                return match self.killed.load(Ordering::SeqCst) {
                    true => Ok(()),
                    false => Err(format!("an error before the kill: {error}")),
                };
            }
        }
        Ok(())
    }
}
