//! Operators list and revoke sessions, with the token, and each action is logged.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{
    Gateways, NAMED, assert_login_is_rejected, in_memory_and_on_redis, name_in_the_log, of, text,
    text_of, until_used_after, with_operator,
};
use crate::harness::client::Connection;
use crate::harness::redis::RedisServer;
use crate::harness::{APP, OPERATOR, OTHER_APP, PATIENCE, Stack, openid, process_log};
use crate::shared_store::{gateway, status, until_status, url};

in_memory_and_on_redis! {
    an_operator_lists_the_sessions_of_a_user("server.trusted_proxies = [\"127.0.0.0/8\"]");
    an_operator_revokes_one_session("");
    an_operator_revokes_all_sessions_of_a_user("session.max_per_user = 0");
    no_session_survives_a_racing_revocation_of_all("session.max_per_user = 0");
    an_operator_finds_a_user_by_the_name_of_the_access_log(super::NAMED);
    each_operator_action_is_one_line_of_the_log(super::NAMED);
}

async fn an_operator_lists_the_sessions_of_a_user(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let login = |stack: &Stack, address: &str, code: &str| {
        let body = serde_json::json!({ "code": format!("user-alice-{code}") });
        let request = stack.post("/login").header("X-Forwarded-For", address).json(&body);
        request.bytes()
    };
    let mut tokens = Vec::new();
    for (stack, address, code) in [(here, "203.0.113.9", "1"), (there, "2001:db8::9", "2")] {
        let mut connection = crate::harness::client::Connection::open(stack.gateway).await;
        connection.send(&login(stack, address, code)).await;
        let response = connection.response(false).await;
        tokens.push(response.json()["token"].as_str().unwrap().to_owned());
        gateways.advance(Duration::from_secs(120));
    }
    here.login("bob").await;
    let listed = gateways.listed("alice").await;
    let [one, other] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(text(one, "client"), "203.0.113.9");
    assert_eq!(text(other, "client"), "2001:db8::9");
    assert!(text(one, "created") < text(other, "created"));
    assert_eq!(text(one, "created"), text(one, "last_seen"));
    for session in &listed {
        let id = text(session, "id");
        assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        let created = humantime::parse_rfc3339(text(session, "created")).unwrap();
        assert!(created > std::time::SystemTime::now() - Duration::from_secs(3600));
    }
    assert_eq!(status(there, &tokens[0]).await, 200);
    until_used_after(&gateways, text(other, "last_seen")).await;
    // Listing a session is not a use of it.
    assert_eq!(text(&gateways.listed("alice").await[1], "last_seen"), text(other, "last_seen"));
    assert!(gateways.listed("nobody").await.is_empty());
}

async fn an_operator_revokes_one_session(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let first = here.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let second = there.login("alice").await;
    for stack in [here, there] {
        assert_eq!(status(stack, &first).await, 200);
    }
    let id = text(&gateways.listed("alice").await[0], "id").to_owned();
    let path = |id: &str, user: &str| of(user).replace("/sessions", &format!("/sessions/{id}"));
    for nobodys in [path(&id, "bob"), path("0123456789abcdef", "alice"), path("", "alice")] {
        let rejected = gateways.operate("DELETE", &nobodys).await;
        assert_eq!((rejected.status, &rejected.json()["error"]), (404, &"no_session".into()));
    }
    assert_eq!(gateways.operate("DELETE", &path(&id, "alice")).await.status, 204);
    assert_eq!(status(here, &first).await, 401);
    until_status(there, &first, 401).await;
    assert_eq!(status(there, &second).await, 200);
    assert_eq!(gateways.listed("alice").await.len(), 1);
    assert_eq!(gateways.operate("DELETE", &path(&id, "alice")).await.status, 404);
    assert_eq!(here.metric("wxgate_sessions_removed_total{cause=\"revoked\"}").await, 1.0);
}

