//! Forward-auth: decisions for another proxy in front of the services.
//!
//! nginx, Caddy, Traefik, Envoy and similar proxies call this before they forward a request, to get
//! a decision and the identity. Only `server.trusted_proxies` may call, on a separate listener. The
//! original request is described by `X-Forwarded-Method`, `-Uri` and `-Host`, each exactly once.
//! The decision is the same as on the public listener ([`Policy::admit`]). The response is 200, 401
//! or 403, and 503 when sessions cannot be looked up. It has every identity header, empty if there
//! is no identity, so that it overwrites the client's. Of the proxy's own request, only the headers
//! affect the decision. Bodies, sizes and upgrades are left to the proxy; but a WebSocket by cookie
//! must come from the same site.

mod original_request;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue};
use http::{Method, StatusCode, request};
use http_body_util::Full;
use hyper::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use self::original_request::{OriginalRequest, only};
use crate::access::authenticator::Decision;
use crate::access::identity_headers::{
    FORWARDED_HOST, FORWARDED_METHOD, FORWARDED_URI, REQUEST_ID,
};
use crate::access::trusted_proxies::Client;
use crate::access::websocket;
use crate::config::Preflight;
use crate::listener::small_server::{Request, Response};
use crate::message::rejection::Rejection;
use crate::message::request_header;
use crate::policy::{Policies, Policy, Process, RoutedRequest, ServedRoute, Verdict};
use crate::route::{Endpoint, Route, RouteLookup};
use crate::telemetry::access_log::AccessLine;
use crate::telemetry::metrics::Metrics;

/// How long an untrusted peer's connection may last, and how long an idle connection may take to
/// close.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// The smallest buffer that hyper accepts for a request header.
const LEAST_BUFFER: usize = 8 << 10;

/// Serves the connections of other proxies.
pub struct ForwardAuth {
    process: Arc<Process>,
    policies: Arc<Policies>,
    /// One for each connection.
    permits: Semaphore,
}

impl ForwardAuth {
    pub fn new(process: Arc<Process>, policies: Arc<Policies>) -> Self {
        // File descriptors are shared with the public listeners.
        let connections = (policies.current().limits.max_connections / 2).max(1);
        Self { process, policies, permits: Semaphore::new(connections) }
    }

    /// Serves a connection to its end. A connection without requests for `limits.idle_timeout` is
    /// closed within twice that time.
    pub async fn serve(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(_permit) = self.permits.try_acquire() else { return };
        // Responses are flushed whole: waiting for more data would only delay them.
        let _ = stream.set_nodelay(true);
        let peer = peer.ip().to_canonical();
        let policy = self.policies.current();
        let limits = policy.limits.clone();
        let is_trusted = policy.trusted_proxies.contains(peer);
        // A connection must not keep a policy for its whole life.
        drop(policy);
        let patience = if is_trusted { limits.idle_timeout } else { SHORT_TIMEOUT };
        let is_used = AtomicBool::new(false);
        let is_busy = AtomicBool::new(false);
        let respond = |request: Request| async {
            is_used.store(true, Ordering::Relaxed);
            is_busy.store(true, Ordering::Relaxed);
            let response = self.respond(request, peer).await;
            is_busy.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        };
        let mut connection = pin!(
            http1::Builder::new()
                .keep_alive(is_trusted)
                // The proxy adds its own headers to those of the client.
                .max_buf_size((limits.max_header + limits.max_target).max(LEAST_BUFFER))
                .serve_connection(TokioIo::new(stream), service_fn(respond))
        );
        let over = async {
            let mut closing = self.process.lifecycle.closing();
            let idle = async {
                sleep(patience).await;
                while is_used.swap(false, Ordering::Relaxed) {
                    sleep(patience).await;
                }
            };
            tokio::select! {
                // Cannot fail: the sender lives as long as the process.
                _ = closing.wait_for(|closing| *closing) => {}
                () = idle => {}
            }
        };
        tokio::select! {
            biased;
            // A broken connection is the proxy's problem.
            _ = connection.as_mut() => return,
            () = over => {}
        }
        connection.as_mut().graceful_shutdown();
        // An incomplete request header must not delay closing.
        let left =
            if is_busy.load(Ordering::Relaxed) { limits.header_timeout } else { SHORT_TIMEOUT };
        let _ = timeout(left, connection).await;
    }

