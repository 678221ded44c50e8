//! The life of a request.
//!
//! [`Gateway::serve`] takes a connection of HTTP/1 from its first head to its end, and
//! [`Gateway::serve_http2`] one of HTTP/2. [`Gateway::exchange`] is what
//! becomes of one request: it is judged (`judge`), answered here or sent to a server (`forward`),
//! and every reason to stop becomes a response in one place.

pub mod body;
mod buffers;
mod client;
mod compose;
mod endpoints;
mod failure;
mod forward;
mod http2;
mod judge;
mod plain;
mod request;
mod service;
mod stream;
mod tunnel;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::FutureExt;
use http::header::EXPECT;
use pingora::connectors::{ConnectorOptions, TransportConnector};
use pingora::server::configuration::ServerConf;
use tokio::sync::watch;
use tokio::time::Instant;

use self::body::{Limits, Relay, Source, Target};
pub use self::client::{Client, Wait};
pub use self::endpoints::health;
use self::failure::{Failures, Stop};
pub use self::plain::Plain;
use self::request::Request;
use crate::answer::Answer;
use crate::chunked::Chunked;
use crate::head::Framing;
use crate::header::Headers;
use crate::policy::{Policies, Process};
use crate::rejection::Rejection;

/// Of a body that nobody reads, so much is waited for, so that the connection can go on.
const MOST_SKIPPED: u64 = 64 << 10;

/// For so long.
const SKIP: Duration = Duration::from_secs(5);

/// Serves connections.
pub struct Gateway {
    process: Arc<Process>,
    policies: Arc<Policies>,
    failures: Failures,
    connector: TransportConnector,
    /// What is taken of `limits.max_buffered`.
    buffered: AtomicU64,
    /// Idle connections to services that each worker keeps.
    most_idle: usize,
}

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    GoesOn,
    /// It ends; the client has sent all of its request.
    Closes,
    /// It ends; the client may still be sending.
    Lingers,
    /// It ends before its response did, and only that shows it.
    Resets,
}

/// Resolves when idle connections must end.
pub async fn closed(closing: &mut watch::Receiver<bool>) {
    // The sender lives as long as the process.
    let _ = closing.wait_for(|closing| *closing).await;
}

impl Gateway {
    pub fn new(process: Arc<Process>, policies: Arc<Policies>, most_idle: usize) -> Self {
        let options = ConnectorOptions::from_server_conf(&ServerConf::default());
        Self {
            failures: Failures::new(process.clock.clone()),
            connector: TransportConnector::new(Some(options)),
            process,
            policies,
            buffered: AtomicU64::new(0),
            most_idle,
        }
    }

    /// Serves the requests of a connection. Of a head that has been begun, the deadline is given.
    pub async fn serve(
        &self,
        mut client: Client,
        mut closing: watch::Receiver<bool>,
        mut begun: Option<Instant>,
    ) {
        // Made once for all requests of the connection: each waits for it.
        let mut closed = pin!(closed(&mut closing));
        for number in 1.. {
            let wait = client.next_head(&self.policies, number == 1, begun.take());
            let wait = tokio::select! {
                biased;
                wait = wait => wait,
                () = &mut closed => return,
            };
            let (head, policy) = match wait {
                Wait::Head(head, policy) => (head, policy),
                Wait::Refused(rejection) => return self.refuse(client, &rejection).await,
                Wait::Over => return,
            };
            let is_last = number >= policy.limits.max_requests_per_connection;
            let mut request = Request::new(policy, self.process.clone(), head, &mut client);
            request.closes |= is_last;
            let after = self.serve_request(&mut client, &mut request).await;
            request.recycle(&mut client);
            match after {
                After::GoesOn => {}
                After::Closes => return client.close(false).await,
                After::Lingers => return client.close(true).await,
                After::Resets => return client.reset(),
            }
        }
    }

    /// Serves one request, and writes down how it went. A panic is a failure of this request, and
    /// of no other.
    async fn serve_request(&self, client: &mut Client, request: &mut Request) -> After {
        let exchange = AssertUnwindSafe(self.exchange(client, request)).catch_unwind().await;
        let after = match exchange {
            Ok(after) => after,
            Err(_) => Box::pin(self.panicked(client, request)).await,
        };
        request.record();
        after
    }

    /// One request, from its head to the end of its response.
    async fn exchange(&self, client: &mut Client, request: &mut Request) -> After {
        let served = match self.judge(client, request).await {
            Ok(None) => self.forward(client, request).await,
            Ok(Some(answer)) => self.answer(client, request, answer).await,
            Err(stop) => Err(stop),
        };
        match served {
            Ok(after) => after,
            Err(stop) => self.stop(client, request, stop).await,
        }
    }

