//! The gateway's own endpoints: login, logout, session, health, public keys; `browser` has those of
//! web pages, `ticket` and `scan` the others of browsers.

mod browser;
mod scan;
mod ticket;

use std::time::Duration;

use http::header::{CONTENT_TYPE, REFERER};
use http::{HeaderValue, Method};
use serde::Serialize;
use tokio::time::Instant;

use super::Gateway;
use super::body::{BodySource, BodyTarget, Broken, Limits, Transfer};
use super::buffered::BufferShare;
use super::client::ClientConnection;
use super::failure::{Stop, of_request_body};
use super::request::{CONTINUE, Request};
use crate::config::Access;
use crate::login::Sender;
use crate::login::request::{ContentType, LoginRequest};
use crate::message::chunked::Chunked;
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::message::request_header::Framing;
use crate::policy::Policy;
use crate::policy::lifecycle::Lifecycle;

impl Gateway {
    pub(super) async fn login(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
    ) -> Result<OwnResponse, Stop> {
        let received_at = self.process.clock.now_millis();
        let policy = request.policy.clone();
        let login = &policy.login;
        let address = request.client.address;
        if let Err(rejection) = policy.check_address(address, policy.login_rate.as_deref()) {
            login.count_rejected(&rejection);
            return Err(rejection.into());
        }
        if request.method == Method::GET {
            let query = request.query().unwrap_or_default().to_owned();
            return self.serve_login(request, LoginRequest::Query(&query), received_at).await;
        }
        let time = policy.limits.body_timeout;
        let body = match read_body(client, request, login.max_body() as u64, time, None).await {
            Ok(body) => body,
            Err(stop) => {
                if let Stop::Rejected(rejection) = &stop {
                    login.count_rejected(rejection);
                }
                return Err(stop);
            }
        };
        let content_type = ContentType::read(request.lines.values_of(&CONTENT_TYPE));
        let body = LoginRequest::Body { content_type, body: &body };
        self.serve_login(request, body, received_at).await
    }

    /// Serves a login, and keeps the facts for the access log.
    async fn serve_login(
        &self,
        request: &mut Request,
        login: LoginRequest<'_>,
        received_at_millis: u64,
    ) -> Result<OwnResponse, Stop> {
        let referer = request.lines.first(&REFERER);
        let sender = Sender {
            client: request.client.address,
            request_id: request.id_text(),
            referer: referer.and_then(|value| std::str::from_utf8(value).ok()),
            received_at_millis,
        };
        let (facts, response) = request.policy.login.serve(login, sender).await;
        request.login = Some(Box::new(facts));
        Ok(response?)
    }

    pub(super) async fn logout(&self, request: &mut Request) -> Result<OwnResponse, Rejection> {
        let policy = &request.policy;
        request.verdict.cookie =
            policy.authenticator.revoke(&request.lines, &request.site()).await?;
        Ok(OwnResponse::empty(204))
    }

    pub(super) async fn session(&self, request: &mut Request) -> Result<OwnResponse, Rejection> {
        #[derive(Serialize)]
        struct Shown<'a> {
            expires_in: u64,
            app_id: &'a str,
        }

        let policy = request.policy.clone();
        let found;
        (request.verdict, found) =
            policy.authenticate(&request.lines, Access::Required, &request.site()).await;
        found?;
        let session = request.verdict.session.as_ref().ok_or(Rejection::InternalError)?;
        let expires_in = self.process.sessions.expires_in(session).as_secs();
        let app_id = session.identity.app_id.as_str();
        Ok(OwnResponse::json(200, &Shown { expires_in, app_id }))
    }
}

/// The response of the health endpoint to a method that it allows.
pub fn health(lifecycle: &Lifecycle) -> OwnResponse {
    let (status, text) = if lifecycle.is_draining() { (503, "draining\n") } else { (200, "ok\n") };
    let mut response = OwnResponse::empty(status);
    response.header(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response.body = text.into();
    response
}

/// The public keys that verify signed identities.
///
/// # Errors
/// When identities are not signed.
pub(super) fn jwks(policy: &Policy) -> Result<OwnResponse, Rejection> {
    let signed = policy.signed_identity.as_ref().ok_or(Rejection::NoRoute)?;
    Ok(signed.jwks().clone())
}

/// Reads a whole body of at most `limit` bytes, within `time`. Its bytes are counted in `share`, if
/// there is one.
pub(super) async fn read_body(
    client: &mut ClientConnection,
    request: &mut Request,
    limit: u64,
    time: Duration,
    mut share: Option<&mut BufferShare<'_>>,
) -> Result<Vec<u8>, Stop> {
    let source = match request.header.framing {
        Framing::Length(length) if length > limit => {
            return Err(Rejection::BodyTooLarge.into());
        }
        Framing::Length(length) => BodySource::Length(length),
        Framing::Chunked if request.is_http2 => BodySource::Close,
        Framing::Chunked => BodySource::Chunked(Chunked::new()),
    };
    if request.expects_continue() {
        let patience = request.policy.limits.write_timeout;
        let sent = client.send_informational(CONTINUE, patience).await;
        sent.map_err(|_| Stop::Disconnected)?;
    }
    let limits = Limits { bytes: limit, ..Limits::NONE };
    let mut transfer = Transfer::new(source, BodyTarget::Plain, limits, Vec::new());
    let end = Instant::now() + time;
    // The connection cannot be reused until the whole body has been read.
    let closes = std::mem::replace(&mut request.closes, true);
    request.is_read = true;
    loop {
        transfer.take(&mut client.held, &mut |_, _| Ok(())).map_err(of_request_body)?;
        if share.as_mut().is_some_and(|share| !share.grow_to(transfer.received)) {
            return Err(Rejection::Overloaded.into());
        }
        if transfer.is_received() {
            break;
        }
        client.deadline.set(end);
        match client.read_more().await {
            Some(Ok(1..)) => {}
            Some(Ok(0)) if request.is_http2 && request.header.content_length.is_none() => break,
            Some(_) => return Err(of_request_body(Broken::Ended)),
            None => return Err(Rejection::RequestTimeout.into()),
        }
    }
    request.closes = closes;
    request.bytes_in = transfer.received;
    Ok(std::mem::take(&mut transfer.output))
}
