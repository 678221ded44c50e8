//! The framing of requests, from the client to the service.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Findings, request};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::Framing;
use crate::harness::upstream::{Received, Reply, Step};

/// What the service must receive: the framing of a request's body, and the body.
#[derive(Clone, Copy)]
struct Framed {
    framing: Framing,
    body: &'static str,
}

const NOTHING: Framed = Framed { framing: Framing::Nothing, body: "" };
const LENGTH: Framed = Framed { framing: Framing::Length, body: "hello" };
const EMPTY: Framed = Framed { framing: Framing::Length, body: "" };
const CHUNKED: Framed = Framed { framing: Framing::Chunked, body: "hello" };

impl Framed {
    /// The recorder rejects double or malformed framing and chunk extensions.
    fn is(self, received: &Received) -> bool {
        let lengths: Vec<usize> =
            received.all("content-length").iter().map(|length| length.parse().unwrap()).collect();
        let codings = received.all("transfer-encoding");
        let is_framed = match self.framing {
            Framing::Length => lengths == [self.body.len()] && codings.is_empty(),
            Framing::Chunked => lengths.is_empty() && codings == ["chunked"],
            // No length and a length of 0 are the same.
            _ => (lengths.is_empty() || lengths == [0]) && codings.is_empty(),
        };
        is_framed && received.body == self.body.as_bytes()
    }
}

const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";

/// Method, header lines and body of the client; what the service must receive.
const REQUESTS: [(&str, &str, &str, Framed); 20] = [
    ("GET", "", "", NOTHING),
    ("HEAD", "", "", NOTHING),
    ("DELETE", "", "", NOTHING),
    ("POST", "", "", NOTHING),
    ("POST", "Content-Length: 0\r\n", "", EMPTY),
    ("GET", "Content-Length: 0\r\n", "", NOTHING),
    ("POST", "Content-Length: 5\r\n", "hello", LENGTH),
    ("GET", "Content-Length: 5\r\n", "hello", LENGTH),
    ("DELETE", "Content-Length: 5\r\n", "hello", LENGTH),
    ("OPTIONS", "Content-Length: 5\r\n", "hello", LENGTH),
    ("POST", "Content-Length:5\r\n", "hello", LENGTH),
    ("POST", "content-length: \t5 \t\r\n", "hello", LENGTH),
    ("POST", "CONTENT-LENGTH: 00005\r\n", "hello", LENGTH),
    ("POST", "Transfer-Encoding: chunked\r\n", CHUNKS, CHUNKED),
    ("GET", "Transfer-Encoding: chunked\r\n", CHUNKS, CHUNKED),
    ("HEAD", "transfer-encoding:Chunked \r\n", CHUNKS, CHUNKED),
    (
        "POST",
        "Transfer-Encoding: chunked\r\n",
        "0\r\n\r\n",
        Framed { framing: Framing::Chunked, body: "" },
    ),
    ("POST", "Transfer-Encoding: chunked\r\n", "5;a=b\r\nhello\r\n0;c\r\n\r\n", CHUNKED),
    ("POST", "Transfer-Encoding: chunked\r\n", "5;a=\";\\\"\"\r\nhello\r\n0\r\n\r\n", CHUNKED),
    (
        "PUT",
        "TRANSFER-ENCODING:\tCHUNKED\r\n",
        "1\r\nh\r\n003;x\r\nell\r\n1\r\no\r\n00\r\n\r\n",
        CHUNKED,
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_request_has_one_length_or_is_chunked_as_the_client_sent_it() {
    let stack = super::start().await;
    let token = stack.login("alice").await;
    let mut findings = Findings::default();
    for (method, lines, body, framed) in REQUESTS {
        for path in ["/none", "/"] {
            let row = format!("{method} {path} {lines}{body}");
            let before = stack.upstream.requests().len();
            let lines = format!("X-3rd-Session: {token}\r\n{lines}");
            let response = super::exchange(&stack, &request(method, path, &lines, body)).await;
            findings.check(&row, response.as_ref().is_ok_and(|r| r.status == 200), &response);
            let received = stack.upstream.requests_after(before);
            let is_right = received.len() == 2 && framed.is(&received[0]);
            findings.check(&row, is_right, received);
        }
    }
    findings.end();
}

/// Without keep-alive it is the last one on its connection.
#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_request_reaches_the_service_as_http_1_1() {
    let stack = super::start().await;
    let mut findings = Findings::default();
    for (method, lines, body, framed) in [
        ("GET", "", "", NOTHING),
        ("POST", "", "", NOTHING),
        ("POST", "Content-Length: 5\r\n", "hello", LENGTH),
        ("POST", "Connection: keep-alive\r\nContent-Length:5\r\n", "hello", LENGTH),
    ] {
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        let request = format!("{method} /none HTTP/1.0\r\nHost: h\r\n{lines}\r\n{body}");
        connection.send(request.as_bytes()).await;
        let response = connection.strict_response(false).await;
        findings.check(&request, super::is_ok(&response, Framing::Length, "hello"), response);
        // The recorder accepts no other version.
        let received = stack.upstream.requests_after(before);
        findings.check(&request, received.len() == 1 && framed.is(&received[0]), received);
    }
    findings.end();
}

/// Framing headers stay, whatever `Connection` names.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_connection_names_still_counts() {
    let stack = super::start().await;
    let mut findings = Findings::default();
    for (lines, body) in [
        ("Connection: Content-Length\r\nContent-Length: 5\r\n", "hello"),
        ("Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", CHUNKS),
        ("Content-Length: 5\r\nConnection: close, content-length\r\n", "hello"),
    ] {
        let before = stack.upstream.requests().len();
        let response = super::exchange(&stack, &request("POST", "/none", lines, body)).await;
        let received = stack.upstream.requests_after(before);
        let is_right = response.as_ref().is_ok_and(|response| match response.status {
            200 => LENGTH.is(&received[0]) || CHUNKED.is(&received[0]),
            status => status == 400 && received.is_empty(),
        });
        findings.check(lines, is_right, (response, received));
    }
    findings.end();
}

