//! The disk through its front door, over the native layout: a model test, and what flush, limits and failures promise.

use std::sync::Arc;

use bucketdisk::disk::{Disk, Now};
use bytes::Bytes;
use proptest::prelude::*;
use support::memory::Bucket;
use support::volume::{content, create, in_runtime, open, options};

mod support;

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 24;
const SIZE: u64 = BLOCK * BLOCKS;

#[derive(Debug, Clone)]
enum Op {
    Write {
        offset: u64,
        len: u64,
        fill: u8,
    },
    Zero {
        offset: u64,
        len: u64,
    },
    Read {
        offset: u64,
        len: u64,
    },
    Flush,
    /// Ends the mount well, and mounts again.
    Reopen {
        list_blocks: bool,
    },
    /// Ends it as a crash would, and mounts again: what was not flushed may be gone, all of it at one instant.
    Crash,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    // Aligned and unaligned, within a block and over many.
    prop_oneof![
        (0..BLOCKS, 1..=6u64)
            .prop_map(|(block, count)| (block * BLOCK, count.min(BLOCKS - block) * BLOCK)),
        (0..SIZE, 1..3 * BLOCK).prop_map(|(offset, len)| (offset, len.min(SIZE - offset))),
        (0..SIZE / 512, 1..20u64)
            .prop_map(|(sector, count)| (sector * 512, (count * 512).min(SIZE - sector * 512))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (range(), prop_oneof![Just(0u8), 1u8..]).prop_map(|((offset, len), fill)| Op::Write { offset, len, fill }),
        4 => range().prop_map(|(offset, len)| Op::Zero { offset, len }),
        6 => range().prop_map(|(offset, len)| Op::Read { offset, len }),
        3 => Just(Op::Flush),
        1 => any::<bool>().prop_map(|list_blocks| Op::Reopen { list_blocks }),
        1 => Just(Op::Crash),
    ]
}

/// The disk under test, and what it must hold.
struct Model {
    bucket: Bucket,
    disk: Arc<Disk>,
    now: Vec<u8>,
    /// The states since the last flush, oldest first: a crash may leave any of them, but no mix.
    since_flush: Vec<Vec<u8>>,
}

impl Model {
    async fn new() -> Self {
        let bucket = Bucket::new();
        let client = bucket.client();
        create(&client, SIZE, BLOCK).await;
        let disk = open(&client, options(), 8 * BLOCK).await.expect("mounts");
        let zeros = vec![0; SIZE as usize];
        Model {
            bucket,
            disk,
            now: zeros.clone(),
            since_flush: vec![zeros],
        }
    }

    async fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { offset, len, fill } => {
                let data: Vec<u8> = (0..len)
                    .map(|at| {
                        if fill == 0 {
                            0
                        } else {
                            fill ^ (at / 512) as u8 | 1
                        }
                    })
                    .collect();
                self.now[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                if self.disk.write_now(offset, &data).expect("takes the write") == Now::Wait {
                    self.disk
                        .write(offset, Bytes::from(data))
                        .await
                        .expect("takes the write");
                }
                self.since_flush.push(self.now.clone());
            }
            Op::Zero { offset, len } => {
                self.now[offset as usize..(offset + len) as usize].fill(0);
                self.disk
                    .zero(offset, len)
                    .await
                    .expect("takes the discard");
                self.since_flush.push(self.now.clone());
            }
            Op::Read { offset, len } => {
                let mut buf = vec![0xEE; len as usize];
                if self.disk.read_now(offset, &mut buf).expect("reads") == Now::Wait {
                    self.disk.read(offset, &mut buf).await.expect("reads");
                }
                assert!(
                    buf == self.now[offset as usize..(offset + len) as usize],
                    "read {offset}+{len} differs"
                );
            }
            Op::Flush => {
                self.disk.flush().await.expect("flushes");
                assert_eq!(self.disk.flush_now().expect("is clean"), Now::Done);
                self.since_flush = vec![self.now.clone()];
            }
            Op::Reopen { list_blocks } => {
                self.disk.close().await.expect("closes");
                let mut again = options();
                again.list_blocks = list_blocks;
                self.disk = open(&self.bucket.client(), again, 8 * BLOCK)
                    .await
                    .expect("mounts again");
                self.since_flush = vec![self.now.clone()];
            }
            Op::Crash => {
                let mut again = options();
                again.take_over = true;
                let next = open(&self.bucket.client(), again, 8 * BLOCK)
                    .await
                    .expect("takes over");
                // Only now does the first one go: until here it ran beside the second, and was fenced.
                self.disk = next;
                let after = content(&self.disk).await;
                assert!(
                    self.since_flush.contains(&after),
                    "the crash left a state that never was"
                );
                self.now.clone_from(&after);
                self.since_flush = vec![after];
            }
        }
        self.check_holes();
    }

