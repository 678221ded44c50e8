//! The app's access token, for services that must call WeChat's API themselves.

use super::Context;
use super::error::{ApiError, Call, Failure};
use super::messages::AccessTokenResponse;
use crate::identity::AppId;
use crate::identity::secret::Secret;
use crate::message::own_response::OwnResponse;
use crate::wechat::WeChatError;
use crate::wechat::access_token::AccessToken;

/// In characters. WeChat asks to reserve 512.
const LONGEST_TOKEN: usize = 2048;

/// The valid token of an app.
pub async fn get(context: &Context, app_id: &AppId) -> Result<OwnResponse, Failure> {
    respond(context, app_id, context.internal.access_tokens.get(app_id).await)
}

/// The token of an app after WeChat has rejected one.
pub async fn renew(
    context: &Context,
    app_id: &AppId,
    rejected: &Secret,
) -> Result<OwnResponse, Failure> {
    if !(1..=LONGEST_TOKEN).contains(&rejected.expose().chars().count()) {
        return Err(ApiError::bad_request("access_token is not an access token").into());
    }
    respond(context, app_id, context.internal.access_tokens.renew(app_id, rejected).await)
}

fn respond(
    context: &Context,
    app_id: &AppId,
    token: Result<AccessToken, WeChatError>,
) -> Result<OwnResponse, Failure> {
    let token = token.map_err(|error| context.failed(app_id, &error, Call::Repeatable))?;
    let expires_in = context.internal.access_tokens.expires_in(&token);
    let access_token = token.token.expose().to_owned().into();
    Ok(OwnResponse::json(200, &AccessTokenResponse { access_token, expires_in }))
}
