//! The early estimate: whether a block may shrink at all, from a small part of it.
//!
//! What is compressed or encrypted already is a large part of many disks, and a compressor finds out only by trying. All the
//! compressors here shorten two things, so both are looked for: bytes that are not equally frequent, and stretches that occurred
//! before. The block is looked at through short windows, one at a scattered place of every 4 KiB (512 bytes, in a small block):
//!
//! - Frequencies are counted for each 64 KiB by themselves, as content changes within a block. The sum of the squared counts
//!   tells them from equal ones without a logarithm: it can only overstate what a compressor would gain, never understate it.
//! - For repetitions, one word of every 64 bytes of the block is remembered; a copy of 68 bytes or more that covers a window, at
//!   whatever distance, has one of these words in it, and then it is found.
//!
//! One sign is enough for a try. A wrong "yes" costs the time of a try; a wrong "no" costs space for as long as the block lives,
//! so what is in doubt is tried.

use std::cell::RefCell;

/// Up to here a try costs so little that nothing is estimated.
const TRIED_ALWAYS_BYTES: usize = 16 << 10;
/// One window is looked at in each stretch of this length; in less where there would be too few of them.
const STRETCH_BYTES: usize = 4 << 10;
const LEAST_STRETCH_BYTES: usize = 512;
const ENOUGH_WINDOWS: usize = 64;
const WINDOW_BYTES: usize = 64;
/// Bytes whose frequencies are counted together.
const REGION_BYTES: usize = 64 << 10;
/// One word is remembered of each cell, its first.
const CELL_BYTES: usize = 64;
const WORD_BYTES: usize = 4;
/// One repeating window among so many makes a try worth its time.
const WINDOWS_PER_REPEAT: usize = 32;

/// Remembered words by their hash: the number of their cell, from 1; 0 is none.
struct Words {
    cells: Vec<u32>,
    shift: u32,
}

thread_local! {
    static WORDS: RefCell<Words> = const { RefCell::new(Words { cells: Vec::new(), shift: 0 }) };
}

/// Whether a compressor may make `plain` shorter by an amount that counts.
pub(super) fn may_shrink(plain: &[u8]) -> bool {
    let in_reach = u32::try_from(plain.len()).is_ok();
    if plain.len() <= TRIED_ALWAYS_BYTES || !in_reach {
        return true;
    }
    WORDS.with_borrow_mut(|words| {
        words.clear(plain.len() / CELL_BYTES);
        shows_a_sign(plain, words)
    })
}

fn shows_a_sign(plain: &[u8], words: &mut Words) -> bool {
    let stretch_bytes = (plain.len() / ENOUGH_WINDOWS).clamp(LEAST_STRETCH_BYTES, STRETCH_BYTES);
    let mut repeats_left = (plain.len() / stretch_bytes / WINDOWS_PER_REPEAT).max(1);
    let mut cells = (1u32..).zip(plain.chunks_exact(CELL_BYTES));
    let mut remembered = 0;
    let mut scatter = 0u32;
    let mut start_of_region = 0;
    for region in plain.chunks(REGION_BYTES) {
        let mut counts = [0u32; 256];
        for start_of_stretch in (0..region.len()).step_by(stretch_bytes) {
            // an even scatter that fits no period of the content
            scatter = scatter.wrapping_add(0x9e37_79b9);
            let within = (scatter >> 16) as usize % (stretch_bytes - WINDOW_BYTES - WORD_BYTES);
            let start = start_of_region + start_of_stretch + within;
            let Some(window) = plain.get(start..start + WINDOW_BYTES + WORD_BYTES - 1) else {
                break;
            };
            while remembered + CELL_BYTES <= start {
                if let Some((number, cell)) = cells.next() {
                    words.remember(number, cell);
                }
                remembered += CELL_BYTES;
            }
            if window
                .windows(WORD_BYTES)
                .any(|word| words.knows(word, plain))
            {
                repeats_left -= 1;
                if repeats_left == 0 {
                    return true;
                }
            }
            for &byte in &window[..WINDOW_BYTES] {
                counts[usize::from(byte)] += 1;
            }
        }
        if is_uneven(&counts) {
            return true;
        }
        start_of_region += region.len();
    }
    false
}

/// Whether bytes are clearly not equally frequent.
///
/// For n equally frequent bytes the sum of the squared counts is about n + n²/256. A quarter more on the second term is far
/// outside of chance for the 1024 bytes and more that are counted of a full region, and stands for a collision entropy of 7.68 bits: a code by frequency
/// alone that saved a tenth would need 7.2, or 1.7 times the term.
fn is_uneven(counts: &[u32; 256]) -> bool {
    let total: u64 = counts.iter().map(|&count| u64::from(count)).sum();
    let squares: u64 = counts.iter().map(|&count| u64::from(count).pow(2)).sum();
    squares * 1024 > total * 1024 + total * total * 5
}

