//! The index of routes: by host, then by path.
//!
//! For hosts, the exact name comes first, then the wildcard with the longest suffix, then the
//! routes for every host. For paths, the exact one comes first, then the longest prefix that ends
//! at the end of a segment. The remaining routes have the same host and path: those with more
//! headers come first, then those with methods; equal ones are in the order of the file. A lookup
//! allocates nothing; its time depends on the segments of the path and the labels of the host, and
//! only logarithmically on the number of hosts and paths.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::config::{HostPattern, Route};

pub struct Table {
    exact_hosts: BTreeMap<Box<[u8]>, Paths>,
    /// By the part after the `*`, such as `.example.com`.
    wildcards: BTreeMap<Box<[u8]>, Paths>,
    every_host: Paths,
}

#[derive(Default)]
struct Paths {
    exact: BTreeMap<Box<[u8]>, Vec<usize>>,
    /// Without trailing slashes.
    prefixes: BTreeMap<Box<[u8]>, Vec<usize>>,
    longest_prefix: usize,
}

/// The host of a request: in lower case, without port and final dot.
pub struct HostName {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl HostName {
    /// The maximum length of a name (RFC 1035, section 2.3.4).
    const LONGEST: usize = 255;

    /// `None` if it is longer than any host name.
    pub fn new(host: &str) -> Option<Self> {
        let name = without_port(host);
        let mut bytes = [0; Self::LONGEST];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        bytes.make_ascii_lowercase();
        Some(Self { bytes, length: name.len() })
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// The host of a Host header, without port and final dot.
pub fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

impl Table {
    pub fn new(routes: &[Route]) -> Self {
        let mut order: Vec<(usize, &Route)> = routes.iter().enumerate().collect();
        order.sort_by_key(|(_, route)| (Reverse(route.headers.len()), route.methods.is_empty()));
        let mut table = Self {
            exact_hosts: BTreeMap::new(),
            wildcards: BTreeMap::new(),
            every_host: Paths::default(),
        };
        for (index, route) in order {
            if route.hosts.is_empty() {
                table.every_host.insert(index, route);
            }
            for host in &route.hosts {
                let (hosts, name) = match host {
                    HostPattern::Exact(name) => (&mut table.exact_hosts, name),
                    HostPattern::Wildcard(rest) => (&mut table.wildcards, rest),
                };
                hosts.entry(name.as_bytes().into()).or_default().insert(index, route);
            }
        }
        table
    }

    pub fn has_hosts(&self) -> bool {
        !(self.exact_hosts.is_empty() && self.wildcards.is_empty())
    }

    /// A host for each group of routes that is limited to hosts.
    pub fn hosts(&self) -> impl Iterator<Item = Cow<'_, str>> {
        let exact = self.exact_hosts.keys().map(|name| String::from_utf8_lossy(name));
        let wildcards = self.wildcards.keys();
        let wildcards = wildcards.map(|rest| format!("x{}", String::from_utf8_lossy(rest)).into());
        exact.chain(wildcards)
    }

    /// Of the groups of equally specific routes for the path and host, the most specific one in
    /// which at least one route `accepts` the request.
    pub fn find(
        &self,
        path: &[u8],
        host: Option<&HostName>,
        accepts: impl Fn(usize) -> bool,
    ) -> Option<&[usize]> {
        let host = host.map(HostName::as_bytes);
        let exact = host.and_then(|host| self.exact_hosts.get(host));
        let wildcards = host.into_iter().flat_map(|host| {
            // A label must come before the suffix. Searched from the left, so that the longest
            // suffix is first.
            let dots = memchr::memchr_iter(b'.', host).filter(|dot| *dot > 0);
            dots.filter_map(|dot| self.wildcards.get(host.get(dot..)?))
        });
        let mut hosts = exact.into_iter().chain(wildcards).chain([&self.every_host]);
        hosts.find_map(|paths| paths.find(path, &accepts))
    }
}

impl Paths {
    fn insert(&mut self, index: usize, route: &Route) {
        let path = route.path.as_str();
        let (paths, key) = if route.is_exact {
            (&mut self.exact, path)
        } else {
            (&mut self.prefixes, path.trim_end_matches('/'))
        };
        if !route.is_exact {
            self.longest_prefix = self.longest_prefix.max(key.len());
        }
        paths.entry(key.as_bytes().into()).or_default().push(index);
    }

