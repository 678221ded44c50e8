//! The state of one request, and what is counted and logged at its end.

use std::sync::Arc;
use std::time::Duration;

use http::header::EXPECT;
use http::{HeaderValue, Method, Version};

use tokio::time::Instant;

use super::client::ClientConnection;
use super::failure::{Failed, Failure, Patience};
use super::grpc;
use super::jar::RequestJar;
use crate::access::authenticator::Decision;
use crate::access::browsers::BrowserHost;
use crate::access::cross_site::Site;
use crate::access::trusted_proxies;
use crate::browser::tickets::{TicketParameter, TicketUse};
use crate::config::{Access, HashKey};
use crate::identity::AppId;
use crate::login::LoginFacts;
use crate::message::header::Headers;
use crate::message::header::lines::{Lines, Span};
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::message::request_header::RequestHeader;
use crate::policy::{Policy, Process, RouteState, Verdict};
use crate::route::{Endpoint, Route, RouteLookup, Routes};
use crate::telemetry::access_log::{AccessLine, CLIENT_CLOSED_REQUEST};
use crate::upstream::server::Server;
use crate::upstream::{Pool, hash_of};
use crate::wechat::ErrCode;

/// The parts of a request that select its route.
pub fn route_lookup<'a>(
    header: &RequestHeader,
    lines: &'a Lines,
    method: &'a Method,
    routes: &Routes<RouteState>,
) -> RouteLookup<'a, Lines> {
    let path = match header.path.text(lines.text()) {
        // A target in absolute form may have no path (RFC 9110, section 4.2.3).
        "" => "/",
        path => path,
    };
    let host = header.host.filter(|_| routes.have_hosts());
    let host = host.map(|host| host.text(lines.text()));
    RouteLookup { path, host, method, headers: lines }
}

