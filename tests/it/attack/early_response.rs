//! Bodies and upgrades whose bytes could be served as a request, after an early response.

use super::framing::{SMUGGLED, with_body};
use super::siege::{Attack, Must, READERS, ROUTES, Siege};
use crate::harness::upstream::Reply;

/// After a response that came before the body, the body is never taken for a request.
#[tokio::test(flavor = "multi_thread")]
async fn an_unread_body_is_never_served_as_a_request() {
    let mut siege = Siege::start_with(
        "limits.max_body = \"1KiB\"\n",
        r#"
        [[route]]
        path = "/required"
        upstream = "recorder"
        auth = "required"
        [[route]]
        path = "/none"
        upstream = "recorder"
        auth = "none"
        [[route]]
        path = "/get-only"
        upstream = "recorder"
        auth = "none"
        methods = ["GET"]
        "#,
    )
    .await;
    let served = "GET /none/smuggled HTTP/1.1\r\nHost: h\r\n\r\n";
    let flood = served.repeat((1 << 20) / served.len());
    let chunks = format!("{:x}\r\n{flood}\r\n0\r\n\r\n", flood.len());
    let asked_twice = "Expect: 100-continue\r\nX-3rd-Session: a\r\nX-3rd-Session: b\r\n".to_owned();
    for (path, lines) in [
        ("/required", String::new()),
        ("/required", "X-3rd-Session: no-token\r\n".to_owned()),
        ("/required", asked_twice),
        ("/required", "Connection: Upgrade\r\nUpgrade: h2c\r\n".to_owned()),
        ("/nowhere", String::new()),
        ("/none", String::new()),
        ("/get-only", String::new()),
        ("/login", String::new()),
        ("/login", "Content-Type: multipart/form-data\r\n".to_owned()),
        ("/logout", String::new()),
        ("/session", String::new()),
        ("/none/../required", String::new()),
    ] {
        let length = format!("{lines}Content-Length: {}\r\n", flood.len());
        let header = format!("POST {path} HTTP/1.1\r\nHost: h\r\n");
        let with_length = format!("{header}{length}\r\n{flood}");
        let with_chunks = format!("{header}{lines}Transfer-Encoding: chunked\r\n\r\n{chunks}");
        for bytes in [with_length, with_chunks] {
            let outcome = siege.run(&Attack::new(&bytes, Must::Harmless)).await;
            let finals: Vec<u16> = outcome
                .responses
                .iter()
                .map(|a| a.status)
                .filter(|status| *status >= 200)
                .collect();
            assert!(finals.len() <= 1 && outcome.received.is_empty(), "{finals:?} {path} {lines}");
            let rejected = finals.first().is_none_or(|status| *status == 204 || *status >= 400);
            assert!(rejected, "{finals:?} {path} {lines}");
        }
    }
}

