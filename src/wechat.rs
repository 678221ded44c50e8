//! WeChat's side of a login: a one-time code traded for an identity.
//!
//! [`Turn::exchange`] calls code2Session (auth.code2Session, `GET /sns/jscode2session`)
//! once, when the gate has let it: after a byte may have been sent the code may be spent, so
//! nothing is ever repeated. The request's URL holds the app secret; no URL, and
//! nothing that WeChat said, gets into a log or an error, but for its number and its trace
//! id. Answers come as HTTP 200 with `text/plain`, also for errors, so only the body counts.

mod addresses;
mod breaker;
mod gate;
pub mod reply;

use std::borrow::Cow;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::redirect;
use zeroize::Zeroizing;

use self::addresses::Addresses;
use self::gate::{Closed, Gate, Pass};
use self::reply::Reply;
pub use self::reply::{ErrCode, Refusal};
use crate::clock::Clock;
use crate::config::{App, WeChatSection};
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::rejection::{Rejection, jittered};
use crate::secret::Secret;

/// Bytes of an answer that are read; real ones have under 300.
const LONGEST_REPLY: usize = 64 << 10;

/// Labels of exchanges that are there from the start.
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

/// Idle connections are given up before WeChat's end does, so that no code is written to a
/// connection that is about to be closed.
const POOL_IDLE: Duration = Duration::from_secs(10);

/// A one-time code of `wx.login`, of a shape that is worth asking WeChat about.
pub struct Code(Secret);

impl Code {
    /// 1 to 128 of `A-Z a-z 0-9 - _ . ~`. WeChat documents no alphabet; codes seen have 32
    /// letters and digits.
    pub fn parse(text: &str) -> Option<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
        let is_code = (1..=128).contains(&text.len()) && text.bytes().all(legal);
        is_code.then(|| Self(Secret::new(text.to_owned())))
    }

    /// What the developer tools give without an app id (observed, not documented).
    pub fn is_mock(text: &str) -> bool {
        text == "the code is a mock one"
    }
}

/// Why there is no identity, by what the client or the operator can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeChatError {
    #[error("WeChat does not accept the code ({0})")]
    InvalidCode(ErrCode),
    #[error("WeChat blocks the user ({0})")]
    UserBlocked(ErrCode),
    #[error("WeChat limits the calls of this user ({})", .0.errcode)]
    RateLimited(Refusal),
    #[error("WeChat is busy ({})", .0.errcode)]
    Busy(Refusal),
    #[error("WeChat's quota for the app is used up ({})", .0.errcode)]
    OutOfQuota(Refusal),
    #[error("WeChat refuses the app ({})", .0.errcode)]
    Refused(Refusal),
    #[error("WeChat's answer cannot be understood: {0}")]
    Malformed(&'static str),
    #[error("WeChat's certificate cannot be trusted")]
    Certificate,
    #[error("WeChat cannot be reached")]
    Unreachable,
    #[error("WeChat did not answer in time; the code may be spent")]
    Timeout,
    #[error("WeChat's connection broke, or it failed; the code may be spent")]
    Broken,
    #[error("as many logins wait for WeChat as may")]
    QueueFull,
    #[error("WeChat fails, and is left alone for a while")]
    LeftAlone(Duration),
}

