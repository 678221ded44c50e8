//! What holds wherever sessions are kept: in memory, and in a Redis under two gateways.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::Answer;
use crate::harness::redis::RedisServer;
use crate::harness::{APP, OPERATOR, OTHER_APP, PATIENCE, Stack, openid};
use crate::shared_store::{gateway, status, until_status, url};

/// Gateways with the same sessions.
struct Gateways {
    all: Vec<Stack>,
    /// Outlives them.
    _store: Option<RedisServer>,
}

impl Gateways {
    async fn in_memory(more: &str) -> Self {
        let all = vec![Stack::start_with(&with_operator(more)).await];
        Self { all, _store: None }
    }

    async fn on_redis(more: &str) -> Self {
        let store = RedisServer::start();
        let more = with_operator(more);
        let all = vec![gateway(&url(&store), &more).await, gateway(&url(&store), &more).await];
        Self { all, _store: Some(store) }
    }

    fn here(&self) -> &Stack {
        self.all.first().unwrap()
    }

    /// Another one, where there is one.
    fn there(&self) -> &Stack {
        self.all.last().unwrap()
    }

    fn advance(&self, by: Duration) {
        self.all.iter().for_each(|stack| stack.clock.advance(by));
    }

    /// Asks the admin listener of one for sessions.
    async fn operate(&self, method: &str, path: &str) -> Answer {
        self.here().request(method, path).bearer(OPERATOR).send_to_admin().await
    }

    async fn listed(&self, user: &str) -> Vec<Value> {
        let answer = self.operate("GET", &of(user)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["sessions"].as_array().unwrap().clone()
    }
}

fn with_operator(more: &str) -> String {
    format!("admin.token = {{ file = \"{{dir}}/operator\" }}\n{more}")
}

fn of(user: &str) -> String {
    format!("/sessions?openid={}", openid(user))
}

fn text<'a>(session: &'a Value, field: &str) -> &'a str {
    session[field].as_str().unwrap()
}

/// One test in each place.
macro_rules! in_memory_and_on_redis {
    ($($name:ident($more:expr);)*) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Gateways::in_memory($more).await).await;
            })*
        }

        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Gateways::on_redis($more).await).await;
            })*
        }
    };
}

in_memory_and_on_redis! {
    a_session_ends_when_it_is_not_used_and_at_its_absolute_end("session.ttl = \"1h\"\nsession.idle_timeout = \"30m\"");
    logging_out_ends_the_session_and_never_fails("");
    a_user_has_so_many_sessions_and_the_oldest_goes_first("session.max_per_user = 2");
    ten_sessions_are_a_users_by_default("");
    an_operator_sees_the_sessions_of_a_user("server.trusted_proxies = [\"127.0.0.0/8\"]");
    an_operator_ends_one_session("");
    an_operator_ends_all_sessions_of_a_user("session.max_per_user = 0");
    no_session_outlives_the_end_of_all_by_a_race("session.max_per_user = 0");
    what_has_ended_is_not_listed_and_takes_no_place("session.max_per_user = 2\nsession.idle_timeout = \"30m\"");
}

async fn a_session_ends_when_it_is_not_used_and_at_its_absolute_end(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let (idle, busy) = (here.login("alice").await, here.login("alice").await);
    let mut last_use = text(&gateways.listed("alice").await[0], "created").to_owned();
    for stack in [there, here, there] {
        gateways.advance(Duration::from_secs(19 * 60));
        assert_eq!(status(stack, &busy).await, 200);
        // What the other gateway needs to know has come to the store.
        last_use = until_used_after(&gateways, &last_use).await;
    }
    for stack in [here, there] {
        stack.get("/").token(&idle).send().await.assert_error(401, "session_expired", "login");
        assert_eq!(status(stack, &busy).await, 200);
    }
    gateways.advance(Duration::from_secs(180));
    for stack in [here, there] {
        stack.get("/").token(&busy).send().await.assert_error(401, "session_expired", "login");
    }
}

async fn logging_out_ends_the_session_and_never_fails(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let (phone, tablet) = (here.login("alice").await, there.login("alice").await);
    let answer = here.post("/logout").token(&phone).send().await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    here.get("/").token(&phone).send().await.assert_error(401, "session_expired", "login");
    until_status(there, &phone, 401).await;
    assert_eq!(status(here, &tablet).await, 200);

    assert_eq!(there.post("/logout").token(&phone).send().await.status, 204);
    assert_eq!(here.post("/logout").token("malformed").send().await.status, 204);
    assert_eq!(here.post("/logout").send().await.status, 204);
    assert_eq!(there.post("/logout").bearer(&tablet).send().await.status, 204);
    until_status(here, &tablet, 401).await;
    here.get("/logout").send().await.assert_error(405, "method_not_allowed", "none");
}

async fn a_user_has_so_many_sessions_and_the_oldest_goes_first(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let first = here.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let second = there.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let bobs = here.login("bob").await;
    // It is the oldest, however lately it was used.
    assert_eq!(status(there, &first).await, 200);
    let third = there.login("alice").await;
    assert_eq!(status(there, &first).await, 401);
    until_status(here, &first, 401).await;
    for token in [&second, &third, &bobs] {
        assert_eq!(status(here, token).await, 200);
    }
    assert_eq!(there.metric("wxgate_sessions_removed_total{cause=\"replaced\"}").await, 1.0);
    // A place that was given up is free.
    assert_eq!(here.post("/logout").token(&second).send().await.status, 204);
    let fourth = here.login("alice").await;
    for token in [&third, &fourth] {
        assert_eq!(status(here, token).await, 200);
    }
}

