//! Whether the process is serving, draining or closing.
//!
//! Draining begins with the signal to stop: the gateway is no longer ready and responses have
//! `Connection: close`, but new connections are still served. The public listeners are closed after
//! `server.shutdown_delay`. Closing begins a second later, so that clients can begin a last request
//! on connections that they have: then idle connections are closed. `server` changes the state;
//! everything else only reads it.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// The state of one gateway.
#[derive(Default)]
pub struct Lifecycle {
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    closing: watch::Sender<bool>,
}

impl Lifecycle {
    /// Called when the listeners are bound and the sessions of the process before are there.
    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.has_started() && !self.is_draining()
    }

    /// Whether the sessions of the process before are there.
    pub fn has_started(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.is_draining.load(Ordering::Acquire)
    }

    pub fn close(&self) {
        self.drain();
        self.closing.send_replace(true);
    }

    /// Becomes `true` when idle connections must be closed.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }
}
