//! What a failing disk does to sessions.

use rustix::io::Errno;

use super::*;

#[tokio::test]
async fn without_a_journal_logouts_fail_and_everything_else_goes_on() {
    let machine = Machine::new();
    let first = machine.start().await;
    let ended = first.login(1).await;
    assert!(first.sessions.save().await);
    machine.faults.fail(Step::Write, Errno::NOSPC);

    assert!(first.sessions.revoke(&ended).await.is_err());
    assert!(!first.is_live(&ended).await, "it has ended in this process all the same");
    assert!(first.sessions.revoke(&ended).await.is_err(), "it is not durable yet");
    assert!(first.sessions.block(&user(2).into(), minutes(90)).await.is_err());
    assert!(first.sessions.blocked_until(&user(2)).await.unwrap().is_some());
    assert!(first.sessions.unblock(&user(3)).await.is_err());
    assert!(first.sessions.settle().await.is_err());
    let digest = first.login(4).await;
    assert!(first.sessions.get(&digest).await.unwrap().is_some());

    machine.faults.heal();
    first.sessions.revoke(&ended).await.unwrap();
    first.sessions.settle().await.unwrap();
    drop(first);
    let second = machine.start().await;
    assert!(!second.is_live(&ended).await);
    assert!(second.sessions.blocked_until(&user(2)).await.unwrap().is_some());
    second.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 0);
}

#[tokio::test]
async fn what_could_not_be_written_is_tried_again_every_second() {
    let machine = Machine::new();
    let first = machine.start().await;
    let digests = [first.login(1).await, first.login(1).await, first.login(1).await];
    assert!(first.sessions.save().await);
    machine.faults.fail(Step::Sync, Errno::IO);
    for digest in &digests {
        assert!(first.sessions.revoke(digest).await.is_err());
    }
    assert!(first.sessions.block(&user(2).into(), minutes(90)).await.is_err());
    let sessions = first.sessions.clone();
    let saving = tokio::spawn(async move { sessions.keep_saving().await });
    machine.faults.heal();
    while !first.durable().unwritten.is_empty() {
        tokio::task::yield_now().await;
    }
    saving.abort();
    drop(saving.await);
    drop(first);
    let second = machine.start().await;
    for digest in &digests {
        assert!(!second.is_live(digest).await);
    }
    assert!(second.sessions.blocked_until(&user(2)).await.unwrap().is_some());
}

#[tokio::test]
async fn a_snapshot_settles_what_could_not_be_written() {
    let machine = Machine::new();
    let first = machine.start().await;
    let (ended, kept) = (first.login(1).await, first.login(2).await);
    assert!(first.sessions.save().await);
    machine.faults.fail(Step::Write, Errno::IO);
    assert!(first.sessions.revoke(&ended).await.is_err());
    machine.faults.heal();
    assert!(first.sessions.save().await);
    let written = machine.faults.count(Step::Write);
    first.sessions.revoke(&ended).await.unwrap();
    first.sessions.settle().await.unwrap();
    assert_eq!(machine.faults.count(Step::Write), written, "there is nothing left to write");
    drop(first);
    let second = machine.start().await;
    assert!(second.is_live(&kept).await && !second.is_live(&ended).await);
}

#[tokio::test]
async fn a_snapshot_that_fails_at_any_step_leaves_files_that_load() {
    for step in [Step::Create, Step::Write, Step::Sync, Step::Rename, Step::SyncDirectory] {
        let machine = Machine::new();
        let first = machine.start().await;
        let (kept, early) = (first.login(1).await, first.login(2).await);
        assert!(first.sessions.save().await);
        first.sessions.revoke(&early).await.unwrap();
        first.assert_metric("wxgate_snapshot_failures_total{stage=\"save\"}", 0);
        machine.faults.fail(step, Errno::NOSPC);
        first.sessions.get(&kept).await.unwrap();
        assert!(!first.sessions.save().await, "{step:?}");
        first.assert_metric("wxgate_snapshot_failures_total{stage=\"save\"}", 1);
        machine.faults.heal();
        let late = first.login(3).await;
        first.sessions.revoke(&late).await.unwrap();
        drop(first);

        let second = machine.start().await;
        assert!(second.is_live(&kept).await, "{step:?}");
        assert!(!second.is_live(&early).await && !second.is_live(&late).await, "{step:?}");
        second.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 0);
        // The next one works.
        second.sessions.get(&kept).await.unwrap();
        assert!(second.sessions.save().await, "{step:?}");
    }
}

#[tokio::test]
async fn files_that_cannot_be_loaded_are_kept_aside_and_nothing_of_them_is_used() {
    let machine = Machine::new();
    let first = machine.start().await;
    let digest = first.login(1).await;
    assert!(first.sessions.save().await);
    drop(first);
    let path = machine.path("sessions");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();

    let second = machine.start().await;
    assert!(!second.is_live(&digest).await);
    second.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 1);
    second.assert_metric("wxgate_sessions", 0);
    let names = ["sessions.bad", "sessions.journal.bad"].map(str::to_owned);
    let found = file_names(machine.directory.path());
    assert!(names.iter().all(|name| found.contains(name)), "{found:?}");
    // It works from then on.
    let digest = second.login(1).await;
    assert!(second.sessions.save().await);
    drop(second);
    let third = machine.start().await;
    assert!(third.is_live(&digest).await);
}

#[tokio::test]
async fn two_processes_cannot_use_the_same_files() {
    let machine = Machine::new();
    let first = machine.process();
    first.sessions.restore().await.unwrap();
    let second = machine.process();
    let error = second.sessions.restore().await.unwrap_err();
    assert!(error.to_string().contains("sessions.lock"), "{error}");
}

#[tokio::test]
async fn a_key_that_was_replaced_still_opens_and_an_unknown_one_does_not() {
    let mut machine = Machine::new();
    let first = machine.start().await;
    let digest = first.login(1).await;
    assert!(first.sessions.save().await);
    drop(first);
    machine.section.seal_keys.insert(0, SealKey::random());
    let second = machine.start().await;
    assert!(second.sessions.get(&digest).await.unwrap().is_some());
    assert!(second.sessions.save().await);
    drop(second);
    machine.section.seal_keys.truncate(1);
    let third = machine.start().await;
    assert!(third.is_live(&digest).await);
    drop(third);
    machine.section.seal_keys = vec![SealKey::random()];
    let fourth = machine.start().await;
    assert!(!fourth.is_live(&digest).await);
    fourth.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 1);
}
