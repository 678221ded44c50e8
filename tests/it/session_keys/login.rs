//! What reaches the kept session keys from a login.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use super::{SEAL_KEYS, contents, redis, store, user};
use crate::attack::wechat::WeChat;
use crate::harness::redis::RedisServer;
use crate::harness::{Stack, canary, openid, process_log};
use crate::shared_store::{status, url};

/// A gateway that shares the sessions of `store` on this server.
async fn gateway(server: &RedisServer, directory: &Path, more: &str) -> Stack {
    let shared = redis(&url(server), directory, &SEAL_KEYS[..1]);
    Stack::start_with(&format!("{shared}{more}")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_key_of_a_login_is_kept_sealed_and_told_nowhere() {
    let (server, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let operator = "admin.token = { file = \"{dir}/operator\" }\nopen_data.enabled = true";
    let stack = gateway(&server, directory.path(), operator).await;
    let (reader, _run) = store(&url(&server), "", &stack.clock, &SEAL_KEYS[..1]).await;
    let alice = user(&openid("alice"));
    let token = stack.login("alice").await;
    assert_eq!(status(&stack, &token).await, 200);
    let kept = reader.session_keys(&alice).await.unwrap();
    let [kept] = &kept[..] else { panic!("{} keys", kept.len()) };
    assert!(kept.expose().starts_with(sandbox_prefix()));
    let contents = contents(&server);
    assert!(contents.iter().any(|name| name.starts_with("wxgate:k:")), "{contents:?}");
    for text in &contents {
        assert!(!text.contains(sandbox_prefix()) && !text.contains("sandbox-"), "{text}");
    }
    let path = format!("/sessions?openid={}", openid("alice"));
    let listed = stack.get(&path).bearer(crate::harness::OPERATOR).send_to_admin().await.text();
    let seen = format!("{:?}", stack.upstream.requests().last().unwrap());
    for text in [crate::harness::client::get(stack.admin, "/metrics").await.text(), listed, seen] {
        assert!(!text.contains(sandbox_prefix()) && text.len() > 10, "{text}");
    }
    // The log of the whole process.
    assert!(!process_log::text_after(0).contains(sandbox_prefix()));
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    assert!(reader.session_keys(&alice).await.unwrap().is_empty());
}

fn sandbox_prefix() -> &'static str {
    wxgate::wechat::sandbox::SESSION_KEY
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_switches_whether_session_keys_are_kept() {
    let (server, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let stack = gateway(&server, directory.path(), "").await;
    let (reader, _run) = store(&url(&server), "", &stack.clock, &SEAL_KEYS[..1]).await;
    let shared = redis(&url(&server), directory.path(), &SEAL_KEYS[..1]);
    let user = user(&openid("alice"));
    for (is_on, expected) in [(false, 0), (true, 1), (false, 1), (true, 2)] {
        assert!(stack.reload(&format!("{shared}open_data.enabled = {is_on}")).await);
        stack.clock.advance(Duration::from_millis(1));
        stack.login("alice").await;
        assert_eq!(reader.session_keys(&user).await.unwrap().len(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_time_of_login_is_when_the_gateway_received_it() {
    let (server, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let stack = gateway(&server, directory.path(), "open_data.enabled = true").await;
    let (reader, _run) = store(&url(&server), "", &stack.clock, &SEAL_KEYS[..1]).await;
    let user = user(&openid("alice"));
    let slow = stack.try_login("slow-1s-alice");
    let quick = async {
        while stack.sandbox.exchanges() == 0 {
            tokio::task::yield_now().await;
        }
        stack.clock.advance(Duration::from_secs(1));
        stack.login("alice").await;
        reader.session_keys(&user).await.unwrap()
    };
    let (slow, quick) = tokio::join!(slow, quick);
    assert_eq!((slow.status, quick.len()), (200, 1));
    let kept = reader.session_keys(&user).await.unwrap();
    assert_eq!(kept.len(), 2);
    assert!(kept.first() == quick.first(), "it ended first and was sent last");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_key_that_is_none_fails_no_login_and_is_not_kept() {
    let (server, directory) = (RedisServer::start(), tempfile::tempdir().unwrap());
    let wechat = WeChat::start().await;
    canary::plant(&wechat.session_key);
    let address = wechat.address;
    let more = format!("wechat.base_url = \"http://{address}\"\nopen_data.enabled = true");
    let stack = gateway(&server, directory.path(), &more).await;
    let position = process_log::position();
    let mut seen = HashSet::new();
    for user in ["alice", "bob"] {
        let answer = stack.try_login(&format!("user-{user}-1")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        seen.insert(answer.header("x-request-id").unwrap().to_owned());
    }
    let log = process_log::text_after(position);
    let is_told = |line: &&str| line.contains("16 bytes in base64");
    let lines = log.lines().filter(is_told);
    let lines = lines.filter(|line| seen.iter().any(|id| line.contains(id.as_str())));
    assert_eq!(lines.count(), 1, "once a minute");
    assert!(server.keys().iter().all(|key| !key.starts_with("wxgate:k:")));
}
