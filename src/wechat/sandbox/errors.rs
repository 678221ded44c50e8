//! WeChat's errors.

use serde_json::{Value, json};

use super::Dropped;

/// Why a call has no result.
pub enum Failure {
    Errcode(i64),
    /// The connection is closed without a response.
    Dropped,
}

impl From<i64> for Failure {
    fn from(errcode: i64) -> Self {
        Self::Errcode(errcode)
    }
}

impl From<Dropped> for Failure {
    fn from(_: Dropped) -> Self {
        Self::Dropped
    }
}

/// The JSON that reports an errcode, with WeChat's text and a trace id.
pub fn error(errcode: i64) -> Value {
    let message = match errcode {
        -1 => "system error",
        40001 => {
            "invalid credential, access_token is invalid or not latest, could get access_token by \
             getStableAccessToken"
        }
        40002 => "invalid grant_type",
        40003 => "invalid openid",
        40004 => "invalid media type",
        40006 => "invalid meida size",
        40007 => "invalid media_id",
        40013 => "invalid appid",
        40014 => "invalid access_token",
        40029 => "invalid code",
        40037 => "invalid template_id",
        40066 => "invalid url",
        40097 => "invalid args",
        40125 => "invalid appsecret",
        40129 => "invalid scene",
        40159 => "invalid length for path, or the data is not json string",
        40163 => "code been used",
        40164 => "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
        40226 => "code blocked",
        41001 => "access_token missing",
        41002 => "appid missing",
        41004 => "appsecret missing",
        41005 => "media data missing",
        41008 => "missing code",
        41030 => "invalid page",
        42001 => "access_token expired",
        43001 => "require GET method",
        43002 => "require POST method",
        43101 => "user refuse to accept the msg",
        44002 => "empty post data",
        45002 => "content size out of limit",
        45009 => "reach max api daily quota limit",
        45011 => "api minute-quota reach limit mustslower retry next minute",
        47001 => "data format error",
        47003 => "argument invalid!",
        61010 => "code is expired",
        87007 => "session_key is not existed or expired",
        87008 => "invalid sig_method",
        87009 => "invalid signature",
        87014 => "risky content",
        _ => "error",
    };
    let [a, b, c]: [u32; 3] = rand::random();
    let rid = format!("{a:08x}-{b:08x}-{c:08x}");
    json!({ "errcode": errcode, "errmsg": format!("{message}, rid: {rid}") })
}
