//! How often each API was called, and when that is too often.

use std::collections::BTreeMap;

use moka::sync::Cache;
use parking_lot::Mutex;

use super::{Behaviour, newest};
use crate::clock::Clock;

/// Counts calls.
pub struct Quotas {
    /// Calls of one API for one user in a minute.
    minutes: Cache<String, (u64, u32)>,
    /// Calls of each API that the quota in total allowed or rejected.
    totals: Mutex<BTreeMap<&'static str, u64>>,
    /// Calls of each API, whatever became of them.
    received: Mutex<BTreeMap<&'static str, u64>>,
    per_user: u32,
    in_total: Option<u64>,
    clock: Clock,
}

impl Quotas {
    pub fn new(behaviour: &Behaviour, clock: Clock) -> Self {
        Self {
            minutes: newest(),
            totals: Mutex::default(),
            received: Mutex::default(),
            per_user: behaviour.user_quota,
            in_total: behaviour.quota,
            clock,
        }
    }

    /// Counts a call that has arrived.
    pub fn received(&self, api: &'static str) {
        *self.received.lock().entry(api).or_default() += 1;
    }

    /// How often each API was called.
    pub fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.received.lock().clone()
    }

    /// Counts a call for a user.
    ///
    /// # Errors
    /// The errcode, if the user's quota of this minute is used up.
    pub fn count_for_user(&self, api: &'static str, openid: &str) -> Result<(), i64> {
        let minute = self.clock.now().as_secs() / 60;
        let counted = self.minutes.entry(format!("{api} {openid}")).and_upsert_with(|last| {
            match last.map(moka::Entry::into_value) {
                Some((at, count)) if at == minute => (minute, count.saturating_add(1)),
                _ => (minute, 1),
            }
        });
        if counted.into_value().1 > self.per_user { Err(45011) } else { Ok(()) }
    }

    /// Counts a call.
    ///
    /// # Errors
    /// The errcode, if the quota in total is used up.
    pub fn count(&self, api: &'static str) -> Result<(), i64> {
        let mut totals = self.totals.lock();
        let total = totals.entry(api).or_default();
        *total += 1;
        if self.in_total.is_some_and(|quota| *total > quota) { Err(45009) } else { Ok(()) }
    }
}
