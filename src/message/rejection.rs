//! The closed list of error responses.
//!
//! Every rejection is one of these, except on the admin listener, which has errors of its own. Each
//! has one status, one `error` word and one `action`, on which clients and dashboards rely. A
//! response never contains WeChat's text, a secret, a code or a cause: causes are logged with the
//! request id. The only text from elsewhere is the message with which the operator's login hook
//! refuses a user. The errors of other modules are converted to rejections by `From`.

use std::borrow::Cow;
use std::sync::Arc;

use http::header::{
    ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, SEC_WEBSOCKET_VERSION, UPGRADE,
    WWW_AUTHENTICATE,
};
use rand::RngExt;
use serde::Serialize;

use crate::message::error_body::{ErrorBody, ErrorFacts};
use crate::message::header::reserved;
use crate::message::own_response::OwnResponse;

/// Marks an error response as the gateway's own; its value is the `error` word.
pub static ERROR_HEADER: HeaderName = HeaderName::from_static(reserved::ERROR);

/// A rejection. `retry_after` is in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    BadRequest(&'static str),
    MissingToken,
    SessionExpired,
    InvalidCode,
    UserBlocked,
    /// With the message of the login hook, if it is the hook that refuses the user, and says why.
    LoginRefused(Option<Arc<str>>),
    WrongApp,
    /// The message says what is not allowed.
    NotAllowed(&'static str),
    CrossSite,
    SnapshotUser,
    NoRoute,
    /// There is no such scan, or it has ended.
    NotFound,
    MethodNotAllowed {
        allow: Cow<'static, str>,
    },
    RequestTimeout,
    LengthRequired,
    BodyTooLarge,
    HeadersTooLarge,
    UpgradeRequired,
    RateLimited {
        retry_after: u32,
    },
    InternalError,
    WeChatRejected,
    BadGateway,
    WeChatBusy {
        retry_after: u32,
    },
    StoreUnavailable,
    /// The login hook has failed. The code is used up.
    LoginUnavailable {
        retry_after: u32,
    },
    NoUpstream,
    Overloaded,
    WeChatTimeout {
        retry_after: u32,
    },
    GatewayTimeout,
}

/// What the client should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Call `wx.login` once, then repeat the request.
    Login,
    /// Repeat later, see Retry-After.
    Retry,
    /// Repeating will not help.
    None,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Retry => "retry",
            Self::None => "none",
        }
    }
}

/// Seconds, random so that phones that failed at the same time do not come back at the same time.
pub fn jittered(least: u32, most: u32) -> u32 {
    rand::rng().random_range(least..=most)
}

impl Rejection {
    pub fn status(&self) -> u16 {
        self.row().0
    }

