//! Calls of WeChat's API about one user: what WeChat gets, and what becomes of its responses.

use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::json;
use wxgate::clock::Clock;
use wxgate::identity::OpenId;
use wxgate::identity::secret::Secret;
use wxgate::identity::session_key::SessionKey;
use wxgate::wechat::WeChatError;
use wxgate::wechat::server_api::{Phone, Reset, UserCallError};

use crate::harness::canary;
use crate::harness::wechat_api::{Caller, WeChatApi, reply};

const OPENID: &str = "oABCDEFGHIJKLMNOPQRSTUVWXYZ1";

/// The key of the vectors, and the signature of nothing under it.
const KEY: &str = "tiihtNczf5v6AKRyjwEUhQ==";
const SIGNATURE: &str = "7154f9f8b4b76b92f541cbf0e37d48840fa06e5e42da92a6f80168a1516a4735";

const SIGNED: &str = "?openid=oABCDEFGHIJKLMNOPQRSTUVWXYZ1&\
    signature=7154f9f8b4b76b92f541cbf0e37d48840fa06e5e42da92a6f80168a1516a4735&\
    sig_method=hmac_sha256";

struct User {
    api: WeChatApi,
    caller: Caller,
    openid: OpenId,
    key: SessionKey,
}

impl User {
    async fn new() -> Self {
        let clock = Clock::manual();
        let api = WeChatApi::start(&clock).await;
        let caller = Caller::new(&api, &clock, "").await;
        canary::plant(SIGNATURE);
        let key = SessionKey::parse(KEY).unwrap();
        Self { api, caller, openid: OpenId::parse(OPENID).unwrap(), key }
    }

    async fn check(&self) -> Result<bool, WeChatError> {
        let Caller { wechat, tokens, app_id, .. } = &self.caller;
        let checked = wechat.check_session_key(tokens, app_id, &self.openid, &self.key).await;
        checked.map_err(into_error)
    }

    async fn reset(&self) -> Result<Reset, WeChatError> {
        let Caller { wechat, tokens, app_id, .. } = &self.caller;
        let reset = wechat.reset_session_key(tokens, app_id, &self.openid, &self.key).await;
        reset.map_err(into_error)
    }

    async fn phone(&self, code: &str) -> Result<Phone, WeChatError> {
        let Caller { wechat, tokens, app_id, .. } = &self.caller;
        let code = Secret::new(code.to_owned());
        let number = wechat.phone_number(tokens, app_id, &self.openid, &code).await;
        number.map_err(into_error)
    }

    fn respond(&self, body: serde_json::Value) {
        self.api.respond(move |_| {
            let body = body.to_string();
            async move { reply(body) }
        });
    }

