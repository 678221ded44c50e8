//! Handles requests, from the first byte of the request to the last of its response.
//!
//! [`Gateway::serve`] serves the requests of an HTTP/1 connection one after another, and
//! [`Gateway::serve_http2`] those of an HTTP/2 connection concurrently. [`Gateway::handle`]
//! handles one request: `judge` decides whether the gateway responds itself (`endpoints`, or a
//! fixed response) or forwards the request to a server (`forward`; `tunnel` after an upgrade). If a
//! request ends early, [`Gateway::stop`] decides on the response; `failure` has the causes. Each
//! request is counted and logged exactly once, even if its code panics.
//!
//! `connection` is the loop over the requests of an HTTP/1 connection, `http2` the same for HTTP/2,
//! and `request` the state of one request. `client` and `stream` are the client's side, and
//! `attempts` chooses the servers. `compose` writes headers, `trailers` writes trailers, and `body`
//! forwards bodies, in memory from `buffers`. `grpc` is what differs for gRPC clients, and `jar`
//! for services whose cookies are kept here. `unrouted` responds to requests without a route.

mod attempts;
pub mod body;
mod buffered;
mod buffers;
mod client;
mod compose;
mod connection;
mod endpoints;
mod failure;
mod forward;
mod grpc;
mod http2;
mod jar;
mod judge;
mod request;
mod stream;
mod trailers;
mod tunnel;
mod unrouted;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::FutureExt;
use http::header::EXPECT;
use tokio::time::Instant;

use self::body::{BodySource, BodyTarget, Limits, Transfer};
pub use self::client::{ClientConnection, NextRequest};
use self::connection::After;
pub use self::connection::closed;
pub use self::endpoints::health;
use self::failure::{Failures, Stop};
use self::request::Request;
pub use self::unrouted::UnroutedRequest;
use crate::message::chunked::Chunked;
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::message::request_header::Framing;
use crate::policy::{Policies, Process};

/// Maximum bytes of a body that are read and discarded so that the connection can be reused.
const MOST_SKIPPED: u64 = 64 << 10;

/// The longest time for reading and discarding them.
const SKIP: Duration = Duration::from_secs(5);

/// Serves client connections.
pub struct Gateway {
    process: Arc<Process>,
    policies: Arc<Policies>,
    failures: Failures,
    /// Bytes of `limits.max_buffered` in use.
    buffered: AtomicU64,
    /// Idle connections to services that each worker keeps.
    most_idle: usize,
}

impl Gateway {
    pub fn new(process: Arc<Process>, policies: Arc<Policies>, most_idle: usize) -> Self {
        Self {
            failures: Failures::new(process.clock.clone()),
            process,
            policies,
            buffered: AtomicU64::new(0),
            most_idle,
        }
    }

    /// Serves one request, then counts and logs it. A panic fails only this request.
    async fn serve_request(&self, client: &mut ClientConnection, request: &mut Request) -> After {
        let handled = AssertUnwindSafe(self.handle(client, request)).catch_unwind().await;
        let after = match handled {
            Ok(after) => after,
            Err(_) => Box::pin(self.panicked(client, request)).await,
        };
        request.record();
        after
    }

    /// Serves one request, from its header to the end of its response.
    async fn handle(&self, client: &mut ClientConnection, request: &mut Request) -> After {
        let served = match self.judge(client, request).await {
            Ok(None) => self.forward(client, request).await,
            Ok(Some(response)) => self.respond(client, request, response).await,
            Err(stop) => Err(stop),
        };
        match served {
            Ok(after) => after,
            Err(stop) => self.stop(client, request, stop).await,
        }
    }

    /// Sends the client the reason why its request failed, unless a response has begun.
    async fn stop(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
        stop: Stop,
    ) -> After {
        let rejection = match stop {
            Stop::Disconnected => return After::Close,
            Stop::Rejected(rejection) => rejection,
            Stop::Failed(failed) => {
                self.failures.log(&request.failure(&failed));
                failed.rejection()
            }
        };
        let response = request.rejection_response(&rejection);
        request.rejection = Some(rejection);
        if request.status.is_some() {
            // Part of a response has been sent: the client can only see that it is truncated.
            return After::Linger;
        }
        // The rest of a body that was being forwarded is not read, so the connection cannot be
        // reused.
        request.closes |= request.is_begun;
        self.respond(client, request, response).await.unwrap_or(After::Close)
    }