async fn ten_sessions_are_a_users_by_default(gateways: Gateways) {
    let stack = gateways.here();
    for _ in 0..12 {
        stack.login("alice").await;
    }
    assert_eq!(gateways.listed("alice").await.len(), 10);
}

async fn an_operator_sees_the_sessions_of_a_user(gateways: Gateways) {
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
        let answer = connection.answer(false).await;
        tokens.push(answer.json()["token"].as_str().unwrap().to_owned());
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
    // One that is asked after is not used.
    assert_eq!(text(&gateways.listed("alice").await[1], "last_seen"), text(other, "last_seen"));
    assert!(gateways.listed("nobody").await.is_empty());
}

/// Waits until a session of alice's is known to have been used after a time, and tells when.
async fn until_used_after(gateways: &Gateways, before: &str) -> String {
    let begun = Instant::now();
    loop {
        let listed = gateways.listed("alice").await;
        let last = listed.iter().map(|session| text(session, "last_seen")).max().unwrap();
        if last > before {
            return last.to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "{listed:?}");
    }
}

async fn an_operator_ends_one_session(gateways: Gateways) {
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
        let refused = gateways.operate("DELETE", &nobodys).await;
        assert_eq!((refused.status, &refused.json()["error"]), (404, &"no_session".into()));
    }
    assert_eq!(gateways.operate("DELETE", &path(&id, "alice")).await.status, 204);
    assert_eq!(status(here, &first).await, 401);
    until_status(there, &first, 401).await;
    assert_eq!(status(there, &second).await, 200);
    assert_eq!(gateways.listed("alice").await.len(), 1);
    assert_eq!(gateways.operate("DELETE", &path(&id, "alice")).await.status, 404);
    assert_eq!(here.metric("wxgate_sessions_removed_total{cause=\"revoked\"}").await, 1.0);
}

async fn an_operator_ends_all_sessions_of_a_user(gateways: Gateways) {
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
    let answer = gateways.operate("DELETE", &path).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
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

async fn no_session_outlives_the_end_of_all_by_a_race(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let (mut before, mut during) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        before.push(here.login("alice").await);
        before.push(there.login("alice").await);
        let path = of("alice");
        let (answer, some, more) = tokio::join!(
            gateways.operate("DELETE", &path),
            async { [here.login("alice").await, there.login("alice").await] },
            async { [there.login("alice").await, here.login("alice").await] },
        );
        assert_eq!(answer.status, 204);
        for token in &before {
            assert_eq!(status(here, token).await, 401);
        }
        during.extend(some.into_iter().chain(more));
    }
    // What came meanwhile may have stayed, but can still be ended.
    assert_eq!(gateways.operate("DELETE", &of("alice")).await.status, 204);
    for token in &during {
        assert_eq!(status(here, token).await, 401);
    }
}

async fn what_has_ended_is_not_listed_and_takes_no_place(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    here.login("alice").await;
    there.login("alice").await;
    gateways.advance(Duration::from_secs(40 * 60));
    assert!(gateways.listed("alice").await.is_empty());
    let tokens = [here.login("alice").await, there.login("alice").await];
    for token in &tokens {
        assert_eq!(status(here, token).await, 200);
    }
    assert_eq!(gateways.listed("alice").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_shows_the_token_may_operate() {
    let gateways = Gateways::in_memory("").await;
    let stack = gateways.here();
    let path = of("alice");
    let wrong = OPERATOR.replace("an-", "no-");
    for request in [
        stack.get(&path),
        stack.get(&path).bearer(&wrong),
        stack.get(&path).bearer(&OPERATOR[1..]),
        stack.get(&path).header("Authorization", OPERATOR),
        stack.get(&path).bearer(OPERATOR).bearer(OPERATOR),
        stack.request("DELETE", &path).bearer(""),
        stack.request("PUT", "/sessions/0123456789abcdef"),
    ] {
        let refused = request.send_to_admin().await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(refused.json()["error"], "unauthorized");
    }
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
async fn an_operators_mistakes_are_told_and_end_nothing() {
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
    ] {
        let refused = gateways.operate("DELETE", &format!("/sessions?{query}")).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]),
            (400, &"bad_request".into()),
            "{query}"
        );
        assert!(refused.json()["message"].as_str().unwrap().len() > 10);
    }
    for (method, path, allow) in [
        ("POST", "/sessions?x", "GET, HEAD, DELETE"),
        ("GET", "/sessions/0123456789abcdef", "DELETE"),
    ] {
        let refused = gateways.operate(method, path).await;
        assert_eq!((refused.status, refused.header("allow")), (405, Some(allow)));
    }
    assert_eq!(status(gateways.here(), &token).await, 200);
    assert_eq!(
        gateways.operate("GET", &of("alice")).await.header("cache-control"),
        Some("no-store")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_are_told_apart_by_operators_as_at_a_login() {
    let apps = format!(
        r#"
        app = [
            {{ app_id = "{APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }},
            {{ app_id = "{OTHER_APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }},
        ]
        "#
    );
    let gateways = Gateways::in_memory(&apps).await;
    let refused = gateways.operate("GET", &of("alice")).await;
    assert_eq!((refused.status, &refused.json()["error"]), (400, &"bad_request".into()));
    let body = serde_json::json!({ "code": "user-alice-1", "app_id": APP });
    assert_eq!(gateways.here().post("/login").json(&body).send().await.status, 200);
    for (app_id, count) in [(APP, 1), (OTHER_APP, 0)] {
        let answer = gateways.operate("GET", &format!("{}&app_id={app_id}", of("alice"))).await;
        assert_eq!(answer.json()["sessions"].as_array().unwrap().len(), count);
    }
}
