//! One JSON line a request.
//!
//! The fields are an allow-list: no token, code, secret, query or header can get in, and
//! a user appears only as a keyed hash of the openid. Lines go to a thread of their own
//! through a bounded queue; when their destination is full, lines are given up and counted
//! (`wxgate_log_lines_dropped_total`), and no request ever waits for a log.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use serde::Serialize;
use sha2::Sha256;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use crate::config::{LogDestination, LogSection};
use crate::identity::OpenId;
use crate::metrics::Metrics;

/// Lines that wait for a slow destination; about 4 MiB.
const QUEUED_LINES: usize = 8 << 10;

/// How long the end of the process waits for them.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1500);

/// What is written of one request. Times are milliseconds, sizes bytes of bodies.
#[derive(Serialize)]
pub struct Line<'a> {
    pub time: String,
    pub request_id: &'a str,
    pub client: Option<std::net::IpAddr>,
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub route: &'a str,
    pub status: u16,
    pub error: Option<&'a str>,
    pub duration_ms: f64,
    pub upstream: Option<String>,
    pub upstream_status: Option<u16>,
    pub bytes_in: usize,
    pub bytes_out: usize,
    pub decision: Option<&'a str>,
    pub app_id: Option<&'a str>,
    pub user: Option<String>,
}

/// The destination of access lines.
pub struct AccessLog {
    writer: Option<NonBlocking>,
    key: Vec<u8>,
    _flush: Option<Flush>,
}

impl AccessLog {
    /// Opens the destination of the configuration.
    ///
    /// # Errors
    /// When `log.access` names a file that cannot be opened for appending.
    pub fn open(log: &LogSection, metrics: &Metrics) -> io::Result<Self> {
        let sink: Option<Box<dyn Write + Send>> = match &log.access {
            LogDestination::Off => None,
            LogDestination::Stderr => Some(Box::new(io::stderr())),
            LogDestination::Stdout => Some(Box::new(io::stdout())),
            LogDestination::File(path) => {
                Some(Box::new(OpenOptions::new().create(true).append(true).open(path)?))
            }
        };
        let key = match &log.openid_key {
            Some(key) => key.expose().as_bytes().to_vec(),
            None => {
                let mut key = vec![0; 32];
                rand::rng().fill_bytes(&mut key);
                key
            }
        };
        let (writer, flush) = match sink.map(queued) {
            Some((writer, flush)) => {
                metrics.watch_log(writer.error_counter());
                (Some(writer), Some(flush))
            }
            None => (None, None),
        };
        Ok(Self { writer, key, _flush: flush })
    }

    /// Whether anything is written: a line need not be built otherwise.
    pub fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    pub fn write(&self, line: &Line<'_>) {
        let Some(writer) = &self.writer else { return };
        let mut text = Vec::with_capacity(512);
        if serde_json::to_writer(&mut text, line).is_ok() {
            text.push(b'\n');
            // A full queue is counted by the writer itself.
            let _ = writer.clone().write_all(&text);
        }
    }

    /// The name of a user in the log: 96 bits of HMAC-SHA-256 under `log.openid_key`.
    pub fn user(&self, openid: &OpenId) -> Option<String> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        mac.update(openid.as_str().as_bytes());
        let hash = mac.finalize().into_bytes();
        Some(URL_SAFE_NO_PAD.encode(hash.get(..12)?))
    }
}

/// A writer that never blocks: it gives lines up when too many wait.
pub fn queued<W: Write + Send + 'static>(destination: W) -> (NonBlocking, Flush) {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUED_LINES);
    let (writer, guard) = builder.finish(destination);
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

/// The wall clock in RFC 3339 with milliseconds.
pub fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
