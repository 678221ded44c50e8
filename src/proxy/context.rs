//! What is known of one request, and what is written down of it at its end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use http::uri::PathAndQuery;
use pingora::Error;
use pingora::http::ResponseHeader;
use pingora::proxy::Session as HttpSession;
use tokio_util::task::AbortOnDropHandle;

use super::failure::{self, Failure, Patience};
use crate::access_log::{self, Line};
use crate::answer::Answer;
use crate::forwarded::Client;
use crate::identity::AppId;
use crate::login::LoginFacts;
use crate::metrics::Decision;
use crate::policy::{Policy, Process, Verdict};
use crate::progress::Progress;
use crate::rejection::Rejection;
use crate::route::{Endpoint, Route};
use crate::upstream::{Pool, Reuse};
use crate::websocket::Tunnel;
use crate::wechat::ErrCode;

/// What nginx logs for a client that left before its answer.
const CLIENT_LEFT: u16 = 499;

/// The state of one request.
pub struct RequestContext {
    /// The configuration that this request sees from its first byte to its last.
    pub policy: Arc<Policy>,
    process: Arc<Process>,
    pub started: Instant,
    pub request_id: HeaderValue,
    pub client: Client,
    pub endpoint: Endpoint,
    pub verdict: Verdict,
    /// Of a request that was a login.
    pub login: Option<Box<LoginFacts>>,
    /// Index of the servers that the request is for, once it is admitted.
    pub pool: Option<usize>,
    /// Whether a browser asks if it may ask, and the route says what becomes of that.
    pub is_preflight: bool,
    /// The error that was answered, or would have been if the answer had not begun.
    pub rejection: Option<Rejection>,
    /// Servers to which no connection could be made.
    pub tried: Vec<SocketAddr>,
    pub upstream: Option<SocketAddr>,
    /// Whether the connection to it has served a request before; `None` while there is none.
    pub served_before: Option<bool>,
    pub upstream_status: Option<u16>,
    /// Whether the connection to the server may serve another request.
    pub reuse: Reuse,
    /// Bytes of body on their way upstream.
    pub body_bytes: u64,
    /// The switch of the connection, if the request asks to become something else.
    pub tunnel: Option<Arc<Tunnel>>,
    /// Whether it may become a WebSocket.
    pub is_websocket: bool,
    /// Cuts the tunnel in time.
    pub watch: Option<AbortOnDropHandle<()>>,
    /// What the edge is told of a request of HTTP/2, and what is known of a tunnel that it cuts.
    pub progress: Option<Arc<Progress>>,
    is_recorded: bool,
}

impl RequestContext {
    pub fn new(policy: Arc<Policy>, process: Arc<Process>) -> Self {
        let nobody = IpAddr::from([0, 0, 0, 0]);
        process.metrics.request_started();
        Self {
            policy,
            process,
            started: Instant::now(),
            request_id: HeaderValue::from_static(""),
            client: Client { peer: nobody, address: nobody, is_trusted: false },
            endpoint: Endpoint::None,
            verdict: Verdict::default(),
            login: None,
            pool: None,
            is_preflight: false,
            rejection: None,
            tried: Vec::new(),
            upstream: None,
            served_before: None,
            upstream_status: None,
            reuse: Reuse::Allowed,
            body_bytes: 0,
            tunnel: None,
            is_websocket: false,
            watch: None,
            progress: None,
            is_recorded: false,
        }
    }

    pub fn request_id(&self) -> &str {
        self.request_id.to_str().unwrap_or_default()
    }

    /// The route of the request, if it is for one.
    pub fn route(&self) -> Option<&Route> {
        let Endpoint::Route(index) = self.endpoint else { return None };
        self.policy.routes.get(index)
    }

    /// The servers that the request is for, once it is admitted.
    pub fn pool(&self) -> Option<&Pool> {
        self.policy.pools.get(self.pool?).map(Arc::as_ref)
    }

