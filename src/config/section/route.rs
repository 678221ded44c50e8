//! `[[route]]`: a path, with conditions, and what happens to requests that match it.

pub mod caching;
pub mod cors;
pub mod header_edits;
pub mod matching;
pub mod references;
pub mod rewriting;
pub mod target;

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use toml::de::DeValue;

use self::caching::vary;
pub use self::cors::{Cors, Origins, Preflight};
pub use self::header_edits::HeaderEdits;
use self::header_edits::{on_route, request_edits, response_edits};
use self::matching::{Matched, report_duplicate};
use self::references::References;
pub use self::rewriting::Rewriting;
pub use self::target::{Share, StaticAnswer, Target};
use super::app::App;
use super::limits::max_body;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Place, Table};
use crate::config::value::host::HostPattern;
use crate::config::value::name::report_odd_name;
use crate::config::value::path::RoutePath;
use crate::config::value::rate::{self, Rate};
use crate::identity::AppId;

/// One `[[route]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where its section begins.
    pub place: Place,
    /// Label in metrics and logs.
    pub name: String,
    /// Empty: every host.
    pub hosts: Vec<HostPattern>,
    pub path: RoutePath,
    /// Whether only the path itself matches, not what is below it.
    pub is_exact: bool,
    /// Headers that must stand once and have these values.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub target: Target,
    pub access: Access,
    /// Upper-case; empty: every method.
    pub methods: Vec<String>,
    /// Empty: sessions of every app.
    pub apps: Vec<AppId>,
    /// Whether a request may become a WebSocket.
    pub websocket: bool,
    /// Bytes of a request body.
    pub max_body: u64,
    /// Requests of each user; `None`: as many as come.
    pub rate_per_user: Option<Rate>,
    /// Requests from each address.
    pub rate_per_address: Option<Rate>,
    pub rewriting: Option<Rewriting>,
    pub request_edits: HeaderEdits,
    /// Of the service's responses and of [`Target::Answer`], `server.response_headers` included.
    pub response_edits: HeaderEdits,
    /// Of the gateway's own responses on this route.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that can carry a token, for `Vary`; empty where it is not sent.
    pub vary: Vec<HeaderName>,
    pub timeouts: Timeouts,
    pub cors: Option<Cors>,
    pub preflight: Preflight,
}

/// What a route asks of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No valid session, no upstream.
    Required,
    /// No token means anonymous; a token that is not valid is refused.
    Optional,
    /// Tokens are not looked up.
    None,
}

/// What a route says instead of its upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Option<Duration>,
    pub read: Option<Duration>,
    pub write: Option<Duration>,
}

/// Reads all routes. `None` means that a problem was reported.
pub fn read(root: &Table<'_>, references: &References<'_>) -> Option<Vec<Route>> {
    let sections = root.tables("route");
    root.report_missing("route", "one [[route]] at least, as path = \"/\"");
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
            report_odd_name(&section, name);
        }
        let default_name = path.as_ref().map(|path| {
            let host = matching.hosts.first().map_or_else(String::new, ToString::to_string);
            host + path.value.as_str()
        });
        let access = section.get_or("auth", Access::Required);
        let target = target::read(&section, references, access);
        let rewriting = rewriting::read(&section, path.as_ref());
        let request_edits = request_edits(&section, references);
        let response_edits = response_edits(&section, references);
        let vary = vary(&section, references, access, &response_edits);
        let timeouts = read_timeouts(&section);
        let (cors, preflight) =
            cors::read(&section, references, &matching.methods, &response_edits);
        let (response_edits, response_headers) =
            on_route(references.response_headers, response_edits, cors.is_some());
        let websocket = section.get_or("websocket", false);
        let route_apps = route_apps(&section, references.apps);
        let max_body = max_body(&section, references.max_body);
        let rate_per_user = rate::read(&section, "rate_per_user", None);
        let rate_per_address = rate::read(&section, "rate_per_address", None);
        for (name, is_set) in [("apps", true), ("rate_per_user", rate_per_user.is_some())] {
            if let Some(raw) = section.raw(name)
                && is_set
                && access == Access::None
            {
                let message = "has no effect where auth is \"none\": no session is looked up";
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
                cors,
                preflight,
            });
        } else {
            is_complete = false;
        }
        if let (Some(path), Some(default)) = (path, default_name) {
            matched.push(Matched { path: path.clone(), matching });
            let is_duplicate = report_duplicate(&section, &matched);
            // One problem is enough for a route that is there twice.
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
    }
}

fn route_apps(section: &Table<'_>, apps: Option<&[App]>) -> Vec<AppId> {
    let listed = section.some::<AppId>("apps", "leave it out for sessions of every app");
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

/// Warns of a path that looks like a pattern, but is compared literally.
fn warn_of_pattern(section: &Table<'_>, path: &Located<RoutePath>) {
    let text = path.value.as_str();
    let has_parameter = text.split('/').any(|segment| segment.starts_with(':'));
    let why = if text.ends_with('$') || text.contains('(') {
        "a path is not a regular expression"
    } else if has_parameter {
        "a path has no parameters"
    } else {
        return;
    };
    section.warn(path, &format!("\"{text}\" is compared literally: {why}"));
}

/// How a route is called in metrics and logs.
struct RouteName {
    name: String,
    given: Option<Located<String>>,
    /// The route's path, which is its name by default, after its first host.
    path: Located<RoutePath>,
}

fn report_repeated_names(root: &Table<'_>, names: &[RouteName]) {
    for (index, one) in names.iter().enumerate() {
        let Some(given) = &one.given else {
            if names.iter().take(index).any(|other| other.given.is_none() && other.name == one.name)
            {
                let help = "its path is the name of another route: write name = \"...\"";
                root.problem(&one.path, "needs a name of its own", help);
            }
            continue;
        };
        let is_other = |(at, other): &(usize, &RouteName)| {
            // Of two names in the file, the second is the one to change.
            other.name == one.name && (*at < index || (*at > index && other.given.is_none()))
        };
        if let Some((_, other)) = names.iter().enumerate().find(is_other) {
            let first = other.given.as_ref().map_or(&other.path.key, |given| &given.key);
            root.problem(given, "this name stands twice", format!("first as {first}"));
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
