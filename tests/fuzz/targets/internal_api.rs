//! A call of the internal API is read in one way, and nothing that passes to WeChat names a token, an
//! app, a secret, or a path that is never allowed.
//!
//! The first byte of an input chooses what the rest is: the body of an operation, or lines that make
//! one; the query of an access token; or path and query of a call of WeChat's API. What they mean is
//! read here anew, by the documentation.

#![cfg_attr(fuzzing, no_main)]

mod json;

use std::collections::BTreeMap;

use http::Method;
use http::uri::PathAndQuery;
use serde_json::Value;
use wxgate::fuzzing::internal_api::{
    ApiError, DecryptRequest, Endpoint, PhoneNumberRequest, RenewRequest, UserRequest,
    VerifyRequest, app_id_in, has_reserved_key, parse_json, split_wechat_path,
};

use self::json::{Fields, compose};

const NAMES: [&str; 12] = [
    "openid",
    "app_id",
    "encrypted_data",
    "iv",
    "max_age",
    "raw_data",
    "signature",
    "code",
    "access_token",
    "x",
    "open\\u0069d",
    "secret",
];

/// Paths of WeChat's API that nothing may call through the gateway.
const NEVER: [&str; 11] = [
    "cgi-bin/token",
    "cgi-bin/stable_token",
    "cgi-bin/component",
    "cgi-bin/gettoken",
    "cgi-bin/miniprogram",
    "cgi-bin/service",
    "sns",
    "wxa/checksession",
    "wxa/resetusersessionkey",
    "wxa/business/getuserencryptkey",
    "wxa/business/getuserphonenumber",
];

/// The endpoints without a part that varies, and whether they are for POST.
const FIXED: [(&str, Endpoint, bool); 9] = [
    ("/v1/open-data/decrypt", Endpoint::Decrypt, true),
    ("/v1/open-data/verify", Endpoint::Verify, true),
    ("/v1/session-key/check", Endpoint::CheckKey, true),
    ("/v1/session-key/reset", Endpoint::ResetKey, true),
    ("/v1/phone-number", Endpoint::PhoneNumber, true),
    ("/v1/access-token", Endpoint::AccessToken, false),
    ("/v1/access-token/renew", Endpoint::RenewAccessToken, true),
    ("/openapi.json", Endpoint::Description, false),
    ("/.well-known/jwks.json", Endpoint::Jwks, false),
];

/// Fields that are there.
type Read = BTreeMap<&'static str, Value>;

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let composed = (choice & 8 != 0).then(|| compose(rest, &NAMES));
    let body = composed.as_ref().map_or(rest, String::as_bytes);
    match choice & 7 {
        0 => check_body(body, &["encrypted_data", "iv"], parse_json(body).map(decrypt)),
        1 => check_body(body, &["raw_data", "signature"], parse_json(body).map(verify)),
        2 => check_body(body, &[], parse_json(body).map(user)),
        3 => check_body(body, &["code"], parse_json(body).map(phone_number)),
        4 => check_body(body, &["access_token"], parse_json(body).map(renew)),
        5 => {
            let found = app_id_in(rest).map_err(|error| check_error(&error)).ok();
            assert_eq!(found, app_id(rest), "{}", rest.escape_ascii());
        }
        6 => check_target(rest),
        _ => check_target(&[b"/v1/wechat/wx0123456789abcdef/", rest].concat()),
    }
}

