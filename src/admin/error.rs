//! Errors of the admin listener, in the shape of those of the public listeners.

use http::header::{ALLOW, HeaderValue, WWW_AUTHENTICATE};

use crate::access::identity_headers::REQUEST_ID;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::{Action, error_response};
use crate::session::{BlockError, MOST_BLOCKED, StoreError};

/// Why a request is rejected.
pub enum AdminError {
    BadRequest(&'static str),
    Unauthorized,
    NotFound,
    /// The user has no session of this id.
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
    /// The word for logs and programs.
    pub fn error(&self) -> &'static str {
        self.row().1
    }

    fn row(&self) -> (u16, &'static str, Action, &'static str) {
        use Action::{None, Retry};

        const { assert!(MOST_BLOCKED == 100_000, "as a message says") };
        match self {
            Self::BadRequest(message) => (400, "bad_request", None, message),
            Self::Unauthorized => {
                let message = "Authorization: Bearer with admin.token is needed";
                (401, "unauthorized", None, message)
            }
            Self::NotFound => (404, "not_found", None, "/metrics, /healthz and /readyz are here"),
            Self::NoSession => (404, "no_session", None, "the user has no such session"),
            Self::NoUser => {
                let message =
                    "no session and no block of this user was found: block the user by openid";
                (404, "no_user", None, message)
            }
            Self::MethodNotAllowed(_) => (405, "method_not_allowed", None, "not by this method"),
            Self::Internal => (500, "internal_error", None, "metrics cannot be rendered"),
            Self::StoreUnavailable => {
                let message = "the session store failed before all was done: see the log, and \
                               repeat the request";
                (503, "store_unavailable", Retry, message)
            }
            Self::TooManyBlocks => {
                let message = "the limit of 100000 blocked users is reached: nothing was changed";
                (503, "too_many_blocks", None, message)
            }
        }
    }

    pub fn response(&self, request_id: &HeaderValue) -> OwnResponse {
        let (status, error, action, message) = self.row();
        let id = request_id.to_str().unwrap_or_default();
        let mut response = error_response(status, error, action, message, id);
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
