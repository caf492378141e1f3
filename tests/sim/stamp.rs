//! Stamps: every sector that is written carries its own number and that of the write, over and over. So a disk's content says of each
//! sector which write it is of, a sector in the wrong place or mixed of two writes is seen, and a state of the disk is a short list.

use std::sync::Arc;

pub const SECTOR: usize = 512;

/// Of each sector the number of the write that it is of; 0 for zeros.
pub type Stamps = Arc<[u32]>;

/// The content of a sector as a write leaves it.
pub fn sector(number: usize, write: u32) -> [u8; SECTOR] {
    let mut content = [0; SECTOR];
    if write > 0 {
        let stamp = (u64::from(write) << 32) | number as u64;
        for (place, word) in content.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&stamp.rotate_left(place as u32).to_le_bytes());
        }
    }
    content
}

/// The content of sectors from `first`, all of one write.
pub fn content(first: usize, count: usize, write: u32) -> Vec<u8> {
    (first..first + count)
        .flat_map(|number| sector(number, write))
        .collect()
}

/// The stamps of whole sectors from `first`.
///
/// # Errors
/// What is in a sector that no write has put there.
pub fn stamps(first: usize, content: &[u8]) -> Result<Stamps, String> {
    let sectors = content.chunks_exact(SECTOR).enumerate();
    let stamps = sectors.map(|(place, found)| {
        let number = first + place;
        let stamp = u64::from_le_bytes(found[..8].try_into().expect("eight bytes"));
        let write = (stamp >> 32) as u32;
        match *found == sector(number, write) {
            true => Ok(write),
            false => Err(format!(
                "sector {number} begins with {:02x?}, which no write has put there",
                &found[..16]
            )),
        }
    });
    stamps.collect()
}

/// Where two states differ, for a message: the first few sectors with both stamps.
pub fn difference(found: &[u32], expected: &[u32]) -> String {
    let differ = found.iter().zip(expected).enumerate();
    let told: Vec<String> = differ
        .filter(|(_, (found, expected))| found != expected)
        .map(|(sector, (found, expected))| format!("{sector}: {found} for {expected}"))
        .take(8)
        .collect();
    told.join(", ")
}
