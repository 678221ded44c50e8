//! Access tokens: `getStableAccessToken`, `getAccessToken`, and who may call with them.
//!
//! Stable tokens and those of `getAccessToken` do not invalidate each other.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;

use super::call::read_json;
use super::errors::Failure;
use super::{Request, Response, Sandbox, json_response, parameter, response, text_of_letters};
use crate::clock::Clock;

/// The prefix of every access token of the sandbox, so that tests recognise it where it must not
/// be.
pub const ACCESS_TOKEN: &str = "90_sandbox";

/// Characters of a token after the prefix. WeChat's have about 150.
const LENGTH: usize = 126;

const LIFETIME: Duration = Duration::from_secs(7200);

/// From this time before a token expires, a call gets the next one. A token of `getAccessToken`
/// works for this time after the next one.
const OVERLAP: Duration = Duration::from_secs(300);

/// The shortest time between two forced refreshes. A call before that refreshes nothing.
const FORCE_INTERVAL: Duration = Duration::from_secs(30);

/// Forced refreshes of an app in a day.
const FORCED_PER_DAY: u32 = 20;

/// Tokens of an app that are remembered, of each kind. Older ones are invalid.
const REMEMBERED: usize = 64;

/// The access tokens of all apps.
pub struct AccessTokens {
    apps: Mutex<HashMap<String, AppTokens>>,
    clock: Clock,
}

/// The tokens of one app, the newest ones last.
#[derive(Default)]
struct AppTokens {
    stable: VecDeque<Token>,
    legacy: VecDeque<Token>,
    forced_at: Option<Duration>,
    /// Forced refreshes on a day.
    forced: (u64, u32),
}

#[derive(Clone)]
struct Token {
    text: String,
    expires_at: Duration,
    /// From then on it is not the latest token any more.
    invalid_from: Option<Duration>,
}

impl Token {
    fn new(now: Duration) -> Self {
        let text = format!("{ACCESS_TOKEN}{}", text_of_letters(LENGTH));
        Self { text, expires_at: now + LIFETIME, invalid_from: None }
    }

    /// Makes it invalid, at the latest from that time on.
    fn invalidate(&mut self, from: Duration) {
        self.invalid_from = Some(self.invalid_from.map_or(from, |earlier| earlier.min(from)));
    }

    /// # Errors
    /// The errcode of a token that is not valid.
    fn check(&self, now: Duration) -> Result<(), i64> {
        if now >= self.expires_at {
            return Err(42001);
        }
        if self.invalid_from.is_some_and(|from| now >= from) { Err(40001) } else { Ok(()) }
    }

    /// WeChat's response.
    fn response(&self, now: Duration) -> Response {
        let expires_in = self.expires_at.saturating_sub(now).as_secs();
        json_response(&json!({ "access_token": self.text, "expires_in": expires_in }))
    }
}

impl AccessTokens {
    pub fn new(clock: Clock) -> Self {
        Self { apps: Mutex::default(), clock }
    }

    /// The app of a token.
    ///
    /// # Errors
    /// The errcode, if the token is not valid.
    pub fn app_of(&self, token: &str) -> Result<String, i64> {
        if token.is_empty() {
            return Err(41001);
        }
        if !token.starts_with(ACCESS_TOKEN) {
            return Err(40014);
        }
        let now = self.clock.now();
        for (app_id, tokens) in &*self.apps.lock() {
            let mut known = tokens.stable.iter().chain(&tokens.legacy);
            if let Some(known) = known.find(|known| known.text == token) {
                return known.check(now).map(|()| app_id.clone());
            }
        }
        Err(40001)
    }

