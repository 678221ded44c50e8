//! The attempts of one request: which server is next, and whether a failed attempt is followed by
//! another.
//!
//! A request is sent again only if that cannot do anything twice: after a failure to connect, when
//! nothing was sent, or if its method is idempotent (RFC 9110, section 9.2.2). The whole body must
//! still be held, and no byte of a response may have been received.

use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use super::Gateway;
use super::body::Transfer;
use super::client::ClientConnection;
use super::failure::{Failed, Failures, Patience, Stop};
use super::forward::{ForwardedRequest, Response};
use super::request::Request;
use crate::config::{Balance, Protocol, Retry, RetryOn};
use crate::message::request_header::Framing;
use crate::upstream::connection::{ConnectError, Connection};
use crate::upstream::server::Server;
use crate::upstream::{Choice, Outcome, Pool, RetryOutcome, Trial, Unavailable};

/// Bytes of a request body that are held while they are sent.
const MOST_HELD: u64 = 64 << 10;

/// A connection that was idle for less was open when the worker last looked, very probably.
const IDLE: Duration = Duration::from_millis(10);

/// The attempts of one request.
pub(super) struct Attempts {
    pool: Arc<Pool>,
    /// The hash that chooses the server; 0 if the upstream needs none.
    key: u64,
    retry: Retry,
    on: RetryOn,
    /// Attempts that may follow.
    left: u32,
    /// The servers of the failed attempts.
    tried: Vec<Arc<Server>>,
    /// Whether only new connections are used: an idle one may be closed as well.
    needs_new: bool,
    /// Whether to wait for a place among the connections.
    waits: bool,
    /// When the last attempt began.
    began: Instant,
    /// The current time, if it is known without a look at the clock.
    now: Option<Instant>,
    /// Set if the last attempt decides whether its server returns.
    trial: Option<Trial>,
    is_retried: bool,
    /// How the last attempt ended, as far as it says something about the server.
    ended: Option<RetryOutcome>,
}

impl Drop for Attempts {
    fn drop(&mut self) {
        let is_refused = self.ended == Some(RetryOutcome::NoBudget);
        if let Some(ended) = self.ended.filter(|_| self.is_retried || is_refused) {
            self.pool.retried(ended);
        }
    }
}

impl Attempts {
    /// Sets the timeouts of a request, and prepares its attempts. `None` is an internal error.
    pub fn new(request: &mut Request) -> Option<Self> {
        let (pool, route) = (request.pool()?.clone(), request.route()?);
        let (section, timeouts) = (pool.section(), &route.timeouts);
        let retry = section.retry.with(&route.retry);
        let total = request.timeout();
        let patience = Patience {
            connect: timeouts.connect.unwrap_or(section.connect_timeout),
            read: timeouts.read.unwrap_or(section.read_timeout),
            write: timeouts.write.unwrap_or(section.write_timeout),
            per_try: retry.per_try_timeout.unwrap_or_default(),
            total: total.unwrap_or_default(),
        };
        let key = match &section.balance {
            Balance::Hash(of) => request.hash_key(of),
            Balance::RoundRobin | Balance::LeastRequests => 0,
        };
        pool.count_request();
        request.patience = patience;
        request.deadline = total.and_then(|time| request.started.checked_add(time));
        Some(Self {
            key,
            on: retry.on(),
            left: retry.attempts,
            retry,
            tried: Vec::new(),
            needs_new: false,
            waits: true,
            began: request.started,
            now: (!request.may_have_waited()).then_some(request.started),
            trial: None,
            is_retried: false,
            ended: None,
            pool,
        })
    }

    pub fn protocol(&self) -> Protocol {
        self.pool.section().protocol
    }

    /// Bytes of the request's body to hold, so that it can be sent again.
    pub fn most_held(&self, request: &Request) -> u64 {
        // A server may refuse an HTTP/2 stream of any method.
        let is_http2 = self.protocol() == Protocol::Http2;
        let is_possible = self.left > 0 && (request.method.is_idempotent() || is_http2);
        if is_possible { MOST_HELD } else { 0 }
    }

    /// Bytes of a body of unknown length that are collected before the first attempt; 0: none.
    pub fn most_collected(&self, request: &Request) -> u64 {
        let max_body = request.route().map_or(0, |route| route.max_body);
        self.pool.section().buffer_body.min(max_body)
    }

    /// When the request of an attempt was sent, if it is sent at once.
    pub fn sent_at(&self, forwarded: &ForwardedRequest<'_>) -> Option<Instant> {
        let is_at_once = forwarded.connection.is_reused && forwarded.upload.is_received();
        is_at_once.then_some(self.began)
    }

