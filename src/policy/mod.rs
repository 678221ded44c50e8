//! The state of the process, and the state of one configuration.
//!
//! A [`Policy`] has everything that decides how requests are served. Each request keeps the same
//! policy from its first byte to its last. [`Process`] has what outlives a configuration: sessions,
//! counters, logs. Because the two are separate, a reload can replace the configuration.

mod audiences;
pub mod handover;
mod internal;
pub(crate) mod lifecycle;
mod metrics_without_route;
mod rate_limits;
mod route_access;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{CACHE_CONTROL, VARY};
use http::{HeaderName, HeaderValue};

use self::audiences::OwnAudiences;
pub use self::internal::{InternalPolicy, KnownCaller};
use self::metrics_without_route::MetricsWithoutRoute;
pub use self::route_access::{RoutedRequest, Verdict};
use crate::access::authenticator::{Authenticator, Decision};
use crate::access::browsers::Browsers;
use crate::access::cross_site;
use crate::access::identity_headers::{
    FORWARDED_HOST, FORWARDED_METHOD, FORWARDED_URI, IdentityHeaders,
};
use crate::access::rate_limiter::RateLimit;
use crate::access::signed_identity::SignedIdentity;
use crate::access::trusted_proxies::TrustedProxies;
use crate::browser::Redirects;
use crate::browser::scan::Scans;
use crate::browser::tickets::Tickets;
use crate::clock::Clock;
use crate::config::{self, Config, LimitsSection, Rate, Upstream};
use crate::handover::peer::Peer;
use crate::identity::secret::{SealKey, Secret};
use crate::listener::tls::{Alpn, TicketKeys, Tls};
use crate::login::{Hook, HookError, Login};
use crate::message::caching::Vary;
use crate::message::error_body::ErrorBody;
use crate::message::request_header::HeaderLimits;
use crate::policy::lifecycle::Lifecycle;
use crate::route::{Endpoint, Routes, Served};
use crate::session::{JarName, Sessions};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{Counters, Metrics, RouteMetrics};
use crate::upstream::{Network, Pool};
use crate::wechat::access_token::AccessTokens;
use crate::wechat::sent_codes::SentCodes;
use crate::wechat::{ClientError, WeChat};

/// The current policy, which a reload replaces. A request that has taken a policy keeps it to its
/// end; a connection keeps at most the policy's limits.
pub struct Policies(ArcSwap<Policy>);

impl Policies {
    pub fn new(policy: Policy) -> Self {
        Self(ArcSwap::from_pointee(policy))
    }

    /// The policy for requests and connections that begin now.
    pub fn current(&self) -> Arc<Policy> {
        self.0.load_full()
    }

    /// Reads from the current policy without taking it.
    pub fn read<T>(&self, at: impl FnOnce(&Policy) -> T) -> T {
        at(&self.0.load())
    }

    /// Replaces the policy for all requests and connections that begin from now on.
    pub fn replace(&self, policy: Arc<Policy>) {
        self.0.store(policy);
    }
}

/// What outlives a configuration.
pub struct Process {
    pub metrics: Arc<Metrics>,
    pub access_log: AccessLog,
    pub sessions: Sessions,
    /// The other process during an upgrade.
    pub peer: Peer,
    pub clock: Clock,
    /// What connects to the servers of upstreams.
    pub network: Arc<Network>,
    pub lifecycle: Lifecycle,
    /// Limits how often operators' requests with a wrong token are logged.
    pub operator_refusals: LogThrottle,
    /// Seals the state of logins by redirect, and is the key of `sid`, if no seal key is
    /// configured.
    pub state_key: SealKey,
    /// The codes for phone numbers that were sent to WeChat.
    pub phone_codes: Arc<SentCodes>,
    /// Keys for TLS session tickets.
    pub tickets: Arc<TicketKeys>,
}

