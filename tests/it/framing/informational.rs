//! Informational responses, and requests that expect 100.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::{Findings, go_on, is_ok, reply, request, start_early};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::Framing;
use crate::harness::upstream::{Reply, Step};

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_is_forwarded_and_so_is_the_reaction_of_the_service() {
    let stack = start_early().await;
    let mut findings = Findings::default();
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    for (lines, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let lines = format!("Expect: 100-continue\r\n{lines}");
        let header = request("POST", "/none", &lines, "");
        // The service asks for the body.
        let before = stack.upstream.requests().len();
        reply(&stack, move |_| {
            Reply::Steps(vec![
                Step::Send("HTTP/1.1 100 Continue\r\n\r\n".into()),
                Step::Body,
                Step::Send(ok.into()),
            ])
        });
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&header).await;
        let first = connection.strict_response(false).await;
        findings.check(&lines, first.as_ref().is_ok_and(|first| first.status == 100), first);
        connection.send(body.as_bytes()).await;
        let response = connection.strict_response(false).await;
        findings.check(&lines, is_ok(&response, Framing::Length, "hello"), &response);
        let received = stack.upstream.requests_after(before);
        let is_right = received.len() == 1
            && received[0].all("expect") == ["100-continue"]
            && received[0].body == b"hello";
        findings.check(&lines, is_right, received);
        if let Ok(response) = response {
            let next = go_on(&mut connection, &response).await;
            findings.check(&lines, next.is_ok(), next);
        }
        // It sends no 100, so the client need not send the body: what follows is not a request.
        for status in ["417 Expectation Failed", "413 Content Too Large", "200 OK"] {
            reply(&stack, move |_| {
                let header = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nno");
                Reply::Steps(vec![Step::Send(header.into()), Step::Finish])
            });
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&header).await;
            let response = connection.strict_response(false).await;
            let is_right = response.as_ref().is_ok_and(|response| {
                response.status_line.contains(&status[..3]) && response.text() == "no"
            });
            findings.check(format!("{status} {lines}"), is_right, &response);
            let before = stack.upstream.begun_after(0).len();
            connection.try_send(&request("GET", "/none/next", "", "")).await;
            let next = connection.strict_response_or_end(false).await;
            let is_right =
                next.as_ref().is_ok_and(|next| next.as_ref().is_none_or(|n| n.status == 400));
            findings.check(format!("after {status} {lines}"), is_right, next);
            let begun = stack.upstream.begun_after(before);
            findings.check(format!("after {status} {lines}"), begun.is_empty(), begun);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_100_even_if_the_service_sends_none() {
    let stack = Stack::start().await;
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    reply(&stack, move |_| Reply::Steps(vec![Step::Body, Step::Send(ok.into())]));
    let mut findings = Findings::default();
    for (lines, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let lines = format!("Expect: 100-Continue\r\n{lines}");
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&request("POST", "/none", &lines, "")).await;
        let first = connection.strict_response(false).await;
        findings.check(&lines, first.as_ref().is_ok_and(|first| first.status == 100), first);
        let before = stack.upstream.requests().len();
        connection.send(body.as_bytes()).await;
        let response = connection.strict_response(false).await;
        findings.check(&lines, response.as_ref().is_ok_and(|r| r.status == 200), &response);
        let received = stack.upstream.requests_after(before);
        findings.check(&lines, received.len() == 1 && received[0].body == b"hello", received);
        if let Ok(response) = response {
            let next = go_on(&mut connection, &response).await;
            findings.check(&lines, next.is_ok(), next);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_after_100_is_forwarded_even_after_the_response_has_begun() {
    let stack = start_early().await;
    let mut findings = Findings::default();
    let header = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    for is_asked_by_service in [true, false] {
        let release = Arc::new(Notify::new());
        let first = match is_asked_by_service {
            true => vec![Step::Send(format!("HTTP/1.1 100 Continue\r\n\r\n{header}").into())],
            false => vec![Step::Wait(release.clone()), Step::Send(header.into())],
        };
        let steps = [first, vec![Step::Body, Step::Send("hello".into())]].concat();
        reply(&stack, move |_| Reply::Steps(steps.clone()));
        let lines = "Expect: 100-continue\r\nContent-Length: 4\r\n";
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&request("POST", "/none", lines, "")).await;
        let first = connection.strict_response(false).await;
        findings.check(is_asked_by_service, first.as_ref().is_ok_and(|r| r.status == 100), first);
        release.notify_one();
        let begun = connection.reads_up_to(b"\r\n\r\n").await;
        findings.check(is_asked_by_service, begun, "the response has begun");
        connection.send(b"body").await;
        findings.check(is_asked_by_service, connection.reads_up_to(b"hello").await, "its end");
        let received = stack.upstream.requests_after(before);
        findings.check(
            is_asked_by_service,
            received.len() == 1 && received[0].body == b"body",
            received,
        );
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_one_100_even_if_the_service_sends_a_late_one() {
    let stack = start_early().await;
    let release = Arc::new(Notify::new());
    let waiting = release.clone();
    reply(&stack, move |_| {
        Reply::Steps(vec![
            Step::Wait(waiting.clone()),
            Step::Send("HTTP/1.1 100 Continue\r\n\r\n".into()),
            Step::Body,
            Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".into()),
        ])
    });
    let mut connection = Connection::open(stack.gateway).await;
    let lines = "Expect: 100-continue\r\nContent-Length: 4\r\n";
    connection.send(&request("POST", "/none", lines, "")).await;
    let first = connection.strict_response(false).await;
    assert!(first.as_ref().is_ok_and(|first| first.status == 100), "{first:?}");
    release.notify_one();
    connection.send(b"body").await;
    let response = connection.strict_response(false).await;
    assert!(is_ok(&response, Framing::Length, "hello"), "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_client_that_expects_100_gets_none() {
    let stack = start_early().await;
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    reply(&stack, move |_| {
        let first = "HTTP/1.1 100 Continue\r\n\r\n";
        Reply::Steps(vec![Step::Send(first.into()), Step::Body, Step::Send(ok.into())])
    });
    let mut connection = Connection::open(stack.gateway).await;
    let lines = "Host: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n";
    connection.send(format!("POST /none HTTP/1.0\r\n{lines}\r\nhello").as_bytes()).await;
    let response = connection.strict_response(false).await;
    assert!(is_ok(&response, Framing::Length, "hello"), "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_responses_are_forwarded_as_they_come() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let release = Arc::new(Notify::new());
    let waiting = release.clone();
    reply(&stack, move |_| {
        Reply::Steps(vec![
            Step::Send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nLink: </b>\r\n\r\n".into()),
            Step::Wait(waiting.clone()),
            Step::Drip("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n".into()),
            Step::Send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".into()),
        ])
    });
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(&request("GET", "/none", "", "")).await;
    let first = connection.strict_response(false).await;
    // It is not held back until the next one.
    let is_right = first
        .as_ref()
        .is_ok_and(|first| first.status == 103 && first.all("link") == ["</a>", "</b>"]);
    findings.check("the first", is_right, first);
    release.notify_one();
    for status in [102, 103] {
        let response = connection.strict_response(false).await;
        findings.check(status, response.as_ref().is_ok_and(|r| r.status == status), response);
    }
    let response = connection.strict_response(false).await;
    findings.check("the last", is_ok(&response, Framing::Length, "hello"), &response);
    let next = go_on(&mut connection, &response.unwrap()).await;
    findings.check("the next", next.is_ok(), next);
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn informational_responses_without_end_are_cut_off() {
    let stack = Stack::start().await;
    for interim in
        ["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"]
    {
        stack.upstream.reply(move |_| Reply::Push(Vec::new(), interim.repeat(100).into()));
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&request("GET", "/none", "", "")).await;
        let passed = AtomicUsize::new(0);
        let reading = async {
            loop {
                let response = connection.strict_response_or_end(false).await.unwrap();
                match response {
                    Some(response) if response.status < 200 => {
                        passed.fetch_add(1, Ordering::Relaxed);
                    }
                    other => break other,
                }
            }
        };
        let last = tokio::time::timeout(crate::harness::PATIENCE, reading).await;
        let last = last.unwrap_or_else(|_| panic!("no end after {passed:?}"));
        assert!(last.is_none_or(|last| last.status == 502), "after {passed:?}");
    }
}