    async fn respond(&self, request: Request, peer: IpAddr) -> Response {
        let started = Instant::now();
        let policy = self.policies.current();
        let _in_flight = InFlight::new(&self.process.metrics);
        let (request, body) = request.into_parts();
        let client = policy.trusted_proxies.client(peer, &request.headers);
        let request_id = client.request_id(&request.headers);
        let mut judged = Self::judge(&policy, &request, client).await;

        let mut headers = HeaderMap::with_capacity(8);
        let session = judged.verdict.session.as_deref().filter(|_| judged.outcome.is_ok());
        let audience = judged.served.zip(session);
        let audience = audience.and_then(|(served, session)| served.audience(session));
        if policy.identity_headers.write_decision(&mut headers, session, audience).is_err() {
            judged.outcome = Err(Rejection::InternalError);
        }
        let mut content = Bytes::new();
        let mut code = StatusCode::OK;
        match &judged.outcome {
            Ok(()) => headers.extend(policy.decision_caching.iter().cloned()),
            Err(rejection) => {
                code = status(rejection);
                let request_id = request_id.to_str().unwrap_or_default();
                let login_url = login_url(&policy, &request, judged.route());
                let body = policy.error_body.as_ref();
                let own = rejection.response(request_id, body, login_url.as_deref());
                headers.extend(own.headers);
                content = own.body.into();
            }
        }
        self.record(&Recorded {
            policy: &policy,
            request: &request,
            client,
            request_id: &request_id,
            judged: &judged,
            status: code,
            bytes_out: content.len(),
            took: started.elapsed(),
        });
        headers.insert(&REQUEST_ID, request_id);
        // The rest of a body could be read as the next request.
        if self.process.lifecycle.is_draining() || !body.is_end_stream() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let mut response = Response::new(Full::new(content));
        *response.status_mut() = code;
        *response.headers_mut() = headers;
        response
    }

    /// The decision on the original request, and its session.
    async fn judge<'a>(policy: &'a Policy, request: &request::Parts, client: Client) -> Judged<'a> {
        let matched = match match_route(policy, request, client) {
            Ok(matched) => matched,
            Err(rejection) => {
                let verdict = Verdict::default();
                return Judged { served: None, verdict, outcome: Err(rejection) };
            }
        };
        let Matched { route, method, path, host, is_preflight } = matched;
        let lookup =
            RouteLookup { path, host: Some(host), method: &method, headers: &request.headers };
        // A preflight that the gateway responds to must not reach the service without a session.
        let is_preflight = is_preflight && route.route.preflight == Preflight::Pass;
        let routed = RoutedRequest {
            lookup,
            is_preflight,
            host: policy.browsers.of(Some(host.as_bytes())),
            is_websocket: websocket::is_asked_about(&request.headers),
            // The gateway could not remove a ticket from the URL that the proxy forwards.
            ticket: None,
            client: client.address,
            length: None,
        };
        let (verdict, outcome) = policy.admit(route, &routed).await;
        Judged { served: Some(route), verdict, outcome }
    }

    /// Counts the request and writes its access log line, which describes the original request.
    fn record(&self, recorded: &Recorded<'_>) {
        let metrics = &recorded.policy.metrics_without_route.forward_auth;
        metrics.observe(recorded.status.as_u16(), recorded.took);
        let access_log = &self.process.access_log;
        if !access_log.is_on() {
            return;
        }
        // Headers of untrusted peers are not logged.
        let logged = |name| {
            let value = only(&recorded.request.headers, name, "", "").ok()?.to_str().ok()?;
            recorded.client.is_trusted.then_some(value)
        };
        let Judged { verdict, outcome, .. } = recorded.judged;
        let route = recorded.judged.route();
        let request_id = recorded.request_id.to_str().unwrap_or_default();
        access_log.write(&AccessLine {
            method: logged(&FORWARDED_METHOD).unwrap_or_default(),
            path: logged(&FORWARDED_URI).map_or("", path_of),
            route: route.map_or(metrics.label(), |route| &route.name),
            error: outcome.as_ref().err().map(Rejection::error),
            bytes_out: recorded.bytes_out,
            decision: verdict.decision.map(Decision::as_str),
            app_id: verdict.identity().map(|identity| identity.app_id.as_str()),
            user: verdict
                .identity()
                .map(|identity| access_log.user(&identity.openid, identity.user_id.as_ref())),
            ..AccessLine::new(
                request_id,
                recorded.client.address,
                recorded.status.as_u16(),
                recorded.took,
            )
        });
    }
}

