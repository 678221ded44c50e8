//! A call of WeChat's API for a service, with an access token that the service never sees.
//!
//! Bodies stream in both directions, with limits on the time without progress and none on the
//! total. Only two parts are held: the beginning of the request, so that a short one can be sent
//! again, and a response that may be an error of WeChat's. If that says that the access token is
//! not valid, WeChat has not looked at the rest, and the call is repeated once with another one.

pub mod download;
pub mod upload;

use http::header::{
    ACCEPT, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, TRANSFER_ENCODING,
};
use http::{HeaderValue, Method, Response};

use self::download::{Download, Received};
use self::upload::{CallerBody, Upload, UploadError};
use super::access_token::AccessTokens;
use super::server_api::is_of_dead_token;
use super::transport::StreamedCall;
use super::{WeChat, WeChatError};
use crate::config::ApiPath;
use crate::identity::AppId;
use crate::identity::secret::Secret;

/// Headers of WeChat's response that the service gets.
const RESPONSE_HEADERS: [http::HeaderName; 3] = [CONTENT_TYPE, CONTENT_LENGTH, CONTENT_DISPOSITION];

/// A call of a service. Path and query are allowed and contain no token, app id or secret: the
/// caller has checked that.
pub struct ApiCall {
    pub method: Method,
    pub path: ApiPath,
    /// As in a URL, without the question mark.
    pub query: Option<String>,
    pub content_type: Option<HeaderValue>,
    pub accept: Option<HeaderValue>,
    pub body: CallerBody,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum ApiCallError {
    /// There is no access token that WeChat accepts: it has not looked at the rest.
    #[error(transparent)]
    NoToken(WeChatError),
    #[error(transparent)]
    WeChat(#[from] WeChatError),
    /// The service's body failed: WeChat has not received a whole request.
    #[error(transparent)]
    Upload(#[from] UploadError),
}

impl WeChat {
    /// Calls WeChat's API for a service. Returns WeChat's response, whatever its status; the
    /// `ErrCode` of an error is an extension of it. The call is aborted if the future or the
    /// response's body is dropped.
    ///
    /// # Errors
    /// When there is no access token, no response, or the service's body fails.
    pub async fn pass_through(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        call: ApiCall,
    ) -> Result<Response<Download>, ApiCallError> {
        let token = tokens.get(app_id).await.map_err(ApiCallError::NoToken)?.token;
        let ApiCall { method, path, query, content_type, accept, body } = call;
        let mut headers = HeaderMap::new();
        headers.extend(content_type.map(|value| (CONTENT_TYPE, value)));
        headers.extend(accept.map(|value| (ACCEPT, value)));
        let upload = Upload::hold(body, self.timeout()).await?;
        let call =
            StreamedCall { method, path: path.as_str(), query: query.as_deref(), headers, upload };
        let received = self.attempt(app_id, &call, &token).await?;
        if !received.error.as_ref().is_some_and(is_of_dead_token) {
            return response(received);
        }
        if !call.upload.is_whole() {
            // Not for this call: it cannot be repeated.
            tokens.start_renewal(app_id, &token);
            return response(received);
        }
        let next = tokens.renew(app_id, &token).await.map_err(ApiCallError::NoToken)?.token;
        if next == token {
            return response(received);
        }
        drop(received);
        response(self.attempt(app_id, &call, &next).await?)
    }

    /// Sends a call once, and counts it.
    pub(super) async fn attempt(
        &self,
        app_id: &AppId,
        call: &StreamedCall<'_>,
        token: &Secret,
    ) -> Result<Received, ApiCallError> {
        let received = match self.transport.open(call, token).await {
            Ok(opened) => Received::read(opened, token).await,
            Err(error) => Err(error),
        };
        // If the service's body fails, so does the call to WeChat.
        if received.is_err()
            && let Some(error) = call.upload.failure()
        {
            return Err(error.into());
        }
        let label = received.as_ref().map_or_else(WeChatError::label, Received::label);
        self.metrics.wechat.api_called(app_id.as_str(), label);
        Ok(received?)
    }
}

fn response(received: Received) -> Result<Response<Download>, ApiCallError> {
    let received = received.without_token()?;
    let mut response = Response::new(received.body);
    *response.status_mut() = received.status;
    // Beside an encoding, a length is not that of the body (RFC 9112, 6.3).
    let has_length = !received.headers.contains_key(TRANSFER_ENCODING);
    for name in RESPONSE_HEADERS.into_iter().filter(|name| has_length || *name != CONTENT_LENGTH) {
        if let Some(value) = received.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(errcode) = received.error.as_ref().and_then(WeChatError::errcode) {
        response.extensions_mut().insert(errcode);
    }
    Ok(response)
}
