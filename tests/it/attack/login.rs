//! Malicious logins of clients, and malicious responses of WeChat.

use serde_json::json;

use super::siege::{Attack, Must, Siege};
use super::wechat;

fn post(lines: &str, body: &[u8]) -> Vec<u8> {
    let header =
        format!("POST /login HTTP/1.1\r\nHost: h\r\n{lines}Content-Length: {}\r\n\r\n", body.len());
    [header.as_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_login_never_reaches_wechat() {
    let mut siege = Siege::start().await;
    let requests = siege.wechat.requests().len();
    let deep = "[".repeat(10_000);
    let nested = format!("{{\"code\":{}", "{\"code\":".repeat(2000));
    let long = format!("{{\"code\":\"{}\"}}", "a".repeat(1 << 20));
    let huge = vec![b' '; 10 << 20];
    let utf16: Vec<u8> =
        "{\"code\":\"user-x-1\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let bodies: [&[u8]; 40] = [
        b"",
        b"\0",
        b"null",
        b"true",
        b"{",
        b"{}",
        b"[]",
        b"\"user-x-1\"",
        b"user-x-1",
        b"[{\"code\":\"user-x-1\"}]",
        b"{\"code\":1}",
        b"{\"code\":null}",
        b"{\"code\":true}",
        b"{\"code\":[\"user-x-1\"]}",
        b"{\"code\":{\"code\":\"user-x-1\"}}",
        b"{\"code\":\"user-x-1\",\"code\":\"user-y-1\"}",
        b"{\"code\":\"user-x-1\",\"c\\u006fde\":\"user-y-1\"}",
        b"{\"Code\":\"user-x-1\"}",
        b"{\"code\":\"user-x-1\"}{\"code\":\"user-y-1\"}",
        b"{\"code\":\"user-x-1\"} x",
        b"{\"code\":\"user-x-1\"",
        b"{\"code\":\"user-x-1&appid=evil&secret=evil\"}",
        b"{\"code\":\"user-x-1%26secret=evil\"}",
        b"{\"code\":\"user-x-1#x\"}",
        b"{\"code\":\"user-x-1?x\"}",
        b"{\"code\":\"user-x-1 x\"}",
        b"{\"code\":\"user-x-1+x\"}",
        b"{\"code\":\"user-x-1\\r\\nX: y\"}",
        b"{\"code\":\"user-x-1\\u0000\"}",
        b"{\"code\":\"../user-x-1\"}",
        b"{\"code\":\"\\ud800\"}",
        "{\"code\":\"user-\u{4f60}-1\"}".as_bytes(),
        b"{\"code\":\"user-x-1\xff\"}",
        b"{\"code\":\"user-x-1\",\"app_id\":\"evil\"}",
        b"{\"code\":\"user-x-1\",\"app_id\":1}",
        &utf16,
        deep.as_bytes(),
        nested.as_bytes(),
        long.as_bytes(),
        &huge,
    ];
    for body in bodies {
        let outcome = siege.run(&Attack::new(post("", body), Must::Rejected)).await;
        let status = outcome.responses[0].status;
        assert!(matches!(status, 400 | 413), "{status}");
    }
    for (content_type, body) in [
        ("application/x-www-form-urlencoded", "code=user-x-1&code=user-y-1"),
        ("application/x-www-form-urlencoded", "code=user-x-1%26secret%3Devil"),
        ("application/x-www-form-urlencoded", "code="),
        ("application/x-www-form-urlencoded", "{\"code\":\"user-x-1\"}"),
        ("application/x-www-form-urlencoded", "code=user-x-1&app_id=evil"),
        ("application/x-www-form-urlencoded", "code=user-x-1;secret=evil"),
        ("multipart/form-data; boundary=x", "--x\r\n\r\ncode=user-x-1"),
        ("application/xml", "<code>user-x-1</code>"),
        ("application/jsonp", "{\"code\":\"user-x-1\"}"),
        ("application/json/x", "{\"code\":\"user-x-1\"}"),
        ("text/html", "{\"code\":\"user-x-1\"}"),
        ("application/json\r\nContent-Type: text/plain", "{\"code\":\"user-x-1\"}"),
    ] {
        let lines = format!("Content-Type: {content_type}\r\n");
        let request = post(&lines, body.as_bytes());
        let outcome = siege.run(&Attack::new(request, Must::Rejected)).await;
        outcome.responses[0].assert_error(400, "bad_request", "none");
    }
    for method in ["GET", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let request = format!("{method} /login?code=user-x-1 HTTP/1.1\r\nHost: h\r\n\r\n");
        let outcome = siege.run(&Attack::new(request, Must::Rejected)).await;
        outcome.responses[0].assert_error(405, "method_not_allowed", "none");
    }
    assert_eq!(siege.wechat.requests().len(), requests);
}

/// WeChat gets one code, of the requested app, and the client gets only a token.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_shows_wechat_and_the_client_no_more_than_needed() {
    let mut siege = Siege::start().await;
    for extra in [
        "",
        ",\"appid\":\"evil\",\"secret\":\"evil\",\"grant_type\":\"evil\",\"js_code\":\"evil\"",
        ",\"openid\":\"evil\",\"session_key\":\"evil\",\"unionid\":\"evil\"",
        ",\"app_id\":null,\"redirect\":\"//evil\",\"callback\":\"evil\"",
    ] {
        let code = siege.code_of("mallory");
        let body = format!("{{\"code\":\"{code}\"{extra}}}");
        let outcome = siege.run(&Attack::new(post("", body.as_bytes()), Must::Harmless)).await;
        let response = &outcome.responses[0];
        if response.status != 200 {
            assert_eq!(response.status, 400, "{extra}");
            continue;
        }
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.header("location"), None);
        assert_eq!(response.json().as_object().unwrap().len(), 3, "{}", response.text());
        siege.secrets.push(response.json()["token"].as_str().unwrap().to_owned());
        let requests = siege.wechat.requests().pop().unwrap();
        assert!(!requests.contains("evil"), "{requests}");
        assert_eq!(requests.matches("js_code=").count(), 1);
        assert_eq!(requests.matches('&').count(), 3, "{requests}");
    }
}

