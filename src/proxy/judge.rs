//! Decides whether a request is served, and by whom: the gateway itself, or the service of a route.

use super::Gateway;
use super::client::ClientConnection;
use super::endpoints::{health, jwks};
use super::failure::Stop;
use super::request::{Request, route_lookup};
use crate::access::websocket;
use crate::browser::tickets::TicketParameter;
use crate::message::chunked::Chunked;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::message::request_header::Framing;
use crate::policy::RoutedRequest;
use crate::route::Endpoint;

impl Gateway {
    /// Decides how a request is served. `Some` is the gateway's own response; with `None` the
    /// request is forwarded.
    pub(super) async fn judge(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
    ) -> Result<Option<OwnResponse>, Stop> {
        if request.header.framing == Framing::Chunked
            && !request.is_http2
            && Chunked::new().follow(&client.held).is_err()
        {
            // Rejected on every path, because the end of the body is unknown.
            request.closes = true;
            return Err(Rejection::BadRequest("the body is malformed").into());
        }
        let policy = request.policy.clone();
        let lookup = route_lookup(&request.header, &request.lines, &request.method, &policy.routes);
        (request.endpoint, request.is_preflight) = policy.routes.match_request(&lookup)?;
        if request.header.wants_websocket {
            // Checked before the session is looked up: a rejected handshake needs no session.
            if !request.route().is_some_and(|route| route.websocket) {
                return Err(websocket::NOT_ALLOWED.into());
            }
            websocket::judge_handshake(&request.method, &request.lines)?;
            request.is_websocket = true;
        }
        let takes_query = policy.login.accepts_query();
        request.endpoint.judge_method(request.method.as_str(), takes_query)?;
        let response = match request.endpoint {
            Endpoint::Route(index) => {
                // Requests of a forward-auth-only route are forwarded by another proxy.
                let served =
                    policy.routes.served(index).filter(|one| !one.route.is_forward_auth_only());
                let served = served.ok_or(Rejection::NoRoute)?;
                let route = &served.route;
                if policy.tickets.is_some() {
                    let target = request.header.path_and_query.of(request.lines.text());
                    request.ticket = TicketParameter::find(target);
                    if request.ticket.is_some_and(|ticket| ticket.is_repeated) {
                        return Err(Rejection::BadRequest("more than one ticket").into());
                    }
                }
                if request.is_preflight
                    && let Some(cors) = &route.cors
                {
                    return Ok(Some(cors.preflight_response(&request.lines)));
                }
                let ticket = if request.ticket.is_some() { request.ticket_use() } else { None };
                let routed = RoutedRequest {
                    lookup,
                    is_preflight: request.is_preflight,
                    host: request.browser(),
                    is_websocket: request.is_websocket,
                    ticket: ticket.as_deref(),
                    client: request.client.address,
                    length: match request.header.framing {
                        Framing::Length(length) => Some(length),
                        Framing::Chunked => None,
                    },
                };
                let (verdict, admitted) = policy.admit(served, &routed).await;
                request.verdict = verdict;
                if let Err(rejection) = admitted {
                    let page = Self::page_instead(request, &rejection);
                    return page.map(Some).ok_or(rejection.into());
                }
                if request.is_offered_cookie()
                    && let Some(response) = Box::pin(Self::cookie_for_ticket(request)).await?
                {
                    return Ok(Some(response));
                }
                request.pool = route.pool(request.verdict.identity());
                // The route has a response in the configuration.
                return Ok(route.own_response().cloned());
            }
            // Boxed: these requests are rare, and would make the future of every request larger.
            Endpoint::Login => Box::pin(self.login(client, request)).await?,
            Endpoint::Logout => Box::pin(self.logout(request)).await?,
            Endpoint::Session => Box::pin(self.session(request)).await?,
            Endpoint::Start => Self::start(request)?,
            Endpoint::Callback => Box::pin(self.callback(request)).await?,
            Endpoint::Ticket => Box::pin(self.ticket(client, request)).await?,
            Endpoint::Scan => Box::pin(self.start_scan(request)).await?,
            Endpoint::ScanById => Box::pin(self.scan(client, request)).await?,
            Endpoint::Health => health(&self.process.lifecycle),
            Endpoint::Jwks => jwks(&request.policy)?,
            Endpoint::None => return Err(Rejection::NoRoute.into()),
        };
        Ok(Some(response))
    }
}
