//! Keys that a reload cannot change. Each section lists its own.
//!
//! Listeners, worker threads, the session store and the log's destination are created once, at the
//! start. A reload that would change one of them is rejected as a whole, with the name of the key,
//! because half of a change would be worse than none. `config/reference.toml` marks each of these
//! keys, and a test compares the two.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Config;
use super::document::problems::Diagnostic;
use super::document::redact_line::Redaction;
use super::section::{RestartOnly, admin, forward_auth, internal, limits, log, server, session};

/// The keys of all sections.
fn all() -> impl Iterator<Item = &'static RestartOnly> {
    let sections = [
        server::RESTART_ONLY,
        forward_auth::RESTART_ONLY,
        admin::RESTART_ONLY,
        internal::RESTART_ONLY,
        session::RESTART_ONLY,
        limits::RESTART_ONLY,
        log::RESTART_ONLY,
    ];
    sections.into_iter().flatten()
}

/// The keys, as `section.key`.
pub fn keys() -> impl Iterator<Item = &'static str> {
    all().map(|(key, _)| *key)
}

/// Restart-only keys that `next`, read from `document`, would change.
pub fn problems(
    running: &Config,
    next: &Config,
    document: &Spanned<DeTable<'_>>,
) -> impl Iterator<Item = Diagnostic> {
    let changed = all().filter(|(_, agree)| !agree(running, next));
    changed.map(|(key, _)| Diagnostic {
        source: 0,
        span: Some(place(key, document)),
        key: (*key).to_owned(),
        message: "cannot be changed by a reload".to_owned(),
        help: "restart the gateway".to_owned(),
        redaction: Redaction::IfSecret,
    })
}

/// The place of a key, or else of the table it belongs to.
fn place(key: &str, document: &Spanned<DeTable<'_>>) -> Range<usize> {
    let mut span = 0..0;
    let mut table = Some(document.get_ref());
    for name in key.split('.') {
        let entry = table.and_then(|table| table.iter().find(|(key, _)| key.get_ref() == name));
        let Some((key, value)) = entry else { break };
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        span = if is_table { key.span() } else { value.span() };
        table = value.get_ref().as_table();
    }
    span
}
