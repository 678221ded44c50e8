//! What `check` finds in `[session.snapshot]`, and what a gateway without it does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use super::SNAPSHOT;
use crate::harness::client;
use crate::harness::command::wxgate;
use crate::harness::{Stack, config_text};

/// `check` of a configuration with changes: its errors and warnings, and whether it is accepted.
fn check(directory: &Path, changes: &str, arguments: &[&str]) -> (String, bool) {
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let file = directory.join("gateway.toml");
    fs::write(&file, config_text(directory, "http://127.0.0.1:1", nowhere, changes)).unwrap();
    let Output { status, stderr, .. } =
        wxgate().arg("check").args(arguments).arg("-c").arg(file).output().unwrap();
    (String::from_utf8(stderr).unwrap(), status.success())
}

#[test]
fn a_snapshot_needs_a_key_and_a_directory_and_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    let (shown, is_accepted) = check(path, SNAPSHOT, &[]);
    assert!(is_accepted && !shown.contains("session.snapshot"), "{shown}");

    let no_key = "session.snapshot.path = \"{dir}/sessions\"";
    for arguments in [&[][..], &["--without-secrets"]] {
        let (shown, is_accepted) = check(path, no_key, arguments);
        assert!(!is_accepted && shown.contains("session.seal_key: is missing"), "{shown}");
    }
    let with_redis = format!("{SNAPSHOT}\nsession.redis.url = \"redis://127.0.0.1\"");
    let (shown, is_accepted) = check(path, &with_redis, &[]);
    assert!(!is_accepted && shown.contains("session.snapshot: cannot be used"), "{shown}");
    for (changes, expected) in [
        ("interval = \"999ms\"", "session.snapshot.interval: must be at least 1s"),
        ("path = \"{dir}\"", "session.snapshot.path: is a directory"),
        ("path = \"{dir}/nowhere/sessions\"", "session.snapshot.path: "),
        ("path = \"{dir}/seal/sessions\"", "is not a directory"),
        ("file = \"{dir}/sessions\"", "unknown key"),
    ] {
        let changes = match changes.split_once("path = ") {
            Some((_, path)) => SNAPSHOT.replace("\"{dir}/sessions\"", path),
            None => format!("{SNAPSHOT}\nsession.snapshot.{changes}"),
        };
        let (shown, is_accepted) = check(path, &changes, &[]);
        assert!(!is_accepted && shown.contains(expected), "{expected}: {shown}");
    }
    // The directory may be on another machine.
    let elsewhere = SNAPSHOT.replace("{dir}/sessions", "/nowhere/sessions");
    let (shown, is_accepted) = check(path, &elsewhere, &["--without-secrets"]);
    assert!(is_accepted, "{shown}");
}

#[test]
fn a_directory_that_everybody_can_read_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let open = directory.path().join("open");
    fs::create_dir(&open).unwrap();
    let changes = SNAPSHOT.replace("{dir}/sessions", "{dir}/open/sessions");
    for (mode, is_warned) in [(0o755, true), (0o750, false), (0o711, false), (0o700, false)] {
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        let (shown, is_accepted) = check(directory.path(), &changes, &[]);
        let is_of_directory = |line: &str| {
            line.contains("session.snapshot") && line.contains("is readable by every user")
        };
        let warns = shown.lines().any(is_of_directory);
        assert!(is_accepted && warns == is_warned, "{mode:o}: {shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_there_are_no_files_and_no_metrics_of_it() {
    let mut stack = Stack::start().await;
    let token = stack.login("alice").await;
    let metrics = client::get(stack.admin, "/metrics").await.text();
    assert!(!metrics.contains("wxgate_snapshot_"), "{metrics}");
    assert!(metrics.contains("wxgate_sessions_restored_total{source=\"snapshot\"} 0"));
    assert!(metrics.contains("wxgate_sessions_restored_total{source=\"upgrade\"} 0"));
    stack.restart(wxgate::server::Command::Drain).await;
    assert_eq!(super::status(&stack, &token).await, 401);
    let stack = Stack::start_with(SNAPSHOT).await;
    let metrics = client::get(stack.admin, "/metrics").await.text();
    for name in [
        "wxgate_snapshot_sessions 0",
        "wxgate_snapshot_bytes 0",
        "wxgate_snapshot_duration_seconds 0",
        "wxgate_snapshot_last_success_timestamp_seconds 1",
        "wxgate_snapshot_failures_total{stage=\"save\"} 0",
        "wxgate_snapshot_failures_total{stage=\"load\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line.starts_with(name)), "{name}: {metrics}");
    }
}