async fn an_operator_revokes_all_sessions_of_a_user(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let mut tokens = Vec::new();
    for stack in [here, there].repeat(10) {
        tokens.push(stack.login("alice").await);
    }
    let bobs = here.login("bob").await;
    for token in &tokens {
        assert_eq!(status(there, token).await, 200);
    }
    let path = format!("{}&app_id={APP}", of("alice"));
    let response = gateways.operate("DELETE", &path).await;
    assert_eq!((response.status, response.body.len()), (204, 0));
    for token in &tokens {
        assert_eq!(status(here, token).await, 401);
        until_status(there, token, 401).await;
    }
    assert_eq!(status(there, &bobs).await, 200);
    assert!(gateways.listed("alice").await.is_empty());
    assert_eq!(here.metric("wxgate_sessions_removed_total{cause=\"revoked\"}").await, 20.0);
    assert_eq!(gateways.operate("DELETE", &path).await.status, 204);
    let again = there.login("alice").await;
    assert_eq!(status(here, &again).await, 200);
}

async fn no_session_survives_a_racing_revocation_of_all(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        before.push(here.login("alice").await);
        before.push(there.login("alice").await);
        let path = of("alice");
        let (response, some, more) = tokio::join!(
            gateways.operate("DELETE", &path),
            async { [here.login("alice").await, there.login("alice").await] },
            async { [there.login("alice").await, here.login("alice").await] },
        );
        assert_eq!(response.status, 204);
        for token in &before {
            assert_eq!(status(here, token).await, 401);
        }
        during.extend(some.into_iter().chain(more));
    }
    // A login in the meantime may have succeeded, but can still be revoked.
    assert_eq!(gateways.operate("DELETE", &of("alice")).await.status, 204);
    for token in &during {
        assert_eq!(status(here, token).await, 401);
    }
}

async fn an_operator_finds_a_user_by_the_name_of_the_access_log(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let tokens = [here.login("alice").await, there.login("alice").await];
    let bobs = there.login("bob").await;
    let name = name_in_the_log(here, &tokens[0]).await;
    let by_name = format!("/sessions?user={name}");
    assert_eq!(gateways.list(&by_name).await, gateways.list(&of("alice")).await);
    let sessions = gateways.list(&by_name).await["sessions"].as_array().unwrap().clone();
    assert_eq!(sessions.len(), 2);

    let one = format!("/sessions/{}?user={name}&app_id={APP}", text(&sessions[0], "id"));
    gateways.delete(&one).await;
    assert_eq!(gateways.listed("alice").await.len(), 1);
    gateways.delete(&by_name).await;
    for token in &tokens {
        until_status(here, token, 401).await;
        until_status(there, token, 401).await;
    }
    assert_eq!(status(there, &bobs).await, 200);
    // As for an openid that has no session.
    assert!(gateways.list(&by_name).await["sessions"].as_array().unwrap().is_empty());
    gateways.delete(&by_name).await;
    // A block needs an openid.
    let rejected = gateways.operate("DELETE", &format!("{by_name}&block=1h")).await;
    assert_eq!((rejected.status, &rejected.json()["error"]), (404, &"no_user".into()));
}

/// The lines of operator actions since a position of the log.
fn actions_after(position: usize, mark: &str) -> Vec<Value> {
    let text = process_log::text_after(position);
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let actions = lines.filter(|line| line["fields"]["message"] == "operator action");
    actions.filter(|line| line["fields"]["request_id"] == mark).collect()
}

