//! Users whose logins are rejected for a time.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::identity::{AppId, OpenId, User, UserId};
use crate::session::{KnownUser, MAX_BLOCKED};

#[derive(Default)]
pub struct Blocks(Mutex<HashMap<User, Block>>);

struct Block {
    /// In the time of the clock.
    until: u64,
    user_id: Option<UserId>,
}

impl Blocks {
    /// Blocks a user. Returns whether there was room.
    pub fn set(&self, known: KnownUser, until: u64, now: u64) -> bool {
        let KnownUser { user, user_id } = known;
        let mut blocks = self.0.lock();
        if blocks.len() >= MAX_BLOCKED && !blocks.contains_key(&user) {
            blocks.retain(|_, block| now < block.until);
            if blocks.len() >= MAX_BLOCKED {
                return false;
            }
        }
        blocks.insert(user, Block { until, user_id });
        true
    }

    pub fn remove(&self, user: &User) {
        self.0.lock().remove(user);
    }

    /// The end of a user's current block.
    pub fn until(&self, user: &User, now: u64) -> Option<u64> {
        self.0.lock().get(user).map(|block| block.until).filter(|until| now < *until)
    }

    /// A user's current block, with its end.
    pub fn get(&self, user: &User, now: u64) -> Option<(KnownUser, u64)> {
        let blocks = self.0.lock();
        let Block { until, user_id } = blocks.get(user).filter(|block| now < block.until)?;
        Some((KnownUser { user: user.clone(), user_id: user_id.clone() }, *until))
    }

    /// All current blocks, with their ends.
    pub fn all(&self, now: u64) -> Vec<(KnownUser, u64)> {
        let blocks = self.0.lock();
        let current = blocks.iter().filter(|(_, block)| now < block.until);
        let known = |(user, block): (&User, &Block)| {
            (KnownUser { user: user.clone(), user_id: block.user_id.clone() }, block.until)
        };
        current.map(known).collect()
    }

    /// Finds the blocked users of an app for whom `matches` is true.
    pub fn find(
        &self,
        app_id: &AppId,
        matches: &impl Fn(&OpenId, Option<&UserId>) -> bool,
    ) -> Vec<KnownUser> {
        let known = |(user, block): (&User, &Block)| KnownUser {
            user: user.clone(),
            user_id: block.user_id.clone(),
        };
        // `matches` is slow, and logins wait for the lock.
        let mut blocked: Vec<KnownUser> = {
            let blocks = self.0.lock();
            blocks.iter().filter(|(user, _)| user.app_id == *app_id).map(known).collect()
        };
        blocked.retain(|known| matches(&known.user.openid, known.user_id.as_ref()));
        blocked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(number: usize) -> KnownUser {
        KnownUser { user: user(number), user_id: None }
    }

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
            assert!(blocks.set(known(number), 100, 0));
        }
        assert!(!blocks.set(known(MAX_BLOCKED), 1000, 99));
        assert_eq!(blocks.until(&user(0), 99), Some(100));
        // An existing block can be changed, and a removed one makes room.
        assert!(blocks.set(known(0), 1000, 99));
        blocks.remove(&user(1));
        assert!(blocks.set(known(MAX_BLOCKED), 1000, 99));
        assert!(!blocks.set(known(MAX_BLOCKED + 1), 1000, 99));
        // Expired ones make room as well.
        assert!(blocks.set(known(MAX_BLOCKED + 1), 1000, 100));
        assert_eq!(blocks.0.lock().len(), 3);
    }
}
