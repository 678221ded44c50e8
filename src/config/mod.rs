//! The configuration, validated: plain data whose types cannot be wrong.
//!
//! [`Config::load`] is what `run`, `check` and the tests use. It reads one TOML file,
//! collects every problem in it and in what it includes with its place, and either returns a
//! whole [`Config`] or all the problems. Behaviour modules take their own section, never the whole. Each key,
//! its default and its meaning stand in `config/reference.toml`, which a test holds against
//! this code.

mod changes;
mod document;
mod read;
mod redis;
mod restart_only;
mod route;
mod section;
mod value;

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;

pub use self::changes::{Changes, listed};
use self::document::problems::Source;
pub use self::document::problems::{Diagnostic, Problem, Problems};
use self::document::{file, include};
pub use self::redis::{RedisAddress, RedisSection, RedisServers, RedisTls};
pub use self::route::{
    Cache, Cors, HeaderEdits, HostPattern, Origins, Preflight, Rewriting, Share, StaticAnswer,
    Target, Timeouts,
};
use crate::identity::AppId;
use crate::identity::secret::{SealKey, Secret};
use crate::message::error_body::ErrorBody;

/// Where something is written: a file, as it was named, and a line of it, from 1.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<str>,
    pub line: usize,
}

/// Hides the place, so that files that mean the same look the same.
impl fmt::Debug for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("..")
    }
}

/// A whole configuration.
#[derive(Debug)]
pub struct Config {
    pub server: ServerSection,
    pub admin: AdminSection,
    pub forward_auth: ForwardAuthSection,
    pub wechat: WeChatSection,
    pub apps: Vec<App>,
    pub session: SessionSection,
    pub login: LoginSection,
    pub endpoints: EndpointsSection,
    pub identity: IdentitySection,
    pub limits: LimitsSection,
    pub log: LogSection,
    pub upstreams: Vec<Upstream>,
    pub routes: Vec<Route>,
    /// `None`: errors have the gateway's own shape.
    pub errors: Option<ErrorBody>,
    /// What works, but should not be left so. Shown at the start and by `check`.
    pub warnings: Vec<String>,
}

/// Whether secrets are read, or may be absent as in CI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrets {
    Load,
    /// Secrets, keys and certificates are neither read nor missed; what comes out has none.
    Ignore,
}

/// A configuration, or why there is none, and what it was made from.
pub struct Loaded {
    /// The error is every problem found, each with its place.
    pub config: Result<Config, Problems>,
    pub files: Files,
}

/// The files that a configuration is made from: when one of them changes, it may be another.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Those that were read, or could not be.
    listed: BTreeSet<PathBuf>,
    /// Where others are looked for.
    patterns: BTreeSet<String>,
}

impl Files {
    /// Has those of another load, too.
    pub fn add(&mut self, other: &Self) {
        self.listed.extend(other.listed.iter().cloned());
        self.patterns.extend(other.patterns.iter().cloned());
    }

    /// All files there are at the moment.
    pub fn find(&self) -> Vec<PathBuf> {
        let found = self.patterns.iter().flat_map(|pattern| include::find(pattern));
        self.listed.iter().cloned().chain(found.flatten()).collect()
    }
}

impl Config {
    /// Reads and validates a file, what it includes, and the secrets and certificates that it
    /// names.
    ///
    /// # Errors
    /// Every problem found, each with its place.
    pub fn load(path: &Path, secrets: Secrets) -> Result<Self, Problems> {
        Self::read(path, secrets, None).config
    }

    /// [`Config::load`], and from which files. Where the configuration is to take the place of
    /// one that is `running`, what it cannot change there is a problem too.
    pub fn read(path: &Path, secrets: Secrets, running: Option<&Self>) -> Loaded {
        let name = path.display().to_string();
        let read = match running {
            // It may be a pipe.
            None => std::fs::read(path).and_then(file::decode),
            Some(_) => file::read_text(path),
        };
        match read {
            Ok(text) => read::check(Source { name, text }, secrets, running),
            Err(error) => Loaded {
                config: Err(Problems::unreadable(&name, &error)),
                files: Files { listed: [path.to_owned()].into(), ..Files::default() },
            },
        }
    }