fn read<const N: usize>(fields: [(&'static str, Option<Value>); N]) -> Read {
    fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

fn decrypt(request: DecryptRequest) -> Read {
    read([
        ("app_id", request.app_id.map(Value::from)),
        ("openid", Some(request.openid.into())),
        ("encrypted_data", Some(request.encrypted_data.into())),
        ("iv", Some(request.iv.into())),
        ("max_age", request.max_age.map(Value::from)),
    ])
}

fn verify(request: VerifyRequest) -> Read {
    read([
        ("app_id", request.app_id.map(Value::from)),
        ("openid", Some(request.openid.into())),
        ("raw_data", Some(request.raw_data.into())),
        ("signature", Some(request.signature.into())),
    ])
}

fn user(request: UserRequest) -> Read {
    read([("app_id", request.app_id.map(Value::from)), ("openid", Some(request.openid.into()))])
}

fn phone_number(request: PhoneNumberRequest) -> Read {
    read([
        ("app_id", request.app_id.map(Value::from)),
        ("openid", Some(request.openid.into())),
        ("code", Some(request.code.expose().into())),
    ])
}

fn renew(request: RenewRequest) -> Read {
    read([
        ("app_id", request.app_id.map(Value::from)),
        ("access_token", Some(request.access_token.expose().into())),
    ])
}

/// `texts` are the fields that only this operation has and needs.
fn check_body(body: &[u8], texts: &[&'static str], found: Result<Read, ApiError>) {
    let found = found.map_err(|error| check_error(&error)).ok();
    assert_eq!(found, expected(body, texts), "{}", body.escape_ascii());
}

fn expected(body: &[u8], texts: &[&'static str]) -> Option<Read> {
    let fields = Fields::parse(std::str::from_utf8(body).ok()?)?;
    let mut read = Read::new();
    let is_renewal = texts == ["access_token"];
    let needed = texts.iter().copied().chain((!is_renewal).then_some("openid"));
    let optional = ["app_id"].into_iter().chain(texts.contains(&"iv").then_some("max_age"));
    for name in needed {
        read.insert(name, Value::from(fields.text(name).ok()??));
    }
    let mut known: Vec<_> = read.keys().copied().collect();
    for name in optional {
        known.push(name);
        let value = match (&*fields.all(name), name) {
            ([] | [Ok(Value::Null)], _) => continue,
            ([Ok(value @ Value::String(_))], "app_id") => value.clone(),
            ([Ok(value)], "max_age") if value.as_u64()? <= u64::from(u32::MAX) => value.clone(),
            _ => return None,
        };
        read.insert(name, value);
    }
    fields.0.iter().all(|(name, _)| known.contains(&name.as_str())).then_some(read)
}

/// A message names fields of the API, and repeats nothing that was sent.
fn check_error(error: &ApiError) {
    assert_eq!((error.status(), error.error()), (400, "bad_request"));
    let message = error.message();
    let mut named = message.split('`').skip(1).step_by(2);
    assert!(named.all(|name| NAMES[..9].contains(&name)), "{message}");
    let words = message.split('`').step_by(2).collect::<String>();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " ,:_-".contains(c);
    assert!(words.chars().all(is_plain) && words.len() < 100, "{message}");
}

/// The app that a query names. `None`: it has anything else.
fn app_id(query: &[u8]) -> Option<Option<String>> {
    let mut found = None;
    for pair in query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let equals = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
        let (name, value) = (&pair[..equals], pair.get(equals + 1..).unwrap_or_default());
        if unescaped(name) != b"app_id" || found.is_some() {
            return None;
        }
        found = Some(String::from_utf8_lossy(&unescaped(value)).into_owned());
    }
    Some(found)
}

fn check_target(target: &[u8]) {
    // As it arrives in a request.
    let Ok(target) = PathAndQuery::try_from(target) else { return };
    let (path, query) = (target.path(), target.query());
    for method in [Method::GET, Method::POST, Method::CONNECT] {
        let is_post = method == Method::POST;
        let fixed = FIXED.iter().find(|(known, ..)| *known == path);
        let found = Endpoint::find(path, &method);
        match fixed {
            Some((_, endpoint, is_for_post)) => {
                let is_right = *is_for_post == is_post && method != Method::CONNECT;
                assert_eq!(found.ok(), is_right.then_some(*endpoint), "{path}");
            }
            None => {
                let is_wechat = wechat_path(path).is_some() && method != Method::CONNECT;
                assert_eq!(found.ok(), is_wechat.then_some(Endpoint::WeChat), "{path}");
            }
        }
    }
    let Some((app_id, wanted)) = wechat_path(path) else { return };
    let (found_app, found) = split_wechat_path(path);
    assert_eq!(found_app, app_id);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_.-".contains(c);
    let has_one_spelling = wanted.chars().all(is_plain)
        && wanted.split('/').skip(1).all(|segment| !["", ".", ".."].contains(&segment));
    assert_eq!(found.as_ref().map(|path| path.as_str()), has_one_spelling.then_some(wanted));
    if let Some(found) = found {
        assert_eq!(found.is_never_allowed(), is_never_allowed(wanted), "{wanted}");
    }
    let query = query.unwrap_or_default();
    let is_rejected = has_reserved_key(query);
    assert!(is_rejected || !names_reserved(query), "{query}");
    if is_rejected {
        let text = without_escapes(query.as_bytes()).to_ascii_lowercase();
        let words = text.split(|byte| !byte.is_ascii_alphanumeric());
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        let has = |word: &str| words.contains(&word.as_bytes());
        assert!(has("appid") || has("secret") || has("access") && has("token"), "{query}");
    }
}

/// The app and the path of WeChat's API, with its slash.
fn wechat_path(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v1/wechat/")?;
    let slash = rest.find('/')?;
    let (app_id, path) = rest.split_at(slash);
    (!app_id.is_empty() && path.len() > 1).then_some((app_id, path))
}

/// Whatever a server makes of case, escapes, dots and slashes.
fn is_never_allowed(path: &str) -> bool {
    let path = String::from_utf8_lossy(&without_escapes(path.as_bytes())).to_lowercase();
    let mut segments = Vec::new();
    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let is_below =
        |never: &str| segments.iter().copied().zip(never.split('/')).all(|(a, b)| a == b);
    NEVER.iter().any(|never| never.split('/').count() <= segments.len() && is_below(never))
}

/// Whether a key is reserved, once all its escapes are gone.
fn names_reserved(query: &str) -> bool {
    query.split(['&', ';']).any(|pair| {
        let key = pair.split('=').next().unwrap_or_default();
        let mut key = without_escapes(key.as_bytes()).to_ascii_lowercase();
        for byte in key.iter_mut().filter(|byte| !byte.is_ascii_alphanumeric()) {
            *byte = b'_';
        }
        let key = String::from_utf8(key).expect("ASCII");
        ["access_token", "appid", "secret"].contains(&key.trim_matches('_'))
    })
}

/// Unescaped again and again, until nothing changes.
fn without_escapes(text: &[u8]) -> Vec<u8> {
    let once = unescaped(text);
    if once == text { once } else { without_escapes(&once) }
}

/// The URL standard, section 5.1.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut unescaped = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        unescaped.push(match (first, after) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                rest = after;
                let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap() as u8;
                digit(high) * 16 + digit(low)
            }
            _ => *first,
        });
    }
    unescaped
}
