//! Request smuggling: where a request ends.

use super::siege::{Attack, Must, READERS, ROUTES, Siege};
use crate::harness::upstream::Reply;

/// A request that another reader could find in a body: it has no token.
pub const SMUGGLED: &str = "GET /required/smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

/// Header lines after which two readers could disagree about where the body ends.
pub const DOUBTFUL_LENGTHS: [&str; 56] = [
    "Content-Length: 13\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n",
    "content-length: 0\r\ntransfer-encoding: chunked\r\n",
    "Transfer-Encoding: xchunked\r\n",
    "Transfer-Encoding: chunked, identity\r\n",
    "Transfer-Encoding: identity, chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: chunked, chunked\r\n",
    "Transfer-Encoding: , chunked\r\n",
    "Transfer-Encoding: chunked,\r\n",
    "Transfer-Encoding: chunked;q=1\r\n",
    "Transfer-Encoding: \"chunked\"\r\n",
    "Transfer-Encoding: \u{b}chunked\r\n",
    "Transfer-Encoding: chunked\u{b}\r\n",
    "Transfer-Encoding: chunke\u{212a}d\r\n",
    "Transfer-Encoding: chunked\0\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\ntransfer-encoding: cow\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding\t: chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "X: a\r\n\tTransfer-Encoding: chunked\r\n",
    "X: a\nTransfer-Encoding: chunked\r\n",
    "X: a\rTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding:\r\n",
    "Transfer-Encoding: \r\n",
    "Content-Length: +5\r\n",
    "Content-Length: -0\r\n",
    "Content-Length: -1\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length: 5, 6\r\n",
    "Content-Length: 5,\r\n",
    "Content-Length: ,5\r\n",
    "Content-Length: 5\r\nContent-Length: 5\r\n",
    "Content-Length: 5\r\nContent-Length: 6\r\n",
    "Content-Length: 0\r\nContent-Length: 5\r\n",
    "Content-Length: 0x5\r\n",
    "Content-Length: 1_0\r\n",
    "Content-Length: 5 5\r\n",
    "Content-Length: 5;\r\n",
    "Content-Length: 5.0\r\n",
    "Content-Length: 1e1\r\n",
    "Content-Length: \"5\"\r\n",
    "Content-Length: \u{665}\r\n",
    "Content-Length:\r\n",
    "Content-Length: \t\r\n",
    "Content-Length : 5\r\n",
    "Content-Length:\r\n 5\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Content-Length: 18446744073709551621\r\n",
    "Content-Length: 9223372036854775808\r\n",
    "Content-Length: 00000000000000000000000005\r\n",
];

/// Chunks that two readers could read differently.
pub const DOUBTFUL_CHUNKS: [&str; 37] = [
    "0x5\r\nhello\r\n0\r\n\r\n",
    "+5\r\nhello\r\n0\r\n\r\n",
    "-1\r\nhello\r\n0\r\n\r\n",
    "-0\r\n\r\n",
    " 5\r\nhello\r\n0\r\n\r\n",
    "5 \r\nhello\r\n0\r\n\r\n",
    "5\t\r\nhello\r\n0\r\n\r\n",
    "5 ;a\r\nhello\r\n0\r\n\r\n",
    "5_0\r\nhello\r\n0\r\n\r\n",
    "5,\r\nhello\r\n0\r\n\r\n",
    "5.\r\nhello\r\n0\r\n\r\n",
    "g\r\nhello\r\n0\r\n\r\n",
    "00000000000000005\r\nhello\r\n0\r\n\r\n",
    "FFFFFFFFFFFFFFFF\r\nhello\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    ";a\r\n\r\n",
    "\r\n",
    "\r\n5\r\nhello\r\n0\r\n\r\n",
    "\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\rhello\r\n0\r\n\r\n",
    "5;\nhello\r\n0\r\n\r\n",
    "5;a=\n\r\nhello\r\n0\r\n\r\n",
    "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n",
    "5;\0\r\nhello\r\n0\r\n\r\n",
    "5;a\rb\r\nhello\r\n0\r\n\r\n",
    "5;a\u{7f}\r\nhello\r\n0\r\n\r\n",
    "5\r\nhelloXX0\r\n\r\n",
    "5\r\nhello\n0\r\n\r\n",
    "5\r\nhello\r0\r\n\r\n",
    "5\r\nhello0\r\n\r\n",
    "4\r\nhello\r\n0\r\n\r\n",
    "6\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\n\r\n",
    "5\r\nhello\r\n0\r\n\n",
    "5\r\nhello\r\n0;\n\r\n",
    "0\r\n\r\r\n",
];

