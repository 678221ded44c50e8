use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use super::faults::Faults;
use super::*;

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn write(files: &SnapshotFiles, text: &str) -> io::Result<u64> {
    let mut new = files.new_snapshot()?;
    new.write_all(text.as_bytes())?;
    new.finish()
}

#[test]
fn a_second_process_on_the_same_files_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions");
    let files = SnapshotFiles::lock(&path).unwrap();
    let clone = files.clone();
    drop(files);
    let error = SnapshotFiles::lock(&path).err().unwrap().to_string();
    let lock = format!("{}.lock", path.display());
    assert_eq!(error, format!("another process uses this snapshot: it has locked {lock}"));
    drop(clone);
    SnapshotFiles::lock(&path).unwrap();
    // A directory that does not exist is another error.
    let error = SnapshotFiles::lock(&path.join("x")).err().unwrap().to_string();
    assert!(error.starts_with("cannot lock "), "{error}");
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions");
    let faults = Faults::default();
    let files = faults.lock(&path);
    assert!(files.open_snapshot().unwrap().is_none());
    assert_eq!(write(&files, "first").unwrap(), 5);
    for step in [Step::Create, Step::Write, Step::Sync, Step::Rename] {
        faults.fail(step, rustix::io::Errno::NOSPC);
        assert_eq!(write(&files, "second").unwrap_err().raw_os_error(), Some(28), "{step:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(names(directory.path()), ["sessions", "sessions.lock"], "{step:?}");
        faults.heal();
    }
    write(&files, "second").unwrap();
    let mut text = String::new();
    files.open_snapshot().unwrap().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "second");
}

#[test]
fn a_file_is_synced_before_its_rename_and_the_directory_after() {
    let directory = tempfile::tempdir().unwrap();
    let faults = Faults::default();
    let files = faults.lock(&directory.path().join("sessions"));
    let steps = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = steps.clone();
    faults.observe(move |step| seen.lock().push(step));
    let mut new = files.new_snapshot().unwrap();
    // So much is not left to one sync.
    for _ in 0..10 {
        new.write_all(&vec![7; 1 << 20]).unwrap();
    }
    assert_eq!(new.finish().unwrap(), 10 << 20);
    let steps = steps.lock();
    assert_eq!(steps[steps.len() - 3..], [Step::Sync, Step::Rename, Step::SyncDirectory]);
    assert_eq!(steps.iter().filter(|step| **step == Step::Sync).count(), 3);
}

#[test]
fn unfinished_files_of_an_earlier_process_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions");
    let names_of = |suffix: &str| with_suffix(&path, suffix);
    for suffix in [".new", ".journal.new", ".journal", ".other"] {
        fs::write(names_of(suffix), suffix).unwrap();
    }
    let _files = SnapshotFiles::lock(&path).unwrap();
    let left = ["sessions.journal", "sessions.lock", "sessions.other"];
    assert_eq!(names(directory.path()), left);
}

#[test]
fn files_of_a_failed_load_are_kept_aside_the_snapshot_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sessions");
    let faults = Faults::default();
    let files = faults.lock(&path);
    assert!(files.set_aside().unwrap().is_empty());
    let journal = with_suffix(&path, ".journal");
    for round in ["first", "second"] {
        fs::write(&path, round).unwrap();
        fs::write(&journal, round).unwrap();
        let kept = files.set_aside().unwrap();
        assert_eq!(kept, [with_suffix(&path, ".bad"), with_suffix(&journal, ".bad")]);
        assert!(kept.iter().all(|path| fs::read_to_string(path).unwrap() == round));
        assert!(!path.exists() && !journal.exists());
    }
    // A journal never leaves its snapshot.
    fs::write(&path, "third").unwrap();
    fs::write(&journal, "third").unwrap();
    faults.fail(Step::SyncDirectory, rustix::io::Errno::IO);
    files.set_aside().unwrap_err();
    assert!(!path.exists() && journal.exists());
}

/// Where a run of this test as a child works.
const CHILD: &str = "WXGATE_TEST_UMASK";

#[test]
fn files_are_private_whatever_the_umask() {
    if let Some(directory) = std::env::var_os(CHILD) {
        let files = SnapshotFiles::lock(&Path::new(&directory).join("sessions")).unwrap();
        write(&files, "snapshot").unwrap();
        files.new_journal().unwrap().finish().unwrap();
        return;
    }
    for umask in ["000", "777"] {
        let directory = tempfile::tempdir().unwrap();
        let test = "session::snapshot::disk::tests::files_are_private_whatever_the_umask";
        let script = format!("umask {umask}; exec \"$0\" --exact {test}");
        let mut child = Command::new("sh");
        child.args(["-c", &script]).arg(std::env::current_exe().unwrap());
        let output = child.env(CHILD, directory.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        for name in ["sessions", "sessions.journal", "sessions.lock"] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name} with {umask}");
        }
    }
}
