//! What waits for the thread that writes: bounded in bytes, so that whoever puts never waits and memory stays small.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use super::shards::Key;
use crate::block::Seq;

/// The most removals that wait. One that is left out costs room until its entry is the oldest, and nothing else.
const MOST_REMOVALS: usize = 1 << 16;

/// One thing to do, in the order in which it was asked for.
#[derive(Debug)]
pub(super) enum Job {
    /// Write an object.
    Put(Key, Bytes),
    /// Remove one, if it is there.
    Remove(Key),
    /// Nothing was asked for, for a while: look whether others need the space.
    Look,
}

/// Jobs for one thread.
#[derive(Debug)]
pub(super) struct Queue {
    limit_bytes: usize,
    state: Mutex<State>,
    told: Condvar,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Of the objects in `jobs`.
    bytes: usize,
    removals: usize,
    newest: Option<Seq>,
}

impl Queue {
    pub(super) fn new(limit_bytes: usize) -> Queue {
        Queue {
            limit_bytes,
            state: Mutex::default(),
            told: Condvar::new(),
            ended: AtomicBool::new(false),
        }
    }

    /// Takes an object unless too many wait already; one is taken whatever its size. Answers whether it was.
    pub(super) fn put(&self, key: Key, object: Bytes) -> bool {
        let mut state = self.state.lock();
        let bytes = state.bytes.saturating_add(object.len());
        if self.has_ended() || (state.bytes > 0 && bytes > self.limit_bytes) {
            return false;
        }
        state.bytes = bytes;
        state.jobs.push_back(Job::Put(key, object));
        self.told.notify_one();
        true
    }

    /// Takes a removal unless too many wait already.
    pub(super) fn remove(&self, key: Key) {
        let mut state = self.state.lock();
        if !self.has_ended() && state.removals < MOST_REMOVALS {
            state.removals += 1;
            state.jobs.push_back(Job::Remove(key));
            self.told.notify_one();
        }
    }

    /// Lets the thread begin.
    pub(super) fn begin(&self, newest: Seq) {
        self.state.lock().newest = Some(newest);
        self.told.notify_one();
    }

    /// Takes nothing more; what waits is still done.
    pub(super) fn end(&self) {
        // Under the lock, so that the thread is either not yet looking, or waiting to be told.
        let _state = self.state.lock();
        self.ended.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// Whether nothing waits, and nothing will.
    pub(super) fn is_done(&self) -> bool {
        self.has_ended() && self.state.lock().jobs.is_empty()
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Waits until [`Queue::begin`]; `None` where the end comes before that.
    pub(super) fn until_begun(&self) -> Option<Seq> {
        let mut state = self.state.lock();
        loop {
            if let Some(newest) = state.newest {
                return Some(newest);
            }
            if self.has_ended() {
                return None;
            }
            self.told.wait(&mut state);
        }
    }

    /// The next job, waited for, or [`Job::Look`] after a while; `None` at the end. An object counts as waiting until the call after that.
    pub(super) fn next(&self, done: usize, patience: Duration) -> Option<Job> {
        let mut state = self.state.lock();
        state.bytes -= done;
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.removals -= usize::from(matches!(job, Job::Remove(_)));
                return Some(job);
            }
            if self.has_ended() {
                return None;
            }
            if self.told.wait_for(&mut state, patience).timed_out() && state.jobs.is_empty() {
                return Some(Job::Look);
            }
        }
    }
}
