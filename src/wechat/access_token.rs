//! One `access_token` for each app: which gateway gets it from WeChat, and how callers share it.
//!
//! Tokens come from `getStableAccessToken` in its normal mode, which returns the same token to
//! every caller until five minutes before it expires, and then a new one, while the old one stays
//! valid until it expires. `force_refresh` is never used: it makes the token of every other caller
//! invalid. A token is fetched when it is first needed, and from then on renewed before it expires
//! (`schedule`). Only one renewal of an app runs at a time; with a shared store, in all gateways
//! together.

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use self::schedule::{Reason, SHORTEST_INTERVAL, Schedule, Verdict};
use super::transport::{Call, Response, json_body};
use super::{WeChat, WeChatError};
use crate::clock::{Clock, millis};
use crate::config::App;
use crate::identity::AppId;
use crate::identity::secret::Secret;
use crate::session::{SharedTokens, TokenRecord};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::{AccessTokenMetrics, Metrics};

/// How often a gateway looks whether another one has renewed a token.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How much longer than a call the right to renew is.
const LEASE_MARGIN: Duration = Duration::from_secs(2);

/// Longest token, in bytes. WeChat asks to reserve 512.
const LONGEST_TOKEN: usize = 2048;

/// Longest lifetime that WeChat documents, in seconds.
const LONGEST_LIFETIME: u64 = 7200;

/// An `access_token` of an app. It allows its owner to call all of WeChat's API.
#[derive(Clone)]
pub struct AccessToken {
    pub token: Secret,
    /// On the clock, in milliseconds.
    pub expires_at_millis: u64,
}

/// The access tokens of all apps.
pub struct AccessTokens {
    keepers: Vec<Arc<Keeper>>,
    clock: Clock,
}

/// The access token of one app.
struct Keeper {
    app: App,
    wechat: Arc<WeChat>,
    store: Option<SharedTokens>,
    clock: Clock,
    metrics: AccessTokenMetrics,
    state: Arc<State>,
}

/// What a reload keeps.
struct State {
    /// Of WeChat's API: tokens of another address are not valid here.
    base_url: String,
    schedule: Mutex<Schedule>,
    /// Held during a renewal.
    renewal: AsyncMutex<()>,
    failures: LogThrottle,
}

impl AccessTokens {
    /// Tokens of apps that have not changed are kept. If an app's secret or the address of WeChat
    /// has changed, and its token was in use, another one is fetched at once.
    pub fn new(
        previous: Option<&Self>,
        apps: &[App],
        wechat: &Arc<WeChat>,
        store: Option<&SharedTokens>,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Self {
        let keeper = |app: &App| {
            let known = previous.and_then(|previous| previous.find(&app.app_id));
            let is_same = |known: &&Arc<Keeper>| {
                known.app.secret == app.secret && known.state.base_url == wechat.base_url()
            };
            let state = known.filter(is_same).map(|known| known.state.clone());
            let is_wanted = known.is_some_and(|known| known.state.schedule.lock().is_wanted());
            Arc::new(Keeper {
                app: app.clone(),
                wechat: wechat.clone(),
                store: store.cloned(),
                clock: clock.clone(),
                metrics: metrics.wechat.access_token(app.app_id.as_str()),
                state: state.unwrap_or_else(|| Arc::new(State::new(wechat, clock, is_wanted))),
            })
        };
        Self { keepers: apps.iter().map(keeper).collect(), clock: clock.clone() }
    }

    /// The valid token of an app. Fetches one if there is none.
    ///
    /// # Errors
    /// When there is no token and none can be fetched.
    pub async fn get(&self, app_id: &AppId) -> Result<AccessToken, WeChatError> {
        let keeper = self.keeper(app_id)?;
        let now = keeper.clock.now_millis();
        let current = keeper.state.schedule.lock().want(now);
        match current {
            Some(token) => Ok(token),
            None => keeper.renew(Reason::Missing).await,
        }
    }

    /// The token of an app after WeChat has rejected one: another one if there is, else a new one.
    /// A token is renewed at most every ten seconds; before that, the rejected one is returned.
    ///
    /// # Errors
    /// When none can be fetched.
    pub async fn renew(
        &self,
        app_id: &AppId,
        rejected: &Secret,
    ) -> Result<AccessToken, WeChatError> {
        self.keeper(app_id)?.renew(Reason::Rejected(rejected.clone())).await
    }

    /// Does what [`Self::renew`] does, without waiting for the token.
    pub fn start_renewal(&self, app_id: &AppId, rejected: &Secret) {
        if let Some(keeper) = self.find(app_id) {
            let (keeper, rejected) = (keeper.clone(), rejected.clone());
            tokio::spawn(async move { keeper.renew_alone(Reason::Rejected(rejected)).await });
        }
    }

    /// Starts the renewals that are due. Called every second.
    pub fn maintain(&self) {
        for keeper in &self.keepers {
            if keeper.is_due() {
                let keeper = keeper.clone();
                // A failure is logged and counted there.
                tokio::spawn(async move { keeper.renew_alone(Reason::Due).await });
            }
        }
    }

    /// How long a token is still valid, in whole seconds.
    pub fn expires_in(&self, token: &AccessToken) -> u64 {
        token.expires_at_millis.saturating_sub(self.clock.now_millis()) / 1000
    }

    fn find(&self, app_id: &AppId) -> Option<&Arc<Keeper>> {
        self.keepers.iter().find(|keeper| keeper.app.app_id == *app_id)
    }

    fn keeper(&self, app_id: &AppId) -> Result<&Arc<Keeper>, WeChatError> {
        self.find(app_id).ok_or(WeChatError::malformed("no such app"))
    }
}

impl State {
    fn new(wechat: &WeChat, clock: &Clock, is_wanted: bool) -> Self {
        Self {
            base_url: wechat.base_url().to_owned(),
            schedule: Mutex::new(Schedule::new(is_wanted)),
            renewal: AsyncMutex::default(),
            failures: LogThrottle::new(clock.clone()),
        }
    }
}

impl Keeper {
    fn is_due(&self) -> bool {
        let is_due = self.state.schedule.lock().is_due(self.clock.now_millis());
        is_due && self.state.renewal.try_lock().is_ok()
    }

