//! When the access token of an app is renewed, and what callers get until then.
//!
//! A token is renewed from five minutes before it expires, because from then on WeChat gives a new
//! one. Before that only if WeChat has rejected it, and at most every ten seconds. After a failure
//! nothing is tried for a while.

use std::time::Duration;

use rand::RngExt;
use subtle::ConstantTimeEq;

use super::{AccessToken, LONGEST_LIFETIME};
use crate::clock::millis;
use crate::identity::secret::Secret;
use crate::session::TokenRecord;
use crate::wechat::WeChatError;

/// WeChat gives a new token from this time before the old one expires.
const RENEWAL: Duration = Duration::from_secs(300);

/// Gateways renew at different times, up to this much later.
const JITTER: Duration = Duration::from_secs(60);

/// The shortest time between two renewals of an app, for all callers together.
pub const SHORTEST_INTERVAL: Duration = Duration::from_secs(10);

/// The longest time between two tries of a renewal that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a token is renewed.
pub enum Reason {
    /// There is none.
    Missing,
    /// It expires soon.
    Due,
    /// WeChat has rejected this one.
    Rejected(Secret),
}

/// What a renewal that is wanted leads to.
pub enum Verdict {
    /// It is not needed, or not allowed yet: there is this token.
    Use(AccessToken),
    /// It has failed with this error, and is not tried again yet.
    Failed(WeChatError),
    /// It is due.
    Renew,
}

/// The token of one app. All times are in milliseconds on the clock.
#[derive(Default)]
pub struct Schedule {
    current: Option<AccessToken>,
    /// When `current` was fetched, by whichever gateway.
    renewed_at: u64,
    /// When a token is fetched next, or may be after a failure.
    next: u64,
    /// The last failure, if there was no success since, and the pause after it.
    failure: Option<(WeChatError, Duration)>,
    /// Whether a caller has ever needed the token. From then on it is renewed.
    is_wanted: bool,
}

impl Schedule {
    /// Without a token. If one is wanted, it is fetched at once.
    pub fn new(is_wanted: bool) -> Self {
        Self { is_wanted, ..Self::default() }
    }

    pub fn is_wanted(&self) -> bool {
        self.is_wanted
    }

    /// The token, unless it has expired.
    pub fn current(&self, now: u64) -> Option<&AccessToken> {
        self.current.as_ref().filter(|token| now < token.expires_at_millis)
    }

    /// The same, for a caller.
    pub fn want(&mut self, now: u64) -> Option<AccessToken> {
        self.is_wanted = true;
        self.current(now).cloned()
    }

    /// Whether it is time for a renewal.
    pub fn is_due(&self, now: u64) -> bool {
        self.is_wanted && self.next <= now
    }

    pub fn verdict(&self, reason: &Reason, now: u64) -> Verdict {
        if let Some(current) = self.current(now) {
            let is_usable = match reason {
                Reason::Missing => true,
                Reason::Due => now < self.next,
                Reason::Rejected(rejected) => {
                    !is_same(&current.token, rejected) || is_recent(self.renewed_at, now)
                }
            };
            if is_usable {
                return Verdict::Use(current.clone());
            }
        }
        match &self.failure {
            Some((error, _)) if now < self.next => Verdict::Failed(error.clone()),
            _ => Verdict::Renew,
        }
    }

    /// Whether a token that another gateway has fetched can be used instead of a renewal.
    pub fn accepts(&self, record: &TokenRecord, reason: &Reason, now: u64) -> bool {
        let is_recent = is_recent(record.renewed_at_millis, now);
        let is_older = self.current(now).is_some() && record.renewed_at_millis < self.renewed_at;
        !is_older
            && now < record.expires_at_millis
            && match reason {
                Reason::Missing => true,
                Reason::Due => now + millis(RENEWAL) < record.expires_at_millis || is_recent,
                // One that is older than the rejected one is not valid either.
                Reason::Rejected(rejected) if is_same(&record.token, rejected) => is_recent,
                Reason::Rejected(_) => self.renewed_at <= record.renewed_at_millis,
            }
    }