/// Tells a client to send the body that it holds back.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The state of one request.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Request {
    /// The configuration for this request; a reload does not change it.
    pub policy: Arc<Policy>,
    process: Arc<Process>,
    pub started: Instant,
    pub header: RequestHeader,
    /// Its header lines. Their text begins with the whole request header.
    pub lines: Lines,
    /// Its ticket, if tickets are on and its route is known.
    pub ticket: Option<TicketParameter>,
    pub method: Method,
    pub id: HeaderValue,
    pub client: trusted_proxies::Client,
    pub endpoint: Endpoint,
    pub verdict: Verdict,
    /// Set if the request was a login.
    pub login: Option<Box<LoginFacts>>,
    /// Index of the upstream, once the request is admitted.
    pub pool: Option<usize>,
    /// Set if the service's cookies are kept here.
    pub jar: Option<Box<RequestJar>>,
    /// Whether it is a preflight that its route responds to, or forwards without a session.
    pub is_preflight: bool,
    /// Whether it may be upgraded to a WebSocket.
    pub is_websocket: bool,
    /// Whether an endpoint has read its body.
    pub is_read: bool,
    /// Whether part of its body may have been sent to a server.
    pub is_begun: bool,
    pub is_http2: bool,
    /// Whether the client expects errors and deadlines of gRPC.
    pub is_grpc: bool,
    /// Whether the connection is closed after its response.
    pub closes: bool,
    /// The error that was sent, or would have been sent if no response had begun.
    pub rejection: Option<Rejection>,
    /// The timeouts of its upstream and route, once it is forwarded.
    pub patience: Patience,
    /// When the whole exchange must be over.
    pub deadline: Option<Instant>,
    /// When its response ended, if that is known.
    pub ended_at: Option<Instant>,
    /// The server of the last attempt.
    pub server: Option<Arc<Server>>,
    /// Whether the connection to `server` has served a request before.
    pub is_reused: bool,
    pub upstream_status: Option<u16>,
    /// The status of the response, once that has begun.
    pub status: Option<u16>,
    /// Bytes of body, without framing.
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Request {
    /// Creates the request whose header is at the start of `client.held`.
    pub fn new(
        policy: Arc<Policy>,
        process: Arc<Process>,
        header: RequestHeader,
        client: &mut ClientConnection,
    ) -> Self {
        process.metrics.request_started();
        let is_http2 = client.io.is_http2();
        // The header keeps the buffer: what follows it, if anything, is short and cheap to copy.
        let rest = client.held.get(header.length..).unwrap_or_default();
        let mut early = if rest.is_empty() { Vec::new() } else { super::buffers::take() };
        early.extend_from_slice(rest);
        let text = std::mem::replace(&mut client.held, early);
        let lines = Lines::new(text, std::mem::take(&mut client.spare));
        let method = Method::from_bytes(header.method.of(lines.text())).unwrap_or_default();
        let sender = policy.trusted_proxies.client(client.address, &lines);
        let is_grpc = is_http2 && grpc::is_grpc(&lines);
        Self {
            started: Instant::now(),
            id: sender.request_id(&lines),
            client: sender,
            method,
            lines,
            ticket: None,
            endpoint: Endpoint::None,
            verdict: Verdict::default(),
            login: None,
            pool: None,
            jar: None,
            is_preflight: false,
            is_websocket: false,
            is_read: false,
            is_begun: false,
            is_http2,
            is_grpc,
            closes: !header.persists,
            rejection: None,
            patience: Patience::default(),
            deadline: None,
            ended_at: None,
            server: None,
            is_reused: false,
            upstream_status: None,
            status: None,
            bytes_in: 0,
            bytes_out: 0,
            header,
            policy,
            process,
        }
    }

    pub fn id_text(&self) -> &str {
        self.id.to_str().unwrap_or_default()
    }

    pub fn text(&self, span: Span) -> &str {
        span.text(self.lines.text())
    }

    /// The path as it was sent, without the query.
    pub fn path(&self) -> &str {
        self.text(self.header.path)
    }

    /// Its ticket, as it is used.
    ///
    /// Boxed: it is rare, and would make the future of every request larger.
    pub fn ticket_use(&self) -> Option<Box<TicketUse<'_>>> {
        let parameter = self.ticket?;
        let target = self.header.path_and_query.of(self.lines.text());
        let (before, after) = parameter.around(target);
        // A target in absolute form may have no path.
        let slash = if before.starts_with(b"/") { "" } else { "/" };
        let target_left = [slash.as_bytes(), before, after].concat();
        Some(Box::new(TicketUse {
            ticket: parameter.value(target),
            target: String::from_utf8(target_left).unwrap_or_default(),
            client: self.client.address,
        }))
    }

    /// The path for the access log: without the id of a scan.
    fn logged_path(&self) -> &str {
        let path = self.path();
        match (self.endpoint, path.rfind('/')) {
            (Endpoint::ScanById, Some(slash)) => path.get(..=slash).unwrap_or_default(),
            _ => path,
        }
    }

    pub fn query(&self) -> Option<&str> {
        self.text(self.header.path_and_query).split_once('?').map(|(_, query)| query)
    }

    pub fn is_http_10(&self) -> bool {
        self.header.version == Version::HTTP_10
    }

    /// Whether the client may wait for [`CONTINUE`] before it sends the body (RFC 9110, section
    /// 10.1.1).
    pub fn expects_continue(&self) -> bool {
        let is_it = |value: &[u8]| value.eq_ignore_ascii_case(b"100-continue");
        !self.is_http_10() && self.lines.values_of(&EXPECT).into_iter().any(is_it)
    }

    pub fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }

    /// The route of the request, if it matched one.
    pub fn route(&self) -> Option<&Route> {
        let Endpoint::Route(index) = self.endpoint else { return None };
        self.policy.routes.get(index)
    }

    /// The upstream of the request, once it is admitted.
    pub fn pool(&self) -> Option<&Arc<Pool>> {
        self.policy.pools.get(self.pool?)
    }

    /// The `[[browser]]` of its host.
    #[inline]
    pub fn browser(&self) -> Option<&BrowserHost> {
        if self.policy.browsers.are_on() { self.find_browser() } else { None }
    }

    fn find_browser(&self) -> Option<&BrowserHost> {
        let host = self.header.host.map(|host| host.of(self.lines.text()));
        self.policy.browsers.of(host)
    }

    /// What decides on an endpoint whether a session cookie is read and accepted.
    pub fn site(&self) -> Site<'_> {
        Site { host: self.browser(), method: &self.method, is_websocket: false, cors: None }
    }

    /// The hash of what `balance = "hash"` is configured to use.
    pub fn hash_key(&self, of: &HashKey) -> u64 {
        let known = match of {
            HashKey::User => self.verdict.identity().map(|identity| {
                hash_of(&[identity.app_id.as_str().as_bytes(), identity.openid.as_str().as_bytes()])
            }),
            HashKey::Address => None,
            HashKey::Header(name) => {
                let lines: Vec<&[u8]> = self.lines.values_of(name).collect();
                let value = lines.join(&b", "[..]);
                (!value.is_empty()).then(|| hash_of(&[&value]))
            }
        };
        known.unwrap_or_else(|| hash_of(&[self.client.address.to_string().as_bytes()]))
    }

    /// Whether the request may have waited before it was admitted.
    pub fn may_have_waited(&self) -> bool {
        let is_looked_up = self.route().is_none_or(|route| route.access != Access::None);
        is_looked_up && self.process.sessions.are_shared()
    }

    /// The longest time for the whole exchange: of the route or, if that is shorter, of the client.
    pub fn timeout(&self) -> Option<Duration> {
        let of_route = self.route().and_then(|route| route.timeouts.total);
        if !self.is_grpc {
            return of_route;
        }
        let of_client = grpc::timeout(&self.lines);
        of_route.into_iter().chain(of_client).min()
    }

    /// The log entry of a failure: of the whole request, or of one attempt.
    pub fn failure(&self, failed: &Failed) -> Failure<'_> {
        let cause = match self.pool() {
            Some(pool) if self.server.is_none() && pool.is_empty() => {
                "the upstream has no known address".into()
            }
            _ => failed.cause(&self.patience),
        };
        Failure {
            request_id: self.id_text(),
            route: self.route().map(|_| self.policy.metrics(self.endpoint).label()),
            upstream: self.pool().map(|pool| pool.section().name.as_str()),
            server: self.server.as_ref().map(|server| &server.address),
            cause,
            is_reused: self.is_reused,
        }
    }

    /// Where a script of this browser can begin a login for this route.
    fn login_url(&self) -> Option<String> {
        let redirects = self.policy.redirects.as_ref()?;
        self.route().filter(|route| route.redirects)?;
        redirects.login_url(self.browser()?, &self.lines)
    }

    /// The response to a rejected request.
    pub fn rejection_response(&self, rejection: &Rejection) -> OwnResponse {
        let body = self.policy.error_body.as_ref();
        if self.policy.redirects.is_none() {
            return rejection.response(self.id_text(), body, None);
        }
        rejection.response(self.id_text(), body, self.login_url().as_deref())
    }

    /// Returns the buffers to the connection.
    pub fn recycle(mut self, client: &mut ClientConnection) {
        let (text, mut list) = std::mem::take(&mut self.lines).into_parts();
        super::buffers::give(text);
        list.clear();
        client.spare = list;
        client.idle_since = self.ended_at;
    }

    /// Counts the request and writes its access line.
    pub fn record(&self) {
        let took = self.ended_at.unwrap_or_else(Instant::now) - self.started;
        let without_response =
            self.rejection.as_ref().map_or(CLIENT_CLOSED_REQUEST, Rejection::status);
        let status = self.status.unwrap_or(without_response);
        let metrics = self.policy.metrics(self.endpoint);
        metrics.observe(status, took);
        let access_log = &self.process.access_log;
        if !access_log.is_on() {
            return;
        }
        let identity = self.verdict.identity();
        let login = self.login.as_deref();
        let app_id = identity.map(|identity| &identity.app_id);
        let user = identity.map(|identity| (&identity.openid, identity.user_id.as_ref()));
        let user = user.or_else(|| Some((login?.openid.as_ref()?, login?.user_id.as_ref())));
        let size = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        access_log.write(&AccessLine {
            method: self.method.as_str(),
            path: self.logged_path(),
            route: metrics.label(),
            error: self.rejection.as_ref().map(Rejection::error),
            upstream: self.server.as_ref().map(|server| server.address.to_string()),
            upstream_status: self.upstream_status,
            bytes_in: size(self.bytes_in),
            bytes_out: size(self.bytes_out),
            decision: self.verdict.decision.map(Decision::as_str),
            app_id: app_id.or_else(|| login?.app_id.as_ref()).map(AppId::as_str),
            user: user.map(|(openid, user_id)| access_log.user(openid, user_id)),
            errcode: login.and_then(|login| login.errcode).map(ErrCode::number),
            ..AccessLine::new(self.id_text(), self.client.address, status, took)
        });
    }
}

/// A request that is dropped early, for example when the gateway stops, must also be subtracted
/// from the gauge of requests in flight.
impl Drop for Request {
    fn drop(&mut self) {
        self.process.metrics.request_ended();
    }
}
