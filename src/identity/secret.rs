//! Secrets that cannot be printed.
//!
//! Holds what must never appear in a log, an error, a metric or a response: app secrets, keys,
//! tokens, login codes. `Debug` is redacted, memory is wiped on drop, and only [`Secret::expose`]
//! returns the text, so that every use can be found and reviewed. Copies, in a socket's buffer or a
//! client library, are not wiped.
//!
//! The types of the crate `secrecy` are not used: they cannot be compared, as a reload must do to
//! find what has changed, and making one from a `String` may leave an unwiped copy behind.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use serde::{Deserialize, Deserializer};
use sha2::Sha256;
use zeroize::Zeroizing;

/// A secret text.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The secret itself. Every call must be reviewed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

/// A 256-bit key that seals data which is stored outside the process.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey(Zeroizing<[u8; 32]>);

impl SealKey {
    /// A key of this process.
    pub fn random() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(&mut *key);
        Self(key)
    }

    /// The key of another process of this gateway.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Parses 32 bytes, written in hexadecimal digits, or in standard or URL-safe base64 with or
    /// without padding.
    pub fn parse(text: &str) -> Option<Self> {
        let mut key = Zeroizing::new([0; 32]);
        if text.len() == 64 {
            for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
                let [high, low] = digits else { return None };
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
            }
            return Some(Self(key));
        }
        let standard = text.trim_end_matches('=').replace('-', "+").replace('_', "/");
        let decoded = Zeroizing::new(STANDARD_NO_PAD.decode(Zeroizing::new(standard)).ok()?);
        key.copy_from_slice(decoded.get(..).filter(|bytes| bytes.len() == 32)?);
        Some(Self(key))
    }

    /// The key for one purpose, by HMAC-SHA-256. `None` cannot occur.
    pub fn derive(&self, purpose: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
        let hmac = Hmac::<Sha256>::new_from_slice(self.expose()).ok()?;
        Some(Zeroizing::new(hmac.chain_update(purpose).finalize().into_bytes().into()))
    }

    /// The key itself. Every call must be reviewed.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        String::deserialize(input).map(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_key_is_32_bytes_in_any_of_their_usual_forms() {
        let hex = "0123456789ABCDEFfedcba98765432100123456789ABCDEFfedcba9876543210";
        let key = SealKey::parse(hex).unwrap();
        assert_eq!(key.expose()[..3], [0x01, 0x23, 0x45]);
        let base64 = STANDARD_NO_PAD.encode(key.expose());
        for text in [
            hex.to_lowercase(),
            base64.clone(),
            format!("{base64}="),
            base64.replace('+', "-").replace('/', "_"),
        ] {
            assert!(SealKey::parse(&text).as_ref() == Some(&key), "{text}");
        }
        for text in ["", "x", &hex[1..], &base64[1..], &format!("{base64}AA"), &"x".repeat(64)] {
            assert!(SealKey::parse(text).is_none(), "{text}");
        }
        assert_eq!(format!("{key:?}"), "[redacted]");
    }
}
