//! The times of a stored session: in milliseconds since 1970, because gateways compare them.
//!
//! A use is written once in an interval at most. So a session is stored and accepted for one
//! interval beyond its idle end: another gateway may have served a use that is not written yet.

use super::Inner;
use super::seal::Record;
use crate::clock::millis;
use crate::identity::token::TokenDigest;
use crate::session::Session;

impl Inner {
    /// How long a record is stored, in milliseconds: until its end, plus one interval.
    pub(super) fn life(&self, record: &Record) -> u64 {
        let now = self.clock.to_wall(self.clock.now_millis());
        (self.end_of(record) + millis(self.interval)).saturating_sub(now).max(1)
    }

    pub(super) fn end_of(&self, record: &Record) -> u64 {
        record.ends.min(record.used.saturating_add(millis(self.idle_timeout)))
    }

    pub(super) fn is_live(&self, record: &Record) -> bool {
        let now = self.clock.to_wall(self.clock.now_millis());
        now < record.ends && now < self.end_of(record) + millis(self.interval)
    }

    /// The record of a session that was last used at `used`. Gateways compare its times, so their
    /// wall clocks must agree.
    pub(super) fn record(&self, session: &Session, used: u64) -> Record {
        Record {
            identity: session.identity.clone(),
            client: session.client,
            created: self.clock.to_wall(session.created_at_millis),
            ends: self.clock.to_wall(session.ends_at_millis),
            used: self.clock.to_wall(used),
        }
    }

    pub(super) fn session(&self, digest: TokenDigest, record: Record) -> Session {
        let Record { identity, client, created, ends, used } = record;
        let [created, ends, used] = [created, ends, used].map(|time| self.clock.from_wall(time));
        Session::new(digest, identity, client, created, ends, used)
    }
}
