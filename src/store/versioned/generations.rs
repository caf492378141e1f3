//! The superblock's generations: finding the newest, and making the next.
//!
//! A disk is made with generation 1, in `disk.json`. Generation g is put as `disk/<g>.json`, create-if-absent, with a number above all
//! that there are; that instant makes it the superblock, for of all generations in `disk.json` and under `disk/` the highest
//! counts. Then it is copied to `disk.json`, so that the keys of a removed slot leave that, and the lower ones are deleted.
//!
//! The highest is never deleted, so a listing always shows whether a generation counts. That is why a request that lands late does no
//! harm: a generation whose number had been used and pruned lies below the highest, and whoever put it sees that, and starts over; an
//! older copy that overwrites `disk.json` is outnumbered too. A cut between any two requests leaves the old superblock or the new one.
//! A change needs no claim, since nothing that is written to a disk depends on what a change may touch.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::object::{ObjectClient, PutOutcome, list_all};

use super::objects::found;
use super::superblock::SuperblockError;
use super::unlocked::{Draft, Unlocked};
use super::{Superblock, keys};

/// How often something is tried that others can be quicker at.
const TRIES: usize = 20;

/// The superblock that counts.
struct Newest {
    superblock: Superblock,
    object: Bytes,
    /// The numbers under `disk/`.
    numbers: BTreeSet<u32>,
    /// Whether `disk.json` has that superblock.
    copied: bool,
}

/// What of a disk is under one key.
struct Found {
    superblock: Superblock,
    object: Bytes,
}

/// Reads and checks the superblock.
///
/// # Errors
/// `NotFound` where there is no disk; `Damaged`; `Unsupported` where a newer program has made it.
pub async fn read_superblock(client: &Arc<dyn ObjectClient>) -> Result<Superblock> {
    Ok(newest(client).await?.superblock)
}

/// Makes the next generation of a superblock, whatever others do to it at the same time. `apply` changes what it is given, which is the
/// newest state each time, and answers whether that was necessary: where its change is in there already, it says no. It may be called
/// several times. When this returns, nothing older is left in the bucket.
///
/// `fencing`: whether the store's create-if-absent works. Where it does not, two changes at the same time may lose one of them.
///
/// # Errors
/// What `apply` and [`Unlocked::at`] refuse with; those of the object client, with what is known then about the change. Making the change
/// again is always safe.
pub async fn change(
    client: &Arc<dyn ObjectClient>,
    disk: &Unlocked,
    fencing: bool,
    apply: &mut (dyn FnMut(&mut Draft) -> Result<bool> + Send),
) -> Result<Unlocked> {
    for _ in 0..TRIES {
        let newest = newest(client).await?;
        let now = disk.at(newest.superblock.clone())?;
        let mut draft = now.draft();
        if !apply(&mut draft)? {
            settle(client, newest).await.map_err(half_done)?;
            return Ok(now);
        }
        let above = newest.numbers.last().copied().unwrap_or_default();
        let above = above.max(newest.superblock.generation);
        let number = above.checked_add(1).ok_or_else(|| {
            let text = "the superblock's generations have used up their numbers: copy the disk to a new one";
            Error::new(ErrorKind::Unsupported, text)
        })?;
        let next = now.changed(draft, number)?;
        let object = next.superblock().to_json();
        let put = put(client, number, &object, fencing).await;
        if !put.map_err(in_doubt)? {
            continue;
        }
        // Its number may have been used and pruned before.
        let after = self::newest(client).await.map_err(in_doubt)?;
        if after.object == object {
            settle(client, after).await.map_err(half_done)?;
            return Ok(next);
        }
    }
    let text = format!(
        "others are changing the superblock of {} all the time; try again",
        client.location()
    );
    Err(Error::new(ErrorKind::Unreachable, text))
}

/// Puts a generation; whether it is the caller's, by this try or by an earlier one whose answer was lost.
async fn put(
    client: &Arc<dyn ObjectClient>,
    number: u32,
    object: &Bytes,
    fencing: bool,
) -> Result<bool> {
    let key = keys::generation(number);
    if fencing {
        if client.put_if_absent(&key, object.clone()).await? == PutOutcome::Created {
            return Ok(true);
        }
    } else if found(client.get(&key).await)?.is_none() {
        client.put(&key, object.clone()).await?;
        return Ok(true);
    }
    Ok(found(client.get(&key).await)?.is_some_and(|there| there == object))
}

/// Copies the superblock that counts to `disk.json`, and deletes what lies below it, until both are so.
async fn settle(client: &Arc<dyn ObjectClient>, mut newest: Newest) -> Result<()> {
    for _ in 0..TRIES {
        let number = newest.superblock.generation;
        if !newest.copied {
            client.put(keys::SUPERBLOCK, newest.object.clone()).await?;
        } else {
            let below = newest.numbers.range(..number).copied();
            let below: Vec<String> = below.map(keys::generation).collect();
            if !below.is_empty() {
                client.delete_many(&below).await?;
            }
            return Ok(());
        }
        // Others may have made a newer one meanwhile, and copied it before this copy landed.
        newest = self::newest(client).await?;
    }
    // Whoever is so busy changing it settles it too.
    Ok(())
}

