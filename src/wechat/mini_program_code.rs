//! Images that open the Mini Program (`qrcode.getUnlimitedQRCode`).
//!
//! WeChat responds with an image, or with JSON that reports an error, both with status 200. What
//! the first bytes do not show to be an image is an error.

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http_body_util::{BodyExt, Full};
use serde::Serialize;
use tokio::time::timeout;

use super::access_token::AccessTokens;
use super::call_error::{CallError, Cause};
use super::pass_through::ApiCallError;
use super::pass_through::upload::Upload;
use super::server_api::is_of_dead_token;
use super::transport::{StreamedCall, json_body};
use super::{WeChat, WeChatError};
use crate::identity::AppId;
use crate::identity::secret::Secret;

/// Longest image, in bytes. One of this width has less than 100 KiB.
const MAX_IMAGE: usize = 512 << 10;

/// The width in pixels; the least that WeChat draws.
const WIDTH: u32 = 280;

/// An image.
pub struct Image {
    pub content_type: HeaderValue,
    pub bytes: Bytes,
}

impl Image {
    /// `None`: it is neither PNG nor JPEG.
    fn parse(bytes: Bytes) -> Option<Self> {
        let content_type = match bytes.first_chunk()? {
            [0x89, b'P', b'N', b'G'] => "image/png",
            [0xff, 0xd8, 0xff, _] => "image/jpeg",
            _ => return None,
        };
        Some(Self { content_type: HeaderValue::from_static(content_type), bytes })
    }
}

impl WeChat {
    /// The code that opens the main page of a Mini Program with a scene: at most 32 characters of
    /// `A-Z a-z 0-9 ! # $ & ' ( ) * + , / : ; = ? @ - . _ ~`.
    ///
    /// # Errors
    /// When there is no access token, no response within `wechat.timeout`, or no image.
    pub async fn mini_program_code(
        &self,
        tokens: &AccessTokens,
        app_id: &AppId,
        scene: &str,
    ) -> Result<Image, WeChatError> {
        let token = tokens.get(app_id).await?.token;
        match self.code_with(app_id, scene, &token).await {
            Err(error) if is_of_dead_token(&error) => {
                let next = tokens.renew(app_id, &token).await?.token;
                if next == token { Err(error) } else { self.code_with(app_id, scene, &next).await }
            }
            outcome => outcome,
        }
    }

    async fn code_with(
        &self,
        app_id: &AppId,
        scene: &str,
        token: &Secret,
    ) -> Result<Image, WeChatError> {
        let late = |_| WeChatError::Timeout(CallError::new(None, Cause::NoResponse));
        let image = timeout(self.timeout(), self.download_code(app_id, scene, token)).await;
        image.map_err(late)?
    }

    async fn download_code(
        &self,
        app_id: &AppId,
        scene: &str,
        token: &Secret,
    ) -> Result<Image, WeChatError> {
        #[derive(Serialize)]
        struct Wanted<'a> {
            scene: &'a str,
            width: u32,
        }

        let body = Full::new(json_body(&Wanted { scene, width: WIDTH }).unwrap_or_default());
        let body = body.map_err(|never| match never {}).boxed_unsync();
        // A body in memory cannot fail.
        let upload = Upload::hold(body, self.timeout()).await;
        let upload = upload.map_err(|_| WeChatError::malformed("no body"))?;
        let json = HeaderValue::from_static("application/json");
        let call = StreamedCall {
            method: Method::POST,
            path: "/wxa/getwxacodeunlimit",
            query: None,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, json)]),
            upload,
        };
        let received = self.attempt(app_id, &call, token).await.map_err(|error| match error {
            ApiCallError::NoToken(error) | ApiCallError::WeChat(error) => error,
            ApiCallError::Upload(_) => WeChatError::malformed("no body"),
        })?;
        if let Some(error) = received.error {
            return Err(error);
        }
        let mut body = received.body;
        let mut bytes = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let broken = |_| WeChatError::Broken(CallError::new(None, Cause::Closed));
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            if bytes.len() + data.len() > MAX_IMAGE {
                return Err(WeChatError::malformed("too long"));
            }
            bytes.extend_from_slice(&data);
        }
        let image = received.status.is_success().then(|| Image::parse(bytes.freeze())).flatten();
        image.ok_or(WeChatError::malformed("no image"))
    }
}
