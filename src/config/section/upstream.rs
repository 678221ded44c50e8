//! `[[upstream]]`: a named group of servers, and how they are connected to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use toml::de::DeValue;

use super::route::{Route, Target};
use crate::config::document::from_value::{FromValue, text};
use crate::config::document::table::{Located, Table, values};
use crate::config::value::name::report_invalid_name;

/// A group of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    /// Never empty.
    pub servers: Vec<ServerAddress>,
    pub connect_timeout: Duration,
    /// Time between two reads of a response.
    pub read_timeout: Duration,
    /// Time between two writes of a request.
    pub write_timeout: Duration,
    /// The longest time that an idle connection is kept for the next request. If not set: 4
    /// seconds, or the time that the service requests.
    pub idle_timeout: Option<Duration>,
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Socket(SocketAddr),
    /// Resolved at the start and every 30 seconds.
    Host {
        host: String,
        port: u16,
    },
}

/// Reads all upstreams. There may be none if forward-auth is on. `listeners` are the gateway's own,
/// with their keys.
pub fn read(
    root: &Table<'_>,
    may_be_absent: bool,
    listeners: &[(&str, SocketAddr)],
) -> Vec<Located<Upstream>> {
    let sections = root.tables("upstream");
    if !may_be_absent {
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
        let servers =
            section.require_some::<ServerAddress>("servers", "such as [\"127.0.0.1:3000\"]");
        for (index, server) in servers.iter().enumerate() {
            if servers.iter().take(index).any(|earlier| earlier.value == server.value) {
                section.problem(server, "is listed twice", "");
            }
            if let Some((key, _)) =
                listeners.iter().find(|(_, listener)| would_reach(*listener, &server.value))
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

/// Whether a connection to a server would reach a listener of this gateway. Names other than
/// `localhost` are not resolved.
fn would_reach(listener: SocketAddr, server: &ServerAddress) -> bool {
    let (addresses, port) = match server {
        // A connection to the unspecified address reaches the loopback address.
        ServerAddress::Socket(server) => {
            let address = match server.ip().to_canonical() {
                IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
                address => address,
            };
            (vec![address], server.port())
        }
        ServerAddress::Host { host, port } => {
            let is_here = host.trim_end_matches('.').eq_ignore_ascii_case("localhost");
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            (if is_here { loopback.to_vec() } else { Vec::new() }, *port)
        }
    };
    let own = listener.ip().to_canonical();
    let is_all_of = |address: IpAddr| own.is_ipv6() || address.is_ipv4();
    let is_own = |address: &IpAddr| {
        *address == own
            || own.is_unspecified() && is_all_of(*address) && is_of_this_machine(*address)
    };
    port == listener.port() && addresses.iter().any(is_own)
}

/// Whether this machine has an address.
fn is_of_this_machine(address: IpAddr) -> bool {
    // Connecting a datagram socket sends nothing. The source address of a connection to one of the
    // machine's own addresses is that same address.
    let probe = || {
        let there = std::net::SocketAddr::new(address, 9);
        let domain = socket2::Domain::for_address(there);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        socket.connect(&there.into())?;
        socket.local_addr()
    };
    let here = probe().ok().and_then(|here| here.as_socket());
    address.is_loopback() || here.is_some_and(|here| here.ip() == address)
}

/// Warns of upstreams without a route.
pub fn warn_of_unused(root: &Table<'_>, upstreams: &[Located<Upstream>], routes: &[Route]) {
    let is_used = |index: usize| {
        routes.iter().any(|route| match &route.target {
            Target::Service { upstream, split } => {
                *upstream == index || split.iter().any(|share| share.upstream == index)
            }
            Target::OwnResponse(_) | Target::ForwardAuthOnly => false,
        })
    };
    for (_, upstream) in upstreams.iter().enumerate().filter(|(index, _)| !is_used(*index)) {
        root.warn(upstream, &format!("no route uses \"{}\"", upstream.value.name));
    }
}

impl FromValue for ServerAddress {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        const EXPECTED: &str =
            "an address or a host name with a port, such as \"10.0.0.7:3000\" or \"shop:3000\"";
        let given = text(value, EXPECTED)?;
        if given.contains('@') {
            return Err(format!("expected {EXPECTED}, without a user and a password"));
        }
        let wrong = || {
            let found = format!("expected {EXPECTED}, found \"{given}\"");
            let why = match given.split_once("://") {
                Some(("http", rest)) if rest.trim_end_matches('/').contains('/') => {
                    ": leave out http:// and the path, which a route may add with add_prefix"
                }
                Some(("http", _)) => ": leave out http://",
                Some(("https", _)) => ": HTTPS to a server is not supported yet, only plain HTTP",
                Some((scheme, _)) => return format!("{found}: leave out {scheme}://"),
                None if given.starts_with("unix:") || given.starts_with('/') => {
                    ": unix sockets are not supported yet"
                }
                None if given.contains('/') => {
                    ": leave out the path, which a route may add with add_prefix"
                }
                _ => "",
            };
            format!("{found}{why}")
        };
        if let Ok(address) = given.parse::<SocketAddr>() {
            return if address.port() == 0 { Err(wrong()) } else { Ok(Self::Socket(address)) };
        }
        let (host, port) = given.rsplit_once(':').ok_or_else(wrong)?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        // Only digits and dots: a mistyped address, not a host name.
        let is_name = (1..=253).contains(&host.len())
            && host.bytes().all(legal)
            && host.bytes().any(|b| b.is_ascii_alphabetic());
        let port = port.parse().ok().filter(|port| *port != 0u16).ok_or_else(wrong)?;
        if is_name { Ok(Self::Host { host: host.to_owned(), port }) } else { Err(wrong()) }
    }
}
