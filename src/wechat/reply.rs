//! The wire format of WeChat's responses.
//!
//! An exchange succeeds if the required fields exist, and `errcode` is missing or 0. `errcode` may
//! be a number or a string; unknown fields are ignored; the content type is not reliable.
//! `session_key` must exist in a response of code2Session, as in every genuine one. It is wiped
//! unread unless session keys are kept (`[open_data]`); what it looks like does not affect the
//! result. The tokens in a response of `/sns/oauth2/access_token` are wiped unread.
//!
//! Only `errcode`, `openid`, `unionid`, `session_key` and, in a response of
//! `/sns/oauth2/access_token`, `is_snapshotuser` affect the result, and they are read strictly. No
//! other field may affect it, whatever its value: not `errmsg`, and not what a relay adds.

use std::fmt;
use std::net::IpAddr;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::{ErrCode, ErrorReport, WeChatError};
use crate::identity::session_key::SessionKey;
use crate::identity::{AppId, Identity, OpenId, UnionId};

/// Replaces every byte of a string that JSON or UTF-8 does not allow. Invalid in each of the fields
/// that affect the result.
const UNREADABLE: u8 = 0x7f;

/// A response of an exchange. Only the fields that affect the result are read.
#[derive(Default)]
pub struct Reply {
    errcode: Option<Field>,
    openid: Option<Field>,
    unionid: Option<Field>,
    session_key: Option<Field>,
    is_snapshot_user: Option<Field>,
    /// Trace id and address, if `errmsg` contains them.
    rid: Option<Box<str>>,
    seen_address: Option<IpAddr>,
}

/// What a successful exchange returned.
pub struct Exchanged {
    pub identity: Identity,
    /// As WeChat sent it; only users of Mini Programs have one. Wiped when it is dropped.
    session_key: Option<Zeroizing<String>>,
}

impl Exchanged {
    /// Whether WeChat has sent a `session_key`, as it does for users of Mini Programs.
    pub fn has_session_key(&self) -> bool {
        self.session_key.is_some()
    }

    /// The user's `session_key`; `None` if it is not 16 bytes in base64, and useless.
    pub fn session_key(&self) -> Option<SessionKey> {
        self.session_key.as_ref().and_then(|key| SessionKey::parse(key))
    }
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
    /// When it is not exactly one JSON object, or repeats a field that affects the result.
    pub fn parse(body: &[u8]) -> Result<Self, WeChatError> {
        let wrong = || WeChatError::malformed("not the expected JSON");
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
    pub fn without<'a>(mut self, secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let shows = |rid: &str, secret: &str| rid.contains(secret) || secret.contains(rid);
        for secret in secrets {
            self.rid = self.rid.filter(|rid| !shows(rid, secret));
        }
        self
    }

    /// What a successful exchange by code2Session returned.
    ///
    /// # Errors
    /// The error that WeChat reports, or what is wrong with its response.
    pub fn into_exchanged(mut self, app_id: &AppId) -> Result<Exchanged, WeChatError> {
        if let Some(error) = self.failure()? {
            return Err(error);
        }
        let session_key = match self.session_key.take() {
            Some(Field::Text(text)) if !text.is_empty() => Some(text),
            _ => return Err(WeChatError::malformed("no session_key")),
        };
        Ok(Exchanged { identity: self.identity(app_id)?, session_key })
    }

    /// What a successful exchange by `/sns/oauth2/access_token` returned.
    ///
    /// # Errors
    /// The error that WeChat reports, what is wrong with its response, or that the user does not
    /// exist.
    pub fn into_oauth_exchanged(self, app_id: &AppId) -> Result<Exchanged, WeChatError> {
        if let Some(error) = self.failure()? {
            return Err(error);
        }
        match &self.is_snapshot_user {
            None | Some(Field::Null | Field::Number(0)) => {}
            Some(Field::Number(1)) => return Err(WeChatError::Snapshot),
            Some(Field::Text(text)) if matches!(text.trim(), "" | "0") => {}
            Some(Field::Text(text)) if text.trim() == "1" => return Err(WeChatError::Snapshot),
            Some(_) => return Err(WeChatError::malformed("invalid is_snapshotuser")),
        }
        Ok(Exchanged { identity: self.identity(app_id)?, session_key: None })
    }

    /// The identity in a response that reports no error.
    fn identity(&self, app_id: &AppId) -> Result<Identity, WeChatError> {
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
        Ok(Identity { app_id: app_id.clone(), openid, unionid, user_id: None })
    }

    fn error(&self, errcode: ErrCode) -> WeChatError {
        match errcode.0 {
            40029 | 40163 | 41008 | 42003 => WeChatError::InvalidCode(errcode),
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
pub(super) fn readable(body: &[u8]) -> Zeroizing<Vec<u8>> {
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
                        Name::IsSnapshotUser => {
                            let value = map.next_value()?;
                            let is_repeated = reply.is_snapshot_user.is_some();
                            let value = if is_repeated { Field::Wrong } else { value };
                            // To responses of code2Session it does not matter.
                            reply.is_snapshot_user = Some(value);
                            continue;
                        }
                        Name::Other => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    if field.replace(map.next_value()?).is_some() {
                        return Err(de::Error::custom("repeated field"));
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
    IsSnapshotUser,
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
                    b"is_snapshotuser" => Name::IsSnapshotUser,
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
mod tests;
