//! Whether a route accepts a request, and which session it has.
//!
//! Two callers need this decision: `proxy` forwards what is admitted, and `edge::forward_auth` only
//! reports the decision to another proxy. Method, rates, session and app are checked here and
//! nowhere else. A rejection comes with the [`Verdict`] up to that point, for the log. This module
//! does not know which path led to the route, or what the response looks like.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Policy, ServedRoute};
use crate::access::authenticator::Decision;
use crate::access::rate_limiter::RateLimit;
use crate::config::Access;
use crate::identity::Identity;
use crate::message::header::Headers;
use crate::message::rejection::Rejection;
use crate::route::RouteLookup;
use crate::session::Session;

/// A request that has matched a route.
pub struct RoutedRequest<'a, H = http::HeaderMap> {
    pub lookup: RouteLookup<'a, H>,
    /// Whether it is a preflight that is handled as the route says.
    pub is_preflight: bool,
    /// The client's address, as far as it is known.
    pub client: IpAddr,
    /// The announced length of its body.
    pub length: Option<u64>,
}

/// The session of a request, if it has one, and the outcome of authentication.
#[derive(Default)]
pub struct Verdict {
    pub session: Option<Arc<Session>>,
    pub decision: Option<Decision>,
}

impl Verdict {
    pub fn identity(&self) -> Option<&Identity> {
        self.session.as_ref().map(|session| &session.identity)
    }
}

impl Policy {
    /// Finds the session of a request, and the rejection if the route does not accept the request.
    pub async fn admit(
        &self,
        served: &ServedRoute,
        routed: &RoutedRequest<'_, impl Headers>,
    ) -> (Verdict, Result<(), Rejection>) {
        if let Err(rejection) = self.admit_any(served, routed) {
            return (Verdict::default(), Err(rejection));
        }
        // Browsers send no token with a preflight.
        let access = if routed.is_preflight { Access::None } else { served.route.access };
        let (verdict, found) = self.authenticate(routed.lookup.headers, access).await;
        let admitted = found.and_then(|()| admit_user(served, verdict.identity()));
        (verdict, admitted)
    }

    /// Checks what does not depend on the session.
    fn admit_any(
        &self,
        served: &ServedRoute,
        routed: &RoutedRequest<'_, impl Headers>,
    ) -> Result<(), Rejection> {
        let ServedRoute { route, state } = served;
        let RoutedRequest { lookup, is_preflight, client, length } = *routed;
        if !is_preflight && !route.allows_method(lookup.method) {
            let allow = Cow::Owned(self.routes.allow(&lookup));
            return Err(Rejection::MethodNotAllowed { allow });
        }
        self.check_address(client, state.rate_per_address.as_deref())?;
        if length.is_some_and(|length| length > route.max_body) {
            return Err(Rejection::BodyTooLarge);
        }
        Ok(())
    }

    /// Looks up the session of a request, and counts the decision. The error says why there is no
    /// session where one is needed.
    pub async fn authenticate(
        &self,
        headers: &impl Headers,
        access: Access,
    ) -> (Verdict, Result<(), Rejection>) {
        let found = self.authenticator.authenticate(headers, access).await;
        let decision = match (&found, access) {
            (_, Access::None) => None,
            (Ok(Some(_)), _) => Some(Decision::Ok),
            (Ok(None), _) => Some(Decision::Anonymous),
            (Err(error), _) => Some(error.decision()),
        };
        if let Some(decision) = decision {
            self.decisions.count(decision as usize);
        }
        match found {
            Ok(session) => (Verdict { session, decision }, Ok(())),
            Err(error) => (Verdict { session: None, decision }, Err(Rejection::from(&error))),
        }
    }

    /// Counts a request of a client's address. The address of a trusted proxy is not limited: any
    /// number of clients may be behind it.
    ///
    /// # Errors
    /// When the address has reached its rate limit.
    pub fn check_address(&self, client: IpAddr, rate: Option<&RateLimit>) -> Result<(), Rejection> {
        match rate {
            Some(rate) if !self.trusted_proxies.contains(client) => rate.check_address(client),
            _ => Ok(()),
        }
    }
}

/// Checks the user of a session, if there is one.
fn admit_user(served: &ServedRoute, identity: Option<&Identity>) -> Result<(), Rejection> {
    let Some(identity) = identity else { return Ok(()) };
    if !served.route.accepts_app(&identity.app_id) {
        return Err(Rejection::WrongApp);
    }
    match &served.state.rate_per_user {
        Some(rate) => rate.check(&(&identity.app_id, &identity.openid)),
        None => Ok(()),
    }
}
