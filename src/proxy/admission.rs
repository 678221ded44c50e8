//! Whether a request is served, and by whom: the gateway itself, or the service of a route.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, HOST, UPGRADE};
use pingora::Error;
use pingora::http::RequestHeader;
use pingora::proxy::Session as HttpSession;

use super::Gateway;
use super::context::RequestContext;
use crate::answer::Answer;
use crate::config::Access;
use crate::head;
use crate::metrics::Decision;
use crate::rate_limit::RateLimit;
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
        Self::Answered(match error {
            PathError::Malformed => Rejection::BadRequest("the path is malformed"),
            PathError::Ambiguous => Rejection::BadRequest("the path can be read in different ways"),
        })
    }
}

impl Gateway {
    /// Judges a request: what is answered here is `Some`, what is forwarded `None`.
    pub(super) async fn judge(
        &self,
        http: &mut HttpSession,
        context: &mut RequestContext,
    ) -> Result<Option<Answer>, Refusal> {
        let request = http.req_header();
        if http.is_http2() {
            // On HTTP/1 the edge has judged the head.
            head::judge_http2(request, context.policy.head_limits)?;
        }
        (context.endpoint, context.is_preflight) = context.policy.routes.meet(&asked(request))?;
        if request.headers.contains_key(UPGRADE) {
            let is_allowed = context.route().is_some_and(|route| route.websocket);
            if !is_allowed || context.tunnel.is_none() || !websocket::is_handshake(request) {
                return Err(Rejection::BadRequest("Upgrade is not allowed here").into());
            }
            context.is_websocket = true;
        }
        let answer = match context.endpoint {
            Endpoint::Login => self.login(http, context).await?,
            Endpoint::Logout => self.logout(http, context).await?,
            Endpoint::Session => self.session(http, context).await?,
            Endpoint::Health => self.health(http)?,
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
        let route = policy.routes.get(index).ok_or(Rejection::NoRoute)?;
        let request = http.req_header();
        if context.is_preflight {
            if let Some(cors) = &route.cors {
                return Ok(Some(cors.answer_preflight(&request.headers)));
            }
        } else if !route.allows_method(&request.method) {
            let allow = Cow::Owned(policy.routes.allow(&asked(request)));
            return Err(Rejection::MethodNotAllowed { allow });
        }
        let rates = policy.rates(index);
        check_address(context, rates.and_then(|rates| rates.per_address.as_ref()))?;
        if content_length(request).is_some_and(|length| length > route.max_body) {
            return Err(Rejection::BodyTooLarge);
        }
        // A browser sends no token when it asks whether it may.
        let access = if context.is_preflight { Access::None } else { route.access };
        self.authenticate(http, context, access).await?;
        let identity = context.session.as_ref().map(|session| &session.identity);
        if let Some(identity) = identity {
            if !route.accepts_app(&identity.app_id) {
                return Err(Rejection::WrongApp);
            }
            if let Some(rate) = rates.and_then(|rates| rates.per_user.as_ref()) {
                rate.check(&(&identity.app_id, &identity.openid))?;
            }
        }
        context.pool = route.pool(identity);
        Ok(route.answer().cloned())
    }

    pub(super) async fn authenticate(
        &self,
        http: &HttpSession,
        context: &mut RequestContext,
        access: Access,
    ) -> Result<(), Rejection> {
        let headers = &http.req_header().headers;
        let verdict = context.policy.authenticator.authenticate(headers, access).await;
        let decision = match (&verdict, access) {
            (_, Access::None) => None,
            (Ok(Some(_)), _) => Some(Decision::Ok),
            (Ok(None), _) => Some(Decision::Anonymous),
            (Err(error), _) => Some(error.decision()),
        };
        if let Some(decision) = decision {
            self.process.metrics.decided(decision);
        }
        context.decision = decision;
        context.session = verdict.map_err(|error| Rejection::from(&error))?;
        Ok(())
    }
}

/// Counts a request of its client's address. Behind the address of a trusted proxy stands
/// anybody, so it counts for nobody.
pub fn check_address(context: &RequestContext, rate: Option<&RateLimit>) -> Result<(), Rejection> {
    match rate {
        Some(rate) if !context.policy.trusted_proxies.contains(context.client.address) => {
            rate.check_address(context.client.address)
        }
        _ => Ok(()),
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
