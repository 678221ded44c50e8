//! Two processes during an upgrade, which ask each other in this one.

use super::*;
use crate::session::entry::{Change, Entry};
use crate::session::{Incoming, Restoring, TooManyChanges};
use crate::telemetry::metrics::RestoredFrom;

/// Has the questions of one process answered by the other.
fn link(asking: &Process, answering: &mut Process) {
    let mut questions = asking.peer.link();
    let sessions = answering.sessions.clone();
    let task = tokio::spawn(async move {
        while let Some(question) = questions.recv().await {
            let sessions = sessions.clone();
            tokio::spawn(async move {
                let answer = sessions.answer(&question.body).await.unwrap();
                drop(question.answer.send(answer));
            });
        }
    });
    answering.answering.push(task.abort_handle());
}

fn export(process: &Process) -> Vec<Entry> {
    let mut entries = Vec::new();
    let outcome = process.sessions.hand_over(|entry| {
        entries.push(entry);
        Ok::<(), ()>(())
    });
    outcome.unwrap();
    entries
}

fn insert(restoring: &Restoring, entries: Vec<Entry>) {
    let mut incoming = Incoming::default();
    for entry in entries {
        incoming.add(entry);
    }
    let incoming = parking_lot::Mutex::new(Some(incoming));
    restoring.insert_all(|| Ok::<_, ()>(incoming.lock().take())).unwrap();
}

fn import(process: &Process, entries: Vec<Entry>) {
    let restoring = process.sessions.begin_restoring(RestoredFrom::Upgrade);
    insert(&restoring, entries);
    restoring.finish().unwrap();
}

/// An old process with files, and a new one that has its sessions.
async fn upgrade(machine: &Machine) -> (Process, Process) {
    let mut old = machine.start().await;
    let mut new = machine.process_at(old.clock.clone());
    link(&old, &mut new);
    link(&new, &mut old);
    new.peer.set_owner(false);
    (old, new)
}

#[tokio::test]
async fn what_happens_in_one_process_is_known_to_the_other_before_it_is_answered() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let digest = old.login_with(1, Some(old.key(1))).await;
    assert!(new.is_live(&digest).await);
    assert_eq!(new.sessions.session_keys(&user(1)).await.unwrap().len(), 1);
    let of_new = new.login(2).await;
    assert!(old.is_live(&of_new).await);
    old.sessions.replace_session_key(&user(1), old.key(2).session_key).await.unwrap();
    assert!(new.sessions.session_keys(&user(1)).await.unwrap()[0] == old.key(2).session_key);

    old.sessions.revoke(&digest).await.unwrap();
    assert!(!new.is_live(&digest).await);
    new.sessions.revoke(&of_new).await.unwrap();
    assert!(!old.is_live(&of_new).await);

    let blocked = KnownUser { user: user(3), user_id: identity(3).user_id };
    new.sessions.block(&blocked, Duration::from_secs(9)).await.unwrap();
    assert!(old.sessions.blocked_until(&user(3)).await.unwrap().is_some());
    old.sessions.unblock(&user(3)).await.unwrap();
    assert!(new.sessions.blocked_until(&user(3)).await.unwrap().is_none());
    for process in [&old, &new] {
        process.assert_metric("wxgate_sessions_created_total", 1);
        process.assert_metric("wxgate_sessions_restored_total{source=\"upgrade\"}", 1);
        process.assert_metric("wxgate_sessions_removed_total{cause=\"revoked\"}", 2);
        process.assert_metric("wxgate_sessions", 0);
    }
}

#[tokio::test]
async fn a_login_of_a_user_that_is_blocked_in_the_other_process_is_refused() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let Backend::Memory(memory) = &new.sessions.backend else { unreachable!() };
    let until = new.clock.now_millis() + 1000;
    // The old process does not know yet.
    memory.blocks.set(user(1).into(), until, new.clock.now_millis());
    let client = IpAddr::from([192, 0, 2, 1]);
    let outcome = old.sessions.create(identity(1), client, None).await;
    assert!(matches!(outcome, Err(CreateError::Blocked)));
    assert!(old.sessions.of_user(&user(1)).await.unwrap().is_empty());
    assert!(new.sessions.of_user(&user(1)).await.unwrap().is_empty());
}

