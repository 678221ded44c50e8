//! What operators see of logins that fail: log, access log and gauges.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::{self, Connection, Response};
use crate::harness::process_log::{logged, logged_after, position};
use crate::harness::{APP, OPERATOR, OTHER_APP, SECRET, Stack, openid};

/// A login to the default app, by a client with an app id in its `Referer`.
async fn login_from(stack: &Stack, code: &str, app_id: &str) -> Response {
    let referer = format!("https://servicewechat.com/{app_id}/12/page-frame.html");
    let login = stack.post("/login").header("Referer", &referer);
    login.json(&json!({ "code": code })).send().await
}

/// The warnings about requests.
fn warnings(responses: &[Response]) -> Vec<Value> {
    let lines = responses.iter().flat_map(logged);
    lines.filter(|line| line["level"] == "WARN").map(|line| line["fields"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_has_only_rejected_codes_is_logged_once_a_minute_with_the_other_app_id() {
    let stack = Stack::start().await;
    let mut responses = Vec::new();
    for number in 0..5 {
        responses.push(login_from(&stack, &format!("err-40029-{number}"), OTHER_APP).await);
    }
    let first = warnings(&responses);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!((&first[0]["app_id"], &first[0]["refused"]), (&APP.into(), &1.into()));
    assert_eq!(first[0]["referer_app_id"], OTHER_APP);
    assert_eq!(first[0]["errcode"], 40029);
    assert!(first[0]["meaning"].as_str().unwrap().contains("another app id"), "{first:?}");

    stack.clock.advance(Duration::from_secs(60));
    let second = warnings(&[login_from(&stack, "err-40163-1", OTHER_APP).await]);
    assert_eq!((second.len(), &second[0]["refused"]), (1, &5.into()), "{second:?}");
    assert!(
        second[0]["message"].as_str().unwrap().contains("set app_id to that of the Mini Program"),
        "{second:?}"
    );

    // A success counts for a minute; a malformed app id is not logged.
    stack.clock.advance(Duration::from_secs(60));
    stack.login("alice").await;
    stack.clock.advance(Duration::from_secs(59));
    assert_eq!(warnings(&[login_from(&stack, "err-40029-6", OTHER_APP).await]), [Value::Null; 0]);
    stack.clock.advance(Duration::from_secs(1));
    let third = warnings(&[login_from(&stack, "err-40029-7", APP).await]);
    assert_eq!((&third[0]["refused"], &third[0]["referer_app_id"]), (&2.into(), &OTHER_APP.into()));
    for app_id in ["wxXYZ", "evil\",\"x\":\"", "touristappid", APP] {
        stack.clock.advance(Duration::from_secs(60));
        let code = format!("err-40029-x{}", app_id.len());
        let lines = warnings(&[login_from(&stack, &code, app_id).await]);
        assert_eq!((lines.len(), lines[0].get("referer_app_id")), (1, None), "{lines:?}");
    }
}

/// Where several apps are served, a login without `app_id` is for the default one.
#[tokio::test(flavor = "multi_thread")]
async fn codes_of_another_configured_app_are_logged_as_such_for_each_app_separately() {
    let app = |app_id: &str, rest: &str| {
        format!(
            "[[app]]\napp_id = \"{app_id}\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n{rest}\n"
        )
    };
    let stack = Stack::start_with(&(app(APP, "default = true") + &app(OTHER_APP, ""))).await;
    let named = warnings(&[login_from(&stack, "err-40029-1", OTHER_APP).await]);
    let message = named[0]["message"].as_str().unwrap();
    assert!(message.contains("must send app_id"), "{message}");
    let body = json!({ "code": "err-40029-2", "app_id": OTHER_APP });
    let other = warnings(&[stack.post("/login").json(&body).send().await]);
    assert_eq!((other.len(), &other[0]["app_id"]), (1, &OTHER_APP.into()));
    // The state of an app survives a reload.
    assert!(stack.reload(&(app(APP, "default = true") + &app(OTHER_APP, ""))).await);
    assert_eq!(warnings(&[stack.try_login("err-40029-3").await]), [Value::Null; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_code_of_the_developer_tools_has_its_own_words_once_a_minute() {
    let stack = Stack::start().await;
    let mut responses = Vec::new();
    for _ in 0..3 {
        responses.push(login_from(&stack, "the code is a mock one", OTHER_APP).await);
    }
    let lines = warnings(&responses);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0]["message"].as_str().unwrap().contains("developer tools"), "{lines:?}");
    assert_eq!((&lines[0]["app_id"], &lines[0]["suppressed"]), (&APP.into(), &0.into()));
    stack.clock.advance(Duration::from_secs(60));
    let lines = warnings(&[stack.try_login("the code is a mock one").await]);
    assert_eq!(lines[0]["suppressed"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_meaning_of_an_errcode_is_logged() {
    let stack = Stack::start().await;
    for (errcode, words) in [
        (40013, "app id is wrong"),
        (40125, "AppSecret is wrong"),
        (40164, "IP allow list"),
        (45009, "quota"),
        (40226, "high-risk"),
        (48001, "no permission for this API"),
        (50002, "restricted the app"),
        (61024, "third-party platform"),
        (89503, "must confirm"),
    ] {
        let response = stack.try_login(&format!("err-{errcode}-x")).await;
        let lines = logged(&response);
        let shown = lines.iter().find(|line| line["level"] != "DEBUG").unwrap();
        let fields = &shown["fields"];
        assert!(fields["meaning"].as_str().unwrap().contains(words), "{fields}");
        assert!(fields["error"].as_str().unwrap().contains(&errcode.to_string()), "{fields}");
        // Without quota WeChat is called once a minute.
        stack.clock.advance(Duration::from_secs(60));
    }
}

/// The lines of the access log, once there are so many.
async fn access_lines(stack: &Stack, count: usize) -> Vec<Value> {
    let text = stack.access_log(count).await;
    for secret in [SECRET, &openid("alice"), "user-alice"] {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_line_of_a_login_has_its_app_its_user_and_the_errcode() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    stack.get("/x").token(&token).send().await;
    for code in
        ["err-40029-1", "err-40029-1", "err-40226-1", "err--1-1", "err-77777-1", "drop-1", "a b"]
    {
        stack.try_login(code).await;
    }
    stack.try_login("the code is a mock one").await;
    stack.post("/login").json(&json!({ "code": "c", "app_id": "wxunknown" })).send().await;
    // Two that share an exchange, and one that gets its response again.
    let code = "slow-300ms-alice";
    let body = json!({ "code": code }).to_string();
    let request =
        format!("POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let (mut first, mut second) =
        (Connection::open(stack.gateway).await, Connection::open(stack.gateway).await);
    first.send(request.as_bytes()).await;
    second.send(request.as_bytes()).await;
    assert_eq!(
        (first.response(false).await.status, second.response(false).await.status),
        (200, 200)
    );
    assert_eq!(stack.try_login(code).await.status, 200);

    let lines = access_lines(&stack, 14).await;
    let user = &lines[1]["user"];
    assert_eq!(user.as_str().unwrap().len(), 16);
    let field = |name: &str| lines.iter().map(|line| line[name].clone()).collect::<Vec<_>>();
    let (app, null) = (Value::from(APP), Value::Null);
    let errcodes = [40029, 40029, 40226, -1, 77777].map(Value::from);
    let mut expected = vec![null.clone(); 2];
    expected.extend(errcodes);
    expected.extend(vec![null.clone(); 7]);
    assert_eq!(field("errcode"), expected);
    let mut users = vec![null.clone(); 14];
    for index in [0, 1, 11, 12, 13] {
        users[index] = user.clone();
    }
    assert_eq!(field("user"), users);
    let mut apps = vec![app; 14];
    apps[10] = null.clone();
    assert_eq!(field("app_id"), apps);
    assert!(lines[0].as_object().unwrap().contains_key("errcode"));
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_exchanges_in_flight_and_circuit_breaker_are_gauges_from_the_start() {
    let stack = Stack::start_with(
        "[wechat]\nmax_in_flight = 1\nqueue_timeout = \"30s\"\ntimeout = \"30s\"\nbreaker_failures = 2",
    )
    .await;
    let text = client::get(stack.admin, "/metrics").await.text();
    for name in ["wxgate_wechat_queue", "wxgate_wechat_in_flight", "wxgate_wechat_breaker_open"] {
        assert!(text.contains(&format!("\n{name} 0\n")), "{name}");
    }
    let mut held = Vec::new();
    for number in 0..3 {
        let body = json!({ "code": format!("slow-1s-user{number}") }).to_string();
        let length = body.len();
        let mut connection = Connection::open(stack.gateway).await;
        let request =
            format!("POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}");
        connection.send(request.as_bytes()).await;
        held.push(connection);
    }
    stack.until_metric("wxgate_wechat_queue", 2.0).await;
    assert_eq!(stack.metric("wxgate_wechat_in_flight").await, 1.0);
    for connection in &mut held {
        assert_eq!(connection.response(false).await.status, 200);
    }
    assert_eq!(stack.metric("wxgate_wechat_queue").await, 0.0);
    assert_eq!(stack.metric("wxgate_wechat_in_flight").await, 0.0);
    let before = position();
    for number in 0..2 {
        stack.try_login(&format!("drop-{number}")).await;
    }
    assert_eq!(stack.metric("wxgate_wechat_breaker_open").await, 1.0);
    let place = format!("connection closed (http://{})", stack.wechat_address);
    let lines = logged_after(before, &place);
    let is_breaker = |line: &&Value| line.to_string().contains("circuit breaker open");
    assert_eq!(lines.iter().filter(is_breaker).count(), 1, "{lines:?}");
    stack.clock.advance(Duration::from_secs(5));
    stack.login("alice").await;
    assert_eq!(stack.metric("wxgate_wechat_breaker_open").await, 0.0);
}

/// Operators need it to see whose block it is, and to lift it.
#[tokio::test(flavor = "multi_thread")]
async fn the_access_line_of_a_blocked_users_login_has_the_user() {
    let operated = "admin.token = { file = \"{dir}/operator\" }";
    let stack = Stack::start_with(operated).await;
    stack.login("alice").await;
    let path = format!("/sessions?openid={}&block=1h", openid("alice"));
    let blocked = stack.request("DELETE", &path).bearer(OPERATOR).send_to_admin().await;
    assert_eq!(blocked.status, 204);
    for _ in 0..2 {
        // The second gets the response of the first.
        let rejected = stack.try_login("user-alice-2").await;
        rejected.assert_error(403, "login_refused", "none");
    }
    let lines = access_lines(&stack, 3).await;
    assert!(lines[0]["user"].is_string());
    assert!(lines.iter().all(|line| line["user"] == lines[0]["user"]), "{lines:#?}");
}
