//! What clients and services try in order to get, plant or overfill cookies.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{assert_unseen, cookies, echo, sent, set, start};
use crate::harness::upstream::Reply;
use crate::harness::{OPERATOR, Stack, openid};

#[tokio::test(flavor = "multi_thread")]
async fn no_request_gets_the_cookies_of_another_user_or_session() {
    let stack = start("").await;
    let alice = stack.login("alice").await;
    set(&stack, "/", &alice, &["sid=of-alice"]).await;
    let bob = stack.login("bob").await;
    let second = stack.login("alice").await;
    for token in [&bob, &second] {
        assert_eq!(sent(&stack, "/", token).await, "");
    }
    // Not with two tokens, nor with an identity that a client invents, nor without a session.
    let both = stack.get("/").token(&bob).bearer(&alice).send().await;
    both.assert_error(400, "bad_request", "none");
    let request = stack.get("/").token(&bob).header("X-OpenId", &openid("alice"));
    assert_eq!(cookies(request).await, "");
    assert_eq!(sent(&stack, "/none", &alice).await, "");
    assert_eq!(cookies(stack.get("/optional")).await, "");
    assert_eq!(sent(&stack, "/", &alice).await, "sid=of-alice");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_logout_and_a_login_the_jar_is_empty() {
    let stack = start("admin.token = { file = \"{dir}/operator\" }").await;
    for ends_it in ["client", "operator"] {
        let token = stack.login("alice").await;
        set(&stack, "/", &token, &["sid=one"]).await;
        // A response that is under way when the session ends.
        let (arrived, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (seen, waits) = (arrived.clone(), go_on.clone());
        stack.upstream.reply(move |_| {
            seen.notify_one();
            let late = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: sid=late\r\n\r\n";
            Reply::When(waits.clone(), late.into())
        });
        let late = stack.get("/").token(&token).send();
        let ending = async {
            arrived.notified().await;
            if ends_it == "client" {
                assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
            } else {
                let path = format!("/sessions?openid={}", openid("alice"));
                let request = stack.request("DELETE", &path).bearer(OPERATOR);
                assert_eq!(request.send_to_admin().await.status, 204);
            }
            go_on.notify_one();
        };
        let (response, ()) = tokio::join!(late, ending);
        assert_eq!(response.status, 200);
        assert_unseen(&response);
        echo(&stack.upstream);
        stack.get("/").token(&token).send().await.assert_error(401, "session_expired", "login");
        let token = stack.login("alice").await;
        assert_eq!(sent(&stack, "/", &token).await, "", "{ends_it}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_sets_ten_thousand_cookies_fills_one_jar_only() {
    let stack = start("").await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    set(&stack, "/", &bob, &["sid=of-bob"]).await;
    for batch in 0..50 {
        stack.upstream.reply(move |_| {
            let lines = (0..200).map(|number| {
                let number = batch * 200 + number;
                format!("Set-Cookie: cookie-{number}={}\r\n", "x".repeat(100))
            });
            Reply::ok(&lines.collect::<String>(), "")
        });
        let response = stack.get("/").token(&alice).send().await;
        assert_eq!(response.status, 200);
        assert_unseen(&response);
    }
    echo(&stack.upstream);
    let line = sent(&stack, "/", &alice).await;
    assert!((6000..=9000).contains(&line.len()), "{}", line.len());
    assert!(line.ends_with(&format!("cookie-9999={}", "x".repeat(100))));
    assert!(!line.contains("cookie-9900="));
    assert_eq!(sent(&stack, "/", &bob).await, "sid=of-bob");
    // One that is too long changes nothing.
    let long = format!("long={}", "x".repeat(4096));
    set(&stack, "/", &bob, &[&long]).await;
    assert_eq!(sent(&stack, "/", &bob).await, "sid=of-bob");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateways_own_cookies_are_neither_kept_nor_sent() {
    let browser = "[[browser]]\nbase_url = \"http://127.0.0.1:8080\"\n";
    let stack = start(browser).await;
    let token = stack.login("alice").await;
    let names = ["wxgate", "wxgate-abc", " wxgate ", "wxgate\t", "wxgate-scan"];
    let lines = names.map(|name| format!("{name}=evil; Path=/"));
    let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    lines.push("WxGate=other");
    set(&stack, "/", &token, &lines).await;
    let request = stack.get("/").token(&token).header("Cookie", "wxgate-x=1; a=1; wxgate=y");
    assert_eq!(cookies(request).await, "WxGate=other; a=1");
    let request = stack.get("/optional").header("Cookie", "wxgate-x=1; a=1");
    assert_eq!(cookies(request).await, "a=1");
}

/// The cookies that such a response has set, and its status.
async fn after(stack: &Stack, token: &str, line: &[u8]) -> (u16, String) {
    let reply = [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nSet-Cookie: ", line, b"\r\n\r\n"];
    let reply = reply.concat();
    stack.upstream.reply(move |_| Reply::Bytes(reply.clone()));
    let response = stack.get("/").token(token).send().await;
    assert_unseen(&response);
    echo(&stack.upstream);
    (response.status, sent(stack, "/", token).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_could_split_a_header_are_never_kept() {
    let stack = start("").await;
    let token = stack.login("alice").await;
    set(&stack, "/", &token, &["sid=one"]).await;
    for line in [
        &b"a=b\rX-OpenId: evil"[..],
        b"a=b\nX-OpenId: evil",
        b"a=b\0c",
        b"a\x01=b",
        b"a=b; Path=/\x7f",
        b"a=b\r\n X-OpenId: evil",
    ] {
        let (status, cookies) = after(&stack, &token, line).await;
        assert_eq!((status, &*cookies), (502, "sid=one"), "{line:?}");
    }
    for (line, expected) in [
        // Two cookies in a value are one pair for the jar.
        (&b"a=b, c=d; Path=/"[..], "sid=one; a=b, c=d"),
        (b"a=%0d%0aX-OpenId: evil", "sid=one; a=%0d%0aX-OpenId: evil"),
        (b"=b", "sid=one; a=%0d%0aX-OpenId: evil"),
        (b"a=; Expires=0; Max-Age=-5", "sid=one"),
        (b"__Host-sid=1; Path=/", "sid=one"),
        (b"__Secure-sid=1", "sid=one"),
    ] {
        assert_eq!(after(&stack, &token, line).await, (200, expected.to_owned()), "{line:?}");
    }
    // Old services write in GBK.
    let (status, _) = after(&stack, &token, b"name=\xd6\xd0").await;
    assert_eq!(status, 200);
}