    /// The stable token of an app. With `force`, a new one, and all others become invalid.
    ///
    /// # Errors
    /// The errcode.
    fn stable(&self, app_id: &str, force: bool) -> Result<Token, i64> {
        let now = self.clock.now();
        let mut apps = self.apps.lock();
        let app = apps.entry(app_id.to_owned()).or_default();
        if force && app.forced_at.is_none_or(|at| now >= at + FORCE_INTERVAL) {
            let day = now.as_secs() / (24 * 3600);
            let forced = if app.forced.0 == day { app.forced.1 } else { 0 };
            if forced >= FORCED_PER_DAY {
                return Err(45009);
            }
            app.forced = (day, forced + 1);
            app.forced_at = Some(now);
            app.stable.iter_mut().for_each(|token| token.invalidate(now));
        }
        let current = app.stable.back().filter(|token| token.check(now).is_ok());
        if let Some(current) = current.filter(|token| now + OVERLAP < token.expires_at) {
            return Ok(current.clone());
        }
        Ok(push(&mut app.stable, Token::new(now)))
    }

    /// A new token of `getAccessToken`. The ones before become invalid soon.
    fn legacy(&self, app_id: &str) -> Token {
        let now = self.clock.now();
        let mut apps = self.apps.lock();
        let tokens = &mut apps.entry(app_id.to_owned()).or_default().legacy;
        for token in tokens.iter_mut() {
            token.invalidate(now + OVERLAP);
        }
        push(tokens, Token::new(now))
    }

    /// Makes all tokens of an app invalid.
    fn revoke(&self, app_id: &str) {
        let now = self.clock.now();
        if let Some(app) = self.apps.lock().get_mut(app_id) {
            let tokens = app.stable.iter_mut().chain(&mut app.legacy);
            tokens.for_each(|token| token.invalidate(now));
        }
    }
}

fn push(tokens: &mut VecDeque<Token>, token: Token) -> Token {
    if tokens.len() >= REMEMBERED {
        tokens.pop_front();
    }
    tokens.push_back(token.clone());
    token
}

impl Sandbox {
    /// getStableAccessToken.
    pub(super) async fn stable_token(
        &self,
        path: &'static str,
        request: Request,
    ) -> Result<Response, Failure> {
        #[derive(Deserialize)]
        struct Wanted {
            #[serde(default)]
            grant_type: String,
            #[serde(default)]
            appid: String,
            #[serde(default)]
            secret: String,
            #[serde(default)]
            force_refresh: bool,
        }

        let wanted: Wanted = read_json(request).await?;
        self.check_credential(path, &wanted.appid, &wanted.secret, &wanted.grant_type)?;
        let token = self.access_tokens.stable(&wanted.appid, wanted.force_refresh)?;
        Ok(token.response(self.clock.now()))
    }

    /// getAccessToken.
    pub(super) fn token(&self, path: &'static str, request: &Request) -> Result<Response, Failure> {
        let query = request.uri().query().unwrap_or_default();
        let app_id = parameter(query, "appid");
        let secret = parameter(query, "secret");
        self.check_credential(path, &app_id, &secret, &parameter(query, "grant_type"))?;
        Ok(self.access_tokens.legacy(&app_id).response(self.clock.now()))
    }

    /// # Errors
    /// The errcode.
    fn check_credential(
        &self,
        path: &'static str,
        app_id: &str,
        secret: &str,
        grant_type: &str,
    ) -> Result<(), i64> {
        if app_id.is_empty() {
            return Err(41002);
        }
        if secret.is_empty() {
            return Err(41004);
        }
        if grant_type != "client_credential" {
            return Err(40002);
        }
        self.check_secret(app_id, secret)?;
        self.quotas.count(path)
    }

    /// Makes an app's tokens invalid, as when somebody else refreshes them.
    pub(super) async fn revoke_token(&self, request: Request) -> Response {
        #[derive(Deserialize)]
        struct Revoked {
            app_id: Option<String>,
        }

        let app_id = match read_json::<Revoked>(request).await {
            Ok(Revoked { app_id }) => self.app_id_or_default(app_id),
            Err(_) => None,
        };
        match app_id {
            Some(app_id) => {
                self.access_tokens.revoke(&app_id);
                json_response(&json!({}))
            }
            None => response(400, "text/plain", "expected {\"app_id\":\"APP_ID\"}\n"),
        }
    }
}
