//! The superblock's generations under everything that can happen to the requests that change them: any cut, lost answers, two changes at
//! a time in any order, requests that land late. Some slot of the owner opens always; what was acknowledged stays; the last slot stays.

use std::sync::Arc;

use bucketdisk::error::{Error, ErrorKind, Result};
use bucketdisk::object::ObjectClient;
use bucketdisk::store::versioned::{self, Unlocked, keys};
use support::encrypted::{add, create, open, open_at, wrapper};
use support::fault::{Fault, Faulty, Request};
use support::memory::{Bucket, Change};

#[path = "keys/altered.rs"]
mod altered;
mod support;
#[path = "keys/two_changes.rs"]
mod two_changes;
#[path = "keys/untried.rs"]
mod untried;

/// What a change does, by passphrases.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Do {
    Add(&'static str),
    Remove(&'static str),
    Replace(&'static str, &'static str),
    Label(&'static str),
}

/// Makes a change with the keys of a disk that was opened before.
async fn change(client: &Arc<dyn ObjectClient>, disk: &Unlocked, what: &Do) -> Result<Unlocked> {
    let new = match what {
        Do::Add(new) | Do::Replace(_, new) => Some(wrapper(new)),
        Do::Remove(_) | Do::Label(_) => None,
    };
    let salt = |text: &str| {
        let opened = open_at(disk.superblock().clone(), text).expect("opens");
        let number = opened.opened_slot().expect("a slot");
        let slot = disk.slots().iter().find(|slot| slot.id == number);
        slot.expect("that slot").salt.clone()
    };
    let old = match what {
        Do::Remove(old) | Do::Replace(old, _) => Some(salt(old)),
        Do::Add(_) | Do::Label(_) => None,
    };
    let mut apply = |draft: &mut versioned::Draft| {
        let before = draft.clone();
        match (what, &new, &old) {
            (Do::Add(_), Some(new), _) => return Ok(add(disk, new, draft)),
            (Do::Remove(_), _, Some(old)) => draft.slots.retain(|slot| slot.salt != *old),
            (Do::Replace(..), Some(new), Some(old)) => {
                if draft.slots.iter().any(|slot| new.made(slot)) {
                    return Ok(false);
                }
                let place = draft.slots.iter_mut().find(|slot| slot.salt == *old);
                let place =
                    place.ok_or_else(|| Error::new(ErrorKind::NotFound, "the slot is gone"))?;
                *place = disk.wrap(new, place.id).expect("encrypted");
            }
            (Do::Label(label), ..) => draft.label = (*label).to_owned(),
            _ => unreachable!(),
        }
        Ok(*draft != before)
    };
    versioned::change(client, disk, true, &mut apply).await
}

/// Whether a passphrase opens a bucket's disk, which has to be there and sound.
async fn opens(bucket: &Bucket, text: &str) -> bool {
    match open(&bucket.client(), text).await {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::NoKey => false,
        Err(error) => panic!("{text}: {error:?}"),
    }
}

/// The disk's objects of the superblock.
fn superblocks(bucket: &Bucket) -> Vec<String> {
    let keys = bucket.keys().into_iter();
    keys.filter(|key| key.starts_with("disk")).collect()
}

#[tokio::test]
async fn a_disk_opens_with_its_passphrase_and_no_other() {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    let made = create(&client, "right").await;
    let disk = open(&client, "right").await.expect("opens");
    assert_eq!(disk.label(), "a private label");
    assert_eq!(disk.superblock(), made.superblock());
    assert_eq!(
        disk.keys().expect("encrypted").objects.bytes(),
        made.keys().expect("encrypted").objects.bytes()
    );
    assert!(!opens(&bucket, "wrong").await);
    let public = bucket.body("disk.json").expect("there");
    let public = String::from_utf8_lossy(&public);
    assert!(!public.contains("private label"), "{public}");
    let error = Unlocked::plain(made.superblock().clone()).expect_err("encrypted");
    assert_eq!(error.kind(), ErrorKind::NoKey);
}

#[tokio::test]
async fn a_change_leaves_one_superblock_and_its_copy() {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    let disk = create(&client, "a").await;
    let disk = change(&client, &disk, &Do::Add("b")).await.expect("adds");
    let disk = change(&client, &disk, &Do::Replace("a", "c"))
        .await
        .expect("replaces");
    change(&client, &disk, &Do::Label("new"))
        .await
        .expect("labels");
    assert_eq!(superblocks(&bucket), ["disk.json", "disk/00000004.json"]);
    assert_eq!(bucket.body("disk.json"), bucket.body("disk/00000004.json"));
    assert!(opens(&bucket, "b").await && opens(&bucket, "c").await);
    assert!(!opens(&bucket, "a").await);
    let disk = open(&client, "b").await.expect("opens");
    assert_eq!(disk.label(), "new");
    assert_eq!(disk.superblock().generation, 4);
    // What is so already is no change.
    let changes = bucket.changes();
    change(&client, &disk, &Do::Label("new"))
        .await
        .expect("is so");
    assert_eq!(bucket.changes(), changes);
}

#[tokio::test]
async fn the_last_slot_cannot_be_removed() {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    let disk = create(&client, "only").await;
    let before = bucket.changes();
    let error = change(&client, &disk, &Do::Remove("only"))
        .await
        .expect_err("the last");
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert_eq!(bucket.changes(), before);
    assert!(opens(&bucket, "only").await);
}

#[tokio::test]
async fn every_cut_leaves_the_old_passphrases_or_the_new() {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    let disk = create(&client, "a").await;
    let first = bucket.changes();
    let disk = change(&client, &disk, &Do::Add("b")).await.expect("adds");
    let added = bucket.changes();
    let disk = change(&client, &disk, &Do::Replace("b", "c"))
        .await
        .expect("replaces");
    let replaced = bucket.changes();
    change(&client, &disk, &Do::Remove("a"))
        .await
        .expect("removes");
    let removed = bucket.changes();
    for cut in first..=removed {
        let bucket = bucket.cut(cut);
        let [a, b, c] = [
            opens(&bucket, "a").await,
            opens(&bucket, "b").await,
            opens(&bucket, "c").await,
        ];
        let allowed: &[[bool; 3]] = match cut {
            cut if cut == first => &[[true, false, false]],
            cut if cut < added => &[[true, false, false], [true, true, false]],
            cut if cut == added => &[[true, true, false]],
            cut if cut < replaced => &[[true, true, false], [true, false, true]],
            cut if cut == replaced => &[[true, false, true]],
            cut if cut < removed => &[[true, false, true], [false, false, true]],
            _ => &[[false, false, true]],
        };
        assert!(allowed.contains(&[a, b, c]), "cut {cut}: {a} {b} {c}");
        // Whoever died there makes its change again.
        let client: Arc<dyn ObjectClient> = bucket.client();
        let owner = ["a", "c"][usize::from(!a)];
        let disk = open(&client, owner).await.expect("opens");
        change(&client, &disk, &Do::Add("again"))
            .await
            .expect("goes on");
        assert_eq!(superblocks(&bucket).len(), 2, "{:?}", superblocks(&bucket));
        assert!(opens(&bucket, "again").await && opens(&bucket, owner).await);
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_request_of_a_change_fails_it_says_what_is_known_and_can_be_made_again() {
    let faults = [
        Fault::Before(ErrorKind::Unreachable),
        Fault::Answer(ErrorKind::Unreachable),
        Fault::Status(403, None),
    ];
    let mut refused = 0;
    for fault in faults {
        for request in 0.. {
            let bucket = Bucket::new();
            let client: Arc<dyn ObjectClient> = bucket.client();
            let disk = create(&client, "a").await;
            let disk = change(&client, &disk, &Do::Add("b")).await.expect("adds");
            let faulty = Faulty::over(&bucket, 1);
            let through: Arc<dyn ObjectClient> = faulty.clone();
            let none = std::iter::repeat_n(Fault::Delay(std::time::Duration::ZERO), request);
            faulty.next(none.chain([fault]));
            let outcome = change(&through, &disk, &Do::Replace("a", "c")).await;
            let done = faulty.requests().len() <= request;
            assert!(opens(&bucket, "b").await);
            let [old, new] = [opens(&bucket, "a").await, opens(&bucket, "c").await];
            assert!(old != new, "{fault:?} of request {request}: {old} {new}");
            match &outcome {
                Ok(_) => assert!(new),
                Err(error) => {
                    refused += 1;
                    let said = error.chain();
                    let of_put = matches!(
                        faulty.requests().get(request),
                        Some(Request::PutIfAbsent(_))
                    );
                    assert!(!of_put || said.contains("it is not known"), "{said}");
                    assert!(!said.contains("the change is made") || new, "{said}");
                }
            }
            // Once more, and nothing old is left.
            let disk = open(&client, "b").await.expect("opens");
            if old {
                change(&client, &disk, &Do::Replace("a", "c"))
                    .await
                    .expect("again");
            } else {
                change(&client, &disk, &Do::Label("settled"))
                    .await
                    .expect("again");
            }
            assert!(!opens(&bucket, "a").await && opens(&bucket, "c").await);
            let [copy, newest] = superblocks(&bucket).try_into().expect("two");
            assert_eq!(bucket.body(&copy), bucket.body(&newest));
            if done {
                break;
            }
        }
    }
    assert!(refused > 15, "{refused} refusals");
}

#[tokio::test]
async fn a_generation_that_cannot_be_used_is_damage_and_never_undone_by_an_older_one() {
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    let disk = create(&client, "a").await;
    let old = bucket.body("disk.json").expect("there");
    let disk = change(&client, &disk, &Do::Add("b")).await.expect("adds");
    change(&client, &disk, &Do::Remove("a"))
        .await
        .expect("removes");
    let newest = bucket.body("disk/00000003.json").expect("there");
    // A copy that is damaged is no loss.
    bucket.apply(Change::Put("disk.json".into(), "{".into()));
    assert!(opens(&bucket, "b").await);
    // One that went back counts for nothing.
    bucket.apply(Change::Put("disk.json".into(), old.clone()));
    assert!(opens(&bucket, "b").await && !opens(&bucket, "a").await);
    let refused = |bucket: Bucket| async move {
        let error = versioned::read_superblock(&bucket.client()).await;
        error.expect_err("cannot be used")
    };
    // A newest one that is damaged, or renamed, is damage.
    for body in [newest.slice(..newest.len() - 9), old.clone()] {
        let bucket = bucket.fork();
        bucket.apply(Change::Put("disk/00000003.json".into(), body));
        let error = refused(bucket).await;
        assert_eq!(error.kind(), ErrorKind::Damaged);
        assert!(error.chain().contains("disk/00000003.json"), "{error:?}");
    }
    let newer = String::from_utf8(newest.to_vec()).expect("UTF-8");
    let newer = newer.replace("\"version\": 1", "\"version\": 2");
    bucket.apply(Change::Put("disk/00000004.json".into(), newer.into()));
    assert_eq!(refused(bucket).await.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn what_another_disk_has_left_under_the_same_prefix_does_not_count() {
    let gone = Bucket::new();
    let disk = create(&gone.client(), "old").await;
    change(&gone.client(), &disk, &Do::Add("x"))
        .await
        .expect("adds");
    let late = gone.body("disk/00000002.json").expect("there");
    let bucket = Bucket::new();
    let client: Arc<dyn ObjectClient> = bucket.client();
    bucket.apply(Change::Put(keys::generation(2), late.clone()));
    let disk = create(&client, "new").await;
    assert_eq!(superblocks(&bucket), ["disk.json"], "create clears it away");
    // It lands once the new disk is there.
    bucket.apply(Change::Put(keys::generation(2), late));
    assert!(opens(&bucket, "new").await);
    change(&client, &disk, &Do::Add("b")).await.expect("adds");
    assert!(opens(&bucket, "new").await && opens(&bucket, "b").await);
    assert_eq!(superblocks(&bucket), ["disk.json", "disk/00000003.json"]);
}
