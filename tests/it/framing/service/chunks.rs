//! Chunked responses of a service, and framing without an end.

use super::{closing, get, keeping};
use crate::framing::{Findings, exchange, is_bad_gateway, is_ok, reply};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::Framing;
use crate::harness::upstream::{Reply, Step};

#[tokio::test(flavor = "multi_thread")]
async fn the_chunks_of_a_service_are_framed_anew() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for chunks in [
        "5\r\nhello\r\n0\r\n\r\n",
        "5;a\r\nhello\r\n0;b=c\r\n\r\n",
        "5;a=\"x;\\\"y\"\r\nhello\r\n0\r\n\r\n",
        "0005\r\nhello\r\n000\r\n\r\n",
        "1\r\nh\r\n1;x\r\ne\r\n3\r\nllo\r\n0\r\n\r\n",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        keeping(&stack, &bytes);
        let response = exchange(&stack, &get()).await;
        findings.check(chunks, is_ok(&response, Framing::Chunked, "hello"), response);
    }
    let upper = format!("1A\r\n{}\r\n0\r\n\r\n", "x".repeat(26));
    keeping(&stack, &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{upper}"));
    let response = exchange(&stack, &get()).await;
    findings.check(&upper, is_ok(&response, Framing::Chunked, &"x".repeat(26)), response);
    findings.end();
}

/// A response that breaks off never looks complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_chunk_of_a_service_ends_the_response() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for chunks in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "-0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "g\r\nhello\r\n0\r\n\r\n",
        ";a\r\n\r\n",
        "\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "4\r\nhello\r\n0\r\n\r\n",
        "6\r\nhello\r\n0\r\n\r\n",
        "5;a\n\r\nhello\r\n0\r\n\r\n",
        "5;\0\r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n0\n\n",
        "5\r\nhello\r\n",
        "5\r\nhel",
    ] {
        let bytes = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        closing(&stack, &bytes);
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&get()).await;
        let response = connection.strict_response(false).await;
        let is_right = is_bad_gateway(&response) || response.as_ref().is_ok_and(|r| !r.is_whole);
        findings.check(chunks, is_right, response);
    }
    findings.end();
}

/// Everything that grows with what a service sends has a limit.
#[tokio::test(flavor = "multi_thread")]
async fn framing_of_a_response_that_never_ends_breaks_it_off() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let filler = "y".repeat(100_000);
    for (begin, more, row) in [
        (String::new(), filler.clone(), "status line"),
        ("HTTP/1.1 200 OK\r\n".to_owned(), "X: y\r\n".repeat(1000), "lines"),
        ("HTTP/1.1 200 OK\r\nX: ".to_owned(), filler.clone(), "line"),
        (chunked.to_owned(), "0".repeat(100_000), "size"),
        (format!("{chunked}5;"), filler.clone(), "extension"),
        (format!("{chunked}0\r\nX: "), filler.clone(), "trailer"),
        (format!("{chunked}0\r\n"), "X: y\r\n".repeat(1000), "trailers"),
    ] {
        stack.upstream.reply(move |_| Reply::Push(begin.clone().into(), more.clone().into()));
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&get()).await;
        let response = connection.strict_response(false).await;
        let is_right = is_bad_gateway(&response) || response.as_ref().is_ok_and(|r| !r.is_whole);
        findings.check(row, is_right, response);
    }
    findings.end();
}

/// Each byte of the service in a packet of its own, as far as possible.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_comes_byte_by_byte_is_the_same() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for (bytes, framing) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Framing::Length),
        (
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
             HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
             1;a=b\r\nh\r\n4\r\nello\r\n0\r\nX-Sum: 1\r\n\r\n",
            Framing::Chunked,
        ),
    ] {
        reply(&stack, move |_| Reply::Steps(vec![Step::Drip(bytes.into())]));
        let mut connection = Connection::open(stack.gateway).await;
        for _ in 0..3 {
            connection.send(&get()).await;
            let mut response = connection.strict_response(false).await;
            if response.as_ref().is_ok_and(|response| response.status == 103) {
                response = connection.strict_response(false).await;
            }
            let is_right = is_ok(&response, framing, "hello");
            findings.check(bytes, is_right, response);
        }
    }
    let connections: Vec<_> =
        stack.upstream.requests().iter().map(|received| received.connection).collect();
    findings.check("one connection", connections.iter().all(|one| *one == 0), connections);
    findings.end();
}
