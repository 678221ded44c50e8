//! Sessions on a real disk that fails when it is told to, in one process after another.

mod failures;
mod idle;
mod two_processes;

use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;

use super::*;
use crate::config::{Carriers, SnapshotSection};
use crate::handover::peer::Peer;
use crate::identity::session_key::SessionKey;
use crate::identity::token::TokenDigest;
use crate::identity::{AppId, Identity, OpenId, UnionId, User, UserId};
use crate::session::snapshot::disk::faults::Faults;
use crate::session::snapshot::disk::{LockError, Step};
use crate::session::{Backend, CreateError, KnownUser, LoginKey, Session};

/// A gateway's process, as far as sessions are concerned.
struct Process {
    sessions: Sessions,
    clock: Clock,
    metrics: Arc<Metrics>,
    peer: Peer,
    /// They answer the questions of another process.
    answering: Vec<AbortHandle>,
}

/// A machine with a disk.
struct Machine {
    directory: tempfile::TempDir,
    faults: Faults,
    section: SessionSection,
}

impl Machine {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sessions");
        let section = SessionSection {
            ttl: minutes(100),
            idle_timeout: minutes(10),
            capacity: 1000,
            carriers: Carriers { header: true, bearer: true, cookie: false },
            header: http::HeaderName::from_static("x-3rd-session"),
            max_per_user: None,
            seal_keys: vec![SealKey::random()],
            jar_capacity: 1 << 20,
            shared: None,
            snapshot: Some(SnapshotSection { path, interval: Duration::from_secs(60) }),
        };
        Self { directory, faults: Faults::default(), section }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A process that has not loaded the files.
    fn process(&self) -> Process {
        let clock = Clock::manual();
        // Another number in each process.
        clock.advance(Duration::from_secs(rand::random_range(10_000..20_000)));
        self.process_at(clock)
    }

    fn process_at(&self, clock: Clock) -> Process {
        let metrics = Metrics::new().unwrap();
        metrics.register_snapshot().unwrap();
        let (section, peer) = (&self.section, Peer::default());
        let sessions = Sessions::new(section, clock.clone(), metrics.clone(), peer.clone(), 0);
        sessions.keep_session_keys(true);
        Process { sessions, clock, metrics, peer, answering: Vec::new() }
    }

    /// A process that has loaded the files. One that has just ended may still hold the lock.
    async fn start(&self) -> Process {
        let process = self.process();
        self.load(&process).await;
        process
    }

    async fn load(&self, process: &Process) {
        let path = self.path("sessions");
        while matches!(SnapshotFiles::lock(&path), Err(LockError::Held { .. })) {
            tokio::task::yield_now().await;
        }
        let faults = self.faults.clone();
        let files = process.sessions.load(|_| Ok(faults.lock(&path))).unwrap();
        process.durable().open(files).await;
    }
}

impl Process {
    fn durable(&self) -> &Durable {
        self.sessions.durable.as_deref().unwrap()
    }

    async fn login(&self, user: usize) -> TokenDigest {
        self.login_with(user, None).await
    }

    async fn login_with(&self, user: usize, key: Option<LoginKey>) -> TokenDigest {
        let client = IpAddr::from([192, 0, 2, 1]);
        self.sessions.create(identity(user), client, key).await.unwrap().0.digest()
    }

    async fn is_live(&self, digest: &TokenDigest) -> bool {
        self.sessions.contains(digest).await.unwrap()
    }

    fn session(&self, digest: &TokenDigest) -> Arc<Session> {
        let Backend::Memory(memory) = &self.sessions.backend else { unreachable!() };
        memory.get(digest).unwrap()
    }

    fn key(&self, number: u8) -> LoginKey {
        let session_key = SessionKey::from_bytes(&[number; 16]);
        LoginKey { session_key, logged_in_at_millis: self.clock.now_millis() }
    }

    fn advance(&self, by: u64) {
        self.clock.advance(minutes(by));
    }