    /// Records how an attempt has ended.
    pub fn record(&mut self, response: &Result<Response, Stop>, forwarded: &ForwardedRequest<'_>) {
        let ForwardedRequest { request, upload, connection, .. } = forwarded;
        let server = connection.server();
        match response {
            Ok(response) => {
                let status = response.header.status;
                let took = response.received_at - self.began;
                self.ended(server, Some(Outcome::Status(status)), took, || Cow::Borrowed(""));
            }
            Err(Stop::Failed(failed)) => {
                if failed.outcome() == Some(Outcome::TimedOut) {
                    connection.io.timed_out();
                }
                if matches!(failed, Failed::Closed | Failed::Write(_)) && !connection.has_received {
                    connection.was_closed(self.began);
                }
                match failed.outcome() {
                    Some(outcome) if is_excused(failed, outcome, upload) => self.excused(outcome),
                    outcome => {
                        let cause = || failed.cause(&request.patience);
                        self.ended(server, outcome, self.began.elapsed(), cause);
                    }
                }
            }
            Err(_) => self.ended(server, None, Duration::ZERO, || Cow::Borrowed("")),
        }
    }

    fn ended(
        &mut self,
        server: &Arc<Server>,
        outcome: Option<Outcome>,
        took: Duration,
        cause: impl FnOnce() -> Cow<'static, str>,
    ) {
        self.ended = outcome.map(|outcome| match outcome {
            Outcome::Status(status) if !self.on.has_status(status) => RetryOutcome::Ok,
            _ => RetryOutcome::Failed,
        });
        self.pool.report(server, self.trial.take(), outcome, took, cause);
    }

    /// Records an attempt whose failure says nothing about the server.
    fn excused(&mut self, outcome: Outcome) {
        self.ended = Some(RetryOutcome::Failed);
        self.trial = None;
        self.pool.excuse(outcome);
    }

    /// Whether the request is sent again after this outcome.
    pub fn may_repeat(
        &mut self,
        response: &Result<Response, Stop>,
        forwarded: &ForwardedRequest<'_>,
    ) -> bool {
        let is_on = match response {
            Ok(response) => self.on.has_status(response.header.status),
            Err(Stop::Failed(failed)) => match failed {
                // Nothing was done. A server that has sent an informational response has done
                // something, whatever it says.
                Failed::NotProcessed => {
                    return self.on.connect
                        && self.left > 0
                        && !forwarded.connection.has_received
                        && forwarded.upload.can_repeat();
                }
                Failed::Closed | Failed::Write(_) => {
                    self.on.reset && !forwarded.connection.has_received
                }
                Failed::NoFirstByte => self.on.timeout,
                _ => false,
            },
            Err(_) => false,
        };
        let may_repeat = is_on
            && self.left > 0
            && forwarded.request.method.is_idempotent()
            && forwarded.upload.can_repeat();
        if may_repeat && !self.pool.take_retry(self.retry.budget) {
            self.ended = Some(RetryOutcome::NoBudget);
            return false;
        }
        may_repeat
    }

    /// A server for the next attempt, unless others wait for one.
    fn choose(&mut self) -> Result<Choice, Unavailable> {
        if self.pool.has_queue() {
            self.began = self.take_now();
            return Err(Unavailable::Full);
        }
        self.choose_now()
    }

    fn choose_now(&mut self) -> Result<Choice, Unavailable> {
        self.began = self.take_now();
        self.pool.choose(&self.tried, self.needs_new, self.key, self.began)
    }

    fn take_now(&mut self) -> Instant {
        self.now.take().unwrap_or_else(Instant::now)
    }

    /// The request has waited for something.
    pub fn has_waited(&mut self) {
        self.now = None;
    }

    /// Logs a failed attempt that another one follows. If there is only one server, the last
    /// failure is logged for the whole request.
    pub fn log(&self, failures: &Failures, request: &Request, failed: &Failed) {
        if self.pool.has_several() {
            failures.log_failed_attempt(&request.failure(failed));
        }
    }

    /// Prepares another attempt after one to `server`. `waits`: for a place among the connections,
    /// if there is none.
    pub fn repeat(&mut self, server: Arc<Server>, waits: bool) {
        self.tried.push(server);
        self.needs_new = true;
        self.is_retried = true;
        self.waits = waits;
        self.left = self.left.saturating_sub(1);
    }
}

