//! The login hook: a service of the operator that is called before each session is made.

mod doors;
mod failures;
mod fake;
mod limits;
mod operators;
mod shared;

use serde_json::{Value, json};

use self::fake::FakeHook;
use crate::harness::process_log::logged;
use crate::harness::{APP, SERVICES, Stack, openid};

/// A metric of the hook.
fn requests(outcome: &str) -> String {
    format!("wxgate_login_hook_requests_total{{outcome=\"{outcome}\"}}")
}

fn logins(outcome: &str) -> String {
    format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"{outcome}\"}}")
}

/// The user id that the service gets.
async fn forwarded_id(stack: &Stack, token: &str) -> Vec<String> {
    let request = stack.get("/").token(token).header("X-User-Id", "forged");
    let received = request.forwarded().await;
    received.all("x-user-id").into_iter().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_asks_the_hook_and_services_get_the_user_s_id() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    let response = stack.try_login("user-unionalice-1").await;
    assert_eq!(response.status, 200, "{}", response.text());
    let granted = response.json();
    assert_eq!(granted.as_object().unwrap().len(), 3, "{granted}");
    let token = granted["token"].as_str().unwrap();

    let calls = hook.calls();
    assert_eq!(calls.len(), 1);
    let call = &calls[0];
    assert_eq!((call.method.as_str(), call.target.as_str()), ("POST", hook.target().as_str()));
    let authorization = format!("Bearer {}", SERVICES[0].1);
    assert_eq!(call.headers["authorization"].to_str().unwrap(), authorization);
    assert_eq!(call.headers["content-type"], "application/json");
    let unionid = call.body["unionid"].as_str().unwrap();
    let expected = json!({
        "app_id": APP,
        "openid": openid("unionalice"),
        "unionid": unionid,
        "kind": "mini_program",
    });
    assert_eq!(call.body, expected);

    let received = stack.get("/").token(token).header("x_user_id", "forged").forwarded().await;
    assert_eq!(received.all("x-user-id"), ["member-7"]);
    assert_eq!(received.all("x-unionid"), [unionid]);
    let log = stack.access_log(2).await;
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["user"], "member-7", "{line}");
    }
    assert_eq!(stack.metric(&requests("ok")).await, 1.0);
    assert_eq!(stack.metric("wxgate_login_hook_duration_seconds_count").await, 1.0);
    assert_eq!(stack.metric(&logins("ok")).await, 1.0);
    // Requests do not ask again.
    assert_eq!(hook.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kind_of_the_app_is_sent_and_null_without_a_unionid() {
    let hook = FakeHook::start().await;
    let app = format!(
        "[[app]]\napp_id = \"{APP}\"\nkind = \"mobile\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n"
    );
    let stack = Stack::start_with(&hook.section(&app)).await;
    stack.login("alice").await;
    let expected =
        json!({ "app_id": APP, "openid": openid("alice"), "unionid": null, "kind": "mobile" });
    assert_eq!(hook.calls()[0].body, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_an_id_has_no_header() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    for (status, body) in [(204, ""), (200, "{}"), (200, "{\"user_id\":null,\"other\":[1]}")] {
        hook.answers(status, body);
        let token = stack.login("alice").await;
        assert_eq!(forwarded_id(&stack, &token).await, [""; 0], "{body}");
    }
    assert_eq!(stack.metric(&requests("ok")).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_the_client_with_its_message_and_is_final() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    let message = "您的账号尚未开通 <b>\"ask\" us</b>";
    hook.answers(403, &json!({ "message": message }).to_string());
    for _ in 0..2 {
        let response = stack.try_login("user-alice-1").await;
        response.assert_error(403, "login_refused", "none");
        assert_eq!(response.json()["message"], message);
        assert_eq!(response.header("retry-after"), None);
    }
    assert_eq!((hook.calls().len(), stack.sandbox.exchanges()), (1, 1));
    assert_eq!(stack.metric(&requests("refused")).await, 1.0);
    assert_eq!(stack.metric(&logins("login_refused")).await, 2.0);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    let log = stack.access_log(2).await;
    assert!(log.contains("\"error\":\"login_refused\"") && !log.contains("ask"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_stands_without_a_message_that_can_be_shown() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    let longest = "长".repeat(500);
    for (number, (body, shown)) in [
        (json!({ "message": longest }).to_string(), Some(longest.clone())),
        (json!({ "message": format!("{longest}.") }).to_string(), None),
        (json!({ "message": "a\u{7}b" }).to_string(), None),
        (json!({ "message": 7 }).to_string(), None),
        (json!({}).to_string(), None),
        ("<html>Forbidden</html>".to_owned(), None),
        ("x".repeat(20 << 10), None),
        (String::new(), None),
    ]
    .into_iter()
    .enumerate()
    {
        hook.answers(403, &body);
        let response = stack.try_login(&format!("user-alice-{number}")).await;
        response.assert_error(403, "login_refused", "none");
        let message = response.json()["message"].as_str().unwrap().to_owned();
        assert_eq!(message, shown.unwrap_or("this user may not log in".to_owned()), "{body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_escaped_in_the_operator_s_own_error_bodies() {
    let hook = FakeHook::start().await;
    for (content_type, body, expected) in [
        ("application/json", r#"{"m":"${message}"}"#, r#"{"m":"\"<b>\"\\"}"#),
        ("text/html", "<p>${message}</p>", "<p>&quot;&lt;b&gt;&quot;\\</p>"),
    ] {
        let errors = format!("[errors]\ncontent_type = \"{content_type}\"\ntemplate = '{body}'\n");
        let stack = Stack::start_with(&hook.section(&errors)).await;
        hook.answers(403, &json!({ "message": "\"<b>\"\\" }).to_string());
        let response = stack.try_login("user-alice-1").await;
        assert_eq!((response.status, response.text().as_str()), (403, expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn coalesced_logins_ask_once() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    hook.hold();
    let (first, second, ()) = tokio::join!(
        stack.try_login("user-alice-1"),
        async {
            hook.until_calls(1).await;
            stack.try_login("user-alice-1").await
        },
        async {
            hook.until_calls(1).await;
            stack.until_metric("wxgate_http_requests_in_flight", 2.0).await;
            hook.release();
        }
    );
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(second.json(), first.json());
    let third = stack.try_login("user-alice-1").await;
    assert_eq!(third.json()["token"], first.json()["token"]);
    assert_eq!((hook.calls().len(), stack.sandbox.exchanges()), (1, 1));
    assert_eq!(stack.metric(&requests("ok")).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_finished_though_its_client_has_disconnected() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    hook.hold();
    let mut left = crate::harness::client::Connection::open(stack.gateway).await;
    let login = stack.post("/login").json(&json!({ "code": "user-alice-1" }));
    left.send(&login.bytes()).await;
    hook.until_calls(1).await;
    drop(left);
    hook.release();
    stack.until_metric("wxgate_sessions_created_total", 1.0).await;
    let again = stack.try_login("user-alice-1").await;
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(hook.calls().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn series_exist_from_the_start_if_there_is_a_hook() {
    let hook = FakeHook::start().await;
    let stack = Stack::start().await;
    let text = |stack: &Stack| {
        let admin = stack.admin;
        async move { crate::harness::client::get(admin, "/metrics").await.text() }
    };
    assert!(!text(&stack).await.contains("wxgate_login_hook_requests_total{"));
    assert!(stack.reload(&hook.section("")).await);
    let shown = text(&stack).await;
    for outcome in ["ok", "refused", "timeout", "transport", "malformed", "overloaded"] {
        assert!(shown.contains(&format!("{} 0\n", requests(outcome))), "{outcome}: {shown}");
    }
    assert!(shown.contains("wxgate_login_hook_duration_seconds_count 0\n"));
    assert!(shown.contains(&format!("{} 0\n", logins("login_unavailable"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_hook_for_the_logins_after_it() {
    let (first, second) = (FakeHook::start().await, FakeHook::start().await);
    second.answers(200, "{\"user_id\":\"other-8\"}");
    let stack = Stack::start_with(&first.section("")).await;
    first.hold();
    let ((), token) = tokio::join!(
        async {
            first.until_calls(1).await;
            assert!(stack.reload(&second.section("")).await);
            first.release();
        },
        stack.login("alice")
    );
    assert_eq!(forwarded_id(&stack, &token).await, ["member-7"]);
    let after = stack.login("alice").await;
    assert_eq!(forwarded_id(&stack, &after).await, ["other-8"]);
    assert_eq!((first.calls().len(), second.calls().len()), (1, 1));

    // Without a hook, the header is the client's own again.
    assert!(stack.reload("").await);
    let without = stack.login("alice").await;
    assert_eq!(forwarded_id(&stack, &without).await, ["forged"]);
    assert_eq!(second.calls().len(), 1);
    // The sessions keep their ids.
    assert!(stack.reload(&first.section("")).await);
    assert_eq!(forwarded_id(&stack, &token).await, ["member-7"]);
    assert_eq!(forwarded_id(&stack, &without).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_with_the_same_hook_keeps_its_state() {
    let hook = FakeHook::start().await;
    let stack = Stack::start_with(&hook.section("")).await;
    hook.answers(500, "");
    let fails = async |code: &str| {
        let response = stack.try_login(code).await;
        response.assert_error(503, "login_unavailable", "login");
        logged(&response).iter().filter(|line| line["level"] == "ERROR").count()
    };
    assert_eq!(fails("user-alice-1").await, 1);
    assert!(stack.reload(&hook.section("login.max_body = \"8KiB\"\n")).await);
    assert_eq!(fails("user-alice-2").await, 0, "logged once a minute");
    assert!(stack.reload(&hook.section("login.hook.timeout = \"3s\"\n")).await);
    assert_eq!(fails("user-alice-3").await, 1);
}
