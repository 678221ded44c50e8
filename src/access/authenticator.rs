//! Looks up the session of a request from its headers.
//!
//! Finds the one token of a request in the configured carriers and looks up its session. A request
//! without a live session is rejected, unless it has no token and the route allows anonymous
//! requests. A malformed, unknown, expired or revoked token gets the same response, which therefore
//! gives nothing away. This module does not know what the route does with the identity.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName};

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
}

impl Authenticator {
    pub fn new(sessions: Sessions, section: &SessionSection, apps: &[App]) -> Self {
        Self {
            sessions,
            apps: apps.iter().map(|app| app.app_id.clone()).collect(),
            header: section.carriers.header.then(|| section.header.clone()),
            reads_bearer: section.carriers.bearer,
        }
    }

    /// The session of a request. `None` if the request has no token and may be anonymous, or if the
    /// route does not look up sessions.
    ///
    /// # Errors
    /// With an [`AuthError`] the request is rejected, on `optional` routes too.
    pub async fn authenticate(
        &self,
        headers: &impl Headers,
        access: Access,
    ) -> Result<Option<Arc<Session>>, AuthError> {
        let may_be_anonymous = match access {
            Access::None => return Ok(None),
            Access::Optional => true,
            Access::Required => false,
        };
        match self.presented(headers)? {
            Presented::Nothing if may_be_anonymous => Ok(None),
            Presented::Nothing => Err(AuthError::MissingToken),
            Presented::Malformed => Err(AuthError::InvalidToken),
            Presented::Token(text) => self.find(text).await.map(Some),
        }
    }

    /// Ends the session of a request, if it has a token.
    ///
    /// # Errors
    /// When tokens conflict or the store cannot be reached.
    pub async fn revoke(&self, headers: &impl Headers) -> Result<(), AuthError> {
        if let Presented::Token(text) = self.presented(headers)?
            && let Some(digest) = TokenDigest::parse(text)
        {
            self.sessions.revoke(&digest).await?;
        }
        Ok(())
    }

    async fn find(&self, text: &[u8]) -> Result<Arc<Session>, AuthError> {
        let digest = TokenDigest::parse(text).ok_or(AuthError::InvalidToken)?;
        let session = self.sessions.get(&digest).await?;
        session
            .filter(|session| self.apps.contains(&session.identity.app_id))
            .ok_or(AuthError::InvalidToken)
    }

    fn presented<'a>(&self, headers: &'a impl Headers) -> Result<Presented<'a>, AuthError> {
        presented(headers, self.header.as_ref(), self.reads_bearer)
    }
}

