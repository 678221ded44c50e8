//! Tickets: how they are made, and the cookie that a web-view gets for one.

use http::Method;
use http::header::{SET_COOKIE, USER_AGENT};
use serde::Serialize;

use crate::access::authenticator::AuthError;
use crate::access::cross_site::SEC_FETCH_SITE;
use crate::browser::page_request::is_page_request;
use crate::browser::pages;
use crate::browser::tickets::{self, CookieOffer, TicketParameter, TicketRequest};
use crate::config::Access;
use crate::identity::AppId;
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::message::request_header::judge_forwarded;
use crate::proxy::Gateway;
use crate::proxy::client::ClientConnection;
use crate::proxy::endpoints::read_body;
use crate::proxy::failure::Stop;
use crate::proxy::request::Request;

/// Bytes of a request for a ticket.
const MOST_BODY: u64 = 4 << 10;

impl Gateway {
    /// Makes a ticket for the session of a request.
    pub(in crate::proxy) async fn ticket(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
    ) -> Result<OwnResponse, Stop> {
        #[derive(Serialize)]
        struct Shown<'a> {
            ticket: &'a str,
            expires_in: u64,
        }

        let policy = request.policy.clone();
        let tickets = policy.tickets.as_ref().ok_or(Rejection::NoRoute)?;
        let found;
        (request.verdict, found) =
            policy.authenticate(&request.lines, Access::Required, &request.site()).await;
        found?;
        let time = policy.limits.body_timeout;
        let body = read_body(client, request, MOST_BODY, time, None).await?;
        let wanted: TicketRequest = serde_json::from_slice(&body).map_err(|_| {
            Rejection::BadRequest("the body must be JSON with the field \"path\", a string")
        })?;
        if !is_served(request, &wanted.path) {
            return Err(Rejection::BadRequest("\"path\" does not match a route").into());
        }
        let session = request.verdict.session.clone().ok_or(Rejection::InternalError)?;
        let ticket = tickets.make(&session, &wanted).await?;
        let expires_in = tickets::LIFE.as_secs();
        Ok(OwnResponse::json(200, &Shown { ticket: ticket.expose(), expires_in }))
    }

    /// The response to a page request of a web-view inside the session's own Mini Program, which
    /// sets the browser's session cookie and leads to the same page without the ticket. `None`: the
    /// page is served for this one request.
    ///
    /// No other user may be logged in there, and no other page may have caused the request: a link
    /// must not log a user in to the session of the user who made it.
    pub(in crate::proxy) async fn cookie_for_ticket(
        request: &Request,
    ) -> Result<Option<OwnResponse>, Rejection> {
        let (policy, lines) = (&request.policy, &request.lines);
        let session = request.verdict.session.as_ref();
        let (Some(host), Some(session), Some(tickets), Some(used)) =
            (request.browser(), session, &policy.tickets, request.ticket_use())
        else {
            return Ok(None);
        };
        if !is_page_request(&request.method, lines)
            || !is_in_mini_program(lines, &session.identity.app_id)
            || !(lines.first(&SEC_FETCH_SITE).is_none()
                || lines.only(&SEC_FETCH_SITE) == Some(b"none"))
        {
            return Ok(None);
        }
        let mut response = pages::redirect(&used.target);
        match policy.authenticator.session_of_cookie(lines, host).await {
            Ok(None) => {}
            Ok(Some(other)) if other.identity.user() == session.identity.user() => {
                return Ok(Some(response));
            }
            Ok(Some(_)) | Err(AuthError::ConflictingTokens) => return Ok(None),
            Err(error) => return Err(Rejection::from(&error)),
        }
        let (offer, id) = (request.verdict.offer, request.id_text());
        let token = tickets.exchange(offer, &used, session, &policy.login, id).await?;
        Ok(token.map(|token| {
            response.header(SET_COOKIE, host.session_cookie(&token));
            response
        }))
    }
}

impl Request {
    /// Whether its ticket may be exchanged for a cookie.
    pub(in crate::proxy) fn is_offered_cookie(&self) -> bool {
        self.verdict.offer != CookieOffer::None
    }
}

/// Whether the program that a browser is part of is this Mini Program. Its web-view says so at the
/// end of `User-Agent`; the browser of a chat does not.
fn is_in_mini_program(headers: &impl Headers, app_id: &AppId) -> bool {
    let agent = headers.only(&USER_AGENT).unwrap_or_default();
    let name = format!("miniProgram/{}", app_id.as_str());
    memchr::memmem::find_iter(agent, name.as_bytes()).any(|at| {
        let after = agent.get(at + name.len());
        !after.is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    })
}

/// Whether a ticket may be for a path: one that a request can have, and that matches a route of any
/// host, because pages and images may have another one than the endpoint. A ticket goes to places
/// that send no headers, so routes with conditions on headers do not count.
fn is_served(request: &Request, path: &str) -> bool {
    let policy = &request.policy;
    let (target, only_path) = (path.as_bytes(), path.split('?').next().unwrap_or_default());
    path.len() <= tickets::LONGEST_PATH
        && judge_forwarded(b"GET", target, b"localhost", policy.header_limits).is_ok()
        // A browser would take it for a host in `Location`.
        && !only_path.contains("//")
        && TicketParameter::find(target).is_none()
        && policy.routes.serve_anywhere(only_path, &Method::GET)
}
