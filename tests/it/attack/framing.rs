//! Request smuggling over HTTP/1: requests whose end the service might see in another place.

use super::siege::{Attack, Must, READERS, ROUTES, Siege};

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
            let header = format!(
                "{method} {path} HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\nContent-Length: {}\r\n\r\n",
                SMUGGLED.len()
            );
            let attack = Attack::new(header + SMUGGLED, Must::Served(1));
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

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_one_packet_are_each_checked_separately() {
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
