//! The life of a request.
//!
//! The only code that knows pingora's phases, in the order in which a request meets them:
//! [`ProxyHttp::request_filter`] judges it and answers what is not to be forwarded,
//! [`ProxyHttp::upstream_peer`] chooses a server, [`ProxyHttp::upstream_request_filter`]
//! writes the identity (nothing is removed from the request after it),
//! [`ProxyHttp::response_filter`] cleans the answer, [`ProxyHttp::fail_to_proxy`] turns
//! errors into answers, and [`ProxyHttp::logging`] writes down how it went. What each of
//! them decides is decided in the modules below.

mod admission;
mod context;
mod endpoints;
mod failure;
pub mod lane;
mod tunnel;

use std::any::Any;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE};
use http::{HeaderValue, Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, Session as HttpSession};
use pingora::upstreams::peer::{HttpPeer, HttpUpstreamRequestPolicy};
use pingora::{Error, ErrorSource, ErrorType, OrErr};

use self::admission::Refusal;
use self::context::RequestContext;
pub use self::endpoints::{Plain, health};
use self::failure::Failures;
use crate::answer::Answer;
use crate::inject::REQUEST_ID;
use crate::policy::{Policies, Policy, Process};
use crate::rejection::Rejection;
use crate::upstream::{Chosen, Reuse};
use crate::websocket::{self, Tunnel};

/// How long what is left of a body is waited for after its answer, so that the connection
/// can go on.
const DRAIN_BODY: Duration = Duration::from_secs(5);

/// The gateway as pingora sees it.
pub struct Gateway {
    process: Arc<Process>,
    policies: Arc<Policies>,
    failures: Failures,
}

/// What the edge hands over with a request of HTTP/1.
pub struct HandedOver {
    /// The one by which its head was judged.
    pub policy: Arc<Policy>,
    /// The switch of its connection, if it asks to become something else.
    pub tunnel: Option<Arc<Tunnel>>,
}

impl Gateway {
    pub fn new(process: Arc<Process>, policies: Arc<Policies>) -> Self {
        let failures = Failures::new(process.clock.clone());
        Self { process, policies, failures }
    }

    /// Writes an answer of the gateway's own. The connection goes on if the whole request
    /// has been read.
    async fn answer(
        &self,
        http: &mut HttpSession,
        context: &RequestContext,
        mut answer: Answer,
    ) -> pingora::Result<()> {
        self.end_connection_if_draining(http);
        let mut everywhere = &context.policy.response_headers;
        if let Some(route) = context.route() {
            if let Some(cors) = &route.cors
                && !context.is_preflight
            {
                cors.mark_answer(&http.req_header().headers, &mut answer);
            }
            route.caching.mark_answer(&mut answer, context.verdict.session.is_some());
            everywhere = &route.response_headers;
        }
        answer.add_missing(everywhere);
        let mut header = ResponseHeader::build(answer.status, Some(answer.headers.len() + 4))?;
        for (name, value) in &answer.headers {
            header.append_header(name, value)?;
        }
        header.insert_header(REQUEST_ID.as_str(), &context.request_id)?;
        if answer.status != 204 {
            header.insert_header(CONTENT_LENGTH, answer.body.len())?;
        }
        let is_bodyless = answer.body.is_empty() || http.req_header().method == Method::HEAD;
        http.write_response_header(Box::new(header), is_bodyless).await?;
        if !is_bodyless {
            http.write_response_body(Some(answer.body.into()), true).await?;
        }
        Ok(())
    }