/// The service replies with the request's target, so that responses cannot be mixed up.
fn echo(stack: &Stack) {
    stack.upstream.reply(|received| {
        Reply::ok(
            &format!("X-For: {}\r\n", received.target()),
            std::str::from_utf8(&received.body).unwrap(),
        )
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_the_same_wherever_it_is_cut() {
    let stack = Stack::start().await;
    echo(&stack);
    let mut findings = Findings::default();
    for (method, lines, body, framed) in REQUESTS {
        let mut connection = Connection::open(stack.gateway).await;
        // The last one is sent byte by byte.
        let length = request(method, "/none", lines, body).len();
        for cut in 1..=length {
            let path = "/none";
            let bytes = request(method, path, lines, body);
            let row = format!("{method} {lines}{body} cut at {cut}");
            let before = stack.upstream.requests().len();
            let size = if cut == length { 1 } else { cut };
            connection.send_in_parts(&bytes, size).await;
            let response = connection.strict_response(method == "HEAD").await;
            let is_right = response.as_ref().is_ok_and(|response| {
                let body = if method == "HEAD" { "" } else { framed.body };
                response.status == 200 && response.text() == body
            });
            let received = stack.upstream.requests_after(before);
            findings.check(
                &row,
                is_right && received.len() == 1 && framed.is(&received[0]),
                &response,
            );
            if !is_right {
                break;
            }
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_packet_are_each_framed_by_themselves() {
    let stack = Stack::start().await;
    echo(&stack);
    let mut findings = Findings::default();
    for size in [usize::MAX, 1, 2, 7, 100] {
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        let paths: Vec<_> = (0..REQUESTS.len()).map(|at| format!("/none/{at}")).collect();
        let bytes: Vec<u8> = REQUESTS
            .iter()
            .zip(&paths)
            .flat_map(|((method, lines, body, _), path)| request(method, path, lines, body))
            .collect();
        connection.send_in_parts(&bytes, size).await;
        for ((method, lines, body, framed), path) in REQUESTS.into_iter().zip(&paths) {
            let response = connection.strict_response(method == "HEAD").await;
            let is_right = response.as_ref().is_ok_and(|response| {
                let body = if method == "HEAD" { "" } else { framed.body };
                response.all("x-for") == [path] && response.text() == body
            });
            findings.check(format!("{size} {path} {method} {lines}{body}"), is_right, response);
            if !is_right {
                break;
            }
        }
        let received = stack.upstream.requests_after(before);
        let is_right = received.len() == REQUESTS.len()
            && received.iter().zip(REQUESTS).all(|(received, (.., framed))| framed.is(received));
        findings.check(size, is_right, received);
    }
    findings.end();
}

/// It cannot be distinguished from a client that has disconnected. nginx does the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_half_before_the_response_has_disconnected() {
    for (begin, is_begun) in
        [("", false), ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true)]
    {
        let stack = Stack::start().await;
        let never = Arc::new(Notify::new());
        stack.upstream.reply(move |_| {
            Reply::Steps(vec![Step::Send(begin.into()), Step::Wait(never.clone())])
        });
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&request("POST", "/none", "Content-Length: 5\r\n", "hello")).await;
        stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
        if is_begun {
            assert!(connection.reads_up_to(b"hello\r\n").await);
        }
        connection.finish().await;
        assert!(connection.is_closed().await, "{begin}");
        let code = if is_begun { "200" } else { "499" };
        let counted = format!("wxgate_http_requests_total{{code=\"{code}\",route=\"/none\"}}");
        stack.until_metric(&counted, 1.0).await;
        stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    }
}
