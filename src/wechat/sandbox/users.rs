//! The users: their ids, session keys and logins.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use moka::sync::Cache;
use rand::Rng;
use sha2::{Digest, Sha256};

use super::{Behaviour, CAPACITY};
use crate::clock::Clock;

/// The prefix of every session key of the sandbox, so that tests recognise it where it must not be.
pub const SESSION_KEY: &str = "c2FuZGJve";

/// The users that have logged in, by openid.
pub struct Users {
    /// The current `session_key` of each user.
    session_keys: Cache<String, [u8; 16]>,
    /// Logins of each user in a minute.
    minutes: Cache<String, (u64, u32)>,
    logins: AtomicU64,
    clock: Clock,
}

impl Users {
    pub fn new(clock: Clock) -> Self {
        Self {
            session_keys: Cache::new(CAPACITY),
            minutes: Cache::new(CAPACITY),
            logins: AtomicU64::new(0),
            clock,
        }
    }

    /// Counts a login of a user.
    ///
    /// # Errors
    /// The errcode, if a quota is used up.
    pub fn count_login(&self, openid: &str, behaviour: &Behaviour) -> Result<(), i64> {
        let minute = self.clock.now().as_secs() / 60;
        let counted = self.minutes.entry_by_ref(openid).and_upsert_with(|last| {
            match last.map(moka::Entry::into_value) {
                Some((at, count)) if at == minute => (minute, count.saturating_add(1)),
                _ => (minute, 1),
            }
        });
        if counted.into_value().1 > behaviour.user_quota {
            return Err(45011);
        }
        match behaviour.quota {
            Some(quota) if self.logins.fetch_add(1, Ordering::Relaxed) >= quota => Err(45009),
            _ => Ok(()),
        }
    }

    /// Gives the user a new `session_key`, and invalidates the one before.
    pub fn new_session_key(&self, openid: String) -> [u8; 16] {
        let mut key = *b"sandbox-xxxxxxxx";
        rand::rng().fill_bytes(key.get_mut(8..).unwrap_or_default());
        self.session_keys.insert(openid, key);
        key
    }

    /// The current `session_key` of a user.
    pub fn session_key(&self, openid: &str) -> Option<[u8; 16]> {
        self.session_keys.get(openid)
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

fn id(letter: char, of: &str, user: &str) -> String {
    let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(of));
    let shown: String = user.replace('.', "_").chars().take(16).collect();
    format!("{letter}{shown}_{digest}").chars().take(28).collect()
}
