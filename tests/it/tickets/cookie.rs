//! Tickets with `cookie`: a web-view inside a Mini Program gets a session cookie of its own.

use std::time::Duration;

use serde_json::json;

use super::{ON, assert_ended, ticket_with, with};
use crate::harness::client::{Request, Response};
use crate::harness::{APP, OTHER_APP, Stack, THREE_ROUTES, openid};

/// The harness sends this host; a load balancer in front does the TLS.
const BROWSER: &str = "[[browser]]\nbase_url = \"https://gateway.test\"\n";

const COOKIE: &str = "__Host-wxgate";

async fn start() -> (Stack, String) {
    let stack = Stack::start_with(&format!("{ON}{THREE_ROUTES}{BROWSER}")).await;
    let token = stack.login("alice").await;
    (stack, token)
}

async fn path_of(stack: &Stack, token: &str) -> String {
    let body = json!({ "path": "/required/a?b=1", "cookie": true });
    with("/required/a?b=1", &ticket_with(stack, token, &body).await)
}

fn agent(app_id: &str) -> String {
    format!(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) MicroMessenger/8.0.49 \
         NetType/WIFI Language/zh_CN miniProgram/{app_id}"
    )
}

/// As the web-view of the app sends it.
fn page<'a>(request: Request<'a>, agent: &str) -> Request<'a> {
    request.header("User-Agent", agent).header("Accept", "text/html,*/*;q=0.8")
}

