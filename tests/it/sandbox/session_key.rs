use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use sha2::Sha256;
use wxgate::wechat::sandbox::Behaviour;

use super::{WeChat, assert_errcode, text};
use crate::harness::{APP, OTHER_APP, openid};

const CHECK: &str = "/wxa/checksession";

const RESET: &str = "/wxa/resetusersessionkey";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The signature of an empty message, under whatever the key is.
fn signature(key: &[u8]) -> String {
    hex(&Hmac::<Sha256>::new_from_slice(key).unwrap().finalize().into_bytes())
}

async fn call(wechat: &WeChat, path: &str, token: &str, key: &str) -> Value {
    let (openid, signature) = (openid("alice"), signature(key.as_bytes()));
    let query = format!("access_token={token}&openid={openid}&signature={signature}");
    wechat.get(&format!("{path}?{query}&sig_method=hmac_sha256")).await
}

#[tokio::test]
async fn a_signature_is_made_with_the_text_of_the_current_key() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    let first = wechat.login("alice").await;
    assert_eq!(call(&wechat, CHECK, &token, &first).await, json!({"errcode": 0, "errmsg": "ok"}));

    let raw = signature(&STANDARD.decode(&first).unwrap());
    let query = format!("access_token={token}&openid={}&signature={raw}", openid("alice"));
    let answer = wechat.get(&format!("{CHECK}?{query}&sig_method=hmac_sha256")).await;
    assert_errcode(&answer, 87009);

    let second = wechat.login("alice").await;
    assert_errcode(&call(&wechat, CHECK, &token, &first).await, 87009);
    assert_errcode(&call(&wechat, CHECK, &token, &second).await, 0);
    let other_app = wechat.token_of(OTHER_APP).await;
    assert_errcode(&call(&wechat, CHECK, &other_app, &second).await, 87009);
    assert_errcode(&call(&wechat, RESET, &other_app, &second).await, 87007);
}

#[tokio::test]
async fn a_reset_replaces_the_key_which_expires_when_the_old_one_would_have() {
    let wechat = WeChat::start().await;
    let lifetime = Duration::from_secs(3 * 24 * 3600);
    let first = wechat.login("alice").await;
    wechat.clock.advance(lifetime - Duration::from_secs(1));
    let token = wechat.token().await;
    let answer = call(&wechat, RESET, &token, &first).await;
    assert_errcode(&answer, 0);
    assert_eq!(answer["openid"], openid("alice"));
    let second = text(&answer["session_key"]);
    assert_ne!(second, first);
    assert_errcode(&call(&wechat, RESET, &token, &first).await, 87009);
    assert_errcode(&call(&wechat, CHECK, &token, &second).await, 0);
    wechat.clock.advance(Duration::from_secs(1));
    assert_errcode(&call(&wechat, CHECK, &token, &second).await, 87009);
    assert_errcode(&call(&wechat, RESET, &token, &second).await, 87007);
}

#[tokio::test]
async fn of_concurrent_resets_one_succeeds() {
    let wechat = WeChat::start().await;
    let (token, key) = (wechat.token().await, wechat.login("alice").await);
    let calls = (0..20).map(|_| call(&wechat, RESET, &token, &key));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers.iter().filter(|answer| answer["errcode"] == 0).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer["errcode"] == 87009).count(), 19);
}

#[tokio::test]
async fn what_is_missing_or_unknown_is_told_by_its_errcode() {
    let wechat = WeChat::start().await;
    let token = wechat.token().await;
    for path in [CHECK, RESET] {
        let get =
            async |query: &str| wechat.get(&format!("{path}?access_token={token}&{query}")).await;
        assert_errcode(&get("signature=x&sig_method=hmac_sha256").await, 40097);
        assert_errcode(&get("openid=x&sig_method=hmac_sha256").await, 40097);
        let long = format!("openid={}&signature=x&sig_method=hmac_sha256", "x".repeat(129));
        assert_errcode(&get(&long).await, 40097);
        assert_errcode(&get("openid=x&signature=x").await, 87008);
        assert_errcode(&get("openid=x&signature=x&sig_method=md5").await, 87008);
    }
    assert_errcode(&call(&wechat, CHECK, &token, "x").await, 87009);
    assert_errcode(&call(&wechat, RESET, &token, "x").await, 87007);
}

#[tokio::test]
async fn logins_within_the_refresh_period_keep_the_key_if_asked_for() {
    let session_key_refresh = Duration::from_secs(60);
    let behaviour = Behaviour { session_key_refresh, ..Behaviour::default() };
    let wechat = WeChat::start_with(behaviour).await;
    let first = wechat.login("alice").await;
    assert_ne!(wechat.login("bob").await, first);
    wechat.clock.advance(Duration::from_secs(59));
    assert_eq!(wechat.login("alice").await, first);
    wechat.clock.advance(Duration::from_secs(1));
    let second = wechat.login("alice").await;
    assert_ne!(second, first);
    assert_eq!(wechat.login("alice").await, second);
}

/// What the phone gets can be decrypted and verified with the key of the last login.
#[tokio::test]
async fn data_of_the_phone_is_under_the_current_key() {
    let wechat = WeChat::start().await;
    let encrypt = async |body: Value| {
        let body = body.to_string();
        wechat.send("POST", "/sandbox/encrypt", "", body.as_bytes()).await
    };
    let wanted = json!({ "user": "alice", "data": { "nickName": "张三", "n": 1 } });
    assert_eq!(encrypt(wanted.clone()).await.status, 400, "she has not logged in");
    wechat.login("alice").await;
    let key = wechat.login("alice").await;
    let given = encrypt(wanted.clone()).await.json();
    let raw_data = text(&given["rawData"]);
    assert_eq!(serde_json::from_str::<Value>(&raw_data).unwrap(), wanted["data"]);
    assert_eq!(given["signature"], hex(&Sha1::digest(format!("{raw_data}{key}"))));

    let decrypted = decrypt(&given, &key);
    let watermark = decrypted["watermark"].clone();
    assert_eq!(watermark["appid"], APP);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(now.as_secs().abs_diff(watermark["timestamp"].as_u64().unwrap()) < 100);
    assert_eq!((&decrypted["nickName"], &decrypted["n"]), (&json!("张三"), &json!(1)));
    assert_ne!(encrypt(wanted).await.json()["iv"], given["iv"]);

    let watermark = json!({ "appid": "wx1", "timestamp": 1 });
    let other = json!({ "user": "alice", "data": { "watermark": watermark } });
    assert_eq!(decrypt(&encrypt(other).await.json(), &key)["watermark"], watermark);
    for wrong in [
        json!({ "user": "alice" }),
        json!({ "user": "alice", "data": [] }),
        json!({ "user": "alice", "data": {}, "app_id": "wx1" }),
        json!({ "user": "alice", "data": {}, "app_id": OTHER_APP }),
    ] {
        assert_eq!(encrypt(wrong.clone()).await.status, 400, "{wrong}");
    }
}

/// Decrypts with the tool of another project.
fn decrypt(given: &Value, key: &str) -> Value {
    let decode = |text: &str| STANDARD.decode(text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("encrypted");
    std::fs::write(&file, decode(given["encryptedData"].as_str().unwrap())).unwrap();
    let iv = hex(&decode(given["iv"].as_str().unwrap()));
    let output = std::process::Command::new("openssl")
        .args(["enc", "-d", "-aes-128-cbc", "-K", &hex(&decode(key)), "-iv", &iv, "-in"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}
