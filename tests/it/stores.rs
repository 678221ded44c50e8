//! What holds for every session store: memory, and one Redis with two gateways.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::{Connection, Response};
use crate::harness::redis::RedisServer;
use crate::harness::{APP, OPERATOR, OTHER_APP, PATIENCE, Stack, openid, process_log};
use crate::shared_store::{gateway, status, until_status, url};

/// Gateways that share their sessions.
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

    /// The other gateway, if there are two.
    fn there(&self) -> &Stack {
        self.all.last().unwrap()
    }

    fn advance(&self, by: Duration) {
        self.all.iter().for_each(|stack| stack.clock.advance(by));
    }

    /// Lists sessions at the admin listener of one gateway.
    async fn operate(&self, method: &str, path: &str) -> Response {
        self.here().request(method, path).bearer(OPERATOR).send_to_admin().await
    }

    async fn list(&self, path: &str) -> Value {
        let answer = self.operate("GET", path).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    async fn listed(&self, user: &str) -> Vec<Value> {
        self.list(&of(user)).await["sessions"].as_array().unwrap().clone()
    }

    /// Sends a DELETE to one gateway, which must succeed.
    async fn delete(&self, path: &str) {
        let answer = self.operate("DELETE", path).await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{}", answer.text());
    }
}

/// With a key for the names of users in the access log.
const NAMED: &str = "log.openid_key = { file = \"{dir}/operator\" }";

/// The name in the access log of the user whose session was used.
pub async fn name_in_the_log(stack: &Stack, token: &str) -> String {
    let request = stack.get("/optional/name").token(token).send().await;
    assert_eq!(request.status, 200);
    let begun = Instant::now();
    let path = stack.directory.path().join("access.log");
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut used = lines.filter(|line| line["path"] == "/optional/name");
        if let Some(line) = used.next() {
            return text_of(&line, "user");
        }
        assert!(begun.elapsed() < PATIENCE, "no line in {text}");
        tokio::task::yield_now().await;
    }
}

