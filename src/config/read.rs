//! From a document to a [`Config`]: every rule about what a configuration may say.
//!
//! Goes on after a problem, so that all of them are found at once. Pure but for the files that
//! the document includes or names: secrets, certificates. Defaults stand here and in
//! `config/reference.toml`; a test compares the two.

use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeTable;

use super::document::from_value::{RateLimit, Size};
use super::document::problems::{Diagnostic, Problems, Source};
use super::document::reader::{Lines, Report, Section};
use super::document::redact_line::Line;
use super::document::{file, include, not_toml};
use super::section::route::references::{Known, OwnHeaders};
use super::section::{advice, errors, route, server, session, shape, wechat};
use super::value::secret::read_any_secret;
use super::{
    Config, Files, LimitsSection, Loaded, LogDestination, LogFormat, LogLevel, LogSection, Rate,
    Secrets, restart_only,
};

/// Checks a file with all that it includes. Where it is to take the place of what runs, that
/// is given.
pub fn check(main: Source, secrets: Secrets, running: Option<&Config>) -> Loaded {
    let mut files = Files { listed: [PathBuf::from(&main.name)].into(), ..Files::default() };
    let mut sources = vec![main];
    let mut diagnostics = include::read(&mut sources, &mut files);
    let config = check_all(&sources, secrets, running, &mut files, &mut diagnostics);
    let problems = || Problems::new(sources, diagnostics);
    Loaded { config: config.ok_or_else(problems), files }
}