    /// Sends one of the gateway's own responses. The connection is reused if the whole request has
    /// been received, or is received within [`SKIP`].
    async fn respond(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
        response: OwnResponse,
    ) -> Result<After, Stop> {
        let mut rest = rest_of_body(request);
        // The part of the body that has already been received.
        if rest.take(&mut client.held, &mut |_, _| Ok(())).is_err() {
            request.closes = true;
        }
        rest.output.clear();
        let is_long = matches!(request.header.framing, Framing::Length(n) if n > MOST_SKIPPED);
        // On HTTP/2 the next request does not have to wait for the rest.
        let is_whole = rest.is_received() || request.is_http2;
        // A client that waits for 100 (Continue) may never send its body.
        let waits = request.lines.first(&EXPECT).is_some();
        request.closes |= self.process.lifecycle.is_draining() || !is_whole && (is_long || waits);
        request.status = Some(response.status);
        let mut out = buffers::take();
        let header = compose::own_response(request, response, &mut out);
        let body = out.len() - header;
        let sent = client.respond(&out, header, request.policy.limits.write_timeout).await;
        buffers::give(out);
        sent.map_err(|_| Stop::Disconnected)?;
        request.bytes_out = body as u64;
        match (is_whole, request.closes) {
            (true, false) => Ok(After::KeepAlive),
            (true, true) if client.held.is_empty() => Ok(After::Close),
            (_, true) => Ok(After::Linger),
            (false, false) => Ok(skip(client, rest).await),
        }
    }

    /// Rejects a request header that cannot be parsed, and closes the connection.
    pub async fn reject(&self, client: &mut ClientConnection, rejection: &Rejection) {
        self.respond_and_close(client, &UnroutedRequest::UNPARSED, Err(rejection.clone())).await;
    }

    /// Responds to a request without a route, and closes the connection.
    pub async fn respond_and_close(
        &self,
        client: &mut ClientConnection,
        request: &UnroutedRequest<'_>,
        response: Result<OwnResponse, Rejection>,
    ) {
        let policy = self.policies.current();
        let bytes = request.respond(&self.process, &policy, client.address, response);
        let patience = policy.limits.write_timeout;
        drop(policy);
        let sent = client.send(&bytes, patience).await;
        if sent.is_ok() {
            client.close(true).await;
        }
    }

    /// Responds with 500 to a request that panicked, unless a response has begun.
    async fn panicked(&self, client: &mut ClientConnection, request: &mut Request) -> After {
        tracing::error!(request_id = request.id_text(), "a request panicked");
        let rejection = Rejection::InternalError;
        let response = request.rejection_response(&rejection);
        request.rejection = Some(rejection);
        request.closes = true;
        if request.status.is_some() {
            return After::Reset;
        }
        self.respond(client, request, response).await.unwrap_or(After::Close)
    }
}

/// The part of a request's body that has not been read.
fn rest_of_body(request: &Request) -> Transfer {
    let source = match request.header.framing {
        // An endpoint has read it.
        _ if request.is_read => BodySource::Length(0),
        Framing::Length(length) => BodySource::Length(length),
        Framing::Chunked => BodySource::Chunked(Chunked::new()),
    };
    let limits = Limits { bytes: MOST_SKIPPED, ..Limits::NONE };
    Transfer::new(source, BodyTarget::Plain, limits, Vec::new())
}

/// Reads and discards the rest of a body.
async fn skip(client: &mut ClientConnection, mut rest: Transfer) -> After {
    client.deadline.set(Instant::now() + SKIP);
    while !rest.is_received() {
        if !matches!(client.read_more().await, Some(Ok(1..))) {
            return After::Linger;
        }
        if rest.take(&mut client.held, &mut |_, _| Ok(())).is_err() {
            return After::Linger;
        }
        rest.output.clear();
    }
    After::KeepAlive
}
