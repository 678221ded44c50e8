//! What somebody must act on, said once a minute.
//!
//! When WeChat refuses an app, or cannot be reached, every login fails for the same reason;
//! one line a minute says so, and how many were like it since the last.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::clock::Clock;
use crate::seldom::Seldom;
use crate::wechat::WeChatError;

/// Kinds of trouble told apart; WeChat chooses its numbers.
const MOST: usize = 1000;

/// What was said of late.
pub struct Notices {
    clock: Clock,
    /// By app and kind of failure.
    said: Mutex<HashMap<(String, Cow<'static, str>), Seldom>>,
}

impl Notices {
    pub fn new(clock: Clock) -> Self {
        Self { clock, said: Mutex::default() }
    }

    /// Says why a login failed, if it was not just said.
    pub fn say(&self, error: &WeChatError, app_id: &str, request_id: &str) {
        if !error.is_for_the_operator() {
            tracing::debug!(request_id, app_id, %error, "login refused");
            return;
        }
        let Some(others) = self.others(app_id, error.kind()) else { return };
        let refusal = error.refusal();
        tracing::error!(
            request_id,
            app_id,
            %error,
            rid = refusal.and_then(|refusal| refusal.rid.as_deref()),
            seen_address = refusal.and_then(|r| r.seen_address).map(tracing::field::display),
            others,
            "logins fail; said once a minute"
        );
    }

    fn others(&self, app_id: &str, kind: Cow<'static, str>) -> Option<u64> {
        // Nothing panics while it holds the lock.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (app_id.to_owned(), kind);
        if said.len() >= MOST && !said.contains_key(&key) {
            key.1 = Cow::Borrowed("other");
        }
        said.entry(key).or_insert_with(|| Seldom::new(self.clock.clone())).others()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_of_each_app_is_told_apart_as_long_as_there_are_not_too_many() {
        let notices = Notices::new(Clock::manual());
        assert_eq!(notices.others("wx1", "40125".into()), Some(0));
        assert_eq!(notices.others("wx1", "40125".into()), None);
        assert_eq!(notices.others("wx2", "40125".into()), Some(0));
        assert_eq!(notices.others("wx1", "40164".into()), Some(0));
        let said =
            (0..10_000).filter_map(|number: i32| notices.others("wx1", number.to_string().into()));
        assert_eq!(said.count(), MOST - 3 + 1);
        assert_eq!(notices.others("wx1", "40125".into()), None);
    }
}
