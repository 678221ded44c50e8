//! What cannot change while the gateway runs.
//!
//! Listeners, worker threads, the session store and the log's destination are made once, at
//! the start. A reload that would change one of them is refused as a whole, by the key's name:
//! half a change would be worse than none. `config/reference.toml` says so at each of these
//! keys, and a test compares the two.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::document::problems::Diagnostic;
use super::document::redact_line::Line;
use super::{Config, RedisSection};
use crate::identity::secret::SealKey;

/// Whether two configurations agree on a key.
type Agree = fn(&Config, &Config) -> bool;

/// The keys, each with what it decides.
const FROZEN: [(&str, Agree); 17] = [
    ("server.listen", |a, b| a.server.listen == b.server.listen),
    ("server.threads", |a, b| a.server.threads == b.server.threads),
    ("server.proxy_protocol", |a, b| a.server.proxy_protocol == b.server.proxy_protocol),
    ("server.redirect", |a, b| a.server.redirect == b.server.redirect),
    ("server.tls", |a, b| a.server.tls.is_some() == b.server.tls.is_some()),
    ("forward_auth.listen", |a, b| a.forward_auth.listen == b.forward_auth.listen),
    ("admin.listen", |a, b| a.admin.listen == b.admin.listen),
    ("session.idle_timeout", |a, b| a.session.idle_timeout == b.session.idle_timeout),
    ("session.capacity", |a, b| a.session.capacity == b.session.capacity),
    ("session.redis", |a, b| redis(a) == redis(b)),
    ("session.seal_key", |a, b| seal_keys(a).first() == seal_keys(b).first()),
    ("session.previous_seal_keys", |a, b| seal_keys(a).get(1..) == seal_keys(b).get(1..)),
    ("session.max_per_user", |a, b| a.session.max_per_user == b.session.max_per_user),
    ("limits.max_connections", |a, b| a.limits.max_connections == b.limits.max_connections),
    ("log.format", |a, b| a.log.format == b.log.format),
    ("log.access", |a, b| a.log.access == b.log.access),
    ("log.openid_key", |a, b| a.log.openid_key == b.log.openid_key),
];

fn redis(config: &Config) -> Option<&RedisSection> {
    config.session.shared.as_ref().map(|shared| &shared.redis)
}

fn seal_keys(config: &Config) -> &[SealKey] {
    config.session.shared.as_ref().map_or(&[], |shared| &shared.seal_keys)
}

pub fn keys() -> impl Iterator<Item = &'static str> {
    FROZEN.iter().map(|(key, _)| *key)
}

/// What `next`, read from a document, would change.
pub fn problems(
    running: &Config,
    next: &Config,
    document: &Spanned<DeTable<'_>>,
) -> impl Iterator<Item = Diagnostic> {
    let changed = FROZEN.iter().filter(|(_, agree)| !agree(running, next));
    changed.map(|(key, _)| Diagnostic {
        source: 0,
        span: Some(place(key, document)),
        key: (*key).to_owned(),
        message: "cannot change while the gateway runs".to_owned(),
        help: "restart needed".to_owned(),
        line: Line::Judged,
    })
}

/// Where a key stands, or else what it would stand in.
fn place(key: &str, document: &Spanned<DeTable<'_>>) -> Range<usize> {
    let mut span = 0..0;
    let mut table = Some(document.get_ref());
    for name in key.split('.') {
        let entry = table.and_then(|table| table.iter().find(|(known, _)| known.get_ref() == name));
        let Some((known, value)) = entry else { break };
        let is_table = matches!(value.get_ref(), DeValue::Table(_));
        span = if is_table { known.span() } else { value.span() };
        table = value.get_ref().as_table();
    }
    span
}
