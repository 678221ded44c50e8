//! Serves a login: from the request's body to the response.
//!
//! Takes the code in one of the accepted forms (`request`) and finds the app. Logins with one code
//! share an exchange and its response, which contains the token but no identity. Codes that WeChat
//! sends by a redirect are exchanged in the same way. The login hook (`hook`) is called before each
//! session is made, also by scans and tickets. This module does not read from sockets: `proxy`
//! passes it the body, which is within the limit.

mod app_rate_limit;
mod apps;
mod coalescing;
mod exchange;
mod failure_log;
mod hook;
mod rejected_codes;
pub mod request;

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

#[cfg(any(fuzzing, test))]
pub use self::app_rate_limit::AppRateLimit;
pub use self::apps::Apps;
use self::apps::ServedApp;
pub use self::coalescing::Grant;
use self::coalescing::{Coalesced, Coalescing, Failure, Key};
use self::exchange::Exchange;
pub use self::hook::{Hook, HookError};
use self::rejected_codes::{AllRejected, ClaimedAppId};
use self::request::{LoginRequest, parse};
use crate::clock::Clock;
use crate::config::{AppKind, Config, LoginSection};
use crate::identity::secret::Secret;
use crate::identity::{AppId, Identity, OpenId, UserId};
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::session::{Session, Sessions};
use crate::telemetry::metrics::Metrics;
use crate::wechat::{self, Code, ErrCode, WeChat};

/// The label of logins whose app is not known.
const UNKNOWN_APP: &str = "unknown";

/// Apps whose metrics exist from the start: each app has about twenty series.
const MOST_APPS_FROM_START: usize = 50;

/// The outcomes of a login.
const OUTCOMES: [&str; 13] = [
    "ok",
    "bad_request",
    "invalid_code",
    "user_blocked",
    "snapshot_user",
    "login_refused",
    "rate_limited",
    "internal_error",
    "wechat_rejected",
    "wechat_busy",
    "store_unavailable",
    "login_unavailable",
    "wechat_timeout",
];

/// The outcomes of a login before its app is known.
const UNKNOWN_OUTCOMES: [&str; 4] =
    ["bad_request", "rate_limited", "body_too_large", "request_timeout"];

/// Serves logins as one configuration requires.
pub struct Login {
    section: LoginSection,
    apps: Apps,
    exchange: Arc<Exchange>,
    coalescing: Coalescing,
    sessions: Sessions,
    metrics: Arc<Metrics>,
}

/// The client that sent a login.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    pub client: IpAddr,
    pub request_id: &'a str,
    /// `Referer`, as sent.
    pub referer: Option<&'a str>,
    /// When the gateway received the request, on the clock, in milliseconds.
    pub received_at_millis: u64,
}

/// The login that an exchange is made for: the first one with its code.
struct LoginOrigin {
    client: IpAddr,
    received_at_millis: u64,
    request_id: String,
}

/// What the access log says about a login.
#[derive(Default)]
pub struct LoginFacts {
    pub app_id: Option<AppId>,
    /// If WeChat accepted the code.
    pub openid: Option<OpenId>,
    /// The user id, if the login hook gave one.
    pub user_id: Option<UserId>,
    /// The errcode that WeChat reported, if any.
    pub errcode: Option<ErrCode>,
}

impl Login {
    /// Whatever is configured as in `previous` keeps its state: exchanges in flight are still
    /// shared, and the rate of an app that was halved stays halved.
    pub fn new(
        config: &Config,
        previous: Option<&Self>,
        wechat: Arc<WeChat>,
        hook: Option<Arc<Hook>>,
        sessions: Sessions,
        clock: &Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let window = config.login.replay_window;
        let longest = config.longest_login();
        let coalescing = previous.map(|previous| &previous.coalescing);
        let coalescing =
            Coalescing::carried_over(coalescing, window, longest, sessions.peer(), clock);
        let apps = Apps::new(&config.apps, previous.map(|previous| &previous.apps), clock);
        let exchange = Exchange::new(wechat, hook, sessions.clone(), clock);
        for app in config.apps.iter().take(MOST_APPS_FROM_START) {
            metrics.app_from_start(app.app_id.as_str(), &OUTCOMES, &wechat::WATCHED_ERRCODES);
        }
        metrics.app_from_start(UNKNOWN_APP, &UNKNOWN_OUTCOMES, &[]);
        Self {
            apps,
            coalescing,
            exchange: Arc::new(exchange),
            section: config.login.clone(),
            sessions,
            metrics,
        }
    }

