//! What a single value of the file may be: text, numbers, durations, sizes, addresses.
//!
//! Each type says in its own words what it expects, so that a problem can be mended without
//! the documentation. Durations and sizes are strings with a unit: a bare number is refused
//! rather than guessed at.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use toml::de::DeValue;

use crate::config::{
    Access, Cache, ClientCertificate, HostPattern, LogDestination, LogFormat, LogLevel, Preflight,
    Rate, RoutePath, ServerAddress,
};
use crate::identity::AppId;

/// A value that can stand in the file.
pub trait FromValue: Sized {
    /// # Errors
    /// What was expected, and what was found.
    fn from_value(value: &DeValue<'_>) -> Result<Self, String>;
}

/// A number of bytes, written `"16KiB"`.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

/// Never of several lines: no key takes that, and what was drawn in by quotes that are not
/// closed is not repeated in a message, for it may hold a secret.
fn text<'a>(value: &'a DeValue<'_>, expected: &str) -> Result<&'a str, String> {
    match value.as_str() {
        Some(given) if given.contains('\n') => {
            Err(format!("expected {expected}, found a text of several lines"))
        }
        Some(given) => Ok(given),
        None => Err(format!("expected {expected}, found {}", kind(value))),
    }
}

/// What a value is, for a message about it.
pub fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Integer(number) => {
            let prefix = match number.radix() {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            format!("the number {prefix}{}", number.as_str())
        }
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(flag) => format!("{flag}"),
        DeValue::String(_) => "a string".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
        DeValue::Datetime(_) => "a date".to_owned(),
    }
}

impl FromValue for String {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        text(value, "a string").map(str::to_owned)
    }
}

impl FromValue for bool {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("expected true or false, found {}", kind(value)))
    }
}

impl FromValue for u64 {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let number = value.as_integer();
        number
            .and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok())
            .ok_or_else(|| format!("expected a whole number from 0, found {}", kind(value)))
    }
}

impl FromValue for i64 {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let number = value.as_integer();
        number
            .and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok())
            .ok_or_else(|| format!("expected a whole number, found {}", kind(value)))
    }
}

impl FromValue for usize {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        u64::from_value(value)?.try_into().map_err(|_| "the number is too large".to_owned())
    }
}

impl FromValue for Duration {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "a duration with its unit, as \"500ms\", \"30s\" or \"2h\"";
        const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
        let given = text(value, EXPECTED)?;
        // humantime reads `M` as months, but an operator would mean minutes.
        match humantime::parse_duration(given) {
            Ok(duration) if duration > LONGEST => {
                Err(format!("\"{given}\" is longer than 100 years"))
            }
            Ok(duration) if !given.contains('M') => Ok(duration),
            _ => Err(format!("expected {EXPECTED}, found \"{given}\"")),
        }
    }
}

impl FromValue for Size {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "a size with its unit, as \"16KiB\" or \"10MiB\"";
        let given = text(value, EXPECTED)?;
        let has_unit = given.ends_with(|c: char| c.is_ascii_alphabetic());
        let size = given.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit);
        size.map(|size| Size(size.as_u64()))
            .ok_or_else(|| format!("expected {EXPECTED}, found \"{given}\""))
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "an address with a port, as \"0.0.0.0:8080\" or \"[::]:8080\"";
        let given = text(value, EXPECTED)?;
        given.parse().map_err(|_| format!("expected {EXPECTED}, found \"{given}\""))
    }
}

impl FromValue for IpNet {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "a network or an address, as \"10.0.0.0/8\" or \"10.0.0.1\"";
        let given = text(value, EXPECTED)?;
        given
            .parse()
            .or_else(|_| given.parse::<std::net::IpAddr>().map(IpNet::from))
            .map_err(|_| format!("expected {EXPECTED}, found \"{given}\""))
    }
}

impl FromValue for PathBuf {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        if value.as_str().is_some_and(|given| given.contains("-----BEGIN")) {
            return Err("expected a path, found the contents of a file".to_owned());
        }
        let given = text(value, "a path")?;
        if given.is_empty() {
            Err("expected a path, found \"\"".to_owned())
        } else if given.contains(char::is_control) {
            Err("expected a path, found a control character in it".to_owned())
        } else {
            Ok(given.into())
        }
    }
}

impl FromValue for HeaderName {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a header name")?;
        given.parse().map_err(|_| format!("\"{given}\" is not a header name"))
    }
}

