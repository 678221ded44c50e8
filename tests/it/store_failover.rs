//! Which revocations a shared store knows after it has lost data or was replaced.

use std::time::{Duration, Instant};

use redis::cmd;

use crate::harness::fault_proxy::{FaultProxy, Way};
use crate::harness::redis::{RedisServer, cluster, replicated, sentinels};
use crate::harness::{OPERATOR, PATIENCE, Stack, openid};
use crate::shared_store::{gateway, status, unready_gateway, until_status, url};

/// The address that replicas connect from, and gateways never.
const REPLICAS: &str = "127.0.0.2";

fn sentinel_url(sentinels: &[RedisServer]) -> String {
    let addresses: Vec<_> =
        sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
    format!("redis+sentinel://{}/main", addresses.join(","))
}

fn cluster_url(nodes: &[RedisServer]) -> String {
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    format!("redis+cluster://{}", addresses.join(","))
}

async fn until_logout(stack: &Stack, token: &str) {
    let begun = Instant::now();
    while stack.post("/logout").token(token).send().await.status != 204 {
        assert!(begun.elapsed() < PATIENCE, "not confirmed in time");
    }
}

/// Two gateways; the first reaches the server through a proxy of its own.
async fn two_gateways(server: &RedisServer) -> (FaultProxy, Stack, Stack) {
    let way = FaultProxy::to(server.port).await;
    let one = gateway(&format!("redis://127.0.0.1:{}", way.port), "").await;
    (way, one, gateway(&url(server), "").await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_has_all_confirmed_logouts() {
    let (mut primary, _replicas, sentinels) = replicated();
    let url = sentinel_url(&sentinels);
    let (one, other) = (gateway(&url, "").await, gateway(&url, "").await);
    let (kept, ended) = (one.login("alice").await, one.login("bob").await);
    assert_eq!(status(&other, &ended).await, 200);
    assert_eq!(one.post("/logout").token(&ended).send().await.status, 204);
    primary.kill();
    one.until_metric("wxgate_store_up", 0.0).await;
    for stack in [&one, &other] {
        stack.clock.advance(Duration::from_secs(5));
        until_status(stack, &kept, 200).await;
        assert_eq!(status(stack, &ended).await, 401);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_that_no_replica_has_is_503_until_one_has_it() {
    let primary = RedisServer::start();
    let door = FaultProxy::to(primary.port).await;
    let _replica = RedisServer::replica_through(door.port, REPLICAS);
    let stack = gateway(&url(&primary), "").await;
    let token = stack.login("alice").await;
    door.set_from(REPLICAS, Way::Silent);
    let rejected = stack.post("/logout").token(&token).send().await;
    rejected.assert_error(503, "store_unavailable", "retry");
    door.set_from(REPLICAS, Way::Open);
    until_logout(&stack, &token).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_waits_for_each_replica_that_sentinels_may_make_the_primary() {
    let primary = RedisServer::start();
    let door = FaultProxy::to(primary.port).await;
    let mut apart = RedisServer::replica_through(door.port, REPLICAS);
    let _near = RedisServer::replica_through(door.port, "127.0.0.4");
    let sentinels = sentinels(door.port, 2);
    let stack = gateway(&sentinel_url(&sentinels), "").await;
    let (one, other) = (stack.login("alice").await, stack.login("bob").await);
    door.set_from(REPLICAS, Way::Silent);
    let rejected = stack.post("/logout").token(&one).send().await;
    rejected.assert_error(503, "store_unavailable", "retry");
    door.set_from(REPLICAS, Way::Open);
    until_logout(&stack, &one).await;
    apart.kill();
    until_logout(&stack, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_the_store_has_lost_is_written_again() {
    let mut server = RedisServer::start();
    let (way, one, other) = two_gateways(&server).await;
    let token = one.login("alice").await;
    server.save();
    assert_eq!(one.post("/logout").token(&token).send().await.status, 204);
    way.set(Way::Cut);
    one.until_metric("wxgate_store_up", 0.0).await;
    server.restart();
    // Its own record of the notice has expired by now.
    other.clock.advance(Duration::from_secs(5));
    until_status(&other, &token, 200).await;
    way.set(Way::Open);
    one.until_metric("wxgate_store_up", 1.0).await;
    other.clock.advance(Duration::from_secs(5));
    until_status(&other, &token, 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_used_only_once_it_accepts_the_revocations() {
    let mut server = RedisServer::start();
    let (way, one, other) = two_gateways(&server).await;
    let (token, known) = (one.login("alice").await, other.login("bob").await);
    server.save();
    assert_eq!(one.post("/logout").token(&token).send().await.status, 204);
    way.set(Way::Cut);
    one.until_metric("wxgate_store_up", 0.0).await;
    server.restart();
    let need_replicas = |count: u8| {
        let mut set = cmd("CONFIG");
        set.arg("SET").arg("min-replicas-to-write").arg(count);
        set.exec(&mut server.connection()).unwrap();
    };
    need_replicas(1);
    way.set(Way::Open);
    let rejections = || {
        let mut info = cmd("INFO");
        let info: String = info.arg("errorstats").query(&mut server.connection()).unwrap();
        info.lines().any(|line| line.starts_with("errorstat_NOREPLICAS:count="))
    };
    crate::harness::redis::until("the store rejects a revocation", rejections);
    assert_eq!(status(&one, &known).await, 503);
    need_replicas(0);
    other.clock.advance(Duration::from_secs(5));
    until_status(&other, &token, 401).await;
    until_status(&one, &known, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn revocations_are_written_again_once_the_store_has_loaded() {
    // Loading takes about two seconds, and the server responds meanwhile.
    let slow = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let mut server = RedisServer::start_with(&slow);
    let (_way, one, other) = two_gateways(&server).await;
    let token = one.login("alice").await;
    let mut filling = redis::pipe();
    for key in 0..2000 {
        filling.cmd("SET").arg(format!("other:{key}")).arg("x".repeat(100));
    }
    filling.exec(&mut server.connection()).unwrap();
    server.save();
    assert_eq!(one.post("/logout").token(&token).send().await.status, 204);
    server.begin_restart();
    one.until_metric("wxgate_store_up", 0.0).await;
    one.until_metric("wxgate_store_up", 1.0).await;
    other.clock.advance(Duration::from_secs(5));
    until_status(&other, &token, 401).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_a_cluster_node_has_lost_is_written_again() {
    let mut nodes = cluster();
    let url = cluster_url(&nodes);
    let (one, other) = (gateway(&url, "").await, gateway(&url, "").await);
    let mut tokens = Vec::new();
    // Some of them lie on each node.
    for user in 0..24 {
        tokens.push(one.login(&format!("user{user}")).await);
    }
    nodes[0].save();
    for token in &tokens {
        assert_eq!(one.post("/logout").token(token).send().await.status, 204);
    }
    // Before another one can take its place.
    nodes[0].restart();
    other.clock.advance(Duration::from_secs(5));
    for token in &tokens {
        until_status(&other, token, 401).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_while_a_node_that_was_replaced_is_silent() {
    let nodes = cluster();
    nodes[0].stop();
    let stack = unready_gateway(&cluster_url(&nodes), "").await;
    stack.until_metric("wxgate_store_up", 1.0).await;
    stack.until_ready().await;
    let token = stack.login("alice").await;
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_listed_under_an_old_and_a_new_key_counts_once() {
    let nodes = cluster();
    let url = cluster_url(&nodes);
    let [old, new] = ["0b".repeat(32), "1e".repeat(32)];
    let rotated = async |keys: String| {
        let stack = Stack::start_unready_with(&format!(
            "{keys}\nsession.max_per_user = 2\nsession.redis.url = \"{url}\"\n\
             admin.token = {{ file = \"{{dir}}/operator\" }}"
        ))
        .await;
        stack.until_ready().await;
        stack
    };
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, key: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, key).unwrap();
        format!("{{ file = \"{}\" }}", path.display())
    };
    let (old, new) = (file("old", &old), file("new", &new));
    let before = rotated(format!("session.seal_key = {old}")).await;
    let after =
        rotated(format!("session.seal_key = {new}\nsession.previous_seal_keys = [{old}]")).await;
    let first = before.login("alice").await;
    let listed = async || {
        let all = format!("/sessions?openid={}", openid("alice"));
        let listed = after.request("GET", &all).bearer(OPERATOR).send_to_admin().await;
        listed.json()["sessions"].as_array().unwrap().clone()
    };
    let received = listed().await[0]["last_seen"].clone();
    after.clock.advance(Duration::from_secs(60));
    assert_eq!(status(&after, &first).await, 200);
    let begun = Instant::now();
    while listed().await[0]["last_seen"] == received {
        assert!(begun.elapsed() < PATIENCE, "not written in time");
    }
    let second = after.login("alice").await;
    assert_eq!(listed().await.len(), 2);
    for token in [&first, &second] {
        assert_eq!(status(&after, token).await, 200);
    }
}

const OPERATING: &str = "admin.token = { file = \"{dir}/operator\" }";

async fn block(stack: &Stack, user: &str, time: &str) {
    let path = format!("/sessions?openid={}&block={time}", openid(user));
    let response = stack.request("DELETE", &path).bearer(OPERATOR).send_to_admin().await;
    assert_eq!(response.status, 204, "{}", response.text());
}

async fn login_status(stack: &Stack, user: &str) -> u16 {
    let code: u64 = rand::random();
    stack.try_login(&format!("user-{user}-{code}")).await.status
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_the_store_has_lost_is_written_again_unless_it_was_removed() {
    let mut server = RedisServer::start();
    let way = FaultProxy::to(server.port).await;
    let one = gateway(&format!("redis://127.0.0.1:{}", way.port), OPERATING).await;
    let other = gateway(&url(&server), OPERATING).await;
    let mark = one.login("carol").await;
    server.save();
    for user in ["alice", "bob"] {
        block(&one, user, "24h").await;
        assert_eq!(login_status(&other, user).await, 403);
    }
    block(&other, "bob", "0s").await;
    // Notices arrive in order, so the lift has arrived as well.
    assert_eq!(other.post("/logout").token(&mark).send().await.status, 204);
    until_status(&one, &mark, 401).await;
    way.set(Way::Cut);
    one.until_metric("wxgate_store_up", 0.0).await;
    other.until_metric("wxgate_store_up", 1.0).await;
    server.restart();
    let begun = Instant::now();
    while login_status(&other, "alice").await != 200 {
        assert!(begun.elapsed() < PATIENCE, "the block was not lost");
    }
    way.set(Way::Open);
    one.until_metric("wxgate_store_up", 1.0).await;
    for stack in [&one, &other] {
        assert_eq!(login_status(stack, "alice").await, 403);
        assert_eq!(login_status(stack, "bob").await, 200);
    }
}

/// A gateway does not know what others have set in the meantime.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_written_again_does_not_shorten_a_later_one() {
    let mut server = RedisServer::start();
    let way = FaultProxy::to(server.port).await;
    let one = gateway(&format!("redis://127.0.0.1:{}", way.port), OPERATING).await;
    let other = gateway(&url(&server), OPERATING).await;
    block(&one, "alice", "1h").await;
    block(&other, "alice", "24h").await;
    server.save();
    way.set(Way::Cut);
    one.until_metric("wxgate_store_up", 0.0).await;
    server.restart();
    way.set(Way::Open);
    one.until_metric("wxgate_store_up", 1.0).await;
    let path = format!("/sessions?openid={}", openid("alice"));
    let listed = one.request("GET", &path).bearer(OPERATOR).send_to_admin().await.json();
    let until = humantime::parse_rfc3339(listed["blocked_until"].as_str().unwrap()).unwrap();
    let left = until.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(23 * 3600), "{left:?}");
}

/// While keys are being changed a block has several names.
#[tokio::test(flavor = "multi_thread")]
async fn a_block_above_the_limit_writes_nothing() {
    let server = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("old");
    std::fs::write(&old, "1e".repeat(32)).unwrap();
    let keys = format!("session.previous_seal_keys = [{{ file = {old:?} }}]\n");
    let mut fill = redis::pipe();
    for number in 0..100_000 - 1 {
        fill.cmd("ZADD").arg("wxgate:blocked").arg(9_999_999_999_999_u64).arg(number).ignore();
    }
    fill.exec(&mut server.connection()).unwrap();
    let more = format!("{keys}session.redis.timeout = \"5s\"\n{OPERATING}");
    let stack = gateway(&url(&server), &more).await;
    block(&stack, "alice", "1h").await;
    assert_eq!(login_status(&stack, "alice").await, 403);
    let path = format!("/sessions?openid={}&block=1h", openid("bob"));
    let rejected = stack.request("DELETE", &path).bearer(OPERATOR).send_to_admin().await;
    assert_eq!((rejected.status, &rejected.json()["error"]), (503, &"too_many_blocks".into()));
    assert_eq!(login_status(&stack, "bob").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_has_all_blocks() {
    let (mut primary, _replicas, sentinels) = replicated();
    let url = sentinel_url(&sentinels);
    let (one, other) = (gateway(&url, OPERATING).await, gateway(&url, "").await);
    block(&one, "alice", "24h").await;
    primary.kill();
    other.until_metric("wxgate_store_up", 0.0).await;
    other.until_metric("wxgate_store_up", 1.0).await;
    assert_eq!(login_status(&other, "alice").await, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_holds_while_keys_are_being_changed() {
    let (server, nodes) = (RedisServer::start(), cluster());
    for url in [url(&server), cluster_url(&nodes)] {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, key: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, key.repeat(32)).unwrap();
            format!("{{ file = \"{}\" }}", path.display())
        };
        let (old, new) = (file("old", "0b"), file("new", "1e"));
        let with = async |keys: String| {
            let url = format!("session.redis.url = \"{url}\"\n");
            let stack = Stack::start_unready_with(&format!("{keys}\n{url}{OPERATING}")).await;
            stack.until_ready().await;
            stack
        };
        let first = with(format!("session.seal_key = {old}")).await;
        let second =
            with(format!("session.seal_key = {old}\nsession.previous_seal_keys = [{new}]")).await;
        let third =
            with(format!("session.seal_key = {new}\nsession.previous_seal_keys = [{old}]")).await;
        block(&first, "alice", "24h").await;
        for stack in [&first, &second, &third] {
            assert_eq!(login_status(stack, "alice").await, 403, "{url}");
            assert_eq!(login_status(stack, "bob").await, 200, "{url}");
        }
        // A rejected login leaves nothing behind.
        let all = format!("/sessions?openid={}", openid("alice"));
        let listed = third.request("GET", &all).bearer(OPERATOR).send_to_admin().await;
        assert!(listed.json()["sessions"].as_array().unwrap().is_empty());
        block(&third, "alice", "0s").await;
        for stack in [&first, &second, &third] {
            assert_eq!(login_status(stack, "alice").await, 200, "{url}");
        }
    }
}
