//! Matches a request to a route or an endpoint.
//!
//! A path is checked in every way that a service might read it (`readings`). All of the readings must
//! match the same [`Endpoint`]; then the path is forwarded without being normalised. The gateway's
//! own endpoints match exactly, come before routes, and may be limited to some hosts. Among routes
//! the most specific wins (`table`): by host, then path, then headers, then methods. A route whose
//! header conditions are not met is skipped. A route that matches except for its methods is not
//! skipped: less specific routes are not tried.

pub mod cors;
mod edit;
mod endpoint;
mod readings;
mod rewrite;
mod table;
mod target;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use self::cors::Cors;
use self::edit::Edits;
pub use self::endpoint::Endpoint;
use self::rewrite::Rewrite;
use self::table::{HostName, Table, without_port};
use self::target::{RouteTarget, pool_for};
use crate::config::{Access, EndpointsSection, Preflight, Route as RouteSection, Timeouts};
use crate::identity::{AppId, Identity};
use crate::message::caching::Caching;
use crate::message::header::{FoldedNames, Headers, nominated};
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;

/// Why a path is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path contains invalid bytes or escapes")]
    Malformed,
    #[error("servers could read the path in different ways")]
    Ambiguous,
    #[error("a header that routes match on is repeated, spelled differently, or named in Connection")]
    AmbiguousHeader,
}

impl From<PathError> for Rejection {
    fn from(error: PathError) -> Self {
        Self::BadRequest(match error {
            PathError::Malformed => "the path is malformed",
            PathError::Ambiguous => "the path can be read in different ways",
            PathError::AmbiguousHeader => {
                "a header that routes match on can be read in different ways"
            }
        })
    }
}

/// A route, and the state that the caller keeps with it.
pub struct Served<T> {
    pub route: Route,
    pub state: T,
}

/// All routes and endpoints of one configuration, with the state `T` of each route.
pub struct Routes<T = ()> {
    /// Exact paths of the gateway's own endpoints.
    endpoints: Vec<(String, Endpoint)>,
    hosts: Vec<String>,
    health: Vec<String>,
    table: Table,
    /// Headers that routes match on.
    asked_for: Vec<HeaderName>,
    asked_for_folded: FoldedNames,
    all: Vec<Served<T>>,
}

/// The parts of a request that select its route.
pub struct Asked<'a, H = HeaderMap> {
    /// As received, without the query.
    pub path: &'a str,
    pub host: Option<&'a str>,
    pub method: &'a Method,
    pub headers: &'a H,
}

// Not derived, because that would require `H` to have the same traits.
impl<H> Clone for Asked<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for Asked<'_, H> {}

/// A route, prepared for requests.
pub struct Route {
    pub name: String,
    pub access: Access,
    pub websocket: bool,
    /// Bytes of a request body.
    pub max_body: u64,
    methods: Vec<Method>,
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
    pub cors: Option<Cors>,
    pub preflight: Preflight,
}

impl Route {
    fn new(section: &RouteSection) -> Self {
        let response_edits = Edits::new(&section.response_edits);
        let methods = section.methods.iter();
        let varies_by_origin = section.cors.as_ref().is_some_and(Cors::varies_by_origin);
        let others = varies_by_origin.then_some(ORIGIN);
        Self {
            name: section.name.clone(),
            access: section.access,
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
            cors: section.cors.as_ref().map(Cors::new),
            preflight: section.preflight,
        }
    }

    /// The response that the gateway gives itself, if the route has one.
    pub fn own_response(&self) -> Option<&OwnResponse> {
        match &self.target {
            RouteTarget::OwnResponse(response) => Some(response),
            RouteTarget::Service { .. } | RouteTarget::ForwardAuthOnly => None,
        }
    }

    /// Index of the pool for a user, in the policy.
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
    fn accepts_headers(&self, headers: &impl Headers) -> bool {
        self.headers.iter().all(|(name, expected)| headers.only(name) == Some(expected.as_bytes()))
    }

    pub fn accepts_app(&self, app_id: &AppId) -> bool {
        self.apps.is_empty() || self.apps.contains(app_id)
    }
}

