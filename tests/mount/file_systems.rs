//! File systems on the disk: made, filled, taken down, and every byte found on what only the bucket holds.

use std::fs;
use std::process::Command;

use crate::support::kinds::{BTRFS, EXT4, Kind, XFS};
use crate::support::real::{Machine, assert_same_tree, can_mount, make_tree, run, sh};
use crate::support::s3_server::S3Server;

/// Make a disk, put a file system and a tree on it, take all down, and find every byte on what only the bucket holds.
fn round_trip(machine: &Machine, url: &str, kind: &Kind, loop_options: &[&str]) {
    let tree = machine.path().join("tree");
    fs::create_dir(&tree).expect("a folder");
    make_tree(&tree, 7);
    let files = machine.path().join("files");

    machine.run(&["create", url, "--size", "512m", "--label", "round trip"]);
    let disk = machine.mount(url, "disk", &["--commit-interval", "2s"]);
    let device = disk.attach(loop_options);
    kind.make("", &device.device);
    let mounted = device.mount(&files, kind.options);
    run(Command::new("cp").arg("-a").arg(tree.join(".")).arg(&files));
    sh(&format!("rm -r '{}/folder 3'", files.display()));
    sh(&format!("rm -r '{}/folder 3'", tree.display()));
    assert_same_tree(&tree, &files);
    mounted.umount();
    device.detach();
    disk.umount();

    let info: serde_json::Value =
        serde_json::from_str(&machine.run(&["info", "--json", url])).expect("JSON");
    assert!(info["holder"].is_null(), "{info}");

    // On what the bucket says, once from the checkpoint and once from the blocks themselves.
    for options in [&["--read-only"][..], &["--list-blocks"]] {
        let disk = machine.mount(url, "again", options);
        let device = disk.attach(loop_options);
        kind.check(&device.device);
        let read_only = format!("ro,{}", kind.options);
        let mounted = device.mount(&files, &read_only);
        assert_same_tree(&tree, &files);
        mounted.umount();
        device.detach();
        disk.umount();
    }
}

fn on_a_directory(kind: &Kind, loop_options: &[&str]) {
    let machine = Machine::new();
    let bucket = machine.path().join("bucket");
    fs::create_dir(&bucket).expect("a folder");
    round_trip(
        &machine,
        &format!("file://{}", bucket.display()),
        kind,
        loop_options,
    );
}

fn on_s3(kind: &Kind, loop_options: &[&str]) {
    let server = S3Server::start();
    server.make_bucket("bucket");
    round_trip(
        &server.machine(),
        "s3://bucket/some/where",
        kind,
        loop_options,
    );
}

#[test]
fn ext4_on_a_directory_comes_back_whole() {
    if can_mount("ext4_on_a_directory_comes_back_whole") {
        on_a_directory(&EXT4, &["--direct-io=on"]);
    }
}

#[test]
fn xfs_on_a_directory_comes_back_whole() {
    if can_mount("xfs_on_a_directory_comes_back_whole") {
        on_a_directory(&XFS, &[]);
    }
}

#[test]
fn btrfs_on_a_directory_comes_back_whole() {
    if can_mount("btrfs_on_a_directory_comes_back_whole") {
        on_a_directory(&BTRFS, &["--direct-io=on"]);
    }
}

#[test]
fn ext4_on_s3_comes_back_whole() {
    if can_mount("ext4_on_s3_comes_back_whole") {
        on_s3(&EXT4, &[]);
    }
}

#[test]
fn xfs_on_s3_comes_back_whole() {
    if can_mount("xfs_on_s3_comes_back_whole") {
        on_s3(&XFS, &["--direct-io=on"]);
    }
}

#[test]
fn btrfs_on_s3_comes_back_whole() {
    if can_mount("btrfs_on_s3_comes_back_whole") {
        on_s3(&BTRFS, &[]);
    }
}