    fn end_connection_if_draining(&self, http: &mut HttpSession) {
        if self.process.lifecycle.is_draining() {
            http.set_keepalive(None);
        }
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed, for pingora moves it with the future that serves a request.
    type CTX = Box<RequestContext>;

    fn new_ctx(&self) -> Self::CTX {
        Box::new(RequestContext::new(self.policies.current(), self.process.clone()))
    }

    /// Comes right after the context was made.
    fn on_connection_reuse(
        &self,
        _: &mut HttpSession,
        context: &mut Self::CTX,
        handed_over: Box<dyn Any + Send + Sync>,
    ) {
        if let Ok(handed_over) = handed_over.downcast::<HandedOver>() {
            let HandedOver { policy, tunnel } = *handed_over;
            context.policy = policy;
            context.tunnel = tunnel;
        }
    }

    /// None: pingora's default is a compression module that is never on.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn request_filter(
        &self,
        http: &mut HttpSession,
        context: &mut Self::CTX,
    ) -> pingora::Result<bool> {
        let limits = &context.policy.limits;
        http.set_read_timeout(Some(limits.body_timeout));
        http.set_total_drain_timeout(Some(DRAIN_BODY));
        if http.is_http2() {
            // On HTTP/1 the edge sees to it.
            http.set_write_timeout(Some(limits.write_timeout));
            // Taken out, for pingora copies what is left with the head, and more than once.
            let mut extensions = std::mem::take(http.req_header_mut().extensions_mut());
            context.progress = extensions.remove();
        }
        let headers = &http.req_header().headers;
        context.client = context.policy.trusted_proxies.client(peer(http), headers);
        context.request_id = context.client.request_id(headers);

        let answer = match self.judge(http, context).await {
            Ok(None) => {
                context.progress.iter().for_each(|progress| progress.forward());
                return Ok(false);
            }
            Ok(Some(answer)) => answer,
            Err(Refusal::Left(error)) => return Err(error),
            Err(Refusal::Answered(rejection)) => {
                let answer = context.refuse(&rejection);
                context.rejection = Some(rejection);
                answer
            }
        };
        self.answer(http, context, answer).await?;
        Ok(true)
    }

    async fn upstream_peer(
        &self,
        http: &mut HttpSession,
        context: &mut Self::CTX,
    ) -> pingora::Result<Box<HttpPeer>> {
        // On a second try the body is sent, and counted, from its beginning.
        context.body_bytes = 0;
        let route = context.pool().zip(context.route());
        let chosen = route.and_then(|(pool, route)| pool.choose(&context.tried, &route.timeouts));
        let Some(Chosen { address, mut peer, reuse }) = chosen else {
            context.rejection = Some(Rejection::NoUpstream);
            return Error::e_explain(ErrorType::HTTPStatus(503), "no server");
        };
        context.upstream = Some(address);
        context.reuse = reuse;
        context.served_before = None;
        if context.is_websocket {
            let idle = context.policy.limits.websocket_idle_timeout;
            peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::standard();
            peer.options.read_timeout = Some(idle);
            http.set_read_timeout(Some(idle));
        }
        Ok(peer)
    }

