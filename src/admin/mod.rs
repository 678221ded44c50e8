//! The admin listener: decides what operators can request (metrics, probes, sessions of users), and
//! how. None of it is served on a public listener.

mod error;
mod sessions;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::Full;

use self::error::AdminError;
use crate::access::identity_headers::REQUEST_ID;
use crate::access::signed_identity::JWKS_PATH;
use crate::access::trusted_proxies::{fresh_request_id, is_request_id};
use crate::listener::small_server::{Request, Response, response};
use crate::message::own_response::OwnResponse;
use crate::policy::{Policy, Process};

const TEXT: &str = "text/plain; charset=utf-8";

/// Responds to one request of the admin listener.
pub async fn respond(process: &Process, policy: &Policy, request: &Request) -> Response {
    let request_id = request.headers().get(&REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
    let request_id = request_id.cloned().unwrap_or_else(fresh_request_id);
    match route(process, policy, request, &request_id).await {
        Ok(response) => response,
        Err(error) => into_response(error.response(&request_id)),
    }
}

async fn route(
    process: &Process,
    policy: &Policy,
    request: &Request,
    request_id: &HeaderValue,
) -> Result<Response, AdminError> {
    if let Some(token) = &policy.admin_token
        && let Some(rest) = request.uri().path().strip_prefix(sessions::PATH)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        // A revocation would not find a session that is still being loaded.
        if !process.lifecycle.has_started() {
            return Err(AdminError::StoreUnavailable);
        }
        let id = rest.strip_prefix('/');
        return sessions::respond(process, policy, token, request, request_id, id)
            .await
            .map(into_response);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(AdminError::MethodNotAllowed("GET, HEAD"));
    }
    Ok(match request.uri().path() {
        "/metrics" => metrics(process, policy)?,
        "/healthz" => response(200, TEXT, "ok\n"),
        "/readyz" if process.lifecycle.is_ready() && process.sessions.was_reached() => {
            response(200, TEXT, "ready\n")
        }
        "/readyz" if process.lifecycle.is_draining() => response(503, TEXT, "draining\n"),
        "/readyz" => response(503, TEXT, "starting\n"),
        JWKS_PATH => {
            let signed = policy.signed_identity.as_ref().ok_or(AdminError::NotFound)?;
            into_response(signed.jwks().clone())
        }
        _ => return Err(AdminError::NotFound),
    })
}

fn into_response(own: OwnResponse) -> Response {
    let mut response = Response::new(Full::new(Bytes::from(own.body)));
    *response.status_mut() =
        StatusCode::from_u16(own.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().extend(own.headers);
    response
}

fn metrics(process: &Process, policy: &Policy) -> Result<Response, AdminError> {
    process.sessions.maintain();
    policy.pools.iter().for_each(|pool| pool.update_metrics());
    let text = process.metrics.render().map_err(|error| {
        tracing::error!(%error, "cannot render metrics");
        AdminError::Internal
    })?;
    Ok(response(200, "text/plain; version=0.0.4; charset=utf-8", text))
}
