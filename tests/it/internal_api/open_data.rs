//! Decrypt, verify, check and reset, with the simulated WeChat.

use serde_json::{Value, json};

use super::{ONE_TOKEN, assert_error, post};
use crate::harness::client;
use crate::harness::{OTHER_APP, Stack, openid};

pub const DECRYPT: &str = "/v1/open-data/decrypt";

/// What the phone of alice gets.
pub async fn encrypted(stack: &Stack, data: Value) -> Value {
    let body = json!({ "user": "alice", "data": data });
    client::post(stack.wechat_address, "/sandbox/encrypt", &body).await.json()
}

/// The body of a call that decrypts it.
pub fn body(encrypted: &Value, more: Value) -> Value {
    let mut body = json!({
        "openid": openid("alice"), "encrypted_data": encrypted["encryptedData"],
        "iv": encrypted["iv"],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn data_of_the_last_three_logins_is_decrypted_byte_for_byte() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    stack.login("alice").await;
    let data = encrypted(&stack, json!({ "z": 1, "a": "ä", "steps": [1.50] })).await;
    for _ in 0..2 {
        let answer = post(&stack, "any", DECRYPT, &body(&data, json!({ "max_age": 60 }))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["data"]["a"], "ä");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        stack.login("alice").await;
    }
    // The key that the data was encrypted with is the third newest now.
    assert_eq!(post(&stack, "any", DECRYPT, &body(&data, json!({}))).await.status, 200);
    stack.login("alice").await;
    let answer = post(&stack, "any", DECRYPT, &body(&data, json!({}))).await;
    assert_error(&answer, 409, "session_key_stale");
    assert_eq!(answer.json()["action"], "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_no_key_decides_is_invalid_data() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    stack.login("alice").await;
    let good = encrypted(&stack, json!({ "a": 1 })).await;
    for (field, wrong) in
        [("iv", "AAAA"), ("iv", "?"), ("encrypted_data", ""), ("encrypted_data", "AAAA")]
    {
        let answer = post(&stack, "any", DECRYPT, &body(&good, json!({ (field): wrong }))).await;
        assert_error(&answer, 422, "invalid_data");
    }
    let now = stack.clock.to_wall(stack.clock.now_millis()) / 1000;
    for (app_id, age) in [(OTHER_APP, 0), ("wx0123456789abcdef", 120)] {
        let watermark = json!({ "appid": app_id, "timestamp": now - age });
        let data = encrypted(&stack, json!({ "watermark": watermark })).await;
        let answer = post(&stack, "any", DECRYPT, &body(&data, json!({ "max_age": 60 }))).await;
        assert_error(&answer, 422, "invalid_data");
    }
    let mut stale = Vec::new();
    let no_watermark = encrypted(&stack, json!({ "watermark": 1 })).await;
    let wrong_block = json!({ "encrypted_data": "AAAAAAAAAAAAAAAAAAAAAA==" });
    for wrong in [body(&good, wrong_block), body(&no_watermark, json!({}))] {
        let answer = post(&stack, "any", DECRYPT, &wrong).await;
        assert_error(&answer, 409, "session_key_stale");
        stale.push(answer.text().replace(answer.header("x-request-id").unwrap(), ""));
    }
    assert_eq!(stale[0], stale[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_verified_with_any_kept_key() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    stack.login("alice").await;
    let data = encrypted(&stack, json!({ "nickName": "A" })).await;
    stack.login("alice").await;
    let verify = async |raw_data: &Value, signature: &Value| {
        let body =
            json!({ "openid": openid("alice"), "raw_data": raw_data, "signature": signature });
        let answer = post(&stack, "any", "/v1/open-data/verify", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    };
    assert_eq!(verify(&data["rawData"], &data["signature"]).await, json!({ "valid": true }));
    assert_eq!(verify(&json!("{}"), &data["signature"]).await, json!({ "valid": false }));
    assert_eq!(verify(&data["rawData"], &json!("")).await, json!({ "valid": false }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_checked_and_replaced_at_wechat() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    stack.login("alice").await;
    let alice = json!({ "openid": openid("alice") });
    let check = async || post(&stack, "any", "/v1/session-key/check", &alice).await.json();
    assert_eq!(check().await, json!({ "valid": true }));
    let before = encrypted(&stack, json!({ "a": 1 })).await;
    let answer = post(&stack, "any", "/v1/session-key/reset", &alice).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0), "{}", answer.text());
    assert_eq!(check().await, json!({ "valid": true }));
    let after = encrypted(&stack, json!({ "a": 2 })).await;
    for data in [before, after] {
        assert_eq!(post(&stack, "any", DECRYPT, &body(&data, json!({}))).await.status, 200);
    }
    // Another gateway logs the user in: the kept key is not the current one any more.
    let url = format!(
        "/sns/jscode2session?appid=wx0123456789abcdef&secret={}&js_code=user-alice-elsewhere\
         &grant_type=authorization_code",
        crate::harness::SECRET
    );
    assert_eq!(client::get(stack.wechat_address, &url).await.status, 200);
    assert_eq!(check().await, json!({ "valid": false }));
    let answer = post(&stack, "any", "/v1/session-key/reset", &alice).await;
    assert_error(&answer, 409, "session_key_stale");
}
