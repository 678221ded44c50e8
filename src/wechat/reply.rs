//! The wire format of WeChat's answers, with its habits.
//!
//! Success is: the required fields are there, and `errcode` is absent or 0. `errcode` may
//! be a number or a string; unknown fields come and go; the content type says nothing.
//! `session_key` must be there, as in any true answer, and is wiped unread: nothing needs it.

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::WeChatError;
use crate::identity::{AppId, Identity, OpenId, UnionId};

/// A number that WeChat gave for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrCode(i64);

impl ErrCode {
    /// The label in metrics: numbers that are known, or `other`, so that no answer can make
    /// new series.
    pub fn label(self) -> &'static str {
        KNOWN.iter().find(|(code, _)| *code == self.0).map_or("other", |(_, label)| label)
    }
}

impl fmt::Display for ErrCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "errcode {}", self.0)
    }
}

/// The codes of code2Session's page and those seen in practice.
const KNOWN: [(i64, &str); 19] = [
    (-1, "-1"),
    (40001, "40001"),
    (40013, "40013"),
    (40029, "40029"),
    (40125, "40125"),
    (40163, "40163"),
    (40164, "40164"),
    (40226, "40226"),
    (40243, "40243"),
    (41002, "41002"),
    (41004, "41004"),
    (41008, "41008"),
    (45009, "45009"),
    (45011, "45011"),
    (50007, "50007"),
    (61024, "61024"),
    (89503, "89503"),
    (89506, "89506"),
    (89507, "89507"),
];

/// An answer of code2Session.
#[derive(Deserialize)]
pub struct Reply {
    #[serde(default, deserialize_with = "number_or_text")]
    errcode: Option<i64>,
    errmsg: Option<String>,
    openid: Option<String>,
    unionid: Option<String>,
    session_key: Option<Zeroizing<String>>,
}

impl Reply {
    pub fn parse(body: &[u8]) -> Result<Self, WeChatError> {
        // serde would read the fields from an array too.
        let is_object = body.trim_ascii_start().starts_with(b"{");
        let reply = is_object.then(|| serde_json::from_slice(body).ok()).flatten();
        reply.ok_or(WeChatError::Malformed("not the JSON expected"))
    }

    pub fn into_identity(self, app_id: &AppId) -> Result<Identity, WeChatError> {
        if let Some(code) = self.errcode
            && code != 0
        {
            return Err(self.failure(ErrCode(code)));
        }
        if self.session_key.is_none_or(|key| key.is_empty()) {
            return Err(WeChatError::Malformed("no session_key"));
        }
        let openid = self.openid.as_deref().and_then(OpenId::parse);
        let openid = openid.ok_or(WeChatError::Malformed("no legal openid"))?;
        // WeChat leaves the field out, or empty, for apps that are not bound.
        let unionid = match self.unionid.as_deref() {
            None | Some("") => None,
            Some(text) => {
                Some(UnionId::parse(text).ok_or(WeChatError::Malformed("no legal unionid"))?)
            }
        };
        Ok(Identity { app_id: app_id.clone(), openid, unionid })
    }

    fn failure(&self, errcode: ErrCode) -> WeChatError {
        match errcode.0 {
            40029 | 40163 | 41008 => WeChatError::InvalidCode(errcode),
            40226 => WeChatError::UserBlocked(errcode),
            45011 => WeChatError::RateLimited(self.refusal(errcode)),
            -1 => WeChatError::Busy(self.refusal(errcode)),
            45009 => WeChatError::OutOfQuota(self.refusal(errcode)),
            _ => WeChatError::Refused(self.refusal(errcode)),
        }
    }

    /// WeChat's words are not repeated; what support and operators need of them is taken out.
    fn refusal(&self, errcode: ErrCode) -> Refusal {
        let errmsg = self.errmsg.as_deref();
        Refusal {
            errcode,
            rid: errmsg.and_then(trace_id).map(Box::from),
            seen_address: errmsg.and_then(seen_address),
        }
    }
}

/// A refusal that somebody must act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errcode: ErrCode,
    /// WeChat's trace id: its support asks for it.
    pub rid: Option<Box<str>>,
    /// The address from which WeChat was asked, as it saw it: to be put on its whitelist.
    pub seen_address: Option<IpAddr>,
}

/// The address in `invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist`.
fn seen_address(errmsg: &str) -> Option<IpAddr> {
    let (_, rest) = errmsg.split_once("invalid ip ")?;
    rest.split([' ', ',']).next()?.parse().ok()
}

/// The trace id at the end of an `errmsg`: `... rid: 608d5803-66b84dfc-005383b1`, of old
/// `... hints: [ req_id: AijFoqaLRa-pTFm4 ]`.
fn trace_id(errmsg: &str) -> Option<&str> {
    let (_, rest) = errmsg.split_once("rid: ").or_else(|| errmsg.split_once("req_id: "))?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let rid = rest.split(|c: char| !is_part(c)).next()?;
    (8..=64).contains(&rid.len()).then_some(rid)
}

fn number_or_text<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }

    match Option::<Either>::deserialize(input)? {
        None => Ok(None),
        Some(Either::Number(number)) => Ok(Some(number)),
        Some(Either::Text(text)) => text.trim().parse().map(Some).map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
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
        let refusal = |code| Refusal { errcode: ErrCode(code), rid: None, seen_address: None };
        assert_eq!(judge(r#"{"errcode":45011}"#), Err(WeChatError::RateLimited(refusal(45011))));
        assert_eq!(judge(r#"{"errcode":-1}"#), Err(WeChatError::Busy(refusal(-1))));
        assert_eq!(judge(r#"{"errcode":45009}"#), Err(WeChatError::OutOfQuota(refusal(45009))));
        assert_eq!(judge(r#"{"errcode":40125}"#), Err(WeChatError::Refused(refusal(40125))));
        assert_eq!(judge(r#"{"errcode":99999}"#), Err(WeChatError::Refused(refusal(99999))));
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
}
