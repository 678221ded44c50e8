//! Numbers, sizes and durations within bounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::Table;
use crate::config::document::from_value::Size;

impl Table<'_> {
    /// A duration of at least one millisecond, the resolution of the clocks.
    pub fn positive(&self, name: &'static str, default: Duration) -> Duration {
        let Some(given) = self.get::<Duration>(name) else { return default };
        if given.value < Duration::from_millis(1) {
            self.problem(&given, "must be at least 1ms", "");
            return default;
        }
        given.value
    }

    /// An optional duration of at least one millisecond.
    pub fn optional_positive(&self, name: &'static str) -> Option<Duration> {
        Some(self.positive(name, Duration::ZERO)).filter(|given| !given.is_zero())
    }

    /// A number within a range.
    pub fn number(
        &self,
        name: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> usize {
        let Some(given) = self.get::<usize>(name) else { return default };
        if range.contains(&given.value) {
            return given.value;
        }
        self.problem(&given, format!("must be from {} to {}", range.start(), range.end()), "");
        default
    }

    /// A size within a range.
    pub fn size(&self, name: &'static str, default: usize, range: RangeInclusive<usize>) -> usize {
        let Some(given) = self.get::<Size>(name) else { return default };
        if let Some(size) = usize::try_from(given.value.0).ok().filter(|size| range.contains(size))
        {
            return size;
        }
        let show = |size: usize| match size {
            0 => "0B".to_owned(),
            _ if size.is_multiple_of(1 << 20) => format!("{}MiB", size >> 20),
            _ if size.is_multiple_of(1 << 10) => format!("{}KiB", size >> 10),
            _ => format!("{size}B"),
        };
        let message = format!("must be from {} to {}", show(*range.start()), show(*range.end()));
        self.problem(&given, message, "");
        default
    }
}