/// The decision on the original request.
struct Judged<'a> {
    served: Option<&'a ServedRoute>,
    verdict: Verdict,
    outcome: Result<(), Rejection>,
}

impl<'a> Judged<'a> {
    fn route(&self) -> Option<&'a Route> {
        self.served.map(|served| &served.route)
    }
}

/// The original request, and the route that it matched.
struct Matched<'p, 'r> {
    route: &'p ServedRoute,
    method: Method,
    path: &'r str,
    host: &'r str,
    is_preflight: bool,
}

/// Reads the original request, and finds its route.
fn match_route<'p, 'r>(
    policy: &'p Policy,
    request: &'r request::Parts,
    client: Client,
) -> Result<Matched<'p, 'r>, Rejection> {
    if !client.is_trusted {
        return Err(Rejection::BadRequest(
            "only proxies in server.trusted_proxies may use forward-auth",
        ));
    }
    // Envoy and Higress append the path of the original request.
    let rest = request.uri.path().strip_prefix(policy.forward_auth_path.as_str());
    if !rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
        return Err(Rejection::BadRequest("this listener serves only forward_auth.path"));
    }
    let headers = &request.headers;
    if policy.identity_headers.has_lookalike(headers) {
        return Err(Rejection::BadRequest(
            "a header is another spelling of an identity or X-Forwarded header, or overrides the \
             method",
        ));
    }
    let original = OriginalRequest::read(headers)?;
    request_header::judge_forwarded(
        original.method,
        original.target,
        original.host,
        policy.header_limits,
    )?;
    let method = Method::from_bytes(original.method).map_err(|_| Rejection::InternalError)?;
    let text = |bytes| str::from_utf8(bytes).map_err(|_| Rejection::InternalError);
    let (path, host) = (path_of(text(original.target)?), text(original.host)?);
    let lookup = RouteLookup { path, host: Some(host), method: &method, headers };
    let (endpoint, is_preflight) = policy.routes.match_request(&lookup)?;
    let route = match endpoint {
        Endpoint::Route(index) => policy.routes.served(index).ok_or(Rejection::NoRoute)?,
        Endpoint::None => return Err(Rejection::NoRoute),
        _ => {
            return Err(Rejection::BadRequest(
                "this path is an endpoint of the gateway: send it to a public listener",
            ));
        }
    };
    Ok(Matched { route, method, path, host, is_preflight })
}

/// Where a script of the original request's browser can begin a login.
fn login_url(policy: &Policy, request: &request::Parts, route: Option<&Route>) -> Option<String> {
    let redirects = policy.redirects.as_ref()?;
    route.filter(|route| route.redirects)?;
    let host = only(&request.headers, &FORWARDED_HOST, "", "").ok()?;
    let host = policy.browsers.of(Some(host.as_bytes()))?;
    redirects.login_url(host, &request.headers)
}

/// What is counted and logged.
struct Recorded<'a> {
    policy: &'a Policy,
    request: &'a request::Parts,
    client: Client,
    request_id: &'a HeaderValue,
    judged: &'a Judged<'a>,
    status: StatusCode,
    bytes_out: usize,
    took: Duration,
}

fn path_of(target: &str) -> &str {
    target.split_once('?').map_or(target, |(path, _)| path)
}

/// Proxies expect only these: nginx turns any other into a 500.
fn status(rejection: &Rejection) -> StatusCode {
    match rejection {
        Rejection::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        _ if rejection.status() == 401 => StatusCode::UNAUTHORIZED,
        _ => StatusCode::FORBIDDEN,
    }
}

/// Counts a request as in flight until it is dropped.
struct InFlight<'a>(&'a Metrics);

impl<'a> InFlight<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        metrics.request_started();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rejection_has_a_status_that_proxies_expect() {
        for (rejection, expected) in [
            (Rejection::MissingToken, 401),
            (Rejection::SessionExpired, 401),
            (Rejection::StoreUnavailable, 503),
            (Rejection::BadRequest("x"), 403),
            (Rejection::WrongApp, 403),
            (Rejection::NoRoute, 403),
            (Rejection::RateLimited { retry_after: 1 }, 403),
            (Rejection::HeadersTooLarge, 403),
            (Rejection::InternalError, 403),
            (Rejection::Overloaded, 403),
        ] {
            assert_eq!(status(&rejection), expected, "{rejection:?}");
        }
    }
}
