//! A login, from the request's body to the answer.
//!
//! Takes the code in one of the accepted forms (`request`) and finds the app; logins with one code share
//! an exchange and its answer, which holds the token and nothing of the identity. It does not
//! read sockets: `proxy.rs` hands it the body within its limit.

mod exchange;
mod notices;
mod pace;
mod replay;
pub mod request;

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use self::exchange::Exchange;
use self::replay::{Grant, Key, Replays, Source};
use self::request::{LoginRequest, parse};
use crate::answer::Answer;
use crate::clock::Clock;
use crate::config::{Config, LoginSection};
use crate::identity::AppId;
use crate::metrics::Metrics;
use crate::rejection::Rejection;
use crate::session::Sessions;
use crate::wechat::{self, ClientError, Code};

/// Counts logins whose app is not known.
const UNKNOWN_APP: &str = "unknown";

/// Apps whose series are there from the start: each has some twenty.
const MOST_APPS_FROM_START: usize = 50;

/// How a login can end.
const OUTCOMES: [&str; 11] = [
    "ok",
    "bad_request",
    "invalid_code",
    "user_blocked",
    "login_refused",
    "rate_limited",
    "internal_error",
    "wechat_rejected",
    "wechat_busy",
    "store_unavailable",
    "wechat_timeout",
];

/// How one can end before its app is known.
const UNKNOWN_OUTCOMES: [&str; 4] =
    ["bad_request", "rate_limited", "body_too_large", "request_timeout"];

/// Serves logins by one configuration.
pub struct Login {
    section: LoginSection,
    exchange: Arc<Exchange>,
    replays: Replays,
    sessions: Sessions,
    metrics: Arc<Metrics>,
}

impl Login {
    /// Goes on where `previous` was with whatever is configured as it was there: a code that is
    /// under way stays one, an app that is slowed stays slow.
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
        let window = config.login.replay_window;
        let longest = config.wechat.queue_timeout + config.wechat.timeout;
        let known = previous.map(|previous| &previous.replays);
        let replays = match known.filter(|known| known.is_for(window, longest)) {
            Some(known) => known.clone(),
            None => Replays::new(window, longest, clock.clone()),
        };
        let previous = previous.map(|previous| &*previous.exchange);
        let exchange = Exchange::new(config, previous, sessions.clone(), clock, metrics.clone())?;
        for app in config.apps.iter().take(MOST_APPS_FROM_START) {
            metrics.app_from_start(app.app_id.as_str(), &OUTCOMES, &wechat::WATCHED_ERRCODES);
        }
        metrics.app_from_start(UNKNOWN_APP, &UNKNOWN_OUTCOMES, &[]);
        Ok(Self {
            replays,
            exchange: Arc::new(exchange),
            section: config.login.clone(),
            sessions,
            metrics,
        })
    }

    /// Frees what is over. Called every second.
    pub fn maintain(&self) {
        self.replays.maintain();
    }

    /// Bytes of body that a login may have.
    pub fn max_body(&self) -> usize {
        self.section.max_body
    }

    /// Whether `GET` with a query is taken.
    pub fn accepts_query(&self) -> bool {
        self.section.accept.query
    }

    /// Counts a login that was refused before it could be read.
    pub fn refused(&self, rejection: &Rejection) {
        self.metrics.login(UNKNOWN_APP, rejection.error());
    }

    /// Serves one login that `client` sent. Whatever comes of it is counted.
    ///
    /// # Errors
    /// The refusal to answer with; its cause is in the log.
    pub async fn serve(
        &self,
        request: LoginRequest<'_>,
        client: IpAddr,
        request_id: &str,
    ) -> Result<Answer, Rejection> {
        let mut app_id = UNKNOWN_APP;
        let outcome = self.run(request, client, request_id, &mut app_id).await;
        let word = outcome.as_ref().map_or_else(Rejection::error, |_| "ok");
        self.metrics.login(app_id, word);
        outcome
    }

    async fn run<'a>(
        &'a self,
        request: LoginRequest<'_>,
        client: IpAddr,
        request_id: &str,
        counted_app: &mut &'a str,
    ) -> Result<Answer, Rejection> {
        let fields = parse(request, self.section.accept)?;
        let asked = self.app(fields.app_id.as_deref());
        let (index, app_id) = asked.map_err(Rejection::BadRequest)?;
        let app_id = app_id.as_str();
        *counted_app = app_id;
        if Code::is_mock(fields.code.expose()) {
            return Err(Rejection::InvalidCode);
        }
        let code = Code::parse(fields.code.expose())
            .ok_or(Rejection::BadRequest("code is not one of wx.login"))?;

        let key = Key::of(app_id, fields.code.expose());
        let (exchange, request_id) = (self.exchange.clone(), request_id.to_owned());
        let trade = || async move { exchange.trade(index, code, client, &request_id).await };
        let (outcome, source) = self.replays.share(key, trade).await;
        if source != Source::Own {
            self.metrics.login_coalesced();
        }
        let grant = outcome?;
        if source == Source::Repeated && !self.is_live(&grant).await? {
            return Err(Rejection::InvalidCode);
        }
        Ok(granted(&grant))
    }

    /// Whether nobody has ended the session since.
    async fn is_live(&self, grant: &Grant) -> Result<bool, Rejection> {
        let known = self.sessions.knows(&grant.token.digest()).await;
        known.map_err(|_| Rejection::StoreUnavailable)
    }

    /// The index and the id of an app that is asked for, or of the default one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn app(&self, app_id: Option<&str>) -> Result<(usize, &AppId), &'static str> {
        let mut apps = self.exchange.apps.iter().map(|(app, _)| app).enumerate();
        let found = match app_id {
            Some(app_id) => apps.find(|(_, app)| app.app_id.as_str() == app_id),
            None => apps.find(|(_, app)| app.is_default),
        };
        found.map(|(index, app)| (index, &app.app_id)).ok_or(match app_id {
            Some(_) => "this app_id is not known here",
            None => "app_id is needed: there are several apps and no default",
        })
    }
}

fn granted(grant: &Grant) -> Answer {
    #[derive(Serialize)]
    struct Granted<'a> {
        token: &'a str,
        token_type: &'static str,
        expires_in: u64,
    }

    let (token, expires_in) = (grant.token.expose(), grant.expires_in.as_secs());
    Answer::json(200, &Granted { token, token_type: "Bearer", expires_in })
}
