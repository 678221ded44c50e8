//! The one entry point of every public connection.
//!
//! Shakes hands where TLS is on, then reads the head of each HTTP/1 request under one
//! deadline and one cap and judges it (`head`) before pingora sees a byte of it; what
//! passes goes to the proxy, which gives the connection back for the next request. HTTP/2
//! is framed by pingora's own protocol layer. It does not know what a request is for.

mod connection;
mod http2;
mod proxy_protocol;
mod redirect;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use self::connection::Connection;
use self::proxy_protocol::Source;
use crate::answer::Answer;
use crate::config::LimitsSection;
use crate::deadline::Deadline;
use crate::head::{self, Head};
use crate::policy::{Policies, Policy, Process};
use crate::progress::Pace;
use crate::proxy::lane::Lane;
use crate::proxy::{Gateway, HandedOver, Plain};
use crate::rate_limit::network;
use crate::rejection::Rejection;

/// Tries of one request, the first included. Each is another server, or the same one after
/// an idle connection turned out to be closed.
const MOST_TRIES: usize = 8;

/// Connections to services that are kept for the next request, for each worker; never more than
/// half as many as clients may have, for descriptors are shared. With fewer than are asked for
/// at once, the others would be opened and closed with each request.
const MOST_IDLE: usize = 1024;

/// For each step of turning a connection away.
const TURN_AWAY: Duration = Duration::from_millis(100);

/// Serves public connections.
pub struct Edge {
    proxy: Arc<HttpProxy<Gateway>>,
    lane: Arc<Lane>,
    /// Whether connections of HTTP/1 take the lane.
    takes_lane: AtomicBool,
    policies: Arc<Policies>,
    process: Arc<Process>,
    /// One for each connection that is served.
    permits: Semaphore,
    /// Connections by address, where that is limited. Never more than there are permits.
    by_address: Mutex<HashMap<IpAddr, usize>>,
    /// Whether it was said that a balancer is not what the configuration takes it for.
    odd_balancer: Once,
}

/// What a listener expects of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// A handshake of TLS or a request.
    Client,
    /// A balancer that first says whose connection it is.
    ProxyProtocol,
    /// A request that is not encrypted, and should be.
    Redirect,
}

/// How the wait for a head ended.
enum Wait {
    /// With the policy that it was judged by, and that is its request's.
    Head(Head, Arc<Policy>),
    Refused(Rejection),
    /// The client left, or was idle for too long, or the gateway is closing.
    Over,
}

impl Edge {
    pub fn new(process: Arc<Process>, policies: Arc<Policies>, threads: usize) -> Self {
        let max_connections = policies.current().limits.max_connections;
        let conf = ServerConf {
            threads,
            max_retries: MOST_TRIES,
            // pingora has one pool, of this many for each thread.
            upstream_keepalive_pool_size: (max_connections / 2 / threads).clamp(1, MOST_IDLE),
            ..ServerConf::default()
        };
        let most_idle = conf.upstream_keepalive_pool_size;
        let gateway = Gateway::new(process.clone(), policies.clone());
        Self {
            proxy: Arc::new(pingora::proxy::http_proxy(&Arc::new(conf), gateway)),
            lane: Arc::new(Lane::new(process.clone(), policies.clone(), most_idle)),
            takes_lane: AtomicBool::new(true),
            permits: Semaphore::new(max_connections),
            by_address: Mutex::default(),
            odd_balancer: Once::new(),
            policies,
            process,
        }
    }

    /// Serves a connection to its end.
    pub async fn serve(&self, mut stream: TcpStream, peer: SocketAddr, opening: Opening) {
        // Answers are flushed whole; waiting for more to send would only delay them.
        let _ = stream.set_nodelay(true);
        let mut closing = self.process.lifecycle.closing();
        let policy = self.policies.current();
        let Ok(_permit) = self.permits.try_acquire() else {
            return self.turn_away(stream, peer, opening, &policy).await;
        };
        let peer = match opening {
            Opening::Client | Opening::Redirect => peer,
            Opening::ProxyProtocol => {
                let found = tokio::select! {
                    found = self.peer_behind(&mut stream, peer, &policy) => found,
                    () = closed(&mut closing) => return,
                };
                let Ok(peer) = found else { return };
                peer
            }
        };
        let Ok(_share) = self.share(peer.ip().to_canonical(), &policy) else {
            return self.turn_away(stream, peer, opening, &policy).await;
        };
        // No connection may hold a policy for as long as it lives.
        let (limits, pace) = (policy.limits.clone(), pace(&policy.limits));
        let (tls, h2c) = (policy.tls.clone(), policy.h2c);
        drop(policy);
        if opening == Opening::Redirect {
            let connection = Connection::plain(stream, peer, pace);
            // Boxed as HTTP/2 is below.
            return Box::pin(self.redirect(connection, peer, closing)).await;
        }
        let Some(tls) = tls else {
            let mut connection = Connection::plain(stream, peer, pace);
            if !h2c {
                return self.serve_http1(connection, peer, closing, None).await;
            }
            let deadline = Instant::now() + limits.header_timeout;
            let preface = Self::begins_as_http2(&mut connection);
            let begins_as_http2 = tokio::select! {
                begins = timeout_at(deadline, preface) => begins,
                () = closed(&mut closing) => return,
            };
            return match begins_as_http2 {
                // Boxed, or every connection would have the room that one of HTTP/2 needs.
                Ok(true) => Box::pin(self.serve_http2(connection, peer, closing, limits)).await,
                Ok(false) => self.serve_http1(connection, peer, closing, Some(deadline)).await,
                Err(_) => {}
            };
        };
        let shaken = tokio::select! {
            shaken = tls.accept(stream) => shaken,
            () = closed(&mut closing) => return,
        };
        let Some(stream) = shaken else { return };
        let connection = Connection::tls(stream, peer, pace);
        if connection.has_agreed_on_http2() {
            Box::pin(self.serve_http2(connection, peer, closing, limits)).await;
        } else {
            self.serve_http1(connection, peer, closing, None).await;
        }
    }

