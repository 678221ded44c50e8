//! Responses that begin before the request has ended.

use std::time::Duration;

use tokio::time::timeout;

use super::{Findings, reply, request, start_early};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::upstream::{Reply, Step};

const MANY: usize = 50;

/// A body that is larger than all buffers between client and service.
fn large(is_chunked: bool) -> (String, String) {
    let body = "x".repeat(1 << 20);
    match is_chunked {
        false => (format!("Content-Length: {}\r\n", body.len()), body),
        true => {
            let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
            ("Transfer-Encoding: chunked\r\n".to_owned(), chunk.repeat(64) + "0\r\n\r\n")
        }
    }
}

async fn assert_rejection_arrives(end: Step) {
    let stack = start_early().await;
    let mut findings = Findings::default();
    for attempt in 0..MANY {
        let status = if attempt % 2 == 0 { "413 Content Too Large" } else { "401 Unauthorized" };
        let bytes = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 5\r\n\r\nno {attempt:02}"
        );
        let steps = vec![Step::Send(bytes.into()), end.clone()];
        reply(&stack, move |_| Reply::Steps(steps.clone()));
        let (lines, body) = large(attempt % 4 < 2);
        let bytes = request("POST", "/none", &lines, &body);
        let mut connection = Connection::open(stack.gateway).await;
        // Some clients read while they send, others only after sending.
        let response = if attempt % 3 == 0 {
            connection.try_send(&bytes).await;
            connection.strict_response(false).await
        } else {
            connection.strict_response_while_sending(&bytes).await
        };
        let is_right = response.as_ref().is_ok_and(|response| {
            response.status_line.contains(&status[..3])
                && response.is_whole
                && response.text() == format!("no {attempt:02}")
        });
        findings.check(attempt, is_right, response);
    }
    findings.end();
}

/// Unread bytes make the system reset the connection when the service closes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_by_a_service_that_closes_at_once_reaches_a_client_that_still_sends() {
    assert_rejection_arrives(Step::Close).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_by_a_service_that_reads_on_reaches_a_client_that_still_sends() {
    assert_rejection_arrives(Step::Finish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_begins_before_the_end_of_the_body_is_forwarded_while_the_body_continues() {
    let stack = start_early().await;
    let mut findings = Findings::default();
    let (header, begin, end) =
        ("Transfer-Encoding: chunked\r\n\r\n", "5\r\nhello\r\n", "6\r\n world\r\n0\r\n\r\n");
    for is_chunked in [false, true] {
        reply(&stack, move |_| {
            let first = format!("HTTP/1.1 200 OK\r\n{header}{begin}");
            Reply::Steps(vec![Step::Send(first.into()), Step::Body, Step::Send(end.into())])
        });
        let before = stack.upstream.requests().len();
        let (lines, body) = large(is_chunked);
        let bytes = request("POST", "/none", &lines, &body);
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(first).await;
        let begun = connection.reads_up_to(b"hello").await;
        findings.check(is_chunked, begun, "the response does not begin");
        if !begun {
            continue;
        }
        connection.send(rest).await;
        let ended = connection.reads_up_to(b" world\r\n0\r\n\r\n").await;
        findings.check(is_chunked, ended, "the response does not end");
        let received = stack.upstream.requests_after(before);
        let is_whole = received.len() == 1 && received[0].body.len() == 1 << 20;
        findings.check(is_chunked, is_whole, "the body does not end");
        // Whether the client's connection is kept or not, nothing else follows.
        connection.try_send(&request("GET", "/none/next", "", "")).await;
        let next = connection.strict_response_or_end(false).await;
        let is_right =
            next.as_ref().is_ok_and(|next| next.as_ref().is_none_or(|next| next.text() == "next"));
        findings.check(is_chunked, is_right, next);
    }
    findings.end();
}

/// Neither side waits for the end of the other; the body is larger than all buffers.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_and_its_echo_are_forwarded_at_once() {
    const LENGTH: usize = 16 << 20;
    let stack = Stack::start_with("limits.max_body = \"100MiB\"").await;
    stack.upstream.respond_early(true);
    let body: String = ('a'..='z').cycle().take(LENGTH).collect();
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    for (lines, sent) in [
        (format!("Content-Length: {LENGTH}\r\n"), body.clone()),
        ("Transfer-Encoding: chunked\r\n".to_owned(), chunk + "0\r\n\r\n"),
    ] {
        // The echo must contain neither the gateway's framing nor bytes of a next request.
        let header = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n{lines}\r\n");
        stack.upstream.reply(move |_| Reply::Echo(header.clone().into()));
        let mut connection = Connection::open(stack.gateway).await;
        let response = connection
            .strict_response_while_sending(&request("POST", "/none", &lines, &sent))
            .await;
        let response = response.unwrap_or_else(|error| panic!("{lines}{error}"));
        assert!(response.is_whole && response.body.bytes == body.as_bytes(), "{response:?}");
    }
}

/// No part is held back until more arrives, in either direction.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_body_are_forwarded_as_they_come() {
    let stack = start_early().await;
    let mut findings = Findings::default();
    let (length, chunked) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
    for (sent, first, rest) in
        [(length, "hel", "lo"), (chunked, "3\r\nhel\r\n", "2\r\nlo\r\n0\r\n\r\n")]
    {
        for (replied, begin, end) in [
            (length, "wor", "ld"),
            (chunked, "3\r\nwor\r\n", "2\r\nld\r\n0\r\n\r\n"),
            ("", "wor", "ld"),
        ] {
            reply(&stack, move |_| {
                let begin = format!("HTTP/1.1 200 OK\r\n{replied}\r\n{begin}");
                let mut steps = vec![
                    Step::Until("hel".into()),
                    Step::Send(begin.into()),
                    Step::Body,
                    Step::Send(end.into()),
                ];
                if replied.is_empty() {
                    steps.push(Step::Close);
                }
                Reply::Steps(steps)
            });
            let row = format!("{sent}{replied}");
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&request("POST", "/none", sent, first)).await;
            let has_come = connection.reads_up_to(b"wor").await;
            findings.check(&row, has_come, "the first part is held");
            if has_come {
                connection.send(rest.as_bytes()).await;
                findings.check(&row, connection.reads_up_to(b"ld").await, "the rest is held");
            }
        }
    }
    findings.end();
}

/// The service reads a little after its response, and then stops.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_does_not_hang_when_the_service_responds_and_stops_reading() {
    let stack = start_early().await;
    reply(&stack, |_| {
        Reply::Steps(vec![
            Step::Send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno".into()),
            Step::Until(b"enough".to_vec()),
            Step::Reset,
        ])
    });
    let mut connection = Connection::open(stack.gateway).await;
    let lines = "Content-Length: 8000000\r\n";
    connection.send(&request("POST", "/none", lines, "begin")).await;
    let response = connection.strict_response(false).await;
    assert!(response.as_ref().is_ok_and(|response| response.status == 413), "{response:?}");
    connection.send(b"enough").await;
    let rest = vec![b'x'; 7_000_000];
    // Shorter than any timeout of the gateway.
    let sending = timeout(Duration::from_secs(4), connection.try_send(&rest)).await;
    assert!(sending.is_ok(), "the upload is stuck");
}
