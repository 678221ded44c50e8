//! The part of a login that calls WeChat: exchanges a one-time code for an identity.
//!
//! [`ExchangePermit::exchange`] calls code2Session (auth.code2Session, `GET /sns/jscode2session`)
//! once, within the concurrency limit. As soon as a byte may have been sent, the code may be used
//! up, so a call is never repeated. The URL contains the app secret. No URL and no text from WeChat
//! gets into a log or an error, except for WeChat's errcode and trace id. WeChat responds with HTTP
//! 200 and `text/plain` even when it reports an error, so the body decides; an error that a relay
//! sends with another status is read as well.

mod addresses;
mod call_error;
mod circuit_breaker;
mod concurrency_limit;
mod errcode;
mod error;
pub mod reply;
pub mod sandbox;

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::RETRY_AFTER;
use reqwest::{StatusCode, redirect};
use zeroize::Zeroizing;

use self::addresses::{Address, Addresses};
pub use self::call_error::{CallError, Cause, Destination};
use self::concurrency_limit::{CallPermit, ConcurrencyLimit};
pub use self::errcode::ErrCode;
pub use self::error::{ErrorReport, WeChatError};
use self::reply::Reply;
use crate::clock::Clock;
use crate::config::{App, WeChatSection};
use crate::identity::Identity;
use crate::identity::secret::Secret;
use crate::telemetry::metrics::Metrics;

/// Maximum bytes of a response that are read; WeChat's have less than 300.
const MAX_RESPONSE: usize = 64 << 10;

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

/// Idle connections are closed before WeChat closes them, so that no code is sent on a connection
/// that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(10);

/// A one-time code of `wx.login`, in a form that WeChat might accept.
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
    client: reqwest::Client,
    addresses: Addresses,
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
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(section.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tls_certs_only(roots(section)?);
        if let Some(proxy) = &section.proxy {
            let proxy = reqwest::Proxy::all(proxy.expose())
                .map_err(|_| ClientError::Other("proxy".to_owned()))?;
            builder = builder.proxy(proxy);
        }
        let client =
            builder.build().map_err(|error| ClientError::Other(error.without_url().to_string()))?;
        Ok(Self {
            client,
            addresses: Addresses::new(section, clock.clone()),
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
        let mut outcomes = Vec::new();
        for address in self.addresses.all() {
            let deadline = Instant::now() + self.section.timeout;
            let outcome = match self.exchange_at(address, app, &no_code, deadline).await {
                // An address that rejects the code has accepted the app.
                Ok(_) | Err(WeChatError::InvalidCode(_)) => Ok(()),
                Err(error) => Err(error),
            };
            outcomes.push((address.destination.address(), outcome));
        }
        outcomes
    }

    async fn call(&self, app: &App, code: &Code) -> Result<Identity, WeChatError> {
        let deadline = Instant::now() + self.section.timeout;
        let (first, second) = self.addresses.in_order();
        let outcome = self.exchange_at(first, app, code, deadline).await;
        let call_error = match &outcome {
            Err(WeChatError::Unreachable(call_error)) => Some(call_error),
            _ => None,
        };
        self.addresses.report(first, call_error);
        match second {
            // Nothing was sent, so this is not a repeated exchange.
            Some(second) if call_error.is_some() => {
                self.exchange_at(second, app, code, deadline).await
            }
            _ => outcome,
        }
    }

    /// Exchanges a code at one address.
    async fn exchange_at(
        &self,
        address: &Address,
        app: &App,
        code: &Code,
        deadline: Instant,
    ) -> Result<Identity, WeChatError> {
        let Response { status, retry_after, body } =
            self.send(address, app, code, deadline).await?;
        let destination = &address.destination;
        let secrets = [app.secret.expose(), code.0.expose()];
        let reply = Reply::parse(&body).map(|reply| reply.without(secrets));
        if status.is_success() {
            let identity = reply.and_then(|reply| reply.into_identity(&app.app_id));
            return identity.map_err(|error| error.at(destination));
        }
        // WeChat's only status is 200, but a relay may change the status of errors. It never
        // changes the status of a successful exchange.
        let reported = reply.and_then(|reply| reply.failure()).ok().flatten();
        if let Some(error) = reported.filter(|_| status.is_client_error()) {
            return Err(error);
        }
        let call_error = CallError::new(Some(destination.clone()), Cause::Status(status.as_u16()));
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => WeChatError::TooManyRequests(call_error, retry_after),
            _ => WeChatError::Status(call_error),
        })
    }

    /// Sends one request, and reads the response.
    async fn send(
        &self,
        address: &Address,
        app: &App,
        code: &Code,
        deadline: Instant,
    ) -> Result<Response, WeChatError> {
        let query = [
            ("appid", app.app_id.as_str()),
            ("secret", app.secret.expose()),
            ("js_code", code.0.expose()),
            ("grant_type", "authorization_code"),
        ];
        let url = format!("{}/sns/jscode2session", address.url);
        let url = reqwest::Url::parse_with_params(&url, query)
            .map_err(|_| WeChatError::malformed("base_url"))?;
        let broken = |error: reqwest::Error| transport_error(&address.destination, &error);
        let request = self.client.get(url).timeout(deadline - Instant::now());
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        if status.is_server_error() {
            let cause = Cause::Status(status.as_u16());
            return Err(WeChatError::Broken(CallError::new(
                Some(address.destination.clone()),
                cause,
            )));
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut body = Zeroizing::new(Vec::with_capacity(1024));
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > MAX_RESPONSE {
                return Err(WeChatError::malformed("too long").at(&address.destination));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Response { status, retry_after, body })
    }
}

