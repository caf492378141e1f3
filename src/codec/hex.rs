//! Bytes as text: two lower-case hexadecimal digits each, in exactly one spelling.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes that JSON has as hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hex<B>(pub B);

/// Spells bytes.
pub fn encode(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|half| DIGITS[usize::from(half)])
        .collect()
}

/// The bytes that [`encode`] spelled so; `None` for any other text.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(high)? << 4 | digit(low)?));
    bytes
        .collect::<Option<Vec<u8>>>()
        .filter(|_| rest.is_empty())
}

impl<B: AsRef<[u8]>> fmt::Display for Hex<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(self.0.as_ref()))
    }
}

impl<B: AsRef<[u8]>> Serialize for Hex<B> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&encode(self.0.as_ref()))
    }
}

impl<'de, B: TryFrom<Vec<u8>>> Deserialize<'de> for Hex<B> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = decode(&text).and_then(|bytes| B::try_from(bytes).ok());
        bytes.map(Hex).ok_or_else(|| {
            de::Error::custom("it is not so many bytes in lower-case hexadecimal digits")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_spelling() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
        assert_eq!(encode(&[0x0f, 0xa0]), "0fa0");
        for other in ["0", "0F", "0g", " 0", "+1", "\u{e9}"] {
            assert_eq!(decode(other), None, "{other}");
        }
    }

    #[test]
    fn so_many_bytes_are_demanded_where_the_type_says_so() {
        let parse = |text: &str| serde_json::from_str::<Hex<[u8; 2]>>(text).ok();
        assert_eq!(parse("\"01ff\""), Some(Hex([1, 255])));
        assert_eq!(parse("\"01\""), None);
        assert_eq!(parse("\"01ff00\""), None);
        assert_eq!(parse("[1,255]"), None);
    }
}