    /// Keeps a token, and sets when it is renewed.
    pub fn keep(&mut self, record: TokenRecord, now: u64) -> AccessToken {
        let TokenRecord { token, expires_at_millis, renewed_at_millis } = record;
        // The clock of the gateway that has fetched it may be ahead.
        let renewed_at_millis = renewed_at_millis.min(now);
        let expires_at_millis = expires_at_millis.min(now + LONGEST_LIFETIME * 1000);
        let jitter = rand::rng().random_range(0..=millis(JITTER));
        let due = expires_at_millis.saturating_sub(millis(RENEWAL)) + jitter;
        let token = AccessToken { token, expires_at_millis };
        *self = Self {
            current: Some(token.clone()),
            renewed_at: renewed_at_millis,
            // A token that WeChat gives so late that it is due already.
            next: due.max(now + millis(SHORTEST_INTERVAL)),
            failure: None,
            is_wanted: self.is_wanted,
        };
        token
    }

    /// Sets when a failed renewal is tried again: after ten seconds, then after twice as long each
    /// time; after five minutes if WeChat rejects the app, because only an operator can change
    /// that. Returns this pause.
    pub fn fail(&mut self, error: &WeChatError, now: u64) -> Duration {
        let last = self.failure.as_ref().map(|(_, pause)| *pause);
        let pause = match error {
            WeChatError::Refused(_) => LONGEST_PAUSE,
            _ => last.map_or(SHORTEST_INTERVAL, |last| (last * 2).min(LONGEST_PAUSE)),
        };
        self.next = now + millis(pause);
        self.failure = Some((error.clone(), pause));
        pause
    }
}

/// A renewal long in the future was written by a gateway whose clock is ahead.
fn is_recent(renewed_at: u64, now: u64) -> bool {
    now.abs_diff(renewed_at) < millis(SHORTEST_INTERVAL)
}

