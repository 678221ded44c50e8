//! A call of an API: which one it is, what is checked before an endpoint sees it, and how its body
//! is read.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::errors::{Failure, error};
use super::{Dropped, Request, Response, Sandbox, json_response, parameter};

/// Maximum bytes of a body of JSON.
const MAX_JSON: usize = 64 << 10;

/// Time to receive a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// An API, except code2Session.
#[derive(Clone, Copy)]
pub enum Api {
    StableToken,
    Token,
    CheckSessionKey,
    ResetSessionKey,
    PhoneNumber,
    SendMessage,
    UnlimitedCode,
    Code,
    QrCode,
    CheckText,
    CheckImage,
    UploadMedia,
    GetMedia,
}

/// The path and the method of each API.
const APIS: [(&str, Method, Api); 13] = [
    ("/cgi-bin/stable_token", Method::POST, Api::StableToken),
    ("/cgi-bin/token", Method::GET, Api::Token),
    ("/wxa/checksession", Method::GET, Api::CheckSessionKey),
    ("/wxa/resetusersessionkey", Method::GET, Api::ResetSessionKey),
    ("/wxa/business/getuserphonenumber", Method::POST, Api::PhoneNumber),
    ("/cgi-bin/message/subscribe/send", Method::POST, Api::SendMessage),
    ("/wxa/getwxacodeunlimit", Method::POST, Api::UnlimitedCode),
    ("/wxa/getwxacode", Method::POST, Api::Code),
    ("/cgi-bin/wxaapp/createwxaqrcode", Method::POST, Api::QrCode),
    ("/wxa/msg_sec_check", Method::POST, Api::CheckText),
    ("/wxa/img_sec_check", Method::POST, Api::CheckImage),
    ("/cgi-bin/media/upload", Method::POST, Api::UploadMedia),
    ("/cgi-bin/media/get", Method::GET, Api::GetMedia),
];

impl Api {
    pub fn at(path: &str) -> Option<Self> {
        APIS.iter().find(|(known, ..)| *known == path).map(|(.., api)| *api)
    }
}

/// A call that has a valid `access_token`.
pub struct Call {
    /// The API's path, under which it is counted.
    pub path: &'static str,
    pub app_id: String,
    pub request: Request,
}

impl Call {
    pub fn parameter(&self, name: &str) -> String {
        parameter(self.request.uri().query().unwrap_or_default(), name)
    }
}

impl Sandbox {
    /// Responds to a call of an API.
    pub(super) async fn call(&self, api: Api, request: Request) -> Result<Response, Dropped> {
        tokio::time::sleep(self.latency()).await;
        match self.outcome(api, request).await {
            Ok(response) => Ok(response),
            Err(Failure::Errcode(errcode)) => Ok(json_response(&error(errcode))),
            Err(Failure::Dropped) => Err(Dropped),
        }
    }

    async fn outcome(&self, api: Api, request: Request) -> Result<Response, Failure> {
        let Some((path, method, _)) = APIS.iter().find(|(path, ..)| *path == request.uri().path())
        else {
            return Err(40066.into());
        };
        self.quotas.received(path);
        if request.method() != method {
            return Err(if *method == Method::GET { 43001 } else { 43002 }.into());
        }
        match api {
            Api::StableToken => return self.stable_token(path, request).await,
            Api::Token => return self.token(path, &request),
            _ => {}
        }
        let query = request.uri().query().unwrap_or_default();
        if self.behaviour.rejects_address {
            return Err(40164.into());
        }
        let app_id = self.access_tokens.app_of(&parameter(query, "access_token"))?;
        self.quotas.count(path)?;
        let call = Call { path, app_id, request };
        match api {
            Api::StableToken | Api::Token => Err(40066.into()),
            Api::CheckSessionKey => self.check_session_key(&call),
            Api::ResetSessionKey => self.reset_session_key(&call),
            Api::PhoneNumber => self.phone_number(call).await,
            Api::SendMessage => self.send_message(call).await,
            Api::UnlimitedCode => self.unlimited_code(call).await,
            Api::Code => self.code(call, 1024).await,
            Api::QrCode => self.code(call, 128).await,
            Api::CheckText => self.check_text(call).await,
            Api::CheckImage => self.check_image(call).await,
            Api::UploadMedia => self.upload_media(call).await,
            Api::GetMedia => self.get_media(&call),
        }
    }
}

/// Reads a body.
///
/// # Errors
/// The errcode, if it is longer than `limit` bytes (45002) or does not end.
pub async fn read_body(request: Request, limit: usize) -> Result<Bytes, i64> {
    let body = http_body_util::Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(45002),
        Ok(Err(_)) | Err(_) => Err(-1),
    }
}

/// Reads a body of JSON, whatever its Content-Type.
///
/// # Errors
/// The errcode.
pub async fn read_json<T: DeserializeOwned>(request: Request) -> Result<T, i64> {
    let body = read_body(request, MAX_JSON).await?;
    if body.is_empty() {
        return Err(44002);
    }
    serde_json::from_slice(&body).map_err(|_| 47001)
}
