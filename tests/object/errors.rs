//! What goes wrong with an S3 store, as the contract's kinds and in words.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::{Connection, Environment, Location, connect_in};
use bytes::Bytes;

use super::S3;
use super::support::canned_http::{Canned, CannedServer};
use super::support::object_contract::Client;
use super::support::s3_server::{ACCESS_KEY, SECRET_KEY, variables};

async fn connected(
    url: &str,
    endpoint: &str,
    variables: HashMap<String, String>,
) -> Result<Client> {
    let connection = Connection {
        endpoint: Some(endpoint.to_owned()),
        request_timeout: Duration::from_millis(500),
        ..Connection::default()
    };
    let location = Location::parse(url).expect("location");
    connect_in(&location, &connection, &Environment::fixed(None, variables)).await
}

async fn client_of(server: &CannedServer) -> Client {
    connected(
        "s3://bucket/disk",
        &server.endpoint(),
        variables(ACCESS_KEY, SECRET_KEY),
    )
    .await
    .expect("connection")
}

/// The error of a `get` that is answered so.
async fn answered(canned: Canned) -> Error {
    let server = CannedServer::start(vec![canned]);
    let client = client_of(&server).await;
    client.get("disk.json").await.expect_err("an error")
}

fn xml(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>Words.</Message></Error>")
}

fn keys(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_wrong_secret_is_denied_and_not_repeated() {
    let store = S3::new();
    let variables = variables(ACCESS_KEY, "another-secret");
    let client = connected("s3://bucket", &store.0.endpoint(), variables)
        .await
        .expect("client");
    let error = client.get("disk.json").await.expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        error
            .chain()
            .contains("403 SignatureDoesNotMatch: check the credentials"),
        "{}",
        error.chain()
    );
    assert!(!format!("{error:?} {client:?}").contains("another-secret"));
}

#[tokio::test]
async fn a_missing_bucket_is_named() {
    let store = S3::new();
    let client = connected(
        "s3://nowhere/disk",
        &store.0.endpoint(),
        store.0.variables(),
    )
    .await
    .expect("client");
    let listing = client.list("", None).await.expect_err("no bucket");
    assert_eq!(listing.kind(), ErrorKind::NotFound);
    assert_eq!(
        listing.to_string(),
        "cannot list objects: no such bucket: nowhere: check its name and the endpoint, or make it"
    );
    let absent = || Canned::Answer("404 Not Found", "", xml("NoSuchBucket"));
    let server = CannedServer::start(vec![absent(), absent()]);
    let client = client_of(&server).await;
    let get = client.get("disk.json").await.expect_err("no bucket");
    let put = client
        .put("disk.json", Bytes::new())
        .await
        .expect_err("no bucket");
    assert_eq!(
        (get.kind(), put.kind()),
        (ErrorKind::NotFound, ErrorKind::NotFound)
    );
    assert_eq!(
        get.to_string(),
        "cannot read disk.json: no such bucket: bucket: check its name and the endpoint, or make it"
    );
    assert_eq!(
        put.to_string(),
        "cannot write disk.json: no such bucket: bucket: check its name and the endpoint, or make it"
    );
}

#[tokio::test]
async fn a_server_that_is_down_is_unreachable_and_one_that_is_back_is_not() {
    let mut store = S3::new();
    let client = store.open("disk").await;
    client
        .put("disk.json", Bytes::from_static(b"kept"))
        .await
        .expect("put");
    store.0.stop();
    let error = client
        .get("disk.json")
        .await
        .expect_err("the connection is lost");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let error = client
        .get("disk.json")
        .await
        .expect_err("there is no other");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(
        error
            .to_string()
            .contains("no connection to http://127.0.0.1:"),
        "{error}"
    );
    store.0.restart_on_same_port();
    assert_eq!(
        client.get("disk.json").await.expect("back"),
        Bytes::from_static(b"kept")
    );
}

#[tokio::test]
async fn a_busy_server_is_unreachable_until_when_it_said() {
    let busy = |headers| Canned::Answer("503 Service Unavailable", headers, xml("SlowDown"));
    let error = answered(busy("Retry-After: 7\r\n")).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(
        error.to_string(),
        "cannot read disk.json: the store answered 503 SlowDown (Words.)"
    );
    let error = answered(busy("Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n")).await;
    assert_eq!(error.retry_after(), Some(Duration::ZERO));
    assert_eq!(answered(busy("")).await.retry_after(), None);
    let error = answered(Canned::Answer("429 Too Many Requests", "", String::new())).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_unreachable() {
    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
               ETag: \"x\"\r\n\r\nonly the beginning";
    for broken in ["", "HTTP/1.1 200", cut] {
        let error = answered(Canned::Raw(broken)).await;
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{broken}: {error:?}");
    }
    let error = answered(Canned::Silence).await;
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("in time"), "{error}");
}

#[tokio::test]
async fn a_bucket_in_another_region_is_a_usage_error_that_names_it() {
    let moved = Canned::Answer(
        "301 Moved Permanently",
        "x-amz-bucket-region: eu-west-3\r\n",
        xml("PermanentRedirect"),
    );
    let error = answered(moved).await;
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.to_string().contains("give --region eu-west-3"),
        "{error}"
    );
    let body =
        xml("AuthorizationHeaderMalformed").replace("</Code>", "</Code><Region>eu-west-3</Region>");
    let error = answered(Canned::Answer("400 Bad Request", "", body)).await;
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.to_string().contains("give --region eu-west-3"),
        "{error}"
    );
}