impl FromValue for HeaderValue {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "the value of a header")?;
        if given.trim_matches([' ', '\t']) != given {
            return Err("the value of a header does not begin or end with a blank".to_owned());
        }
        given.parse().map_err(|_| "holds characters that no header may hold".to_owned())
    }
}

impl FromValue for HostPattern {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "a host name without port, as \"api.example.com\" or \"*.example.com\"";
        let given = text(value, EXPECTED)?;
        let name = given.strip_prefix("*.").unwrap_or(given);
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let is_label = |label: &str| !label.is_empty() && label.bytes().all(legal);
        let is_address = name.len() == given.len()
            && name
                .strip_prefix('[')
                .and_then(|name| name.strip_suffix(']'))
                .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
        if name.len() > 253 || !(is_address || name.split('.').all(is_label)) {
            return Err(format!("expected {EXPECTED}, found \"{given}\""));
        }
        let name = name.to_ascii_lowercase();
        Ok(if given.starts_with('*') {
            Self::Wildcard(format!(".{name}"))
        } else {
            Self::Exact(name)
        })
    }
}

/// What of a path a route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathMatch {
    Prefix,
    Exact,
}

impl FromValue for PathMatch {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("prefix", Self::Prefix), ("exact", Self::Exact)])
    }
}

impl FromValue for AppId {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "an app id, as \"wx0123456789abcdef\"")?;
        AppId::parse(given).ok_or_else(|| {
            format!("\"{given}\" is not an app id: letters, digits, \"-\" and \"_\" only")
        })
    }
}

impl FromValue for RoutePath {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a path, as \"/api\"")?;
        // What no path needs and most regular expressions have.
        let is_pattern = given.starts_with(['^', '~'])
            || given.contains(".*")
            || given.contains(['\\', '|', '['].as_slice())
            || given.contains('+') && !given.starts_with('/')
            || given.contains("(?");
        if is_pattern {
            return Err(format!(
                "\"{given}\" looks like a regular expression: a path is a prefix, or exact with match = \"exact\""
            ));
        }
        if !given.starts_with('/') {
            return Err(format!("\"{given}\" does not begin with \"/\""));
        }
        if given.contains('*') {
            return Err(format!("\"{given}\" holds '*': there are no wildcards"));
        }
        if given.contains('{') {
            return Err(format!("\"{given}\" holds '{{': a path has no parameters"));
        }
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~!$&'()+,=:@".contains(&b);
        if let Some(odd) = given.chars().find(|c| !u8::try_from(*c).is_ok_and(plain)) {
            return Err(format!(
                "\"{given}\" holds '{odd}': only characters that every server reads alike can stand here"
            ));
        }
        if given.contains("//") || given.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(format!("\"{given}\" holds a segment that servers read in different ways"));
        }
        Ok(Self(given.to_owned()))
    }
}

impl FromValue for ServerAddress {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "an address or a host name with a port, as \"10.0.0.7:3000\" or \"shop:3000\"";
        let given = text(value, EXPECTED)?;
        if given.contains('@') {
            return Err(format!("expected {EXPECTED}, without a user and a password"));
        }
        let wrong = || {
            let found = format!("expected {EXPECTED}, found \"{given}\"");
            let why = match given.split_once("://") {
                Some(("http", rest)) if rest.trim_end_matches('/').contains('/') => {
                    ": leave out http:// and the path, which a route may add with add_prefix"
                }
                Some(("http", _)) => ": leave out http://",
                Some(("https", _)) => ": HTTPS to a server is not supported yet, only plain HTTP",
                Some((scheme, _)) => return format!("{found}: leave out {scheme}://"),
                None if given.starts_with("unix:") || given.starts_with('/') => {
                    ": unix sockets are not supported yet"
                }
                None if given.contains('/') => {
                    ": leave out the path, which a route may add with add_prefix"
                }
                _ => "",
            };
            format!("{found}{why}")
        };
        if let Ok(address) = given.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(wrong()) } else { Ok(Self::Socket(address)) };
        }
        let (host, port) = given.rsplit_once(':').ok_or_else(wrong)?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        // A name of digits and dots alone is a mistyped address, not a host.
        let is_name = (1..=253).contains(&host.len())
            && host.bytes().all(legal)
            && host.bytes().any(|b| b.is_ascii_alphabetic());
        let port = port.parse().ok().filter(|port| *port != 0u16).ok_or_else(wrong)?;
        if is_name { Ok(Self::Host { host: host.to_owned(), port }) } else { Err(wrong()) }
    }
}

