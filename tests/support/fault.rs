//! Faults as a layer: an `ObjectClient` that goes wrong on command or at random under a seed, in the ways in which real stores and
//! networks do, and remembers what it was asked. The kinds are [`Fault`]'s; what each looks like to the product is what the real
//! client makes of it (`src/object/cloud/errors.rs`).
//!
//! A request that has left is no longer its sender's: unless it is answered at once, it is applied whether or not anybody still waits
//! for the answer. [`Faulty::crash`] ends a machine: what it had sent may still land, what it sends later never leaves.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{
    BATCH, Limit, ListPage, ObjectClient, Patience, PutOutcome, Retry, Traffic,
};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::sleep;

pub use kinds::{Fault, Request};
pub use plan::{Dealt, Sent, Weather};

use super::memory::{Bucket, Mutation};
use plan::Plan;

mod kinds;
mod plan;

/// How long the client under the product waits for an answer.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The layer.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn ObjectClient>,
    /// Told of what is on its way to it, and asked for how it was.
    bucket: Option<Bucket>,
    plan: Arc<Mutex<Plan>>,
    /// Told when what happens to every request changes.
    changed: Notify,
}

/// A request that can be sent again.
type Call<T> = Arc<dyn Fn() -> BoxFuture<'static, Result<T>> + Send + Sync>;

/// A mutation on its way; whoever drops it has lost it.
struct InFlight(Option<(Bucket, usize)>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some((bucket, flight)) = &self.0 {
            bucket.ended(*flight);
        }
    }
}

impl Faulty {
    /// No faults yet; `seed` decides those that come at random.
    pub fn new(inner: Arc<dyn ObjectClient>, seed: u64) -> Arc<Faulty> {
        Faulty::make(inner, None, seed)
    }

    /// The same over a bucket that is told which mutations are on their way, and whose listings may lag.
    pub fn over(bucket: &Bucket, seed: u64) -> Arc<Faulty> {
        Faulty::make(bucket.client(), Some(bucket.clone()), seed)
    }

    fn make(inner: Arc<dyn ObjectClient>, bucket: Option<Bucket>, seed: u64) -> Arc<Faulty> {
        Arc::new(Faulty {
            inner,
            bucket,
            plan: Arc::new(Mutex::new(Plan::new(seed))),
            changed: Notify::new(),
        })
    }

    /// The product's own decorators over the layer, as `open` stacks them.
    pub fn behind_retries(
        self: &Arc<Self>,
        patience: Patience,
        requests: usize,
        seed: u64,
    ) -> Arc<dyn ObjectClient> {
        let limited = Arc::new(Limit::new(self.clone(), requests));
        let traffic = Arc::new(Traffic::default());
        Arc::new(Retry::new(limited, patience, traffic, seed))
    }

