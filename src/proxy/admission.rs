//! Whether a request is served, and by whom: the gateway itself, or the service of a route.

use http::header::{CONTENT_LENGTH, HOST, UPGRADE};
use pingora::Error;
use pingora::http::RequestHeader;
use pingora::proxy::Session as HttpSession;

use super::Gateway;
use super::context::RequestContext;
use super::endpoints::health;
use crate::answer::Answer;
use crate::config::Access;
use crate::head;
use crate::policy::Visit;
use crate::rejection::Rejection;
use crate::route::{Asked, Endpoint, PathError};
use crate::websocket;

/// Why a request is not served.
pub enum Refusal {
    Answered(Rejection),
    /// The client left, or broke the connection, before there was anything to answer.
    Left(Box<Error>),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Answered(rejection)
    }
}

impl From<PathError> for Refusal {
    fn from(error: PathError) -> Self {
        Self::Answered(error.into())
    }
}

impl Gateway {
    /// Judges a request: what is answered here is `Some`, what is forwarded `None`.
    pub(super) async fn judge(
        &self,
        http: &mut HttpSession,
        context: &mut RequestContext,
    ) -> Result<Option<Answer>, Refusal> {
        let has_upgrade = http.req_header().headers.contains_key(UPGRADE);
        let asks_websocket = has_upgrade && websocket::is_asked_for(http.req_header());
        if has_upgrade && !asks_websocket {
            // Every other protocol in Upgrade is ignored.
            http.req_header_mut().remove_header(&UPGRADE);
        }
        let request = http.req_header();
        if http.is_http2() {
            // On HTTP/1 the edge has judged the head.
            head::judge_http2(request, context.policy.head_limits)?;
        }
        (context.endpoint, context.is_preflight) = context.policy.routes.meet(&asked(request))?;
        if asks_websocket {
            // Before the session is looked up, which this request does not need.
            let is_allowed = context.route().is_some_and(|route| route.websocket);
            if !is_allowed || context.tunnel.is_none() {
                return Err(websocket::NOT_ALLOWED.into());
            }
            websocket::judge_handshake(&request.method, request)?;
            context.is_websocket = true;
        }
        let takes_query = context.policy.login.accepts_query();
        context.endpoint.judge_method(request.method.as_str(), takes_query)?;
        let answer = match context.endpoint {
            Endpoint::Login => self.login(http, context).await?,
            Endpoint::Logout => self.logout(http, context).await?,
            Endpoint::Session => self.session(http, context).await?,
            Endpoint::Health => health(&self.process.lifecycle),
            Endpoint::Route(index) => return Ok(self.admit(http, context, index).await?),
            Endpoint::None => return Err(Rejection::NoRoute.into()),
        };
        Ok(Some(answer))
    }

    /// Whether a request may go to its route, and what the route answers itself.
    async fn admit(
        &self,
        http: &HttpSession,
        context: &mut RequestContext,
        index: usize,
    ) -> Result<Option<Answer>, Rejection> {
        let policy = context.policy.clone();
        // Another proxy forwards what is elsewhere.
        let route = policy.routes.get(index).filter(|route| !route.is_elsewhere());
        let route = route.ok_or(Rejection::NoRoute)?;
        let request = http.req_header();
        if context.is_preflight
            && let Some(cors) = &route.cors
        {
            return Ok(Some(cors.answer_preflight(&request.headers)));
        }
        let visit = Visit {
            asked: asked(request),
            is_preflight: context.is_preflight,
            client: context.client.address,
            length: content_length(request),
        };
        policy.admit(index, &visit, &self.process.metrics, &mut context.verdict).await?;
        context.pool = route.pool(context.verdict.identity());
        Ok(route.answer().cloned())
    }

    pub(super) async fn authenticate(
        &self,
        http: &HttpSession,
        context: &mut RequestContext,
        access: Access,
    ) -> Result<(), Rejection> {
        let headers = &http.req_header().headers;
        let metrics = &self.process.metrics;
        context.policy.authenticate(headers, access, metrics, &mut context.verdict).await
    }
}

fn asked(request: &RequestHeader) -> Asked<'_> {
    let host = match request.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers.get(HOST).and_then(|host| host.to_str().ok()),
    };
    let (method, headers) = (&request.method, &request.headers);
    Asked { path: request.uri.path(), host, method, headers }
}

/// The length that a request announces.
pub fn content_length(request: &RequestHeader) -> Option<u64> {
    request.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
