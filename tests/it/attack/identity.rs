//! Clients that send identity headers of their own.

use super::siege::{Attack, Must, ROUTES, Siege};
use crate::harness::upstream::Reply;

/// Reserved headers, as they are written and with every byte
/// that a name may hold and a CGI-like server folds.
pub const OWN: [&str; 24] = [
    "X-OpenId",
    "X-AppId",
    "X-UnionId",
    "X-3rd-Session",
    "X-WX-OPENID",
    "X-WX-APPID",
    "X-WX-UNIONID",
    "X-WX-FROM-OPENID",
    "X-WX-FROM-APPID",
    "X-WX-FROM-UNIONID",
    "X-WX-SOURCE",
    "X-WX-ENV",
    "X-WX-CLOUDBASE-ACCESS-TOKEN",
    "X-WX-FROM-CLOUDBASE-ACCESS-TOKEN",
    "X-Original-Forwarded-For",
    "X-Wxgate-Jwt",
    "X-Request-Id",
    "X-Real-IP",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "Forwarded",
];

/// The characters of a name other than letters and digits (RFC 9110, section 5.6.2).
pub const FOLDED: &[u8; 15] = b"!#$%&'*+-.^_`|~";

pub fn with_lines(lines: &str) -> String {
    format!("{{method}} {{path}} HTTP/1.1\r\nHost: gateway.test\r\n{{auth}}{lines}\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_an_identity_header_is_trusted() {
    let mut siege = Siege::start().await;
    for byte in FOLDED {
        // All names at once, with one byte between their words, and with it at each place alone.
        let mut lines = String::new();
        for name in OWN {
            let byte = char::from(*byte).to_string();
            let spelled = name.replace('-', &byte);
            // A second session header is rejected before it can be removed.
            if spelled == "X-3rd-Session" {
                continue;
            }
            lines.push_str(&format!("{spelled}: evil\r\n{}: evil\r\n", spelled.to_uppercase()));
        }
        siege.run_on(&ROUTES, &Attack::new(with_lines(&lines), Must::Served(1))).await;
    }
    // Two bytes of one name may differ.
    let pairs = FOLDED.iter().zip(FOLDED.iter().cycle().skip(1));
    for (first, second) in pairs.map(|(first, second)| (*first, *second)) {
        let (first, second) = (char::from(first), char::from(second));
        let lines = format!(
            "x{first}wx{second}OPENID: evil\r\nX{second}wX{first}FROM{second}openID: evil\r\n\
             X{first}Forwarded{second}For: 6.6.6.6\r\nX{first}Real{second}IP: 6.6.6.6\r\n\
             x{second}oPENiD: evil\r\n"
        );
        siege.run_on(&ROUTES[..1], &Attack::new(with_lines(&lines), Must::Served(1))).await;
        siege.run_on(&ROUTES[5..], &Attack::new(with_lines(&lines), Must::Served(1))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_header_may_come_in_any_number_case_and_place() {
    let mut siege = Siege::start().await;
    for lines in [
        "X-OpenId: evil\r\n",
        "X-OpenId: a\r\nx-openid: b\r\n",
        "X-OPENID: a\r\nX_OPENID: b\r\nx.openid: c\r\nX-OpenId: d\r\n",
        "x-OPENID: evil\r\n",
        "X-OpenId:\r\n",
        "X-OpenId: \r\n",
        "X-OpenId:\t \t\r\n",
        "X-OpenId:evil\r\n",
        "X-OpenId: a, b\r\n",
        "X-OpenId: a\r\nA: 1\r\nX-OpenId: b\r\nB: 2\r\nX-OpenId: c\r\n",
        "X_UnionId: evil\r\nX-UnionId: evil\r\n",
        "X|AppId: evil\r\nX-AppID: evil\r\n",
        "X-OpenId: \u{e9}\u{4f60}\r\n",
        // Similar names may pass, and are not reserved.
        "X--OpenId: evil\r\nX-OpenId-: evil\r\n-X-OpenId: evil\r\nXOpenId: evil\r\n",
        "X-Open-Id: evil\r\nX_Open_Id: evil\r\nHTTP_X_OPENID: evil\r\nREMOTE_USER: evil\r\n",
        "X-Original-URL: /none\r\nX-Rewrite-URL: /none\r\nX-HTTP-Method-Override: DELETE\r\n",
        "X-Forwarded-Uri: /none\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Path: /none\r\n",
        "Cookie: X-OpenId=evil; X-3rd-Session=evil\r\n",
        "Host-: evil\r\nX-Forwarded-Server: evil\r\nVia: 1.1 evil\r\n",
    ] {
        siege.run_on(&ROUTES, &Attack::new(with_lines(lines), Must::Served(1))).await;
        // The same before everything else.
        let first = format!("{{method}} {{path}} HTTP/1.1\r\n{lines}Host: h\r\n{{auth}}\r\n");
        siege.run_on(&ROUTES, &Attack::new(first, Must::Served(1))).await;
    }
    let many = "X-OpenId: evil\r\nX_OpenId: evil\r\n".repeat(48);
    siege.run_on(&ROUTES, &Attack::new(with_lines(&many), Must::Served(1))).await;
    let long = format!("X-OpenId: {}\r\n", "e".repeat(15_000));
    siege.run_on(&ROUTES, &Attack::new(with_lines(&long), Must::Served(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_hides_an_identity_header_is_rejected() {
    let mut siege = Siege::start().await;
    for lines in [
        &b"X-OpenId : evil\r\n"[..],
        b"X-OpenId\t: evil\r\n",
        b" X-OpenId: evil\r\n",
        b"\tX-OpenId: evil\r\n",
        b"X-Foo: a\r\n X-OpenId: evil\r\n",
        b"X-Foo: a\r\n\tX-OpenId: evil\r\n",
        b"X-Foo:\r\n X-OpenId: evil\r\n",
        b"X-Foo: a\nX-OpenId: evil\r\n",
        b"X-Foo: a\n\nX-OpenId: evil\r\n",
        b"X-Foo: a\rX-OpenId: evil\r\n",
        b"X-Foo: a\r\r\nX-OpenId: evil\r\n",
        b"X-Foo: a\x0bX-OpenId: evil\r\n",
        b"X-Foo: a\x0cX-OpenId: evil\r\n",
        b"X-OpenId\0: evil\r\n",
        b"X-OpenId: a\0b\r\n",
        b"\0X-OpenId: evil\r\n",
        b"X-Foo: a\0b\r\n",
        b"X-Foo: \x7f\r\n",
        b"X-Foo: \x1b[0m\r\n",
        b"X-OpenId\r\n",
        b"X-OpenId\xa0: evil\r\n",
        b"X\xe2\x80\x90OpenId: evil\r\n",
        b"X-Open\xc4\xb1d: evil\r\n",
        b"X OpenId: evil\r\n",
        b"X-OpenId;: evil\r\n",
        b"\"X-OpenId\": evil\r\n",
        b"X(OpenId: evil\r\n",
        b"X/OpenId: evil\r\n",
        b"X@OpenId: evil\r\n",
        b"X[OpenId: evil\r\n",
        b"X\\OpenId: evil\r\n",
        b"X{OpenId}: evil\r\n",
        b": evil\r\n",
        b":\r\n",
        b"X-OpenId= evil\r\n",
    ] {
        let mut template = b"{method} {path} HTTP/1.1\r\nHost: gateway.test\r\n{auth}".to_vec();
        template.extend_from_slice(lines);
        template.extend_from_slice(b"\r\n");
        siege.run_on(&ROUTES, &Attack::new(&template, Must::Cut)).await;
        siege.run_on(&ROUTES[..1], &Attack::new(&template, Must::Cut).in_parts(1)).await;
    }
    // Before the first proper line.
    for line in [" X-OpenId: evil", "\tX-OpenId: evil", "X-OpenId", "\0"] {
        let template = format!("{{method}} {{path}} HTTP/1.1\r\n{line}\r\nHost: h\r\n{{auth}}\r\n");
        siege.run_on(&ROUTES, &Attack::new(template, Must::Cut)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn naming_a_header_in_connection_removes_no_identity() {
    let mut siege = Siege::start().await;
    for lines in [
        "Connection: X-OpenId\r\n",
        "Connection: keep-alive, x-openid, x-appid, x-unionid\r\n",
        "Connection: keep-alive,X-OpenId\r\nX-OpenId: evil\r\n",
        "Connection: X_OpenId\r\nX_OpenId: evil\r\n",
        "Connection: X-3rd-Session\r\n",
        "Connection: Authorization\r\n",
        "Connection: X-Request-Id, X-Real-IP\r\n",
        "Connection: x-openid\r\nConnection: x-appid\r\n",
        "Connection: a,b,c,d,e,f,g,h,x-openid\r\n",
        "Connection: Cookie\r\nCookie: a=b\r\n",
        "Keep-Alive: X-OpenId\r\n",
        "Proxy-Connection: X-OpenId\r\n",
        "Proxy-Connection: close, X-OpenId\r\n",
        "TE: trailers, X-OpenId\r\n",
        "Connection: TE\r\nTE: trailers\r\n",
        "Trailer: X-OpenId\r\n",
        "Connection: Trailer, X-OpenId\r\nTrailer: X-OpenId\r\n",
        "Proxy-Authorization: Basic eDp5\r\nProxy-Authenticate: x\r\n",
    ] {
        siege.run_on(&ROUTES, &Attack::new(with_lines(lines), Must::Served(1))).await;
    }
    for lines in [
        "Connection: close, x-openid\r\n",
        "Connection: x-openid\r\nConnection: close\r\n",
        "Connection: Content-Length\r\n",
        "Connection: Transfer-Encoding\r\n",
        "Connection: Upgrade\r\n",
    ] {
        siege.run_on(&ROUTES, &Attack::new(with_lines(lines), Must::Harmless)).await;
    }
    for lines in [
        "Connection: \"X-OpenId\"\r\n",
        "Connection: a,b,c,d,e,f,g,h,i,j,x-openid\r\n",
        "Connection: a,b,c,d,e\r\nConnection: f,g,h,i,j,x-openid\r\n",
        "Connection: Host\r\n",
        "Connection: x-forwarded-for\r\n",
        "Connection: :method\r\n",
        "Connection: X OpenId\r\n",
    ] {
        siege.run_on(&ROUTES, &Attack::new(with_lines(lines), Must::Cut)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trailer_is_no_header() {
    let mut siege = Siege::start().await;
    let header = "POST {path} HTTP/1.1\r\nHost: h\r\n{auth}Transfer-Encoding: chunked\r\n";
    for trailers in [
        "X-OpenId: evil\r\n",
        "X_OpenId: evil\r\nX-AppId: evil\r\n",
        "X-3rd-Session: evil\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Host: evil\r\n",
        "Authorization: Bearer evil\r\n",
        "X-OpenId : evil\r\n",
        "evil\r\n",
    ] {
        for announced in ["", "Trailer: X-OpenId\r\n", "TE: trailers\r\nConnection: TE\r\n"] {
            let template = format!("{header}{announced}\r\n5\r\nhello\r\n0\r\n{trailers}\r\n");
            siege.run_on(&ROUTES, &Attack::new(template, Must::Harmless)).await;
        }
    }
    for trailers in [" X-OpenId: evil\r\n", "A: b\nX-OpenId: evil\r\n", "A: \0\r\n", "\n"] {
        let template = format!("{header}\r\n5\r\nhello\r\n0\r\n{trailers}\r\n");
        let attack = Attack::new(template, Must::Cut);
        siege.run_on(&ROUTES, &attack).await;
        siege.run_on(&ROUTES, &attack.in_parts(3)).await;
    }
}

/// Neither a response nor an informational one shows reserved headers to the client.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_shows_the_client_no_reserved_header() {
    let mut siege = Siege::start().await;
    let own = "X-OpenId: leaked\r\nx_openid: leaked\r\nX.AppId: leaked\r\nX-UnionId: leaked\r\n\
               X-3rd-Session: leaked\r\nX_3RD_SESSION: leaked\r\nX-Wxgate-Error: leaked\r\n\
               X_Wxgate_Error: leaked\r\n";
    let token = siege.token().to_owned();
    for first in ["", "103 Early Hints", "100 Continue", "102 Processing"] {
        let announced = match first {
            "" => String::new(),
            status => format!("HTTP/1.1 {status}\r\n{own}\r\n"),
        };
        let bytes = format!("{announced}HTTP/1.1 200 OK\r\n{own}Content-Length: 2\r\n\r\nhi");
        let request = format!(
            "GET /required HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\nConnection: close\r\n\r\n"
        );
        // The bystander's responses stay as they are.
        siege.stack.upstream.reply(move |received| match received.target() {
            "/required" => Reply::Bytes(bytes.clone().into()),
            target => {
                let openid = received.folded("x-openid");
                let body = serde_json::json!({ "target": target, "openid": openid });
                Reply::ok("", &body.to_string())
            }
        });
        let outcome = siege.run(&Attack::new(request, Must::Harmless)).await;
        assert!(outcome.responses.iter().any(|answer| answer.text() == "hi"), "{first}");
        for answer in &outcome.responses {
            assert!(!format!("{answer:?}").contains("leaked"), "{first}: {answer:?}");
        }
    }
}
