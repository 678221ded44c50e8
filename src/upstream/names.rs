//! The addresses of an upstream's servers, and when to look them up again.
//!
//! The rules are here: a name is looked up again when its TTL ends, and its last addresses are used
//! for five minutes after it no longer resolves, whatever the reason. How a name is looked up is
//! decided by [`resolver`].

mod resolver;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use self::resolver::Resolver;
use self::resolver::{Found, LookUpError};
use crate::clock::Clock;
use crate::config::{ServerAddress, Upstream};
use crate::telemetry::log_throttle::LogThrottle;

/// Shortest and longest time between two look-ups of a name, whatever its TTL is.
const TTLS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The longest time until a name that does not resolve is looked up again.
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How long the last addresses of a name are used after it no longer resolves.
const KEPT: Duration = Duration::from_secs(300);

/// How long the other names of an upstream wait for a slow one: before the first result, and later.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(1));

/// The addresses of the servers of one upstream.
pub struct Names {
    upstream: String,
    entries: Vec<Entry>,
    clock: Clock,
    resolver: Arc<Resolver>,
    hosts: Mutex<Vec<Host>>,
    /// Look-ups, by the index of the host. They outlive a call of [`Names::resolve`].
    in_flight: tokio::sync::Mutex<JoinSet<(usize, Result<Found, LookUpError>)>>,
}

/// What an entry of the section needs.
enum Entry {
    Address(SocketAddr),
    /// The index of the host.
    Host(usize, u16),
    Unix,
}

/// What is known of a host name.
struct Host {
    name: String,
    addresses: Vec<IpAddr>,
    is_answered: bool,
    is_in_flight: bool,
    /// When it is looked up again.
    due: Duration,
    failed_since: Option<Duration>,
    failed: LogThrottle,
    /// Whether the last log line about it says that it cannot be resolved.
    is_logged: bool,
}

impl Names {
    /// Looks nothing up yet.
    pub fn new(section: &Upstream, clock: Clock, resolver: Arc<Resolver>) -> Self {
        let mut hosts: Vec<Host> = Vec::new();
        let mut host = |name: &String| {
            let known = hosts.iter().position(|host| host.name == *name);
            known.unwrap_or_else(|| {
                hosts.push(Host {
                    name: name.clone(),
                    addresses: Vec::new(),
                    is_answered: false,
                    is_in_flight: false,
                    due: Duration::ZERO,
                    failed_since: None,
                    failed: LogThrottle::new(clock.clone()),
                    is_logged: false,
                });
                hosts.len() - 1
            })
        };
        let entries = section.servers.iter().map(|server| match &server.address {
            ServerAddress::Socket(address) => Entry::Address(*address),
            ServerAddress::Host { host: name, port } => Entry::Host(host(name), *port),
            ServerAddress::Unix(_) => Entry::Unix,
        });
        Self {
            upstream: section.name.clone(),
            entries: entries.collect(),
            clock,
            resolver,
            hosts: Mutex::new(hosts),
            in_flight: tokio::sync::Mutex::default(),
        }
    }

    /// Takes what is known of the same names: a reload must not lose addresses that no name server
    /// knows at this moment.
    pub fn inherit(&self, other: &Self) {
        let known = other.hosts.lock();
        for host in self.hosts.lock().iter_mut().filter(|host| !host.is_answered) {
            let same = known.iter().find(|known| known.name == host.name && known.is_answered);
            if let Some(same) = same {
                host.addresses.clone_from(&same.addresses);
                (host.is_answered, host.due) = (true, same.due);
                (host.failed_since, host.is_logged) = (same.failed_since, same.is_logged);
            }
        }
    }

    /// Looks up the names that are due. Returns all known addresses, each once, with the index of
    /// its entry among the section's servers (unix sockets have none), and in which time to call
    /// this again; `None`: there are no names.
    ///
    /// It waits up to four seconds for the first result of each name, and for one second for later
    /// ones. A look-up that takes longer continues, and its result is returned by a later call.
    pub async fn resolve(&self) -> (Vec<(SocketAddr, usize)>, Option<Duration>) {
        let mut in_flight = self.in_flight.lock().await;
        let is_first = self.begin(&mut in_flight);
        let finish = async {
            while let Some(finished) = in_flight.join_next().await {
                if let Ok((host, found)) = finished {
                    self.record(host, found);
                }
            }
        };
        let _ = timeout(if is_first { PATIENCE.0 } else { PATIENCE.1 }, finish).await;
        (self.addresses(), self.next_due())
    }

