//! Endpoints, upstreams and routes, and what each says of another.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::reader::{Located, Section, values};
use crate::config::{Access, App, EndpointsSection, Route, RoutePath, ServerAddress, Upstream};
use crate::identity::AppId;

pub fn endpoints(section: Section<'_>) -> EndpointsSection {
    let mut seen: HashMap<String, String> = HashMap::new();
    let mut paths = |name: &'static str, default: &[&str]| -> Vec<RoutePath> {
        let Some(listed) = section.list::<RoutePath>(name) else {
            return default.iter().map(|path| RoutePath((*path).to_owned())).collect();
        };
        for path in &listed {
            if let Some(first) = seen.insert(path.value.as_str().to_owned(), path.key.clone()) {
                section.problem(path, "this path stands twice", format!("first in {first}"));
            }
        }
        listed.into_iter().map(|path| path.value).collect()
    };
    let login = paths("login", &["/login"]);
    let logout = paths("logout", &["/logout"]);
    let session = paths("session", &["/session"]);
    let health = paths("health", &[]);
    let hosts = section.list::<String>("hosts").unwrap_or_default();
    for host in &hosts {
        if host.value.is_empty() || host.value.contains(['/', ':', ' ', '@']) {
            section.problem(host, "is not a host name", "a name without scheme and port");
        }
    }
    let hosts = hosts.into_iter().map(|host| host.value.to_ascii_lowercase()).collect();
    section.finish();
    EndpointsSection { login, logout, session, health, hosts }
}

pub fn upstreams(root: &Section<'_>) -> Vec<Located<Upstream>> {
    let sections = root.tables("upstream");
    if sections.is_empty() && !root.has("upstream") {
        root.push("upstream".to_owned(), 0..0, "is missing", "one [[upstream]] for each service");
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
        let upstream = Upstream {
            name: name.as_ref().map_or_else(String::new, |name| name.value.clone()),
            servers: values(servers),
            connect_timeout: section.positive("connect_timeout", Duration::from_secs(2)),
            read_timeout: section.positive("read_timeout", Duration::from_secs(60)),
            write_timeout: section.positive("write_timeout", Duration::from_secs(60)),
            idle_timeout: section.positive("idle_timeout", Duration::from_secs(30)),
        };
        let (key, span) = match name {
            Some(name) => (name.key, name.span),
            None => (section.key("name"), section.span.clone()),
        };
        upstreams.push(Located { value: upstream, key, span });
        section.finish();
    }
    upstreams
}

pub fn routes(
    root: &Section<'_>,
    upstreams: &[Located<Upstream>],
    apps: Option<&[App]>,
) -> Option<Vec<Route>> {
    let sections = root.tables("route");
    if sections.is_empty() && !root.has("route") {
        root.push(
            "route".to_owned(),
            0..0,
            "is missing",
            "one [[route]] at least, as path = \"/\"",
        );
    }
    let mut routes: Vec<Route> = Vec::with_capacity(sections.len());
    let mut paths: HashMap<String, String> = HashMap::new();
    let mut names: HashMap<String, String> = HashMap::new();
    let mut is_complete = true;
    for section in sections {
        let path = section.require::<RoutePath>("path");
        if let Some(path) = &path {
            // A trailing slash makes no difference to what a prefix matches.
            let prefix = path.value.as_str().trim_end_matches('/').to_owned();
            if let Some(first) = paths.insert(prefix, path.key.clone()) {
                section.problem(path, "this path is routed twice", format!("first in {first}"));
            }
        }
        let name = section.get::<String>("name");
        if let Some(name) = &name {
            report_odd_name(&section, name);
            if let Some(first) = names.insert(name.value.clone(), name.key.clone()) {
                section.problem(name, "this name stands twice", format!("first as {first}"));
            }
        }
        let upstream = section.require::<String>("upstream");
        let index = upstream.and_then(|given| {
            let index = upstreams.iter().position(|upstream| upstream.value.name == given.value);
            if index.is_none() {
                let defined: Vec<_> = upstreams
                    .iter()
                    .map(|upstream| format!("\"{}\"", upstream.value.name))
                    .collect();
                section.problem(
                    &given,
                    format!("no upstream named \"{}\"", given.value),
                    format!("defined upstreams: {}", defined.join(", ")),
                );
            }
            index
        });
        let access = section.get_or("auth", Access::Required);
        let methods = methods(&section);
        let route_apps = route_apps(&section, apps);
        section.finish();
        match (path, index) {
            (Some(path), Some(upstream)) => routes.push(Route {
                name: name.map_or_else(|| path.value.as_str().to_owned(), |name| name.value),
                path: path.value,
                upstream,
                access,
                methods,
                apps: route_apps,
            }),
            _ => is_complete = false,
        }
    }
    (is_complete && !routes.is_empty()).then_some(routes)
}

fn methods(section: &Section<'_>) -> Vec<String> {
    let listed = section.list::<String>("methods").unwrap_or_default();
    for method in &listed {
        if method.value.is_empty()
            || !method.value.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
        {
            section.problem(method, "is not a method", "as \"GET\"");
        }
    }
    listed.into_iter().map(|method| method.value).collect()
}

fn route_apps(section: &Section<'_>, apps: Option<&[App]>) -> Vec<AppId> {
    let listed = section.list::<AppId>("apps").unwrap_or_default();
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

/// Names become labels of metrics; `@` marks the gateway's own.
fn report_odd_name(section: &Section<'_>, name: &Located<String>) {
    let legal = |c: char| !c.is_control() && c != '"' && c != '\\';
    if name.value.is_empty()
        || name.value.len() > 64
        || name.value.starts_with('@')
        || !name.value.chars().all(legal)
    {
        section.problem(name, "is not a name", "1 to 64 characters, not beginning with \"@\"");
    }
}
