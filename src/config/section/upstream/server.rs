//! `upstream.servers` and `upstream.servers_file`: which servers an upstream can have.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::servers_file;
use crate::config::Secrets;
use crate::config::document::file::{io_reason, read_text};
use crate::config::document::from_value::{FromValue, kind, text};
use crate::config::document::table::{Located, Table};

/// A server, and its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerEntry {
    pub address: ServerAddress,
    /// 1 to 1000. Each address of a host name has this weight.
    pub weight: u16,
}

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Socket(SocketAddr),
    /// Resolved at the start, and again when the TTL of its records ends.
    Host {
        host: String,
        port: u16,
    },
    /// The absolute path of a socket.
    Unix(PathBuf),
}

/// As it is written in the configuration.
impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The gateway's own listeners.
pub struct OwnListeners<'a> {
    /// With their keys.
    pub sockets: &'a [(&'a str, SocketAddr)],
    /// The path of the internal listener.
    pub unix: Option<&'a Path>,
}

/// Maximum number of servers of an upstream.
const MOST: usize = 1024;

/// Maximum length of the path of a unix socket, in bytes; one more ends it (unix(7)).
const LONGEST_PATH: usize = 107;

const EXAMPLE: &str = "such as [\"127.0.0.1:3000\"]; or set servers_file";

/// Reads the servers of an upstream. Only if secrets are ignored, `servers_file` may be absent, and
/// then there are none.
pub fn read(section: &Table<'_>, own: &OwnListeners<'_>, secrets: Secrets) -> Vec<ServerEntry> {
    let file = section.get::<PathBuf>("servers_file");
    if !section.has("servers_file") {
        section.report_missing("servers", EXAMPLE);
    }
    let listed = section.some::<ServerEntry>("servers", EXAMPLE);
    let mut accepted = Accepted { own, seen: HashSet::new(), servers: Vec::new() };
    for server in listed.into_iter().flatten() {
        if let Err((message, help)) = accepted.add(&server.value) {
            section.problem(&server, message, help);
        }
    }
    if section.has("servers") && section.has("servers_file") {
        let help = "an upstream has one of the two";
        section.problem_of("servers_file", "cannot be combined with servers", help);
    } else if let Some(file) = file {
        read_file(section, &file, secrets, &mut accepted);
    }
    if accepted.servers.len() > MOST {
        let name = if section.has("servers") { "servers" } else { "servers_file" };
        let message = format!("has more than {MOST} servers");
        section.problem_of(name, message, "a host name counts once, and can have many addresses");
    }
    accepted.servers
}

fn read_file(
    section: &Table<'_>,
    file: &Located<PathBuf>,
    secrets: Secrets,
    accepted: &mut Accepted<'_>,
) {
    section.reads(&file.value);
    let content = match read_text(&file.value) {
        Ok(content) => content,
        // A machine without the secrets may also lack the files that a service registry writes.
        Err(error)
            if secrets == Secrets::Ignore && error.kind() == std::io::ErrorKind::NotFound =>
        {
            return;
        }
        Err(error) => return section.reference_problem(file, io_reason(&error), ""),
    };
    let lines = servers_file::parse(&content);
    if lines.is_empty() {
        section.reference_problem(file, "has no server", servers_file::HELP);
    }
    for (line, server) in lines {
        let added = server.map_err(|message| (message, "")).and_then(|server| {
            accepted
                .add(&server)
                .map_err(|(message, help)| (format!("{} {message}", server.address), help))
        });
        if let Err((message, help)) = added {
            let message = format!("{}:{line}: {message}", file.value.display());
            section.reference_problem(file, message, help);
        }
    }
}

/// The servers so far.
struct Accepted<'a> {
    own: &'a OwnListeners<'a>,
    /// In lower case.
    seen: HashSet<String>,
    servers: Vec<ServerEntry>,
}

impl Accepted<'_> {
    /// # Errors
    /// What is wrong, and how to fix it.
    fn add(&mut self, server: &ServerEntry) -> Result<(), (String, &'static str)> {
        let address = &server.address;
        let identity = match address {
            ServerAddress::Unix(_) => address.to_string(),
            _ => address.to_string().to_ascii_lowercase(),
        };
        if !self.seen.insert(identity) {
            let help = "weight gives a server a larger share";
            return Err(("is listed twice".to_owned(), help));
        }
        if let Some(key) = self.own.reached_by(address) {
            let message = format!("is a listener of this gateway, {key}: requests would loop");
            return Err((message, "write the address of the service"));
        }
        self.servers.push(server.clone());
        Ok(())
    }
}

