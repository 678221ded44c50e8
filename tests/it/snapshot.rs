//! Sessions that outlive the process in files.

mod config;
mod failures;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::time::Duration;

use wxgate::server::Command;

use crate::harness::client::{self, Response};
use crate::harness::{OPERATOR, Stack, openid};

/// Changes with a snapshot, in the directory of the stack.
const SNAPSHOT: &str = r#"
    session.seal_key = { file = "{dir}/seal" }
    session.snapshot.path = "{dir}/sessions"
    admin.token = { file = "{dir}/operator" }
"#;

const RESTORED: &str = "wxgate_sessions_restored_total{source=\"snapshot\"}";

async fn status(stack: &Stack, token: &str) -> u16 {
    stack.get("/").token(token).send().await.status
}

async fn log_out(stack: &Stack, token: &str) -> Response {
    stack.post("/logout").token(token).send().await
}

/// What an operator does with a user.
async fn operate(stack: &Stack, method: &str, user: &str, more: &str) -> Response {
    let path = format!("/sessions?openid={}{more}", openid(user));
    stack.request(method, &path).bearer(OPERATOR).send_to_admin().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_logs_nobody_out() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let tokens = [stack.login("alice").await, stack.login("bob").await, stack.login("bob").await];
    stack.restart(Command::Drain).await;
    for (token, user) in tokens.iter().zip(["alice", "bob", "bob"]) {
        let request = stack.get("/").token(token).forwarded().await;
        assert_eq!(request.all("x-openid"), [openid(user)]);
    }
    assert_eq!(stack.metric(RESTORED).await, 3.0);
    assert_eq!(stack.metric("wxgate_sessions_created_total").await, 0.0);
    assert_eq!(stack.metric("wxgate_sessions").await, 3.0);
    let listed = operate(&stack, "GET", "bob", "").await.json();
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 2, "{listed}");
    // And another one, without a request in between.
    stack.restart(Command::Drain).await;
    stack.restart(Command::Drain).await;
    assert_eq!(status(&stack, &tokens[0]).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_of_a_life_is_left_after_a_restart() {
    let changes = format!("{SNAPSHOT}\nsession.idle_timeout = \"1h\"\nsession.ttl = \"2h\"");
    let mut stack = Stack::start_with(&changes).await;
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let (idle, used) = (stack.login("alice").await, stack.login("bob").await);
    stack.clock.advance(minutes(50));
    assert_eq!(status(&stack, &used).await, 200);
    stack.restart(Command::Drain).await;
    stack.clock.advance(minutes(9));
    assert_eq!(status(&stack, &used).await, 200);
    stack.clock.advance(minutes(2));
    assert_eq!(status(&stack, &idle).await, 401);
    stack.clock.advance(minutes(50));
    assert_eq!(status(&stack, &used).await, 200);
    stack.restart(Command::Drain).await;
    stack.clock.advance(minutes(10));
    assert_eq!(status(&stack, &used).await, 401, "its absolute end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_outlives_an_abrupt_end() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let (ended, kept) = (stack.login("alice").await, stack.login("bob").await);
    stack.restart(Command::Drain).await;
    assert_eq!(log_out(&stack, &ended).await.status, 204);
    let lost = stack.login("carol").await;
    // Writes no snapshot.
    stack.restart(Command::Stop).await;
    assert_eq!(status(&stack, &ended).await, 401);
    assert_eq!(status(&stack, &kept).await, 200);
    assert_eq!(status(&stack, &lost).await, 401, "a login since the last snapshot is lost");
    assert_eq!(log_out(&stack, &ended).await.status, 204, "a second time");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_does_outlives_an_abrupt_end() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    assert_eq!(operate(&stack, "DELETE", "dave", "&block=1h").await.status, 204);
    stack.restart(Command::Drain).await;
    assert_eq!(operate(&stack, "DELETE", "alice", "").await.status, 204);
    assert_eq!(operate(&stack, "DELETE", "bob", "&block=1h").await.status, 204);
    assert_eq!(operate(&stack, "DELETE", "dave", "&block=0s").await.status, 204);
    stack.restart(Command::Stop).await;
    for token in [&alice, &bob] {
        assert_eq!(status(&stack, token).await, 401);
    }
    assert_eq!(stack.try_login("user-bob-1").await.status, 403);
    stack.login("alice").await;
    stack.login("dave").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_written_on_the_interval() {
    let changes = format!("{SNAPSHOT}\nsession.snapshot.interval = \"1s\"");
    let mut stack = Stack::start_with(&changes).await;
    assert_eq!(stack.metric("wxgate_snapshot_sessions").await, 0.0);
    let token = stack.login("alice").await;
    stack.until_metric("wxgate_snapshot_sessions", 1.0).await;
    let path = stack.directory.path().join("sessions");
    let length = std::fs::metadata(&path).unwrap().len();
    assert_eq!(stack.metric("wxgate_snapshot_bytes").await, length as f64);
    assert!(stack.metric("wxgate_snapshot_duration_seconds").await > 0.0);
    assert!(stack.metric("wxgate_snapshot_last_success_timestamp_seconds").await > 1e9);
    stack.restart(Command::Stop).await;
    assert_eq!(status(&stack, &token).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_show_no_token_and_no_user() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let token = stack.login("alice").await;
    stack.restart(Command::Drain).await;
    let ended = stack.login("bob").await;
    log_out(&stack, &ended).await;
    operate(&stack, "DELETE", "carol", "&block=1h").await;
    for name in ["sessions", "sessions.journal"] {
        let path = stack.directory.path().join(name);
        let bytes = std::fs::read(&path).unwrap();
        for secret in [&token, &ended, &openid("alice"), &openid("bob"), &openid("carol")] {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{name}: {secret}");
        }
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

/// Starts a gateway whose snapshot does not come until something is written here.
async fn start_loading(stack: &mut Stack) -> File {
    let path = stack.directory.path().join("sessions");
    std::fs::remove_file(&path).ok();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    loop {
        stack.start_again_unready().await;
        // The last process may have the lock for a moment.
        while !stack.ended.is_finished() {
            let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
            let opened = OpenOptions::new().write(true).custom_flags(nonblocking).open(&path);
            if let Ok(writer) = opened {
                return writer;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_is_not_ready_before_its_sessions_are_loaded() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    stack.stop(Command::Drain).await;
    let writer = start_loading(&mut stack).await;
    for _ in 0..10 {
        assert_eq!(client::get(stack.admin, "/readyz").await.status, 503);
    }
    drop(writer);
    stack.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_respond_at_the_start_does_not_hold_up_a_stop() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    stack.stop(Command::Drain).await;
    let writer = start_loading(&mut stack).await;
    stack.stop(Command::Drain).await;
    drop(writer);
}
