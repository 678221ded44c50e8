//! `[session]`: how long sessions live, where they are kept, and how clients send their tokens.

pub mod redis;
pub mod snapshot;

use std::num::NonZeroUsize;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use toml::de::DeValue;
use zeroize::Zeroizing;

use self::redis::RedisSection;
use self::snapshot::SnapshotSection;
use super::RestartOnly;
use super::limits::warn_of_memory;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table};
use crate::config::value::headers::report_taken;
use crate::config::value::secret::{oddity, read_secret, read_secrets};
use crate::config::{Config, Secrets};
use crate::identity::secret::SealKey;

/// The section `[session]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSection {
    /// Absolute lifetime of a session.
    pub ttl: Duration,
    /// A session expires when it is not used for this time.
    pub idle_timeout: Duration,
    /// Maximum number of sessions that are kept.
    pub capacity: u64,
    pub carriers: Carriers,
    /// Name of the session header.
    pub header: HeaderName,
    /// Maximum number of sessions of one user of one app; `None`: no limit.
    pub max_per_user: Option<NonZeroUsize>,
    /// Seal what leaves the process: in a shared store, and in the cookies of browsers. The first
    /// seals; all of them can open. Empty if there is no such thing, or secrets are ignored.
    pub seal_keys: Vec<SealKey>,
    /// Bytes of all cookies that are kept for services with `cookie_jar`.
    pub jar_capacity: u64,
    /// `None`: sessions are kept in this process.
    pub shared: Option<SharedSection>,
    /// `None`: sessions in this process end with it.
    pub snapshot: Option<SnapshotSection>,
}

impl SessionSection {
    /// The headers that can carry a token.
    pub fn carrier_headers(&self) -> Vec<HeaderName> {
        let header = self.carriers.header.then(|| self.header.clone());
        let bearer = self.carriers.bearer.then_some(AUTHORIZATION);
        let cookie = self.carriers.cookie.then_some(COOKIE);
        header.into_iter().chain(bearer).chain(cookie).collect()
    }
}

/// A store that several gateways share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSection {
    pub redis: RedisSection,
}

/// Where the gateway looks for a token; at least one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carriers {
    pub header: bool,
    pub bearer: bool,
    /// On the hosts with a `[[browser]]`.
    pub cookie: bool,
}

/// Keys that a reload cannot change.
pub const RESTART_ONLY: &[RestartOnly] = &[
    ("session.idle_timeout", |a, b| a.session.idle_timeout == b.session.idle_timeout),
    ("session.capacity", |a, b| a.session.capacity == b.session.capacity),
    ("session.jar_capacity", |a, b| a.session.jar_capacity == b.session.jar_capacity),
    ("session.redis", |a, b| redis(a) == redis(b)),
    ("session.snapshot", |a, b| a.session.snapshot == b.session.snapshot),
    ("session.seal_key", |a, b| seal_keys(a).first() == seal_keys(b).first()),
    ("session.previous_seal_keys", |a, b| seal_keys(a).get(1..) == seal_keys(b).get(1..)),
    ("session.max_per_user", |a, b| a.session.max_per_user == b.session.max_per_user),
];

fn redis(config: &Config) -> Option<&RedisSection> {
    config.session.shared.as_ref().map(|shared| &shared.redis)
}

fn seal_keys(config: &Config) -> &[SealKey] {
    &config.session.seal_keys
}

const HOUR: u64 = 3600;

/// In bytes.
pub const DEFAULT_JAR_CAPACITY: u64 = 256 << 20;

/// Approximate memory of a session, in bytes.
const SESSION_BYTES: u64 = 500;

/// The section, and the place where its header is named. `has_browsers`: there is a `[[browser]]`.
/// A reload does not repeat checks that only the start needs.
pub fn read(
    section: Table<'_>,
    has_browsers: bool,
    secrets: Secrets,
    is_start: bool,
) -> (SessionSection, Option<Located<HeaderName>>) {
    let ttl = section.positive("ttl", Duration::from_secs(24 * HOUR));
    let idle_timeout = section.positive("idle_timeout", Duration::from_secs(2 * HOUR).min(ttl));
    if idle_timeout > ttl
        && let Some(given) = section.raw("idle_timeout")
    {
        let message = format!("must not be longer than ttl, {}", humantime::format_duration(ttl));
        section.push(section.key("idle_timeout"), given.span(), message, "");
    }
    let capacity = section.get::<u64>("capacity");
    if let Some(capacity) = &capacity
        && capacity.value == 0
    {
        section.problem(capacity, "must be at least 1", "");
    }
    let carriers = read_carriers(&section, has_browsers);
    let named = section.get::<HeaderName>("header");
    if let Some(named) = &named {
        report_taken(&section, named);
    }
    let header = match &named {
        Some(named) => named.value.clone(),
        None => HeaderName::from_static("x-3rd-session"),
    };
    let capacity = capacity.map_or(1_000_000, |capacity| capacity.value);
    warn_of_memory(&section, "capacity", capacity, SESSION_BYTES, "sessions");
    warn_of_life(&section, ttl, idle_timeout);
    let max_per_user = NonZeroUsize::new(section.number("max_per_user", 10, 0..=1000));
    if max_per_user.is_none() {
        section
            .warn_of("max_per_user", "there is no limit: one user can use all of session.capacity");
    }
    let jar_capacity = jar_capacity(&section);
    let seal_keys = read_seal_keys(&section, secrets);
    let shared = shared(&section, has_browsers, idle_timeout, secrets);
    let snapshot = snapshot::read(&section, secrets, is_start);
    section.finish();
    let session = SessionSection {
        ttl,
        idle_timeout,
        capacity,
        carriers,
        header,
        max_per_user,
        seal_keys,
        jar_capacity,
        shared,
        snapshot,
    };
    (session, named)
}