#[tokio::test]
async fn uses_follow() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let (used, unused) = (old.login(1).await, old.login(2).await);
    let since = old.clock.now_millis();
    old.advance(6);
    old.sessions.get(&used).await.unwrap();
    let next = old.sessions.tell_uses(since + 1).await;
    assert_eq!(next, old.clock.now_millis());
    assert_eq!(new.session(&used).last_used(), old.clock.now_millis());
    new.advance(6);
    assert!(new.is_live(&used).await && !new.is_live(&unused).await);
}

#[tokio::test]
async fn a_change_that_comes_before_what_it_changes_has_precedence() {
    let machine = Machine::new();
    let (old, mut new) = upgrade(&machine).await;
    // What was on its way when the changes came.
    old.peer.unlink();
    let (revoked, kept) = (old.login(1).await, old.login(2).await);
    old.login_with(3, Some(old.key(1))).await;
    for number in [4, 5] {
        old.sessions.block(&user(number).into(), Duration::from_secs(50)).await.unwrap();
    }
    let entries = export(&old);
    let restoring = new.sessions.begin_restoring(RestoredFrom::Upgrade);
    link(&old, &mut new);
    old.sessions.revoke(&revoked).await.unwrap();
    old.sessions.unblock(&user(4)).await.unwrap();
    old.sessions.block(&user(5).into(), Duration::from_secs(5)).await.unwrap();
    old.sessions.replace_session_key(&user(3), old.key(2).session_key).await.unwrap();
    let late = old.login(6).await;
    insert(&restoring, entries);
    insert(&restoring, export(&old));
    let restored = restoring.finish().unwrap();
    assert_eq!(restored.sessions, 2);

    assert!(new.is_live(&kept).await && new.is_live(&late).await);
    assert!(!new.is_live(&revoked).await);
    assert_eq!(new.sessions.blocked_until(&user(4)).await.unwrap(), None);
    let until = new.clock.now_millis() + 5000;
    assert_eq!(new.sessions.blocked_until(&user(5)).await.unwrap(), Some(until));
    assert!(new.sessions.session_keys(&user(3)).await.unwrap()[0] == old.key(2).session_key);
    new.assert_metric("wxgate_sessions_restored_total{source=\"upgrade\"}", 3);
    new.assert_metric("wxgate_sessions", 3);
}

#[tokio::test]
async fn too_many_changes_meanwhile_are_noticed() {
    let machine = Machine::new();
    let new = machine.process();
    let restoring = new.sessions.begin_restoring(RestoredFrom::Upgrade);
    for number in 0..=1_u64 << 20 {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        new.sessions.note_meanwhile(&Change::Revoked(TokenDigest::from_bytes(bytes)));
    }
    assert!(matches!(restoring.finish(), Err(TooManyChanges)));
}

#[tokio::test]
async fn the_files_follow_and_both_processes_end_sessions_durably_before_and_after() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let digests = [old.login(1).await, old.login(2).await, old.login(3).await, old.login(4).await];
    let kept = old.login(5).await;
    assert!(old.sessions.save().await);
    import(&new, export(&old));
    old.sessions.revoke(&digests[0]).await.unwrap();
    // Only the old process has the files.
    new.sessions.revoke(&digests[1]).await.unwrap();

    old.sessions.hand_over_files().await;
    old.peer.set_owner(false);
    // In between nobody has them, and who logs out waits.
    let waiting = tokio::spawn({
        let (sessions, digest) = (old.sessions.clone(), digests[2]);
        async move { sessions.revoke(&digest).await }
    });
    while new.is_live(&digests[2]).await {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    new.sessions.take_files().await.unwrap();
    new.peer.set_owner(true);
    waiting.await.unwrap().unwrap();
    old.sessions.revoke(&digests[3]).await.unwrap();
    // Each is kept by what answers the other.
    old.peer.unlink();
    new.peer.unlink();
    drop((old, new));

    let next = machine.start().await;
    for digest in &digests {
        assert!(!next.is_live(digest).await);
    }
    assert!(next.is_live(&kept).await);
    next.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 0);
}

