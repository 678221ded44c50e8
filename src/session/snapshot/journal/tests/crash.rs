//! What a process leaves that ends at any moment.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use parking_lot::Mutex;

use super::*;

/// A stand-in for a snapshot: its id, and the sessions that had ended.
fn save(disk: &Disk, id: SnapshotId, ended: &BTreeSet<u64>) -> io::Result<()> {
    let mut file = disk.files.new_snapshot()?;
    file.write_all(&id)?;
    for number in ended {
        file.write_all(&number.to_be_bytes())?;
    }
    file.finish().map(|_| ())
}

/// The sessions that have ended by the files in a directory.
fn load(directory: &Path, keys: &[SealKey]) -> BTreeSet<u64> {
    let files = SnapshotFiles::lock(&directory.join("sessions")).unwrap();
    let mut snapshot = Vec::new();
    if let Some(mut file) = files.open_snapshot().unwrap() {
        file.read_to_end(&mut snapshot).unwrap();
    }
    let (id, ended) = match snapshot.split_first_chunk::<32>() {
        Some((id, ended)) => (Some(*id), ended),
        None => (None, &[][..]),
    };
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    let mut ended: BTreeSet<_> = ended.chunks(8).map(number).collect();
    if let Some(journal) = load_journal(&files, keys).unwrap() {
        ended.extend(numbers(&journal.since(id).unwrap()));
    }
    ended
}

#[tokio::test]
async fn a_process_that_ends_at_any_step_leaves_a_pair_with_all_durable_changes() {
    let disk = Disk::new();
    let copies = tempfile::tempdir().unwrap();
    let durable = Arc::new(Mutex::new(BTreeSet::new()));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let from = disk.directory.path().to_owned();
    disk.faults.observe({
        let (durable, taken, to) = (durable.clone(), taken.clone(), copies.path().to_owned());
        move |step| {
            let mut taken = taken.lock();
            let directory = to.join(taken.len().to_string());
            copy(&from, &directory);
            taken.push((step, directory, durable.lock().clone()));
        }
    });

    let start = JournalStart { belongs_to: None, facts: facts(), changes: Vec::new() };
    let journal = Journal::begin(&disk.files, &disk.keys, start).unwrap();
    let mut number = 0;
    let mut ended = BTreeSet::new();
    for id in [FIRST, SECOND] {
        for step in 0..4 {
            for _ in 0..3 {
                number += 1;
                ended.insert(number);
                journal.append(&revoked(number)).await.unwrap();
                durable.lock().insert(number);
            }
            match step {
                0 => journal.mark(id).await.unwrap(),
                // What came since the mark may be in the snapshot or not.
                1 => {
                    let ended =
                        ended.iter().copied().filter(|number| *number + 2 < ended.len() as u64);
                    save(&disk, id, &ended.collect()).unwrap();
                }
                2 => journal.fold(id, facts()).await.unwrap(),
                _ => {}
            }
        }
    }
    let taken = taken.lock();
    assert!(taken.iter().filter(|(step, ..)| *step == Step::Rename).count() == 5);
    assert!(taken.len() > 60);
    for (step, directory, durable) in taken.iter() {
        let loaded = load(directory, &disk.keys);
        assert!(loaded.is_superset(durable), "{step:?} {directory:?}");
    }
    assert_eq!(
        load_journal(&disk.files, &disk.keys).unwrap().unwrap().since(Some(SECOND)).unwrap().len(),
        9
    );
}

#[tokio::test]
async fn a_snapshot_or_fold_that_fails_at_any_step_loses_nothing_and_is_repeated() {
    let steps =
        [Step::Create, Step::Write, Step::Sync, Step::Rename, Step::SyncDirectory, Step::Truncate];
    for failing in steps {
        for phase in 0..3 {
            let disk = Disk::new();
            let start = JournalStart { belongs_to: None, facts: facts(), changes: Vec::new() };
            let journal = Journal::begin(&disk.files, &disk.keys, start).unwrap();
            let mut ended = BTreeSet::from([1]);
            journal.append(&revoked(1)).await.unwrap();
            let mut attempt = async |phase: Option<usize>, id| {
                let fail = |now| {
                    if phase == Some(now) {
                        disk.faults.fail(failing, Errno::IO);
                    }
                };
                fail(0);
                let mut outcome = journal.mark(id).await.is_ok();
                disk.faults.heal();
                fail(1);
                outcome = outcome && save(&disk, id, &ended).is_ok();
                disk.faults.heal();
                fail(2);
                outcome = outcome && journal.fold(id, facts()).await.is_ok();
                disk.faults.heal();
                let number = ended.len() as u64 + 1;
                ended.insert(number);
                journal.append(&revoked(number)).await.unwrap();
                let copied = tempfile::tempdir().unwrap();
                copy(disk.directory.path(), copied.path());
                assert_eq!(load(copied.path(), &disk.keys), ended, "{failing:?} {phase:?}");
                outcome
            };
            attempt(Some(phase), FIRST).await;
            assert!(attempt(None, SECOND).await);
            assert!(attempt(None, [3; 32]).await);
        }
    }
}

#[tokio::test]
async fn nothing_is_durable_in_a_file_whose_place_is_not() {
    let disk = Disk::new();
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    journal.mark(SECOND).await.unwrap();
    disk.faults.fail(Step::SyncDirectory, Errno::IO);
    io_error(journal.fold(SECOND, facts()).await);
    // After a power failure, the old journal could be there again.
    io_error(journal.append(&revoked(2)).await);
    disk.faults.heal();
    journal.append(&revoked(3)).await.unwrap();
    assert_eq!(disk.load(SECOND), [3]);
}

#[tokio::test]
async fn a_fold_keeps_what_came_since_its_mark() {
    let disk = Disk::new();
    let journal = disk.begin();
    for number in 0..1000 {
        journal.append(&revoked(number)).await.unwrap();
    }
    let before = journal.bytes();
    // The snapshot of the first mark failed.
    journal.mark([9; 32]).await.unwrap();
    journal.append(&revoked(1000)).await.unwrap();
    journal.mark(SECOND).await.unwrap();
    journal.append(&revoked(1001)).await.unwrap();
    journal.append(&revoked(1002)).await.unwrap();
    assert_eq!(disk.load([9; 32]), [1000, 1001, 1002]);
    assert_eq!(disk.load(FIRST).len(), 1003);

    // Only the last mark can be folded to.
    journal.fold([9; 32], facts()).await.unwrap_err();
    journal.fold(SECOND, Facts { clock: 77, ..facts() }).await.unwrap();
    assert!(journal.bytes() < before / 100);
    assert_eq!(disk.load(SECOND), [1001, 1002]);
    let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
    assert_eq!(loaded.facts.clock, 77);
    let outcome = loaded.since(Some(FIRST)).map(|_| ());
    assert!(matches!(outcome, Err(LoadError::Damaged(_))), "{outcome:?}");
    // It is the mark of no further fold.
    journal.fold(SECOND, facts()).await.unwrap_err();
    journal.append(&revoked(1003)).await.unwrap();
    assert_eq!(disk.load(SECOND), [1001, 1002, 1003]);
}
