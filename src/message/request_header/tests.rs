use super::*;

const LIMITS: HeaderLimits = HeaderLimits { bytes: 1024, lines: 8, target: 100 };

fn judged(text: &str) -> Result<Option<RequestHeader>, Rejection> {
    read(text.as_bytes(), LIMITS, |path| path == b"/healthz", |_| {})
}

/// The length of the header, and the framing of what follows it.
fn verdict(text: &str) -> Result<Option<(usize, Framing)>, Rejection> {
    Ok(judged(text)?.map(|header| (header.length, header.framing)))
}

fn is_bad(text: &str) -> bool {
    matches!(verdict(text), Err(Rejection::BadRequest(_)))
}

#[test]
fn a_plain_header_passes_with_its_length_and_framing() {
    let header = "GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n";
    let passed = |framing, length: usize| Ok(Some((length, framing)));
    assert_eq!(verdict(header), passed(Framing::Length(0), header.len()));
    assert_eq!(verdict(&format!("{header}rest")), passed(Framing::Length(0), header.len()));
    let with_blank = format!("\r\n{header}");
    assert_eq!(verdict(&with_blank), passed(Framing::Length(0), header.len() + 2));
    let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\n";
    assert_eq!(verdict(post), passed(Framing::Length(12), post.len()));
    let chunked = "POST / HTTP/1.1\r\nhost:h\r\ntransfer-encoding:  Chunked \r\n\r\n";
    assert_eq!(verdict(chunked), passed(Framing::Chunked, chunked.len()));
    let absolute = "GET http://h:80/x HTTP/1.1\r\nHost: h:80\r\n\r\n";
    assert_eq!(verdict(absolute), passed(Framing::Length(0), absolute.len()));
    for target in ["HTTP://h/", "hTTps://h?x", "Http://h"] {
        let header = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(verdict(&header), passed(Framing::Length(0), header.len()), "{target}");
    }
}

#[test]
fn an_incomplete_header_is_waited_for_up_to_its_limit() {
    for text in ["", "\r", "G", "GET / HTTP/1.1\r\nHost: h\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r"]
    {
        assert_eq!(verdict(text), Ok(None), "{text:?}");
    }
    let endless = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(1024));
    assert_eq!(verdict(&endless), Err(Rejection::HeadersTooLarge));
    assert_eq!(verdict(&format!("{endless}\r\n\r\n")), Err(Rejection::HeadersTooLarge));
    let target = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(100));
    assert_eq!(verdict(&target), Err(Rejection::HeadersTooLarge));
    let lines = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(8));
    assert_eq!(verdict(&lines), Err(Rejection::HeadersTooLarge));
}

#[test]
fn a_request_line_that_two_servers_could_read_differently_is_rejected() {
    for line in [
        "",
        " GET / HTTP/1.1",
        "GET  / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /",
        "get / HTTP/1.1",
        "G|ET / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a\\b HTTP/1.1",
        "GET /a\u{7f} HTTP/1.1",
        "GET /a\0 HTTP/1.1",
        "GET /é HTTP/1.1",
        "GET * HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "CONNECT h:80 HTTP/1.1",
        "TRACE / HTTP/1.1",
        "GET x HTTP/1.1",
        "GET ftp://h/ HTTP/1.1",
        "GET https:/h/ HTTP/1.1",
        "GET http:h/ HTTP/1.1",
        "GET httpx://h/ HTTP/1.1",
        "GET ://h/ HTTP/1.1",
        "GET http://u@h/ HTTP/1.1",
        "GET http://other/ HTTP/1.1",
        "GET http:// HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /\r/ HTTP/1.1",
        "GET /a`b HTTP/1.1",
        "- / HTTP/1.1",
        "GET http://H/ HTTP/1.1",
    ] {
        assert!(is_bad(&format!("{line}\r\nHost: h\r\n\r\n")), "{line:?}");
    }
}

