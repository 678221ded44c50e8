//! Users whose logins are rejected for a time.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::identity::{AppId, OpenId, User};
use crate::session::MAX_BLOCKED;

/// The end of each user's block, in the time of the clock.
#[derive(Default)]
pub struct Blocks(Mutex<HashMap<User, u64>>);

impl Blocks {
    /// Blocks a user. Returns whether there was room.
    pub fn set(&self, user: User, until: u64, now: u64) -> bool {
        let mut blocks = self.0.lock();
        if blocks.len() >= MAX_BLOCKED && !blocks.contains_key(&user) {
            blocks.retain(|_, until| now < *until);
            if blocks.len() >= MAX_BLOCKED {
                return false;
            }
        }
        blocks.insert(user, until);
        true
    }

    pub fn remove(&self, user: &User) {
        self.0.lock().remove(user);
    }

    /// The end of a user's current block.
    pub fn until(&self, user: &User, now: u64) -> Option<u64> {
        self.0.lock().get(user).copied().filter(|until| now < *until)
    }

    /// Finds the blocked user of an app for whom `matches` is true.
    pub fn find(&self, app_id: &AppId, matches: &impl Fn(&OpenId) -> bool) -> Option<User> {
        // `matches` is slow, and logins wait for the lock.
        let users: Vec<User> =
            self.0.lock().keys().filter(|user| user.app_id == *app_id).cloned().collect();
        users.into_iter().find(|user| matches(&user.openid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(number: usize) -> User {
        User {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse(&format!("o{number}")).unwrap(),
        }
    }

    #[test]
    fn at_the_limit_a_block_is_rejected_and_none_is_removed_before_it_ends() {
        let blocks = Blocks::default();
        for number in 0..MAX_BLOCKED {
            assert!(blocks.set(user(number), 100, 0));
        }
        assert!(!blocks.set(user(MAX_BLOCKED), 1000, 99));
        assert_eq!(blocks.until(&user(0), 99), Some(100));
        // An existing block can be changed, and a removed one makes room.
        assert!(blocks.set(user(0), 1000, 99));
        blocks.remove(&user(1));
        assert!(blocks.set(user(MAX_BLOCKED), 1000, 99));
        assert!(!blocks.set(user(MAX_BLOCKED + 1), 1000, 99));
        // Expired ones make room as well.
        assert!(blocks.set(user(MAX_BLOCKED + 1), 1000, 100));
        assert_eq!(blocks.0.lock().len(), 3);
    }
}
