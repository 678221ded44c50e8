use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn identity_of(body: &str) -> Result<Identity, WeChatError> {
    exchanged_of(body).map(|exchanged| exchanged.identity)
}

fn exchanged_of(body: &str) -> Result<Exchanged, WeChatError> {
    Reply::parse(body.as_bytes())?.into_exchanged(&AppId::parse("wx1").unwrap())
}

fn oauth_exchanged_of(body: &str) -> Result<Exchanged, WeChatError> {
    Reply::parse(body.as_bytes())?.into_oauth_exchanged(&AppId::parse("wx1").unwrap())
}

#[test]
fn success_is_recognised_by_its_fields() {
    for body in [
        r#"{"openid":"o1","session_key":"k"}"#,
        r#"{"openid":"o1","session_key":"k","errcode":0,"errmsg":"ok"}"#,
        r#"{"openid":"o1","session_key":"k","errcode":"0","expires_in":7200}"#,
        r#"{"openid":"o1","session_key":"a\/b==","errcode":null,"unionid":""}"#,
    ] {
        let identity = identity_of(body).unwrap();
        assert_eq!(identity.openid.as_str(), "o1");
        assert_eq!(identity.unionid, None);
    }
    let identity = identity_of(r#"{"openid":"o1","session_key":"k","unionid":"u1"}"#).unwrap();
    assert_eq!(identity.unionid.unwrap().as_str(), "u1");
}

#[test]
fn errcodes_are_numbers_or_text_and_take_precedence() {
    let invalid = |code| Err(WeChatError::InvalidCode(ErrCode(code)));
    assert_eq!(identity_of(r#"{"errcode":40029,"errmsg":"x"}"#), invalid(40029));
    assert_eq!(identity_of(r#"{"errcode":"40163"}"#), invalid(40163));
    assert_eq!(identity_of(r#"{"errcode":41008}"#), invalid(41008));
    assert_eq!(identity_of(r#"{"errcode":40029,"openid":"o1","session_key":"k"}"#), invalid(40029));
    assert_eq!(identity_of(r#"{"errcode":40226}"#), Err(WeChatError::UserBlocked(ErrCode(40226))));
    let report = |code| ErrorReport { errcode: ErrCode(code), rid: None, seen_address: None };
    assert_eq!(identity_of(r#"{"errcode":45011}"#), Err(WeChatError::RateLimited(report(45011))));
    assert_eq!(identity_of(r#"{"errcode":-1}"#), Err(WeChatError::Busy(report(-1))));
    assert_eq!(identity_of(r#"{"errcode":45009}"#), Err(WeChatError::OutOfQuota(report(45009))));
    assert_eq!(identity_of(r#"{"errcode":40125}"#), Err(WeChatError::Refused(report(40125))));
    assert_eq!(identity_of(r#"{"errcode":99999}"#), Err(WeChatError::Refused(report(99999))));
    assert_eq!(ErrCode(99999).label(), "other");
}

#[test]
fn a_session_key_that_is_not_16_bytes_of_base64_does_not_fail_the_exchange() {
    let key_of = |key: &str| {
        let body = format!(r#"{{"openid":"o1","session_key":"{key}"}}"#);
        exchanged_of(&body).unwrap().session_key()
    };
    let key = key_of(r"tiihtNczf5v6AKRyjwEUhQ==").unwrap();
    assert_eq!(key.expose(), "tiihtNczf5v6AKRyjwEUhQ==");
    for key in ["k", "tiihtNczf5v6AKRyjwEUhQ", " tiihtNczf5v6AKRyjwEUhQ=="] {
        assert!(key_of(key).is_none(), "{key}");
    }
}

#[test]
fn a_response_to_an_oauth_exchange_needs_an_openid_and_no_session_key() {
    let exchanged = oauth_exchanged_of(
        r#"{"access_token":"a","expires_in":7200,"refresh_token":"r","openid":"o1","scope":"snsapi_base"}"#,
    )
    .unwrap();
    assert_eq!(
        (exchanged.identity.openid.as_str(), exchanged.identity.unionid.is_none()),
        ("o1", true)
    );
    assert!(!exchanged.has_session_key() && exchanged.session_key().is_none());
    let exchanged =
        oauth_exchanged_of(r#"{"openid":"o1","unionid":"u1","session_key":5}"#).unwrap();
    assert_eq!(exchanged.identity.unionid.unwrap().as_str(), "u1");
    assert!(oauth_exchanged_of(r#"{"access_token":"a","unionid":"u1"}"#).is_err());
    assert!(oauth_exchanged_of(r#"{"errcode":40163,"openid":"o1"}"#).is_err());
    assert_eq!(identity_of(r#"{"errcode":42003}"#), Err(WeChatError::InvalidCode(ErrCode(42003))));
}

#[test]
fn the_user_of_a_snapshot_is_not_taken_for_a_user() {
    let outcome = |value: &str| {
        let body = format!(r#"{{"openid":"o1","is_snapshotuser":{value}}}"#);
        oauth_exchanged_of(&body).map(|exchanged| exchanged.identity.openid.as_str().to_owned())
    };
    for value in ["1", "\"1\"", "\" 1\""] {
        assert_eq!(outcome(value), Err(WeChatError::Snapshot), "{value}");
    }
    for value in ["0", "\"0\"", "\"\"", "null"] {
        assert_eq!(outcome(value).as_deref(), Ok("o1"), "{value}");
    }
    for value in ["2", "true", "false", "1.0", "[1]", "\"yes\"", "1,\"is_snapshotuser\":0"] {
        assert!(matches!(outcome(value), Err(WeChatError::Malformed(_))), "{value}");
    }
    // Mini Programs have no such users.
    let fields = r#""openid":"o1","session_key":"k","is_snapshotuser":1"#;
    for body in [format!("{{{fields}}}"), format!(r#"{{{fields},"is_snapshotuser":1}}"#)] {
        assert_eq!(identity_of(&body).unwrap().openid.as_str(), "o1");
    }
}

#[test]
fn invalid_responses_give_no_identity() {
    for body in [
        "",
        "null",
        "[]",
        "\"ok\"",
        "<html>",
        "{",
        r#"[0,null,"o1",null,"k"]"#,
        r#"{"openid":"o1"}"#,
        r#"{"session_key":"k"}"#,
        r#"{"openid":"","session_key":"k"}"#,
        r#"{"openid":5,"session_key":"k"}"#,
        r#"{"openid":"o\r\nX-Admin: 1","session_key":"k"}"#,
        r#"{"openid":"é","session_key":"k"}"#,
        r#"{"openid":"o1","session_key":"k","unionid":"u 1"}"#,
        r#"{"openid":"o1","session_key":"k","errcode":"x"}"#,
        r#"{"openid":"o1","openid":"o2","session_key":"k"}"#,
    ] {
        assert!(matches!(identity_of(body), Err(WeChatError::Malformed(_))), "{body}");
    }
    let long = format!(r#"{{"openid":"{}","session_key":"k"}}"#, "o".repeat(10_000));
    assert!(matches!(identity_of(&long), Err(WeChatError::Malformed(_))));
}

#[test]
fn the_gateways_address_is_taken_from_errmsg() {
    let seen = |errmsg| seen_address(errmsg).map(|address| address.to_string());
    let v4 = "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: 6";
    assert_eq!(seen(v4).as_deref(), Some("203.0.113.7"));
    assert_eq!(seen("invalid ip 2001:db8::1, not in whitelist").as_deref(), Some("2001:db8::1"));
    assert_eq!(seen("invalid ip secret, not in whitelist"), None);
    assert_eq!(seen("not in whitelist"), None);
}

#[test]
fn only_the_trace_id_is_taken_from_errmsg() {
    assert_eq!(
        trace_id("invalid code, rid: 608d5803-66b84dfc-005383b1"),
        Some("608d5803-66b84dfc-005383b1")
    );
    assert_eq!(
        trace_id("invalid code, hints: [ req_id: AijFoqaLRa-pTFm4 ]"),
        Some("AijFoqaLRa-pTFm4")
    );
    assert_eq!(trace_id("invalid code rid: \"secret\""), None);
    assert_eq!(trace_id("invalid code"), None);
}

/// A value of a field, often one that affects the result.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec![0, 0, -1, 1, 40029]).prop_map(Value::from),
        "o[a-zA-Z0-9_-]{0,9}".prop_map(Value::from),
        "(0| 0|-1|\\PC{0,3}|[\0-\x7f]{0,4})".prop_map(Value::from),
        Just(serde_json::json!({"openid": "o2", "session_key": "k", "x": ["\"errcode\":1"]})),
    ]
}

fn field() -> impl Strategy<Value = (String, Value, bool)> {
    let name = prop_oneof![
        4 => prop::sample::select(vec!["openid", "session_key", "errcode", "unionid"])
            .prop_map(str::to_owned),
        1 => "(Openid|errmsg|[\0-\x7f]{0,4}|\\PC{0,3})",
    ];
    (name, value(), any::<bool>())
}

/// The openid, by a simple parser.
fn simple_openid(fields: &[(String, Value, bool)]) -> Option<String> {
    let one = |name: &str| {
        let mut all = fields.iter().filter(|(field, ..)| field == name).map(|(_, v, _)| v);
        let first = all.next().unwrap_or(&Value::Null);
        all.next().is_none().then_some(first)
    };
    let is_success = match one("errcode")? {
        Value::Null => true,
        Value::String(text) => text.trim().parse() == Ok(0),
        errcode => errcode.as_i64() == Some(0),
    };
    let id = |text: &str| OpenId::parse(text).map(|_| text.to_owned());
    let unionid = one("unionid")?;
    let is_bound = unionid.as_str().is_some_and(|text| text.is_empty() || id(text).is_some());
    let key = one("session_key")?.as_str()?;
    let openid = one("openid")?.as_str().and_then(id)?;
    let is_key = !key.is_empty() && !key.contains('\x7f');
    (is_success && is_key && (is_bound || unionid.is_null())).then_some(openid)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Names may have escapes, and fields may be repeated or contain what looks like other
    /// fields.
    #[test]
    fn valid_json_is_read_as_by_a_simple_parser(
        user in prop::collection::vec("o[a-z]{0,3}", 0..2),
        others in prop::collection::vec(field(), 0..4),
    ) {
        let user = user.iter().flat_map(|id| [("session_key", id), ("openid", id)]);
        let user = user.map(|(name, id)| (name.to_owned(), Value::from(id.as_str()), true));
        let fields: Vec<_> = user.chain(others).collect();
        let written: Vec<String> = fields
            .iter()
            .map(|(name, value, is_escaped)| {
                let escaped = name.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
                let plain = Value::from(name.as_str()).to_string();
                let escaped = format!("\"{}\"", escaped.collect::<String>());
                format!("{}:{value}", if *is_escaped { escaped } else { plain })
            })
            .collect();
        let body = format!("{{{}}}", written.join(","));
        let found = identity_of(&body).ok().map(|identity| identity.openid.as_str().to_owned());
        prop_assert_eq!(found, simple_openid(&fields), "{}", body);
    }

    /// No bytes in the text of another field can become a field, or hide one.
    #[test]
    fn the_bytes_of_a_text_never_change_the_result(
        mut text in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        text.retain(|byte| !matches!(byte, b'"' | b'\\'));
        for (fields, is_good) in
            [(r#""openid":"o1","session_key":"k"}"#, true), (r#""errcode":40029}"#, false)]
        {
            let body = [b"{\"errmsg\":\"", text.as_slice(), b"\",", fields.as_bytes()].concat();
            let reply = Reply::parse(&body).unwrap();
            let exchanged = reply.into_exchanged(&AppId::parse("wx1").unwrap());
            prop_assert_eq!(exchanged.is_ok(), is_good);
        }
    }
}
