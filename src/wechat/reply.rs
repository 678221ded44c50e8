//! The wire format of WeChat's responses.
//!
//! An exchange succeeds if the required fields exist, and `errcode` is missing or 0. `errcode` may
//! be a number or a string; unknown fields are ignored; the content type is not reliable.
//! `session_key` must exist, as in every genuine response, and is wiped unread, because nothing
//! needs it.
//!
//! Only `errcode`, `openid`, `unionid` and `session_key` affect the result, and they are read
//! strictly. No other field may affect it, whatever its value: not `errmsg`, and not what a relay
//! adds.

use std::fmt;
use std::net::IpAddr;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::{ErrCode, ErrorReport, WeChatError};
use crate::identity::{AppId, Identity, OpenId, UnionId};

/// Replaces every byte of a string that JSON or UTF-8 does not allow. Invalid in each of the fields
/// that affect the result.
const UNREADABLE: u8 = 0x7f;

/// A response of code2Session. Only the fields that affect the result are read.
#[derive(Default)]
pub struct Reply {
    errcode: Option<Field>,
    openid: Option<Field>,
    unionid: Option<Field>,
    session_key: Option<Field>,
    /// Trace id and address, if `errmsg` contains them.
    rid: Option<Box<str>>,
    seen_address: Option<IpAddr>,
}

/// The value of a field that affects the result.
enum Field {
    Null,
    Number(i64),
    Text(Zeroizing<String>),
    /// It has a type that it should never have, or contains characters that are not allowed in
    /// text.
    Wrong,
}

impl Reply {
    /// Parses the body of a response. Values of other fields do not matter, as long as it is clear
    /// where they end.
    ///
    /// # Errors
    /// When it is not exactly one JSON object, or has a field that affects the result twice.
    pub fn parse(body: &[u8]) -> Result<Self, WeChatError> {
        let wrong = || WeChatError::malformed("not the JSON expected");
        let text = readable(body);
        // serde would also read the fields from an array.
        if !text.starts_with(b"{") {
            return Err(wrong());
        }
        let text = std::str::from_utf8(&text).map_err(|_| wrong())?;
        let mut reply: Self = serde_json::from_str(text).map_err(|_| wrong())?;
        if let Some((_, errmsg)) = text.split_once("\"errmsg\"") {
            reply.rid = trace_id(errmsg).map(Box::from);
            reply.seen_address = seen_address(errmsg);
        }
        Ok(reply)
    }

    /// The error that WeChat reports, if any.
    ///
    /// # Errors
    /// When there is an `errcode` that is not a number.
    pub fn failure(&self) -> Result<Option<WeChatError>, WeChatError> {
        let code = match &self.errcode {
            None | Some(Field::Null) => 0,
            Some(Field::Number(number)) => *number,
            Some(Field::Text(text)) => {
                text.trim().parse().map_err(|_| WeChatError::malformed("invalid errcode"))?
            }
            Some(Field::Wrong) => return Err(WeChatError::malformed("invalid errcode")),
        };
        Ok((code != 0).then(|| self.error(ErrCode(code))))
    }

    /// Removes a trace id that contains one of these secrets, or is a part of one.
    #[must_use]
    pub fn without(mut self, secrets: [&str; 2]) -> Self {
        let shows = |rid: &str, secret: &str| rid.contains(secret) || secret.contains(rid);
        self.rid = self.rid.filter(|rid| !secrets.iter().any(|secret| shows(rid, secret)));
        self
    }

    /// The identity of the user.
    ///
    /// # Errors
    /// The error that WeChat reports, or what is wrong with its response.
    pub fn into_identity(self, app_id: &AppId) -> Result<Identity, WeChatError> {
        if let Some(error) = self.failure()? {
            return Err(error);
        }
        if text(self.session_key.as_ref()).is_none() {
            return Err(WeChatError::malformed("no session_key"));
        }
        let openid = text(self.openid.as_ref()).and_then(OpenId::parse);
        let openid = openid.ok_or(WeChatError::malformed("invalid openid"))?;
        // For apps that are not bound to an Open Platform account, the field is missing or empty.
        let unionid = match &self.unionid {
            None | Some(Field::Null) => None,
            Some(Field::Text(text)) if text.is_empty() => None,
            field => {
                let unionid = text(field.as_ref()).and_then(UnionId::parse);
                Some(unionid.ok_or(WeChatError::malformed("invalid unionid"))?)
            }
        };
        Ok(Identity { app_id: app_id.clone(), openid, unionid })
    }

    fn error(&self, errcode: ErrCode) -> WeChatError {
        match errcode.0 {
            40029 | 40163 | 41008 => WeChatError::InvalidCode(errcode),
            40226 => WeChatError::UserBlocked(errcode),
            45011 => WeChatError::RateLimited(self.error_report(errcode)),
            -1 => WeChatError::Busy(self.error_report(errcode)),
            45009 => WeChatError::OutOfQuota(self.error_report(errcode)),
            _ => WeChatError::Refused(self.error_report(errcode)),
        }
    }

