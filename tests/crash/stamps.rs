//! Stamps: what a sector of test data says of itself, so that every sector found after a crash tells what it is.

/// A stamp fills a sector.
pub const SECTOR: usize = 512;
const WORD: usize = 16;

/// What a run stamps with; data of another run, or of another use of the same bytes, is garbage to it.
#[derive(Debug, Clone, Copy)]
pub struct Stamps {
    magic: u32,
}

/// What a sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sector {
    /// It was never written, or is a hole.
    Zeros,
    /// A write of this generation to this file, here.
    Stamped { file: u32, generation: u32 },
    /// Something that was never written here.
    Garbage,
}

impl Stamps {
    pub fn new(seed: u64) -> Stamps {
        Stamps {
            magic: ((seed as u32) << 1) | 1,
        }
    }

    /// The content of sectors of a file from a place on.
    pub fn fill(self, file: u32, generation: u32, sectors: std::ops::Range<usize>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(sectors.len() * SECTOR);
        for sector in sectors {
            let word = self.word(file, generation, sector);
            for _ in 0..SECTOR / WORD {
                bytes.extend(word);
            }
        }
        bytes
    }

    /// What each sector says that was found at its place of a file.
    pub fn read(self, bytes: &[u8]) -> Vec<Sector> {
        let sectors = bytes.chunks(SECTOR).enumerate();
        sectors.map(|(at, bytes)| self.sector(at, bytes)).collect()
    }

    fn sector(self, at: usize, bytes: &[u8]) -> Sector {
        if bytes.iter().all(|byte| *byte == 0) {
            return Sector::Zeros;
        }
        let number = |at: usize| {
            let four = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(four))
        };
        let (Some(file), Some(generation)) = (number(4), number(8)) else {
            return Sector::Garbage;
        };
        let word = self.word(file, generation, at);
        match bytes.len() == SECTOR && bytes.chunks(WORD).all(|chunk| chunk == word) {
            true => Sector::Stamped { file, generation },
            false => Sector::Garbage,
        }
    }

    fn word(self, file: u32, generation: u32, sector: usize) -> [u8; WORD] {
        let mut word = [0; WORD];
        let numbers = [self.magic, file, generation, sector as u32];
        for (part, number) in word.chunks_mut(4).zip(numbers) {
            part.copy_from_slice(&number.to_le_bytes());
        }
        word
    }
}

/// A file's number, where its sectors tell it, and their generations.
pub fn file_of(sectors: &[Sector]) -> Result<(Option<u32>, Vec<u32>), String> {
    let mut number = None;
    let mut generations = Vec::with_capacity(sectors.len());
    for (at, sector) in sectors.iter().enumerate() {
        generations.push(match sector {
            Sector::Zeros => 0,
            Sector::Garbage => return Err(format!("sector {at} is garbage")),
            Sector::Stamped { file, generation } => {
                if number.is_some_and(|number| number != *file) {
                    return Err(format!(
                        "sector {at} is of file {file} among those of {number:?}"
                    ));
                }
                number = Some(*file);
                *generation
            }
        });
    }
    Ok((number, generations))
}
