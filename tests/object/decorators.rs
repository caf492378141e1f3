//! Retry, limit and count, over faults in memory, on a clock that does not wait.

use std::sync::Arc;
use std::time::Duration;

use bucketdisk::error::ErrorKind;
use bucketdisk::object::{BATCH, Count, Limit, Patience, PutOutcome, Retry, Traffic, list_all};
use bytes::Bytes;
use tokio::time::Instant;

use super::Memory;
use super::support::fault::{Fault, Faulty, Request};
use super::support::object_contract::Client;

const HOUR: Duration = Duration::from_secs(3600);

/// The stack as the program builds it, over faults.
struct Stack {
    faults: Arc<Faulty>,
    traffic: Arc<Traffic>,
    patience: Patience,
    client: Client,
}

async fn stack(patience: Duration, requests: usize, seed: u64) -> Stack {
    let faults = Faulty::new(Memory.open("").await, seed);
    let traffic = Arc::new(Traffic::default());
    let patience = Patience::new(patience);
    let count = Count::new(Arc::clone(&faults) as Client, Arc::clone(&traffic));
    let limit = Limit::new(Arc::new(count), requests);
    let retry = Retry::new(
        Arc::new(limit),
        patience.clone(),
        Arc::clone(&traffic),
        seed,
    );
    Stack {
        faults,
        traffic,
        patience,
        client: Arc::new(retry),
    }
}

