//! The internal API: what services may ask of the gateway.

mod checks;
pub mod connections;
mod description;
mod log;
pub mod open_data;
mod rights;
mod wechat;

use serde_json::{Value, json};

use crate::harness::client::{Request, Response};
use crate::harness::{SERVICES, Stack};

/// One token that may do everything.
pub const ONE_TOKEN: &str = r#"
    [internal]
    listen = "127.0.0.1:0"
    token = { file = "{dir}/any" }
    wechat_paths = ["/wxa/msg_sec_check", "/cgi-bin/message/subscribe"]
    [open_data]
    enabled = true
"#;

/// Two services: one for one app and for everything but tokens, the other for tokens of both apps
/// and for one path.
pub const TWO_TOKENS: &str = r#"
    [internal]
    listen = "127.0.0.1:0"
    wechat_paths = ["/wxa/msg_sec_check", "/cgi-bin/message/subscribe"]
    [[internal.token]]
    name = "orders"
    token = { file = "{dir}/orders" }
    apps = ["wx0123456789abcdef"]
    allow = ["open-data", "session-key", "phone-number", "wechat"]
    [[internal.token]]
    name = "mail"
    token = { file = "{dir}/mail" }
    apps = ["wx0123456789abcdef", "wxfedcba9876543210"]
    allow = ["access-token", "wechat"]
    wechat_paths = ["/cgi-bin/message/subscribe/send"]
    [open_data]
    enabled = true
    [[app]]
    app_id = "wx0123456789abcdef"
    app_secret = { file = "{dir}/wechat-secret" }
    default = true
    [[app]]
    app_id = "wxfedcba9876543210"
    app_secret = { file = "{dir}/wechat-secret" }
"#;

/// Every path of the API that has a body of JSON, with a body that it takes.
pub fn posts() -> Vec<(&'static str, Value)> {
    vec![
        (
            "/v1/open-data/decrypt",
            json!({
                "openid": "o1", "encrypted_data": "AAAAAAAAAAAAAAAAAAAAAA==",
                "iv": "AAAAAAAAAAAAAAAAAAAAAA==", "max_age": 60,
            }),
        ),
        ("/v1/open-data/verify", json!({ "openid": "o1", "raw_data": "{}", "signature": "00" })),
        ("/v1/session-key/check", json!({ "openid": "o1" })),
        ("/v1/session-key/reset", json!({ "openid": "o1" })),
        ("/v1/phone-number", json!({ "openid": "o1", "code": "a-code-of-the-button" })),
        ("/v1/access-token/renew", json!({ "access_token": "a-token-that-was-rejected" })),
    ]
}

/// The token of a service.
pub fn token(service: &str) -> &'static str {
    SERVICES.iter().find(|(name, _)| *name == service).unwrap().1
}

/// A request with the token of a service.
pub fn request<'a>(stack: &'a Stack, service: &str, method: &str, path: &str) -> Request<'a> {
    stack.request(method, path).bearer(token(service))
}

/// Sends a body of JSON with the token of a service.
pub async fn post(stack: &Stack, service: &str, path: &str, body: &Value) -> Response {
    request(stack, service, "POST", path).json(body).send_to_internal().await
}

/// The status and the kind of an error, which must have the gateway's shape.
pub fn error(answer: &Response) -> (u16, String) {
    let body = answer.json();
    let word = body["error"].as_str().unwrap_or_else(|| panic!("{}", answer.text()));
    assert_eq!(answer.header("x-wxgate-error"), Some(word));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("x-request-id"), body["request_id"].as_str());
    assert!(body["message"].is_string() && body["action"].is_string(), "{body}");
    (answer.status, word.to_owned())
}

/// Whether an answer is this error.
#[track_caller]
pub fn assert_error(answer: &Response, status: u16, word: &str) {
    assert_eq!(error(answer), (status, word.to_owned()), "{}", answer.text());
}
