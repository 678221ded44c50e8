//! When a connection to a service is reused, and which requests are sent again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;

use super::{Findings, is_bad_gateway, is_ok, reply, request, start_early};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::{Framing, StrictResponse};
use crate::harness::upstream::{Received, Reply, Step};

/// Sends a request on a connection of its own, which ends with the response.
async fn send(
    stack: &Stack,
    method: &str,
    path: &str,
    body: &str,
) -> Result<StrictResponse, String> {
    let mut connection = Connection::open(stack.gateway).await;
    let length = format!("Content-Length: {}\r\n", body.len());
    let lines = if body.is_empty() { "" } else { &length };
    connection.send(&request(method, path, lines, body)).await;
    loop {
        let response = connection.strict_response(method == "HEAD").await;
        // After an informational response the connection is still busy.
        if !response.as_ref().is_ok_and(|response| response.status < 200) {
            return response;
        }
    }
}

/// The connections of the service's requests, after so many requests.
fn connections_after(stack: &Stack, count: usize) -> Vec<usize> {
    stack.upstream.begun_after(count).iter().map(|received| received.connection).collect()
}

/// The connection of a request, and that of the next.
async fn of_two(stack: &Stack, method: &str, steps: &[Step]) -> [Option<usize>; 2] {
    let steps = steps.to_vec();
    reply(stack, move |_| Reply::Steps(steps.clone()));
    let before = stack.upstream.begun_after(0).len();
    let body = if method == "POST" { "hello" } else { "" };
    let _ = send(stack, method, "/none/first", body).await;
    let next = send(stack, "GET", "/none/next", "").await;
    assert!(is_ok(&next, Framing::Length, "next"), "{next:?}");
    let begun = stack.upstream.begun_after(before);
    let of =
        |path: &str| begun.iter().find(|received| received.target() == path).map(|s| s.connection);
    [of("/none/first"), of("/none/next")]
}

fn sends(bytes: &str) -> Vec<Step> {
    vec![Step::Send(bytes.into())]
}

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_reused_after_a_complete_response() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}");
    for (method, response) in [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("GET", "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello"),
        (
            "GET",
            "HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: close\r\nContent-Length: 0\r\n\r\n",
        ),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello"),
        ("GET", &chunked),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0;a=b\r\nX-Sum: 1\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("GET", "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello"),
        ("GET", "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("HEAD", "HTTP/1.1 200 OK\r\n\r\n"),
        ("POST", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        ("POST", &chunked),
        ("POST", "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"),
    ] {
        for steps in [sends(response), vec![Step::Drip(response.into())]] {
            let [first, next] = of_two(&stack, method, &steps).await;
            findings.check(format!("{method} {response}"), first == next, (first, next));
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_not_reused_after_a_doubtful_response_or_one_that_closes_it() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let extra = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}");
    let closing = |value: &str| {
        format!("HTTP/1.1 200 OK\r\nConnection: {value}\r\nContent-Length: 5\r\n\r\nhello")
    };
    for (method, response) in [
        ("GET", format!("{length}{extra}")),
        ("GET", format!("{length}x")),
        ("GET", format!("{length}\r\n")),
        ("POST", format!("{length}{extra}")),
        ("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n{extra}")),
        ("GET", format!("{chunked}{extra}")),
        ("GET", format!("{chunked}\r\n")),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{extra}")),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello{extra}")),
        ("HEAD", format!("{length}{extra}")),
        ("HEAD", chunked.clone()),
        ("GET", closing("close")),
        ("GET", closing("Close")),
        ("GET", closing("X-Hop, close")),
        ("GET", closing("keep-alive\r\nConnection: close")),
        ("POST", closing("close")),
        ("HEAD", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".to_owned()),
        ("GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned()),
        ("GET", length.replace("HTTP/1.1", "HTTP/1.0")),
        ("GET", closing("keep-alive").replace("HTTP/1.1", "HTTP/1.0")),
        ("GET", chunked.replace("HTTP/1.1", "HTTP/1.0")),
        ("GET", "HTTP/1.0 304 Not Modified\r\n\r\n".to_owned()),
        ("GET", chunked.replace("\r\n\r\n5", "\r\nContent-Length: 5\r\n\r\n5")),
        ("GET", length.replace("\r\n\r\n", "\r\nContent-Length: 6\r\n\r\n")),
        ("GET", length.replace("\r\n\r\n", "\r\nTransfer-Encoding: gzip\r\n\r\n")),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n".to_owned()),
        ("GET", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n".to_owned()),
        ("GET", "nonsense\r\n\r\n".to_owned()),
    ] {
        let [first, next] = of_two(&stack, method, &sends(&response)).await;
        let is_right = first.is_some() && first != next;
        findings.check(format!("{method} {response}"), is_right, (first, next));
    }
    // A response without a length ends when the connection is closed.
    for version in ["1.0", "1.1"] {
        let header = format!("HTTP/{version} 200 OK\r\n\r\nhello");
        let steps = [Step::Send(header.clone().into()), Step::Close];
        let [first, next] = of_two(&stack, "GET", &steps).await;
        findings.check(header, first.is_some() && first != next, (first, next));
    }
    findings.end();
}

/// The rest of the body would be the next request.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_response_came_before_the_end_of_the_body_is_not_reused() {
    let stack = start_early().await;
    let mut findings = Findings::default();
    for (lines, begin) in [
        ("Content-Length: 20\r\n", "GET /"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"),
        ("Expect: 100-continue\r\nContent-Length: 20\r\n", ""),
    ] {
        reply(&stack, |_| Reply::ok("", "early"));
        let before = stack.upstream.begun_after(0).len();
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&request("POST", "/none/first", lines, begin)).await;
        let response = connection.strict_response(false).await;
        findings.check(
            format!("{lines}{begin}"),
            is_ok(&response, Framing::Length, "early"),
            response,
        );
        let next = send(&stack, "GET", "/none/next", "").await;
        findings.check(format!("{lines}{begin}"), is_ok(&next, Framing::Length, "next"), next);
        let connections = connections_after(&stack, before);
        let is_right = connections.len() == 2 && connections[0] != connections[1];
        findings.check(format!("{lines}{begin}"), is_right, connections);
        // Whatever happens to the client's connection.
        drop(connection);
    }
    findings.end();
}

/// Nothing may come between two responses.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_on_which_something_comes_is_closed() {
    let stack = Stack::start().await;
    let release = Arc::new(tokio::sync::Notify::new());
    let waiting = release.clone();
    reply(&stack, move |_| {
        Reply::Steps(vec![
            Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".into()),
            Step::Wait(waiting.clone()),
            Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nextra".into()),
        ])
    });
    let first = send(&stack, "GET", "/none/first", "").await;
    assert!(is_ok(&first, Framing::Length, "hello"), "{first:?}");
    release.notify_one();
    stack.upstream.until_open(0).await;
    for method in ["POST", "GET"] {
        let next = send(&stack, method, "/none/next", "x").await;
        assert!(is_ok(&next, Framing::Length, "next"), "{next:?}");
    }
    assert_eq!(connections_after(&stack, 0), [0, 1, 1]);
}

