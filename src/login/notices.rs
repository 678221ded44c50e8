//! What somebody must act on, said once a minute.
//!
//! When WeChat refuses an app, or cannot be reached, every login fails for the same reason;
//! one line a minute says so, and how many were like it since the last.

use std::borrow::Cow;

use crate::clock::Clock;
use crate::seldom::SeldomEach;
use crate::wechat::WeChatError;

/// What was said of late.
pub struct Notices {
    /// By app and kind of failure; WeChat chooses its numbers.
    said: SeldomEach<(String, Cow<'static, str>)>,
}

impl Notices {
    pub fn new(clock: Clock) -> Self {
        Self { said: SeldomEach::new(clock) }
    }

    /// Says why a login failed, if it was not just said.
    pub fn say(&self, error: &WeChatError, app_id: &str, request_id: &str) {
        if !error.is_for_the_operator() {
            tracing::debug!(request_id, app_id, %error, "login refused");
            return;
        }
        let kind = (app_id.to_owned(), error.kind());
        let Some(suppressed) = self.said.suppressed(kind) else { return };
        let refusal = error.refusal();
        tracing::error!(
            request_id,
            app_id,
            %error,
            rid = refusal.and_then(|refusal| refusal.rid.as_deref()),
            seen_address = refusal.and_then(|r| r.seen_address).map(tracing::field::display),
            suppressed,
            "logins fail; said once a minute"
        );
    }
}