    fn fail_to_connect(
        &self,
        _: &mut HttpSession,
        _: &HttpPeer,
        context: &mut Self::CTX,
        mut error: Box<Error>,
    ) -> Box<Error> {
        context.tried.extend(context.upstream);
        error.set_retry(context.pool().is_some_and(|pool| pool.has_untried(&context.tried)));
        if error.retry() {
            self.failures.log_passed_over(&context.failure(&error));
        }
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut HttpSession,
        is_reused: bool,
        _: &HttpPeer,
        _: RawFd,
        _: Option<&Digest>,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        context.served_before = Some(is_reused);
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        http: &mut HttpSession,
        request: &mut RequestHeader,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        let downstream = http.req_header();
        let forwarding = context.client.forwarding(
            &downstream.headers,
            context.request_id.clone(),
            &context.policy.proto,
            downstream.uri.authority().map(http::uri::Authority::as_str),
        );
        let identity = context.verdict.identity();
        let Some(route) = context.route() else {
            return Error::e_explain(ErrorType::InternalError, "no route");
        };
        route.prepare(request)?;
        let applied = context.policy.injector.apply(request, &forwarding, identity);
        applied.or_err(ErrorType::InternalError, "a header of the gateway")?;
        route.request_edits.write_to(request);
        if http.is_http2() {
            join_cookies(request)?;
        }
        if context.reuse == Reuse::Never && !context.is_websocket {
            request.insert_header(CONNECTION, "close")?;
        }
        if !request.raw_path().starts_with(b"/") {
            // Absolute form is for proxies; a service gets its own form (RFC 9112, 3.2.1).
            request.set_uri(request.uri.clone());
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        http: &mut HttpSession,
        body: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        let length = body.as_ref().map_or(0, Bytes::len);
        if http.was_upgraded() {
            // What a client sends through a tunnel is a use of its session.
            if let Some(session) = context.verdict.session.as_ref().filter(|_| length > 0) {
                self.process.sessions.touch(session);
            }
            return Ok(());
        }
        context.progress.iter().for_each(|progress| progress.receive(length, is_end));
        context.body_bytes += length as u64;
        if context.body_bytes > context.max_body() {
            context.rejection = Some(Rejection::BodyTooLarge);
            return Error::e_explain(ErrorType::HTTPStatus(413), "body too large");
        }
        if is_end && length == 0 {
            // pingora 0.9.1 would write it as a chunk of no bytes, which ends a chunked body,
            // and then end the body again: the service reads that as the next request.
            *body = None;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        http: &mut HttpSession,
        response: &mut ResponseHeader,
        context: &mut Self::CTX,
    ) -> pingora::Result<()> {
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            context.upstream_status = Some(101);
            let fault = if context.is_websocket {
                websocket::fault(http.req_header(), response)
            } else {
                Some(failure::UNASKED)
            };
            if let Some(fault) = fault {
                context.rejection = Some(Rejection::BadGateway);
                return Err(Error::explain(failure::REFUSED, fault).into_up());
            }
            context.policy.injector.clean_response(response.status.as_u16(), response);
            let everywhere = context.route().into_iter().flat_map(|route| &route.response_headers);
            for (name, value) in everywhere {
                response.insert_header(name.clone(), value.clone())?;
            }
            response.insert_header(REQUEST_ID.as_str(), &context.request_id)?;
            self.open_tunnel(http.req_header(), context);
            return Ok(());
        }
        if response.status.is_informational() {
            context.policy.injector.clean_response(response.status.as_u16(), response);
            return Ok(());
        }
        context.upstream_status = Some(response.status.as_u16());
        if let Some((pool, server)) = context.pool().zip(context.upstream) {
            pool.hear(server, response);
        }
        context.progress.iter().for_each(|progress| progress.answer(response.status.as_u16()));
        context.policy.injector.clean_response(response.status.as_u16(), response);
        if let Some(route) = context.route() {
            route.response_edits.remove_from(response);
            route.response_edits.write_to(response);
            if let Some(cors) = &route.cors {
                cors.mark(&http.req_header().headers, response);
            }
            // Last: no edit takes it away.
            route.caching.mark(response, context.verdict.session.is_some());
        }
        response.insert_header(REQUEST_ID.as_str(), &context.request_id)?;
        self.end_connection_if_draining(http);
        Ok(())
    }

    fn response_body_filter(
        &self,
        _: &mut HttpSession,
        body: &mut Option<Bytes>,
        is_end: bool,
        context: &mut Self::CTX,
    ) -> pingora::Result<Option<Duration>> {
        let length = body.as_ref().map_or(0, Bytes::len);
        context.progress.iter().for_each(|progress| progress.send(length, is_end));
        Ok(None)
    }

    async fn fail_to_proxy(
        &self,
        http: &mut HttpSession,
        error: &Error,
        context: &mut Self::CTX,
    ) -> FailToProxy {
        if context.rejection.is_none() {
            context.rejection = failure::rejection(error);
        }
        let Some(rejection) = context.rejection.clone() else {
            // The client is gone: there is nobody to answer, or to wait for.
            return FailToProxy { error_code: 0, can_reuse_downstream: false };
        };
        let status = rejection.status();
        // What a client does wrong is everyday, and must not fill the log.
        if *error.esource() != ErrorSource::Downstream && status >= 500 {
            self.failures.log(&context.failure(error));
        }
        if context::final_answer(http).is_none() {
            let answer = context.refuse(&rejection);
            http.set_keepalive(None);
            // A client that is gone by now misses nothing.
            let _ = self.answer(http, context, answer).await;
        }
        if !http.is_http2() {
            // Sends what was begun, so that it is seen to break off, and waits for the client
            // to read it. A stream of HTTP/2 is reset when it is dropped.
            http.shutdown().await;
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, http: &mut HttpSession, _: Option<&Error>, context: &mut Self::CTX) {
        context.record(http);
    }

    /// Failures are logged above, by what they mean and without the request's path.
    fn suppress_error_log(&self, _: &HttpSession, _: &Self::CTX, _: &Error) -> bool {
        true
    }
}

/// HTTP/2 may carry a cookie in several fields; HTTP/1 has one (RFC 9113, section 8.2.3).
fn join_cookies(request: &mut RequestHeader) -> pingora::Result<()> {
    let crumbs: Vec<&[u8]> =
        request.headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1 {
        let cookie = crumbs.join(&b"; "[..]);
        request.insert_header(COOKIE, cookie)?;
    }
    Ok(())
}

fn peer(http: &HttpSession) -> IpAddr {
    let address = http.client_addr().and_then(|address| address.as_inet());
    address.map_or(IpAddr::from([0, 0, 0, 0]), std::net::SocketAddr::ip)
}
