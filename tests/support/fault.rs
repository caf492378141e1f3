//! Faults as a layer: an `ObjectClient` that fails on command, before or after the store has applied the request, and remembers
//! what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::Notify;

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches the store.
    Before(ErrorKind),
    /// It never reaches the store, which asks to be left alone for so long.
    Busy(Duration),
    /// The store applies it, but the answer is lost.
    Answer(ErrorKind),
    /// It reaches the store so much later.
    Delay(Duration),
    /// Nothing is heard of it until [`Faulty::always`] is told of something else, which is when it reaches the store; or for so
    /// long, and then it counts as `Unreachable`, and never does.
    Silence(Duration),
}

/// A request as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `get` of a key.
    Get(String),
    /// `put` of a key.
    Put(String),
    /// `put_if_absent` of a key.
    PutIfAbsent(String),
    /// `delete_many` of keys.
    Delete(Vec<String>),
    /// `list` of a folder.
    List(String),
}

/// The layer.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectClient>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    next: VecDeque<Fault>,
    always: Option<Fault>,
    /// The share of requests that fail, half of them after they were applied.
    share: f64,
    random: SmallRng,
    requests: Vec<Request>,
}

impl Faulty {
    /// No faults yet; `seed` decides those that come at random.
    pub fn new(inner: Arc<dyn ObjectClient>, seed: u64) -> Arc<Faulty> {
        Arc::new(Faulty {
            inner,
            changed: Notify::new(),
            state: Mutex::new(State {
                next: VecDeque::new(),
                always: None,
                share: 0.0,
                random: SmallRng::seed_from_u64(seed),
                requests: Vec::new(),
            }),
        })
    }

    /// The next requests, one each, before anything else.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state().next.extend(faults);
    }

    /// Every request, until told otherwise.
    pub fn always(&self, fault: Option<Fault>) {
        self.state().always = fault;
        self.changed.notify_waiters();
    }

    /// This share of requests, from 0 to 1, as `Unreachable`.
    pub fn at_random(&self, share: f64) {
        self.state().share = share;
    }

    /// The requests so far, in the order in which they were made.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("state")
    }

    async fn through<T>(
        &self,
        request: Request,
        applied: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let fault = {
            let mut state = self.state();
            let context = format!("fault in {request:?}");
            state.requests.push(request);
            let next = state.next.pop_front().or(state.always);
            let fault = match next {
                None if state.share > 0.0 => {
                    let (share, drawn) = (state.share, state.random.random::<f64>());
                    match drawn {
                        drawn if drawn < share / 2.0 => Some(Fault::Before(ErrorKind::Unreachable)),
                        drawn if drawn < share => Some(Fault::Answer(ErrorKind::Unreachable)),
                        _ => None,
                    }
                }
                fault => fault,
            };
            fault.map(|fault| (fault, context))
        };
        let changed = self.changed.notified();
        match fault {
            None => applied.await,
            Some((Fault::Silence(limit), context)) => tokio::select! {
                () = changed => applied.await,
                () = tokio::time::sleep(limit) => Err(Error::new(ErrorKind::Unreachable, context)),
            },
            Some((Fault::Before(kind), context)) => Err(Error::new(kind, context)),
            Some((Fault::Busy(wait), context)) => {
                Err(Error::new(ErrorKind::Unreachable, context).with_retry_after(Some(wait)))
            }
            Some((Fault::Answer(kind), context)) => {
                applied.await?;
                Err(Error::new(kind, context))
            }
            Some((Fault::Delay(wait), _)) => {
                tokio::time::sleep(wait).await;
                applied.await
            }
        }
    }
}

#[async_trait]
impl ObjectClient for Faulty {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let request = Request::Get(key.to_owned());
        self.through(request, self.inner.get(key)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let request = Request::Put(key.to_owned());
        self.through(request, self.inner.put(key, body)).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let request = Request::PutIfAbsent(key.to_owned());
        self.through(request, self.inner.put_if_absent(key, body))
            .await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        let request = Request::Delete(keys.to_vec());
        self.through(request, self.inner.delete_many(keys)).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let request = Request::List(folder.to_owned());
        self.through(request, self.inner.list(folder, after)).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
