//! What operators see of calls: access log and metrics.

use serde_json::{Value, json};

use super::{ONE_TOKEN, TWO_TOKENS, assert_error, post, request, token};
use crate::harness::client::{self, Connection};
use crate::harness::{APP, PATIENCE, Stack};

/// The access log's line of a request, once it is written.
async fn line(stack: &Stack, request_id: &str) -> Value {
    let file = stack.directory.path().join("access.log");
    let found = async {
        loop {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
            let mut lines =
                complete.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            if let Some(line) = lines.find(|line| line["request_id"] == request_id) {
                return line;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.expect("a line")
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_is_a_line_with_the_name_of_its_token() {
    let stack = Stack::start_with(TWO_TOKENS).await;
    let body = json!({ "openid": "o-of-this-test" });
    let answer = request(&stack, "orders", "POST", "/v1/session-key/check?")
        .header("X-Request-Id", "of-the-caller")
        .json(&body)
        .send_to_internal()
        .await;
    assert_error(&answer, 404, "unknown_user");
    let of_call = line(&stack, "of-the-caller").await;
    assert_eq!(of_call["listener"], "internal");
    assert_eq!(of_call["caller"], "orders");
    assert_eq!(of_call["app_id"], APP);
    assert_eq!((&of_call["status"], &of_call["error"]), (&json!(404), &json!("unknown_user")));
    assert_eq!(of_call["path"], "/v1/session-key/check");
    assert_eq!(of_call["bytes_in"], body.to_string().len());
    assert_eq!(of_call["bytes_out"], answer.body.len());
    assert_eq!(of_call["client"], "127.0.0.1");
    let user = of_call["user"].as_str().unwrap();
    assert!(user.len() == 16 && !of_call.to_string().contains("o-of-this-test"), "{of_call}");

    let answer = stack.get("/v1/access-token?app_id=secret").send_to_internal().await;
    let of_stranger = line(&stack, answer.header("x-request-id").unwrap()).await;
    assert_eq!((&of_stranger["caller"], &of_stranger["user"]), (&Value::Null, &Value::Null));
    assert!(!of_stranger.to_string().contains("secret"), "{of_stranger}");

    let answer = stack.get("/").send().await;
    let of_client = line(&stack, answer.header("x-request-id").unwrap()).await;
    assert!(of_client.get("listener").is_none() && of_client.get("caller").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_is_passed_through_is_a_line_with_its_errcode() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let path = format!("/v1/wechat/{APP}/cgi-bin/message/subscribe/send");
    let answer = post(&stack, "any", &path, &json!({ "touser": "o1" })).await;
    let errcode = answer.json()["errcode"].clone();
    assert_eq!((answer.status, errcode != 0), (200, true), "{}", answer.text());
    let of_call = line(&stack, answer.header("x-request-id").unwrap()).await;
    assert_eq!((&of_call["errcode"], &of_call["error"]), (&errcode, &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_disconnects_leaves_a_line_and_nothing_else() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let head = format!(
        "POST /v1/phone-number HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         X-Request-Id: left-early\r\nContent-Length: 100\r\n\r\n{{",
        token("any")
    );
    let mut connection = Connection::open(stack.internal.unwrap()).await;
    connection.send(head.as_bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    drop(connection);
    let of_call = line(&stack, "left-early").await;
    assert!([json!(499), json!(400)].contains(&of_call["status"]), "{of_call}");
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_operation_and_outcome_from_zero() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let series = |operation: &str, outcome: &str| {
        let name = "wxgate_open_data_requests_total";
        format!("{name}{{operation=\"{operation}\",outcome=\"{outcome}\"}}")
    };
    let text = client::get(stack.admin, "/metrics").await.text();
    for (operation, outcome) in [
        ("decrypt", "ok"),
        ("decrypt", "session_key_stale"),
        ("verify", "unknown_user"),
        ("check", "wechat_timeout"),
        ("reset", "session_key_stale"),
        ("phone_number", "invalid_phone_code"),
        ("phone_number", "not_allowed"),
    ] {
        assert!(text.contains(&format!("{} 0\n", series(operation, outcome))), "{text}");
    }
    let body = json!({ "openid": "o1" });
    post(&stack, "any", "/v1/session-key/reset", &body).await;
    post(&stack, "any", "/v1/session-key/check", &json!({})).await;
    // Without a token there is no operation.
    stack.post("/v1/session-key/check").json(&body).send_to_internal().await;
    assert_eq!(stack.metric(&series("reset", "unknown_user")).await, 1.0);
    assert_eq!(stack.metric(&series("check", "bad_request")).await, 1.0);
    assert!(
        !client::get(stack.admin, "/metrics").await.text().contains("outcome=\"unauthorized\"")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_section_there_is_no_listener_and_no_series() {
    let stack = Stack::start().await;
    assert_eq!(stack.internal, None);
    let text = client::get(stack.admin, "/metrics").await.text();
    for name in ["wxgate_open_data_", "wxgate_access_token_", "wxgate_wechat_api_"] {
        assert!(!text.contains(name), "{name}");
    }
}
