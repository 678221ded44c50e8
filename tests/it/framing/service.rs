//! The framing of responses, from the service to the client.

mod chunks;

use super::{Findings, exchange, is_bad_gateway, is_ok, reply, request};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::Framing;
use crate::harness::upstream::{Reply, Step};

/// Has the service reply with these bytes and keep the connection.
fn keeping(stack: &Stack, bytes: &str) {
    let bytes = bytes.to_owned();
    reply(stack, move |_| Reply::Bytes(bytes.clone().into()));
}

/// Has the service reply with these bytes and close the connection.
fn closing(stack: &Stack, bytes: &str) {
    let bytes = bytes.to_owned();
    reply(stack, move |_| Reply::Last(bytes.clone().into()));
}

fn get() -> Vec<u8> {
    request("GET", "/none", "", "")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_line_is_http_1_1_whatever_version_the_service_has() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for (line, begin) in [
        ("HTTP/1.0 200 OK", "HTTP/1.1 200 "),
        ("HTTP/1.1 200 OK", "HTTP/1.1 200 "),
        ("HTTP/1.1 200 ", "HTTP/1.1 200 "),
        ("HTTP/1.1 200", "HTTP/1.1 200 "),
        ("HTTP/1.0 404 Not Found", "HTTP/1.1 404 "),
        ("HTTP/1.1 404 All's lost (really)", "HTTP/1.1 404 "),
    ] {
        closing(&stack, &format!("{line}\r\nContent-Length: 5\r\n\r\nhello"));
        let response = exchange(&stack, &get()).await;
        let is_right = response.as_ref().is_ok_and(|response| {
            response.status_line.starts_with(begin) && response.text() == "hello"
        });
        findings.check(line, is_right, response);
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_ends_with_its_connection_is_chunked_once() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        for lines in ["", "Connection: close\r\n", "Connection: keep-alive\r\n"] {
            for body in ["", "hello", "5\r\nhello\r\n0\r\n\r\n"] {
                let header = format!("{version} 200 OK\r\n{lines}\r\n");
                let steps =
                    [Step::Send(header.clone().into()), Step::Drip(body.into()), Step::Close];
                reply(&stack, move |_| Reply::Steps(steps.to_vec()));
                let response = exchange(&stack, &get()).await;
                let is_right = is_ok(&response, Framing::Chunked, body);
                findings.check(format!("{header}{body}"), is_right, response);
            }
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_client_gets_no_chunks_and_no_informational_response() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                   3;a=b\r\nhel\r\n2\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n";
    let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let close = "HTTP/1.1 200 OK\r\n\r\nhello";
    for (bytes, framing) in [
        (length.to_owned(), Framing::Length),
        (format!("{early}{length}"), Framing::Length),
        (format!("HTTP/1.1 100 Continue\r\n\r\n{early}{length}"), Framing::Length),
        (chunked.to_owned(), Framing::Close),
        (format!("{early}{chunked}"), Framing::Close),
        (close.to_owned(), Framing::Close),
        (format!("{early}{close}"), Framing::Close),
    ] {
        for lines in ["", "Connection: keep-alive\r\n", "TE: trailers\r\nConnection: TE\r\n"] {
            closing(&stack, &bytes);
            let request = format!("GET /none HTTP/1.0\r\nHost: h\r\n{lines}\r\n");
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(request.as_bytes()).await;
            let response = connection.strict_response(false).await;
            let is_right = is_ok(&response, framing, "hello")
                && response.as_ref().unwrap().all("trailer").is_empty();
            findings.check(format!("{lines} {bytes}"), is_right, response);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_are_equal_are_merged_and_all_others_are_a_bad_gateway() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for lines in [
        "Content-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nX-Between: x\r\ncontent-length:5\r\nCONTENT-LENGTH: 5 \r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: 5,5\r\n",
        "Content-Length: 5 ,\t5,5\r\n",
        "Content-Length: 5, 5\r\nContent-Length: 5\r\n",
    ] {
        keeping(&stack, &format!("HTTP/1.1 200 OK\r\n{lines}\r\nhello"));
        let response = exchange(&stack, &get()).await;
        let is_right = is_ok(&response, Framing::Length, "hello")
            && response.as_ref().unwrap().all("content-length") == ["5"];
        findings.check(lines, is_right, response);
    }
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 6\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: 5, 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 5, 0\r\n",
        "Content-Length: 5;\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5.0\r\n",
        "Content-Length: 1_0\r\n",
        "Content-Length: five\r\n",
        "Content-Length: \r\n",
        "Content-Length: \"5\"\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 18446744073709551621\r\n",
    ] {
        let header = format!("HTTP/1.1 200 OK\r\n{lines}\r\nhello!");
        closing(&stack, &header);
        let response = exchange(&stack, &get()).await;
        findings.check(lines, is_bad_gateway(&response), response);
    }
    findings.end();
}

/// Its end cannot be found, or its content cannot be forwarded as plain chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_coding_other_than_chunked_is_a_bad_gateway() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for lines in [
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip, chunked, gzip\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        "Transfer-Encoding: gzip\r\nContent-Length: 15\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunkedx\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
    ] {
        closing(&stack, &format!("HTTP/1.1 200 OK\r\n{lines}\r\n5\r\nhello\r\n0\r\n\r\n"));
        let response = exchange(&stack, &get()).await;
        findings.check(lines, is_bad_gateway(&response), response);
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_is_no_transfer_coding() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for coding in ["identity", "Identity", " identity "] {
        for (length, framing) in
            [("Content-Length: 5\r\n", Framing::Length), ("", Framing::Chunked)]
        {
            let lines = format!("Transfer-Encoding:{coding}\r\n{length}");
            closing(&stack, &format!("HTTP/1.1 200 OK\r\n{lines}\r\nhello"));
            let response = exchange(&stack, &get()).await;
            findings.check(lines, is_ok(&response, framing, "hello"), response);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_beside_chunked_is_dropped() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for lines in [
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3\r\n",
        "content-length:0\r\ntransfer-encoding:\tchunked \r\n",
    ] {
        keeping(&stack, &format!("HTTP/1.1 200 OK\r\n{lines}\r\n5\r\nhello\r\n0\r\n\r\n"));
        let response = exchange(&stack, &get()).await;
        findings.check(lines, is_ok(&response, Framing::Chunked, "hello"), response);
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_has_no_body_is_not_framed_as_one_that_has() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for lines in [
        "",
        "Content-Length: 0\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    ] {
        let early = format!("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n{lines}\r\n");
        for (method, status) in [
            ("GET", "204 No Content"),
            ("GET", "304 Not Modified"),
            ("POST", "204 No Content"),
            ("HEAD", "200 OK"),
            ("HEAD", "404 Not Found"),
            ("HEAD", "204 No Content"),
            ("HEAD", "304 Not Modified"),
        ] {
            let row = format!("{method} {status} {lines}");
            keeping(&stack, &format!("{early}HTTP/1.1 {status}\r\n{lines}\r\n"));
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&request(method, "/none", "", "")).await;
            // The reader itself rejects framing that is not allowed here.
            let first = connection.strict_response(false).await;
            let is_early = first.as_ref().is_ok_and(|response| response.status == 103);
            findings.check(format!("103 before {row}"), is_early, &first);
            if first.is_err() {
                continue;
            }
            let response = connection.strict_response(method == "HEAD").await;
            let is_right = response.as_ref().is_ok_and(|response| {
                let length = response.all("content-length");
                let is_theirs = lines.contains("Content-Length: 5") && length == ["5"]
                    || lines.contains(": 0") && length == ["0"];
                response.status_line.contains(&status[..3]) && (length.is_empty() || is_theirs)
            });
            findings.check(&row, is_right, &response);
            if let Ok(response) = response {
                let next = super::go_on(&mut connection, &response).await;
                findings.check(format!("after {row}"), next.is_ok(), next);
            }
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn oddly_written_header_lines_are_written_as_name_and_value() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let (length, chunked) = ("hello", "5\r\nhello\r\n0\r\n\r\n");
    for (lines, body, framing) in [
        ("Content-Length:5\r\n", length, Framing::Length),
        ("content-length: \t 5 \t\r\n", length, Framing::Length),
        ("CONTENT-LENGTH: 0005\r\n", length, Framing::Length),
        ("Transfer-Encoding:chunked\r\n", chunked, Framing::Chunked),
        ("transfer-encoding:  chunked \r\n", chunked, Framing::Chunked),
        ("TRANSFER-ENCODING:\tCHUNKED\r\n", chunked, Framing::Chunked),
    ] {
        for (odd, value) in [
            ("X-Odd:value\r\n", "value"),
            ("x-odd: \t some value \t\r\n", "some value"),
            ("X-ODD:\r\n", ""),
            ("X-Odd::\r\n", ":"),
            ("x-Odd: \u{e9}\u{4f60}\r\n", "\u{e9}\u{4f60}"),
        ] {
            keeping(&stack, &format!("HTTP/1.1 200 OK\r\n{odd}{lines}\r\n{body}"));
            let response = exchange(&stack, &get()).await;
            let is_right = is_ok(&response, framing, "hello")
                && response.as_ref().unwrap().all("x-odd") == [value];
            findings.check(format!("{odd}{lines}"), is_right, response);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_connection_names_still_counts() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for (lines, body, framing) in [
        ("Connection: Content-Length\r\nContent-Length: 5\r\n", "hello", Framing::Length),
        (
            "Transfer-Encoding: chunked\r\nConnection: x, transfer-encoding\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            Framing::Chunked,
        ),
    ] {
        keeping(&stack, &format!("HTTP/1.1 200 OK\r\n{lines}\r\n{body}"));
        let response = exchange(&stack, &get()).await;
        findings.check(lines, is_ok(&response, framing, "hello"), response);
    }
    findings.end();
}

/// It is validated as strictly as a request header.
#[tokio::test(flavor = "multi_thread")]
async fn a_doubtful_response_header_is_a_bad_gateway() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for header in [
        "HTTP/1.1 200 OK\nContent-Length: 5\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\nX: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\n Content-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\n: 5\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\u{7f}b\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX(y): a\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1  200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\n",
        "HTTP/0.9 200 OK\r\nContent-Length: 5\r\n\r\n",
        "http/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        "ICY 200 OK\r\nContent-Length: 5\r\n\r\n",
        "hello",
    ] {
        closing(&stack, &format!("{header}hello"));
        let response = exchange(&stack, &get()).await;
        findings.check(header, is_bad_gateway(&response), response);
    }
    findings.end();
}
