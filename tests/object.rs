//! The object room from outside: the contract over every kind of store, what errors become, and the decorators.

use std::collections::HashMap;

use bucketdisk::object::{Connection, Environment, Location, connect, connect_in};
use support::object_contract::{Client, prefixes_do_not_see_each_other};
use support::s3_server::S3Server;

#[path = "object/decorators.rs"]
mod decorators;
#[path = "object/directory.rs"]
mod directory;
#[path = "object/errors.rs"]
mod errors;
mod support;

#[test]
fn s3_server_process() {
    support::s3_server::serve_if_asked();
}

/// A client of a location that needs nothing of the machine.
async fn plain_client(location: &Location) -> Client {
    let nothing = Environment::fixed(None, HashMap::new());
    connect_in(location, &Connection::default(), &nothing)
        .await
        .expect("connection")
}

/// This process's memory.
struct Memory;

impl Memory {
    async fn open(&self, prefix: &str) -> Client {
        let location = Location::parse("memory:").expect("location");
        plain_client(&location.with_prefix(prefix).expect("prefix")).await
    }
}

/// A directory of its own.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Directory {
        Directory(tempfile::tempdir().expect("directory"))
    }

    fn location(&self) -> Location {
        Location::parse(&format!("file://{}", self.0.path().display())).expect("location")
    }

    async fn open(&self, prefix: &str) -> Client {
        let location = self.location().with_prefix(prefix).expect("prefix");
        plain_client(&location).await
    }
}

/// A server of its own, with one bucket.
struct S3(S3Server);

impl S3 {
    fn new() -> S3 {
        let server = S3Server::start();
        server.make_bucket("bucket");
        S3(server)
    }

    async fn open(&self, prefix: &str) -> Client {
        let location = Location::parse("s3://bucket").expect("location");
        let location = location.with_prefix(prefix).expect("prefix");
        connect_in(&location, &self.0.connection(), &self.0.environment())
            .await
            .expect("connection")
    }
}

/// The store of `BUCKETDISK_TEST_S3_URL` (any `s3://bucket/prefix`, with the usual AWS variables), each time under a prefix of its
/// own, which is left there; without the variable, memory once more.
struct Given(Option<Location>);

impl Given {
    fn new() -> Given {
        let Ok(url) = std::env::var("BUCKETDISK_TEST_S3_URL") else {
            eprintln!(
                "SKIPPED: set BUCKETDISK_TEST_S3_URL=s3://bucket/prefix to test a store of your own"
            );
            return Given(None);
        };
        let own = format!("bucketdisk-test/{}", uuid::Uuid::new_v4());
        let location = Location::parse(&url).expect("BUCKETDISK_TEST_S3_URL");
        Given(Some(location.with_prefix(&own).expect("prefix")))
    }

    async fn open(&self, prefix: &str) -> Client {
        let Some(location) = self.0.clone() else {
            return Memory.open(prefix).await;
        };
        let location = location.with_prefix(prefix).expect("prefix");
        connect(&location, &Connection::default())
            .await
            .expect("connection")
    }
}

contract_suite!(over_memory, Memory);
contract_suite!(over_a_directory, Directory::new());
contract_suite!(over_s3, S3::new());
contract_suite!(over_a_given_store, Given::new());

#[tokio::test]
async fn prefixes_of_one_directory_do_not_see_each_other() {
    let store = Directory::new();
    prefixes_do_not_see_each_other(async |prefix: &str| store.open(prefix).await).await;
}

#[tokio::test]
async fn prefixes_of_one_bucket_do_not_see_each_other() {
    let store = S3::new();
    prefixes_do_not_see_each_other(async |prefix: &str| store.open(prefix).await).await;
}

#[tokio::test]
async fn a_client_says_what_it_reads_and_writes() {
    let server = S3::new();
    assert_eq!(server.open("a/b").await.location(), "s3://bucket/a/b");
    let directory = Directory::new();
    let url = directory.location().to_string();
    assert_eq!(directory.open("").await.location(), url);
    assert_eq!(
        directory.open("disk").await.location(),
        format!("{url}/disk")
    );
}
