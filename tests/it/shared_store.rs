//! Sessions that several gateways share, on real Redis servers.

mod records;

use std::time::{Duration, Instant};

use redis::cmd;

use crate::harness::redis::RedisServer;
use crate::harness::{OPERATOR, PATIENCE, SECRET, Stack, openid};

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

/// A gateway whose sessions are at a URL; `more` is TOML of `[session]` and what follows.
pub async fn gateway(url: &str, more: &str) -> Stack {
    let stack = unready_gateway(url, more).await;
    stack.until_ready().await;
    stack
}

pub async fn unready_gateway(url: &str, more: &str) -> Stack {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("seal");
    std::fs::write(&key, KEY).unwrap();
    let key = key.display();
    // A slow machine must not look like a store that is down.
    let patience = match more.contains("redis.timeout") {
        true => "",
        false => "session.redis.timeout = \"1s\"\n",
    };
    Stack::start_unready_with(&format!(
        "session.seal_key = {{ file = \"{key}\" }}\nsession.redis.url = \"{url}\"\n{patience}{more}"
    ))
    .await
}

pub fn url(server: &RedisServer) -> String {
    format!("redis://127.0.0.1:{}", server.port)
}

pub async fn status(stack: &Stack, token: &str) -> u16 {
    stack.get("/").token(token).send().await.status
}

