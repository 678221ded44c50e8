//! `[forward_auth]`: listeners on which other proxies get decisions.

use std::net::SocketAddr;
use std::time::Duration;

use super::RestartOnly;
use super::admin::AdminSection;
use super::identity::jwt::JwtSection;
use crate::config::document::table::{Located, Table, values};
use crate::config::value::listeners::{overlap, report_overlaps};
use crate::config::value::path::RoutePath;

/// The section `[forward_auth]`.
#[derive(Debug, PartialEq, Eq)]
pub struct ForwardAuthSection {
    /// Empty: forward-auth is off.
    pub listen: Vec<SocketAddr>,
    pub path: RoutePath,
    /// How long the proxy may cache a 200, in whole seconds; zero: not at all.
    pub cache: Duration,
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] =
    &[("forward_auth.listen", |a, b| a.forward_auth.listen == b.forward_auth.listen)];

/// Reads the section. Forward-auth is off without `listen`.
pub fn read(
    section: Table<'_>,
    public: &[Located<SocketAddr>],
    admin: &AdminSection,
    has_trusted_proxies: bool,
    idle_timeout: Duration,
) -> ForwardAuthSection {
    const HELP: &str = "forward-auth needs its own listener: choose another port";
    let path = section.get_or("path", RoutePath("/auth".to_owned()));
    let cache = read_cache(&section, idle_timeout);
    if section.has("path") || !cache.is_zero() {
        section.report_missing("listen", "such as \"127.0.0.1:8081\"");
    }
    let listen = section.list::<SocketAddr>("listen").unwrap_or_default();
    report_overlaps(&section, &listen);
    for one in &listen {
        if public.iter().any(|public| overlap(public.value, one.value)) {
            section.problem(one, "is also a public listener", HELP);
        }
        if overlap(admin.listen, one.value) {
            section.problem(one, "is also admin.listen", HELP);
        }
    }
    if let Some(first) = listen.first().filter(|_| !has_trusted_proxies) {
        let message = "every proxy would be rejected: server.trusted_proxies is empty";
        section.problem(first, message, "list the addresses of your proxies there");
    }
    section.finish();
    ForwardAuthSection { listen: values(listen), path, cache }
}

/// Warns of decisions that are cached for longer than the signed identity in them is valid.
pub fn warn_of_expired(
    root: &Table<'_>,
    forward_auth: &ForwardAuthSection,
    jwt: Option<&JwtSection>,
) {
    if jwt.is_some_and(|jwt| forward_auth.cache >= jwt.lifetime / 2) {
        let message = "the signed identity of a cached decision may have expired: use less than half \
                       of identity.jwt.lifetime";
        root.table("forward_auth").warn_of("cache", message);
    }
}

/// How long a proxy may cache a decision.
fn read_cache(section: &Table<'_>, idle_timeout: Duration) -> Duration {
    let Some(given) = section.get::<Duration>("cache") else { return Duration::ZERO };
    if given.value.subsec_nanos() != 0 {
        section.problem(&given, "must be whole seconds", "such as \"10s\"; \"0s\" means never");
    }
    let longest = idle_timeout / 2;
    if given.value > longest {
        let message = format!(
            "must be at most {}, half of session.idle_timeout",
            humantime::format_duration(longest)
        );
        section.problem(&given, message, "requests served from a cache do not extend the session");
    }
    given.value
}