/// A service that responds early gets the rest of the body, or its connection is closed.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_responds_early_takes_no_body_for_a_request() {
    let mut siege = Siege::start().await;
    siege.stack.upstream.respond_early(true);
    let flood = SMUGGLED.repeat(2000);
    for (status, kept) in [
        ("200 OK", "keep-alive"),
        ("401 Unauthorized", "keep-alive"),
        ("413 Content Too Large", "close"),
    ] {
        siege.stack.upstream.reply(move |received| {
            if received.target().starts_with("/required/canary") {
                let openid = received.folded("x-openid");
                let body = serde_json::json!({ "target": received.target(), "openid": openid });
                return Reply::ok("", &body.to_string());
            }
            let header =
                format!("HTTP/1.1 {status}\r\nConnection: {kept}\r\nContent-Length: 2\r\n");
            Reply::Bytes(format!("{header}\r\nno").into())
        });
        for path in ["/required", "/none"] {
            let token = siege.token().to_owned();
            let header = format!("POST {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n");
            let length = format!("{header}Content-Length: {}\r\n\r\n{flood}", flood.len());
            let chunks = format!(
                "{header}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{flood}\r\n0\r\n\r\n",
                flood.len()
            );
            let requests = length.replace("Host: h", "Host: h\r\nExpect: 100-continue");
            for bytes in [length, chunks, requests] {
                siege.run(&Attack::new(bytes, Must::Harmless)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_changes_nothing_about_where_a_request_ends() {
    let mut siege = Siege::start().await;
    for expect in [
        "100-continue",
        "100-Continue",
        "y 100-continue",
        "100-continue, x",
        "100-continue, 100-continue",
        "200-ok",
        "",
        "100-continue;q=0",
    ] {
        let repeated = if expect == "100-continue" { &[1, 2][..] } else { &[1] };
        for lines in repeated.iter().map(|count| format!("Expect: {expect}\r\n").repeat(*count)) {
            let with = format!("{lines}Content-Length: {}\r\n", SMUGGLED.len());
            let chunks = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
            for template in [
                with_body(&with, SMUGGLED),
                with_body(&format!("{lines}Transfer-Encoding: chunked\r\n"), &chunks),
                with_body(&lines, ""),
                with_body(&lines, SMUGGLED),
                with_body(&format!("{lines}Content-Length: 0\r\n"), SMUGGLED),
            ] {
                siege.run_on(&READERS, &Attack::new(template, Must::Harmless)).await;
            }
            let cut = with_body(&with, "GET");
            siege.run_on(&READERS, &Attack::new(cut, Must::Harmless).unfinished()).await;
        }
    }
    for interim in
        ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nX-OpenId: e\r\n\r\n"]
    {
        for count in [1, 2, 50] {
            let announced = interim.repeat(count);
            siege.stack.upstream.reply(move |received| {
                let openid = received.folded("x-openid");
                let body = serde_json::json!({ "target": received.target(), "openid": openid });
                let body = body.to_string();
                let header = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let announced =
                    if received.all("expect").is_empty() { "" } else { announced.as_str() };
                Reply::Bytes(format!("{announced}{header}{body}").into())
            });
            let lines = "Expect: 100-continue\r\nContent-Length: 5\r\n";
            let attack = Attack::new(with_body(lines, "hello"), Must::Harmless);
            siege.run_on(&ROUTES, &attack).await;
        }
    }
}

/// Until the service has accepted, bytes after a handshake are a request like any other.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_opens_no_tunnel_past_the_gateway() {
    let mut siege = Siege::start_with(
        "",
        r#"
        [[route]]
        path = "/required"
        upstream = "recorder"
        auth = "required"
        websocket = true
        [[route]]
        path = "/optional"
        upstream = "recorder"
        auth = "optional"
        [[route]]
        path = "/none"
        upstream = "recorder"
        auth = "none"
        websocket = true
        "#,
    )
    .await;
    // A declined upgrade is a plain request, and what follows is the next request.
    for lines in [
        "Upgrade: foo\r\n",
        "Connection: Upgrade\r\nUpgrade: foo\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Connection: Upgrade\r\nUpgrade:\r\n",
    ] {
        let header = "{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}";
        for part in [usize::MAX, 7] {
            let length =
                format!("{header}{lines}Content-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
            let attack = Attack::new(length, Must::Served(1)).in_parts(part);
            siege.run_on(&READERS[..4], &attack).await;
            let chunks = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
            let chunked = format!("{header}{lines}Transfer-Encoding: chunked\r\n\r\n{chunks}");
            let attack = Attack::new(chunked, Must::Served(1)).in_parts(part);
            siege.run_on(&READERS[..4], &attack).await;
        }
    }
    for lines in [
        "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: WebSocket\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 99\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
        "Connection: close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    ] {
        for body in ["", SMUGGLED] {
            let template = with_body(lines, body);
            siege.run_on(&ROUTES, &Attack::new(template, Must::Rejected)).await;
            let template = with_body(&format!("{lines}Content-Length: {}\r\n", body.len()), body);
            siege.run_on(&READERS[..4], &Attack::new(template, Must::Rejected)).await;
        }
        let chunks = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
        let template = with_body(&format!("{lines}Transfer-Encoding: chunked\r\n"), &chunks);
        siege.run_on(&READERS, &Attack::new(template, Must::Rejected)).await;
    }
    // A valid handshake, with services that do not accept it or only pretend to.
    let handshake = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: foo\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        siege.stack.upstream.reply(move |received| {
            if !received.all("upgrade").is_empty() {
                return Reply::Bytes(response.into());
            }
            let openid = received.folded("x-openid");
            let body = serde_json::json!({ "target": received.target(), "openid": openid });
            Reply::ok("", &body.to_string())
        });
        let token = siege.token().to_owned();
        for path in ["/required", "/none"] {
            let template = format!(
                "GET {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n{handshake}\r\n{SMUGGLED}"
            );
            let outcome = siege.run(&Attack::new(template, Must::Harmless)).await;
            assert!(outcome.received.len() <= 1, "{:?}", outcome.received);
            assert!(outcome.responses.iter().all(|response| response.status != 101), "{response}");
        }
    }
}
