//! Reads the text of a file into a [`Config`]. Decides the order in which the sections are read.
//!
//! Continues after a problem, so that all problems are found at once. Has no side effects, but
//! reads the files that the document includes or names: secrets, certificates.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use toml::de::DeTable;

use super::document::problems::{Diagnostic, Problems, SourceFile};
use super::document::redact_line::Redaction;
use super::document::table::{LineBreaks, Located, Report, Table, values};
use super::document::{include, not_toml};
use super::section::endpoints::Features;
use super::section::internal::InternalAddress;
use super::section::route::references::References;
use super::section::upstream::server::OwnListeners;
use super::section::{
    admin, app, browser, endpoints, errors, forward_auth, identity, internal, limits, log, login,
    open_data, route, scan, server, session, ticket, upstream, wechat,
};
use super::value::headers::ReservedHeaders;
use super::{
    AdminSection, Config, Files, ForwardAuthSection, IdentitySection, Loaded, Route, Secrets,
    restart_only,
};
use crate::identity::AppId;

/// Reads a file and its included files. `running` is the configuration to be replaced, if there is
/// one.
pub fn read(main: SourceFile, secrets: Secrets, running: Option<&Config>) -> Loaded {
    let mut files = Files { listed: [PathBuf::from(&main.name)].into(), ..Files::default() };
    let mut sources = vec![main];
    let mut diagnostics = include::read(&mut sources, &mut files);
    let config = parse(&sources, secrets, running, &mut files, &mut diagnostics);
    let problems = || Problems::new(sources, diagnostics);
    Loaded { config: config.ok_or_else(problems), files }
}

/// `None` means that a problem was reported.
fn parse(
    sources: &[SourceFile],
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
    let sources = sources.iter().map(LineBreaks::new).collect();
    let report = RefCell::new(Report { sources, ..Report::default() });
    let config = sections(Table::root(&documents, &report), secrets, running);
    let Report { diagnostics: found, warnings, files: named, .. } = report.into_inner();
    diagnostics.extend(found);
    files.listed.extend(named);
    let config = config.filter(|_| diagnostics.is_empty())?;
    if let (Some(running), Some(document)) = (running, documents.first()) {
        diagnostics.extend(restart_only::problems(running, &config, document));
    }
    diagnostics.is_empty().then_some(Config { warnings, ..config })
}

/// Every key that the configuration can have, as `section.key` or `section[].key`.
pub fn known_keys() -> Vec<String> {
    let documents = [DeTable::parse_recoverable("").0];
    let report = RefCell::new(Report { is_listing: true, ..Report::default() });
    sections(Table::root(&documents, &report), Secrets::Ignore, None);
    report.into_inner().keys.into_iter().collect()
}

fn format_problem(source: usize, format: &str, span: Range<usize>) -> Diagnostic {
    Diagnostic {
        source,
        span: Some(span),
        key: String::new(),
        message: format!("this is {format}, but the file must be TOML"),
        help: "see config/gateway.toml".to_owned(),
        redaction: Redaction::IfSecret,
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
        // For a key with too many parts, the parser gives no place.
        span: Some(span),
        key: String::new(),
        message: format!("not TOML: {message}"),
        help,
        redaction: Redaction::IfSecret,
    }
}

