//! How long idle connections to services are kept.
//!
//! If a service closes a connection while the next request is on its way, that request is lost, and
//! is not sent again unless it is idempotent.

use std::time::{Duration, Instant};

use crate::harness::Stack;
use crate::harness::upstream::Reply;

/// Sends so many requests one after the other; the numbers of the connections that they took.
async fn connections(stack: &Stack, count: usize) -> Vec<usize> {
    let before = stack.upstream.requests().len();
    for _ in 0..count {
        assert_eq!(stack.post("/none").body("x").send().await.status, 200);
    }
    stack.upstream.requests_after(before).iter().map(|received| received.connection).collect()
}

async fn start(keep_alive: &'static str) -> Stack {
    start_with("", keep_alive).await
}

async fn start_with(idle_timeout: &str, keep_alive: &'static str) -> Stack {
    let upstream =
        format!("[[upstream]]\nname = \"recorder\"\nservers = [\"{{upstream}}\"]\n{idle_timeout}");
    let stack = Stack::start_with(&upstream).await;
    stack.upstream.reply(move |_| Reply::ok(keep_alive, "ok"));
    stack
}

/// The time from a request until one of the open connections is closed and this many are left.
async fn kept_for(stack: &Stack, left: usize) -> Duration {
    assert_eq!(stack.get("/none").send().await.status, 200);
    let started = Instant::now();
    stack.upstream.until_open(left).await;
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_idle_is_kept_for_four_seconds_by_default() {
    let stack = start("").await;
    assert_eq!(connections(&stack, 3).await, [0, 0, 0]);
    let kept = kept_for(&stack, 0).await;
    assert!(kept > Duration::from_secs(3) && kept < Duration::from_secs(10), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_keeps_connections_for_less_than_two_seconds_gets_new_ones() {
    for said in ["Keep-Alive: timeout=1\r\n", "Keep-Alive: max=5, timeout=0\r\n"] {
        let stack = start(said).await;
        assert_eq!(connections(&stack, 3).await, [0, 1, 2], "{said}");
        stack.upstream.until_open(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_kept_a_second_less_than_the_service_says() {
    let stack = start("Keep-Alive: timeout=2, max=100\r\n").await;
    assert_eq!(connections(&stack, 4).await, [0, 0, 0, 0]);
    let kept = kept_for(&stack, 0).await;
    assert!(kept > Duration::from_millis(500) && kept < Duration::from_secs(3), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keep_alive_of_five_seconds_is_used_for_four() {
    let stack = start("Keep-Alive: timeout=5\r\n").await;
    assert_eq!(connections(&stack, 3).await, [0, 0, 0], "kept as long as by default");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smaller_of_configuration_and_keep_alive_header_counts() {
    let set = "idle_timeout = \"300ms\"";
    let stack = start_with(set, "Keep-Alive: timeout=60\r\n").await;
    assert_eq!(connections(&stack, 2).await, [0, 0]);
    let kept = kept_for(&stack, 0).await;
    assert!(kept < Duration::from_secs(3), "{kept:?}");

    let stack = start_with("idle_timeout = \"60s\"", "Keep-Alive: timeout=2\r\n").await;
    assert_eq!(connections(&stack, 3).await, [0, 0, 0]);
    let kept = kept_for(&stack, 0).await;
    assert!(kept < Duration::from_secs(3), "{kept:?}");
    let stack = start_with("idle_timeout = \"60s\"", "").await;
    assert_eq!(connections(&stack, 2).await, [0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_keep_alive_counts_and_a_malformed_one_does_not() {
    for said in [
        "Keep-Alive: timeout\r\n",
        "Keep-Alive: timeout=\r\n",
        "Keep-Alive: timeout=x, max=1\r\n",
        "Keep-Alive: timeout=-1\r\n",
        "Keep-Alive: timeout=1s\r\n",
        "Keep-Alive: timeout=1.5\r\n",
        "Keep-Alive: timeout=99999999999999999999999\r\n",
        "Keep-Alive: xtimeout=1\r\n",
        "Keep-Alive: max=1\r\n",
        "Keep-Alive: timeout=\"1\"\r\n",
        "Keep-Alive: \r\n",
        "Keep-Alive: \u{1f600}\r\n",
    ] {
        let stack = start(said).await;
        assert_eq!(connections(&stack, 2).await, [0, 0], "{said}");
    }
    for said in [
        "Keep-Alive: Timeout = 1\r\n",
        "Keep-Alive: timeout=65, timeout=1\r\n",
        "Keep-Alive: timeout=65\r\nkeep-alive:timeout=1\r\n",
    ] {
        let stack = start(said).await;
        assert_eq!(connections(&stack, 2).await, [0, 1], "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_the_connections_to_services() {
    let stack = start("Keep-Alive: timeout=60\r\n").await;
    assert_eq!(connections(&stack, 2).await, [0, 0]);
    let same = "[[upstream]]\nname = \"recorder\"\nservers = [\"{upstream}\"]\n";
    assert!(stack.reload(&format!("limits.max_body = \"1MiB\"\n{same}")).await);
    assert_eq!(connections(&stack, 2).await, [0, 0]);
}