#[test]
fn a_header_line_that_two_servers_could_read_differently_is_rejected() {
    for line in [
        "X-OpenId : a",
        "X-OpenId\t: a",
        " X-OpenId: a",
        "\tX: a",
        ": a",
        "X-OpenId",
        "X: a\r\n b",
        "X: a\0b",
        "X: a\rb",
        "X: a\u{1}",
        "X: a\u{7f}",
        "X\0: a",
        "X Y: a",
        "Host: h",
        "Host:",
        "é: a",
        "Connection: \"X-OpenId\"",
        "Connection: :path",
        "Connection: Host",
        "Connection: a,b,c,d,e,f,g,h,i,j",
    ] {
        assert!(is_bad(&format!("GET / HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n")), "{line:?}");
    }
    for host in [
        "",
        "Host: \r\n",
        "Host: a b\r\n",
        "Host: u@h\r\n",
        "Host: h/x\r\n",
        "Host: h,h\r\n",
        "Host: [\r\n",
        "Host: [::1\r\n",
        "Host: ::\r\n",
        "Host: h::\r\n",
        "Host: :\r\n",
        "Host: h:99999\r\n",
        "Host: h:8 0\r\n",
    ] {
        assert!(is_bad(&format!("GET / HTTP/1.1\r\n{host}\r\n")), "{host:?}");
    }
}

#[test]
fn framing_that_two_servers_could_read_differently_is_rejected() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: , chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:",
        "Transfer-Encoding: \u{b}chunked",
        "Content-Length: +5",
        "Content-Length: -0",
        "Content-Length: 5, 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
    ] {
        assert!(is_bad(&format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n")), "{fields:?}");
    }
    assert!(is_bad("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"));
}

#[test]
fn lines_must_end_with_cr_lf() {
    for text in [
        "GET / HTTP/1.1\nHost: h\n\n",
        "GET / HTTP/1.1\r\nHost: h\nX-OpenId: evil\r\n\r\n",
        "GET / HTTP/1.1\r\nX: a\n",
        "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
    ] {
        assert!(is_bad(text), "{text:?}");
    }
}

#[test]
fn hosts_of_every_kind_pass() {
    for host in [
        "h",
        "h:",
        "shop.example:8080",
        "127.0.0.1",
        "[::1]",
        "[::1]:",
        "[2001:db8::1]:443",
        "a_b-c.",
    ] {
        let header = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert!(matches!(verdict(&header), Ok(Some(_))), "{host}");
    }
}

#[test]
fn a_websocket_is_offered_over_http_1_1_only() {
    let wants = |version: &str, offers: &str| {
        let header = format!("GET / {version}\r\nHost: h\r\n{offers}\r\n");
        judged(&header).unwrap().unwrap().wants_websocket
    };
    for offers in [
        "Upgrade: websocket\r\n",
        "upgrade: h2c, WebSocket\r\n",
        "Upgrade: h2c\r\nUpgrade: websocket/13\r\n",
    ] {
        assert!(wants("HTTP/1.1", offers), "{offers}");
        assert!(!wants("HTTP/1.0", offers), "{offers}");
    }
    for offers in ["Upgrade: h2c\r\n", "Upgrade:\r\n", "X: websocket\r\n"] {
        assert!(!wants("HTTP/1.1", offers), "{offers}");
    }
}

#[test]
fn only_a_health_path_may_be_requested_without_a_host() {
    assert!(verdict("GET /healthz HTTP/1.0\r\n\r\n").is_ok());
    assert!(verdict("GET /healthz?x HTTP/1.1\r\n\r\n").is_ok());
    assert!(is_bad("GET /healthz/ HTTP/1.0\r\n\r\n"));
    assert!(is_bad("GET / HTTP/1.0\r\n\r\n"));
    assert!(verdict("GET / HTTP/1.0\r\nHost: h\r\n\r\n").is_ok());
}