impl WeChatError {
    /// The label `errcode` of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::InvalidCode(errcode)
            | Self::UserBlocked(errcode)
            | Self::RateLimited(Refusal { errcode, .. })
            | Self::Busy(Refusal { errcode, .. })
            | Self::OutOfQuota(Refusal { errcode, .. })
            | Self::Refused(Refusal { errcode, .. }) => errcode.label(),
            Self::Malformed(_) => "malformed",
            Self::Timeout => "timeout",
            Self::Certificate
            | Self::Unreachable
            | Self::Broken
            | Self::QueueFull
            | Self::LeftAlone(_) => "transport",
        }
    }

    /// What it is about: the same kind is the same trouble.
    pub fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Certificate => "certificate",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::QueueFull => "queue full",
            Self::LeftAlone(_) => "left alone",
            Self::Malformed(how) => how,
            Self::Refused(refusal) => return Cow::Owned(refusal.errcode.to_string()),
            other => other.label(),
        })
    }

    /// Whether WeChat itself said so: its service works.
    pub fn is_answer(&self) -> bool {
        matches!(
            self,
            Self::InvalidCode(_)
                | Self::UserBlocked(_)
                | Self::RateLimited(_)
                | Self::OutOfQuota(_)
                | Self::Refused(_)
        )
    }

    /// Whether somebody can do something about it; refusals of a code are everyday.
    pub fn is_for_the_operator(&self) -> bool {
        !matches!(self, Self::InvalidCode(_) | Self::UserBlocked(_))
    }

    /// What of it support and operators need, as the end of a line.
    pub fn details(&self) -> String {
        let Some(refusal) = self.refusal() else { return String::new() };
        let address = refusal.seen_address.map(|address| format!(", asked from {address}"));
        let rid = refusal.rid.as_deref().map(|rid| format!(", rid {rid}"));
        address.unwrap_or_default() + &rid.unwrap_or_default()
    }

    /// What WeChat said besides the number.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::RateLimited(refusal)
            | Self::Busy(refusal)
            | Self::OutOfQuota(refusal)
            | Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

impl From<&WeChatError> for Rejection {
    fn from(error: &WeChatError) -> Self {
        match error {
            WeChatError::InvalidCode(_) => Self::InvalidCode,
            WeChatError::UserBlocked(_) => Self::UserBlocked,
            // The limit is per user and minute.
            WeChatError::RateLimited(_) => Self::RateLimited { retry_after: jittered(60, 75) },
            WeChatError::Busy(_) | WeChatError::Unreachable | WeChatError::QueueFull => {
                Self::WeChatBusy { retry_after: jittered(2, 5) }
            }
            WeChatError::LeftAlone(wait) => {
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX - 4);
                Self::WeChatBusy { retry_after: jittered(seconds + 1, seconds + 4) }
            }
            WeChatError::OutOfQuota(_) => Self::WeChatBusy { retry_after: jittered(60, 90) },
            WeChatError::Refused(_) | WeChatError::Malformed(_) | WeChatError::Certificate => {
                Self::WeChatRejected
            }
            WeChatError::Timeout | WeChatError::Broken => {
                Self::WeChatTimeout { retry_after: jittered(1, 5) }
            }
        }
    }
}

impl From<Closed> for WeChatError {
    fn from(closed: Closed) -> Self {
        match closed {
            Closed::Full => Self::QueueFull,
            Closed::Open(wait) => Self::LeftAlone(wait),
        }
    }
}

/// The client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no CA certificates were found on this machine, so WeChat cannot be verified: install \
         the package ca-certificates, set SSL_CERT_FILE, or set wechat.ca_file"
    )]
    NoRoots,
    #[error("the client for WeChat cannot be built: {0}")]
    Other(String),
}

/// The client of WeChat's API.
pub struct WeChat {
    client: reqwest::Client,
    addresses: Addresses,
    section: WeChatSection,
    gate: Gate,
    metrics: Arc<Metrics>,
}

/// The turn to trade one code.
pub struct Turn<'a> {
    wechat: &'a WeChat,
    pass: Pass<'a>,
}

