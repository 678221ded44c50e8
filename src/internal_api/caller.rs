//! Who calls, and what a caller may do.

use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable, ConstantTimeEq};

use super::endpoint::Endpoint;
use super::error::ApiError;
use crate::config::{ApiPath, Caller};
use crate::identity::AppId;
use crate::login::Apps;
use crate::policy::{InternalPolicy, KnownCaller};

/// The caller whose token a request has. Compares digests, of all tokens, in constant time.
pub fn find<'a>(callers: &'a [KnownCaller], headers: &HeaderMap) -> Option<&'a Arc<Caller>> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, presented) = value.as_bytes().split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    let presented = Sha256::digest(presented.trim_ascii());
    let mut found = u32::MAX;
    for (index, known) in (0..).zip(callers) {
        found.conditional_assign(&index, known.digest.ct_eq(&presented));
    }
    callers.get(usize::try_from(found).ok()?).map(|known| &known.caller)
}

/// Checks whether a caller may use an endpoint at all.
///
/// # Errors
/// When it may not, or the endpoint is off.
pub fn check_endpoint(
    caller: &Caller,
    endpoint: Endpoint,
    internal: &InternalPolicy,
) -> Result<(), ApiError> {
    let is_allowed = caller.rights.as_ref().is_none_or(|rights| {
        endpoint.operation().is_some_and(|operation| rights.allow.contains(&operation))
    });
    if !is_allowed {
        return Err(ApiError::NotAllowed("this token does not allow this operation"));
    }
    if endpoint.needs_session_key() && !internal.has_open_data {
        return Err(ApiError::NotAllowed("[open_data] is off: no session keys are kept"));
    }
    Ok(())
}

/// The app that a request names, or the default app if it names none.
///
/// # Errors
/// When there is no such app, or the caller may not use it.
pub fn find_app(caller: &Caller, apps: &Apps, named: Option<&str>) -> Result<AppId, ApiError> {
    let found = apps.named(named).map(|served| served.app_id().clone());
    match &caller.rights {
        None => found.map_err(ApiError::bad_request),
        Some(rights) => {
            // Whether another app exists is none of the caller's business.
            let allowed = found.ok().filter(|app_id| rights.apps.contains(app_id));
            allowed.ok_or(ApiError::NotAllowed("this token does not allow this app"))
        }
    }
}

/// Checks whether a caller may call a path of WeChat's API.
///
/// # Errors
/// When it may not.
pub fn check_path(
    caller: &Caller,
    internal: &InternalPolicy,
    path: &ApiPath,
) -> Result<(), ApiError> {
    let is_in = |list: &[ApiPath]| list.iter().any(|allowed| allowed.covers(path));
    let own = caller.rights.as_ref().and_then(|rights| rights.wechat_paths.as_deref());
    Err(ApiError::NotAllowed(if path.is_never_allowed() {
        "this path is never allowed: its response has a secret, or the gateway calls it itself"
    } else if !is_in(&internal.wechat_paths) {
        "this path of WeChat's API is not in internal.wechat_paths"
    } else if !own.is_none_or(is_in) {
        "this path of WeChat's API is not in this token's wechat_paths"
    } else {
        return Ok(());
    }))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::identity::secret::Secret;

    fn named(callers: &[KnownCaller], values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        find(callers, &headers).map(|caller| caller.name.clone())
    }

    #[test]
    fn a_caller_is_found_by_its_token_alone() {
        let caller = |name: &str, token: &str| {
            let token = Secret::new(token.to_owned());
            KnownCaller::from(&Caller { name: name.to_owned(), token, rights: None })
        };
        let callers = [caller("a", "token-a"), caller("b", "token-b"), caller("c", "token-c")];
        for (name, token) in [("a", "token-a"), ("b", "token-b"), ("c", "token-c")] {
            let found = named(&callers, &[&format!("bearer  {token} ")]);
            assert_eq!(found.as_deref(), Some(name));
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer token-",
            "Bearer token-aa",
            "Basic token-a",
            "token-a",
        ] {
            assert_eq!(named(&callers, &[wrong]), None, "{wrong}");
        }
        assert_eq!(named(&callers, &["Bearer token-a", "Bearer token-a"]), None);
        assert_eq!(named(&callers, &[]), None);
    }
}