pub fn with_body(lines: &str, body: &str) -> String {
    format!("{{method}} {{path}} HTTP/1.1\r\nHost: h\r\n{{auth}}{lines}\r\n{body}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_with_two_lengths_or_a_doubtful_one_is_rejected() {
    let mut siege = Siege::start().await;
    let chunked = format!("0\r\n\r\n{SMUGGLED}");
    for lines in DOUBTFUL_LENGTHS {
        let attack = Attack::new(with_body(lines, &chunked), Must::Cut);
        siege.run_on(&READERS, &attack).await;
        siege.run_on(&READERS[..1], &attack.in_parts(1)).await;
    }
    // Names that only other readers would take for a length.
    for lines in [
        "Transfer_Encoding: chunked\r\n",
        "Transfer.Encoding: chunked\r\n",
        "Content_Length: 5\r\n",
        "X-Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding-: chunked\r\n",
        "Content-Lengt: 5\r\nContent-Length-: 5\r\n",
    ] {
        siege.run_on(&ROUTES, &Attack::new(with_body(lines, ""), Must::Served(1))).await;
        let followed = Attack::new(with_body(lines, SMUGGLED), Must::Harmless);
        siege.run_on(&ROUTES, &followed).await;
    }
    // Lengths that everybody reads alike.
    for (lines, body) in [
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length:5\r\n", "hello"),
        ("Content-Length:\t 5 \t\r\n", "hello"),
        ("Content-Length: 00005\r\n", "hello"),
        ("Content-Length: 0\r\n", ""),
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("transfer-encoding:\tCHUNKED \r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "005;a=\"b;c\"\r\nhello\r\n000;x\r\nX: y\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ] {
        let attack = Attack::new(with_body(lines, body), Must::Served(1));
        siege.run_on(&ROUTES, &attack).await;
        siege.run_on(&ROUTES[..1], &attack.in_parts(1)).await;
    }
}

/// The method does not decide whether there is a body.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_is_read_with_every_method() {
    let mut siege = Siege::start().await;
    for method in ["GET", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH", "PROPFIND"] {
        for path in ["/required", "/optional", "/none"] {
            let token = siege.token().to_owned();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\nContent-Length: {}\r\n\r\n",
                SMUGGLED.len()
            );
            let attack = Attack::new(head + SMUGGLED, Must::Served(1));
            let outcome = siege.run(&attack).await;
            assert_eq!(outcome.received[0].body, SMUGGLED.as_bytes(), "{method} {path}");
            let chunks = format!(
                "{method} {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
                SMUGGLED.len()
            );
            let outcome = siege.run(&Attack::new(chunks, Must::Served(1))).await;
            assert_eq!(outcome.received[0].body, SMUGGLED.as_bytes(), "{method} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_with_a_doubtful_size_or_end_is_rejected() {
    let mut siege = Siege::start().await;
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(64 << 10));
    let many = format!("1;{}\r\nx\r\n", "y".repeat(5 << 10)).repeat(30) + "0\r\n\r\n";
    for body in DOUBTFUL_CHUNKS {
        let template = with_body("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUGGLED}"));
        let attack = Attack::new(template, Must::Cut);
        siege.run_on(&READERS, &attack).await;
        siege.run_on(&READERS[..1], &attack.clone().in_parts(1)).await;
        siege.run_on(&READERS[4..5], &attack.in_parts(40)).await;
    }
    // Some endpoints respond before they read so far.
    for body in [long, many] {
        let template = with_body("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUGGLED}"));
        siege.run_on(&READERS[..5], &Attack::new(template, Must::Cut)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_line_has_one_form() {
    let mut siege = Siege::start().await;
    for line in [
        &b"{method}  {path} HTTP/1.1"[..],
        b"{method} {path}  HTTP/1.1",
        b" {method} {path} HTTP/1.1",
        b"{method} {path} HTTP/1.1 ",
        b"{method}\t{path} HTTP/1.1",
        b"{method} {path}\tHTTP/1.1",
        b"{method}\x0b{path} HTTP/1.1",
        b"{method}\x0c{path} HTTP/1.1",
        b"{method}\r{path} HTTP/1.1",
        b"{method}\xa0{path} HTTP/1.1",
        b"get {path} HTTP/1.1",
        b"Get {path} HTTP/1.1",
        b"G|ET {path} HTTP/1.1",
        b"GET\0 {path} HTTP/1.1",
        b"-GET {path} HTTP/1.1",
        b"GET: {path} HTTP/1.1",
        b"{method} {path}",
        b"{method} {path} ",
        b"{method} {path} HTTP/1.2",
        b"{method} {path} HTTP/2.0",
        b"{method} {path} HTTP/2",
        b"{method} {path} HTTP/0.9",
        b"{method} {path} HTTP/1.10",
        b"{method} {path} HTTP/01.1",
        b"{method} {path} HTTP/1.1x",
        b"{method} {path} http/1.1",
        b"{method} {path} HTTP /1.1",
        b"{method} {path} HTTPS/1.1",
        b"{method} {path} RTSP/1.0",
        b"{method} {path}\0 HTTP/1.1",
        b"{method} {path}\x7f HTTP/1.1",
        b"{method} {path}/\xff HTTP/1.1",
        b"{method} {path}/\xe4\xbd\xa0 HTTP/1.1",
        b"{method} {path}/ x HTTP/1.1",
        b"{method} {path}#/none HTTP/1.1",
        b"{method} {path}?a#b HTTP/1.1",
        b"{method} {path}\\x HTTP/1.1",
        b"{method} {path}?a\\b HTTP/1.1",
        b"{method} {path}<x> HTTP/1.1",
        b"{method} {path}\"x\" HTTP/1.1",
        b"{method} none HTTP/1.1",
        b"{method} ?x HTTP/1.1",
        b"{method} http://other/none HTTP/1.1",
        b"{method} http://h@other/none HTTP/1.1",
        b"{method} http://h:81/none HTTP/1.1",
        b"{method} HTTP://other/none HTTP/1.1",
        b"{method} HTTP:h/none HTTP/1.1",
        b"{method} HTTPX://h/none HTTP/1.1",
        b"{method} ftp://h/none HTTP/1.1",
        b"{method} http:/h/none HTTP/1.1",
        b"{method} http:///none HTTP/1.1",
        b"{method} http://169.254.169.254/latest HTTP/1.1",
        b"{method} unix:/run/x HTTP/1.1",
        b"{method} * HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT h:22 HTTP/1.1",
        b"CONNECT {path} HTTP/1.1",
        b"TRACE {path} HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"PRI {path} HTTP/2.0",
        b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2",
        b"\x16\x03\x01\x00\x05hello",
        b"\x0d\x0a\x0d\x0a\x00\x0d\x0aQUIT\x0a!\x11",
        b"",
    ] {
        let template = [line, b"\r\nHost: h\r\n{auth}\r\n"].concat();
        siege.run_on(&ROUTES, &Attack::new(template, Must::Cut)).await;
    }
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
    siege.run(&Attack::new(preface, Must::Cut)).await;
    let proxied = format!("PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\n{}", with_body("", ""));
    siege.run_on(&ROUTES, &Attack::new(proxied, Must::Cut)).await;
    for hosts in [
        "",
        "Host:\r\n",
        "Host: h\r\nHost: h\r\n",
        "Host: h\r\nHost: evil\r\n",
        "Host: u@h\r\n",
        "Host: h/none\r\n",
        "Host: h, evil\r\n",
        "Host: h evil\r\n",
        "Host: h:99999\r\n",
        "Host: h:x\r\n",
        "Host: h::\r\n",
        "Host: :\r\n",
        "Host: [::1\r\n",
        "Host: http://h\r\n",
        "Host: h?x\r\n",
        "Host: h#x\r\n",
        "Host: h\\x\r\n",
        "Host : h\r\n",
    ] {
        let template = format!("{{method}} {{path}} HTTP/1.1\r\n{hosts}{{auth}}\r\n");
        siege.run_on(&ROUTES, &Attack::new(template, Must::Cut)).await;
    }
    // RFC 3986, sections 3.1 and 3.2.3.
    for (target, host) in [
        ("{path}", "h:"),
        ("HTTP://h{path}", "h"),
        ("hTTps://h:{path}?x", "h:"),
        ("http://h:80{path}", "h:80"),
    ] {
        let template = format!("{{method}} {target} HTTP/1.1\r\nHost: {host}\r\n{{auth}}\r\n");
        siege.run_on(&ROUTES, &Attack::new(template, Must::Served(1))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_header_over_its_limits_or_with_bare_line_feeds_is_rejected() {
    let mut siege = Siege::start().await;
    let many: String = (0..300).map(|number| format!("X-{number}: y\r\n")).collect();
    let large: String = (0..100).map(|n| format!("X-{n}: {}\r\n", "y".repeat(60_000))).collect();
    let blank = "\r\n".repeat(10_000);
    let target = "x".repeat(64 << 10);
    for template in [
        format!("{{method}} {{path}} HTTP/1.1\r\nHost: h\r\n{{auth}}{many}\r\n"),
        format!("{{method}} {{path}} HTTP/1.1\r\nHost: h\r\n{{auth}}{large}\r\n"),
        format!("{{method}} {{path}}/{target} HTTP/1.1\r\nHost: h\r\n{{auth}}\r\n"),
        format!("{{method}} {{path}}?{target} HTTP/1.1\r\nHost: h\r\n{{auth}}\r\n"),
        format!("{target} {{path}} HTTP/1.1\r\nHost: h\r\n{{auth}}\r\n"),
        format!("{{method}} {{path}} HTTP/1.1\r\nHost: h\r\n{target}: x\r\n{{auth}}\r\n"),
        format!("{blank}{{method}} {{path}} HTTP/1.1\r\nHost: h\r\n{{auth}}\r\n"),
        "{method} {path} HTTP/1.1\nHost: h\n\n".to_owned(),
        "{method} {path} HTTP/1.1\nHost: h\r\n{auth}\r\n".to_owned(),
        "{method} {path} HTTP/1.1\r\nHost: h\n{auth}\r\n".to_owned(),
        "{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}\n\r\n".to_owned(),
        "{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\r\n\r\n".to_owned(),
        "\n{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\n".to_owned(),
        "\r{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\n".to_owned(),
        "\r\n\r\n\r\n{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\n".to_owned(),
    ] {
        siege.run_on(&ROUTES, &Attack::new(template, Must::Cut)).await;
    }
    // One empty line before a request is harmless, and allowed by RFC 9112.
    let blank = "\r\n{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}\r\n";
    siege.run_on(&ROUTES, &Attack::new(blank, Must::Served(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_request_has_no_chunks_and_is_the_last_one() {
    let mut siege = Siege::start().await;
    let chunks =
        "POST {path} HTTP/1.0\r\nHost: h\r\n{auth}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    siege.run_on(&READERS, &Attack::new(chunks, Must::Cut)).await;
    for lines in ["", "Connection: keep-alive\r\n", "Connection: close\r\n"] {
        for body in ["", "left over", SMUGGLED] {
            let template =
                format!("POST {{path}} HTTP/1.0\r\nHost: h\r\n{{auth}}{lines}\r\n{body}");
            siege.run_on(&ROUTES, &Attack::new(template, Must::Harmless)).await;
        }
    }
    // Without keep-alive nothing after it is served.
    let token = siege.token().to_owned();
    let closing = format!(
        "POST /required HTTP/1.0\r\nHost: h\r\nX-3rd-Session: {token}\r\n\r\n{SMUGGLED}{SMUGGLED}"
    );
    let outcome = siege.run(&Attack::new(closing, Must::Harmless)).await;
    assert_eq!((outcome.received.len(), outcome.goes_on), (1, false));
    assert!(outcome.received[0].body.is_empty());
    let no_host = "GET /none HTTP/1.0\r\n\r\n";
    siege.run(&Attack::new(no_host, Must::Cut)).await;
}

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
        let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\n");
        let with_length = format!("{head}{length}\r\n{flood}");
        let with_chunks = format!("{head}{lines}Transfer-Encoding: chunked\r\n\r\n{chunks}");
        for bytes in [with_length, with_chunks] {
            let outcome = siege.run(&Attack::new(&bytes, Must::Harmless)).await;
            let finals: Vec<u16> = outcome
                .responses
                .iter()
                .map(|a| a.status)
                .filter(|status| *status >= 200)
                .collect();
            assert!(finals.len() <= 1 && outcome.received.is_empty(), "{finals:?} {path} {lines}");
            let refused = finals.first().is_none_or(|status| *status == 204 || *status >= 400);
            assert!(refused, "{finals:?} {path} {lines}");
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
            let head = format!("HTTP/1.1 {status}\r\nConnection: {kept}\r\nContent-Length: 2\r\n");
            Reply::Bytes(format!("{head}\r\nno").into())
        });
        for path in ["/required", "/none"] {
            let token = siege.token().to_owned();
            let head = format!("POST {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n");
            let length = format!("{head}Content-Length: {}\r\n\r\n{flood}", flood.len());
            let chunks = format!(
                "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{flood}\r\n0\r\n\r\n",
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
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                let announced =
                    if received.all("expect").is_empty() { "" } else { announced.as_str() };
                Reply::Bytes(format!("{announced}{head}{body}").into())
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
        let head = "{method} {path} HTTP/1.1\r\nHost: h\r\n{auth}";
        for part in [usize::MAX, 7] {
            let length =
                format!("{head}{lines}Content-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
            let attack = Attack::new(length, Must::Served(1)).in_parts(part);
            siege.run_on(&READERS[..4], &attack).await;
            let chunks = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
            let chunked = format!("{head}{lines}Transfer-Encoding: chunked\r\n\r\n{chunks}");
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
            siege.run_on(&ROUTES, &Attack::new(template, Must::Refused)).await;
            let template = with_body(&format!("{lines}Content-Length: {}\r\n", body.len()), body);
            siege.run_on(&READERS[..4], &Attack::new(template, Must::Refused)).await;
        }
        let chunks = format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len());
        let template = with_body(&format!("{lines}Transfer-Encoding: chunked\r\n"), &chunks);
        siege.run_on(&READERS, &Attack::new(template, Must::Refused)).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_packet_are_each_judged_by_themselves() {
    let mut siege = Siege::start().await;
    let token = siege.token().to_owned();
    let mine = format!("GET /required HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n\r\n");
    let nobodys = "GET /required HTTP/1.1\r\nHost: h\r\nX-OpenId: evil\r\n\r\n";
    let anonymous = "GET /optional HTTP/1.1\r\nHost: h\r\nX_OpenId: evil\r\n\r\n";
    for part in [usize::MAX, 1, 50] {
        let outcome = siege
            .run(
                &Attack::new([&mine, nobodys, anonymous, &mine, nobodys].concat(), Must::Harmless)
                    .in_parts(part),
            )
            .await;
        let statuses: Vec<u16> = outcome.responses.iter().map(|response| response.status).collect();
        assert_eq!(statuses, [200, 401, 200, 200, 401]);
        assert!(outcome.goes_on);
        let told: Vec<usize> =
            outcome.received.iter().map(|received| received.folded("x-openid").len()).collect();
        assert_eq!(told, [1, 0, 1]);
    }
    // Nothing after a rejected request header is read.
    let broken = format!("{mine}GET /none HTTP/1.1\r\n\r\n{mine}");
    let outcome = siege.run(&Attack::new(broken, Must::Harmless)).await;
    assert_eq!((outcome.received.len(), outcome.goes_on), (1, false));
}
