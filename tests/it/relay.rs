//! Responses of WeChat and of a relay in front of it, and failures of the connections to them.
//!
//! One file, because all tests compare what the process log has about a login.

use std::net::SocketAddr;
use std::time::Duration;

use rcgen::date_time_ymd;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::attack::wechat::{WeChat, ok};
use crate::harness::certificate::Authority;
use crate::harness::client::Response;
use crate::harness::process_log::{logged, logged_after, position};
use crate::harness::{SECRET, Stack, canary, openid, serve_bytes, unused_address};

/// The one error that was logged about a request.
fn error(response: &Response) -> String {
    let lines = logged(response);
    let errors: Vec<_> = lines.iter().filter_map(|line| line["fields"]["error"].as_str()).collect();
    assert_eq!(errors.len(), 1, "{lines:?}");
    errors[0].to_owned()
}

/// A stack whose WeChat replies as the test says.
async fn scripted(changes: &str) -> (Stack, WeChat) {
    let wechat = WeChat::start().await;
    canary::plant(&wechat.session_key);
    let url = format!("wechat.breaker_failures = 0\nwechat.base_url = \"http://{}", wechat.address);
    let stack = Stack::start_with(&format!("{url}\"\n{changes}")).await;
    (stack, wechat)
}

/// A response with a status and header lines, each ended.
fn response(status: &str, lines: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\n{lines}Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// [`ok`], for bytes that may not be valid text.
fn ok_bytes(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let header =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    [header.as_bytes(), body].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_decides_nothing_never_changes_the_outcome() {
    let (stack, wechat) = scripted("").await;
    let deep = format!("{{\"errcode\":40029,\"errmsg\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let rejections: [&[u8]; 27] = [
        br#"{"errcode":40029,"errmsg":0}"#,
        br#"{"errcode":40029,"errmsg":1e999}"#,
        br#"{"errcode":40029,"errmsg":null}"#,
        br#"{"errcode":40029,"errmsg":true}"#,
        br#"{"errcode":40029,"errmsg":["invalid code"]}"#,
        br#"{"errcode":40029,"errmsg":{"zh":"x","openid":"o1"}}"#,
        b"{\"errcode\":40029,\"errmsg\":\"invalid\ncode\"}",
        b"{\"errcode\":40029,\"errmsg\":\"invalid\r\n\tcode\0\x1b\"}",
        b"{\"errcode\":40029,\"errmsg\":{\"a\nb\":[\"c\nd\"]}}",
        // GBK, also with a backslash as the second byte of a character.
        b"{\"errcode\":40029,\"errmsg\":\"\xce\xde\xd0\xa7\xb5\xc4code\"}",
        b"{\"errmsg\":\"\xd5\x5c\",\"errcode\":40029}",
        b"{\"errmsg\":\"\xff\xfe\xc0\x80\",\"errcode\":40029}",
        // UTF-8 that was cut in a character.
        b"{\"errmsg\":\"invalid \xe4\xbd\",\"errcode\":40029}",
        b"{\"errmsg\":\"it\\'s \\x41\",\"errcode\":40029}",
        b"{\"errmsg\":\"C:\\users \\u12\",\"errcode\":40029}",
        b"{\"errmsg\":\"\\u+123 \\u\",\"\\uerrcode\":0,\"errcode\":40029}",
        b"{\"errmsg\":\"\\ud800\",\"\\udfff\":1,\"errcode\":40029}",
        b"\xef\xbb\xbf{\"errcode\":40029,\"errmsg\":\"x\"}",
        b"\r\n\xef\xbb\xbf\xef\xbb\xbf \t{\"errcode\":40029} \r\n\r\n",
        br#"{"errcode":40029,"errmsg":"x","errmsg":"y","trace":1,"trace":2}"#,
        br#"{"errcode":"40029","errmsg":{}}"#,
        br#"{"errcode":40029,"openid":false,"session_key":0,"unionid":[]}"#,
        br#"{"errcode":40029,"openid":null,"session_key":{"x":"y"}}"#,
        br#"{"errcode":40029,"data":"{\"openid\":\"o1\"}"}"#,
        b"{\"errcode\":40029,\"errmsg\":\"\x7f\"}",
        "{\"errcode\":40029,\"errmsg\":\"\u{fffd}\u{2028}无效\"}".as_bytes(),
        deep.as_bytes(),
    ];
    for (number, body) in rejections.into_iter().enumerate() {
        wechat.respond(ok_bytes(body));
        let response = stack.try_login(&format!("code-of-a-bad-status-{number}")).await;
        assert_eq!(response.status, 401, "{}: {}", body.escape_ascii(), response.text());
        response.assert_error(401, "invalid_code", "login");
    }
    let openid = openid("alice");
    for (number, rest) in [
        b"\"errmsg\":0".as_slice(),
        b"\"errmsg\":\"\xce\xde\n\",\"errcode\":0",
        b"\"errcode\":\"0\",\"errmsg\":{\"openid\":\"o2\"}",
        b"\"nick\":\"\xd5\x5c\"",
        b"\"expires_in\":1e999",
    ]
    .into_iter()
    .enumerate()
    {
        let fields = format!("{{\"openid\":\"{openid}\",\"session_key\":\"k==\",");
        wechat.respond(ok_bytes(&[b"\xef\xbb\xbf", fields.as_bytes(), rest, b"}"].concat()));
        let response = stack.try_login(&format!("granted-{number}")).await;
        assert_eq!(response.status, 200, "{}: {}", rest.escape_ascii(), error(&response));
        let token = response.json()["token"].as_str().unwrap().to_owned();
        let received = stack.get("/").token(&token).forwarded().await;
        assert_eq!(received.all("x-openid"), [openid.as_str()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_decides_is_read_strictly_and_a_body_that_is_cut_off_never() {
    let (stack, wechat) = scripted("").await;
    let bodies: [&[u8]; 22] = [
        b"{\"errcode\":40029,\"errmsg\":\"invalid",
        b"{\"errcode\":40029",
        b"{\"errcode\":40029,\"errmsg\":\"x\"} {}",
        b"{\"errcode\":40029,\"errmsg\":\"x\"}x",
        b"\xef\xbb\xbf",
        b"\xff\xfe{\0}\0",
        b"[{\"errcode\":40029}]",
        br#"{"errcode":40029,"errcode":40029}"#,
        br#"{"errcode":40029,"errc\u006fde":0}"#,
        br#"{"errcode":0,"openid":"o1","openid":"o1","session_key":"k"}"#,
        br#"{"errcode":40029,"openid":"o1","openi\u0064":"o1"}"#,
        br#"{"openid":"o1","session_key":"k","unionid":"u1","unionid":"u1"}"#,
        br#"{"openid":"o1","session_key":"k","session_key":"k"}"#,
        b"{\"openid\":\"o\n1\",\"session_key\":\"k\"}",
        b"{\"openid\":\"o1\xce\xde\",\"session_key\":\"k\"}",
        b"{\"openid\":\"o1\",\"session_key\":\"k\xce\xde\"}",
        b"{\"openid\":\"o1\",\"session_key\":\"k\",\"unionid\":\"u\x001\"}",
        br#"{"openid":"o1","session_key":"k","unionid":7}"#,
        br#"{"openid":"o1","session_key":"k","errcode":true}"#,
        br#"{"openid":"o1","session_key":"k","errcode":0.5}"#,
        b"{\"openid\":\"o1\",\"session_key\":\"k\",\"errcode\":\"\n0\"}",
        br#"{"openid":["o1"],"session_key":"k"}"#,
    ];
    for (number, body) in bodies.into_iter().enumerate() {
        wechat.respond(ok_bytes(body));
        let response = stack.try_login(&format!("malformed-{number}")).await;
        assert_eq!(response.status, 502, "{}", body.escape_ascii());
        response.assert_error(502, "wechat_rejected", "none");
    }
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_relay_is_logged_with_its_number_and_address() {
    let (stack, wechat) = scripted("").await;
    let location = "Location: https://elsewhere.invalid/\r\n";
    for (number, status) in
        ["301 Moved Permanently", "302 Found", "403 Forbidden", "404 Not Found", "418 I'm a teapot"]
            .into_iter()
            .enumerate()
    {
        wechat.respond(response(status, location, "<html>no</html>"));
        let response = stack.try_login(&format!("status-{number}")).await;
        response.assert_error(502, "wechat_rejected", "none");
        let error = error(&response);
        let status = format!("HTTP status {}", &status[..3]);
        assert!(error.contains(&status), "{error}");
        assert!(error.contains(&format!("http://{}", wechat.address)), "{error}");
    }
    wechat.respond(response("502 Bad Gateway", "", "{\"errcode\":40029}"));
    let response = stack.try_login("status-502").await;
    response.assert_error(504, "wechat_timeout", "login");
    assert!(error(&response).contains("HTTP status 502"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_429_of_a_relay_is_busy_for_its_retry_after() {
    let (stack, wechat) = scripted("").await;
    let wait = async |number: usize, lines: &str| {
        wechat.respond(response("429 Too Many Requests", lines, "slow down"));
        let response = stack.try_login(&format!("many-{number}")).await;
        response.assert_error(503, "wechat_busy", "retry");
        response.header("retry-after").unwrap().parse::<u32>().unwrap()
    };
    assert!((2..=5).contains(&wait(0, "").await));
    assert!((40..=52).contains(&wait(1, "Retry-After: 40\r\n").await));
    for (number, (value, most)) in
        [("0", 3), ("999999999", 377), ("99999999999999", 5), ("-1", 5), ("soon", 5)]
            .into_iter()
            .enumerate()
    {
        let waits = wait(number + 2, &format!("Retry-After: {value}\r\n")).await;
        assert!((1..=most).contains(&waits), "{value}: {waits}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_errcode_in_the_body_of_a_4xx_counts_and_an_openid_does_not() {
    let (stack, wechat) = scripted("").await;
    for (number, (status, body, expected)) in [
        ("400 Bad Request", r#"{"errcode":40029,"errmsg":0}"#, 401),
        ("401 Unauthorized", r#"{"errcode":"40163"}"#, 401),
        ("403 Forbidden", r#"{"errcode":40226}"#, 403),
        ("404 Not Found", r#"{"errcode":-1}"#, 503),
        ("429 Too Many Requests", r#"{"errcode":40029}"#, 401),
        ("400 Bad Request", r#"{"errcode":40125}"#, 502),
        ("403 Forbidden", r#"{"errcode":0,"openid":"o1","session_key":"k"}"#, 502),
        ("403 Forbidden", r#"{"openid":"o1","session_key":"k"}"#, 502),
        ("403 Forbidden", r#"{"error":"no"}"#, 502),
        ("403 Forbidden", r#"[40029]"#, 502),
        ("301 Moved Permanently", r#"{"errcode":40029}"#, 502),
    ]
    .into_iter()
    .enumerate()
    {
        wechat.respond(response(status, "", body));
        let response = stack.try_login(&format!("reported-{number}")).await;
        assert_eq!(response.status, expected, "{status} {body}: {}", response.text());
    }
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn base_url_may_have_a_path_prefix() {
    let wechat = WeChat::start().await;
    for (number, (suffix, path)) in [
        ("/wxapi", "/wxapi"),
        ("/wxapi/", "/wxapi"),
        ("/", ""),
        ("", ""),
        ("/a/b-c/v1", "/a/b-c/v1"),
    ]
    .into_iter()
    .enumerate()
    {
        let changes = format!("wechat.base_url = \"http://{}{suffix}\"", wechat.address);
        let stack = Stack::start_with(&changes).await;
        let response = stack.try_login(&format!("user-alice-{number}")).await;
        assert_eq!(response.status, 200, "{suffix}");
        let request = wechat.requests().pop().unwrap();
        assert!(request.starts_with(&format!("{path}/sns/jscode2session?appid=")), "{request}");
    }
    // So may the fallback; neither path nor query of the two is logged.
    let nobody = unused_address().await;
    let changes = format!(
        "[wechat]\nbase_url = \"http://{nobody}/path-of-base\"\nfallback_base_url = \"http://{}/path-of-fallback\"",
        wechat.address
    );
    let stack = Stack::start_with(&changes).await;
    let before = position();
    assert_eq!(stack.try_login("user-alice-9").await.status, 200);
    let request = wechat.requests().pop().unwrap();
    assert!(request.starts_with("/path-of-fallback/sns/jscode2session?"), "{request}");
    let lines = logged_after(before, &format!("http://{nobody}"));
    let error = lines[0]["fields"]["error"].as_str().unwrap();
    assert_eq!(error, format!("connection refused (http://{nobody})"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_id_of_any_known_form_is_logged_and_never_a_secret() {
    let (stack, wechat) = scripted("").await;
    for (number, (errmsg, rid)) in [
        ("invalid appid, rid: 608d5803-66b84dfc-00538301", Some("608d5803-66b84dfc-00538301")),
        ("hints: [ req_id: AijFoqaLRa-pTFm4 ]", Some("AijFoqaLRa-pTFm4")),
        ("invalid appid req_id: je7q.a0244th27", Some("je7q.a0244th27")),
        ("invalid appid, hints: [ req_id: je7q.a0244th28. ]", Some("je7q.a0244th28")),
        ("rid:608d5803-66b84dfc-00538303", Some("608d5803-66b84dfc-00538303")),
        ("req_id=a_b.c-d~e12345", None),
        ("grid: 608d5803-66b84dfc-00538304", None),
        ("rid: short", None),
        ("rid: \\\"quoted-text-1\\\"", None),
    ]
    .into_iter()
    .enumerate()
    {
        wechat.respond(ok(&format!("{{\"errcode\":{},\"errmsg\":\"{errmsg}\"}}", 70000 + number)));
        let response = stack.try_login(&format!("traced-{number}")).await;
        response.assert_error(502, "wechat_rejected", "none");
        let lines = logged(&response);
        assert_eq!(lines[0]["fields"]["rid"].as_str(), rid, "{errmsg}");
    }
    // The canary fails this test if one of these is logged.
    for (errcode, errmsg) in [
        (71001, format!("rid: {SECRET}")),
        (71002, "rid: the-code-of-this-test".to_owned()),
        (71003, format!("rid: x-{SECRET}-y")),
        (71005, "rid: the-code-of~".to_owned()),
        (71006, format!("rid: {}", &SECRET[..8])),
    ] {
        wechat.respond(ok(&format!("{{\"errcode\":{errcode},\"errmsg\":\"{errmsg}\"}}")));
        let response = stack.try_login("the-code-of-this-test").await;
        response.assert_error(502, "wechat_rejected", "none");
        let lines = logged(&response);
        assert_eq!((lines.len(), &lines[0]["fields"]["rid"]), (1, &Value::Null));
    }
    // An errmsg that is not text may contain one, too.
    wechat.respond(ok(r#"{"errcode":71004,"errmsg":{"zh":"x\n","rid":"rid: 608d5803.a"}}"#));
    let response = stack.try_login("traced-object").await;
    assert_eq!(logged(&response)[0]["fields"]["rid"], "608d5803.a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wechat_that_cannot_be_reached_is_logged_with_its_address_and_the_cause() {
    let nobody = unused_address().await;
    let proxy = serve_bytes(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
    let closed = serve_bytes(b"").await;
    let forbidding = serve_bytes(b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
    // A listener whose queue is full accepts no connection.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let full = (full.local_addr().unwrap().as_socket().unwrap(), full);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let connecting = tokio::net::TcpStream::connect(full.0);
        waiting.push(tokio::time::timeout(Duration::from_millis(100), connecting).await);
    }
    let long = format!("{}.invalid", "a".repeat(64));
    let quick = "connect_timeout = \"200ms\"";
    let behind = |proxy: &str| format!("proxy = \"http://me:planted-password@{proxy}\"");
    canary::plant("planted-password");
    for (url, rest, expected) in [
        (
            format!("http://{nobody}/secret-path"),
            String::new(),
            format!("connection refused (http://{nobody})"),
        ),
        (
            format!("http://{long}:8080"),
            "allow_plain_http = true".to_owned(),
            format!("DNS lookup failed (http://{long}:8080)"),
        ),
        (
            format!("http://{}", full.0),
            quick.to_owned(),
            format!("timed out connecting (http://{})", full.0),
        ),
        (
            format!("https://{closed}"),
            String::new(),
            format!("connection closed (https://{closed})"),
        ),
        (
            "https://wechat.invalid".to_owned(),
            behind(&nobody.to_string()),
            format!("egress proxy http://{nobody}: connection refused (https://wechat.invalid)"),
        ),
        (
            "https://wechat.invalid".to_owned(),
            behind(&format!("{long}:3128")),
            format!("egress proxy http://{long}:3128: DNS lookup failed (https://wechat.invalid)"),
        ),
        (
            "https://wechat.invalid".to_owned(),
            behind(&proxy.to_string()),
            format!(
                "egress proxy http://{proxy}: wrong or missing user and password \
                 (HTTP status 407) (https://wechat.invalid)"
            ),
        ),
        (
            "https://wechat.invalid".to_owned(),
            behind(&forbidding.to_string()),
            format!(
                "egress proxy http://{forbidding}: no tunnel to WeChat \
                 (https://wechat.invalid)"
            ),
        ),
        (
            "https://wechat.invalid".to_owned(),
            behind(&closed.to_string()),
            format!(
                "egress proxy http://{closed}: no tunnel to WeChat \
                 (https://wechat.invalid)"
            ),
        ),
        (
            "https://wechat.invalid".to_owned(),
            behind(&full.0.to_string()) + "\n" + quick,
            format!(
                "timed out connecting (https://wechat.invalid through egress proxy http://{})",
                full.0
            ),
        ),
    ] {
        let changes = format!("[wechat]\nbase_url = \"{url}\"\n{rest}");
        let stack = Stack::start_with(&changes).await;
        let response = stack.try_login("user-a-1").await;
        response.assert_error(503, "wechat_busy", "retry");
        assert_eq!(error(&response), format!("WeChat cannot be reached: {expected}"));
    }
    drop(waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wechat_that_fails_after_the_code_was_sent_is_logged_with_its_address_and_the_cause() {
    let closed = serve_bytes(b"").await;
    let half = serve_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{").await;
    let other = serve_bytes(b"SSH-2.0-OpenSSH_9.7\r\n").await;
    let forbidding = serve_bytes(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    let stack = Stack::start_with("wechat.timeout = \"300ms\"").await;
    let response = stack.try_login("hang-1").await;
    response.assert_error(504, "wechat_timeout", "login");
    let wechat = stack.wechat_address;
    assert_eq!(
        error(&response),
        format!(
            "WeChat did not respond in time; the call may have succeeded: no response within \
             wechat.timeout (http://{wechat})"
        )
    );
    for (base_url, proxy, status, expected) in [
        (
            closed,
            None,
            504,
            format!(
                "call to WeChat failed, or it succeeded unnoticed: connection closed (http://{closed})"
            ),
        ),
        (
            half,
            None,
            504,
            format!(
                "call to WeChat failed, or it succeeded unnoticed: connection closed (http://{half})"
            ),
        ),
        (other, None, 502, format!("invalid response from WeChat: not HTTP (http://{other})")),
        (
            wechat,
            Some(forbidding),
            502,
            format!(
                "WeChat's address responded with HTTP status 403 (http://{wechat} through egress \
                 proxy http://{forbidding})"
            ),
        ),
    ] {
        let proxy = proxy.map(|proxy| format!("proxy = \"http://me:planted-password@{proxy}\""));
        let proxy = proxy.unwrap_or_default();
        let changes = format!("[wechat]\nbase_url = \"http://{base_url}\"\n{proxy}");
        let stack = Stack::start_with(&changes).await;
        let response = stack.try_login("user-a-1").await;
        assert_eq!(response.status, status, "{}", response.text());
        assert_eq!(error(&response), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_not_accepted_is_logged_with_the_reason() {
    crate::harness::install_provider();
    let (ours, theirs) = (Authority::root("ours"), Authority::root("theirs"));
    let long_ago = |params: &mut rcgen::CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    };
    let to_come = |params: &mut rcgen::CertificateParams| {
        params.not_before = date_time_ymd(4000, 1, 1);
        params.not_after = date_time_ymd(4001, 1, 1);
    };
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, ours.certificate.pem()).unwrap();
    for (issued, expected) in [
        (theirs.issue(&["localhost"]), "unknown issuer"),
        (ours.issue_with(&["localhost"], long_ago), "expired"),
        (ours.issue_with(&["localhost"], to_come), "not valid yet"),
        (ours.issue(&["api.weixin.qq.com"]), "issued for another host name"),
    ] {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(issued.key.serialize_der()));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![issued.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("localhost:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                drop(acceptor.accept(stream).await);
            }
        });
        let changes = format!(
            "[wechat]\nbase_url = \"https://localhost:{port}\"\nca_file = \"{}\"",
            ca_file.display()
        );
        let stack = Stack::start_with(&changes).await;
        let response = stack.try_login("user-a-1").await;
        response.assert_error(502, "wechat_rejected", "none");
        let error = error(&response);
        let begin = format!("WeChat's certificate is not trusted: {expected}");
        assert!(error.starts_with(&begin), "{error}");
        assert!(error.ends_with(&format!("(https://localhost:{port})")), "{error}");
    }
}
