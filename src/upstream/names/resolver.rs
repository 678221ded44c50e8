//! How the addresses of a host name are found: as the system does it, with the TTL, which the
//! system's own interface does not tell.
//!
//! The hosts file decides if it has the name. Otherwise the name servers of resolv.conf(5) are
//! queried, one after another, with its search list (`search`, `domain`, `ndots`, `timeout`,
//! `attempts`). Both files are read for each look-up, so changes are seen at once. If resolv.conf
//! names no server, the system's own interface is used (getaddrinfo), which may know other sources.
//!
//! hickory sends the queries and follows aliases. Its cache, its search list, its reading of the
//! hosts file and its choice among several name servers are not used. It would query two servers at
//! the same time, and a public second one could deny a name that only the first one knows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use parking_lot::Mutex;
use tokio::time::timeout;

/// How long a name from the hosts file is used before the file is read again.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// How long addresses from getaddrinfo are used: their TTL is not known.
const SYSTEM_TTL: Duration = Duration::from_secs(30);

/// The longest time for one query to one name server.
const LONGEST_QUERY: Duration = Duration::from_secs(2);

/// The longest time for one look-up: several queries, if name servers do not respond or the search
/// list is long.
const LONGEST_LOOK_UP: Duration = Duration::from_secs(10);

/// Why there are no addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookUpError {
    /// With the time until it may exist, if that is known.
    #[error("there is no such name")]
    NoSuchName(Option<Duration>),
    /// It exists, but not with an A or AAAA record.
    #[error("the name has no address")]
    NoAddress(Option<Duration>),
    #[error("no name server responded in time")]
    Timeout,
    #[error("the name servers respond with errors ({0})")]
    ServerFailure(ResponseCode),
    #[error("no name server could be queried: {0}")]
    Unreachable(String),
    #[error("{0}")]
    System(String),
}

impl LookUpError {
    /// When to query again, as the name server says it.
    pub fn ttl(&self) -> Option<Duration> {
        match self {
            Self::NoSuchName(ttl) | Self::NoAddress(ttl) => *ttl,
            _ => None,
        }
    }
}

/// Addresses, and how long they may be used.
pub type Found = (Vec<IpAddr>, Duration);

/// Looks up host names.
pub struct Resolver {
    resolv_conf: PathBuf,
    hosts: PathBuf,
    /// The port of the name servers.
    port: u16,
    /// What was made of the last content of the file.
    servers: Mutex<Option<(Vec<u8>, Arc<NameServers>)>>,
}

impl Resolver {
    /// With the system's files.
    pub fn system() -> Self {
        Self::with("/etc/resolv.conf", "/etc/hosts", 53)
    }

    /// With other files and another port.
    pub fn with(resolv_conf: impl Into<PathBuf>, hosts: impl Into<PathBuf>, port: u16) -> Self {
        Self {
            resolv_conf: resolv_conf.into(),
            hosts: hosts.into(),
            port,
            servers: Mutex::default(),
        }
    }

    /// The addresses of a host name, IPv4 and IPv6; never none. It ends within ten seconds.
    pub async fn look_up(&self, host: &str) -> Result<Found, LookUpError> {
        let listed = std::fs::read(&self.hosts)
            .map(|file| in_hosts_file(&String::from_utf8_lossy(&file), host))
            .unwrap_or_default();
        if !listed.is_empty() {
            return Ok((listed, HOSTS_TTL));
        }
        let Some(servers) = self.name_servers() else {
            return from_system(host).await;
        };
        // Never sent to a name server (RFC 6761, section 6.3).
        if is_localhost(host) {
            return Ok((vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], HOSTS_TTL));
        }
        timeout(LONGEST_LOOK_UP, servers.search(host)).await.unwrap_or(Err(LookUpError::Timeout))
    }

    /// The name servers of the file. `None`: it names none, or cannot be read.
    fn name_servers(&self) -> Option<Arc<NameServers>> {
        let content = std::fs::read(&self.resolv_conf).ok()?;
        let mut servers = self.servers.lock();
        match &*servers {
            Some((known, servers)) if *known == content => Some(servers.clone()),
            _ => {
                let new = Arc::new(NameServers::read(&content, self.port)?);
                *servers = Some((content, new.clone()));
                Some(new)
            }
        }
    }
}

/// The addresses of a host in the text of a hosts file (hosts(5)).
fn in_hosts_file(text: &str, host: &str) -> Vec<IpAddr> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut addresses = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let address = words.next().and_then(|address| address.parse::<IpAddr>().ok());
        if let Some(address) = address
            && words.any(|name| name.eq_ignore_ascii_case(host))
        {
            addresses.push(address);
        }
    }
    addresses
}

fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.rsplit('.').next().is_some_and(|last| last.eq_ignore_ascii_case("localhost"))
}

async fn from_system(host: &str) -> Result<Found, LookUpError> {
    match timeout(LONGEST_LOOK_UP, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => {
            let addresses: Vec<_> = found.map(|address| address.ip()).collect();
            if addresses.is_empty() {
                return Err(LookUpError::NoAddress(None));
            }
            Ok((addresses, SYSTEM_TTL))
        }
        Ok(Err(error)) => Err(LookUpError::System(error.to_string())),
        Err(_) => Err(LookUpError::Timeout),
    }
}

/// What a resolv.conf says.
struct NameServers {
    /// In order; each one is queried when those before it fail.
    servers: Vec<TokioResolver>,
    search: Vec<Name>,
    ndots: usize,
    attempts: usize,
}

