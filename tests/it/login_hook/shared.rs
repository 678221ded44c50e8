//! The user's id in a store that gateways share, with and without a hook.

use std::time::{Duration, Instant};

use redis::cmd;
use serde_json::json;

use super::fake::FakeHook;
use super::forwarded_id;
use crate::browser::assert_page;
use crate::harness::PATIENCE;
use crate::harness::browser::{Browser, DESKTOP, code, config};
use crate::harness::redis::RedisServer;
use crate::shared_store::{gateway, status, url};

#[tokio::test(flavor = "multi_thread")]
async fn every_gateway_with_a_hook_knows_the_id_and_one_without_keeps_it() {
    let (store, hook) = (RedisServer::start(), FakeHook::start().await);
    // Nothing is read from a gateway's own memory.
    let bound = "session.redis.near_cache_ttl = \"1ms\"\n";
    let here = gateway(&url(&store), &hook.section(bound)).await;
    let there = gateway(&url(&store), &hook.section(bound)).await;
    let without = gateway(&url(&store), bound).await;
    let token = here.login("alice").await;
    assert_eq!(forwarded_id(&there, &token).await, ["member-7"]);
    // Where no hook is configured, the header is the client's own.
    assert_eq!(forwarded_id(&without, &token).await, ["forged"]);

    // A gateway without a hook writes the record again when the session is used.
    let mut connection = store.connection();
    let mut records = || {
        let keys: Vec<String> = cmd("KEYS").arg("*").query(&mut connection).unwrap();
        let values: Vec<Option<Vec<u8>>> = cmd("MGET").arg(keys).query(&mut connection).unwrap();
        let mut values: Vec<_> = values.into_iter().flatten().collect();
        values.sort();
        values
    };
    let before = records();
    for stack in [&here, &there, &without] {
        stack.clock.advance(Duration::from_secs(120));
    }
    assert_eq!(status(&without, &token).await, 200);
    let begun = Instant::now();
    while records() == before {
        assert!(begun.elapsed() < PATIENCE, "the use is written");
        tokio::task::yield_now().await;
    }
    assert_eq!(forwarded_id(&there, &token).await, ["member-7"]);
    // A login at the gateway without a hook has no id.
    let other = without.login("alice").await;
    assert_eq!(forwarded_id(&here, &other).await, [""; 0]);
    assert_eq!(hook.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_callback_gets_the_message_of_a_refusal_at_another_gateway() {
    let (store, hook) = (RedisServer::start(), FakeHook::start().await);
    let changes = config(&hook.section(""), "");
    let here = gateway(&url(&store), &changes).await;
    let there = gateway(&url(&store), &changes).await;
    hook.answers(403, &json!({ "message": "请先 <i>注册</i>" }).to_string());
    let mut browser = Browser::new(DESKTOP);
    let state = browser.begin(&here, "/h5").await;
    let code = code("alice");
    for stack in [&here, &there, &here] {
        let response = browser.come_back(stack, &state, &code).await;
        assert_page(&response, 403, "login_refused", "en");
        let text = response.text();
        assert!(text.contains("<p>请先 &lt;i&gt;注册&lt;/i&gt;</p>"), "{text}");
    }
    assert_eq!(hook.calls().len(), 1);
}
