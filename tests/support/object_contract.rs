//! The contract of `ObjectClient`, case by case. Every implementation runs all of it: see `contract_suite!`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucketdisk::error::{ErrorKind, Result};
use bucketdisk::object::{BATCH, ObjectClient, PutOutcome, list_all};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

/// A client of an empty store.
pub type Client = Arc<dyn ObjectClient>;

/// How many requests of a case run at once.
const AT_ONCE: usize = 32;

/// Makes a module with one test per case. `$store` makes an empty store: a value with `async fn open(&self, prefix: &str) -> Client`.
#[macro_export]
macro_rules! contract_suite {
    ($module:ident, $store:expr) => {
        $crate::contract_suite!(@tests $module, $store,
            a_missing_object_is_not_found,
            a_body_reads_back_as_it_was_put,
            a_put_replaces_the_body,
            create_if_absent_creates_once_and_never_replaces,
            of_many_creators_at_once_exactly_one_creates,
            deleting_is_idempotent,
            more_objects_than_a_batch_are_deleted,
            a_listing_pages_through_everything_in_order,
            a_folder_is_what_lies_under_its_slash,
            a_listing_tells_sizes_and_times,
            what_cannot_be_a_key_is_refused,
        );
    };
    (@tests $module:ident, $store:expr, $($case:ident,)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test]
                async fn $case() {
                    let store = $store;
                    $crate::support::object_contract::$case(async |prefix: &str| store.open(prefix).await).await;
                }
            )*
        }
    };
}

fn body(text: &str) -> Bytes {
    Bytes::from(text.to_owned())
}

