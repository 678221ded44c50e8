//! Looks up the session of a request from its headers.
//!
//! Finds the one token of a request in the configured carriers and looks up its session. A request
//! without a live session is rejected, unless it has no token and the route allows anonymous
//! requests. A malformed, unknown, expired or revoked token gets the same response, which therefore
//! gives nothing away. A cookie is read only if there is no token in a header. A browser sends it
//! with every request, so one whose session has ended counts as no token, and the response removes
//! it. This module does not know what the route does with the identity.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName};

use super::browsers::BrowserHost;
use super::cookies;
use super::cross_site::Site;
use crate::config::{Access, App, SessionSection};
use crate::identity::AppId;
use crate::identity::token::{self, TokenDigest};
use crate::message::header::{self, Headers};
use crate::message::rejection::Rejection;
use crate::session::{Session, Sessions, StoreError};

/// Authenticates requests as one configuration requires.
pub struct Authenticator {
    sessions: Sessions,
    /// The configured apps; sessions of other apps are invalid.
    apps: Vec<AppId>,
    /// `None` if the header is not a carrier.
    header: Option<HeaderName>,
    reads_bearer: bool,
    reads_cookie: bool,
}

/// Whether the session cookie of a request was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CookieUse {
    #[default]
    None,
    /// The session was found by it.
    Used,
    /// Its session has ended or never existed: the response must remove it.
    Ended,
}

/// The outcome of authentication. On a route with `auth = "none"` there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Ok,
    Anonymous,
    Missing,
    Invalid,
    Error,
}

impl Decision {
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Anonymous, Self::Missing, Self::Invalid, Self::Error];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Anonymous => "anonymous",
            Self::Missing => "missing",
            Self::Invalid => "invalid",
            Self::Error => "error",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("no token")]
    MissingToken,
    #[error("no session for this token")]
    InvalidToken,
    #[error("more than one token")]
    ConflictingTokens,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AuthError {
    /// Its label in metrics and logs.
    pub fn decision(&self) -> Decision {
        match self {
            Self::MissingToken => Decision::Missing,
            Self::InvalidToken | Self::ConflictingTokens => Decision::Invalid,
            Self::Store(_) => Decision::Error,
        }
    }
}

impl From<&AuthError> for Rejection {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::MissingToken => Self::MissingToken,
            AuthError::InvalidToken => Self::SessionExpired,
            AuthError::ConflictingTokens => Self::BadRequest("more than one session token"),
            AuthError::Store(_) => Self::StoreUnavailable,
        }
    }
}

