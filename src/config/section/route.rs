//! Endpoints, upstreams and routes, and what each says of another.

pub mod caching;
pub mod cors;
pub mod header_edits;
pub mod matching;
pub mod references;
pub mod target;

use std::net::SocketAddr;
use std::time::Duration;

use self::caching::vary;
use self::cors::cors;
use self::header_edits::{on_route, request_edits, response_edits, rewriting, timeouts};
use self::matching::{Matched, matching, report_duplicate};
use self::references::Known;
use self::target::target;
use super::advice;
use super::server::is_met;
use super::server::tls::warn_of_uncovered;
use crate::config::document::reader::{Located, Section, values};
use crate::config::read::{max_body, rate};
use crate::config::{
    Access, App, EndpointsSection, HostPattern, Route, RoutePath, ServerAddress, TlsSection,
    Upstream,
};
use crate::identity::AppId;

pub fn endpoints(section: Section<'_>, tls: Option<&TlsSection>) -> EndpointsSection {
    let mut seen: Vec<(RoutePath, &'static str, Option<Located<RoutePath>>)> = Vec::new();
    let mut paths = |name: &'static str, default: Option<&str>| -> Vec<RoutePath> {
        let listed = match section.list::<RoutePath>(name) {
            Some(listed) => {
                listed.into_iter().map(|path| (path.value.clone(), Some(path))).collect()
            }
            None => Vec::from_iter(default.map(|path| (RoutePath(path.to_owned()), None))),
        };
        for (path, place) in &listed {
            if let Some(place) = place {
                advice::warn_of_trailing_slash(&section, place);
            }
            let Some((_, other, first)) = seen.iter().find(|(known, ..)| known == path) else {
                seen.push((path.clone(), name, place.clone()));
                continue;
            };
            // Of two, the one that stands in the file is to change.
            let (place, other) = if place.is_some() { (place, *other) } else { (first, name) };
            if let Some(place) = place {
                section.problem(
                    place,
                    "this path stands twice",
                    format!("endpoints.{other} has it too"),
                );
            }
        }
        listed.into_iter().map(|(path, _)| path).collect()
    };
    let login = paths("login", Some("/login"));
    let logout = paths("logout", Some("/logout"));
    let session = paths("session", Some("/session"));
    let health = paths("health", None);
    let hosts = section.list::<HostPattern>("hosts").unwrap_or_default();
    for host in &hosts {
        if let HostPattern::Wildcard(_) = host.value {
            section.problem(host, "is a wildcard", "write each host name in full");
        }
    }
    if let Some(tls) = tls {
        warn_of_uncovered(&section, &hosts, tls);
    }
    let hosts = hosts.into_iter().map(|host| host.value.to_string()).collect();
    section.finish();
    EndpointsSection { login, logout, session, health, hosts }
}

/// Where another proxy forwards, there may be none. `listeners` are the gateway's own, with
/// their keys.
pub fn upstreams(
    root: &Section<'_>,
    may_be_absent: bool,
    listeners: &[(&str, SocketAddr)],
) -> Vec<Located<Upstream>> {
    let sections = root.tables("upstream");
    if !may_be_absent {
        root.report_missing("upstream", "one [[upstream]] for each service");
    }
    let mut upstreams: Vec<Located<Upstream>> = Vec::with_capacity(sections.len());
    for section in sections {
        let name = section.require::<String>("name");
        if let Some(name) = &name {
            report_odd_name(&section, name);
            if let Some(first) = upstreams.iter().find(|upstream| upstream.value.name == name.value)
            {
                section.problem(name, "this name stands twice", format!("first as {}", first.key));
            }
        }
        let servers = section.require_some::<ServerAddress>("servers", "as [\"127.0.0.1:3000\"]");
        for (index, server) in servers.iter().enumerate() {
            if servers.iter().take(index).any(|earlier| earlier.value == server.value) {
                section.problem(server, "stands twice", "");
            }
            if let Some((key, _)) =
                listeners.iter().find(|(_, listener)| is_met(*listener, &server.value))
            {
                let message = format!("is a listener of this gateway, {key}: requests would loop");
                section.problem(server, message, "write the address of the service");
            }
        }
        let upstream = Upstream {
            name: name.as_ref().map_or_else(String::new, |name| name.value.clone()),
            servers: values(servers),
            connect_timeout: section.positive("connect_timeout", Duration::from_secs(2)),
            read_timeout: section.positive("read_timeout", Duration::from_secs(60)),
            write_timeout: section.positive("write_timeout", Duration::from_secs(60)),
            idle_timeout: section.optional_positive("idle_timeout"),
        };
        let (key, span) = match name {
            Some(name) => (name.key, name.span),
            None => (section.key("name"), section.span.clone()),
        };
        upstreams.push(Located { value: upstream, key, source: section.source, span });
        section.finish();
    }
    upstreams
}

pub fn routes(root: &Section<'_>, known: &Known<'_>) -> Option<Vec<Route>> {
    let sections = root.tables("route");
    root.report_missing("route", "one [[route]] at least, as path = \"/\"");
    let mut routes: Vec<Route> = Vec::with_capacity(sections.len());
    let mut matched: Vec<Matched> = Vec::with_capacity(sections.len());
    let mut names: Vec<RouteName> = Vec::with_capacity(sections.len());
    let mut is_complete = true;
    for section in sections {
        let path = section.require::<RoutePath>("path");
        if let Some(path) = &path {
            advice::warn_of_pattern(&section, path);
        }
        let matching = matching(&section, known);
        let name = section.get::<String>("name");
        if let Some(name) = &name {
            report_odd_name(&section, name);
        }
        let default_name = path.as_ref().map(|path| {
            let host = matching.hosts.first().map_or_else(String::new, ToString::to_string);
            host + path.value.as_str()
        });
        let access = section.get_or("auth", Access::Required);
        let target = target(&section, known, access);
        let rewriting = rewriting(&section, path.as_ref());
        let request_edits = request_edits(&section, known);
        let response_edits = response_edits(&section, known);
        let vary = vary(&section, known, access, &response_edits);
        let timeouts = timeouts(&section);
        let (cors, preflight) = cors(&section, known, &matching.methods, &response_edits);
        let (response_edits, response_headers) =
            on_route(known.response_headers, response_edits, cors.is_some());
        let websocket = section.get_or("websocket", false);
        let route_apps = route_apps(&section, known.apps);
        let max_body = max_body(&section, known.max_body);
        let rate_per_user = rate(&section, "rate_per_user", None);
        let rate_per_address = rate(&section, "rate_per_address", None);
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

fn route_apps(section: &Section<'_>, apps: Option<&[App]>) -> Vec<AppId> {
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

/// How a route is called in metrics and logs.
struct RouteName {
    name: String,
    given: Option<Located<String>>,
    /// The route's path, which is its name by default, after its first host.
    path: Located<RoutePath>,
}

fn report_repeated_names(root: &Section<'_>, names: &[RouteName]) {
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

/// Names become labels of metrics; `@` marks the gateway's own.
fn report_odd_name(section: &Section<'_>, name: &Located<String>) {
    let legal = |c: char| !c.is_control() && c != '"' && c != '\\';
    if name.value.is_empty()
        || name.value.chars().count() > 64
        || name.value.starts_with('@')
        || !name.value.chars().all(legal)
    {
        section.problem(name, "is not a name", "1 to 64 characters, not beginning with \"@\"");
    }
}
