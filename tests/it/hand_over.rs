//! A new process takes over from a running one.

mod blocks;
mod services;
mod tls;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Notify;
use wxgate::server::Command;

use crate::cookie_jar::JAR;
use crate::harness::client::{self, Connection};
use crate::harness::command::{Running, text, write_config, wxgate};
use crate::harness::redis::RedisServer;
use crate::harness::upstream::Reply;
use crate::harness::{APP, OPERATOR, PATIENCE, Replaced, Stack, UPGRADES, openid, until};

const SNAPSHOT: &str = r#"
    server.upgrade_socket = "{dir}/upgrade.sock"
    session.seal_key = { file = "{dir}/seal" }
    session.snapshot.path = "{dir}/sessions"
    admin.token = { file = "{dir}/operator" }
"#;

async fn ended(old: Replaced) {
    let ended = tokio::time::timeout(PATIENCE, old.ended).await;
    ended.expect("an end in time").unwrap().unwrap();
}

/// A request without the end of its body, which is in flight until the rest is sent.
async fn begin(stack: &Stack, line: &str, token: &str, length: usize) -> Connection {
    // The last response may have been sent before its request was counted as ended.
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    let mut connection = Connection::open(stack.gateway).await;
    let header = format!(
        "POST {line} HTTP/1.1\r\nHost: gateway.test\r\nX-3rd-Session: {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    connection.send(header.as_bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_has_the_address_and_the_sessions_of_the_old_one() {
    let mut stack = Stack::start_with(UPGRADES).await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    assert_eq!(stack.post("/logout").token(&bob).send().await.status, 204);
    let old = stack.upgrade(UPGRADES).await;
    ended(old).await;

    for _ in 0..3 {
        let response = stack.get("/").token(&alice).send().await;
        assert_eq!(response.status, 200);
    }
    let requests = stack.upstream.requests();
    assert!(requests.iter().all(|request| request.all("x-openid") == [openid("alice")]));
    assert_eq!(stack.get("/").token(&bob).send().await.status, 401);
    assert_eq!(stack.metric("wxgate_sessions").await, 1.0);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);

    // It can be replaced as well.
    let old = stack.upgrade(UPGRADES).await;
    ended(old).await;
    assert_eq!(stack.get("/").token(&alice).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_shared_store_the_sockets_are_handed_over() {
    let store = RedisServer::start();
    let changes = format!(
        "{UPGRADES}\nsession.seal_key = {{ file = \"{{dir}}/seal\" }}\n\
         session.redis.url = \"redis://127.0.0.1:{}\"\nsession.redis.timeout = \"1s\"",
        store.port
    );
    let mut stack = Stack::start_with(&changes).await;
    stack.until_ready().await;
    let token = stack.login("alice").await;
    let server = stack.successor(&changes).await.unwrap();
    let (stop, commands) = tokio::sync::mpsc::channel(1);
    let mut new = tokio::spawn(server.run(commands));
    let replaced = async {
        tokio::select! {
            ended = &mut stack.ended => ended.unwrap().unwrap(),
            ended = &mut new => panic!("it has not taken over: {ended:?}"),
        }
    };
    tokio::time::timeout(PATIENCE, replaced).await.expect("an upgrade in time");
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    stop.send(Command::Stop).await.unwrap();
    new.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_end_at_the_old_process_and_its_idle_connections_are_closed() {
    let mut stack = Stack::start_with(UPGRADES).await;
    stack.login("alice").await;
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let late = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
    stack.upstream.reply(move |_| Reply::When(released.clone(), late.to_vec()));
    let mut busy = Connection::open(stack.gateway).await;
    busy.send(&stack.get("/none").bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    let mut idle = Connection::open(stack.gateway).await;
    idle.send(&stack.get("/").bytes()).await;
    assert_eq!(idle.response(false).await.status, 401);

    let old = stack.upgrade(UPGRADES).await;
    assert!(idle.is_closed().await);
    assert!(!old.ended.is_finished());
    // Three processes could not tell each other everything.
    let refused = stack.successor(UPGRADES).await.err().unwrap().to_string();
    assert!(refused.contains("the last upgrade has not ended"), "{refused}");
    release.notify_one();
    let response = busy.response(false).await;
    assert_eq!((response.status, response.text().as_str()), (200, "late"));
    assert_eq!(response.header("connection"), Some("close"));
    ended(old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_ends_at_the_old_process_is_known_to_the_new_one() {
    let mut stack = Stack::start_with(UPGRADES).await;
    stack.login("alice").await;
    let body = json!({ "code": "user-bob-1" }).to_string();
    let mut login = begin(&stack, "/login", "", body.len()).await;
    let old = stack.upgrade(UPGRADES).await;
    login.send(body.as_bytes()).await;
    let response = login.response(false).await;
    assert_eq!(response.status, 200, "{}", response.text());
    let token = response.json()["token"].as_str().unwrap().to_owned();
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    ended(old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_at_the_new_process_rejects_a_login_that_ends_at_the_old_one() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let alice = stack.login("alice").await;
    let body = json!({ "code": "user-alice-2" }).to_string();
    let mut login = begin(&stack, "/login", "", body.len()).await;
    let old = stack.upgrade(SNAPSHOT).await;
    let path = format!("/sessions?app_id={APP}&openid={}&block=1h", openid("alice"));
    let revoked = stack.request("DELETE", &path).bearer(OPERATOR).send_to_admin().await;
    assert_eq!(revoked.status, 204, "{}", revoked.text());
    assert_eq!(stack.get("/").token(&alice).send().await.status, 401);
    login.send(body.as_bytes()).await;
    assert_eq!(login.response(false).await.status, 403);
    ended(old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_rate_stays_used_up() {
    let changes = format!(
        "{UPGRADES}\n[login]\nrate_per_address = \"3/1h\"\n[[route]]\npath = \"/\"\n\
         upstream = \"recorder\"\nrate_per_user = \"2/1h\"\n"
    );
    let mut stack = Stack::start_with(&changes).await;
    let token = stack.login("alice").await;
    for _ in 0..2 {
        assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    }
    ended(stack.upgrade(&changes).await).await;
    stack.get("/").token(&token).send().await.assert_error(429, "rate_limited", "retry");
    assert_eq!(stack.try_login("user-bob-1").await.status, 200);
    assert_eq!(stack.try_login("user-bob-2").await.status, 200);
    stack.try_login("user-bob-3").await.assert_error(429, "rate_limited", "retry");
}

/// A connection on which the old process still serves one request, unless that comes late.
async fn kept_connection(stack: &Stack) -> Connection {
    let mut kept = Connection::open(stack.gateway).await;
    kept.send(&stack.get("/none").bytes()).await;
    assert_eq!(kept.response(false).await.status, 200);
    kept
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_process_still_lets_pass_is_used_up_at_the_new_one() {
    let changes = format!(
        "{UPGRADES}\n[[app]]\napp_id = \"{APP}\"\n\
         app_secret = {{ file = \"{{dir}}/wechat-secret\" }}\nlogin_rate = \"3/1h\"\n\
         [[route]]\npath = \"/\"\nupstream = \"recorder\"\nrate_per_user = \"2/1h\"\n\
         [[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n"
    );
    let mut stack = Stack::start_with(&changes).await;
    let token = stack.login("alice").await;
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    let body = json!({ "code": "user-bob-1" }).to_string();
    let mut login = begin(&stack, "/login", "", body.len()).await;
    let mut kept = kept_connection(&stack).await;
    let old = stack.upgrade(&changes).await;
    kept.try_send(&stack.get("/").token(&token).bytes()).await;
    let last = kept.response_or_end().await;
    login.send(body.as_bytes()).await;
    assert_eq!(login.response(false).await.status, 200);
    ended(old).await;
    // On a busy machine it may have been closed before.
    if last.is_some_and(|last| last.status == 200) {
        stack.get("/").token(&token).send().await.assert_error(429, "rate_limited", "retry");
    }
    assert_eq!(stack.try_login("user-bob-2").await.status, 200);
    stack.try_login("user-bob-3").await.assert_error(429, "rate_limited", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_longer_idle_timeout_brings_back_no_session_that_has_ended_by_the_old_one() {
    let with = |timeout: &str| format!("{UPGRADES}session.idle_timeout = \"{timeout}\"\n");
    let mut stack = Stack::start_with(&with("2h")).await;
    let (seen, unseen) = (stack.login("alice").await, stack.login("bob").await);
    let mut busy = begin(&stack, "/none", "", 1).await;
    let old = stack.upgrade(&with("6h")).await;
    stack.clock.advance(Duration::from_secs(3600));
    let used = stack.login("carol").await;
    stack.clock.advance(Duration::from_secs(3600));
    assert_eq!(stack.get("/").token(&seen).send().await.status, 401);
    busy.send(b"x").await;
    assert_eq!(busy.response(false).await.status, 200);
    ended(old).await;
    until("the longer timeout counts", async || {
        let session = stack.get("/session").token(&used).send().await;
        session.json()["expires_in"].as_u64().unwrap() == 6 * 3600
    })
    .await;
    for token in [&seen, &unseen] {
        assert_eq!(stack.get("/").token(token).send().await.status, 401);
    }
    stack.clock.advance(Duration::from_secs(5 * 3600));
    assert_eq!(stack.get("/").token(&used).send().await.status, 200);
}

/// The old process ends with its last connection, sooner than it tells uses otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_use_at_the_old_process_is_known_to_the_new_one() {
    let changes = format!("{UPGRADES}session.idle_timeout = \"2h\"\n");
    let mut stack = Stack::start_with(&changes).await;
    let token = stack.login("alice").await;
    let mut kept = kept_connection(&stack).await;
    let old = stack.upgrade(&changes).await;
    stack.clock.advance(Duration::from_secs(90 * 60));
    kept.try_send(&stack.get("/").token(&token).bytes()).await;
    let last = kept.response_or_end().await;
    ended(old).await;
    stack.clock.advance(Duration::from_secs(90 * 60));
    // On a busy machine it may have been closed before.
    if last.is_some_and(|last| last.status == 200) {
        assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    }
}

/// What a service sets in the response of one process is sent to it by the other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_that_is_set_at_the_old_process_is_known_to_the_new_one() {
    let changes = format!("{UPGRADES}{JAR}");
    let mut stack = Stack::start_with(&changes).await;
    let token = stack.login("alice").await;
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let late = b"HTTP/1.1 200 OK\r\nSet-Cookie: at=old\r\nSet-Cookie: only=new; Max-Age=0\r\n\
          Content-Length: 0\r\n\r\n";
    stack.upstream.reply(move |received| match received.request_line.as_str() {
        "GET /late HTTP/1.1" => Reply::When(released.clone(), late.to_vec()),
        "GET /set HTTP/1.1" => Reply::ok("Set-Cookie: at=new\r\nSet-Cookie: only=new\r\n", ""),
        _ => Reply::ok("", ""),
    });
    let mut busy = Connection::open(stack.gateway).await;
    busy.send(&stack.get("/late").token(&token).bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    let old = stack.upgrade(&changes).await;
    assert_eq!(stack.get("/set").token(&token).send().await.status, 200);
    let cookies = async || stack.get("/").token(&token).forwarded().await.all("cookie").join("; ");
    assert_eq!(cookies().await, "at=new; only=new");
    release.notify_one();
    assert_eq!(busy.response(false).await.status, 200);
    assert_eq!(cookies().await, "at=old");
    ended(old).await;
}

/// The new process writes the files of sessions from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_logout_at_the_new_process_is_durable() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    ended(stack.upgrade(SNAPSHOT).await).await;
    // Soon it writes a snapshot, which the logins are in.
    stack.until_metric("wxgate_snapshot_sessions", 2.0).await;
    assert_eq!(stack.post("/logout").token(&alice).send().await.status, 204);
    // Without a snapshot at the end, and at free addresses again.
    stack.write_config(SNAPSHOT);
    stack.restart(Command::Stop).await;
    assert_eq!(stack.get("/").token(&alice).send().await.status, 401);
    assert_eq!(stack.get("/").token(&bob).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_connects_and_fails_leaves_the_old_process_as_it_was() {
    let mut stack = Stack::start_with(UPGRADES).await;
    let token = stack.login("alice").await;
    let socket = stack.directory.path().join("upgrade.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // It says nothing, something else, too much, or stops in the middle of its hello.
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 1000], &[0, 0, 0, 20, 1, 1, 8]] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    }
    // A new process that is gone before it is ready.
    drop(stack.successor(UPGRADES).await.unwrap());
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    assert_eq!(stack.post("/logout").token(&token).send().await.status, 204);
    stack.login("bob").await;
    ended(stack.upgrade(UPGRADES).await).await;
    assert_eq!(stack.get("/").token(&token).send().await.status, 401);
}

#[test]
fn a_process_that_cannot_take_over_says_why_and_fails() {
    let directory = tempfile::tempdir().unwrap();
    for (changes, problem) in [
        ("", "server.upgrade_socket is not set"),
        ("server.upgrade_socket = \"{dir}/upgrade.sock\"", "no process serves at"),
    ] {
        let file = write_config(directory.path(), changes);
        let output = wxgate().args(["run", "--upgrade", "-c"]).arg(file).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let log = text(&output.stderr);
        assert!(log.contains(problem), "{log}");
    }
}

/// The program replaces itself, and a replacement that fails changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn sigquit_starts_a_new_process_which_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let address = free_address();
    let changes =
        format!("{UPGRADES}server.listen = \"{address}\"\nendpoints.health = \"/health\"");
    let file = write_config(directory.path(), &changes);
    let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
    gateway.started();
    std::fs::write(&file, "broken").unwrap();
    gateway.signal("QUIT");
    gateway.line_with("the new process has failed");
    assert_eq!(client::get(address, "/health").await.status, 200);

    write_config(directory.path(), &changes);
    gateway.signal("QUIT");
    let line: serde_json::Value =
        serde_json::from_str(&gateway.line_with("the new process serves")).unwrap();
    let pid = line["pid"].to_string();
    // Both write to the same log.
    gateway.line_with("the old process has ended");
    assert_eq!(gateway.code(), 0);
    assert_eq!(client::get(address, "/health").await.status, 200);
    let killed = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
    assert!(killed.success());
    gateway.line_with("stopped");
    until("the new process has ended", async || TcpStream::connect(address).await.is_err()).await;
}

/// An address that is free at this moment.
fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}
