//! Calls that need a user's session key: decrypt, verify, check, reset.

use super::Context;
use super::error::{ApiError, Call, Failure};
use super::messages::{DecryptRequest, ValidResponse, VerifyRequest};
use crate::identity::User;
use crate::identity::session_key::SessionKey;
use crate::message::own_response::OwnResponse;
use crate::open_data::{Encrypted, Freshness, is_signed};
use crate::wechat::server_api::Reset;

/// Decrypts data. Runs off the runtime's threads: a megabyte under three keys takes milliseconds.
pub async fn decrypt(
    context: &Context,
    user: User,
    request: DecryptRequest,
) -> Result<OwnResponse, Failure> {
    let DecryptRequest { encrypted_data, iv, max_age, .. } = request;
    let keys = keys(context, &user).await?;
    let clock = &context.process.clock;
    let now = clock.to_wall(clock.now_millis()) / 1000;
    let freshness = Freshness { now, max_age: max_age.map(u64::from) };
    let work = move || {
        let encrypted = Encrypted::parse(&encrypted_data, &iv)?;
        encrypted.decrypt(&keys, &user.app_id, freshness)
    };
    let plaintext = tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::Internal)??;
    // The plaintext is JSON, and is passed on byte for byte.
    let mut response = OwnResponse::json(200, &());
    response.body = format!("{{\"data\":{}}}\n", &*plaintext).into_bytes();
    Ok(response)
}

/// Whether data was signed with any kept key.
pub async fn verify(
    context: &Context,
    user: &User,
    request: &VerifyRequest,
) -> Result<OwnResponse, Failure> {
    let keys = keys(context, user).await?;
    let valid = is_signed(&request.raw_data, &request.signature, &keys);
    Ok(OwnResponse::json(200, &ValidResponse { valid }))
}

/// Whether WeChat accepts the newest key.
pub async fn check(context: &Context, user: &User) -> Result<OwnResponse, Failure> {
    let key = newest(context, user).await?;
    let internal = &context.internal;
    let tokens = &internal.access_tokens;
    let checked = internal.wechat.check_session_key(tokens, &user.app_id, &user.openid, &key).await;
    let valid =
        checked.map_err(|error| context.failed(&user.app_id, error.error(), Call::Repeatable))?;
    Ok(OwnResponse::json(200, &ValidResponse { valid }))
}

/// Replaces the newest key by a new one.
pub async fn reset(context: &Context, user: &User) -> Result<OwnResponse, Failure> {
    let key = newest(context, user).await?;
    let internal = &context.internal;
    let tokens = &internal.access_tokens;
    let reset = internal.wechat.reset_session_key(tokens, &user.app_id, &user.openid, &key).await;
    let reset = reset.map_err(|error| {
        let call = if error.may_have_effect() { Call::Once } else { Call::Repeatable };
        context.failed(&user.app_id, error.error(), call)
    });
    match reset? {
        Reset::New(key) => {
            // If this fails, the user's next login brings a key that fits.
            context.process.sessions.replace_session_key(user, key).await?;
            Ok(OwnResponse::empty(204))
        }
        Reset::Stale => Err(ApiError::StaleKey.into()),
    }
}

/// The kept keys of a user, newest first; at least one.
async fn keys(context: &Context, user: &User) -> Result<Vec<SessionKey>, Failure> {
    let keys = context.process.sessions.session_keys(user).await?;
    if keys.is_empty() { Err(ApiError::UnknownUser.into()) } else { Ok(keys) }
}

async fn newest(context: &Context, user: &User) -> Result<SessionKey, Failure> {
    let keys = keys(context, user).await?;
    keys.into_iter().next().ok_or(ApiError::UnknownUser.into())
}
