//! Malformed request lines and oversized request headers.

use super::framing::with_body;
use super::siege::{Attack, Must, ROUTES, Siege};

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
