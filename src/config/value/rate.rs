//! How a rate limit is written.

use std::num::NonZeroU32;
use std::time::Duration;

use toml::de::DeValue;

use crate::config::document::from_value::{FromValue, text};
use crate::config::document::table::Table;

/// `count` per `period` on average, with bursts of up to `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    /// At least one millisecond, at most one day.
    pub period: Duration,
}

/// A rate limit; `None`: it is off.
pub fn read(section: &Table<'_>, name: &'static str, default: Option<Rate>) -> Option<Rate> {
    section.get_or(name, RateLimit(default)).0
}

/// A rate, or the word `"off"`.
#[derive(Clone, Copy, Debug)]
struct RateLimit(Option<Rate>);

impl FromValue for RateLimit {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "\"off\" or a rate, such as \"10/s\", \"600/m\" or \"50/10s\" (50 in 10 seconds)";
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
            return Err(format!("\"{given}\": the period must be from 1ms to 24h"));
        }
        Ok(Self(Some(Rate { count, period })))
    }
}
