//! The servers of an upstream: which one is next, and how to connect to it.
//!
//! A [`Pool`] is the running state of one upstream. It turns the configured servers into peers for
//! pingora's connectors, and returns their addresses in turn (round robin). Host names are resolved
//! at the start and every 30 seconds; when a name cannot be resolved, its last known addresses stay
//! in use. If connecting to a server fails, `proxy` tries one that it has not tried yet.

mod keep_alive;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::upstreams::peer::HttpPeer;
use pingora_load_balancing::discovery::ServiceDiscovery;
use pingora_load_balancing::{Backend, Backends};

use crate::clock::Clock;
use crate::config::{ServerAddress, Timeouts, Upstream};
use crate::telemetry::log_throttle::LogThrottle;

/// Time between two resolutions of host names.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// Time for one resolution; the system's own timeout may be longer.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(4);

/// Time between two resolutions while an upstream has no address.
const RESOLVE_RETRY: Duration = Duration::from_secs(1);

/// Bytes for a server that the system buffers before it sends them. By default it would buffer
/// megabytes, and a server that reads nothing would seem to read.
#[cfg(target_os = "linux")]
const MOST_UNSENT: u32 = 16 << 10;

/// The servers of one upstream.
pub struct Pool {
    backends: Backends,
    peers: ArcSwap<Vec<Peer>>,
    next: AtomicUsize,
    section: Upstream,
}

/// A server that can be connected to.
struct Peer {
    address: SocketAddr,
    template: HttpPeer,
}

impl Pool {
    pub fn new(section: Upstream, clock: Clock) -> Self {
        let servers = section.servers.clone();
        let names =
            Names { pool: section.name.clone(), servers, clock, resolved: Mutex::default() };
        Self {
            backends: Backends::new(Box::new(names)),
            peers: ArcSwap::default(),
            next: AtomicUsize::new(0),
            section,
        }
    }

    /// The pool from before a reload if its section has not changed, else a new one.
    pub fn carried_over(previous: &[Arc<Self>], section: &Upstream, clock: &Clock) -> Arc<Self> {
        let same = previous.iter().find(|pool| pool.section == *section);
        same.cloned().unwrap_or_else(|| Arc::new(Self::new(section.clone(), clock.clone())))
    }

    /// The configuration of the pool.
    pub fn section(&self) -> &Upstream {
        &self.section
    }

    /// The next server in turn that is not among `tried`.
    pub fn next(&self, tried: &[SocketAddr]) -> Option<SocketAddr> {
        let peers = self.peers.load();
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        (0..peers.len())
            .filter_map(|step| peers.get(first.wrapping_add(step) % peers.len()))
            .map(|peer| peer.address)
            .find(|address| !tried.contains(address))
    }

    /// How to connect to a server, with the timeouts that the route sets. `None` if it is no longer
    /// a server of the upstream.
    pub fn peer_at(&self, address: SocketAddr, timeouts: &Timeouts) -> Option<Box<HttpPeer>> {
        let peers = self.peers.load();
        let peer = peers.iter().find(|peer| peer.address == address)?;
        let mut peer = Box::new(peer.template.clone());
        let options = &mut peer.options;
        options.connection_timeout = timeouts.connect.or(options.connection_timeout);
        options.total_connection_timeout = timeouts.connect.or(options.total_connection_timeout);
        Some(peer)
    }

    /// How long to keep an idle connection after a response with these `Keep-Alive` lines; `None`:
    /// it is closed.
    pub fn idle_time<'a>(&self, lines: impl Iterator<Item = &'a [u8]>) -> Option<Duration> {
        keep_alive::time(self.section.idle_timeout, lines)
    }

    /// Whether no address of any server is known.
    pub fn is_empty(&self) -> bool {
        self.peers.load().is_empty()
    }

    /// Whether there is a server that has not been tried.
    pub fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        self.peers.load().iter().any(|peer| !tried.contains(&peer.address))
    }

    /// Resolves the host names, and uses the addresses found.
    pub async fn resolve(&self) {
        let updated = self.backends.update(|backends| {
            let addresses = backends.iter().filter_map(|backend| backend.addr.as_inet());
            let peers = addresses.map(|address| self.peer(*address)).collect();
            self.peers.store(Arc::new(peers));
        });
        // `Names` itself logs failures and keeps the known addresses.
        let _ = updated.await;
    }

    /// Resolves the host names of a pool repeatedly, for as long as the pool is in use.
    pub async fn keep_resolving(pool: Weak<Self>) {
        let is_name = |server: &ServerAddress| matches!(server, ServerAddress::Host { .. });
        let interval = |pool: &Self| {
            let has_names = pool.section.servers.iter().any(is_name);
            has_names.then_some(if pool.is_empty() { RESOLVE_RETRY } else { RESOLVE_INTERVAL })
        };
        while let Some(interval) = pool.upgrade().and_then(|pool| interval(&pool)) {
            tokio::time::sleep(interval).await;
            let Some(pool) = pool.upgrade() else { return };
            pool.resolve().await;
        }
    }

    fn peer(&self, address: SocketAddr) -> Peer {
        let mut template = HttpPeer::new(address, false, String::new());
        let options = &mut template.options;
        options.connection_timeout = Some(self.section.connect_timeout);
        options.total_connection_timeout = Some(self.section.connect_timeout);
        #[cfg(target_os = "linux")]
        let hold_back = |socket: &tokio::net::TcpSocket| {
            // If this fails, the system buffers more than necessary.
            let _ = socket2::SockRef::from(socket).set_tcp_notsent_lowat(MOST_UNSENT);
            Ok(())
        };
        #[cfg(target_os = "linux")]
        options.upstream_tcp_sock_tweak_hook.replace(Arc::new(hold_back));
        Peer { address, template }
    }
}

