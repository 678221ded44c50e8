//! From a code to a session, once.

use std::net::IpAddr;
use std::sync::Arc;

use super::app_rate::Pace;
use super::coalescing::{Failure, Grant, Outcome};
use super::notices::Notices;
use super::refusals::Refusals;
use crate::clock::Clock;
use crate::config::{App, Config};
use crate::message::rejection::Rejection;
use crate::session::{CreateError, Sessions, StoreError};
use crate::telemetry::log_throttle::Seldom;
use crate::telemetry::metrics::Metrics;
use crate::wechat::{ClientError, Code, WeChat, WeChatError};

/// Trades the codes of every app.
pub struct Exchange {
    pub apps: Vec<Served>,
    wechat: Arc<WeChat>,
    sessions: Sessions,
    notices: Notices,
    unkept: Seldom,
}

/// An app, and what is known of its logins.
pub struct Served {
    pub app: App,
    pub refusals: Arc<Refusals>,
    pace: Arc<Pace>,
}

impl Exchange {
    /// An app whose rate is that of `previous` goes on where it was there, and so does what is
    /// known of WeChat where its section is the same.
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
        let served = |app: &App| {
            let mut known = previous.into_iter().flat_map(|previous| &previous.apps);
            let known = known.find(|known| known.app.app_id == app.app_id);
            let paced = known.filter(|known| known.app.login_rate == app.login_rate);
            let pace = paced.map(|known| known.pace.clone());
            let refusals = known.map(|known| known.refusals.clone());
            Served {
                app: app.clone(),
                refusals: refusals.unwrap_or_else(|| Arc::new(Refusals::new(clock.clone()))),
                pace: pace.unwrap_or_else(|| Arc::new(Pace::new(app.login_rate, clock.clone()))),
            }
        };
        let known = previous.map(|previous| &previous.wechat);
        let wechat = match known.filter(|known| *known.section() == config.wechat) {
            Some(known) => known.clone(),
            None => Arc::new(WeChat::new(&config.wechat, clock.clone(), metrics)?),
        };
        let apps = config.apps.iter().map(served).collect();
        let (notices, unkept) = (Notices::new(clock.clone()), Seldom::new(clock.clone()));
        Ok(Self { apps, wechat, sessions, notices, unkept })
    }

    /// Trades a code of the app with this index, that `client` sent, for a session.
    pub async fn trade(&self, app: usize, code: Code, client: IpAddr, request_id: &str) -> Outcome {
        let Served { app, pace, .. } = self.apps.get(app).ok_or(Rejection::InternalError)?;
        pace.check()?;
        let refused = |error: WeChatError| {
            self.notices.say(&error, app.app_id.as_str(), request_id);
            Failure::from(&error)
        };
        let unkept = |error: StoreError| {
            if let Some(suppressed) = self.unkept.suppressed() {
                tracing::error!(request_id, %error, suppressed, "a session cannot be stored");
            }
            Rejection::StoreUnavailable
        };
        // Before the code is spent.
        self.sessions.check().map_err(unkept)?;
        let turn = self.wechat.turn().await.map_err(refused)?;
        pace.ask()?;
        let exchanged = turn.exchange(app, &code).await;
        match &exchanged {
            Err(WeChatError::RateLimited(_)) => pace.slow(),
            Err(WeChatError::OutOfQuota(_)) => pace.pause(),
            Err(error) if !error.is_answer() => {}
            Ok(_) | Err(_) => pace.resume(),
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