    /// WeChat's text is not repeated; only what support and operators need is extracted.
    fn error_report(&self, errcode: ErrCode) -> ErrorReport {
        ErrorReport { errcode, rid: self.rid.clone(), seen_address: self.seen_address }
    }
}

/// The address in `invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist`.
fn seen_address(errmsg: &str) -> Option<IpAddr> {
    let (_, rest) = errmsg.split_once("invalid ip ")?;
    rest.split([' ', ',']).next()?.parse().ok()
}

/// The trace id in an `errmsg`: `... rid: 608d5803-66b84dfc-005383b1`, in older ones
/// `... hints: [ req_id: AijFoqaLRa-pTFm4 ]` or `req_id: je7q.a0244th27`.
fn trace_id(errmsg: &str) -> Option<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    ["rid", "req_id"].iter().find_map(|name| {
        errmsg.match_indices(name).find_map(|(at, _)| {
            let (before, rest) = (errmsg.get(..at)?, errmsg.get(at + name.len()..)?);
            let rest = rest.trim_start().strip_prefix([':', '='])?.trim_start();
            let rid = rest.split(|c: char| !is_part(c)).next()?.trim_end_matches('.');
            (!before.ends_with(is_part) && (8..=64).contains(&rid.len())).then_some(rid)
        })
    })
}

/// The text of a field, unless it is missing or empty.
fn text(field: Option<&Field>) -> Option<&str> {
    match field {
        Some(Field::Text(text)) => Some(text.as_str()).filter(|text| !text.is_empty()),
        _ => None,
    }
}

/// The JSON of a body: without a BOM and blanks around it, and with [`UNREADABLE`] for bytes that
/// are not allowed in its strings, such as line breaks and bytes of GBK. It is never longer than
/// the body, so that the buffer does not grow and leave a copy behind.
fn readable(body: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut body = body.trim_ascii();
    while let Some(rest) = body.strip_prefix(b"\xef\xbb\xbf") {
        body = rest.trim_ascii_start();
    }
    let is_utf8 = std::str::from_utf8(body).is_ok();
    let mut readable = Zeroizing::new(Vec::with_capacity(body.len()));
    let mut is_in_string = false;
    let mut rest = body;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' => {
                is_in_string = !is_in_string;
                readable.push(byte);
            }
            b'\\' if is_in_string => match rest.split_at_checked(escape_length(rest)) {
                Some((escaped @ [_, ..], after)) => {
                    readable.push(byte);
                    readable.extend(escaped);
                    rest = after;
                }
                _ => readable.push(UNREADABLE),
            },
            0..0x20 if is_in_string => readable.push(UNREADABLE),
            0x80.. if !is_utf8 => {
                // The second byte of a GBK character may be a backslash.
                if let [0x40..=0x7e | 0x80..=0xfe, after @ ..] = rest {
                    rest = after;
                }
                readable.push(UNREADABLE);
            }
            _ => readable.push(byte),
        }
    }
    readable
}

/// The length of an escape after its backslash; 0 if it is not a valid escape.
fn escape_length(after: &[u8]) -> usize {
    match after {
        [b'u', digits @ ..] => {
            let digits = digits.first_chunk::<4>();
            digits.map_or(0, |d| if d.iter().all(u8::is_ascii_hexdigit) { 5 } else { 0 })
        }
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 1,
        _ => 0,
    }
}

impl<'de> Deserialize<'de> for Reply {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Reply;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Reply, A::Error> {
                let mut reply = Reply::default();
                while let Some(name) = map.next_key::<Name>()? {
                    let field = match name {
                        Name::ErrCode => &mut reply.errcode,
                        Name::OpenId => &mut reply.openid,
                        Name::UnionId => &mut reply.unionid,
                        Name::SessionKey => &mut reply.session_key,
                        Name::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if field.replace(map.next_value()?).is_some() {
                        return Err(de::Error::custom("a field that decides is there twice"));
                    }
                }
                Ok(reply)
            }
        }

        input.deserialize_map(Reader)
    }
}

