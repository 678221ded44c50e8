//! The gateway's own endpoints: login, logout, session, health.

use std::net::IpAddr;
use std::time::Duration;

use http::header::{CONTENT_TYPE, EXPECT, REFERER};
use http::{HeaderValue, Method, Version};
use pingora::Error;
use pingora::proxy::Session as HttpSession;
use serde::Serialize;

use super::admission::{Refusal, content_length};
use super::context::RequestContext;
use super::{Gateway, failure};
use crate::access_log::{self, Line};
use crate::answer::Answer;
use crate::config::Access;
use crate::forwarded;
use crate::inject::REQUEST_ID;
use crate::lifecycle::Lifecycle;
use crate::login::request::{ContentType, LoginRequest};
use crate::login::{Login, LoginFacts, Sender};
use crate::policy::{Policy, Process};
use crate::rejection::Rejection;
use crate::route::Endpoint;

impl Gateway {
    pub(super) async fn login(
        &self,
        http: &mut HttpSession,
        context: &mut RequestContext,
    ) -> Result<Answer, Refusal> {
        let policy = context.policy.clone();
        let login = &policy.login;
        let request = http.req_header();
        let is_query = request.method == Method::GET;
        if let Err(rejection) =
            policy.check_address(context.client.address, policy.login_rate.as_deref())
        {
            login.refused(&rejection);
            return Err(rejection.into());
        }
        if is_query {
            let query = request.uri.query().unwrap_or_default();
            return serve(login, http, context, LoginRequest::Query(query)).await;
        }
        let lines = request.headers.get_all(CONTENT_TYPE).iter().map(HeaderValue::as_bytes);
        let content_type = ContentType::read(lines);
        let body = match read_body(http, login.max_body(), policy.limits.body_timeout).await {
            Ok(body) => body,
            Err(Refusal::Answered(rejection)) => {
                login.refused(&rejection);
                return Err(rejection.into());
            }
            Err(left) => return Err(left),
        };
        let request = LoginRequest::Body { content_type, body: &body };
        serve(login, http, context, request).await
    }

    pub(super) async fn logout(
        &self,
        http: &HttpSession,
        context: &RequestContext,
    ) -> Result<Answer, Rejection> {
        context
            .policy
            .authenticator
            .revoke(&http.req_header().headers)
            .await
            .map_err(|error| Rejection::from(&error))?;
        Ok(Answer::empty(204))
    }

    pub(super) async fn session(
        &self,
        http: &HttpSession,
        context: &mut RequestContext,
    ) -> Result<Answer, Rejection> {
        #[derive(Serialize)]
        struct Shown<'a> {
            expires_in: u64,
            app_id: &'a str,
        }

        self.authenticate(http, context, Access::Required).await?;
        let session = context.verdict.session.as_ref().ok_or(Rejection::InternalError)?;
        let expires_in = self.process.sessions.expires_in(session).as_secs();
        let app_id = session.identity.app_id.as_str();
        Ok(Answer::json(200, &Shown { expires_in, app_id }))
    }
}

/// A request that is answered without a route, as the last one of its connection.
pub struct Plain<'a> {
    pub endpoint: Endpoint,
    pub method: &'a str,
    pub path: &'a str,
    pub took: Duration,
}

impl Plain<'_> {
    /// A head that never was a request. It took no time.
    pub const NONE: Self =
        Self { endpoint: Endpoint::None, method: "", path: "", took: Duration::ZERO };

    /// Counts the request, writes its access line, and makes the bytes of the response.
    pub fn answer(
        &self,
        process: &Process,
        policy: &Policy,
        client: IpAddr,
        answer: Result<Answer, Rejection>,
    ) -> Vec<u8> {
        let request_id_value = forwarded::fresh_request_id();
        let request_id = request_id_value.to_str().unwrap_or_default();
        let error = answer.as_ref().err().map(Rejection::error);
        let mut answer = answer
            .unwrap_or_else(|rejection| rejection.answer(request_id, policy.error_body.as_ref()));
        answer.header(REQUEST_ID.clone(), request_id_value.clone());
        answer.add_missing(&policy.response_headers);
        let is_to_head = self.method == "HEAD";
        let metrics = policy.metrics(self.endpoint);
        metrics.observe(answer.status, self.took);
        process.access_log.write(&Line {
            time: access_log::timestamp(),
            request_id,
            client,
            method: self.method,
            path: self.path,
            route: metrics.label(),
            status: answer.status,
            error,
            duration_ms: access_log::milliseconds(self.took),
            upstream: None,
            upstream_status: None,
            bytes_in: 0,
            bytes_out: if is_to_head { 0 } else { answer.body.len() },
            decision: None,
            app_id: None,
            user: None,
            errcode: None,
        });
        answer.to_closing_http1(is_to_head)
    }
}

/// Serves a login, and keeps what the access log says of it.
async fn serve(
    login: &Login,
    http: &HttpSession,
    context: &mut RequestContext,
    request: LoginRequest<'_>,
) -> Result<Answer, Refusal> {
    let mut facts = LoginFacts::default();
    let referer = http.req_header().headers.get(REFERER);
    let sender = Sender {
        client: context.client.address,
        request_id: context.request_id(),
        referer: referer.and_then(|value| value.to_str().ok()),
    };
    let answer = login.serve(request, sender, &mut facts).await;
    context.login = Some(Box::new(facts));
    Ok(answer?)
}

/// The response of the health path to a method that it accepts.
pub fn health(lifecycle: &Lifecycle) -> Answer {
    let (status, text) = if lifecycle.is_draining() { (503, "draining\n") } else { (200, "ok\n") };
    let mut answer = Answer::empty(status);
    answer.header(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer.body = text.into();
    answer
}

/// Reads a whole body of `limit` bytes at most, within `time`.
async fn read_body(
    http: &mut HttpSession,
    limit: usize,
    time: Duration,
) -> Result<Vec<u8>, Refusal> {
    let request = http.req_header();
    if content_length(request).is_some_and(|length| length > limit as u64) {
        return Err(Rejection::BodyTooLarge.into());
    }
    let expect = request.headers.get(EXPECT);
    let waits = expect.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if waits && request.version != Version::HTTP_10 {
        // Asking for the body would otherwise count as answering before it has come, after
        // which pingora closes the connection.
        http.set_close_on_response_before_downstream_finish(false);
        let asked = http.write_continue_response().await;
        http.set_close_on_response_before_downstream_finish(true);
        asked.map_err(Refusal::Left)?;
    }
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) =
            http.read_request_body().await.map_err(Error::into_down).map_err(|error| {
                failure::rejection(&error).map_or(Refusal::Left(error), Refusal::Answered)
            })?
        {
            if body.len() + chunk.len() > limit {
                return Err(Rejection::BodyTooLarge.into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(time, read).await.unwrap_or(Err(Rejection::RequestTimeout.into()))
}
