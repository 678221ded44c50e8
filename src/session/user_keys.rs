//! Which session keys of a user are kept.
//!
//! The newest three different ones, by time of login. A phone encrypts with the key of its own last
//! login, and may log in again, or another phone may, before the service has the data decrypted.

use std::sync::atomic::Ordering;

use super::entry::Change;
use super::{Backend, Sessions, StoreError};
use crate::identity::User;
use crate::identity::session_key::SessionKey;

/// How many session keys of a user are kept.
pub const KEPT_KEYS: usize = 3;

/// The session key of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginKey {
    pub session_key: SessionKey,
    /// When the gateway received the login, on the clock: logins may overtake each other on their
    /// way to WeChat and back.
    pub logged_in_at_millis: u64,
}

/// The kept session keys of one user, newest login first. Wiped when dropped.
#[derive(Default)]
pub struct UserKeys(Vec<LoginKey>);

impl UserKeys {
    /// Keeps the key of a login, if it is among the newest. A key that is kept already moves to the
    /// later of its two times.
    pub fn keep(&mut self, mut new: LoginKey) {
        if let Some(place) = self.0.iter().position(|kept| kept.session_key == new.session_key) {
            let kept = self.0.remove(place);
            new.logged_in_at_millis = new.logged_in_at_millis.max(kept.logged_in_at_millis);
        }
        let is_older = |kept: &LoginKey| kept.logged_in_at_millis <= new.logged_in_at_millis;
        let place = self.0.iter().position(is_older).unwrap_or(self.0.len());
        // Most users have one. Keys are on the heap, so growing leaves no copy of them behind.
        self.0.reserve_exact(1);
        self.0.insert(place, new);
        self.0.truncate(KEPT_KEYS);
    }

    /// Keeps a key as the newest one, even if the time of another is later.
    pub fn keep_as_newest(&mut self, mut new: LoginKey) {
        if let Some(newest) = self.0.first() {
            let after = newest.logged_in_at_millis.saturating_add(1);
            new.logged_in_at_millis = new.logged_in_at_millis.max(after);
        }
        self.keep(new);
    }

    pub fn newest_first(&self) -> Vec<SessionKey> {
        self.0.iter().map(|kept| kept.session_key.clone()).collect()
    }

    pub fn to_vec(&self) -> Vec<LoginKey> {
        self.0.clone()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Sessions {
    /// Whether session keys are kept from now on; not at first. When this is turned off, those in
    /// memory are wiped at once, and a new snapshot without them is written soon. Those in a shared
    /// store expire: other gateways may need them.
    pub fn keep_session_keys(&self, keeps: bool) {
        let kept = self.keeps_session_keys.swap(keeps, Ordering::AcqRel);
        if let (false, Backend::Memory(memory)) = (keeps, &self.backend) {
            memory.wipe_session_keys();
            if let Some(durable) = self.durable.as_ref().filter(|_| kept) {
                durable.save_soon();
            }
        }
    }

    /// Whether session keys are kept.
    pub fn keeps_session_keys(&self) -> bool {
        self.keeps_session_keys.load(Ordering::Acquire)
    }

    /// The kept session keys of a user, newest login first, at most three different ones; none if
    /// the user has no session.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn session_keys(&self, user: &User) -> Result<Vec<SessionKey>, StoreError> {
        if !self.keeps_session_keys() {
            return Ok(Vec::new());
        }
        match &self.backend {
            Backend::Memory(memory) => {
                Ok(memory.session_keys(user, |session| self.is_live(session)))
            }
            Backend::Redis(redis) => redis.session_keys(user).await,
        }
    }

    /// Makes a key that WeChat has just issued the newest one of a user. Without effect if the user
    /// has no session.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn replace_session_key(
        &self,
        user: &User,
        key: SessionKey,
    ) -> Result<(), StoreError> {
        if !self.keeps_session_keys() {
            return Ok(());
        }
        let logged_in_at_millis = self.clock.now_millis();
        let key = LoginKey { session_key: key, logged_in_at_millis };
        match &self.backend {
            Backend::Memory(memory) => {
                let told = Change::KeyReplaced { user: user.clone(), key: key.clone() };
                memory.replace_session_key(user, key, |session| self.is_live(session));
                self.note_change();
                self.tell(&told).await;
                Ok(())
            }
            Backend::Redis(redis) => redis.replace_session_key(user, key).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(number: u8, at: u64) -> LoginKey {
        let session_key = SessionKey::from_bytes(&[number; 16]);
        LoginKey { session_key, logged_in_at_millis: at }
    }

    fn kept(keys: &UserKeys) -> Vec<(u8, u64)> {
        keys.0.iter().map(|kept| (kept.session_key.bytes()[0], kept.logged_in_at_millis)).collect()
    }

    #[test]
    fn the_newest_three_different_keys_are_kept_in_any_order_of_logins() {
        let logins = [(1, 10), (2, 20), (3, 30), (4, 40), (2, 50), (4, 15)];
        for first in 0..logins.len() {
            for step in [1, 5] {
                let mut keys = UserKeys::default();
                assert!(keys.is_empty());
                for index in 0..logins.len() {
                    let (number, at) = logins[(first + index * step) % logins.len()];
                    keys.keep(login(number, at));
                    assert!(keys.0.len() <= KEPT_KEYS);
                }
                assert_eq!(kept(&keys), [(2, 50), (4, 40), (3, 30)], "{first} {step}");
                assert!(keys.newest_first()[0] == login(2, 0).session_key);
            }
        }
    }

    #[test]
    fn a_key_from_a_reset_is_newer_than_all_others() {
        let mut keys = UserKeys::default();
        keys.keep_as_newest(login(1, 10));
        keys.keep(login(2, 500));
        keys.keep_as_newest(login(3, 100));
        keys.keep_as_newest(login(1, 100));
        assert_eq!(kept(&keys), [(1, 502), (3, 501), (2, 500)]);
    }
}
