//! Listeners that redirect every client to HTTPS.
//!
//! Request headers have the same deadlines and limits as on other listeners, and are validated in
//! the same way. Then the gateway responds itself: nothing that is received unencrypted is
//! forwarded, or searched for a token. The Location consists of the validated host and target, in
//! which no byte can end a line. A connection is closed after one request, because the next one
//! belongs on an HTTPS listener.

use std::time::Instant;

use http::HeaderValue;
use http::header::LOCATION;
use tokio::sync::watch;

use super::Edge;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::message::request_header::RequestSummary;
use crate::proxy::{self, ClientConnection, NextRequest, UnroutedRequest, closed};
use crate::route::Endpoint;

const HTTPS: u16 = 443;

impl Edge {
    pub(super) async fn redirect(
        &self,
        client: &mut ClientConnection,
        mut closing: watch::Receiver<bool>,
    ) {
        let wait = tokio::select! {
            wait = client.next_request(&self.policies, true, None) => wait,
            () = closed(&mut closing) => return,
        };
        let (header, policy) = match wait {
            NextRequest::Header(header, policy) => (header, policy),
            NextRequest::Rejected(rejection) => {
                return self.gateway.reject(client, &rejection).await;
            }
            NextRequest::Ended => return,
        };
        let began = Instant::now();
        let text = std::mem::take(&mut client.held);
        let summary = RequestSummary {
            method: header.method.text(&text),
            path_and_query: header.path_and_query.text(&text),
            host: header.host.map(|host| host.text(&text)),
        };
        let is_health = policy.routes.is_health(summary.path().as_bytes());
        let (endpoint, response) = if is_health {
            let judged = Endpoint::Health.judge_method(summary.method, false);
            (Endpoint::Health, judged.map(|()| proxy::health(&self.process.lifecycle)))
        } else {
            (Endpoint::None, elsewhere(&summary, policy.redirect_port))
        };
        let (method, path, took) = (summary.method, summary.path(), began.elapsed());
        let request = UnroutedRequest { endpoint, method, path, took, is_grpc: false };
        self.gateway.respond_and_close(client, &request, response).await;
    }
}

/// 308, because with 301 clients may change the method and drop the body.
fn elsewhere(summary: &RequestSummary<'_>, port: u16) -> Result<OwnResponse, Rejection> {
    let host = summary.host.ok_or(Rejection::BadRequest("Host is missing"))?;
    let host = without_port(host);
    let port = if port == HTTPS { String::new() } else { format!(":{port}") };
    let slash = if summary.path_and_query.starts_with('/') { "" } else { "/" };
    let location = format!("https://{host}{port}{slash}{}", summary.path_and_query);
    let location = HeaderValue::try_from(location).map_err(|_| Rejection::InternalError)?;
    let mut response = OwnResponse::empty(308);
    response.header(LOCATION, location);
    Ok(response)
}

/// A validated host without its port: a name, an IPv4 address, or an IPv6 address in brackets.
fn without_port(host: &str) -> &str {
    let end = match host.find(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    host.get(..end).unwrap_or(host)
}
