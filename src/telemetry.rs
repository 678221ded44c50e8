//! The process's own log, on stderr.
//!
//! Only this crate's events are written: libraries below would log paths and queries.

use std::io::IsTerminal;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use crate::config::{LogFormat, LogLevel, LogSection};
use crate::log_writer::{Flush, queued};
use crate::metrics::Metrics;

/// The level of an installed log.
pub struct LogControl(reload::Handle<Targets, Registry>);

impl LogControl {
    pub fn set(&self, level: LogLevel) {
        // Only a log that is gone could refuse.
        drop(self.0.reload(targets(level)));
    }
}

/// Installs the log of this process; called once, by `main`. What is queued is written when
/// the guard is dropped.
pub fn install(log: &LogSection, metrics: &Metrics) -> (Flush, LogControl) {
    let (writer, guard) = queued(std::io::stderr(), metrics);
    let (level, control) = reload::Layer::new(targets(log.level));
    let registry = tracing_subscriber::registry().with(level);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let installed = match log.format {
        LogFormat::Json => registry
            .with(lines.json().flatten_event(true).with_current_span(false).with_span_list(false))
            .try_init(),
        LogFormat::Text => {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        }
    };
    // Only a second call could fail, and then the first log goes on.
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
