//! `[endpoints]`: the paths to which the gateway responds itself.

use super::browser::Browser;
use super::server::tls::{TlsSection, warn_of_uncovered};
use crate::config::document::table::{Located, Table};
use crate::config::value::host::HostPattern;
use crate::config::value::path::RoutePath;

/// The section `[endpoints]`. No path occurs in two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsSection {
    pub login: Vec<RoutePath>,
    pub logout: Vec<RoutePath>,
    pub session: Vec<RoutePath>,
    /// Begins and completes a login by redirect; empty if there is no `[[browser]]`.
    pub start: Vec<RoutePath>,
    pub callback: Vec<RoutePath>,
    /// Empty if `[ticket]` is off.
    pub ticket: Vec<RoutePath>,
    /// With the paths `{scan}/ID` and `{scan}/ID.png`; empty if `[scan]` is off.
    pub scan: Vec<RoutePath>,
    pub health: Vec<RoutePath>,
    /// The public keys of `[identity.jwt]`; empty if there is no such section.
    pub jwks: Vec<RoutePath>,
    /// Lower-case host names without port; empty: all hosts.
    pub hosts: Vec<String>,
}

/// The features that have endpoints of their own. The paths of those that are off are routed.
#[derive(Clone, Copy)]
pub struct Features<'a> {
    pub browsers: &'a [Located<Browser>],
    pub tickets: bool,
    pub scan: bool,
    pub jwt: bool,
}

/// The endpoints of a feature.
struct OfFeature {
    name: &'static str,
    default: &'static str,
    is_on: bool,
    /// What turns it on.
    section: &'static str,
    /// Whether the feature cannot be used without them.
    is_needed: bool,
}

impl OfFeature {
    /// Reports endpoints of a feature that is off, and a feature without its endpoints.
    fn check(&self, section: &Table<'_>, listed: &[RoutePath]) {
        let Self { name, section: feature, .. } = self;
        let is_default = matches!(listed, [only] if only.as_str() == self.default);
        if !self.is_on && section.has(name) && !is_default {
            section.warn_of(name, &format!("has no effect without {feature}"));
        } else if self.is_on && self.is_needed && listed.is_empty() {
            let help = format!("by default it is \"{}\"", self.default);
            section.problem_of(name, format!("is empty, but {feature} needs it"), help);
        }
    }
}

/// Reads the section. Warns of hosts without a certificate.
pub fn read(
    section: Table<'_>,
    tls: Option<&TlsSection>,
    features: Features<'_>,
) -> EndpointsSection {
    let mut earlier: Vec<Listed> = Vec::new();
    let mut paths = |name: &'static str, default: Option<&str>, is_on: bool| -> Vec<RoutePath> {
        let listed = match section.list::<RoutePath>(name) {
            Some(listed) => {
                listed.into_iter().map(|path| (path.value.clone(), Some(path))).collect()
            }
            None => Vec::from_iter(default.map(|path| (RoutePath(path.to_owned()), None))),
        };
        if !is_on {
            return listed.into_iter().map(|(path, _)| path).collect();
        }
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
    let login = paths("login", Some("/login"), true);
    let logout = paths("logout", Some("/logout"), true);
    let session = paths("session", Some("/session"), true);
    let mut of_feature = |feature: OfFeature| {
        let listed = paths(feature.name, Some(feature.default), feature.is_on);
        feature.check(&section, &listed);
        if feature.is_on { listed } else { Vec::new() }
    };
    let [start, callback, ticket, scan] = of_features(features).map(&mut of_feature);
    let health = paths("health", None, true);
    let mut jwks = paths("jwks", None, features.jwt);
    if !features.jwt && !jwks.is_empty() {
        section.warn_of("jwks", "has no effect without [identity.jwt]");
        jwks.clear();
    }
    report_below_scan(&section, &earlier);
    let hosts = section.list::<HostPattern>("hosts").unwrap_or_default();
    for host in &hosts {
        if let HostPattern::Wildcard(_) = host.value {
            section.problem(host, "wildcards are not allowed here", "write each host name in full");
        }
    }
    if let Some(tls) = tls {
        warn_of_uncovered(&section, &hosts, tls);
    }
    report_missing_hosts(&section, &hosts, features.browsers);
    let hosts = hosts.into_iter().map(|host| host.value.to_string()).collect();
    section.finish();
    EndpointsSection { login, logout, session, start, callback, ticket, scan, health, jwks, hosts }
}

/// A path, its key, and its place, unless it is a default.
type Listed = (RoutePath, &'static str, Option<Located<RoutePath>>);

fn of_features(features: Features<'_>) -> [OfFeature; 4] {
    let Features { browsers, tickets, scan, .. } = features;
    let has_browsers = !browsers.is_empty();
    let has_apps = browsers.iter().any(|browser| browser.value.has_app());
    let of = |name, default, section, is_on, is_needed| OfFeature {
        name,
        default,
        is_on,
        section,
        is_needed,
    };
    [
        of("start", "/login/start", "[[browser]]", has_browsers, has_apps),
        of("callback", "/login/callback", "[[browser]]", has_browsers, has_apps),
        of("ticket", "/ticket", "[ticket]", tickets, true),
        of("scan", "/scan", "[scan]", scan, true),
    ]
}

/// Reports paths that the scans have. Each scan has a path below `endpoints.scan`.
fn report_below_scan(section: &Table<'_>, listed: &[Listed]) {
    for (scan, _, place) in listed.iter().filter(|(_, name, _)| *name == "scan") {
        if let (Some(place), true) = (place, scan.as_str().ends_with('/')) {
            let help = "such as \"/scan\": each scan gets a path below it";
            section.problem(place, "must not end with \"/\"", help);
        }
        let is_below = |path: &RoutePath| {
            let rest = path.as_str().strip_prefix(scan.as_str());
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        for (path, name, own) in listed.iter().filter(|(path, ..)| is_below(path)) {
            let message = format!("\"{}\" is below endpoints.scan", path.as_str());
            let help = format!("paths below \"{}\" are those of scans", scan.as_str());
            // If the path is a default, that of the scans has to change.
            match own.as_ref().or(place.as_ref()) {
                Some(place) => section.problem(place, message, help),
                None => section.problem_of(name, message, help),
            }
        }
    }
}

/// Reports hosts with web pages that have no endpoints.
fn report_missing_hosts(
    section: &Table<'_>,
    hosts: &[Located<HostPattern>],
    browsers: &[Located<Browser>],
) {
    for browser in browsers.iter().filter(|_| !hosts.is_empty()) {
        let host = browser.value.base_url.host();
        if !hosts.iter().any(|listed| listed.value.matches(host)) {
            let message = "has no endpoints, such as the one that completes a login";
            let help = format!("add \"{host}\" to endpoints.hosts");
            section.problem(browser, message, help);
        }
    }
}

/// Warns of an endpoint path with a trailing slash: the path without the slash is not the endpoint.
fn warn_of_trailing_slash(section: &Table<'_>, path: &Located<RoutePath>) {
    let text = path.value.as_str();
    let without = text.trim_end_matches('/');
    if !without.is_empty() && without != text {
        let message = format!("requests for \"{without}\", without the \"/\", do not match");
        section.warn(path, &message);
    }
}