/// Sends requests until a response has this status, and returns how long that took.
pub async fn until_status(stack: &Stack, token: &str, wanted: u16) -> Duration {
    let begun = Instant::now();
    while status(stack, token).await != wanted {
        assert!(begun.elapsed() < PATIENCE, "no {wanted} in time");
    }
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_one_gateway_is_good_on_all_and_its_logout_too() {
    let server = RedisServer::start();
    // Longer than the test: only the notice of the logout can end the session.
    let bound = "session.redis.near_cache_ttl = \"1m\"";
    let (one, other) = (gateway(&url(&server), bound).await, gateway(&url(&server), bound).await);
    let token = one.login("alice").await;
    let left = one.get("/session").token(&token).send().await.json();
    assert_eq!(left["expires_in"], 7200);
    let response = other.get("/").token(&token).send().await;
    assert_eq!(response.status, 200);
    assert_eq!(other.upstream.requests().last().unwrap().all("x-openid"), [openid("alice")]);
    assert_eq!(other.metric("wxgate_sessions").await, 1.0);

    assert_eq!(one.post("/logout").token(&token).send().await.status, 204);
    one.get("/").token(&token).send().await.assert_error(401, "session_expired", "login");
    until_status(&other, &token, 401).await;
    assert_eq!(one.post("/logout").token(&token).send().await.status, 204);
    assert_eq!(one.metric("wxgate_sessions_removed_total{cause=\"revoked\"}").await, 1.0);
    assert_eq!(one.metric("wxgate_store_up").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_whose_notice_is_lost_takes_effect_within_the_cache_ttl() {
    let server = RedisServer::start();
    let bound = "session.redis.near_cache_ttl = \"3s\"";
    let stack = gateway(&url(&server), bound).await;
    let token = stack.login("alice").await;
    assert_eq!(status(&stack, &token).await, 200);
    cmd("FLUSHALL").exec(&mut server.connection()).unwrap();
    stack.clock.advance(Duration::from_secs(3));
    stack.get("/").token(&token).send().await.assert_error(401, "session_expired", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_silent_cached_sessions_work_and_all_else_is_503() {
    let server = RedisServer::start();
    let bound =
        "admin.token = { file = \"{dir}/operator\" }\nsession.redis.near_cache_ttl = \"1m\"";
    let stack = gateway(&url(&server), bound).await;
    let other = gateway(&url(&server), bound).await;
    let (known, unknown) = (stack.login("alice").await, other.login("bob").await);
    server.stop();
    for path in ["/", "/optional"] {
        assert_eq!(stack.get(path).token(&known).send().await.status, 200);
        let rejected = stack.get(path).token(&unknown).send().await;
        rejected.assert_error(503, "store_unavailable", "retry");
    }
    assert_eq!(stack.get("/none").token(&unknown).send().await.status, 200);
    assert_eq!(stack.get("/optional").send().await.status, 200);
    let rejected = stack.try_login("user-carol-1").await;
    rejected.assert_error(503, "store_unavailable", "retry");
    let rejected = stack.post("/logout").token(&known).send().await;
    rejected.assert_error(503, "store_unavailable", "retry");
    // A session that logs out is rejected until the logout is confirmed.
    assert_eq!(status(&stack, &known).await, 503);
    stack.until_metric("wxgate_store_up", 0.0).await;
    assert_eq!(crate::harness::client::get(stack.admin, "/readyz").await.status, 200);

    for method in ["GET", "DELETE"] {
        let path = format!("/sessions?openid={}", openid("alice"));
        let rejected = stack.request(method, &path).bearer(OPERATOR).send_to_admin().await;
        assert_eq!(
            (rejected.status, &rejected.json()["error"]),
            (503, &"store_unavailable".into())
        );
    }
    // No code is spent on a session that cannot be kept.
    let rejected = stack.try_login("user-dora-1").await;
    rejected.assert_error(503, "store_unavailable", "retry");
    server.go_on();
    until_status(&stack, &unknown, 200).await;
    assert_eq!(stack.try_login("user-dora-1").await.status, 200);
    assert_eq!(stack.post("/logout").token(&known).send().await.status, 204);
    assert_eq!(status(&stack, &known).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_and_logouts_above_the_limit_do_not_reach_the_store() {
    let made_up = ["A", "B"].map(|letter| letter.repeat(43));
    for (method, path) in [("GET", "/"), ("POST", "/logout")] {
        // Each with a store of its own: a store that hangs is detected after a while.
        let server = RedisServer::start();
        let few = "session.redis.max_lookups = 1\nsession.redis.timeout = \"400ms\"";
        let stack = gateway(&url(&server), few).await;
        server.stop();
        let [one, other] =
            made_up.each_ref().map(|token| stack.request(method, path).token(token).send());
        let (one, other) = tokio::join!(one, other);
        assert_eq!((one.status, other.status), (503, 503), "{path}");
        for outcome in ["refused", "timeout"] {
            let counted = format!("wxgate_store_requests_total{{outcome=\"{outcome}\"}}");
            assert_eq!(stack.metric(&counted).await, 1.0, "{path} {outcome}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_comes_back_empty_has_ended_every_session() {
    let mut server = RedisServer::start();
    let stack = gateway(&url(&server), "").await;
    let token = stack.login("alice").await;
    server.kill();
    stack.until_metric("wxgate_store_up", 0.0).await;
    stack.clock.advance(Duration::from_secs(5));
    let rejected = stack.get("/").token(&token).send().await;
    rejected.assert_error(503, "store_unavailable", "retry");
    server.restart();
    until_status(&stack, &token, 401).await;
    let token = stack.login("alice").await;
    assert_eq!(status(&stack, &token).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_sees_neither_tokens_nor_users() {
    let server = RedisServer::start();
    let stack = gateway(&url(&server), "").await;
    let token = stack.login("alice").await;
    let mut connection = server.connection();
    let mut stored = Vec::new();
    for key in server.keys() {
        stored.extend(key.as_bytes());
        let kind: String = cmd("TYPE").arg(&key).query(&mut connection).unwrap();
        let values: Vec<Vec<u8>> = match &*kind {
            "string" => vec![cmd("GET").arg(&key).query(&mut connection).unwrap()],
            _ => cmd("ZRANGE").arg(&key).arg(0).arg(-1).query(&mut connection).unwrap(),
        };
        stored.extend(values.concat());
        let life: i64 = cmd("PTTL").arg(&key).query(&mut connection).unwrap();
        assert!(life > 0, "{key} expires");
    }
    assert!(stored.len() > 100);
    for secret in [&token, SECRET, &openid("alice"), "alice", crate::harness::APP] {
        let secret = secret.as_bytes();
        assert!(!stored.windows(secret.len()).any(|window| window == secret));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_another_key_or_another_token_is_no_session() {
    let server = RedisServer::start();
    let stack = gateway(&url(&server), "").await;
    let mut connection = server.connection();
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let sessions: Vec<_> = server.keys().into_iter().filter(|key| key.contains("s:")).collect();
    let [a, b] = <[String; 2]>::try_from(sessions).unwrap();
    let values =
        [&a, &b].map(|key| -> Vec<u8> { cmd("GET").arg(key).query(&mut connection).unwrap() });
    cmd("SET").arg(&a).arg(&values[1]).exec(&mut connection).unwrap();
    cmd("SET").arg(&b).arg(&values[0]).exec(&mut connection).unwrap();
    stack.clock.advance(Duration::from_secs(5));
    assert_eq!(status(&stack, &alice).await, 401);
    assert_eq!(status(&stack, &bob).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_is_written_to_the_store_after_an_interval_and_prolongs_the_session() {
    let server = RedisServer::start();
    let times = "session.idle_timeout = \"100s\"\nsession.ttl = \"1h\"\nsession.redis.near_cache_ttl = \"50s\"";
    let stack = gateway(&url(&server), times).await;
    let token = stack.login("alice").await;
    let session = server.keys().into_iter().find(|key| key.contains("s:")).unwrap();
    let mut connection = server.connection();
    let mut life = || -> u64 { cmd("PTTL").arg(&session).query(&mut connection).unwrap() };
    // The idle timeout, and a tenth more.
    assert!((109_000..=110_000).contains(&life()), "{}", life());
    cmd("PEXPIRE").arg(&session).arg(50_000).exec(&mut server.connection()).unwrap();
    stack.clock.advance(Duration::from_secs(9));
    assert_eq!(status(&stack, &token).await, 200);
    assert!(life() <= 50_000);
    stack.clock.advance(Duration::from_secs(1));
    assert_eq!(status(&stack, &token).await, 200);
    let begun = Instant::now();
    while life() < 100_000 {
        assert!(begun.elapsed() < PATIENCE, "not written in time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_revokes_sessions_that_only_his_gateways_clock_says_are_expired() {
    let server = RedisServer::start();
    let operator = "admin.token = { file = \"{dir}/operator\" }";
    let (ahead, right) =
        (gateway(&url(&server), operator).await, gateway(&url(&server), operator).await);
    let token = right.login("alice").await;
    ahead.clock.advance(Duration::from_secs(24 * 3600));
    let all = format!("/sessions?openid={}", openid("alice"));
    let ended = ahead.request("DELETE", &all).bearer(OPERATOR).send_to_admin().await;
    assert_eq!(ended.status, 204);
    right.clock.advance(Duration::from_secs(5));
    assert_eq!(status(&right, &token).await, 401);
}
