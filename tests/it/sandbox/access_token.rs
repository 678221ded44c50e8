use std::time::Duration;

use serde_json::{Value, json};

use super::{WeChat, assert_errcode, text};
use crate::harness::{APP, OTHER_APP, SECRET};

/// The errcode of a call with a token; 0 if the token is accepted.
async fn verdict(wechat: &WeChat, token: &str) -> i64 {
    let answer = wechat.get(&format!("/cgi-bin/media/get?access_token={token}")).await;
    match answer["errcode"].as_i64().unwrap() {
        40007 => 0,
        errcode => errcode,
    }
}

async fn legacy(wechat: &WeChat) -> String {
    let path = format!("/cgi-bin/token?grant_type=client_credential&appid={APP}&secret={SECRET}");
    let answer = wechat.get(&path).await;
    assert_eq!(answer["expires_in"], 7200);
    text(&answer["access_token"])
}

#[tokio::test]
async fn a_stable_token_is_the_same_until_five_minutes_before_it_expires() {
    let wechat = WeChat::start().await;
    let first = wechat.stable(APP, false).await;
    assert_eq!(first["expires_in"], 7200);
    let token = text(&first["access_token"]);
    assert!(token.starts_with(wxgate::wechat::sandbox::ACCESS_TOKEN));

    wechat.clock.advance(Duration::from_secs(6899));
    let same = wechat.stable(APP, false).await;
    assert_eq!((&same["access_token"], &same["expires_in"]), (&json!(token), &json!(301)));

    wechat.clock.advance(Duration::from_secs(1));
    let next = wechat.stable(APP, false).await;
    assert_eq!(next["expires_in"], 7200);
    let next = text(&next["access_token"]);
    assert_ne!(next, token);
    assert_eq!((verdict(&wechat, &token).await, verdict(&wechat, &next).await), (0, 0));
    assert_eq!(wechat.token().await, next);

    wechat.clock.advance(Duration::from_secs(300));
    assert_eq!((verdict(&wechat, &token).await, verdict(&wechat, &next).await), (42001, 0));
    let other = wechat.token_of(OTHER_APP).await;
    assert_ne!(other, next, "each app has its own");
}

#[tokio::test]
async fn a_forced_refresh_invalidates_the_token_at_once_twenty_times_a_day() {
    let wechat = WeChat::start().await;
    let mut token = wechat.token().await;
    let bystander = wechat.token_of(OTHER_APP).await;
    for _ in 0..20 {
        let next = text(&wechat.stable(APP, true).await["access_token"]);
        assert_ne!(next, token);
        assert_eq!((verdict(&wechat, &token).await, verdict(&wechat, &next).await), (40001, 0));
        // Too soon: nothing is refreshed.
        wechat.clock.advance(Duration::from_secs(29));
        assert_eq!(text(&wechat.stable(APP, true).await["access_token"]), next);
        wechat.clock.advance(Duration::from_secs(1));
        token = next;
    }
    assert_errcode(&wechat.stable(APP, true).await, 45009);
    assert_eq!(wechat.token().await, token, "the normal mode is not limited");
    assert_eq!(verdict(&wechat, &bystander).await, 0);
    wechat.clock.advance(Duration::from_secs(24 * 3600));
    assert!(wechat.stable(APP, true).await["access_token"].is_string());
}

#[tokio::test]
async fn tokens_of_the_old_api_displace_each_other_and_no_stable_token() {
    let wechat = WeChat::start().await;
    let stable = wechat.token().await;
    let first = legacy(&wechat).await;
    let second = legacy(&wechat).await;
    assert_ne!(first, second);
    assert_eq!(verdict(&wechat, &first).await, 0);
    wechat.clock.advance(Duration::from_secs(299));
    // A third one does not prolong the first.
    let third = legacy(&wechat).await;
    assert_eq!(verdict(&wechat, &first).await, 0);
    wechat.clock.advance(Duration::from_secs(1));
    assert_eq!((verdict(&wechat, &first).await, verdict(&wechat, &second).await), (40001, 0));
    wechat.clock.advance(Duration::from_secs(299));
    assert_eq!((verdict(&wechat, &second).await, verdict(&wechat, &third).await), (40001, 0));
    assert_eq!(verdict(&wechat, &stable).await, 0);
    wechat.stable(APP, true).await;
    assert_eq!(verdict(&wechat, &third).await, 0);
}

#[tokio::test]
async fn another_party_can_invalidate_the_tokens_of_one_app() {
    let wechat = WeChat::start().await;
    let (stable, old) = (wechat.token().await, legacy(&wechat).await);
    let bystander = wechat.token_of(OTHER_APP).await;
    assert_eq!(wechat.post("/sandbox/revoke-token", &json!({ "app_id": APP })).await, json!({}));
    assert_eq!((verdict(&wechat, &stable).await, verdict(&wechat, &old).await), (40001, 40001));
    assert_eq!(verdict(&wechat, &bystander).await, 0);
    let next = wechat.token().await;
    assert_ne!(next, stable);
    assert_eq!(verdict(&wechat, &next).await, 0);
    let body = br#"{"app_id":"wx"}"#;
    assert_eq!(wechat.send("POST", "/sandbox/revoke-token", "", body).await.status, 400);
}

#[tokio::test]
async fn a_wrong_credential_is_told_by_its_errcode() {
    let wechat = WeChat::start().await;
    for (change, errcode) in [
        (json!({ "appid": "" }), 41002),
        (json!({ "secret": null }), 47001),
        (json!({ "secret": "" }), 41004),
        (json!({ "grant_type": "x" }), 40002),
        (json!({ "appid": "wx9" }), 40013),
        (json!({ "secret": "x" }), 40125),
    ] {
        let mut body = json!({ "grant_type": "client_credential", "appid": APP, "secret": SECRET });
        let fields = body.as_object_mut().unwrap();
        fields.extend(change.as_object().unwrap().clone());
        assert_errcode(&wechat.post("/cgi-bin/stable_token", &body).await, errcode);
    }
    assert_errcode(&wechat.get("/cgi-bin/stable_token?appid=x").await, 43002);
    let send = async |body: &[u8]| -> Value {
        wechat.send("POST", "/cgi-bin/stable_token", "", body).await.json()
    };
    assert_errcode(&send(b"").await, 44002);
    assert_errcode(&send(b"appid=x").await, 47001);
    assert_errcode(&send(&[b' '; (64 << 10) + 1]).await, 45002);
    assert_errcode(&wechat.get("/cgi-bin/token?grant_type=client_credential").await, 41002);
}