/// Reads the sections, each after those that it refers to. Warnings are in this order, too. `None`
/// means that a problem was reported.
fn sections(root: Table<'_>, secrets: Secrets, running: Option<&Config>) -> Option<Config> {
    let (session, session_header) =
        session::read(root.table("session"), root.has("browser"), secrets, running.is_none());
    let login = root.table("login");
    let has_hook = login.has("hook");
    let (login, rate_per_app) = login::read(login, secrets);
    let surroundings = identity::References {
        session: &session,
        session_header,
        has_hook,
        secrets,
        running: running.map(|running| &running.identity),
    };
    let identity = identity::read(root.table("identity"), surroundings);
    let identity_headers = identity.headers();
    let reserved = ReservedHeaders { session: &session.header, identity: &identity_headers };
    let (server, public) = server::read(root.table("server"), reserved, secrets);
    let admin = admin::read(root.table("admin"), &public, secrets);
    let forward_auth = forward_auth::read(
        root.table("forward_auth"),
        &public,
        &admin,
        server.as_ref().is_some_and(|server| !server.trusted_proxies.is_empty()),
        session.idle_timeout,
    );
    let has_forward_auth = !forward_auth.listen.is_empty();
    let wechat = wechat::read(root.table("wechat"), secrets);
    login::hook::warn_of_drain(&root, &login, wechat.as_ref(), server.as_ref());
    let (apps, app_ids) = app::read(&root, secrets, rate_per_app);
    let limits = limits::read(root.table("limits"));
    let log = log::read(root.table("log"), secrets, running.is_none());
    let mut listeners = listeners(&public, &admin, &forward_auth);
    let internal = internal::read(&root, &listeners, apps.as_deref().unwrap_or_default(), secrets);
    let open_data = open_data::read(root.table("open_data"), apps.as_deref());
    let mut unix = None;
    match internal.as_ref().map(|one| &one.listen) {
        Some(InternalAddress::Tcp(address)) => listeners.push(("internal.listen", *address)),
        Some(InternalAddress::Unix(path)) => unix = Some(path.as_path()),
        None => {}
    }
    let surroundings = upstream::References {
        may_be_absent: has_forward_auth,
        own: OwnListeners { sockets: &listeners, unix },
        reserved,
        max_buffered: limits.max_buffered,
        secrets,
    };
    let upstreams = upstream::read(&root, &surroundings);
    let tls = server.as_ref().and_then(|server| server.tls.as_ref());
    let browsers = browser::read(&root, apps.as_deref(), tls);
    let ticket = ticket::read(&root);
    let scan = scan::read(&root, apps.as_deref(), root.has("browser"));
    let features = Features {
        browsers: &browsers,
        tickets: ticket.enabled,
        scan: scan.is_some(),
        jwt: identity.jwt.is_some(),
    };
    let endpoints = endpoints::read(root.table("endpoints"), tls, features);
    let references = References {
        upstreams: &upstreams,
        upstream_may_be_absent: has_forward_auth,
        apps: apps.as_deref(),
        browsers: &browsers,
        max_body: limits.max_body,
        session: &session,
        reserved,
        response_headers: server.as_ref().map_or(&[], |server| &server.response_headers),
        tls,
        secrets,
    };
    let routes = route::read(&root, &references);
    if let Some(routes) = &routes {
        report_unused(&root, &references, &app_ids, (&identity, &forward_auth), routes);
    }
    let errors = errors::read(&root);
    // The included files have already been read. This marks `include` as a known key.
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
        internal,
        open_data,
        browsers: values(browsers),
        ticket,
        scan,
        warnings: Vec::new(),
    })
}

/// The listeners so far, each with its key.
fn listeners<'a>(
    public: &'a [Located<SocketAddr>],
    admin: &AdminSection,
    forward_auth: &ForwardAuthSection,
) -> Vec<(&'a str, SocketAddr)> {
    let mut listeners: Vec<_> = public.iter().map(|one| (one.key.as_str(), one.value)).collect();
    listeners.push(("admin.listen", admin.listen));
    listeners.extend(forward_auth.listen.iter().map(|address| ("forward_auth.listen", *address)));
    listeners
}

/// Warns of what no route uses, and of identity headers that have no effect; reports audiences of
/// nothing. `app_ids` are the places of the apps.
fn report_unused(
    root: &Table<'_>,
    references: &References<'_>,
    app_ids: &[Located<AppId>],
    (identity, forward_auth): (&IdentitySection, &ForwardAuthSection),
    routes: &[Route],
) {
    let References { upstreams, apps, browsers, session, .. } = *references;
    upstream::warn_of_unused(root, upstreams, routes);
    upstream::warn_of_jars(root, upstreams, routes, session);
    app::warn_of_unused(root, apps.unwrap_or_default(), app_ids, browsers, routes);
    browser::warn_of_unused(root, browsers, routes);
    identity::warn_of_preset(root, identity, apps.unwrap_or_default());
    forward_auth::warn_of_expired(root, forward_auth, identity.jwt.as_ref());
    if identity.jwt.is_some() {
        let upstreams = upstreams.iter().map(|upstream| &upstream.value);
        identity::jwt::report_unknown_audiences(root, upstreams, routes);
    }
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