/// `None` means that a problem was reported.
fn check_all(
    sources: &[Source],
    secrets: Secrets,
    running: Option<&Config>,
    files: &mut Files,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<Config> {
    let parsed = sources.iter().map(|source| DeTable::parse_recoverable(&source.text));
    let (documents, errors): (Vec<_>, Vec<_>) = parsed.unzip();
    for (index, (source, errors)) in sources.iter().zip(&errors).enumerate() {
        let format = not_toml::format(&source.text).filter(|_| !errors.is_empty());
        match format {
            Some((format, span)) => diagnostics.push(format_problem(index, format, span)),
            None => diagnostics
                .extend(errors.iter().map(|error| syntax_problem(index, &source.text, error))),
        }
    }
    if errors.iter().any(|errors| !errors.is_empty()) {
        return None;
    }
    let sources = sources.iter().map(Lines::new).collect();
    let report = RefCell::new(Report { sources, ..Report::default() });
    let config = read(Section::root(&documents, &report), secrets, running.is_none());
    let Report { diagnostics: found, warnings, files: named, .. } = report.into_inner();
    diagnostics.extend(found);
    files.listed.extend(named);
    let config = config.filter(|_| diagnostics.is_empty())?;
    if let (Some(running), Some(document)) = (running, documents.first()) {
        diagnostics.extend(restart_only::problems(running, &config, document));
    }
    diagnostics.is_empty().then_some(Config { warnings, ..config })
}

pub fn known_keys() -> Vec<String> {
    let documents = [DeTable::parse_recoverable("").0];
    let report = RefCell::new(Report { is_listing: true, ..Report::default() });
    read(Section::root(&documents, &report), Secrets::Ignore, true);
    report.into_inner().known.into_iter().collect()
}

fn format_problem(source: usize, format: &str, span: Range<usize>) -> Diagnostic {
    Diagnostic {
        source,
        span: Some(span),
        key: String::new(),
        message: format!("this is {format}, but the file must be TOML"),
        help: "see config/gateway.toml".to_owned(),
        line: Line::Judged,
    }
}

fn syntax_problem(source: usize, text: &str, error: &toml::de::Error) -> Diagnostic {
    const UNQUOTED: [&str; 3] =
        ["string values must be quoted", "invalid float", "invalid integer"];
    let message = error.message();
    let is_unquoted = UNQUOTED.iter().any(|begin| message.starts_with(begin));
    let span = error.span().unwrap_or_default();
    let help = match not_toml::lookalike_in_line(text, span.start) {
        Some(help) => help,
        None if is_unquoted => "put text in quotes: \"...\"".to_owned(),
        None => String::new(),
    };
    Diagnostic {
        source,
        // The parser does not say where a key has too many parts.
        span: Some(span),
        key: String::new(),
        message: format!("not TOML: {message}"),
        help,
        line: Line::Judged,
    }
}

/// What only a start needs is not checked again for a reload. `None` means that a problem was
/// reported.
fn read(root: Section<'_>, secrets: Secrets, is_start: bool) -> Option<Config> {
    let (session, session_header) = session::session(root.section("session"), secrets);
    let identity = session::identity(root.section("identity"), &session, session_header);
    let own = OwnHeaders { session: &session, identity: &identity };
    let (server, public) = server::server(root.section("server"), own, secrets);
    let admin = server::admin(root.section("admin"), &public, secrets);
    let forward_auth = server::forward_auth(
        root.section("forward_auth"),
        &public,
        &admin,
        server.as_ref().is_some_and(|server| !server.trusted_proxies.is_empty()),
        session.idle_timeout,
    );
    let is_asked = !forward_auth.listen.is_empty();
    let wechat = wechat::wechat(root.section("wechat"), secrets);
    let (login, rate_per_app) = session::login(root.section("login"));
    let (apps, app_ids) = wechat::apps(&root, secrets, rate_per_app);
    let limits = limits(root.section("limits"));
    let log = log(root.section("log"), secrets, is_start);
    let mut listeners: Vec<_> = public.iter().map(|one| (one.key.as_str(), one.value)).collect();
    listeners.push(("admin.listen", admin.listen));
    listeners.extend(forward_auth.listen.iter().map(|address| ("forward_auth.listen", *address)));
    let upstreams = route::upstreams(&root, is_asked, &listeners);
    let tls = server.as_ref().and_then(|server| server.tls.as_ref());
    let endpoints = route::endpoints(root.section("endpoints"), tls);
    let known = Known {
        upstreams: &upstreams,
        upstream_may_be_absent: is_asked,
        apps: apps.as_deref(),
        max_body: limits.max_body,
        session: &session,
        own,
        response_headers: server.as_ref().map_or(&[], |server| &server.response_headers),
        tls,
        secrets,
    };
    let routes = route::routes(&root, &known);
    if let Some(routes) = &routes {
        advice::warn_of_unused_upstreams(&root, &upstreams, routes);
        advice::warn_of_unused_apps(&root, &app_ids, routes);
    }
    let errors = errors::errors(&root);
    // What it finds has been read.
    root.list::<String>("include");
    root.finish();
    Some(Config {
        server: server?,
        admin,
        forward_auth,
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
        min_response_rate: section.get_or("min_response_rate", Size(240)).0,
        max_buffered: section.get_or("max_buffered", Size(256 << 20)).0,
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
    advice::warn_of_memory(
        &section,
        "max_rate_clients",
        limits.max_rate_clients,
        advice::RATE_CLIENT_BYTES,
        "each rate limit",
    );
    section.finish();
    limits
}

/// The key `max_body` of a section.
pub fn max_body(section: &Section<'_>, default: u64) -> u64 {
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
pub fn rate(section: &Section<'_>, name: &'static str, default: Option<Rate>) -> Option<Rate> {
    section.get_or(name, RateLimit(default)).0
}

/// Half of the descriptors that the process may open: the other half is for the connections
/// to upstreams and for what is not a connection.
fn default_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    usize::try_from(limit.unwrap_or(1 << 20)).unwrap_or(1 << 20) / 2
}

fn log(section: Section<'_>, secrets: Secrets, is_start: bool) -> LogSection {
    let openid_key = read_any_secret(&section, "openid_key", secrets);
    if let Some(key) = openid_key.as_ref().filter(|_| secrets == Secrets::Load) {
        shape::warn_of_short_key(&section, key, &key.value);
    }
    let access = section.get::<LogDestination>("access");
    // The file may be for another machine, as in CI.
    let is_here = is_start && secrets == Secrets::Load;
    if let Some(given) = access.as_ref().filter(|_| is_here)
        && let LogDestination::File(path) = &given.value
        && let Err(reason) = file::judge_append(path)
    {
        section.problem(given, format!("cannot be opened: {reason}"), "");
    }
    let log = LogSection {
        level: section.get_or("level", LogLevel::Info),
        format: section.get_or("format", LogFormat::Json),
        access: access.map_or(LogDestination::Stderr, |given| given.value),
        openid_key: openid_key.map(|key| key.value),
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
        let shown = Config::parse("file", &text, Secrets::Ignore).unwrap_err().to_string();
        assert!(shown.starts_with("file:1:1: not TOML: "), "{shown:.100}");
    }
}
