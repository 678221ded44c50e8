//! Logins: code2Session.

use http::Method;
use serde_json::json;

use super::codes::{CodeEffect, Kind};
use super::errors::{Failure, error};
use super::users::{openid, unionid};
use super::{Dropped, InFlight, Request, Response, Sandbox, parameter, text};

/// The API's path, under which it is counted.
pub const CODE_TO_SESSION: &str = "/sns/jscode2session";

/// The codes of `wx.login`, each of a user.
pub const LOGIN_CODES: Kind<String> =
    Kind { length: 32, word: "user", of_user: |user| user, reused: 40163 };

impl Sandbox {
    /// auth.code2Session. Errors are `text/plain`, too.
    pub(super) async fn code_to_session(&self, request: &Request) -> Result<Response, Dropped> {
        let _in_flight = InFlight::begin(self);
        tokio::time::sleep(self.latency()).await;
        match self.exchange(request).await {
            Ok(response) => Ok(response),
            Err(Failure::Errcode(errcode)) => Ok(text(&error(errcode))),
            Err(Failure::Dropped) => Err(Dropped),
        }
    }

    async fn exchange(&self, request: &Request) -> Result<Response, Failure> {
        let query = match *request.method() {
            Method::GET => request.uri().query().unwrap_or_default(),
            // WeChat reads the parameters of GET requests only.
            _ => "",
        };
        let (app_id, code) = (parameter(query, "appid"), parameter(query, "js_code"));
        self.check_parameters(query, &app_id, &code)?;
        let user = match self.codes.effect(&code) {
            CodeEffect::Accept { subject, delay } => {
                if !self.codes.spend(&code) {
                    return Err(LOGIN_CODES.reused.into());
                }
                tokio::time::sleep(delay).await;
                subject
            }
            CodeEffect::Error { errcode } => return Err(errcode.into()),
            CodeEffect::Fault(fault) => return Ok(fault.respond().await?),
        };
        let openid = openid(&app_id, &user);
        let counted = self.quotas.count_for_user(CODE_TO_SESSION, &openid);
        if let Err(errcode) = counted.and_then(|()| self.quotas.count(CODE_TO_SESSION)) {
            self.codes.unspend(&code);
            return Err(errcode.into());
        }
        let session_key = self.users.logged_in(&app_id, openid.clone());
        let mut identity = json!({ "session_key": session_key.expose(), "openid": openid });
        if let (Some(unionid), Some(fields)) = (unionid(&user), identity.as_object_mut()) {
            fields.insert("unionid".to_owned(), unionid.into());
        }
        Ok(text(&identity))
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
