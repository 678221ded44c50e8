//! The state of a login by redirect, sealed in a cookie of the browser that began it.
//!
//! The gateway keeps nothing between the start and the callback. WeChat gets a random text, the
//! state. The app and the URL to return to are in a cookie named after it, sealed for this state
//! and this host. So a callback is valid only in the browser that began the login (RFC 9700,
//! section 4.7.1), and any gateway with the same seal key can complete it. A browser has at most
//! five such cookies, because all cookies of a host must fit into one request header.

use aes_gcm_siv::aead::{Aead, Payload};
use aes_gcm_siv::{Aes256GcmSiv, KeyInit, Nonce};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use rand::distr::{Alphanumeric, SampleString};
use serde::{Deserialize, Serialize};

use std::time::Duration;

use crate::clock::{Clock, millis};
use crate::identity::secret::SealKey;

/// How long a user has to log in.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// Characters of a state. WeChat documents letters and digits, at most 128 bytes.
const LENGTH: usize = 32;

/// States that a browser may have at the same time, and the bytes of their cookies.
const MOST: usize = 5;
const MOST_BYTES: usize = 6 << 10;

const NONCE: usize = 12;

/// What belongs to a state.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The app that the user logs in to.
    #[serde(rename = "a")]
    pub app_id: String,
    /// Where the browser goes after the login: path and query.
    #[serde(rename = "r")]
    pub return_to: String,
}

/// Seals and opens states.
pub struct States {
    /// The first key seals.
    ciphers: Vec<Aes256GcmSiv>,
    clock: Clock,
}

/// A login that has begun.
pub struct Begun {
    /// The text for WeChat, and the suffix of the cookie's name.
    pub text: String,
    /// The value of the cookie.
    pub cookie: String,
}

impl States {
    /// `keys` are the operator's, or one of this process.
    pub fn new(keys: &[SealKey], clock: &Clock) -> Self {
        let cipher = |key: &SealKey| {
            let key = key.derive(b"wxgate state")?;
            Aes256GcmSiv::new_from_slice(&*key).ok()
        };
        Self { ciphers: keys.iter().filter_map(cipher).collect(), clock: clock.clone() }
    }

    /// Begins a login on a host, given by its origin. `None`: there is no key.
    pub fn begin(&self, origin: &str, state: &State) -> Option<Begun> {
        let text = Alphanumeric.sample_string(&mut rand::rng(), LENGTH);
        let began = self.now().to_string();
        let mut nonce = [0; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let plain = serde_json::to_vec(state).ok()?;
        let aad = associated(origin, &text, &began);
        let payload = Payload { msg: &plain, aad: &aad };
        let sealed = self.ciphers.first()?.encrypt(&Nonce::from(nonce), payload).ok()?;
        let sealed = URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat());
        Some(Begun { text, cookie: format!("{began}.{sealed}") })
    }

    /// What belongs to a state; `None` if it is not of this host, was changed, or has expired.
    pub fn open(&self, origin: &str, text: &str, cookie: &[u8]) -> Option<State> {
        let (began, sealed) = std::str::from_utf8(cookie).ok()?.split_once('.')?;
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE>()?;
        let aad = associated(origin, text, began);
        let plain = self.ciphers.iter().find_map(|cipher| {
            let payload = Payload { msg: sealed, aad: &aad };
            cipher.decrypt(&Nonce::from(*nonce), payload).ok()
        })?;
        let began: u64 = began.parse().ok()?;
        if self.now().saturating_sub(began) >= millis(LIFETIME) {
            return None;
        }
        serde_json::from_slice(&plain).ok()
    }

