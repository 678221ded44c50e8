//! From a document to a [`Config`]: every rule about what a configuration may say.
//!
//! Goes on after a problem, so that all of them are found at once. Pure but for the secret
//! and certificate files that the document names. Defaults stand here and in
//! `config/reference.toml`; a test compares the two.

mod cors;
mod editing;
mod errors;
mod listener;
mod matching;
mod pem;
mod routing;
mod secret;
mod session;
mod target;
mod wechat;

use std::cell::RefCell;
use std::time::Duration;

use toml::de::DeTable;

use self::secret::read_secret;
use super::diagnostic::{Diagnostic, Problems};
use super::mask::Line;
use super::reader::{Report, Section};
use super::value::{RateLimit, Size};
use super::{
    Config, LimitsSection, LogDestination, LogFormat, LogLevel, LogSection, Rate, Secrets,
};

pub fn check(name: &str, text: &str, secrets: Secrets) -> Result<Config, Problems> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let diagnostics = errors.iter().map(syntax_problem).collect();
        return Err(Problems::new(name, text, diagnostics));
    }
    let report = RefCell::new(Report::default());
    let config = read(Section::root(&document, &report), secrets);
    let Report { diagnostics, warnings, .. } = report.into_inner();
    match config {
        Some(config) if diagnostics.is_empty() => Ok(Config { warnings, ..config }),
        _ => Err(Problems::new(name, text, diagnostics)),
    }
}

pub fn known_keys() -> Vec<String> {
    let (document, _) = DeTable::parse_recoverable("");
    let report = RefCell::new(Report { is_listing: true, ..Report::default() });
    read(Section::root(&document, &report), Secrets::Ignore);
    report.into_inner().known.into_iter().collect()
}

fn syntax_problem(error: &toml::de::Error) -> Diagnostic {
    const UNQUOTED: [&str; 3] =
        ["string values must be quoted", "invalid float", "invalid integer"];
    let message = error.message();
    let is_unquoted = UNQUOTED.iter().any(|begin| message.starts_with(begin));
    Diagnostic {
        // The parser does not say where a key has too many parts.
        span: Some(error.span().unwrap_or_default()),
        key: String::new(),
        message: format!("not TOML: {message}"),
        help: if is_unquoted { "text stands in quotes".to_owned() } else { String::new() },
        line: Line::Judged,
    }
}

/// `None` means that a problem was reported.
fn read(root: Section<'_>, secrets: Secrets) -> Option<Config> {
    let (server, public) = listener::server(root.section("server"), secrets);
    let admin = listener::admin(root.section("admin"), &public);
    let wechat = wechat::wechat(root.section("wechat"), secrets);
    let (login, rate_per_app) = session::login(root.section("login"));
    let apps = wechat::apps(&root, secrets, rate_per_app);
    let (session, session_header) = session::session(root.section("session"));
    let identity = session::identity(root.section("identity"), &session, session_header);
    let limits = limits(root.section("limits"));
    let log = log(root.section("log"), secrets);
    let upstreams = routing::upstreams(&root);
    let endpoints = routing::endpoints(root.section("endpoints"));
    let known = routing::Known {
        upstreams: &upstreams,
        apps: apps.as_deref(),
        max_body: limits.max_body,
        session: &session,
        identity: &identity,
        secrets,
    };
    let routes = routing::routes(&root, &known);
    let errors = errors::errors(&root);
    root.finish();
    Some(Config {
        server: server?,
        admin,
        wechat: wechat?,
        apps: apps?,
        session,
        login,
        endpoints,
        identity,
        limits,
        log,
        upstreams: upstreams.into_iter().map(|upstream| upstream.value).collect(),
        routes: routes?,
        errors,
        warnings: Vec::new(),
    })
}

fn limits(section: Section<'_>) -> LimitsSection {
    let limits = LimitsSection {
        header_timeout: section.positive("header_timeout", Duration::from_secs(10)),
        body_timeout: section.positive("body_timeout", Duration::from_secs(30)),
        idle_timeout: section.positive("idle_timeout", Duration::from_secs(60)),
        max_body: max_body(&section, 10 << 20),
        max_header: section.size("max_header", 16 << 10, 1 << 10..=1 << 20),
        max_header_count: section.number("max_header_count", 100, 1..=256),
        max_target: section.size("max_target", 8 << 10, 64..=1 << 20),
        websocket_idle_timeout: section
            .positive("websocket_idle_timeout", Duration::from_secs(300)),
        websocket_lifetime: section.positive("websocket_lifetime", Duration::from_secs(24 * 3600)),
        write_timeout: section.positive("write_timeout", Duration::from_secs(30)),
        min_body_rate: section.get_or("min_body_rate", Size(240)).0,
        max_requests_per_connection: section.number(
            "max_requests_per_connection",
            1000,
            1..=1 << 30,
        ),
        max_streams: u32::try_from(section.number("max_streams", 100, 1..=1 << 16)).unwrap_or(100),
        max_early_resets: section.number("max_early_resets", 200, 1..=1 << 30),
        max_connections: match section.get_or("max_connections", 0usize) {
            0 => default_connections(),
            // A semaphore counts no further.
            connections => connections.min(1 << 24),
        },
        max_connections_per_address: match section.get_or("max_connections_per_address", 0) {
            0 => None,
            connections => Some(connections),
        },
        max_rate_clients: section.number("max_rate_clients", 100_000, 1..=1 << 30) as u64,
    };
    section.finish();
    limits
}

/// The key `max_body` of a section.
fn max_body(section: &Section<'_>, default: u64) -> u64 {
    let given = section.get::<Size>("max_body");
    if let Some(given) = &given
        && given.value.0 == 0
    {
        // Elsewhere 0 stands for no limit; here it would refuse every body.
        section.problem(given, "must be more than 0B", "");
    }
    given.map_or(default, |given| given.value.0)
}

/// A rate limit; `None` where it is off.
fn rate(section: &Section<'_>, name: &'static str, default: Option<Rate>) -> Option<Rate> {
    section.get_or(name, RateLimit(default)).0
}

/// Half of the descriptors that the process may open: the other half is for the connections
/// to upstreams and for what is not a connection.
fn default_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(1 << 20)).unwrap_or(1 << 20) / 2
}

fn log(section: Section<'_>, secrets: Secrets) -> LogSection {
    let log = LogSection {
        level: section.get_or("level", LogLevel::Info),
        format: section.get_or("format", LogFormat::Json),
        access: section.get_or("access", LogDestination::Stderr),
        openid_key: read_secret(&section, "openid_key", secrets),
    };
    section.finish();
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_too_many_parts_is_a_problem_with_a_place() {
        let text = format!("x{} = 1", ".x".repeat(100));
        let shown = check("file", &text, Secrets::Ignore).unwrap_err().to_string();
        assert!(shown.starts_with("file:1:1: not TOML: "), "{shown:.100}");
    }
}
