//! One route, prepared for requests: its conditions, its limits, and what it changes.

use http::header::ORIGIN;
use http::{HeaderName, HeaderValue, Method};

use super::cors::Cors;
use super::edit::Edits;
use super::rewrite::Rewrite;
use super::target::{RouteTarget, pool_for};
use crate::config::{Access, Preflight, Route as RouteSection, RouteRetry, Timeouts};
use crate::identity::{AppId, Identity};
use crate::message::caching::Caching;
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;

/// A route, and the state that the caller keeps with it.
pub struct Served<T> {
    pub route: Route,
    pub state: T,
}

/// A route, prepared for requests.
pub struct Route {
    pub name: String,
    pub access: Access,
    /// Whether a page request without a session is sent to WeChat.
    pub redirects: bool,
    pub websocket: bool,
    /// Bytes of a request body.
    pub max_body: u64,
    pub(super) methods: Vec<Method>,
    headers: Vec<(HeaderName, HeaderValue)>,
    apps: Vec<AppId>,
    target: RouteTarget,
    rewrite: Option<Rewrite>,
    pub request_edits: Edits,
    pub response_edits: Edits,
    /// Headers that are added to the gateway's own responses.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    pub caching: Caching,
    pub timeouts: Timeouts,
    pub retry: RouteRetry,
    pub cors: Option<Cors>,
    pub preflight: Preflight,
}

impl Route {
    pub(super) fn new(section: &RouteSection) -> Self {
        let response_edits = Edits::new(&section.response_edits);
        let methods = section.methods.iter();
        let varies_by_origin = section.cors.as_ref().is_some_and(Cors::varies_by_origin);
        let others = varies_by_origin.then_some(ORIGIN);
        Self {
            name: section.name.clone(),
            access: section.access,
            redirects: section.redirects,
            websocket: section.websocket,
            max_body: section.max_body,
            methods: methods.filter_map(|name| Method::from_bytes(name.as_bytes()).ok()).collect(),
            headers: section.headers.clone(),
            apps: section.apps.clone(),
            target: RouteTarget::new(&section.target, &response_edits),
            rewrite: section.rewriting.as_ref().map(Rewrite::new),
            request_edits: Edits::new(&section.request_edits),
            response_edits,
            response_headers: section.response_headers.clone(),
            caching: Caching::new(&section.vary, others.as_slice()),
            timeouts: section.timeouts,
            retry: section.retry,
            cors: section.cors.as_ref().map(Cors::new),
            preflight: section.preflight,
        }
    }

    /// The route's fixed response, which the gateway sends itself, if the route has one.
    pub fn own_response(&self) -> Option<&OwnResponse> {
        match &self.target {
            RouteTarget::OwnResponse(response) => Some(response),
            RouteTarget::Service { .. } | RouteTarget::ForwardAuthOnly => None,
        }
    }

    /// Index of the upstream for a user, among the pools of the policy.
    pub fn pool(&self, identity: Option<&Identity>) -> Option<usize> {
        match &self.target {
            RouteTarget::Service { main, shares } => {
                Some(pool_for(&self.name, *main, shares, identity))
            }
            RouteTarget::OwnResponse(_) | RouteTarget::ForwardAuthOnly => None,
        }
    }

    /// Whether the route is only for forward-auth: the gateway itself serves nothing.
    pub fn is_forward_auth_only(&self) -> bool {
        matches!(self.target, RouteTarget::ForwardAuthOnly)
    }

    /// Whether the path is rewritten for the service.
    pub fn rewrites(&self) -> bool {
        self.rewrite.is_some()
    }

    /// The path and query for the service, if the route rewrites them.
    pub fn rewritten(&self, path_and_query: &str) -> Option<String> {
        let rewrite = self.rewrite.as_ref()?;
        let (path, query) =
            path_and_query.split_at(path_and_query.find('?').unwrap_or(path_and_query.len()));
        Some(rewrite.path(path) + query)
    }

    pub fn allows_method(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// Whether a request has the headers that the route matches on, each once.
    pub(super) fn accepts_headers(&self, headers: &impl Headers) -> bool {
        self.headers.iter().all(|(name, expected)| headers.only(name) == Some(expected.as_bytes()))
    }

    pub fn accepts_app(&self, app_id: &AppId) -> bool {
        self.apps.is_empty() || self.apps.contains(app_id)
    }
}
