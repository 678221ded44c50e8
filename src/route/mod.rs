//! Matches a request to a route or an endpoint.
//!
//! A path is checked in every way that a service might read it (`readings`). All of the readings
//! must match the same [`Endpoint`]; then the path is forwarded without being normalised. The
//! gateway's own endpoints match exactly, come before routes, and may be limited to some hosts.
//! Among routes the most specific wins (`table`): by host, then path, then headers, then methods. A
//! route whose header conditions are not met is skipped. A route that matches except for its
//! methods is not skipped: less specific routes are not tried.

pub mod cors;
mod edit;
mod endpoint;
mod readings;
mod rewrite;
mod served;
mod table;
mod target;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, ORIGIN};
use http::{HeaderMap, HeaderName, Method};

pub use self::endpoint::Endpoint;
pub use self::served::{Route, Served};
use self::table::{HostName, Table, without_port};
use crate::config::{EndpointsSection, Preflight, Route as RouteSection};
use crate::message::header::{FoldedNames, Headers, nominated};
use crate::message::rejection::Rejection;

/// Why a request cannot be matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchError {
    #[error("the path contains invalid bytes or escapes")]
    Malformed,
    #[error("servers could read the path in different ways")]
    Ambiguous,
    #[error(
        "a header that routes match on is repeated, spelled differently, or named in Connection"
    )]
    AmbiguousHeader,
}

impl From<MatchError> for Rejection {
    fn from(error: MatchError) -> Self {
        Self::BadRequest(match error {
            MatchError::Malformed => "the path is malformed",
            MatchError::Ambiguous => "the path can be read in different ways",
            MatchError::AmbiguousHeader => {
                "a header that routes match on can be read in different ways"
            }
        })
    }
}

/// All routes and endpoints of one configuration, with the state `T` of each route.
pub struct Routes<T = ()> {
    /// Exact paths of the gateway's own endpoints.
    endpoints: Vec<(String, Endpoint)>,
    hosts: Vec<String>,
    health: Vec<String>,
    table: Table,
    /// Headers that routes match on.
    condition_headers: Vec<HeaderName>,
    condition_headers_folded: FoldedNames,
    all: Vec<Served<T>>,
}

/// The parts of a request that select its route.
pub struct RouteLookup<'a, H = HeaderMap> {
    /// As received, without the query.
    pub path: &'a str,
    pub host: Option<&'a str>,
    pub method: &'a Method,
    pub headers: &'a H,
}

// Not derived, because that would require `H` to have the same traits.
impl<H> Clone for RouteLookup<'_, H> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H> Copy for RouteLookup<'_, H> {}

impl Routes {
    pub fn new(endpoints: &EndpointsSection, routes: &[RouteSection]) -> Self {
        Self::with_state(endpoints, routes, |_| ())
    }
}

impl<T> Routes<T> {
    /// Prepares all routes and endpoints; `state` creates the state that is kept with each route.
    pub fn with_state(
        endpoints: &EndpointsSection,
        routes: &[RouteSection],
        mut state: impl FnMut(&RouteSection) -> T,
    ) -> Self {
        let own = [
            (&endpoints.login, Endpoint::Login),
            (&endpoints.logout, Endpoint::Logout),
            (&endpoints.session, Endpoint::Session),
            (&endpoints.start, Endpoint::Start),
            (&endpoints.callback, Endpoint::Callback),
            (&endpoints.ticket, Endpoint::Ticket),
            (&endpoints.scan, Endpoint::Scan),
            (&endpoints.jwks, Endpoint::Jwks),
        ];
        let served =
            |section: &RouteSection| Served { route: Route::new(section), state: state(section) };
        let text = |path: &crate::config::RoutePath| path.as_str().to_owned();
        let headers = routes.iter().flat_map(|route| &route.headers);
        let condition_headers: Vec<HeaderName> = headers.map(|(name, _)| name.clone()).collect();
        Self {
            endpoints: own
                .into_iter()
                .flat_map(|(paths, endpoint)| paths.iter().map(move |path| (text(path), endpoint)))
                .collect(),
            hosts: endpoints.hosts.clone(),
            health: endpoints.health.iter().map(text).collect(),
            table: Table::new(routes),
            condition_headers_folded: FoldedNames::new(
                condition_headers.iter().map(HeaderName::as_str),
            ),
            condition_headers,
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

    /// Finds the endpoint or route of a request. If none of the equally specific routes allows the
    /// method, the result is one of them all the same.
    ///
    /// # Errors
    /// When the path is malformed, or its readings match different endpoints.
    pub fn resolve<H: Headers>(&self, lookup: &RouteLookup<'_, H>) -> Result<Endpoint, MatchError> {
        let host = lookup.host;
        let serves_own = self.hosts.is_empty() || host.is_some_and(|host| self.is_own_host(host));
        let host = self.host(lookup);
        if readings::is_plain(lookup.path) {
            // A plain path is also rewritable.
            return Ok(self.find(lookup.path.as_bytes(), lookup, host.as_ref(), serves_own));
        }
        let mut matched = None;
        for reading in readings::readings(lookup.path)? {
            let endpoint = self.find(&reading, lookup, host.as_ref(), serves_own);
            if *matched.get_or_insert(endpoint) != endpoint {
                return Err(MatchError::Ambiguous);
            }
        }
        let endpoint = matched.ok_or(MatchError::Malformed)?;
        if let Endpoint::Route(index) = endpoint
            && self.get(index).is_some_and(Route::rewrites)
            && !readings::is_rewritable(lookup.path)
        {
            return Err(MatchError::Ambiguous);
        }
        Ok(endpoint)
    }

    /// Whether a request without headers matches a route on any host.
    pub fn serve_anywhere(&self, path: &str, method: &Method) -> bool {
        let headers = HeaderMap::new();
        let is_routed = |host: Option<&str>| {
            let lookup = RouteLookup { path, host, method, headers: &headers };
            matches!(self.resolve(&lookup), Ok(Endpoint::Route(_)))
        };
        is_routed(None) || self.table.hosts().any(|host| is_routed(Some(&host)))
    }

    /// Whether the host of a request affects routing.
    pub fn have_hosts(&self) -> bool {
        self.table.has_hosts() || !self.hosts.is_empty()
    }

    /// Whether the path of the target is a health path, byte for byte. Load balancers may send no
    /// Host, so the check of request headers allows these paths without one.
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
        self.condition_headers.iter().cloned().chain(of_preflights)
    }

    /// Finds the endpoint or route of a request, and whether it is a preflight that the route
    /// handles.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn match_request<H: Headers>(
        &self,
        lookup: &RouteLookup<'_, H>,
    ) -> Result<(Endpoint, bool), MatchError> {
        if !self.condition_headers.is_empty() && self.is_ambiguous(lookup.headers) {
            return Err(MatchError::AmbiguousHeader);
        }
        match self.resolve_preflight(lookup)? {
            Some(route) => Ok((Endpoint::Route(route), true)),
            None => Ok((self.resolve(lookup)?, false)),
        }
    }

