//! Calls of WeChat's API.
//!
//! This file has the part of a login that calls WeChat: it exchanges a one-time code for an
//! identity. `access_token` keeps the tokens that all other calls need, `server_api` makes the
//! calls about one user, `mini_program_code` gets images, and `pass_through` makes the calls of
//! services. All of them use `transport`. `sent_codes` remembers codes that are sent once.
//!
//! [`ExchangePermit::exchange`] calls the API of the app's kind (`exchange`) once, within the
//! concurrency limit. As soon as a byte may have been sent, the code may be used up, so a call is
//! never repeated. The URL contains the app secret. No URL and no text from WeChat gets into a log
//! or an error, except for WeChat's errcode and trace id. WeChat responds with HTTP 200 and
//! `text/plain` even when it reports an error, so the body decides; an error that a relay sends
//! with another status is read as well.

pub mod access_token;
mod addresses;
mod call_error;
mod circuit_breaker;
mod concurrency_limit;
mod errcode;
mod error;
mod exchange;
pub mod mini_program_code;
pub mod pass_through;
mod rejection;
pub mod reply;
pub mod sandbox;
pub mod sent_codes;
pub mod server_api;
mod transport;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use self::call_error::{CallError, Cause, Destination};
use self::concurrency_limit::{CallPermit, ConcurrencyLimit};
pub use self::errcode::ErrCode;
pub use self::error::{ErrorReport, WeChatError};
pub use self::reply::Exchanged;
pub use self::transport::is_not_http;
use self::transport::{Response, Transport};
use crate::clock::Clock;
use crate::config::{App, WeChatSection};
use crate::identity::secret::Secret;
use crate::telemetry::metrics::Metrics;

/// Labels of exchanges whose series exist from the start.
pub const WATCHED_ERRCODES: [&str; 12] = [
    "ok",
    "timeout",
    "transport",
    "malformed",
    "40029",
    "40163",
    "40226",
    "45009",
    "45011",
    "40013",
    "40125",
    "40164",
];

/// A one-time code of a login, in a form that WeChat might accept.
pub struct Code(Secret);

impl Code {
    /// Parses a code: 1 to 128 characters of `A-Z a-z 0-9 - _ . ~`. WeChat documents no alphabet;
    /// the codes seen have 32 letters and digits.
    pub fn parse(text: &str) -> Option<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
        let is_code = (1..=128).contains(&text.len()) && text.bytes().all(legal);
        is_code.then(|| Self(Secret::new(text.to_owned())))
    }

    /// Whether a text is the code that the developer tools return if the project has no app id
    /// (observed, not documented).
    pub fn is_mock(text: &str) -> bool {
        text == "the code is a mock one"
    }
}

/// The client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no CA certificates found on this machine to verify WeChat's certificate with: install \
         the package ca-certificates, or set SSL_CERT_FILE or wechat.ca_file"
    )]
    NoRoots,
    #[error("cannot create the client for WeChat: {0}")]
    Other(String),
}

/// The client of WeChat's API.
pub struct WeChat {
    transport: Transport,
    section: WeChatSection,
    limit: ConcurrencyLimit,
    metrics: Arc<Metrics>,
}

/// Permission to exchange one code.
pub struct ExchangePermit<'a> {
    wechat: &'a WeChat,
    permit: CallPermit<'a>,
}

impl WeChat {
    /// Creates a client.
    ///
    /// # Errors
    /// When there are no root certificates to verify WeChat with, or the client cannot be created.
    pub fn new(
        section: &WeChatSection,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            transport: Transport::new(section, clock.clone())?,
            section: section.clone(),
            limit: ConcurrencyLimit::new(section, clock, metrics.clone()),
            metrics,
        })
    }

    /// The client from before a reload if its section has not changed, else a new one.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn carried_over(
        previous: Option<&Arc<Self>>,
        section: &WeChatSection,
        clock: &Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, ClientError> {
        match previous.filter(|client| client.section == *section) {
            Some(client) => Ok(client.clone()),
            None => Self::new(section, clock.clone(), metrics).map(Arc::new),
        }
    }

    /// The base URL of WeChat's API, without a trailing slash.
    pub fn base_url(&self) -> &str {
        &self.section.base_url
    }

    /// The longest time of one call.
    pub fn timeout(&self) -> Duration {
        self.section.timeout
    }

    /// Waits for permission to exchange one code.
    ///
    /// # Errors
    /// When no call to WeChat is allowed at present.
    pub async fn permit(&self) -> Result<ExchangePermit<'_>, WeChatError> {
        Ok(ExchangePermit { wechat: self, permit: self.limit.acquire().await? })
    }

    /// Checks, with an invalid code, whether each address of WeChat can be reached and accepts the
    /// app. For each address, the error is why logins of the app would fail there, whatever their
    /// code. An address is shown without its path, which may be a secret of a relay.
    pub async fn probe(&self, app: &App) -> Vec<(&str, Result<(), WeChatError>)> {
        let no_code = Code(Secret::new("wxgate-live-check".to_owned()));
        let query = exchange::query(app, &no_code);
        let outcomes = self.transport.call_all(&exchange::call(app, &query)).await.into_iter();
        let judge = |response: Result<Response, WeChatError>| {
            match response.and_then(|response| exchange::exchanged(app, &no_code, &response)) {
                // An address that rejects the code has accepted the app.
                Ok(_) | Err(WeChatError::InvalidCode(_)) => Ok(()),
                Err(error) => Err(error),
            }
        };
        outcomes.map(|(address, response)| (address, judge(response))).collect()
    }

    async fn call(&self, app: &App, code: &Code) -> Result<Exchanged, WeChatError> {
        let query = exchange::query(app, code);
        let response = self.transport.call(&exchange::call(app, &query)).await?;
        exchange::exchanged(app, code, &response)
    }
}

impl ExchangePermit<'_> {
    /// Exchanges a code. It is sent at most once, whatever the outcome.
    ///
    /// # Errors
    /// See [`WeChatError`].
    pub async fn exchange(self, app: &App, code: &Code) -> Result<Exchanged, WeChatError> {
        let started = Instant::now();
        let outcome = self.wechat.call(app, code).await;
        self.permit.report(outcome.as_ref().err().filter(|error| !error.wechat_works()));
        let label = outcome.as_ref().map_or_else(WeChatError::label, |_| "ok");
        self.wechat.metrics.exchanged(app.app_id.as_str(), label, started.elapsed());
        outcome
    }
}
