//! Jars in a store that several gateways share.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use tokio::sync::{Barrier, Notify};

use super::{JAR, assert_unseen, echo, sent, set};
use crate::harness::Stack;
use crate::harness::process_log;
use crate::harness::redis::{RedisServer, cluster, until};
use crate::harness::upstream::Reply;
use crate::shared_store::{gateway, until_status, url};

async fn start(url: &str, more: &str) -> Stack {
    let stack = gateway(url, &format!("{more}\n{JAR}")).await;
    echo(&stack.upstream);
    stack
}

fn jars(store: &RedisServer) -> Vec<String> {
    store.keys().into_iter().filter(|key| key.starts_with("wxgate:j:")).collect()
}

fn life(store: &RedisServer, key: &str) -> i64 {
    cmd("PTTL").arg(key).query(&mut store.connection()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_jar_is_sealed_lives_as_long_as_its_session_and_ends_with_it() {
    let store = RedisServer::start();
    let url = url(&store);
    let (one, other) = (start(&url, "").await, start(&url, "").await);
    let (alice, bob) = (one.login("alice").await, one.login("bob").await);
    set(&one, "/", &alice, &["sid=of-alice-and-secret"]).await;
    assert_eq!(sent(&other, "/", &alice).await, "sid=of-alice-and-secret");
    assert_eq!(sent(&other, "/", &bob).await, "");
    set(&other, "/", &alice, &["second=1"]).await;
    set(&other, "/", &bob, &["sid=of-bob"]).await;
    assert_eq!(sent(&one, "/", &alice).await, "sid=of-alice-and-secret; second=1");

    let keys = jars(&store);
    assert_eq!(keys.len(), 2);
    for key in &keys {
        let value: Vec<u8> = cmd("GET").arg(key).query(&mut store.connection()).unwrap();
        let shows = |text: &[u8]| value.windows(text.len()).any(|window| window == text);
        assert!(!shows(b"sid") && !shows(b"secret") && !shows(b"alice"), "{key}");
        // The idle timeout, and one interval more.
        let left = life(&store, key);
        assert!((7_000_000..=7_260_000).contains(&left), "{left}");
    }
    // A use of the session prolongs its jar, even a use that needs no cookie.
    let prefix = |key: &String| key.rsplit_once(':').unwrap().0.to_owned();
    for key in &keys {
        cmd("PEXPIRE").arg(key).arg(600_000).exec(&mut store.connection()).unwrap();
    }
    one.clock.advance(Duration::from_secs(61));
    assert_eq!(one.get("/session").token(&bob).send().await.status, 200);
    until("the jar lives longer", || {
        let longer = keys.iter().filter(|key| life(&store, key) > 600_000);
        longer.map(prefix).collect::<Vec<_>>().len() == 1
    });
    // A value that is moved to another user's key cannot be opened.
    let values: Vec<Vec<u8>> = cmd("MGET").arg(&keys).query(&mut store.connection()).unwrap();
    cmd("MSET")
        .arg(&keys[0])
        .arg(&values[1])
        .arg(&keys[1])
        .arg(&values[0])
        .exec(&mut store.connection())
        .unwrap();
    for token in [&alice, &bob] {
        assert_eq!(sent(&one, "/", token).await, "");
    }
    cmd("MSET")
        .arg(&keys[0])
        .arg(&values[0])
        .arg(&keys[1])
        .arg(&values[1])
        .exec(&mut store.connection())
        .unwrap();
    assert_eq!(sent(&one, "/", &bob).await, "sid=of-bob");

    // The other gateway removes it, too.
    assert_eq!(other.post("/logout").token(&alice).send().await.status, 204);
    until_status(&one, &alice, 401).await;
    assert_eq!(jars(&store).len(), 1);
    let again = one.login("alice").await;
    assert_eq!(sent(&one, "/", &again).await, "");
    set(&one, "/", &bob, &["sid=; Max-Age=0"]).await;
    assert_eq!(jars(&store), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_responses_on_two_gateways_lose_no_cookie() {
    const EACH: usize = 8;
    let store = RedisServer::start();
    let url = url(&store);
    let gateways = [start(&url, "").await, start(&url, "").await];
    let token = gateways[0].login("alice").await;
    for round in 0..5 {
        // All responses begin at the same time.
        let barrier = Arc::new(Barrier::new(2 * EACH));
        for gateway in &gateways {
            let barrier = barrier.clone();
            gateway.upstream.reply(move |received| {
                let name = received.target().trim_start_matches('/').to_owned();
                let header = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n";
                let header = format!("{header}Set-Cookie: {name}=1; Path=/\r\n\r\n");
                Reply::Meet(barrier.clone(), header.into())
            });
        }
        let requests = gateways.iter().enumerate().flat_map(|(number, gateway)| {
            let token = &token;
            (0..EACH).map(move |index| {
                gateway.get(&format!("/c{round}-{number}-{index}")).token(token).send()
            })
        });
        for response in join_all(requests).await {
            assert_eq!(response.status, 200);
            assert_unseen(&response);
        }
        gateways.iter().for_each(|gateway| echo(&gateway.upstream));
        let line = sent(&gateways[round % 2], "/", &token).await;
        assert_eq!(line.split("; ").count(), (round + 1) * 2 * EACH, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_after_the_end_of_its_session_leaves_no_jar() {
    let store = RedisServer::start();
    let url = url(&store);
    let (one, other) = (start(&url, "").await, start(&url, "").await);
    let token = one.login("alice").await;
    let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, waits) = (arrived.clone(), go_on.clone());
    one.upstream.reply(move |_| {
        seen.notify_one();
        let late = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: sid=late\r\n\r\n";
        Reply::When(waits.clone(), late.into())
    });
    let ending = async {
        arrived.notified().await;
        assert_eq!(other.post("/logout").token(&token).send().await.status, 204);
        go_on.notify_one();
    };
    let (response, ()) = tokio::join!(one.get("/").token(&token).send(), ending);
    assert_eq!(response.status, 200);
    assert_eq!(jars(&store), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_store_a_request_fails_and_a_response_goes_on() {
    let mut store = RedisServer::start();
    // The session stays known to the gateway while the store is gone.
    let stack = start(&url(&store), "session.redis.near_cache_ttl = \"1m\"").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one"]).await;
    let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (seen, waits) = (arrived.clone(), go_on.clone());
    stack.upstream.reply(move |_| {
        seen.notify_one();
        let header = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: sid=two\r\n\r\n";
        Reply::When(waits.clone(), header.into())
    });
    let position = process_log::position();
    let ending = async {
        arrived.notified().await;
        store.kill();
        go_on.notify_one();
    };
    let (response, ()) = tokio::join!(stack.get("/").token(&token).send(), ending);
    assert_eq!(response.status, 200);
    assert_unseen(&response);
    let log = process_log::text_after(position);
    let line = log.lines().find(|line| line.contains("cannot keep the cookies"));
    assert!(line.is_some_and(|line| line.contains("ERROR") && !line.contains("sid")), "{log}");
    echo(&stack.upstream);
    let before = stack.upstream.requests().len();
    stack.get("/").token(&token).send().await.assert_error(503, "store_unavailable", "retry");
    assert_eq!(stack.upstream.requests().len(), before);
    // What needs no jar is served.
    assert_eq!(stack.get("/none").token(&token).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_jars() {
    let nodes = cluster();
    let addresses: Vec<String> =
        nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let url = format!("redis+cluster://{}", addresses.join(","));
    let stack = start(&url, "").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one"]).await;
    set(&stack, "/", &token, &["b=2"]).await;
    assert_eq!(sent(&stack, "/", &token).await, "sid=one; b=2");
    // Replicas have the keys of their primaries, a moment later.
    let count = || nodes.iter().flat_map(jars).collect::<HashSet<_>>().len();
    assert_eq!(count(), 1);
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    until("the jar is removed", || count() == 0);
}
