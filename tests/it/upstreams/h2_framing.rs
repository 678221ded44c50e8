//! Services whose HTTP/2 messages lie about their framing, and what trailers may carry.

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderName, Request};

use crate::harness::client::Connection;
use crate::harness::http2_service::{Http2Service, read, response};
use crate::harness::{Stack, openid};
use crate::http2::Client;

fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let parsed = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), value.parse().unwrap())
    };
    lines.iter().map(parsed).collect()
}

async fn start(service: &Http2Service) -> Stack {
    Stack::start_with(&format!("server.h2c = true\n{}", service.section(""))).await
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_is_never_whole() {
    let mut service = Http2Service::start().await;
    let stack = start(&service).await;
    for (announced, sent, has_trailers) in
        [("5", "abc", false), ("5", "abcdefg", false), ("5", "abc", true), ("5", "", false)]
    {
        for is_http2 in [false, true] {
            let row = format!("{announced} {sent} {has_trailers} {is_http2}");
            let serve = async {
                let mut call = service.call().await;
                let mut send = call.begin(&[("content-length", announced)]);
                let _ = send.send_data(Bytes::from_static(sent.as_bytes()), !has_trailers);
                if has_trailers {
                    let _ = send.send_trailers(map(&[("x-end", "1")]));
                }
                call
            };
            if is_http2 {
                let mut client = Client::open(stack.gateway).await;
                let response = client.get("/none").await;
                let (_call, got) = tokio::join!(serve, response);
                let Ok(response) = got else { continue };
                if response.status() == 200 {
                    assert!(read(&mut response.into_body()).await.is_err(), "{row}");
                }
            } else {
                let mut client = Connection::open(stack.gateway).await;
                client.send(&stack.get("/none").bytes()).await;
                let (_call, got) = tokio::join!(serve, client.strict_response(false));
                if let Ok(response) = got {
                    assert!(response.status == 502 || !response.is_whole, "{row}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_body_where_none_may_be_reaches_no_client() {
    let mut service = Http2Service::start().await;
    let stack = start(&service).await;
    for (method, status, lines) in [
        ("HEAD", 200, &[][..]),
        ("HEAD", 200, &[("content-length", "4")]),
        ("GET", 204, &[]),
        ("GET", 304, &[("content-length", "4")]),
        ("GET", 200, &[("content-length", "0")]),
    ] {
        let mut client = Connection::open(stack.gateway).await;
        client.send(&stack.request(method, "/none").bytes()).await;
        let mut call = service.call().await;
        let mut send = call.respond.send_response(response(status, lines), false).unwrap();
        let _ = send.send_data(Bytes::from_static(b"evil"), true);
        let got = client.strict_response(method == "HEAD").await.unwrap();
        assert!(got.status == status || got.status == 502, "{method} {status}");
        // Nothing follows but the response to the next request.
        client.send(&stack.get("/none").bytes()).await;
        let next = async {
            let mut call = service.call().await;
            call.respond.send_response(response(201, &[]), true).unwrap();
        };
        let ((), got) = tokio::join!(next, client.strict_response(false));
        assert_eq!(got.unwrap().status, 201, "{method} {status}");
    }
}

const EVIL: [(&str, &str); 12] = [
    ("x-openid", "evil"),
    ("x_openid", "evil"),
    ("x.openid", "evil"),
    ("x-wx-openid", "evil"),
    ("x-3rd-session", "evil"),
    ("x-forwarded-for", "evil"),
    ("x_real_ip", "evil"),
    ("x-request-id", "evil"),
    ("authorization", "evil"),
    ("cookie", "evil"),
    ("content-type", "evil"),
    ("expect", "evil"),
];

#[tokio::test]
async fn request_trailers_carry_no_identity_to_an_http_2_service() {
    let mut service = Http2Service::start().await;
    let stack = start(&service).await;
    let token = stack.login("alice").await;
    let lines = EVIL.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
    let lines: String = lines.collect();
    let request = format!(
        "POST /orders HTTP/1.1\r\nHost: gateway.test\r\nX-3rd-Session: {token}\r\n{}\
         Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n{lines}Host: evil\r\n\
         Content-Length: 3\r\nTransfer-Encoding: evil\r\nTE: evil\r\nConnection: evil\r\n\r\n",
        "X_OpenId: evil\r\nx.openid: evil\r\nX-WX-OPENID: evil\r\nX-AppId: evil\r\n",
    );
    let mut client = Connection::open(stack.gateway).await;
    client.send(request.as_bytes()).await;
    let mut call = service.call().await;
    let (body, trailers) = call.body().await;
    assert_eq!(body, b"x");
    assert_eq!(trailers, Some(map(&[("x-sum", "1")])));
    let headers = call.request.headers();
    assert!(!format!("{headers:?}").contains("evil"), "{headers:?}");
    assert_eq!(headers["x-openid"], openid("alice").as_str());

    let client = Client::open(stack.gateway).await;
    let mut request = Request::post("http://gateway.test/orders").header("x-3rd-session", token);
    for (name, value) in EVIL.iter().filter(|(name, _)| name.contains("openid")) {
        request = request.header(*name, *value);
    }
    let mut ready = client.requests.clone().ready().await.unwrap();
    let (_response, mut send) = ready.send_request(request.body(()).unwrap(), false).unwrap();
    send.send_data(Bytes::from_static(b"x"), false).unwrap();
    let mut trailers = map(&EVIL);
    trailers.extend(map(&[("x-sum", "1"), ("host", "evil"), ("content-length", "9")]));
    send.send_trailers(trailers).unwrap();
    let mut call = service.call().await;
    let (body, trailers) = call.body().await;
    assert_eq!(body, b"x");
    assert_eq!(trailers, Some(map(&[("x-sum", "1")])));
    let headers = call.request.headers();
    assert!(!format!("{headers:?}").contains("evil"), "{headers:?}");
}

#[tokio::test]
async fn response_trailers_carry_nothing_that_is_the_gateways() {
    let mut service = Http2Service::start().await;
    let stack = start(&service).await;
    let evil = map(&[
        ("x-wxgate-error", "evil"),
        ("set-cookie", "evil"),
        ("x-request-id", "evil"),
        ("content-length", "7"),
        ("x-sum", "1"),
    ]);
    for is_http2 in [false, true] {
        let serve = async {
            let mut call = service.call().await;
            let mut send = call.begin(&[("x-wxgate-error", "evil"), ("x-request-id", "evil")]);
            send.send_data(Bytes::from_static(b"x"), false).unwrap();
            send.send_trailers(evil.clone()).unwrap();
            call
        };
        let trailers = if is_http2 {
            let mut client = Client::open(stack.gateway).await;
            let response = client.get("/none").await;
            let (_call, response) = tokio::join!(serve, response);
            let response = response.unwrap();
            assert!(!format!("{:?}", response.headers()).contains("evil"));
            let (_, trailers) = read(&mut response.into_body()).await.unwrap();
            format!("{:?}", trailers.unwrap())
        } else {
            let mut client = Connection::open(stack.gateway).await;
            let request = stack.get("/none").header("TE", "trailers").header("Connection", "TE");
            client.send(&request.bytes()).await;
            let (_call, response) = tokio::join!(serve, client.strict_response(false));
            let response = response.unwrap();
            assert!(response.is_whole);
            format!("{:?}", response.body.trailers)
        };
        assert!(trailers.contains("x-sum"), "{trailers}");
        assert!(!trailers.contains("evil") && !trailers.contains("length"), "{trailers}");
    }
}

#[tokio::test]
async fn a_refused_request_is_sent_again_whole_with_its_trailers_and_the_other_host() {
    let (mut one, mut other) = (Http2Service::start().await, Http2Service::start().await);
    let servers = [one.address, other.address].map(|address| address.to_string());
    let keys = format!(
        "[[upstream]]\nname = \"recorder\"\nservers = {servers:?}\nprotocol = \"h2\"\n\
         host = \"server\"\n"
    );
    let stack = Stack::start_with(&keys).await;
    for is_whole in [false, true] {
        let begin =
            "POST /none HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        let end = "6\r\nsecond\r\n0\r\nX-Sum: 1\r\n\r\n";
        let mut client = Connection::open(stack.gateway).await;
        client.send(begin.as_bytes()).await;
        let (first, second) = (one.address, other.address);
        let (mut call, next, authority) = tokio::select! {
            call = one.call() => (call, &mut other, first),
            call = other.call() => (call, &mut one, second),
        };
        assert_eq!(call.request.uri().authority().unwrap().as_str(), authority.to_string());
        if is_whole {
            client.send(end.as_bytes()).await;
            assert_eq!(call.body().await.0, b"firstsecond");
        }
        call.respond.send_reset(Reason::REFUSED_STREAM);
        let mut call = next.call().await;
        if !is_whole {
            client.send(end.as_bytes()).await;
        }
        let authority = call.request.uri().authority().unwrap().as_str();
        assert_eq!(authority, next.address.to_string());
        let (body, trailers) = call.body().await;
        assert_eq!((&*body, trailers), (&b"firstsecond"[..], Some(map(&[("x-sum", "1")]))));
        call.respond.send_response(response(200, &[]), true).unwrap();
        assert_eq!(client.response(false).await.status, 200);
    }
}

#[tokio::test]
async fn early_hints_without_end_fail_the_request_and_nothing_else() {
    let mut service = Http2Service::start().await;
    let stack = start(&service).await;
    let mut client = Connection::open(stack.gateway).await;
    client.send(&stack.post("/none").bytes()).await;
    let mut other = Connection::open(stack.gateway).await;
    let mut call = service.call().await;
    other.send(&stack.post("/none").bytes()).await;
    let mut second = service.call().await;
    for _ in 0..200 {
        let _ = call.respond.send_informational(response(103, &[("link", "</a>")]));
    }
    assert!(client.reads_up_to(b" 502 ").await);
    second.respond.send_response(response(204, &[]), true).unwrap();
    assert_eq!(other.response(false).await.status, 204);
    assert_eq!(service.connections(), 1);
}