/// One configuration, ready to serve.
pub struct Policy {
    pub routes: Routes<RouteState>,
    pub pools: Vec<Arc<Pool>>,
    /// For each pool, whether its service has jars; empty if none has.
    jars: Vec<Option<JarName>>,
    pub authenticator: Authenticator,
    /// The hosts of web pages.
    pub browsers: Browsers,
    /// Logins by redirect; set if there is any such host.
    pub redirects: Option<Redirects>,
    /// Set if they are on.
    pub tickets: Option<Tickets>,
    /// Logins by a scan with the Mini Program; set if they are enabled.
    pub scans: Option<Scans>,
    decisions: Counters<5>,
    pub identity_headers: IdentityHeaders,
    /// Set if the identity is signed.
    pub signed_identity: Option<Arc<SignedIdentity>>,
    pub wechat: Arc<WeChat>,
    /// For the internal API and the codes of scans. None is fetched unless it is used.
    pub access_tokens: Option<Arc<AccessTokens>>,
    pub login: Login,
    /// Set if there is an internal listener.
    pub internal: Option<Arc<InternalPolicy>>,
    /// For logins, by address.
    pub login_rate: Option<Arc<RateLimit>>,
    pub trusted_proxies: TrustedProxies,
    /// The operator's template of error bodies.
    pub error_body: Option<ErrorBody>,
    pub limits: LimitsSection,
    /// How long new connections are still served after SIGTERM, and how long requests in flight may
    /// take after that.
    pub shutdown_delay: Duration,
    pub drain_timeout: Duration,
    pub header_limits: HeaderLimits,
    /// Whether unencrypted connections may use HTTP/2 with prior knowledge.
    pub h2c: bool,
    /// Set if the public listeners use HTTPS.
    pub tls: Option<Tls>,
    /// The HTTPS port to which redirect listeners send clients.
    pub redirect_port: u16,
    /// The scheme of the public listeners: `http` or `https`.
    pub proto: HeaderValue,
    /// The token that operators need to list and revoke sessions, and to block users.
    pub admin_token: Option<Secret>,
    /// Added to every response of the public listeners that belongs to no route; routes have their
    /// own.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Cache headers of a decision that lets a request pass.
    pub decision_caching: Vec<(HeaderName, HeaderValue)>,
    /// The path of forward-auth, without a trailing slash.
    pub forward_auth_path: String,
    pub metrics_without_route: MetricsWithoutRoute,
}

