//! Tickets: a session for one path, in places that can send no header.

mod cookie;
mod routes;
mod stores;

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::client::{Connection, Response};
use crate::harness::redis::RedisServer;
use crate::harness::upstream::{Reply, Step, Upstream};
use crate::harness::{Stack, THREE_ROUTES, openid};
use crate::shared_store::{gateway, url};
use crate::upstreams::upstream;

pub const ON: &str = "ticket.enabled = true\n";

/// Asks for a ticket.
pub async fn ask(stack: &Stack, token: &str, body: &Value) -> Response {
    stack.post("/ticket").token(token).json(body).send().await
}

/// A ticket with these fields.
pub async fn ticket_with(stack: &Stack, token: &str, body: &Value) -> String {
    let response = ask(stack, token, body).await;
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let body = response.json();
    assert_eq!(body["expires_in"], 30);
    let ticket = body["ticket"].as_str().unwrap().to_owned();
    let is_base64url = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    assert!(ticket.len() == 43 && ticket.chars().all(is_base64url), "{ticket}");
    ticket
}

/// A ticket for a path.
pub async fn ticket(stack: &Stack, token: &str, path: &str) -> String {
    ticket_with(stack, token, &json!({ "path": path })).await
}

/// The path with a ticket in its query.
pub fn with(path: &str, ticket: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}wxgate_ticket={ticket}")
}

