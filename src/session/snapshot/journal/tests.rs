//! Journals on a real disk that fails and hangs when it is told to.

mod crash;
mod damage;

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use rustix::io::Errno;

use super::*;
use crate::identity::token::TokenDigest;
use crate::session::snapshot::LoadError;
use crate::session::snapshot::disk::Step;
use crate::session::snapshot::disk::faults::Faults;

const FIRST: SnapshotId = [1; 32];
const SECOND: SnapshotId = [2; 32];

struct Disk {
    directory: tempfile::TempDir,
    faults: Faults,
    files: SnapshotFiles,
    keys: Vec<SealKey>,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let faults = Faults::default();
        let files = faults.lock(&directory.path().join("sessions"));
        Self { directory, faults, files, keys: vec![SealKey::random(), SealKey::random()] }
    }

    /// A journal of the first snapshot.
    fn begin(&self) -> Journal {
        self.begin_with(Vec::new())
    }

    fn begin_with(&self, changes: Vec<Change>) -> Journal {
        let start = JournalStart { belongs_to: Some(FIRST), facts: facts(), changes };
        Journal::begin(&self.files, &self.keys, start).unwrap()
    }

    fn journal(&self) -> PathBuf {
        self.directory.path().join("sessions.journal")
    }

    /// The numbers of the revoked sessions since a snapshot, read from the disk.
    fn load(&self, snapshot: SnapshotId) -> Vec<u64> {
        let loaded = load_journal(&self.files, &self.keys).unwrap().unwrap();
        numbers(&loaded.since(Some(snapshot)).unwrap())
    }
}

fn facts() -> Facts {
    Facts { clock: 1, wall: 2, boot: "boot".to_owned(), uptime: 3, idle_timeout: None }
}

fn revoked(number: u64) -> Change {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    Change::Revoked(TokenDigest::from_bytes(digest))
}

fn numbers(changes: &[Change]) -> Vec<u64> {
    let number = |change: &Change| match change {
        Change::Revoked(digest) => u64::from_be_bytes(*digest.as_bytes().first_chunk().unwrap()),
        _ => panic!("not written here"),
    };
    changes.iter().map(number).collect()
}

