//! How long an idle connection to a server is kept.
//!
//! Servers close idle connections, too. A request that is sent at that moment may be lost: one that
//! is not idempotent is not sent again. So the gateway closes first. `Keep-Alive: timeout=N` is
//! remembered by server, not by connection, because pingora sets the timeout of a connection before
//! its response arrives: the smallest N of the last minute counts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::HeaderName;
use pingora::http::ResponseHeader;

use crate::header::{elements, trim};

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Without a setting or a `Keep-Alive`. uvicorn, Node and Apache close after 5 seconds.
const DEFAULT: Duration = Duration::from_secs(4);

/// The longest time that a server can ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Time for a request on its way to the server.
const MARGIN: Duration = Duration::from_secs(1);

/// Seconds for which a server's value is remembered.
const REMEMBERED: u32 = 60;

/// What is known of one server.
pub struct KeepAlive {
    set: Option<Duration>,
    began: Instant,
    /// The last value and its time in one number: see [`Said`]. 0: none was sent.
    said: AtomicU64,
}

/// What a server said, and when, in seconds since `began`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Said {
    at: u32,
    seconds: u32,
}

impl KeepAlive {
    /// `set` is the limit of the configuration, if there is one.
    pub fn new(set: Option<Duration>) -> Self {
        Self { set, began: Instant::now(), said: AtomicU64::new(0) }
    }

    /// Whether a response says how long its connection is kept.
    pub fn is_said(response: &ResponseHeader) -> bool {
        response.headers.contains_key(&KEEP_ALIVE)
    }

    /// How long a connection is kept from now on; `None` when it is not.
    pub fn time(&self) -> Option<Duration> {
        self.time_at(|| self.now())
    }

    fn time_at(&self, now: impl Fn() -> u32) -> Option<Duration> {
        let said = Said::unpack(self.said.load(Ordering::Relaxed));
        let Some(said) = said.filter(|said| said.lasts(now())) else {
            return Some(self.set.unwrap_or(DEFAULT));
        };
        let time = Duration::from_secs(said.seconds.into()).checked_sub(MARGIN)?.min(LONGEST);
        Some(self.set.map_or(time, |set| set.min(time))).filter(|time| !time.is_zero())
    }

    /// Remembers what a response says.
    pub fn hear(&self, response: &ResponseHeader) {
        let lines = response.headers.get_all(&KEEP_ALIVE).iter();
        if let Some(seconds) = lines.filter_map(|line| timeout(line.as_bytes())).min() {
            self.note(Said { at: self.now(), seconds });
        }
    }

    fn note(&self, new: Said) {
        // Written at most once a second while the value stays the same.
        let _ = self.said.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
            let counts = Said::unpack(packed)
                .is_none_or(|known| new.seconds <= known.seconds || !known.lasts(new.at));
            Some(new.pack()).filter(|new| counts && *new != packed)
        });
    }

    fn now(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX)
    }
}

impl Said {
    fn pack(self) -> u64 {
        u64::from(self.at) << 32 | u64::from(self.seconds.saturating_add(1))
    }

    fn unpack(packed: u64) -> Option<Self> {
        let low = |packed: u64| u32::try_from(packed & u64::from(u32::MAX)).unwrap_or(u32::MAX);
        Some(Self { at: low(packed >> 32), seconds: low(packed).checked_sub(1)? })
    }

    fn lasts(self, now: u32) -> bool {
        now.saturating_sub(self.at) <= REMEMBERED
    }
}

/// How long a connection is kept whose last response had these lines, where `set` is the limit of
/// the configuration; `None` when it is not.
pub fn time<'a>(set: Option<Duration>, said: impl Iterator<Item = &'a [u8]>) -> Option<Duration> {
    let Some(seconds) = said.filter_map(timeout).min() else {
        return Some(set.unwrap_or(DEFAULT));
    };
    let time = Duration::from_secs(seconds.into()).checked_sub(MARGIN)?.min(LONGEST);
    Some(set.map_or(time, |set| set.min(time))).filter(|time| !time.is_zero())
}

/// The smallest `timeout` of a line, in seconds. Malformed ones are ignored.
fn timeout(line: &[u8]) -> Option<u32> {
    let seconds = |parameter: &[u8]| {
        let equals = memchr::memchr(b'=', parameter)?;
        let (name, value) = parameter.split_at_checked(equals)?;
        let value = trim(value.get(1..)?);
        let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        if !trim(name).eq_ignore_ascii_case(b"timeout") || !is_number {
            return None;
        }
        str::from_utf8(value).ok()?.parse().ok()
    };
    elements(line).filter_map(seconds).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn after(set: Option<Duration>, said: &[(u32, u32)], now: u32) -> Option<Duration> {
        let keep_alive = KeepAlive::new(set);
        for (at, seconds) in said {
            keep_alive.note(Said { at: *at, seconds: *seconds });
        }
        keep_alive.time_at(|| now)
    }

    #[test]
    fn a_connection_is_kept_a_second_less_than_the_server_says() {
        assert_eq!(after(None, &[], 0), Some(4 * SECOND));
        for (seconds, kept) in
            [(0, None), (1, None), (2, Some(1)), (5, Some(4)), (61, Some(60)), (600, Some(60))]
        {
            assert_eq!(after(None, &[(0, seconds)], 0), kept.map(|kept| kept * SECOND));
        }
        assert_eq!(after(Some(SECOND / 2), &[(0, 5)], 0), Some(SECOND / 2));
        assert_eq!(after(Some(75 * SECOND), &[(0, 5)], 0), Some(4 * SECOND));
        assert_eq!(after(Some(75 * SECOND), &[(0, 600)], 0), Some(60 * SECOND));
        assert_eq!(after(Some(75 * SECOND), &[], 0), Some(75 * SECOND));
        assert_eq!(after(Some(75 * SECOND), &[(0, 1)], 0), None);
    }

    #[test]
    fn the_smallest_of_the_last_minute_counts() {
        assert_eq!(after(None, &[(0, 5), (1, 3), (2, 9)], 3), Some(2 * SECOND));
        assert_eq!(after(None, &[(0, 3), (30, 3), (80, 9)], 80), Some(2 * SECOND));
        assert_eq!(after(None, &[(0, 3), (61, 9)], 61), Some(8 * SECOND));
        assert_eq!(after(None, &[(0, 9)], 60), Some(8 * SECOND));
        assert_eq!(after(None, &[(0, 9)], 61), Some(4 * SECOND));
    }

    #[test]
    fn what_is_malformed_does_not_count() {
        for (line, seconds) in [
            ("timeout=5", Some(5)),
            ("max=100, Timeout = 5", Some(5)),
            ("timeout=65,timeout=5", Some(5)),
            ("timeout=x, timeout=5", Some(5)),
            ("timeout=4294967295", Some(u32::MAX)),
            ("timeout=4294967296", None),
            ("timeout", None),
            ("timeout=", None),
            ("timeout=-1", None),
            ("timeout=+1", None),
            ("timeout=1s", None),
            ("timeout=\"1\"", None),
            ("xtimeout=1", None),
            ("max=1", None),
            ("", None),
        ] {
            assert_eq!(timeout(line.as_bytes()), seconds, "{line}");
        }
        let longest = Said { at: u32::MAX, seconds: u32::MAX - 1 };
        assert!(Said::unpack(longest.pack()) == Some(longest));
    }
}