    /// Data and holes as the disk tells them: a hole must read as zeros, and where all is committed a stored block must not.
    fn check_holes(&self) {
        let clean = self.disk.flush_now().expect("not fenced") == Now::Done;
        let mut at = 0;
        let mut allocated = 0;
        while at < SIZE {
            let data = self.disk.seek_data(at).unwrap_or(SIZE);
            assert!(
                self.now[at as usize..data as usize].iter().all(|b| *b == 0),
                "a hole at {at} to {data} has data"
            );
            let hole = if data < SIZE {
                self.disk.seek_hole(data)
            } else {
                SIZE
            };
            assert!(data == SIZE || hole > data);
            allocated += hole - data;
            if clean {
                for block in (data..hole).step_by(BLOCK as usize) {
                    let content = &self.now[block as usize..(block + BLOCK) as usize];
                    assert!(
                        content.iter().any(|b| *b != 0),
                        "a block of zeros at {block} is stored"
                    );
                }
            }
            at = hole;
        }
        assert_eq!(self.disk.allocated_bytes(), allocated);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn a_disk_behaves_as_an_array_of_bytes(ops in prop::collection::vec(op(), 1..60)) {
        in_runtime(async {
            let mut model = Model::new().await;
            for op in &ops {
                model.step(op).await;
            }
            assert!(content(&model.disk).await == model.now);
            model.disk.close().await.expect("closes");
            let reader = { let mut o = options(); o.read_only = true; o };
            let disk = open(&model.bucket.client(), reader, 8 * BLOCK).await.expect("mounts read-only");
            assert!(content(&disk).await == model.now, "the bucket alone holds the disk");
        });
    }
}

/// A cold sequential read fetches each block once, however much larger than the cache it is: what is read ahead is still there
/// when it is asked for.
#[tokio::test(start_paused = true)]
async fn a_sequential_read_fetches_each_block_once() {
    const MANY: u64 = 400;
    let bucket = Bucket::new();
    let client = bucket.client();
    create(&client, MANY * BLOCK, BLOCK).await;
    let disk = open(&client, options(), 64 * BLOCK).await.expect("mounts");
    for block in 0..MANY {
        disk.write(block * BLOCK, Bytes::from(vec![7; BLOCK as usize]))
            .await
            .expect("writes");
    }
    disk.close().await.expect("closes");
    let reader = {
        let mut options = options();
        options.read_only = true;
        options
    };
    let disk = open(&client, reader, 64 * BLOCK).await.expect("mounts");
    let before = bucket.requests().gets;
    let mut buf = vec![0; 1024];
    for part in 0..MANY * BLOCK / 1024 {
        if disk.read_now(part * 1024, &mut buf).expect("reads") == Now::Wait {
            disk.read(part * 1024, &mut buf).await.expect("reads");
        }
        assert_eq!(buf, [7; 1024]);
        tokio::task::yield_now().await;
    }
    let gets = bucket.requests().gets - before;
    assert!(
        (MANY..=MANY + MANY / 50).contains(&gets),
        "{gets} gets for {MANY} blocks"
    );
}
