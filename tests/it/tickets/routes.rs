//! Tickets and routes: for which paths there are tickets, and what a route can change.

use serde_json::json;

use super::{ON, ask, start, ticket, with};
use crate::harness::client::Connection;
use crate::harness::upstream::Reply;
use crate::harness::{Stack, THREE_ROUTES, TWO_APPS};

#[tokio::test(flavor = "multi_thread")]
async fn only_paths_that_a_route_serves_get_a_ticket() {
    let (stack, token) = start().await;
    let long = format!("/required/{}", "a".repeat(2048 - 10));
    for path in ["/required", "/required/a?b=http://c//d&e", "/none/%E4%BD%A0", &long] {
        ticket(&stack, &token, path).await;
    }
    for path in [
        "",
        "required",
        "//required",
        "/required//a",
        "/\\required",
        "/required\\a",
        "/required/\u{1}",
        "/required/a\r\nb",
        "/required/a b",
        "/required/\u{4f60}",
        "/required/%00",
        "/required/%zz",
        "/required/../none",
        "/required#a",
        "http://gateway.test/required",
        "/nowhere",
        "/ticket",
        "/login",
        "/required?wxgate_ticket=x",
        "/required?a&wxgate_ticket=",
        &format!("{long}a"),
    ] {
        let response = ask(&stack, &token, &json!({ "path": path })).await;
        response.assert_error(400, "bad_request", "none");
    }
    for body in [
        "",
        "{}",
        "[]",
        "path=/required",
        "{\"path\":1}",
        "{\"path\":\"/required\",\"reuse\":1}",
        "{\"path\":\"/required\",\"cookie\":null}",
        "{\"path\":\"/required\",\"path\":\"/none\"}",
        "{\"path\":\"/required\"} {}",
    ] {
        let response = stack.post("/ticket").token(&token).body(body).send().await;
        response.assert_error(400, "bad_request", "none");
    }
    let spaces = " ".repeat(4096);
    let response = stack.post("/ticket").token(&token).body(spaces.clone() + "{}").send().await;
    response.assert_error(413, "body_too_large", "none");
    let whole = format!("{{\"path\":\"/required\"{}}}", &spaces[..4096 - 20]);
    assert_eq!(stack.post("/ticket").token(&token).body(whole).send().await.status, 200);
    let body = json!({ "path": "/required" });
    let response = stack.post("/ticket").json(&body).send().await;
    response.assert_error(401, "missing_token", "login");
    ask(&stack, &"A".repeat(43), &body).await.assert_error(401, "session_expired", "login");
    let response = stack.get("/ticket").token(&token).send().await;
    response.assert_error(405, "method_not_allowed", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_may_be_that_of_a_route_on_another_host() {
    let routes = "[[route]]\npath = \"/required\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                  host = [\"gateway.test\"]\n\
                  [[route]]\npath = \"/pictures\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                  host = [\"*.images.test\"]\n";
    let stack = Stack::start_with(&format!("{ON}{routes}")).await;
    let token = stack.login("alice").await;
    let used = with("/pictures/1", &ticket(&stack, &token, "/pictures/1").await);
    stack.get(&used).send().await.assert_error(404, "no_route", "none");
    let mut connection = Connection::open(stack.gateway).await;
    let request = format!("GET {used} HTTP/1.1\r\nHost: a.images.test\r\n\r\n");
    connection.send(request.as_bytes()).await;
    assert_eq!(connection.response(false).await.status, 200);
    let response = ask(&stack, &token, &json!({ "path": "/videos" })).await;
    response.assert_error(400, "bad_request", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_tickets_are_off_path_and_parameter_are_the_services() {
    let stack = Stack::start_with(THREE_ROUTES).await;
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"optional\"\n";
    let off = Stack::start_with(&format!("ticket.enabled = false\n{route}")).await;
    let token = off.login("alice").await;
    let body = json!({ "path": "/" });
    let received = off.post("/ticket").token(&token).json(&body).forwarded().await;
    assert_eq!(received.target(), "/ticket");
    let received = off.get("/a?wxgate_ticket=x&wxgate_ticket=y").token(&token).forwarded().await;
    assert_eq!(received.target(), "/a?wxgate_ticket=x&wxgate_ticket=y");
    let response = stack.get("/required?wxgate_ticket=x").send().await;
    response.assert_error(401, "missing_token", "login");
    assert_eq!(response.header("referrer-policy"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_service_and_no_route_can_change_the_protection_of_the_response() {
    let routes = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                  cache = \"as_sent\"\n\
                  set_response_headers = { \"Referrer-Policy\" = \"unsafe-url\" }\n\
                  [[route]]\npath = \"/fixed\"\nauth = \"required\"\n\
                  respond = { body = \"x\" }\n";
    let everywhere = "server.response_headers = { \"Referrer-Policy\" = \"origin\" }\n";
    let stack = Stack::start_with(&format!("{ON}{everywhere}{routes}")).await;
    let token = stack.login("alice").await;
    for (given, expected) in [
        ("", "private"),
        ("max-age=60", "private, max-age=60"),
        ("no-store", "no-store"),
        ("public, max-age=60", "private"),
        ("max-age=60, s-maxage=60", "private"),
    ] {
        let lines =
            format!("Referrer-Policy: origin\r\nReferrer-Policy: a\r\nCache-Control: {given}\r\n");
        stack.upstream.reply(move |_| Reply::ok(&lines, ""));
        let used = with("/a", &ticket(&stack, &token, "/a").await);
        let response = stack.get(&used).send().await;
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(response.header("cache-control"), Some(expected), "{given}");
    }
    let used = with("/fixed", &ticket(&stack, &token, "/fixed").await);
    let response = stack.get(&used).send().await;
    assert_eq!((response.status, response.text().as_str()), (200, "x"));
    assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
    assert!(response.header("cache-control").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_apps_of_a_route_and_its_rate_hold_for_tickets() {
    let routes = "[[route]]\npath = \"/other\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                  apps = [\"wxfedcba9876543210\"]\n\
                  [[route]]\npath = \"/slow\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                  rate_per_user = \"1/h\"\n";
    let stack = Stack::start_with(&format!("{ON}{}{routes}", TWO_APPS)).await;
    let token = stack.login("alice").await;
    let used = with("/other", &ticket(&stack, &token, "/other").await);
    stack.get(&used).send().await.assert_error(403, "wrong_app", "none");
    for status in [200, 429] {
        let used = with("/slow", &ticket(&stack, &token, "/slow").await);
        assert_eq!(stack.get(&used).send().await.status, status);
    }
}