const ENDS: [Step; 2] = [Step::Close, Step::Reset];

fn name(end: &Step) -> &'static str {
    if matches!(end, Step::Reset) { "reset" } else { "closed" }
}

/// The service ends its first connection at the second request on it.
fn ending(stack: &Stack, begin: &'static str, end: Step) {
    stack.upstream.reply(move |received| match received {
        Received { connection: 0, .. } if received.target() != "/none/warm" => {
            Reply::Steps(vec![Step::Send(begin.into()), end.clone()])
        }
        _ => Reply::ok("", "hello"),
    });
}

/// The response, and the connections of the request; the first of them was used before.
async fn on_a_used_connection(
    begin: &'static str,
    end: Step,
    method: &str,
    body: &str,
) -> (Result<StrictResponse, String>, Vec<usize>) {
    let stack = Stack::start().await;
    ending(&stack, begin, end);
    let warm = send(&stack, "GET", "/none/warm", "").await;
    assert!(is_ok(&warm, Framing::Length, "hello"), "{warm:?}");
    let response = send(&stack, method, "/none/tried", body).await;
    (response, connections_after(&stack, 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_request_whose_used_connection_ends_before_a_byte_is_sent_once_more() {
    let mut findings = Findings::default();
    for end in ENDS {
        for (method, body) in [
            ("GET", ""),
            ("HEAD", ""),
            ("OPTIONS", ""),
            ("DELETE", ""),
            ("PUT", ""),
            ("PUT", "hello"),
            ("GET", "hello"),
        ] {
            let row = format!("{method} {body} {}", name(&end));
            let (response, connections) = on_a_used_connection("", end.clone(), method, body).await;
            let text = if method == "HEAD" { "" } else { "hello" };
            let is_right = response.as_ref().is_ok_and(|r| r.status == 200 && r.text() == text);
            findings.check(&row, is_right, response);
            findings.check(&row, connections == [0, 1], connections);
        }
    }
    findings.end();
}

/// The service may have acted on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_idempotent_is_sent_only_once() {
    let mut findings = Findings::default();
    for end in ENDS {
        for (method, body) in [("POST", "hello"), ("POST", ""), ("PATCH", "hello"), ("ODD", "")] {
            let row = format!("{method} {body} {}", name(&end));
            let (response, connections) = on_a_used_connection("", end.clone(), method, body).await;
            findings.check(&row, is_bad_gateway(&response), response);
            findings.check(&row, connections == [0], connections);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_not_sent_again_once_the_response_has_begun() {
    let mut findings = Findings::default();
    for end in ENDS {
        for begin in ["H", "HTTP/1.1 200 OK\r\nContent-Le", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
            let row = format!("{begin} {}", name(&end));
            let stack = Stack::start().await;
            ending(&stack, begin, end.clone());
            send(&stack, "GET", "/none/warm", "").await.unwrap();
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&request("GET", "/none/tried", "", "")).await;
            let mut response = connection.strict_response(false).await;
            if response.as_ref().is_ok_and(|response| response.status == 103) {
                response = connection.strict_response(false).await;
            }
            findings.check(&row, is_bad_gateway(&response), response);
            let connections = connections_after(&stack, 1);
            findings.check(&row, connections == [0], connections);
        }
    }
    findings.end();
}

/// Later tries are on new connections even if idle ones are left.
#[tokio::test(flavor = "multi_thread")]
async fn there_are_two_retries_and_they_are_on_new_connections() {
    const USED: usize = 3;
    let mut findings = Findings::default();
    for end in ENDS {
        for ends_all in [false, true] {
            let row = format!("{} {ends_all}", name(&end));
            let stack = Stack::start().await;
            let barrier = Arc::new(Barrier::new(USED));
            let ends = end.clone();
            stack.upstream.reply(move |received| {
                if received.target() == "/none/warm" {
                    Reply::Meet(barrier.clone(), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
                } else if ends_all || received.connection < USED {
                    Reply::Steps(vec![ends.clone()])
                } else {
                    Reply::ok("", "hello")
                }
            });
            let warm = (0..USED).map(|_| send(&stack, "GET", "/none/warm", ""));
            futures_util::future::join_all(warm).await;
            let response = send(&stack, "GET", "/none/tried", "").await;
            let is_right = match ends_all {
                true => is_bad_gateway(&response),
                false => is_ok(&response, Framing::Length, "hello"),
            };
            findings.check(&row, is_right, response);
            let connections = connections_after(&stack, USED);
            let is_right = match (ends_all, &connections[..]) {
                (false, [used, new]) => *used < USED && *new == USED,
                (true, [used, new, last]) => *used < USED && (*new, *last) == (USED, USED + 1),
                _ => false,
            };
            findings.check(&row, is_right, connections);
        }
    }
    findings.end();
}

/// It is closed while it is idle, so that no request is sent on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ended_while_it_was_idle_is_not_used() {
    let mut findings = Findings::default();
    for end in ENDS {
        let stack = Stack::start().await;
        let ending = end.clone();
        reply(&stack, move |_| {
            let response = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            Reply::Steps(vec![Step::Send(response.into()), ending.clone()])
        });
        send(&stack, "GET", "/none/first", "").await.unwrap();
        stack.upstream.until_open(0).await;
        // The only worker has noticed the end by the time it has served these.
        for _ in 0..10 {
            send(&stack, "GET", "/", "").await.unwrap();
        }
        let response = send(&stack, "POST", "/none/next", "x").await;
        findings.check(name(&end), is_ok(&response, Framing::Length, "next"), response);
    }
    findings.end();
}

/// One address may lead to several processes.
#[tokio::test(flavor = "multi_thread")]
async fn the_keep_alive_of_a_response_counts_for_its_connection_only() {
    let stack = Stack::start().await;
    stack.upstream.reply(|received| match received.connection {
        0 => Reply::ok("Keep-Alive: timeout=1\r\n", "hello"),
        1 => Reply::ok("Keep-Alive: timeout=2\r\n", "hello"),
        _ => Reply::ok("", "hello"),
    });
    // The first is not kept at all; this does not affect the second.
    for _ in 0..3 {
        send(&stack, "GET", "/none", "").await.unwrap();
    }
    assert_eq!(connections_after(&stack, 0), [0, 1, 1]);
    assert!(
        stack.upstream.requests().iter().all(|received| received.all("connection") != ["close"])
    );
    // The second is closed a second before the service's timeout, the third is not.
    stack.upstream.until_open(0).await;
    let started = std::time::Instant::now();
    send(&stack, "GET", "/none", "").await.unwrap();
    stack.upstream.until_open(0).await;
    assert_eq!(connections_after(&stack, 3), [2]);
    assert!(started.elapsed() > Duration::from_secs(3), "{:?}", started.elapsed());
}
