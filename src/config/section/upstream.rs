//! `[[upstream]]`: a named group of servers, and how they are connected to.

mod balance;
mod ejection;
mod health_check;
pub mod retry;
pub mod server;
mod servers_file;
mod tls;

use std::time::Duration;

pub use self::balance::{Balance, HashKey, Protocol, UpstreamHost};
pub use self::ejection::Ejection;
pub use self::health_check::{CheckKind, HealthCheck};
pub use self::retry::{Retry, RetryOn, RouteRetry};
use self::server::OwnListeners;
pub use self::server::{ServerAddress, ServerEntry};
pub use self::tls::UpstreamTls;
use super::route::{Access, Route};
use super::session::{DEFAULT_JAR_CAPACITY, SessionSection};
use crate::config::Secrets;
use crate::config::document::table::{Located, Table};
use crate::config::value::headers::ReservedHeaders;
use crate::config::value::name::report_invalid_name;

/// A group of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    /// Not empty, unless secrets are ignored and `servers_file` does not exist.
    pub servers: Vec<ServerEntry>,
    pub protocol: Protocol,
    pub balance: Balance,
    pub host: UpstreamHost,
    /// Bytes of a request body of unknown length that are collected before it is sent; 0: none.
    pub buffer_body: u64,
    /// To each server; with HTTP/2, concurrent requests. 0: no limit.
    pub max_connections: usize,
    /// Requests that wait for a connection.
    pub max_pending: usize,
    /// How long they wait.
    pub pending_timeout: Duration,
    pub connect_timeout: Duration,
    /// Time between two reads of a response.
    pub read_timeout: Duration,
    /// Time between two writes of a request.
    pub write_timeout: Duration,
    /// The longest time that an idle connection is kept for the next request. If not set: 4
    /// seconds, or the time that the service requests.
    pub idle_timeout: Option<Duration>,
    pub tls: Option<UpstreamTls>,
    /// Whether the service's cookies are kept in the gateway, with the session.
    pub cookie_jar: bool,
    pub health_check: Option<HealthCheck>,
    pub ejection: Ejection,
    pub retry: Retry,
}

/// What upstreams refer to.
pub struct References<'a> {
    /// Whether there may be no upstream: if forward-auth is on.
    pub may_be_absent: bool,
    pub own: OwnListeners<'a>,
    pub reserved: ReservedHeaders<'a>,
    /// `limits.max_buffered`.
    pub max_buffered: u64,
    pub secrets: Secrets,
}

/// Largest value of `buffer_body`, in bytes. A body that is collected is in memory as a whole.
const LARGEST_BUFFER: usize = 64 << 20;

/// The defaults of the keys with these names.
const MAX_PENDING: usize = 1024;
const PENDING_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of connections to a server, and of requests that wait for one.
const MOST: usize = 1 << 20;

/// Reads all upstreams.
pub fn read(root: &Table<'_>, references: &References<'_>) -> Vec<Located<Upstream>> {
    let sections = root.tables("upstream");
    if !references.may_be_absent {
        root.report_missing("upstream", "add an [[upstream]] for each service");
    }
    let mut upstreams: Vec<Located<Upstream>> = Vec::with_capacity(sections.len());
    for section in sections {
        let name = section.require::<String>("name");
        if let Some(name) = &name {
            report_invalid_name(&section, name);
            if let Some(first) = upstreams.iter().find(|upstream| upstream.value.name == name.value)
            {
                section.problem(name, "duplicate name", format!("first in {}", first.key));
            }
        }
        let called = name.as_ref().map_or_else(String::new, |name| name.value.clone());
        let upstream = read_one(&section, called, references);
        let (key, span) = match name {
            Some(name) => (name.key, name.span),
            None => (section.key("name"), section.span.clone()),
        };
        upstreams.push(Located { value: upstream, key, source: section.source, span });
        section.finish();
    }
    upstreams
}

