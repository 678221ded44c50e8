//! The process log of the gateways in this process, and whether one of them panicked.

use std::io;
use std::panic;
use std::sync::{Mutex, OnceLock};

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use wxgate::wechat::sandbox::{ACCESS_TOKEN, SESSION_KEY};

use super::canary;
use super::client::Response;

/// An upstream of this name makes a request panic where its failure is logged.
pub const PANICS: &str = "panics";

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static PANICKED: Mutex<Vec<String>> = Mutex::new(Vec::new());
static INSTALLED: OnceLock<()> = OnceLock::new();

/// The log after a position: of all stacks, at every level.
pub fn text_after(position: usize) -> String {
    let log = LOG.lock().unwrap();
    String::from_utf8_lossy(&log[position..]).into_owned()
}

/// The lines of the process log about a request.
pub fn logged(response: &Response) -> Vec<Value> {
    logged_with(response.header("x-request-id").unwrap())
}

/// The lines of the process log that contain a text.
pub fn logged_with(text: &str) -> Vec<Value> {
    logged_after(0, text)
}

/// The lines after a position that contain a text.
pub fn logged_after(position: usize, text: &str) -> Vec<Value> {
    let log = text_after(position);
    let lines = log.lines().filter(|line| line.contains(text));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The lines about a server of an upstream, after a position of the log: that at which its port was
/// bound. Ports are used again in the same process, so earlier lines may be about another server.
pub fn logged_about(server: &impl ToString, position: usize) -> Vec<Value> {
    let server = server.to_string();
    let mut lines = logged_after(position, &server);
    lines.retain(|line| line["fields"]["server"] == server);
    lines
}

pub fn position() -> usize {
    LOG.lock().unwrap().len()
}

/// Panics outside of tests.
pub fn panics() -> Vec<String> {
    PANICKED.lock().unwrap().clone()
}

/// Starts recording, once for the process.
pub fn install() {
    INSTALLED.get_or_init(|| {
        canary::plant(SESSION_KEY);
        canary::plant(ACCESS_TOKEN);
        let targets = Targets::new().with_target("wxgate", LevelFilter::TRACE);
        let lines = tracing_subscriber::fmt::layer().json().with_writer(|| Writer);
        tracing_subscriber::registry().with(targets).with(lines).with(Trap).try_init().unwrap();
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let is_ours = panic.location().is_some_and(|at| !at.file().starts_with("tests/"));
            if is_ours {
                PANICKED.lock().unwrap().push(panic.to_string());
            }
            before(panic);
        }));
    });
}

/// Panics at any event with the upstream [`PANICS`].
struct Trap;

impl<S: Subscriber> Layer<S> for Trap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        event.record(&mut Finder);
    }
}

struct Finder;

impl Visit for Finder {
    fn record_str(&mut self, field: &Field, value: &str) {
        assert!(field.name() != "upstream" || value != PANICS, "a request is to panic");
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        canary::search("the process's log", &String::from_utf8_lossy(bytes));
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