    fn report(&self, errcode: i64) {
        self.respond(json!({ "errcode": errcode, "errmsg": format!("no, rid: {OPENID}") }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_key_is_valid_or_not_as_wechat_says() {
    let user = User::new().await;
    assert!(user.check().await.unwrap());
    user.report(87009);
    assert!(!user.check().await.unwrap());
    user.report(87008);
    let error = user.check().await.unwrap_err();
    assert_eq!(error.errcode().unwrap().number(), 87008);
    assert!(error.error_report().unwrap().rid.is_none(), "it is the openid");
    let target = format!("/wxa/checksession{SIGNED}");
    assert!(user.api.calls().iter().all(|(called, _)| *called == target));
    for (errcode, count) in [("ok", 1.0), ("87009", 1.0), ("other", 1.0)] {
        assert_eq!(user.caller.api_calls(errcode), count, "{errcode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_gives_the_new_key_and_is_never_repeated_after_a_lost_response() {
    let user = User::new().await;
    let key = "o0q0otL8aEzpcZL/FT9WsQ==";
    user.respond(json!({ "errcode": 0, "errmsg": "ok", "openid": OPENID, "session_key": key }));
    match user.reset().await.unwrap() {
        Reset::New(new) => assert_eq!(new.expose(), key),
        Reset::Stale => panic!("it is the current key"),
    }
    for errcode in [87007, 87009] {
        user.report(errcode);
        assert!(matches!(user.reset().await.unwrap(), Reset::Stale));
    }
    assert_eq!(user.api.calls()[0].0, format!("/wxa/resetusersessionkey{SIGNED}"));
    for body in [json!({}), json!({ "session_key": "short" }), json!({ "session_key": 1 })] {
        user.respond(body);
        assert!(matches!(user.reset().await, Err(WeChatError::Malformed(_))));
    }
    let before = user.api.calls().len();
    user.api.respond(|_| async { broken() });
    let error = user.reset().await.err().unwrap();
    assert!(matches!(error, WeChatError::Broken(_)), "{error}");
    assert_eq!(user.api.calls().len(), before + 1);
}

fn into_error(failed: UserCallError) -> WeChatError {
    match failed {
        UserCallError::NoToken(error) | UserCallError::Call(error) => error,
    }
}

/// The response of a relay that got none.
fn broken() -> crate::harness::wechat_api::Reply {
    let mut response = Response::new(http_body_util::Empty::new().boxed_unsync());
    *response.status_mut() = http::StatusCode::BAD_GATEWAY;
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_phone_code_is_sent_once_with_the_openid() {
    let user = User::new().await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let number = "13800138000";
    canary::plant(number);
    user.api.respond(move |request: Request<Incoming>| {
        let record = record.clone();
        async move {
            assert_eq!(request.method(), Method::POST);
            assert_eq!(request.headers()["content-type"], "application/json");
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            record.lock().push(body);
            reply(
                json!({ "errcode": 0, "errmsg": "ok", "phone_info": {
                    "phoneNumber": format!("+1{number}"), "purePhoneNumber": number,
                    "countryCode": 86, "watermark": { "timestamp": 1, "appid": "wx1" } } })
                .to_string(),
            )
        }
    });
    match user.phone("the-code").await.unwrap() {
        Phone::Number(found) => {
            assert_eq!(*found.phone_number, format!("+1{number}"));
            assert_eq!(*found.pure_phone_number, number);
            assert_eq!(found.country_code, "86");
        }
        Phone::InvalidCode => panic!("the code is valid"),
    }
    assert_eq!(*seen.lock(), [json!({ "code": "the-code", "openid": OPENID })]);
    assert_eq!(user.api.calls()[0].0, "/wxa/business/getuserphonenumber?");

    for errcode in [40029, 40003] {
        user.report(errcode);
        assert!(matches!(user.phone("another").await.unwrap(), Phone::InvalidCode));
    }
    for errcode in [-1, 40013, 45011] {
        user.report(errcode);
        let before = user.api.calls().len();
        let error = user.phone("another").await.err().unwrap();
        assert_eq!(error.errcode().unwrap().number(), errcode);
        assert_eq!(user.api.calls().len(), before + 1, "{errcode} is not repeated");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_repeated_once_with_another_token_if_wechat_rejects_the_token() {
    let user = User::new().await;
    assert!(user.check().await.unwrap());
    user.api.refresh_elsewhere();
    user.caller.advance(10);
    assert!(user.check().await.unwrap());
    let valid: Vec<_> = user.api.calls().iter().map(|(_, is_valid)| *is_valid).collect();
    assert_eq!(valid, [true, false, true]);
    assert_eq!((user.api.token_calls(), user.caller.api_calls("40001")), (2, 1.0));

    // If the token is too new to be renewed, there is no other one.
    user.report(42001);
    assert_eq!(user.check().await.unwrap_err().errcode().unwrap().number(), 42001);
    assert_eq!((user.api.calls().len(), user.api.token_calls()), (4, 2));
    // WeChat has another token, but rejects it as well.
    user.caller.advance(10);
    user.api.refresh_elsewhere();
    user.report(40014);
    assert_eq!(user.check().await.unwrap_err().errcode().unwrap().number(), 40014);
    assert_eq!((user.api.calls().len(), user.api.token_calls()), (6, 3));
}
