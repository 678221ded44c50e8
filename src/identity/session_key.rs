//! A user's `session_key`, the key that WeChat shares with the app's back end.
//!
//! It signs and decrypts what the user's phone gets from WeChat. It never leaves the gateway. The
//! format is checked once, here: what is not a key of AES-128 in base64 cannot be used for anything
//! (WeChat, "signature verification and decryption of open data").

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::secret::Secret;

/// Characters of 16 bytes in base64, with padding.
const LENGTH: usize = 24;

/// A `session_key`: base64 of 16 bytes. Wiped from memory when it is dropped.
#[derive(Clone)]
pub struct SessionKey(Secret);

impl SessionKey {
    /// `None` if the text is not 16 bytes in padded base64.
    pub fn parse(text: &str) -> Option<Self> {
        let key = Self(Secret::new(text.to_owned()));
        (text.len() == LENGTH && key.decode().is_some()).then_some(key)
    }

    /// The reverse of [`Self::bytes`].
    pub fn from_bytes(bytes: &[u8; 16]) -> Self {
        Self(Secret::new(STANDARD.encode(bytes)))
    }

    /// The text as WeChat sent it. Every call must be reviewed.
    pub fn expose(&self) -> &str {
        self.0.expose()
    }

    /// The key of AES-128.
    pub fn bytes(&self) -> Zeroizing<[u8; 16]> {
        self.decode().unwrap_or_default()
    }

    /// The signature of a message to WeChat: HMAC-SHA-256 under the base64 text, in lower-case
    /// hexadecimal digits (WeChat, "signature of the login state").
    pub fn sign(&self, message: &[u8]) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.expose().as_bytes()) else {
            return String::new();
        };
        mac.update(message);
        hex(&mac.finalize().into_bytes())
    }

    fn decode(&self) -> Option<Zeroizing<[u8; 16]>> {
        // Large enough for the estimate that the decoder makes.
        let mut decoded = Zeroizing::new([0; 18]);
        let length = STANDARD.decode_slice(self.expose(), &mut *decoded).ok()?;
        let (bytes, _) = decoded.split_first_chunk::<16>()?;
        (length == 16).then(|| Zeroizing::new(*bytes))
    }
}

impl PartialEq for SessionKey {
    fn eq(&self, other: &Self) -> bool {
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl Eq for SessionKey {}

impl fmt::Debug for SessionKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_16_bytes_of_padded_base64() {
        let key = SessionKey::parse("tiihtNczf5v6AKRyjwEUhQ==").unwrap();
        assert_eq!(hex(&*key.bytes()), "b628a1b4d7337f9bfa00a4728f011485");
        assert!(SessionKey::from_bytes(&key.bytes()) == key);
        assert_eq!(format!("{key:?}"), "[redacted]");
        for text in [
            "",
            "tiihtNczf5v6AKRyjwEUhQ",
            "tiihtNczf5v6AKRyjwEUhR==",
            "tiihtNczf5v6AKRyjwEUhQ==\n",
            "tiihtNczf5v6AKRyjwEUhQaa",
            "tiihtNczf5v6AKRyjwEUhQa=",
            "tiihtNczf5v6AKRyjwEU_-==",
        ] {
            assert!(SessionKey::parse(text).is_none(), "{text}");
        }
    }

    /// The vector that WeChat publishes, and two that follow from its rule.
    #[test]
    fn signatures_are_those_that_wechat_documents() {
        let key = SessionKey::parse("o0q0otL8aEzpcZL/FT9WsQ==").unwrap();
        assert_eq!(
            key.sign(br#"{"foo":"bar"}"#),
            "654571f79995b2ce1e149e53c0a33dc39c0a74090db514261454e8dbe432aa0b"
        );
        assert_eq!(
            key.sign(b""),
            "46e043c5525c2d817c44be603d30837a808a1d930d038f6fdc3e62a201fed128"
        );
        let key = SessionKey::parse("tiihtNczf5v6AKRyjwEUhQ==").unwrap();
        assert_eq!(
            key.sign(b""),
            "7154f9f8b4b76b92f541cbf0e37d48840fa06e5e42da92a6f80168a1516a4735"
        );
    }
}