    /// The next requests, one each, before anything else.
    pub fn next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.next_of(|_| true, faults);
    }

    /// The next requests of a kind, one each, before anything else.
    pub fn next_of(&self, which: fn(&Request) -> bool, faults: impl IntoIterator<Item = Fault>) {
        self.plan().next_of(which, faults.into_iter().collect());
    }

    /// Every request, until told otherwise.
    pub fn always(&self, fault: Option<Fault>) {
        self.plan().always = fault;
        self.changed.notify_waiters();
    }

    /// Every request of the next while.
    pub fn for_a_while(&self, while_: Duration, fault: Fault) {
        self.plan().until = Some((tokio::time::Instant::now() + while_, fault));
    }

    /// This share of requests, from 0 to 1, as `Unreachable`, half of them after they were applied.
    pub fn at_random(&self, share: f64) {
        self.weather(Weather::failing(share));
    }

    /// What happens to requests at random.
    pub fn weather(&self, weather: Weather) {
        self.plan().weather = weather;
    }

    /// The machine dies: no request of it leaves any more, and none is answered.
    pub fn crash(&self) {
        self.plan().crashed = true;
    }

    /// The requests so far, in the order in which they were made.
    pub fn requests(&self) -> Vec<Request> {
        self.log().into_iter().map(|sent| sent.request).collect()
    }

    /// The newest request.
    pub fn newest(&self) -> Option<Request> {
        self.plan().log.last().map(|sent| sent.request.clone())
    }

    /// All requests with when they were made, and their bodies.
    pub fn log(&self) -> Vec<Sent> {
        self.plan().log.clone()
    }

    /// How often each fault has happened.
    pub fn dealt(&self) -> Dealt {
        self.plan().dealt.clone()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("plan")
    }

    /// Sends a request on its way, which it goes whoever waits for it.
    fn launch<T: Send + 'static>(
        &self,
        call: &Call<T>,
        what: Option<Mutation>,
        after: Duration,
        counts: Option<&'static str>,
    ) -> impl Future<Output = Result<T>> + Send + 'static {
        let (flight, call, plan) = (
            self.in_flight(what),
            Arc::clone(call),
            Arc::clone(&self.plan),
        );
        let landing = tokio::spawn(async move {
            sleep(after).await;
            let answer = call().await;
            drop(flight);
            if let Some(name) = counts {
                plan.lock().expect("plan").dealt.count(name);
            }
            answer
        });
        async move { landing.await.expect("the store does not panic") }
    }

    fn in_flight(&self, what: Option<Mutation>) -> InFlight {
        let noted = |bucket: &Bucket| Some((bucket.clone(), bucket.sent(what?)));
        InFlight(self.bucket.as_ref().and_then(noted))
    }

    /// Does to a request what the plan has for it.
    async fn through<T: Send + 'static>(
        &self,
        request: Request,
        what: Option<Mutation>,
        fault: Option<Fault>,
        call: Call<T>,
    ) -> Result<T> {
        let (to, back) = self.plan().latency();
        let context = format!("fault in {request:?}");
        let broken = |why: &str| Error::new(ErrorKind::Unreachable, format!("{context}: {why}"));
        let error = match fault {
            None | Some(Fault::Pages(_) | Fault::Lag(_)) if to.is_zero() && back.is_zero() => {
                let _flight = self.in_flight(what);
                return call().await;
            }
            None | Some(Fault::Pages(_) | Fault::Lag(_)) => {
                let answer = self.launch(&call, what, to, None).await;
                sleep(back).await;
                return answer;
            }
            Some(Fault::Truncated(_)) if matches!(request, Request::Get(_)) => {
                return self.launch(&call, what, to, None).await;
            }
            Some(Fault::Delay(wait)) => return self.launch(&call, what, wait, None).await,
            Some(Fault::Twice(later)) => {
                let first = self.launch(&call, what.clone(), to, None);
                if what.is_some() {
                    let name = Some("late duplicates applied");
                    drop(self.launch(&call, what, to + later, name));
                }
                return first.await;
            }
            Some(Fault::Answer(kind)) => {
                self.launch(&call, what, to, None).await?;
                Error::new(kind, context)
            }
            Some(Fault::Reset(None)) => broken("connection reset"),
            Some(Fault::Reset(Some(late))) => {
                let name = what.is_some().then_some("late requests applied");
                drop(self.launch(&call, what, to + late, name));
                broken("connection reset")
            }
            Some(Fault::Stall(landing)) => {
                let flight = match landing {
                    Some(late) => {
                        drop(self.launch(&call, what, late, None));
                        None
                    }
                    None => Some(self.in_flight(what)),
                };
                sleep(TIMEOUT).await;
                drop(flight);
                broken("no answer in time")
            }
            Some(Fault::Silence(limit)) => {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                tokio::select! {
                    biased;
                    () = changed => return self.launch(&call, what, Duration::ZERO, None).await,
                    () = sleep(limit) => broken("no answer in time"),
                }
            }
            Some(Fault::Part) => {
                let flight = self.in_flight(what);
                sleep(to).await;
                if let Request::Delete(keys) = &request {
                    self.inner.delete_many(&keys[..keys.len() / 2]).await?;
                }
                drop(flight);
                broken("connection reset")
            }
            Some(Fault::Before(_) | Fault::Status(..) | Fault::Truncated(_)) => {
                let flight = self.in_flight(what);
                sleep(to).await;
                drop(flight);
                fault.expect("matched").refusal(context)
            }
        };
        sleep(back).await;
        Err(error)
    }

    /// The fault for a request, which is noted.
    async fn fault_of(&self, request: &Request, body: Option<&Bytes>) -> Option<Fault> {
        let fault = {
            let mut plan = self.plan();
            match plan.crashed {
                true => None,
                false => Some(plan.next(request, body)),
            }
        };
        match fault {
            Some(fault) => fault,
            None => std::future::pending().await,
        }
    }

    fn call<T: 'static>(
        &self,
        call: impl Fn(Arc<dyn ObjectClient>) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Call<T> {
        let inner = Arc::clone(&self.inner);
        Arc::new(move || call(Arc::clone(&inner)))
    }
}