/// Puts small objects, many at a time.
async fn put_all(client: &Client, keys: &[String]) {
    stream::iter(keys.to_vec())
        .map(|key| {
            let client = Arc::clone(client);
            async move { client.put(&key, body(&key)).await }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await
        .expect("puts");
}

async fn keys_of(client: &Client, folder: &str) -> Vec<String> {
    let entries = list_all(client.as_ref(), folder).await.expect("listing");
    entries.into_iter().map(|entry| entry.key).collect()
}

pub async fn a_missing_object_is_not_found(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let error = client.get("log/00000001").await.expect_err("nothing there");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(
        error.to_string(),
        "cannot read log/00000001: no such object"
    );
}

pub async fn a_body_reads_back_as_it_was_put(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let large: Vec<u8> = (0..5_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for (key, body) in [
        ("disk.json", body("{}")),
        ("blocks/3f/000000003f.00000001", Bytes::from(large)),
        ("empty", Bytes::new()),
    ] {
        client.put(key, body.clone()).await.expect(key);
        assert_eq!(client.get(key).await.expect(key), body, "{key}");
    }
}

pub async fn a_put_replaces_the_body(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    client
        .put("disk.json", body("a longer body"))
        .await
        .expect("put");
    client
        .put("disk.json", body("short"))
        .await
        .expect("put again");
    assert_eq!(client.get("disk.json").await.expect("get"), body("short"));
    assert_eq!(keys_of(&client, "").await, ["disk.json"]);
}

pub async fn create_if_absent_creates_once_and_never_replaces(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let create = async |text| {
        client
            .put_if_absent("log/00000001", body(text))
            .await
            .expect("create")
    };
    assert_eq!(create("first").await, PutOutcome::Created);
    assert_eq!(create("second").await, PutOutcome::Exists);
    assert_eq!(
        client.get("log/00000001").await.expect("get"),
        body("first")
    );
    client
        .delete_many(&["log/00000001".to_owned()])
        .await
        .expect("delete");
    assert_eq!(create("third").await, PutOutcome::Created);
    assert_eq!(keys_of(&client, "").await, ["log/00000001"]);
}

pub async fn of_many_creators_at_once_exactly_one_creates(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    for round in 0..5 {
        let key = format!("log/{round:08x}");
        let creators = (0..20).map(|creator| {
            let (client, key) = (Arc::clone(&client), key.clone());
            tokio::spawn(async move {
                client
                    .put_if_absent(&key, body(&format!("by {creator}")))
                    .await
            })
        });
        let outcomes = futures::future::join_all(creators.collect::<Vec<_>>()).await;
        let winners: Vec<usize> = outcomes
            .into_iter()
            .enumerate()
            .filter_map(|(creator, outcome)| {
                let outcome = outcome.expect("task").expect("put");
                (outcome == PutOutcome::Created).then_some(creator)
            })
            .collect();
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        let stored = client.get(&key).await.expect("get");
        assert_eq!(stored, body(&format!("by {}", winners[0])), "round {round}");
    }
}

pub async fn deleting_is_idempotent(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let keys = ["a/1", "a/2", "never/was"].map(str::to_owned);
    client.delete_many(&[]).await.expect("nothing to delete");
    client.delete_many(&keys).await.expect("nothing there");
    put_all(&client, &keys[..2]).await;
    client.put("a/3", body("stays")).await.expect("put");
    client.delete_many(&keys).await.expect("delete");
    client.delete_many(&keys).await.expect("delete again");
    assert_eq!(keys_of(&client, "").await, ["a/3"]);
    assert_eq!(
        client.get("a/1").await.expect_err("deleted").kind(),
        ErrorKind::NotFound
    );
}

pub async fn more_objects_than_a_batch_are_deleted(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let keys: Vec<String> = (0..BATCH + 500)
        .map(|n| format!("blocks/{:02x}/{n:010x}", n % 7))
        .collect();
    put_all(&client, &keys).await;
    client.put("disk.json", body("stays")).await.expect("put");
    client.delete_many(&keys).await.expect("delete");
    assert_eq!(keys_of(&client, "").await, ["disk.json"]);
}

pub async fn a_listing_pages_through_everything_in_order(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let mut keys: Vec<String> = (0..2 * BATCH + 300)
        .map(|n| format!("log/{:02x}/{n:08x}", n % 11))
        .collect();
    put_all(&client, &keys).await;
    put_all(&client, &["map/1".to_owned(), "blocks/1".to_owned()]).await;
    keys.sort();
    let mut listed = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let after = listed.last().map(String::as_str);
        let page = client.list("log/", after).await.expect("page");
        sizes.push(page.entries.len());
        listed.extend(page.entries.into_iter().map(|entry| entry.key));
        if !page.more {
            break;
        }
    }
    assert_eq!(listed, keys);
    assert_eq!(sizes, [BATCH, BATCH, 300]);
    let after_last = client
        .list("log/", keys.last().map(String::as_str))
        .await
        .expect("page");
    assert!(
        after_last.entries.is_empty() && !after_last.more,
        "{after_last:?}"
    );
    let between = client.list("log/", Some("log/05/000")).await.expect("page");
    let expected = keys.iter().find(|key| key.as_str() > "log/05/000");
    assert_eq!(between.entries.first().map(|entry| &entry.key), expected);
}

pub async fn a_folder_is_what_lies_under_its_slash(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    // '!' and '-' sort before '/', '0' after it
    let keys = [
        "log!",
        "log-old/1",
        "log/1",
        "log/sub/2",
        "log2/1",
        "logbook",
    ]
    .map(str::to_owned);
    put_all(&client, &keys).await;
    assert_eq!(keys_of(&client, "log/").await, ["log/1", "log/sub/2"]);
    assert_eq!(keys_of(&client, "log/sub/").await, ["log/sub/2"]);
    assert_eq!(keys_of(&client, "").await, keys);
    assert_eq!(keys_of(&client, "nothing/").await, Vec::<String>::new());
    for at in 0..keys.len() {
        let page = client.list("", Some(&keys[at])).await.expect("page");
        let rest: Vec<String> = page.entries.into_iter().map(|entry| entry.key).collect();
        assert_eq!(rest, keys[at + 1..], "after {}", keys[at]);
    }
}

pub async fn a_listing_tells_sizes_and_times(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    let before = SystemTime::now() - Duration::from_secs(5);
    client.put("log/1", body("12345")).await.expect("put");
    client.put("log/2", Bytes::new()).await.expect("put");
    let page = client.list("log/", None).await.expect("page");
    let sizes: Vec<u64> = page.entries.iter().map(|entry| entry.size_bytes).collect();
    assert_eq!(sizes, [5, 0]);
    for entry in page.entries {
        let now = SystemTime::now() + Duration::from_secs(5);
        assert!((before..now).contains(&entry.modified), "{entry:?}");
    }
}

pub async fn what_cannot_be_a_key_is_refused(open: impl AsyncFn(&str) -> Client) {
    let client = open("disk").await;
    for key in ["", "/a", "a/", "a//b", "../a", "a/./b"] {
        let refused: Result<()> = client.put(key, body("x")).await;
        assert_eq!(refused.expect_err(key).kind(), ErrorKind::Usage, "{key}");
        assert_eq!(
            client.get(key).await.expect_err(key).kind(),
            ErrorKind::Usage,
            "{key}"
        );
    }
    assert_eq!(keys_of(&client, "").await, Vec::<String>::new());
}

/// For stores that several clients can see at once: not for memory.
pub async fn prefixes_do_not_see_each_other(open: impl AsyncFn(&str) -> Client) {
    let (one, ten) = (open("disks/1").await, open("disks/10").await);
    one.put("log/1", body("one")).await.expect("put");
    ten.put("log/1", body("ten")).await.expect("put");
    ten.put("log/2", body("ten")).await.expect("put");
    assert_eq!(keys_of(&one, "").await, ["log/1"]);
    assert_eq!(keys_of(&ten, "log/").await, ["log/1", "log/2"]);
    one.delete_many(&["log/1".to_owned(), "log/2".to_owned()])
        .await
        .expect("delete");
    assert_eq!(ten.get("log/1").await.expect("untouched"), body("ten"));
    assert_eq!(keys_of(&ten, "").await, ["log/1", "log/2"]);
    let whole = open("").await;
    assert_eq!(
        keys_of(&whole, "").await,
        ["disks/10/log/1", "disks/10/log/2"]
    );
}