    /// Has connections of HTTP/1 take the lane, or pingora's proxy.
    pub fn take_lane(&self, takes: bool) {
        self.takes_lane.store(takes, Ordering::Relaxed);
    }

    async fn serve_http1(
        &self,
        connection: Connection,
        peer: SocketAddr,
        closing: watch::Receiver<bool>,
        mut begun: Option<Instant>,
    ) {
        if self.takes_lane.load(Ordering::Relaxed) {
            let (transport, held) = connection.into_parts();
            return self.lane.serve(transport, held, peer, closing, begun).await;
        }
        let mut connection = Box::new(connection);
        // Made once for all requests of the connection: each waits for both.
        let mut watched = closing.clone();
        let mut closed = pin!(closed(&mut watched));
        let mut deadline = Deadline::new();
        for number in 1.. {
            let is_first = number == 1;
            let wait = self.wait_for_head(&mut connection, &mut deadline, is_first, begun.take());
            let wait = tokio::select! {
                biased;
                wait = wait => wait,
                () = &mut closed => return,
            };
            let (head, policy) = match wait {
                Wait::Head(head, policy) => (head, policy),
                Wait::Refused(rejection) => {
                    return self.refuse(*connection, peer, &rejection).await;
                }
                Wait::Over => return,
            };
            let tunnel = head.asks_websocket.then(|| connection.tunnel());
            let Ok(request) = connection.begin_request(head.length, head.framing) else {
                let malformed = Rejection::BadRequest("the body is malformed");
                return self.refuse(*connection, peer, &malformed).await;
            };
            let mut session = ServerSession::new_http1(connection);
            session.set_pipelined_prefix(request);
            if number >= policy.limits.max_requests_per_connection {
                session.set_keepalive_reuses_remaining(Some(0));
            }
            let handed_over = HandedOver { policy, tunnel: tunnel.clone() };
            session.set_connection_user_context(Some(Box::new(handed_over)));
            let mut served = self.proxy.process_new_http(session, &closing);
            let reused = match tunnel {
                None => served.as_mut().await,
                // Whatever it waits for, a tunnel that was cut is over.
                Some(tunnel) => tokio::select! {
                    reused = served.as_mut() => reused,
                    () = tunnel.after_cut() => return,
                },
            };
            let Some(reused) = reused else { return };
            let (stream, _) = reused.consume();
            match stream.into_any().downcast::<Connection>() {
                Ok(returned) => connection = returned,
                // pingora gives back what it was given.
                Err(_) => return,
            }
        }
    }

    /// Waits for a whole head that is beyond doubt. An idle connection may take its time;
    /// from its first byte on a head has `limits.header_timeout`, as has the first head of
    /// a connection from the start. Of one that has been begun the deadline is given.
    async fn wait_for_head(
        &self,
        connection: &mut Connection,
        deadline: &mut Deadline,
        is_first: bool,
        begun: Option<Instant>,
    ) -> Wait {
        let mut policy = None;
        for _ in 0..2 {
            // An empty line after a request is an old client's habit, and no request yet.
            connection.skip_blank_line();
            if !connection.held().is_empty() {
                break;
            }
            let is_idle = !is_first && policy.is_none();
            deadline.set(
                Instant::now() + {
                    let limits = &self.policies.current().limits;
                    if is_idle { limits.idle_timeout } else { limits.header_timeout }
                },
            );
            if !matches!(deadline.limit(connection.read_more()).await, Some(Ok(1..))) {
                return Wait::Over;
            }
            policy = Some(self.policies.current());
        }
        let policy = policy.unwrap_or_else(|| self.policies.current());
        let limits = &policy.limits;
        let is_health = |path: &[u8]| policy.routes.is_health(path);
        let mut end = begun;
        loop {
            match head::judge(connection.held(), policy.head_limits, is_health) {
                Ok(Some(head)) => return Wait::Head(head, policy),
                Ok(None) => {}
                Err(rejection) => return Wait::Refused(rejection),
            }
            deadline.set(*end.get_or_insert_with(|| Instant::now() + limits.header_timeout));
            match deadline.limit(connection.read_more()).await {
                Some(Ok(1..)) => {}
                Some(_) => return Wait::Over,
                None => return Wait::Refused(Rejection::RequestTimeout),
            }
        }
    }