fn text_of(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

/// Logs in with a new code and returns the response.
async fn try_login(stack: &Stack, user: &str) -> Response {
    let code: u64 = rand::random();
    stack.try_login(&format!("user-{user}-{code}")).await
}

async fn assert_login_is_rejected(stack: &Stack, user: &str) {
    try_login(stack, user).await.assert_error(403, "login_refused", "none");
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

/// Each test once per kind of store.
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
    a_session_expires_after_its_idle_timeout_and_at_its_absolute_end("session.ttl = \"1h\"\nsession.idle_timeout = \"30m\"");
    logging_out_ends_the_session_and_never_fails("");
    a_login_above_the_limit_replaces_the_oldest_session("session.max_per_user = 2");
    a_user_has_ten_sessions_by_default("");
    an_operator_lists_the_sessions_of_a_user("server.trusted_proxies = [\"127.0.0.0/8\"]");
    an_operator_revokes_one_session("");
    an_operator_revokes_all_sessions_of_a_user("session.max_per_user = 0");
    no_session_survives_a_racing_revocation_of_all("session.max_per_user = 0");
    ended_sessions_are_not_listed_and_do_not_count_towards_the_limit("session.max_per_user = 2\nsession.idle_timeout = \"30m\"");
    an_operator_finds_a_user_by_the_name_of_the_access_log(super::NAMED);
    a_blocked_user_cannot_log_in_until_the_block_expires("");
    unblocking_a_user_revokes_no_session("");
    a_user_without_a_session_is_unblocked_by_name(super::NAMED);
    a_login_in_flight_does_not_slip_past_a_block("");
    no_login_slips_past_a_block_by_a_race("");
    each_operator_action_is_one_line_of_the_log(super::NAMED);
}

async fn a_session_expires_after_its_idle_timeout_and_at_its_absolute_end(gateways: Gateways) {
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

async fn a_login_above_the_limit_replaces_the_oldest_session(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let first = here.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let second = there.login("alice").await;
    gateways.advance(Duration::from_millis(1));
    let bobs = here.login("bob").await;
    // It is the oldest session, even if it was used last.
    assert_eq!(status(there, &first).await, 200);
    let third = there.login("alice").await;
    assert_eq!(status(there, &first).await, 401);
    until_status(here, &first, 401).await;
    for token in [&second, &third, &bobs] {
        assert_eq!(status(here, token).await, 200);
    }
    assert_eq!(there.metric("wxgate_sessions_removed_total{cause=\"replaced\"}").await, 1.0);
    // An ended session makes room.
    assert_eq!(here.post("/logout").token(&second).send().await.status, 204);
    let fourth = here.login("alice").await;
    for token in [&third, &fourth] {
        assert_eq!(status(here, token).await, 200);
    }
}

async fn a_user_has_ten_sessions_by_default(gateways: Gateways) {
    let stack = gateways.here();
    for _ in 0..12 {
        stack.login("alice").await;
    }
    assert_eq!(gateways.listed("alice").await.len(), 10);
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
        let answer = connection.response(false).await;
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
    // Listing a session is not a use of it.
    assert_eq!(text(&gateways.listed("alice").await[1], "last_seen"), text(other, "last_seen"));
    assert!(gateways.listed("nobody").await.is_empty());
}

/// Waits until the list shows a use of alice's session after a time, and returns when.
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

async fn no_session_survives_a_racing_revocation_of_all(gateways: Gateways) {
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
    // A login in the meantime may have succeeded, but can still be revoked.
    assert_eq!(gateways.operate("DELETE", &of("alice")).await.status, 204);
    for token in &during {
        assert_eq!(status(here, token).await, 401);
    }
}

async fn ended_sessions_are_not_listed_and_do_not_count_towards_the_limit(gateways: Gateways) {
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
    let refused = gateways.operate("DELETE", &format!("{by_name}&block=1h")).await;
    assert_eq!((refused.status, &refused.json()["error"]), (404, &"no_user".into()));
}

async fn a_blocked_user_cannot_log_in_until_the_block_expires(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let tokens = [here.login("alice").await, there.login("alice").await];
    assert_eq!(gateways.list(&of("alice")).await["blocked_until"], Value::Null);
    gateways.delete(&format!("{}&block=24h", of("alice"))).await;
    for token in &tokens {
        until_status(here, token, 401).await;
        until_status(there, token, 401).await;
    }
    for stack in [here, there] {
        assert_login_is_rejected(stack, "alice").await;
        assert_eq!(try_login(stack, "bob").await.status, 200);
    }
    let listed = gateways.list(&of("alice")).await;
    assert!(listed["sessions"].as_array().unwrap().is_empty());
    let until = humantime::parse_rfc3339(text(&listed, "blocked_until")).unwrap();
    let left = until.duration_since(std::time::SystemTime::now()).unwrap();
    let day = Duration::from_secs(24 * 3600);
    assert!(left <= day && left > day - Duration::from_secs(600), "{left:?}");
    let refusals = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"login_refused\"}}");
    assert!(here.metric(&refusals).await >= 1.0);

    // Longer than the test can have taken: the store has its own clock.
    let margin = Duration::from_secs(600);
    gateways.advance(day - margin);
    assert_login_is_rejected(there, "alice").await;
    gateways.advance(margin);
    for stack in [here, there] {
        assert_eq!(try_login(stack, "alice").await.status, 200);
    }
    assert_eq!(gateways.list(&of("alice")).await["blocked_until"], Value::Null);
}

async fn unblocking_a_user_revokes_no_session(gateways: Gateways) {
    let there = gateways.there();
    gateways.delete(&format!("{}&block=365d", of("alice"))).await;
    // The second replaces the first.
    gateways.delete(&format!("{}&block=1s", of("alice"))).await;
    assert_login_is_rejected(there, "alice").await;
    gateways.delete(&format!("{}&block=0s", of("alice"))).await;
    let token = there.login("alice").await;
    gateways.delete(&format!("{}&block=0s", of("alice"))).await;
    assert_eq!(status(there, &token).await, 200);
}

async fn a_user_without_a_session_is_unblocked_by_name(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let token = here.login("alice").await;
    let by_name = format!("/sessions?user={}", name_in_the_log(here, &token).await);
    gateways.delete(&format!("{by_name}&block=24h")).await;
    assert_login_is_rejected(there, "alice").await;
    assert!(gateways.list(&by_name).await["blocked_until"].is_string());
    // Again, without a session to find the user by.
    gateways.delete(&format!("{by_name}&block=48h")).await;
    assert_login_is_rejected(there, "alice").await;
    gateways.delete(&format!("{by_name}&block=0s")).await;
    there.login("alice").await;
}

async fn a_login_in_flight_does_not_slip_past_a_block(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    let body = serde_json::json!({ "code": "slow-1s-alice" });
    let mut login = Connection::open(there.gateway).await;
    login.send(&there.post("/login").json(&body).bytes()).await;
    while there.sandbox.exchanges() == 0 {
        tokio::task::yield_now().await;
    }
    gateways.delete(&format!("{}&block=24h", of("alice"))).await;
    login.response(false).await.assert_error(403, "login_refused", "none");
    // A phone that lost the response sends the code again.
    there.post("/login").json(&body).send().await.assert_error(403, "login_refused", "none");
    assert!(gateways.listed("alice").await.is_empty());
    assert_eq!(here.metric("wxgate_sessions_created_total").await, 0.0);
}

async fn no_login_slips_past_a_block_by_a_race(gateways: Gateways) {
    let (here, there) = (gateways.here(), gateways.there());
    for _ in 0..10 {
        let login = |stack| async move {
            let answer = try_login(stack, "alice").await;
            (answer.status == 200).then(|| text_of(&answer.json(), "token"))
        };
        let block = format!("{}&block=1h", of("alice"));
        let (one, two, (), three, four) = tokio::join!(
            login(here),
            login(there),
            gateways.delete(&block),
            login(here),
            login(there)
        );
        for token in [one, two, three, four].into_iter().flatten() {
            until_status(here, &token, 401).await;
            until_status(there, &token, 401).await;
        }
        assert!(gateways.listed("alice").await.is_empty());
        assert_login_is_rejected(here, "alice").await;
        gateways.delete(&format!("{}&block=0s", of("alice"))).await;
    }
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
        let refused = request.header("X-Request-Id", &mark).send_to_admin().await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
        assert_eq!(refused.json()["error"], "unauthorized");
    }
    // Logged once a minute, so that guesses cannot fill the log.
    let refusals = process_log::text_after(position);
    let refusals = refusals.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let refusals = refusals.filter(|line| line["fields"]["request_id"] == mark.as_str());
    let refusals: Vec<_> = refusals.collect();
    assert_eq!(refusals.len(), 1, "{refusals:#?}");
    assert_eq!(refusals[0]["fields"]["outcome"], "unauthorized");
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
        let refused = gateways.operate("DELETE", &format!("/sessions?{query}")).await;
        assert_eq!(
            (refused.status, &refused.json()["error"]),
            (400, &"bad_request".into()),
            "{query}"
        );
        assert!(refused.json()["message"].as_str().unwrap().len() > 10);
    }
    // A block applies to all sessions of a user, and listing sessions blocks nobody.
    let query = format!("openid={openid}&block=1h");
    for (method, path) in [("DELETE", "/sessions/0123456789abcdef"), ("GET", "/sessions")] {
        let refused = gateways.operate(method, &format!("{path}?{query}")).await;
        assert_eq!((refused.status, &refused.json()["error"]), (400, &"bad_request".into()));
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
    let refused = gateways.operate("GET", &of("alice")).await;
    assert_eq!((refused.status, &refused.json()["error"]), (400, &"bad_request".into()));
    let body = serde_json::json!({ "code": "user-alice-1", "app_id": APP });
    assert_eq!(gateways.here().post("/login").json(&body).send().await.status, 200);
    for (app_id, count) in [(APP, 1), (OTHER_APP, 0)] {
        let answer = gateways.operate("GET", &format!("{}&app_id={app_id}", of("alice"))).await;
        assert_eq!(answer.json()["sessions"].as_array().unwrap().len(), count);
    }
}