    pub fn apps(&self) -> &Apps {
        &self.apps
    }

    /// The codes that were exchanged, or are being exchanged.
    pub fn codes(&self) -> &Coalescing {
        &self.coalescing
    }

    /// The login hook, if there is one.
    pub fn hook(&self) -> Option<&Arc<Hook>> {
        self.exchange.hook()
    }

    /// Calls the login hook for the user of a session, who is about to get another one without a
    /// code. Returns the user with the id in the response; without a hook, as the session has it.
    /// `None`: the session has ended during the call.
    ///
    /// # Errors
    /// When the user is blocked or refused, or the hook or the store has failed.
    pub async fn admit(
        &self,
        session: &Session,
        request_id: &str,
    ) -> Result<Option<Identity>, Rejection> {
        let mut identity = session.identity.clone();
        if self.hook().is_none() {
            return Ok(Some(identity));
        }
        let served = self.apps.named(Some(identity.app_id.as_str()));
        let kind = served.map_err(|_| Rejection::InternalError)?.app.kind;
        self.exchange.admit(&mut identity, kind, request_id).await?;
        // A hook can be slow: who ends the session meanwhile must not leave another one behind.
        let is_live = self.sessions.contains(session.digest()).await;
        Ok(is_live.map_err(|_| Rejection::StoreUnavailable)?.then_some(identity))
    }

    /// Frees expired outcomes. Called every second.
    pub fn maintain(&self) {
        self.coalescing.maintain();
    }

    /// The largest body of a login, in bytes.
    pub fn max_body(&self) -> usize {
        self.section.max_body
    }

    /// Whether `GET` with a query is accepted.
    pub fn accepts_query(&self) -> bool {
        self.section.accept.query
    }

    /// Counts a login that was rejected before it could be read.
    pub fn count_rejected(&self, rejection: &Rejection) {
        self.metrics.login(UNKNOWN_APP, rejection.error());
    }

    /// Serves one login, and counts its outcome. The cause of a rejection is logged.
    pub async fn serve(
        &self,
        request: LoginRequest<'_>,
        sender: Sender<'_>,
    ) -> (LoginFacts, Result<OwnResponse, Rejection>) {
        let (code, served) = match self.read(request) {
            Ok(read) => read,
            Err(rejection) => {
                self.count_rejected(&rejection);
                return (LoginFacts::default(), Err(rejection));
            }
        };
        let (facts, outcome) = self.counted(&code, "", served, sender).await;
        (facts, outcome.map(|grant| granted(&grant)))
    }

    /// Serves one login with a code that WeChat has sent by a redirect, with the same limits,
    /// metrics and logs as [`Self::serve`]. Such a code is in a URL, which others may see, so a
    /// repeat within `login.replay_window` gets the same outcome only with the same `state`.
    ///
    /// # Errors
    /// The rejection; its cause is logged. [`Rejection::InternalError`] if no app that logs in by
    /// redirects has this id.
    pub async fn by_redirect(
        &self,
        app_id: &AppId,
        state: &str,
        code: &str,
        sender: Sender<'_>,
    ) -> (LoginFacts, Result<Arc<Grant>, Rejection>) {
        let Some(served) = self.apps.find_redirected(app_id) else {
            self.count_rejected(&Rejection::InternalError);
            return (LoginFacts::default(), Err(Rejection::InternalError));
        };
        self.counted(&Secret::new(code.to_owned()), state, served, sender).await
    }

    /// Runs one login, and counts its outcome. Only logins with the same `state` share an exchange.
    async fn counted(
        &self,
        code: &Secret,
        state: &str,
        served: &Arc<ServedApp>,
        sender: Sender<'_>,
    ) -> (LoginFacts, Result<Arc<Grant>, Rejection>) {
        let outcome = self.run(code, state, served, sender).await;
        let word = outcome.as_ref().map_or_else(|failure| failure.rejection.error(), |_| "ok");
        let app_id = served.app_id();
        self.metrics.login(app_id.as_str(), word);
        let app_id = Some(app_id.clone());
        match outcome {
            Ok(grant) => {
                let (openid, user_id) = (Some(grant.openid.clone()), grant.user_id.clone());
                (LoginFacts { app_id, openid, user_id, errcode: None }, Ok(grant))
            }
            Err(Failure { rejection, errcode, openid }) => {
                (LoginFacts { app_id, openid, user_id: None, errcode }, Err(rejection))
            }
        }
    }