/// In constant time: `rejected` may be a guess.
fn is_same(token: &Secret, rejected: &Secret) -> bool {
    token.expose().as_bytes().ct_eq(rejected.expose().as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wechat::reply::Reply;

    const SECOND: u64 = 1000;

    fn record(token: &str, at: u64) -> TokenRecord {
        TokenRecord {
            token: Secret::new(token.to_owned()),
            expires_at_millis: at + 7200 * SECOND,
            renewed_at_millis: at,
        }
    }

    fn rejected(token: &str) -> Reason {
        Reason::Rejected(Secret::new(token.to_owned()))
    }

    fn error(errcode: i64) -> WeChatError {
        let body = format!("{{\"errcode\":{errcode}}}");
        Reply::parse(body.as_bytes()).unwrap().failure().unwrap().unwrap()
    }

    fn used(verdict: Verdict) -> Option<String> {
        match verdict {
            Verdict::Use(token) => Some(token.token.expose().to_owned()),
            Verdict::Failed(_) | Verdict::Renew => None,
        }
    }

    #[test]
    fn a_token_is_renewed_from_five_minutes_before_it_expires_within_a_minute() {
        let mut earliest = u64::MAX;
        let mut latest = 0;
        for _ in 0..2000 {
            let mut schedule = Schedule::new(true);
            assert!(schedule.is_due(0));
            schedule.keep(record("t", 0), 0);
            assert!(!schedule.is_due(6900 * SECOND - 1) && schedule.is_due(6960 * SECOND));
            earliest = earliest.min(schedule.next);
            latest = latest.max(schedule.next);
        }
        assert!(earliest < 6901 * SECOND && latest > 6959 * SECOND, "{earliest} {latest}");
    }

    #[test]
    fn a_token_that_nobody_needed_is_not_fetched_and_one_that_is_due_not_every_second() {
        assert!(!Schedule::default().is_due(u64::MAX));
        let mut schedule = Schedule::new(true);
        let late = TokenRecord { expires_at_millis: 300 * SECOND, ..record("t", 0) };
        schedule.keep(late, 100 * SECOND);
        assert!(!schedule.is_due(110 * SECOND - 1) && schedule.is_due(110 * SECOND));
    }

    #[test]
    fn only_the_current_token_is_renewed_and_at_most_every_ten_seconds() {
        let mut schedule = Schedule::default();
        assert!(matches!(schedule.verdict(&Reason::Missing, 0), Verdict::Renew));
        assert!(matches!(schedule.verdict(&rejected("old"), 0), Verdict::Renew));
        schedule.keep(record("new", 0), 0);
        let at = |now| used(schedule.verdict(&rejected("new"), now));
        assert_eq!(at(10 * SECOND - 1).as_deref(), Some("new"));
        assert_eq!(at(10 * SECOND), None);
        assert_eq!(used(schedule.verdict(&rejected("old"), 60 * SECOND)).as_deref(), Some("new"));
        assert_eq!(used(schedule.verdict(&Reason::Missing, 7199 * SECOND)).as_deref(), Some("new"));
        assert_eq!(used(schedule.verdict(&Reason::Missing, 7200 * SECOND)), None);
    }

    #[test]
    fn pauses_after_failures_double_to_five_minutes_and_the_old_token_is_used_until_it_expires() {
        let mut schedule = Schedule::new(true);
        schedule.keep(record("old", 0), 0);
        let mut now = 6960 * SECOND;
        for pause in [10, 20, 40, 80, 160, 300, 300] {
            assert!(schedule.is_due(now));
            let failed = schedule.fail(&error(-1), now);
            assert_eq!(failed, Duration::from_secs(pause));
            assert!(!schedule.is_due(now + pause * SECOND - 1));
            let is_valid = now < 7200 * SECOND;
            assert_eq!(schedule.want(now).is_some(), is_valid);
            let verdict = schedule.verdict(&Reason::Missing, now);
            assert!(is_valid || matches!(verdict, Verdict::Failed(_)));
            now += pause * SECOND;
        }
        schedule.keep(record("new", now), now);
        assert_eq!(schedule.fail(&error(-1), now), SHORTEST_INTERVAL);
    }

    #[test]
    fn after_a_rejection_of_the_app_the_pause_is_five_minutes() {
        for errcode in [40164, 40125, 40013] {
            let mut schedule = Schedule::new(true);
            assert_eq!(schedule.fail(&error(errcode), 0), LONGEST_PAUSE);
            let verdict = schedule.verdict(&rejected("any"), 300 * SECOND - 1);
            assert!(matches!(verdict, Verdict::Failed(_)));
            assert!(matches!(schedule.verdict(&Reason::Missing, 300 * SECOND), Verdict::Renew));
        }
    }

    #[test]
    fn a_gateway_whose_clock_is_ahead_does_not_keep_others_from_renewing() {
        let hour = 3600 * SECOND;
        let ahead = record("ahead", hour);
        let mut schedule = Schedule::new(true);
        assert!(schedule.accepts(&ahead, &Reason::Missing, 0));
        assert!(!schedule.accepts(&ahead, &rejected("ahead"), 0));
        let token = schedule.keep(ahead, 0);
        assert_eq!(token.expires_at_millis, 7200 * SECOND);
        assert!(schedule.is_due(6960 * SECOND));
        assert_eq!(used(schedule.verdict(&rejected("ahead"), 10 * SECOND)), None);
        assert!(schedule.accepts(&record("next", 20 * SECOND), &rejected("ahead"), 20 * SECOND));
    }

    #[test]
    fn a_token_of_another_gateway_is_used_if_it_is_what_a_renewal_would_give() {
        let mut schedule = Schedule::new(true);
        let day = 86400 * SECOND;
        let stored = record("stored", day);
        for (reason, after, accepted) in [
            (Reason::Missing, 7199, true),
            (Reason::Missing, 7200, false),
            (Reason::Due, 6899, true),
            (Reason::Due, 6900, false),
            (rejected("stored"), 9, true),
            (rejected("stored"), 10, false),
            (rejected("another"), 10, true),
        ] {
            let now = day + after * SECOND;
            assert_eq!(schedule.accepts(&stored, &reason, now), accepted, "{after}");
        }
        schedule.keep(record("newer", day + SECOND), day + SECOND);
        assert!(!schedule.accepts(&stored, &Reason::Missing, day + 60 * SECOND));
        assert!(!schedule.accepts(&stored, &rejected("newer"), day + 60 * SECOND));
    }
}
