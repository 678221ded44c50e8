//! The call to WeChat: what is sent and how, and every kind of failure.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::harness::{APP, SECRET, Stack, serve_bytes, unused_address};

/// Whatever WeChat does, the client gets the documented response and the code is sent once.
#[tokio::test(flavor = "multi_thread")]
async fn misbehaviour_of_wechat_has_its_response_and_no_code_is_sent_twice() {
    let stack = Stack::start_with(r#"wechat.timeout = "400ms""#).await;
    for (number, (code, status, error, action)) in [
        ("hang-1", 504, "wechat_timeout", "login"),
        ("slow-3s-a", 504, "wechat_timeout", "login"),
        ("drop-1", 504, "wechat_timeout", "login"),
        ("status-500-1", 504, "wechat_timeout", "login"),
        ("garbage-1", 502, "wechat_rejected", "none"),
        ("half-1", 502, "wechat_rejected", "none"),
        ("huge-1", 502, "wechat_rejected", "none"),
        ("status-302-1", 502, "wechat_rejected", "none"),
        ("status-404-1", 502, "wechat_rejected", "none"),
    ]
    .into_iter()
    .enumerate()
    {
        let started = Instant::now();
        let response = stack.try_login(code).await;
        response.assert_error(status, error, action);
        assert_eq!(response.header("retry-after").is_some(), status == 504, "{code}");
        assert!(started.elapsed() < Duration::from_secs(3), "{code}");
        assert_eq!(stack.sandbox.exchanges(), number as u64 + 1, "{code}");
    }
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    let timeouts =
        format!("wxgate_code2session_requests_total{{app_id=\"{APP}\",errcode=\"timeout\"}}");
    assert_eq!(stack.metric(&timeouts).await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_wechat_is_busy_and_may_be_retried() {
    let unused = unused_address().await;
    let stack = Stack::start_with(&format!("wechat.base_url = \"http://{unused}\"")).await;
    let response = stack.try_login("user-a-1").await;
    response.assert_error(503, "wechat_busy", "retry");
    assert!(response.header("retry-after").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_untrusted_certificate_is_rejected() {
    let name = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let wechat = crate::tls::serve_tls(&name).await;
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, other.cert.pem()).unwrap();
    let changes = format!(
        "wechat = {{ base_url = \"https://localhost:{}\", ca_file = \"{}\" }}",
        wechat.port(),
        ca_file.display()
    );
    let stack = Stack::start_with(&changes).await;
    stack.try_login("user-a-1").await.assert_error(502, "wechat_rejected", "none");

    // The same, trusted: the server never responds, so the login times out.
    std::fs::write(&ca_file, name.cert.pem()).unwrap();
    let stack = Stack::start_with(&changes).await;
    stack.try_login("user-a-1").await.assert_error(504, "wechat_timeout", "login");
}

/// The request that WeChat gets is exactly the documented one.
#[tokio::test(flavor = "multi_thread")]
async fn wechat_is_called_as_its_documentation_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    });
    let stack = Stack::start_with(&format!("wechat.base_url = \"http://{address}\"")).await;
    stack.try_login("0a~b.c-d_E").await.assert_error(504, "wechat_timeout", "login");
    let request = asked.await.unwrap();
    let expected = format!(
        "GET /sns/jscode2session?appid={APP}&secret={SECRET}&js_code=0a%7Eb.c-d_E&grant_type=authorization_code HTTP/1.1\r\n"
    );
    assert!(request.starts_with(&expected), "{request}");
    assert!(!request.to_ascii_lowercase().contains("referer"));
}

/// The egress proxy is the configured one; variables of the environment are not used.
#[tokio::test(flavor = "multi_thread")]
async fn wechat_is_reached_through_the_configured_proxy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).await.unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    });
    let changes = format!("wechat = {{ proxy = \"http://{proxy}\" }}");
    let stack = Stack::start_with(&changes).await;
    stack.try_login("user-a-1").await.assert_error(504, "wechat_timeout", "login");
    let line = asked.await.unwrap();
    assert!(line.starts_with(&format!("GET http://{}/sns/", stack.wechat_address)), "{line}");
    assert_eq!(stack.sandbox.exchanges(), 0);
}

/// A malformed response is not taken for a lost one.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_not_http_is_rejected() {
    for nonsense in
        ["NOTHTTP\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"]
    {
        let address = serve_bytes(nonsense.as_bytes()).await;
        let stack = Stack::start_with(&format!("wechat.base_url = \"http://{address}\"")).await;
        stack.try_login("user-a-1").await.assert_error(502, "wechat_rejected", "none");
    }
}
