//! Sealing with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03, over RFC 8439): what is sealed can be read, altered or made up only with
//! the key, and opens only together with the same associated data.
//!
//! Why this one: its nonces have 192 bits, and may be drawn at random for ever, by any number of writers and retries that know nothing of
//! each other. AES-256-GCM is several times as fast and has 96: drawn at random, the first two that are equal, which give the
//! authentication away, are to be expected within the lifetime of a large disk; counted, two machines, or one that was put back to an
//! older copy, would count the same number.

use chacha20::XChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, Tag, XChaCha20Poly1305, XNonce};

use crate::secret::{Key, random};

/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 24;
/// Bytes of an authentication tag.
pub const TAG_BYTES: usize = 16;

/// The cipher's first block makes the key of the authenticator; the content begins with the second.
const CONTENT_BEGINS: u64 = 64;

/// A nonce: never used twice under one key.
pub type Nonce = [u8; NONCE_BYTES];

/// A nonce from the kernel's random numbers.
pub fn fresh_nonce() -> Nonce {
    let mut nonce = [0; NONCE_BYTES];
    random(&mut nonce);
    nonce
}

/// The content was altered, or belongs elsewhere, or was sealed with another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the seal is broken: it was altered, belongs elsewhere, or is sealed with another key")]
pub struct BrokenSeal;

/// Encrypts content in place, and answers the tag that goes with it and with the associated data. At most 256 GiB.
pub fn seal(key: &Key, nonce: &Nonce, associated: &[u8], content: &mut [u8]) -> [u8; TAG_BYTES] {
    let tag = XChaCha20Poly1305::new(key.bytes().into()).encrypt_inout_detached(
        &XNonce::from(*nonce),
        associated,
        content.into(),
    );
    tag.expect("no object has 256 GiB").into()
}

/// Decrypts content in place, if it and the associated data are those of the tag.
///
/// # Errors
/// [`BrokenSeal`]; the content is as it was then.
pub fn open(
    key: &Key,
    nonce: &Nonce,
    associated: &[u8],
    content: &mut [u8],
    tag: &[u8; TAG_BYTES],
) -> Result<(), BrokenSeal> {
    XChaCha20Poly1305::new(key.bytes().into())
        .decrypt_inout_detached(
            &XNonce::from(*nonce),
            associated,
            content.into(),
            &Tag::from(*tag),
        )
        .map_err(|_| BrokenSeal)
}

/// Hides bytes as those of sealed content are, or shows them again. Nothing is authenticated.
pub fn hide(key: &Key, nonce: &Nonce, bytes: &mut [u8]) {
    let mut cipher = XChaCha20::new(key.bytes().into(), &XNonce::from(*nonce));
    cipher.seek(CONTENT_BEGINS);
    cipher.apply_keystream(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .bytes()
            .filter(|b| !b.is_ascii_whitespace())
            .map(|b| (b as char).to_digit(16).expect("a digit") as u8)
            .collect();
        digits.chunks(2).map(|two| two[0] << 4 | two[1]).collect()
    }

    /// draft-irtf-cfrg-xchacha-03, A.3.1.
    #[test]
    fn it_is_the_published_cipher() {
        let key = Key::fill(|key| {
            key.iter_mut()
                .zip(0x80..)
                .for_each(|(byte, value)| *byte = value);
        });
        let nonce: Nonce = hex("404142434445464748494a4b4c4d4e4f5051525354555657")
            .try_into()
            .expect("24 bytes");
        let associated = hex("50515253c0c1c2c3c4c5c6c7");
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let mut content = plain.to_vec();
        let tag = seal(&key, &nonce, &associated, &mut content);
        let expected = hex(
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb\
             731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452\
             2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
             21f9664c97637da9768812f615c68b13b52e",
        );
        assert_eq!(content, expected);
        assert_eq!(tag.to_vec(), hex("c0875924c1c7987947deafd8780acf49"));
        open(&key, &nonce, &associated, &mut content, &tag).expect("opens");
        assert_eq!(content, plain);
    }

    #[test]
    fn nothing_but_what_was_sealed_opens() {
        let (key, nonce) = (Key::fresh(), fresh_nonce());
        let mut content = vec![9; 100];
        let tag = seal(&key, &nonce, b"here", &mut content);
        let refused = |key: &Key, nonce: &Nonce, place: &[u8], content: &[u8], tag: &[u8; 16]| {
            let mut copy = content.to_vec();
            assert_eq!(open(key, nonce, place, &mut copy, tag), Err(BrokenSeal));
            assert_eq!(copy, content);
        };
        refused(&Key::fresh(), &nonce, b"here", &content, &tag);
        refused(&key, &fresh_nonce(), b"here", &content, &tag);
        refused(&key, &nonce, b"there", &content, &tag);
        refused(&key, &nonce, b"here", &content[..99], &tag);
        for bit in 0..800 {
            let mut altered = content.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            refused(&key, &nonce, b"here", &altered, &tag);
        }
        for bit in 0..128 {
            let mut altered = tag;
            altered[bit / 8] ^= 1 << (bit % 8);
            refused(&key, &nonce, b"here", &content, &altered);
        }
    }

    #[test]
    fn what_is_hidden_looks_like_what_is_sealed_and_is_shown_by_hiding_it_again() {
        let (key, nonce) = (Key::fresh(), fresh_nonce());
        let plain: Vec<u8> = (0..1000).map(|n| (n % 251) as u8).collect();
        let (mut sealed, mut hidden) = (plain.clone(), plain.clone());
        seal(&key, &nonce, b"", &mut sealed);
        hide(&key, &nonce, &mut hidden);
        assert_eq!(hidden, sealed);
        hide(&key, &nonce, &mut hidden);
        assert_eq!(hidden, plain);
    }
}
