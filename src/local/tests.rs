//! The locks and the memory of a disk on this machine, as one process leaves them for the next.

use std::os::unix::fs::PermissionsExt;

use super::*;

const DISK: Uuid = Uuid::from_u128(7);

fn lock(root: &Path) -> Result<LocalState> {
    LocalState::lock(root, DISK, Path::new("/mnt"))
}

fn fresh() -> PastSession {
    PastSession {
        session: Uuid::new_v4(),
        journal: Some(PathBuf::from("/somewhere")),
    }
}

#[test]
fn a_locked_directory_is_busy() {
    let root = tempfile::tempdir().expect("directory");
    let held = DirectoryLock::take(root.path()).expect("first");
    let error = DirectoryLock::take(root.path()).expect_err("second");
    assert_eq!(error.kind(), ErrorKind::Busy);
    drop(held);
    DirectoryLock::take(root.path()).expect("after the first has ended");
}

#[test]
fn a_second_process_is_refused_and_told_who_has_the_disk() {
    let root = tempfile::tempdir().expect("directory");
    let held = lock(root.path()).expect("first");
    let error = lock(root.path()).expect_err("second");
    assert_eq!(error.kind(), ErrorKind::Busy);
    let text = error.to_string();
    assert!(text.contains("on /mnt "), "{text}");
    assert!(text.contains(&std::process::id().to_string()), "{text}");
    drop(held);
    lock(root.path()).expect("after the first has ended");
}

#[test]
fn the_lock_ends_with_its_owner_though_a_child_still_has_the_file() {
    let root = tempfile::tempdir().expect("directory");
    let held = lock(root.path()).expect("first");
    let _child = held.lock.try_clone().expect("the same open file");
    drop(held);
    lock(root.path()).expect("after the first has ended");
}

#[test]
fn other_disks_have_locks_of_their_own() {
    let root = tempfile::tempdir().expect("directory");
    let _held = lock(root.path()).expect("first");
    LocalState::lock(root.path(), Uuid::from_u128(8), Path::new("/mnt")).expect("other disk");
}

#[test]
fn all_of_a_disk_is_forgotten_unless_a_process_has_it() {
    let root = tempfile::tempdir().expect("directory");
    LocalState::forget(root.path(), DISK).expect("there is nothing");
    assert_eq!(std::fs::read_dir(root.path()).expect("reads").count(), 0);
    let held = lock(root.path()).expect("lock");
    LocalState::forget(root.path(), DISK).expect("is left alone");
    assert!(held.directory.is_dir());
    drop(held);
    LocalState::forget(root.path(), DISK).expect("forgets");
    // A mount for reading leaves no session, only what it has cached.
    let cache = root.path().join(DISK.to_string()).join("cache");
    std::fs::create_dir_all(&cache).expect("a folder");
    LocalState::forget(root.path(), DISK).expect("forgets");
    assert_eq!(std::fs::read_dir(root.path()).expect("reads").count(), 0);
}

#[test]
fn sessions_are_remembered_until_a_later_one_stands() {
    let root = tempfile::tempdir().expect("directory");
    let (first, second) = (fresh(), fresh());
    lock(root.path())
        .expect("lock")
        .remember(&first)
        .expect("remember");
    let state = lock(root.path()).expect("lock");
    assert_eq!(state.dead_sessions(), std::slice::from_ref(&first));
    state.remember(&second).expect("remember");
    drop(state);
    let state = lock(root.path()).expect("lock");
    assert_eq!(state.dead_sessions(), [first, second.clone()]);
    state.trim(&second).expect("trim");
    drop(state);
    assert_eq!(lock(root.path()).expect("lock").dead_sessions(), [second]);
}

#[test]
fn whoever_only_looks_sees_the_sessions_of_dead_processes_and_none_of_a_live_one() {
    let root = tempfile::tempdir().expect("directory");
    assert!(LocalState::dead_sessions_of(root.path(), DISK).is_empty());
    let session = fresh();
    let state = lock(root.path()).expect("lock");
    state.remember(&session).expect("remember");
    assert!(LocalState::dead_sessions_of(root.path(), DISK).is_empty());
    drop(state);
    assert_eq!(LocalState::dead_sessions_of(root.path(), DISK), [session]);
    lock(root.path()).expect("nothing is locked any more");
}

#[test]
fn a_list_that_is_not_one_is_no_obstacle() {
    let root = tempfile::tempdir().expect("directory");
    drop(lock(root.path()).expect("lock"));
    let list = root.path().join(DISK.to_string()).join("sessions.json");
    std::fs::write(&list, b"[\"half").expect("write");
    assert!(lock(root.path()).expect("lock").dead_sessions().is_empty());
}

#[test]
fn the_directory_is_private() {
    let root = tempfile::tempdir().expect("directory");
    let _state = lock(root.path()).expect("lock");
    let metadata = std::fs::metadata(root.path().join(DISK.to_string())).expect("metadata");
    assert_eq!(metadata.mode() & 0o777, 0o700);
}

#[test]
fn a_directory_that_others_can_change_is_refused_for_a_reason_and_never_to_be_removed() {
    let root = tempfile::tempdir().expect("directory");
    let refused = |directory: &Path| {
        let error = make_private(directory).expect_err("others can change it");
        assert_eq!(error.kind(), ErrorKind::Denied);
        let text = error.to_string();
        let named = text.contains(&directory.display().to_string());
        assert!(named && !text.contains("remove"), "{text}");
        text
    };
    let directory = root.path().join("journal");
    make_private(&directory).expect("makes");
    make_private(&directory).expect("is its own");
    let link = root.path().join("link");
    std::os::unix::fs::symlink(&directory, &link).expect("links");
    assert!(refused(&link).contains("symbolic link"));
    for mode in [0o720, 0o702] {
        let mode: std::fs::Permissions = PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&directory, mode.clone()).expect("mode");
        let text = refused(&directory);
        assert!(text.contains("chmod go-w"), "{text}");
        assert!(text.contains(&format!("{:04o}", mode.mode())), "{text}");
    }
    let found = std::fs::metadata("/").expect("metadata");
    let text = not_private(Path::new("/"), &found, found.uid() + 1).expect("is another's");
    assert!(text.contains("belongs to user"), "{text}");
}
