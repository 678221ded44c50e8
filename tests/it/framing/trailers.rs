//! Which trailers are forwarded, and to whom.

mod malformed;

use super::{Findings, exchange, is_bad_gateway, reply, request};
use crate::harness::Stack;
use crate::harness::client::Connection;
use crate::harness::strict::{Lines, values};
use crate::harness::upstream::{Received, Reply, Step};

/// A chunked request with these trailers, each ended.
fn with_trailers(path: &str, lines: &str, trailers: &str) -> Vec<u8> {
    let lines = format!("Transfer-Encoding: chunked\r\n{lines}");
    request("POST", path, &lines, &format!("5\r\nhello\r\n0\r\n{trailers}\r\n"))
}

/// Has the service send a chunked response with these trailers, each ended.
fn reply_with_trailers(stack: &Stack, lines: &str, trailers: &str) {
    let response = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n{lines}\r\n\
         5\r\nhello\r\n0\r\n{trailers}\r\n"
    );
    reply(stack, move |_| Reply::Bytes(response.clone().into()));
}

/// Sends a request with trailers that must be forwarded, and returns what the service received.
async fn forwarded(stack: &Stack, request: &[u8]) -> Result<Received, String> {
    let before = stack.upstream.requests().len();
    let response = exchange(stack, request).await?;
    let received = stack.upstream.requests_after(before);
    match received.first() {
        Some(received) if response.status == 200 => Ok(received.clone()),
        _ => Err(format!("{response:?} {received:?}")),
    }
}

/// Trailers that a client may not send.
const FORBIDDEN: [&str; 61] = [
    "X-OpenId",
    "x-openid",
    "X_OpenId",
    "X.OPENID",
    "x~openid",
    "X-AppId",
    "X_AppId",
    "X-UnionId",
    "X_UnionId",
    "X-WX-OPENID",
    "X_WX_OPENID",
    "X-WX-APPID",
    "X-WX-UNIONID",
    "X-WX-FROM-OPENID",
    "X_WX_FROM_APPID",
    "X-WX-SOURCE",
    "X-WX-ENV",
    "X-3rd-Session",
    "X_3rd_Session",
    "x.3RD.session",
    "Authorization",
    "Cookie",
    "X-Request-Id",
    "X_Request_Id",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Uri",
    "X-Real-IP",
    "X_Real_IP",
    "Forwarded",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Proxy",
    "Host",
    "Content-Length",
    "content-length",
    "Content_Length",
    "Content-Type",
    "Content-Encoding",
    "Content-Range",
    "Content-Disposition",
    "Transfer-Encoding",
    "transfer-encoding",
    "Transfer_Encoding",
    "Connection",
    "Keep-Alive",
    "Proxy-Connection",
    "Proxy-Authorization",
    "Proxy-Authenticate",
    "TE",
    "Trailer",
    "Upgrade",
    "HTTP2-Settings",
    "Expect",
    "X-Nominated",
    "x-nominated",
    "X-Debug",
];

#[tokio::test(flavor = "multi_thread")]
async fn request_trailers_reach_the_service() {
    let stack = super::start().await;
    let token = stack.login("alice").await;
    let mut findings = Findings::default();
    for (trailers, expected) in [
        ("X-Sum: 1\r\n", &[("X-Sum", "1")][..]),
        ("X-Sum:1\r\nx-other: \ta b \t\r\n", &[("X-Sum", "1"), ("x-other", "a b")]),
        ("X-Sum: 1\r\nX-Sum: 2\r\n", &[("X-Sum", "1"), ("X-Sum", "2")]),
        ("X-Empty:\r\nETag: \"x\"\r\n", &[("X-Empty", ""), ("ETag", "\"x\"")]),
        ("Digest: \u{e9}\r\n", &[("Digest", "\u{e9}")]),
    ] {
        for (path, lines) in [
            ("/none", String::new()),
            ("/none", "Trailer: X-Sum\r\n".to_owned()),
            ("/", format!("X-3rd-Session: {token}\r\nTrailer: X-Sum\r\n")),
        ] {
            let received = forwarded(&stack, &with_trailers(path, &lines, trailers)).await;
            let is_right = received.as_ref().is_ok_and(|received| {
                let lines = received.trailers.iter();
                let lines = lines.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()));
                let expected =
                    expected.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value));
                received.body == b"hello" && lines.eq(expected)
            });
            findings.check(format!("{path} {trailers}"), is_right, received);
        }
    }
    findings.end();
}