/// The value of the session cookie that a response sets.
fn cookie_of(response: &Response) -> Option<String> {
    let line = response.header("set-cookie")?;
    let (cookie, attributes) = line.split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax; Secure");
    let value = cookie.strip_prefix(COOKIE).unwrap().strip_prefix('=').unwrap();
    Some(value.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_view_of_the_session_s_mini_program_gets_its_own_session() {
    let (stack, token) = start().await;
    let used = path_of(&stack, &token).await;
    let response = page(stack.get(&used), &agent(APP)).send().await;
    assert_eq!(response.status, 302);
    assert_eq!(response.header("location"), Some("/required/a?b=1"));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
    let own = cookie_of(&response).unwrap();
    assert!(own != token && !used.contains(&own));
    assert_eq!(stack.upstream.requests().len(), 0);

    let cookie = format!("{COOKIE}={own}");
    let request = page(stack.get("/required/a?b=1"), &agent(APP)).header("Cookie", &cookie);
    assert_eq!(request.forwarded().await.all("x-openid"), [openid("alice")]);
    assert_ended(&page(stack.get(&used), &agent(APP)).send().await);
    // Each has its own end.
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    let request = stack.get("/required").header("Cookie", &cookie);
    assert_eq!(request.send().await.status, 200);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn elsewhere_the_page_is_served_once_and_no_cookie_is_set() {
    let (stack, token) = start().await;
    let mallory = stack.login("mallory").await;
    let ours = agent(APP);
    let other = agent(OTHER_APP);
    let longer = agent(&format!("{APP}0"));
    let chat = "Mozilla/5.0 (iPhone) MicroMessenger/8.0.49 NetType/WIFI";
    let html = ("Accept", "text/html");
    let with_cookie = format!("{COOKIE}={mallory}");
    let two = format!("{COOKIE}=a; {COOKIE}=b");
    for lines in [
        &[("User-Agent", chat), html][..],
        &[("User-Agent", other.as_str()), html],
        &[("User-Agent", longer.as_str()), html],
        &[("User-Agent", "miniProgram"), html],
        &[html],
        &[("User-Agent", &ours)],
        &[("User-Agent", &ours), ("Accept", "image/png")],
        &[("User-Agent", &ours), html, ("Sec-Fetch-Site", "cross-site")],
        &[
            ("User-Agent", &ours),
            html,
            ("Sec-Fetch-Site", "same-origin"),
            ("Sec-Fetch-Mode", "navigate"),
        ],
        &[
            ("User-Agent", &ours),
            html,
            ("Sec-Fetch-Site", "none"),
            ("Sec-Fetch-Mode", "navigate"),
            ("Sec-Fetch-Dest", "iframe"),
        ],
        &[
            ("User-Agent", &ours),
            html,
            ("Sec-Fetch-Site", "none"),
            ("Sec-Fetch-Mode", "navigate"),
            ("Sec-Purpose", "prefetch"),
        ],
        &[("User-Agent", &ours), html, ("Cookie", &with_cookie)],
        &[("User-Agent", &ours), html, ("Cookie", &two)],
    ] {
        let used = path_of(&stack, &token).await;
        let mut request = stack.get(&used);
        for (name, value) in lines {
            request = request.header(name, value);
        }
        let response = request.send().await;
        assert_eq!(response.status, 200, "{lines:?}");
        assert_eq!(response.header("set-cookie"), None, "{lines:?}");
        let received = stack.upstream.requests();
        let received = received.last().unwrap();
        assert_eq!(received.all("x-openid"), [openid("alice")], "{lines:?}");
        assert_eq!((received.target(), received.all("cookie").len()), ("/required/a?b=1", 0));
        assert_ended(&stack.get(&used).send().await);
    }
    // Another host has no cookies.
    let other_host = format!("{ON}{THREE_ROUTES}[[browser]]\nbase_url = \"https://h5.test\"\n");
    let stack = Stack::start_with(&other_host).await;
    let token = stack.login("alice").await;
    let used = path_of(&stack, &token).await;
    let response = page(stack.get(&used), &ours).send().await;
    assert_eq!((response.status, response.header("set-cookie")), (200, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_has_the_user_s_session_keeps_it_and_an_ended_one_is_replaced() {
    let (stack, token) = start().await;
    let first = page(stack.get(&path_of(&stack, &token).await), &agent(APP)).send().await;
    let first = cookie_of(&first).unwrap();
    let used = path_of(&stack, &token).await;
    let again = async |cookie: &str, used: &str| {
        let cookie = format!("x=y; {COOKIE}={cookie}");
        page(stack.get(used), &agent(APP))
            .header("Sec-Fetch-Site", "none")
            .header("Sec-Fetch-Mode", "navigate")
            .header("Sec-Fetch-Dest", "document")
            .header("Cookie", &cookie)
            .send()
            .await
    };
    let response = again(&first, &used).await;
    assert_eq!((response.status, cookie_of(&response)), (302, None));
    assert_eq!(response.header("location"), Some("/required/a?b=1"));
    assert_ended(&again(&first, &used).await);
    for ended in ["A".repeat(43).as_str(), "malformed", ""] {
        let response = again(ended, &path_of(&stack, &token).await).await;
        assert_eq!(response.status, 302);
        assert!(cookie_of(&response).is_some_and(|own| own != first));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reusable_ticket_gives_one_cookie() {
    let (stack, token) = start().await;
    let body = json!({ "path": "/required/a", "cookie": true, "reuse": true });
    let used = with("/required/a", &ticket_with(&stack, &token, &body).await);
    for _ in 0..2 {
        assert_eq!(stack.get(&used).send().await.status, 200);
    }
    let response = page(stack.get(&used), &agent(APP)).send().await;
    assert!(response.status == 302 && cookie_of(&response).is_some());
    assert_ended(&page(stack.get(&used), &agent(APP)).send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_browser_s_session_ends_no_later_than_the_ticket_s() {
    let session = "session = { ttl = \"60s\", idle_timeout = \"60s\" }\n";
    let stack = Stack::start_with(&format!("{session}{ON}{THREE_ROUTES}{BROWSER}")).await;
    let token = stack.login("alice").await;
    stack.clock.advance(Duration::from_secs(50));
    let used = path_of(&stack, &token).await;
    let response = page(stack.get(&used), &agent(APP)).send().await;
    let cookie = format!("{COOKIE}={}", cookie_of(&response).unwrap());
    let left = stack.get("/session").header("Cookie", &cookie).send().await.json();
    assert_eq!(left["expires_in"], 10);
    stack.clock.advance(Duration::from_secs(10));
    let response = stack.get("/session").header("Cookie", &cookie).send().await;
    assert_eq!(response.status, 401);
}

/// Such a page could otherwise make a ticket for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_by_cookie_is_made_only_for_the_same_site() {
    let (stack, token) = start().await;
    let cookie = format!("{COOKIE}={token}");
    let body = json!({ "path": "/required/a" });
    for (lines, status) in [
        (&[][..], 403),
        (&[("Origin", "https://evil.test")], 403),
        (&[("Origin", "https://gateway.test")], 200),
        (&[("Sec-Fetch-Site", "same-site"), ("Origin", "https://gateway.test")], 403),
        (&[("Sec-Fetch-Site", "cross-site")], 403),
        (&[("Sec-Fetch-Site", "same-origin")], 200),
    ] {
        let mut request = stack.post("/ticket").header("Cookie", &cookie);
        for (name, value) in lines {
            request = request.header(name, value);
        }
        let response = request.json(&body).send().await;
        assert_eq!(response.status, status, "{lines:?} {}", response.text());
        if status == 403 {
            response.assert_error(403, "cross_site", "none");
        }
    }
}