fn io_error(outcome: Result<(), JournalError>) -> Option<i32> {
    match outcome {
        Err(JournalError::Io(error)) => error.raw_os_error(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_change_is_on_the_disk_and_synced_when_it_was_appended() {
    let disk = Disk::new();
    let journal = disk.begin();
    for number in 0..5 {
        let syncs = disk.faults.count(Step::Sync);
        journal.append(&revoked(number)).await.unwrap();
        assert!(disk.faults.count(Step::Sync) > syncs);
        assert_eq!(disk.load(FIRST), (0..=number).collect::<Vec<_>>());
        assert_eq!(journal.bytes(), fs::metadata(disk.journal()).unwrap().len());
    }
    let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
    assert_eq!(loaded.facts, facts());
}

#[tokio::test]
async fn changes_of_every_kind_come_back() {
    use crate::identity::{AppId, OpenId, User, UserId};
    use crate::session::KnownUser;
    use crate::session::entry::BlockEntry;

    let disk = Disk::new();
    let journal = disk.begin();
    let app_id = AppId::parse("wx0123456789abcdef").unwrap();
    let user = User { app_id, openid: OpenId::parse("o6zAJs3ZYh0000000000000001").unwrap() };
    let known = KnownUser { user: user.clone(), user_id: UserId::parse("u-1") };
    let block = BlockEntry { known, until: u64::MAX };
    let changes = [revoked(7), Change::Blocked(block), Change::Unblocked(user)];
    for change in &changes {
        journal.append(change).await.unwrap();
    }
    let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
    assert!(loaded.since(Some(FIRST)).unwrap() == changes);
}

#[tokio::test]
async fn changes_that_wait_for_the_disk_are_synced_at_once() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(0)).await.unwrap();
    let before = disk.faults.count(Step::Sync);
    disk.faults.hang(Step::Sync);
    let changes: Vec<_> = (1..=100).map(revoked).collect();
    let appending = join_all(changes.iter().map(|change| journal.append(change)));
    let healing = async { disk.faults.heal() };
    let (outcomes, ()) = tokio::join!(appending, healing);
    assert!(outcomes.iter().all(Result::is_ok));
    assert!(disk.faults.count(Step::Sync) - before <= 2);
    assert_eq!(disk.load(FIRST), (0..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_group_has_a_limit() {
    let disk = Disk::new();
    let journal = disk.begin();
    disk.faults.hang(Step::Sync);
    let changes: Vec<_> = (0..10_000).map(revoked).collect();
    let appending = join_all(changes.iter().map(|change| journal.append(change)));
    let (outcomes, ()) = tokio::join!(appending, async { disk.faults.heal() });
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(disk.load(FIRST), (0..10_000).collect::<Vec<_>>());
    // What was loaded is written in several records, too.
    let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
    let again = disk.begin_with(loaded.since(Some(FIRST)).unwrap());
    again.append(&revoked(10_000)).await.unwrap();
    assert_eq!(disk.load(FIRST), (0..=10_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_disk_that_is_full_for_a_while_costs_only_the_changes_of_that_time() {
    for step in [Step::Write, Step::Sync] {
        let disk = Disk::new();
        let journal = disk.begin();
        journal.append(&revoked(1)).await.unwrap();
        disk.faults.fail(step, Errno::NOSPC);
        assert_eq!(io_error(journal.append(&revoked(2)).await), Some(28));
        // What is left of it may count or not.
        assert!(disk.load(FIRST).starts_with(&[1]));
        assert_eq!(io_error(journal.append(&revoked(3)).await), Some(28));
        disk.faults.heal();
        journal.append(&revoked(4)).await.unwrap();
        assert_eq!(disk.load(FIRST), [1, 4], "{step:?}");
    }
}

#[tokio::test]
async fn nothing_is_written_behind_an_end_that_cannot_be_cut_off() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    disk.faults.fail(Step::Sync, Errno::IO);
    disk.faults.fail(Step::Truncate, Errno::IO);
    io_error(journal.append(&revoked(2)).await);
    let length = fs::metadata(disk.journal()).unwrap().len();
    io_error(journal.append(&revoked(3)).await);
    assert_eq!(fs::metadata(disk.journal()).unwrap().len(), length);
    disk.faults.heal();
    journal.append(&revoked(4)).await.unwrap();
    assert_eq!(disk.load(FIRST), [1, 4]);
}

#[tokio::test]
async fn a_number_is_never_used_for_two_texts() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    let start = usize::try_from(fs::metadata(disk.journal()).unwrap().len()).unwrap();
    disk.faults.fail(Step::Sync, Errno::IO);
    io_error(journal.append(&revoked(2)).await);
    let failed = fs::read(disk.journal()).unwrap();
    disk.faults.heal();
    journal.append(&revoked(3)).await.unwrap();
    let written = fs::read(disk.journal()).unwrap();
    let number = |file: &[u8]| u64::from_be_bytes(*file[start + 4..].first_chunk().unwrap());
    assert_eq!(number(&written), number(&failed) + 1);
}

#[tokio::test]
async fn a_journal_that_cannot_be_made_at_the_start_is_made_later() {
    for step in [Step::Create, Step::Write, Step::Rename, Step::SyncDirectory] {
        let disk = Disk::new();
        let old = disk.begin();
        old.append(&revoked(1)).await.unwrap();
        old.close().await.unwrap();
        disk.faults.fail(step, Errno::NOSPC);
        let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
        let journal = disk.begin_with(loaded.since(Some(FIRST)).unwrap());
        assert_eq!(io_error(journal.append(&revoked(2)).await), Some(28), "{step:?}");
        assert_eq!(io_error(journal.mark(SECOND).await), Some(28), "{step:?}");
        assert_eq!(disk.load(FIRST), [1], "{step:?}");
        disk.faults.heal();
        journal.append(&revoked(3)).await.unwrap();
        assert_eq!(disk.load(FIRST), [1, 3], "{step:?}");
    }
}

#[tokio::test]
async fn a_change_waits_ten_seconds_for_the_disk_and_the_next_ones_find_it_in_order() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    disk.faults.hang(Step::Sync);
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    for number in 2..4 {
        let outcome = journal.append(&revoked(number)).await;
        assert!(matches!(outcome, Err(JournalError::Slow)), "{outcome:?}");
    }
    let elapsed = start.elapsed();
    assert!((PATIENCE * 2..PATIENCE * 2 + PATIENCE / 10).contains(&elapsed), "{elapsed:?}");
    assert!(matches!(journal.close().await, Err(JournalError::Slow)));
    tokio::time::resume();
    disk.faults.heal();
    // The closing was the last that waited.
    assert!(matches!(journal.append(&revoked(4)).await, Err(JournalError::Closed)));
    assert_eq!(disk.load(FIRST), [1, 2, 3]);
}

#[tokio::test]
async fn a_disk_that_answers_again_is_used_again() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    disk.faults.hang(Step::Write);
    tokio::time::pause();
    journal.append(&revoked(2)).await.unwrap_err();
    tokio::time::resume();
    disk.faults.heal();
    journal.append(&revoked(3)).await.unwrap();
    assert_eq!(disk.load(FIRST), [1, 2, 3]);
}

#[tokio::test]
async fn only_so_many_changes_wait_for_a_disk_that_hangs() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    disk.faults.hang(Step::Write);
    tokio::time::pause();
    let changes: Vec<_> = (0..20_000).map(revoked).collect();
    let outcomes = join_all(changes.iter().map(|change| journal.append(change))).await;
    let full = outcomes.iter().filter(|outcome| matches!(outcome, Err(JournalError::Full)));
    // One group has left the queue.
    assert!((1_000..=20_000 - WAITING).contains(&full.count()));
    disk.faults.heal();
}

#[tokio::test]
async fn closing_waits_for_what_was_appended_and_frees_the_lock() {
    let disk = Disk::new();
    let journal = disk.begin();
    disk.faults.hang(Step::Sync);
    let changes: Vec<_> = (0..50).map(revoked).collect();
    let appending = join_all(changes.iter().map(|change| journal.append(change)));
    let healing = async { disk.faults.heal() };
    let (outcomes, closed, ()) = tokio::join!(appending, journal.close(), healing);
    closed.unwrap();
    assert!(outcomes.iter().all(Result::is_ok));
    assert!(matches!(journal.append(&revoked(1)).await, Err(JournalError::Closed)));
    assert!(matches!(journal.close().await, Err(JournalError::Closed)));
    assert_eq!(disk.load(FIRST), (0..50).collect::<Vec<_>>());

    let Disk { directory, files, .. } = disk;
    drop(files);
    SnapshotFiles::lock(&directory.path().join("sessions")).unwrap();
}

#[tokio::test]
async fn a_journal_is_opened_with_an_old_key_and_written_with_the_new_one() {
    let mut disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    disk.keys.rotate_left(1);
    let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
    let journal = disk.begin_with(loaded.since(Some(FIRST)).unwrap());
    journal.append(&revoked(2)).await.unwrap();
    disk.keys.truncate(1);
    assert_eq!(disk.load(FIRST), [1, 2]);
    let others = [SealKey::random()];
    let outcome = load_journal(&disk.files, &others).map(|_| ());
    assert!(matches!(outcome, Err(LoadError::UnknownKey)), "{outcome:?}");
}

#[test]
fn no_journal_is_none() {
    let disk = Disk::new();
    assert!(load_journal(&disk.files, &disk.keys).unwrap().is_none());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
