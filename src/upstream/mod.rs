//! The servers of an upstream: which one is next, and how to connect to it.
//!
//! A [`Pool`] is the running state of one upstream: its servers (`server`), and the choice of one
//! of them for each attempt. `names` finds their addresses, and `balance` says which one is next.
//! `connection` opens connections, with `tls` if there is that section, and keeps idle ones, for as
//! long as `keep_alive` says; `http2` does the same with connections that several requests share.

mod admission;
mod balance;
pub mod connection;
mod ejection;
mod health_check;
pub mod http2;
mod idle_closes;
pub mod io;
mod keep_alive;
mod lasting;
mod names;
mod pending;
mod retry_budget;
pub mod server;
mod servers;
pub mod tls;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::admission::{Choice, Trial, Unavailable};
pub use self::balance::hash_of;
use self::connection::{ConnectError, Connection, Connector};
use self::lasting::Lasting;
use self::names::{Names, Resolver};
use self::server::{Address, Lease, Server};
use self::servers::Servers;
use self::tls::ClientTls;
use crate::clock::Clock;
use crate::config::{Protocol, ServerAddress, ServerEntry, Upstream};
use crate::telemetry::metrics::Metrics;
pub use crate::telemetry::metrics::{AttemptOutcome as Outcome, RetryOutcome};

/// What the pools of all configurations share.
pub struct Network {
    pub clock: Clock,
    connector: Connector,
    resolver: Arc<Resolver>,
    metrics: Arc<Metrics>,
}

impl Network {
    pub fn new(clock: Clock, metrics: Arc<Metrics>) -> Self {
        let resolver = Arc::new(Resolver::system());
        Self { clock, connector: Connector::new(), resolver, metrics }
    }
}

/// The servers of one upstream.
pub struct Pool {
    section: Upstream,
    network: Arc<Network>,
    tls: Option<ClientTls>,
    servers: ArcSwap<Servers>,
    /// Servers of the pool before a reload, until the first resolution.
    inherited: Mutex<Vec<Arc<Server>>>,
    names: Names,
    lasting: Arc<Lasting>,
    /// Whether a health check of any server has succeeded. Until then all are in use.
    is_proven: AtomicBool,
    /// Whether the health of the servers was found out with the same checks.
    keeps_health: bool,
    /// Held while a server is ejected, so that no more leave than may.
    ejecting: Mutex<()>,
}

impl Pool {
    fn new(
        section: Upstream,
        network: Arc<Network>,
        lasting: Arc<Lasting>,
    ) -> Result<Self, rustls::Error> {
        let tls = section.tls.as_ref().map(|tls| ClientTls::new(tls, section.protocol));
        Ok(Self {
            names: Names::new(&section, network.clock.clone(), network.resolver.clone()),
            tls: tls.transpose()?,
            section,
            network,
            servers: ArcSwap::default(),
            inherited: Mutex::default(),
            lasting,
            is_proven: AtomicBool::new(false),
            keeps_health: false,
            ejecting: Mutex::default(),
        })
    }

    /// The pool from before a reload if its section has not changed, else a new one. What is known
    /// about a server stays if it is connected to in the same way as before.
    ///
    /// # Errors
    ///
    /// Those of [`ClientTls::new`].
    pub fn carried_over(
        previous: &[Arc<Self>],
        section: &Upstream,
        network: &Arc<Network>,
    ) -> Result<Arc<Self>, rustls::Error> {
        let named = previous.iter().find(|pool| pool.section.name == section.name);
        if let Some(same) = named.filter(|pool| pool.section == *section) {
            return Ok(same.clone());
        }
        let lasting = match named {
            Some(named) => named.lasting.clone(),
            None => Arc::new(Lasting::new(&section.name, network.clock.clone(), &network.metrics)),
        };
        let mut pool = Self::new(section.clone(), network.clone(), lasting)?;
        for known in previous {
            pool.names.inherit(&known.names);
        }
        let connects_alike =
            |of: &Upstream| of.protocol == section.protocol && of.tls == section.tls;
        if let Some(named) = named.filter(|pool| connects_alike(&pool.section)) {
            *pool.inherited.lock() = named.servers.load().iter().cloned().collect();
            if named.section.health_check == section.health_check {
                pool.keeps_health = true;
                pool.is_proven = AtomicBool::new(named.is_proven.load(Ordering::Relaxed));
            }
        }
        Ok(Arc::new(pool))
    }

    /// The configuration of the pool.
    pub fn section(&self) -> &Upstream {
        &self.section
    }