    /// [`Config::load`] on a text; `name` stands for the file in problems. Relative paths
    /// in the text are relative to the working directory.
    ///
    /// # Errors
    /// Every problem found, each with its place.
    pub fn parse(name: &str, text: &str, secrets: Secrets) -> Result<Self, Problems> {
        let source = Source { name: name.to_owned(), text: text.to_owned() };
        read::check(source, secrets, None).config
    }

    /// A summary in one line, such as `2 listeners, 1 app, 3 upstreams, 7 routes, sessions in
    /// memory`. Listeners are all of them: public, redirect, forward-auth and admin.
    pub fn summary(&self) -> String {
        let listeners =
            self.server.listen.len() + self.server.redirect.len() + self.forward_auth.listen.len();
        let counts = [
            // The admin listener is always there.
            (listeners + 1, "listener"),
            (self.apps.len(), "app"),
            (self.upstreams.len(), "upstream"),
            (self.routes.len(), "route"),
        ];
        let counts = counts
            .map(|(count, what)| format!("{count} {what}{}", if count == 1 { "" } else { "s" }));
        let store = if self.session.shared.is_some() { "Redis" } else { "memory" };
        format!("{}, sessions in {store}", counts.join(", "))
    }

    /// Every key that a file may have, as `section.key` or `section[].key`.
    pub fn known_keys() -> Vec<String> {
        read::known_keys()
    }

    /// The keys that cannot change while the gateway runs.
    pub fn frozen_keys() -> Vec<&'static str> {
        restart_only::keys().collect()
    }
}

#[derive(Debug, PartialEq)]
pub struct ServerSection {
    /// Never empty.
    pub listen: Vec<SocketAddr>,
    /// Worker threads; never 0.
    pub threads: usize,
    pub tls: Option<TlsSection>,
    /// Whether plain connections may be HTTP/2, by prior knowledge.
    pub h2c: bool,
    /// Of `listen`, those where a balancer first says whose connection it is.
    pub proxy_protocol: Vec<SocketAddr>,
    /// Listeners that only send clients to HTTPS. Empty without `tls`.
    pub redirect: Vec<SocketAddr>,
    /// Port that they send clients to.
    pub redirect_port: u16,
    pub trusted_proxies: Vec<IpNet>,
    /// Added to every response of the public listeners.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// How often the configuration's files are looked at for changes; zero: never.
    pub watch_interval: Duration,
    /// How long new connections are still served after SIGTERM.
    pub shutdown_delay: Duration,
    /// How long what is in flight may take after that.
    pub drain_timeout: Duration,
}

/// TLS of the public listeners.
#[derive(Clone, Debug)]
pub struct TlsSection {
    /// Where none of the others fits. `None` only when secrets are ignored.
    pub default: Option<Certificate>,
    /// For clients that ask for one of their names. Of two with one name the first is it.
    pub certificates: Vec<Certificate>,
    pub handshake_timeout: Duration,
    /// Looks at the certificates of clients; `None`: none is asked for, or secrets are ignored.
    pub client_verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    Required,
    /// One that is shown must be good.
    Optional,
}

impl TlsSection {
    /// Whether a client that asks for a lower-case host finds it in the certificate it gets.
    pub fn is_for(&self, host: &str) -> bool {
        self.all().any(|certificate| certificate.is_for(host))
    }

    pub fn all(&self) -> impl Iterator<Item = &Certificate> {
        self.certificates.iter().chain(&self.default)
    }
}

/// A certificate, verified, with its chain and its key.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// As the configuration calls it.
    pub file: PathBuf,
    /// Hosts that it is for: lower-case names, `*.` in front of some, and addresses.
    pub names: Vec<String>,
    /// When the first of the chain expires.
    pub expires: SystemTime,
    pub chain_and_key: Arc<CertifiedKey>,
}

