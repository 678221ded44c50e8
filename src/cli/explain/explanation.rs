//! The data of an explanation, which is also the format of `wxgate explain --json`.

use serde::Serialize;

use super::{ChosenUpstream, ExplainedBrowser};
use crate::message::rejection::Rejection;

/// How a request is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is forwarded, provided that it has a session if the route requires one.
    Forwarded,
    /// The gateway responds itself.
    Answered,
    /// The gateway rejects it.
    Rejected,
    /// Only forward-auth serves the route; public listeners respond with 404.
    ForwardAuth,
}

/// An explanation. The field names are those of `--json`, and must not change.
#[derive(Debug, Serialize)]
pub struct Explanation {
    pub method: String,
    pub host: Option<String>,
    pub path: String,
    pub outcome: Outcome,
    /// The status of the gateway's own response, if it is known.
    pub status: Option<u16>,
    pub error: Option<&'static str>,
    pub reason: Option<String>,
    /// The allowed methods, after a 405.
    pub allow: Option<String>,
    pub endpoint: Option<&'static str>,
    pub route: Option<MatchedRoute>,
    /// `None` also if the route is not known.
    pub browser: Option<ExplainedBrowser>,
    /// Whether the request has a ticket, by which its session is found.
    pub ticket: bool,
    pub upstreams: Vec<ChosenUpstream>,
    /// The request as the service gets it.
    pub request: Option<ForwardedRequest>,
    /// Headers of the client that the service does not get.
    pub removed: Vec<RemovedHeader>,
    pub response_headers: ResponseHeaders,
    pub other_routes: Vec<OtherRoute>,
}

/// The route that a request matches.
#[derive(Debug, Serialize)]
pub struct MatchedRoute {
    pub index: usize,
    pub name: String,
    pub file: String,
    pub line: usize,
    /// The `auth` that applies to this request: `none` for a preflight, which has no session.
    pub auth: &'static str,
    pub preflight: bool,
    /// Empty: every app is accepted.
    pub apps: Vec<String>,
    /// In bytes.
    pub max_body: u64,
    pub rate_per_user: Option<String>,
    pub rate_per_address: Option<String>,
    pub websocket: bool,
    pub cors: bool,
    /// How preflights are handled: `answer` (by the gateway, if the route has CORS), or `pass`.
    pub preflights: &'static str,
}

#[derive(Debug, Serialize)]
pub struct ForwardedRequest {
    pub method: String,
    pub target: String,
    pub headers: Vec<Header>,
}

#[derive(Debug, Serialize)]
pub struct Header {
    pub name: String,
    pub value: String,
}

#[derive(Debug, Serialize)]
pub struct RemovedHeader {
    pub name: String,
    pub reason: String,
}

/// How the route changes responses.
#[derive(Debug, Default, Serialize)]
pub struct ResponseHeaders {
    pub set: Vec<Header>,
    pub removed: Vec<String>,
    /// What is added to `Vary`. If it is set, a response to a user is marked `private`, unless the
    /// service's own `Cache-Control` already says whether it may be shared.
    pub vary: Option<String>,
}

/// A route that is not chosen: the request does not match it, or the chosen one is more specific.
#[derive(Debug, Serialize)]
pub struct OtherRoute {
    pub index: usize,
    pub name: String,
    pub file: String,
    pub line: usize,
    pub reason: String,
}

impl Explanation {
    /// Whether the request is not rejected.
    pub fn is_served(&self) -> bool {
        self.outcome != Outcome::Rejected
    }

    pub(super) fn reject(&mut self, rejection: &Rejection, reason: String) {
        self.outcome = Outcome::Rejected;
        self.status = Some(rejection.status());
        self.error = Some(rejection.error());
        self.reason = Some(reason);
        if let Rejection::MethodNotAllowed { allow } = rejection {
            self.allow = Some(allow.to_string());
        }
    }
}
