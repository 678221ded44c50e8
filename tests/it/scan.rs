//! Logins of a browser by a scan with the Mini Program.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;
use wxgate::clock::Clock;
use wxgate::server::Command;

use crate::harness::client::{Connection, Response};
use crate::harness::redis::RedisServer;
use crate::harness::wechat_api::{WeChatApi, reply};
use crate::harness::{APP, Stack, TWO_APPS, openid, until};
use crate::shared_store;

/// Changes with a host of web pages and scans.
pub const SCANS: &str = r#"
    [[browser]]
    base_url = "https://gateway.test"
    [[browser]]
    base_url = "https://other.test"
    [scan]
    enabled = true
    app_id = "wx0123456789abcdef"
"#;

pub const CHROME: &str = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, \
                          like Gecko) Chrome/138.0.0.0 Safari/537.36";

/// A browser that has begun a scan.
pub struct Page {
    pub id: String,
    pub content: String,
    /// Its cookies, as it sends them.
    pub cookie: String,
}

impl Page {
    pub async fn open(stack: &Stack) -> Self {
        let response = stack.post("/scan").header("User-Agent", CHROME).send().await;
        Self::of(&response)
    }

    pub fn of(response: &Response) -> Self {
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.header("cache-control"), Some("no-store"));
        let body = response.json();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let cookie = response.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        Self { id: text("scan_id"), content: text("content"), cookie }
    }

    /// The request of a poll by a page that knows this state.
    pub fn poll_bytes(&self, stack: &Stack, state: &str) -> Vec<u8> {
        let path = format!("/scan/{}?state={state}", self.id);
        stack.get(&path).header("Cookie", &self.cookie).bytes()
    }

    pub async fn poll(&self, stack: &Stack, state: &str) -> Response {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&self.poll_bytes(stack, state)).await;
        connection.response(false).await
    }

    /// The state that a poll finds.
    pub async fn state(&self, stack: &Stack, known: &str) -> String {
        let response = self.poll(stack, known).await;
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.header("cache-control"), Some("no-store"));
        response.json()["state"].as_str().unwrap().to_owned()
    }

    pub async fn image(&self, stack: &Stack) -> Response {
        let path = format!("/scan/{}.png", self.id);
        stack.get(&path).header("Cookie", &self.cookie).send().await
    }
}

/// A step of a phone.
pub async fn step(stack: &Stack, token: &str, id: &str, action: &str) -> Response {
    let path = format!("/scan/{id}");
    stack.post(&path).token(token).json(&json!({ "action": action })).send().await
}