/// Why a configuration cannot be made into a policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    WeChat(#[from] ClientError),
    #[error("login.hook: {0}")]
    Hook(#[from] HookError),
    #[error("server.tls: {0}")]
    Tls(#[from] rustls::Error),
    #[error("internal.tls: {0}")]
    InternalTls(rustls::Error),
    #[error("TLS of upstream \"{0}\": {1}")]
    UpstreamTls(String, rustls::Error),
}

/// Cache headers of a decision that lets a request pass. All calls for decisions have one URL, so
/// the decision varies by the headers that describe the original request.
fn decision_caching(
    config: &Config,
    routes: &Routes<RouteState>,
) -> Vec<(HeaderName, HeaderValue)> {
    let seconds = config.forward_auth.cache.as_secs();
    if seconds == 0 {
        return vec![(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    }
    let about = [&FORWARDED_METHOD, &FORWARDED_URI, &FORWARDED_HOST].into_iter().cloned();
    let carriers = config.session.carrier_headers().into_iter();
    // A cached decision must not be used for a request of another site.
    let of_cookies = config.session.carriers.cookie.then(cross_site::deciding_headers);
    let of_cookies = of_cookies.into_iter().flatten();
    let mut names: Vec<HeaderName> = Vec::new();
    for name in carriers.chain(about).chain(routes.deciding_headers()).chain(of_cookies) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let vary = Vary::new(names.into_iter());
    // `*` if the value is not a legal header value.
    let vary = vary.map_or(HeaderValue::from_static("*"), |vary| vary.value().clone());
    let control = HeaderValue::try_from(format!("private, max-age={seconds}"));
    let control = control.unwrap_or(HeaderValue::from_static("no-store"));
    vec![(CACHE_CONTROL, control), (VARY, vary)]
}

/// The rate limits and counters of a route.
pub struct RouteState {
    rate_per_user: Option<Arc<RateLimit>>,
    rate_per_address: Option<Arc<RateLimit>>,
    metrics: RouteMetrics,
    /// Set if the route has no upstream.
    audience: Option<usize>,
}

/// A route with its state.
pub type ServedRoute = Served<RouteState>;

/// The state of each upstream.
fn pools(
    config: &Config,
    process: &Process,
    previous: Option<&Policy>,
) -> Result<Vec<Arc<Pool>>, PolicyError> {
    let previous = previous.map_or(&[][..], |previous| &previous.pools);
    let pool = |section: &Upstream| {
        let pool = Pool::carried_over(previous, section, &process.network);
        pool.map_err(|error| PolicyError::UpstreamTls(section.name.clone(), error))
    };
    config.upstreams.iter().map(pool).collect()
}

/// The access tokens of all apps, if something in the configuration needs them.
fn access_tokens(
    config: &Config,
    process: &Process,
    previous: Option<&Policy>,
    wechat: &Arc<WeChat>,
) -> Option<Arc<AccessTokens>> {
    if config.internal.is_none() && config.scan.is_none() {
        return None;
    }
    let previous = previous.and_then(|previous| previous.access_tokens.as_deref());
    let store = process.sessions.shared_tokens();
    let (clock, store) = (&process.clock, store.as_ref());
    let tokens = AccessTokens::new(previous, &config.apps, wechat, store, clock, &process.metrics);
    Some(Arc::new(tokens))
}

fn redirects(config: &Config, process: &Process) -> Redirects {
    Redirects::new(config, &process.state_key, process.sessions.clone(), &process.clock)
}

fn scans(config: &Config, process: &Process, previous: Option<&Policy>) -> Option<Scans> {
    let section = config.scan.as_ref()?;
    let previous = previous.and_then(|previous| previous.scans.as_ref());
    Some(Scans::new(config, section, previous, &process.sessions, &process.clock))
}

/// For each upstream, whether it has jars; empty if none has.
fn jars(config: &Config, sessions: &Sessions) -> Vec<Option<JarName>> {
    if !config.upstreams.iter().any(|upstream| upstream.cookie_jar) {
        return Vec::new();
    }
    let jar = |upstream: &Upstream| {
        let name = upstream.cookie_jar.then(|| JarName::of(&upstream.name))?;
        sessions.keep_jars_of(name);
        Some(name)
    };
    config.upstreams.iter().map(jar).collect()
}

impl Policy {
    /// Whatever is configured as in `previous` keeps its state: addresses of servers, logins in
    /// flight, rate limits, access tokens.
    ///
    /// # Errors
    /// When the client for WeChat or the TLS configuration cannot be built.
    pub fn new(
        config: &Config,
        process: &Process,
        previous: Option<&Self>,
    ) -> Result<Self, PolicyError> {
        let metrics = &process.metrics;
        let tls = config.server.tls.as_ref();
        let internal_tls = config.internal.as_ref().and_then(|section| section.tls.as_ref());
        let tls =
            tls.map(|tls| Tls::new(tls, process.tickets.clone(), metrics.clone(), Alpn::Http2));
        let tls = tls.transpose()?;
        let wechat = WeChat::carried_over(
            previous.map(|previous| &previous.wechat),
            &config.wechat,
            &process.clock,
            metrics.clone(),
        )?;
        let internal_tls = internal_tls
            .map(|tls| InternalPolicy::tls(tls, &process.clock, metrics))
            .transpose()?;
        let pools = pools(config, process, previous)?;
        let hook = previous.and_then(|previous| previous.login.hook());
        let hook = Hook::carried_over(hook, config, &process.clock, metrics)?;
        // Nothing can fail from here on.
        let login = Login::new(
            config,
            previous.map(|previous| &previous.login),
            wechat.clone(),
            hook,
            process.sessions.clone(),
            &process.clock,
            metrics.clone(),
        );
        let access_tokens = access_tokens(config, process, previous, &wechat);
        let internal = config.internal.as_ref().zip(access_tokens.clone());
        let internal = internal.map(|(section, access_tokens)| {
            InternalPolicy::new(config, section, internal_tls, wechat.clone(), access_tokens)
        });
        metrics.set_certificates(
            config.certificates().map(|one| (one.file.display().to_string(), one.expires)),
        );
        let rate_limit = |rate: Option<Rate>, previous: Option<&Arc<RateLimit>>| {
            let capacity = config.limits.max_rate_clients;
            Some(RateLimit::carried_over(previous, rate?, capacity, &process.clock))
        };
        let mut own_audiences = OwnAudiences::after(&config.upstreams);
        let route_state = |route: &config::Route| {
            let same = previous.and_then(|previous| previous.routes.named(&route.name));
            let same = same.map(|same| &same.state);
            let per_user = same.and_then(|same| same.rate_per_user.as_ref());
            let per_address = same.and_then(|same| same.rate_per_address.as_ref());
            RouteState {
                rate_per_user: rate_limit(route.rate_per_user, per_user),
                rate_per_address: rate_limit(route.rate_per_address, per_address),
                metrics: metrics.route_from_start(&route.name),
                audience: own_audiences.next_of(route),
            }
        };
        let jars = jars(config, &process.sessions);
        let browsers = Browsers::new(&config.browsers);
        let signed_identity = audiences::signed_identity(config, process, previous);
        let routes = Routes::with_state(&config.endpoints, &config.routes, route_state);
        Ok(Self {
            pools,
            jars,
            authenticator: Authenticator::new(
                process.sessions.clone(),
                &config.session,
                &config.apps,
            ),
            decisions: metrics.decisions(Decision::ALL.map(Decision::as_str)),
            identity_headers: IdentityHeaders::new(config)
                .signing(signed_identity.clone())
                .removing_cookies(browsers.cookies())
                .removing_overrides(routes.trust_methods()),
            signed_identity,
            wechat,
            access_tokens,
            login,
            internal,
            login_rate: rate_limit(
                config.login.rate_per_address,
                previous.and_then(|previous| previous.login_rate.as_ref()),
            ),
            error_body: config.errors.clone(),
            trusted_proxies: TrustedProxies::new(&config.server.trusted_proxies),
            limits: config.limits.clone(),
            shutdown_delay: config.server.shutdown_delay,
            drain_timeout: config.server.drain_timeout,
            header_limits: HeaderLimits::from(&config.limits),
            h2c: config.server.h2c,
            proto: HeaderValue::from_static(if tls.is_some() { "https" } else { "http" }),
            tls,
            admin_token: config.admin.token.clone(),
            response_headers: config.server.response_headers.clone(),
            decision_caching: decision_caching(config, &routes),
            forward_auth_path: config.forward_auth.path.as_str().trim_end_matches('/').to_owned(),
            tickets: (config.ticket.enabled)
                .then(|| Tickets::new(process.sessions.clone(), &process.clock)),
            redirects: browsers.are_on().then(|| redirects(config, process)),
            browsers,
            scans: scans(config, process, previous),
            redirect_port: config.server.redirect_port,
            metrics_without_route: MetricsWithoutRoute::new(metrics, config),
            routes,
        })
    }

    /// Set if the service of this pool has jars.
    pub fn jar_of(&self, pool: usize) -> Option<JarName> {
        self.jars.get(pool).copied().flatten()
    }

    /// The counters of an endpoint.
    pub fn metrics(&self, endpoint: Endpoint) -> &RouteMetrics {
        let route = match endpoint {
            Endpoint::Route(index) => self.routes.served(index),
            _ => None,
        };
        route.map_or_else(|| self.metrics_without_route.of(endpoint), |route| &route.state.metrics)
    }
}
