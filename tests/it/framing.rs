//! Framing is hop-by-hop: how the gateway frames what it sends, whatever framing it received.
//!
//! Client and service are sockets with strict parsers. Each test runs a table, and reports all rows
//! that fail.

mod client;
mod early;
mod informational;
mod random;
mod reuse;
mod service;
mod trailers;

use std::fmt::{Debug, Display};

use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::{Framing, StrictResponse, values};
use crate::harness::upstream::{Received, Reply, Upstream};

/// The rows of a table with a wrong outcome.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn check(&mut self, row: impl Display, is_right: bool, got: impl Debug) {
        if !is_right {
            let line = format!("{}: {got:?}", row.to_string().escape_debug());
            self.0.push(line.chars().take(500).collect());
        }
    }

    #[track_caller]
    fn end(self) {
        assert!(self.0.is_empty(), "{} wrong\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// A request with these header lines, each ended, and this body as it stands.
fn request(method: &str, path: &str, lines: &str, body: &str) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{lines}\r\n{body}").into_bytes()
}

/// A stack whose service replies `hello` to all that is not the request of [`go_on`].
async fn start() -> Stack {
    let stack = Stack::start().await;
    reply(&stack, |_| Reply::ok("", "hello"));
    stack
}

/// A stack whose service replies as soon as a request header has come.
async fn start_early() -> Stack {
    let stack = Stack::start().await;
    stack.upstream.respond_early(true);
    stack
}

/// Sets the service's reply to all requests but that of [`go_on`].
fn reply(stack: &Stack, reply: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
    stack.upstream.reply(move |received| match received.target() {
        "/none/next" => Reply::ok("", "next"),
        _ => reply(received),
    });
}

/// Sends a request on a connection of its own, and another after it if the response allows.
async fn exchange(stack: &Stack, request: &[u8]) -> Result<StrictResponse, String> {
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(request).await;
    let response = connection.strict_response(request.starts_with(b"HEAD ")).await?;
    go_on(&mut connection, &response).await?;
    Ok(response)
}

/// After a response comes the next one or the end, as announced, and nothing else.
async fn go_on(connection: &mut Connection, response: &StrictResponse) -> Result<(), String> {
    if response.all("connection").contains(&"close") || response.framing == Framing::Close {
        let is_end = connection.strict_response_or_end(false).await?.is_none();
        return if is_end { Ok(()) } else { Err("bytes instead of the end".to_owned()) };
    }
    connection.send(&request("GET", "/none/next", "", "")).await;
    let next = connection.strict_response(false).await?;
    if next.text() == "next" { Ok(()) } else { Err(format!("not the next response: {next:?}")) }
}

/// Whether this is the gateway's own 502.
fn is_bad_gateway(response: &Result<StrictResponse, String>) -> bool {
    let is_ours = |response: &StrictResponse| response.all("x-wxgate-error") == ["bad_gateway"];
    response.as_ref().is_ok_and(|response| response.status == 502 && is_ours(response))
}

/// Whether this is a whole 200 with this body, framed so.
fn is_ok(response: &Result<StrictResponse, String>, framing: Framing, body: &str) -> bool {
    response.as_ref().is_ok_and(|response| {
        response.status == 200
            && response.is_whole
            && response.framing == framing
            && response.text() == body
    })
}

/// The strict readers themselves, without a gateway between them.
#[tokio::test]
async fn the_strict_readers_accept_one_form_of_framing_only() {
    let service = Upstream::start().await;
    for (bytes, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Some((Framing::Length, ""))),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n\r\n",
            Some((Framing::Chunked, "y")),
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhi", Some((Framing::Close, ""))),
        ("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", None),
        ("HTTP/1.1 200 OK\r\nContent-Length:2\r\n\r\nhi", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2 \r\n\r\nhi", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi", None),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX:y\r\n\r\n", None),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None),
        ("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("nonsense\r\n\r\n", None),
    ] {
        let before = service.requests().len();
        service.reply(move |_| Reply::Last(bytes.into()));
        let mut connection = Connection::open(service.address).await;
        let lines = "Transfer-Encoding: chunked\r\n";
        connection.send(&request("POST", "/", lines, "2\r\nhi\r\n0\r\nX: y\r\n\r\n")).await;
        let response = connection.strict_response(false).await;
        match expected {
            Some((framing, trailer)) => {
                let response = response.unwrap();
                assert!(response.is_whole && response.text() == "hi", "{response:?}");
                assert_eq!(response.framing, framing);
                assert_eq!(values(&response.body.trailers, "x").concat(), trailer);
            }
            None => drop(response.expect_err(bytes)),
        }
        let received = &service.requests_after(before)[0];
        assert_eq!(
            (received.body.as_slice(), values(&received.trailers, "x")),
            (&b"hi"[..], vec!["y"])
        );
    }
}
