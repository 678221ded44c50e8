//! What `wxgate explain` says about identity headers: why a client's header is removed, and which
//! headers the users of a Mini Program have.

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::IdentityHeaders;
use crate::identity::AppId;
use crate::message::header::FoldedNames;
use crate::message::header::reserved::{
    CLOUD_RUN, FROM_TRUSTED, HTTP2_SETTINGS, JWT, METHOD_OVERRIDES, WRITTEN,
};

/// Why a header of a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemovalReason {
    #[error("reserved: only the gateway sends the identity")]
    Identity,
    #[error("reserved: only the gateway sends the signed identity")]
    SignedIdentity,
    #[error("replaced: services get the signed identity in it")]
    Authorization,
    #[error("the session header")]
    SessionHeader,
    #[error("the session token")]
    Token,
    #[error("reserved: services written for WeChat Cloud Run trust it")]
    CloudRun,
    #[error("replaced: the gateway sends its own value")]
    Written,
    #[error("only a trusted proxy may send it")]
    Untrusted,
    #[error("it applies only to the client's connection")]
    OfConnection,
    #[error("it could override the method, on which routes depend")]
    MethodOverride,
}

impl IdentityHeaders {
    /// Treats an app as a Mini Program. `wxgate explain` has only a placeholder for the app.
    #[must_use]
    pub fn with_mini_program(mut self, app_id: &AppId) -> Self {
        if let Some(optional) = &mut self.optional {
            optional.add_mini_program(app_id.clone());
        }
        self
    }

    /// Why a header line of a request is removed; `None` if it is not.
    pub fn removal_reason(
        &self,
        name: &HeaderName,
        value: &HeaderValue,
        is_trusted: bool,
    ) -> Option<RemovalReason> {
        if !self.is_stripped(name.as_str().as_bytes(), is_trusted) {
            let is_token = self.is_token(name.as_str().as_bytes(), value.as_bytes());
            return is_token.then_some(RemovalReason::Token);
        }
        let is_among =
            |names: &[&str]| FoldedNames::new(names.iter().copied()).contains(name.as_str());
        let jwt = self.optional.as_ref().and_then(|optional| optional.jwt.as_ref());
        let jwt = jwt.map_or(JWT, HeaderName::as_str);
        let mut identity = Vec::new();
        self.each(None, None, |name, _| identity.push(name.as_str()));
        Some(if is_among(&[AUTHORIZATION.as_str()]) {
            RemovalReason::Authorization
        } else if is_among(&[JWT, jwt]) {
            RemovalReason::SignedIdentity
        } else if is_among(&CLOUD_RUN) {
            RemovalReason::CloudRun
        } else if is_among(&identity) {
            RemovalReason::Identity
        } else if is_among(&WRITTEN) {
            RemovalReason::Written
        } else if is_among(&FROM_TRUSTED) {
            RemovalReason::Untrusted
        } else if is_among(&METHOD_OVERRIDES) {
            RemovalReason::MethodOverride
        } else if is_among(&[HTTP2_SETTINGS]) {
            RemovalReason::OfConnection
        } else {
            RemovalReason::SessionHeader
        })
    }
}