/// Whether a request has conflicting tokens, for `wxgate explain`.
pub fn has_conflict(headers: &impl Headers, section: &SessionSection) -> bool {
    let header = Some(&section.header).filter(|_| section.carriers.header);
    presented(headers, header, section.carriers.bearer).is_err()
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
            Presented::Token(_) | Presented::Malformed => {}
        }
    }
    Ok(presented)
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
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue};

    use super::*;
    use crate::clock::Clock;
    use crate::config::Carriers;
    use crate::telemetry::metrics::Metrics;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn app(app_id: &str) -> App {
        App {
            app_id: AppId::parse(app_id).unwrap(),
            secret: crate::identity::secret::Secret::new(String::new()),
            is_default: true,
            login_rate: None,
        }
    }

    fn authenticator(header: bool, bearer: bool) -> Authenticator {
        let section = SessionSection {
            ttl: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(60),
            capacity: 10,
            carriers: Carriers { header, bearer },
            header: HeaderName::from_static("x-3rd-session"),
            max_per_user: None,
            shared: None,
        };
        let sessions = Sessions::new(&section, Clock::manual(), Metrics::new().unwrap());
        Authenticator::new(sessions, &section, &[app("wx1")])
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn one_token_is_found_and_two_are_rejected() {
        let (a, b) = ("A".repeat(43), "B".repeat(43));
        let (bearer_a, bearer_b) = (format!("Bearer {a}"), format!("Bearer {b}"));
        let both = authenticator(true, true);
        let (s, auth) = ("x-3rd-session", "authorization");

        let find = |lines: &[(&'static str, &str)]| {
            let headers = headers(lines);
            both.presented(&headers).map(|presented| match presented {
                Presented::Nothing => "nothing".to_owned(),
                Presented::Malformed => "malformed".to_owned(),
                Presented::Token(text) => String::from_utf8(text.to_vec()).unwrap(),
            })
        };
        assert_eq!(find(&[]).unwrap(), "nothing");
        assert_eq!(find(&[(s, "")]).unwrap(), "nothing");
        assert_eq!(find(&[(s, &a)]).unwrap(), a);
        assert_eq!(find(&[(auth, &bearer_a)]).unwrap(), a);
        assert_eq!(find(&[(s, ""), (auth, &bearer_a)]).unwrap(), a);
        assert_eq!(find(&[(s, &a), (auth, &bearer_a)]).unwrap(), a);
        assert_eq!(find(&[(auth, "Basic eA=="), (auth, &bearer_a)]).unwrap(), a);
        assert_eq!(find(&[(auth, "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x")]).unwrap(), "nothing");
        assert_eq!(find(&[(s, "short")]).unwrap(), "malformed");
        assert_eq!(find(&[(s, "short"), (auth, &bearer_a)]).unwrap(), "malformed");
        for conflict in [
            vec![(s, a.as_str()), (s, a.as_str())],
            vec![(s, ""), (s, a.as_str())],
            vec![(s, a.as_str()), (auth, bearer_b.as_str())],
            vec![(auth, bearer_a.as_str()), (auth, bearer_b.as_str())],
        ] {
            assert!(matches!(find(&conflict), Err(AuthError::ConflictingTokens)), "{conflict:?}");
        }
    }

    #[test]
    fn only_configured_carriers_are_read() {
        let token = "A".repeat(43);
        let lines = headers(&[("authorization", &format!("Bearer {token}"))]);
        assert_eq!(authenticator(true, false).presented(&lines).unwrap(), Presented::Nothing);
        let lines = headers(&[("x-3rd-session", &token)]);
        assert_eq!(authenticator(false, true).presented(&lines).unwrap(), Presented::Nothing);
    }

    #[tokio::test]
    async fn a_session_of_a_removed_app_is_invalid() {
        let authenticator = authenticator(true, true);
        let identity = crate::identity::Identity {
            app_id: AppId::parse("wx2").unwrap(),
            openid: crate::identity::OpenId::parse("o1").unwrap(),
            unionid: None,
        };
        let (token, _) = authenticator.sessions.create(identity, CLIENT, None).await.unwrap();
        let lines = headers(&[("x-3rd-session", token.expose())]);
        for access in [Access::Required, Access::Optional] {
            let outcome = authenticator.authenticate(&lines, access).await;
            assert!(matches!(outcome, Err(AuthError::InvalidToken)));
        }
    }

    #[tokio::test]
    async fn a_request_is_authenticated_by_the_access_of_its_route() {
        let authenticator = authenticator(true, true);
        let identity = crate::identity::Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: crate::identity::OpenId::parse("o1").unwrap(),
            unionid: None,
        };
        let (token, _) =
            authenticator.sessions.create(identity.clone(), CLIENT, None).await.unwrap();
        let valid = headers(&[("x-3rd-session", token.expose())]);
        let unknown = headers(&[("x-3rd-session", &"A".repeat(43))]);
        let malformed = headers(&[("x-3rd-session", "short")]);
        let nothing = HeaderMap::new();
        let authenticate = async |lines: &HeaderMap, access| {
            let outcome = authenticator.authenticate(lines, access).await;
            outcome.map(|session| session.map(|session| session.identity.clone()))
        };
        for access in [Access::Required, Access::Optional] {
            assert_eq!(authenticate(&valid, access).await.unwrap(), Some(identity.clone()));
            for bad in [&unknown, &malformed] {
                assert!(matches!(authenticate(bad, access).await, Err(AuthError::InvalidToken)));
            }
        }
        assert!(matches!(
            authenticate(&nothing, Access::Required).await,
            Err(AuthError::MissingToken)
        ));
        assert_eq!(authenticate(&nothing, Access::Optional).await.unwrap(), None);
        assert_eq!(authenticate(&valid, Access::None).await.unwrap(), None);

        authenticator.revoke(&nothing).await.unwrap();
        authenticator.revoke(&malformed).await.unwrap();
        assert!(authenticate(&valid, Access::Required).await.is_ok());
        authenticator.revoke(&valid).await.unwrap();
        assert!(matches!(
            authenticate(&valid, Access::Required).await,
            Err(AuthError::InvalidToken)
        ));
    }
}
