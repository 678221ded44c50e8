//! WeChat's answer becomes an identity only where it is beyond doubt, and no word of it gets
//! out but its number and its trace id.
//!
//! An input is the body of an answer, or, after a byte 1, lines that make one. Where it holds [`CANARY`], as a session_key or
//! anywhere else, no error and no log may hold it.

#![cfg_attr(fuzzing, no_main)]

mod json;

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use http::HeaderValue;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Metadata, Subscriber};
use wxgate::fuzzing::{Reply, WeChatError};
use wxgate::identity::{AppId, Identity};

use self::json::{Fields, compose};

const NAMES: [&str; 7] =
    ["openid", "session_key", "errcode", "unionid", "errmsg", "x", "openi\\u0064"];

/// Holds a character that no trace id has.
const CANARY: &str = "key+HyVFkGl5F5OQWJZZaNzBBg==";

/// Errors that differ in what is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InvalidCode,
    UserBlocked,
    RateLimited,
    Busy,
    OutOfQuota,
    Refused,
    Malformed,
}

thread_local! {
    /// What was logged since it was last taken.
    static LOGGED: RefCell<String> = const { RefCell::new(String::new()) };

    /// Has what this thread logs written there.
    static LOG: DefaultGuard = tracing::subscriber::set_default(Log);
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    LOG.with(|_| {});

    let composed = input.strip_prefix(&[1]).map(|lines| compose(lines, &NAMES));
    let body = composed.as_ref().map_or(input, String::as_bytes);
    let app_id = AppId::parse("wx0123456789abcdef").expect("legal");
    let found = Reply::parse(body).and_then(|reply| reply.into_exchanged(&app_id));
    let found = found.map(|exchanged| exchanged.identity);
    assert_eq!(LOGGED.take(), "");

    match &found {
        Ok(identity) => check_identity(identity, &app_id),
        Err(error) => check_words(error),
    }
    // More is read than this model can, but nothing that it reads is read in another way.
    if let Some(fields) = std::str::from_utf8(body).ok().and_then(Fields::parse) {
        let found = found.as_ref().map(as_text).map_err(kind);
        assert_eq!(found, expected(&fields), "{}", body.escape_ascii());
    }
}

fn as_text(identity: &Identity) -> (String, Option<String>) {
    let unionid = identity.unionid.as_ref().map(|unionid| unionid.as_str().to_owned());
    (identity.openid.as_str().to_owned(), unionid)
}

fn kind(error: &WeChatError) -> Kind {
    match error {
        WeChatError::InvalidCode(_) => Kind::InvalidCode,
        WeChatError::UserBlocked(_) => Kind::UserBlocked,
        WeChatError::RateLimited(_) => Kind::RateLimited,
        WeChatError::Busy(_) => Kind::Busy,
        WeChatError::OutOfQuota(_) => Kind::OutOfQuota,
        WeChatError::Refused(_) => Kind::Refused,
        WeChatError::Malformed(_) => Kind::Malformed,
        WeChatError::Snapshot
        | WeChatError::Status(_)
        | WeChatError::TooManyRequests(..)
        | WeChatError::Certificate(_)
        | WeChatError::Unreachable(_)
        | WeChatError::Timeout(_)
        | WeChatError::Broken(_)
        | WeChatError::QueueFull
        | WeChatError::BreakerOpen(_) => panic!("{error:?} is not about a body"),
    }
}

/// Openid and unionid, or what is wrong.
fn expected(fields: &Fields) -> Result<(String, Option<String>), Kind> {
    for name in ["errcode", "openid", "unionid", "session_key"] {
        // Once at most, and such that it can be read at all.
        if !matches!(&*fields.all(name), [] | [Ok(_)]) {
            return Err(Kind::Malformed);
        }
    }
    let errcode = match &*fields.all("errcode") {
        [] | [Ok(Value::Null)] => 0,
        [Ok(Value::Number(number))] => number.as_i64().ok_or(Kind::Malformed)?,
        [Ok(Value::String(text))] => text.trim().parse().map_err(|_| Kind::Malformed)?,
        _ => return Err(Kind::Malformed),
    };
    match errcode {
        0 => {}
        40029 | 40163 | 41008 | 42003 => return Err(Kind::InvalidCode),
        40226 => return Err(Kind::UserBlocked),
        45011 => return Err(Kind::RateLimited),
        -1 => return Err(Kind::Busy),
        45009 => return Err(Kind::OutOfQuota),
        _ => return Err(Kind::Refused),
    }
    let text = |name| match fields.text(name) {
        Ok(text) if !text.as_ref().is_some_and(|text| text.contains('\x7f')) => Ok(text),
        _ => Err(Kind::Malformed),
    };
    let (openid, unionid, session_key) = (text("openid")?, text("unionid")?, text("session_key")?);
    session_key.filter(|key| !key.is_empty()).ok_or(Kind::Malformed)?;
    let openid = openid.filter(|openid| is_id(openid)).ok_or(Kind::Malformed)?;
    let unionid = unionid.filter(|unionid| !unionid.is_empty());
    if unionid.as_deref().is_some_and(|unionid| !is_id(unionid)) {
        return Err(Kind::Malformed);
    }
    Ok((openid, unionid))
}

fn is_id(text: &str) -> bool {
    text.len() <= 128
        && !text.is_empty()
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

/// It can stand in headers just so.
fn check_identity(identity: &Identity, app_id: &AppId) {
    assert_eq!(&identity.app_id, app_id);
    let (openid, unionid) = as_text(identity);
    for id in [Some(openid), unionid].into_iter().flatten() {
        assert!(id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b','));
        assert_eq!(HeaderValue::from_str(&id).expect("legal").as_bytes(), id.as_bytes());
        assert!(!format!("{identity:?}").contains(&id) || id.len() < 9);
    }
}

/// Only the gateway's own words, and a number.
fn check_words(error: &WeChatError) {
    const WORDS: [&str; 11] = [
        "WeChat rejects the code (errcode #)",
        "WeChat blocks the user (errcode #)",
        "WeChat limits the calls for this user (errcode #)",
        "WeChat is busy (errcode #)",
        "WeChat's quota for the app is used up (errcode #)",
        "WeChat rejects the app (errcode #)",
        "invalid response from WeChat: not the expected JSON",
        "invalid response from WeChat: invalid errcode",
        "invalid response from WeChat: no session_key",
        "invalid response from WeChat: invalid openid",
        "invalid response from WeChat: invalid unionid",
    ];
    let rid = error.error_report().and_then(|report| report.rid.as_deref());
    let is_rid = |rid: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        (8..=64).contains(&rid.len()) && rid.bytes().all(legal)
    };
    assert!(rid.is_none_or(is_rid), "{rid:?}");
    let text = error.to_string();
    let number = |c: char| c.is_ascii_digit() || c == '-';
    let words = match text.split_once("errcode ") {
        Some((before, after)) => format!("{before}errcode #{}", after.trim_matches(number)),
        None => text,
    };
    assert!(WORDS.contains(&words.as_str()), "{words}");
    assert!(!format!("{error:?}").contains(CANARY));
}

/// Keeps what is logged.
struct Log;

struct Writer<'a>(&'a mut String);

impl Visit for Writer<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, "{field}={value:?} ").expect("a String takes everything");
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        LOGGED.with_borrow_mut(|logged| event.record(&mut Writer(logged)));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}
