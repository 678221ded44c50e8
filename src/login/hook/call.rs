//! One call of the login hook: what is sent, what its response means, and what its failures are.
//!
//! The response decides who a user is, so only what is documented is accepted: a status of 200 with
//! an object in JSON, or 204; 403 is a refusal, with or without a readable message. Redirects are
//! not followed, because they would carry the token elsewhere, and no call is repeated. The hook is
//! verified with the machine's root certificates; those of `wechat.ca_file` are for WeChat's relay.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Response, Url, redirect};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::config::{AppKind, HookSection};
use crate::identity::{Identity, UnionId, UserId};
use crate::wechat::{self, Cause};

/// Maximum length of a response's body, in bytes.
const MAX_BODY: usize = 16 << 10;

/// The longest message of a refusal, in characters.
const LONGEST_MESSAGE: usize = 500;

/// Idle connections are closed before the service closes them: many do so after 2 to 5 seconds.
const POOL_IDLE: Duration = Duration::from_secs(1);

/// The client cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    #[error(
        "no CA certificates found on this machine to verify its certificate with: install the \
         package ca-certificates, or set SSL_CERT_FILE"
    )]
    NoRoots,
    #[error("cannot create its client: {0}")]
    Client(String),
}

/// What the hook decides about a user.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Accepted(Option<UserId>),
    Refused(Option<Arc<str>>),
}

/// Why there is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failure {
    /// Too many calls are in flight.
    Overloaded,
    Timeout,
    Certificate(Cause),
    Transport(Cause),
    Status(u16),
    Malformed(&'static str),
}

impl Failure {
    pub const OVERLOADED: &'static str = "overloaded";
    pub const TIMEOUT: &'static str = "timeout";
    pub const TRANSPORT: &'static str = "transport";
    pub const MALFORMED: &'static str = "malformed";

    /// As metrics have it.
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Overloaded => Self::OVERLOADED,
            Self::Timeout => Self::TIMEOUT,
            Self::Certificate(_) | Self::Transport(_) => Self::TRANSPORT,
            Self::Status(_) | Self::Malformed(_) => Self::MALFORMED,
        }
    }

    /// The failure for an error before the response, or within it.
    fn of(error: &reqwest::Error) -> Self {
        if let Some(cause) = Cause::of_certificate(error) {
            Self::Certificate(cause)
        } else if wechat::is_not_http(error) {
            Self::Malformed("the response is not HTTP")
        } else if error.is_connect() {
            Self::Transport(Cause::of_connection(error))
        } else {
            Self::Transport(Cause::Closed)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overloaded => out.write_str("too many calls at once (wechat.max_in_flight)"),
            Self::Timeout => out.write_str("no response within login.hook.timeout"),
            Self::Certificate(Cause::UnknownIssuer) => out.write_str(
                "certificate: unknown issuer: add its CA to those of this machine, or set \
                 SSL_CERT_FILE",
            ),
            Self::Certificate(cause) => write!(out, "certificate: {cause}"),
            Self::Transport(cause) => write!(out, "{cause}"),
            Self::Status(status) => write!(out, "{}", Cause::Status(*status)),
            Self::Malformed(how) => out.write_str(how),
        }
    }
}

/// Calls the hook.
pub struct Caller {
    client: reqwest::Client,
    url: Url,
    authorization: HeaderValue,
}

impl Caller {
    /// # Errors
    /// When there are no root certificates to verify the hook with, or the client cannot be
    /// created.
    pub fn new(section: &HookSection) -> Result<Self, HookError> {
        let roots = roots();
        if roots.is_empty() && section.url.scheme() == "https" {
            return Err(HookError::NoRoots);
        }
        let client = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .pool_idle_timeout(POOL_IDLE)
            .tls_certs_only(roots)
            .build()
            .map_err(|error| HookError::Client(error.without_url().to_string()))?;
        let authorization = HeaderValue::try_from(format!("Bearer {}", section.token.expose()));
        let mut authorization =
            authorization.map_err(|_| HookError::Client("login.hook.token".to_owned()))?;
        authorization.set_sensitive(true);
        Ok(Self { client, url: section.url.clone(), authorization })
    }

    /// Calls the hook for a user, once.
    ///
    /// # Errors
    /// When there is no complete and legal response until `deadline`.
    pub async fn call(
        &self,
        identity: &Identity,
        kind: AppKind,
        deadline: Instant,
    ) -> Result<Decision, Failure> {
        let request = self
            .client
            .post(self.url.clone())
            .header(AUTHORIZATION, self.authorization.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(request_body(identity, kind));
        let response = timeout_at(deadline, request.send()).await.map_err(|_| Failure::Timeout)?;
        let response = response.map_err(|error| Failure::of(&error))?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(Decision::Accepted(None)),
            StatusCode::OK => accepted(&body(response, deadline).await?).map(Decision::Accepted),
            // A refusal stands whatever comes with it.
            StatusCode::FORBIDDEN => {
                let body = body(response, deadline).await.ok();
                Ok(Decision::Refused(body.and_then(|body| message(&body))))
            }
            status => Err(Failure::Status(status.as_u16())),
        }
    }
}

