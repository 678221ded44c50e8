//! How long an idle connection to a server is kept.
//!
//! Servers also close idle connections. A request that is sent at that moment may be lost, and one
//! that is not idempotent is not sent again. So the gateway closes the connection first.

use std::time::Duration;

use crate::message::header::{elements, trim};

/// Used without a configured limit or a `Keep-Alive` header. uvicorn, Node and Apache close after 5
/// seconds.
const DEFAULT: Duration = Duration::from_secs(4);

/// The longest time that a server can request.
const LONGEST: Duration = Duration::from_secs(60);

/// The time that a request needs to reach the server.
const MARGIN: Duration = Duration::from_secs(1);

/// How long to keep a connection whose last response had these `Keep-Alive` lines; `None`: it is
/// closed. `configured` is the limit of the configuration.
pub fn time<'a>(
    configured: Option<Duration>,
    lines: impl Iterator<Item = &'a [u8]>,
) -> Option<Duration> {
    let Some(seconds) = lines.filter_map(timeout).min() else {
        return Some(configured.unwrap_or(DEFAULT));
    };
    let time = Duration::from_secs(seconds.into()).checked_sub(MARGIN)?.min(LONGEST);
    Some(configured.map_or(time, |configured| configured.min(time))).filter(|time| !time.is_zero())
}

/// The smallest `timeout` of a line, in seconds. Malformed values are ignored.
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

    fn after(configured: Option<Duration>, lines: &[&str]) -> Option<Duration> {
        time(configured, lines.iter().map(|line| line.as_bytes()))
    }

    #[test]
    fn a_connection_is_kept_a_second_less_than_the_server_announces() {
        assert_eq!(after(None, &[]), Some(4 * SECOND));
        for (seconds, kept) in
            [(0, None), (1, None), (2, Some(1)), (5, Some(4)), (61, Some(60)), (600, Some(60))]
        {
            let lines = format!("timeout={seconds}");
            assert_eq!(after(None, &[&lines]), kept.map(|kept| kept * SECOND));
        }
        assert_eq!(after(Some(SECOND / 2), &["timeout=5"]), Some(SECOND / 2));
        assert_eq!(after(Some(75 * SECOND), &["timeout=5"]), Some(4 * SECOND));
        assert_eq!(after(Some(75 * SECOND), &["timeout=600"]), Some(60 * SECOND));
        assert_eq!(after(Some(75 * SECOND), &[]), Some(75 * SECOND));
        assert_eq!(after(Some(75 * SECOND), &["timeout=9", "timeout=1"]), None);
    }

    #[test]
    fn malformed_values_are_ignored() {
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
    }
}
