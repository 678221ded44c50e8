//! What lives as long as the process, and what lives as long as one configuration.
//!
//! A [`Policy`] is everything that requests are judged and served by, and each request holds
//! one from its first byte to its last. [`Process`] is what outlives it: sessions, counters,
//! logs. Keeping the two apart is what lets a configuration be replaced.

use std::sync::Arc;

use http::HeaderValue;

use crate::access_log::AccessLog;
use crate::auth::Authenticator;
use crate::clock::Clock;
use crate::config::{Config, LimitsSection, Rate};
use crate::error_body::ErrorBody;
use crate::forwarded::TrustedProxies;
use crate::head::HeadLimits;
use crate::inject::Injector;
use crate::lifecycle::Lifecycle;
use crate::login::Login;
use crate::metrics::{Metrics, RouteMetrics};
use crate::rate_limit::RateLimit;
use crate::route::{Endpoint, Routes};
use crate::session::Sessions;
use crate::upstream::Pool;
use crate::wechat::{ClientError, WeChat};

/// What outlives a configuration.
pub struct Process {
    pub metrics: Arc<Metrics>,
    pub access_log: AccessLog,
    pub sessions: Sessions,
    pub clock: Clock,
    pub lifecycle: Lifecycle,
}

/// One configuration, ready to serve.
pub struct Policy {
    pub routes: Routes,
    pub pools: Vec<Arc<Pool>>,
    pub authenticator: Authenticator,
    pub injector: Injector,
    pub login: Login,
    /// Of logins, by address.
    pub login_rate: Option<RateLimit>,
    route_rates: Vec<RouteRates>,
    pub trusted_proxies: TrustedProxies,
    /// The operator's shape of error bodies.
    pub error_body: Option<ErrorBody>,
    pub limits: LimitsSection,
    pub head_limits: HeadLimits,
    /// Whether plain connections may begin as HTTP/2.
    pub h2c: bool,
    /// How the public listeners are reached: `http` or `https`.
    pub proto: HeaderValue,
    route_metrics: Vec<RouteMetrics>,
    login_metrics: RouteMetrics,
    logout_metrics: RouteMetrics,
    session_metrics: RouteMetrics,
    health_metrics: RouteMetrics,
    none_metrics: RouteMetrics,
}

/// How often a route may be asked.
pub struct RouteRates {
    pub per_user: Option<RateLimit>,
    pub per_address: Option<RateLimit>,
}

impl Policy {
    /// # Errors
    /// When the client for WeChat cannot be built.
    pub fn new(config: &Config, process: &Process) -> Result<Self, ClientError> {
        let metrics = &process.metrics;
        let wechat = WeChat::new(&config.wechat, process.clock.clone(), metrics.clone())?;
        let routes = Routes::new(&config.endpoints, &config.routes);
        let rate_limit = |rate: Option<Rate>| {
            rate.map(|rate| {
                RateLimit::new(rate, config.limits.max_rate_clients, process.clock.clone())
            })
        };
        Ok(Self {
            pools: config.upstreams.iter().cloned().map(|pool| Arc::new(Pool::new(pool))).collect(),
            authenticator: Authenticator::new(
                process.sessions.clone(),
                &config.session,
                &config.apps,
            ),
            injector: Injector::new(&config.identity, &config.session)
                .removing_overrides(routes.trust_methods()),
            login: Login::new(
                config,
                wechat,
                process.sessions.clone(),
                &process.clock,
                metrics.clone(),
            ),
            login_rate: rate_limit(config.login.rate_per_address),
            route_rates: config
                .routes
                .iter()
                .map(|route| RouteRates {
                    per_user: rate_limit(route.rate_per_user),
                    per_address: rate_limit(route.rate_per_address),
                })
                .collect(),
            error_body: config.errors.clone(),
            trusted_proxies: TrustedProxies::new(&config.server.trusted_proxies),
            limits: config.limits.clone(),
            head_limits: HeadLimits {
                bytes: config.limits.max_header,
                lines: config.limits.max_header_count,
                target: config.limits.max_target,
            },
            h2c: config.server.h2c,
            proto: HeaderValue::from_static(match config.server.tls {
                Some(_) => "https",
                None => "http",
            }),
            route_metrics: routes.iter().map(|route| metrics.route(&route.name)).collect(),
            login_metrics: metrics.route("@login"),
            logout_metrics: metrics.route("@logout"),
            session_metrics: metrics.route("@session"),
            health_metrics: metrics.route("@health"),
            none_metrics: metrics.route("@none"),
            routes,
        })
    }

    /// How often a client may ask for a route, by the route's index.
    pub fn rates(&self, route: usize) -> Option<&RouteRates> {
        self.route_rates.get(route)
    }

    /// The counters of an endpoint.
    pub fn metrics(&self, endpoint: Endpoint) -> &RouteMetrics {
        match endpoint {
            Endpoint::Login => &self.login_metrics,
            Endpoint::Logout => &self.logout_metrics,
            Endpoint::Session => &self.session_metrics,
            Endpoint::Health => &self.health_metrics,
            Endpoint::Route(index) => self.route_metrics.get(index).unwrap_or(&self.none_metrics),
            Endpoint::None => &self.none_metrics,
        }
    }
}