    /// Tells the client why its request ends, if it can be told.
    async fn stop(&self, client: &mut Client, request: &mut Request, stop: Stop) -> After {
        let rejection = match stop {
            Stop::Left => return After::Closes,
            Stop::Rejected(rejection) => rejection,
            Stop::Failed(failed) => {
                self.failures.log(&request.failure(&failed));
                failed.rejection()
            }
        };
        let answer = request.refuse(&rejection);
        request.rejection = Some(rejection);
        if request.status.is_some() {
            // Part of a response has gone out: that it breaks off is all that can be told.
            return After::Lingers;
        }
        // Of a body that was on its way to a service nobody knows where it ends.
        request.closes |= request.is_begun;
        self.answer(client, request, answer).await.unwrap_or(After::Closes)
    }

    /// Sends a response of the gateway's own. The connection goes on if all of the request has
    /// come, or comes in a moment.
    async fn answer(
        &self,
        client: &mut Client,
        request: &mut Request,
        answer: Answer,
    ) -> Result<After, Stop> {
        let mut rest = rest_of_body(request);
        // What has come already.
        if rest.take(&mut client.held, &mut |_, _| Ok(())).is_err() {
            request.closes = true;
        }
        rest.output.clear();
        let is_long = matches!(request.head.head.framing, Framing::Length(n) if n > MOST_SKIPPED);
        // On HTTP/2 the next request does not wait for it.
        let is_whole = rest.has_come() || request.is_http2;
        // A client that waits for 100 (Continue) may never send its body.
        let waits = request.lines.first(&EXPECT).is_some();
        request.closes |= self.process.lifecycle.is_draining() || !is_whole && (is_long || waits);
        request.status = Some(answer.status);
        let is_bodyless = request.is_head();
        let body = answer.body.len();
        let mut out = buffers::take();
        let header = compose::answer(request, answer, &mut out);
        let sent = client.respond(&out, header, request.policy.limits.write_timeout).await;
        buffers::give(out);
        sent.map_err(|_| Stop::Left)?;
        request.bytes_out = if is_bodyless { 0 } else { body as u64 };
        match (is_whole, request.closes) {
            (true, false) => Ok(After::GoesOn),
            (true, true) if client.held.is_empty() => Ok(After::Closes),
            (_, true) => Ok(After::Lingers),
            (false, false) => Ok(skip(client, rest).await),
        }
    }

    /// Answers a head that is no request, and ends its connection.
    pub async fn refuse(&self, client: Client, rejection: &Rejection) {
        self.end_with(client, &Plain::NONE, Err(rejection.clone())).await;
    }

    /// Answers a request that has no route, and ends its connection.
    pub async fn end_with(
        &self,
        mut client: Client,
        request: &Plain<'_>,
        answer: Result<Answer, Rejection>,
    ) {
        let policy = self.policies.current();
        let bytes = request.answer(&self.process, &policy, client.address, answer);
        let patience = policy.limits.write_timeout;
        drop(policy);
        let sent = client.send(&bytes, patience).await;
        if sent.is_ok() {
            client.close(true).await;
        }
    }

    /// Answers a request whose exchange panicked, where no response was begun.
    async fn panicked(&self, client: &mut Client, request: &mut Request) -> After {
        tracing::error!(request_id = request.id_text(), "a request panicked");
        let rejection = Rejection::InternalError;
        let answer = request.refuse(&rejection);
        request.rejection = Some(rejection);
        request.closes = true;
        if request.status.is_some() {
            return After::Resets;
        }
        self.answer(client, request, answer).await.unwrap_or(After::Closes)
    }
}

/// What was not read of the body of a request that is answered here.
fn rest_of_body(request: &Request) -> Relay {
    let source = match request.head.head.framing {
        // An endpoint has read it.
        _ if request.is_read => Source::Length(0),
        Framing::Length(length) => Source::Length(length),
        Framing::Chunked => Source::Chunked(Chunked::new()),
    };
    let limits = Limits { bytes: MOST_SKIPPED, ..Limits::NONE };
    Relay::new(source, Target::Plain, limits, Vec::new())
}

/// Waits for the rest of a body that nobody reads.
async fn skip(client: &mut Client, mut rest: Relay) -> After {
    client.deadline.set(Instant::now() + SKIP);
    while !rest.has_come() {
        if !matches!(client.read_more().await, Some(Ok(1..))) {
            return After::Lingers;
        }
        if rest.take(&mut client.held, &mut |_, _| Ok(())).is_err() {
            return After::Lingers;
        }
        rest.output.clear();
    }
    After::GoesOn
}
