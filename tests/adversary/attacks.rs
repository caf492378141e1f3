//! What is done to the objects of a disk, one at a time or several.

use std::collections::BTreeMap;

use bucketdisk::block::Seq;
use bucketdisk::codec::{Codec, ObjectCodec, ObjectKind, Place};
use bucketdisk::store::versioned::keys;
use bucketdisk::store::{BlockStore, ReadError};
use bytes::Bytes;

use super::judge::{Opened, Shown, Standing, Tally, judge, look, names_the_block, standings};
use super::scene::{Made, Scene, Way};
use crate::support::memory::{Bucket, Change};
use crate::support::volume::mount;

const FLIPPED: &str = "flipped";
const CUT: &str = "cut";
const EXTENDED: &str = "extended";
const HEADER: &str = "header changed";
const SWAPPED: &str = "swapped with its like";
const SWAPPED_KIND: &str = "swapped with another kind";
const REPLAYED: &str = "older one under its name";
const DELETED: &str = "deleted";
const OTHER_DISK: &str = "of another disk, same master key";
const OTHER_KEY: &str = "of the same disk id, another key";
const OTHER_SEAL: &str = "sealed where plain belongs, or the reverse";
const FORGED: &str = "made by somebody without the key";
const SPLICED: &str = "of another session under its number";
const TAIL: &str = "the tail of the log deleted";

/// The attacks of which there must be cases.
pub fn names(way: Way, standing: Standing) -> Vec<&'static str> {
    let mut names = vec![
        FLIPPED,
        CUT,
        EXTENDED,
        HEADER,
        SWAPPED_KIND,
        DELETED,
        OTHER_DISK,
        OTHER_SEAL,
    ];
    // there is one checkpoint at a time, and no dead block of the same index that is older than another one
    if standing != Standing::Checkpoint {
        names.push(SWAPPED);
    }
    if matches!(
        standing,
        Standing::LiveBlock | Standing::Record | Standing::Checkpoint
    ) {
        names.push(REPLAYED);
    }
    if standing == Standing::Record {
        names.extend([SPLICED, TAIL]);
    }
    if way == Way::Encrypted {
        names.extend([OTHER_KEY, FORGED]);
    }
    names
}

/// All of them on a disk of that way.
pub async fn all(way: Way, tally: &mut Tally) {
    let scene = Made::new(way).build().await;
    let standings = standings(&scene).await;
    let mut siege = Siege {
        scene,
        standings,
        tally,
    };
    siege.is_sound().await;
    siege.alter().await;
    siege.alter_blocks_byte_by_byte().await;
    siege.swap().await;
    siege.replay().await;
    siege.delete().await;
    siege.bring_from_elsewhere().await;
    siege.splice().await;
}

struct Siege<'a> {
    scene: Scene,
    standings: BTreeMap<String, Standing>,
    tally: &'a mut Tally,
}