#[tokio::test]
async fn if_the_old_process_gives_nothing_every_logout_is_written_until_the_first_snapshot() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let evicted = old.login(1).await;
    assert!(old.sessions.save().await);
    // Neither process has it any more, but the snapshot has.
    for process in [&old, &new] {
        let Backend::Memory(memory) = &process.sessions.backend else { unreachable!() };
        memory.remove(&evicted, crate::session::Removal::Evicted);
    }
    old.sessions.hand_over_files().await;
    old.peer.set_owner(false);
    let fresh = machine.process_at(old.clock.clone());
    fresh.sessions.take_files().await.unwrap();
    assert!(fresh.durable().is_urgent().await, "a snapshot follows at once");
    fresh.sessions.revoke(&evicted).await.unwrap();
    drop((old, new, fresh));
    let next = machine.start().await;
    assert!(!next.is_live(&evicted).await);
    next.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 0);
}

#[tokio::test]
async fn a_new_process_knows_what_has_ended_and_a_made_up_token_writes_nothing() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let (evicted, expired) = (old.login(1).await, old.login(2).await);
    old.advance(1);
    let kept = old.login(3).await;
    assert!(old.sessions.save().await);
    let Backend::Memory(memory) = &old.sessions.backend else { unreachable!() };
    memory.remove(&evicted, crate::session::Removal::Evicted);
    // The other one has ended by time, and nobody has noticed.
    old.advance(9);
    let fresh = machine.process_at(old.clock.clone());
    import(&fresh, export(&old));
    old.sessions.hand_over_files().await;
    old.sessions.export_ended(|piece| fresh.sessions.import_ended(piece.as_bytes()).unwrap());
    fresh.sessions.take_files().await.unwrap();
    assert!(fresh.durable().is_urgent().await, "a snapshot follows at once all the same");
    let written = async |digest: TokenDigest| {
        let bytes = async || fresh.durable().files.read().await.as_ref().unwrap().journal.bytes();
        let before = bytes().await;
        fresh.sessions.revoke(&digest).await.unwrap();
        bytes().await > before
    };
    assert!(!written(TokenDigest::from_bytes([1; 32])).await);
    for digest in [evicted, expired, kept] {
        assert!(written(digest).await);
        assert!(!written(digest).await, "once");
    }
    drop((old, new));
}

#[tokio::test]
async fn an_old_process_takes_its_files_back() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let (digest, kept) = (old.login(1).await, old.login(2).await);
    assert!(old.sessions.save().await);
    old.sessions.hand_over_files().await;
    old.peer.set_owner(false);
    assert!(!old.durable().should_take_files(), "not before it is told to");
    // The new process is dead.
    drop(new);
    old.peer.unlink();
    old.sessions.take_files().await.unwrap();
    old.sessions.revoke(&digest).await.unwrap();
    drop(old);
    let next = machine.start().await;
    assert!(next.is_live(&kept).await && !next.is_live(&digest).await);
}

/// What is told when everything has come in is newer than what was told before.
#[tokio::test]
async fn a_session_key_that_is_told_at_the_end_stays_the_newest() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    let told = old.login_with(1, Some(old.key(1))).await;
    assert!(new.is_live(&told).await);
    let replaced = |key: u8| Change::KeyReplaced { user: user(1), key: new.key(key) };
    let restoring = new.sessions.begin_restoring(RestoredFrom::Upgrade);
    // Some hundred milliseconds of work at the end.
    let earlier = replaced(2);
    (0..200_000).for_each(|_| new.sessions.note_meanwhile(&earlier));
    let finishing = tokio::task::spawn_blocking(move || restoring.finish().map(drop));
    while new.sessions.meanwhile.read().is_some() {
        tokio::task::yield_now().await;
    }
    new.sessions.apply(replaced(3)).await;
    finishing.await.unwrap().unwrap();
    let keys = new.sessions.session_keys(&user(1)).await.unwrap();
    assert!(keys[0] == new.key(3).session_key);
}

/// A login of the other process is in the last snapshot of this one.
#[tokio::test]
async fn a_login_that_is_told_after_the_snapshot_at_the_end_is_written() {
    let machine = Machine::new();
    let (old, new) = upgrade(&machine).await;
    old.sessions.hand_over_files().await;
    new.sessions.take_files().await.unwrap();
    new.peer.set_owner(true);
    assert!(new.sessions.save().await);
    let told = old.login(1).await;
    new.sessions.save_logins().await;
    drop((old, new));
    let next = machine.start().await;
    assert!(next.is_live(&told).await);
}
