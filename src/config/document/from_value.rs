//! Types of single values: text, numbers, durations, sizes, addresses.
//!
//! Each type says what it expects, so that a problem can be fixed without the documentation.
//! Durations and sizes are strings with a unit: a number without a unit is rejected, because the
//! unit would be a guess.

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use toml::de::DeValue;

/// A type that a value of the file can be converted to.
pub trait FromValue: Sized {
    /// Converts a value.
    ///
    /// # Errors
    /// A message with the expected and the found value.
    fn from_value(value: &DeValue<'_>) -> Result<Self, String>;
}

/// A number of bytes, written as a string such as `"16KiB"`.
#[derive(Clone, Copy, Debug)]
pub struct Size(pub u64);

/// The text of a value. It must be one line: no key takes several. A longer text is not repeated in
/// the message: it may be longer only because a quote is not closed, and may contain a secret.
pub fn text<'a>(value: &'a DeValue<'_>, expected: &str) -> Result<&'a str, String> {
    match value.as_str() {
        Some(given) if given.contains('\n') => {
            Err(format!("expected {expected}, found a string of several lines"))
        }
        Some(given) => Ok(given),
        None => Err(format!("expected {expected}, found {}", kind(value))),
    }
}

/// The kind of a value, for messages.
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
            .ok_or_else(|| format!("expected a whole number, 0 or more, found {}", kind(value)))
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
        const EXPECTED: &str = "a duration with its unit, such as \"500ms\", \"30s\" or \"2h\"";
        const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);
        let given = text(value, EXPECTED)?;
        // humantime reads `M` as months, but operators mean minutes.
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
        const EXPECTED: &str = "a size with its unit, such as \"16KiB\" or \"10MiB\"";
        let given = text(value, EXPECTED)?;
        let has_unit = given.ends_with(|c: char| c.is_ascii_alphabetic());
        let size = given.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit);
        size.map(|size| Size(size.as_u64()))
            .ok_or_else(|| format!("expected {EXPECTED}, found \"{given}\""))
    }
}

impl FromValue for SocketAddr {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "an address with a port, such as \"0.0.0.0:8080\" or \"[::]:8080\"";
        let given = text(value, EXPECTED)?;
        given.parse().map_err(|_| format!("expected {EXPECTED}, found \"{given}\""))
    }
}

impl FromValue for IpNet {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str = "a network or an address, such as \"10.0.0.0/8\" or \"10.0.0.1\"";
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
            Err("expected a path without control characters".to_owned())
        } else {
            Ok(given.into())
        }
    }
}

impl FromValue for HeaderName {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a header name")?;
        given.parse().map_err(|_| format!("\"{given}\" is not a valid header name"))
    }
}

impl FromValue for HeaderValue {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let given = text(value, "a header value")?;
        if given.trim_matches([' ', '\t']) != given {
            return Err("header values must not begin or end with whitespace".to_owned());
        }
        given
            .parse()
            .map_err(|_| "contains characters that are not allowed in a header value".to_owned())
    }
}

/// The meaning of a value that must be one of `words`.
pub fn word<T: Copy>(value: &DeValue<'_>, words: &[(&str, T)]) -> Result<T, String> {
    let list = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let given = text(value, &format!("one of {list}"))?;
    words
        .iter()
        .find(|(word, _)| *word == given)
        .map(|(_, meaning)| *meaning)
        .ok_or_else(|| format!("expected one of {list}, found \"{given}\""))
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Secrets};

    #[test]
    fn a_multi_line_string_is_rejected_and_not_repeated() {
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