/// The token of a request.
#[derive(Debug, PartialEq, Eq)]
enum Presented<'a> {
    Nothing,
    /// The session header has a value that is not a token.
    Malformed,
    Token(&'a [u8]),
    /// A session cookie, which may have any value.
    Cookie(&'a [u8]),
}

impl Authenticator {
    pub fn new(sessions: Sessions, section: &SessionSection, apps: &[App]) -> Self {
        Self {
            sessions,
            apps: apps.iter().map(|app| app.app_id.clone()).collect(),
            header: section.carriers.header.then(|| section.header.clone()),
            reads_bearer: section.carriers.bearer,
            reads_cookie: section.carriers.cookie,
        }
    }

    /// The session of a request. `None` if the request has no token and may be anonymous, or if the
    /// route does not look up sessions. `host` is the `[[browser]]` of the request's host.
    ///
    /// # Errors
    /// With an [`AuthError`] the request is rejected, on `optional` routes too.
    pub async fn authenticate(
        &self,
        headers: &impl Headers,
        access: Access,
        host: Option<&BrowserHost>,
    ) -> (CookieUse, Result<Option<Arc<Session>>, AuthError>) {
        let may_be_anonymous = match access {
            Access::None => return (CookieUse::None, Ok(None)),
            Access::Optional => true,
            Access::Required => false,
        };
        let nothing = || if may_be_anonymous { Ok(None) } else { Err(AuthError::MissingToken) };
        let presented = match self.presented(headers, host) {
            Ok(presented) => presented,
            Err(error) => return (CookieUse::None, Err(error)),
        };
        let (text, cookie) = match presented {
            Presented::Nothing => return (CookieUse::None, nothing()),
            Presented::Malformed => return (CookieUse::None, Err(AuthError::InvalidToken)),
            Presented::Token(text) => (text, CookieUse::None),
            Presented::Cookie(text) => (text, CookieUse::Used),
        };
        match self.find(text).await {
            Ok(session) => (cookie, Ok(Some(session))),
            Err(AuthError::InvalidToken) if cookie == CookieUse::Used => {
                (CookieUse::Ended, nothing())
            }
            Err(error) => (CookieUse::None, Err(error)),
        }
    }

    /// Ends the session of a request, if it has a token. Returns whether a cookie was read, which
    /// the response must remove.
    ///
    /// # Errors
    /// When tokens conflict, the request comes by cookie from another site, or the store cannot be
    /// reached.
    pub async fn revoke(
        &self,
        headers: &impl Headers,
        site: &Site<'_>,
    ) -> Result<CookieUse, Rejection> {
        let presented =
            self.presented(headers, site.host).map_err(|error| Rejection::from(&error))?;
        let (text, cookie) = match presented {
            Presented::Nothing | Presented::Malformed => return Ok(CookieUse::None),
            Presented::Token(text) => (text, CookieUse::None),
            Presented::Cookie(text) => {
                site.check(headers)?;
                (text, CookieUse::Ended)
            }
        };
        if let Some(digest) = TokenDigest::parse(text) {
            let revoked = self.sessions.revoke(&digest).await;
            revoked.map_err(|_| Rejection::StoreUnavailable)?;
        }
        Ok(cookie)
    }

    async fn find(&self, text: &[u8]) -> Result<Arc<Session>, AuthError> {
        let digest = TokenDigest::parse(text).ok_or(AuthError::InvalidToken)?;
        self.of_known_app(self.sessions.get(&digest).await?)
    }

    /// The live session of a token that was presented elsewhere. This is a use of the session.
    ///
    /// # Errors
    /// When there is none, or the store cannot be reached.
    pub async fn session(&self, digest: &TokenDigest) -> Result<Arc<Session>, AuthError> {
        self.of_known_app(self.sessions.get(digest).await?)
    }

    fn of_known_app(&self, session: Option<Arc<Session>>) -> Result<Arc<Session>, AuthError> {
        session
            .filter(|session| self.apps.contains(&session.identity.app_id))
            .ok_or(AuthError::InvalidToken)
    }

    /// The live session of a request's cookie, even if a header also has a token.
    ///
    /// # Errors
    /// When cookies conflict or the store cannot be reached.
    pub async fn session_of_cookie(
        &self,
        headers: &impl Headers,
        host: &BrowserHost,
    ) -> Result<Option<Arc<Session>>, AuthError> {
        let Presented::Cookie(text) = in_cookie(headers, host)? else { return Ok(None) };
        match self.find(text).await {
            Ok(session) => Ok(Some(session)),
            Err(AuthError::InvalidToken) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a request has a token in a header. A cookie is no such token.
    pub fn has_token(&self, headers: &impl Headers) -> bool {
        let found = presented(headers, self.header.as_ref(), self.reads_bearer);
        !matches!(found, Ok(Presented::Nothing))
    }

    fn presented<'a>(
        &self,
        headers: &'a impl Headers,
        host: Option<&BrowserHost>,
    ) -> Result<Presented<'a>, AuthError> {
        let found = presented(headers, self.header.as_ref(), self.reads_bearer)?;
        match host.filter(|_| self.reads_cookie) {
            Some(host) if found == Presented::Nothing => in_cookie(headers, host),
            _ => Ok(found),
        }
    }
}

/// Whether a request has conflicting tokens, for `wxgate explain`.
pub fn has_conflict(
    headers: &impl Headers,
    section: &SessionSection,
    host: Option<&BrowserHost>,
) -> bool {
    match (in_headers(headers, section), host) {
        (Ok(Presented::Nothing), Some(host)) => in_cookie(headers, host).is_err(),
        (found, _) => found.is_err(),
    }
}

/// Whether the token of a request is in a header, for `wxgate explain`.
pub fn is_in_header(headers: &impl Headers, section: &SessionSection) -> bool {
    !matches!(in_headers(headers, section), Ok(Presented::Nothing))
}

/// Whether the token of a request is in the cookie of its host, for `wxgate explain`.
pub fn reads_cookie(headers: &impl Headers, section: &SessionSection, host: &BrowserHost) -> bool {
    !is_in_header(headers, section) && matches!(in_cookie(headers, host), Ok(Presented::Cookie(_)))
}

fn in_headers<'a>(
    headers: &'a impl Headers,
    section: &SessionSection,
) -> Result<Presented<'a>, AuthError> {
    let header = Some(&section.header).filter(|_| section.carriers.header);
    presented(headers, header, section.carriers.bearer)
}

fn presented<'a>(
    headers: &'a impl Headers,
    header: Option<&HeaderName>,
    reads_bearer: bool,
) -> Result<Presented<'a>, AuthError> {
    let from_header = match header {
        Some(name) => in_session_header(headers, name)?,
        None => Presented::Nothing,
    };
    if !reads_bearer {
        return Ok(from_header);
    }
    let mut presented = from_header;
    for value in headers.values_of(&AUTHORIZATION) {
        // Any other value is meant for the service.
        let Some(bearer) = token::bearer_token(value) else { continue };
        match presented {
            Presented::Nothing => presented = Presented::Token(bearer),
            Presented::Token(other) if other != bearer => {
                return Err(AuthError::ConflictingTokens);
            }
            Presented::Token(_) | Presented::Malformed | Presented::Cookie(_) => {}
        }
    }
    Ok(presented)
}

/// The session cookie. Two different ones are a conflict: one of them may have been set by another
/// host of the same site.
fn in_cookie<'a>(
    headers: &'a impl Headers,
    host: &BrowserHost,
) -> Result<Presented<'a>, AuthError> {
    let name = host.section.cookie.as_bytes();
    let mut values = cookies::all(headers).filter(|(other, _)| *other == name);
    let Some((_, first)) = values.next() else { return Ok(Presented::Nothing) };
    if values.any(|(_, value)| value != first) {
        return Err(AuthError::ConflictingTokens);
    }
    Ok(Presented::Cookie(first))
}

fn in_session_header<'a>(
    headers: &'a impl Headers,
    name: &HeaderName,
) -> Result<Presented<'a>, AuthError> {
    let mut values = headers.values_of(name);
    let Some(value) = values.next() else { return Ok(Presented::Nothing) };
    if values.next().is_some() {
        return Err(AuthError::ConflictingTokens);
    }
    let text = header::trim(value);
    Ok(match text {
        [] => Presented::Nothing,
        _ if token::has_token_shape(text) => Presented::Token(text),
        _ => Presented::Malformed,
    })
}

#[cfg(test)]
mod tests;
