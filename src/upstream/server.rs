//! One server: a resolved address, and what is known about it.
//!
//! A [`Server`] outlives a reload that does not change how it is connected to: what is known about
//! it, and its idle connections, stay. Whatever belongs to one configuration, such as its weight,
//! is in the list of the pool ([`super::Pool`]).

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;

use super::ejection::EjectionState;
use super::health_check::HealthState;
use super::idle_closes::IdleCloses;
use super::pending::Pending;
use crate::config::{Protocol, ServerAddress};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Inet(SocketAddr),
    Unix(Arc<Path>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A number of connections, those included that are idle.
#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    idle: AtomicUsize,
}

impl Counts {
    /// How many are in use, and how many are idle.
    fn active_and_idle(&self) -> (usize, usize) {
        let (open, idle) = (self.open.load(Ordering::Relaxed), self.idle.load(Ordering::Relaxed));
        // The two are not read at the same moment.
        (open.saturating_sub(idle), idle)
    }
}

/// One server of an upstream.
pub struct Server {
    pub address: Address,
    /// As it is written in the configuration: the `Host` of requests if the upstream says so.
    pub host: HeaderValue,
    /// The host name of the configuration, if there is one: certificates are verified against it.
    pub name: Option<Box<str>>,
    /// With HTTP/1, connections that are open or being opened; with HTTP/2, requests.
    places: Counts,
    /// Connections of HTTP/2.
    shared: Counts,
    pub idle_closes: IdleCloses,
    pub health: HealthState,
    pub ejection: EjectionState,
    /// Requests of the upstream that wait for a connection.
    pending: Arc<Pending>,
}

impl Server {
    /// `None`: the configured address cannot be a `Host`.
    pub fn new(
        address: Address,
        configured: &ServerAddress,
        pending: Arc<Pending>,
    ) -> Option<Self> {
        let (host, name) = match configured {
            ServerAddress::Socket(address) => (address.to_string(), None),
            ServerAddress::Host { host, port } => (format!("{host}:{port}"), Some(&**host)),
            ServerAddress::Unix(_) => ("localhost".to_owned(), None),
        };
        Some(Self {
            address,
            host: HeaderValue::from_str(&host).ok()?,
            name: name.map(Box::from),
            places: Counts::default(),
            shared: Counts::default(),
            idle_closes: IdleCloses::default(),
            health: HealthState::default(),
            ejection: EjectionState::default(),
            pending,
        })
    }

    /// Whether this is the server of a configured address.
    pub fn is(&self, address: &Address, configured: &ServerAddress) -> bool {
        let host = |host: &str| self.host.as_bytes() == host.as_bytes();
        self.address == *address
            && match configured {
                ServerAddress::Socket(_) | ServerAddress::Host { .. } => {
                    host(&configured.to_string())
                }
                ServerAddress::Unix(_) => host("localhost"),
            }
    }

    /// Requests that it serves, and connections being opened.
    pub fn in_flight(&self) -> usize {
        self.places.active_and_idle().0
    }

    /// Connections that are in use, and idle ones.
    pub fn connections(&self, protocol: Protocol) -> (usize, usize) {
        match protocol {
            Protocol::Http1 => self.places.active_and_idle(),
            Protocol::Http2 => self.shared.active_and_idle(),
        }
    }

    /// Places that are taken, those of idle connections included.
    pub fn open_connections(&self) -> usize {
        self.places.open.load(Ordering::Relaxed)
    }

    pub fn idle_connections(&self) -> usize {
        self.places.idle.load(Ordering::Relaxed)
    }
}

/// A place among the connections to a server, from before it is opened until it is closed. With
/// HTTP/2, which shares connections, a place among the requests.
pub struct Lease {
    server: Arc<Server>,
    is_shared: bool,
    is_idle: bool,
}

impl Lease {
    pub fn new(server: Arc<Server>) -> Self {
        server.places.open.fetch_add(1, Ordering::Relaxed);
        Self { server, is_shared: false, is_idle: false }
    }

    /// A place, unless `most` are taken.
    pub fn take(server: &Arc<Server>, most: usize) -> Option<Self> {
        let one_more = |open: usize| (open < most).then_some(open + 1);
        let taken = server.places.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Self { server: server.clone(), is_shared: false, is_idle: false })
    }

    /// Counts a connection of HTTP/2.
    pub fn shared(server: Arc<Server>) -> Self {
        server.shared.open.fetch_add(1, Ordering::Relaxed);
        Self { server, is_shared: true, is_idle: false }
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    fn counts(&self) -> &Counts {
        if self.is_shared { &self.server.shared } else { &self.server.places }
    }

    /// Whether the connection waits for its next request.
    pub fn set_idle(&mut self, is_idle: bool) {
        if is_idle == self.is_idle {
            return;
        }
        if is_idle {
            self.counts().idle.fetch_add(1, Ordering::Relaxed);
        } else {
            self.counts().idle.fetch_sub(1, Ordering::Relaxed);
        }
        self.is_idle = is_idle;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set_idle(false);
        self.counts().open.fetch_sub(1, Ordering::Relaxed);
        self.server.pending.notify();
    }
}