/// The session cookie of a response, as it is sent.
pub fn session_cookie(response: &Response) -> Option<String> {
    let lines = response.all("set-cookie");
    let line = lines.iter().find(|line| line.starts_with("__Host-wxgate="))?;
    Some(line.split(';').next().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_logged_in_by_a_phone() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    assert_eq!(page.content, format!("https://gateway.test/scan/{}", page.id));
    assert!(page.id.len() <= 32, "{}", page.id);
    let mut poll = Connection::open(stack.gateway).await;
    poll.send(&page.poll_bytes(&stack, "waiting")).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    assert!(poll.is_silent(Duration::from_millis(50)).await);

    let scanned = step(&stack, &phone, &page.id, "scan").await;
    assert_eq!(scanned.status, 200, "{}", scanned.text());
    let shown = scanned.json();
    assert_eq!(shown["browser"], "Chrome on Windows");
    assert_eq!(shown["address"], "127.0.0.1");
    let since = shown["since"].as_str().unwrap();
    assert!(since.ends_with('Z') && since.len() == "2026-01-01T00:00:00Z".len(), "{since}");
    assert_eq!(shown.as_object().unwrap().len(), 3);
    assert_eq!(poll.response(false).await.json(), json!({ "state": "scanned" }));
    // A response may be lost.
    assert_eq!(step(&stack, &phone, &page.id, "scan").await.json(), shown);

    poll.send(&page.poll_bytes(&stack, "scanned")).await;
    let confirmed = step(&stack, &phone, &page.id, "confirm").await;
    assert_eq!((confirmed.status, confirmed.text()), (204, String::new()));
    let response = poll.response(false).await;
    assert_eq!(response.json(), json!({ "state": "confirmed" }));
    assert_eq!(response.header("cache-control"), Some("no-store"));
    let lines = response.all("set-cookie");
    assert_eq!(lines.len(), 2, "{lines:?}");
    let attributes = "; Path=/; HttpOnly; SameSite=Lax; Secure";
    assert!(lines[0].starts_with("__Host-wxgate=") && lines[0].ends_with(attributes));
    assert_eq!(lines[1], format!("__Host-wxgate-scan={attributes}; Max-Age=0"));

    let cookie = session_cookie(&response).unwrap();
    let received = stack.get("/x").header("Cookie", &cookie).forwarded().await;
    assert_eq!(received.all("x-openid"), [openid("alice")]);
    assert_eq!(received.all("cookie"), [""; 0]);
    assert!(!cookie.contains(&phone), "the browser has a session of its own");
    stack.post("/logout").token(&phone).send().await;
    let left = stack.get("/x").header("Cookie", &cookie).send().await;
    assert_eq!(left.status, 200, "the phone's session is another one");
    // Logged in by a code, and by a scan.
    let logins = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"ok\"}}");
    assert!((stack.metric(&logins).await - 2.0).abs() < 1e-9);
    assert_eq!(page.state(&stack, "scanned").await, "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_scan_logs_no_browser_in() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    assert_eq!(step(&stack, &phone, &page.id, "scan").await.status, 200);
    let mut poll = Connection::open(stack.gateway).await;
    poll.send(&page.poll_bytes(&stack, "scanned")).await;
    assert_eq!(step(&stack, &phone, &page.id, "deny").await.status, 204);
    let response = poll.response(false).await;
    assert_eq!(response.json(), json!({ "state": "denied" }));
    assert_eq!(response.header("set-cookie"), None);
    step(&stack, &phone, &page.id, "confirm").await.assert_error(403, "not_allowed", "none");
    assert_eq!(page.state(&stack, "scanned").await, "denied");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_the_user_and_no_id() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    step(&stack, &phone, &page.id, "scan").await;
    step(&stack, &phone, &page.id, "confirm").await;
    let response = page.poll(&stack, "scanned").await;
    assert_eq!(response.json()["state"], "confirmed");
    page.image(&stack).await;
    step(&stack, &phone, "../secret", "scan").await;
    let log = stack.access_log(7).await;
    assert!(!log.contains(&page.id), "{log}");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines[2..5] {
        assert_eq!(line["path"], "/scan/", "{line}");
        assert_eq!(line["route"], "@scan", "{line}");
        assert_eq!(line["app_id"], APP, "{line}");
        assert_eq!(line["user"], lines[0]["user"], "{line}");
    }
    assert_eq!((&lines[1]["path"], &lines[1]["route"]), (&json!("/scan"), &json!("@scan")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_ends_by_time_and_says_so_for_a_while() {
    let stack = Stack::start_with(&format!("{SCANS}lifetime = \"30s\"")).await;
    let phone = stack.login("alice").await;
    let response = stack.post("/scan").send().await;
    assert_eq!(response.json()["expires_in"], 30);
    let (waiting, scanned) = (Page::of(&response), Page::open(&stack).await);
    step(&stack, &phone, &scanned.id, "scan").await;
    let mut poll = Connection::open(stack.gateway).await;
    poll.send(&waiting.poll_bytes(&stack, "waiting")).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    stack.clock.advance(Duration::from_secs(30));
    assert_eq!(poll.response(false).await.json(), json!({ "state": "expired" }));
    assert_eq!(scanned.state(&stack, "scanned").await, "expired");
    step(&stack, &phone, &scanned.id, "confirm").await.assert_error(404, "no_route", "none");
    step(&stack, &phone, &waiting.id, "scan").await.assert_error(404, "no_route", "none");
    waiting.image(&stack).await.assert_error(404, "no_route", "none");
    stack.clock.advance(Duration::from_secs(60));
    waiting.poll(&stack, "waiting").await.assert_error(404, "no_route", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_scans_and_the_rate() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    let mut poll = Connection::open(stack.gateway).await;
    poll.send(&page.poll_bytes(&stack, "waiting")).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    assert!(stack.reload(&format!("{SCANS}lifetime = \"1m\"")).await);
    assert_eq!(step(&stack, &phone, &page.id, "scan").await.status, 200);
    assert_eq!(poll.response(false).await.json(), json!({ "state": "scanned" }));
    for _ in 0..9 {
        assert_eq!(stack.post("/scan").send().await.status, 200);
    }
    stack.post("/scan").send().await.assert_error(429, "rate_limited", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_ends_polls() {
    let mut stack = Stack::start_with(&format!("server.shutdown_delay = \"60s\"\n{SCANS}")).await;
    let page = Page::open(&stack).await;
    let mut poll = Connection::open(stack.gateway).await;
    poll.send(&page.poll_bytes(&stack, "waiting")).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    stack.commands.send(Command::Drain).await.unwrap();
    assert_eq!(poll.response(false).await.json(), json!({ "state": "waiting" }));
    assert_eq!(page.state(&stack, "waiting").await, "waiting");
    stack.commands.send(Command::Drain).await.unwrap();
    (&mut stack.ended).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_disconnects_uses_no_scan_up() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    step(&stack, &phone, &page.id, "scan").await;
    let mut poll = Connection::open(stack.gateway).await;
    poll.send(&page.poll_bytes(&stack, "scanned")).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    drop(poll);
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    step(&stack, &phone, &page.id, "confirm").await;
    assert!(session_cookie(&page.poll(&stack, "scanned").await).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn tabs_of_one_browser_have_scans_of_their_own() {
    let stack = Stack::start_with(SCANS).await;
    let phone = stack.login("alice").await;
    let mut pages = vec![Page::open(&stack).await];
    for _ in 0..4 {
        let cookie = &pages.last().unwrap().cookie;
        let response = stack.post("/scan").header("Cookie", cookie).send().await;
        pages.push(Page::of(&response));
    }
    let cookie = pages.last().unwrap().cookie.clone();
    for page in &mut pages {
        page.cookie.clone_from(&cookie);
        step(&stack, &phone, &page.id, "scan").await;
    }
    pages[0].poll(&stack, "waiting").await.assert_error(404, "no_route", "none");
    for page in &pages[1..] {
        assert_eq!(page.state(&stack, "waiting").await, "scanned");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_scan_or_on_another_host_there_is_no_endpoint() {
    let stack = Stack::start_with("[[browser]]\nbase_url = \"https://gateway.test\"").await;
    stack.post("/scan").send().await.assert_error(401, "missing_token", "login");
    drop(stack);
    let stack = Stack::start_with(SCANS).await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"POST /scan HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n").await;
    connection.response(false).await.assert_error(404, "no_route", "none");
    // A phone has no pages.
    let phone = stack.login("alice").await;
    let page = Page::open(&stack).await;
    let body = r#"{"action":"scan"}"#;
    let request = format!(
        "POST /scan/{} HTTP/1.1\r\nHost: api.test\r\nX-3rd-Session: {phone}\r\nContent-Length: {}\r\n\r\n{body}",
        page.id,
        body.len()
    );
    connection.send(request.as_bytes()).await;
    assert_eq!(connection.response(false).await.status, 200);
    for method in ["HEAD", "PUT", "DELETE"] {
        let response = stack.request(method, &format!("/scan/{}", page.id)).send().await;
        assert_eq!(response.status, 405);
        assert_eq!(response.header("allow"), Some("GET, POST"));
    }
    assert_eq!(stack.get("/scan").send().await.header("allow"), Some("POST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mini_program_code_is_made_once() {
    let api = WeChatApi::start(&Clock::manual()).await;
    let gate = Arc::new(Semaphore::new(0));
    let (waiting, image) = (gate.clone(), [&b"\x89PNG\r\n\x1a\n"[..], &[7; 100_000]].concat());
    let expected = image.clone();
    api.respond(move |_| {
        let (waiting, image) = (waiting.clone(), image.clone());
        async move {
            waiting.acquire().await.unwrap().forget();
            reply(image)
        }
    });
    let changes = format!("wechat.base_url = \"http://{}\"\n{SCANS}", api.address);
    let stack = Stack::start_with(&changes).await;
    let page = Page::open(&stack).await;
    assert_eq!(api.token_calls(), 0, "no token is fetched unless it is used");
    let path = format!("/scan/{}.png", page.id);
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = Connection::open(stack.gateway).await;
        connection.send(&stack.get(&path).header("Cookie", &page.cookie).bytes()).await;
        connections.push(connection);
    }
    stack.until_metric("wxgate_http_requests_in_flight", 3.0).await;
    until("the call", async || api.calls().len() == 1).await;
    // The browser that was first goes away.
    connections.remove(0);
    gate.add_permits(1);
    for mut connection in connections {
        let response = connection.response(false).await;
        assert_eq!((response.status, response.header("content-type")), (200, Some("image/png")));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(response.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(response.body, expected);
    }
    assert_eq!(page.image(&stack).await.body, expected);
    assert_eq!(api.calls(), [("/wxa/getwxacodeunlimit?".to_owned(), true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_wechat_does_not_make_is_an_error() {
    let api = WeChatApi::start(&Clock::manual()).await;
    let changes = format!("wechat.base_url = \"http://{}\"\n{SCANS}", api.address);
    let stack = Stack::start_with(&changes).await;
    let error =
        |errcode: i64| json!({ "errcode": errcode, "errmsg": "x" }).to_string().into_bytes();
    let long = [&b"\xff\xd8\xff\xe0"[..], &vec![0; 512 << 10]].concat();
    for (body, status, word, action) in [
        (error(41030), 502, "wechat_rejected", "none"),
        (error(45009), 503, "wechat_busy", "retry"),
        (error(-1), 503, "wechat_busy", "retry"),
        (b"<html><script>alert(1)</script>".to_vec(), 502, "wechat_rejected", "none"),
        (long, 502, "wechat_rejected", "none"),
        (Vec::new(), 502, "wechat_rejected", "none"),
    ] {
        api.respond(move |_| {
            let body = body.clone();
            async move { reply(body) }
        });
        let page = Page::open(&stack).await;
        page.image(&stack).await.assert_error(status, word, action);
        // Not at once again.
        let calls = api.calls().len();
        page.image(&stack).await.assert_error(status, word, action);
        assert_eq!(api.calls().len(), calls);
    }
    api.respond(|_| async { reply(&b"\xff\xd8\xff\xe0jpeg"[..]) });
    // The token is renewed once if WeChat rejects it.
    api.refresh_elsewhere();
    stack.clock.advance(Duration::from_secs(30));
    let response = Page::open(&stack).await.image(&stack).await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("image/jpeg")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_another_app_scans_nothing() {
    let stack = Stack::start_with(&format!("{TWO_APPS}{SCANS}")).await;
    let body = json!({ "code": "user-alice-other-app", "app_id": "wxfedcba9876543210" });
    let response = stack.post("/login").json(&body).send().await;
    let token = response.json()["token"].as_str().unwrap().to_owned();
    let page = Page::open(&stack).await;
    step(&stack, &token, &page.id, "scan").await.assert_error(403, "wrong_app", "none");
    let phone = stack.login("alice").await;
    assert_eq!(step(&stack, &phone, &page.id, "scan").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_may_begin_on_one_gateway_and_end_on_another() {
    let redis = RedisServer::start();
    let url = shared_store::url(&redis);
    let one = shared_store::gateway(&url, SCANS).await;
    let other = shared_store::gateway(&url, SCANS).await;
    let phone = one.login("alice").await;
    let page = Page::open(&one).await;
    let mut poll = Connection::open(one.gateway).await;
    poll.send(&page.poll_bytes(&one, "waiting")).await;
    one.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    assert_eq!(step(&other, &phone, &page.id, "scan").await.status, 200);
    assert_eq!(poll.response(false).await.json(), json!({ "state": "scanned" }));
    assert_eq!(step(&other, &phone, &page.id, "confirm").await.status, 204);
    // Both gateways are polled, and one of them returns the session.
    let found = tokio::join!(page.poll(&one, "scanned"), page.poll(&other, "scanned"));
    let cookies = [session_cookie(&found.0), session_cookie(&found.1)];
    let [cookie] = &cookies.iter().flatten().collect::<Vec<_>>()[..] else {
        panic!("{} sessions", cookies.iter().flatten().count());
    };
    for stack in [&one, &other] {
        let received = stack.get("/x").header("Cookie", cookie).forwarded().await;
        assert_eq!(received.all("x-openid"), [openid("alice")]);
    }
}