/// A response from an address of WeChat.
struct Response {
    status: StatusCode,
    /// In seconds. A date is ignored.
    retry_after: Option<u32>,
    body: Zeroizing<Vec<u8>>,
}

impl ExchangePermit<'_> {
    /// Exchanges a code. It is sent at most once, whatever the outcome.
    ///
    /// # Errors
    /// See [`WeChatError`].
    pub async fn exchange(self, app: &App, code: &Code) -> Result<Identity, WeChatError> {
        let started = Instant::now();
        let outcome = self.wechat.call(app, code).await;
        self.permit.report(outcome.as_ref().err().filter(|error| !error.wechat_works()));
        let label = outcome.as_ref().map_or_else(WeChatError::label, |_| "ok");
        self.wechat.metrics.exchanged(app.app_id.as_str(), label, started.elapsed());
        outcome
    }
}

/// Distinguishes errors before anything was sent from errors after.
fn transport_error(destination: &Arc<Destination>, error: &reqwest::Error) -> WeChatError {
    let after = |cause| CallError::new(Some(destination.clone()), cause);
    // All connect timeouts together are shorter than the total timeout, so when the total timeout
    // ends, the request has been sent, at least in part.
    if let Some(call_error) = CallError::of_certificate(destination, error) {
        WeChatError::Certificate(call_error)
    } else if is_not_http(error) {
        WeChatError::malformed("not HTTP").at(destination)
    } else if error.is_connect() {
        WeChatError::Unreachable(CallError::of_connection(destination, error))
    } else if error.is_timeout() {
        WeChatError::Timeout(after(Cause::NoResponse))
    } else {
        WeChatError::Broken(after(Cause::Closed))
    }
}

/// Whether something was received that is not HTTP.
fn is_not_http(error: &reqwest::Error) -> bool {
    call_error::chain(error)
        .any(|link| link.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse))
}

fn roots(section: &WeChatSection) -> Result<Vec<reqwest::Certificate>, ClientError> {
    let roots = match &section.roots {
        Some(roots) => roots.clone(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.is_empty() && section.is_https() {
        return Err(ClientError::NoRoots);
    }
    // The system's store may contain unreadable certificates; the others are used.
    Ok(roots.iter().filter_map(|root| reqwest::Certificate::from_der(root).ok()).collect())
}
