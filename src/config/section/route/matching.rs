//! Which requests a route matches, and a check that no two routes match the same requests.

use http::{HeaderName, HeaderValue};
use toml::de::DeValue;

use super::references::References;
use crate::config::document::from_value::{FromValue, word};
use crate::config::document::table::{Located, Table, values};
use crate::config::section::server::tls::warn_of_uncovered;
use crate::config::value::host::HostPattern;
use crate::config::value::path::RoutePath;
use crate::message::header::FoldedNames;
use crate::message::header::reserved::{CLOUD_RUN, FROM_TRUSTED, WRITTEN};

/// The conditions of a route, except for its path.
pub struct Matching {
    pub hosts: Vec<HostPattern>,
    pub is_exact: bool,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub methods: Vec<String>,
}

/// How a route matches paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathMatch {
    Prefix,
    Exact,
}

/// Reads the conditions of a route, except for its path.
pub fn read(section: &Table<'_>, references: &References<'_>) -> Matching {
    let hosts = section.some::<HostPattern>("host", "leave it out to match every host");
    let hosts = hosts.unwrap_or_default();
    for (index, host) in hosts.iter().enumerate() {
        if hosts.iter().take(index).any(|earlier| earlier.value == host.value) {
            section.problem(host, "is listed twice", "");
        }
    }
    if let Some(tls) = references.tls {
        warn_of_uncovered(section, &hosts, tls);
    }
    let is_exact = section.get_or("match", PathMatch::Prefix) == PathMatch::Exact;
    let methods = methods(section);
    let headers = headers(section, references);
    Matching { hosts: values(hosts), is_exact, headers, methods }
}

fn methods(section: &Table<'_>) -> Vec<String> {
    let listed = section.some::<String>("methods", "leave it out to accept every method");
    let listed = listed.unwrap_or_default();
    for method in &listed {
        if method.value.is_empty()
            || !method.value.bytes().all(|b| b.is_ascii_uppercase() || b == b'-')
        {
            section.problem(method, "is not a valid method", "such as \"GET\"");
        }
    }
    values(listed)
}

fn headers(section: &Table<'_>, references: &References<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let own = references.reserved.names().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
    let own = FoldedNames::new(own);
    let entries = section.entries::<HeaderName, HeaderValue>("headers");
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        if headers.iter().any(|(other, _)| *other == name.value) {
            section.problem(&name, "is listed twice", "header names are case-insensitive");
        }
        headers.push((name.value, value.value));
    }
    if headers.iter().any(|(name, _)| own.contains(name.as_str())) {
        section.warn_of(
            "headers",
            "a client can choose this route: the gateway removes or replaces one of these \
             headers, but only after it has chosen the route",
        );
    }
    headers.sort_by(|one, other| one.0.as_str().cmp(other.0.as_str()));
    headers
}

/// The path of a route, with its place in the file, and the route's other conditions.
pub struct Matched {
    pub path: Located<RoutePath>,
    pub matching: Matching,
}

impl Matched {
    /// Whether some request matches both, and neither is more specific.
    fn is_like(&self, other: &Self) -> bool {
        let (one, two) = (&self.matching, &other.matching);
        let share = |one: &[String], two: &[String]| one.iter().any(|method| two.contains(method));
        one.is_exact == two.is_exact
            && trimmed(&self.path.value, one.is_exact) == trimmed(&other.path.value, two.is_exact)
            && (one.hosts == two.hosts || one.hosts.iter().any(|host| two.hosts.contains(host)))
            && one.headers == two.headers
            && (one.methods.is_empty() && two.methods.is_empty()
                || share(&one.methods, &two.methods))
    }
}

/// For a prefix, a trailing slash makes no difference.
fn trimmed(path: &RoutePath, is_exact: bool) -> &str {
    if is_exact { path.as_str() } else { path.as_str().trim_end_matches('/') }
}

/// Reports the last route if it is a duplicate of an earlier one. Returns whether it is.
pub fn report_duplicate(section: &Table<'_>, routes: &[Matched]) -> bool {
    let Some((last, earlier)) = routes.split_last() else { return false };
    let first = earlier.iter().find(|first| first.is_like(last));
    if let Some(first) = first {
        section.problem(
            &last.path,
            "duplicate route",
            format!("first in {}, with the same hosts, methods and headers", first.path.key),
        );
    }
    first.is_some()
}

impl FromValue for PathMatch {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        word(value, &[("prefix", Self::Prefix), ("exact", Self::Exact)])
    }
}
