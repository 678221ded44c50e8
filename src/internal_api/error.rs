//! Errors of the internal API, in the shape of those of the public listeners.

use std::borrow::Cow;

use http::header::{ALLOW, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};

use crate::access::identity_headers::REQUEST_ID;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::{Action, Rejection, error_response};
use crate::open_data::DecryptError;
use crate::session::StoreError;
use crate::wechat::{ErrCode, WeChatError};

/// Why a call is rejected. `retry_after` is in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiError {
    BadRequest(Cow<'static, str>),
    Unauthorized,
    NotAllowed(&'static str),
    NotFound,
    /// No session key of the user is kept.
    UnknownUser,
    /// With the methods that are allowed.
    MethodNotAllowed(&'static str),
    RequestTimeout,
    StaleKey,
    BodyTooLarge,
    InvalidData(&'static str),
    InvalidPhoneCode,
    /// `None`: repeating will not help.
    RateLimited {
        retry_after: Option<u32>,
    },
    Internal,
    WeChatRejected,
    /// `None`: repeating will not help.
    WeChatBusy {
        retry_after: Option<u32>,
    },
    StoreUnavailable,
    Overloaded,
    /// Whether the call may be repeated.
    WeChatTimeout {
        is_repeatable: bool,
    },
}

impl ApiError {
    pub const fn bad_request(message: &'static str) -> Self {
        Self::BadRequest(Cow::Borrowed(message))
    }

    /// One of each kind, for the description of the API and the metrics.
    pub const ALL: &'static [Self] = &[
        Self::bad_request("the body is not JSON"),
        Self::Unauthorized,
        Self::NotAllowed("this token does not allow this operation"),
        Self::NotFound,
        Self::UnknownUser,
        Self::MethodNotAllowed("POST"),
        Self::RequestTimeout,
        Self::StaleKey,
        Self::BodyTooLarge,
        Self::InvalidData("iv is not 16 bytes"),
        Self::InvalidPhoneCode,
        Self::RateLimited { retry_after: Some(60) },
        Self::Internal,
        Self::WeChatRejected,
        Self::WeChatBusy { retry_after: Some(3) },
        Self::StoreUnavailable,
        Self::Overloaded,
        Self::WeChatTimeout { is_repeatable: false },
    ];

    pub fn status(&self) -> u16 {
        self.row().0
    }

    /// The word for logs, metrics and programs.
    pub fn error(&self) -> &'static str {
        self.row().1
    }

    pub fn action(&self) -> Action {
        self.row().2
    }

    pub fn message(&self) -> &str {
        self.row().3
    }

    fn row(&self) -> (u16, &'static str, Action, &str) {
        use Action::{Login, None, Retry};

        let retry = |is_repeatable| if is_repeatable { Retry } else { None };
        match self {
            Self::BadRequest(message) => (400, "bad_request", None, message),
            Self::Unauthorized => {
                (401, "unauthorized", None, "send Authorization: Bearer with a token of [internal]")
            }
            Self::NotAllowed(message) => (403, "not_allowed", None, message),
            Self::NotFound => (404, "not_found", None, "unknown path: see /openapi.json"),
            Self::UnknownUser => {
                (404, "unknown_user", Login, "no session key of this user is kept")
            }
            Self::MethodNotAllowed(_) => {
                (405, "method_not_allowed", None, "method not allowed: see the Allow header")
            }
            Self::RequestTimeout => {
                (408, "request_timeout", None, "the request was not received in time")
            }
            Self::StaleKey => (
                409,
                "session_key_stale",
                Login,
                "no kept session key fits: call wx.login, then get the data again",
            ),
            Self::BodyTooLarge => (413, "body_too_large", None, "the request body is too large"),
            Self::InvalidData(message) => (422, "invalid_data", None, message),
            Self::InvalidPhoneCode => (
                422,
                "invalid_phone_code",
                None,
                "the code is invalid, expired, already used or another user's: the user must tap \
                 the button again",
            ),
            Self::RateLimited { retry_after } => {
                (429, "rate_limited", retry(retry_after.is_some()), "WeChat limits these calls")
            }
            Self::Internal => (500, "internal_error", None, "internal error of the gateway"),
            Self::WeChatRejected => {
                (502, "wechat_rejected", None, "WeChat rejects the call: see the gateway's log")
            }
            Self::WeChatBusy { retry_after } => {
                let action = retry(retry_after.is_some());
                (503, "wechat_busy", action, "WeChat is temporarily unavailable")
            }
            Self::StoreUnavailable => {
                (503, "store_unavailable", Retry, "the session store is temporarily unavailable")
            }
            Self::Overloaded => (503, "overloaded", Retry, "the gateway is overloaded"),
            Self::WeChatTimeout { is_repeatable } => {
                (504, "wechat_timeout", retry(*is_repeatable), "WeChat did not respond in time")
            }
        }
    }

    pub fn response(&self, request_id: &HeaderValue) -> OwnResponse {
        let (status, error, action, message) = self.row();
        let id = request_id.to_str().unwrap_or_default();
        let mut response = error_response(status, error, action, message, id, None);
        response.header(REQUEST_ID.clone(), request_id.clone());
        let seconds = match self {
            Self::RateLimited { retry_after } | Self::WeChatBusy { retry_after } => *retry_after,
            Self::StoreUnavailable
            | Self::Overloaded
            | Self::WeChatTimeout { is_repeatable: true } => Some(1),
            _ => None,
        };
        if let Some(seconds) = seconds {
            response.header(RETRY_AFTER, seconds.into());
        }
        match self {
            Self::Unauthorized => {
                response.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::MethodNotAllowed(allowed) => {
                response.header(ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }
}

/// What a lost answer of WeChat means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Repeating does no harm.
    Repeatable,
    /// WeChat may have done it.
    Once,
}

/// Why a call fails, and WeChat's errcode if it reported one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub error: ApiError,
    pub errcode: Option<i64>,
}

impl Failure {
    /// The failure of a call to WeChat.
    pub fn of_wechat(error: &WeChatError, call: Call) -> Self {
        let errcode = error.errcode().map(ErrCode::number);
        let error = match Rejection::from(error) {
            Rejection::RateLimited { retry_after } => {
                ApiError::RateLimited { retry_after: Some(retry_after) }
            }
            Rejection::WeChatBusy { retry_after } => {
                ApiError::WeChatBusy { retry_after: Some(retry_after) }
            }
            Rejection::WeChatTimeout { .. } => {
                ApiError::WeChatTimeout { is_repeatable: call == Call::Repeatable }
            }
            _ => ApiError::WeChatRejected,
        };
        Self { error, errcode }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error, errcode: None }
    }
}

impl From<StoreError> for Failure {
    fn from(_: StoreError) -> Self {
        ApiError::StoreUnavailable.into()
    }
}

impl From<DecryptError> for Failure {
    fn from(error: DecryptError) -> Self {
        match error {
            DecryptError::Invalid(message) => ApiError::InvalidData(message).into(),
            DecryptError::NoKeyFits => ApiError::StaleKey.into(),
        }
    }
}
