//! What somebody must act on, said once a minute.
//!
//! When WeChat refuses an app, or cannot be reached, every login fails for the same reason;
//! one line a minute says so, and how many were like it since the last.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::wechat::WeChatError;

/// Between two lines about the same.
const INTERVAL: Duration = Duration::from_secs(60);

/// What was said of late.
pub struct Notices {
    clock: Clock,
    /// By app and kind of failure: as many as there are of both.
    said: Mutex<HashMap<(String, &'static str), Said>>,
}

struct Said {
    at: Duration,
    since: u64,
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
        let Some(others) = self.others_since(app_id, error.kind()) else { return };
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

    /// How many were like it since the last line; `None` while that is not a minute ago.
    fn others_since(&self, app_id: &str, kind: &'static str) -> Option<u64> {
        let now = self.clock.now();
        // Nothing panics while it holds the lock.
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(last) = said.get_mut(&(app_id.to_owned(), kind)) else {
            said.insert((app_id.to_owned(), kind), Said { at: now, since: 0 });
            return Some(0);
        };
        if now < last.at + INTERVAL {
            last.since += 1;
            return None;
        }
        last.at = now;
        Some(std::mem::take(&mut last.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_with_the_number_of_others() {
        let clock = Clock::manual();
        let notices = Notices::new(clock.clone());
        assert_eq!(notices.others_since("wx1", "40125"), Some(0));
        assert_eq!(notices.others_since("wx1", "40125"), None);
        assert_eq!(notices.others_since("wx2", "40125"), Some(0));
        assert_eq!(notices.others_since("wx1", "40164"), Some(0));
        clock.advance(Duration::from_millis(59_999));
        assert_eq!(notices.others_since("wx1", "40125"), None);
        clock.advance(Duration::from_millis(1));
        assert_eq!(notices.others_since("wx1", "40125"), Some(2));
        assert_eq!(notices.others_since("wx1", "40125"), None);
    }
}