impl Routes {
    pub fn new(endpoints: &EndpointsSection, routes: &[RouteSection]) -> Self {
        Self::with_state(endpoints, routes, |_| ())
    }
}

impl<T> Routes<T> {
    /// `state` creates the state that is kept with each route.
    pub fn with_state(
        endpoints: &EndpointsSection,
        routes: &[RouteSection],
        state: impl Fn(&RouteSection) -> T,
    ) -> Self {
        let own = [
            (&endpoints.login, Endpoint::Login),
            (&endpoints.logout, Endpoint::Logout),
            (&endpoints.session, Endpoint::Session),
        ];
        let served =
            |section: &RouteSection| Served { route: Route::new(section), state: state(section) };
        let text = |path: &crate::config::RoutePath| path.as_str().to_owned();
        let headers = routes.iter().flat_map(|route| &route.headers);
        let asked_for: Vec<HeaderName> = headers.map(|(name, _)| name.clone()).collect();
        Self {
            endpoints: own
                .into_iter()
                .flat_map(|(paths, endpoint)| paths.iter().map(move |path| (text(path), endpoint)))
                .collect(),
            hosts: endpoints.hosts.clone(),
            health: endpoints.health.iter().map(text).collect(),
            table: Table::new(routes),
            asked_for_folded: FoldedNames::new(asked_for.iter().map(HeaderName::as_str)),
            asked_for,
            all: routes.iter().map(served).collect(),
        }
    }

    pub fn get(&self, index: usize) -> Option<&Route> {
        self.served(index).map(|served| &served.route)
    }

    /// The route of [`Endpoint::Route`] with its state.
    pub fn served(&self, index: usize) -> Option<&Served<T>> {
        self.all.get(index)
    }

    /// The route with this name in the configuration, with its state.
    pub fn named(&self, name: &str) -> Option<&Served<T>> {
        self.all.iter().find(|served| served.route.name == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter().map(|served| &served.route)
    }

    /// Finds the endpoint or route of a request. A route may still not allow the method, if none of
    /// the equally specific routes does.
    ///
    /// # Errors
    /// When the path is malformed, or its readings match different endpoints.
    pub fn resolve<H: Headers>(&self, asked: &Asked<'_, H>) -> Result<Endpoint, PathError> {
        let host = asked.host;
        let serves_own = self.hosts.is_empty() || host.is_some_and(|host| self.is_own_host(host));
        let host = self.host(asked);
        if readings::is_plain(asked.path) {
            // A plain path is also rewritable.
            return Ok(self.find(asked.path.as_bytes(), asked, host.as_ref(), serves_own));
        }
        let mut met = None;
        for reading in readings::readings(asked.path)? {
            let endpoint = self.find(&reading, asked, host.as_ref(), serves_own);
            if *met.get_or_insert(endpoint) != endpoint {
                return Err(PathError::Ambiguous);
            }
        }
        let endpoint = met.ok_or(PathError::Malformed)?;
        if let Endpoint::Route(index) = endpoint
            && self.get(index).is_some_and(|route| route.rewrite.is_some())
            && !readings::is_rewritable(asked.path)
        {
            return Err(PathError::Ambiguous);
        }
        Ok(endpoint)
    }

    /// Whether the host of a request affects routing.
    pub fn have_hosts(&self) -> bool {
        self.table.has_hosts() || !self.hosts.is_empty()
    }

    /// Whether the path of the target is a health path, byte for byte. Load balancers may send no
    /// Host, so the response is given before request headers are judged.
    pub fn is_health(&self, path: &[u8]) -> bool {
        self.health.iter().any(|health| health.as_bytes() == path)
    }

    /// Whether any decision depends on the method: then services must see the same method.
    pub fn trust_methods(&self) -> bool {
        let trusts =
            |route: &Route| !route.methods.is_empty() || route.preflight == Preflight::Pass;
        self.iter().any(trusts)
    }

    /// Headers that select the route of a request, besides its host.
    pub fn deciding_headers(&self) -> impl Iterator<Item = HeaderName> {
        let passes = self.iter().any(|route| route.preflight == Preflight::Pass);
        let of_preflights =
            [ORIGIN, ACCESS_CONTROL_REQUEST_METHOD].into_iter().filter(move |_| passes);
        self.asked_for.iter().cloned().chain(of_preflights)
    }

    /// Finds the endpoint or route of a request, and whether it is a preflight that the route
    /// handles.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn meet<H: Headers>(&self, asked: &Asked<'_, H>) -> Result<(Endpoint, bool), PathError> {
        if !self.asked_for.is_empty() && self.is_ambiguous(asked.headers) {
            return Err(PathError::AmbiguousHeader);
        }
        match self.resolve_preflight(asked)? {
            Some(route) => Ok((Endpoint::Route(route), true)),
            None => Ok((self.resolve(asked)?, false)),
        }
    }