impl Siege<'_> {
    /// No false alarm.
    async fn is_sound(&self) {
        for opened in [Opened::ByLog, Opened::ByListing] {
            let shown = look(&self.scene, &self.scene.bucket, opened).await;
            assert_eq!(judge(&self.scene, shown), Shown::Whole, "{opened:?}");
        }
    }

    /// Looks at a bucket both ways, and counts what it shows.
    async fn check(
        &mut self,
        key: &str,
        attack: &'static str,
        bucket: &Bucket,
        older: Option<u32>,
        how: String,
    ) {
        for opened in [Opened::ByLog, Opened::ByListing] {
            let shown = judge(&self.scene, look(&self.scene, bucket, opened).await);
            let sort = (self.standings[key], attack);
            let what = format!("{key}: {how}, {opened:?}");
            self.tally.count(self.scene.way, sort, shown, older, &what);
        }
    }

    async fn replace(
        &mut self,
        key: &str,
        attack: &'static str,
        body: impl Into<Bytes>,
        how: String,
    ) {
        let bucket = self.scene.with(key, body);
        self.check(key, attack, &bucket, None, how).await;
    }

    /// Bytes flipped, cut off, added, and headers that say something else. Blocks are sampled: the next has all of their bytes.
    async fn alter(&mut self) {
        for (key, place, body) in self.scene.objects() {
            let step = if place.kind == ObjectKind::Block {
                body.len() / 24
            } else {
                1
            };
            for at in (0..body.len()).step_by(step.max(1)) {
                let mut altered = body.to_vec();
                altered[at] ^= bit(at);
                self.replace(&key, FLIPPED, altered, format!("byte {at}"))
                    .await;
            }
            let ends = [
                0,
                1,
                4,
                8,
                15,
                16,
                31,
                32,
                33,
                40,
                55,
                56,
                57,
                body.len() / 2,
                body.len() - 2,
                body.len() - 1,
            ];
            for end in ends.into_iter().filter(|end| *end < body.len()) {
                self.replace(&key, CUT, body.slice(..end), format!("{end} bytes"))
                    .await;
            }
            for more in [&b"\0"[..], b"x", &[0; 16], &body[..16], &body] {
                let longer = [&body, more].concat();
                self.replace(&key, EXTENDED, longer, format!("by {}", more.len()))
                    .await;
            }
            for header in headers(&body) {
                let altered = [&header, &body[16..]].concat();
                self.replace(&key, HEADER, altered, format!("{header:02x?}"))
                    .await;
            }
        }
    }

    /// Every byte of some blocks, read through a mount that stands.
    async fn alter_blocks_byte_by_byte(&mut self) {
        let live = self
            .standings
            .iter()
            .filter(|(_, standing)| **standing == Standing::LiveBlock);
        let keys: Vec<String> = live.map(|(key, _)| key.clone()).collect();
        // one that can be packed, and one that cannot
        for key in [&keys[0], &keys[1]] {
            let bucket = self.scene.bucket.fork();
            let mut options = self.scene.options();
            options.read_only = true;
            let store = mount(&bucket.client(), options).await.expect("mounts");
            let (index, version) = keys::parse_block(key).expect("is a block");
            let body = bucket.body(key).expect("is there");
            for at in 0..body.len() {
                let mut altered = body.to_vec();
                altered[at] ^= bit(at);
                bucket.apply(Change::Put(key.clone(), altered.into()));
                let shown = match store.read(index, version).await {
                    Err(ReadError::Failed(error)) if names_the_block(&error, index.0) => {
                        Shown::Partly
                    }
                    other => Shown::Wrong(format!("{other:?}")),
                };
                let (sort, what) = ((Standing::LiveBlock, FLIPPED), format!("{key}: byte {at}"));
                self.tally.count(self.scene.way, sort, shown, None, &what);
            }
        }
    }

    /// Every object with every other.
    async fn swap(&mut self) {
        let objects = self.scene.objects();
        for (n, (key, place, body)) in objects.iter().enumerate() {
            for (other, other_place, other_body) in &objects[n + 1..] {
                let bucket = self.scene.with(key, other_body.clone());
                bucket.apply(Change::Put(other.clone(), body.clone()));
                let alike = place.kind == other_place.kind;
                let attack = if alike { SWAPPED } else { SWAPPED_KIND };
                for key in [key, other] {
                    self.check(
                        key,
                        attack,
                        &bucket,
                        None,
                        format!("{place:?} and {other_place:?}"),
                    )
                    .await;
                }
            }
        }
    }

    /// What was there once in place of what is there now: under the newer name, and where it was.
    async fn replay(&mut self) {
        let mut ever: BTreeMap<String, Bytes> = BTreeMap::new();
        for change in self.scene.bucket.history() {
            if let Change::Put(key, body) = change {
                ever.insert(key, body);
            }
        }
        for (key, place, _) in self.scene.objects() {
            for (old, body) in &ever {
                let Some(old_place) = self.scene.place_of(old) else {
                    continue;
                };
                let is_older = old_place.kind == place.kind
                    && old_place.index == place.index
                    && old_place.seq < place.seq;
                if is_older {
                    self.replace(&key, REPLAYED, body.clone(), format!("of {old}"))
                        .await;
                }
            }
        }
        let key = self.checkpoint();
        // Of a checkpoint there is but one: its older self is that of a bucket of another time.
        let earlier = self.scene.bucket.cut(self.scene.changes_released);
        let record = earlier
            .body(&keys::record(Seq(self.scene.released)))
            .expect("is there");
        self.replace(&key, REPLAYED, record, "by a record".to_owned())
            .await;
    }

    fn checkpoint(&self) -> String {
        let mut all = self.standings.iter();
        let found = all.find(|(_, standing)| **standing == Standing::Checkpoint);
        found.expect("there is one").0.clone()
    }

    /// Each object alone, and the log from every record on.
    async fn delete(&mut self) {
        let head = keys::record(Seq(self.scene.head));
        for (key, _, _) in self.scene.objects() {
            let bucket = self.scene.without([key.as_str()]);
            let older = (key == head).then(|| self.scene.head - 1);
            self.check(&key, DELETED, &bucket, older, "deleted".to_owned())
                .await;
        }
        for first in self.scene.released + 1..=self.scene.head {
            let tail: Vec<String> = (first..=self.scene.head)
                .map(|n| keys::record(Seq(n)))
                .collect();
            let bucket = self.scene.without(tail.iter().map(String::as_str));
            let older = Some(self.older_than(first));
            self.check(
                &tail[0],
                TAIL,
                &bucket,
                older,
                "and all after it".to_owned(),
            )
            .await;
        }
    }

    /// The newest record with the content that the disk had before a record.
    fn older_than(&self, record: u32) -> u32 {
        let states = &self.scene.states;
        let (_, then) = states.range(..record).next_back().expect("the first is 0");
        let same = states.iter().rev().find(|(_, state)| *state == then);
        *same.expect("is one of them").0
    }

    /// Objects that fit in all but one thing.
    async fn bring_from_elsewhere(&mut self) {
        let way = self.scene.way;
        let other_disk = Made::new(way).build().await;
        let other_key = Made {
            master: 0x77,
            superblock: self.scene.bucket.body(keys::SUPERBLOCK),
            ..Made::new(way)
        };
        let other_key = other_key.build().await;
        let sealing = Way::Encrypted.codec(self.scene.disk, 0x5e);
        for (key, place, body) in self.scene.objects() {
            if let Some(there) = other_disk.bucket.body(&key) {
                self.replace(&key, OTHER_DISK, there, String::new()).await;
            }
            if way == Way::Encrypted
                && let Some(there) = other_key.bucket.body(&key)
            {
                self.replace(&key, OTHER_KEY, there, String::new()).await;
            }
            let content = self
                .scene
                .codec
                .decode(&place, body.clone())
                .expect("is sound");
            let other_seal = match way {
                Way::Encrypted => ObjectCodec::PLAIN.encode(&place, &content),
                _ => sealing.encode(&place, &content),
            };
            self.replace(&key, OTHER_SEAL, other_seal, String::new())
                .await;
            if way == Way::Encrypted {
                for (how, forged) in forgeries(&place, &body, &content) {
                    self.replace(&key, FORGED, forged, how.to_owned()).await;
                }
            }
        }
    }

    /// Records of a session that has gone on elsewhere from where the first one here has ended: each alone, and all from each on.
    async fn splice(&mut self) {
        let fork = self.scene.fork(0x40).await;
        for first in self.scene.released + 1..=self.scene.head {
            let key = keys::record(Seq(first));
            let theirs = |n: u32| {
                let key = keys::record(Seq(n));
                fork.bucket.body(&key).map(|body| (key, body))
            };
            let (_, body) = theirs(first).expect("has as many records");
            self.replace(&key, SPLICED, body, "alone".to_owned()).await;
            if first == self.scene.released + 1 {
                continue;
            }
            let bucket = self.scene.bucket.fork();
            for (key, body) in (first..=self.scene.head).filter_map(theirs) {
                bucket.apply(Change::Put(key, body));
            }
            self.check(&key, SPLICED, &bucket, None, "and all after it".to_owned())
                .await;
        }
    }
}

