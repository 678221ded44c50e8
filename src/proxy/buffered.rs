//! What collected bodies and grown HTTP/2 windows take of `limits.max_buffered`.

use std::sync::atomic::Ordering;

use super::Gateway;

/// Bytes by which a share grows: a lock or a metric for each byte would cost too much.
const STEP: u64 = 64 << 10;

/// A share of `limits.max_buffered`, released when it is dropped.
pub struct BufferShare<'a> {
    gateway: &'a Gateway,
    bytes: u64,
}

impl<'a> BufferShare<'a> {
    /// Nothing yet.
    pub fn new(gateway: &'a Gateway) -> Self {
        Self { gateway, bytes: 0 }
    }

    /// Takes more, until the share has at least `bytes`. `false`: there is not that much left, and
    /// the share is as before.
    pub fn grow_to(&mut self, bytes: u64) -> bool {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return true;
        };
        let more = more.next_multiple_of(STEP);
        let Gateway { buffered, policies, process, .. } = self.gateway;
        let most = policies.current().limits.max_buffered;
        let add = |used: u64| used.checked_add(more).filter(|used| *used <= most);
        let Ok(before) = buffered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) else {
            return false;
        };
        process.metrics.set_buffered(before + more);
        self.bytes += more;
        true
    }
}

impl Drop for BufferShare<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let before = self.gateway.buffered.fetch_sub(self.bytes, Ordering::Relaxed);
        self.gateway.process.metrics.set_buffered(before.saturating_sub(self.bytes));
    }
}