impl Certificate {
    fn is_for(&self, host: &str) -> bool {
        let parent = host.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|name| {
            name == host || name.strip_prefix("*.").is_some_and(|name| Some(name) == parent)
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct AdminSection {
    pub listen: SocketAddr,
    /// Without it users' sessions are nobody's to see or end.
    pub token: Option<Secret>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct ForwardAuthSection {
    /// Empty: nobody is answered.
    pub listen: Vec<SocketAddr>,
    pub path: RoutePath,
    /// How long the proxy may reuse a 200, in whole seconds; zero: not at all.
    pub cache: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeChatSection {
    /// Scheme, host, port and a path prefix or none, without a trailing slash.
    pub base_url: String,
    /// URL of an egress proxy; it may hold a password.
    pub proxy: Option<Secret>,
    /// Roots to trust instead of the system's, from `ca_file`.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    /// Of a whole exchange.
    pub timeout: Duration,
    /// Until the connection stands, TLS included. Shorter than `timeout`.
    pub connect_timeout: Duration,
    /// Asked where `base_url` cannot be reached.
    pub fallback_base_url: Option<String>,
    /// Exchanges at once.
    pub max_in_flight: usize,
    /// Exchanges that wait until others are over.
    pub queue: usize,
    /// How long one waits.
    pub queue_timeout: Duration,
    /// Failures in a row after which WeChat is left alone; 0: never.
    pub breaker_failures: u32,
    pub breaker_pause: Duration,
}

impl WeChatSection {
    /// Whether certificates are needed.
    pub fn is_https(&self) -> bool {
        let urls = [Some(&self.base_url), self.fallback_base_url.as_ref()];
        urls.into_iter().flatten().any(|url| url.starts_with("https:"))
    }
}

/// A Mini Program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    pub app_id: AppId,
    pub secret: Secret,
    /// Whether logins that name no app are for this one. At most one app is the default.
    pub is_default: bool,
    /// Logins; `None`: as many as come.
    pub login_rate: Option<Rate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSection {
    /// Absolute life of a session.
    pub ttl: Duration,
    /// A session that is not used for so long ends.
    pub idle_timeout: Duration,
    /// Most sessions held.
    pub capacity: u64,
    pub carriers: Carriers,
    /// Name of the session header.
    pub header: HeaderName,
    /// Most sessions of one user, of one app; `None`: as many as come.
    pub max_per_user: Option<NonZeroUsize>,
    /// `None`: sessions are this process's own.
    pub shared: Option<SharedSection>,
}

impl SessionSection {
    /// The headers that can carry a token.
    pub fn carrier_headers(&self) -> Vec<HeaderName> {
        let header = self.carriers.header.then(|| self.header.clone());
        let bearer = self.carriers.bearer.then_some(AUTHORIZATION);
        header.into_iter().chain(bearer).collect()
    }
}

/// A store that several gateways share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSection {
    pub redis: RedisSection,
    /// The first seals what is stored, all of them open it. Empty only when secrets are ignored.
    pub seal_keys: Vec<SealKey>,
}

/// Where a token is looked for; at least one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carriers {
    pub header: bool,
    pub bearer: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginSection {
    pub accept: LoginForms,
    /// Bytes of a login's body.
    pub max_body: usize,
    /// How long a code gets the same answer again; zero: never.
    pub replay_window: Duration,
    /// Logins from each address.
    pub rate_per_address: Option<Rate>,
}

/// So much, on average, in so long; as much may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub count: NonZeroU32,
    /// At least a millisecond, at most a day.
    pub period: Duration,
}

/// Forms of a login request that are taken; at least one is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginForms {
    pub json: bool,
    pub form: bool,
    pub query: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointsSection {
    pub login: Vec<RoutePath>,
    pub logout: Vec<RoutePath>,
    pub session: Vec<RoutePath>,
    pub health: Vec<RoutePath>,
    /// Lower-case host names without port; empty: on every host.
    pub hosts: Vec<String>,
}

/// A path of a route or endpoint: begins with `/`, and reads the same to everybody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoutePath(String);

impl RoutePath {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentitySection {
    pub openid_header: HeaderName,
    pub app_id_header: HeaderName,
    pub union_id_header: HeaderName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitsSection {
    /// For a whole request head, from its first byte.
    pub header_timeout: Duration,
    /// Between two reads of a body.
    pub body_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// Bytes of a request body, where a route says nothing else.
    pub max_body: u64,
    /// Bytes of a request head.
    pub max_header: usize,
    /// Header lines of a request.
    pub max_header_count: usize,
    /// Bytes of a request target.
    pub max_target: usize,
    /// How long nothing may pass on a WebSocket, either way.
    pub websocket_idle_timeout: Duration,
    /// The longest life of a WebSocket; the end of its session may come first.
    pub websocket_lifetime: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Bytes of body a second that a client must send, after a moment's grace; 0: any.
    pub min_body_rate: u64,
    /// Bytes a second that a client must take while some wait to be sent to it, after a moment's
    /// grace; 0: any.
    pub min_response_rate: u64,
    /// Bytes that grown HTTP/2 windows may take, for all connections together.
    pub max_buffered: u64,
    /// Requests of one HTTP/1 connection.
    pub max_requests_per_connection: usize,
    /// Requests at once of one HTTP/2 connection.
    pub max_streams: u32,
    /// Requests of one HTTP/2 connection that the client may give up at once, unless most
    /// are not.
    pub max_early_resets: usize,
    /// Public connections at once.
    pub max_connections: usize,
    /// Of one address; `None`: as many as there may be in all.
    pub max_connections_per_address: Option<usize>,
    /// Users or addresses that one rate limit remembers.
    pub max_rate_clients: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSection {
    pub level: LogLevel,
    pub format: LogFormat,
    pub access: LogDestination,
    /// Keys the hash under which a user appears in the access log.
    pub openid_key: Option<Secret>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogDestination {
    Stderr,
    Stdout,
    File(PathBuf),
    Off,
}

/// A pool of servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    pub name: String,
    /// Never empty.
    pub servers: Vec<ServerAddress>,
    pub connect_timeout: Duration,
    /// Between two reads of an answer.
    pub read_timeout: Duration,
    /// Between two writes of a request.
    pub write_timeout: Duration,
    /// The longest time that an idle connection is kept for the next request. Where it is not
    /// set, 4 seconds, or what the service says.
    pub idle_timeout: Option<Duration>,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerAddress {
    Socket(SocketAddr),
    /// Resolved at the start and every 30 seconds.
    Host {
        host: String,
        port: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where its section begins.
    pub place: Place,
    /// Label in metrics and logs.
    pub name: String,
    /// Empty: every host.
    pub hosts: Vec<HostPattern>,
    pub path: RoutePath,
    /// Whether only the path itself matches, not what is below it.
    pub is_exact: bool,
    /// Headers that must stand once and have these values.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub target: Target,
    pub access: Access,
    /// Upper-case; empty: every method.
    pub methods: Vec<String>,
    /// Empty: sessions of every app.
    pub apps: Vec<AppId>,
    /// Whether a request may become a WebSocket.
    pub websocket: bool,
    /// Bytes of a request body.
    pub max_body: u64,
    /// Requests of each user; `None`: as many as come.
    pub rate_per_user: Option<Rate>,
    /// Requests from each address.
    pub rate_per_address: Option<Rate>,
    pub rewriting: Option<Rewriting>,
    pub request_edits: HeaderEdits,
    /// Of the service's responses and of [`Target::Answer`], `server.response_headers` included.
    pub response_edits: HeaderEdits,
    /// Of the gateway's own responses on this route.
    pub response_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that can carry a token, for `Vary`; empty where it is not sent.
    pub vary: Vec<HeaderName>,
    pub timeouts: Timeouts,
    pub cors: Option<Cors>,
    pub preflight: Preflight,
}

/// What a route asks of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No valid session, no upstream.
    Required,
    /// No token means anonymous; a token that is not valid is refused.
    Optional,
    /// Tokens are not looked up.
    None,
}

impl From<&LimitsSection> for crate::message::request_header::HeadLimits {
    fn from(limits: &LimitsSection) -> Self {
        Self { bytes: limits.max_header, lines: limits.max_header_count, target: limits.max_target }
    }
}
