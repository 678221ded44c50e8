//! Files that cannot be loaded or written.

use std::fs;

use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::server::{Command, Server, StartError};
use wxgate::telemetry::metrics::Metrics;

use super::{RESTORED, SNAPSHOT, log_out, operate, status};
use crate::harness::{Stack, process_log};

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_loaded_are_kept_aside_and_nobody_is_logged_in() {
    type Damage = fn(&mut Vec<u8>);
    let damages: [(Damage, &str); 5] = [
        (|bytes| bytes.truncate(bytes.len() - 1), "truncated"),
        (|bytes| bytes.clear(), "not a file of sessions"),
        (|bytes| bytes[8] = 2, "version 2"),
        (|bytes| bytes[20] ^= 1, "another key"),
        (|bytes| bytes.push(0), "follows the last chunk"),
    ];
    for (damage, reason) in damages {
        let mut stack = Stack::start_with(SNAPSHOT).await;
        let token = stack.login("alice").await;
        stack.stop(Command::Drain).await;
        let path = stack.directory.path().join("sessions");
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, &bytes).unwrap();
        stack.start_again().await;
        assert_eq!(status(&stack, &token).await, 401, "{reason}");
        assert_eq!(stack.metric(RESTORED).await, 0.0);
        assert_eq!(stack.metric("wxgate_snapshot_failures_total{stage=\"load\"}").await, 1.0);
        assert!(fs::read(stack.directory.path().join("sessions.bad")).unwrap() == bytes);
        let shown = path.display().to_string();
        let mut lines = process_log::logged_with(&shown);
        lines.retain(|line| line["level"] == "ERROR");
        let [line] = &lines[..] else { panic!("{reason}: {lines:?}") };
        assert!(line["fields"]["error"].as_str().unwrap().contains(reason), "{line}");

        // From then on it works.
        let token = stack.login("alice").await;
        stack.restart(Command::Drain).await;
        assert_eq!(status(&stack, &token).await, 200, "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_journal_a_logout_is_503_and_everything_else_goes_on() {
    let mut stack = Stack::start_with(SNAPSHOT).await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    stack.stop(Command::Drain).await;
    // No new journal can be made.
    let in_the_way = stack.directory.path().join("sessions.journal.new");
    fs::create_dir(&in_the_way).unwrap();
    stack.start_again().await;
    assert_eq!(status(&stack, &bob).await, 200);
    for _ in 0..2 {
        let response = log_out(&stack, &alice).await;
        assert_eq!(response.status, 503, "{}", response.text());
        assert_eq!(response.json()["error"], "store_unavailable");
    }
    assert_eq!(status(&stack, &alice).await, 401, "it has ended all the same");
    for more in ["", "&block=1h"] {
        assert_eq!(operate(&stack, "DELETE", "bob", more).await.status, 503);
    }
    let carol = stack.login("carol").await;
    assert_eq!(status(&stack, &carol).await, 200);
    assert_eq!(log_out(&stack, &"A".repeat(43)).await.status, 204, "there is no such session");

    fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(log_out(&stack, &alice).await.status, 204);
    assert_eq!(operate(&stack, "DELETE", "bob", "&block=1h").await.status, 204);
    stack.restart(Command::Stop).await;
    for token in [&alice, &bob] {
        assert_eq!(status(&stack, token).await, 401);
    }
    assert_eq!(stack.try_login("user-bob-1").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_cannot_be_written_is_counted_and_the_old_one_stays() {
    let changes = format!("{SNAPSHOT}\nsession.snapshot.interval = \"1s\"");
    let mut stack = Stack::start_with(&changes).await;
    let old = stack.login("alice").await;
    stack.until_metric("wxgate_snapshot_sessions", 1.0).await;
    let in_the_way = stack.directory.path().join("sessions.new");
    fs::create_dir(&in_the_way).unwrap();
    stack.login("bob").await;
    stack.until_metric("wxgate_snapshot_failures_total{stage=\"save\"}", 1.0).await;
    let ended = stack.login("carol").await;
    assert_eq!(log_out(&stack, &ended).await.status, 204);
    // The end does not wait for it.
    stack.stop(Command::Drain).await;
    fs::remove_dir(&in_the_way).unwrap();
    stack.start_again().await;
    assert_eq!(status(&stack, &old).await, 200);
    assert_eq!(stack.metric("wxgate_snapshot_failures_total{stage=\"load\"}").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_gateway_with_the_same_files_does_not_start() {
    let stack = Stack::start_with(SNAPSHOT).await;
    let config = Config::load(&stack.config_file(), Secrets::Load).unwrap();
    let server = Server::bind(&config, Clock::manual(), Metrics::new().unwrap()).unwrap();
    let (_commands, receiver) = tokio::sync::mpsc::channel(1);
    let error = server.run(receiver).await.unwrap_err();
    assert!(matches!(error, StartError::SessionFiles(_)));
    assert!(error.to_string().contains("another process uses this snapshot"), "{error}");
}
