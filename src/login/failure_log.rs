//! Logs why logins fail at WeChat, once a minute.
//!
//! When WeChat rejects an app, or cannot be reached, every login fails for the same reason. It is
//! logged once a minute, with the number of suppressed lines.

use std::borrow::Cow;

use crate::clock::Clock;
use crate::telemetry::log_throttle::LogThrottles;
use crate::wechat::{ErrCode, WeChatError};

/// Limits how often the same failure is logged.
pub struct FailureLog {
    /// By app and kind of failure. WeChat decides how many errcodes there are.
    throttles: LogThrottles<(String, Cow<'static, str>)>,
}

impl FailureLog {
    pub fn new(clock: Clock) -> Self {
        Self { throttles: LogThrottles::new(clock) }
    }

    /// Logs why a login failed, unless the same was logged less than a minute ago.
    pub fn log(&self, error: &WeChatError, app_id: &str, request_id: &str) {
        let meaning = error.errcode().and_then(ErrCode::meaning);
        if matches!(error, WeChatError::InvalidCode(_) | WeChatError::Snapshot) {
            tracing::debug!(request_id, app_id, %error, meaning, "login rejected");
            return;
        }
        let kind = (app_id.to_owned(), error.kind());
        let Some(suppressed) = self.throttles.suppressed(kind) else { return };
        if matches!(error, WeChatError::UserBlocked(_)) {
            let what = "login rejected; logged once a minute";
            tracing::info!(request_id, app_id, %error, meaning, suppressed, "{what}");
            return;
        }
        let report = error.error_report();
        tracing::error!(
            request_id,
            app_id,
            %error,
            meaning,
            rid = report.and_then(|report| report.rid.as_deref()),
            seen_address = report.and_then(|r| r.seen_address).map(tracing::field::display),
            suppressed,
            "login failed; logged once a minute"
        );
    }
}