    /// The code of a login, and its app.
    fn read(&self, request: LoginRequest<'_>) -> Result<(Secret, &Arc<ServedApp>), Rejection> {
        let fields = parse(request, self.section.accept)?;
        let served = self.apps.find(fields.app_id.as_deref()).map_err(Rejection::BadRequest)?;
        Ok((fields.code, served))
    }

    async fn run(
        &self,
        code: &Secret,
        state: &str,
        served: &Arc<ServedApp>,
        sender: Sender<'_>,
    ) -> Result<Arc<Grant>, Failure> {
        let app_id = served.app_id().as_str();
        let text = code.expose();
        if served.app.kind == AppKind::MiniProgram && Code::is_mock(text) {
            report_mock(served, sender);
            return Err(Rejection::InvalidCode.into());
        }
        let code =
            Code::parse(text).ok_or(Rejection::BadRequest("\"code\" is not a code of WeChat"))?;

        let key = Key::of(app_id, state, text);
        let (exchange, app) = (self.exchange.clone(), served.clone());
        let origin = LoginOrigin {
            client: sender.client,
            received_at_millis: sender.received_at_millis,
            request_id: sender.request_id.to_owned(),
        };
        let log_in = || async move { exchange.log_in(&app, code, origin).await };
        let (outcome, coalesced) = self.coalescing.share(key, log_in).await;
        if coalesced != Coalesced::No {
            self.metrics.login_coalesced();
        }
        self.observe(served, &outcome, sender);
        let grant = outcome?;
        if coalesced == Coalesced::Cached && !self.is_live(&grant).await? {
            return Err(Rejection::InvalidCode.into());
        }
        Ok(grant)
    }

    /// Detects and logs that all codes of an app are rejected.
    fn observe(&self, served: &ServedApp, outcome: &coalescing::Outcome, sender: Sender<'_>) {
        let errcode = match outcome {
            // WeChat has accepted the code, though not for a user.
            Ok(_) | Err(Failure { rejection: Rejection::SnapshotUser, .. }) => {
                return served.rejected_codes.succeeded();
            }
            Err(Failure { rejection: Rejection::InvalidCode, errcode: Some(errcode), .. }) => {
                errcode
            }
            Err(_) => return,
        };
        let app_id = served.app_id().as_str();
        let named = sender.referer.and_then(ClaimedAppId::in_referer);
        let Some(report) = served.rejected_codes.rejected(app_id, named) else { return };
        let AllRejected { count, named } = report;
        let referer_app_id = named.as_ref().map(ClaimedAppId::as_str);
        let what = match referer_app_id {
            None => "WeChat rejects every code of this app; logged once a minute",
            Some(named) if self.apps.contains(named) => {
                "WeChat rejects every code of this app, and its clients belong to another [[app]]: \
                 they must send app_id with each login; logged once a minute"
            }
            Some(_) => {
                "WeChat rejects every code of this app, and its clients belong to another app: set \
                 app_id to that of the Mini Program; logged once a minute"
            }
        };
        let (errcode, meaning) = (errcode.number(), errcode.meaning());
        let request_id = sender.request_id;
        tracing::warn!(
            request_id,
            app_id,
            refused = count,
            errcode,
            meaning,
            referer_app_id,
            "{what}"
        );
    }

    /// Whether the session is still live.
    async fn is_live(&self, grant: &Grant) -> Result<bool, Rejection> {
        let is_live = self.sessions.contains(&grant.token.digest()).await;
        is_live.map_err(|_| Rejection::StoreUnavailable)
    }
}

/// Logs a login with the mock code of the developer tools.
fn report_mock(served: &ServedApp, sender: Sender<'_>) {
    let Some(suppressed) = served.rejected_codes.mocked() else { return };
    let app_id = served.app_id().as_str();
    let named = sender.referer.and_then(ClaimedAppId::in_referer);
    let named = named.as_ref().map(ClaimedAppId::as_str);
    let referer_app_id = named.filter(|named| *named != app_id);
    tracing::warn!(
        request_id = sender.request_id,
        app_id,
        referer_app_id,
        suppressed,
        "login with the mock code of the developer tools: set the Mini Program's app id in the \
         project there; logged once a minute"
    );
}

fn granted(grant: &Grant) -> OwnResponse {
    #[derive(Serialize)]
    struct Granted<'a> {
        token: &'a str,
        token_type: &'static str,
        expires_in: u64,
    }

    let (token, expires_in) = (grant.token.expose(), grant.expires_in.as_secs());
    OwnResponse::json(200, &Granted { token, token_type: "Bearer", expires_in })
}

#[cfg(test)]
mod tests;
