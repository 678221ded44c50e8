//! Attacks on logins by a scan.

use std::time::Duration;

use serde_json::json;

use crate::harness::client::{self, Connection, Response};
use crate::harness::{APP, OPERATOR, Stack, openid};
use crate::scan::{CHROME, Page, SCANS, session_cookie, step};

async fn send(stack: &Stack, request: &str) -> Response {
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(request.as_bytes()).await;
    connection.response(false).await
}

/// The id is in the code, which anybody near the screen can see.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_browser_that_began_a_scan_can_poll_it() {
    let stack = Stack::start_with(SCANS).await;
    let (page, other) = (Page::open(&stack).await, Page::open(&stack).await);
    let phone = stack.login("alice").await;
    step(&stack, &phone, &page.id, "scan").await;
    step(&stack, &phone, &page.id, "confirm").await;
    let id = &page.id;
    let secret = page.cookie.split_once('=').unwrap().1;
    let other_secret = other.cookie.split_once('=').unwrap().1;
    for cookies in [
        String::new(),
        format!("Cookie: {}\r\n", other.cookie),
        format!("Cookie: __Host-wxgate-scan={}\r\n", secret.to_uppercase()),
        format!("Cookie: __Host-wxgate-scan={}\r\n", &secret[1..]),
        "Cookie: __Host-wxgate-scan=\r\n".to_owned(),
        format!("Cookie: __Host-wxgate-scan={id}\r\n"),
        format!("Cookie: wxgate-scan={secret}\r\n"),
        format!("Cookie: __host-wxgate-scan={secret}\r\n"),
        format!("Cookie: __Host-wxgate={secret}\r\n"),
        format!("Cookie: __Host-wxgate-scan={}\r\n", [other_secret; 5].join(".") + "." + secret),
        // Two different ones: a page of another host of the domain may have set one.
        format!("Cookie: {}; {}\r\n", other.cookie, page.cookie),
        format!("Cookie: {}\r\nCookie: {}\r\n", page.cookie, other.cookie),
        format!("X-3rd-Session: {phone}\r\n"),
        format!("Cookie: __Host-wxgate={phone}\r\n"),
    ] {
        for path in
            [format!("/scan/{id}"), format!("/scan/{id}?state=scanned"), format!("/scan/{id}.png")]
        {
            let request = format!("GET {path} HTTP/1.1\r\nHost: gateway.test\r\n{cookies}\r\n");
            let response = send(&stack, &request).await;
            response.assert_error(404, "no_route", "none");
            assert_eq!(response.header("set-cookie"), None);
        }
    }
    let response = page.poll(&stack, "scanned").await;
    assert_eq!(response.json(), json!({ "state": "confirmed" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_belongs_to_one_host() {
    let stack = Stack::start_with(SCANS).await;
    let page = Page::open(&stack).await;
    let phone = stack.login("alice").await;
    step(&stack, &phone, &page.id, "scan").await;
    step(&stack, &phone, &page.id, "confirm").await;
    let (id, cookie) = (&page.id, &page.cookie);
    for host in ["other.test", "gateway.test.other.test", "api.test", "gateway.test:8443", ""] {
        let lines =
            format!("Host: {host}\r\nX-Forwarded-Host: gateway.test\r\nCookie: {cookie}\r\n");
        let response = send(&stack, &format!("GET /scan/{id} HTTP/1.1\r\n{lines}\r\n")).await;
        assert!(matches!(response.status, 400 | 404), "{host}: {}", response.text());
        assert_eq!(response.header("set-cookie"), None);
    }
    assert!(session_cookie(&page.poll(&stack, "scanned").await).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_phones_one_gets_the_scan() {
    let stack = Stack::start_with(SCANS).await;
    let (alice, mallory) = (stack.login("alice").await, stack.login("mallory").await);
    for _ in 0..5 {
        let page = Page::open(&stack).await;
        let both = tokio::join!(
            step(&stack, &alice, &page.id, "scan"),
            step(&stack, &mallory, &page.id, "scan"),
        );
        let (winner, loser, who) = match (both.0.status, both.1.status) {
            (200, 403) => (&alice, &mallory, "alice"),
            (403, 200) => (&mallory, &alice, "mallory"),
            other => panic!("{other:?}"),
        };
        for action in ["scan", "confirm", "deny"] {
            let response = step(&stack, loser, &page.id, action).await;
            response.assert_error(403, "not_allowed", "none");
        }
        assert_eq!(page.state(&stack, "waiting").await, "scanned");
        assert_eq!(step(&stack, winner, &page.id, "confirm").await.status, 204);
        for action in ["scan", "confirm", "deny"] {
            for token in [winner, loser] {
                let response = step(&stack, token, &page.id, action).await;
                response.assert_error(403, "not_allowed", "none");
            }
        }
        let cookie = session_cookie(&page.poll(&stack, "scanned").await).unwrap();
        let received = stack.get("/x").header("Cookie", &cookie).forwarded().await;
        assert_eq!(received.all("x-openid"), [openid(who)]);
    }
}

/// Another session of the same user is another session.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_session_that_scanned_answers_and_only_after_the_scan() {
    let stack = Stack::start_with(SCANS).await;
    let (phone, tablet) = (stack.login("alice").await, stack.login("alice").await);
    let page = Page::open(&stack).await;
    for action in ["confirm", "deny"] {
        step(&stack, &phone, &page.id, action).await.assert_error(403, "not_allowed", "none");
    }
    assert_eq!(step(&stack, &phone, &page.id, "scan").await.status, 200);
    for action in ["confirm", "deny", "scan"] {
        step(&stack, &tablet, &page.id, action).await.assert_error(403, "not_allowed", "none");
    }
    assert_eq!(page.state(&stack, "waiting").await, "scanned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_scan_is_used_once() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    step(&stack, &phone, &page.id, "scan").await;
    let mut polls = Vec::new();
    for _ in 0..8 {
        let mut poll = Connection::open(stack.gateway).await;
        poll.send(&page.poll_bytes(&stack, "scanned")).await;
        polls.push(poll);
    }
    stack.until_metric("wxgate_http_requests_in_flight", 8.0).await;
    step(&stack, &phone, &page.id, "confirm").await;
    let mut sessions = 0;
    for mut poll in polls {
        let response = poll.response(false).await;
        let is_login = session_cookie(&response).is_some();
        let state = if is_login { "confirmed" } else { "expired" };
        assert_eq!(response.json(), json!({ "state": state }));
        sessions += usize::from(is_login);
    }
    assert_eq!(sessions, 1);
    let replayed = page.poll(&stack, "waiting").await;
    assert_eq!(replayed.json(), json!({ "state": "expired" }));
    assert_eq!(replayed.header("set-cookie"), None);
    for action in ["scan", "confirm", "deny"] {
        step(&stack, &phone, &page.id, action).await.assert_error(404, "no_route", "none");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ended_after_it_confirmed_logs_no_browser_in() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    step(&stack, &phone, &page.id, "scan").await;
    step(&stack, &phone, &page.id, "confirm").await;
    assert_eq!(stack.post("/logout").token(&phone).send().await.status, 204);
    let response = page.poll(&stack, "scanned").await;
    assert_eq!(response.json(), json!({ "state": "expired" }));
    assert_eq!(response.header("set-cookie"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_blocked_after_the_scan_is_not_logged_in() {
    let changes = format!("admin.token = {{ file = \"{{dir}}/operator\" }}\n{SCANS}");
    let stack = Stack::start_with(&changes).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    step(&stack, &phone, &page.id, "scan").await;
    step(&stack, &phone, &page.id, "confirm").await;
    let path = format!("/sessions?app_id={APP}&openid={}&block=1h", openid("alice"));
    let blocked = stack.request("DELETE", &path).bearer(OPERATOR).send_to_admin().await;
    assert_eq!(blocked.status, 204, "{}", blocked.text());
    let response = page.poll(&stack, "scanned").await;
    assert_eq!(response.json(), json!({ "state": "expired" }));
    assert_eq!(response.header("set-cookie"), None);
    assert_eq!(page.state(&stack, "scanned").await, "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_site_can_neither_begin_nor_confirm_nor_use_a_scan() {
    let stack = Stack::start_with(SCANS).await;
    for lines in [
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
        "Sec-Fetch-Site: none",
        "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-origin\r\nOrigin: https://evil.test",
        "Origin: https://evil.test",
        "Origin: null",
        "Origin: http://gateway.test",
        "Origin: https://gateway.test.evil.test",
        "Origin: https://gateway.test\r\nOrigin: https://evil.test",
    ] {
        let request = format!(
            "POST /scan HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\nContent-Length: 0\r\n\r\n"
        );
        let response = send(&stack, &request).await;
        response.assert_error(403, "cross_site", "none");
        assert_eq!(response.header("set-cookie"), None);
    }
    let request = "POST /scan HTTP/1.1\r\nHost: gateway.test\r\nSec-Fetch-Site: same-origin\r\n\
                   Origin: https://gateway.test\r\nContent-Length: 0\r\n\r\n";
    let page = Page::of(&send(&stack, request).await);

    // The user has the Mini Program's session in the browser: by an earlier scan.
    let phone = stack.login("alice").await;
    let (id, body) = (&page.id, r#"{"action":"scan"}"#);
    for lines in ["", "Sec-Fetch-Site: cross-site\r\n", "Origin: https://evil.test\r\n"] {
        let request = format!(
            "POST /scan/{id} HTTP/1.1\r\nHost: gateway.test\r\nCookie: __Host-wxgate={phone}\r\n\
             {lines}Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        send(&stack, &request).await.assert_error(403, "cross_site", "none");
    }
    assert_eq!(step(&stack, &phone, id, "scan").await.status, 200);
    assert_eq!(step(&stack, &phone, id, "confirm").await.status, 204);
    for site in ["cross-site", "same-site"] {
        let request = format!(
            "GET /scan/{id} HTTP/1.1\r\nHost: gateway.test\r\nSec-Fetch-Site: {site}\r\nCookie: {}\r\n\r\n",
            page.cookie
        );
        let response = send(&stack, &request).await;
        response.assert_error(403, "cross_site", "none");
        assert_eq!(response.header("set-cookie"), None);
    }
    assert!(session_cookie(&page.poll(&stack, "scanned").await).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_cannot_be_guessed_and_do_not_repeat() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    let id = &page.id;
    let swapped: String = id.chars().rev().collect();
    let long = "x".repeat(5000);
    for guess in [
        "x",
        &"A".repeat(22),
        &swapped,
        &format!("{id}A"),
        &format!("{id}.PNG"),
        &format!("{id}.png.png"),
        &format!("{id}%00"),
        &format!("%20{id}"),
        &format!("{id}%2f"),
        &id[1..],
        "..%2fscan",
        ".png",
        &long,
    ] {
        let path = format!("/scan/{guess}");
        let get = stack.get(&path).header("Cookie", &page.cookie).send().await;
        assert!(matches!(get.status, 400 | 401 | 404), "{guess}: {}", get.status);
        let post = step(&stack, &phone, guess, "scan").await;
        assert!(matches!(post.status, 400 | 404), "{guess}: {} {}", post.status, post.text());
    }
    assert!(stack.upstream.requests().is_empty());
    assert_ne!(Page::open(&stack).await.id, *id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_step_is_rejected() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    let path = format!("/scan/{}", page.id);
    for body in [
        "",
        "scan",
        "action=scan",
        "[]",
        "null",
        "{}",
        "\"scan\"",
        r#"{"action":"SCAN"}"#,
        r#"{"action":["scan"]}"#,
        r#"{"action":"scan","action":"confirm"}"#,
        r#"{"action":"scan"} x"#,
        r#"{"action":"scan""#,
        "{\"action\":\"scan\u{0}\"}",
    ] {
        let response = stack.post(&path).token(&phone).body(body).send().await;
        response.assert_error(400, "bad_request", "none");
    }
    let long = format!(r#"{{"x":"{}","action":"scan"}}"#, "x".repeat(1024));
    for request in [stack.post(&path).body(long.clone()), stack.post(&path).body(long).chunked()] {
        let response = request.token(&phone).send().await;
        response.assert_error(413, "body_too_large", "none");
    }
    let json = json!({ "action": "scan" });
    stack.post(&path).json(&json).send().await.assert_error(401, "missing_token", "login");
    let stale = "A".repeat(43);
    let response = stack.post(&path).token(&stale).json(&json).send().await;
    response.assert_error(401, "session_expired", "login");
    let response = stack.get(&format!("{path}?state=confirmed")).header("Cookie", &page.cookie);
    response.send().await.assert_error(400, "bad_request", "none");
    let response = stack.post(&path).token(&phone).json(&json).chunked().send().await;
    assert_eq!(response.status, 200, "{}", response.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_are_limited_by_address() {
    let stack =
        Stack::start_with(&format!("server.trusted_proxies = [\"127.0.0.1\"]\n{SCANS}")).await;
    let start = |address: &'static str| stack.post("/scan").header("X-Forwarded-For", address);
    for _ in 0..10 {
        assert_eq!(start("192.0.2.1").send().await.status, 200);
    }
    let response = start("192.0.2.1").send().await;
    response.assert_error(429, "rate_limited", "retry");
    assert!(response.header("retry-after").is_some());
    assert_eq!(response.header("set-cookie"), None);
    assert_eq!(start("192.0.2.2").send().await.status, 200);
    // Any number of browsers may be behind the proxy.
    for _ in 0..12 {
        assert_eq!(stack.post("/scan").send().await.status, 200);
    }
    stack.clock.advance(Duration::from_secs(6));
    assert_eq!(start("192.0.2.1").send().await.status, 200);
}

/// The user sees them before the scan is confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn a_phone_is_shown_no_text_of_the_browser() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    for (user_agent, words) in [
        ("<script>alert(1)</script>", "A browser"),
        ("Your bank says: confirm! Firefox/1 (iPhone)", "Firefox on iPhone"),
        (CHROME, "Chrome on Windows"),
    ] {
        let response = stack
            .post("/scan")
            .header("User-Agent", user_agent)
            .header("X-Forwarded-For", "10.0.0.1")
            .send()
            .await;
        let shown = step(&stack, &phone, &Page::of(&response).id, "scan").await.json();
        assert_eq!(shown["browser"], words);
        assert_eq!(shown["address"], "127.0.0.1");
    }
    assert_eq!(client::get(stack.admin, "/metrics").await.status, 200);
}
