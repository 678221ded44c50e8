//! Which identity headers a service gets, and that a client cannot set them.

use crate::harness::upstream::Reply;
use crate::harness::{APP, Stack, openid};

#[tokio::test(flavor = "multi_thread")]
async fn identity_is_one_line_each_and_unionid_only_where_there_is_one() {
    let stack = Stack::start().await;
    let received = stack.get("/").token(&stack.login("alice").await).forwarded().await;
    assert_eq!(received.folded("x-openid"), [openid("alice")]);
    assert_eq!(received.folded("x-appid"), [APP]);
    assert_eq!(received.folded("x-unionid"), [""; 0]);
    let received = stack.get("/").token(&stack.login("unionbob").await).forwarded().await;
    assert_eq!(
        received.folded("x-unionid"),
        [wxgate::wechat::sandbox::unionid("unionbob").unwrap()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_headers_may_have_other_names() {
    let stack = Stack::start_with(
        r#"
        [identity]
        openid_header = "X-User"
        app_id_header = "X-Mini-Program"
        union_id_header = "X-Person"
        [session]
        header = "X-My-Session"
        "#,
    )
    .await;
    let token = stack.login("alice").await;
    let received = stack
        .get("/")
        .header("X-My-Session", &token)
        .header("X_User", "evil")
        .header("X-OpenId", "free now")
        .forwarded()
        .await;
    assert_eq!(received.folded("x-user"), [openid("alice")]);
    assert_eq!(received.folded("x-mini-program"), [APP]);
    assert_eq!(received.folded("x-my-session"), [""; 0]);
    assert_eq!(received.folded("x-openid"), ["free now"]);
}

/// What `Connection` names is removed; identity is written after that.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_header_cannot_remove_identity() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    for nominated in ["X-OpenId", "close, x-openid", "keep-alive,X-OpenId", "X-Request-Id"] {
        let request = stack.get("/").token(&token).header("Connection", nominated);
        let received = request.header("X-OpenId", "evil").forwarded().await;
        assert_eq!(received.folded("x-openid"), [openid("alice")], "{nominated}");
        assert_eq!(received.all("x-request-id").len(), 1);
    }
    for nominated in ["Transfer-Encoding", "Content-Length"] {
        let request = stack.post("/").token(&token).header("Connection", nominated).body("abc");
        let response = request.send().await;
        if response.status == 200 {
            assert_eq!(stack.upstream.requests().last().unwrap().body, b"abc", "{nominated}");
        } else {
            response.assert_error(400, "bad_request", "none");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn identity_does_not_stick_to_a_connection() {
    let stack = Stack::start().await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let mut connection = crate::harness::client::Connection::open(stack.gateway).await;
    for (token, user) in
        [(Some(&alice), "alice"), (Some(&bob), "bob"), (None, ""), (Some(&alice), "alice")]
    {
        let request = stack.get("/optional");
        let request = match token {
            Some(token) => request.token(token),
            None => request,
        };
        connection.send(&request.bytes()).await;
        assert_eq!(connection.response(false).await.status, 200);
        let received = stack.upstream.requests();
        let expected: Vec<String> = token.map(|_| openid(user)).into_iter().collect();
        assert_eq!(received.last().unwrap().folded("x-openid"), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_cannot_show_identity_or_the_gateways_marks_to_the_client() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    stack.upstream.reply(|_| {
        Reply::ok(
            "X-OpenId: o\r\nX_UnionId: u\r\nX-3rd-Session: t\r\nX-Wxgate-Error: fake\r\nX-Request-Id: fake\r\nX-Own: kept\r\n",
            "hello",
        )
    });
    let response = stack.get("/").token(&token).send().await;
    for name in ["x-openid", "x_unionid", "x-3rd-session", "x-wxgate-error"] {
        assert_eq!(response.header(name), None, "{name}");
    }
    assert_eq!(response.header("x-own"), Some("kept"));
    let received = stack.upstream.requests();
    assert_eq!(response.header("x-request-id"), Some(received[0].all("x-request-id")[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarding_headers_are_the_gateways_own_from_a_stranger() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    let received = stack
        .get("/")
        .token(&token)
        .header("X-Forwarded-For", "6.6.6.6")
        .header("X_Forwarded_For", "6.6.6.6")
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-Host", "evil.test")
        .header("X-Forwarded-Port", "1")
        .header("X_Forwarded-Prefix", "/evil")
        .header("Forwarded", "for=6.6.6.6")
        .header("X-Real-IP", "6.6.6.6")
        .header("X-Request-Id", "chosen")
        .header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .forwarded()
        .await;
    assert_eq!(received.folded("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(received.folded("x-forwarded-proto"), ["http"]);
    assert_eq!(received.folded("x-forwarded-host"), ["gateway.test"]);
    assert_eq!(received.folded("x-real-ip"), ["127.0.0.1"]);
    for name in ["x-forwarded-port", "x-forwarded-prefix", "forwarded"] {
        assert_eq!(received.folded(name), [""; 0], "{name}");
    }
    assert_ne!(received.folded("x-request-id"), ["chosen"]);
    assert_eq!(received.folded("x-request-id").len(), 1);
    assert_eq!(received.all("traceparent").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxys_word_counts() {
    let stack = Stack::start_with(r#"server.trusted_proxies = ["127.0.0.0/8"]"#).await;
    let token = stack.login("alice").await;
    let received = stack
        .get("/")
        .token(&token)
        .header("X-Forwarded-For", "6.6.6.6, 198.51.100.7")
        .header("X-Forwarded-Proto", "https")
        .header("X-Forwarded-Host", "shop.test")
        .header("X-Forwarded-Port", "443")
        .header("X-Request-Id", "from-the-proxy")
        .forwarded()
        .await;
    assert_eq!(received.folded("x-forwarded-for"), ["6.6.6.6, 198.51.100.7, 127.0.0.1"]);
    assert_eq!(received.folded("x-real-ip"), ["198.51.100.7"]);
    assert_eq!(received.folded("x-forwarded-proto"), ["https"]);
    assert_eq!(received.folded("x-forwarded-host"), ["shop.test"]);
    assert_eq!(received.folded("x-forwarded-port"), ["443"]);
    assert_eq!(received.folded("x-request-id"), ["from-the-proxy"]);
}
