//! A simulated WeChat for development and tests.
//!
//! It implements code2Session with WeChat's behaviour: a code works once and for five minutes, app
//! id and secret are checked, errors come with HTTP 200, and every response is `text/plain`. It is
//! only started by its own command, by the demo and by tests; no gateway configuration can start
//! it.
//!
//! `codes` and `users` have the state. Each other file has the endpoints of one group: `login`
//! those of logins. `errors` has WeChat's errors.

mod codes;
mod errors;
mod login;
mod users;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::codes::Codes;
use self::users::Users;
pub use self::users::{SESSION_KEY, openid, unionid};
use crate::clock::Clock;
use crate::listener::internal::{self, Dropped, Request, Response, response};

/// The app that exists if none is configured.
pub const DEFAULT_APP: (&str, &str) = ("wx0123456789abcdef", "sandbox-secret");

/// Duration of an exchange at the beginning of a slow start.
const SLOW_START_LATENCY: Duration = Duration::from_secs(2);

/// Maximum number of codes or users that are remembered; the oldest are forgotten.
const CAPACITY: u64 = 100_000;

/// A simulated WeChat.
pub struct Sandbox {
    /// App ids and secrets.
    apps: Vec<(String, String)>,
    behaviour: Behaviour,
    codes: Codes,
    users: Users,
    clock: Clock,
    started_at: Duration,
    exchanges: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
}

/// How the simulated WeChat behaves.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// Duration of an exchange.
    pub latency: Duration,
    /// For this time after the start, exchanges take longer: two seconds at first, then less.
    pub slow_start: Duration,
    /// Logins per user per minute; further ones get 45011.
    pub user_quota: u32,
    /// Logins in total; further ones get 45009.
    pub quota: Option<u64>,
    /// Whether the caller's address is missing from the IP allow list: every call gets 40164.
    pub rejects_address: bool,
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
            behaviour,
            codes: Codes::new(clock.clone()),
            users: Users::new(clock.clone()),
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
        match internal::serve(listener, handler).await {}
    }

    /// How often code2Session was called.
    pub fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Maximum number of concurrent calls of code2Session so far.
    pub fn most_in_flight(&self) -> u64 {
        self.most_in_flight.load(Ordering::Relaxed)
    }

    async fn respond(&self, request: Request) -> Result<Response, Dropped> {
        match (request.uri().path(), request.method()) {
            ("/sns/jscode2session", _) => self.code_to_session(&request).await,
            ("/wxa/checksession", &Method::GET) => Ok(self.check_session(&request)),
            ("/sandbox/codes", &Method::POST) => Ok(self.issue_code(request).await),
            ("/sandbox/stats", &Method::GET) => {
                let stats = json!({
                    "exchanges": self.exchanges(),
                    "most_at_once": self.most_in_flight(),
                });
                Ok(response(200, "application/json", stats.to_string()))
            }
            _ => Ok(response(404, "text/plain", "not found\n")),
        }
    }

    /// How long an exchange takes now.
    fn latency(&self) -> Duration {
        let left = (self.started_at + self.behaviour.slow_start).saturating_sub(self.clock.now());
        if left.is_zero() {
            return self.behaviour.latency;
        }
        let part = left.div_duration_f64(self.behaviour.slow_start);
        self.behaviour.latency + SLOW_START_LATENCY.mul_f64(part)
    }
}

/// A call of code2Session in flight, counted until it is dropped.
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

/// The value of a query parameter; empty if it is missing.
fn parameter(query: &str, name: &str) -> String {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

/// JSON with the content type that WeChat gives it.
fn text(value: &Value) -> Response {
    response(200, "text/plain", value.to_string())
}
