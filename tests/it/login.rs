//! The login endpoint: which requests it accepts, and its responses.

mod kinds;
mod wechat;

use std::time::Duration;

use serde_json::json;

use crate::harness::client::{self, Response};
use crate::harness::{APP, OTHER_APP, Stack, openid};

#[tokio::test(flavor = "multi_thread")]
async fn a_code_becomes_a_token_and_the_response_has_nothing_else() {
    let stack = Stack::start().await;
    let response = stack.try_login("user-alice-1").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("cache-control"), Some("no-store"));
    assert_eq!(response.header("content-type"), Some("application/json"));
    let body = response.json();
    assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
    let token = body["token"].as_str().unwrap();
    assert_eq!(token.len(), 43);
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["expires_in"], 7200);
    assert!(!response.text().contains(&openid("alice")));
    let received = stack.get("/").token(token).forwarded().await;
    assert_eq!(received.all("x-openid"), [openid("alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_accepted_as_json_and_as_a_form() {
    let stack = Stack::start().await;
    let json = r#"{"code":"user-a-1","nickName":"x"}"#;
    for (number, content_type) in
        [None, Some("text/plain"), Some("application/json")].iter().enumerate()
    {
        let body = json.replace("a-1", &format!("a-{number}"));
        let request = stack.post("/login").body(body);
        let request = match content_type {
            Some(content_type) => request.header("Content-Type", content_type),
            None => request,
        };
        assert_eq!(request.send().await.status, 200, "{content_type:?}");
    }
    let form = stack.post("/login").header("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(form.body("code=user-b-1&x=y").send().await.status, 200);
    let chunked = stack.post("/login").body(r#"{"code":"user-c-1"}"#).chunked();
    assert_eq!(chunked.send().await.status, 200);
    let asked =
        stack.post("/login").header("Expect", "100-continue").body(r#"{"code":"user-d-1"}"#);
    assert_eq!(asked.send().await.status, 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_accepted_only_if_it_is_configured() {
    let stack = Stack::start().await;
    let rejected = stack.get("/login?code=user-a-1").send().await;
    rejected.assert_error(405, "method_not_allowed", "none");
    assert_eq!(rejected.header("allow"), Some("POST"));
    assert_eq!(stack.sandbox.exchanges(), 0);

    let stack = Stack::start_with(r#"login.accept = ["json", "query"]"#).await;
    assert_eq!(stack.get("/login?code=user-a-1").send().await.status, 200);
    stack.get("/login").send().await.assert_error(400, "bad_request", "none");
    stack.get("/login?code=a&code=b").send().await.assert_error(400, "bad_request", "none");
    let rejected = stack.request("PUT", "/login").send().await;
    assert_eq!(rejected.header("allow"), Some("GET, POST"));
    let form = stack.post("/login").header("Content-Type", "application/x-www-form-urlencoded");
    form.body("code=user-b-1").send().await.assert_error(400, "bad_request", "none");
}

/// Clients and proxies may repeat the line or send a list; it must be a single type.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_content_type_counts_once() {
    let stack = Stack::start().await;
    let form = "application/x-www-form-urlencoded";
    let json = "application/json";
    for (number, (lines, is_form)) in [
        (&["application/json, application/json"][..], false),
        (&["application/json", "application/json"], false),
        (&["application/json; charset=utf-8", "Application/JSON;charset=gbk"], false),
        (&["application/json,,", ""], false),
        (&["application/json; a=\"b, text/plain\""], false),
        (&["application/json; charset=GB2312"], false),
        (&["text/plain", "text/plain; charset=UTF-8"], false),
        (&["", ""], false),
        (&[form, form], true),
        (&["application/x-www-form-urlencoded; charset=UTF-8, application/x-www-form-urlencoded"], true),
    ]
    .into_iter()
    .enumerate()
    {
        let code = format!("user-a-{number}");
        let body =
            if is_form { format!("code={code}") } else { json!({ "code": code }).to_string() };
        let mut request = stack.post("/login");
        for line in lines {
            request = request.header("Content-Type", line);
        }
        let answer = request.body(body).send().await;
        assert_eq!(answer.status, 200, "{lines:?} {}", answer.text());
    }
    for lines in [
        &["application/json, text/plain"][..],
        &["application/json", form],
        &["text/plain", "application/json"],
        &[json, "application/json, multipart/form-data"],
    ] {
        let mut request = stack.post("/login");
        for line in lines {
            request = request.header("Content-Type", line);
        }
        let answer = request.body(r#"{"code":"user-b-1"}"#).send().await;
        answer.assert_error(400, "bad_request", "none");
        assert!(answer.text().contains("Content-Type"), "{}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_app_id_counts_as_none() {
    let stack = Stack::start_with(r#"login.accept = ["json", "form", "query"]"#).await;
    let json = |body: &str| stack.post("/login").body(body);
    let form = |body: &str| {
        stack.post("/login").header("Content-Type", "application/x-www-form-urlencoded").body(body)
    };
    for request in [
        json(r#"{"code":"user-a-1","app_id":""}"#),
        json(r#"{"code":"user-a-2","app_id":null}"#),
        form("code=user-a-3&app_id="),
        form("app_id&code=user-a-4"),
        stack.get("/login?code=user-a-5&app_id="),
    ] {
        let response = request.send().await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    for request in [
        form("code=user-b-1&app_id=&app_id="),
        form(&format!("code=user-b-1&app_id=&app_id={APP}")),
        json(r#"{"code":"user-b-1","app_id":"","app_id":""}"#),
        json(r#"{"code":"user-b-1","app_id":" "}"#),
    ] {
        request.send().await.assert_error(400, "bad_request", "none");
    }
}

/// `curl -d` always claims to send a form.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_in_another_format_than_its_content_type_is_rejected_with_the_reason() {
    let stack = Stack::start().await;
    let only_json = Stack::start_with(r#"login.accept = ["json"]"#).await;
    let only_form = Stack::start_with(r#"login.accept = ["form"]"#).await;
    let form = "application/x-www-form-urlencoded";
    let json = "{\"code\":\"user-a-1\"}";
    for (stack, content_type, body, has, has_not) in [
        (&stack, form, json, "send \"Content-Type: application/json\"", "one field"),
        (&stack, form, " \n{\"code\":", "because of its Content-Type", "one field"),
        (&only_form, form, json, "because of its Content-Type", "application/json"),
        (&stack, "application/json", "code=user-a-1", form, ""),
        (&stack, "text/plain", "app_id=x&code=user-a-1", form, ""),
        (&stack, "", "code=user-a-1", form, ""),
        (&only_json, "", "code=user-a-1", "is not JSON", form),
        (&stack, "multipart/form-data; boundary=x", "--x", form, ""),
        (&only_json, form, "code=user-a-1", "application/json", form),
        (&only_form, "application/json", json, form, "application/json"),
        (&stack, "", "", "is empty", ""),
        (&stack, form, "", "is empty", ""),
        (&stack, form, "x=y", "\"code\" is missing", ""),
        (&stack, form, "user-a-1", "was read as a form", ""),
        (&stack, form, "[\"user-a-1\"]", "was read as a form", ""),
        // What cmd.exe makes of JSON in single quotes.
        (&stack, form, "'{code:user-a-1}'", "was read as a form", ""),
        (&stack, "", "{}", "\"code\" is missing", ""),
        (&stack, "", "[]", "an object", ""),
        (&stack, "", "{\"code\":1}", "\"code\" must be a string", ""),
        (&stack, "", "{\"code\":\"a\",\"app_id\":1}", "\"app_id\" must be a string", ""),
        (&stack, "", "{\"code\":\"a\",\"code\":\"a\"}", "is repeated", ""),
        (&stack, "", "{\"code\":\"a\"", "is not JSON", ""),
        (&stack, "", "{\"code\":\"\u{4f60}", "is not JSON", ""),
        (&stack, form, "code=a&code=a", "is repeated", ""),
    ] {
        let request = match content_type {
            "" => stack.post("/login"),
            content_type => stack.post("/login").header("Content-Type", content_type),
        };
        let answer = request.body(body).send().await;
        answer.assert_error(400, "bad_request", "none");
        let message = answer.json()["message"].as_str().unwrap().to_owned();
        assert!(message.contains(has), "{body}: {message}");
        assert!(has_not.is_empty() || !message.contains(has_not), "{body}: {message}");
    }
    assert_eq!(stack.sandbox.exchanges(), 0);
}

/// Editors and PowerShell write one; RFC 8259, section 8.1, lets a reader ignore it.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_order_mark_before_a_login_is_ignored() {
    let stack = Stack::start().await;
    let json = stack.post("/login").body("\u{feff}{\"code\":\"user-a-1\"}");
    assert_eq!(json.send().await.status, 200);
    let form = stack.post("/login").header("Content-Type", "application/x-www-form-urlencoded");
    assert_eq!(form.body("\u{feff}code=user-a-2").send().await.status, 200);
    let twice = stack.post("/login").body("\u{feff}\u{feff}{\"code\":\"user-a-3\"}");
    twice.send().await.assert_error(400, "bad_request", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_login_is_rejected_before_wechat_is_called() {
    let stack = Stack::start().await;
    for body in [
        "",
        "{}",
        "[]",
        "not json",
        r#"{"code":1}"#,
        r#"{"code":"a","code":"b"}"#,
        r#"{"code":""}"#,
        r#"{"code":"a&secret=b"}"#,
        r#"{"code":"a\r\nb"}"#,
        r#"{"code":"a b"}"#,
        r#"{"code":"user-a","app_id":"wxunknown"}"#,
    ] {
        let response = stack.post("/login").body(body).send().await;
        response.assert_error(400, "bad_request", "none");
    }
    let long = format!(r#"{{"code":"{}"}}"#, "a".repeat(129));
    stack.post("/login").body(long).send().await.assert_error(400, "bad_request", "none");
    let odd = stack.post("/login").header("Content-Type", "multipart/form-data; boundary=x");
    odd.body(r#"{"code":"user-a"}"#).send().await.assert_error(400, "bad_request", "none");
    let big = vec![b' '; 17 << 10];
    let response = stack.post("/login").body(big.clone()).send().await;
    response.assert_error(413, "body_too_large", "none");
    let response = stack.post("/login").body(big).chunked().send().await;
    response.assert_error(413, "body_too_large", "none");
    assert_eq!(stack.sandbox.exchanges(), 0);
    let unknown = "wxgate_logins_total{app_id=\"unknown\",outcome=\"bad_request\"}";
    assert!(stack.metric(unknown).await >= 5.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_code_of_the_developer_tools_is_rejected_without_calling_wechat() {
    let stack = Stack::start().await;
    let response = stack.try_login("the code is a mock one").await;
    response.assert_error(401, "invalid_code", "login");
    assert_eq!(stack.sandbox.exchanges(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_errcode_has_its_response() {
    let stack = Stack::start().await;
    for (errcode, status, error, action, counted) in [
        (40029, 401, "invalid_code", "login", "40029"),
        (40163, 401, "invalid_code", "login", "40163"),
        (41008, 401, "invalid_code", "login", "41008"),
        (40226, 403, "user_blocked", "none", "40226"),
        (45011, 429, "rate_limited", "retry", "45011"),
        (-1, 503, "wechat_busy", "retry", "-1"),
        (45009, 503, "wechat_busy", "retry", "45009"),
        (40013, 502, "wechat_rejected", "none", "40013"),
        (40125, 502, "wechat_rejected", "none", "40125"),
        (40164, 502, "wechat_rejected", "none", "40164"),
        (89503, 502, "wechat_rejected", "none", "89503"),
        (77777, 502, "wechat_rejected", "none", "other"),
    ] {
        let answer = stack.try_login(&format!("err-{errcode}-x")).await;
        answer.assert_error(status, error, action);
        let has_delay = answer.header("retry-after").is_some();
        assert_eq!(has_delay, matches!(status, 429 | 503), "{errcode}");
        assert!(!answer.text().contains("rid"), "{}", answer.text());
        let counter =
            format!("wxgate_code2session_requests_total{{app_id=\"{APP}\",errcode=\"{counted}\"}}");
        assert_eq!(stack.metric(&counter).await, 1.0, "{counter}");
        // Without quota WeChat is called once a minute.
        stack.clock.advance(Duration::from_secs(60));
    }
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_good_once_and_for_five_minutes() {
    let stack = Stack::start_with("login.replay_window = \"0s\"").await;
    assert_eq!(stack.try_login("user-alice-1").await.status, 200);
    stack.try_login("user-alice-1").await.assert_error(401, "invalid_code", "login");
    stack.try_login("no-such-code").await.assert_error(401, "invalid_code", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_several_apps_are_kept_apart() {
    let app = |app_id: &str, rest: &str| {
        format!(
            "[[app]]\napp_id = \"{app_id}\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n{rest}\n"
        )
    };
    let stack = Stack::start_with(&(app(APP, "") + &app(OTHER_APP, "default = true"))).await;
    let token = |response: Response| response.json()["token"].as_str().unwrap().to_owned();
    let default = token(stack.try_login("user-a-1").await);
    let body = json!({ "code": "user-a-2", "app_id": APP });
    let named = token(stack.post("/login").json(&body).send().await);
    assert_eq!(stack.get("/").token(&default).forwarded().await.all("x-appid"), [OTHER_APP]);
    let received = stack.get("/").token(&named).forwarded().await;
    assert_eq!(received.all("x-appid"), [APP]);
    assert_eq!(received.all("x-openid"), [openid("a")]);

    let stack = Stack::start_with(&(app(APP, "") + &app(OTHER_APP, ""))).await;
    stack.try_login("user-a-1").await.assert_error(400, "bad_request", "none");
}

/// A slow client cannot keep a login open: the body must come within `limits.body_timeout`.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_a_timeout() {
    let stack = Stack::start_with(r#"limits.body_timeout = "200ms""#).await;
    let mut connection = crate::harness::client::Connection::open(stack.gateway).await;
    connection.send(b"POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{").await;
    connection.response(false).await.assert_error(408, "request_timeout", "none");
}

/// A code of the sandbox expires like a real one, on the clock that tests advance.
#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_older_than_five_minutes_is_worth_nothing() {
    let stack = Stack::start().await;
    let sandbox = stack.wechat_address;
    let fresh = async || {
        let given = client::post(sandbox, "/sandbox/codes", &json!({ "user": "alice" })).await;
        given.json()["code"].as_str().unwrap().to_owned()
    };
    let (used, old) = (fresh().await, fresh().await);
    stack.clock.advance(Duration::from_secs(299));
    assert_eq!(stack.try_login(&used).await.status, 200);
    stack.clock.advance(Duration::from_secs(1));
    stack.try_login(&old).await.assert_error(401, "invalid_code", "login");
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_logins_are_counted_and_disconnected_clients_separately() {
    let stack = Stack::start().await;
    let rejected = stack.post("/login").body(vec![b'x'; 20_000]).send().await;
    rejected.assert_error(413, "body_too_large", "none");
    let counted = "wxgate_logins_total{app_id=\"unknown\",outcome=\"body_too_large\"}";
    assert_eq!(stack.metric(counted).await, 1.0);
    let twice = stack
        .post("/login")
        .header("Content-Type", "text/plain")
        .header("Content-Type", "application/json");
    twice.body(r#"{"code":"user-a"}"#).send().await.assert_error(400, "bad_request", "none");

    let mut connection = client::Connection::open(stack.gateway).await;
    connection.send(b"POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{").await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    drop(connection);
    stack.until_metric("wxgate_http_requests_total{code=\"499\",route=\"@login\"}", 1.0).await;
}
