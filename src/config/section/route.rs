//! `[[route]]`: a path, with conditions, and what happens to requests that match it.

pub mod caching;
pub mod cors;
pub mod header_edits;
pub mod matching;
mod redirects;
pub mod references;
pub mod rewriting;
pub mod target;

use std::time::Duration;

use http::header::COOKIE;
use http::{HeaderName, HeaderValue};
use toml::de::DeValue;

use self::caching::vary;
pub use self::cors::{Cors, Origins, Preflight};
pub use self::header_edits::HeaderEdits;
use self::header_edits::{on_route, request_edits, response_edits};
use self::matching::{Matched, report_duplicate};
use self::references::References;
pub use self::rewriting::Rewriting;
pub use self::target::{Share, StaticResponse, Target};
use super::app::App;
use super::limits::max_body;
use super::upstream::{Protocol, RouteRetry, retry};
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Place, Table};
use crate::config::value::host::HostPattern;
use crate::config::value::name::report_invalid_name;
use crate::config::value::path::RoutePath;
use crate::config::value::rate::{self, Rate};
use crate::identity::AppId;

/// One `[[route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The place where its section begins.
    pub place: Place,
    /// Label in metrics and logs.
    pub name: String,
    /// Empty: all hosts.
    pub hosts: Vec<HostPattern>,
    pub path: RoutePath,
    /// Whether only the path itself matches, and not the paths below it.
    pub is_exact: bool,
    /// Headers that must occur once and have these values.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub target: Target,
    pub access: Access,
    /// Whether a page request without a session is sent to WeChat to log in.
    pub redirects: bool,
    /// In upper case; empty: all methods.
    pub methods: Vec<String>,
    /// Empty: sessions of all apps.
    pub apps: Vec<AppId>,
    /// Whether a request may be upgraded to a WebSocket.
    pub websocket: bool,
    /// Bytes of a request body.
    pub max_body: u64,
    /// Rate limit of requests per user; `None`: no limit.
    pub rate_per_user: Option<Rate>,
    /// Rate limit of requests per address.
    pub rate_per_address: Option<Rate>,
    pub rewriting: Option<Rewriting>,
    pub request_edits: HeaderEdits,
    /// Edits of the service's responses and of [`Target::OwnResponse`], including
    /// `server.response_headers`.
    pub response_edits: HeaderEdits,
    /// Headers of the gateway's own responses on this route.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that can carry a token, for `Vary`; empty if no `Vary` is sent.
    pub vary: Vec<HeaderName>,
    pub timeouts: Timeouts,
    pub retry: RouteRetry,
    pub cors: Option<Cors>,
    pub preflight: Preflight,
}

/// Whether a route needs a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A valid session is required.
    Required,
    /// Without a token the request is anonymous; an invalid token is rejected.
    Optional,
    /// Tokens are not looked up.
    None,
}

/// Timeouts that a route sets instead of its upstream's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub read: Option<Duration>,
    pub write: Option<Duration>,
    /// For the whole exchange, but not for upgraded connections.
    pub total: Option<Duration>,
}

/// Reads all routes. `None` means that a problem was reported.
pub fn read(root: &Table<'_>, references: &References<'_>) -> Option<Vec<Route>> {
    let sections = root.tables("route");
    root.report_missing("route", "add at least one [[route]], such as one with path = \"/\"");
    let mut routes: Vec<Route> = Vec::with_capacity(sections.len());
    let mut matched: Vec<Matched> = Vec::with_capacity(sections.len());
    let mut names: Vec<RouteName> = Vec::with_capacity(sections.len());
    let mut is_complete = true;
    for section in sections {
        let path = section.require::<RoutePath>("path");
        if let Some(path) = &path {
            warn_of_pattern(&section, path);
        }
        let matching = matching::read(&section, references);
        let name = section.get::<String>("name");
        if let Some(name) = &name {
            report_invalid_name(&section, name);
        }
        let default_name = path.as_ref().map(|path| {
            let host = matching.hosts.first().map_or_else(String::new, ToString::to_string);
            host + path.value.as_str()
        });
        let access = section.get_or("auth", Access::Required);
        let redirects = redirects::read(&section, references, access, &matching.hosts);
        let target = target::read(&section, references, access);
        let rewriting = rewriting::read(&section, path.as_ref());
        let request_edits = request_edits(&section, references);
        let response_edits = response_edits(&section, references);
        warn_of_jar(&section, references, target.as_ref(), &request_edits);
        let vary = vary(&section, references, access, &response_edits);
        let timeouts = read_timeouts(&section);
        let retry = read_retry(&section, references, target.as_ref(), timeouts.read);
        let (cors, preflight) =
            cors::read(&section, references, &matching.methods, &response_edits);
        let (response_edits, response_headers) =
            on_route(references.response_headers, response_edits, cors.is_some());
        let websocket = section.get_or("websocket", false);
        report_no_upgrade(&section, references, target.as_ref(), websocket);
        let route_apps = route_apps(&section, references.apps);
        if redirects {
            redirects::warn_of_other_apps(&section, references, &matching.hosts, &route_apps);
        }
        let max_body = max_body(&section, references.max_body);
        let rate_per_user = rate::read(&section, "rate_per_user", None);
        let rate_per_address = rate::read(&section, "rate_per_address", None);
        for (name, is_set) in [("apps", true), ("rate_per_user", rate_per_user.is_some())] {
            if let Some(raw) = section.raw(name)
                && is_set
                && access == Access::None
            {
                let message = "has no effect with auth = \"none\": no session is looked up";
                section.push(section.key(name), raw.span(), message, "");
            }
        }
        if let (Some(path), Some(target), Some(default)) = (&path, target, &default_name) {
            routes.push(Route {
                place: section.place(),
                name: name.as_ref().map_or(default, |name| &name.value).clone(),
                hosts: matching.hosts.clone(),
                path: path.value.clone(),
                is_exact: matching.is_exact,
                headers: matching.headers.clone(),
                target,
                access,
                redirects,
                methods: matching.methods.clone(),
                apps: route_apps,
                websocket,
                max_body,
                rate_per_user,
                rate_per_address,
                rewriting,
                request_edits,
                response_edits,
                response_headers,
                vary,
                timeouts,
                retry,
                cors,
                preflight,
            });
        } else {
            is_complete = false;
        }
        if let (Some(path), Some(default)) = (path, default_name) {
            matched.push(Matched { path: path.clone(), matching });
            let is_duplicate = report_duplicate(&section, &matched);
            // For a duplicate route, one problem is enough.
            if name.is_some() || !is_duplicate {
                let called = name.as_ref().map_or(default, |name| name.value.clone());
                names.push(RouteName { name: called, given: name, path });
            }
        }
        section.finish();
    }
    report_repeated_names(root, &names);
    (is_complete && !routes.is_empty()).then_some(routes)
}