    /// A server for the next attempt: one that is not among `tried`, or if there is no other, any.
    /// `needs_new`: on a new connection. `key` is what `balance = "hash"` hashes.
    pub fn choose(
        &self,
        tried: &[Arc<Server>],
        needs_new: bool,
        key: u64,
        now: Instant,
    ) -> Result<Choice, Unavailable> {
        let servers = self.servers.load();
        // Servers that another request was faster to use up.
        let mut lost: Vec<Arc<Server>> = Vec::new();
        for may_be_tried in [false, true] {
            let may_be = |server: &Arc<Server>, lost: &[Arc<Server>]| {
                (may_be_tried || !is_among(tried, server))
                    && self.prospect(server).is_ok()
                    && !is_among(lost, server)
            };
            while let Some(server) =
                servers.pick(&self.section.balance, key, |server| may_be(server, &lost))
            {
                // With HTTP/2, only connections to the servers that were tried are suspect.
                let needs_new = needs_new
                    && (self.section.protocol == Protocol::Http1 || is_among(tried, server));
                if let Ok(choice) = self.admit(server, needs_new, now) {
                    return Ok(choice);
                }
                lost.push(server.clone());
            }
            if tried.is_empty() {
                break;
            }
        }
        let is_limited = self.section.max_connections > 0;
        let is_in_use = |server: &Arc<Server>| self.prospect(server) != Err(Unavailable::NoServer);
        let is_full = is_limited && servers.iter().any(is_in_use);
        Err(if is_full { Unavailable::Full } else { Unavailable::NoServer })
    }

    /// Opens a connection to a server, within `limit`. `lease` is its place, if it was taken
    /// before. With HTTP/2, a connection that was opened meanwhile is shared, unless `needs_new`.
    pub async fn open(
        &self,
        server: &Arc<Server>,
        lease: Option<Lease>,
        needs_new: bool,
        limit: Duration,
    ) -> Result<Connection, ConnectError> {
        let lease = lease.unwrap_or_else(|| Lease::new(server.clone()));
        let (connector, tls) = (&self.network.connector, self.tls.as_ref());
        match self.section.protocol {
            Protocol::Http1 => connector.open(lease, tls, limit).await,
            Protocol::Http2 => {
                let idle_time = self.idle_time(std::iter::empty()).unwrap_or_default();
                connector.open_stream(lease, tls, needs_new, idle_time, limit).await
            }
        }
    }

    /// How long to keep an idle connection after a response with these `Keep-Alive` lines; `None`:
    /// it is closed.
    pub fn idle_time<'a>(&self, lines: impl Iterator<Item = &'a [u8]>) -> Option<Duration> {
        keep_alive::time(self.section.idle_timeout, lines)
    }

    /// Whether there is more than one server.
    pub fn has_several(&self) -> bool {
        self.servers.load().len() > 1
    }

    /// Whether no address of any server is known.
    pub fn is_empty(&self) -> bool {
        self.servers.load().is_empty()
    }

    /// Resolves the host names that are due, and uses the addresses found.
    pub async fn resolve(&self) {
        let (found, _) = self.names.resolve().await;
        let mut known = std::mem::take(&mut *self.inherited.lock());
        if !self.keeps_health {
            for server in &known {
                server.health.reset();
            }
        }
        known.extend(self.servers.load().iter().cloned());
        let inet = found.into_iter().map(|(address, entry)| (Address::Inet(address), entry));
        let unix = self.section.servers.iter().enumerate().filter_map(|(index, entry)| {
            let ServerAddress::Unix(path) = &entry.address else { return None };
            Some((Address::Unix(path.as_path().into()), index))
        });
        let mut found: Vec<_> = inet.chain(unix).collect();
        // As they are configured.
        found.sort_by_key(|(_, entry)| *entry);
        let server = |(address, entry): (Address, usize)| {
            let ServerEntry { address: configured, weight } = self.section.servers.get(entry)?;
            let known = known.iter().find(|server| server.is(&address, configured)).cloned();
            let pending = &self.lasting.pending;
            let new = || Server::new(address, configured, pending.clone()).map(Arc::new);
            Some((known.or_else(new)?, *weight))
        };
        let servers = Servers::new(found.into_iter().filter_map(server));
        if !servers.is_same(&self.servers.load()) {
            self.servers.store(Arc::new(servers));
            // There may be new ones.
            self.lasting.pending.notify();
        }
    }

    /// Resolves the host names of a pool again when they are due, for as long as the pool is in
    /// use.
    pub async fn keep_resolving(pool: Weak<Self>) {
        while let Some(wait) = pool.upgrade().and_then(|pool| pool.names.next_due()) {
            tokio::time::sleep(wait).await;
            let Some(pool) = pool.upgrade() else { return };
            pool.resolve().await;
        }
    }
}

fn is_among(servers: &[Arc<Server>], server: &Arc<Server>) -> bool {
    servers.iter().any(|other| Arc::ptr_eq(other, server))
}