    /// The states, among those of a browser, that must be removed before another one of `length`
    /// bytes is added: the oldest ones. A state is given by the suffix of its cookie and its value.
    pub fn surplus<'a>(
        states: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        length: usize,
    ) -> Vec<&'a str> {
        let mut states: Vec<(u64, &str, usize)> = states
            .filter_map(|(text, value)| {
                let text = std::str::from_utf8(text).ok().filter(|text| is_state(text))?;
                let began = std::str::from_utf8(value).ok().and_then(|value| value.split_once('.'));
                let began = began.and_then(|(began, _)| began.parse().ok()).unwrap_or_default();
                Some((began, text, value.len()))
            })
            .collect();
        states.sort_unstable_by(|a, b| b.cmp(a));
        let (mut count, mut bytes) = (1, length);
        let mut is_kept = |length: usize| {
            count += 1;
            bytes += length;
            count <= MOST && bytes <= MOST_BYTES
        };
        states.retain(|(.., length)| !is_kept(*length));
        states.into_iter().map(|(_, text, _)| text).collect()
    }

    /// Milliseconds since 1970: gateways compare them.
    fn now(&self) -> u64 {
        self.clock.to_wall(self.clock.now_millis())
    }
}

/// Whether a text has the form of a state.
pub fn is_state(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn associated(origin: &str, text: &str, began: &str) -> Vec<u8> {
    // None of them contains a zero byte.
    [origin, text, began].join("\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "https://h5.example.com";

    fn state() -> State {
        State { app_id: "wx1".to_owned(), return_to: "/a?b=c".to_owned() }
    }

    fn keys() -> [SealKey; 2] {
        [SealKey::random(), SealKey::random()]
    }

    #[test]
    fn a_state_opens_only_on_its_host_with_its_text_and_for_ten_minutes() {
        let ([old, new], clock) = (keys(), Clock::manual());
        let before = States::new(std::slice::from_ref(&old), &clock);
        let first = before.begin(ORIGIN, &state()).unwrap();
        assert!(is_state(&first.text));
        let after = States::new(&[new.clone(), old], &clock);
        let cookie = first.cookie.as_bytes();
        assert_eq!(after.open(ORIGIN, &first.text, cookie), Some(state()), "keys are rotated");
        assert!(States::new(&[new], &clock).open(ORIGIN, &first.text, cookie).is_none());
        assert!(before.open("http://h5.example.com", &first.text, cookie).is_none());
        let other = before.begin(ORIGIN, &state()).unwrap();
        assert!(before.open(ORIGIN, &other.text, cookie).is_none());
        let (began, sealed) = first.cookie.split_once('.').unwrap();
        let later = format!("{}.{sealed}", began.parse::<u64>().unwrap() + 1);
        for bad in [later.as_str(), began, sealed, "", ".", "1.AAAA"] {
            assert!(before.open(ORIGIN, &first.text, bad.as_bytes()).is_none(), "{bad}");
        }
        clock.advance(LIFETIME.checked_sub(Duration::from_millis(1)).unwrap());
        assert!(before.open(ORIGIN, &first.text, cookie).is_some());
        clock.advance(Duration::from_millis(1));
        assert!(before.open(ORIGIN, &first.text, cookie).is_none());
    }

    #[test]
    fn the_oldest_states_make_room() {
        let name = |n: u8| vec![b'a' + n; LENGTH];
        let names: Vec<_> = (0..7).map(name).collect();
        let value = |began: usize, length: usize| format!("{began}.{}", "x".repeat(length));
        let values: Vec<_> = (0..7).map(|n| value(100 + n, 10)).collect();
        let surplus = |count: usize, values: &[String], length| {
            let states = names.iter().zip(values).take(count);
            let states = states.map(|(name, value)| (&name[..], value.as_bytes()));
            let scan = (&b"scan"[..], &b"x"[..]);
            States::surplus(states.chain([scan]), length)
                .iter()
                .map(|text| text[..1].to_owned())
                .collect::<Vec<_>>()
        };
        assert!(surplus(4, &values, 10).is_empty());
        assert_eq!(surplus(5, &values, 10), ["a"]);
        assert_eq!(surplus(7, &values, 10), ["c", "b", "a"]);
        let long: Vec<_> = (0..7).map(|n| value(100 + n, 2900)).collect();
        assert_eq!(surplus(2, &long, 2900), ["a"], "all cookies fit into a header");
    }
}
