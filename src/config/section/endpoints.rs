//! `[endpoints]`: the paths to which the gateway responds itself.

use super::server::tls::{TlsSection, warn_of_uncovered};
use crate::config::document::table::{Located, Table};
use crate::config::value::host::HostPattern;
use crate::config::value::path::RoutePath;

/// The section `[endpoints]`. No path occurs in two lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointsSection {
    pub login: Vec<RoutePath>,
    pub logout: Vec<RoutePath>,
    pub session: Vec<RoutePath>,
    pub health: Vec<RoutePath>,
    /// Lower-case host names without port; empty: all hosts.
    pub hosts: Vec<String>,
}

/// Reads the section. Warns of hosts without a certificate.
pub fn read(section: Table<'_>, tls: Option<&TlsSection>) -> EndpointsSection {
    let mut earlier: Vec<(RoutePath, &'static str, Option<Located<RoutePath>>)> = Vec::new();
    let mut paths = |name: &'static str, default: Option<&str>| -> Vec<RoutePath> {
        let listed = match section.list::<RoutePath>(name) {
            Some(listed) => {
                listed.into_iter().map(|path| (path.value.clone(), Some(path))).collect()
            }
            None => Vec::from_iter(default.map(|path| (RoutePath(path.to_owned()), None))),
        };
        for (path, place) in &listed {
            if let Some(place) = place {
                warn_of_trailing_slash(&section, place);
            }
            let Some((_, other, first)) = earlier.iter().find(|(other, ..)| other == path) else {
                earlier.push((path.clone(), name, place.clone()));
                continue;
            };
            // If one of the two is a default, the one in the file has to change.
            let (place, other) = if place.is_some() { (place, *other) } else { (first, name) };
            if let Some(place) = place {
                section.problem(
                    place,
                    "this path is listed twice",
                    format!("also in endpoints.{other}"),
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
            section.problem(host, "wildcards are not allowed here", "write each host name in full");
        }
    }
    if let Some(tls) = tls {
        warn_of_uncovered(&section, &hosts, tls);
    }
    let hosts = hosts.into_iter().map(|host| host.value.to_string()).collect();
    section.finish();
    EndpointsSection { login, logout, session, health, hosts }
}

/// Warns of an endpoint path with a trailing slash: the path without the slash is not the endpoint.
fn warn_of_trailing_slash(section: &Table<'_>, path: &Located<RoutePath>) {
    let text = path.value.as_str();
    let without = text.trim_end_matches('/');
    if !without.is_empty() && without != text {
        let message = format!("\"{without}\" does not match: endpoint paths must be equal");
        section.warn(path, &message);
    }
}
