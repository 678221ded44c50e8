use serde_json::{Value, json};

use super::{WeChat, assert_errcode};
use crate::harness::{APP, OTHER_APP, openid};

fn message(change: Value) -> Value {
    let mut message = json!({
        "touser": openid("alice"),
        "template_id": "template-1",
        "page": "pages/order?id=1",
        "data": { "thing1": { "value": "咖啡" }, "amount2": { "value": "12.50元" } },
    });
    message.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    message
}

async fn send(wechat: &WeChat, app_id: &str, body: &Value) -> Value {
    let token = wechat.token_of(app_id).await;
    let path = format!("/cgi-bin/message/subscribe/send?access_token={token}");
    wechat.post(&path, body).await
}

#[tokio::test]
async fn a_message_that_was_sent_is_shown() {
    let wechat = WeChat::start().await;
    wechat.login("alice").await;
    assert_eq!(wechat.get("/sandbox/messages").await, json!({ "messages": [] }));
    let sent = send(&wechat, APP, &message(json!({ "miniprogram_state": "trial" }))).await;
    assert_eq!(sent, json!({ "errcode": 0, "errmsg": "ok" }));
    let mut shown = wechat.get("/sandbox/messages").await["messages"].clone();
    assert!(shown[0].as_object_mut().unwrap().remove("sent_at").unwrap().is_u64());
    let expected = message(json!({
        "app_id": APP,
        "miniprogram_state": "trial",
        "lang": "zh_CN",
    }));
    assert_eq!(shown, json!([expected]));
}

#[tokio::test]
async fn only_the_newest_messages_are_kept() {
    let behaviour = wxgate::wechat::sandbox::Behaviour { user_quota: 1000, ..Default::default() };
    let wechat = WeChat::start_with(behaviour).await;
    wechat.login("alice").await;
    for number in 0..=200 {
        let field = json!({ "data": { "number1": { "value": number } } });
        assert_errcode(&send(&wechat, APP, &message(field)).await, 0);
    }
    let shown = wechat.get("/sandbox/messages").await["messages"].clone();
    assert_eq!(shown.as_array().unwrap().len(), 200);
    assert_eq!(shown[0]["data"]["number1"]["value"], 1);
    assert_eq!(shown[199]["data"]["number1"]["value"], 200);
}

#[tokio::test]
async fn a_message_with_a_wrong_field_is_rejected_and_not_shown() {
    let wechat = WeChat::start().await;
    wechat.login("alice").await;
    for (change, errcode) in [
        (json!({ "touser": "" }), 40003),
        (json!({ "touser": openid("bob") }), 40003),
        (json!({ "template_id": "" }), 40037),
        (json!({ "template_id": "err-43101-x" }), 43101),
        (json!({ "data": {} }), 47003),
        (json!({ "data": { "thing1": "text" } }), 47003),
        (json!({ "data": { "thing1": { "value": "" } } }), 47003),
        (json!({ "data": { "thing1": { "value": null } } }), 47003),
        (json!({ "data": { "thing": { "value": "x" } } }), 47003),
        (json!({ "data": { "nothing1": { "value": "x" } } }), 47003),
        (json!({ "data": { "thing1": { "value": "一".repeat(21) } } }), 47003),
        (json!({ "data": "x" }), 47001),
        (json!({ "lang": "xx" }), 47003),
        (json!({ "miniprogram_state": "x" }), 47003),
    ] {
        let answer = send(&wechat, APP, &message(change.clone())).await;
        assert_eq!(answer["errcode"], errcode, "{change}");
    }
    assert_errcode(&send(&wechat, OTHER_APP, &message(json!({}))).await, 40003);
    assert_eq!(wechat.get("/sandbox/messages").await, json!({ "messages": [] }));
    let longest = json!({ "data": { "thing1": { "value": "一".repeat(20) } } });
    assert_errcode(&send(&wechat, APP, &message(longest)).await, 0);
}
