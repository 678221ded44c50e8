//! Whether the process is serving, draining or closing.
//!
//! Draining begins with the signal to stop: readiness is gone and answers carry
//! `Connection: close`, but new connections are still served. Closing begins after
//! `server.shutdown_delay`: the public listeners are shut and idle connections end.
//! `server.rs` moves the state, everybody else only looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// A handle on the life of one gateway. Clones see the same state.
#[derive(Clone)]
pub struct Lifecycle(Arc<State>);

struct State {
    ready: AtomicBool,
    draining: AtomicBool,
    closing: watch::Sender<bool>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self(Arc::new(State {
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            closing: watch::Sender::new(false),
        }))
    }
}

impl Lifecycle {
    /// The listeners are bound and the session store has been reached.
    pub fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire) && !self.is_draining()
    }

    pub fn drain(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Acquire)
    }

    pub fn close(&self) {
        self.drain();
        self.0.closing.send_replace(true);
    }

    /// Turns `true` when idle connections must end. The same channel tells pingora.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.0.closing.subscribe()
    }
}
