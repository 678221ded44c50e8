//! Responses to requests without a route: redirects, and request headers that cannot be parsed.

use std::net::IpAddr;
use std::time::Duration;

use super::grpc;
use crate::access::identity_headers::REQUEST_ID;
use crate::access::trusted_proxies;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::policy::{Policy, Process};
use crate::route::Endpoint;
use crate::telemetry::access_log::AccessLine;

/// A request without a route, the last one of its connection.
pub struct UnroutedRequest<'a> {
    pub endpoint: Endpoint,
    pub method: &'a str,
    pub path: &'a str,
    pub took: Duration,
    /// Whether the client expects errors of gRPC.
    pub is_grpc: bool,
}

impl UnroutedRequest<'_> {
    /// A request header that cannot be parsed. Its duration is zero.
    pub const UNPARSED: Self = Self {
        endpoint: Endpoint::None,
        method: "",
        path: "",
        took: Duration::ZERO,
        is_grpc: false,
    };

    /// Counts the request, writes its access log line, and returns the bytes of the response.
    pub fn respond(
        &self,
        process: &Process,
        policy: &Policy,
        client: IpAddr,
        response: Result<OwnResponse, Rejection>,
    ) -> Vec<u8> {
        let request_id_value = trusted_proxies::fresh_request_id();
        let request_id = request_id_value.to_str().unwrap_or_default();
        let (mut response, rejection) = match response {
            Ok(response) => (response, None),
            Err(rejection) => {
                let body = policy.error_body.as_ref();
                (rejection.response(request_id, body, None), Some(rejection))
            }
        };
        let error = rejection.as_ref().map(Rejection::error);
        response.header(REQUEST_ID.clone(), request_id_value.clone());
        response.add_missing(&policy.response_headers);
        let is_to_head = self.method == "HEAD";
        let metrics = policy.metrics(self.endpoint);
        metrics.observe(response.status, self.took);
        process.access_log.write(&AccessLine {
            method: self.method,
            path: self.path,
            route: metrics.label(),
            error,
            bytes_out: if is_to_head { 0 } else { response.body.len() },
            ..AccessLine::new(request_id, client, response.status, self.took)
        });
        if let Some(rejection) = rejection.filter(|_| self.is_grpc) {
            grpc::trailers_only(&mut response, rejection.message());
        }
        response.to_closing_http1(is_to_head)
    }
}
