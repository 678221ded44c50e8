//! Public connections, from their first byte to their first request.
//!
//! Applies the limits on connections, reads the PROXY header where the listener expects one, does
//! the TLS handshake, and finds out whether the client speaks HTTP/1 or HTTP/2. From then on
//! `proxy` serves the connection. Nothing here depends on the content of a request.

pub(crate) mod forward_auth;
mod redirect;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Once};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};

use crate::access::rate_limiter::network;
use crate::config::LimitsSection;
use crate::listener::proxy_protocol::{self, ConnectionOrigin};
use crate::message::rejection::Rejection;
use crate::policy::{Policies, Policy, Process};
use crate::proxy::{ClientConnection, Gateway, closed};

/// How an HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Maximum idle connections to services that each worker keeps. All workers together keep no more
/// than half of `limits.max_connections`, because file descriptors are shared. With fewer idle
/// connections than concurrent requests, connections would be opened and closed for every request.
const MOST_IDLE: usize = 1024;

/// Maximum unsent bytes that the system buffers for a client. By default it would buffer megabytes,
/// and the socket would become writable again only after the client had read a third of them.
#[cfg(target_os = "linux")]
const MOST_UNSENT: u32 = 64 << 10;

/// Time for each step of rejecting a connection that is beyond a limit.
const REJECT_TIMEOUT: Duration = Duration::from_millis(100);

/// Serves public connections.
pub struct Edge {
    gateway: Arc<Gateway>,
    policies: Arc<Policies>,
    process: Arc<Process>,
    /// One for each connection that is served.
    permits: Semaphore,
    /// Connections by address, if they are limited. Never more than there are permits.
    by_address: Mutex<HashMap<IpAddr, usize>>,
    /// Whether the warning about an unexpected peer of a PROXY listener was logged.
    proxy_header_warning: Once,
}

/// What the connections of a listener begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerKind {
    /// A TLS handshake or a request.
    Client,
    /// The PROXY header of a load balancer.
    ProxyProtocol,
    /// An unencrypted request, which is redirected to HTTPS.
    Redirect,
}

/// A connection that is ready for requests.
struct Opened<'a> {
    client: ClientConnection,
    protocol: Protocol,
    _permit: SemaphorePermit<'a>,
    _slot: Option<AddressSlot<'a>>,
}

/// The protocol of a connection.
enum Protocol {
    /// `begun` is the deadline of a request header that has been received in part.
    Http1 {
        begun: Option<Instant>,
    },
    Http2(Box<LimitsSection>),
    /// The request is redirected to HTTPS.
    Redirect,
}

impl Edge {
    pub fn new(process: Arc<Process>, policies: Arc<Policies>, threads: usize) -> Self {
        let max_connections = policies.current().limits.max_connections;
        let most_idle = (max_connections / 2 / threads).clamp(1, MOST_IDLE);
        Self {
            gateway: Arc::new(Gateway::new(process.clone(), policies.clone(), most_idle)),
            permits: Semaphore::new(max_connections),
            by_address: Mutex::default(),
            proxy_header_warning: Once::new(),
            policies,
            process,
        }
    }

    /// The free permits, and the addresses that have connections.
    #[cfg(test)]
    pub fn held(&self) -> (usize, usize) {
        (self.permits.available_permits(), self.by_address.lock().len())
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, stream: TcpStream, peer: SocketAddr, kind: ListenerKind) {
        let closing = self.process.lifecycle.closing();
        // Rare futures are boxed: an idle connection takes as much memory as its largest future.
        let open = Box::pin(self.open(stream, peer, kind, closing.clone()));
        let Some(mut opened) = open.await else { return };
        match opened.protocol {
            Protocol::Http1 { begun } => {
                self.gateway.serve(&mut opened.client, closing, begun).await
            }
            Protocol::Http2(limits) => {
                Box::pin(self.gateway.serve_http2(opened.client, closing, *limits)).await;
            }
            Protocol::Redirect => Box::pin(self.redirect(&mut opened.client, closing)).await,
        }
    }

