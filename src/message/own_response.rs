//! Responses of the gateway itself, independent of the protocol.
//!
//! Login, logout, session, health and every rejection produce an [`OwnResponse`]. `proxy` writes it
//! as the response to a request, or to a connection whose request header was rejected. All of them
//! are `Cache-Control: no-store`, so that no cache keeps them.

use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use serde::Serialize;

/// Status, headers and body of one response. The writer adds Content-Length.
#[derive(Clone)]
pub struct OwnResponse {
    pub status: u16,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Vec<u8>,
}

impl OwnResponse {
    /// A response without a body.
    pub fn empty(status: u16) -> Self {
        Self {
            status,
            headers: vec![(CACHE_CONTROL, HeaderValue::from_static("no-store"))],
            body: Vec::new(),
        }
    }

    /// A JSON response. If a value cannot be serialized, the body is empty. The types that are
    /// passed here are plain structs of strings and numbers, which can always be serialized.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let mut response = Self::empty(status);
        response.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.body = serde_json::to_vec(value).unwrap_or_default();
        // A line end, for terminals.
        response.body.push(b'\n');
        response
    }

    pub fn header(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.push((name, value));
    }

    /// The values of a header, one for each of its lines.
    pub fn values<'a>(
        &'a self,
        name: &'a HeaderName,
    ) -> impl Iterator<Item = &'a HeaderValue> + Clone {
        self.headers.iter().filter(move |(other, _)| other == name).map(|(_, value)| value)
    }

    /// Replaces all lines of a header with one.
    pub fn replace(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value));
    }

    /// Adds the headers that the response does not have yet.
    pub fn add_missing(&mut self, headers: &[(HeaderName, HeaderValue)]) {
        for (name, value) in headers {
            if self.values(name).next().is_none() {
                self.header(name.clone(), value.clone());
            }
        }
    }

    /// The response as HTTP/1.1, for a connection that is closed after it. `is_to_head`: it
    /// responds to a HEAD request, and declares the length of its body but omits the body.
    pub fn to_closing_http1(&self, is_to_head: bool) -> Vec<u8> {
        let reason = http::StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("");
        let mut wire = format!("HTTP/1.1 {} {reason}\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            wire.extend_from_slice(name.as_str().as_bytes());
            wire.extend_from_slice(b": ");
            wire.extend_from_slice(value.as_bytes());
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(
            format!("content-length: {}\r\nconnection: close\r\n\r\n", self.body.len()).as_bytes(),
        );
        if !is_to_head {
            wire.extend_from_slice(&self.body);
        }
        wire
    }
}
