//! Calls of WeChat's API for one user: check and reset a `session_key`, get a phone number.
//!
//! Each call has an `access_token` in its query. If WeChat rejects the token, it has not looked at
//! the rest, so the call is repeated once with another one. Nothing else is ever repeated.
//!
//! A call that changes something at WeChat, which is every one but the check, must not be dropped
//! before it ends: its outcome would be lost. So callers run it in a task of its own.

use http::Method;
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use super::transport::{Call, Response, json_body};
use super::{WeChat, WeChatError};
use crate::identity::secret::Secret;
use crate::identity::session_key::SessionKey;
use crate::identity::{AppId, OpenId};
use crate::wechat::access_token::AccessTokens;

/// WeChat's errcodes for an `access_token` that is not valid (any more).
const DEAD_TOKEN: [i64; 3] = [40001, 40014, 42001];

/// Why a call failed, by whether WeChat may have done its part.
#[derive(Debug, thiserror::Error)]
pub enum UserCallError {
    /// There is no access token that WeChat accepts: it has not looked at the rest.
    #[error(transparent)]
    NoToken(WeChatError),
    #[error(transparent)]
    Call(WeChatError),
}

impl UserCallError {
    pub fn error(&self) -> &WeChatError {
        match self {
            Self::NoToken(error) | Self::Call(error) => error,
        }
    }

    /// Whether WeChat may have looked at the call.
    pub fn may_have_effect(&self) -> bool {
        match self {
            Self::NoToken(_) => false,
            Self::Call(error) => {
                let was_sent = !matches!(
                    error,
                    WeChatError::Unreachable(_)
                        | WeChatError::Certificate(_)
                        | WeChatError::QueueFull
                        | WeChatError::BreakerOpen(_)
                );
                was_sent && !is_of_dead_token(error)
            }
        }
    }
}

/// The result of a reset.
pub enum Reset {
    New(SessionKey),
    /// The key that signed the call is not the user's current one.
    Stale,
}

/// The result of a request for a phone number.
pub enum Phone {
    Number(PhoneNumber),
    /// WeChat does not accept the code for this user.
    InvalidCode,
}

/// A phone number, as WeChat returns it.
#[derive(Deserialize)]
pub struct PhoneNumber {
    #[serde(rename = "phoneNumber")]
    pub phone_number: Zeroizing<String>,
    #[serde(rename = "purePhoneNumber")]
    pub pure_phone_number: Zeroizing<String>,
    #[serde(rename = "countryCode", deserialize_with = "text_or_number")]
    pub country_code: String,
}