async fn start() -> (Stack, String) {
    let stack = Stack::start_with(&format!("{ON}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    (stack, token)
}

#[track_caller]
fn assert_ended(response: &Response) {
    response.assert_error(401, "session_expired", "login");
    assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_serves_one_request_with_its_session() {
    let (stack, token) = start().await;
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    let response = stack.get(&used).header("Cookie", "a=b").send().await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(response.header("cache-control"), Some("private"));
    assert_eq!(response.header("vary"), Some("X-3rd-Session, Authorization"));
    let received = stack.upstream.requests();
    assert_eq!(received[0].target(), "/required/a");
    assert_eq!(received[0].all("x-openid"), [openid("alice")]);
    assert_eq!(received[0].all("cookie"), ["a=b"]);
    assert_ended(&stack.get(&used).send().await);
    assert_eq!(stack.upstream.requests().len(), 1);
    let decisions = |one| format!("wxgate_auth_decisions_total{{decision=\"{one}\"}}");
    // The request for the ticket, and the ticket itself.
    assert_eq!(stack.metric(&decisions("ok")).await, 2.0);
    assert_eq!(stack.metric(&decisions("invalid")).await, 1.0);
    let requests = "wxgate_http_requests_total{code=\"200\",route=\"@ticket\"}";
    stack.until_metric(requests, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_parameter_is_removed_byte_for_byte_wherever_it_is() {
    let rewritten = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                     [[route]]\npath = \"/api\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                     strip_prefix = \"/api\"\nadd_prefix = \"/v2\"\n";
    let stack = Stack::start_with(&format!("{ON}{rewritten}")).await;
    let token = stack.login("alice").await;
    for (given, expected) in [
        ("/api/a?wxgate_ticket={}", "/v2/a"),
        ("/api/a?wxgate_ticket={}&b=%2f+c", "/v2/a?b=%2f+c"),
        ("/api/a?b=1&wxgate_ticket={}", "/v2/a?b=1"),
        ("/api/a?b=1&wxgate_ticket={}&&c", "/v2/a?b=1&&c"),
        ("/x?wxgate_ticket={}", "/x"),
        ("/x?wxgate_ticket={}&b=%E4%BD%A0;c=?d", "/x?b=%E4%BD%A0;c=?d"),
        ("/x?b=1&wxgate_ticket={}&c=2", "/x?b=1&c=2"),
        ("/x?&wxgate_ticket={}", "/x?"),
        ("http://gateway.test?wxgate_ticket={}", "/"),
        ("http://gateway.test/x?b&wxgate_ticket={}", "/x?b"),
    ] {
        let path = given.strip_prefix("http://gateway.test").unwrap_or(given);
        let path = path.split('?').next().unwrap();
        let ticket = ticket(&stack, &token, if path.is_empty() { "/" } else { path }).await;
        let forwarded = stack.get(&given.replace("{}", &ticket)).forwarded().await;
        assert_eq!(forwarded.target(), expected, "{given}");
        assert_eq!(forwarded.all("x-openid"), [openid("alice")], "{given}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_get_head_and_a_websocket_handshake_are_served_by_a_ticket() {
    const ACCEPTED: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"required\"\n\
                 websocket = true\n";
    let stack = Stack::start_with(&format!("{ON}{route}")).await;
    let token = stack.login("alice").await;
    let used = with("/a", &ticket(&stack, &token, "/a").await);
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"] {
        assert_ended(&stack.request(method, &used).send().await);
    }
    assert_eq!(stack.request("HEAD", &used).send().await.status, 200);
    assert_ended(&stack.get(&used).send().await);
    assert_eq!(stack.upstream.requests().len(), 1);

    stack.upstream.reply(|_| Reply::Echo(ACCEPTED.to_vec()));
    let used = with("/socket", &ticket(&stack, &token, "/socket").await);
    for status in [101, 401] {
        let request =
            stack.get(&used).header("Connection", "Upgrade").header("Upgrade", "websocket");
        let request = request.header("Sec-WebSocket-Version", "13");
        let request = request.header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&request.header("Origin", "https://other.test").bytes()).await;
        assert_eq!(connection.response(false).await.status, status);
        if status == 101 {
            connection.send(b"hello").await;
            assert!(connection.reads(b"hello").await);
        }
    }
    let received = stack.upstream.requests();
    assert_eq!(received[1].target(), "/socket");
    assert_eq!(received[1].all("x-openid"), [openid("alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_on_another_path_is_rejected_and_not_spent() {
    let (stack, token) = start().await;
    for (made_for, wrong, right) in [
        ("/required/a", "/required/b", "/required/a"),
        ("/required/a", "/required/a/", "/required/a?any=query"),
        ("/required/a", "/required/A", "/required/a"),
        ("/required/a", "/required/%61", "/required/a"),
        ("/required/a/b", "/required/a%2fb", "/required/a/b"),
        ("/required/a?id=1", "/required/a?id=2", "/required/a?id=1"),
        ("/required/a?id=1", "/required/a", "/required/a?id=1"),
        ("/required/a?id=1", "/required/a?id=1&id=2", "/required/a?id=1"),
        ("/required/a?id=1&b=2", "/required/a?b=2&id=1", "/required/a?id=1&b=2"),
        ("/required/a", "/optional/a", "/required/a"),
    ] {
        let ticket = ticket(&stack, &token, made_for).await;
        assert_ended(&stack.get(&with(wrong, &ticket)).send().await);
        assert_eq!(stack.get(&with(right, &ticket)).send().await.status, 200, "{made_for}");
    }
    // The parameter may be anywhere in a query that the ticket is for.
    let ticket = ticket(&stack, &token, "/required/a?id=1&b=2").await;
    let between = format!("/required/a?id=1&wxgate_ticket={ticket}&b=2");
    assert_eq!(stack.get(&between).forwarded().await.target(), "/required/a?id=1&b=2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_beside_another_one_or_a_token_is_a_bad_request() {
    let (stack, token) = start().await;
    let ticket = ticket(&stack, &token, "/required/a").await;
    let used = with("/required/a", &ticket);
    for path in [with(&used, &ticket), with(&used, ""), with("/none?wxgate_ticket=", &ticket)] {
        stack.get(&path).send().await.assert_error(400, "bad_request", "none");
    }
    let shaped = "A".repeat(43);
    for (name, value) in [
        ("X-3rd-Session", token.as_str()),
        ("X-3rd-Session", &shaped),
        ("X-3rd-Session", "malformed"),
        ("Authorization", &format!("Bearer {token}")),
        ("Authorization", &format!("bearer {shaped}")),
    ] {
        let response = stack.get(&used).header(name, value).send().await;
        response.assert_error(400, "bad_request", "none");
        assert_eq!(response.header("referrer-policy"), Some("no-referrer"));
    }
    assert_eq!(stack.upstream.requests().len(), 0);
    // Neither is a token of the gateway.
    let request = stack.get(&used).header("X-3rd-Session", "").header("Authorization", "Bearer x");
    let forwarded = request.forwarded().await;
    assert_eq!(forwarded.all("authorization"), ["Bearer x"]);
    assert_eq!(forwarded.all("x-openid"), [openid("alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_without_sessions_only_remove_it_and_optional_ones_read_it() {
    let (stack, token) = start().await;
    let ticket_of_none = ticket(&stack, &token, "/none/a").await;
    for _ in 0..2 {
        let request = stack.get(&with("/none/a?b=1", &ticket_of_none)).forwarded().await;
        assert_eq!((request.target(), request.all("x-openid").len()), ("/none/a?b=1", 0));
    }
    let response = stack.post(&with("/none/a", "anything")).token(&token).send().await;
    assert_eq!(response.status, 200);
    assert_eq!(stack.upstream.requests()[2].target(), "/none/a");
    let used = with("/optional/a", &ticket(&stack, &token, "/optional/a").await);
    assert_eq!(stack.get(&used).forwarded().await.all("x-openid"), [openid("alice")]);
    for bad in [used, with("/optional/a", ""), with("/optional/a", &token)] {
        assert_ended(&stack.get(&bad).send().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reusable_ticket_serves_its_first_client_until_it_expires() {
    let trusted = "server.trusted_proxies = [\"127.0.0.1\"]\n";
    let stack = Stack::start_with(&format!("{ON}{trusted}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let body = json!({ "path": "/required/video", "reuse": true, "other": [1] });
    let used = with("/required/video", &ticket_with(&stack, &token, &body).await);
    let from = async |address: &str| {
        stack.get(&used).header("Range", "bytes=0-").header("X-Forwarded-For", address).send().await
    };
    for _ in 0..3 {
        assert_eq!(from("198.51.100.1").await.status, 200);
        assert_ended(&from("198.51.100.2").await);
        stack.clock.advance(Duration::from_millis(9_999));
    }
    assert_eq!(from("198.51.100.1").await.status, 200);
    stack.clock.advance(Duration::from_millis(3));
    assert_ended(&from("198.51.100.1").await);
    assert_eq!(stack.upstream.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_a_use_of_its_session_and_ends_with_it() {
    let (stack, token) = start().await;
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    stack.clock.advance(Duration::from_secs(29));
    assert_eq!(stack.get(&used).send().await.status, 200);
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    stack.clock.advance(Duration::from_secs(30));
    assert_ended(&stack.get(&used).send().await);

    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    assert_ended(&stack.get(&used).send().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_moves_the_idle_end_of_its_session() {
    let idle = "session.idle_timeout = \"20s\"\n";
    let stack = Stack::start_with(&format!("{ON}{idle}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    stack.clock.advance(Duration::from_secs(15));
    assert_eq!(stack.get(&used).send().await.status, 200);
    stack.clock.advance(Duration::from_secs(15));
    assert_eq!(stack.get("/required").token(&token).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_attempt_needs_no_second_ticket() {
    let (sick, well) = (Upstream::start().await, Upstream::start().await);
    sick.reply(|_| Reply::Steps(vec![Step::Reset]));
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"required\"\n";
    let keys = upstream(&[sick.address, well.address], "ejection = { failures = 0 }\n");
    let stack = Stack::start_with(&format!("{ON}{route}{keys}")).await;
    let token = stack.login("alice").await;
    for number in 0..4 {
        let path = format!("/{number}");
        let used = with(&path, &ticket(&stack, &token, &path).await);
        assert_eq!(stack.get(&used).send().await.status, 200);
    }
    let mut targets: Vec<_> = well.requests().iter().map(|one| one.target().to_owned()).collect();
    targets.sort();
    assert_eq!(targets, ["/0", "/1", "/2", "/3"]);
    assert!(!sick.begun_after(0).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_requests_are_served_by_tickets_too() {
    let stack = Stack::start_with(&format!("server.h2c = true\n{ON}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let mut client = crate::http2::Client::open(stack.gateway).await;
    let used = with("/required/a?b=1", &ticket(&stack, &token, "/required/a").await);
    let response = client.get(&used).await.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["referrer-policy"], "no-referrer");
    assert_eq!(response.headers()["cache-control"], "private");
    let response = client.get(&used).await.await.unwrap();
    assert_eq!(response.status(), 401);
    let received = stack.upstream.requests();
    assert_eq!((received.len(), received[0].target()), (1, "/required/a?b=1"));
    assert_eq!(received[0].all("x-openid"), [openid("alice")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn forward_auth_reads_no_ticket() {
    let listener = "forward_auth.listen = \"127.0.0.1:0\"\n\
                    server.trusted_proxies = [\"127.0.0.1\"]\n";
    let stack = Stack::start_with(&format!("{listener}{ON}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    let decide = async |path: &str| {
        let mut connection = Connection::open(stack.forward_auth.unwrap()).await;
        let request = format!(
            "GET /auth HTTP/1.1\r\nHost: h\r\nX-Forwarded-Method: GET\r\nX-Forwarded-Uri: {path}\r\n\
             X-Forwarded-Host: shop.test\r\nX-Forwarded-Proto: https\r\n\
             X-Forwarded-For: 198.51.100.7\r\n\r\n"
        );
        connection.send(request.as_bytes()).await;
        connection.response(false).await
    };
    decide(&used).await.assert_error(401, "missing_token", "login");
    assert_eq!(decide(&with("/optional/a", "x")).await.status, 200);
    assert_eq!(stack.get(&used).send().await.status, 200);
}

/// The canaries of the harness find a ticket in any log; here the lines are looked at.
#[tokio::test(flavor = "multi_thread")]
async fn the_logs_do_not_show_a_ticket() {
    let log = "log.access = \"{dir}/access.log\"\nlog.level = \"debug\"\n";
    let stack = Stack::start_with(&format!("{log}{ON}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let used = with("/required/a?b=1", &ticket(&stack, &token, "/required/a").await);
    for status in [200, 401] {
        assert_eq!(stack.get(&used).send().await.status, status);
    }
    stack.upstream.reply(|_| Reply::Last(b"not HTTP\r\n\r\n".to_vec()));
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    assert_eq!(stack.get(&used).send().await.status, 502);
    let log = stack.access_log(6).await;
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_tickets = lines.filter(|line| line["path"] == "/required/a");
    let shown: Vec<_> =
        of_tickets.map(|line| (line["status"].clone(), line["decision"].clone())).collect();
    let expected = [(200, "ok"), (401, "invalid"), (502, "ok")];
    assert_eq!(shown, expected.map(|(status, decision)| (status.into(), decision.into())));
    assert!(!log.contains("wxgate_ticket"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_store_a_ticket_is_neither_made_nor_read() {
    let mut server = RedisServer::start();
    let stack = gateway(&url(&server), &format!("{ON}{THREE_ROUTES}")).await;
    let token = stack.login("alice").await;
    let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
    server.kill();
    let response = stack.get(&used).send().await;
    response.assert_error(503, "store_unavailable", "retry");
    let response = ask(&stack, &token, &json!({ "path": "/required" })).await;
    response.assert_error(503, "store_unavailable", "retry");
    assert_eq!(stack.get(&with("/none", "x")).send().await.status, 200);
}
