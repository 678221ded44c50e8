//! A simulated WeChat for development and tests.
//!
//! It implements the APIs that a Mini Program's back end needs, with WeChat's behaviour: codes work
//! once and for five minutes, an `access_token` is checked and can be invalidated by another party,
//! errors come with HTTP 200. It is only started by its own command, by the demo and by tests; no
//! gateway configuration can start it.
//!
//! `codes`, `users` and `quotas` have the state of users. Each other file has the endpoints of one
//! group with their state: `login`, `access_token`, `session_key`, `phone_number`, `messages`,
//! `mini_program_code` (with `png`), `content`, `media`. `device` does what a user's phone does,
//! and `pages` are WeChat's login pages in browsers. `call` reads requests, `multipart` those with
//! a file; `errors` has WeChat's errors and `faults` other failures.

mod access_token;
mod call;
mod codes;
mod content;
mod device;
mod errors;
mod faults;
mod login;
mod media;
mod messages;
mod mini_program_code;
mod multipart;
mod pages;
mod phone_number;
mod png;
mod quotas;
mod session_key;
mod users;

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use rand::distr::{Alphanumeric, SampleString};
use serde_json::{Value, json};
use tokio::net::TcpListener;

pub use self::access_token::ACCESS_TOKEN;
use self::access_token::AccessTokens;
use self::call::Api;
use self::codes::Codes;
use self::errors::error;
use self::login::{ExchangeApi, LOGIN_CODES, LoginCode};
use self::media::MediaFiles;
use self::messages::Messages;
use self::pages::LoginPage;
use self::phone_number::{PHONE_CODES, PhoneCode};
use self::quotas::Quotas;
use self::users::Users;
pub use self::users::{SESSION_KEY, openid, phone_number, unionid};
use crate::clock::Clock;
use crate::listener::small_server::{self, Dropped, Request, Response, response};

/// The app that exists if none is configured.
pub const DEFAULT_APP: (&str, &str) = ("wx0123456789abcdef", "sandbox-secret");

/// Duration of a call at the beginning of a slow start.
const SLOW_START_LATENCY: Duration = Duration::from_secs(2);

/// Maximum number of codes or users that are remembered; the oldest are forgotten.
const CAPACITY: u64 = 100_000;

/// A simulated WeChat.
pub struct Sandbox {
    /// App ids and secrets.
    apps: Vec<(String, String)>,
    behaviour: Behaviour,
    codes: Codes<LoginCode>,
    phone_codes: Codes<PhoneCode>,
    users: Users,
    quotas: Quotas,
    access_tokens: AccessTokens,
    messages: Messages,
    media: MediaFiles,
    clock: Clock,
    started_at: Duration,
    exchanges: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
}

/// How the simulated WeChat behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Duration of a call.
    pub latency: Duration,
    /// For this time after the start, calls take longer: two seconds at first, then less.
    pub slow_start: Duration,
    /// Calls of one API for one user per minute; further ones get 45011.
    pub user_quota: u32,
    /// Calls of each API in total; further ones get 45009.
    pub quota: Option<u64>,
    /// Whether the caller's address is missing from the IP allow list: every call gets 40164.
    pub rejects_address: bool,
    /// Lifetime of a `session_key` after the user's last login.
    pub session_key_lifetime: Duration,
    /// Logins within this time of a new `session_key` do not make another one, as at WeChat. By
    /// default, each login makes one.
    pub session_key_refresh: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            slow_start: Duration::ZERO,
            // The value that WeChat's documentation gave.
            user_quota: 100,
            quota: None,
            rejects_address: false,
            // The value that WeChat's support gave once.
            session_key_lifetime: Duration::from_secs(3 * 24 * 3600),
            session_key_refresh: Duration::ZERO,
        }
    }
}

impl Sandbox {
    pub fn new(apps: Vec<(String, String)>, clock: Clock) -> Arc<Self> {
        Self::with_behaviour(apps, clock, Behaviour::default())
    }

