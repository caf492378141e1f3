//! Two changes at a time: every order of their requests with a few switches between them, one that dies at any request, and requests of the
//! dead that land at any later moment.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::object::{ListPage, ObjectClient, PutOutcome};
use bucketdisk::store::versioned::Unlocked;
use bytes::Bytes;
use futures::future::poll_immediate;
use parking_lot::Mutex;

use crate::support::encrypted::create;
use crate::support::memory::{Bucket, Mutation};
use crate::{Do, change, opens, superblocks};

/// A client whose requests go one at a time, each when it is told to.
#[derive(Debug, Clone)]
struct Stepped {
    bucket: Bucket,
    /// Requests that may go now; and what the next one is, if it changes the bucket.
    steps: Arc<Mutex<(usize, Option<Mutation>)>>,
}

impl Stepped {
    fn of(bucket: &Bucket) -> Stepped {
        Stepped {
            bucket: bucket.clone(),
            steps: Arc::default(),
        }
    }

    /// Waits until it is told to go.
    async fn step(&self, what: Option<Mutation>) {
        self.steps.lock().1 = what;
        std::future::poll_fn(|_| {
            let mut steps = self.steps.lock();
            match steps.0 {
                0 => Poll::Pending,
                _ => {
                    steps.0 -= 1;
                    Poll::Ready(())
                }
            }
        })
        .await;
    }
}

#[async_trait]
impl ObjectClient for Stepped {
    async fn get(&self, key: &str) -> Result<Bytes> {
        self.step(None).await;
        self.bucket.get(key).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.step(Some(Mutation::Put(key.to_owned(), body.clone())))
            .await;
        self.bucket.put(key, body).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        self.step(Some(Mutation::PutIfAbsent(key.to_owned(), body.clone())))
            .await;
        self.bucket.put_if_absent(key, body).await
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        self.step(Some(Mutation::Delete(keys.to_vec()))).await;
        self.bucket.delete_many(keys).await
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        self.step(None).await;
        self.bucket.list(folder, after).await
    }

    fn location(&self) -> String {
        self.bucket.location()
    }
}

/// A change under way.
struct Under<'a> {
    client: Stepped,
    work: Pin<Box<dyn Future<Output = Result<Unlocked>> + 'a>>,
    outcome: Option<Result<Unlocked>>,
}

impl<'a> Under<'a> {
    fn begin(bucket: &Bucket, disk: &'a Unlocked, what: &'a Do) -> Under<'a> {
        let client = Stepped::of(bucket);
        let through: Arc<dyn ObjectClient> = Arc::new(client.clone());
        Under {
            client,
            work: Box::pin(async move { change(&through, disk, what).await }),
            outcome: None,
        }
    }

    /// Lets one request go. Whether there was one.
    async fn step(&mut self) -> bool {
        if self.outcome.is_some() {
            return false;
        }
        self.client.steps.lock().0 = 1;
        self.outcome = poll_immediate(&mut self.work).await;
        self.client.steps.lock().0 = 0;
        self.outcome.is_none()
    }

    async fn finish(mut self) -> Result<Unlocked> {
        while self.step().await {}
        self.outcome.expect("it has ended")
    }

    /// What it would do to the bucket next.
    fn about_to(&self) -> Option<Mutation> {
        self.client.steps.lock().1.clone()
    }
}

/// A disk that "a", "b" and "c" open, two generations old.
async fn disk() -> (Bucket, Unlocked) {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    let mut disk = create(&client, "a").await;
    for more in ["b", "c"] {
        disk = change(&client, &disk, &Do::Add(more)).await.expect("adds");
    }
    (bucket, disk)
}

/// What has to be so whatever became of two changes.
async fn judge(bucket: &Bucket, made: [(&Do, &Result<Unlocked>); 2], how: &str) {
    let mut open = Vec::new();
    for text in ["a", "b", "c", "x", "y"] {
        if opens(bucket, text).await {
            open.push(text);
        }
    }
    assert!(open.contains(&"c"), "{how}: nobody touched it: {open:?}");
    for (what, outcome) in made {
        match (what, outcome) {
            (Do::Add(new) | Do::Replace(_, new), Ok(_)) => {
                assert!(
                    open.contains(new),
                    "{how}: {what:?} was acknowledged: {open:?}"
                );
            }
            (Do::Remove(_), Ok(_)) | (_, Err(_)) | (Do::Label(_), _) => {}
        }
        match (what, outcome) {
            (Do::Remove(old) | Do::Replace(old, _), Ok(_)) => {
                assert!(
                    !open.contains(old),
                    "{how}: {what:?} was acknowledged: {open:?}"
                );
            }
            (_, Err(error)) => {
                // Of two changes of one slot the second is told so.
                let told = matches!(error.kind(), ErrorKind::NotFound);
                assert!(told, "{how}: {what:?}: {error:?}");
            }
            _ => {}
        }
    }
}