    /// Whose connection it is by the word of a balancer, if that may be believed.
    async fn peer_behind(
        &self,
        stream: &mut TcpStream,
        balancer: SocketAddr,
        policy: &Policy,
    ) -> Result<SocketAddr, Unbelievable> {
        let is_trusted = policy.trusted_proxies.contains(balancer.ip().to_canonical());
        let header = async {
            match proxy_protocol::read(stream).await {
                Ok(Source::Client(source)) => Ok(source),
                Ok(Source::Balancer) => Ok(balancer),
                // Nobody's word counts less, and nobody is trusted by this address.
                Ok(Source::Unknown) => Ok(SocketAddr::from(([0, 0, 0, 0], 0))),
                // A probe for an open port is no mistake of anybody's.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(None),
                Err(_) => Err(Some("does not begin its connections with a PROXY header")),
            }
        };
        let read = if is_trusted {
            timeout(policy.limits.header_timeout, header).await.unwrap_or(Err(None))
        } else {
            Err(Some("is not in server.trusted_proxies"))
        };
        read.map_err(|mistake| {
            if let Some(mistake) = mistake {
                self.odd_balancer.call_once(|| {
                    tracing::warn!(
                        peer = %balancer.ip(),
                        "who connects to a listener of server.proxy_protocol {mistake}, and is \
                         refused; this is said once"
                    );
                });
            }
            Unbelievable
        })
    }

    /// One more connection of an address, unless it has as many as it may.
    fn share(&self, address: IpAddr, policy: &Policy) -> Result<Option<Share<'_>>, TooMany> {
        let Some(most) = policy.limits.max_connections_per_address else { return Ok(None) };
        if policy.trusted_proxies.contains(address) {
            return Ok(None);
        }
        let address = network(address);
        let mut by_address = lock(&self.by_address);
        let count = by_address.entry(address).or_default();
        if *count >= most {
            return Err(TooMany);
        }
        *count += 1;
        Ok(Some(Share { by_address: &self.by_address, address }))
    }

    /// Answers a connection beyond the cap, quickly: it holds a descriptor.
    async fn turn_away(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        opening: Opening,
        policy: &Policy,
    ) {
        if policy.tls.is_some() && opening != Opening::Redirect {
            // A handshake would cost more than the connection is worth.
            return;
        }
        let mut connection = Connection::plain(stream, peer, pace(&policy.limits));
        // A request that is there already, unread, would reset the connection.
        let _ = timeout(TURN_AWAY, connection.read_more()).await;
        let _ = timeout(TURN_AWAY, self.refuse(connection, peer, &Rejection::Overloaded)).await;
    }

    /// Answers a head that is no request, and ends its connection.
    async fn refuse(&self, connection: Connection, peer: SocketAddr, rejection: &Rejection) {
        self.end_with(connection, peer, &Plain::NONE, Err(rejection.clone())).await;
    }

    /// Answers without the proxy, and ends the connection.
    async fn end_with(
        &self,
        connection: Connection,
        peer: SocketAddr,
        request: &Plain<'_>,
        answer: Result<Answer, Rejection>,
    ) {
        let (policy, client) = (self.policies.current(), peer.ip().to_canonical());
        let bytes = request.answer(&self.process, &policy, client, answer);
        drop(policy);
        connection.end_with(&bytes).await;
    }
}

/// How fast a connection must be.
fn pace(limits: &LimitsSection) -> Pace {
    Pace {
        body_timeout: limits.body_timeout,
        write_timeout: limits.write_timeout,
        min_body_rate: limits.min_body_rate,
    }
}

/// A connection begins as none may.
struct Unbelievable;

/// An address has as many connections as it may.
struct TooMany;

/// A connection of an address, until it is dropped.
struct Share<'a> {
    by_address: &'a Mutex<HashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        let mut by_address = lock(self.by_address);
        if let Entry::Occupied(mut entry) = by_address.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Nothing panics while it holds the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves when idle connections must end.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = closing.wait_for(|closing| *closing).await;
}
