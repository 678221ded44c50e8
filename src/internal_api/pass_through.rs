//! Calls of WeChat's API, with the access token added.

use std::sync::Arc;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Response, request};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::Context;
use super::body::{Meter, Metered, ResponseBody, check_length};
use super::caller;
use super::endpoint::WECHAT;
use super::error::{ApiError, Call, Failure};
use super::record::Facts;
use crate::config::ApiPath;
use crate::wechat::pass_through::upload::UploadError;
use crate::wechat::pass_through::{ApiCall, ApiCallError};

/// Keys of the query that only the gateway may send.
const RESERVED: [&str; 3] = ["access_token", "appid", "secret"];

/// A path without an app id is taken for one that begins with an unknown app id.
const NO_APP: &str =
    "the path must be /v1/wechat/, an app id that this token allows, and WeChat's path";

/// Passes a call through, and streams both bodies.
pub async fn call(
    context: &Context,
    request: &request::Parts,
    body: Incoming,
    facts: &mut Facts,
    received: &Arc<Meter>,
) -> Result<Response<ResponseBody>, Failure> {
    let (named, path) = split(request.uri.path());
    let found = caller::find_app(&context.caller, context.policy.login.apps(), Some(named));
    let app_id = found.map_err(|error| match error {
        ApiError::NotAllowed(_) => ApiError::NotAllowed(NO_APP),
        _ => ApiError::bad_request(NO_APP),
    })?;
    facts.app_id = Some(app_id.clone());
    let path = path.ok_or(ApiError::bad_request(
        "a path of WeChat's API has only letters, digits, \"_\", \".\" and \"-\" between slashes",
    ))?;
    caller::check_path(&context.caller, &context.internal, &path)?;
    let query = request.uri.query();
    if query.is_some_and(has_reserved_key) {
        return Err(ApiError::bad_request(
            "access_token, appid and secret must not be in the query: the gateway adds the token",
        )
        .into());
    }
    let limits = &context.policy.limits;
    check_length(&request.headers, limits.max_body)?;
    let body = Metered::new(body, limits.max_body, limits.body_timeout, received.clone());
    let call = ApiCall {
        method: request.method.clone(),
        path,
        query: query.map(ToOwned::to_owned),
        content_type: request.headers.get(CONTENT_TYPE).cloned(),
        accept: request.headers.get(ACCEPT).cloned(),
        body: body.boxed_unsync(),
    };
    let internal = &context.internal;
    let passed = internal.wechat.pass_through(&internal.access_tokens, &app_id, call).await;
    let response = passed.map_err(|error| match error {
        ApiCallError::NoToken(error) => context.failed(&app_id, &error, Call::Repeatable),
        ApiCallError::WeChat(error) => context.failed(&app_id, &error, Call::Once),
        ApiCallError::Upload(UploadError::Idle) => ApiError::RequestTimeout.into(),
        ApiCallError::Upload(UploadError::Body(_)) => {
            received.fault().unwrap_or(ApiError::bad_request("the body was broken off")).into()
        }
    })?;
    Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
}

/// The app id in the path of a call, and WeChat's path; `None` if that has other characters, or
/// more than one spelling.
pub fn split(path: &str) -> (&str, Option<ApiPath>) {
    let rest = path.strip_prefix(WECHAT).unwrap_or_default();
    let (named, _) = rest.split_once('/').unwrap_or_default();
    (named, rest.get(named.len()..).and_then(ApiPath::parse))
}

/// Whether a query has a reserved key, in any spelling that a reader of queries might take for it:
/// in other case, with escapes, even of escapes, after `;`, or with other characters in place of
/// `_` or around it.
pub fn has_reserved_key(query: &str) -> bool {
    query.split([';', '&']).any(|part| {
        let (key, _) = part.split_once('=').unwrap_or((part, ""));
        let fold = |b: u8| if b.is_ascii_alphanumeric() { b.to_ascii_lowercase() } else { b'_' };
        let folded: Vec<u8> = without_escapes(key).into_iter().map(fold).collect();
        let trimmed = std::str::from_utf8(&folded).unwrap_or_default().trim_matches('_');
        RESERVED.contains(&trimmed)
    })
}

/// Replaces all escapes, and those that appear when others are replaced.
fn without_escapes(text: &str) -> Vec<u8> {
    let digit = |byte| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        bytes.push(byte);
        while let [before @ .., b'%', high, low] = bytes.as_slice()
            && let (Some(high), Some(low)) = (digit(*high), digit(*low))
        {
            bytes.truncate(before.len());
            bytes.push(high << 4 | low);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::has_reserved_key;

    #[test]
    fn reserved_keys_are_found_in_every_spelling() {
        for query in [
            "access_token=x",
            "a=1&access_token",
            "a=1;access_token=x",
            "ACCESS_TOKEN=x",
            "access%5ftoken=x",
            "%61ppid=x",
            "%2561ppid=x",
            "a=1&access%25%35%66token=x",
            "+secret=x",
            "secret%00=x",
            "access.token=x",
            "access+token=x",
            "appid[]=x",
            "Secret",
        ] {
            assert!(has_reserved_key(query), "{query}");
        }
        for query in [
            "",
            "a=access_token",
            "type=image&media_id=appid",
            "appids=1",
            "app_id=x",
            "a=%26appid",
            "a=%2526appid&%%6=%",
        ] {
            assert!(!has_reserved_key(query), "{query}");
        }
    }
}
