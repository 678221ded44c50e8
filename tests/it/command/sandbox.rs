//! `wxgate sandbox`: the simulated WeChat as a program.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::command::{Running, wxgate};
use crate::harness::{SECRET, client};

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_responds_as_wechat_does() {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--app", "wx1:one", "--app", "wx2:two"];
    let mut sandbox = Running::start(wxgate().args(arguments), false);
    let line = sandbox.line_with("http://");
    let address: SocketAddr = line.trim().rsplit('/').next().unwrap().parse().unwrap();
    assert!(sandbox.line_with("wx1").contains("one"));

    let exchange = async |query: &str| {
        let response = client::get(address, &format!("/sns/jscode2session?{query}")).await;
        assert_eq!((response.status, response.header("content-type")), (200, Some("text/plain")));
        response.json()
    };
    let query = |app: &str, secret: &str, code: &str| {
        format!("appid={app}&secret={secret}&js_code={code}&grant_type=authorization_code")
    };
    let granted = exchange(&query("wx1", "one", "user-bob-1")).await;
    let openid = granted["openid"].as_str().unwrap();
    assert_eq!(openid.len(), 28);
    assert_eq!(granted["session_key"].as_str().unwrap().len(), 24);
    assert!(granted.get("unionid").is_none());
    let elsewhere = exchange(&query("wx2", "two", "user-bob-2")).await;
    assert_ne!(elsewhere["openid"], openid, "an openid belongs to one app");
    let (one, two) = (
        exchange(&query("wx1", "one", "user-unionbob-1")).await,
        exchange(&query("wx2", "two", "user-unionbob-2")).await,
    );
    assert_eq!(one["unionid"], two["unionid"]);
    assert!(one["unionid"].is_string());
    for (query, errcode) in [
        (query("wx1", "one", "user-bob-1"), 40163),
        (query("wx1", "one", "nonsense"), 40029),
        (query("wx1", "two", "user-bob-3"), 40125),
        (query("wx9", "one", "user-bob-3"), 40013),
        ("secret=one&js_code=user-bob-3&grant_type=authorization_code".to_owned(), 41002),
        ("appid=wx1&js_code=user-bob-3&grant_type=authorization_code".to_owned(), 41004),
        ("appid=wx1&secret=one&grant_type=authorization_code".to_owned(), 41008),
        ("appid=wx1&secret=one&js_code=user-bob-3".to_owned(), 40002),
        (query("wx1", "one", "err-45011-x"), 45011),
        (query("wx1", "one", "err--1-x"), -1),
    ] {
        let failed = exchange(&query).await;
        assert_eq!(failed["errcode"], errcode, "{query}");
        assert!(failed["errmsg"].as_str().unwrap().contains("rid: "));
    }

    let rejected = client::post(address, "/sandbox/codes", &json!({ "user": "a b" })).await;
    assert_eq!(rejected.status, 400);
    let given = client::post(address, "/sandbox/codes", &json!({ "user": "carol" })).await;
    let code = given.json()["code"].as_str().unwrap().to_owned();
    assert_eq!(code.len(), 32);
    assert!(exchange(&query("wx1", "one", &code)).await["openid"].is_string());
    assert_eq!(exchange(&query("wx1", "one", &code)).await["errcode"], 40163);
    sandbox.signal("INT");
    assert_eq!(sandbox.code(), 0);
}

/// A sandbox on a port of its own, and its address.
pub fn start_sandbox(options: &[&str]) -> (Running, SocketAddr) {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0"];
    let mut sandbox = Running::start(wxgate().args(arguments).args(options), false);
    let line = sandbox.line_with("http://");
    let address = line.trim().rsplit('/').next().unwrap().parse().unwrap();
    (sandbox, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_simulates_quotas_ip_lists_and_latency() {
    let exchange = async |address: SocketAddr, code: &str| {
        let query = format!(
            "appid={}&secret={SECRET}&js_code={code}&grant_type=authorization_code",
            crate::harness::APP
        );
        client::get(address, &format!("/sns/jscode2session?{query}")).await.json()
    };
    let (_sandbox, quota) = start_sandbox(&["--user-quota", "2", "--quota", "3"]);
    assert!(exchange(quota, "user-alice-1").await["openid"].is_string());
    assert!(exchange(quota, "user-alice-2").await["openid"].is_string());
    assert_eq!(exchange(quota, "user-alice-3").await["errcode"], 45011);
    assert!(exchange(quota, "user-bob-1").await["openid"].is_string());
    assert_eq!(exchange(quota, "user-bob-2").await["errcode"], 45009);

    let (_sandbox, unlisted) = start_sandbox(&["--refuse-ip"]);
    let rejected = exchange(unlisted, "user-alice-1").await;
    assert_eq!(rejected["errcode"], 40164);
    assert!(rejected["errmsg"].as_str().unwrap().contains("invalid ip 203.0.113.7"));

    let (_sandbox, slow) = start_sandbox(&["--latency", "100ms", "--slow-start", "1s"]);
    let time = async |code: &str| {
        let began = Instant::now();
        assert!(exchange(slow, code).await["openid"].is_string());
        began.elapsed()
    };
    assert!(time("user-alice-1").await > Duration::from_millis(200));
    while time(&format!("user-alice-{}", rand::random::<u32>())).await > Duration::from_millis(200)
    {
    }
    assert!(time("user-alice-2").await >= Duration::from_millis(100));
}
