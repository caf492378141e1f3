//! The shape that records and checkpoints share: a JSON header for what is small and worth reading by eye, then a binary tail
//! for what is many.
//!
//! ```text
//! header length  u32, little endian
//! header         compact JSON
//! tail           variable-length integers (LEB128: seven bits a byte, least significant first, the high bit = more follows)
//! ```
//!
//! There is one spelling for everything: an integer in more bytes than it needs, or bytes after the end, are errors.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes of one integer.
const MAX_VARINT_BYTES: u32 = 10;

/// Why a payload could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// It ends in the middle of something.
    #[error("the content ends too early")]
    Truncated,
    /// There are bytes after its end.
    #[error("{bytes} bytes follow the end of the content")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// The header is not the JSON that belongs there.
    #[error("the header of the content is not what belongs there")]
    Header(#[source] serde_json::Error),
    /// An integer is too large, or spelled in more bytes than it needs.
    #[error("an integer of the content is malformed")]
    Integer,
}

/// Builds a payload.
#[derive(Debug)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// A payload that begins with a header. The header must be plain data: structs with string keys, no more than 4 GiB.
    pub fn with_header(header: &impl Serialize) -> Writer {
        let mut bytes = vec![0; 4];
        serde_json::to_writer(&mut bytes, header).expect("plain data in memory serialises");
        let length = u32::try_from(bytes.len() - 4).expect("a header is small");
        bytes.splice(..4, length.to_le_bytes());
        Writer { bytes }
    }

    /// Appends an integer.
    pub fn integer(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// Appends a signed integer, folded so that small ones of either sign are short: 0, -1, 1, -2 become 0, 1, 2, 3.
    pub fn signed(&mut self, value: i64) {
        self.integer(((value << 1) ^ (value >> 63)) as u64);
    }

    /// The payload.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads a payload's tail, strictly.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads the header, and answers it and a reader of what follows.
    ///
    /// # Errors
    /// `Truncated`, `Header`.
    pub fn with_header<H: DeserializeOwned>(
        payload: &'a [u8],
    ) -> Result<(H, Reader<'a>), PayloadError> {
        let (length, rest) = payload
            .split_first_chunk::<4>()
            .ok_or(PayloadError::Truncated)?;
        let length =
            usize::try_from(u32::from_le_bytes(*length)).map_err(|_| PayloadError::Truncated)?;
        let (header, rest) = rest
            .split_at_checked(length)
            .ok_or(PayloadError::Truncated)?;
        let header = serde_json::from_slice(header).map_err(PayloadError::Header)?;
        Ok((header, Reader { rest }))
    }

    /// The next integer.
    ///
    /// # Errors
    /// `Truncated`, `Integer`.
    pub fn integer(&mut self) -> Result<u64, PayloadError> {
        let mut value = 0u64;
        for position in 0..MAX_VARINT_BYTES {
            let (&byte, rest) = self.rest.split_first().ok_or(PayloadError::Truncated)?;
            self.rest = rest;
            let bits = u64::from(byte & 0x7f);
            if position == MAX_VARINT_BYTES - 1 && bits > 1 {
                return Err(PayloadError::Integer);
            }
            value |= bits << (7 * position);
            if byte & 0x80 == 0 {
                let needlessly_long = byte == 0 && position > 0;
                return if needlessly_long {
                    Err(PayloadError::Integer)
                } else {
                    Ok(value)
                };
            }
        }
        Err(PayloadError::Integer)
    }

    /// The next signed integer.
    ///
    /// # Errors
    /// `Truncated`, `Integer`.
    pub fn signed(&mut self) -> Result<i64, PayloadError> {
        let folded = self.integer()?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    /// The next integer as a number of items that follow, each of at least `item_bytes` bytes: never more than there are bytes for.
    ///
    /// # Errors
    /// `Truncated`, `Integer`.
    pub fn count(&mut self, item_bytes: usize) -> Result<usize, PayloadError> {
        let count = self.integer()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.rest.len() / item_bytes => Ok(count),
            _ => Err(PayloadError::Truncated),
        }
    }

    /// Ends reading.
    ///
    /// # Errors
    /// `Trailing` where something is left.
    pub fn finish(self) -> Result<(), PayloadError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(PayloadError::Trailing { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tail(bytes: &[u8]) -> Reader<'_> {
        Reader { rest: bytes }
    }

    #[test]
    fn an_integer_has_one_spelling() {
        assert_eq!(tail(&[0]).integer().expect("zero"), 0);
        assert_eq!(tail(&[0xac, 0x02]).integer().expect("300"), 300);
        assert!(matches!(
            tail(&[0x80, 0]).integer(),
            Err(PayloadError::Integer)
        ));
        assert!(matches!(
            tail(&[0x80]).integer(),
            Err(PayloadError::Truncated)
        ));
        let mut largest = [0xff; 10];
        largest[9] = 1;
        assert_eq!(tail(&largest).integer().expect("largest"), u64::MAX);
        largest[9] = 2;
        assert!(matches!(
            tail(&largest).integer(),
            Err(PayloadError::Integer)
        ));
        assert!(matches!(
            tail(&[0xff; 11]).integer(),
            Err(PayloadError::Integer)
        ));
    }

    #[test]
    fn a_count_is_bounded_by_the_bytes_that_follow() {
        assert_eq!(tail(&[2, 0, 0, 0, 0]).count(2).expect("fits"), 2);
        assert!(matches!(
            tail(&[3, 0, 0, 0, 0]).count(2),
            Err(PayloadError::Truncated)
        ));
    }

    #[test]
    fn a_header_longer_than_the_payload_is_refused() {
        let read = |bytes: &[u8]| Reader::with_header::<Vec<u8>>(bytes).map(|(h, _)| h);
        assert!(matches!(read(&[0, 0]), Err(PayloadError::Truncated)));
        assert!(matches!(
            read(&[0xff, 0xff, 0xff, 0xff, b'[', b']']),
            Err(PayloadError::Truncated)
        ));
        assert!(matches!(
            read(&[1, 0, 0, 0, b'[', b']']),
            Err(PayloadError::Header(_))
        ));
        assert_eq!(
            read(&[2, 0, 0, 0, b'[', b']']).expect("empty list"),
            Vec::<u8>::new()
        );
    }

    proptest! {
        #[test]
        fn integers_come_back(plain in any::<u64>(), signed in any::<i64>()) {
            let mut writer = Writer::with_header(&"h");
            writer.integer(plain);
            writer.signed(signed);
            let bytes = writer.finish();
            let (header, mut reader) = Reader::with_header::<String>(&bytes).expect("header");
            prop_assert_eq!(header, "h");
            prop_assert_eq!(reader.integer().expect("plain"), plain);
            prop_assert_eq!(reader.signed().expect("signed"), signed);
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = tail(&bytes);
            while reader.integer().is_ok() {}
            let _ = Reader::with_header::<serde_json::Value>(&bytes);
        }
    }
}
