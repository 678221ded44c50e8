//! Open data is decrypted to its bytes, or rejected, as a plain reading of it says.
//!
//! The first byte of an input chooses what the rest is, the kept keys, the key of the phone, and how
//! old the data may be. The rest is what the phone sends, in two lines; or a plaintext, with or
//! without its padding; or lines that make one. Blocks are chained, and base64, padding and
//! watermark are read, here anew.

#![cfg_attr(fuzzing, no_main)]

mod json;

use aes::Aes128;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use serde_json::Value;
use wxgate::fuzzing::{DecryptError, Encrypted, Freshness};
use wxgate::identity::AppId;
use wxgate::identity::session_key::SessionKey;

use self::json::{Fields, compose};

const APP: &str = "wx0123456789abcdef";
const NOW: u64 = 1_700_000_000;
const NAMES: [&str; 5] = ["watermark", "x", "water\\u006dark", "", "Watermark"];
const MAX_AGES: [Option<u64>; 4] = [None, Some(0), Some(300), Some(u32::MAX as u64)];
const IV: [u8; 16] = *b"0123456789abcdef";

/// The last one is not kept.
const KEYS: [[u8; 16]; 4] = [[1; 16], [2; 16], [0xff; 16], *b"fedcba9876543210"];

const SYMBOLS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Invalid,
    NoKeyFits,
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let key = KEYS[usize::from(choice >> 2 & 3)];
    let kept = &KEYS[..if choice & 16 == 0 { 3 } else { 2 }];
    let max_age = MAX_AGES[usize::from(choice >> 5 & 3)];
    let (data, iv) = match choice & 3 {
        0 => {
            let text = String::from_utf8_lossy(rest);
            let (data, iv) = text.split_once('\n').unwrap_or((&text, ""));
            (data.to_owned(), iv.to_owned())
        }
        1 => (base64(&encrypt(&key, &pad(rest))), base64(&IV)),
        2 => (base64(&encrypt(&key, &rest[..rest.len() / 16 * 16])), base64(&IV)),
        _ => (base64(&encrypt(&key, &pad(compose(rest, &NAMES).as_bytes()))), base64(&IV)),
    };

    let keys: Vec<_> = kept.iter().map(SessionKey::from_bytes).collect();
    let app_id = AppId::parse(APP).expect("legal");
    let found = Encrypted::parse(&data, &iv)
        .and_then(|one| one.decrypt(&keys, &app_id, Freshness { now: NOW, max_age }));
    let found = found.map(|text| text.to_string()).map_err(|error| match error {
        DecryptError::Invalid(_) => Kind::Invalid,
        DecryptError::NoKeyFits => Kind::NoKeyFits,
    });
    assert_eq!(found, expected(&data, &iv, kept, max_age), "{data:?} {iv:?}");
    if let Ok(text) = found {
        // As a value in a response, it does not get out of its place.
        let response = Fields::parse(&format!("{{\"data\":{text}}}")).expect("JSON");
        assert!(
            matches!(&*response.0, [(name, value)] if name == "data" && value.get() == text.trim())
        );
    }
}

fn expected(data: &str, iv: &str, keys: &[[u8; 16]], max_age: Option<u64>) -> Result<String, Kind> {
    let data = bytes(data).ok_or(Kind::Invalid)?;
    let iv: [u8; 16] = bytes(iv).and_then(|iv| iv.try_into().ok()).ok_or(Kind::Invalid)?;
    if data.is_empty() || data.len() % 16 != 0 {
        return Err(Kind::Invalid);
    }
    let found = keys.iter().find_map(|key| {
        let text = String::from_utf8(unpad(decrypt(key, iv, &data))?).ok()?;
        let (app, timestamp) = watermark(&text)?;
        Some((text, app, timestamp))
    });
    let (text, app, timestamp) = found.ok_or(Kind::NoKeyFits)?;
    // A minute is for clocks that differ.
    let oldest = max_age.map(|age| NOW.saturating_sub(age));
    let is_fresh = oldest.is_none_or(|oldest| (oldest..=NOW + 60).contains(&timestamp));
    if app == APP && is_fresh { Ok(text) } else { Err(Kind::Invalid) }
}

/// The watermark's app and time. `None`: the text is no object with one watermark, which has one of
/// each.
fn watermark(text: &str) -> Option<(String, u64)> {
    let fields = Fields::parse(text)?;
    let mut found = fields.0.iter().filter(|(name, _)| name == "watermark");
    let ((_, watermark), None) = (found.next()?, found.next()) else { return None };
    let watermark = Fields::parse(watermark.get())?;
    let app = watermark.text("appid").ok()??;
    match &*watermark.all("timestamp") {
        [Ok(Value::Number(timestamp))] => Some((app, timestamp.as_u64()?)),
        _ => None,
    }
}

/// RFC 4648, section 4. Padding may be missing, and a blank is read as a plus.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let symbols = text.trim_end_matches('=');
    let (padding, missing) = (text.len() - symbols.len(), symbols.len().wrapping_neg() % 4);
    if missing == 3 || padding > missing {
        return None;
    }
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for symbol in symbols.bytes() {
        let symbol = if symbol == b' ' { b'+' } else { symbol };
        bits = bits << 6 | SYMBOLS.iter().position(|known| *known == symbol)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(*chunk.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let symbol = SYMBOLS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { symbol.into() } else { '=' });
        }
    }
    text
}

fn pad(text: &[u8]) -> Vec<u8> {
    let missing = 16 - text.len() % 16;
    [text, &vec![missing as u8; missing]].concat()
}

fn unpad(mut text: Vec<u8>) -> Option<Vec<u8>> {
    let length = *text.last()?;
    let whole = text.len().checked_sub(length.into())?;
    let is_right = (1..=16).contains(&length) && text[whole..].iter().all(|byte| *byte == length);
    text.truncate(whole);
    is_right.then_some(text)
}

/// Cipher block chaining: NIST SP 800-38A, section 6.2.
fn encrypt(key: &[u8; 16], text: &[u8]) -> Vec<u8> {
    let cipher = Aes128::new(key.into());
    let mut before = IV;
    let mut data = Vec::new();
    for block in text.chunks(16) {
        for (byte, plain) in before.iter_mut().zip(block) {
            *byte ^= plain;
        }
        cipher.encrypt_block((&mut before).into());
        data.extend(before);
    }
    data
}

fn decrypt(key: &[u8; 16], iv: [u8; 16], data: &[u8]) -> Vec<u8> {
    let cipher = Aes128::new(key.into());
    let mut before = &iv[..];
    let mut text = Vec::new();
    for block in data.chunks(16) {
        let mut plain: [u8; 16] = block.try_into().expect("whole blocks");
        cipher.decrypt_block((&mut plain).into());
        text.extend(plain.iter().zip(before).map(|(byte, mask)| byte ^ mask));
        before = block;
    }
    text
}
