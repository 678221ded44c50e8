//! Turns a code into a session, with one exchange.

use std::net::IpAddr;
use std::sync::Arc;

use super::apps::ServedApp;
use super::coalescing::{Failure, Grant, Outcome};
use super::failure_log::FailureLog;
use crate::clock::Clock;
use crate::config::Config;
use crate::message::rejection::Rejection;
use crate::session::{CreateError, Sessions, StoreError};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;
use crate::wechat::{ClientError, Code, WeChat, WeChatError};

/// Makes the exchanges for every app.
pub struct Exchange {
    wechat: Arc<WeChat>,
    sessions: Sessions,
    failure_log: FailureLog,
    store_throttle: LogThrottle,
}

impl Exchange {
    /// Keeps the WeChat client of `previous`, and its state, if its section has not changed.
    ///
    /// # Errors
    /// When the client for WeChat cannot be built.
    pub fn new(
        config: &Config,
        previous: Option<&Self>,
        sessions: Sessions,
        clock: &Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientError> {
        let wechat = previous.map(|previous| &previous.wechat);
        let wechat = WeChat::carried_over(wechat, &config.wechat, clock, metrics)?;
        let (failure_log, store_throttle) =
            (FailureLog::new(clock.clone()), LogThrottle::new(clock.clone()));
        Ok(Self { wechat, sessions, failure_log, store_throttle })
    }

    /// Turns a code of an app, sent by `client`, into a session.
    pub async fn log_in(
        &self,
        served: &ServedApp,
        code: Code,
        client: IpAddr,
        request_id: &str,
    ) -> Outcome {
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
        let identity = exchanged.map_err(rejected)?;
        let openid = identity.openid.clone();
        let rejection = match self.sessions.create(identity, client).await {
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
}
