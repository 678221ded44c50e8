//! Servers that fail requests are ejected, and return after a trial.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;

use super::{get_all, nobody, servers, until_servers, upstream};
use crate::harness::client::Connection;
use crate::harness::upstream::{Reply, Step, Upstream};
use crate::harness::{Stack, process_log, until};

const THREE_FAILURES: &str = "[upstream.ejection]\nfailures = 3\n";

const DURATION: Duration = Duration::from_secs(10);

fn reset(server: &Upstream) {
    server.reply(|_| Reply::Steps(vec![Step::Reset]));
}

fn serve(server: &Upstream) {
    server.reply(|_| Reply::ok("", "served"));
}

async fn start(keys: &str) -> (Stack, Upstream, Upstream) {
    let (sick, well) = (Upstream::start().await, Upstream::start().await);
    let stack = Stack::start_with(&upstream(&[sick.address, well.address], keys)).await;
    (stack, sick, well)
}

fn messages(about: &Upstream) -> Vec<(String, Value)> {
    let lines = process_log::logged_about(&about.address, about.log_position);
    let fields = lines.iter().map(|line| &line["fields"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let messages = fields.map(|fields| (text(&fields["message"]), fields.clone()));
    messages.filter(|(message, _)| message.contains("eject")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_resets_everything_but_health_checks_is_ejected_and_returns_after_a_trial() {
    let check = "[upstream.health_check]\npath = \"/healthz\"\ninterval = \"60ms\"\n\
                 timeout = \"20s\"\n";
    let (sick, well) = (Upstream::start().await, Upstream::start().await);
    let broken = |request: &crate::harness::upstream::Received| match request.target() {
        "/healthz" => Reply::ok("", ""),
        _ => Reply::Steps(vec![Step::Reset]),
    };
    sick.reply(broken);
    let keys = format!("{THREE_FAILURES}{check}");
    let stack = Stack::start_with(&upstream(&[sick.address, well.address], &keys)).await;
    let asked = |server: &Upstream| {
        server.begun_after(0).iter().filter(|request| request.target() == "/none").count()
    };
    get_all(&stack, 10).await;
    assert_eq!(asked(&sick), 3);
    assert_eq!(servers(&stack, "ejected").await, 1.0);
    assert_eq!(servers(&stack, "healthy").await, 1.0);

    stack.clock.advance(DURATION - Duration::from_millis(1));
    get_all(&stack, 4).await;
    assert_eq!(asked(&sick), 3);
    stack.clock.advance(Duration::from_millis(1));
    get_all(&stack, 6).await;
    assert_eq!(asked(&sick), 4, "one trial, which fails");
    assert_eq!(servers(&stack, "ejected").await, 1.0);

    stack.clock.advance(DURATION);
    sick.reply(|_| Reply::ok("", "served"));
    get_all(&stack, 12).await;
    assert!(asked(&sick) >= 4 + 5, "{}", asked(&sick));
    assert_eq!(servers(&stack, "healthy").await, 2.0);

    let logged = messages(&sick);
    let [ejected, failed, back] = &logged[..] else { panic!("{logged:?}") };
    assert_eq!(ejected.0, "server ejected after consecutive failures");
    assert_eq!(ejected.1["upstream"], "recorder");
    assert_eq!(ejected.1["failures"], 3);
    assert_eq!(ejected.1["cause"], "connection reset");
    assert_eq!(failed.0, "server stays ejected: its trial request failed");
    assert_eq!(back.0, "ejected server is back: its trial request succeeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trial_of_a_client_that_leaves_is_given_to_another() {
    let (stack, sick, well) = start(THREE_FAILURES).await;
    reset(&sick);
    get_all(&stack, 10).await;
    let before = sick.begun_after(0).len();
    stack.clock.advance(DURATION);
    sick.reply(|_| Reply::Stall(vec![]));
    // Some requests go to the other server.
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Connection::open(stack.gateway).await;
        client.send(&stack.get("/none").bytes()).await;
        clients.push(client);
    }
    until("the trial", async || sick.begun_after(0).len() == before + 1).await;
    until("the others", async || well.begun_after(0).len() >= 10 + 3).await;
    serve(&sick);
    get_all(&stack, 4).await;
    assert_eq!(sick.begun_after(0).len(), before + 1, "there is only one trial");
    drop(clients);
    // The gateway notices at some time.
    until("the second trial", async || {
        get_all(&stack, 2).await;
        servers(&stack, "healthy").await == 2.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_servers_are_ejected_than_may_be() {
    let (stack, one, other) = start("[upstream.ejection]\nfailures = 1\n").await;
    reset(&one);
    reset(&other);
    for _ in 0..10 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(servers(&stack, "ejected").await, 1.0);
    let only = Upstream::start().await;
    reset(&only);
    assert!(stack.reload(&upstream(&[only.address], "[upstream.ejection]\nfailures = 1\n")).await);
    for _ in 0..10 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(servers(&stack, "ejected").await, 0.0);
    serve(&only);
    get_all(&stack, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn if_all_are_ejected_requests_are_rejected_at_once() {
    let keys = "[upstream.ejection]\nfailures = 1\nmax_percent = 100\n\
                [upstream.retry]\nattempts = 0\n";
    let (stack, one, other) = start(keys).await;
    reset(&one);
    reset(&other);
    for _ in 0..2 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    let response = stack.get("/none").send().await;
    response.assert_error(503, "no_upstream", "retry");
    assert_eq!((one.begun_after(0).len(), other.begun_after(0).len()), (1, 1));
    // The last failure is the client's, not the lack of another server.
    let keys = "[upstream.ejection]\nfailures = 1\nmax_percent = 100\n";
    let third = Upstream::start().await;
    reset(&third);
    assert!(stack.reload(&upstream(&[third.address], keys)).await);
    stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    stack.get("/none").send().await.assert_error(503, "no_upstream", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn unhealthy_servers_count_towards_those_that_may_be_out() {
    let keys = "[upstream.ejection]\nfailures = 1\n\
                [upstream.health_check]\npath = \"/healthz\"\ninterval = \"60ms\"\n\
                timeout = \"20s\"\n";
    let servers_of: Vec<_> =
        vec![Upstream::start().await, Upstream::start().await, Upstream::start().await];
    let [unhealthy, one, other] = &servers_of[..] else { unreachable!() };
    unhealthy.reply(|_| Reply::Last(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n".to_vec()));
    for server in [one, other] {
        server.reply(|request| match request.target() {
            "/healthz" => Reply::ok("", ""),
            _ => Reply::Steps(vec![Step::Reset]),
        });
    }
    let addresses: Vec<_> = servers_of.iter().map(|server| server.address).collect();
    let stack = Stack::start_with(&upstream(&addresses, keys)).await;
    until_servers(&stack, "unhealthy", 1.0).await;
    for _ in 0..10 {
        stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(servers(&stack, "ejected").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_and_clients_that_leave_are_no_failures() {
    let (stack, sick, _well) = start("[upstream.ejection]\nfailures = 1\n").await;
    let reply = b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n";
    sick.reply(|_| Reply::Bytes(reply.to_vec()));
    for _ in 0..6 {
        stack.get("/none").send().await;
    }
    assert_eq!(sick.begun_after(0).len(), 3);
    sick.reply(|_| Reply::Stall(vec![]));
    for count in 4..7 {
        let mut client = Connection::open(stack.gateway).await;
        // The next but one is for the same server.
        client.send(&stack.get("/none").bytes()).await;
        until("the request", async || sick.begun_after(0).len() == count).await;
        drop(client);
        get_all(&stack, 1).await;
    }
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    // A response that ends early has begun.
    let half = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf";
    sick.reply(|_| Reply::Last(half.to_vec()));
    for _ in 0..4 {
        stack.get("/none").send().await;
    }
    assert_eq!(servers(&stack, "ejected").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_gone_or_stalls_costs_no_request() {
    let (gone, _taken) = nobody();
    let servers_of: Vec<_> = vec![Upstream::start().await, Upstream::start().await];
    let stalled = Upstream::start().await;
    stalled.reply(|_| Reply::Stall(vec![]));
    let addresses = [gone, servers_of[0].address, stalled.address, servers_of[1].address];
    let keys = "[upstream.ejection]\nfailures = 2\n\
                [upstream.retry]\nper_try_timeout = \"2s\"\n";
    let stack = Stack::start_with(&upstream(&addresses, keys)).await;
    get_all(&stack, 20).await;
    assert_eq!(servers(&stack, "ejected").await, 2.0);
    assert_eq!(stalled.begun_after(0).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ejection_is_kept_over_a_reload_that_does_not_change_the_server() {
    let (stack, sick, well) = start(THREE_FAILURES).await;
    reset(&sick);
    get_all(&stack, 10).await;
    let addresses = [sick.address, well.address];
    let keys = format!("read_timeout = \"7s\"\n{THREE_FAILURES}");
    assert!(stack.reload(&upstream(&addresses, &keys)).await);
    assert_eq!(servers(&stack, "ejected").await, 1.0);
    get_all(&stack, 4).await;
    assert_eq!(sick.begun_after(0).len(), 3);
    // Without ejection it is in use at once.
    serve(&sick);
    let keys = "[upstream.ejection]\nfailures = 0\n";
    assert!(stack.reload(&upstream(&addresses, keys)).await);
    assert_eq!(servers(&stack, "healthy").await, 2.0);
    get_all(&stack, 4).await;
    assert_eq!(sick.begun_after(0).len(), 3 + 2);
}

/// The failures of requests that began before the ejection do not prolong it.
#[tokio::test(flavor = "multi_thread")]
async fn late_failures_do_not_prolong_an_ejection() {
    let (stack, sick, _well) = start("[upstream.ejection]\nfailures = 1\n").await;
    let late = Arc::new(Notify::new());
    let wait = late.clone();
    sick.reply(move |request| match request.target() {
        "/none/late" => Reply::Steps(vec![Step::Wait(wait.clone()), Step::Reset]),
        _ => Reply::Steps(vec![Step::Reset]),
    });
    let mut client = Connection::open(stack.gateway).await;
    client.send(&stack.get("/none/late").bytes()).await;
    until("the request", async || sick.begun_after(0).len() == 1).await;
    get_all(&stack, 4).await;
    assert_eq!(servers(&stack, "ejected").await, 1.0);
    stack.clock.advance(DURATION);
    late.notify_one();
    assert_eq!(client.response(false).await.status, 200, "another server serves it");
    serve(&sick);
    get_all(&stack, 2).await;
    assert_eq!(servers(&stack, "healthy").await, 2.0);
}

/// A server that closes a connection on which no more of a request comes for a while.
async fn impatient() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = Vec::new();
                let more = async |stream: &mut tokio::net::TcpStream, read: &mut Vec<u8>| {
                    let read = tokio::io::AsyncReadExt::read_buf(stream, read);
                    let read = tokio::time::timeout(Duration::from_millis(1500), read).await;
                    matches!(read, Ok(Ok(1..)))
                };
                while more(&mut stream, &mut read).await {}
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_give_up_on_a_client_that_stalls_are_not_ejected() {
    let (one, other) = (impatient().await, impatient().await);
    let stack = Stack::start_with(&upstream(&[one, other], THREE_FAILURES)).await;
    let stall = async |_| {
        let mut client = Connection::open(stack.gateway).await;
        let begin = "POST /none HTTP/1.1\r\nHost: g\r\nContent-Length: 10\r\n\r\nbegun";
        client.send(begin.as_bytes()).await;
        client.response(false).await
    };
    let responses = futures_util::future::join_all((0..12).map(stall)).await;
    for response in responses {
        response.assert_error(502, "bad_gateway", "retry");
    }
    assert_eq!(servers(&stack, "ejected").await, 0.0);
    let reset = "wxgate_upstream_requests_total{code=\"reset\",upstream=\"recorder\"}";
    assert_eq!(stack.metric(reset).await, 12.0);
}
