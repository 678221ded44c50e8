//! Sessions in cookies: which requests they authenticate, and which cookies are forwarded.

use std::time::Duration;

use super::start;
use crate::harness::browser::{Browser, COOKIE, DESKTOP, WECHAT, config};
use crate::harness::upstream::Reply;
use crate::harness::{Stack, openid};

/// The only `Set-Cookie` removes the session cookie, and no cache keeps the response.
#[track_caller]
fn assert_cleared(response: &crate::harness::client::Response) {
    let expected = format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age=0");
    assert_eq!(response.all("set-cookie"), [expected.as_str()], "{response:?}");
    assert_eq!(response.header("cache-control"), Some("no-store"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_authenticates_on_its_host_alone_and_is_never_forwarded() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    let token = browser.log_in(&stack, "alice").await;
    browser.cookies.insert("theme".to_owned(), "dark".to_owned());
    let cookies = [
        (format!("{COOKIE}={token}"), vec![]),
        (format!("a=1; {COOKIE}={token}; b=\"2 3\""), vec!["a=1; b=\"2 3\""]),
        (format!("a=1;{COOKIE}={token};b"), vec!["a=1;b"]),
        (format!("{COOKIE}={token}; {COOKIE}={token}"), vec![]),
        (format!("{COOKIE}-scan=x; x=y; {COOKIE}-abc={token}; {COOKIE}={token}"), vec!["x=y"]),
    ];
    for (cookie, forwarded) in &cookies {
        for path in ["/h5", "/api", "/optional", "/none"] {
            let received = stack.get(path).header("Cookie", cookie).forwarded().await;
            assert_eq!(received.all("cookie"), *forwarded, "{path} {cookie}");
            let has_identity = path != "/none";
            assert_eq!(received.all("x-openid").len(), usize::from(has_identity), "{path}");
        }
    }
    // In two lines.
    let request = stack.get("/api").header("Cookie", "a=1").header("cookie", &cookies[0].0);
    assert_eq!(request.forwarded().await.all("cookie"), ["a=1"]);
    // On another host it counts as none, and is removed all the same.
    for host in ["other.test", "gateway.test.evil.test", "gateway.test:8443", "api.gateway.test"] {
        let elsewhere = Browser { host, cookies: browser.cookies.clone(), agent: DESKTOP };
        let response = elsewhere.request(&stack, "GET", "/api").send().await;
        response.assert_error(401, "missing_token", "login");
        assert!(response.all("set-cookie").is_empty());
        let received = elsewhere.request(&stack, "GET", "/optional").forwarded().await;
        assert!(received.all("x-openid").is_empty());
        assert_eq!(received.all("cookie"), ["theme=dark"]);
    }
    for host in ["GATEWAY.test", "gateway.test:443"] {
        let same = Browser { host, cookies: browser.cookies.clone(), agent: DESKTOP };
        assert_eq!(same.request(&stack, "GET", "/api").send().await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_header_takes_precedence_over_the_cookie() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    browser.log_in(&stack, "alice").await;
    let bob = stack.login("bob").await;
    let with = |name, value: &str| browser.request(&stack, "POST", "/api").header(name, value);
    for request in [with("X-3rd-Session", &bob), with("Authorization", &format!("Bearer {bob}"))] {
        // It comes by no cookie, so it may come from any site.
        let request = request.header("Sec-Fetch-Site", "cross-site");
        let received = request.forwarded().await;
        assert_eq!(received.all("x-openid"), [openid("bob")]);
        assert!(received.all("cookie").is_empty());
    }
    for bad in ["short", &"A".repeat(43)] {
        let response = with("X-3rd-Session", bad).send().await;
        response.assert_error(401, "session_expired", "login");
        assert!(response.all("set-cookie").is_empty(), "the cookie was not read");
    }
    let own = browser.fetch(&stack, "GET", "/api").header("Authorization", "Basic eA==");
    let received = own.header("X-3rd-Session", "").forwarded().await;
    assert_eq!(received.all("x-openid").len(), 1, "none of these is a token");
    assert_eq!(received.all("authorization"), ["Basic eA=="]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_that_has_ended_counts_as_none_and_is_removed() {
    let stack = start().await;
    let mut browser = Browser::new(WECHAT);
    let token = browser.log_in(&stack, "alice").await;
    for bad in ["", "x", &"A".repeat(43), &format!("{token}A"), &format!("\"{token}\"")] {
        browser.cookies.insert(COOKIE.to_owned(), bad.to_owned());
        let response = browser.fetch(&stack, "GET", "/api").send().await;
        response_is_missing(&response);
        assert_cleared(&response);
        let response = browser.fetch(&stack, "POST", "/optional").send().await;
        assert_eq!(response.status, 200);
        assert_cleared(&response);
        let redirect = browser.open(&stack, "/h5").await;
        assert_eq!(redirect.status, 302);
        let set = redirect.all("set-cookie");
        assert!(set.iter().any(|line| line.starts_with(&format!("{COOKIE}=; "))), "{set:?}");
        let none = browser.fetch(&stack, "GET", "/none").send().await;
        assert!(none.all("set-cookie").is_empty(), "no session is looked up");
    }
    // What the service says about caches does not matter then.
    stack.upstream.reply(|_| Reply::ok("Cache-Control: public, max-age=60\r\n", ""));
    let stale = format!("{COOKIE}={}", "A".repeat(43));
    let response = stack.get("/optional").header("Cookie", &stale).send().await;
    assert_cleared(&response);
    // A conflict is rejected.
    let two = format!("{COOKIE}={token}; {COOKIE}={}", "A".repeat(43));
    for path in ["/api", "/optional", "/h5"] {
        let response = stack.get(path).header("Cookie", &two).send().await;
        response.assert_error(400, "bad_request", "none");
    }
    stack.clock.advance(Duration::from_secs(3 * 3600));
    let expired = stack.get("/api").header("Cookie", &format!("{COOKIE}={token}")).send().await;
    assert_cleared(&expired);
}

#[track_caller]
fn response_is_missing(response: &crate::harness::client::Response) {
    assert_eq!(response.status, 401, "{}", response.text());
    assert_eq!(response.header("x-wxgate-error"), Some("missing_token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_by_cookie_that_may_change_something_must_come_from_its_site() {
    let cors = r#"[[route]]
        path = "/cors"
        upstream = "recorder"
        cors = { origins = ["https://app.test"], credentials = true }
        [[route]]
        path = "/cors-without"
        upstream = "recorder"
        cors = { origins = ["https://app.test"] }
    "#;
    let stack = Stack::start_with(&config("", cors)).await;
    let mut browser = Browser::new(DESKTOP);
    let token = browser.log_in(&stack, "alice").await;
    let cookie = format!("{COOKIE}={token}");
    let (site, origin) = ("Sec-Fetch-Site", "Origin");
    let own = (origin, "https://gateway.test");
    let app = (origin, "https://app.test");
    let send = async |method: &str, path: &str, lines: &[(&str, &str)]| {
        let mut request = stack.request(method, path).header("Cookie", &cookie);
        for (name, value) in lines {
            request = request.header(name, value);
        }
        request.send().await
    };
    for method in ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"] {
        for lines in [
            &[(site, "same-origin")][..],
            &[(site, "none")],
            &[own],
            &[(site, "same-origin"), (origin, "https://evil.test")],
        ] {
            assert_eq!(send(method, "/api", lines).await.status, 200, "{method} {lines:?}");
        }
        for lines in [
            &[][..],
            &[(site, "cross-site")],
            &[(site, "same-site"), own],
            &[(site, "cross-site"), own],
            &[(site, "")],
            &[(site, "same-origin"), (site, "cross-site")],
            &[(site, "Same-Origin")],
            &[(origin, "null")],
            &[(origin, "http://gateway.test")],
            &[(origin, "https://gateway.test:8443")],
            &[(origin, "https://gateway.test.evil.test")],
            &[(origin, "https://evil.test")],
            &[own, (origin, "https://evil.test")],
            &[own, own],
            &[app],
        ] {
            let response = send(method, "/api", lines).await;
            response.assert_error(403, "cross_site", "none");
        }
    }
    for (path, lines, status) in [
        ("/cors", &[app][..], 200),
        ("/cors", &[app, (site, "cross-site")], 200),
        ("/cors", &[app, app], 403),
        ("/cors", &[(origin, "https://evil.test")], 403),
        ("/cors-without", &[app], 403),
    ] {
        assert_eq!(send("POST", path, lines).await.status, status, "{path} {lines:?}");
    }
    for method in ["GET", "HEAD", "OPTIONS"] {
        let response = send(method, "/none", &[(site, "cross-site")]).await;
        assert_eq!(response.status, 200, "{method}");
    }
    for (lines, status) in [(&[(site, "cross-site")][..], 200), (&[], 200)] {
        assert_eq!(send("GET", "/api", lines).await.status, status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_by_cookie_must_come_from_its_site() {
    let stack = start().await;
    let mut browser = Browser::new(DESKTOP);
    browser.log_in(&stack, "alice").await;
    let handshake = |lines: &[(&str, &str)]| {
        let mut request = browser.request(&stack, "GET", "/api");
        for (name, value) in [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        .iter()
        .chain(lines)
        {
            request = request.header(name, value);
        }
        request
    };
    for lines in [&[][..], &[("Origin", "https://evil.test")], &[("Sec-Fetch-Site", "same-site")]] {
        handshake(lines).send().await.assert_error(403, "cross_site", "none");
    }
    let own = [("Origin", "https://gateway.test")];
    // The recorder does not upgrade.
    let received = handshake(&own).forwarded().await;
    assert_eq!(received.all("x-openid").len(), 1);
    assert!(received.all("cookie").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_by_cookie_ends_the_session_and_removes_the_cookie() {
    let stack = start().await;
    let mut browser = Browser::new(DESKTOP);
    browser.log_in(&stack, "alice").await;
    let cross = browser.request(&stack, "POST", "/logout").header("Sec-Fetch-Site", "cross-site");
    cross.send().await.assert_error(403, "cross_site", "none");
    assert_eq!(browser.fetch(&stack, "GET", "/api").send().await.status, 200);
    // With a token in a header, the cookie is not read.
    let bob = stack.login("bob").await;
    let response = browser.request(&stack, "POST", "/logout").token(&bob).send().await;
    assert_eq!((response.status, response.all("set-cookie").len()), (204, 0));
    assert_eq!(browser.fetch(&stack, "GET", "/api").send().await.status, 200);

    let response = browser.fetch(&stack, "POST", "/logout").send().await;
    assert_eq!(response.status, 204);
    assert_cleared(&response);
    response_is_missing(&browser.fetch(&stack, "GET", "/api").send().await);
    let again = browser.fetch(&stack, "POST", "/logout").send().await;
    assert_eq!(again.status, 204);
    let none = Browser::new(DESKTOP).request(&stack, "POST", "/logout").send().await;
    assert_eq!((none.status, none.all("set-cookie").len()), (204, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_cannot_set_the_gateways_cookies() {
    let stack = start().await;
    let token = stack.login("alice").await;
    stack.upstream.reply(|_| {
        Reply::ok(
            "Set-Cookie: __Host-wxgate=evil; Path=/; Secure\r\nSet-Cookie: a=1; Path=/\r\n\
             set-cookie:  __Host-wxgate-scan = x\r\nSet-Cookie: __Host-wxgatex=2\r\n\
             Set-Cookie: =__Host-wxgate=evil; Path=/\r\n",
            "",
        )
    });
    for path in ["/api", "/optional", "/none"] {
        let response = stack.get(path).token(&token).send().await;
        assert_eq!(response.all("set-cookie"), ["a=1; Path=/", "__Host-wxgatex=2"], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_reads_the_cookie_and_never_redirects() {
    let stack = Stack::start_with(&config(
        "server.trusted_proxies = [\"127.0.0.1\"]\nforward_auth.listen = \"127.0.0.1:0\"\n",
        "",
    ))
    .await;
    let mut browser = Browser::new(DESKTOP);
    let token = browser.log_in(&stack, "alice").await;
    let decide = async |host: &str, method: &str, cookie: &str, site: &str| {
        let text = format!(
            "GET /auth HTTP/1.1\r\nHost: wxgate\r\nX-Forwarded-Method: {method}\r\n\
             X-Forwarded-Uri: /h5\r\nX-Forwarded-Host: {host}\r\nAccept: text/html\r\n\
             Cookie: {cookie}\r\nSec-Fetch-Site: {site}\r\nConnection: close\r\n\r\n"
        );
        let mut connection =
            crate::harness::client::Connection::open(stack.forward_auth.unwrap()).await;
        connection.send(text.as_bytes()).await;
        connection.response(false).await
    };
    let cookie = format!("{COOKIE}={token}");
    let ok = decide("gateway.test", "GET", &cookie, "none").await;
    assert_eq!(ok.status, 200, "{}", ok.text());
    // The proxy keeps `Upgrade` for itself.
    for (site, status) in [("same-site", 403), ("same-origin", 200)] {
        let site = format!("{site}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(decide("gateway.test", "GET", &cookie, &site).await.status, status, "{site}");
    }
    assert!(ok.header("x-openid").is_some_and(|openid| !openid.is_empty()));
    let cross = decide("gateway.test", "POST", &cookie, "cross-site").await;
    cross.assert_error(403, "cross_site", "none");
    let missing = decide("gateway.test", "GET", "a=1", "none").await;
    response_is_missing(&missing);
    assert_eq!(missing.json()["login_url"], "https://gateway.test/login/start");
    let other = decide("other.test", "GET", &cookie, "none").await;
    other.assert_error(401, "missing_token", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cached_decision_is_not_for_a_request_of_another_site() {
    let changes = "server.trusted_proxies = [\"127.0.0.1\"]\nforward_auth.cache = \"10s\"\n\
                   forward_auth.listen = \"127.0.0.1:0\"\n";
    let stack = Stack::start_with(&config(changes, "")).await;
    let token = Browser::new(DESKTOP).log_in(&stack, "alice").await;
    let text = format!(
        "GET /auth HTTP/1.1\r\nHost: wxgate\r\nX-Forwarded-Method: POST\r\n\
         X-Forwarded-Uri: /h5\r\nX-Forwarded-Host: gateway.test\r\nCookie: {COOKIE}={token}\r\n\
         Sec-Fetch-Site: same-origin\r\nConnection: close\r\n\r\n"
    );
    let mut connection =
        crate::harness::client::Connection::open(stack.forward_auth.unwrap()).await;
    connection.send(text.as_bytes()).await;
    let response = connection.response(false).await;
    assert_eq!(response.header("cache-control"), Some("private, max-age=10"));
    let vary = response.header("vary").unwrap();
    for name in ["Cookie", "Sec-Fetch-Site", "Origin", "Sec-Websocket-Key", "Upgrade"] {
        assert!(vary.split(", ").any(|listed| listed == name), "{name}: {vary}");
    }
}
