//! How fast blocks are encoded and decoded on one core, beside the primitives that this takes, for `scripts/bench codec`.
//!
//! `cargo run --release --example codecs FILE [ROUNDS]` cuts FILE into blocks of 256 KiB and prints, for each way to write them, MB/s and
//! the part of the primitives' own speed. Each is measured right beside its primitives: compressor, checksum or cipher, and one copy
//! where plain content goes into an object, or sealed content out of one, all with contexts and buffers that are used again.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bucketdisk::block::Seq;
use bucketdisk::codec::compress::{Compression, Packing};
use bucketdisk::codec::keys::{DiskKeys, MasterKey};
use bucketdisk::codec::object::{HEADER_BYTES, SEALED_HEADER_BYTES};
use bucketdisk::codec::{Codec, ObjectCodec, ObjectKind, Place};
use bucketdisk::secret::{Key, guard_process};
use bytes::Bytes;
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use flate2::{Compress, Decompress, FlushCompress, FlushDecompress};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_128;
use zstd::bulk::{Compressor, Decompressor};

const USAGE: &str = "usage: codecs FILE [ROUNDS]";
const BLOCK_BYTES: usize = 256 << 10;
const COMPRESSIONS: [&str; 6] = ["none", "lz4", "zstd:1", "zstd:3", "zlib:1", "zlib:6"];

/// The libraries by themselves.
struct Primitives {
    compression: Compression,
    zstd: (Compressor<'static>, Decompressor<'static>),
    zlib: (Compress, Decompress),
    lz4: CompressTable,
    cipher: Option<XChaCha20Poly1305>,
    buffer: Vec<u8>,
    other: Vec<u8>,
}

impl Primitives {
    fn new(compression: Compression, sealed: bool) -> Primitives {
        let (mut zstd_level, mut zlib_level) = (1, 1);
        match compression {
            Compression::Zstd { level } => zstd_level = level,
            Compression::Zlib { level } => zlib_level = level,
            _ => {}
        }
        Primitives {
            compression,
            zstd: (
                Compressor::new(zstd_level).expect("a level"),
                Decompressor::new().expect("a context"),
            ),
            zlib: (
                Compress::new(flate2::Compression::new(zlib_level), true),
                Decompress::new(true),
            ),
            lz4: CompressTable::large(),
            cipher: sealed.then(|| XChaCha20Poly1305::new(&[7; 32].into())),
            buffer: vec![0; get_maximum_output_size(BLOCK_BYTES)],
            other: vec![0; BLOCK_BYTES],
        }
    }

    /// What encoding a block takes.
    fn encode(&mut self, plain: &[u8], packing: Packing) {
        let packed = match (packing, self.compression) {
            (Packing::Zstd, _) => self
                .zstd
                .0
                .compress_to_buffer(plain, &mut self.buffer)
                .expect("fits"),
            (Packing::Lz4, _) => {
                compress_into_with_table(plain, &mut self.buffer, &mut self.lz4).expect("fits")
            }
            (Packing::Zlib, _) => {
                let zlib = &mut self.zlib.0;
                zlib.reset();
                zlib.compress(plain, &mut self.buffer, FlushCompress::Finish)
                    .expect("fits");
                usize::try_from(zlib.total_out()).expect("small")
            }
            (Packing::Plain, _) => {
                self.buffer[..plain.len()].copy_from_slice(plain);
                plain.len()
            }
        };
        let content = &mut self.buffer[..packed];
        match &self.cipher {
            None => {
                black_box(xxh3_128(content));
            }
            Some(cipher) => {
                let tag = cipher.encrypt_inout_detached(&XNonce::default(), b"", content.into());
                black_box(tag.expect("short"));
            }
        }
    }

