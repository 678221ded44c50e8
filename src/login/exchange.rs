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
    unkept: LogThrottle,
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
        let (failure_log, unkept) =
            (FailureLog::new(clock.clone()), LogThrottle::new(clock.clone()));
        Ok(Self { wechat, sessions, failure_log, unkept })
    }

    /// Turns a code of an app, sent by `client`, into a session.
    pub async fn trade(
        &self,
        served: &ServedApp,
        code: Code,
        client: IpAddr,
        request_id: &str,
    ) -> Outcome {
        let ServedApp { app, rate_limit, .. } = served;
        rate_limit.check()?;
        let refused = |error: WeChatError| {
            self.failure_log.log(&error, app.app_id.as_str(), request_id);
            Failure::from(&error)
        };
        let unkept = |error: StoreError| {
            if let Some(suppressed) = self.unkept.suppressed() {
                tracing::error!(request_id, %error, suppressed, "a session cannot be stored");
            }
            Rejection::StoreUnavailable
        };
        // Checked before the code is spent.
        self.sessions.check().map_err(unkept)?;
        let permit = self.wechat.permit().await.map_err(refused)?;
        rate_limit.ask()?;
        let exchanged = permit.exchange(app, &code).await;
        match &exchanged {
            Err(WeChatError::RateLimited(_)) => rate_limit.slow(),
            Err(WeChatError::OutOfQuota(_)) => rate_limit.pause(),
            Err(error) if !error.is_answer() => {}
            Ok(_) | Err(_) => rate_limit.resume(),
        }
        let identity = exchanged.map_err(refused)?;
        let openid = identity.openid.clone();
        let rejection = match self.sessions.create(identity, client).await {
            Ok((token, expires_in)) => {
                return Ok(Arc::new(Grant { token, expires_in, openid }));
            }
            Err(CreateError::Blocked) => {
                tracing::debug!(
                    request_id,
                    app_id = app.app_id.as_str(),
                    "the user of a login is blocked"
                );
                Rejection::LoginRefused
            }
            Err(CreateError::Store(error)) => unkept(error),
        };
        Err(Failure { rejection, errcode: None, openid: Some(openid) })
    }
}
