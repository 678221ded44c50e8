//! WeChat's errors.

use serde_json::json;

use super::text;
use crate::listener::internal::Response;

/// The response that reports an errcode, with WeChat's text and a trace id.
pub fn error(errcode: i64) -> Response {
    let message = match errcode {
        -1 => "system error",
        40002 => "invalid grant_type",
        40013 => "invalid appid",
        40029 => "invalid code",
        40125 => "invalid appsecret",
        40163 => "code been used",
        40164 => "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
        40226 => "code blocked",
        41002 => "appid missing",
        41004 => "appsecret missing",
        41008 => "missing code",
        45009 => "reach max api daily quota limit",
        45011 => "api minute-quota reach limit mustslower retry next minute",
        87009 => "invalid signature",
        _ => "error",
    };
    let [a, b, c]: [u32; 3] = rand::random();
    let rid = format!("{a:08x}-{b:08x}-{c:08x}");
    text(&json!({ "errcode": errcode, "errmsg": format!("{message}, rid: {rid}") }))
}
