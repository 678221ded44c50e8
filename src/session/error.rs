//! Why an operation on sessions failed.

use crate::message::rejection::Rejection;

/// The store is unavailable. Never treated as "no session".
#[derive(Debug, thiserror::Error)]
#[error("session store unavailable")]
pub struct StoreError;

/// The session was not created, because its user is blocked.
#[derive(Debug)]
pub struct Blocked;

/// Why a session was not created.
#[derive(Debug)]
pub enum CreateError {
    Store(StoreError),
    Blocked,
}

impl From<StoreError> for CreateError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<Blocked> for CreateError {
    fn from(_: Blocked) -> Self {
        Self::Blocked
    }
}

impl From<CreateError> for Rejection {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Store(_) => Self::StoreUnavailable,
            CreateError::Blocked => Self::LoginRefused(None),
        }
    }
}

/// Why a user was not blocked.
#[derive(Debug)]
pub enum BlockError {
    Store(StoreError),
    /// The limit [`MAX_BLOCKED`](super::MAX_BLOCKED) is reached.
    Full,
}

impl From<StoreError> for BlockError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