const PAIRS: [(Do, Do); 5] = [
    (Do::Add("x"), Do::Add("y")),
    (Do::Add("x"), Do::Remove("a")),
    (Do::Remove("a"), Do::Remove("b")),
    (Do::Replace("a", "x"), Do::Replace("a", "y")),
    (Do::Replace("a", "x"), Do::Remove("a")),
];

/// More steps than a change has requests.
const MOST: usize = 24;

#[tokio::test]
async fn two_changes_at_a_time_are_both_made_or_one_is_told() {
    let mut orders = 0;
    let (start, owner) = disk().await;
    for (one, other) in &PAIRS {
        // One runs for so long, then the other, then the first again, then the other, then the first to its end.
        for first in 0..MOST {
            let mut exhausted = true;
            for second in 1..MOST {
                for third in [1, 2, 3, 5, 8, MOST] {
                    let bucket = start.fork();
                    let mut a = Under::begin(&bucket, &owner, one);
                    let mut b = Under::begin(&bucket, &owner, other);
                    for _ in 0..first {
                        exhausted &= !a.step().await;
                    }
                    let mut b_runs = true;
                    for _ in 0..second {
                        b_runs = b.step().await;
                    }
                    for _ in 0..third {
                        a.step().await;
                    }
                    let how = format!("{one:?} for {first}, {other:?} for {second}, {third}");
                    let (b, a) = (b.finish().await, a.finish().await);
                    judge(&bucket, [(one, &a), (other, &b)], &how).await;
                    let left = superblocks(&bucket);
                    let copy = bucket.body("disk.json");
                    assert_eq!(left.len(), 2, "{how}: {left:?}");
                    assert_eq!(bucket.body(&left[1]), copy, "{how}");
                    orders += 1;
                    if !b_runs {
                        break;
                    }
                }
            }
            if first > 0 && exhausted {
                break;
            }
        }
    }
    assert!(orders > 5_000, "{orders} orders");
}

#[tokio::test]
async fn a_request_of_a_dead_change_may_land_whenever_it_likes() {
    let mut landings = 0;
    let (start, owner) = disk().await;
    for (dead, living) in &PAIRS {
        for died in 0..MOST {
            for before in 0..MOST {
                let bucket = start.fork();
                let mut a = Under::begin(&bucket, &owner, dead);
                for _ in 0..died {
                    a.step().await;
                }
                // It may have sent its next request, and is never heard of again.
                let Some(late) = a.about_to().filter(|_| a.outcome.is_none()) else {
                    break;
                };
                drop(a);
                let mut b = Under::begin(&bucket, &owner, living);
                let mut runs = true;
                for _ in 0..before {
                    runs = b.step().await;
                }
                bucket.mutate(late.clone());
                let b = b.finish().await;
                let how =
                    format!("{dead:?} died at {died}, {late:?} landed at {before} of {living:?}");
                let nothing = Err(bucketdisk::error::Error::new(ErrorKind::NotFound, "dead"));
                judge(&bucket, [(dead, &nothing), (living, &b)], &how).await;
                // And again after one more change, which has pruned what was there.
                let client: Arc<dyn ObjectClient> = bucket.client();
                let now = crate::support::encrypted::open(&client, "c")
                    .await
                    .expect(&how);
                change(&client, &now, &Do::Label("later"))
                    .await
                    .expect(&how);
                bucket.mutate(late);
                let after = crate::support::encrypted::open(&client, "c")
                    .await
                    .expect(&how);
                assert_eq!(after.label(), "later", "{how}");
                judge(&bucket, [(dead, &nothing), (living, &b)], &how).await;
                landings += 1;
                if !runs {
                    break;
                }
            }
        }
    }
    assert!(landings > 50, "{landings} landings");
}

/// Two later changes, one after the other: the first takes the number that the sleeper is about to put, the second prunes it.
#[tokio::test]
async fn a_change_that_sleeps_while_others_are_made_and_pruned_is_made_after_them() {
    let (start, owner) = disk().await;
    let mut slept = 0;
    for first in 0..MOST {
        let bucket = start.fork();
        let sleeper = Do::Add("y");
        let mut sleeping = Under::begin(&bucket, &owner, &sleeper);
        for _ in 0..first {
            sleeping.step().await;
        }
        if sleeping.outcome.is_some() {
            break;
        }
        let client: Arc<dyn ObjectClient> = bucket.client();
        let meanwhile = Do::Add("x");
        let made = change(&client, &owner, &meanwhile).await;
        let made = made.expect("is made");
        let later = change(&client, &made, &Do::Label("later")).await;
        later.expect("is made");
        let outcome = sleeping.finish().await;
        let how = format!("asleep after {first} requests");
        assert!(outcome.is_ok(), "{how}: {outcome:?}");
        judge(
            &bucket,
            [(&sleeper, &outcome), (&meanwhile, &Ok(made))],
            &how,
        )
        .await;
        let now = crate::support::encrypted::open(&client, "y").await;
        assert_eq!(now.expect("opens").label(), "later", "{how}");
        slept += 1;
    }
    assert!(slept > 3, "{slept} times");
}