enum Name {
    ErrCode,
    OpenId,
    UnionId,
    SessionKey,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Name;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name")
            }

            fn visit_bytes<E: de::Error>(self, name: &[u8]) -> Result<Name, E> {
                Ok(match name {
                    b"errcode" => Name::ErrCode,
                    b"openid" => Name::OpenId,
                    b"unionid" => Name::UnionId,
                    b"session_key" => Name::SessionKey,
                    _ => Name::Other,
                })
            }
        }

        // Half of a surrogate pair is not valid text, but allowed as a name.
        input.deserialize_bytes(Reader)
    }
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Field;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Field, E> {
                Ok(Field::Null)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Field, E> {
                Ok(Field::Number(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Field, E> {
                Ok(i64::try_from(number).map_or(Field::Wrong, Field::Number))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Field, E> {
                let is_wrong = text.bytes().any(|byte| byte == UNREADABLE);
                Ok(if is_wrong { Field::Wrong } else { Field::Text(text.to_owned().into()) })
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Field, E> {
                Ok(Field::Wrong)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Field, E> {
                Ok(Field::Wrong)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Field, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Field::Wrong)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Field::Wrong)
            }
        }

        input.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn judge(body: &str) -> Result<Identity, WeChatError> {
        Reply::parse(body.as_bytes())?.into_identity(&AppId::parse("wx1").unwrap())
    }

    #[test]
    fn success_is_known_by_its_fields() {
        for body in [
            r#"{"openid":"o1","session_key":"k"}"#,
            r#"{"openid":"o1","session_key":"k","errcode":0,"errmsg":"ok"}"#,
            r#"{"openid":"o1","session_key":"k","errcode":"0","expires_in":7200}"#,
            r#"{"openid":"o1","session_key":"a\/b==","errcode":null,"unionid":""}"#,
        ] {
            let identity = judge(body).unwrap();
            assert_eq!(identity.openid.as_str(), "o1");
            assert_eq!(identity.unionid, None);
        }
        let identity = judge(r#"{"openid":"o1","session_key":"k","unionid":"u1"}"#).unwrap();
        assert_eq!(identity.unionid.unwrap().as_str(), "u1");
    }

    #[test]
    fn errcodes_count_as_numbers_and_as_text_and_before_any_field() {
        let invalid = |code| Err(WeChatError::InvalidCode(ErrCode(code)));
        assert_eq!(judge(r#"{"errcode":40029,"errmsg":"x"}"#), invalid(40029));
        assert_eq!(judge(r#"{"errcode":"40163"}"#), invalid(40163));
        assert_eq!(judge(r#"{"errcode":41008}"#), invalid(41008));
        assert_eq!(judge(r#"{"errcode":40029,"openid":"o1","session_key":"k"}"#), invalid(40029));
        assert_eq!(judge(r#"{"errcode":40226}"#), Err(WeChatError::UserBlocked(ErrCode(40226))));
        let report = |code| ErrorReport { errcode: ErrCode(code), rid: None, seen_address: None };
        assert_eq!(judge(r#"{"errcode":45011}"#), Err(WeChatError::RateLimited(report(45011))));
        assert_eq!(judge(r#"{"errcode":-1}"#), Err(WeChatError::Busy(report(-1))));
        assert_eq!(judge(r#"{"errcode":45009}"#), Err(WeChatError::OutOfQuota(report(45009))));
        assert_eq!(judge(r#"{"errcode":40125}"#), Err(WeChatError::Refused(report(40125))));
        assert_eq!(judge(r#"{"errcode":99999}"#), Err(WeChatError::Refused(report(99999))));
        assert_eq!(ErrCode(99999).label(), "other");
    }

    #[test]
    fn nothing_hostile_becomes_an_identity() {
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
            assert!(matches!(judge(body), Err(WeChatError::Malformed(_))), "{body}");
        }
        let long = format!(r#"{{"openid":"{}","session_key":"k"}}"#, "o".repeat(10_000));
        assert!(matches!(judge(&long), Err(WeChatError::Malformed(_))));
    }

    #[test]
    fn the_address_that_wechat_saw_is_taken_from_its_words() {
        let seen = |errmsg| seen_address(errmsg).map(|address| address.to_string());
        let v4 = "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: 6";
        assert_eq!(seen(v4).as_deref(), Some("203.0.113.7"));
        assert_eq!(
            seen("invalid ip 2001:db8::1, not in whitelist").as_deref(),
            Some("2001:db8::1")
        );
        assert_eq!(seen("invalid ip secret, not in whitelist"), None);
        assert_eq!(seen("not in whitelist"), None);
    }

    #[test]
    fn only_the_trace_id_is_taken_from_wechats_words() {
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
    fn plainly(fields: &[(String, Value, bool)]) -> Option<String> {
        let one = |name: &str| {
            let mut all = fields.iter().filter(|(known, ..)| known == name).map(|(_, v, _)| v);
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
        fn valid_json_is_read_as_a_plain_reader_does(
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
            let found = judge(&body).ok().map(|identity| identity.openid.as_str().to_owned());
            prop_assert_eq!(found, plainly(&fields), "{}", body);
        }

        /// No bytes in the text of another field can become a field, or hide one.
        #[test]
        fn the_bytes_of_a_text_never_change_the_verdict(
            mut text in prop::collection::vec(any::<u8>(), 0..12),
        ) {
            text.retain(|byte| !matches!(byte, b'"' | b'\\'));
            for (fields, is_good) in
                [(r#""openid":"o1","session_key":"k"}"#, true), (r#""errcode":40029}"#, false)]
            {
                let body = [b"{\"errmsg\":\"", text.as_slice(), b"\",", fields.as_bytes()].concat();
                let reply = Reply::parse(&body).unwrap();
                let identity = reply.into_identity(&AppId::parse("wx1").unwrap());
                prop_assert_eq!(identity.is_ok(), is_good);
            }
        }
    }
}