    /// What decoding one takes.
    fn decode(&mut self, content: &[u8], packing: Packing) {
        match &self.cipher {
            None => {
                black_box(xxh3_128(content));
            }
            Some(cipher) => {
                self.buffer[..content.len()].copy_from_slice(content);
                let content = &mut self.buffer[..content.len()];
                // Whether the tag fits does not change what it takes to make it; decrypting is encrypting once more.
                let tag = cipher.encrypt_inout_detached(&XNonce::default(), b"", content.into());
                black_box(tag.expect("short"));
            }
        }
        let plain = &mut self.other[..];
        match packing {
            Packing::Plain => {}
            Packing::Zstd => {
                self.zstd
                    .1
                    .decompress_to_buffer(content, plain)
                    .expect("whole");
            }
            Packing::Lz4 => {
                decompress_into(content, plain).expect("whole");
            }
            Packing::Zlib => {
                let zlib = &mut self.zlib.1;
                zlib.reset(true);
                zlib.decompress(content, plain, FlushDecompress::Finish)
                    .expect("whole");
            }
        }
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let file = std::fs::read(arguments.next().expect(USAGE)).expect(USAGE);
    let rounds: u32 = arguments
        .next()
        .map_or(5, |rounds| rounds.parse().expect(USAGE));
    let (blocks, _) = file.as_chunks::<BLOCK_BYTES>();
    assert!(!blocks.is_empty(), "the file is shorter than a block");
    println!(
        "{:24}{:>8}{:>14}{:>14}{:>14}{:>14}",
        "", "ratio", "encode MB/s", "of primitives", "decode MB/s", "of primitives"
    );
    for sealed in [false, true] {
        if sealed {
            // As a mount of an encrypted disk does.
            guard_process();
        }
        for name in COMPRESSIONS {
            measure(blocks, name, sealed, rounds);
        }
    }
}

fn measure(blocks: &[[u8; BLOCK_BYTES]], name: &str, sealed: bool, rounds: u32) {
    let compression: Compression = name.parse().expect("a compression");
    let keys = DiskKeys::derive(&MasterKey(Key::fresh()), Uuid::nil());
    let codec = ObjectCodec::new(compression, sealed.then(|| Arc::new(keys)));
    let header = if sealed {
        SEALED_HEADER_BYTES
    } else {
        HEADER_BYTES
    };
    let mut primitives = Primitives::new(compression, sealed);
    let mut took = [Duration::ZERO; 4];
    let mut stored = 0;
    for round in 0..=rounds {
        // The first one only warms up.
        if round == 1 {
            (took, stored) = ([Duration::ZERO; 4], 0);
        }
        for (index, plain) in (0..).zip(blocks) {
            let place = Place {
                disk: Uuid::nil(),
                kind: ObjectKind::Block,
                index,
                seq: Seq(1),
            };
            // In the processor's cache for both: what is written has just been.
            let plain = &black_box(*plain);
            let mut object = Bytes::new();
            took[0] += timed(|| object = codec.encode(&place, plain));
            stored += object.len();
            let packing = Packing::from_byte(object[6]).expect("known");
            took[1] += timed(|| primitives.encode(plain, packing));
            // To the libraries, what is packed is what it was before it was sealed.
            let packed = match sealed && packing != Packing::Plain {
                true => ObjectCodec::new(compression, None)
                    .encode(&place, plain)
                    .slice(HEADER_BYTES..),
                false => object.slice(header..),
            };
            took[2] += timed(|| {
                black_box(codec.decode(&place, object).expect("decodes"));
            });
            took[3] += timed(|| primitives.decode(&packed, packing));
        }
    }
    let bytes = (blocks.len() * BLOCK_BYTES) as f64 * f64::from(rounds);
    let [encode, encode_alone, decode, decode_alone] = took.map(|took| took.as_secs_f64());
    println!(
        "{:24}{:>8.2}{:>14.0}{:>13.0} %{:>14.0}{:>13.0} %",
        format!("{name}{}", if sealed { ", sealed" } else { "" }),
        stored as f64 / bytes,
        bytes / 1e6 / encode,
        100.0 * encode_alone / encode,
        bytes / 1e6 / decode,
        100.0 * decode_alone / decode,
    );
}
