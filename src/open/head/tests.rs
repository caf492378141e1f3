//! The newest that this machine has seen of a disk, as one process leaves it for the next.

use super::*;
use crate::block::Seq;
use crate::store::versioned::record::Digest;

const DISK: Uuid = Uuid::from_u128(7);

fn pin(seq: u32) -> Pin {
    Pin {
        seq: Seq(seq),
        digest: Digest([seq.to_le_bytes()[0]; 16]),
        claim: Seq(1),
        claim_digest: Digest([1; 16]),
        superblock: SuperblockMark::default(),
    }
}

fn seen(home: &Path) -> Seen {
    Seen::in_directory(home, DISK)
}

#[test]
fn what_was_told_is_found_again_by_the_next_process() {
    let home = tempfile::tempdir().expect("directory");
    let first = seen(home.path());
    assert_eq!((first.pin(), first.lost()), (None, None));
    let keep = first.keeper(false);
    for seq in [3, 4] {
        keep(&pin(seq));
        assert_eq!(seen(home.path()).pin(), Some(pin(seq)));
    }
    assert_eq!(seen(home.path()).history(), first.history());
}

#[test]
fn a_reader_and_a_writer_only_ever_raise_it() {
    let home = tempfile::tempdir().expect("directory");
    // Both have found nothing, and each would file its cache elsewhere.
    let (writer, reader) = (seen(home.path()), seen(home.path()));
    let (writes, reads) = (writer.keeper(false), reader.keeper(false));
    writes(&pin(5));
    reads(&pin(4));
    assert_eq!(seen(home.path()).pin(), Some(pin(5)));
    reads(&pin(6));
    writes(&pin(5));
    let now = seen(home.path());
    assert_eq!(now.pin(), Some(pin(6)));
    assert_eq!(now.history(), writer.history(), "of who came first");
}

#[test]
fn many_processes_at_once_leave_the_highest() {
    let home = tempfile::tempdir().expect("directory");
    std::thread::scope(|scope| {
        for first in 0..4 {
            let keep = seen(home.path()).keeper(false);
            scope.spawn(move || (0..50).for_each(|n| keep(&pin(1 + first + 4 * n))));
        }
    });
    assert_eq!(seen(home.path()).pin(), Some(pin(200)));
}

#[test]
fn what_is_accepted_takes_its_place_with_another_history() {
    let home = tempfile::tempdir().expect("directory");
    seen(home.path()).keeper(false)(&pin(9));
    let mut accepted = seen(home.path());
    let before = accepted.history();
    accepted.begin_anew();
    let keep = accepted.keeper(true);
    keep(&pin(5));
    let now = seen(home.path());
    assert_eq!(now.pin(), Some(pin(5)));
    assert_ne!(now.history(), before);
    // From then on it is raised again.
    keep(&pin(4));
    assert_eq!(seen(home.path()).pin(), Some(pin(5)));
}

#[test]
fn a_file_that_does_not_check_out_is_told_of_and_written_anew() {
    let home = tempfile::tempdir().expect("directory");
    seen(home.path()).keeper(false)(&pin(5));
    let path = home.path().join(NAME);
    let whole = std::fs::read(&path).expect("reads");
    let mut others: Vec<Vec<u8>> = (0..whole.len()).map(|n| whole[..n].to_vec()).collect();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        others.push(flipped);
    }
    for other in others {
        std::fs::write(&path, &other).expect("writes");
        let found = seen(home.path());
        assert!(found.pin().is_none(), "{}", String::from_utf8_lossy(&other));
        assert!(found.lost().is_some_and(|text| text.contains(NAME)));
    }
    seen(home.path()).keeper(false)(&pin(6));
    assert_eq!(seen(home.path()).pin(), Some(pin(6)));
    let other = Seen::in_directory(home.path(), Uuid::from_u128(8));
    assert!(other.pin().is_none(), "it is of another disk");
}

#[test]
fn a_directory_that_cannot_be_written_keeps_nothing_and_is_no_error() {
    let home = tempfile::tempdir().expect("directory");
    let file = home.path().join("file");
    std::fs::write(&file, b"").expect("writes");
    seen(&file.join("below")).keeper(false)(&pin(5));
    assert_eq!(std::fs::read_dir(home.path()).expect("reads").count(), 1);
}

#[test]
fn a_superblock_that_was_made_here_is_raised_where_the_disk_is_known_and_nothing_else() {
    let home = tempfile::tempdir().expect("directory");
    let made = |generation| SuperblockMark {
        generation,
        encrypted: true,
    };
    seen(home.path()).raise(made(3));
    assert_eq!(std::fs::read_dir(home.path()).expect("reads").count(), 0);
    let before = seen(home.path());
    before.keeper(false)(&pin(5));
    let history = seen(home.path()).history();
    before.raise(made(3));
    before.raise(made(2));
    let expected = Pin {
        superblock: made(3),
        ..pin(5)
    };
    assert_eq!(seen(home.path()).pin(), Some(expected));
    assert_eq!(seen(home.path()).history(), history);
    // A mount that goes on does not lower it again.
    before.keeper(false)(&pin(6));
    let raised = seen(home.path()).pin().expect("is known");
    assert_eq!((raised.seq, raised.superblock), (Seq(6), made(3)));
}
