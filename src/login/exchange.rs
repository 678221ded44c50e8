//! From a code to a session, once.

use std::sync::Arc;

use super::notices::Notices;
use super::pace::Pace;
use super::replay::{Grant, Outcome};
use crate::clock::Clock;
use crate::config::App;
use crate::rejection::Rejection;
use crate::session::Sessions;
use crate::wechat::{Code, WeChat, WeChatError};

/// Trades the codes of every app.
pub struct Exchange {
    pub apps: Vec<(App, Pace)>,
    wechat: WeChat,
    sessions: Sessions,
    notices: Notices,
}

impl Exchange {
    pub fn new(apps: &[App], wechat: WeChat, sessions: Sessions, clock: &Clock) -> Self {
        let paced = |app: &App| (app.clone(), Pace::new(app.login_rate, clock.clone()));
        let apps = apps.iter().map(paced).collect();
        Self { apps, wechat, sessions, notices: Notices::new(clock.clone()) }
    }

    /// Trades a code of the app with this index for a session.
    pub async fn trade(&self, app: usize, code: Code, request_id: &str) -> Outcome {
        let (app, pace) = self.apps.get(app).ok_or(Rejection::InternalError)?;
        pace.check()?;
        let refused = |error: WeChatError| {
            self.notices.say(&error, app.app_id.as_str(), request_id);
            Rejection::from(&error)
        };
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
        let (token, expires_in) = self.sessions.create(identity).await.map_err(|error| {
            tracing::error!(request_id, %error, "a session cannot be kept");
            Rejection::StoreUnavailable
        })?;
        Ok(Arc::new(Grant { token, expires_in }))
    }
}