impl Words {
    /// Forgets everything, and makes room for so many words.
    fn clear(&mut self, words: usize) {
        let slots = (words * 2).next_power_of_two();
        self.cells.clear();
        self.cells.resize(slots, 0);
        self.shift = u32::BITS - slots.ilog2();
    }

    fn slot(&self, word: u32) -> usize {
        (word.wrapping_mul(0x9e37_79b1) >> self.shift) as usize
    }

    fn remember(&mut self, number: u32, cell: &[u8]) {
        if let Some(&word) = cell.first_chunk() {
            let slot = self.slot(u32::from_le_bytes(word));
            self.cells[slot] = number;
        }
    }

    /// Whether the word is the first of a cell that was remembered. (Of two in one slot, only the later one is.)
    fn knows(&self, word: &[u8], plain: &[u8]) -> bool {
        let Some(&first) = word.first_chunk() else {
            return false;
        };
        match self.cells[self.slot(u32::from_le_bytes(first))] {
            0 => false,
            number => {
                let start = (number as usize - 1) * CELL_BYTES;
                plain.get(start..start + WORD_BYTES) == Some(word)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::may_shrink;
    use crate::codec::compress::Compression;
    use crate::codec::compress::tests::{BLOCK, content, digits, packed, random, text};

    #[test]
    fn the_estimate_gives_up_on_what_is_random_or_packed_already() {
        for bytes in [20_000, 32 << 10, 64 << 10, BLOCK, (1 << 20) + 1, 4 << 20] {
            for seed in 0..20 {
                assert!(
                    !may_shrink(&random(seed, bytes)),
                    "{bytes} bytes, seed {seed}"
                );
            }
        }
        let (_, zstd) = packed(Compression::Zstd { level: 9 }, &text(1, 3_000_000));
        let (_, zlib) = packed(Compression::Zlib { level: 9 }, &text(2, 3_000_000));
        assert!(zstd.len() > BLOCK && zlib.len() > BLOCK);
        assert!(!may_shrink(&zstd[..BLOCK]));
        assert!(!may_shrink(&zlib[..BLOCK]));
    }

    #[test]
    fn the_estimate_tries_what_shrinks_in_a_part_only() {
        // what a tenth and more of the block is, between random bytes, at every place
        let part = BLOCK / 6;
        let kinds: [(&str, Vec<u8>); 4] = [
            ("zeros", vec![0; part]),
            ("text", text(1, part)),
            ("digits", digits(2, 2 * part)),
            ("a copy", random(3, BLOCK)[..part].to_vec()),
        ];
        for (kind, part) in kinds {
            for start in (0..=BLOCK - part.len()).step_by(4099) {
                let mut plain = random(3, BLOCK);
                if kind == "a copy" && start < part.len() {
                    continue;
                }
                plain[start..start + part.len()].copy_from_slice(&part);
                assert!(may_shrink(&plain), "{kind} at {start}");
            }
        }
    }

    #[test]
    fn the_estimate_tries_what_shrinks_everywhere_a_little() {
        let mut interleaved = Vec::new();
        let (noise, lines) = (random(1, BLOCK), text(2, BLOCK));
        for (noise, lines) in noise.chunks(4096).zip(lines.chunks(4096)) {
            interleaved.extend_from_slice(noise);
            interleaved.extend_from_slice(lines);
        }
        let hexadecimal: Vec<u8> = random(3, BLOCK)
            .iter()
            .map(|byte| b"0123456789abcdef"[usize::from(byte % 16)])
            .collect();
        // like base64: 64 values, nothing repeats
        let six_bits: Vec<u8> = random(4, BLOCK).iter().map(|byte| byte % 64).collect();
        let half = random(5, BLOCK / 2);
        // like a table of inodes: a few small numbers in every 256 bytes
        let mut records = vec![0; BLOCK];
        for (record, noise) in records.chunks_mut(256).zip(noise.chunks(256)) {
            record[..24].copy_from_slice(&noise[..24]);
        }
        for (kind, plain) in [
            ("4 KiB of text after 4 KiB of noise", interleaved),
            ("hexadecimal", hexadecimal),
            ("six bits of every byte", six_bits),
            ("two equal halves", half.repeat(2)),
            ("records", records),
            ("text", text(6, BLOCK)),
            ("zeros", vec![0; BLOCK]),
        ] {
            assert!(may_shrink(&plain), "{kind}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_that_shrinks_by_a_tenth_is_given_up(plain in content()) {
        if !may_shrink(&plain) {
            let zstd = zstd::bulk::compress(&plain, 9).expect("compresses");
            prop_assert!(zstd.len() > plain.len() - plain.len() / 10, "{} of {}", zstd.len(), plain.len());
        }
    }
    }
}