    /// Whether a service could read a header that routes match on in a different way: another line
    /// of it, another spelling that the service takes for it, or none because it is removed before
    /// forwarding.
    fn is_ambiguous(&self, headers: &impl Headers) -> bool {
        if nominated(headers).any(|name| self.condition_headers_folded.contains(name)) {
            return true;
        }
        headers.names().filter(|name| self.condition_headers_folded.contains(name)).any(|name| {
            let is_it = |other: &&HeaderName| other.as_str().as_bytes().eq_ignore_ascii_case(name);
            self.condition_headers
                .iter()
                .find(is_it)
                .is_none_or(|spelled| headers.only(spelled).is_none())
        })
    }

    fn resolve_preflight<H: Headers>(
        &self,
        lookup: &RouteLookup<'_, H>,
    ) -> Result<Option<usize>, MatchError> {
        let Some(method) = cors::preflight_method(lookup.method, lookup.headers) else {
            return Ok(None);
        };
        let actual = RouteLookup { method: &method, ..*lookup };
        let Endpoint::Route(index) = self.resolve(&actual)? else { return Ok(None) };
        let handles = |route: &Route| {
            let passes = route.preflight == Preflight::Pass && route.allows_method(&method);
            passes || route.cors.is_some()
        };
        Ok(self.get(index).is_some_and(handles).then_some(index))
    }

    /// The methods to list if the matched route does not allow the request's method.
    pub fn allow<H: Headers>(&self, lookup: &RouteLookup<'_, H>) -> String {
        let host = self.host(lookup);
        let mut methods: Vec<&str> = Vec::new();
        for route in self.candidates(lookup.path.as_bytes(), lookup, host.as_ref()) {
            for method in self.get(route).into_iter().flat_map(|route| &route.methods) {
                if !methods.contains(&method.as_str()) {
                    methods.push(method.as_str());
                }
            }
        }
        methods.join(", ")
    }

    /// The host of a request, if any route depends on it.
    fn host<H>(&self, lookup: &RouteLookup<'_, H>) -> Option<HostName> {
        lookup.host.filter(|_| self.table.has_hosts()).and_then(HostName::new)
    }

    /// The routes that match, equally specific except for headers and methods, the more specific
    /// first.
    fn candidates<'a, H: Headers>(
        &'a self,
        path: &[u8],
        lookup: &'a RouteLookup<'_, H>,
        host: Option<&HostName>,
    ) -> impl Iterator<Item = usize> + 'a {
        let accepts =
            |index| self.get(index).is_some_and(|route| route.accepts_headers(lookup.headers));
        let routes = self.table.find(path, host, accepts).unwrap_or_default();
        routes.iter().copied().filter(move |index| accepts(*index))
    }

    fn find<H: Headers>(
        &self,
        path: &[u8],
        lookup: &RouteLookup<'_, H>,
        host: Option<&HostName>,
        serves_own: bool,
    ) -> Endpoint {
        if self.is_health(path) {
            return Endpoint::Health;
        }
        if serves_own
            && let Some(endpoint) =
                self.endpoints.iter().find_map(|(own, endpoint)| endpoint.at(own, path))
        {
            return endpoint;
        }
        let mut candidates = self.candidates(path, lookup, host);
        let allows = |index: &usize| {
            self.get(*index).is_some_and(|route| route.allows_method(lookup.method))
        };
        let Some(first) = candidates.next() else { return Endpoint::None };
        let allowing = Some(first).filter(allows).or_else(|| candidates.find(allows));
        Endpoint::Route(allowing.unwrap_or(first))
    }

    fn is_own_host(&self, host: &str) -> bool {
        let host = without_port(host);
        self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }
}

#[cfg(test)]
mod tests;