    /// The `error` word, also the value of [`ERROR_HEADER`] and of metric labels.
    pub fn error(&self) -> &'static str {
        self.row().1
    }

    /// The `error` words of all rejections, by which the configuration refers to them.
    pub fn errors() -> [&'static str; 28] {
        let allow = Cow::Borrowed("");
        let retry_after = 1;
        [
            Self::BadRequest(""),
            Self::MissingToken,
            Self::SessionExpired,
            Self::InvalidCode,
            Self::UserBlocked,
            Self::LoginRefused(None),
            Self::WrongApp,
            Self::NotAllowed(""),
            Self::CrossSite,
            Self::SnapshotUser,
            Self::NoRoute,
            Self::MethodNotAllowed { allow },
            Self::RequestTimeout,
            Self::LengthRequired,
            Self::BodyTooLarge,
            Self::HeadersTooLarge,
            Self::UpgradeRequired,
            Self::RateLimited { retry_after },
            Self::InternalError,
            Self::WeChatRejected,
            Self::BadGateway,
            Self::WeChatBusy { retry_after },
            Self::StoreUnavailable,
            Self::LoginUnavailable { retry_after },
            Self::NoUpstream,
            Self::Overloaded,
            Self::WeChatTimeout { retry_after },
            Self::GatewayTimeout,
        ]
        .map(|rejection| rejection.error())
    }

    /// The message for the client.
    pub fn message(&self) -> &str {
        self.row().3
    }

    fn row(&self) -> (u16, &'static str, Action, &str) {
        use Action::{Login, None, Retry};
        match self {
            Self::BadRequest(message) => (400, "bad_request", None, message),
            Self::MissingToken => (401, "missing_token", Login, "log in first"),
            Self::SessionExpired => {
                (401, "session_expired", Login, "the session is unknown, expired or revoked")
            }
            Self::InvalidCode => {
                (401, "invalid_code", Login, "the login code is invalid, expired or already used")
            }
            Self::UserBlocked => {
                (403, "user_blocked", None, "WeChat blocks the login of this user")
            }
            Self::LoginRefused(message) => {
                let message = message.as_deref().unwrap_or("this user may not log in");
                (403, "login_refused", None, message)
            }
            Self::WrongApp => {
                (403, "wrong_app", None, "sessions of this app are not accepted on this route")
            }
            Self::NotAllowed(message) => (403, "not_allowed", None, message),
            Self::CrossSite => (
                403,
                "cross_site",
                None,
                "this request by cookie must come from a page of the same origin",
            ),
            Self::SnapshotUser => (
                403,
                "snapshot_user",
                None,
                "WeChat shows a preview of the page, and reports a made-up user",
            ),
            Self::NotFound => (404, "no_route", None, "there is nothing with this id"),
            Self::NoRoute => (404, "no_route", None, "no route matches this path"),
            Self::MethodNotAllowed { .. } => {
                (405, "method_not_allowed", None, "this method is not allowed here")
            }
            Self::RequestTimeout => {
                (408, "request_timeout", None, "the request was not received in time")
            }
            Self::LengthRequired => {
                (411, "length_required", None, "send the request body with Content-Length")
            }
            Self::BodyTooLarge => (413, "body_too_large", None, "the request body is too large"),
            Self::HeadersTooLarge => {
                (431, "headers_too_large", None, "the request header is too large")
            }
            Self::UpgradeRequired => {
                (426, "upgrade_required", None, "only version 13 of WebSocket is supported")
            }
            Self::RateLimited { .. } => (429, "rate_limited", Retry, "too many requests"),
            Self::InternalError => (500, "internal_error", None, "internal error of the gateway"),
            Self::WeChatRejected => {
                (502, "wechat_rejected", None, "WeChat cannot verify the login")
            }
            Self::BadGateway => {
                (502, "bad_gateway", Retry, "the service did not send a valid response")
            }
            Self::WeChatBusy { .. } => {
                (503, "wechat_busy", Retry, "WeChat is temporarily unavailable")
            }
            Self::StoreUnavailable => {
                (503, "store_unavailable", Retry, "the session store is temporarily unavailable")
            }
            Self::LoginUnavailable { .. } => {
                (503, "login_unavailable", Login, "logins are temporarily not possible")
            }
            Self::NoUpstream => {
                (503, "no_upstream", Retry, "no server of the service is available")
            }
            Self::Overloaded => (503, "overloaded", Retry, "the gateway is overloaded"),
            Self::WeChatTimeout { .. } => {
                (504, "wechat_timeout", Login, "WeChat did not respond in time")
            }
            Self::GatewayTimeout => {
                (504, "gateway_timeout", Retry, "the service did not respond in time")
            }
        }
    }

    /// Seconds after which a repeat may succeed; `None` if the response does not say.
    pub fn retry_after(&self) -> Option<u32> {
        match self {
            Self::RateLimited { retry_after }
            | Self::WeChatBusy { retry_after }
            | Self::LoginUnavailable { retry_after }
            | Self::WeChatTimeout { retry_after } => Some(*retry_after),
            Self::BadGateway
            | Self::StoreUnavailable
            | Self::NoUpstream
            | Self::Overloaded
            | Self::GatewayTimeout => Some(1),
            Self::BadRequest(_)
            | Self::MissingToken
            | Self::SessionExpired
            | Self::InvalidCode
            | Self::UserBlocked
            | Self::LoginRefused(_)
            | Self::WrongApp
            | Self::NotAllowed(_)
            | Self::CrossSite
            | Self::SnapshotUser
            | Self::NotFound
            | Self::NoRoute
            | Self::MethodNotAllowed { .. }
            | Self::RequestTimeout
            | Self::LengthRequired
            | Self::BodyTooLarge
            | Self::HeadersTooLarge
            | Self::UpgradeRequired
            | Self::InternalError
            | Self::WeChatRejected => None,
        }
    }

    /// The response, with a body in the gateway's own format or in the operator's.
    ///
    /// `login_url` is where a browser can log in. It is shown if the client should log in.
    pub fn response(
        &self,
        request_id: &str,
        body: Option<&ErrorBody>,
        login_url: Option<&str>,
    ) -> OwnResponse {
        let (status, error, action, message) = self.row();
        let login_url = login_url.filter(|_| action == Action::Login);
        let mut response = match body {
            None => error_response(status, error, action, message, request_id, login_url),
            Some(template) => {
                let action = action.as_str();
                let facts = ErrorFacts { status, error, message, action, request_id };
                let mut response = OwnResponse::empty(status);
                response.header(CONTENT_TYPE, template.content_type.clone());
                response.body = template.render(&facts);
                response.header(ERROR_HEADER.clone(), HeaderValue::from_static(error));
                response
            }
        };
        if let Some(seconds) = self.retry_after() {
            response.header(RETRY_AFTER, seconds.into());
        }
        match self {
            Self::MissingToken => {
                response.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::UpgradeRequired => {
                response.header(UPGRADE, HeaderValue::from_static("websocket"));
                response.header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            Self::MethodNotAllowed { allow } => {
                if let Ok(allow) = HeaderValue::from_str(allow) {
                    response.header(ALLOW, allow);
                }
            }
            _ => {}
        }
        response
    }
}

/// An error response in the gateway's own format, which is the same on all listeners.
pub fn error_response(
    status: u16,
    error: &'static str,
    action: Action,
    message: &str,
    request_id: &str,
    login_url: Option<&str>,
) -> OwnResponse {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'static str,
        message: &'a str,
        action: Action,
        #[serde(skip_serializing_if = "Option::is_none")]
        login_url: Option<&'a str>,
        request_id: &'a str,
    }

    let body = Body { error, message, action, login_url, request_id };
    let mut response = OwnResponse::json(status, &body);
    response.header(ERROR_HEADER.clone(), HeaderValue::from_static(error));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_a_word_of_its_own() {
        let mut errors = Rejection::errors().to_vec();
        errors.sort_unstable();
        errors.dedup();
        assert_eq!(errors.len(), Rejection::errors().len());
    }
}
