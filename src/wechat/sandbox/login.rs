//! The endpoints of logins: code2Session, checkSessionKey, and the sandbox's own for new codes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use sha2::Sha256;

use super::codes::CodeEffect;
use super::errors::error;
use super::users::{is_user_name, openid, unionid};
use super::{InFlight, Sandbox, parameter, text};
use crate::listener::internal::{Dropped, Request, Response, response};

/// Bytes of a response that is too long to be read to its end.
const HUGE: usize = 100 << 20;

/// Maximum bytes of a request for a code.
const MAX_BODY: usize = 4 << 10;

impl Sandbox {
    /// auth.code2Session.
    pub(super) async fn code_to_session(&self, request: &Request) -> Result<Response, Dropped> {
        let _in_flight = InFlight::begin(self);
        tokio::time::sleep(self.latency()).await;
        let query = match *request.method() {
            Method::GET => request.uri().query().unwrap_or_default(),
            // WeChat reads the parameters of GET requests only.
            _ => "",
        };
        let (app_id, code) = (parameter(query, "appid"), parameter(query, "js_code"));
        if let Err(errcode) = self.check_parameters(query, &app_id, &code) {
            return Ok(error(errcode));
        }
        let user = match self.codes.effect(&code) {
            CodeEffect::Login { user, delay } => {
                if !self.codes.spend(&code) {
                    return Ok(error(40163));
                }
                tokio::time::sleep(delay).await;
                user
            }
            CodeEffect::Error { errcode } => return Ok(error(errcode)),
            CodeEffect::Status(status) => {
                let mut response = response(status, "text/html", "<html>oops</html>");
                if let Ok(location) = "https://elsewhere.invalid/".parse() {
                    response.headers_mut().insert(http::header::LOCATION, location);
                }
                return Ok(response);
            }
            CodeEffect::Garbage => {
                return Ok(response(200, "text/html", "<html>{\"openid\":\"o\""));
            }
            CodeEffect::Half => return Ok(response(200, "text/plain", "{\"openid\":\"o12")),
            CodeEffect::Huge => return Ok(response(200, "text/plain", vec![0; HUGE])),
            CodeEffect::Hang => return std::future::pending().await,
            CodeEffect::Drop => return Err(Dropped),
        };
        let openid = openid(&app_id, &user);
        if let Err(errcode) = self.users.count_login(&openid, &self.behaviour) {
            self.codes.unspend(&code);
            return Ok(error(errcode));
        }
        let session_key = STANDARD.encode(self.users.new_session_key(openid.clone()));
        let mut identity = json!({ "session_key": session_key, "openid": openid });
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
        if self.behaviour.rejects_address {
            return Err(40164);
        }
        match self.apps.iter().find(|(configured, _)| configured == app_id) {
            None => Err(40013),
            Some((_, expected)) if *expected != secret => Err(40125),
            Some(_) => Ok(()),
        }
    }

    /// auth.checkSessionKey: whether a signature was made with the user's `session_key`. Any
    /// `access_token` is accepted.
    pub(super) fn check_session(&self, request: &Request) -> Response {
        let query = request.uri().query().unwrap_or_default();
        let key = self.users.session_key(&parameter(query, "openid"));
        let signature = key.and_then(|key| Hmac::<Sha256>::new_from_slice(&key).ok());
        let signature = signature.map(|hmac| hex(&hmac.finalize().into_bytes()));
        let is_valid = parameter(query, "sig_method") == "hmac_sha256"
            && signature.is_some_and(|signature| parameter(query, "signature") == signature);
        if is_valid { text(&json!({ "errcode": 0, "errmsg": "ok" })) } else { error(87009) }
    }

    /// Issues a code for a user, as `wx.login` does on a phone.
    pub(super) async fn issue_code(&self, request: Request) -> Response {
        #[derive(Deserialize)]
        struct CodeRequest {
            user: String,
        }

        let body = http_body_util::Limited::new(request.into_body(), MAX_BODY).collect().await;
        let parsed = body.ok().and_then(|body| serde_json::from_slice(&body.to_bytes()).ok());
        match parsed {
            Some(CodeRequest { user }) if is_user_name(&user) => {
                let code = self.codes.issue(user);
                response(200, "application/json", json!({ "code": code }).to_string())
            }
            _ => {
                let help = "expected {\"user\":\"NAME\"}, where NAME has 1 to 64 letters, digits, \
                            \".\" and \"_\"\n";
                response(400, "text/plain", help)
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