impl WeChat {
    /// Whether a `session_key` is the user's current one (`auth.checkSessionKey`).
    ///
    /// # Errors
    /// When WeChat does not say.
    pub async fn check_session_key(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        openid: &OpenId,
        key: &SessionKey,
    ) -> Result<bool, UserCallError> {
        match self.signed(tokens, app_id, "/wxa/checksession", openid, key).await {
            Ok(_) => Ok(true),
            Err(error) if has_errcode(error.error(), &[87009]) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Replaces the user's `session_key` by a new one (`auth.resetUserSessionKey`).
    ///
    /// # Errors
    /// When WeChat does not say. The key may be replaced nevertheless.
    pub async fn reset_session_key(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        openid: &OpenId,
        key: &SessionKey,
    ) -> Result<Reset, UserCallError> {
        #[derive(Deserialize)]
        struct Replaced {
            session_key: Zeroizing<String>,
        }

        match self.signed(tokens, app_id, "/wxa/resetusersessionkey", openid, key).await {
            Ok(response) => {
                let wrong = WeChatError::malformed("no session_key").at(&response.destination);
                let replaced = response.json::<Replaced>();
                let key = replaced.and_then(|replaced| SessionKey::parse(&replaced.session_key));
                key.map(Reset::New).ok_or(UserCallError::Call(wrong))
            }
            Err(error) if has_errcode(error.error(), &[87007, 87009]) => Ok(Reset::Stale),
            Err(error) => Err(error),
        }
    }

    /// The phone number for a code of the user (`phonenumber.getPhoneNumber`). The openid is sent
    /// along, so that WeChat rejects the code of another user.
    ///
    /// # Errors
    /// When WeChat does not say. The code may be used nevertheless.
    pub async fn phone_number(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        openid: &OpenId,
        code: &Secret,
    ) -> Result<Phone, UserCallError> {
        #[derive(Serialize)]
        struct Asked<'a> {
            code: &'a str,
            openid: &'a str,
        }

        #[derive(Deserialize)]
        struct Found {
            phone_info: PhoneNumber,
        }

        let (code, openid) = (code.expose(), openid.as_str());
        let call = Call {
            method: Method::POST,
            path: "/wxa/business/getuserphonenumber",
            query: &[],
            json: json_body(&Asked { code, openid }),
        };
        match self.with_token(tokens, app_id, &call, &[code, openid]).await {
            Ok(response) => {
                let wrong = WeChatError::malformed("no phone_info").at(&response.destination);
                let found = response.json::<Found>();
                let number = found.map(|found| Phone::Number(found.phone_info));
                number.ok_or(UserCallError::Call(wrong))
            }
            Err(error) if has_errcode(error.error(), &[40029, 40003]) => Ok(Phone::InvalidCode),
            Err(error) => Err(error),
        }
    }

    /// A call that is signed with a `session_key`.
    async fn signed(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        path: &str,
        openid: &OpenId,
        key: &SessionKey,
    ) -> Result<Response, UserCallError> {
        let signature = key.sign(b"");
        let (openid, signature) = (openid.as_str(), signature.as_str());
        let query = [("openid", openid), ("signature", signature), ("sig_method", "hmac_sha256")];
        let call = Call { method: Method::GET, path, query: &query, json: None };
        self.with_token(tokens, app_id, &call, &[openid, signature]).await
    }

    /// Sends a call with the app's `access_token`, and once more with another one if WeChat rejects
    /// the token. `secrets` are removed from errors.
    async fn with_token(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        call: &Call<'_>,
        secrets: &[&str],
    ) -> Result<Response, UserCallError> {
        let token = tokens.get(app_id).await.map_err(UserCallError::NoToken)?.token;
        let outcome = self.once(app_id, call, &token, secrets).await;
        let outcome = match outcome {
            Err(error) if is_of_dead_token(&error) => {
                let next = tokens.renew(app_id, &token).await.map_err(UserCallError::NoToken)?;
                if next.token == token {
                    return Err(UserCallError::NoToken(error));
                }
                self.once(app_id, call, &next.token, secrets).await
            }
            outcome => outcome,
        };
        outcome.map_err(UserCallError::Call)
    }

    async fn once(
        &self,
        app_id: &AppId,
        call: &Call<'_>,
        token: &Secret,
        secrets: &[&str],
    ) -> Result<Response, WeChatError> {
        let mut query = vec![("access_token", token.expose())];
        query.extend(call.query);
        let with_token = Call {
            method: call.method.clone(),
            path: call.path,
            query: &query,
            json: call.json.clone(),
        };
        let outcome = self.transport.call(&with_token).await.and_then(|response| {
            let secrets = secrets.iter().copied().chain([token.expose()]);
            response.accepted(secrets).map(|()| response)
        });
        let label = outcome.as_ref().map_or_else(WeChatError::label, |_| "ok");
        self.metrics.wechat.api_called(app_id.as_str(), label);
        outcome
    }
}

/// Whether WeChat has rejected the `access_token` of a call.
pub fn is_of_dead_token(error: &WeChatError) -> bool {
    has_errcode(error, &DEAD_TOKEN)
}

fn has_errcode(error: &WeChatError, errcodes: &[i64]) -> bool {
    error.errcode().is_some_and(|errcode| errcodes.contains(&errcode.number()))
}

/// WeChat documents a text, and shows a number in its sample.
fn text_or_number<'de, D: Deserializer<'de>>(input: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Number(u32),
    }

    Ok(match Either::deserialize(input)? {
        Either::Text(text) => text,
        Either::Number(number) => number.to_string(),
    })
}
