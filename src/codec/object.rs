//! An object: a header, then content that may be packed, and sealed.
//!
//! Packed first, sealed then: what is sealed does not shrink. The tag of a sealed object (see [`super::seal`]), or the checksum of one that is
//! not (XXH3-128, <https://github.com/Cyan4973/xxHash>), covers header, content and [`Place`], and is checked before anything is
//! unpacked. A checksum finds accidents, a tag adversaries, too. Each object says how it is packed, so that a disk may be told to
//! pack otherwise at any time.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

use super::compress::{Compression, Packing, pack, unpack};
use super::keys::{DiskKeys, mac};
use super::seal::{NONCE_BYTES, Nonce, TAG_BYTES, fresh_nonce, open, seal};
use super::{Codec, DIGEST_BYTES, DecodeError, ObjectKind, Place};
use crate::block::MAX_BLOCK_BYTES;

/// Bytes of the header of an object that is not sealed.
pub const HEADER_BYTES: usize = PREAMBLE_BYTES + CHECKSUM_BYTES;
/// Bytes of the header of a sealed object.
pub const SEALED_HEADER_BYTES: usize = PREAMBLE_BYTES + NONCE_BYTES + TAG_BYTES;

const MAGIC: [u8; 4] = *b"BKTD";
const FORMAT_VERSION: u8 = 1;
const NO_FLAGS: u8 = 0;
/// The flag of an object that is sealed.
const SEALED: u8 = 1;
/// Bytes of the header before checksum or nonce: these are themselves part of what is checked.
const PREAMBLE_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 16;
/// Bytes of a place.
const PLACE_BYTES: usize = 28;

/// Objects of one disk. Blocks alone are packed: records and checkpoints are small, or compact already.
#[derive(Debug, Clone)]
pub struct ObjectCodec {
    compression: Compression,
    keys: Option<Arc<DiskKeys>>,
}

impl ObjectCodec {
    /// Of a disk that is neither compressed nor encrypted. Reads compressed blocks all the same.
    pub const PLAIN: ObjectCodec = ObjectCodec {
        compression: Compression::None,
        keys: None,
    };

    /// Of a disk whose new blocks are to be compressed thus, and which is encrypted if there are keys.
    pub fn new(compression: Compression, keys: Option<Arc<DiskKeys>>) -> ObjectCodec {
        ObjectCodec { compression, keys }
    }

    fn header_bytes(&self) -> usize {
        match self.keys {
            None => HEADER_BYTES,
            Some(_) => SEALED_HEADER_BYTES,
        }
    }
}

impl Codec for ObjectCodec {
    fn encode(&self, place: &Place, plain: &[u8]) -> Bytes {
        let header_bytes = self.header_bytes();
        let mut object = Vec::with_capacity(header_bytes + plain.len());
        object.resize(header_bytes, 0);
        let packing = match place.kind {
            ObjectKind::Block => pack(self.compression, plain, &mut object),
            _ => Packing::Plain,
        };
        if packing == Packing::Plain {
            object.extend_from_slice(plain);
        }
        let flags = if self.keys.is_some() {
            SEALED
        } else {
            NO_FLAGS
        };
        let preamble = preamble(place.kind, packing, flags, plain.len() as u64);
        let (header, content) = object.split_at_mut(header_bytes);
        let (start, check) = header.split_at_mut(PREAMBLE_BYTES);
        start.copy_from_slice(&preamble);
        match &self.keys {
            None => check.copy_from_slice(&checksum(&preamble, place, content)),
            Some(keys) => {
                let nonce = fresh_nonce();
                let tag = seal(
                    &keys.objects,
                    &nonce,
                    &associated(&preamble, place),
                    content,
                );
                let (at_nonce, at_tag) = check.split_at_mut(NONCE_BYTES);
                at_nonce.copy_from_slice(&nonce);
                at_tag.copy_from_slice(&tag);
            }
        }
        object.into()
    }

    fn decode(&self, place: &Place, object: Bytes) -> Result<Bytes, DecodeError> {
        let (preamble, rest) = split::<PREAMBLE_BYTES>(&object, object.len())?;
        let header = Header::read(preamble, place, self.keys.is_some())?;
        let content = match &self.keys {
            None => {
                let (stored, content) = split::<CHECKSUM_BYTES>(rest, object.len())?;
                header.check_length(content.len())?;
                if checksum(preamble, place, content) != *stored {
                    return Err(DecodeError::WrongChecksum);
                }
                object.slice(HEADER_BYTES..)
            }
            Some(keys) => {
                let (nonce, rest) = split::<NONCE_BYTES>(rest, object.len())?;
                let (tag, sealed) = split::<TAG_BYTES>(rest, object.len())?;
                header.check_length(sealed.len())?;
                let associated = associated(preamble, place);
                opened(keys, nonce, &associated, tag, sealed)?
            }
        };
        match header.packing {
            Packing::Plain => Ok(content),
            packing => Ok(unpack(packing, &content, header.plain_bytes)?.into()),
        }
    }

    fn is_light(&self) -> bool {
        self.compression == Compression::None && self.keys.is_none()
    }