impl WeChat {
    /// # Errors
    /// When there are no roots to verify WeChat with, or the client cannot be built.
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
            gate: Gate::new(section, clock),
            metrics,
        })
    }

    /// What it was made from.
    pub fn section(&self) -> &WeChatSection {
        &self.section
    }

    /// Waits for the turn to trade one code.
    ///
    /// # Errors
    /// When WeChat is not to be asked now.
    pub async fn turn(&self) -> Result<Turn<'_>, WeChatError> {
        Ok(Turn { wechat: self, pass: self.gate.enter().await? })
    }

    /// Asks each address of WeChat whether it can be reached and takes the app, with a code
    /// that is none. Says of each why a login of the app would fail there, whatever its code.
    pub async fn probe(&self, app: &App) -> Vec<(&str, Result<(), WeChatError>)> {
        let no_code = Code(Secret::new("wxgate-live-check".to_owned()));
        let mut found = Vec::new();
        for address in self.addresses.all() {
            let deadline = Instant::now() + self.section.timeout;
            let outcome = match self.ask(address, app, &no_code, deadline).await {
                // Who looks at the code has taken the app.
                Ok(_) | Err(WeChatError::InvalidCode(_)) => Ok(()),
                Err(error) => Err(error),
            };
            found.push((address, outcome));
        }
        found
    }

    async fn call(&self, app: &App, code: &Code) -> Result<Identity, WeChatError> {
        let deadline = Instant::now() + self.section.timeout;
        let (first, second) = self.addresses.in_order();
        let outcome = self.ask(first, app, code, deadline).await;
        let is_connected = outcome != Err(WeChatError::Unreachable);
        self.addresses.report(first, is_connected);
        match second {
            // Nothing was sent, so that this is no repetition.
            Some(second) if !is_connected => self.ask(second, app, code, deadline).await,
            _ => outcome,
        }
    }

    /// Trades a code at one address.
    async fn ask(
        &self,
        address: &str,
        app: &App,
        code: &Code,
        deadline: Instant,
    ) -> Result<Identity, WeChatError> {
        let answer = self.send(address, app, code, deadline).await?;
        Reply::parse(&answer)?.into_identity(&app.app_id)
    }

    /// Sends one request, and reads its answer.
    async fn send(
        &self,
        address: &str,
        app: &App,
        code: &Code,
        deadline: Instant,
    ) -> Result<Zeroizing<Vec<u8>>, WeChatError> {
        let query = [
            ("appid", app.app_id.as_str()),
            ("secret", app.secret.expose()),
            ("js_code", code.0.expose()),
            ("grant_type", "authorization_code"),
        ];
        let url = reqwest::Url::parse_with_params(&format!("{address}/sns/jscode2session"), query)
            .map_err(|_| WeChatError::Malformed("base_url"))?;
        let request = self.client.get(url).timeout(deadline - Instant::now());
        let mut response = request.send().await.map_err(|error| transport_error(&error))?;
        let status = response.status();
        if status.is_server_error() {
            return Err(WeChatError::Broken);
        }
        if !status.is_success() {
            return Err(WeChatError::Malformed("an unexpected status"));
        }
        let mut body = Zeroizing::new(Vec::with_capacity(1024));
        while let Some(chunk) = response.chunk().await.map_err(|error| transport_error(&error))? {
            if body.len() + chunk.len() > LONGEST_REPLY {
                return Err(WeChatError::Malformed("too long"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

impl Turn<'_> {
    /// Trades a code. It is sent at most once, whatever comes of it.
    ///
    /// # Errors
    /// See [`WeChatError`].
    pub async fn exchange(self, app: &App, code: &Code) -> Result<Identity, WeChatError> {
        let started = Instant::now();
        let outcome = self.wechat.call(app, code).await;
        self.pass.report(outcome.as_ref().map_or_else(WeChatError::is_answer, |_| true));
        let label = outcome.as_ref().map_or_else(WeChatError::label, |_| "ok");
        self.wechat.metrics.exchanged(app.app_id.as_str(), label, started.elapsed());
        outcome
    }
}

/// Tells what happened before anything was sent from what happened after.
fn transport_error(error: &reqwest::Error) -> WeChatError {
    // All connections together may take less time than the whole, so that the latter ends
    // only after the request was written, or began to be.
    if is_certificate_error(error) {
        WeChatError::Certificate
    } else if is_nonsense(error) {
        WeChatError::Malformed("not HTTP")
    } else if error.is_connect() {
        WeChatError::Unreachable
    } else if error.is_timeout() {
        WeChatError::Timeout
    } else {
        WeChatError::Broken
    }
}

fn is_certificate_error(error: &(dyn Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    // An `io::Error` does not show the error that it wraps as its source.
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    wrapped.is_some_and(|wrapped| is_certificate_error(wrapped))
        || error.source().is_some_and(is_certificate_error)
}

/// Whether something came that is no HTTP.
fn is_nonsense(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
        || error.source().is_some_and(is_nonsense)
}

fn roots(section: &WeChatSection) -> Result<Vec<reqwest::Certificate>, ClientError> {
    let roots = match &section.roots {
        Some(roots) => roots.clone(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.is_empty() && section.is_https() {
        return Err(ClientError::NoRoots);
    }
    // A system's store may hold certificates that cannot be read; the others still count.
    Ok(roots.iter().filter_map(|root| reqwest::Certificate::from_der(root).ok()).collect())
}
