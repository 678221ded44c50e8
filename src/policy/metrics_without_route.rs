//! The counters of requests that belong to no route.
//!
//! The counters of a feature that is on are shown from the start, so that an alert can tell a count
//! of zero from a missing one.

use crate::config::{Config, RoutePath};
use crate::route::Endpoint;
use crate::telemetry::metrics::{Metrics, RouteMetrics};

pub struct MetricsWithoutRoute {
    pub forward_auth: RouteMetrics,
    login: RouteMetrics,
    logout: RouteMetrics,
    session: RouteMetrics,
    start: RouteMetrics,
    callback: RouteMetrics,
    ticket: RouteMetrics,
    scan: RouteMetrics,
    health: RouteMetrics,
    jwks: RouteMetrics,
    none: RouteMetrics,
}

impl MetricsWithoutRoute {
    pub fn new(metrics: &Metrics, config: &Config) -> Self {
        let of = |label, is_on: bool| {
            if is_on { metrics.route_from_start(label) } else { metrics.route(label) }
        };
        let of_feature = |label, paths: &[RoutePath]| of(label, !paths.is_empty());
        let endpoints = &config.endpoints;
        Self {
            forward_auth: of("@forward_auth", !config.forward_auth.listen.is_empty()),
            login: of("@login", true),
            logout: of("@logout", true),
            session: of("@session", true),
            start: of_feature("@start", &endpoints.start),
            callback: of_feature("@callback", &endpoints.callback),
            ticket: of_feature("@ticket", &endpoints.ticket),
            scan: of_feature("@scan", &endpoints.scan),
            health: of("@health", false),
            jwks: of_feature("@jwks", &endpoints.jwks),
            none: of("@none", false),
        }
    }

    /// The counters of an endpoint; those of `@none` for a route.
    pub fn of(&self, endpoint: Endpoint) -> &RouteMetrics {
        match endpoint {
            Endpoint::Login => &self.login,
            Endpoint::Logout => &self.logout,
            Endpoint::Session => &self.session,
            Endpoint::Start => &self.start,
            Endpoint::Callback => &self.callback,
            Endpoint::Ticket => &self.ticket,
            Endpoint::Scan | Endpoint::ScanById => &self.scan,
            Endpoint::Health => &self.health,
            Endpoint::Jwks => &self.jwks,
            Endpoint::Route(_) | Endpoint::None => &self.none,
        }
    }
}