    pub fn with_behaviour(
        apps: Vec<(String, String)>,
        clock: Clock,
        behaviour: Behaviour,
    ) -> Arc<Self> {
        Arc::new(Self {
            apps,
            codes: Codes::new(LOGIN_CODES, clock.clone()),
            phone_codes: Codes::new(PHONE_CODES, clock.clone()),
            users: Users::new(&behaviour, clock.clone()),
            quotas: Quotas::new(&behaviour, clock.clone()),
            access_tokens: AccessTokens::new(clock.clone()),
            messages: Messages::default(),
            media: MediaFiles::new(clock.clone()),
            behaviour,
            started_at: clock.now(),
            clock,
            exchanges: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            most_in_flight: AtomicU64::new(0),
        })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let handler = move |request| {
            let sandbox = self.clone();
            async move { sandbox.respond(request).await }
        };
        match small_server::serve(listener, handler).await {}
    }

    /// How often codes were exchanged.
    pub fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Maximum number of concurrent exchanges so far.
    pub fn most_in_flight(&self) -> u64 {
        self.most_in_flight.load(Ordering::Relaxed)
    }

    /// How often each API was called, by path, whatever the outcome. Without code2Session.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.quotas.calls()
    }

    async fn respond(&self, request: Request) -> Result<Response, Dropped> {
        let path = request.uri().path();
        if let Some(api) = ExchangeApi::at(path) {
            return self.exchange(api, &request).await;
        }
        if let Some(api) = Api::at(path) {
            return self.call(api, request).await;
        }
        if ["/cgi-bin/", "/wxa/", "/sns/"].iter().any(|prefix| path.starts_with(prefix)) {
            return Ok(json_response(&error(40066)));
        }
        if let (Some(page), &Method::GET) = (LoginPage::at(path), request.method()) {
            return Ok(self.login_page(page, &request));
        }
        Ok(match (path, request.method()) {
            ("/sandbox/user", &Method::GET) => Self::browser_user(&request),
            ("/sandbox/codes", &Method::POST) => self.issue_code(request).await,
            ("/sandbox/phone-codes", &Method::POST) => self.issue_phone_code(request).await,
            ("/sandbox/encrypt", &Method::POST) => self.encrypt(request).await,
            ("/sandbox/revoke-token", &Method::POST) => self.revoke_token(request).await,
            ("/sandbox/messages", &Method::GET) => {
                json_response(&json!({ "messages": self.messages.all() }))
            }
            ("/sandbox/stats", &Method::GET) => json_response(&json!({
                "exchanges": self.exchanges(),
                "most_at_once": self.most_in_flight(),
                "calls": self.calls(),
            })),
            _ => response(404, "text/plain", "not found\n"),
        })
    }

    /// How long a call takes now.
    fn latency(&self) -> Duration {
        let left = (self.started_at + self.behaviour.slow_start).saturating_sub(self.clock.now());
        if left.is_zero() {
            return self.behaviour.latency;
        }
        let part = left.div_duration_f64(self.behaviour.slow_start);
        self.behaviour.latency + SLOW_START_LATENCY.mul_f64(part)
    }

    /// The time in seconds since 1970.
    fn unix_seconds(&self) -> u64 {
        self.clock.to_wall(self.clock.now_millis()) / 1000
    }
}

/// An exchange in flight, counted until it is dropped.
struct InFlight<'a>(&'a Sandbox);

impl<'a> InFlight<'a> {
    fn begin(sandbox: &'a Sandbox) -> Self {
        sandbox.exchanges.fetch_add(1, Ordering::Relaxed);
        let in_flight = sandbox.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        sandbox.most_in_flight.fetch_max(in_flight, Ordering::Relaxed);
        Self(sandbox)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A map that forgets what was not used for the longest time.
fn newest<K, V>() -> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(CAPACITY).eviction_policy(EvictionPolicy::lru()).build()
}

/// A text that nobody can guess.
fn text_of_letters(length: usize) -> String {
    Alphanumeric.sample_string(&mut rand::rng(), length)
}

/// The value of a query parameter; empty if it is missing.
fn parameter(query: &str, name: &str) -> String {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

/// JSON with the content type that WeChat gives it in logins.
fn text(value: &Value) -> Response {
    response(200, "text/plain", value.to_string())
}

/// JSON with the content type that WeChat gives it elsewhere.
fn json_response(value: &Value) -> Response {
    response(200, "application/json", value.to_string())
}