    /// Begins the look-ups that are due. Returns whether one has never had a result.
    fn begin(&self, in_flight: &mut JoinSet<(usize, Result<Found, LookUpError>)>) -> bool {
        let now = self.clock.now();
        let mut hosts = self.hosts.lock();
        for (index, host) in hosts.iter_mut().enumerate() {
            // A look-up that panicked is not in flight any more.
            host.is_in_flight &= !in_flight.is_empty();
            if host.is_in_flight || now < host.due {
                continue;
            }
            host.is_in_flight = true;
            host.due = now + TTLS.0;
            let (resolver, name) = (self.resolver.clone(), host.name.clone());
            in_flight.spawn(async move { (index, resolver.look_up(&name).await) });
        }
        hosts.iter().any(|host| host.is_in_flight && !host.is_answered)
    }

    fn record(&self, index: usize, found: Result<Found, LookUpError>) {
        let now = self.clock.now();
        if let Some(host) = self.hosts.lock().get_mut(index) {
            host.is_in_flight = false;
            host.is_answered = true;
            match found {
                Ok((addresses, ttl)) => host.resolved(&self.upstream, now, addresses, ttl),
                Err(error) => host.failed(&self.upstream, now, &error),
            }
        }
    }

    fn addresses(&self) -> Vec<(SocketAddr, usize)> {
        let hosts = self.hosts.lock();
        let mut all: Vec<(SocketAddr, usize)> = Vec::new();
        let mut seen = HashSet::new();
        let mut add = |address, entry| {
            if seen.insert(address) {
                all.push((address, entry));
            }
        };
        for (index, entry) in self.entries.iter().enumerate() {
            match entry {
                Entry::Address(address) => add(*address, index),
                Entry::Host(host, port) => {
                    let addresses = hosts.get(*host).into_iter().flat_map(|host| &host.addresses);
                    addresses.for_each(|address| add(SocketAddr::new(*address, *port), index));
                }
                Entry::Unix => {}
            }
        }
        all
    }

    /// In which time a name is due; `None`: there are no names.
    pub fn next_due(&self) -> Option<Duration> {
        let now = self.clock.now();
        let wait = |host: &Host| {
            if host.is_in_flight { Duration::ZERO } else { host.due.saturating_sub(now) }
        };
        self.hosts.lock().iter().map(wait).min()
    }
}

impl Host {
    fn resolved(&mut self, upstream: &str, now: Duration, addresses: Vec<IpAddr>, ttl: Duration) {
        if std::mem::take(&mut self.is_logged) {
            tracing::info!(upstream, host = self.name, "host name resolves again");
        }
        self.failed_since = None;
        self.due = now + ttl.clamp(TTLS.0, TTLS.1);
        self.addresses = addresses;
        // Name servers change the order with each response.
        self.addresses.sort_unstable();
        self.addresses.dedup();
    }

    fn failed(&mut self, upstream: &str, now: Duration, error: &LookUpError) {
        let end = *self.failed_since.get_or_insert(now) + KEPT;
        if now >= end && !self.addresses.is_empty() {
            self.addresses.clear();
            // Of this there is one line for each failure of five minutes.
            tracing::error!(
                upstream,
                host = self.name,
                %error,
                "host name has not resolved for five minutes: its addresses are no longer used"
            );
        }
        self.due = if self.addresses.is_empty() {
            now + TTLS.0
        } else {
            let retry = error.ttl().unwrap_or(TTLS.0).clamp(TTLS.0, LONGEST_RETRY);
            (now + retry).min(end)
        };
        if let Some(suppressed) = self.failed.suppressed() {
            self.is_logged = true;
            let kept = self.addresses.len();
            tracing::warn!(
                upstream,
                host = self.name,
                %error,
                kept,
                suppressed,
                "cannot resolve host name"
            );
        }
    }
}

#[cfg(test)]
mod dns_server;
#[cfg(test)]
mod tests;