async fn each_operator_action_is_one_line_of_the_log(gateways: Gateways) {
    let here = gateways.here();
    let token = here.login("alice").await;
    here.login("alice").await;
    let name = name_in_the_log(here, &token).await;
    let id = text_of(&gateways.listed("alice").await[0], "id");
    let position = process_log::position();
    let mark = format!("audit-{}", here.admin.port());
    let all = of("alice");
    let one = all.replace("/sessions", &format!("/sessions/{id}"));
    let by_name = format!("/sessions?user={name}");
    let expected = [
        ("GET", all.clone(), "list", "ok", 2),
        ("GET", by_name.clone(), "list", "ok", 2),
        ("DELETE", one.clone(), "end", "ok", 1),
        ("DELETE", one, "end", "no_session", 0),
        ("DELETE", all.clone(), "end", "ok", 1),
        ("DELETE", format!("{by_name}&block=1h"), "block", "no_user", 0),
        ("DELETE", format!("{all}&block=1h"), "block", "ok", 0),
        ("DELETE", format!("{by_name}&block=0s"), "unblock", "ok", 0),
        ("DELETE", format!("{all}&block=never"), "block", "bad_request", 0),
    ];
    for (method, path, ..) in &expected {
        let request = here.request(method, path).header("X-Request-Id", &mark);
        request.bearer(OPERATOR).send_to_admin().await;
    }
    let lines = actions_after(position, &mark);
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, (_, path, action, outcome, sessions)) in lines.iter().zip(&expected) {
        let fields = &line["fields"];
        assert_eq!(line["level"], "INFO", "{line}");
        assert_eq!(fields["action"], *action, "{line}");
        assert_eq!(fields["outcome"], *outcome, "{line}");
        assert_eq!(fields["sessions"], *sessions, "{line}");
        assert_eq!(fields["client"], "127.0.0.1", "{line}");
        if *outcome != "bad_request" {
            assert_eq!(fields["user"], name, "{path}: {line}");
            assert_eq!(fields["app_id"], APP, "{line}");
        }
        assert!(!line.to_string().contains(&openid("alice")), "{line}");
    }
}

