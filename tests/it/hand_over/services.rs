//! The internal API and the admin listener while two processes run.

use serde_json::json;
use tokio::net::UnixStream;
use wxgate::server::Command;

use super::{begin, ended};
use crate::harness::client::Connection;
use crate::harness::{Stack, UPGRADES};
use crate::internal_api::connections::status;
use crate::internal_api::open_data::{DECRYPT, body, encrypted};
use crate::internal_api::{ONE_TOKEN, post, request};

#[tokio::test(flavor = "multi_thread")]
async fn the_session_keys_of_logins_at_the_old_process_decrypt_at_the_new_one() {
    let changes = format!("{UPGRADES}{ONE_TOKEN}");
    let mut stack = Stack::start_with(&changes).await;
    stack.login("alice").await;
    let first = encrypted(&stack, json!({ "login": 1 })).await;
    stack.login("alice").await;
    let login = json!({ "code": "user-alice-3" }).to_string();
    let mut last = begin(&stack, "/login", "", login.len()).await;
    let old = stack.upgrade(&changes).await;
    last.send(login.as_bytes()).await;
    assert_eq!(last.response(false).await.status, 200);
    ended(old).await;
    let third = encrypted(&stack, json!({ "login": 3 })).await;
    for (data, login) in [(first, 1), (third, 3)] {
        let answer = post(&stack, "any", DECRYPT, &body(&data, json!({}))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["data"]["login"], login);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_in_flight_end_at_the_old_process_and_new_ones_reach_the_new_one() {
    let changes = format!("{UPGRADES}{ONE_TOKEN}");
    let mut stack = Stack::start_with(&changes).await;
    stack.login("alice").await;
    let internal = stack.internal.unwrap();
    let mut idle = Connection::open(internal).await;
    idle.send(&request(&stack, "any", "GET", "/v1/nothing").bytes()).await;
    assert_eq!(idle.response(false).await.status, 404);
    let call = request(&stack, "any", "POST", "/v1/session-key/check");
    let call = call.body(r#"{"openid":"o1"}"#).bytes();
    let (start, end) = call.split_at(call.len() - 5);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    let mut busy = Connection::open(internal).await;
    busy.send(start).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;

    let old = stack.upgrade(&changes).await;
    assert_eq!(request(&stack, "any", "GET", "/v1/nothing").send_to_internal().await.status, 404);
    assert!(idle.is_closed().await);
    assert!(!old.ended.is_finished());
    busy.send(end).await;
    let answer = busy.response(false).await;
    assert_eq!((answer.status, answer.header("connection")), (404, Some("close")));
    ended(old).await;
    assert_eq!(request(&stack, "any", "GET", "/v1/nothing").send_to_internal().await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_of_the_internal_api_goes_over_and_ends_with_the_last_process() {
    let internal = ONE_TOKEN.replace("127.0.0.1:0", "unix:{dir}/internal.sock");
    let changes = format!("{UPGRADES}{internal}");
    let mut stack = Stack::start_with(&changes).await;
    stack.login("alice").await;
    let path = stack.directory.path().join("internal.sock");
    for _ in 0..2 {
        assert_eq!(status(UnixStream::connect(&path).await.unwrap()).await, Some(400));
        let old = stack.upgrade(&changes).await;
        assert_eq!(status(UnixStream::connect(&path).await.unwrap()).await, Some(400));
        ended(old).await;
    }
    assert_eq!(status(UnixStream::connect(&path).await.unwrap()).await, Some(400));
    stack.stop(Command::Drain).await;
    assert!(!path.exists());
}

/// Whether the old process answers on a connection that was open before.
async fn answers_a_last_admin_request() -> bool {
    let mut stack = Stack::start_with(UPGRADES).await;
    stack.login("alice").await;
    let last = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n";
    let mut kept = Connection::open(stack.admin).await;
    kept.send(last).await;
    assert_eq!(kept.response(false).await.status, 200);
    let old = stack.upgrade(UPGRADES).await;
    // Nothing else keeps the old process.
    for _ in 0..50 {
        assert_eq!(stack.get("/none").send().await.status, 200);
    }
    kept.try_send(last).await;
    let answer = kept.response_or_end().await;
    ended(old).await;
    answer.is_some_and(|answer| answer.status == 200)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_of_a_scraper_may_begin_a_last_request() {
    // A machine that is busy for a second takes too long.
    let is_answered = answers_a_last_admin_request().await
        || answers_a_last_admin_request().await
        || answers_a_last_admin_request().await;
    assert!(is_answered);
}
