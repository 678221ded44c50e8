//! What a client gets for each error of WeChat, and when it may try again (`Retry-After`).

use super::WeChatError;
use crate::message::rejection::{Rejection, jittered};

/// The longest `Retry-After` of a relay that is forwarded, in seconds.
const MAX_RETRY_AFTER: u32 = 300;

impl From<&WeChatError> for Rejection {
    fn from(error: &WeChatError) -> Self {
        match error {
            WeChatError::InvalidCode(_) => Self::InvalidCode,
            WeChatError::UserBlocked(_) => Self::UserBlocked,
            WeChatError::Snapshot => Self::SnapshotUser,
            // WeChat's limit is per user and minute.
            WeChatError::RateLimited(_) => Self::RateLimited { retry_after: jittered(60, 75) },
            WeChatError::TooManyRequests(_, Some(pause)) => {
                let least = (*pause).clamp(1, MAX_RETRY_AFTER);
                Self::WeChatBusy { retry_after: jittered(least, least + least / 4 + 2) }
            }
            WeChatError::Busy(_)
            | WeChatError::TooManyRequests(_, None)
            | WeChatError::Unreachable(_)
            | WeChatError::QueueFull => Self::WeChatBusy { retry_after: jittered(2, 5) },
            WeChatError::BreakerOpen(wait) => {
                let seconds = u32::try_from(wait.as_secs()).unwrap_or(u32::MAX - 4);
                Self::WeChatBusy { retry_after: jittered(seconds + 1, seconds + 4) }
            }
            WeChatError::OutOfQuota(_) => Self::WeChatBusy { retry_after: jittered(60, 90) },
            WeChatError::Refused(_)
            | WeChatError::Malformed(_)
            | WeChatError::Status(_)
            | WeChatError::Certificate(_) => Self::WeChatRejected,
            WeChatError::Timeout(_) | WeChatError::Broken(_) => {
                Self::WeChatTimeout { retry_after: jittered(1, 5) }
            }
        }
    }
}
