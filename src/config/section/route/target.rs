//! What responds to the requests of a route: a service, several services that share the users, or
//! the gateway itself.

use std::path::PathBuf;

use http::HeaderValue;
use toml::de::DeValue;

use super::Access;
use super::references::References;
use crate::config::Secrets;
use crate::config::document::file::{self, io_reason};
use crate::config::document::from_value::{FromValue, kind};
use crate::config::document::table::{Located, Table};
use crate::config::value::percent::hundredths;

/// What responds to the requests of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Service {
        /// Index into [`crate::config::Config::upstreams`].
        upstream: usize,
        /// Shares of the users that go to other upstreams; together at most all users.
        split: Vec<Share>,
    },
    /// The gateway, always with the same response.
    OwnResponse(StaticResponse),
    /// Another proxy: the route is forward-auth-only.
    ForwardAuthOnly,
}

impl Target {
    /// Indexes of all upstreams that the requests go to.
    pub fn upstreams(&self) -> Vec<usize> {
        match self {
            Self::Service { upstream, split } => {
                split.iter().map(|share| share.upstream).chain([*upstream]).collect()
            }
            Self::OwnResponse(_) | Self::ForwardAuthOnly => Vec::new(),
        }
    }
}

/// A share of a route's users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Index into [`crate::config::Config::upstreams`].
    pub upstream: usize,
    /// Out of 10,000 users.
    pub users: u16,
}

/// A fixed response that the gateway sends itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticResponse {
    pub status: u16,
    pub content_type: HeaderValue,
    pub body: Vec<u8>,
}

/// Maximum size of a response file: it is kept in memory, and copied for each response.
const LONGEST_RESPONSE: u64 = 64 << 10;

/// Keys that say how to connect to a service.
const FOR_SERVICES: [&str; 14] = [
    "upstream",
    "split",
    "strip_prefix",
    "add_prefix",
    "set_request_headers",
    "remove_request_headers",
    "connect_timeout",
    "read_timeout",
    "write_timeout",
    "timeout",
    "retry",
    "websocket",
    "max_body",
    "preflight",
];

/// Reads the target of a route. `None` means that a problem was reported.
pub fn read(section: &Table<'_>, references: &References<'_>, access: Access) -> Option<Target> {
    let response = section.optional_table("respond").map(|respond| {
        let response = static_response(&respond, references.secrets);
        respond.finish();
        response
    });
    if section.has("respond") {
        for name in FOR_SERVICES {
            if let Some(raw) = section.raw(name) {
                let help = "a route has either upstream or respond";
                section.push(section.key(name), raw.span(), "has no effect with respond", help);
            }
        }
    } else if !references.upstream_may_be_absent {
        section.report_missing("upstream", "");
    }
    let given = section.get::<String>("upstream");
    let upstream = given.as_ref().and_then(|given| references.upstream(section, given));
    let split = split(section, references, upstream, access);
    match response {
        Some(response) if section.has("respond") => response.map(Target::OwnResponse),
        _ if references.upstream_may_be_absent && !section.has("upstream") => {
            Some(Target::ForwardAuthOnly)
        }
        _ => Some(Target::Service { upstream: upstream?, split }),
    }
}

fn split(
    section: &Table<'_>,
    references: &References<'_>,
    main: Option<usize>,
    access: Access,
) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for part in section.tables("split") {
        let upstream = part.require::<String>("upstream");
        let users = part.require::<Percent>("percent");
        let index = upstream.as_ref().and_then(|given| references.upstream(&part, given));
        if let (Some(given), Some(index)) = (&upstream, index) {
            if main == Some(index) {
                part.problem(given, "is the route's own upstream", "it gets the remaining users");
            } else if shares.iter().any(|share| share.upstream == index) {
                part.problem(given, "is listed twice", "");
            }
        }
        if let (Some(upstream), Some(users)) = (index, users) {
            shares.push(Share { upstream, users: users.value.0 });
            if shares.iter().map(|share| u32::from(share.users)).sum::<u32>() > 10_000 {
                part.problem(&users, "the percentages add up to more than 100", "");
            }
        }
        part.finish();
    }
    if let Some(raw) = section.raw("split")
        && access == Access::None
    {
        let message = "has no effect with auth = \"none\": users are identified by their sessions";
        section.push(section.key("split"), raw.span(), message, "");
    }
    shares
}

/// `None` means that a problem was reported.
fn static_response(section: &Table<'_>, secrets: Secrets) -> Option<StaticResponse> {
    let status = section.number("status", 200, 200..=599);
    let content_type = section.get_or("content_type", HeaderValue::from_static("text/plain"));
    let text = section.get::<String>("body");
    let file = section.get::<PathBuf>("file");
    if let (Some(_), Some(file)) = (&text, &file) {
        section.problem(file, "cannot be combined with body", "a response has one of the two");
    }
    let body = match (text, file) {
        (Some(text), _) => Some(text.value.into_bytes()),
        (None, Some(file)) if secrets == Secrets::Load => read_file(section, &file),
        (None, _) => Some(Vec::new()),
    };
    if matches!(status, 204 | 205 | 304)
        && let Some(raw) = section.raw("status")
        && (body.as_ref().is_none_or(|body| !body.is_empty()) || status == 304)
    {
        let help = "304 is a response to conditional requests only";
        let (message, help) = if status == 304 {
            ("cannot be used here", help)
        } else {
            ("a response with this status has no body", "")
        };
        section.push(section.key("status"), raw.span(), message, help);
    }
    Some(StaticResponse { status: u16::try_from(status).ok()?, content_type, body: body? })
}

fn read_file(section: &Table<'_>, file: &Located<PathBuf>) -> Option<Vec<u8>> {
    section.reads(&file.value);
    let read = file::read(&file.value, LONGEST_RESPONSE);
    read.map_err(|error| section.reference_problem(file, io_reason(&error), "")).ok()
}

/// A percentage, in hundredths of a percent.
#[derive(Clone, Copy, Debug)]
struct Percent(u16);

impl FromValue for Percent {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let text = match value {
            DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
            DeValue::Float(number) => Some(number.as_str()),
            _ => None,
        };
        text.and_then(hundredths).map(Self).ok_or_else(|| {
            let expected = "expected a number from 0 to 100 with at most two decimals";
            format!("{expected}, found {}", kind(value))
        })
    }
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;

    #[test]
    fn a_percentage_is_a_number_and_nothing_else() {
        let percent = |given: &str| {
            let text = format!("x = {given}");
            let (table, errors) = DeTable::parse_recoverable(&text);
            assert!(errors.is_empty(), "{given}: {errors:?}");
            let (_, value) = table.get_ref().iter().next().unwrap();
            Percent::from_value(value.get_ref()).map(|percent| percent.0)
        };
        for (given, hundredths) in
            [("0", 0), ("5", 500), ("2.5", 250), ("0.01", 1), ("100", 10_000), ("100.00", 10_000)]
        {
            assert_eq!(percent(given), Ok(hundredths), "{given}");
        }
        for given in [
            "\"5\"",
            "\"5%\"",
            "\"\"",
            "true",
            "[5]",
            "[]",
            "{ a = 5 }",
            "1979-05-27",
            "12:30:00",
            "-1",
            "100.01",
            "101",
            "1.234",
            "1e1",
            "inf",
            "nan",
            "0x5",
            "655360000",
        ] {
            assert!(percent(given).is_err(), "{given}");
        }
    }
}