    /// Renews the token in a task of its own: what WeChat has sent is not lost if the caller
    /// disconnects.
    async fn renew(self: &Arc<Self>, reason: Reason) -> Result<AccessToken, WeChatError> {
        let keeper = self.clone();
        let task = tokio::spawn(async move { keeper.renew_alone(reason).await });
        task.await.unwrap_or(Err(WeChatError::malformed("the task failed")))
    }

    async fn renew_alone(&self, reason: Reason) -> Result<AccessToken, WeChatError> {
        let alone = self.state.renewal.lock().await;
        let verdict = self.state.schedule.lock().verdict(&reason, self.clock.now_millis());
        let outcome = match verdict {
            Verdict::Use(token) => return Ok(token),
            Verdict::Failed(error) => {
                // A slow store must not delay one caller after the other.
                drop(alone);
                return self.instead(&reason, error).await;
            }
            Verdict::Renew => self.fetch(&reason).await,
        };
        match outcome {
            Ok(record) => Ok(self.keep(record)),
            Err(error) => {
                self.failed(&error);
                Err(error)
            }
        }
    }

    /// After a renewal has failed: what another gateway has stored since, or what this one has.
    async fn instead(
        &self,
        reason: &Reason,
        error: WeChatError,
    ) -> Result<AccessToken, WeChatError> {
        let stored = match &self.store {
            Some(store) => store.get(&self.app.app_id).await.ok().flatten(),
            None => None,
        };
        if let Some(record) = stored.filter(|record| self.accepts(record, reason)) {
            return Ok(self.keep(record));
        }
        match self.state.schedule.lock().verdict(reason, self.clock.now_millis()) {
            Verdict::Use(token) => Ok(token),
            Verdict::Failed(_) | Verdict::Renew => Err(error),
        }
    }

    fn accepts(&self, record: &TokenRecord, reason: &Reason) -> bool {
        self.state.schedule.lock().accepts(record, reason, self.clock.now_millis())
    }

