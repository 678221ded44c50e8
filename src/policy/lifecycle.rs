//! Whether the process is serving, draining or closing.
//!
//! Draining begins with the signal to stop: readiness is gone and answers carry
//! `Connection: close`, but new connections are still served. Closing begins after
//! `server.shutdown_delay`: the public listeners are shut and idle connections end.
//! `server.rs` moves the state, everybody else only looks.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// The life of one gateway.
#[derive(Default)]
pub struct Lifecycle {
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    closing: watch::Sender<bool>,
}

impl Lifecycle {
    /// The listeners are bound.
    pub fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
    }

    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire) && !self.is_draining()
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

    /// Turns `true` when idle connections must end.
    pub fn closing(&self) -> watch::Receiver<bool> {
        self.closing.subscribe()
    }
}