/// The action is completed and logged.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_action_completes_without_its_client() {
    let store = RedisServer::start();
    let patient = "session.redis.timeout = \"10s\"";
    let stack = gateway(&url(&store), &with_operator(patient)).await;
    let token = stack.login("alice").await;
    let (position, mark) = (process_log::position(), format!("left-{}", stack.admin.port()));
    store.stop();
    let mut operator = Connection::open(stack.admin).await;
    let request = format!(
        "DELETE {}&block=1h HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {OPERATOR}\r\n\
         X-Request-Id: {mark}\r\n\r\n",
        of("alice")
    );
    operator.send(request.as_bytes()).await;
    assert!(operator.is_silent(Duration::from_millis(50)).await, "the store was called");
    drop(operator);
    // What was sent is read before the connection's end is seen.
    assert_eq!(stack.get("/healthz").send_to_admin().await.status, 200);
    store.go_on();
    until_status(&stack, &token, 401).await;
    assert_login_is_rejected(&stack, "alice").await;
    let begun = Instant::now();
    while actions_after(position, &mark).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "it is not logged");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_actions_require_the_token() {
    let gateways = Gateways::in_memory("").await;
    let stack = gateways.here();
    let path = of("alice");
    let wrong = OPERATOR.replace("an-", "no-");
    let (position, mark) = (process_log::position(), format!("no-operator-{}", stack.admin.port()));
    for request in [
        stack.get(&path),
        stack.get(&path).bearer(&wrong),
        stack.get(&path).bearer(&OPERATOR[1..]),
        stack.get(&path).header("Authorization", OPERATOR),
        stack.get(&path).bearer(OPERATOR).bearer(OPERATOR),
        stack.request("DELETE", &path).bearer(""),
        stack.request("PUT", "/sessions/0123456789abcdef"),
    ] {
        let rejected = request.header("X-Request-Id", &mark).send_to_admin().await;
        assert_eq!((rejected.status, rejected.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(rejected.json()["error"], "unauthorized");
    }
    // Logged once a minute, so that guesses cannot fill the log.
    let rejections = process_log::text_after(position);
    let rejections = rejections.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rejections = rejections.filter(|line| line["fields"]["request_id"] == mark.as_str());
    let rejections: Vec<_> = rejections.collect();
    assert_eq!(rejections.len(), 1, "{rejections:#?}");
    assert_eq!(rejections[0]["fields"]["outcome"], "unauthorized");
    stack.clock.advance(Duration::from_secs(60));
    let position = process_log::position();
    let request = stack.get(&path).header("X-Request-Id", &mark).bearer(&wrong);
    request.send_to_admin().await;
    let line = process_log::text_after(position);
    let line = line.lines().find(|line| line.contains(&mark)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(line).unwrap()["fields"]["suppressed"], 6);
    // Not on a public listener.
    stack.get(&path).bearer(OPERATOR).send().await.assert_error(401, "missing_token", "login");
    // Nor where no token is configured.
    let without = Stack::start().await;
    for id in ["/sessions", "/sessions/0123456789abcdef"] {
        let path = path.replace("/sessions", id);
        assert_eq!(without.get(&path).bearer("").send_to_admin().await.status, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_operator_requests_are_rejected_and_revoke_nothing() {
    let gateways = Gateways::in_memory("").await;
    let token = gateways.here().login("alice").await;
    let openid = openid("alice");
    for query in [
        String::new(),
        "openid=".to_owned(),
        "openid=a%20b".to_owned(),
        format!("openid={openid}&openid={openid}"),
        format!("openid={openid}&app_id=wx0000000000000000"),
        format!("openid={openid}&created_before=2026"),
        format!("openid={openid}&user=AAAAAAAAAAAAAAAA"),
        // Without a key there are no names.
        "user=AAAAAAAAAAAAAAAA".to_owned(),
        format!("openid={openid}&block="),
        format!("openid={openid}&block=24"),
        format!("openid={openid}&block=999ms"),
        format!("openid={openid}&block=366d"),
        format!("openid={openid}&block=1M"),
        format!("openid={openid}&block=-1h"),
        format!("openid={openid}&block=1h&block=2h"),
        "block=1h".to_owned(),
    ] {
        let rejected = gateways.operate("DELETE", &format!("/sessions?{query}")).await;
        assert_eq!(
            (rejected.status, &rejected.json()["error"]),
            (400, &"bad_request".into()),
            "{query}"
        );
        assert!(rejected.json()["message"].as_str().unwrap().len() > 10);
    }
    // A block applies to all sessions of a user, and listing sessions blocks nobody.
    let query = format!("openid={openid}&block=1h");
    for (method, path) in [("DELETE", "/sessions/0123456789abcdef"), ("GET", "/sessions")] {
        let rejected = gateways.operate(method, &format!("{path}?{query}")).await;
        assert_eq!((rejected.status, &rejected.json()["error"]), (400, &"bad_request".into()));
    }
    for (method, path, allow) in [
        ("POST", "/sessions?x", "GET, HEAD, DELETE"),
        ("GET", "/sessions/0123456789abcdef", "DELETE"),
    ] {
        let rejected = gateways.operate(method, path).await;
        assert_eq!((rejected.status, rejected.header("allow")), (405, Some(allow)));
    }
    assert_eq!(status(gateways.here(), &token).await, 200);
    assert_eq!(
        gateways.operate("GET", &of("alice")).await.header("cache-control"),
        Some("no-store")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_name_the_app_as_at_a_login() {
    let apps = format!(
        r#"
        app = [
            {{ app_id = "{APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }},
            {{ app_id = "{OTHER_APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }},
        ]
        "#
    );
    let gateways = Gateways::in_memory(&apps).await;
    let rejected = gateways.operate("GET", &of("alice")).await;
    assert_eq!((rejected.status, &rejected.json()["error"]), (400, &"bad_request".into()));
    let body = serde_json::json!({ "code": "user-alice-1", "app_id": APP });
    assert_eq!(gateways.here().post("/login").json(&body).send().await.status, 200);
    for (app_id, count) in [(APP, 1), (OTHER_APP, 0)] {
        let response = gateways.operate("GET", &format!("{}&app_id={app_id}", of("alice"))).await;
        assert_eq!(response.json()["sessions"].as_array().unwrap().len(), count);
    }
}
