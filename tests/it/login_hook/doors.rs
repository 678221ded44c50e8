//! Every way to make a session calls the hook.

use serde_json::{Value, json};

use super::fake::FakeHook;
use super::{logins, requests};
use crate::browser::assert_page;
use crate::harness::browser::{ACCOUNT, Browser, COOKIE, DESKTOP, WEBSITE, WECHAT, code, config};
use crate::harness::client::{Connection, Response};
use crate::harness::{APP, OPERATOR, Stack, THREE_ROUTES, openid};
use crate::scan::{Page, SCANS, session_cookie, step};
use crate::tickets::{ON, ticket_with, with};
use wxgate::wechat::sandbox;

/// The user id that the service gets with a cookie.
async fn id_by_cookie(stack: &Stack, path: &str, cookie: &str) -> Vec<String> {
    let received = stack.get(path).header("Cookie", cookie).forwarded().await;
    received.all("x-user-id").into_iter().map(str::to_owned).collect()
}

fn refusal(message: &str) -> String {
    json!({ "message": message }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_by_redirect_ask_once_with_the_kind_of_the_app() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&config(&hook.section(""), "")).await;
    for (number, (agent, app_id, kind)) in
        [(WECHAT, ACCOUNT, "official_account"), (DESKTOP, WEBSITE, "website")]
            .into_iter()
            .enumerate()
    {
        let mut browser = Browser::new(agent);
        let state = browser.begin(&stack, "/h5").await;
        let code = code("alice");
        for _ in 0..2 {
            let response = browser.come_back(&stack, &state, &code).await;
            assert_eq!(response.status, 302, "{}", response.text());
        }
        let calls = hook.calls();
        assert_eq!(calls.len(), number + 1, "a repeat gets the outcome of the first");
        let body = &calls[number].body;
        assert_eq!((&body["app_id"], &body["kind"]), (&json!(app_id), &json!(kind)));
        assert_eq!(body["openid"], sandbox::openid(app_id, "alice"));
        let cookie = format!("{COOKIE}={}", browser.cookies[COOKIE]);
        assert_eq!(id_by_cookie(&stack, "/api", &cookie).await, ["member-7"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_of_a_login_by_redirect_is_a_page_with_the_message() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&config(&hook.section(""), "")).await;
    for (message, shown) in [
        (
            refusal("<script>alert('1')</script> & \"更多\""),
            Some("<p>&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;更多&quot;</p>"),
        ),
        (String::new(), None),
    ] {
        hook.answers(403, &message);
        for (language, lang, title, own) in [
            ("en", "en", "You cannot log in", "Logins of this account are not allowed."),
            ("zh-CN,zh;q=0.9", "zh-CN", "无法登录", "此账号已被限制登录。"),
        ] {
            let mut browser = Browser::new(DESKTOP);
            let state = browser.begin(&stack, "/h5").await;
            let path = format!("/login/callback?code={}&state={state}", code("alice"));
            let asked = hook.calls().len();
            for _ in 0..2 {
                let request = browser.request(&stack, "GET", &path);
                let response = request.header("Accept-Language", language).send().await;
                assert_page(&response, 403, "login_refused", lang);
                let text = response.text();
                let own = format!("<p>{own}</p>");
                assert!(text.contains(&format!("<h1>{title}</h1>")), "{text}");
                assert!(text.contains(shown.unwrap_or(&own)), "{text}");
                assert!(!text.contains("<script") && !text.contains("<a "), "{text}");
                assert!(response.all("set-cookie").is_empty());
            }
            assert_eq!(hook.calls().len(), asked + 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_hook_in_a_login_by_redirect_is_a_page_to_log_in_again() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&config(&hook.section(""), "")).await;
    hook.answers(500, "");
    let mut browser = Browser::new(DESKTOP);
    let state = browser.begin(&stack, "/h5").await;
    let response = browser.come_back(&stack, &state, &code("alice")).await;
    assert_page(&response, 503, "login_unavailable", "en");
    assert!(response.header("retry-after").is_some());
    let text = response.text();
    assert!(text.contains("Please try again") && text.contains("<a href="), "{text}");
    hook.answers(204, "");
    let state = browser.begin(&stack, "/h5").await;
    let response = browser.come_back(&stack, &state, &code("alice")).await;
    assert_eq!(response.status, 302, "{}", response.text());
}

/// A scan that the phone has confirmed.
async fn confirmed(stack: &Stack) -> Page {
    let phone = stack.login("unionalice").await;
    let page = Page::open(stack).await;
    assert_eq!(step(stack, &phone, &page.id, "scan").await.status, 200);
    assert_eq!(step(stack, &phone, &page.id, "confirm").await.status, 204);
    page
}

#[tokio::test(flavor = "multi_thread")]
async fn the_browser_of_a_scan_is_asked_about_once() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(SCANS)).await;
    let page = confirmed(&stack).await;
    hook.answers(200, "{\"user_id\":\"member-8\"}");
    hook.hold();
    let asked = hook.calls().len();
    let (first, second, ()) = tokio::join!(
        page.poll(&stack, "scanned"),
        async {
            hook.until_calls(asked + 1).await;
            page.poll(&stack, "scanned").await
        },
        async {
            hook.until_calls(asked + 1).await;
            stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
            hook.release();
        }
    );
    assert_eq!(first.json(), json!({ "state": "confirmed" }));
    assert_eq!(second.json(), json!({ "state": "expired" }));
    let calls = hook.calls();
    assert_eq!(calls.len(), asked + 1);
    // The user of the phone's login.
    assert_eq!(calls[asked].body, calls[0].body);
    assert_eq!(calls[asked].body["kind"], "mini_program");
    let cookie = session_cookie(&first).unwrap();
    assert_eq!(id_by_cookie(&stack, "/x", &cookie).await, ["member-8"]);
    let log = stack.access_log(5).await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_scan: Vec<_> = lines.filter(|line| line["user"] == "member-8").collect();
    assert!(of_scan.iter().any(|line| line["route"] == "@scan"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_whose_scan_the_hook_refuses_or_fails_gets_no_session() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(SCANS)).await;
    for (status, error, action, message) in [
        (403, "login_refused", "none", Some("not on this site")),
        (503, "login_unavailable", "login", None),
    ] {
        hook.answers(204, "");
        let page = confirmed(&stack).await;
        hook.answers(status, &refusal("not on this site"));
        let response = page.poll(&stack, "scanned").await;
        response.assert_error(status, error, action);
        if let Some(message) = message {
            assert_eq!(response.json()["message"], message);
        }
        assert_eq!(session_cookie(&response), None);
        assert_eq!(page.state(&stack, "scanned").await, "expired", "the scan is used up");
        assert_eq!(stack.metric(&logins(error)).await, 1.0);
    }
}

/// A slow hook must not outlast the session that a browser's session is made from.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_ends_while_the_hook_is_asked_gives_a_browser_none() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section(&format!("{ON}{THREE_ROUTES}{SCANS}"))).await;
    let log_out = async |phone: &str, asked: usize| {
        hook.until_calls(asked + 1).await;
        assert_eq!(stack.post("/logout").token(phone).send().await.status, 204);
        hook.release();
    };

    let phone = stack.login("unionalice").await;
    let page = Page::open(&stack).await;
    assert_eq!(step(&stack, &phone, &page.id, "scan").await.status, 200);
    assert_eq!(step(&stack, &phone, &page.id, "confirm").await.status, 204);
    let asked = hook.calls().len();
    hook.hold();
    let (polled, ()) = tokio::join!(page.poll(&stack, "scanned"), log_out(&phone, asked));
    assert_eq!((polled.status, polled.json()), (200, json!({ "state": "expired" })));
    assert_eq!(session_cookie(&polled), None);

    let phone = stack.login("unionalice").await;
    let wanted = json!({ "path": "/required/a", "cookie": true });
    let path = with("/required/a", &ticket_with(&stack, &phone, &wanted).await);
    let asked = hook.calls().len();
    hook.hold();
    let (page, ()) = tokio::join!(in_web_view(&stack, &path), log_out(&phone, asked));
    page.assert_error(401, "session_expired", "login");
    assert_eq!(session_cookie(&page), None);
    assert_eq!(stack.metric("wxgate_sessions").await, 0.0);
}

/// As the web-view of the app sends it.
async fn in_web_view(stack: &Stack, path: &str) -> Response {
    let agent = format!("Mozilla/5.0 (iPhone) MicroMessenger/8.0.49 miniProgram/{APP}");
    let request = stack.get(path).header("User-Agent", &agent);
    request.header("Accept", "text/html,*/*;q=0.8").send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cookie_for_a_ticket_asks_again_and_takes_the_new_id() {
    let hook = FakeHook::start().await;
    let browser = "[[browser]]\nbase_url = \"https://gateway.test\"\n";
    let stack = Stack::start_with(&hook.section(&format!("{ON}{THREE_ROUTES}{browser}"))).await;
    let token = stack.login("alice").await;
    let wanted = json!({ "path": "/required/a", "cookie": true });
    let path = async || with("/required/a", &ticket_with(&stack, &token, &wanted).await);

    hook.answers(200, "{\"user_id\":\"member-8\"}");
    let response = in_web_view(&stack, &path().await).await;
    assert_eq!(response.status, 302, "{}", response.text());
    let cookie = session_cookie(&response).unwrap();
    assert_eq!(id_by_cookie(&stack, "/required/a", &cookie).await, ["member-8"]);
    let calls = hook.calls();
    assert_eq!((calls.len(), &calls[1].body), (2, &calls[0].body));
    assert_eq!(calls[1].body["openid"], openid("alice"));
    // The phone's session keeps its own.
    let received = stack.get("/required/b").token(&token).forwarded().await;
    assert_eq!(received.all("x-user-id"), ["member-7"]);
    // A ticket that serves one request asks nobody.
    let plain = with("/required/a", &ticket_with(&stack, &token, &wanted).await);
    assert_eq!(stack.get(&plain).send().await.status, 200);
    assert_eq!(hook.calls().len(), 2);

    hook.answers(403, &refusal("not here"));
    let response = in_web_view(&stack, &path().await).await;
    response.assert_error(403, "login_refused", "none");
    assert_eq!(response.json()["message"], "not here");
    hook.answers(500, "");
    let used = path().await;
    let response = in_web_view(&stack, &used).await;
    response.assert_error(503, "login_unavailable", "login");
    assert_eq!(response.header("set-cookie"), None);
    in_web_view(&stack, &used).await.assert_error(401, "session_expired", "login");
    for (outcome, count) in [("ok", 2.0), ("refused", 1.0), ("malformed", 1.0)] {
        assert_eq!(stack.metric(&requests(outcome)).await, count, "{outcome}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hook_is_not_asked_about_a_blocked_user_and_a_block_meanwhile_counts() {
    let hook = FakeHook::start().await;
    let operator = "admin.token = { file = \"{dir}/operator\" }\n";
    let stack = Stack::start_with(&hook.section(operator)).await;
    let path = |time: &str| format!("/sessions?openid={}&block={time}", openid("alice"));
    let block = async |time: &str| {
        let request = stack.request("DELETE", &path(time)).bearer(OPERATOR);
        assert_eq!(request.send_to_admin().await.status, 204);
    };
    block("1h").await;
    stack.try_login("user-alice-1").await.assert_error(403, "login_refused", "none");
    assert_eq!(hook.calls().len(), 0);
    block("0s").await;
    hook.hold();
    let mut login = Connection::open(stack.gateway).await;
    let body = json!({ "code": "user-alice-2" });
    login.send(&stack.post("/login").json(&body).bytes()).await;
    hook.until_calls(1).await;
    block("1h").await;
    hook.release();
    login.response(false).await.assert_error(403, "login_refused", "none");
    assert_eq!(stack.metric("wxgate_sessions").await, 0.0);
}