#[tokio::test]
async fn create_if_absent_tells_a_met_object_from_a_conflict() {
    let answers = [
        "412 Precondition Failed",
        "409 Conflict",
        "501 Not Implemented",
    ];
    let codes = [
        "PreconditionFailed",
        "ConditionalRequestConflict",
        "NotImplemented",
    ];
    let canned = answers
        .iter()
        .zip(codes)
        .map(|(status, code)| Canned::Answer(status, "", xml(code)));
    let server = CannedServer::start(canned.collect());
    let client = client_of(&server).await;
    let create = async || {
        client
            .put_if_absent("log/1", Bytes::from_static(b"x"))
            .await
    };
    assert_eq!(
        create().await.expect("412"),
        bucketdisk::object::PutOutcome::Exists
    );
    assert_eq!(
        create().await.expect_err("409").kind(),
        ErrorKind::Unreachable
    );
    assert_eq!(
        create().await.expect_err("501").kind(),
        ErrorKind::Unsupported
    );
}

#[tokio::test]
async fn a_store_without_bulk_delete_is_asked_one_by_one_from_then_on() {
    let gone = || Canned::Answer("204 No Content", "", String::new());
    let server = CannedServer::start(vec![
        Canned::Answer("501 Not Implemented", "", xml("NotImplemented")),
        gone(),
        gone(),
        Canned::Answer("404 Not Found", "", xml("NoSuchKey")),
    ]);
    let client = client_of(&server).await;
    client
        .delete_many(&keys(&["a/1", "a/2"]))
        .await
        .expect("deleted");
    client.delete_many(&keys(&["a/3"])).await.expect("absent");
    let mut requests = server.requests();
    requests[1..].sort();
    let expected = [
        "POST /bucket?delete HTTP/1.1",
        "DELETE /bucket/disk/a/1 HTTP/1.1",
        "DELETE /bucket/disk/a/2 HTTP/1.1",
        "DELETE /bucket/disk/a/3 HTTP/1.1",
    ];
    assert_eq!(requests, expected);
}

#[tokio::test]
async fn an_object_that_could_not_be_deleted_is_named() {
    let result = "<DeleteResult><Deleted><Key>disk/a/1</Key></Deleted><Error><Key>disk/a/2</Key>\
                  <Code>AccessDenied</Code><Message>No.</Message></Error></DeleteResult>";
    let server = CannedServer::start(vec![
        Canned::Answer("200 OK", "", result.to_owned()),
        Canned::Answer("200 OK", "", xml("InternalError")),
    ]);
    let client = client_of(&server).await;
    let error = client
        .delete_many(&keys(&["a/1", "a/2"]))
        .await
        .expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("a/2"), "{error}");
    let error = client
        .delete_many(&keys(&["a/1", "a/2"]))
        .await
        .expect_err("500 in a 200");
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn a_page_of_a_listing_is_one_request() {
    let entry = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><Size>3</Size><LastModified>2024-01-01T00:00:00.000Z</LastModified></Contents>"
        )
    };
    let page = format!(
        "<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{}{}</ListBucketResult>",
        entry("disk/log/1"),
        entry("disk/log/2")
    );
    let server = CannedServer::start(vec![Canned::Answer("200 OK", "", page)]);
    let page = client_of(&server)
        .await
        .list("log/", Some("log/0"))
        .await
        .expect("page");
    assert!(page.more);
    assert_eq!(page.entries.len(), 2);
    assert_eq!(
        server.requests(),
        [
            "GET /bucket?list-type=2&prefix=disk%2Flog%2F&start-after=disk%2Flog%2F0&max-keys=1000 HTTP/1.1"
        ]
    );
}

#[tokio::test]
async fn credentials_that_are_refused_as_soon_as_they_are_fetched_are_denied() {
    let home = tempfile::tempdir().expect("home");
    std::fs::create_dir(home.path().join(".aws")).expect("directory");
    let keys =
        format!("[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n");
    std::fs::write(home.path().join(".aws/credentials"), keys).expect("credentials");
    let server = CannedServer::start(vec![Canned::Answer(
        "400 Bad Request",
        "",
        xml("ExpiredToken"),
    )]);
    let connection = Connection {
        endpoint: Some(server.endpoint()),
        ..Connection::default()
    };
    let environment = Environment::fixed(Some(home.path().to_owned()), HashMap::new());
    let location = Location::parse("s3://bucket").expect("location");
    let client = connect_in(&location, &connection, &environment)
        .await
        .expect("client");
    let error = client.get("disk.json").await.expect_err("expired");
    // fetched a moment ago, and expired already: asking again would give the same
    assert_eq!(error.kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn no_credentials_are_denied_quickly_and_in_one_line() {
    let begun = Instant::now();
    let nothing = HashMap::from([("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned())]);
    let error = connected("s3://bucket", "http://127.0.0.1:9", nothing)
        .await
        .expect_err("no credentials");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        error
            .chain()
            .starts_with("no credentials found: set AWS_ACCESS_KEY_ID"),
        "{error}"
    );
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_machine_without_a_metadata_service_is_not_waited_for_long() {
    // nobody listens there
    let variables = HashMap::from([(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(),
        "http://169.254.255.254".to_owned(),
    )]);
    let begun = Instant::now();
    let error = connected("s3://bucket", "http://127.0.0.1:9", variables)
        .await
        .expect_err("no credentials");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
}
