//! Turns a code into a session, with one exchange.

use std::sync::Arc;

use super::LoginOrigin;
use super::apps::ServedApp;
use super::coalescing::{Failure, Grant, Outcome};
use super::failure_log::FailureLog;
use crate::clock::Clock;
use crate::message::rejection::Rejection;
use crate::session::{CreateError, LoginKey, Sessions, StoreError};
use crate::telemetry::log_throttle::LogThrottle;
use crate::wechat::{Code, Exchanged, WeChat, WeChatError};

/// Makes the exchanges for every app.
pub struct Exchange {
    wechat: Arc<WeChat>,
    sessions: Sessions,
    failure_log: FailureLog,
    store_throttle: LogThrottle,
    key_throttle: LogThrottle,
}

impl Exchange {
    pub fn new(wechat: Arc<WeChat>, sessions: Sessions, clock: &Clock) -> Self {
        Self {
            wechat,
            sessions,
            failure_log: FailureLog::new(clock.clone()),
            store_throttle: LogThrottle::new(clock.clone()),
            key_throttle: LogThrottle::new(clock.clone()),
        }
    }

    /// Turns a code of an app into a session.
    pub async fn log_in(&self, served: &ServedApp, code: Code, origin: LoginOrigin) -> Outcome {
        let LoginOrigin { client, received_at_millis, request_id } = origin;
        let request_id = request_id.as_str();
        let ServedApp { app, rate_limit, .. } = served;
        rate_limit.check()?;
        let rejected = |error: WeChatError| {
            self.failure_log.log(&error, app.app_id.as_str(), request_id);
            Failure::from(&error)
        };
        let store_failed = |error: StoreError| {
            if let Some(suppressed) = self.store_throttle.suppressed() {
                tracing::error!(request_id, %error, suppressed, "cannot store a session");
            }
            Rejection::StoreUnavailable
        };
        // Checked before the code is spent.
        self.sessions.check().map_err(store_failed)?;
        let permit = self.wechat.permit().await.map_err(rejected)?;
        rate_limit.admit_call()?;
        let exchanged = permit.exchange(app, &code).await;
        match &exchanged {
            Err(WeChatError::RateLimited(_)) => rate_limit.slow(),
            Err(WeChatError::OutOfQuota(_)) => rate_limit.pause(),
            Err(error) if !error.wechat_works() => {}
            Ok(_) | Err(_) => rate_limit.resume(),
        }
        let exchanged = exchanged.map_err(rejected)?;
        let key = self.login_key(&exchanged, received_at_millis, app.app_id.as_str(), request_id);
        let identity = exchanged.identity;
        let openid = identity.openid.clone();
        let rejection = match self.sessions.create(identity, client, key).await {
            Ok((token, expires_in)) => {
                return Ok(Arc::new(Grant { token, expires_in, openid }));
            }
            Err(CreateError::Blocked) => {
                tracing::debug!(
                    request_id,
                    app_id = app.app_id.as_str(),
                    "login rejected: the user is blocked"
                );
                Rejection::LoginRefused
            }
            Err(CreateError::Store(error)) => store_failed(error),
        };
        Err(Failure { rejection, errcode: None, openid: Some(openid) })
    }

    /// The session key of a login, if session keys are kept and it can be used.
    fn login_key(
        &self,
        exchanged: &Exchanged,
        logged_in_at_millis: u64,
        app_id: &str,
        request_id: &str,
    ) -> Option<LoginKey> {
        if !self.sessions.keeps_session_keys() || !exchanged.has_session_key() {
            return None;
        }
        let Some(session_key) = exchanged.session_key() else {
            if let Some(suppressed) = self.key_throttle.suppressed() {
                tracing::warn!(
                    request_id,
                    app_id,
                    suppressed,
                    "WeChat returned a session_key that is not 16 bytes in base64: the login \
                     succeeds, the key is not kept; logged once a minute"
                );
            }
            return None;
        };
        Some(LoginKey { session_key, logged_in_at_millis })
    }
}