/// The body of a call.
fn request_body(identity: &Identity, kind: AppKind) -> Vec<u8> {
    #[derive(Serialize)]
    struct Call<'a> {
        app_id: &'a str,
        openid: &'a str,
        unionid: Option<&'a str>,
        kind: &'static str,
    }

    let call = Call {
        app_id: identity.app_id.as_str(),
        openid: identity.openid.as_str(),
        unionid: identity.unionid.as_ref().map(UnionId::as_str),
        kind: kind.as_str(),
    };
    // Texts can always be serialized.
    serde_json::to_vec(&call).unwrap_or_default()
}

/// The whole body of a response.
async fn body(mut response: Response, deadline: Instant) -> Result<Vec<u8>, Failure> {
    const TOO_LARGE: Failure = Failure::Malformed("the response is larger than 16 KiB");
    let length = response.content_length().unwrap_or_default();
    if length > MAX_BODY as u64 {
        return Err(TOO_LARGE);
    }
    let mut body = Vec::new();
    loop {
        let chunk = timeout_at(deadline, response.chunk()).await.map_err(|_| Failure::Timeout)?;
        let Some(chunk) = chunk.map_err(|error| Failure::of(&error))? else { return Ok(body) };
        if body.len() + chunk.len() > MAX_BODY {
            return Err(TOO_LARGE);
        }
        body.extend_from_slice(&chunk);
    }
}

/// The user id of an acceptance, if it has one.
fn accepted(body: &[u8]) -> Result<Option<UserId>, Failure> {
    #[derive(Deserialize)]
    struct Acceptance {
        user_id: Option<String>,
    }

    let acceptance: Acceptance = object(body).ok_or(Failure::Malformed(
        "the response is not {\"user_id\": \"...\"} or {} in JSON, with a string",
    ))?;
    let Some(user_id) = acceptance.user_id else { return Ok(None) };
    let user_id = UserId::parse(&user_id);
    user_id.map(Some).ok_or(Failure::Malformed("user_id is not 1 to 256 visible ASCII characters"))
}

/// The message of a refusal, if it has one that can be shown.
fn message(body: &[u8]) -> Option<Arc<str>> {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }

    let Refusal { message } = object(body)?;
    let is_shown = !message.is_empty()
        && message.chars().nth(LONGEST_MESSAGE).is_none()
        && !message.chars().any(char::is_control);
    is_shown.then(|| message.into())
}

/// An object in JSON. A list is none, though serde would take it for the fields.
fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Option<T> {
    body.trim_ascii_start().starts_with(b"{").then(|| serde_json::from_slice(body).ok())?
}

fn roots() -> Vec<reqwest::Certificate> {
    let roots = rustls_native_certs::load_native_certs().certs;
    // The system's store may contain unreadable certificates; the others are used.
    roots.iter().filter_map(|root| reqwest::Certificate::from_der(root).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_id(body: &str) -> Option<String> {
        accepted(body.as_bytes()).unwrap().map(|user_id| user_id.as_str().to_owned())
    }

    #[test]
    fn an_acceptance_has_a_user_id_or_none() {
        assert_eq!(user_id("{}"), None);
        assert_eq!(user_id(" {\"user_id\":null,\"name\":\"x\"}\n"), None);
        assert_eq!(user_id("{\"user_id\":\"42\"}").as_deref(), Some("42"));
        let longest = "a".repeat(256);
        assert_eq!(user_id(&format!("{{\"user_id\":\"{longest}\"}}")), Some(longest));
    }

    #[test]
    fn an_acceptance_of_another_form_is_malformed() {
        let too_long = format!("{{\"user_id\":\"{}\"}}", "a".repeat(257));
        for body in [
            "",
            "null",
            "[]",
            "[\"42\"]",
            "\"42\"",
            "{\"user_id\":42}",
            "{\"user_id\":\"\"}",
            "{\"user_id\":\"a b\"}",
            "{\"user_id\":\"a\\nb\"}",
            "{\"user_id\":\"\u{fc}\"}",
            "{\"user_id\":\"1\",\"user_id\":\"2\"}",
            "{\"user_id\":\"1\"} {}",
            "{\"user_id\":\"1\"",
            &too_long,
        ] {
            let failure = accepted(body.as_bytes()).unwrap_err();
            assert_eq!(failure.outcome(), "malformed", "{body}");
        }
    }

    #[test]
    fn a_message_that_cannot_be_shown_is_left_out() {
        let shown = |message: &str| {
            let body = serde_json::json!({ "message": message }).to_string();
            super::message(body.as_bytes()).map(|message| message.to_string())
        };
        let longest = "\u{4e2d}".repeat(500);
        for message in ["<b>no</b>", &longest] {
            assert_eq!(shown(message).as_deref(), Some(message));
        }
        for message in ["", "a\nb", "a\u{0}", "a\u{85}", &format!("{longest}a")] {
            assert_eq!(shown(message), None, "{message:?}");
        }
        for body in ["", "no", "{}", "[\"no\"]", "{\"message\":1}", "{\"message\":null}"] {
            assert_eq!(super::message(body.as_bytes()), None, "{body}");
        }
    }
}