    /// A token that is not the one to be replaced, from the store or from WeChat.
    async fn fetch(&self, reason: &Reason) -> Result<TokenRecord, WeChatError> {
        let Some(store) = &self.store else { return self.call().await };
        let app_id = &self.app.app_id;
        let lease_time = self.wechat.timeout() + LEASE_MARGIN;
        let deadline = Instant::now() + lease_time;
        loop {
            // If the store fails, each gateway calls WeChat. In the normal mode they get the same
            // token.
            let Ok(stored) = store.get(app_id).await else { return self.call().await };
            if let Some(record) = stored.filter(|record| self.accepts(record, reason)) {
                return Ok(record);
            }
            match store.try_lease(app_id, lease_time).await {
                Ok(Some(lease)) => {
                    let outcome = self.fetch_for_all(store, reason).await;
                    // If this fails, the lease ends by itself.
                    drop(store.release(app_id, lease).await);
                    return outcome;
                }
                Ok(None) if Instant::now() < deadline => sleep(POLL_INTERVAL).await,
                Ok(None) | Err(_) => return self.call().await,
            }
        }
    }

    /// With the right to renew the token: what another gateway has stored just before, or a token
    /// from WeChat, which is stored.
    async fn fetch_for_all(
        &self,
        store: &SharedTokens,
        reason: &Reason,
    ) -> Result<TokenRecord, WeChatError> {
        let app_id = &self.app.app_id;
        let stored = store.get(app_id).await.ok().flatten();
        if let Some(record) = stored.filter(|record| self.accepts(record, reason)) {
            return Ok(record);
        }
        let record = self.call().await?;
        // If this fails, another gateway gets the same token from WeChat.
        drop(store.put(app_id, &record).await);
        Ok(record)
    }

    /// Gets a token from WeChat, and counts the outcome.
    async fn call(&self) -> Result<TokenRecord, WeChatError> {
        let outcome = self.stable_token().await;
        let word = outcome.as_ref().err().map_or("ok", WeChatError::renewal_outcome);
        self.metrics.renewed(word);
        outcome
    }

    /// Calls `getStableAccessToken` (`POST /cgi-bin/stable_token`).
    async fn stable_token(&self) -> Result<TokenRecord, WeChatError> {
        #[derive(Serialize)]
        struct Asked<'a> {
            grant_type: &'static str,
            appid: &'a str,
            secret: &'a str,
        }

        let app = &self.app;
        let (appid, secret) = (app.app_id.as_str(), app.secret.expose());
        let json = json_body(&Asked { grant_type: "client_credential", appid, secret });
        let path = "/cgi-bin/stable_token";
        let call = Call { method: Method::POST, path, query: &[], json };
        // The lifetime begins when WeChat responds, which is later: the token never seems to be
        // valid for longer than it is.
        let now = self.clock.now_millis();
        let response = self.wechat.transport.call(&call).await?;
        let Granted { access_token, expires_in } = granted(&response, app)?;
        let lifetime = expires_in.clamp(SHORTEST_INTERVAL.as_secs(), LONGEST_LIFETIME);
        Ok(TokenRecord {
            token: Secret::new(access_token.to_string()),
            expires_at_millis: now + millis(Duration::from_secs(lifetime)),
            renewed_at_millis: now,
        })
    }

    fn keep(&self, record: TokenRecord) -> AccessToken {
        self.metrics.set_expiry(self.clock.to_wall(record.expires_at_millis));
        self.state.schedule.lock().keep(record, self.clock.now_millis())
    }

    fn failed(&self, error: &WeChatError) {
        let pause = self.state.schedule.lock().fail(error, self.clock.now_millis());
        if let Some(suppressed) = self.state.failures.suppressed() {
            let (app_id, details) = (self.app.app_id.as_str(), error.details());
            let retry_in = humantime::format_duration(pause);
            tracing::error!(
                app_id,
                %error,
                %retry_in,
                suppressed,
                "cannot renew the access_token{details}"
            );
        }
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: Zeroizing<String>,
    /// In seconds.
    expires_in: u64,
}

/// The token in a response of `getStableAccessToken`.
fn granted(response: &Response, app: &App) -> Result<Granted, WeChatError> {
    response.accepted([app.secret.expose()])?;
    let wrong = || WeChatError::malformed("no access_token").at(&response.destination);
    let granted: Granted = response.json().ok_or_else(wrong)?;
    let token = granted.access_token.as_bytes();
    let is_token =
        (1..=LONGEST_TOKEN).contains(&token.len()) && token.iter().all(u8::is_ascii_graphic);
    if is_token && granted.expires_in > 0 { Ok(granted) } else { Err(wrong()) }
}
