//! Errors of the admin listener, in the same format as those of the public listeners.

use http::header::{ALLOW, HeaderValue, WWW_AUTHENTICATE};

use crate::access::identity_headers::REQUEST_ID;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::{Action, error_response};
use crate::session::{BlockError, MAX_BLOCKED, StoreError};

/// Why a request is rejected.
pub enum AdminError {
    BadRequest(&'static str),
    Unauthorized,
    NotFound,
    /// The user has no session with this id.
    NoSession,
    /// No user has this name.
    NoUser,
    /// With the methods that are allowed.
    MethodNotAllowed(&'static str),
    Internal,
    StoreUnavailable,
    TooManyBlocks,
}

impl AdminError {
    /// The `error` word, for logs and for programs that read the response.
    pub fn error(&self) -> &'static str {
        self.row().1
    }

    fn row(&self) -> (u16, &'static str, Action, &'static str) {
        use Action::{None, Retry};

        const { assert!(MAX_BLOCKED == 100_000, "named in a message") };
        match self {
            Self::BadRequest(message) => (400, "bad_request", None, message),
            Self::Unauthorized => {
                let message = "send Authorization: Bearer with the value of admin.token";
                (401, "unauthorized", None, message)
            }
            Self::NotFound => {
                (404, "not_found", None, "unknown path: try /metrics, /healthz or /readyz")
            }
            Self::NoSession => (404, "no_session", None, "no session of this user has this id"),
            Self::NoUser => {
                let message =
                    "no session or block of this user found: block the user by openid instead";
                (404, "no_user", None, message)
            }
            Self::MethodNotAllowed(_) => {
                (405, "method_not_allowed", None, "method not allowed: see the Allow header")
            }
            Self::Internal => (500, "internal_error", None, "cannot render metrics"),
            Self::StoreUnavailable => {
                let message = "session store failed, the action may be incomplete: see the log, \
                               then repeat the request";
                (503, "store_unavailable", Retry, message)
            }
            Self::TooManyBlocks => {
                let message = "limit of 100000 blocked users reached, nothing changed";
                (503, "too_many_blocks", None, message)
            }
        }
    }

    pub fn response(&self, request_id: &HeaderValue) -> OwnResponse {
        let (status, error, action, message) = self.row();
        let id = request_id.to_str().unwrap_or_default();
        let mut response = error_response(status, error, action, message, id, None);
        response.header(REQUEST_ID.clone(), request_id.clone());
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

impl From<StoreError> for AdminError {
    fn from(_: StoreError) -> Self {
        Self::StoreUnavailable
    }
}

impl From<BlockError> for AdminError {
    fn from(error: BlockError) -> Self {
        match error {
            BlockError::Store(error) => error.into(),
            BlockError::Full => Self::TooManyBlocks,
        }
    }
}
