//! Malformed trailers.

use super::{reply_with_trailers, with_trailers};
use crate::framing::{Findings, is_bad_gateway, request};
use crate::harness::Stack;
use crate::harness::client::Connection;

const MALFORMED: [&str; 12] = [
    "no colon\r\n",
    ": y\r\n",
    " X: y\r\n",
    "X : y\r\n",
    "X\t: y\r\n",
    "X(: y\r\n",
    "X: a\r\n b\r\n",
    "X: a\0\r\n",
    "X: a\u{7f}\r\n",
    "X: a\nY: b\r\n",
    "X: a\rY: b\r\n",
    "X-Fine: y\r\n\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_request_trailer_fails_the_request() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for trailers in MALFORMED {
        for size in [usize::MAX, 1] {
            let before = stack.upstream.requests().len();
            let mut connection = Connection::open(stack.gateway).await;
            let smuggled = request("GET", "/none/smuggled", "", "");
            let bytes = [with_trailers("/none", "", trailers), smuggled].concat();
            for part in bytes.chunks(size) {
                connection.try_send(part).await;
            }
            let response = connection.strict_response_or_end(false).await;
            let is_rejected = response
                .as_ref()
                .is_ok_and(|response| response.as_ref().is_none_or(|r| r.status == 400));
            findings.check(trailers, is_rejected, response);
            // A part of the request was forwarded.
            if is_rejected {
                findings.check(trailers, connection.ends().await, "it goes on");
            }
            let received = stack.upstream.requests_after(before);
            findings.check(trailers, received.is_empty(), received);
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_response_trailer_breaks_off_the_response() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    for trailers in MALFORMED {
        for lines in ["", "TE: trailers\r\nConnection: TE\r\n"] {
            reply_with_trailers(&stack, "", &format!("{trailers}\r\n"));
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&request("GET", "/none", lines, "")).await;
            let response = connection.strict_response(false).await;
            let is_right =
                is_bad_gateway(&response) || response.as_ref().is_ok_and(|r| !r.is_whole);
            findings.check(format!("{lines}{trailers}"), is_right, response);
        }
    }
    findings.end();
}