fn read_one(section: &Table<'_>, name: String, references: &References<'_>) -> Upstream {
    let servers = server::read(section, &references.own, references.secrets);
    let tls = section.optional_table("tls");
    let tls = tls.map(|table| tls::read(table, &servers, references.secrets));
    if let Some(server) = servers.iter().find(|server| server.address.port() == Some(443))
        && tls.is_none()
        && !section.has("tls")
    {
        let message = format!("{} would get plain HTTP: add [upstream.tls]", server.address);
        let name = if section.has("servers") { "servers" } else { "servers_file" };
        section.warn_of(name, &message);
    }
    let max_connections = section.number("max_connections", 0, 0..=MOST);
    let max_pending = section.number("max_pending", MAX_PENDING, 0..=MOST);
    let pending_timeout = section.positive("pending_timeout", PENDING_TIMEOUT);
    let is_default = max_pending == MAX_PENDING && pending_timeout == PENDING_TIMEOUT;
    for name in ["max_pending", "pending_timeout"] {
        if max_connections == 0 && !is_default && section.has(name) {
            let message =
                "has no effect without max_connections: no request waits for a connection";
            section.warn_of(name, message);
        }
    }
    let read_timeout = section.positive("read_timeout", Duration::from_secs(60));
    Upstream {
        name,
        servers,
        protocol: section.get_or("protocol", Protocol::default()),
        balance: balance::read(section, references.reserved),
        host: section.get_or("host", UpstreamHost::default()),
        buffer_body: buffer_body(section, references.max_buffered),
        max_connections,
        max_pending,
        pending_timeout,
        connect_timeout: section.positive("connect_timeout", Duration::from_secs(2)),
        read_timeout,
        write_timeout: section.positive("write_timeout", Duration::from_secs(60)),
        idle_timeout: section.optional_positive("idle_timeout"),
        tls,
        cookie_jar: section.get_or("cookie_jar", false),
        health_check: section.optional_table("health_check").and_then(health_check::read),
        ejection: ejection::read(section.table("ejection")),
        retry: retry::read(section.table("retry"), read_timeout),
    }
}

fn buffer_body(section: &Table<'_>, max_buffered: u64) -> u64 {
    let size = section.size("buffer_body", 0, 0..=LARGEST_BUFFER);
    let size = u64::try_from(size).unwrap_or(u64::MAX);
    if size > max_buffered {
        let message = "is larger than limits.max_buffered: such a body would get 503 overloaded";
        section.warn_of("buffer_body", message);
    }
    size
}

/// Warns of cookie jars that are never used, and of a capacity without a jar.
pub fn warn_of_jars(
    root: &Table<'_>,
    upstreams: &[Located<Upstream>],
    routes: &[Route],
    session: &SessionSection,
) {
    let has_jar = |upstream: &Located<Upstream>| upstream.value.cookie_jar;
    let has_jars = upstreams.iter().any(has_jar);
    if session.jar_capacity != DEFAULT_JAR_CAPACITY && (!has_jars || session.shared.is_some()) {
        let message = if has_jars {
            "has no effect with a shared store, which keeps the cookies"
        } else {
            "has no effect: no [[upstream]] has cookie_jar = true"
        };
        root.table("session").warn_of("jar_capacity", message);
    }
    if !has_jars {
        return;
    }
    let sections = root.tables("upstream");
    for (index, (section, _)) in
        sections.iter().zip(upstreams).enumerate().filter(|(_, (_, upstream))| has_jar(upstream))
    {
        let of_upstream = |route: &&Route| route.target.upstreams().contains(&index);
        let mut routes = routes.iter().filter(of_upstream).peekable();
        if routes.peek().is_some() && routes.all(|route| route.access == Access::None) {
            let message = "has no effect: cookies are kept with a session, and all routes to this \
                           upstream have auth = \"none\"";
            section.warn_of("cookie_jar", message);
        }
    }
}

/// Warns of upstreams without a route.
pub fn warn_of_unused(root: &Table<'_>, upstreams: &[Located<Upstream>], routes: &[Route]) {
    let is_used =
        |index: usize| routes.iter().any(|route| route.target.upstreams().contains(&index));
    for (_, upstream) in upstreams.iter().enumerate().filter(|(index, _)| !is_used(*index)) {
        root.warn(upstream, &format!("no route uses \"{}\"", upstream.value.name));
    }
}
