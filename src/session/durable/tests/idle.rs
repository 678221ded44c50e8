//! The idle timeout of the process that writes the files.

use std::fs::File;
use std::io::BufReader;

use super::*;
use crate::session::snapshot::sealed_file::SnapshotReader;

#[tokio::test]
async fn a_snapshot_says_by_which_idle_timeout_its_sessions_end() {
    let machine = Machine::new();
    let process = machine.start().await;
    let written = async || {
        process.login(1).await;
        assert!(process.sessions.save().await);
        let file = BufReader::new(File::open(machine.path("sessions")).unwrap());
        let reader = SnapshotReader::open(file, &machine.section.seal_keys).unwrap();
        reader.facts().idle_timeout.map(Duration::from_millis)
    };
    assert_eq!(written().await, Some(minutes(10)));
    // The one that counts.
    process.sessions.share_idle_timeout(minutes(5));
    assert_eq!(written().await, Some(minutes(5)));
}
