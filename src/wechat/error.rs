//! Why a call of WeChat's API failed.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::ErrCode;
use super::call_error::{CallError, Cause, Destination};
use super::concurrency_limit::NoPermit;

/// Why a call failed, grouped by what the client or the operator can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeChatError {
    #[error("WeChat rejects the code ({0})")]
    InvalidCode(ErrCode),
    #[error("WeChat blocks the user ({0})")]
    UserBlocked(ErrCode),
    /// WeChat showed a preview of the page (快照页), and reports a user that does not exist.
    #[error("WeChat reports a user that does not exist, because it shows a preview of the page")]
    Snapshot,
    #[error("WeChat limits the calls for this user ({})", .0.errcode)]
    RateLimited(ErrorReport),
    #[error("WeChat is busy ({})", .0.errcode)]
    Busy(ErrorReport),
    #[error("WeChat's quota for the app is used up ({})", .0.errcode)]
    OutOfQuota(ErrorReport),
    #[error("WeChat rejects the app ({})", .0.errcode)]
    Refused(ErrorReport),
    #[error("invalid response from WeChat: {0}")]
    Malformed(CallError),
    #[error("WeChat's address responded with {0}")]
    Status(CallError),
    /// With the `Retry-After` of the response, in seconds.
    #[error("WeChat's address responded with {0}")]
    TooManyRequests(CallError, Option<u32>),
    #[error("WeChat's certificate is not trusted: {0}")]
    Certificate(CallError),
    #[error("WeChat cannot be reached: {0}")]
    Unreachable(CallError),
    #[error("WeChat did not respond in time; the call may have succeeded: {0}")]
    Timeout(CallError),
    #[error("call to WeChat failed, or it succeeded unnoticed: {0}")]
    Broken(CallError),
    #[error("login queue full, or waited longer than wechat.queue_timeout")]
    QueueFull,
    #[error("circuit breaker open")]
    BreakerOpen(Duration),
}

impl WeChatError {
    /// A response that is not WeChat's, without the address that it came from.
    pub(super) fn malformed(how: &'static str) -> Self {
        Self::Malformed(CallError::new(None, Cause::Malformed(how)))
    }

    /// Adds the address that was called.
    pub(super) fn at(mut self, destination: &Arc<Destination>) -> Self {
        if let Self::Malformed(call_error) = &mut self {
            call_error.destination = Some(destination.clone());
        }
        self
    }

    /// The label `errcode` of metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Status(_) => "malformed",
            Self::Timeout(_) => "timeout",
            Self::Snapshot => "snapshot_user",
            Self::TooManyRequests(..)
            | Self::Certificate(_)
            | Self::Unreachable(_)
            | Self::Broken(_)
            | Self::QueueFull
            | Self::BreakerOpen(_) => "transport",
            Self::InvalidCode(errcode)
            | Self::UserBlocked(errcode)
            | Self::RateLimited(ErrorReport { errcode, .. })
            | Self::Busy(ErrorReport { errcode, .. })
            | Self::OutOfQuota(ErrorReport { errcode, .. })
            | Self::Refused(ErrorReport { errcode, .. }) => errcode.label(),
        }
    }

    /// The outcome of a renewal of an `access_token`, for metrics.
    pub fn renewal_outcome(&self) -> &'static str {
        match self {
            Self::Timeout(_) | Self::Broken(_) => "timeout",
            Self::RateLimited(_)
            | Self::Busy(_)
            | Self::OutOfQuota(_)
            | Self::TooManyRequests(..)
            | Self::Unreachable(_)
            | Self::QueueFull
            | Self::BreakerOpen(_) => "busy",
            Self::InvalidCode(_)
            | Self::UserBlocked(_)
            | Self::Snapshot
            | Self::Refused(_)
            | Self::Malformed(_)
            | Self::Status(_)
            | Self::Certificate(_) => "rejected",
        }
    }

    /// The errcode that WeChat reported, if any.
    pub fn errcode(&self) -> Option<ErrCode> {
        match self {
            Self::InvalidCode(errcode) | Self::UserBlocked(errcode) => Some(*errcode),
            other => other.error_report().map(|report| report.errcode),
        }
    }

    /// The kind of the error: equal kinds have the same cause. There are few kinds, except for
    /// errcodes.
    pub fn kind(&self) -> Cow<'static, str> {
        if let Some(errcode) = self.errcode() {
            return Cow::Owned(errcode.to_string());
        }
        match (self, self.call_error().map(CallError::kind)) {
            (_, Some((_, Cause::Status(status)))) => Cow::Owned(format!("status {status}")),
            (_, Some((true, cause))) => Cow::Owned(format!("proxy: {}", cause.text())),
            (_, Some((false, cause))) => Cow::Borrowed(cause.text()),
            (Self::Snapshot, None) => Cow::Borrowed("snapshot user"),
            (Self::QueueFull, None) => Cow::Borrowed("login queue full"),
            (_, None) => Cow::Borrowed("circuit breaker open"),
        }
    }

    fn call_error(&self) -> Option<&CallError> {
        match self {
            Self::Malformed(call_error)
            | Self::Status(call_error)
            | Self::TooManyRequests(call_error, _)
            | Self::Certificate(call_error)
            | Self::Unreachable(call_error)
            | Self::Timeout(call_error)
            | Self::Broken(call_error) => Some(call_error),
            _ => None,
        }
    }

    /// Whether WeChat itself reported the error: then its service works.
    pub fn wechat_works(&self) -> bool {
        matches!(
            self,
            Self::InvalidCode(_)
                | Self::UserBlocked(_)
                | Self::Snapshot
                | Self::RateLimited(_)
                | Self::OutOfQuota(_)
                | Self::Refused(_)
        )
    }

    /// Details for operators and WeChat's support, to be appended to a log line.
    pub fn details(&self) -> String {
        let report = self.error_report();
        let meaning = self.errcode().and_then(ErrCode::meaning);
        let address = report.and_then(|report| report.seen_address);
        let rid = report.and_then(|report| report.rid.as_deref());
        [
            meaning.map(|meaning| format!(": {meaning}")),
            address.map(|address| format!("; WeChat saw address {address}")),
            rid.map(|rid| format!("; rid {rid}")),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// WeChat's report besides the errcode, if any.
    pub fn error_report(&self) -> Option<&ErrorReport> {
        match self {
            Self::RateLimited(report)
            | Self::Busy(report)
            | Self::OutOfQuota(report)
            | Self::Refused(report) => Some(report),
            _ => None,
        }
    }
}

impl From<NoPermit> for WeChatError {
    fn from(reason: NoPermit) -> Self {
        match reason {
            NoPermit::QueueFull => Self::QueueFull,
            NoPermit::BreakerOpen(wait) => Self::BreakerOpen(wait),
        }
    }
}

/// An error that WeChat reported, with what an operator or WeChat's support needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorReport {
    pub errcode: ErrCode,
    /// WeChat's trace id, which its support asks for.
    pub rid: Option<Box<str>>,
    /// The gateway's address as WeChat saw it: it must be on WeChat's whitelist.
    pub seen_address: Option<IpAddr>,
}