/// The change was sent, and it is not known whether it has arrived.
fn in_doubt(error: Error) -> Error {
    error.within(
        "it is not known whether the change was made: the disk opens as before it or as after it, and making it again is safe",
    )
}

/// The change is made.
fn half_done(error: Error) -> Error {
    error.within(
        "the change is made, but an older superblock is still in the bucket, perhaps with a key slot that was removed: make the same \
         change again to get rid of it",
    )
}

/// Finds the superblock that counts.
async fn newest(client: &Arc<dyn ObjectClient>) -> Result<Newest> {
    for _ in 0..TRIES {
        let (copy, listed) = futures::join!(
            client.get(keys::SUPERBLOCK),
            list_all(&**client, keys::GENERATIONS_FOLDER)
        );
        let copy = found(copy).map_err(|error| error.within(cannot_read(client)))?;
        let listed = listed.map_err(|error| error.within(cannot_read(client)))?;
        let Some(copy) = copy else {
            return Err(no_disk(client).await);
        };
        let numbers = listed.iter().filter_map(|e| keys::parse_generation(&e.key));
        let numbers: BTreeSet<u32> = numbers.collect();
        let parsed = Superblock::parse(&copy);
        let (id, generation) = match &parsed {
            Ok(superblock) => (Some(superblock.id), superblock.generation),
            Err(error) if error.is_unsupported() => (None, u32::MAX),
            // Every generation but the first is there twice.
            Err(_) => (None, 0),
        };
        let best = match above(client, &numbers, generation, id).await? {
            Above::Gone => continue,
            Above::Found(found) => *found,
            Above::None => Found {
                superblock: parsed
                    .map_err(|error| unusable(client, keys::SUPERBLOCK.to_owned(), error))?,
                object: copy.clone(),
            },
        };
        return Ok(Newest {
            copied: best.object == copy,
            superblock: best.superblock,
            object: best.object,
            numbers,
        });
    }
    let text = format!(
        "the superblock of {} is changed faster than it can be read; try again",
        client.location()
    );
    Err(Error::new(ErrorKind::Unreachable, text))
}

/// What there is above a generation.
enum Above {
    Found(Box<Found>),
    None,
    /// Something that was listed is there no more: a newer one is.
    Gone,
}

/// The highest generation above that of `disk.json`. What a disk that is gone has left under the same prefix does not count: it has another id.
///
/// # Errors
/// `Damaged` where one cannot be used: what it changed must not be undone by going back.
async fn above(
    client: &Arc<dyn ObjectClient>,
    numbers: &BTreeSet<u32>,
    generation: u32,
    id: Option<uuid::Uuid>,
) -> Result<Above> {
    for number in numbers.iter().rev().take_while(|n| **n > generation) {
        let key = keys::generation(*number);
        let Some(object) = found(client.get(&key).await)? else {
            return Ok(Above::Gone);
        };
        let superblock =
            Superblock::parse(&object).map_err(|error| unusable(client, key.clone(), error))?;
        if id.is_some_and(|id| id != superblock.id) {
            continue;
        }
        if superblock.generation != *number {
            return Err(unusable(client, key, SuperblockError::WrongGeneration));
        }
        return Ok(Above::Found(Box::new(Found { superblock, object })));
    }
    Ok(Above::None)
}

fn cannot_read(client: &Arc<dyn ObjectClient>) -> String {
    format!("cannot read the superblock of {}", client.location())
}

/// Why there is no superblock: a store says of a missing object what it says of a missing bucket, or nearly so; a listing tells them apart.
async fn no_disk(client: &Arc<dyn ObjectClient>) -> Error {
    match client.list(keys::LOG_FOLDER, None).await {
        Err(missing) if missing.kind() == ErrorKind::NotFound => {
            missing.within(cannot_read(client))
        }
        _ => {
            let text = format!(
                "no disk at {}: check the URL and the prefix, or make one with `bucketdisk create`",
                client.location()
            );
            Error::new(ErrorKind::NotFound, text)
        }
    }
}

fn unusable(client: &Arc<dyn ObjectClient>, key: String, error: SuperblockError) -> Error {
    let (kind, remedy) = match error.is_unsupported() {
        true => (
            ErrorKind::Unsupported,
            "use the newer bucketdisk that made it".to_owned(),
        ),
        false => (
            ErrorKind::Damaged,
            format!("put back the object {key} as it was"),
        ),
    };
    let text = format!(
        "cannot use the superblock of {} ({remedy})",
        client.location()
    );
    Error::new(kind, text).with_source(error)
}
