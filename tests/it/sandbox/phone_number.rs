use std::time::Duration;

use serde_json::{Value, json};
use wxgate::wechat::sandbox;

use super::{WeChat, assert_errcode, text};
use crate::harness::{APP, OTHER_APP, openid};

async fn code(wechat: &WeChat, body: Value) -> String {
    text(&wechat.post("/sandbox/phone-codes", &body).await["code"])
}

async fn number(wechat: &WeChat, token: &str, body: Value) -> Value {
    let path = format!("/wxa/business/getuserphonenumber?access_token={token}");
    wechat.post(&path, &body).await
}

#[tokio::test]
async fn a_phone_code_works_once_and_for_five_minutes() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let given = code(&wechat, json!({ "user": "alice", "phone": "13800138000" })).await;
    assert_eq!(given.len(), 64);
    let body = json!({ "code": given, "openid": openid("alice") });
    let found = number(&wechat, &token, body.clone()).await;
    assert_errcode(&found, 0);
    let info = &found["phone_info"];
    assert_eq!(info["phoneNumber"], "13800138000");
    assert_eq!(info["purePhoneNumber"], "13800138000");
    assert_eq!(info["countryCode"], "86");
    assert_eq!(info["watermark"]["appid"], APP);
    assert_errcode(&number(&wechat, &token, body).await, 40029);

    let given = code(&wechat, json!({ "user": "alice", "phone": "+852 51234567" })).await;
    wechat.clock.advance(Duration::from_secs(299));
    let foreign = number(&wechat, &token, json!({ "code": given })).await;
    assert_eq!(foreign["phone_info"]["phoneNumber"], "+85251234567");
    assert_eq!(foreign["phone_info"]["countryCode"], "852");
    let given = code(&wechat, json!({ "user": "alice" })).await;
    wechat.clock.advance(Duration::from_secs(300));
    assert_errcode(&number(&wechat, &token, json!({ "code": given })).await, 40029);
}

#[tokio::test]
async fn a_phone_code_is_of_one_user_and_one_app_and_is_no_login_code() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let given = code(&wechat, json!({ "user": "alice" })).await;
    let other = json!({ "code": given, "openid": openid("mallory") });
    assert_errcode(&number(&wechat, &token, other).await, 40003);
    let other_app = wechat.token_of(OTHER_APP).await;
    assert_errcode(&number(&wechat, &other_app, json!({ "code": given })).await, 40013);
    // Neither has used it up.
    let found = number(&wechat, &token, json!({ "code": given, "openid": openid("alice") })).await;
    assert_eq!(found["phone_info"]["purePhoneNumber"], sandbox::phone_number("alice"));

    let login = text(&wechat.post("/sandbox/codes", &json!({ "user": "alice" })).await["code"]);
    let long = format!("phone-alice-{}", "x".repeat(117));
    for code in [login.as_str(), "user-alice-1", "nonsense", "", long.as_str()] {
        assert_errcode(&number(&wechat, &token, json!({ "code": code })).await, 40029);
    }
    let secret = crate::harness::SECRET;
    for code in [&code(&wechat, json!({ "user": "alice" })).await, "phone-alice-1"] {
        let path = format!(
            "/sns/jscode2session?appid={APP}&secret={secret}&js_code={code}&grant_type=authorization_code"
        );
        assert_errcode(&wechat.get(&path).await, 40029);
    }
}

#[tokio::test]
async fn a_code_that_names_its_user_works_once_and_others_misbehave_as_they_say() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let body = json!({ "code": "phone-alice-1", "openid": openid("alice") });
    let found = number(&wechat, &token, body.clone()).await;
    assert_eq!(found["phone_info"]["purePhoneNumber"], sandbox::phone_number("alice"));
    assert_errcode(&number(&wechat, &token, body).await, 40029);
    assert_errcode(&number(&wechat, &token, json!({ "code": "err--1-x" })).await, -1);
    let path = format!("/wxa/business/getuserphonenumber?access_token={token}");
    let broken = wechat.send("POST", &path, "", br#"{"code":"status-500-x"}"#).await;
    assert_eq!(broken.status, 500);
    assert_errcode(&wechat.send("POST", &path, "", b"code=x").await.json(), 47001);
}

#[tokio::test]
async fn of_concurrent_calls_with_one_code_one_succeeds() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let calls = (0..20).map(|_| number(&wechat, &token, json!({ "code": "phone-alice" })));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| answer["errcode"] == 0).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer["errcode"] == 40029).count(), 19);
}

#[tokio::test]
async fn a_wrong_request_for_a_phone_code_is_explained() {
    let wechat = WeChat::start().await;
    for body in [
        json!({}),
        json!({ "user": "a b" }),
        json!({ "user": "alice", "phone": "x" }),
        json!({ "user": "alice", "phone": "+85251234567" }),
        json!({ "user": "alice", "phone": "+ 1" }),
        json!({ "user": "alice", "app_id": "wx1" }),
    ] {
        let body = body.to_string();
        let answer = wechat.send("POST", "/sandbox/phone-codes", "", body.as_bytes()).await;
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains("expected"), "{body}");
    }
}