/// Ids of WeChat are validated before they become header values.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_response_of_wechat_creates_no_session() {
    let mut siege = Siege::start().await;
    let key = siege.wechat.session_key.clone();
    let grant = |openid: serde_json::Value| {
        wechat::ok(&json!({ "openid": openid, "session_key": key }).to_string())
    };
    let union = |unionid: serde_json::Value| {
        let fields = json!({ "openid": "o1234567", "session_key": key, "unionid": unionid });
        wechat::ok(&fields.to_string())
    };
    let large = wechat::ok(&" ".repeat(1 << 20));
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(2 << 20)).into_bytes();
    let error = format!("{{\"errcode\":40029,\"errmsg\":\"{key}\"}}");
    for (number, response) in [
        grant(json!("o\r\nX-Admin: 1")),
        grant(json!("o\nX-OpenId: evil")),
        grant(json!("o\u{0}")),
        grant(json!("o e")),
        grant(json!("")),
        grant(json!(null)),
        grant(json!(1)),
        grant(json!(["o1234567"])),
        grant(json!("o".repeat(10 << 10))),
        grant(json!("o\u{4f60}")),
        grant(json!("o,evil")),
        union(json!("u\r\nX-OpenId: evil")),
        union(json!("u\u{0}")),
        union(json!("u".repeat(10 << 10))),
        union(json!(7)),
        wechat::ok(""),
        wechat::ok("{}"),
        wechat::ok("[]"),
        wechat::ok("null"),
        wechat::ok("{\"openid\":\"o1234567\""),
        wechat::ok(&format!("{{\"session_key\":\"{key}\"}}")),
        wechat::ok(&error),
        wechat::ok("{\"errcode\":\"40029\"}"),
        wechat::ok("{\"errcode\":40029,\"openid\":\"o1234567\"}"),
        wechat::ok("{\"errcode\":9223372036854775808}"),
        wechat::ok(&format!("<html>{key}</html>")),
        large,
        endless,
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
            .to_vec(),
        b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x08"
            .to_vec(),
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"openid\"".to_vec(),
        b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000),
        b"\0\0\0".to_vec(),
        b"".to_vec(),
    ]
    .into_iter()
    .enumerate()
    {
        siege.wechat.respond(response.clone());
        let code = siege.code_of("mallory");
        let body = format!("{{\"code\":\"{code}\"}}");
        let outcome = siege.run(&Attack::new(post("", body.as_bytes()), Must::Harmless)).await;
        let rejected = &outcome.responses[0];
        assert!(rejected.status >= 400, "{number}: {}", rejected.text());
        rejected.assert_error(
            rejected.status,
            rejected.header("x-wxgate-error").unwrap(),
            rejected.json()["action"].as_str().unwrap(),
        );
        assert!(outcome.received.is_empty());
    }
    assert_eq!(siege.stack.metric("wxgate_sessions_created_total").await, 2.0);
    siege.wechat.behave();
    siege.token_of("mallory").await;
}

/// However often a code is sent at once, it creates one session.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_replayed_at_once_is_worth_one_session() {
    let mut siege = Siege::start().await;
    let code = siege.code_of("mallory");
    let body = format!("{{\"code\":\"{code}\"}}");
    let before = siege.stack.metric("wxgate_sessions_created_total").await;
    let request = String::from_utf8(post("", body.as_bytes())).unwrap();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let mut wire = siege.connect(&["http/1.1"]).await;
        let request = request.replace("Host: h", "Host: h\r\nConnection: close");
        asking.spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            wire.write_all(request.as_bytes()).await.unwrap();
            let mut response = String::new();
            wire.read_to_string(&mut response).await.unwrap();
            assert!(response.starts_with("HTTP/1.1 200"), "{response}");
            response.split("\r\n\r\n").nth(1).unwrap().to_owned()
        });
    }
    let responses = asking.join_all().await;
    assert!(responses.iter().all(|response| *response == responses[0]), "{responses:?}");
    assert_eq!(siege.stack.metric("wxgate_sessions_created_total").await, before + 1.0);
    siege.hold("replays").await;
}
