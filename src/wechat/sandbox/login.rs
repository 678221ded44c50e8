//! Logins: the exchanges of codes. Mini Programs have code2Session, all others
//! `/sns/oauth2/access_token`.

use http::Method;
use serde_json::{Value, json};

use super::access_token::ACCESS_TOKEN;
use super::codes::{CodeEffect, Kind};
use super::errors::{Failure, error};
use super::users::{openid, unionid};
use super::{Dropped, InFlight, Request, Response, Sandbox, parameter, text, text_of_letters};

/// Characters of a user's tokens after the prefix.
const TOKEN_LENGTH: usize = 100;

/// The codes of `wx.login`, of WeChat's SDK and of WeChat's login pages.
pub const LOGIN_CODES: Kind<LoginCode> = Kind {
    length: 32,
    words: &[("user", LoginCode::of_any_app), ("snapshot", LoginCode::of_snapshot)],
    reused: 40163,
};

/// The meaning of a code.
#[derive(Clone)]
pub struct LoginCode {
    pub user: String,
    /// Whether the user is one that WeChat made up for the snapshot of a page.
    pub is_snapshot: bool,
    /// `None`: it works for every app and in both APIs, for development.
    pub page: Option<PageLogin>,
}

/// What a login page has issued a code for.
#[derive(Clone)]
pub struct PageLogin {
    pub app_id: String,
    pub scope: &'static str,
}

impl LoginCode {
    pub fn of_any_app(user: String) -> Self {
        Self { user, is_snapshot: false, page: None }
    }

    fn of_snapshot(user: String) -> Self {
        Self { user, is_snapshot: true, page: None }
    }
}

/// An API that exchanges codes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ExchangeApi {
    CodeToSession,
    OauthToken,
}

impl ExchangeApi {
    pub fn at(path: &str) -> Option<Self> {
        [Self::CodeToSession, Self::OauthToken].into_iter().find(|api| api.path() == path)
    }

    /// The path, under which it is counted.
    fn path(self) -> &'static str {
        match self {
            Self::CodeToSession => "/sns/jscode2session",
            Self::OauthToken => "/sns/oauth2/access_token",
        }
    }

    /// The name of the parameter with the code.
    fn code(self) -> &'static str {
        match self {
            Self::CodeToSession => "js_code",
            Self::OauthToken => "code",
        }
    }

    /// Whether it takes a code of `app_id`.
    fn takes(self, code: &LoginCode, app_id: &str) -> bool {
        match (self, &code.page) {
            (Self::CodeToSession, None) => !code.is_snapshot,
            (Self::CodeToSession, Some(_)) => false,
            (Self::OauthToken, page) => page.as_ref().is_none_or(|page| page.app_id == app_id),
        }
    }
}

impl Sandbox {
    /// Exchanges a code. Errors are also `text/plain`.
    pub(super) async fn exchange(
        &self,
        api: ExchangeApi,
        request: &Request,
    ) -> Result<Response, Dropped> {
        let _in_flight = InFlight::begin(self);
        // The statistics have the exchanges of Mini Programs on their own only.
        if api == ExchangeApi::OauthToken {
            self.quotas.received(api.path());
        }
        tokio::time::sleep(self.latency()).await;
        match self.exchanged(api, request).await {
            Ok(response) => Ok(response),
            Err(Failure::Errcode(errcode)) => Ok(text(&error(errcode))),
            Err(Failure::Dropped) => Err(Dropped),
        }
    }

    async fn exchanged(&self, api: ExchangeApi, request: &Request) -> Result<Response, Failure> {
        let query = match *request.method() {
            Method::GET => request.uri().query().unwrap_or_default(),
            // WeChat reads the parameters of GET requests only.
            _ => "",
        };
        let (app_id, code) = (parameter(query, "appid"), parameter(query, api.code()));
        self.check_parameters(query, &app_id, &code)?;
        let login = match self.codes.effect(&code) {
            CodeEffect::Accept { subject, delay } => {
                // The code of another app is not spent.
                if !api.takes(&subject, &app_id) {
                    return Err(40029.into());
                }
                if !self.codes.spend(&code) {
                    return Err(LOGIN_CODES.reused.into());
                }
                tokio::time::sleep(delay).await;
                subject
            }
            CodeEffect::Error { errcode } => return Err(errcode.into()),
            CodeEffect::Fault(fault) => return Ok(fault.respond().await?),
        };
        let openid = openid(&app_id, &login.user);
        let counted = self.quotas.count_for_user(api.path(), &openid);
        if let Err(errcode) = counted.and_then(|()| self.quotas.count(api.path())) {
            self.codes.unspend(&code);
            return Err(errcode.into());
        }
        Ok(text(&match api {
            ExchangeApi::CodeToSession => self.session_of(&app_id, &login, &openid),
            ExchangeApi::OauthToken => tokens_of(&login, &openid),
        }))
    }

    /// What code2Session returns.
    fn session_of(&self, app_id: &str, login: &LoginCode, openid: &str) -> Value {
        let session_key = self.users.logged_in(app_id, openid.to_owned());
        let mut identity = json!({ "session_key": session_key.expose(), "openid": openid });
        if let Some(unionid) = unionid(&login.user) {
            insert(&mut identity, "unionid", unionid.into());
        }
        identity
    }

    /// The checks that WeChat makes before it checks the code.
    ///
    /// # Errors
    /// The errcode.
    fn check_parameters(&self, query: &str, app_id: &str, code: &str) -> Result<(), i64> {
        let secret = parameter(query, "secret");
        if app_id.is_empty() {
            return Err(41002);
        }
        if secret.is_empty() {
            return Err(41004);
        }
        if code.is_empty() {
            return Err(41008);
        }
        if parameter(query, "grant_type") != "authorization_code" {
            return Err(40002);
        }
        self.check_secret(app_id, &secret)
    }

    /// The checks of the caller's address and the app's secret.
    ///
    /// # Errors
    /// The errcode.
    pub(super) fn check_secret(&self, app_id: &str, secret: &str) -> Result<(), i64> {
        if self.behaviour.rejects_address {
            return Err(40164);
        }
        match self.apps.iter().find(|(configured, _)| configured == app_id) {
            None => Err(40013),
            Some((_, expected)) if expected != secret => Err(40125),
            Some(_) => Ok(()),
        }
    }
}

/// What `/sns/oauth2/access_token` returns. No API of the sandbox accepts these tokens of a user.
fn tokens_of(login: &LoginCode, openid: &str) -> Value {
    let token = || format!("{ACCESS_TOKEN}{}", text_of_letters(TOKEN_LENGTH));
    // The scope that apps request by the SDK.
    let scope = login.page.as_ref().map_or("snsapi_userinfo", |page| page.scope);
    let mut tokens = json!({
        "access_token": token(),
        "expires_in": 7200,
        "refresh_token": token(),
        "openid": openid,
        "scope": scope,
    });
    if let Some(unionid) = unionid(&login.user).filter(|_| scope != "snsapi_base") {
        insert(&mut tokens, "unionid", unionid.into());
    }
    if login.is_snapshot {
        insert(&mut tokens, "is_snapshotuser", 1.into());
    }
    tokens
}

fn insert(object: &mut Value, name: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(name.to_owned(), value);
    }
}
