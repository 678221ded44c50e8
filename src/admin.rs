//! The admin listener: metrics and probes, never on a public port.

use std::sync::Arc;

use http::Method;

use crate::http_server::{Request, Response, response};
use crate::policy::Process;

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers one request of the admin listener.
pub fn answer(process: &Arc<Process>, request: &Request) -> Response {
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