    /// Whether a service could read a header that routes match on in a different way: another line
    /// of it, another spelling that the service takes for it, or none because it is removed before
    /// forwarding.
    fn is_ambiguous(&self, headers: &impl Headers) -> bool {
        if nominated(headers).any(|name| self.asked_for_folded.contains(name)) {
            return true;
        }
        headers.names().filter(|name| self.asked_for_folded.contains(name)).any(|name| {
            let known = |known: &&HeaderName| known.as_str().as_bytes().eq_ignore_ascii_case(name);
            self.asked_for.iter().find(known).is_none_or(|known| headers.only(known).is_none())
        })
    }

    fn resolve_preflight<H: Headers>(
        &self,
        asked: &Asked<'_, H>,
    ) -> Result<Option<usize>, PathError> {
        let Some(method) = cors::preflight_method(asked.method, asked.headers) else {
            return Ok(None);
        };
        let about = Asked { method: &method, ..*asked };
        let Endpoint::Route(index) = self.resolve(&about)? else { return Ok(None) };
        let says = |route: &Route| {
            let passes = route.preflight == Preflight::Pass && route.allows_method(&method);
            passes || route.cors.is_some()
        };
        Ok(self.get(index).is_some_and(says).then_some(index))
    }

    /// The methods to list if the matched route does not allow the request's method.
    pub fn allow<H: Headers>(&self, asked: &Asked<'_, H>) -> String {
        let host = self.host(asked);
        let mut methods: Vec<&str> = Vec::new();
        for route in self.candidates(asked.path.as_bytes(), asked, host.as_ref()) {
            for method in self.get(route).into_iter().flat_map(|route| &route.methods) {
                if !methods.contains(&method.as_str()) {
                    methods.push(method.as_str());
                }
            }
        }
        methods.join(", ")
    }

    /// The host of a request, if any route depends on it.
    fn host<H>(&self, asked: &Asked<'_, H>) -> Option<HostName> {
        asked.host.filter(|_| self.table.has_hosts()).and_then(HostName::new)
    }

    /// The routes that match, equally specific except for headers and methods, the more specific
    /// first.
    fn candidates<'a, H: Headers>(
        &'a self,
        path: &[u8],
        asked: &'a Asked<'_, H>,
        host: Option<&HostName>,
    ) -> impl Iterator<Item = usize> + 'a {
        let accepts =
            |index| self.get(index).is_some_and(|route| route.accepts_headers(asked.headers));
        let place = self.table.find(path, host, accepts).unwrap_or_default();
        place.iter().copied().filter(move |index| accepts(*index))
    }

    fn find<H: Headers>(
        &self,
        path: &[u8],
        asked: &Asked<'_, H>,
        host: Option<&HostName>,
        serves_own: bool,
    ) -> Endpoint {
        if self.is_health(path) {
            return Endpoint::Health;
        }
        if serves_own
            && let Some((_, endpoint)) =
                self.endpoints.iter().find(|(own, _)| own.as_bytes() == path)
        {
            return *endpoint;
        }
        let mut candidates = self.candidates(path, asked, host);
        let takes =
            |index: &usize| self.get(*index).is_some_and(|route| route.allows_method(asked.method));
        let Some(first) = candidates.next() else { return Endpoint::None };
        let taking = Some(first).filter(takes).or_else(|| candidates.find(takes));
        Endpoint::Route(taking.unwrap_or(first))
    }

    fn is_own_host(&self, host: &str) -> bool {
        let host = without_port(host);
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

#[cfg(test)]
mod tests;
