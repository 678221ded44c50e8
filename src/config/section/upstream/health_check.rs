//! `[upstream.health_check]`: how servers are checked.

use std::ops::RangeInclusive;
use std::time::Duration;

use http::HeaderValue;
use toml::de::DeValue;

use crate::config::document::from_value::{FromValue, kind, text};
use crate::config::document::table::{Table, values};
use crate::config::value::host::HostHeader;

/// How servers are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// Time from the start of one check of a server to the start of the next.
    pub interval: Duration,
    /// The longest time for one check.
    pub timeout: Duration,
    /// Failed checks in a row after which a server is unhealthy.
    pub unhealthy_after: u32,
    /// Successful checks in a row after which it is healthy again.
    pub healthy_after: u32,
}

/// What is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A GET request.
    Http {
        /// With its query.
        path: String,
        /// `None`: the host of the server's address.
        host: Option<HeaderValue>,
        /// Statuses of a healthy server.
        status: Vec<RangeInclusive<u16>>,
    },
    /// A connection, with TLS a handshake.
    Connect,
}

/// Maximum number of checks in a row that may be required.
const MOST: usize = 1000;

/// Reads the section. `None` means that a problem was reported.
pub fn read(section: Table<'_>) -> Option<HealthCheck> {
    let path = section.get::<CheckPath>("path");
    let is_connect = section.get_or("tcp", false);
    let host = section.get::<HostHeader>("host").map(|host| host.value.0);
    let status = section.some::<Statuses>("status", "such as [\"200-399\"]").map(values);
    let status = status.map(|listed| listed.into_iter().map(|one| one.0).collect());
    let interval = section.positive("interval", Duration::from_secs(5));
    let timeout = section.positive("timeout", Duration::from_secs(2).min(interval));
    let unhealthy_after = in_a_row(&section, "unhealthy_after", 3);
    let healthy_after = in_a_row(&section, "healthy_after", 2);
    if timeout > interval {
        let message = "is longer than interval: a check that gets no response delays the next one";
        section.warn_of("timeout", message);
    }
    match (section.has("path"), is_connect) {
        (true, true) => {
            let help = "a check is an HTTP request or a connection";
            section.problem_of("tcp", "cannot be combined with path", help);
        }
        (false, false) => section.push(
            section.key("path"),
            section.span.clone(),
            "is missing",
            "such as \"/healthz\"; or set tcp = true, if a connection is enough",
        ),
        _ => {}
    }
    for name in ["host", "status"] {
        if is_connect && section.has(name) {
            section.warn_of(name, "has no effect with tcp = true: no request is sent");
        }
    }
    let kind = match path {
        _ if is_connect => Some(CheckKind::Connect),
        Some(path) => Some(CheckKind::Http {
            path: path.value.0,
            host,
            status: status.unwrap_or_else(|| vec![200..=399]),
        }),
        None => None,
    };
    section.finish();
    Some(HealthCheck { kind: kind?, interval, timeout, unhealthy_after, healthy_after })
}

fn in_a_row(section: &Table<'_>, name: &'static str, default: u32) -> u32 {
    let default = usize::try_from(default).unwrap_or(MOST);
    u32::try_from(section.number(name, default, 1..=MOST)).unwrap_or(u32::MAX)
}

/// The target of a check.
struct CheckPath(String);

impl FromValue for CheckPath {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a path, such as \"/healthz\"")?;
        if !given.starts_with('/') {
            return Err(format!("\"{given}\" must begin with \"/\""));
        }
        if !given.bytes().all(|b| b.is_ascii_graphic()) || given.contains('#') {
            return Err(format!("\"{given}\" has characters that must be percent-encoded"));
        }
        Ok(Self(given.to_owned()))
    }
}

/// One status, or a range of them.
struct Statuses(RangeInclusive<u16>);

impl FromValue for Statuses {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "a status from 200 to 599, or a range such as \"200-399\"";
        let number = match value {
            DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
            _ => value.as_str(),
        };
        let found = || match value.as_str() {
            Some(given) if !given.contains('\n') => format!("\"{given}\""),
            _ => kind(value),
        };
        let status = |text: &str| text.trim().parse().ok().filter(|one| (200..=599).contains(one));
        let range = number.and_then(|given| match given.split_once('-') {
            Some((first, last)) => Some(status(first)?..=status(last)?),
            None => status(given).map(|one| one..=one),
        });
        let range = range.filter(|range| !range.is_empty());
        range.map(Self).ok_or_else(|| format!("expected {EXPECTED}, found {}", found()))
    }
}
