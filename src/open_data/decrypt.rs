//! Decrypts open data: AES-128-CBC with PKCS#7 padding, a JSON object with a watermark.
//!
//! All kept keys are tried, whatever the outcome, and everything that can be wrong with a plaintext
//! has one error. Otherwise the difference between wrong padding and wrong text would let a caller
//! decrypt data without the key (a padding oracle). Format: WeChat, "signature verification and
//! decryption of open data".

use std::fmt;

use aes::Aes128;
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use subtle::{
    Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeGreater, ConstantTimeLess,
};
use zeroize::Zeroizing;

use crate::identity::AppId;
use crate::identity::session_key::SessionKey;

const BLOCK: usize = 16;

/// How far ahead of this machine's clock WeChat's may be, in seconds.
const MOST_AHEAD: u64 = 60;

/// Base64 with or without padding, as clients send it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why there is no plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecryptError {
    /// The data cannot be valid for any key, or it is for another app or too old.
    Invalid(&'static str),
    /// None of the keys gives a valid plaintext.
    NoKeyFits,
}

/// Encrypted data, as the phone got it.
pub struct Encrypted {
    data: Vec<u8>,
    iv: [u8; BLOCK],
}

/// How old the data may be.
#[derive(Clone, Copy)]
pub struct Freshness {
    /// In seconds since 1970.
    pub now: u64,
    /// In seconds; `None`: any age.
    pub max_age: Option<u64>,
}

#[derive(serde::Deserialize)]
struct Plaintext {
    #[serde(deserialize_with = "object")]
    watermark: Watermark,
}

#[derive(serde::Deserialize)]
struct Watermark {
    appid: String,
    /// In seconds since 1970.
    timestamp: u64,
}

impl Encrypted {
    /// From `encryptedData` and `iv`, both in base64.
    ///
    /// # Errors
    /// When the data cannot be valid, whatever the key.
    pub fn parse(data: &str, iv: &str) -> Result<Self, DecryptError> {
        let decode = |text: &str, what| {
            // A form without escapes turns `+` into a blank.
            BASE64.decode(text.replace(' ', "+")).map_err(|_| DecryptError::Invalid(what))
        };
        let data = decode(data, "encrypted_data is not base64")?;
        if data.is_empty() || !data.len().is_multiple_of(BLOCK) {
            return Err(DecryptError::Invalid("encrypted_data does not consist of whole blocks"));
        }
        let iv = decode(iv, "iv is not base64")?;
        let iv = iv.try_into().map_err(|_| DecryptError::Invalid("iv is not 16 bytes"))?;
        Ok(Self { data, iv })
    }

    /// The plaintext under the first of the keys that fits: a JSON object, byte for byte.
    ///
    /// # Errors
    /// When no key fits, or the data is of another app or too old.
    pub fn decrypt(
        &self,
        keys: &[SessionKey],
        app_id: &AppId,
        freshness: Freshness,
    ) -> Result<Zeroizing<String>, DecryptError> {
        let mut found = None;
        for key in keys {
            let plaintext = self.under(key);
            if found.is_none() {
                found = plaintext;
            }
        }
        let (text, watermark) = found.ok_or(DecryptError::NoKeyFits)?;
        if watermark.appid != app_id.as_str() {
            return Err(DecryptError::Invalid("the data is of another app"));
        }
        let Freshness { now, max_age } = freshness;
        let is_old = max_age.is_some_and(|most| now.saturating_sub(watermark.timestamp) > most);
        if is_old || (max_age.is_some() && watermark.timestamp > now.saturating_add(MOST_AHEAD)) {
            return Err(DecryptError::Invalid("the data is older than max_age"));
        }
        Ok(text)
    }

    /// The plaintext under one key. Does the same work whether the padding is right or not: without
    /// a right padding, the whole text is parsed.
    fn under(&self, key: &SessionKey) -> Option<(Zeroizing<String>, Watermark)> {
        let mut text = Zeroizing::new(self.data.clone());
        let cipher = cbc::Decryptor::<Aes128>::new((&*key.bytes()).into(), (&self.iv).into());
        cipher.decrypt_padded::<NoPadding>(&mut text).ok()?;
        let (is_padded, padding) = padding(&text);
        let length = text.len() - usize::from(padding);
        let parsed = std::str::from_utf8(text.get(..length)?).ok();
        let watermark = parsed.and_then(|text| {
            let is_object = text.trim_ascii_start().starts_with('{');
            serde_json::from_str::<Plaintext>(text).ok().filter(|_| is_object)
        });
        let text = parsed.map(|text| Zeroizing::new(text.to_owned()))?;
        watermark.filter(|_| is_padded.into()).map(|plaintext| (text, plaintext.watermark))
    }
}

/// A watermark in an object. What serde derives would read an array of the values, too.
fn object<'de, D: Deserializer<'de>>(input: D) -> Result<Watermark, D::Error> {
    struct Object;

    impl<'de> Visitor<'de> for Object {
        type Value = Watermark;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Watermark, A::Error> {
            Watermark::deserialize(MapAccessDeserializer::new(map))
        }
    }

    input.deserialize_map(Object)
}

/// Whether the text ends with a padding of PKCS#7 (RFC 5652, section 6.3), and its length, which is
/// 0 if not. Takes the same time for every text.
fn padding(text: &[u8]) -> (Choice, u8) {
    let Some(block) = text.last_chunk::<BLOCK>() else { return (Choice::from(0), 0) };
    let [.., length] = *block;
    let most = 16_u8;
    let mut is_right = !length.ct_eq(&0) & !length.ct_gt(&most);
    for (index, byte) in (0..most).rev().zip(block) {
        // `index` is the distance from the end.
        is_right &= !index.ct_lt(&length) | byte.ct_eq(&length);
    }
    (is_right, u8::conditional_select(&0, &length, is_right))
}

#[cfg(test)]
mod tests;
