//! The paths of the internal API: their methods, the right that each needs, and its errors.

use http::Method;

use super::error::ApiError;
use crate::access::signed_identity::JWKS_PATH;
use crate::config::Operation;

/// A path of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Decrypt,
    Verify,
    CheckKey,
    ResetKey,
    PhoneNumber,
    AccessToken,
    RenewAccessToken,
    WeChat,
    Description,
    Jwks,
}

/// The methods that can be passed through to WeChat.
const PASSED_METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// What calls for WeChat's API begin with.
pub const WECHAT: &str = "/v1/wechat/";

impl Endpoint {
    pub const ALL: [Self; 10] = [
        Self::Decrypt,
        Self::Verify,
        Self::CheckKey,
        Self::ResetKey,
        Self::PhoneNumber,
        Self::AccessToken,
        Self::RenewAccessToken,
        Self::WeChat,
        Self::Description,
        Self::Jwks,
    ];

    /// The endpoint of a request.
    ///
    /// # Errors
    /// When there is no such path, or it does not have this method.
    pub fn find(path: &str, method: &Method) -> Result<Self, ApiError> {
        let found = match path.strip_prefix(WECHAT) {
            Some(rest) => match rest.split_once('/') {
                Some((app_id, path)) if !app_id.is_empty() && !path.is_empty() => Self::WeChat,
                _ => return Err(ApiError::NotFound),
            },
            None => {
                let mut fixed = Self::ALL.into_iter().filter(|one| *one != Self::WeChat);
                fixed.find(|endpoint| endpoint.path() == path).ok_or(ApiError::NotFound)?
            }
        };
        let is_allowed = match found {
            Self::WeChat => PASSED_METHODS.contains(method),
            Self::AccessToken | Self::Description => method == Method::GET,
            Self::Jwks => matches!(*method, Method::GET | Method::HEAD),
            _ => method == Method::POST,
        };
        if is_allowed { Ok(found) } else { Err(ApiError::MethodNotAllowed(found.allowed())) }
    }

    /// The endpoint of this path, if a call needs no token.
    pub fn without_token(path: &str) -> Option<Self> {
        let mut open = Self::ALL.into_iter().filter(|endpoint| !endpoint.needs_token());
        open.find(|endpoint| endpoint.path() == path)
    }

    /// The path, as the description of the API has it.
    pub fn path(self) -> &'static str {
        match self {
            Self::Decrypt => "/v1/open-data/decrypt",
            Self::Verify => "/v1/open-data/verify",
            Self::CheckKey => "/v1/session-key/check",
            Self::ResetKey => "/v1/session-key/reset",
            Self::PhoneNumber => "/v1/phone-number",
            Self::AccessToken => "/v1/access-token",
            Self::RenewAccessToken => "/v1/access-token/renew",
            Self::WeChat => "/v1/wechat/{app_id}/{path}",
            Self::Description => "/openapi.json",
            Self::Jwks => JWKS_PATH,
        }
    }

    /// The value of `Allow`.
    fn allowed(self) -> &'static str {
        match self {
            Self::WeChat => "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            Self::AccessToken | Self::Description => "GET",
            Self::Jwks => "GET, HEAD",
            _ => "POST",
        }
    }

    /// Whether a call needs a token.
    pub fn needs_token(self) -> bool {
        !matches!(self, Self::Description | Self::Jwks)
    }

    /// The part of the API that a token must allow.
    pub fn operation(self) -> Option<Operation> {
        match self {
            Self::Decrypt | Self::Verify => Some(Operation::OpenData),
            Self::CheckKey | Self::ResetKey => Some(Operation::SessionKey),
            Self::PhoneNumber => Some(Operation::PhoneNumber),
            Self::AccessToken | Self::RenewAccessToken => Some(Operation::AccessToken),
            Self::WeChat => Some(Operation::WeChat),
            Self::Description | Self::Jwks => None,
        }
    }

    /// Whether it needs kept session keys.
    pub fn needs_session_key(self) -> bool {
        matches!(self, Self::Decrypt | Self::Verify | Self::CheckKey | Self::ResetKey)
    }

    /// The label `operation` of metrics, for those that are counted.
    pub fn label(self) -> Option<&'static str> {
        match self {
            Self::Decrypt => Some("decrypt"),
            Self::Verify => Some("verify"),
            Self::CheckKey => Some("check"),
            Self::ResetKey => Some("reset"),
            Self::PhoneNumber => Some("phone_number"),
            _ => None,
        }
    }

    /// Whether a call of the endpoint can fail like this.
    pub fn can_fail_with(self, error: &ApiError) -> bool {
        let calls_wechat = !matches!(self, Self::Decrypt | Self::Verify);
        let has_json = matches!(self.allowed(), "POST");
        match error {
            // The method of a description is right.
            ApiError::MethodNotAllowed(_) => false,
            _ if !self.needs_token() => self == Self::Jwks && *error == ApiError::NotFound,
            ApiError::BadRequest(_)
            | ApiError::Unauthorized
            | ApiError::NotAllowed(_)
            | ApiError::Internal => true,
            ApiError::NotFound => self == Self::WeChat,
            ApiError::RequestTimeout | ApiError::BodyTooLarge => has_json || self == Self::WeChat,
            ApiError::UnknownUser | ApiError::StoreUnavailable => self.needs_session_key(),
            ApiError::StaleKey => matches!(self, Self::Decrypt | Self::ResetKey),
            ApiError::InvalidData(_) => self == Self::Decrypt,
            ApiError::InvalidPhoneCode | ApiError::Overloaded => self == Self::PhoneNumber,
            ApiError::RateLimited { .. }
            | ApiError::WeChatRejected
            | ApiError::WeChatBusy { .. }
            | ApiError::WeChatTimeout { .. } => calls_wechat,
        }
    }
}