    fn digest(&self, object: &[u8]) -> [u8; DIGEST_BYTES] {
        match &self.keys {
            None => xxh3_128(object).to_be_bytes(),
            Some(keys) => {
                let [digest @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] =
                    mac(&keys.digests, object);
                digest
            }
        }
    }
}

/// What a header says, as far as it fits the place.
struct Header {
    packing: Packing,
    /// Bytes of the content once it is unpacked.
    plain_bytes: usize,
}

impl Header {
    fn read(
        preamble: &[u8; PREAMBLE_BYTES],
        place: &Place,
        sealed: bool,
    ) -> Result<Header, DecodeError> {
        let [m0, m1, m2, m3, version, kind, codec, flags, length @ ..] = *preamble;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(DecodeError::NotOurs);
        }
        if version != FORMAT_VERSION {
            return Err(DecodeError::UnknownVersion { version });
        }
        if kind != place.kind.byte() {
            return Err(DecodeError::WrongKind {
                expected: place.kind,
                found: kind,
            });
        }
        let unknown = DecodeError::UnknownCodec { codec, flags };
        match (flags, sealed) {
            (NO_FLAGS, false) | (SEALED, true) => {}
            (NO_FLAGS, true) => return Err(DecodeError::NotSealed),
            (SEALED, false) => return Err(DecodeError::Sealed),
            _ => return Err(unknown),
        }
        let packing = Packing::from_byte(codec).ok_or(unknown)?;
        let plain_bytes = u64::from_le_bytes(length);
        // Only blocks are packed, and no block is larger: so the least object cannot ask for all of the memory.
        let fits = packing == Packing::Plain
            || (place.kind == ObjectKind::Block && plain_bytes <= u64::from(MAX_BLOCK_BYTES));
        Ok(Header {
            packing: Some(packing).filter(|_| fits).ok_or(unknown)?,
            plain_bytes: usize::try_from(plain_bytes).map_err(|_| unknown)?,
        })
    }

    /// Whether the content of a plain object has its length; that of a packed one is known when it is unpacked.
    fn check_length(&self, content_bytes: usize) -> Result<(), DecodeError> {
        if self.packing == Packing::Plain && content_bytes != self.plain_bytes {
            return Err(DecodeError::WrongLength {
                expected: self.plain_bytes as u64,
                found: content_bytes as u64,
            });
        }
        Ok(())
    }
}

/// The first bytes of an object, and the rest of it.
fn split<const N: usize>(from: &[u8], length: usize) -> Result<(&[u8; N], &[u8]), DecodeError> {
    from.split_first_chunk::<N>()
        .ok_or(DecodeError::TooShort { length })
}

/// Sealed content, opened.
fn opened(
    keys: &DiskKeys,
    nonce: &Nonce,
    associated: &[u8],
    tag: &[u8; TAG_BYTES],
    sealed: &[u8],
) -> Result<Bytes, DecodeError> {
    let mut content = sealed.to_vec();
    open(&keys.objects, nonce, associated, &mut content, tag)?;
    Ok(content.into())
}

/// The part of the header before checksum or nonce.
fn preamble(
    kind: ObjectKind,
    packing: Packing,
    flags: u8,
    plain_bytes: u64,
) -> [u8; PREAMBLE_BYTES] {
    let mut preamble = [0; PREAMBLE_BYTES];
    let (start, length) = preamble.split_at_mut(8);
    start[..4].copy_from_slice(&MAGIC);
    start[4..].copy_from_slice(&[FORMAT_VERSION, kind.byte(), packing.byte(), flags]);
    length.copy_from_slice(&plain_bytes.to_le_bytes());
    preamble
}

/// What is checked of a place beside the kind, which is in the preamble: the disk's id, the index, the number.
fn place_bytes(place: &Place) -> [u8; PLACE_BYTES] {
    let mut bytes = [0; PLACE_BYTES];
    let (disk, rest) = bytes.split_at_mut(16);
    let (index, seq) = rest.split_at_mut(8);
    disk.copy_from_slice(place.disk.as_bytes());
    index.copy_from_slice(&place.index.to_le_bytes());
    seq.copy_from_slice(&place.seq.0.to_le_bytes());
    bytes
}

/// What a tag covers beside the content.
fn associated(
    preamble: &[u8; PREAMBLE_BYTES],
    place: &Place,
) -> [u8; PREAMBLE_BYTES + PLACE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES + PLACE_BYTES];
    let (start, rest) = bytes.split_at_mut(PREAMBLE_BYTES);
    start.copy_from_slice(preamble);
    rest.copy_from_slice(&place_bytes(place));
    bytes
}

/// The checksum over preamble, place and content, in canonical (big-endian) form.
fn checksum(
    preamble: &[u8; PREAMBLE_BYTES],
    place: &Place,
    content: &[u8],
) -> [u8; CHECKSUM_BYTES] {
    let mut hash = Xxh3::new();
    hash.update(preamble);
    hash.update(&place_bytes(place));
    hash.update(content);
    hash.digest128().to_be_bytes()
}

#[cfg(test)]
mod tests;
