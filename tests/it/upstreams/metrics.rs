//! The metrics of upstreams.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{nobody, upstream};
use crate::harness::client::{Connection, get};
use crate::harness::upstream::{Reply, Step, Upstream};
use crate::harness::{Stack, until};

async fn attempts(stack: &Stack, code: &str) -> f64 {
    let name = format!("wxgate_upstream_requests_total{{code=\"{code}\",upstream=\"recorder\"}}");
    stack.metric(&name).await
}

async fn retries(stack: &Stack, outcome: &str) -> f64 {
    let labels = format!("outcome=\"{outcome}\",upstream=\"recorder\"");
    stack.metric(&format!("wxgate_upstream_retries_total{{{labels}}}")).await
}

const NO_RETRY: &str = "[upstream.retry]\nattempts = 0\n[upstream.ejection]\nfailures = 0\n";

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_by_status_or_kind_of_failure() {
    let (nobody, _taken) = nobody();
    let changes = upstream(&[nobody], NO_RETRY);
    let stack = Stack::start_with(&changes).await;
    stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    assert_eq!(attempts(&stack, "connect_error").await, 1.0);

    let keys = format!("read_timeout = \"300ms\"\n{NO_RETRY}");
    assert!(stack.reload(&upstream(&[stack.upstream.address], &keys)).await);
    for (reply, code) in [
        (Reply::ok("", ""), "200"),
        (Reply::Bytes(b"HTTP/1.1 418 X\r\nContent-Length: 0\r\n\r\n".to_vec()), "418"),
        (Reply::Bytes(b"HTTP/1.1 799 X\r\nContent-Length: 0\r\n\r\n".to_vec()), "other"),
        (Reply::Steps(vec![Step::Reset]), "reset"),
        (Reply::Stall(vec![]), "timeout"),
        (Reply::Last(b"SSH-2.0\r\n".to_vec()), "protocol_error"),
    ] {
        stack.upstream.reply(move |_| reply.clone());
        stack.get("/none").send().await;
        assert_eq!(attempts(&stack, code).await, 1.0, "{code}");
    }
    let took = "wxgate_upstream_response_seconds_count{upstream=\"recorder\"}";
    assert_eq!(stack.metric(took).await, 3.0, "only responses have a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn retried_requests_are_counted_by_how_they_ended() {
    let other = Upstream::start().await;
    let servers = [other.address];
    let keys = "[upstream.ejection]\nfailures = 0\n[upstream.retry]\nbudget = \"0%\"\n";
    let stack = Stack::start_with(&upstream(&servers, keys)).await;
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = count.clone();
    other.reply(move |_| match counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::Steps(vec![Step::Reset]),
        _ => Reply::ok("", ""),
    });
    assert_eq!(stack.get("/none").send().await.status, 200);
    assert_eq!(retries(&stack, "ok").await, 1.0);
    other.reply(|_| Reply::Steps(vec![Step::Reset]));
    let before = other.begun_after(0).len();
    for _ in 0..4 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(retries(&stack, "failed").await, 4.0);
    assert_eq!(other.begun_after(0).len(), before + 12);
    // Ten in ten seconds are always allowed; 9 are used.
    for _ in 0..2 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(retries(&stack, "no_budget").await, 2.0);
    assert_eq!(retries(&stack, "failed").await, 4.0);
    assert_eq!(other.begun_after(0).len(), before + 12 + 3);
    // Not a retry.
    stack.post("/none").body("x").send().await.assert_error(502, "bad_gateway", "retry");
    assert_eq!(retries(&stack, "failed").await, 4.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_and_connections_are_those_of_the_moment() {
    let stack = Stack::start().await;
    let released = Arc::new(Notify::new());
    let slow = released.clone();
    stack.upstream.reply(move |_| {
        Reply::When(slow.clone(), b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec())
    });
    let mut client = Connection::open(stack.gateway).await;
    client.send(&stack.get("/none").bytes()).await;
    until("the request", async || stack.upstream.begun_after(0).len() == 1).await;
    let in_flight = "wxgate_upstream_requests_in_flight{upstream=\"recorder\"}";
    let active = "wxgate_upstream_connections{state=\"active\",upstream=\"recorder\"}";
    let idle = "wxgate_upstream_connections{state=\"idle\",upstream=\"recorder\"}";
    assert_eq!((stack.metric(in_flight).await, stack.metric(active).await), (1.0, 1.0));
    assert_eq!(stack.metric(idle).await, 0.0);
    released.notify_one();
    assert_eq!(client.response(false).await.status, 200);
    stack.until_metric(in_flight, 0.0).await;
    stack.until_metric(idle, 1.0).await;
    assert_eq!(stack.metric(active).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_are_counted_by_outcome() {
    let (nobody, _taken) = nobody();
    let well = Upstream::start().await;
    let keys = "[upstream.health_check]\npath = \"/\"\ninterval = \"60ms\"\ntimeout = \"20s\"\n";
    let stack = Stack::start_with(&upstream(&[nobody, well.address], keys)).await;
    for outcome in ["ok", "failed"] {
        let labels = format!("outcome=\"{outcome}\",upstream=\"recorder\"");
        let name = format!("wxgate_upstream_health_checks_total{{{labels}}}");
        until("a check", async || stack.metric(&name).await > 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_series_of_an_upstream_go_with_it() {
    let stack = Stack::start().await;
    let series = async |name: &str| {
        let text = get(stack.admin, "/metrics").await.text();
        text.lines().filter(|line| line.contains(&format!("upstream=\"{name}\""))).count()
    };
    let before = series("recorder").await;
    assert!(before > 20, "{before}");
    let changes = upstream(&[stack.upstream.address], "").replace("recorder", "renamed")
        + "[[route]]\npath = \"/none\"\nupstream = \"renamed\"\nauth = \"none\"\n";
    assert!(stack.reload(&changes).await);
    assert_eq!((series("recorder").await, series("renamed").await), (0, before));
    assert_eq!(stack.get("/none").send().await.status, 200);
    let counted = "wxgate_upstream_requests_total{code=\"200\",upstream=\"renamed\"}";
    assert_eq!(stack.metric(counted).await, 1.0);
}