/// A rate, or the word `"off"`.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit(pub Option<Rate>);

impl FromValue for RateLimit {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "\"off\" or a rate, as \"10/s\", \"600/m\" or \"50/10s\" (50 in 10 seconds)";
        let given = text(value, EXPECTED)?;
        if given == "off" {
            return Ok(Self(None));
        }
        let wrong = || format!("expected {EXPECTED}, found \"{given}\"");
        let (count, period) = given.split_once('/').ok_or_else(wrong)?;
        let count = count.trim().parse().map_err(|_| wrong())?;
        let period = match period.trim() {
            unit @ ("s" | "m" | "h") => humantime::parse_duration(&format!("1{unit}")),
            period if !period.contains('M') => humantime::parse_duration(period),
            _ => return Err(wrong()),
        };
        let period = period.map_err(|_| wrong())?;
        if !(Duration::from_millis(1)..=Duration::from_secs(24 * 3600)).contains(&period) {
            return Err(format!("\"{given}\": a rate is of 1ms to 24h"));
        }
        Ok(Self(Some(Rate { count, period })))
    }
}

/// One of a few words.
fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, String> {
    let list = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let given = text(value, &format!("one of {list}"))?;
    words
        .iter()
        .find(|(word, _)| *word == given)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| format!("expected one of {list}, found \"{given}\""))
}

impl FromValue for Access {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words =
            [("required", Self::Required), ("optional", Self::Optional), ("none", Self::None)];
        word(value, &words)
    }
}

impl FromValue for ClientCertificate {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("required", Self::Required), ("optional", Self::Optional)])
    }
}

impl FromValue for Preflight {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("answer", Self::Answer), ("pass", Self::Pass)])
    }
}

impl FromValue for Cache {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("private", Self::Private), ("as_sent", Self::AsSent)])
    }
}

/// A part of all, in hundredths of a percent.
#[derive(Clone, Copy, Debug)]
pub struct Percent(pub u16);

impl FromValue for Percent {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let text = match value {
            DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str()),
            DeValue::Float(number) => Some(number.as_str()),
            _ => None,
        };
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let hundredths = text.and_then(|text| {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            (is_number(whole) && is_number(fraction) && fraction.len() <= 2)
                .then(|| format!("{whole}{fraction:0<2}").parse().ok())?
        });
        hundredths.filter(|hundredths| *hundredths <= 10_000).map(Self).ok_or_else(|| {
            let expected = "expected a number from 0 to 100 with two decimals at most";
            format!("{expected}, found {}", kind(value))
        })
    }
}

impl FromValue for LogLevel {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words = [
            ("error", Self::Error),
            ("warn", Self::Warn),
            ("info", Self::Info),
            ("debug", Self::Debug),
        ];
        word(value, &words)
    }
}

impl FromValue for LogFormat {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("json", Self::Json), ("text", Self::Text)])
    }
}

impl FromValue for LogDestination {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        match text(value, "\"stderr\", \"stdout\", \"off\" or a path")? {
            "stderr" => Ok(Self::Stderr),
            "stdout" => Ok(Self::Stdout),
            "off" => Ok(Self::Off),
            path if path.contains('/') => Ok(Self::File(path.into())),
            other => Err(format!(
                "expected \"stderr\", \"stdout\", \"off\" or a path with a \"/\", found \"{other}\""
            )),
        }
    }
}

/// Where tokens are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Header,
    Bearer,
}

impl FromValue for Carrier {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("header", Self::Header), ("bearer", Self::Bearer)])
    }
}

/// A form of a login request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginForm {
    Json,
    Form,
    Query,
}

impl FromValue for LoginForm {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("json", Self::Json), ("form", Self::Form), ("query", Self::Query)])
    }
}

#[cfg(test)]
mod tests {
    use toml::de::DeTable;

    use super::*;
    use crate::config::{Config, Secrets};

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

    #[test]
    fn a_text_of_several_lines_is_refused_and_not_repeated() {
        for key in
            ["server.listen", "session.ttl", "limits.max_body", "wechat.base_url", "log.level"]
        {
            let text = format!("{key} = \"\"\"\napp_secret = 'planted'\n\"\"\"");
            let shown = Config::parse("file", &text, Secrets::Ignore).unwrap_err().to_string();
            assert!(shown.contains(&format!("{key}: expected")), "{shown}");
            assert!(!shown.contains("planted"), "{shown}");
        }
    }
}
