//! `[upstream.ejection]`: when a server that fails requests is taken out.

use std::time::Duration;

use crate::config::document::table::Table;

/// When a server that fails requests is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row; 0: servers are never ejected.
    pub failures: u32,
    /// Time until a trial request.
    pub duration: Duration,
    /// How many of the servers may be out, in percent.
    pub max_percent: u8,
}

impl Default for Ejection {
    fn default() -> Self {
        Self { failures: 5, duration: Duration::from_secs(10), max_percent: 50 }
    }
}

/// Maximum number of failures in a row that may be required.
const MOST: usize = 1000;

/// Reads the section; without it, the defaults apply.
pub fn read(section: Table<'_>) -> Ejection {
    let default = Ejection::default();
    let failures = usize::try_from(default.failures).unwrap_or(MOST);
    let failures = section.number("failures", failures, 0..=MOST);
    let duration = section.positive("duration", default.duration);
    let percent = section.number("max_percent", usize::from(default.max_percent), 0..=100);
    for name in ["duration", "max_percent"] {
        if failures == 0 && section.has(name) {
            section.warn_of(name, "has no effect with failures = 0: no server is ejected");
        }
    }
    section.finish();
    Ejection {
        failures: u32::try_from(failures).unwrap_or(u32::MAX),
        duration,
        max_percent: u8::try_from(percent).unwrap_or(default.max_percent),
    }
}
