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
use crate::access::authenticator::{AuthError, CookieUse, Decision};
use crate::access::browsers::BrowserHost;
use crate::access::cross_site::Site;
use crate::access::rate_limiter::RateLimit;
use crate::browser::tickets::{self, CookieOffer, Redeemed, TicketUse, Tickets};
use crate::config::Access;
use crate::identity::Identity;
use crate::message::header::Headers;
use crate::message::rejection::Rejection;
use crate::route::RouteLookup;
use crate::session::Session;

/// A request that has matched a route.
pub struct RoutedRequest<'a, H = http::HeaderMap> {
    pub lookup: RouteLookup<'a, H>,
    /// Whether it is a preflight: then its method is not checked, and no session is looked up.
    pub is_preflight: bool,
    /// The `[[browser]]` of its host.
    pub host: Option<&'a BrowserHost>,
    pub is_websocket: bool,
    /// The ticket in its query, if tickets are read.
    pub ticket: Option<&'a TicketUse<'a>>,
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
    pub cookie: CookieUse,
    /// Whether its ticket may be exchanged for a cookie.
    pub offer: CookieOffer,
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
        let site = Site {
            host: routed.host,
            method: routed.lookup.method,
            is_websocket: routed.is_websocket,
            cors: served.route.cors.as_ref(),
        };
        let (verdict, found) = match (routed.ticket, &self.tickets) {
            // Boxed: it is rare, and would make the future of every request larger.
            (Some(used), Some(tickets)) if access != Access::None => {
                Box::pin(self.authenticate_ticket(tickets, used, &routed.lookup)).await
            }
            _ => self.authenticate(routed.lookup.headers, access, &site).await,
        };
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
        let RoutedRequest { lookup, is_preflight, client, length, .. } = *routed;
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
    /// session where one is needed, or why it cannot be used.
    pub async fn authenticate(
        &self,
        headers: &impl Headers,
        access: Access,
        site: &Site<'_>,
    ) -> (Verdict, Result<(), Rejection>) {
        let (cookie, found) = self.authenticator.authenticate(headers, access, site.host).await;
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
            Ok(session) => {
                let judged = if cookie == CookieUse::Used { site.check(headers) } else { Ok(()) };
                (Verdict { session, decision, cookie, ..Verdict::default() }, judged)
            }
            Err(error) => {
                let verdict = Verdict { decision, cookie, ..Verdict::default() };
                (verdict, Err(Rejection::from(&error)))
            }
        }
    }

    /// The same by a ticket. No token in a header is allowed beside it, and no cookie is read.
    /// There is no cross-site rule: unlike a cookie, a ticket is not added to requests by browsers.
    async fn authenticate_ticket(
        &self,
        tickets: &Tickets,
        used: &TicketUse<'_>,
        lookup: &RouteLookup<'_, impl Headers>,
    ) -> (Verdict, Result<(), Rejection>) {
        let found = if self.authenticator.has_token(lookup.headers) {
            Err(AuthError::ConflictingTokens)
        } else if !tickets::allows_method(lookup.method) {
            Err(AuthError::InvalidToken)
        } else {
            tickets.redeem(used, &self.authenticator).await
        };
        let decision = found.as_ref().map_or_else(AuthError::decision, |_| Decision::Ok);
        self.decisions.count(decision as usize);
        let mut verdict = Verdict { decision: Some(decision), ..Verdict::default() };
        match found {
            Ok(Redeemed { session, offer }) => {
                (verdict.session, verdict.offer) = (Some(session), offer);
                (verdict, Ok(()))
            }
            Err(error) => (verdict, Err(Rejection::from(&error))),
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
