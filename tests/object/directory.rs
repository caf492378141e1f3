//! What only a directory does: it can vanish, be replaced, or not have been there.

use std::path::Path;

use bucketdisk::error::ErrorKind;
use bucketdisk::object::{Connection, Location, connect};
use bytes::Bytes;

use super::{Client, Directory};

async fn refused(path: &Path) -> bucketdisk::error::Error {
    let location = Location::parse(&format!("file://{}", path.display())).expect("location");
    connect(&location, &Connection::default())
        .await
        .expect_err("refused")
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_made() {
    let store = Directory::new();
    let absent = store.0.path().join("absent");
    let error = refused(&absent).await;
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let says = format!(
        "no such directory {}: check the URL, or make it",
        absent.display()
    );
    assert_eq!(error.to_string(), says);
    assert!(!absent.exists());
}

#[tokio::test]
async fn a_file_is_no_directory() {
    let store = Directory::new();
    let file = store.0.path().join("file");
    std::fs::write(&file, "x").expect("file");
    assert_eq!(refused(&file).await.kind(), ErrorKind::NotFound);
}

/// Every call but reading: none may succeed, or answer that nothing is there.
async fn all_unreachable(client: &Client) {
    let body = Bytes::from_static(b"x");
    let kinds = [
        client.get("a/1").await.expect_err("get").kind(),
        client
            .put("a/2", body.clone())
            .await
            .expect_err("put")
            .kind(),
        client
            .put_if_absent("a/3", body)
            .await
            .expect_err("create")
            .kind(),
        client
            .delete_many(&["a/1".to_owned()])
            .await
            .expect_err("delete")
            .kind(),
        client.list("", None).await.expect_err("list").kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Unreachable; 5]);
}

#[tokio::test]
async fn a_directory_that_vanished_is_unreachable_and_is_not_made_again() {
    let store = Directory::new();
    let (root, away) = (store.0.path().join("root"), store.0.path().join("away"));
    std::fs::create_dir(&root).expect("root");
    let location = Location::parse(&format!("file://{}", root.display())).expect("location");
    let client = connect(&location, &Connection::default())
        .await
        .expect("connection");
    client
        .put("a/1", Bytes::from_static(b"kept"))
        .await
        .expect("put");

    std::fs::rename(&root, &away).expect("vanish");
    all_unreachable(&client).await;
    assert!(!root.exists());

    // an empty mount point
    std::fs::create_dir(&root).expect("another directory");
    all_unreachable(&client).await;
    assert_eq!(std::fs::read_dir(&root).expect("listing").count(), 0);

    std::fs::remove_dir(&root).expect("away with it");
    std::fs::rename(&away, &root).expect("mounted again");
    assert_eq!(
        client.get("a/1").await.expect("get"),
        Bytes::from_static(b"kept")
    );
    assert_eq!(client.list("", None).await.expect("list").entries.len(), 1);
}

#[tokio::test]
async fn a_body_that_a_crash_left_half_written_is_no_object() {
    let store = Directory::new();
    let client = store.open("disk").await;
    client
        .put("log/1", Bytes::from_static(b"whole"))
        .await
        .expect("put");
    std::fs::write(store.0.path().join("disk/log/2#1"), "ha").expect("left over");
    std::fs::write(store.0.path().join("disk/log/1#1"), "ha").expect("left over");
    let page = client.list("", None).await.expect("list");
    let keys: Vec<&str> = page
        .entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(keys, ["log/1"]);
    client
        .put("log/1", Bytes::from_static(b"again"))
        .await
        .expect("put");
    client
        .put("log/2", Bytes::from_static(b"whole"))
        .await
        .expect("put");
    assert_eq!(
        client.get("log/1").await.expect("get"),
        Bytes::from_static(b"again")
    );
}

#[tokio::test]
async fn a_put_leaves_nothing_but_its_object() {
    let store = Directory::new();
    let client = store.open("").await;
    client
        .put("1", Bytes::from_static(b"x"))
        .await
        .expect("put");
    client
        .put_if_absent("1", Bytes::from_static(b"y"))
        .await
        .expect("exists");
    client
        .put_if_absent("2", Bytes::from_static(b"z"))
        .await
        .expect("created");
    let mut names: Vec<_> = std::fs::read_dir(store.0.path())
        .expect("listing")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["1", "2"]);
}

#[tokio::test]
async fn a_folder_is_no_object() {
    let store = Directory::new();
    let client = store.open("").await;
    client
        .put("log/1/x", Bytes::from_static(b"x"))
        .await
        .expect("put");
    let error = client.get("log/1").await.expect_err("a folder");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    client
        .delete_many(&["log/1/x/y".to_owned()])
        .await
        .expect("nothing there");
    let page = client.list("", None).await.expect("list");
    assert_eq!(page.entries.len(), 1);
}

/// A small file system of its own, which only root can make; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can mount a tmpfs");
            return None;
        }
        let disk = SmallDisk(tempfile::tempdir().expect("mount point"));
        disk.run("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs"]);
        Some(disk)
    }

    fn run(&self, program: &str, args: &[&str]) {
        let mut command = std::process::Command::new(program);
        let status = command.args(args).arg(self.0.path()).status();
        assert!(status.expect(program).success(), "{program}");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        self.run("umount", &[]);
    }
}

#[tokio::test]
async fn a_full_disk_is_full_and_a_read_only_one_is_read_only() {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let location = Location::parse(&format!("file://{}", disk.0.path().display()));
    let client = connect(&location.expect("location"), &Connection::default())
        .await
        .expect("connection");
    let large = Bytes::from(vec![1; 200 << 10]);
    client.put("a/1", large.clone()).await.expect("fits");
    let full = client
        .put("a/2", large.clone())
        .await
        .expect_err("does not fit");
    assert_eq!(full.kind(), ErrorKind::Full);
    assert!(full.to_string().starts_with("cannot write a/2: "), "{full}");
    let full = client.put_if_absent("a/3", large.clone()).await;
    assert_eq!(full.expect_err("does not fit").kind(), ErrorKind::Full);
    assert_eq!(
        std::fs::read_dir(disk.0.path().join("a"))
            .expect("a")
            .count(),
        1
    );

    disk.run("mount", &["-o", "remount,ro"]);
    let put = client.put("a/4", Bytes::new()).await.expect_err("put");
    let delete = client
        .delete_many(&["a/1".to_owned()])
        .await
        .expect_err("delete");
    assert_eq!(
        (put.kind(), delete.kind()),
        (ErrorKind::ReadOnly, ErrorKind::ReadOnly)
    );
    assert_eq!(client.get("a/1").await.expect("still there"), large);
}