impl Gateway {
    /// Connects to the next server, and to another one if that fails.
    pub(super) async fn connect(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
        attempts: &mut Attempts,
    ) -> Result<Connection, Stop> {
        let mut failed = None;
        loop {
            // A client can set any deadline (`grpc-timeout`). A stream that is begun and reset at
            // once would be an attack on the connection that others share.
            if request.deadline.is_some_and(|end| end <= Instant::now()) {
                return Err(Failed::TimedOut.into());
            }
            let choice = match attempts.choose() {
                Ok(choice) => choice,
                Err(Unavailable::Full) if attempts.waits => {
                    Box::pin(wait(client, request, attempts)).await?
                }
                Err(Unavailable::Full) => return Err(Failed::QueueFull.into()),
                Err(Unavailable::NoServer) => {
                    return Err(failed.unwrap_or(Failed::NoServer).into());
                }
            };
            let Choice { server, connection, lease, trial } = choice;
            (attempts.trial, attempts.ended) = (trial, None);
            request.is_reused = connection.is_some();
            if let Some(mut connection) = connection {
                if !request.method.is_idempotent()
                    && !is_open(&mut connection, attempts.began).await
                {
                    attempts.trial = None;
                    attempts.needs_new = true;
                    continue;
                }
                request.server = Some(server);
                return Ok(announced(connection, request));
            }
            request.server = Some(server.clone());
            let connect = request.patience.connect;
            let left = request.deadline.map(|end| end.saturating_duration_since(attempts.began));
            let limit = left.map_or(connect, |left| left.min(connect));
            // Boxed: its future is large, and new connections are rare.
            let needs_new = attempts.tried.iter().any(|other| Arc::ptr_eq(other, &server));
            match Box::pin(attempts.pool.open(&server, lease, needs_new, limit)).await {
                Ok(connection) => {
                    request.is_reused = connection.is_reused;
                    return Ok(announced(connection, request));
                }
                Err(error) => {
                    if left.is_some_and(|left| left <= connect)
                        && matches!(error, ConnectError::TimedOut(_) | ConnectError::TlsTimedOut(_))
                    {
                        return Err(Failed::TimedOut.into());
                    }
                    let why = Failed::Connect(error);
                    let took = attempts.began.elapsed();
                    attempts.ended(&server, why.outcome(), took, || why.cause(&request.patience));
                    if attempts.left == 0 || !attempts.on.connect {
                        return Err(why.into());
                    }
                    attempts.log(&self.failures, request, &why);
                    failed = Some(why);
                    attempts.left -= 1;
                    attempts.is_retried = true;
                    attempts.tried.push(server);
                }
            }
        }
    }
}

/// Whether a failure says nothing about the server: it refused a stream, as it may at any time, or
/// it gave up on a client that stalls.
fn is_excused(failed: &Failed, outcome: Outcome, upload: &Transfer) -> bool {
    matches!(failed, Failed::NotProcessed) || outcome == Outcome::Reset && upload.has_stalled()
}

/// Whether an idle connection is still open, as far as that can be known. A request that is not
/// idempotent needs one: it cannot be sent again.
async fn is_open(connection: &mut Connection, now: Instant) -> bool {
    if connection.may_be_closed(now) {
        return false;
    }
    if connection.was_idle_for(now) < IDLE {
        return true;
    }
    // A worker with much to do does not see at once that a connection was closed: the runtime looks
    // for events of sockets between tasks, and does so before it continues this one.
    tokio::task::yield_now().await;
    connection.is_silent()
}

/// A connection that knows what will be sent on it.
fn announced(mut connection: Connection, request: &Request) -> Connection {
    let is_bodyless = request.header.framing == Framing::Length(0);
    let accepts_trailers = request.header.accepts_trailers || request.is_grpc;
    connection.io.announce(is_bodyless, accepts_trailers);
    connection
}

/// Waits until a server has a place for the request, or its client leaves.
async fn wait(
    client: &mut ClientConnection,
    request: &Request,
    attempts: &mut Attempts,
) -> Result<Choice, Stop> {
    let mut waiting = attempts.pool.wait().ok_or(Failed::QueueFull)?;
    let time = attempts.pool.section().pending_timeout;
    let end = attempts.began + time;
    let total = request.deadline.filter(|total| *total < end);
    loop {
        client.deadline.set(total.unwrap_or(end));
        poll_fn(|cx| {
            if waiting.poll_freed(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            if client.poll_disconnect(cx).is_ready() {
                return Poll::Ready(Err(Stop::Disconnected));
            }
            client.deadline.poll_over(cx).map(|()| {
                Err(match total {
                    Some(_) => Failed::TimedOut.into(),
                    None => Failed::NoPlace(time).into(),
                })
            })
        })
        .await?;
        match attempts.choose_now() {
            Ok(choice) => return Ok(choice),
            Err(Unavailable::Full) => {}
            Err(Unavailable::NoServer) => return Err(Failed::NoServer.into()),
        }
    }
}
