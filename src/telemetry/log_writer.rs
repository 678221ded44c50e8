//! Writes logs without making requests wait.
//!
//! Lines go through a bounded queue to a separate thread. When the queue is full, because nothing
//! reads or the disk is full, lines are dropped and counted; no request and no exit of the process
//! waits for long.

use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::telemetry::metrics::Metrics;

/// Maximum number of lines that wait for a slow destination; about 4 MiB.
const QUEUED_LINES: usize = 8 << 10;

/// How long the exit of the process waits for them.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// The time of a line: the wall clock in RFC 3339 format, UTC, with milliseconds.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

/// A writer that drops and counts lines when the queue is full.
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

/// Writes the queued lines when it is dropped, up to a time limit.
pub struct Flush(Option<WorkerGuard>);

impl Drop for Flush {
    fn drop(&mut self) {
        let guard = self.0.take();
        let (done, waited) = mpsc::channel();
        // After its own time limit the guard prints a message, which would block forever if nobody
        // reads it.
        std::thread::spawn(move || {
            drop(guard);
            let _ = done.send(());
        });
        let _ = waited.recv_timeout(FLUSH_TIMEOUT);
    }
}
