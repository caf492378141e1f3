//! A client that can be stopped at any of its requests: before it reaches the store, or after the store has applied it and before the
//! answer comes. So a test can let anything happen elsewhere at every point where a session waits for its store.

use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bytes::Bytes;
use tokio::sync::watch;

/// On which side of the store a request is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It has not reached the store.
    Before,
    /// The store has applied it; the answer is on its way.
    After,
}

/// What is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The one request: it is slow, and all others go on.
    This,
    /// The one request and everything that comes after it: the machine stands still.
    Everything,
}

/// The layer.
#[derive(Debug)]
pub struct Pausing {
    inner: Arc<dyn ObjectClient>,
    plan: Mutex<Plan>,
    /// The key of which the answer to the next `put_if_absent` is lost.
    lost: Mutex<Option<String>>,
    /// The request that is stopped, once there is one; and whether all may go on.
    stopped: watch::Sender<(Option<String>, bool)>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Requests that still pass, and where and how the next one is stopped.
    next: Option<(usize, Side, Held)>,
    everything: bool,
}

impl Pausing {
    /// Nothing is stopped yet.
    pub fn new(inner: Arc<dyn ObjectClient>) -> Arc<Pausing> {
        Arc::new(Pausing {
            inner,
            plan: Mutex::default(),
            lost: Mutex::default(),
            stopped: watch::Sender::new((None, true)),
        })
    }

    /// Lets so many requests pass, and stops the next one.
    pub fn stop_after(&self, requests: usize, side: Side, held: Held) {
        self.plan().next = Some((requests, side, held));
        self.stopped.send_replace((None, false));
    }

    /// Loses one answer: the object is put, and nobody is told.
    pub fn lose_answer_to(&self, key: &str) {
        *self.lost.lock().expect("key") = Some(key.to_owned());
    }

    /// Waits until a request is stopped, and tells which.
    pub async fn stopped(&self) -> String {
        let mut stopped = self.stopped.subscribe();
        let told = stopped.wait_for(|(request, _)| request.is_some()).await;
        let request = told.expect("the layer is there").0.clone();
        request.expect("one is stopped")
    }

    /// Lets everything go on, and stops nothing any more.
    pub fn resume(&self) {
        *self.plan() = Plan::default();
        self.stopped.send_modify(|(_, go_on)| *go_on = true);
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("plan")
    }

    /// On which side a request that comes now is to be stopped, and whether it is the one that was asked for.
    fn side(&self) -> Option<(Side, bool)> {
        let mut plan = self.plan();
        if plan.everything {
            return Some((Side::Before, false));
        }
        let (left, side, held) = plan.next?;
        if left > 0 {
            plan.next = Some((left - 1, side, held));
            return None;
        }
        plan.next = None;
        plan.everything = held == Held::Everything;
        Some((side, true))
    }

    async fn through<T>(
        &self,
        request: String,
        applied: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let Some((side, named)) = self.side() else {
            return applied.await;
        };
        let stop = async || {
            if named {
                self.stopped
                    .send_modify(|(stopped, _)| *stopped = Some(request));
            }
            let mut going = self.stopped.subscribe();
            going
                .wait_for(|(_, go_on)| *go_on)
                .await
                .expect("the layer is there");
        };
        match side {
            Side::Before => {
                stop().await;
                applied.await
            }
            Side::After => {
                let answer = applied.await;
                stop().await;
                answer
            }
        }
    }
}

#[async_trait]
impl ObjectClient for Pausing {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.through(format!("get {key}"), self.inner.get(key))
            .await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.through(format!("put {key}"), self.inner.put(key, body))
            .await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let request = format!("put-if-absent {key}");
        let lost = self.lost.lock().expect("key").take_if(|lost| lost == key);
        let applied = async {
            let outcome = self.inner.put_if_absent(key, body).await?;
            match lost {
                None => Ok(outcome),
                Some(key) => Err(Error::new(
                    ErrorKind::Unreachable,
                    format!("the answer to {key} is lost"),
                )),
            }
        };
        self.through(request, applied).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        let request = format!("delete {}", keys.join(" "));
        self.through(request, self.inner.delete_many(keys)).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let request = format!("list {folder}");
        self.through(request, self.inner.list(folder, after)).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
