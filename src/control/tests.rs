//! Client and server, over a real socket.

use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use super::{Client, KINDS, Listening, Progress, Service, Unmounted, kind_name, kind_of};
use super::{mount_point, socket_path};
use crate::error::{Error, ErrorKind, Result};

const MOUNT: &str = "/mnt/disk";
/// More ranges than fit into a line.
const DIRTY: u64 = 100_000;

/// Unmounts once it is let; answers `Busy` the first `busy` times.
#[derive(Debug)]
struct Disk {
    go_on: Semaphore,
    asked: AtomicU32,
    busy: u32,
}

#[async_trait]
impl Service for Disk {
    fn status(&self) -> Result<(String, Value)> {
        Ok(("fine".to_owned(), json!({"dirty_bytes": 5})))
    }

    fn progress(&self) -> Progress {
        Progress {
            dirty_bytes: 5,
            ..Progress::default()
        }
    }

    fn dirty(&self) -> Vec<Range<u64>> {
        (0..DIRTY).map(|at| at * 4096..at * 4096 + 512).collect()
    }

    async fn flush(&self, bucket: bool) -> Result<bool> {
        let permit = self.go_on.acquire().await;
        permit.expect("never closed").forget();
        match bucket {
            true => Ok(true),
            false => Err(Error::new(ErrorKind::Fenced, "lost")),
        }
    }

    async fn unmount(&self, _: bool) -> Result<Unmounted> {
        let permit = self.go_on.acquire().await;
        permit.expect("never closed").forget();
        if self.asked.fetch_add(1, Ordering::SeqCst) < self.busy {
            return Err(Error::new(ErrorKind::Busy, "in use"));
        }
        Ok(Unmounted::Released)
    }
}

fn serve(directory: &Path, busy: u32) -> (Listening, Arc<Disk>) {
    let disk = Arc::new(Disk {
        go_on: Semaphore::new(0),
        asked: AtomicU32::new(0),
        busy,
    });
    let mut listening = Listening::bind(directory, Path::new(MOUNT)).expect("bind");
    listening.serve(disk.clone()).expect("serve");
    (listening, disk)
}

fn connect(directory: &Path) -> Client {
    Client::connect(directory, Path::new(MOUNT))
        .expect("connects")
        .expect("a daemon")
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_answered_for_people_and_programs() {
    let directory = tempfile::tempdir().expect("directory");
    let (_listening, _) = serve(directory.path(), 0);
    let client = connect(directory.path());
    let answer = spawn_blocking(|| client.status()).await.expect("joins");
    let (text, figures) = answer.expect("status");
    assert_eq!(text, "fine");
    assert_eq!(figures["dirty_bytes"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_mount_is_told_with_its_kind_after_progress() {
    let directory = tempfile::tempdir().expect("directory");
    let (_listening, disk) = serve(directory.path(), 1);
    let client = connect(directory.path());
    let answer = spawn_blocking(move || {
        client.unmount(false, |progress| {
            assert_eq!(progress.dirty_bytes, 5);
            disk.go_on.add_permits(1);
        })
    });
    let error = answer.await.expect("joins").expect_err("busy");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert_eq!(error.to_string(), "in use");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_goes_on_when_its_client_has_gone() {
    let directory = tempfile::tempdir().expect("directory");
    let (mut listening, disk) = serve(directory.path(), 0);
    let path = socket_path(directory.path(), Path::new(MOUNT));
    let client = spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).expect("connects");
        let asked = stream.write_all(b"{\"request\":\"unmount\"}\n");
        asked.expect("asks");
        let mut line = String::new();
        let answered = BufReader::new(stream).read_line(&mut line);
        answered.expect("progress");
    });
    client.await.expect("joins");
    disk.go_on.add_permits(1);
    listening.finish().await;
    assert_eq!(disk.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_ranges_is_told() {
    let directory = tempfile::tempdir().expect("directory");
    let (_listening, disk) = serve(directory.path(), 0);
    let client = connect(directory.path());
    let told = spawn_blocking(|| client.dirty()).await.expect("joins");
    assert_eq!(told.expect("is answered"), disk.dirty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_another_version_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let (_listening, _) = serve(directory.path(), 0);
    let path = socket_path(directory.path(), Path::new(MOUNT));
    let client = spawn_blocking(move || {
        let mut stream = UnixStream::connect(path).expect("connects");
        stream
            .write_all(b"{\"request\":\"dance\"}\n")
            .expect("asks");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("reply");
        line
    });
    let line = client.await.expect("joins");
    assert!(line.contains("\"kind\":\"unsupported\""), "{line}");
}

#[test]
fn a_mount_point_has_one_daemon() {
    let directory = tempfile::tempdir().expect("directory");
    let first = Listening::bind(directory.path(), Path::new(MOUNT)).expect("bind");
    let error = Listening::bind(directory.path(), Path::new(MOUNT)).expect_err("second");
    assert_eq!(error.kind(), ErrorKind::Busy);
    drop(first);
    Listening::bind(directory.path(), Path::new(MOUNT)).expect("after the first");
}

#[test]
fn what_a_dead_daemon_left_is_no_daemon() {
    let directory = tempfile::tempdir().expect("directory");
    let path = socket_path(directory.path(), Path::new(MOUNT));
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(path.exists());
    let client = Client::connect(directory.path(), Path::new(MOUNT)).expect("looks");
    assert!(client.is_none());
    assert!(!path.exists());
    drop(UnixListener::bind(&path).expect("bind"));
    Listening::bind(directory.path(), Path::new(MOUNT)).expect("in its place");
}

#[test]
fn every_kind_survives_the_socket() {
    for (kind, name) in KINDS {
        assert_eq!(kind_name(kind), name);
        assert_eq!(kind_of(name), kind);
    }
    assert_eq!(kind_of("of a newer program"), ErrorKind::System);
}

#[test]
fn a_mount_point_has_one_form_however_it_is_written() {
    let directory = tempfile::tempdir().expect("directory");
    let real = directory.path().join("real");
    std::fs::create_dir(&real).expect("create");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&real, &link).expect("link");
    let form = mount_point(&real).expect("real");
    assert_eq!(mount_point(&link).expect("link"), form);
    let roundabout = real.join("..").join("real");
    assert_eq!(mount_point(&roundabout).expect("roundabout"), form);
    let error = mount_point(&directory.path().join("a/b")).expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn the_name_of_a_socket_fits_into_an_address() {
    let directory = Path::new("/tmp/bucketdisk-4294967295");
    let long = PathBuf::from(format!("/{}", "d/".repeat(2000)));
    let path = socket_path(directory, &long);
    assert!(path.as_os_str().len() < 100);
    assert_ne!(path, socket_path(directory, Path::new("/d")));
}
