//! Phone numbers, access tokens and calls of WeChat's API, with the simulated WeChat.

use futures_util::future::join_all;
use serde_json::{Value, json};
use wxgate::clock::Clock;
use wxgate::wechat::sandbox;

use super::{ONE_TOKEN, assert_error, error, post, request};
use crate::harness::client;
use crate::harness::wechat_api::{Granting, WeChatApi, reply};
use crate::harness::{APP, Stack, openid};

const PHONE: &str = "/v1/phone-number";

const CALL: &str = "/wxa/business/getuserphonenumber";

fn phone(user: &str, code: &str) -> Value {
    json!({ "openid": openid(user), "code": code })
}

fn calls(stack: &Stack, path: &str) -> u64 {
    stack.sandbox.calls().get(path).copied().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_code_is_sent_once() {
    // Neither a kept key nor [open_data] is needed.
    let stack = Stack::start_with(&ONE_TOKEN.replace("enabled = true", "enabled = false")).await;
    let body = phone("alice", "phone-alice-1");
    let answers = join_all((0..20).map(|_| post(&stack, "any", PHONE, &body))).await;
    let (found, spent): (Vec<_>, Vec<_>) = answers.iter().partition(|one| one.status == 200);
    assert!(!found.is_empty());
    for answer in found {
        let number = sandbox::phone_number("alice");
        assert_eq!(answer.json()["phone_number"], number);
        assert_eq!(answer.json()["pure_phone_number"], number);
        assert_eq!(answer.json()["country_code"], "86");
    }
    for answer in spent {
        assert_error(answer, 422, "invalid_phone_code");
    }
    assert_eq!(calls(&stack, CALL), 1);
    for user in ["alice", "mallory"] {
        let answer = post(&stack, "any", PHONE, &phone(user, "phone-alice-1")).await;
        assert_error(&answer, 422, "invalid_phone_code");
        assert_eq!(answer.json()["action"], "none");
    }
    assert_eq!(calls(&stack, CALL), 1);
    // Another user's code is spent by the attempt.
    for user in ["mallory", "alice"] {
        let answer = post(&stack, "any", PHONE, &phone(user, "phone-alice-2")).await;
        assert_error(&answer, 422, "invalid_phone_code");
    }
    assert_error(
        &post(&stack, "any", PHONE, &phone("alice", "err-40029-1")).await,
        422,
        "invalid_phone_code",
    );
    assert_error(&post(&stack, "any", PHONE, &phone("alice", "a b")).await, 400, "bad_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_spends_the_code_and_a_dead_token_does_not() {
    let changes =
        format!("{ONE_TOKEN}\n[wechat]\ntimeout = \"500ms\"\nconnect_timeout = \"200ms\"");
    let stack = Stack::start_with(&changes).await;
    for code in ["hang-1", "drop-1", "status-500-1"] {
        let answer = post(&stack, "any", PHONE, &phone("alice", code)).await;
        assert_error(&answer, 504, "wechat_timeout");
        assert_eq!(answer.json()["action"], "none");
        let again = post(&stack, "any", PHONE, &phone("alice", code)).await;
        assert_error(&again, 422, "invalid_phone_code");
    }
    let busy = post(&stack, "any", PHONE, &phone("alice", "err--1-1")).await;
    assert_error(&busy, 503, "wechat_busy");
    assert_eq!((busy.json()["action"].clone(), busy.header("retry-after")), (json!("none"), None));

    let before = calls(&stack, CALL);
    client::post(stack.wechat_address, "/sandbox/revoke-token", &json!({})).await;
    stack.clock.advance(std::time::Duration::from_secs(11));
    let answer = post(&stack, "any", PHONE, &phone("alice", "phone-alice-3")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(calls(&stack, CALL), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_was_not_sent_may_be_tried_again() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let other = "[wechat]\nbase_url = \"http://127.0.0.1:1\"\n";
    assert!(stack.reload(&format!("{ONE_TOKEN}\n{other}")).await);
    let answer = post(&stack, "any", PHONE, &phone("alice", "phone-alice-4")).await;
    assert_error(&answer, 503, "wechat_busy");
    assert_eq!(answer.json()["action"], "retry");
    assert!(answer.header("retry-after").is_some());
    assert!(stack.reload(ONE_TOKEN).await);
    let answer = post(&stack, "any", PHONE, &phone("alice", "phone-alice-4")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_token_cannot_be_replaced_has_done_nothing_and_may_be_tried_again() {
    let api = WeChatApi::start(&Clock::manual()).await;
    api.respond(|_| async {
        let phone_info = json!({
            "phoneNumber": "13800138000", "purePhoneNumber": "13800138000", "countryCode": 86,
        });
        reply(json!({ "errcode": 0, "phone_info": phone_info }).to_string())
    });
    let base_url = format!("{ONE_TOKEN}\n[wechat]\nbase_url = \"http://{}\"", api.address);
    let stack = Stack::start_with(&base_url).await;
    let pass = format!("/v1/wechat/{APP}/wxa/msg_sec_check");
    assert_eq!(post(&stack, "any", PHONE, &phone("alice", "1")).await.status, 200);

    api.refresh_elsewhere();
    api.meet_requests_for_tokens(Granting::Closes);
    stack.clock.advance(std::time::Duration::from_secs(11));
    for (path, body) in [(PHONE, phone("alice", "2")), (pass.as_str(), json!({}))] {
        let answer = post(&stack, "any", path, &body).await;
        assert_error(&answer, 504, "wechat_timeout");
        assert_eq!(answer.json()["action"], "retry", "{path}");
    }
    api.meet_requests_for_tokens(Granting::Grants);
    stack.clock.advance(std::time::Duration::from_secs(11));
    assert_eq!(post(&stack, "any", PHONE, &phone("alice", "2")).await.status, 200);
    assert_eq!(post(&stack, "any", &pass, &json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_access_token_is_given_and_replaced_only_if_it_is_the_current_one() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let get = async || request(&stack, "any", "GET", "/v1/access-token").send_to_internal().await;
    let first = get().await;
    assert_eq!(first.status, 200, "{}", first.text());
    let first = first.json();
    assert_eq!(first["expires_in"], 7200);
    assert_eq!(get().await.json(), first);
    let by_id = request(&stack, "any", "GET", &format!("/v1/access-token?app_id={APP}"));
    assert_eq!(by_id.send_to_internal().await.json(), first);
    let renew = async |token: &Value| {
        let body = json!({ "app_id": APP, "access_token": token });
        let answer = post(&stack, "any", "/v1/access-token/renew", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["access_token"].clone()
    };
    assert_eq!(renew(&json!("another")).await, first["access_token"]);
    client::post(stack.wechat_address, "/sandbox/revoke-token", &json!({})).await;
    stack.clock.advance(std::time::Duration::from_secs(11));
    assert_ne!(renew(&first["access_token"]).await, first["access_token"]);
    assert_eq!(calls(&stack, "/cgi-bin/stable_token"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_of_wechats_api_is_passed_through_without_a_token_of_the_callers() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let path = format!("/v1/wechat/{APP}/wxa/msg_sec_check");
    let body = json!({ "content": "hello", "version": 2, "scene": 2, "openid": openid("alice") });
    stack.login("alice").await;
    let answer = post(&stack, "any", &path, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["errcode"], 0, "{}", answer.text());
    assert!(answer.header("x-wxgate-error").is_none() && answer.header("x-request-id").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_uploaded_and_comes_back_within_the_limit() {
    let uploads = ONE_TOKEN.replace("\"/wxa/msg_sec_check\"", "\"/cgi-bin/media\"");
    let stack = Stack::start_with(&format!("{uploads}\n[limits]\nmax_body = \"2MiB\"")).await;
    let path = format!("/v1/wechat/{APP}/cgi-bin/media");
    let form = |length: usize| {
        let head = b"--b\r\nContent-Disposition: form-data; name=\"media\"; filename=\"a.png\"\r\n\
                     Content-Type: image/png\r\n\r\n\x89PNG\r\n\x1a\n";
        [head.as_slice(), &vec![7; length], b"\r\n--b--\r\n"].concat()
    };
    let upload = |body: Vec<u8>| {
        request(&stack, "any", "POST", &format!("{path}/upload?type=image"))
            .header("Content-Type", "multipart/form-data; boundary=b")
            .body(body)
    };
    let sent = upload(form(1 << 20)).send_to_internal().await;
    let id =
        sent.json()["media_id"].as_str().unwrap_or_else(|| panic!("{}", sent.text())).to_owned();
    let got = request(&stack, "any", "GET", &format!("{path}/get?media_id={id}"));
    let got = got.send_to_internal().await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("image/png")));
    assert_eq!(got.body.len(), (1 << 20) + 8);
    assert!(got.is_whole);
    for call in [upload(form(2 << 20)), upload(form(2 << 20)).chunked()] {
        let mut connection = client::Connection::open(stack.internal.unwrap()).await;
        let answer = connection.strict_response_while_sending(&call.bytes()).await.unwrap();
        assert_eq!(answer.status, 413);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_has_begun_goes_on_when_its_caller_is_gone() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    let body = phone("alice", "slow-500ms-alice-1");
    let mut connection = client::Connection::open(stack.internal.unwrap()).await;
    connection.send(&request(&stack, "any", "POST", PHONE).json(&body).bytes()).await;
    while calls(&stack, CALL) == 0 {
        tokio::task::yield_now().await;
    }
    drop(connection);
    let series = "wxgate_open_data_requests_total{operation=\"phone_number\",outcome=\"ok\"}";
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    stack.until_metric(series, 1.0).await;
    assert_error(&post(&stack, "any", PHONE, &body).await, 422, "invalid_phone_code");
    assert_eq!(calls(&stack, CALL), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wechat_that_rejects_the_app_is_told_without_its_words() {
    let stack = Stack::start_with(ONE_TOKEN).await;
    std::fs::write(stack.directory.path().join("wrong"), "another-secret").unwrap();
    let app = format!("[[app]]\napp_id = \"{APP}\"\napp_secret = {{ file = \"{{dir}}/wrong\" }}");
    assert!(stack.reload(&format!("{ONE_TOKEN}\n{app}")).await);
    let answer = request(&stack, "any", "GET", "/v1/access-token").send_to_internal().await;
    assert_eq!(error(&answer), (502, "wechat_rejected".to_owned()));
    assert!(!answer.text().contains("40125"), "{}", answer.text());
}