fn x() -> Bytes {
    Bytes::from_static(b"x")
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_until_it_does() {
    let stack = stack(HOUR, 4, 1).await;
    stack
        .faults
        .next([Fault::Before(ErrorKind::Unreachable); 5]);
    stack.client.put("k", x()).await.expect("put");
    assert_eq!(stack.client.get("k").await.expect("get"), x());
    let figures = stack.traffic.snapshot();
    assert_eq!((figures.puts, figures.errors, figures.retries), (6, 5, 5));
    assert_eq!(
        (figures.bytes_up, figures.bytes_down, figures.in_flight),
        (1, 1, 0)
    );
    assert!(figures.last_success.is_some());
    assert!(
        figures
            .last_error
            .is_some_and(|error| error.contains("fault in Put"))
    );
}

#[tokio::test(start_paused = true)]
async fn what_cannot_pass_is_not_tried_again() {
    let stack = stack(HOUR, 4, 1).await;
    for kind in [
        ErrorKind::Denied,
        ErrorKind::NotFound,
        ErrorKind::Full,
        ErrorKind::ReadOnly,
        ErrorKind::Unsupported,
        ErrorKind::Usage,
        ErrorKind::System,
    ] {
        let before = stack.faults.requests().len();
        stack.faults.next([Fault::Before(kind)]);
        let error = stack.client.get("k").await.expect_err("fault");
        assert_eq!(error.kind(), kind);
        assert_eq!(stack.faults.requests().len(), before + 1, "{kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn waits_grow_to_their_cap_and_are_spread() {
    let stack = stack(Duration::from_secs(600), 4, 7).await;
    stack
        .faults
        .always(Some(Fault::Before(ErrorKind::Unreachable)));
    let begun = Instant::now();
    let error = stack.client.get("k").await.expect_err("for ten minutes");
    let (took, tries) = (begun.elapsed(), stack.faults.requests().len());
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!((600..601).contains(&took.as_secs()), "{took:?}");
    // 2.5 seconds apart on average once the cap is reached
    assert!((180..330).contains(&tries), "{tries} tries");
    let says = error.to_string();
    assert!(says.starts_with("fault in Get(\"k\") (tried "), "{says}");
    assert!(
        says.contains(&format!("tried {tries} times in 600.")),
        "{says}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_waits() {
    let mut took = Vec::new();
    for seed in [1, 1, 2] {
        let stack = stack(HOUR, 4, seed).await;
        stack
            .faults
            .next([Fault::Before(ErrorKind::Unreachable); 9]);
        let begun = Instant::now();
        stack.client.get("k").await.expect_err("not there");
        took.push(begun.elapsed());
    }
    assert_eq!(took[0], took[1]);
    assert_ne!(took[0], took[2]);
}

#[tokio::test(start_paused = true)]
async fn a_store_is_not_asked_before_it_wants_to_be_but_after_a_minute_it_is() {
    let stack = stack(HOUR, 4, 1).await;
    for (asked, at_least, below) in [(7, 7_000, 7_200), (600, 60_000, 60_200)] {
        stack
            .faults
            .next([Fault::Status(503, Some(Duration::from_secs(asked)))]);
        let begun = Instant::now();
        stack.client.put("k", x()).await.expect("put");
        let took = begun.elapsed().as_millis();
        assert!((at_least..below).contains(&took), "{asked}: {took}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_beyond_patience_is_not_begun() {
    let stack = stack(Duration::from_secs(5), 4, 1).await;
    stack
        .faults
        .next([Fault::Status(503, Some(Duration::from_secs(30)))]);
    let begun = Instant::now();
    let error = stack.client.get("k").await.expect_err("too long");
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    assert!(begun.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn patience_can_be_changed_while_requests_fail() {
    let stack = stack(HOUR, 4, 1).await;
    stack
        .faults
        .always(Some(Fault::Before(ErrorKind::Unreachable)));
    let client = Arc::clone(&stack.client);
    let request = tokio::spawn(async move { client.get("k").await });
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(!request.is_finished());
    stack.patience.set(Duration::from_secs(60));
    let begun = Instant::now();
    let error = request.await.expect("task").expect_err("given up");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(
        begun.elapsed() <= Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_creator_whose_answer_was_lost_is_told_that_the_object_exists() {
    let stack = stack(HOUR, 4, 1).await;
    stack.faults.next([Fault::Answer(ErrorKind::Unreachable)]);
    let outcome = stack
        .client
        .put_if_absent("log/1", x())
        .await
        .expect("outcome");
    assert_eq!(outcome, PutOutcome::Exists);
    assert_eq!(stack.client.get("log/1").await.expect("get"), x());
}

#[tokio::test(start_paused = true)]
async fn only_the_batch_that_failed_is_deleted_again() {
    let stack = stack(HOUR, 4, 1).await;
    let keys: Vec<String> = (0..2 * BATCH + 1).map(|n| format!("{n:05}")).collect();
    stack.faults.next([
        Fault::Delay(Duration::ZERO),
        Fault::Before(ErrorKind::Unreachable),
    ]);
    stack.client.delete_many(&keys).await.expect("deleted");
    let first_keys: Vec<String> = stack
        .faults
        .requests()
        .into_iter()
        .filter_map(|request| match request {
            Request::Delete(keys) => keys.into_iter().next(),
            _ => None,
        })
        .collect();
    assert_eq!(first_keys, ["00000", "01000", "01000", "02000"]);
    let figures = stack.traffic.snapshot();
    assert_eq!((figures.deletes, figures.deleted_objects), (4, 2001));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_one_request_in_three_loses_nothing() {
    for seed in 0..10 {
        let stack = stack(HOUR, 8, seed).await;
        stack.faults.at_random(0.33);
        let puts = (0..100).map(|n| {
            let client = Arc::clone(&stack.client);
            tokio::spawn(async move { client.put(&format!("blocks/{n:03}"), x()).await })
        });
        for put in futures::future::join_all(puts.collect::<Vec<_>>()).await {
            put.expect("task")
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        let listed = list_all(stack.client.as_ref(), "blocks/")
            .await
            .expect("listing");
        assert_eq!(listed.len(), 100, "seed {seed}");
        assert!(stack.traffic.snapshot().retries > 0, "seed {seed}");
    }
}

/// Starts `gets` reads and `puts` writes, none of which is answered before a second has passed; puts first.
async fn crowd(stack: &Stack, gets: usize, puts: usize) -> (usize, usize, u64) {
    stack
        .faults
        .always(Some(Fault::Delay(Duration::from_secs(1))));
    for n in 0..puts {
        let client = Arc::clone(&stack.client);
        tokio::spawn(async move { client.put(&n.to_string(), x()).await });
    }
    tokio::task::yield_now().await;
    for n in 0..gets {
        let client = Arc::clone(&stack.client);
        tokio::spawn(async move { client.get(&n.to_string()).await });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let requests = stack.faults.requests();
    let reads = requests
        .iter()
        .filter(|r| matches!(r, Request::Get(_)))
        .count();
    (
        reads,
        requests.len() - reads,
        stack.traffic.snapshot().in_flight,
    )
}

#[tokio::test(start_paused = true)]
async fn no_more_requests_run_at_once_than_allowed_and_reads_have_a_lane() {
    for (lanes, reads, writes) in [(8, 2, 6), (4, 1, 3), (2, 1, 1), (1, 0, 1)] {
        let stack = stack(HOUR, lanes, 1).await;
        assert_eq!(
            crowd(&stack, 20, 20).await,
            (reads, writes, lanes as u64),
            "{lanes} lanes"
        );
        tokio::time::sleep(HOUR).await;
        assert_eq!(
            stack.faults.requests().len(),
            40,
            "{lanes} lanes: all done in the end"
        );
        assert_eq!(stack.traffic.snapshot().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn reads_may_use_every_lane() {
    let stack = stack(HOUR, 8, 1).await;
    assert_eq!(crowd(&stack, 20, 0).await, (8, 0, 8));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_given_up_frees_its_lane() {
    let stack = stack(HOUR, 1, 1).await;
    stack.faults.always(Some(Fault::Delay(HOUR)));
    let given_up = tokio::time::timeout(Duration::from_secs(1), stack.client.get("k")).await;
    assert!(given_up.is_err());
    assert_eq!(stack.traffic.snapshot().in_flight, 0);
    stack.faults.always(None);
    stack.client.put("k", x()).await.expect("the lane is free");
}

#[tokio::test]
async fn an_object_that_is_not_there_is_no_error_in_the_figures() {
    let stack = stack(HOUR, 4, 1).await;
    stack.client.get("k").await.expect_err("not there");
    stack.client.list("", None).await.expect("list");
    let figures = stack.traffic.snapshot();
    assert_eq!((figures.gets, figures.lists, figures.errors), (1, 1, 0));
    assert_eq!(figures.last_error, None);
    let json = serde_json::to_value(&figures).expect("JSON");
    assert_eq!(json["gets"], 1);
}