fn read_timeouts(section: &Table<'_>) -> Timeouts {
    Timeouts {
        connect: section.optional_positive("connect_timeout"),
        read: section.optional_positive("read_timeout"),
        write: section.optional_positive("write_timeout"),
        total: section.optional_positive("timeout"),
    }
}

/// Reports a route that allows upgrades to a service that cannot do them.
fn report_no_upgrade(
    section: &Table<'_>,
    references: &References<'_>,
    target: Option<&Target>,
    websocket: bool,
) {
    let upstreams = target.filter(|_| websocket).map(Target::upstreams).unwrap_or_default();
    let mut upstreams = upstreams.into_iter().filter_map(|index| references.upstreams.get(index));
    if let Some(upstream) = upstreams.find(|one| one.value.protocol == Protocol::Http2) {
        let name = &upstream.value.name;
        let message = format!("WebSockets need HTTP/1.1, but \"{name}\" has protocol = \"h2\"");
        section.problem_of("websocket", message, "use another upstream for them");
    }
}

/// Warns of an edit that replaces the cookies of a jar.
fn warn_of_jar(
    section: &Table<'_>,
    references: &References<'_>,
    target: Option<&Target>,
    edits: &HeaderEdits,
) {
    let upstreams = target.map(Target::upstreams).unwrap_or_default().into_iter();
    let mut upstreams = upstreams.filter_map(|index| references.upstreams.get(index));
    if let Some(upstream) = upstreams.find(|upstream| upstream.value.cookie_jar)
        && edits.set.iter().any(|(name, _)| name == COOKIE)
    {
        let name = &upstream.value.name;
        let message = format!("this Cookie replaces those that cookie_jar keeps for \"{name}\"");
        section.warn_of("set_request_headers", &message);
    }
}

fn read_retry(
    section: &Table<'_>,
    references: &References<'_>,
    target: Option<&Target>,
    read_timeout: Option<Duration>,
) -> RouteRetry {
    let Some(table) = section.optional_table("retry") else { return RouteRetry::default() };
    let upstreams = target.map(Target::upstreams).unwrap_or_default().into_iter();
    let upstreams = upstreams.filter_map(|index| references.upstreams.get(index));
    retry::read_of_route(table, upstreams.map(|upstream| &upstream.value), read_timeout)
}

fn route_apps(section: &Table<'_>, apps: Option<&[App]>) -> Vec<AppId> {
    let listed = section.some::<AppId>("apps", "leave it out to accept every app");
    let listed = listed.unwrap_or_default();
    for app_id in &listed {
        if apps.is_some_and(|apps| apps.iter().all(|app| app.app_id != app_id.value)) {
            section.problem(
                app_id,
                format!("no [[app]] has the id \"{}\"", app_id.value.as_str()),
                "",
            );
        }
    }
    listed.into_iter().map(|app_id| app_id.value).collect()
}

/// Warns of a path that looks like a pattern, because paths are compared literally.
fn warn_of_pattern(section: &Table<'_>, path: &Located<RoutePath>) {
    let text = path.value.as_str();
    let has_parameter = text.split('/').any(|segment| segment.starts_with(':'));
    let why = if text.ends_with('$') || text.contains('(') {
        "regular expressions are not supported"
    } else if has_parameter {
        "path parameters are not supported"
    } else {
        return;
    };
    section.warn(path, &format!("\"{text}\" is matched literally: {why}"));
}

/// The name of a route in metrics and logs.
struct RouteName {
    name: String,
    given: Option<Located<String>>,
    /// The route's path. It is the default name, with the first host in front.
    path: Located<RoutePath>,
}

fn report_repeated_names(root: &Table<'_>, names: &[RouteName]) {
    for (index, one) in names.iter().enumerate() {
        let Some(given) = &one.given else {
            if names.iter().take(index).any(|other| other.given.is_none() && other.name == one.name)
            {
                let help = "it is named after its path, and another route has that name: add name = \"...\"";
                root.problem(&one.path, "needs a unique name", help);
            }
            continue;
        };
        let is_other = |(at, other): &(usize, &RouteName)| {
            // If both names are in the file, the second has to change.
            other.name == one.name && (*at < index || (*at > index && other.given.is_none()))
        };
        if let Some((_, other)) = names.iter().enumerate().find(is_other) {
            let first = other.given.as_ref().map_or(&other.path.key, |given| &given.key);
            root.problem(given, "duplicate name", format!("first in {first}"));
        }
    }
}

impl FromValue for Access {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let words =
            [("required", Self::Required), ("optional", Self::Optional), ("none", Self::None)];
        word(value, &words)
    }
}
