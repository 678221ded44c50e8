//! Turns a code into a session, with one exchange.

use std::sync::Arc;

use super::LoginOrigin;
use super::apps::ServedApp;
use super::coalescing::{Failure, Grant, Outcome};
use super::failure_log::FailureLog;
use super::hook::Hook;
use crate::clock::Clock;
use crate::config::AppKind;
use crate::identity::Identity;
use crate::message::rejection::Rejection;
use crate::session::{CreateError, LoginKey, Sessions, StoreError};
use crate::telemetry::log_throttle::LogThrottle;
use crate::wechat::{Code, Exchanged, WeChat, WeChatError};

/// Makes the exchanges for every app.
pub struct Exchange {
    wechat: Arc<WeChat>,
    hook: Option<Arc<Hook>>,
    sessions: Sessions,
    failure_log: FailureLog,
    store_throttle: LogThrottle,
    key_throttle: LogThrottle,
}

impl Exchange {
    pub fn new(
        wechat: Arc<WeChat>,
        hook: Option<Arc<Hook>>,
        sessions: Sessions,
        clock: &Clock,
    ) -> Self {
        Self {
            wechat,
            hook,
            sessions,
            failure_log: FailureLog::new(clock.clone()),
            store_throttle: LogThrottle::new(clock.clone()),
            key_throttle: LogThrottle::new(clock.clone()),
        }
    }

    pub fn hook(&self) -> Option<&Arc<Hook>> {
        self.hook.as_ref()
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
        let store_failed = |error| self.store_failed(&error, request_id);
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
        let mut identity = exchanged.identity;
        let openid = identity.openid.clone();
        let failed = |rejection| {
            let openid = Some(openid.clone());
            Failure { rejection, errcode: None, openid }
        };
        self.admit(&mut identity, app.kind, request_id).await.map_err(failed)?;
        let user_id = identity.user_id.clone();
        match self.sessions.create(identity, client, key).await {
            Ok((token, expires_in)) => Ok(Arc::new(Grant { token, expires_in, openid, user_id })),
            Err(CreateError::Blocked) => Err(failed(blocked(app.app_id.as_str(), request_id))),
            Err(CreateError::Store(error)) => Err(failed(store_failed(error))),
        }
    }

    /// Calls the login hook, if there is one, for a user who is about to get a session, and sets
    /// the user's id. It is not called for users who are blocked: it may create accounts.
    ///
    /// # Errors
    /// When the user is blocked or refused, or the hook or the store has failed.
    pub async fn admit(
        &self,
        identity: &mut Identity,
        kind: AppKind,
        request_id: &str,
    ) -> Result<(), Rejection> {
        let Some(hook) = &self.hook else { return Ok(()) };
        let until = self.sessions.blocked_until(&identity.user()).await;
        if until.map_err(|error| self.store_failed(&error, request_id))?.is_some() {
            return Err(blocked(identity.app_id.as_str(), request_id));
        }
        hook.admit(identity, kind, request_id).await
    }

    fn store_failed(&self, error: &StoreError, request_id: &str) -> Rejection {
        if let Some(suppressed) = self.store_throttle.suppressed() {
            tracing::error!(request_id, %error, suppressed, "cannot store a session");
        }
        Rejection::StoreUnavailable
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

fn blocked(app_id: &str, request_id: &str) -> Rejection {
    tracing::debug!(request_id, app_id, "login rejected: the user is blocked");
    Rejection::LoginRefused(None)
}
