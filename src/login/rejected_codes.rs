//! Detects an app whose codes are all rejected by WeChat.
//!
//! A single rejected code is normal: it was used twice, or has expired. When all codes of an app
//! have been rejected for a minute, the usual reason is that its clients have a different app id
//! from the gateway, and nothing else shows that. It is logged once a minute. The check runs only
//! when a login is served, and the state for each app has a fixed size. What clients send about
//! themselves is logged but never trusted.

use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::telemetry::log_throttle::LogThrottle;

/// The time without a success before a line is logged, and the time between two lines.
const MINUTE: Duration = Duration::from_secs(60);

/// The start of the URLs of the pages of Mini Programs.
const PAGES: &str = "https://servicewechat.com/";

/// The results for the codes of one app.
pub struct RejectedCodes {
    clock: Clock,
    state: Mutex<CodeCounts>,
    mock: LogThrottle,
}

#[derive(Default)]
struct CodeCounts {
    succeeded_at: Option<Duration>,
    reported_at: Option<Duration>,
    /// Since the last success or log line.
    rejected: u64,
    /// How many clients named the right app id.
    named_right: u64,
    /// The other app id that most clients named, and its lead over all others.
    named: Option<(ClaimedAppId, u64)>,
}

/// An app id as a client named it; only its format has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimedAppId([u8; 18]);

impl ClaimedAppId {
    /// The app id in the `Referer` of a Mini Program,
    /// `https://servicewechat.com/APP_ID/VERSION/page-frame.html`.
    pub fn in_referer(referer: &str) -> Option<Self> {
        let app_id = referer.strip_prefix(PAGES)?.split('/').next()?;
        let digits = app_id.strip_prefix("wx")?;
        let is_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        let is_app_id = digits.len() == 16 && digits.bytes().all(is_hex);
        app_id.as_bytes().try_into().ok().filter(|_| is_app_id).map(Self)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// What to log about an app whose codes are all rejected.
#[derive(Debug, PartialEq, Eq)]
pub struct AllRejected {
    /// Rejected codes since the last success or log line.
    pub count: u64,
    /// Another app id that the clients named.
    pub named: Option<ClaimedAppId>,
}

impl RejectedCodes {
    pub fn new(clock: Clock) -> Self {
        Self { state: Mutex::default(), mock: LogThrottle::new(clock.clone()), clock }
    }

    /// Records that a login of the app has succeeded.
    pub fn succeeded(&self) {
        let now = self.clock.now();
        let mut state = self.state.lock();
        *state = CodeCounts {
            succeeded_at: Some(now),
            reported_at: state.reported_at,
            ..CodeCounts::default()
        };
    }

    /// Counts a code of `app_id` that WeChat has rejected, with the app id that its client named.
    /// Returns what to log now, if anything.
    pub fn rejected(&self, app_id: &str, named: Option<ClaimedAppId>) -> Option<AllRejected> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.rejected += 1;
        match named {
            Some(named) if named.as_str() == app_id => state.named_right += 1,
            Some(named) => state.count(named),
            None => {}
        }
        let is_recent = |at: Option<Duration>| at.is_some_and(|at| now < at + MINUTE);
        if is_recent(state.succeeded_at) || is_recent(state.reported_at) {
            return None;
        }
        state.reported_at = Some(now);
        let named_right = std::mem::take(&mut state.named_right);
        let named = state.named.take().filter(|(_, count)| *count >= named_right);
        let named = named.map(|(named, _)| named);
        Some(AllRejected { count: std::mem::take(&mut state.rejected), named })
    }

    /// Counts a mock code of the developer tools. If it is to be logged now, returns how many were
    /// suppressed since the last line.
    pub fn mocked(&self) -> Option<u64> {
        self.mock.suppressed()
    }
}

impl CodeCounts {
    /// Keeps the id that a majority of clients named, if there is one, in constant space.
    fn count(&mut self, named: ClaimedAppId) {
        self.named = match self.named {
            Some((first, count)) if first == named => Some((first, count.saturating_add(1))),
            Some((first, count @ 2..)) => Some((first, count - 1)),
            _ => Some((named, 1)),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "wx0123456789abcdef";

    fn named(app_id: &str) -> Option<ClaimedAppId> {
        ClaimedAppId::in_referer(&format!("{PAGES}{app_id}/12/page-frame.html"))
    }

    #[test]
    fn only_a_valid_app_id_is_taken_from_a_referer() {
        assert_eq!(named("wx0123456789abcdef").unwrap().as_str(), "wx0123456789abcdef");
        for wrong in [
            "",
            "wx",
            "touristappid",
            "wx0123456789abcde",
            "wx0123456789abcdeff",
            "wx0123456789abcdeg",
            "wx0123456789ABCDEF",
            "WX0123456789abcdef",
            "wx0123456789abcdef?",
            "wx%30123456789abcde",
            "../wx0123456789abcdef",
        ] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
        for referer in [
            "https://example.com/wx0123456789abcdef/12/page-frame.html",
            "http://servicewechat.com/wx0123456789abcdef/",
            "https://servicewechat.com.evil/wx0123456789abcdef/",
            "https://me@servicewechat.com/wx0123456789abcdef/",
        ] {
            assert_eq!(ClaimedAppId::in_referer(referer), None, "{referer}");
        }
    }

    #[test]
    fn all_rejected_is_reported_once_a_minute_with_the_count() {
        let clock = Clock::manual();
        let rejected_codes = RejectedCodes::new(clock.clone());
        let other = named("wxfedcba9876543210");
        let report = |count, named| Some(AllRejected { count, named });
        assert_eq!(rejected_codes.rejected(APP, named(APP)), report(1, None));
        for _ in 0..5 {
            assert_eq!(rejected_codes.rejected(APP, other), None);
        }
        assert_eq!(rejected_codes.rejected(APP, named("wx1111111111111111")), None);
        clock.advance(MINUTE);
        assert_eq!(rejected_codes.rejected(APP, None), report(7, other));
        clock.advance(MINUTE);
        assert_eq!(rejected_codes.rejected(APP, None), report(1, None));
    }

    #[test]
    fn one_client_with_another_app_id_does_not_outweigh_those_with_the_right_one() {
        let clock = Clock::manual();
        let rejected_codes = RejectedCodes::new(clock.clone());
        let other = named("wxfedcba9876543210");
        assert!(rejected_codes.rejected(APP, None).is_some());
        for client in [named(APP), other, named(APP)] {
            assert_eq!(rejected_codes.rejected(APP, client), None);
        }
        clock.advance(MINUTE);
        let report = Some(AllRejected { count: 4, named: None });
        assert_eq!(rejected_codes.rejected(APP, named(APP)), report);
    }

    #[test]
    fn after_a_success_nothing_is_reported_for_a_minute() {
        let clock = Clock::manual();
        let rejected_codes = RejectedCodes::new(clock.clone());
        for _ in 0..10 {
            rejected_codes.succeeded();
            clock.advance(Duration::from_millis(59_999));
            assert_eq!(rejected_codes.rejected(APP, None), None);
        }
        clock.advance(Duration::from_millis(1));
        let report = Some(AllRejected { count: 2, named: None });
        assert_eq!(rejected_codes.rejected(APP, None), report);
    }
}