impl NameServers {
    fn read(resolv_conf: &[u8], port: u16) -> Option<Self> {
        let (config, options) = parse_resolv_conf(resolv_conf).ok()?;
        let one = |server: &NameServerConfig| {
            let (mut udp, mut tcp) = (ConnectionConfig::udp(), ConnectionConfig::tcp());
            (udp.port, tcp.port) = (port, port);
            let server = NameServerConfig::new(server.ip, true, vec![udp, tcp]);
            let config = ResolverConfig::from_name_servers(vec![server]);
            let provider = TokioRuntimeProvider::default();
            let mut builder = TokioResolver::builder_with_config(config, provider);
            let own = builder.options_mut();
            own.timeout = options.timeout.min(LONGEST_QUERY);
            // The number of repetitions: what is repeated is decided here.
            own.attempts = 0;
            own.edns0 = options.edns0;
            own.cache_size = 0;
            own.use_hosts_file = ResolveHosts::Never;
            // Their TTLs count, too.
            own.preserve_intermediates = true;
            builder.build()
        };
        // As the system does, which uses the first three.
        let servers = config.name_servers().iter().take(3).map(one).collect::<Result<Vec<_>, _>>();
        // The domain of the machine's own name is the search list if the file has none.
        let search = match config.search() {
            [] => config.domain().cloned().into_iter().collect(),
            search => search.to_vec(),
        };
        let attempts = options.attempts.clamp(1, 5);
        Some(Self { servers: servers.ok()?, search, ndots: options.ndots, attempts })
    }

    /// Looks up a name, with the search list. The first full name that has an address counts.
    async fn search(&self, host: &str) -> Result<Found, LookUpError> {
        let mut first_error = None;
        for name in self.candidates(host) {
            match self.ask(&name).await {
                Ok(found) => return Ok(found),
                // Whether this name exists is not known, so a later one must not be used instead.
                Err(error @ (LookUpError::Timeout | LookUpError::Unreachable(_))) => {
                    return Err(error);
                }
                Err(error) => first_error = Some(weightier(first_error, error)),
            }
        }
        Err(first_error.unwrap_or(LookUpError::NoSuchName(None)))
    }

    /// The full names that a name may be short for, in order.
    fn candidates(&self, host: &str) -> Vec<Name> {
        let Ok(mut name) = Name::from_ascii(host) else { return Vec::new() };
        let is_full = name.is_fqdn();
        let mut candidates = Vec::new();
        if !is_full {
            let in_domain = |domain| name.clone().append_domain(domain).ok();
            candidates.extend(self.search.iter().filter_map(in_domain));
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        name.set_fqdn(true);
        let place = if dots >= self.ndots { 0 } else { candidates.len() };
        candidates.insert(place, name);
        candidates
    }

    /// Looks up a full name: at each server in turn, until one knows whether it exists.
    async fn ask(&self, name: &Name) -> Result<Found, LookUpError> {
        let mut last_error = LookUpError::Timeout;
        for server in (0..self.attempts).flat_map(|_| &self.servers) {
            match ask(server, name).await {
                Err(error @ (LookUpError::NoSuchName(_) | LookUpError::NoAddress(_))) => {
                    return Err(error);
                }
                Err(error) => last_error = error,
                found => return found,
            }
        }
        Err(last_error)
    }
}

/// What is reported if several names were not found: first what leaves open whether they exist, and
/// otherwise that one exists without an address.
fn weightier(one: Option<LookUpError>, other: LookUpError) -> LookUpError {
    match (one, other) {
        (Some(one @ LookUpError::ServerFailure(_)), _) => one,
        (_, other @ LookUpError::ServerFailure(_)) => other,
        (Some(one @ LookUpError::NoAddress(_)), _) => one,
        (_, other) => other,
    }
}

/// Queries a server for the A and AAAA records of a full name. One of the two is enough.
async fn ask(server: &TokioResolver, name: &Name) -> Result<Found, LookUpError> {
    let query = |kind| async move {
        let found = server.lookup(name.clone(), kind).await.map_err(|error| of_query(&error))?;
        let records = found.answers();
        let addresses: Vec<_> = records.iter().filter_map(|record| record.data.ip_addr()).collect();
        let ttl = records.iter().map(|record| record.ttl).min().unwrap_or_default();
        let ttl = Duration::from_secs(ttl.into());
        if addresses.is_empty() { Err(LookUpError::NoAddress(None)) } else { Ok((addresses, ttl)) }
    };
    match tokio::join!(query(RecordType::A), query(RecordType::AAAA)) {
        (Ok((mut addresses, ttl)), Ok((other, other_ttl))) => {
            addresses.extend(other);
            Ok((addresses, ttl.min(other_ttl)))
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
        // A server that fails for one of the two may know nothing about the name.
        (Err(LookUpError::NoSuchName(_) | LookUpError::NoAddress(_)), Err(error))
        | (Err(error), Err(_)) => Err(error),
    }
}

fn of_query(error: &NetError) -> LookUpError {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let ttl = none.negative_ttl.map(|seconds| Duration::from_secs(seconds.into()));
            match none.response_code {
                ResponseCode::NXDomain => LookUpError::NoSuchName(ttl),
                ResponseCode::NoError => LookUpError::NoAddress(ttl),
                code => LookUpError::ServerFailure(code),
            }
        }
        NetError::Dns(DnsError::ResponseCode(code)) => LookUpError::ServerFailure(*code),
        NetError::Timeout => LookUpError::Timeout,
        NetError::Io(error) => LookUpError::Unreachable(error.to_string()),
        error => LookUpError::Unreachable(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