impl OwnListeners<'_> {
    /// The key of the listener that a connection to a server would reach. Names other than
    /// `localhost` are not resolved.
    fn reached_by(&self, server: &ServerAddress) -> Option<&str> {
        if let ServerAddress::Unix(path) = server {
            return (self.unix == Some(path.as_path())).then_some("internal.listen");
        }
        let reached = self.sockets.iter().find(|(_, listener)| would_reach(*listener, server));
        reached.map(|(key, _)| *key)
    }
}

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
        ServerAddress::Unix(_) => return false,
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
    let source = || {
        let there = std::net::SocketAddr::new(address, 9);
        let domain = socket2::Domain::for_address(there);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        socket.connect(&there.into())?;
        socket.local_addr()
    };
    let here = source().ok().and_then(|here| here.as_socket());
    address.is_loopback() || here.is_some_and(|here| here.ip() == address)
}

impl ServerEntry {
    /// With a weight of 1 to 1000.
    ///
    /// # Errors
    /// What is wrong with the weight.
    pub fn new(address: ServerAddress, weight: Option<u64>) -> Result<Self, String> {
        let given = weight.unwrap_or(1);
        let weight = u16::try_from(given).ok().filter(|weight| (1..=1000).contains(weight));
        match weight {
            Some(weight) => Ok(Self { address, weight }),
            None if given == 0 => {
                let help = "remove the server if it is to get no requests";
                Err(format!("weight must be from 1 to 1000; {help}"))
            }
            None => Err("weight must be from 1 to 1000".to_owned()),
        }
    }
}

impl FromValue for ServerEntry {
    fn from_value(value: &DeValue<'_>) -> Result<Self, String> {
        let Some(table) = value.as_table() else {
            return ServerAddress::parse(text(value, ServerAddress::EXPECTED)?)
                .and_then(|address| Self::new(address, None));
        };
        let (mut address, mut weight) = (None, None);
        for (key, value) in table {
            let value = value.get_ref();
            match &**key.get_ref() {
                "address" => {
                    let given = text(value, ServerAddress::EXPECTED)?;
                    address = Some(ServerAddress::parse(given)?);
                }
                "weight" => {
                    let message =
                        || format!("expected a weight from 1 to 1000, found {}", kind(value));
                    weight = Some(u64::from_value(value).map_err(|_| message())?);
                }
                other => {
                    return Err(format!(
                        "unknown key \"{other}\": a server has address and weight"
                    ));
                }
            }
        }
        Self::new(address.ok_or("address is missing")?, weight)
    }
}

impl ServerAddress {
    /// `None`: it is a unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Socket(address) => Some(address.port()),
            Self::Host { port, .. } => Some(*port),
            Self::Unix(_) => None,
        }
    }

    pub const EXPECTED: &str =
        "an address or a host name with a port, such as \"10.0.0.7:3000\" or \"shop:3000\"";

    /// # Errors
    /// What was expected and found.
    pub fn parse(given: &str) -> Result<Self, String> {
        let expected = Self::EXPECTED;
        if let Some(path) = given.strip_prefix("unix:") {
            return unix(given, path);
        }
        if given.contains('@') {
            return Err(format!("expected {expected}, without a user and a password"));
        }
        let wrong = || {
            let found = format!("expected {expected}, found \"{given}\"");
            let why = match given.split_once("://") {
                Some(("http", rest)) if rest.trim_end_matches('/').contains('/') => {
                    ": leave out http:// and the path, which a route may add with add_prefix"
                }
                Some(("http", _)) => ": leave out http://",
                Some(("https", _)) => ": leave out https://, and add [upstream.tls]",
                Some((scheme @ ("grpc" | "h2c"), _)) => {
                    return format!("{found}: leave out {scheme}://, and set protocol = \"h2\"");
                }
                Some((scheme, _)) => return format!("{found}: leave out {scheme}://"),
                None if given.starts_with('/') => {
                    return format!("{found}: a unix socket is written \"unix:{given}\"");
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

fn unix(given: &str, path: &str) -> Result<ServerAddress, String> {
    if !path.starts_with('/') || path.starts_with("//") || path.ends_with('/') {
        return Err(format!(
            "\"{given}\" is not the absolute path of a socket, such as \"unix:/run/shop.sock\""
        ));
    }
    if path.contains(char::is_control) {
        return Err("expected a path without control characters".to_owned());
    }
    if path.len() > LONGEST_PATH {
        return Err(format!("\"{given}\": the path of a socket has at most {LONGEST_PATH} bytes"));
    }
    Ok(ServerAddress::Unix(PathBuf::from(path)))
}