    #[track_caller]
    fn assert_metric(&self, name: &str, value: u64) {
        self.sessions.maintain();
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        assert_eq!(found, Some(value.to_string().as_str()), "{name}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.answering.iter().for_each(AbortHandle::abort);
    }
}

/// Lifetimes in tests are of minutes, because the real time between two processes counts as well.
fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

fn identity(user: usize) -> Identity {
    Identity {
        app_id: AppId::parse("wx1").unwrap(),
        openid: OpenId::parse(&format!("o{user}")).unwrap(),
        unionid: user.is_multiple_of(2).then(|| UnionId::parse(&format!("u{user}")).unwrap()),
        user_id: user.is_multiple_of(3).then(|| UserId::parse(&format!("id-{user}")).unwrap()),
    }
}

fn user(number: usize) -> User {
    identity(number).user()
}

#[tokio::test]
async fn everything_that_a_session_is_comes_back() {
    let machine = Machine::new();
    let first = machine.start().await;
    let mut digests = Vec::new();
    for number in 0..7 {
        let key = (number == 2).then(|| first.key(7));
        digests.push(first.login_with(number, key).await);
        first.advance(1);
    }
    first.sessions.get(&digests[3]).await.unwrap();
    let blocked = KnownUser { user: user(9), user_id: identity(9).user_id };
    first.sessions.block(&blocked, minutes(50)).await.unwrap();
    first.advance(2);
    assert!(first.sessions.save().await);
    let mut before = Vec::new();
    for digest in &digests {
        before.push(first.session(digest));
    }
    let old = first.clock.now_millis();
    drop(first);

    let second = machine.start().await;
    let new = second.clock.now_millis();
    // The real time that has passed since the snapshot.
    let tolerance = 60_000;
    for (digest, before) in digests.iter().zip(&before) {
        let after = second.session(digest);
        assert!(after.identity == before.identity);
        assert_eq!(after.client, before.client);
        for (before, after) in [
            (before.created_at_millis, after.created_at_millis),
            (before.ends_at_millis, after.ends_at_millis),
            (before.last_used(), after.last_used()),
        ] {
            let (left_before, left_after) =
                (before.cast_signed() - old.cast_signed(), after.cast_signed() - new.cast_signed());
            let lost = left_before - left_after;
            assert!((0..tolerance).contains(&lost), "{lost}");
        }
    }
    let keys = second.sessions.session_keys(&user(2)).await.unwrap();
    assert!(keys == [SessionKey::from_bytes(&[7; 16])]);
    let until = second.sessions.blocked_until(&user(9)).await.unwrap().unwrap();
    assert!((new + 47 * 60_000..=new + 48 * 60_000).contains(&until));
    let app_id = identity(9).app_id;
    let found = second
        .sessions
        .find_users(&app_id, |_, user_id| user_id.is_some_and(|id| id.as_str() == "id-9"));
    assert_eq!(found.await.unwrap(), [blocked]);
    second.assert_metric("wxgate_sessions_restored_total{source=\"snapshot\"}", 7);
    second.assert_metric("wxgate_sessions_created_total", 0);
    second.assert_metric("wxgate_sessions", 7);
}

#[tokio::test]
async fn what_has_ended_does_not_come_back() {
    let machine = Machine::new();
    let first = machine.start().await;
    let expired = first.login(1).await;
    let known = |number| KnownUser::from(user(number));
    first.sessions.block(&known(1), minutes(9)).await.unwrap();
    first.sessions.block(&known(2), minutes(90)).await.unwrap();
    first.advance(9);
    let (revoked, dying) = (first.login(2 + 1).await, first.login(4).await);
    first.sessions.revoke(&revoked).await.unwrap();
    first.sessions.unblock(&user(2)).await.unwrap();
    assert!(first.sessions.save().await);
    drop(first);

    let second = machine.start().await;
    second.assert_metric("wxgate_sessions_restored_total{source=\"snapshot\"}", 2);
    assert!(!second.is_live(&revoked).await);
    assert_eq!(second.sessions.blocked_until(&user(1)).await.unwrap(), None);
    assert_eq!(second.sessions.blocked_until(&user(2)).await.unwrap(), None);
    // What was left of each life is left.
    second.advance(1);
    assert!(!second.is_live(&expired).await);
    assert!(second.is_live(&dying).await);
    second.advance(9);
    assert!(!second.is_live(&dying).await);
}

#[tokio::test]
async fn an_absolute_end_is_not_moved_by_restarts() {
    let machine = Machine::new();
    let mut process = machine.start().await;
    let digest = process.login(1).await;
    for _ in 0..12 {
        process.advance(8);
        process.sessions.get(&digest).await.unwrap().unwrap();
        assert!(process.sessions.save().await);
        drop(process);
        process = machine.start().await;
    }
    process.advance(4);
    assert!(!process.is_live(&digest).await);
}

#[tokio::test]
async fn a_logout_and_what_an_operator_does_are_durable_without_a_snapshot() {
    let machine = Machine::new();
    let first = machine.start().await;
    let (kept, ended) = (first.login(1).await, first.login(2).await);
    first.sessions.block(&user(3).into(), minutes(90)).await.unwrap();
    assert!(first.sessions.save().await);
    first.sessions.revoke(&ended).await.unwrap();
    first.sessions.unblock(&user(3)).await.unwrap();
    let blocked = KnownUser { user: user(6), user_id: identity(6).user_id };
    first.sessions.block(&blocked, minutes(90)).await.unwrap();
    let lost = first.login(4).await;
    drop(first);

    for _ in 0..3 {
        let next = machine.start().await;
        assert!(next.is_live(&kept).await);
        assert!(!next.is_live(&ended).await && !next.is_live(&lost).await);
        assert_eq!(next.sessions.blocked_until(&user(3)).await.unwrap(), None);
        assert!(next.sessions.blocked_until(&user(6)).await.unwrap().is_some());
        next.assert_metric("wxgate_snapshot_failures_total{stage=\"load\"}", 0);
    }
}

#[tokio::test]
async fn the_logout_of_a_session_that_was_evicted_or_replaced_is_durable() {
    let mut machine = Machine::new();
    machine.section.capacity = 3;
    machine.section.max_per_user = NonZeroUsize::new(2);
    let first = machine.start().await;
    let replaced = first.login(1).await;
    first.advance(1);
    let evicted = first.login(2).await;
    first.advance(1);
    let left = first.login(1).await;
    assert!(first.sessions.save().await);
    first.sessions.get(&left).await.unwrap();
    first.login(1).await;
    first.sessions.maintain();
    assert!(!first.is_live(&replaced).await);
    first.sessions.get(&left).await.unwrap();
    for _ in 0..2 {
        first.login(3).await;
        first.sessions.maintain();
    }
    assert!(!first.is_live(&evicted).await);
    first.sessions.revoke(&replaced).await.unwrap();
    first.sessions.revoke(&evicted).await.unwrap();
    drop(first);

    let second = machine.start().await;
    assert!(second.is_live(&left).await);
    assert!(!second.is_live(&replaced).await && !second.is_live(&evicted).await);
}

#[tokio::test]
async fn a_logout_with_an_invented_token_writes_nothing() {
    let machine = Machine::new();
    let process = machine.start().await;
    let digest = process.login(1).await;
    process.sessions.revoke(&digest).await.unwrap();
    let written = machine.faults.count(Step::Write);
    assert!(written > 0);
    for number in 0..100 {
        let invented = TokenDigest::from_bytes([number; 32]);
        process.sessions.revoke(&invented).await.unwrap();
    }
    // Nor does a second logout.
    process.sessions.revoke(&digest).await.unwrap();
    assert_eq!(machine.faults.count(Step::Write), written);
}

#[tokio::test]
async fn the_limit_of_a_user_holds_when_sessions_are_loaded() {
    let mut machine = Machine::new();
    let first = machine.start().await;
    let mut digests = Vec::new();
    for _ in 0..4 {
        digests.push(first.login(1).await);
        first.advance(1);
    }
    // The oldest one is used last.
    first.sessions.get(&digests[0]).await.unwrap();
    assert!(first.sessions.save().await);
    drop(first);

    machine.section.max_per_user = NonZeroUsize::new(2);
    let second = machine.start().await;
    let mut live = Vec::new();
    for digest in &digests {
        live.push(second.is_live(digest).await);
    }
    assert_eq!(live, [false, false, true, true]);
    second.assert_metric("wxgate_sessions_removed_total{cause=\"replaced\"}", 2);
    second.assert_metric("wxgate_sessions", 2);
}

#[tokio::test]
async fn there_is_no_snapshot_where_nothing_has_changed() {
    let machine = Machine::new();
    let process = machine.start().await;
    assert!(process.sessions.save().await);
    assert!(!machine.path("sessions").exists());
    let digest = process.login(1).await;
    assert!(process.sessions.save().await);
    process.assert_metric("wxgate_snapshot_sessions", 1);
    let renames = machine.faults.count(Step::Rename);
    assert!(process.sessions.save().await);
    assert_eq!(machine.faults.count(Step::Rename), renames);
    // A use is a change.
    process.sessions.get(&digest).await.unwrap();
    assert!(process.sessions.save().await);
    assert!(machine.faults.count(Step::Rename) > renames);
}

#[tokio::test]
async fn wiped_session_keys_do_not_come_back() {
    let machine = Machine::new();
    let first = machine.start().await;
    first.login_with(1, Some(first.key(1))).await;
    assert!(first.sessions.save().await);
    first.sessions.keep_session_keys(false);
    assert!(first.durable().is_urgent().await);
    assert!(first.sessions.save().await);
    drop(first);
    let second = machine.start().await;
    assert!(second.sessions.session_keys(&user(1)).await.unwrap().is_empty());
    second.assert_metric("wxgate_sessions", 1);
}

fn file_names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