/// Resolves the servers of one pool.
struct Names {
    pool: String,
    servers: Vec<ServerAddress>,
    clock: Clock,
    resolved: Mutex<HashMap<String, HostAddresses>>,
}

/// The last known addresses of a host name with a port.
struct HostAddresses {
    /// The addresses found by the last successful resolution.
    addresses: Vec<SocketAddr>,
    failed: LogThrottle,
    /// Whether the last log line about it says that it cannot be resolved.
    is_logged: bool,
}

#[async_trait]
impl ServiceDiscovery for Names {
    async fn discover(&self) -> pingora::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        let mut addresses = Vec::new();
        for server in &self.servers {
            match server {
                ServerAddress::Socket(address) => addresses.push(*address),
                ServerAddress::Host { host, port } => {
                    addresses.extend(self.look_up(host, *port).await);
                }
            }
        }
        let backends =
            addresses.iter().filter_map(|address| Backend::new(&address.to_string()).ok());
        Ok((backends.collect(), HashMap::new()))
    }
}

impl Names {
    async fn look_up(&self, host: &str, port: u16) -> Vec<SocketAddr> {
        let name = format!("{host}:{port}");
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)));
        let found: std::io::Result<Vec<_>> = match found.await {
            Ok(found) => found.map(Iterator::collect),
            Err(elapsed) => Err(elapsed.into()),
        };
        self.record(&name, found)
    }

    /// Stores the result of a resolution. Returns the addresses, or those of an earlier resolution
    /// if this one failed.
    fn record(&self, host: &str, found: std::io::Result<Vec<SocketAddr>>) -> Vec<SocketAddr> {
        let mut resolved = self.resolved.lock();
        let name = resolved.entry(host.to_owned()).or_insert_with(|| HostAddresses {
            addresses: Vec::new(),
            failed: LogThrottle::new(self.clock.clone()),
            is_logged: false,
        });
        match found {
            Ok(addresses) => {
                if std::mem::take(&mut name.is_logged) {
                    tracing::info!(upstream = self.pool, host, "host name resolves again");
                }
                name.addresses = addresses;
            }
            Err(error) => {
                if let Some(suppressed) = name.failed.suppressed() {
                    name.is_logged = true;
                    let kept = name.addresses.len();
                    tracing::warn!(
                        upstream = self.pool,
                        host,
                        %error,
                        kept,
                        suppressed,
                        "cannot resolve host name"
                    );
                }
            }
        }
        name.addresses.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what is logged by `done`.
    fn logged(done: impl FnOnce()) -> String {
        let path = tempfile::NamedTempFile::new().unwrap();
        let lines = tracing_subscriber::fmt().with_writer(Arc::new(path.reopen().unwrap()));
        tracing::subscriber::with_default(lines.finish(), done);
        std::fs::read_to_string(path.path()).unwrap()
    }

    #[test]
    fn a_name_that_does_not_resolve_is_logged_once_a_minute_and_once_when_it_does_again() {
        let clock = Clock::manual();
        let names = Names {
            pool: "shop".to_owned(),
            servers: Vec::new(),
            clock: clock.clone(),
            resolved: Mutex::default(),
        };
        let address = SocketAddr::from(([127, 0, 0, 1], 80));
        let record = |found| names.record("shop.internal:80", found);
        let fail = || record(Err(std::io::Error::other("unknown")));
        let find = || record(Ok(vec![address]));
        assert_eq!(logged(|| drop(find())), "");
        let log = logged(|| {
            for _ in 0..100 {
                assert_eq!(fail(), [address], "the last addresses are kept");
            }
        });
        assert_eq!(log.lines().count(), 1, "{log}");
        clock.advance(Duration::from_secs(60));
        assert!(logged(|| drop(fail())).contains("suppressed=99"));
        let log = logged(|| drop((find(), find())));
        assert_eq!(log.matches("resolves again").count(), 1, "{log}");
        // A name that fails now and then must not flood the log either.
        let log = logged(|| {
            for _ in 0..100 {
                fail();
                find();
            }
        });
        assert_eq!(log, "");
    }
}
