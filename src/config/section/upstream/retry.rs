//! `[upstream.retry]`, and `retry` of a route: which failed requests are sent again.

use std::time::Duration;

use toml::de::DeValue;

use super::Upstream;
use crate::config::document::from_value::{FromValue, text, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::percent::hundredths;

/// Which failed requests are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts beyond the first; 0: none.
    pub attempts: u32,
    /// `None`: `connect` and `reset`, and `timeout` if `per_try_timeout` is set.
    pub on: Option<RetryOn>,
    /// Hundredths of a percent of the requests of the last ten seconds.
    pub budget: u32,
    /// The longest time until the first byte of a response.
    pub per_try_timeout: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, on: None, budget: 2_000, per_try_timeout: None }
    }
}

impl Retry {
    /// The failures after which a request is sent again.
    pub fn on(&self) -> RetryOn {
        let timeout = self.per_try_timeout.is_some();
        self.on.unwrap_or(RetryOn { connect: true, reset: true, timeout, ..RetryOn::default() })
    }

    /// With the keys that a route sets itself.
    #[must_use]
    pub fn with(&self, route: &RouteRetry) -> Self {
        Self {
            attempts: route.attempts.unwrap_or(self.attempts),
            on: route.on.or(self.on),
            budget: route.budget.unwrap_or(self.budget),
            per_try_timeout: route.per_try_timeout.or(self.per_try_timeout),
        }
    }
}

/// The failures after which a request is sent again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of the configuration")]
pub struct RetryOn {
    pub connect: bool,
    pub reset: bool,
    pub timeout: bool,
    pub status_502: bool,
    pub status_503: bool,
    pub status_504: bool,
}

impl RetryOn {
    /// Whether a response with this status is a failure.
    pub fn has_status(&self, status: u16) -> bool {
        match status {
            502 => self.status_502,
            503 => self.status_503,
            504 => self.status_504,
            _ => false,
        }
    }
}

/// The keys of `retry` that a route sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteRetry {
    pub attempts: Option<u32>,
    pub on: Option<RetryOn>,
    pub budget: Option<u32>,
    pub per_try_timeout: Option<Duration>,
}

/// Maximum number of attempts beyond the first.
const MOST: usize = 10;

/// Reads the section of an upstream; without it, the defaults apply.
pub fn read(section: Table<'_>, read_timeout: Duration) -> Retry {
    let keys = keys(&section);
    let retry = Retry::default().with(&keys);
    judge(&section, &[(retry, read_timeout)]);
    section.finish();
    retry
}

/// Reads the section of a route, whose requests go to some upstreams. `read_timeout` is the route's
/// own.
pub fn read_of_route<'a>(
    section: Table<'_>,
    upstreams: impl Iterator<Item = &'a Upstream>,
    read_timeout: Option<Duration>,
) -> RouteRetry {
    let keys = keys(&section);
    let results = upstreams.map(|upstream| {
        (upstream.retry.with(&keys), read_timeout.unwrap_or(upstream.read_timeout))
    });
    judge(&section, &results.collect::<Vec<_>>());
    section.finish();
    keys
}

fn keys(section: &Table<'_>) -> RouteRetry {
    let attempts = section.number("attempts", 0, 0..=MOST);
    let attempts = section.has("attempts").then(|| u32::try_from(attempts).unwrap_or_default());
    let help = "attempts = 0 turns retries off";
    let on = section.some::<Failure>("on", help).map(|listed| on(section, listed));
    RouteRetry {
        attempts,
        on,
        budget: section.get::<Budget>("budget").map(|budget| budget.value.0),
        per_try_timeout: section.optional_positive("per_try_timeout"),
    }
}

fn on(section: &Table<'_>, listed: Vec<Located<Failure>>) -> RetryOn {
    let mut on = RetryOn::default();
    for failure in listed {
        let flag = match failure.value {
            Failure::Connect => &mut on.connect,
            Failure::Reset => &mut on.reset,
            Failure::Timeout => &mut on.timeout,
            Failure::Status502 => &mut on.status_502,
            Failure::Status503 => &mut on.status_503,
            Failure::Status504 => &mut on.status_504,
        };
        if std::mem::replace(flag, true) {
            section.problem(&failure, "is listed twice", "");
        }
    }
    on
}

/// Reports keys without effect. `results`: the retries that a section results in, each with the
/// `read_timeout` of the same requests.
fn judge(section: &Table<'_>, results: &[(Retry, Duration)]) {
    let is_off = !results.is_empty() && results.iter().all(|(retry, _)| retry.attempts == 0);
    for name in ["on", "budget"] {
        if is_off && section.has(name) {
            section.warn_of(name, "has no effect with attempts = 0: no request is sent again");
        }
    }
    let lacks_limit =
        |retry: &Retry| retry.on.is_some_and(|on| on.timeout) && retry.per_try_timeout.is_none();
    if section.has("on") && results.iter().any(|(retry, _)| lacks_limit(retry)) {
        let message = "\"timeout\" has no effect without per_try_timeout";
        section.problem_of(
            "on",
            message,
            "set it as well: read_timeout ends a request without a retry",
        );
    }
    let is_late = |(retry, read_timeout): &&(Retry, Duration)| {
        retry.per_try_timeout.is_some_and(|limit| limit >= *read_timeout)
    };
    if section.has("per_try_timeout")
        && let Some((_, read_timeout)) = results.iter().find(is_late)
    {
        let read_timeout = humantime::format_duration(*read_timeout);
        let message = format!(
            "has no effect: read_timeout ({read_timeout}) ends the request before another attempt"
        );
        section.warn_of("per_try_timeout", &message);
    }
}

/// A word of `on`.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Connect,
    Reset,
    Timeout,
    Status502,
    Status503,
    Status504,
}

impl FromValue for Failure {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words = [
            ("connect", Self::Connect),
            ("reset", Self::Reset),
            ("timeout", Self::Timeout),
            ("502", Self::Status502),
            ("503", Self::Status503),
            ("504", Self::Status504),
        ];
        word(value, &words)
    }
}

/// In hundredths of a percent.
struct Budget(u32);

impl FromValue for Budget {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "a percentage from \"0%\" to \"100%\" with at most two decimals, such as \"20%\"";
        let given = text(value, EXPECTED)?;
        let budget = given.strip_suffix('%').and_then(hundredths);
        budget
            .map(|budget| Self(budget.into()))
            .ok_or_else(|| format!("expected {EXPECTED}, found \"{given}\""))
    }
}