fn jar_capacity(section: &Table<'_>) -> u64 {
    let default = usize::try_from(DEFAULT_JAR_CAPACITY).unwrap_or(usize::MAX);
    let size = section.size("jar_capacity", default, 1 << 20..=1 << 40);
    u64::try_from(size).unwrap_or(u64::MAX)
}

fn read_carriers(section: &Table<'_>, has_browsers: bool) -> Carriers {
    let help = "at least one of \"header\", \"bearer\", \"cookie\"";
    let Some(listed) = section.some::<Carrier>("carriers", help) else {
        return Carriers { header: true, bearer: true, cookie: has_browsers };
    };
    let has = |carrier| listed.iter().find(|listed| listed.value == carrier);
    match has(Carrier::Cookie) {
        None if has_browsers && !listed.is_empty() => {
            let message = "sessions of browsers need \"cookie\", because there is a [[browser]]";
            section.problem_of("carriers", message, "add \"cookie\"");
        }
        Some(cookie) if !has_browsers => {
            let message = "\"cookie\" has no effect without [[browser]]";
            section.problem(cookie, message, "add a [[browser]] for each host that has web pages");
        }
        _ => {}
    }
    Carriers {
        header: has(Carrier::Header).is_some(),
        bearer: has(Carrier::Bearer).is_some(),
        cookie: has(Carrier::Cookie).is_some(),
    }
}

/// Warns of unreasonable lifetimes of sessions.
fn warn_of_life(section: &Table<'_>, ttl: Duration, idle_timeout: Duration) {
    const DAY: u64 = 24 * 3600;
    if ttl.as_secs() > 366 * DAY {
        let message = "a stolen token is valid for more than a year";
        section.warn_of("ttl", message);
    } else if ttl.as_secs() < 60 {
        section.warn_of("ttl", "every user must log in again within a minute");
    } else if idle_timeout.as_secs() < 60 {
        let message = "users must log in again after less than a minute without a request";
        section.warn_of("idle_timeout", message);
    }
}

/// The shared store of `[session]`. `None`: sessions are kept in the process, or a problem was
/// reported.
fn shared(
    session: &Table<'_>,
    has_browsers: bool,
    idle_timeout: Duration,
    secrets: Secrets,
) -> Option<SharedSection> {
    let section = session.optional_table("redis");
    let Some(section) = section else {
        let is_used = has_browsers || session.has("snapshot");
        for key in ["seal_key", "previous_seal_keys"] {
            if let Some(given) = session.raw(key).filter(|_| !is_used) {
                let message = "has no effect without a shared store, a snapshot or [[browser]]";
                session.push(session.key(key), given.span(), message, "add [session.redis]");
            }
        }
        if is_used && session.has("previous_seal_keys") {
            session.report_missing("seal_key", "previous_seal_keys only open what was sealed");
        }
        return None;
    };
    if !session.has("seal_key") {
        session.report_missing("seal_key", "create one with: openssl rand -base64 32");
    }
    let redis = redis::read(section, idle_timeout, secrets)?;
    Some(SharedSection { redis })
}

/// The key for sealing comes first, then the keys that can only open.
fn read_seal_keys(session: &Table<'_>, secrets: Secrets) -> Vec<SealKey> {
    let current = read_secret(session, "seal_key", secrets);
    let previous = read_secrets(session, "previous_seal_keys", secrets);
    let given = current.into_iter().chain(previous).filter(|_| secrets == Secrets::Load);
    let mut keys = Vec::new();
    for given in given {
        let text = given.value.expose();
        match SealKey::parse(text) {
            Some(key) if keys.contains(&key) => {
                session.reference_problem(&given, "is listed twice", "");
            }
            Some(key) => keys.push(key),
            None => {
                let message = "must be 32 bytes, as base64 or hexadecimal digits";
                let message = format!("{message}: {}", describe_key(text));
                session.reference_problem(
                    &given,
                    message,
                    "create one with: openssl rand -base64 32",
                );
            }
        }
    }
    keys
}

/// What is wrong with a key that is not 32 bytes, without showing any part of it.
fn describe_key(text: &str) -> String {
    let decoded = STANDARD.decode(text).map(Zeroizing::new).ok();
    let is_text = |bytes: &[u8]| bytes.trim_ascii().iter().all(u8::is_ascii_graphic);
    match (oddity(text), decoded) {
        (Some(oddity), _) => oddity,
        // At least 43 characters, like the base64 of 32 bytes: a key that was encoded twice.
        (None, Some(decoded)) if decoded.len() > 42 && is_text(&decoded) => {
            "it is base64-encoded text: decode it".to_owned()
        }
        (None, Some(decoded)) => format!("it is base64 of {} bytes", decoded.len()),
        (None, None) => format!("it has {} characters", text.chars().count()),
    }
}

/// Where the gateway looks for tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Header,
    Bearer,
    Cookie,
}

impl FromValue for Carrier {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words = [("header", Self::Header), ("bearer", Self::Bearer), ("cookie", Self::Cookie)];
        word(value, &words)
    }
}
