//! What is torn, and what is damaged.

use super::*;

/// A journal of five records, its file, and where each record ends.
async fn five() -> (Disk, Vec<u8>, Vec<usize>) {
    let disk = Disk::new();
    let journal = disk.begin();
    let mut ends = Vec::new();
    for number in 1..=4 {
        journal.append(&revoked(number)).await.unwrap();
        ends.push(usize::try_from(journal.bytes()).unwrap());
    }
    let file = fs::read(disk.journal()).unwrap();
    assert_eq!(file.len(), *ends.last().unwrap());
    (disk, file, ends)
}

fn read(file: &[u8], keys: &[SealKey]) -> Result<Vec<u64>, LoadError> {
    let loaded = LoadedJournal::read(file, file.len() as u64, keys)?;
    Ok(numbers(&loaded.since(Some(FIRST))?))
}

#[tokio::test]
async fn a_record_that_is_cut_off_anywhere_is_ignored() {
    let (disk, file, ends) = five().await;
    for length in ends[2]..file.len() {
        assert_eq!(read(&file[..length], &disk.keys).unwrap(), [1, 2, 3], "{length}");
    }
    assert_eq!(read(&file, &disk.keys).unwrap(), [1, 2, 3, 4]);
}

#[tokio::test]
async fn what_is_torn_is_gone_after_the_next_start() {
    let (disk, file, ends) = five().await;
    for length in [ends[2] + 1, ends[2] + 17, file.len() - 1] {
        fs::write(disk.journal(), &file[..length]).unwrap();
        let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
        let journal = disk.begin_with(loaded.since(Some(FIRST)).unwrap());
        journal.append(&revoked(5)).await.unwrap();
        assert_eq!(disk.load(FIRST), [1, 2, 3, 5]);
    }
}

#[tokio::test]
async fn blocks_that_were_never_written_are_torn() {
    let (disk, file, _) = five().await;
    // The file has its new size.
    for zeros in [4, 16, 100, 512, 5000] {
        let padded = [&file[..], &vec![0; zeros]].concat();
        assert_eq!(read(&padded, &disk.keys).unwrap(), [1, 2, 3, 4], "{zeros}");
    }
    // A long record, some of whose blocks are missing.
    let journal = disk.begin();
    journal.append(&revoked(1)).await.unwrap();
    disk.faults.hang(Step::Sync);
    let changes: Vec<_> = (2..500).map(revoked).collect();
    let appending = join_all(changes.iter().map(|change| journal.append(change)));
    tokio::join!(appending, async { disk.faults.heal() });
    let file = fs::read(disk.journal()).unwrap();
    let all = read(&file, &disk.keys).unwrap();
    assert_eq!(all.len(), 499);
    let last = *starts(&file).last().unwrap();
    for block in (last / 512 + 1)..=(file.len() / 512) {
        let mut torn = file.clone();
        let range = block * 512..(block * 512 + 512).min(torn.len());
        if range.len() < 4 {
            continue;
        }
        torn[range].fill(0);
        assert!(read(&torn, &disk.keys).unwrap().len() < 499, "{block}");
        // From there on nothing was written.
        torn[block * 512..].fill(0);
        assert!(read(&torn, &disk.keys).unwrap().len() < 499, "{block}");
    }
}

/// Where the records begin.
fn starts(file: &[u8]) -> Vec<usize> {
    let mut starts = vec![41];
    loop {
        let at = *starts.last().unwrap();
        let length = u32::from_be_bytes(*file[at..].first_chunk().unwrap()) as usize;
        match at + 16 + length {
            next if next == file.len() => return starts,
            next => starts.push(next),
        }
    }
}

#[tokio::test]
async fn damage_of_any_byte_is_an_error_and_never_an_early_end() {
    let (disk, file, _) = five().await;
    for position in 0..file.len() {
        for bit in [0, 3, 7] {
            let mut damaged = file.clone();
            damaged[position] ^= 1 << bit;
            let outcome = read(&damaged, &disk.keys);
            assert!(outcome.is_err(), "{position}: {outcome:?}");
        }
    }
    // Whatever a length is changed to, it does not hide the records behind it.
    for record in starts(&file) {
        for length in [0u32, 1, 15, 16, 1000, 1 << 20, u32::MAX] {
            let mut damaged = file.clone();
            damaged[record..record + 4].copy_from_slice(&length.to_be_bytes());
            let outcome = read(&damaged, &disk.keys);
            assert!(matches!(outcome, Err(LoadError::Damaged(_))), "{length}: {outcome:?}");
        }
    }
}

#[tokio::test]
async fn records_that_are_missing_moved_or_of_another_file_are_an_error() {
    let (disk, file, ends) = five().await;
    let record = |number: usize| &file[ends[number - 1]..ends[number]];
    let start = &file[..ends[0]];
    let cases = [
        [start, record(2), record(3)].concat(),
        [start, record(1), record(1), record(2)].concat(),
        [start, record(2), record(1), record(3)].concat(),
        [start, record(1), &[0; 64], record(2)].concat(),
    ];
    for damaged in cases {
        let outcome = read(&damaged, &disk.keys);
        assert!(matches!(outcome, Err(LoadError::Damaged(_))), "{outcome:?}");
    }
    let other = Disk { keys: disk.keys.clone(), ..Disk::new() };
    let journal = other.begin();
    journal.append(&revoked(1)).await.unwrap();
    let mixed = [&fs::read(other.journal()).unwrap(), record(1)].concat();
    assert!(matches!(read(&mixed, &disk.keys), Err(LoadError::Damaged(_))));
}

#[tokio::test]
async fn a_journal_of_another_kind_version_snapshot_or_key_is_an_error() {
    let (disk, file, _) = five().await;
    for length in 0..100 {
        assert!(read(&file[..length], &disk.keys).is_err(), "{length}");
    }
    let mut newer = file.clone();
    newer[8] = 2;
    assert!(matches!(read(&newer, &disk.keys), Err(LoadError::Version(2))));
    assert!(matches!(read(&newer[..9], &disk.keys), Err(LoadError::Version(2))));
    let mut other = file.clone();
    other[..8].copy_from_slice(b"WXGATESN");
    assert!(matches!(read(&other, &disk.keys), Err(LoadError::Foreign)));
    assert!(matches!(read(&file, &[SealKey::random()]), Err(LoadError::UnknownKey)));
    assert!(read(&file, &[]).is_err());
    for snapshot in [None, Some(SECOND)] {
        let loaded = load_journal(&disk.files, &disk.keys).unwrap().unwrap();
        assert!(matches!(loaded.since(snapshot), Err(LoadError::Damaged(_))));
    }
}
