//! Writing logs without waiting for them.
//!
//! Lines go through a bounded queue to a thread of their own. When too many wait, because
//! nobody reads or the disk is full, lines are given up and counted; no request and no exit
//! of the process ever waits for long.

use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::telemetry::metrics::Metrics;

/// Lines that wait for a slow destination; about 4 MiB.
const QUEUED_LINES: usize = 8 << 10;

/// How long the end of the process waits for them.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// The time of a line: the wall clock in RFC 3339, UTC, with milliseconds.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// A writer that gives lines up, and counts them, when too many wait.
pub fn queued<W: Write + Send + 'static>(
    destination: W,
    metrics: &Metrics,
) -> (NonBlocking, Flush) {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES);
    let (writer, guard) = builder.finish(destination);
    let dropped = writer.error_counter();
    metrics.watch_log(move || dropped.dropped_lines());
    (writer, Flush(Some(guard)))
}

/// Writes what is queued when it is dropped, as far as that is done in time.
pub struct Flush(Option<WorkerGuard>);

impl Drop for Flush {
    fn drop(&mut self) {
        let guard = self.0.take();
        let (done, waited) = mpsc::channel();
        // The guard itself prints when its time is up, and would wait for ever where nobody
        // reads what is printed.
        std::thread::spawn(move || {
            drop(guard);
            let _ = done.send(());
        });
        let _ = waited.recv_timeout(FLUSH_TIMEOUT);
    }
}