/// Not even in a spelling that a CGI-like service would fold to the same name.
#[tokio::test(flavor = "multi_thread")]
async fn forbidden_request_trailers_are_removed() {
    let stack = Stack::start_with(
        "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"required\"\n\
         remove_request_headers = [\"X-Debug\"]\n\
         [[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n\
         remove_request_headers = [\"X-Debug\"]\n",
    )
    .await;
    reply(&stack, |_| Reply::ok("", "hello"));
    let token = stack.login("alice").await;
    let mut findings = Findings::default();
    let all: String = FORBIDDEN.iter().map(|name| format!("{name}: evil\r\n")).collect();
    let each = FORBIDDEN.iter().map(|name| format!("{name}: evil\r\n"));
    for trailers in each.chain([all]) {
        for (path, session) in
            [("/none", String::new()), ("/", format!("X-3rd-Session: {token}\r\n"))]
        {
            let lines = format!("{session}Connection: X-Nominated\r\n");
            let trailers = format!("X-First: 1\r\n{trailers}X-Last: 2\r\n");
            let received = forwarded(&stack, &with_trailers(path, &lines, &trailers)).await;
            let is_right = received.as_ref().is_ok_and(|received| {
                let is_evil = |(_, value): &(String, String)| value == "evil";
                !received.trailers.iter().any(is_evil)
                    && values(&received.trailers, "x-first") == ["1"]
                    && values(&received.trailers, "x-last") == ["2"]
            });
            findings.check(
                format!("{path} {trailers}"),
                is_right,
                received.map(|received| received.trailers),
            );
        }
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn response_trailers_reach_only_a_client_that_accepts_them() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let get = |lines: &str| request("GET", "/none", lines, "");
    for (lines, are_taken) in [
        ("TE: trailers\r\nConnection: TE\r\n", true),
        ("TE: trailers\r\n", true),
        ("te:Trailers\r\nConnection: te\r\n", true),
        ("TE: gzip;q=0.5, trailers\r\nConnection: TE\r\n", true),
        ("TE: gzip\r\nTE: trailers\r\nConnection: TE\r\n", true),
        ("", false),
        ("TE: \r\n", false),
        ("TE: gzip\r\nConnection: TE\r\n", false),
        ("TE: xtrailers\r\nConnection: TE\r\n", false),
        ("Trailer: X-Sum\r\n", false),
    ] {
        for announced in ["", "Trailer: X-Sum\r\n"] {
            reply_with_trailers(&stack, announced, "X-Sum: 1\r\nx-Other:a b \r\n");
            let response = exchange(&stack, &get(lines)).await;
            let is_right = response.as_ref().is_ok_and(|response| {
                let (sum, other) = trailers_of(&response.body.trailers);
                let is_right = match are_taken {
                    true => sum == ["1"] && other == ["a b"],
                    // Nor are they announced.
                    false => {
                        response.body.trailers.is_empty() && response.all("trailer").is_empty()
                    }
                };
                is_right && response.is_whole && response.text() == "hello"
            });
            findings.check(format!("{lines} {announced}"), is_right, response);
        }
    }
    // There is no place for them, even if the client accepts trailers.
    reply_with_trailers(&stack, "Trailer: X-Sum\r\n", "X-Sum: 1\r\n");
    let old = b"GET /none HTTP/1.0\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(old).await;
    let response = connection.strict_response(false).await;
    let is_right = response.as_ref().is_ok_and(|response| {
        response.all("trailer").is_empty() && response.is_whole && response.text() == "hello"
    });
    findings.check("HTTP/1.0", is_right, response);
    findings.end();
}

fn trailers_of(trailers: &Lines) -> (Vec<&str>, Vec<&str>) {
    (values(trailers, "x-sum"), values(trailers, "x-other"))
}

#[tokio::test(flavor = "multi_thread")]
async fn forbidden_response_trailers_are_removed() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let names = [
        "Set-Cookie",
        "set-cookie",
        "Content-Length",
        "Transfer-Encoding",
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "Trailer",
        "TE",
        "Upgrade",
        "X-Nominated",
        "X-Wxgate-Error",
        "X-OpenId",
        "x-openid",
        "X_OpenId",
        "X-AppId",
        "X-UnionId",
        "X-3rd-Session",
    ];
    let all: String = names.iter().map(|name| format!("{name}: evil\r\n")).collect();
    let each = names.iter().map(|name| format!("{name}: evil\r\n"));
    for forbidden in each.chain([all]) {
        let lines = "Connection: X-Nominated\r\n";
        reply_with_trailers(&stack, lines, &format!("X-Sum: 1\r\n{forbidden}X-Other: 2\r\n"));
        let lines = "TE: trailers\r\nConnection: TE\r\n";
        let response = exchange(&stack, &request("GET", "/none", lines, "")).await;
        let is_right = response.as_ref().is_ok_and(|response| {
            let is_evil = |(_, value): &(String, String)| value == "evil";
            trailers_of(&response.body.trailers) == (vec!["1"], vec!["2"])
                && !response.body.trailers.iter().any(is_evil)
                && response.is_whole
        });
        findings.check(forbidden, is_right, response);
    }
    findings.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_are_the_same_wherever_they_are_cut() {
    let stack = Stack::start().await;
    let mut findings = Findings::default();
    let trailers = "X-Sum: 1\r\nX-OpenId: evil\r\nx-other:a b \r\n";
    let bytes = with_trailers("/none", "TE: trailers\r\nConnection: TE\r\n", trailers);
    let chunks = format!("5;a=b\r\nhello\r\n0;c\r\n{trailers}\r\n");
    let header = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut connection = Connection::open(stack.gateway).await;
    for cut in 1..chunks.len() {
        let (first, rest) = chunks.split_at(cut);
        let steps = [Step::Send(format!("{header}{first}").into()), Step::Send(rest.into())];
        stack.upstream.reply(move |_| Reply::Steps(steps.to_vec()));
        let before = stack.upstream.requests().len();
        // From the end, so that parts of this size meet the trailers.
        let (first, rest) = bytes.split_at(bytes.len().saturating_sub(cut));
        connection.send_in_parts(first, usize::MAX).await;
        connection.send_in_parts(rest, if cut % 2 == 0 { 1 } else { usize::MAX }).await;
        let response = connection.strict_response(false).await;
        let expected = (vec!["1"], vec!["a b"]);
        let is_right = response.as_ref().is_ok_and(|response| {
            response.text() == "hello"
                && trailers_of(&response.body.trailers) == expected
                && response.body.trailers.len() == 2
        });
        findings.check(format!("cut at {cut}"), is_right, response);
        let received = stack.upstream.requests_after(before);
        let is_right = received.len() == 1
            && received[0].body == b"hello"
            && trailers_of(&received[0].trailers) == expected
            && received[0].trailers.len() == 2;
        findings.check(format!("cut {cut} before the end"), is_right, received);
        if !is_right {
            break;
        }
    }
    findings.end();
}

/// They count like header lines.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_count_towards_the_limits_of_a_request_header() {
    let limits = "limits = { max_header = \"2KiB\", max_header_count = 10 }";
    let stack = Stack::start_with(limits).await;
    let mut findings = Findings::default();
    let lines = |prefix: &str, count: usize, length: usize| -> String {
        (0..count).map(|at| format!("{prefix}-{at}: {}\r\n", "y".repeat(length))).collect()
    };
    for (header, trailers, is_served) in [
        (lines("X", 3, 1), lines("T", 3, 1), true),
        (lines("X", 1, 500), lines("T", 1, 500), true),
        (String::new(), lines("T", 11, 1), false),
        (String::new(), lines("T", 300, 1), false),
        (lines("X", 6, 1), lines("T", 6, 1), false),
        (String::new(), lines("T", 1, 2100), false),
        (String::new(), lines("T", 4, 600), false),
        (lines("X", 2, 600), lines("T", 2, 600), false),
        (String::new(), lines("T", 1, 1 << 20), false),
    ] {
        let row = format!("{} and {} bytes of lines", header.len(), trailers.len());
        let before = stack.upstream.requests().len();
        let mut connection = Connection::open(stack.gateway).await;
        connection.try_send(&with_trailers("/none", &header, &trailers)).await;
        let response = connection.strict_response_or_end(false).await;
        let is_right = response.as_ref().is_ok_and(|response| match response {
            Some(response) => response.status == if is_served { 200 } else { 431 },
            None => !is_served,
        });
        findings.check(&row, is_right, response);
        let received = stack.upstream.requests_after(before);
        findings.check(&row, received.len() == usize::from(is_served), received);

        reply_with_trailers(&stack, &header, &trailers);
        for taken in ["", "TE: trailers\r\n"] {
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&request("GET", "/none", taken, "")).await;
            let response = connection.strict_response(false).await;
            let is_right = match is_served {
                true => response.as_ref().is_ok_and(|r| r.is_whole && r.status == 200),
                false => is_bad_gateway(&response) || response.as_ref().is_ok_and(|r| !r.is_whole),
            };
            findings.check(
                format!("response of {row} {taken}"),
                is_right,
                response.map(|r| r.status),
            );
        }
        stack.upstream.reply(|_| Reply::ok("", "hello"));
    }
    findings.end();
}
