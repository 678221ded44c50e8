//! The admin listener: metrics, probes and the hold on users' sessions, never on a public port.

mod sessions;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::Full;

use crate::listener::internal::{Request, Response, response};
use crate::message::own_response::OwnResponse;
use crate::policy::{Policy, Process};

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers one request of the admin listener.
pub async fn respond(process: &Process, policy: &Policy, request: &Request) -> Response {
    if let Some(token) = &policy.admin_token
        && let Some(rest) = request.uri().path().strip_prefix(sessions::PATH)
        && (rest.is_empty() || rest.starts_with('/'))
    {
        let id = rest.strip_prefix('/');
        return sent(sessions::respond(process, policy, token, request, id).await);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(405, TEXT, "GET only\n");
        refused
            .headers_mut()
            .insert(http::header::ALLOW, http::HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => metrics(process),
        "/healthz" => response(200, TEXT, "ok\n"),
        "/readyz" if process.lifecycle.is_ready() && process.sessions.was_reached() => {
            response(200, TEXT, "ready\n")
        }
        "/readyz" if process.lifecycle.is_draining() => response(503, TEXT, "draining\n"),
        "/readyz" => response(503, TEXT, "starting\n"),
        _ => response(404, TEXT, "/metrics, /healthz and /readyz are here\n"),
    }
}

fn sent(own: OwnResponse) -> Response {
    let mut response = Response::new(Full::new(Bytes::from(own.body)));
    *response.status_mut() =
        StatusCode::from_u16(own.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().extend(own.headers);
    response
}

fn metrics(process: &Process) -> Response {
    process.sessions.maintain();
    match process.metrics.render() {
        Ok(text) => response(200, "text/plain; version=0.0.4; charset=utf-8", text),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            response(500, TEXT, "metrics cannot be rendered\n")
        }
    }
}