#[async_trait]
impl ObjectClient for Faulty {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let request = Request::Get(key.to_owned());
        let fault = self.fault_of(&request, None).await;
        let key = key.to_owned();
        let call = self.call(move |inner| {
            let key = key.clone();
            async move { inner.get(&key).await }.boxed()
        });
        let body = self.through(request, None, fault, call).await?;
        Ok(match fault {
            Some(Fault::Truncated(len)) => body.slice(..len.min(body.len().saturating_sub(1))),
            _ => body,
        })
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let request = Request::Put(key.to_owned());
        let fault = self.fault_of(&request, Some(&body)).await;
        let what = Mutation::Put(key.to_owned(), body.clone());
        let key = key.to_owned();
        let call = self.call(move |inner| {
            let (key, body) = (key.clone(), body.clone());
            async move { inner.put(&key, body).await }.boxed()
        });
        self.through(request, Some(what), fault, call).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let request = Request::PutIfAbsent(key.to_owned());
        let fault = self.fault_of(&request, Some(&body)).await;
        let what = Mutation::PutIfAbsent(key.to_owned(), body.clone());
        let key = key.to_owned();
        let call = self.call(move |inner| {
            let (key, body) = (key.clone(), body.clone());
            async move { inner.put_if_absent(&key, body).await }.boxed()
        });
        self.through(request, Some(what), fault, call).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        let request = Request::Delete(keys.to_vec());
        let fault = self.fault_of(&request, None).await;
        let what = Mutation::Delete(keys.to_vec());
        let keys = keys.to_vec();
        let call = self.call(move |inner| {
            let keys = keys.clone();
            async move { inner.delete_many(&keys).await }.boxed()
        });
        self.through(request, Some(what), fault, call).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let request = Request::List(folder.to_owned());
        let fault = self.fault_of(&request, None).await;
        let (most, ago) = match fault {
            Some(Fault::Pages(most)) => (most, Duration::ZERO),
            Some(Fault::Lag(ago)) => (BATCH, ago),
            _ => (BATCH, Duration::ZERO),
        };
        let (folder, after) = (folder.to_owned(), after.map(str::to_owned));
        let bucket = self.bucket.clone();
        let call = self.call(move |inner| {
            let (folder, after, bucket) = (folder.clone(), after.clone(), bucket.clone());
            let listing = async move {
                match bucket {
                    Some(bucket) => Ok(bucket.page(&folder, after.as_deref(), most, ago)),
                    None => {
                        let whole = most == BATCH && ago.is_zero();
                        assert!(whole, "only a layer over a bucket knows how it was");
                        inner.list(&folder, after.as_deref()).await
                    }
                }
            };
            listing.boxed()
        });
        self.through(request, None, fault, call).await
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
