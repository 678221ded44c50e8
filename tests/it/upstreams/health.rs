//! Active health checks.

use super::{get_all, nobody, servers, until_servers, upstream};
use crate::harness::client::Connection;
use crate::harness::upstream::{Received, Reply, Upstream};
use crate::harness::{Stack, process_log, until};

/// Checks that a busy machine does not fail.
const CHECK: &str = r#"
    [upstream.health_check]
    path = "/healthz?deep=1"
    interval = "60ms"
    timeout = "20s"
"#;

fn is_check(request: &Received) -> bool {
    request.target() == "/healthz?deep=1"
}

/// Replies to health checks with this status, and to requests with 200.
fn be(server: &Upstream, status: u16) {
    server.reply(move |request| {
        if is_check(request) {
            Reply::Bytes(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\nno").into())
        } else {
            Reply::ok("", "served")
        }
    });
}

fn served(server: &Upstream) -> usize {
    server.requests().iter().filter(|request| !is_check(request)).count()
}

fn checks(server: &Upstream) -> usize {
    server.requests().iter().filter(|request| is_check(request)).count()
}

/// Two servers besides the recorder of the stack.
async fn start(keys: &str) -> (Stack, Upstream, Upstream) {
    let (one, other) = (Upstream::start().await, Upstream::start().await);
    be(&one, 200);
    be(&other, 200);
    let stack = Stack::start_with(&upstream(&[one.address, other.address], keys)).await;
    (stack, one, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_its_checks_gets_no_requests_until_it_passes_them_again() {
    let (stack, sick, well) = start(CHECK).await;
    until("a check", async || checks(&sick) > 0 && checks(&well) > 0).await;
    be(&sick, 503);
    until_servers(&stack, "unhealthy", 1.0).await;
    assert_eq!(servers(&stack, "healthy").await, 1.0);
    let before = served(&sick);
    get_all(&stack, 6).await;
    assert_eq!((served(&sick), served(&well)), (before, 6));
    be(&sick, 302);
    until_servers(&stack, "healthy", 2.0).await;
    get_all(&stack, 4).await;
    assert_eq!((served(&sick), served(&well)), (before + 2, 8));
    let lines = process_log::logged_about(&sick.address, sick.log_position);
    let messages: Vec<_> = lines.iter().map(|line| &line["fields"]["message"]).collect();
    assert_eq!(messages, ["server is unhealthy: it gets no requests", "server is healthy again"]);
    assert_eq!(lines[0]["fields"]["cause"], "status 503");
    assert_eq!(lines[0]["fields"]["upstream"], "recorder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_is_a_get_request_with_the_server_s_own_host() {
    let (stack, one, other) = start(CHECK).await;
    until("a check of both", async || checks(&one) > 0 && checks(&other) > 0).await;
    let check = one.requests().into_iter().find(is_check).unwrap();
    assert_eq!(check.request_line, "GET /healthz?deep=1 HTTP/1.1");
    assert_eq!(check.all("host"), [one.address.to_string()]);
    drop(stack);
    let keys = format!("{CHECK}\nhost = \"shop.internal\"\nstatus = [\"204\"]");
    let (stack, one, other) = start(&keys).await;
    be(&one, 204);
    be(&other, 200);
    until("a check", async || checks(&one) > 0).await;
    assert_eq!(one.requests()[0].all("host"), ["shop.internal"]);
    until_servers(&stack, "unhealthy", 1.0).await;
    get_all(&stack, 2).await;
    assert_eq!((served(&one), served(&other)), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_check_path_takes_nothing_down() {
    let (stack, one, other) = start("").await;
    be(&one, 404);
    be(&other, 404);
    let keys = format!("{CHECK}\nunhealthy_after = 1");
    let name = format!("mistaken-{}", one.address.port());
    let changes = upstream(&[one.address, other.address], &keys).replace("recorder", &name);
    let route = format!("[[route]]\npath = \"/none\"\nupstream = \"{name}\"\nauth = \"none\"\n");
    assert!(stack.reload(&format!("{changes}{route}")).await);
    until("checks", async || checks(&one) >= 5 && checks(&other) >= 5).await;
    let metric = format!("wxgate_upstream_servers{{state=\"healthy\",upstream=\"{name}\"}}");
    assert_eq!(stack.metric(&metric).await, 2.0);
    get_all(&stack, 4).await;
    let lines = process_log::logged_with(&name);
    let lines: Vec<_> = lines.iter().filter(|line| line["level"] == "ERROR").collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let message = "no health check of this upstream has succeeded yet, so all its servers stay in \
                   use: check upstream.health_check";
    assert_eq!(lines[0]["fields"]["message"], message);
    assert_eq!(lines[0]["fields"]["cause"], "status 404");
    // As soon as it is right for one, the other one leaves.
    be(&one, 200);
    stack.until_metric(&metric, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_healthy_server_requests_are_rejected_at_once() {
    let (stack, one, other) = start(CHECK).await;
    until("a check", async || checks(&one) > 0 && checks(&other) > 0).await;
    be(&one, 500);
    be(&other, 500);
    until_servers(&stack, "unhealthy", 2.0).await;
    let before = (served(&one), served(&other));
    let response = stack.get("/none").send().await;
    response.assert_error(503, "no_upstream", "retry");
    assert_eq!((served(&one), served(&other)), before);
    be(&one, 200);
    until_servers(&stack, "healthy", 1.0).await;
    get_all(&stack, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stalls_or_refuses_connections_is_unhealthy() {
    let (stalled, well, other) =
        (Upstream::start().await, Upstream::start().await, Upstream::start().await);
    be(&well, 200);
    be(&other, 200);
    let (gone, _taken) = nobody();
    let before = process_log::position();
    stalled.reply(|_| Reply::Stall(vec![]));
    let addresses = [stalled.address, gone, well.address, other.address];
    let keys = CHECK.replace("20s", "2s");
    let stack = Stack::start_with(&upstream(&addresses, &keys)).await;
    until_servers(&stack, "unhealthy", 2.0).await;
    get_all(&stack, 4).await;
    assert_eq!(served(&well) + served(&other), 4);
    let cause = |address: std::net::SocketAddr| {
        let lines = process_log::logged_about(&address, before);
        let line = lines.iter().find(|line| line["level"] == "WARN").unwrap().clone();
        line["fields"]["cause"].as_str().unwrap().to_owned()
    };
    assert_eq!(cause(stalled.address), "not complete within health_check.timeout (2s)");
    assert_eq!(cause(gone), "connection refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_can_be_the_whole_check() {
    let (gone, _taken) = nobody();
    let well = Upstream::start().await;
    let keys = "[upstream.health_check]\ntcp = true\ninterval = \"50ms\"\ntimeout = \"20s\"";
    let stack = Stack::start_with(&upstream(&[gone, well.address], keys)).await;
    until_servers(&stack, "unhealthy", 1.0).await;
    get_all(&stack, 2).await;
    assert_eq!(well.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connect_checks_no_protocol() {
    let (gone, _taken) = nobody();
    // It accepts connections, and sends nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let keys = "protocol = \"h2\"\n[upstream.health_check]\ntcp = true\ninterval = \"50ms\"\n\
                timeout = \"50ms\"";
    let servers_of = [gone, silent.local_addr().unwrap()];
    let stack = Stack::start_with(&upstream(&servers_of, keys)).await;
    until_servers(&stack, "unhealthy", 1.0).await;
    let failed = "wxgate_upstream_health_checks_total{outcome=\"failed\",upstream=\"recorder\"}";
    let before = stack.metric(failed).await;
    until("more checks", async || stack.metric(failed).await >= before + 3.0).await;
    assert_eq!(servers(&stack, "healthy").await, 1.0);
}

/// If the state were not kept, the sick server would be in use: its checks do not end any more.
#[tokio::test(flavor = "multi_thread")]
async fn health_is_kept_over_a_reload_that_changes_neither_server_nor_check() {
    let (stack, sick, well) = start(CHECK).await;
    until("a check", async || checks(&sick) > 0).await;
    be(&sick, 500);
    until_servers(&stack, "unhealthy", 1.0).await;
    sick.reply(|_| Reply::Stall(vec![]));
    let addresses = [sick.address, well.address];
    let keys = format!("read_timeout = \"7s\"\n{CHECK}");
    assert!(stack.reload(&upstream(&addresses, &keys)).await);
    assert_eq!(servers(&stack, "unhealthy").await, 1.0);
    let before = (checks(&well), served(&well));
    get_all(&stack, 4).await;
    assert_eq!(served(&well), before.1 + 4);
    until("checks after the reload", async || checks(&well) > before.0 + 2).await;
    // With another check nothing is known any more.
    be(&sick, 200);
    let keys = CHECK.replace("60ms", "59s");
    assert!(stack.reload(&upstream(&addresses, &keys)).await);
    assert_eq!(servers(&stack, "healthy").await, 2.0);
}

/// Even while requests keep the pool from before the reload.
#[tokio::test(flavor = "multi_thread")]
async fn checks_end_with_their_section() {
    let (stack, sick, well) = start(CHECK).await;
    until("a check", async || checks(&well) > 0).await;
    be(&sick, 500);
    until_servers(&stack, "unhealthy", 1.0).await;
    well.reply(|request| if is_check(request) { Reply::ok("", "") } else { Reply::Stall(vec![]) });
    let mut held = Connection::open(stack.gateway).await;
    held.send(&stack.get("/none").bytes()).await;
    until("the request", async || well.begun_after(0).iter().any(|one| !is_check(one))).await;
    be(&well, 200);
    let addresses = [sick.address, well.address];
    assert!(stack.reload(&upstream(&addresses, &CHECK.replace("healthz", "other"))).await);
    let before = (checks(&sick), checks(&well));
    let new = || well.requests().iter().filter(|one| one.target().contains("other")).count();
    until("other checks", async || new() >= 10).await;
    let after = (checks(&sick), checks(&well));
    // One may have been on its way.
    assert!(after.0 <= before.0 + 1 && after.1 <= before.1 + 1, "{before:?} {after:?}");
    assert!(stack.reload(&upstream(&addresses, "")).await);
    assert_eq!(servers(&stack, "healthy").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_only_busy_stays_healthy() {
    let busy = Upstream::start().await;
    busy.reply(|request| if is_check(request) { Reply::ok("", "") } else { Reply::Stall(vec![]) });
    let keys = format!("max_connections = 1\n{CHECK}");
    let stack = Stack::start_with(&upstream(&[busy.address], &keys)).await;
    let mut held = Connection::open(stack.gateway).await;
    held.send(&stack.get("/none").bytes()).await;
    until("the request", async || busy.begun_after(0).iter().any(|one| !is_check(one))).await;
    let before = checks(&busy);
    until("checks", async || checks(&busy) > before + 5).await;
    assert_eq!(servers(&stack, "healthy").await, 1.0);
}