    /// What is logged of an error that ends this request, or its try with one server.
    pub fn failure(&self, error: &Error) -> Failure<'_> {
        let route = self.route();
        let pool = self.pool();
        let cause = match (pool, route) {
            (Some(pool), _) if self.upstream.is_none() && pool.is_empty() => {
                "no address known for the upstream".into()
            }
            (Some(pool), Some(route)) => {
                let section = pool.section();
                let (read, read_key) = if self.is_websocket {
                    (self.policy.limits.websocket_idle_timeout, "websocket_idle_timeout")
                } else {
                    (route.timeouts.read.unwrap_or(section.read_timeout), "read_timeout")
                };
                let patience = Patience {
                    connect: route.timeouts.connect.unwrap_or(section.connect_timeout),
                    write: route.timeouts.write.unwrap_or(section.write_timeout),
                    read,
                    read_key,
                };
                failure::cause(error, &patience)
            }
            _ => "the request has no upstream".into(),
        };
        Failure {
            request_id: self.request_id(),
            route: route.map(|_| self.policy.metrics(self.endpoint).label()),
            upstream: pool.map(|pool| pool.section().name.as_str()),
            server: self.upstream,
            cause,
            is_reused: self.served_before == Some(true),
        }
    }

    /// The answer to a request that is refused.
    pub fn refuse(&self, rejection: &Rejection) -> Answer {
        rejection.answer(self.request_id(), self.policy.error_body.as_ref())
    }

    /// Bytes of body that may be sent to the request's route.
    pub fn max_body(&self) -> u64 {
        self.route().map_or(0, |route| route.max_body)
    }

    /// Counts the request and writes its access line.
    pub fn record(&mut self, http: &HttpSession) {
        let status = final_answer(http).map_or(CLIENT_LEFT, |answer| answer.status.as_u16());
        let request = http.req_header();
        if status == CLIENT_LEFT
            && let Some(progress) = &self.progress
        {
            progress.leave();
        }
        self.write_down(&Seen {
            method: request.method.as_str(),
            path: request.uri.path(),
            status,
            bytes_in: http.body_bytes_read(),
            bytes_out: http.body_bytes_sent(),
        });
        self.is_recorded = true;
    }

    fn write_down(&self, seen: &Seen<'_>) {
        let took = self.started.elapsed();
        let metrics = self.policy.metrics(self.endpoint);
        metrics.observe(seen.status, took);
        let access_log = &self.process.access_log;
        if !access_log.is_on() {
            return;
        }
        let identity = self.verdict.identity();
        let login = self.login.as_deref();
        let app_id = identity.map(|identity| &identity.app_id);
        let openid = identity.map(|identity| &identity.openid);
        access_log.write(&Line {
            time: access_log::timestamp(),
            request_id: self.request_id(),
            client: self.client.address,
            method: seen.method,
            path: seen.path,
            route: metrics.label(),
            status: seen.status,
            error: self.rejection.as_ref().map(Rejection::error),
            duration_ms: access_log::milliseconds(took),
            upstream: self.upstream.map(|address| address.to_string()),
            upstream_status: self.upstream_status,
            bytes_in: seen.bytes_in,
            bytes_out: seen.bytes_out,
            decision: self.verdict.decision.map(Decision::as_str),
            app_id: app_id.or_else(|| login?.app_id.as_ref()).map(AppId::as_str),
            user: openid.or_else(|| login?.openid.as_ref()).map(|openid| access_log.user(openid)),
            errcode: login.and_then(|login| login.errcode).map(ErrCode::number),
        });
    }
}

/// What is seen of a request and its answer from outside.
struct Seen<'a> {
    method: &'a str,
    path: &'a str,
    status: u16,
    bytes_in: usize,
    bytes_out: usize,
}

/// A request may also end without pingora's saying so: the edge ends one whose body stalls and
/// a tunnel that was cut, and one that panics ends itself.
impl Drop for RequestContext {
    fn drop(&mut self) {
        self.process.metrics.request_ended();
        let is_ended = self.progress.as_ref().is_some_and(|progress| progress.is_ended())
            || self.tunnel.as_ref().is_some_and(|tunnel| tunnel.is_cut());
        if self.is_recorded || !(is_ended || std::thread::panicking()) {
            return;
        }
        if std::thread::panicking() {
            self.rejection = Some(Rejection::InternalError);
        } else if self.progress.as_ref().is_some_and(|progress| progress.is_stalled()) {
            self.rejection = Some(Rejection::RequestTimeout);
        }
        let progress = self.progress.clone();
        let progress = progress.as_ref();
        let answered = progress.and_then(|progress| progress.answered());
        let unanswered = self.rejection.as_ref().map_or(CLIENT_LEFT, Rejection::status);
        self.write_down(&Seen {
            method: progress.map_or("", |progress| progress.method.as_str()),
            path: progress.and_then(|p| p.target.as_ref()).map_or("", PathAndQuery::path),
            status: answered.map_or(unanswered, |(status, _)| status),
            bytes_in: usize::try_from(self.body_bytes).unwrap_or(usize::MAX),
            bytes_out: answered.map_or(0, |(_, sent)| usize::try_from(sent).unwrap_or(usize::MAX)),
        });
    }
}

/// The head of the answer that went out, if one did; `100` and its like only announce one.
pub fn final_answer(http: &HttpSession) -> Option<&ResponseHeader> {
    http.response_written()
        .filter(|answer| !answer.status.is_informational() || answer.status.as_u16() == 101)
}