    fn find(&self, path: &[u8], accepts: impl Fn(usize) -> bool) -> Option<&[usize]> {
        let accepted = |routes: &&Vec<usize>| routes.iter().any(|index| accepts(*index));
        let prefixes = || {
            borders(path, self.longest_prefix)
                .filter_map(|prefix| self.prefixes.get(prefix))
                .find(accepted)
        };
        let exact = self.exact.get(path).filter(accepted);
        exact.or_else(prefixes).map(Vec::as_slice)
    }
}

/// The prefixes of a path that end at the end of a segment, the longest first, up to a length.
fn borders(path: &[u8], longest: usize) -> impl Iterator<Item = &[u8]> {
    let whole = Some(path).filter(|path| path.len() <= longest);
    let rest = path.get(..=longest).unwrap_or(path);
    whole.into_iter().chain(memchr::memrchr_iter(b'/', rest).filter_map(|at| path.get(..at)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, Method};
    use proptest::prelude::*;

    use crate::config::{Config, HostPattern, Route, Secrets};
    use crate::route::{Endpoint, RouteLookup, Routes};

    const HOSTS: [&str; 6] = ["", "a.b", "c.a.b", "*.a.b", "*.b", "d"];
    const PATHS: [&str; 6] = ["/", "/x", "/x/", "/x/y", "/xy", "/x/y/z"];
    const METHODS: [&str; 3] = ["", "GET", "POST"];
    const VALUES: [&str; 3] = ["", "1", "2"];

    fn config(routes: &[(usize, usize, bool, usize, usize)]) -> Option<Config> {
        let list = |key: &str, value: &str| match value {
            "" => String::new(),
            value => format!("{key} = [\"{value}\"]\n"),
        };
        let section = |(number, route): (usize, &(usize, usize, bool, usize, usize))| {
            let (host, path, is_exact, method, value) = *route;
            let kind = if is_exact { "exact" } else { "prefix" };
            let header = match VALUES[value] {
                "" => String::new(),
                value => format!("headers = {{ V = \"{value}\" }}\n"),
            };
            format!(
                "\n[[route]]\nname = \"{number}\"\npath = \"{}\"\nupstream = \"u\"\nmatch = \"{kind}\"\n{}{}{header}",
                PATHS[path],
                list("host", HOSTS[host]),
                list("methods", METHODS[method]),
            )
        };
        let base = r#"
            endpoints = { login = [], logout = [], session = [] }
            server = { listen = "127.0.0.1:0" }
            app = [{ app_id = "wx1", app_secret = { env = "X" } }]
            upstream = [{ name = "u", servers = ["127.0.0.1:1"] }]
        "#;
        let text: String =
            [base.to_owned()].into_iter().chain(routes.iter().enumerate().map(section)).collect();
        Config::parse("test", &text, Secrets::Ignore).ok()
    }

    fn host_rank(route: &Route, host_name: &str) -> Option<usize> {
        if route.hosts.is_empty() {
            return Some(0);
        }
        let rank = |host: &HostPattern| match host {
            HostPattern::Exact(name) => (name == host_name).then_some(1000),
            HostPattern::Wildcard(rest) => (host_name.ends_with(rest.as_str())
                && host_name.len() > rest.len())
            .then_some(rest.len()),
        };
        route.hosts.iter().filter_map(rank).max()
    }

    fn path_rank(route: &Route, path: &str) -> Option<usize> {
        if route.is_exact {
            return (route.path.as_str() == path).then_some(1000);
        }
        let prefix = route.path.as_str().trim_end_matches('/');
        let rest = path.strip_prefix(prefix)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
    }

    /// The rules, applied one after the other to all routes.
    fn by_the_rules(routes: &[Route], lookup: &RouteLookup<'_>) -> Endpoint {
        let value = lookup.headers.get("v");
        let mut ranked: Vec<_> = routes
            .iter()
            .enumerate()
            .filter(|(_, route)| route.headers.iter().all(|(_, expected)| Some(expected) == value))
            .filter_map(|(index, route)| {
                let host = host_rank(route, lookup.host.unwrap())?;
                let rank = (host, path_rank(route, lookup.path)?);
                Some((rank, route.headers.len(), !route.methods.is_empty(), routes.len() - index))
            })
            .collect();
        ranked.sort_unstable();
        let Some((best, ..)) = ranked.last().copied() else { return Endpoint::None };
        let at_best: Vec<usize> = ranked
            .iter()
            .rev()
            .filter(|(rank, ..)| *rank == best)
            .map(|(.., from_last)| routes.len() - from_last)
            .collect();
        let allows = |index: &&usize| {
            let methods = &routes[**index].methods;
            methods.is_empty() || methods.iter().any(|method| lookup.method == method.as_str())
        };
        Endpoint::Route(*at_best.iter().find(allows).unwrap_or(&at_best[0]))
    }

    proptest! {
        /// The index and the rules give the same result.
        #[test]
        fn the_most_specific_route_is_found(
            routes in prop::collection::vec((0..6usize, 0..6usize, any::<bool>(), 0..3usize, 0..3usize), 1..9),
            host in prop::sample::select(vec!["a.b", "c.a.b", "e.c.a.b", "b", "x.b", "d", "", ".b", "A.B.:80"]),
            path in prop::sample::select(vec!["/", "/x", "/x/", "/x/y", "/x/y/", "/x/y/z/w", "/xy", "/q"]),
            is_get in any::<bool>(),
            value in prop::sample::select(vec!["", "1", "2"]),
        ) {
            let Some(config) = config(&routes) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            if !value.is_empty() {
                headers.insert("v", HeaderValue::from_static(value));
            }
            let method = if is_get { Method::GET } else { Method::POST };
            let lookup = RouteLookup { path, host: Some(host), method: &method, headers: &headers };
            let found = Routes::new(&config.endpoints, &config.routes).resolve(&lookup).unwrap();
            let host = if host == "A.B.:80" { "a.b" } else { host };
            prop_assert_eq!(found, by_the_rules(&config.routes, &RouteLookup { host: Some(host), ..lookup }));
        }
    }
}
