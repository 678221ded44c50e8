//! The users: their ids, phone numbers and session keys.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use moka::ops::compute::Op;
use moka::sync::Cache;
use rand::Rng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{Behaviour, newest};
use crate::clock::Clock;
use crate::identity::session_key::SessionKey;

/// The prefix of every session key of the sandbox, so that tests recognise it where it must not be.
pub const SESSION_KEY: &str = "c2FuZGJve";

/// The users that have logged in, by openid.
pub struct Users {
    logged_in: Cache<String, LoggedIn>,
    /// Lifetime of a `session_key` after the last login. WeChat does not disclose its own.
    lifetime: Duration,
    /// Logins within this time of a new key do not make another one.
    refresh: Duration,
    clock: Clock,
}

/// A user that has logged in to an app.
#[derive(Clone)]
struct LoggedIn {
    app_id: String,
    key: SessionKey,
    made_at: Duration,
    expires_at: Duration,
}

impl Users {
    pub fn new(behaviour: &Behaviour, clock: Clock) -> Self {
        Self {
            logged_in: newest(),
            lifetime: behaviour.session_key_lifetime,
            refresh: behaviour.session_key_refresh,
            clock,
        }
    }

    /// The user's `session_key` after a login. It is a new one, and the one before is invalid,
    /// except if that one is younger than the refresh period.
    pub fn logged_in(&self, app_id: &str, openid: String) -> SessionKey {
        let now = self.clock.now();
        let entry = self.logged_in.entry(openid).and_upsert_with(|last| {
            let last = last.map(moka::Entry::into_value).filter(|last| now < last.expires_at);
            let young = last.filter(|last| now < last.made_at + self.refresh);
            let (key, made_at) =
                young.map_or_else(|| (new_key(), now), |young| (young.key, young.made_at));
            LoggedIn { app_id: app_id.to_owned(), key, made_at, expires_at: now + self.lifetime }
        });
        entry.into_value().key
    }

    /// Whether a user has logged in to an app.
    pub fn is_known(&self, app_id: &str, openid: &str) -> bool {
        self.logged_in.get(openid).is_some_and(|user| user.app_id == app_id)
    }

    /// The current `session_key` of a user.
    pub fn session_key(&self, app_id: &str, openid: &str) -> Option<SessionKey> {
        let user = self.logged_in.get(openid).filter(|user| user.app_id == app_id)?;
        (self.clock.now() < user.expires_at).then_some(user.key)
    }

    /// Replaces the user's `session_key`, if the signature is of the current one. The new one
    /// expires when the old one would have.
    ///
    /// # Errors
    /// The errcode.
    pub fn reset(&self, app_id: &str, openid: &str, signature: &str) -> Result<SessionKey, i64> {
        let now = self.clock.now();
        let mut outcome = Err(87007);
        self.logged_in.entry_by_ref(openid).and_compute_with(|entry| {
            let user = entry.map(moka::Entry::into_value);
            match user.filter(|user| user.app_id == app_id && now < user.expires_at) {
                None => Op::Nop,
                Some(user) if !is_signature(&user.key, signature) => {
                    outcome = Err(87009);
                    Op::Nop
                }
                Some(user) => {
                    let key = new_key();
                    outcome = Ok(key.clone());
                    Op::Put(LoggedIn { key, made_at: now, ..user })
                }
            }
        });
        outcome
    }
}

/// Whether a signature of the empty message was made with a key.
pub fn is_signature(key: &SessionKey, signature: &str) -> bool {
    key.sign(b"").as_bytes().ct_eq(signature.as_bytes()).into()
}

fn new_key() -> SessionKey {
    loop {
        let mut key = *b"sandbox-xxxxxxxx";
        rand::rng().fill_bytes(key.get_mut(8..).unwrap_or_default());
        // 16 bytes in base64 are always a key.
        if let Some(key) = SessionKey::parse(&STANDARD.encode(key)) {
            return key;
        }
    }
}

pub fn is_user_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'))
}

/// The openid of a user in an app: 28 characters, like WeChat's. It contains the name, so that
/// readers recognise it, and differs between apps.
pub fn openid(app_id: &str, user: &str) -> String {
    id('o', &format!("{app_id} {user}"), user)
}

/// The unionid of a user, the same in all apps. Users whose names begin with `union` have one; the
/// others are as in apps that are not bound to an Open Platform account.
pub fn unionid(user: &str) -> Option<String> {
    user.starts_with("union").then(|| id('u', user, user))
}

/// The phone number of a user, without a country code: always the same.
pub fn phone_number(user: &str) -> String {
    let digest = Sha256::digest(user);
    let digits = digest.iter().take(8).map(|byte| char::from(b'0' + byte % 10));
    "199".chars().chain(digits).collect()
}

fn id(letter: char, of: &str, user: &str) -> String {
    let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(of));
    let shown: String = user.replace('.', "_").chars().take(16).collect();
    format!("{letter}{shown}_{digest}").chars().take(28).collect()
}
