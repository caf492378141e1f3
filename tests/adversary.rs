//! A bucket that lies: every object of a disk altered, cut, swapped, replayed, deleted, spliced or brought from elsewhere. What the disk shows then
//! is the disk as it is, or an error that says that it is damaged; never zeros, never other data. Where the bucket is put back as a whole to what it
//! was once, nothing in it can tell: that is counted apart, and what is shown must be exactly what was once committed.
//!
//! Of a plain disk, which has checksums, that is so for accidents; of an encrypted one also for whoever makes objects to fit.

use adversary::attacks;
use adversary::judge::{Standing, Tally};
use adversary::scene::Way;

mod support;

mod adversary {
    pub mod attacks;
    pub mod judge;
    pub mod scene;
    pub mod superblock;
}

#[tokio::test(start_paused = true)]
async fn whatever_is_done_to_a_bucket_its_disk_shows_what_was_committed_or_an_error() {
    let mut tally = Tally::default();
    for way in Way::ALL {
        attacks::all(way, &mut tally).await;
    }
    println!("{tally}");
    let wrong = &tally.wrong;
    assert!(
        wrong.is_empty(),
        "{} cases:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    for way in Way::ALL {
        for standing in Standing::ALL {
            for attack in attacks::names(way, standing) {
                assert!(
                    tally.cases(way, standing, attack) > 0,
                    "{way:?} {standing:?} {attack}"
                );
            }
        }
    }
}
