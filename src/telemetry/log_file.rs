//! A log file that can be reopened while lines are written.
//!
//! Rotation renames the file and sends SIGUSR1: lines go to the renamed file until the path is
//! reopened, and then to the new file. If it cannot be opened, because its folder is missing or
//! read-only, lines still go to the old file. A line that cannot be written is dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::clock::Clock;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics::Metrics;

/// The file that lines are written to.
pub struct LogFile {
    path: PathBuf,
    file: ArcSwap<File>,
}

impl LogFile {
    /// Opens a file for appending, and creates it if it does not exist.
    ///
    /// # Errors
    /// When the system cannot open it, for example because it is a pipe without a reader.
    pub fn open(path: &Path) -> io::Result<Arc<Self>> {
        let file = append_to(path)?;
        Ok(Arc::new(Self { path: path.to_owned(), file: ArcSwap::from_pointee(file) }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reopens the path. Blocks while the file system does not respond.
    ///
    /// # Errors
    /// When the system cannot open it; lines then still go to the old file.
    pub fn reopen(&self) -> io::Result<()> {
        self.file.store(Arc::new(append_to(&self.path)?));
        Ok(())
    }

    /// A writer to the file, for one thread. Counts lines that cannot be written.
    pub fn writer(self: &Arc<Self>, clock: Clock, metrics: &Metrics) -> impl Write + Send + use<> {
        let dropped = Arc::new(AtomicUsize::new(0));
        let counted = dropped.clone();
        metrics.watch_log(move || counted.load(Ordering::Relaxed));
        Lines { file: self.clone(), dropped, failed: LogThrottle::new(clock), is_broken: false }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    // Without this flag, opening a pipe without a reader would block; with it, that is an error.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = OpenOptions::new().create(true).append(true).custom_flags(flags).open(path)?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file)
}

struct Lines {
    file: Arc<LogFile>,
    dropped: Arc<AtomicUsize>,
    failed: LogThrottle,
    /// Whether the last line was written only in part.
    is_broken: bool,
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.write_all(line).map(|()| line.len())
    }

    /// A line is never split between two files.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let file = self.file.file.load_full();
        let mut file = &*file;
        let written = if self.is_broken { file.write_all(b"\n") } else { Ok(()) };
        let written = written.and_then(|()| {
            self.is_broken = true;
            file.write_all(line)
        });
        match written {
            Ok(()) => self.is_broken = false,
            Err(error) => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                if let Some(suppressed) = self.failed.suppressed() {
                    let file = self.file.path.display();
                    tracing::error!(%file, %error, suppressed, "cannot write the access log");
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_to_the_old_file_until_the_path_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("logs");
        let path = folder.join("access.log");
        std::fs::create_dir(&folder).unwrap();
        let file = LogFile::open(&path).unwrap();
        let metrics = Metrics::new().unwrap();
        let mut lines = file.writer(Clock::manual(), &metrics);
        let mut write = |line: &str| lines.write_all(line.as_bytes()).unwrap();
        let moved = directory.path().join("moved");
        write("one\n");
        std::fs::rename(&folder, &moved).unwrap();
        assert!(file.reopen().is_err(), "the folder is gone");
        write("two\n");
        std::fs::create_dir_all(&path).unwrap();
        assert!(file.reopen().is_err(), "a folder is in its place");
        write("three\n");
        std::fs::remove_dir(&path).unwrap();
        file.reopen().unwrap();
        write("four\n");
        let old = std::fs::read_to_string(moved.join("access.log")).unwrap();
        assert_eq!(old, "one\ntwo\nthree\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
    }

    #[test]
    fn a_pipe_without_a_reader_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let file = LogFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(file.reopen().is_err());
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let file = LogFile::open(Path::new("/dev/full")).unwrap();
        let metrics = Metrics::new().unwrap();
        let mut lines = file.writer(Clock::manual(), &metrics);
        for _ in 0..3 {
            lines.write_all(b"dropped\n").unwrap();
        }
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(text.contains("wxgate_log_lines_dropped_total 3"), "{text}");
    }
}