    /// Prepares a connection for requests. `None`: it has ended.
    async fn open(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        kind: ListenerKind,
        mut closing: watch::Receiver<bool>,
    ) -> Option<Opened<'_>> {
        // Responses are flushed whole: waiting for more data would only delay them.
        let _ = stream.set_nodelay(true);
        // Without this, the system holds more data than necessary.
        #[cfg(target_os = "linux")]
        let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(MOST_UNSENT);
        let policy = self.policies.current();
        let Ok(permit) = self.permits.try_acquire() else {
            self.reject_connection(stream, peer, kind, &policy).await;
            return None;
        };
        let peer = match kind {
            ListenerKind::Client | ListenerKind::Redirect => peer,
            ListenerKind::ProxyProtocol => {
                tokio::select! {
                    found = self.peer_behind(&mut stream, peer, &policy) => found.ok()?,
                    () = closed(&mut closing) => return None,
                }
            }
        };
        let Ok(slot) = self.take_slot(peer.ip().to_canonical(), &policy) else {
            self.reject_connection(stream, peer, kind, &policy).await;
            return None;
        };
        let opened =
            |client, protocol| Some(Opened { client, protocol, _permit: permit, _slot: slot });
        // A connection must not keep a policy for its whole life.
        let (limits, tls, h2c) = (Box::new(policy.limits.clone()), policy.tls.clone(), policy.h2c);
        drop(policy);
        if kind == ListenerKind::Redirect {
            return opened(ClientConnection::plain(stream, peer), Protocol::Redirect);
        }
        let Some(tls) = tls else {
            let mut client = ClientConnection::plain(stream, peer);
            if !h2c {
                return opened(client, Protocol::Http1 { begun: None });
            }
            let deadline = Instant::now() + limits.header_timeout;
            client.deadline.set(deadline);
            let begins_as_http2 = tokio::select! {
                begins = begins_as_http2(&mut client) => begins?,
                () = closed(&mut closing) => return None,
            };
            let protocol = if begins_as_http2 {
                Protocol::Http2(limits)
            } else {
                Protocol::Http1 { begun: Some(deadline) }
            };
            return opened(client, protocol);
        };
        let handshaken = tokio::select! {
            handshaken = tls.accept(stream) => handshaken?,
            () = closed(&mut closing) => return None,
        };
        let is_http2 = handshaken.get_ref().1.alpn_protocol() == Some(b"h2");
        let protocol =
            if is_http2 { Protocol::Http2(limits) } else { Protocol::Http1 { begun: None } };
        opened(ClientConnection::tls(handshaken, peer), protocol)
    }

    /// The client's address from the PROXY header, if the load balancer is trusted.
    async fn peer_behind(
        &self,
        stream: &mut TcpStream,
        balancer: SocketAddr,
        policy: &Policy,
    ) -> Result<SocketAddr, NoProxyHeader> {
        let is_trusted = policy.trusted_proxies.contains(balancer.ip().to_canonical());
        let header = async {
            match proxy_protocol::read(stream).await {
                Ok(ConnectionOrigin::Client(source)) => Ok(source),
                Ok(ConnectionOrigin::Balancer) => Ok(balancer),
                // The client is unknown. This address belongs to no client and to no trusted proxy.
                Ok(ConnectionOrigin::Unknown) => Ok(SocketAddr::from(([0, 0, 0, 0], 0))),
                // A port probe is not a mistake.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(None),
                Err(_) => Err(Some("rejected a connection without a valid PROXY header")),
            }
        };
        let read = if is_trusted {
            timeout(policy.limits.header_timeout, header).await.unwrap_or(Err(None))
        } else {
            Err(Some(
                "rejected a connection of a load balancer that is not in server.trusted_proxies",
            ))
        };
        read.map_err(|mistake| {
            if let Some(mistake) = mistake {
                self.proxy_header_warning.call_once(|| {
                    tracing::warn!(
                        peer = %balancer.ip(),
                        "server.proxy_protocol: {mistake} (logged once)"
                    );
                });
            }
            NoProxyHeader
        })
    }

    /// Counts one more connection of an address, unless it has reached its limit.
    fn take_slot(
        &self,
        address: IpAddr,
        policy: &Policy,
    ) -> Result<Option<AddressSlot<'_>>, TooMany> {
        let Some(most) = policy.limits.max_connections_per_address else { return Ok(None) };
        if policy.trusted_proxies.contains(address) {
            return Ok(None);
        }
        let address = network(address);
        let mut by_address = self.by_address.lock();
        let count = by_address.entry(address).or_default();
        if *count >= most {
            return Err(TooMany);
        }
        *count += 1;
        Ok(Some(AddressSlot { by_address: &self.by_address, address }))
    }

    /// Rejects a connection beyond a limit, quickly: it holds a file descriptor.
    async fn reject_connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        kind: ListenerKind,
        policy: &Policy,
    ) {
        if policy.tls.is_some() && kind != ListenerKind::Redirect {
            // A handshake would cost more than the connection is worth.
            return;
        }
        let mut client = ClientConnection::plain(stream, peer);
        // Closing with unread data would reset the connection.
        let _ = timeout(REJECT_TIMEOUT, client.read_more()).await;
        let _ =
            timeout(REJECT_TIMEOUT, self.gateway.reject(&mut client, &Rejection::Overloaded)).await;
    }
}

/// Whether an unencrypted connection begins as HTTP/2 (RFC 9113, section 3.3); `None` at the
/// deadline. The bytes that were read stay in the client's buffer.
async fn begins_as_http2(client: &mut ClientConnection) -> Option<bool> {
    loop {
        if client.held.starts_with(PREFACE) {
            return Some(true);
        }
        if !PREFACE.starts_with(&client.held) {
            return Some(false);
        }
        match client.read_more().await? {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Some(false),
        }
    }
}

/// The connection has no PROXY header that can be used.
struct NoProxyHeader;

/// The address has reached its limit of connections.
struct TooMany;

/// Counts a connection of an address until it is dropped.
struct AddressSlot<'a> {
    by_address: &'a Mutex<HashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl Drop for AddressSlot<'_> {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock();
        if let Entry::Occupied(mut entry) = by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}