/// A bit that depends on the place.
fn bit(at: usize) -> u8 {
    1 << (at * 5 % 8)
}

/// First 16 bytes of an object, with one field changed: format version, kind, codec, flags, length.
fn headers(body: &[u8]) -> Vec<[u8; 16]> {
    let header: [u8; 16] = body[..16].try_into().expect("has a header");
    let length = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
    let fields = (4..8).flat_map(|at| [0, 1, 2, 3, 4, 8, 128, 255].map(|value| (at, value)));
    let mut headers: Vec<[u8; 16]> = fields
        .map(|(at, value)| {
            let mut altered = header;
            altered[at] = value;
            altered
        })
        .collect();
    let lengths = [
        0,
        1,
        length - 1,
        length + 1,
        length * 2,
        64 << 20,
        1 << 40,
        u64::MAX,
    ];
    headers.extend(lengths.map(|length| {
        let mut altered = header;
        altered[8..].copy_from_slice(&length.to_le_bytes());
        altered
    }));
    headers.retain(|altered| *altered != header);
    headers
}

/// Objects whose checksums fit, as anybody can make them.
fn forgeries(place: &Place, body: &Bytes, content: &Bytes) -> Vec<(&'static str, Bytes)> {
    let other: Vec<u8> = content.iter().rev().copied().collect();
    let not_sealed = ObjectCodec::PLAIN.encode(place, &other);
    let mut said_to_be_sealed = not_sealed.to_vec();
    said_to_be_sealed[7] = 1;
    let own_key = Way::Encrypted.codec(place.disk, 0x11).encode(place, &other);
    let mut own_tag = body.to_vec();
    own_tag[16..56].copy_from_slice(&own_key[16..56]);
    let mut no_tag = body.to_vec();
    no_tag[40..56].fill(0);
    vec![
        ("not sealed, the checksum fits", not_sealed),
        ("not sealed, but said to be", said_to_be_sealed.into()),
        (
            "sealed content as plain, the checksum fits",
            ObjectCodec::PLAIN.encode(place, &body[56..]),
        ),
        ("under a key of his own", own_key),
        ("nonce and tag of another object", own_tag.into()),
        ("tag of zeros", no_tag.into()),
    ]
}
