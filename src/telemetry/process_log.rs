//! The process log, on stderr.
//!
//! Only events of this crate are written: libraries would log paths and queries. A JSON line has
//! `time` as in the access log, and `"log":"process"` to distinguish it.

use std::fmt;
use std::io::IsTerminal;

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::{LogFormat, LogLevel, LogSection};
pub use crate::telemetry::log_writer::Flush;
use crate::telemetry::log_writer::{queued, timestamp};
use crate::telemetry::metrics::Metrics;

/// Changes the level of an installed log.
pub struct LogControl(reload::Handle<Targets, Registry>);

impl LogControl {
    pub fn set(&self, level: LogLevel) {
        // This fails only if the log no longer exists.
        drop(self.0.reload(targets(level)));
    }
}

/// Installs the log of this process; called once, by `main`. Queued lines are written when the
/// guard is dropped.
pub fn install(log: &LogSection, metrics: &Metrics) -> (Flush, LogControl) {
    let (writer, guard) = queued(std::io::stderr(), metrics);
    let (level, control) = reload::Layer::new(targets(log.level));
    let registry = tracing_subscriber::registry().with(level);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let installed = match log.format {
        LogFormat::Json => registry.with(lines.event_format(Json)).try_init(),
        LogFormat::Text => {
            let is_terminal = std::io::stderr().is_terminal();
            registry.with(lines.with_timer(Millis).with_ansi(is_terminal)).try_init()
        }
    };
    // Only a second call fails; then the first log stays installed.
    drop(installed);
    (guard, LogControl(control))
}

fn targets(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    Targets::new().with_target("wxgate", level)
}

struct Millis;

impl FormatTime for Millis {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        out.write_str(&timestamp())
    }
}

/// One object per line: time, log, level and message come first.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let mut start = Fields::default();
        start.add("time", &timestamp());
        start.add("log", "process");
        start.add("level", metadata.level().as_str());
        let mut end = Fields::default();
        end.add("target", metadata.target());
        let Fields { message, others } = fields;
        let (start, end) = (start.others, end.others);
        // Each member begins with a comma.
        let start = start.get(1..).unwrap_or_default();
        writeln!(out, "{{{start}{message}{others}{end}}}")
    }
}

/// Members of a JSON object, each preceded by a comma.
#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Fields {
    fn add<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) {
        let (name_json, value) = (serde_json::to_string(name), serde_json::to_string(value));
        let (Ok(name_json), Ok(value)) = (name_json, value) else { return };
        let members = if name == "message" { &mut self.message } else { &mut self.others };
        for part in [",", &name_json, ":", &value] {
            members.push_str(part);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field.name(), &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field.name(), &value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field.name(), &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_valid_json() {
        let mut fields = Fields::default();
        fields.add("message", "\"quoted\"\n\u{1b}[31m名");
        fields.add("count", &3_u64);
        fields.add("is", &true);
        let text = format!("{{{}{}}}", &fields.message[1..], fields.others);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "\"quoted\"\n\u{1b}[31m名");
        assert_eq!((&value["count"], &value["is"]), (&3.into(), &true.into()));
    }
}
