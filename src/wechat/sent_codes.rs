//! Which one-time codes were sent to WeChat and must not be sent again.
//!
//! A code is remembered for ten minutes, twice as long as WeChat accepts it, as a digest. When too
//! many are remembered, new ones are rejected rather than old ones forgotten. Codes that another
//! process has sent count as sent.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, millis};
use crate::handover::claims::{Claim, Claims, CodeDigest, CodeKind, Wanted};
use crate::handover::codes::{read_codes, write_codes};
use crate::handover::fields::{Malformed, Writer};
use crate::handover::peer::Peer;

/// How long a code is remembered.
pub const LIFETIME: Duration = Duration::from_secs(600);

/// Codes that are remembered.
pub const CAPACITY: usize = 100_000;

/// The codes of one kind, of all apps.
pub struct SentCodes {
    codes: Mutex<Codes>,
    claims: Claims,
    clock: Clock,
}

#[derive(Default)]
struct Codes {
    known: HashMap<CodeDigest, Code>,
    /// By the time when they are forgotten.
    order: BTreeSet<(u64, CodeDigest)>,
}

struct Code {
    /// When it is forgotten, on the clock, in milliseconds.
    until: u64,
    claim: Arc<Claim>,
}

/// Why a code must not be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsendable {
    /// It was sent before.
    Sent,
    /// Too many codes are remembered.
    Full,
}

impl SentCodes {
    pub fn new(kind: CodeKind, peer: Peer, clock: Clock) -> Self {
        Self { codes: Mutex::default(), claims: Claims::new(kind, peer), clock }
    }

    /// Remembers a code that is about to be sent. It may be sent if [`SentCodes::claim`] is true
    /// for it.
    ///
    /// # Errors
    /// When it must not be sent.
    pub fn add(&self, digest: CodeDigest) -> Result<Arc<Claim>, Unsendable> {
        let claim = Arc::new(Claim::default());
        let mut codes = self.current();
        if codes.known.contains_key(&digest) {
            return Err(Unsendable::Sent);
        }
        codes.insert(digest, Code { until: self.end(), claim: claim.clone() })?;
        Ok(claim)
    }

    /// Whether no other process has sent a code, or is about to.
    pub async fn claim(&self, digest: &CodeDigest, claim: &Claim) -> bool {
        self.claims.claim(digest, claim).await
    }

    /// Forgets a code that was not sent.
    pub fn forget(&self, digest: &CodeDigest) {
        let mut codes = self.current();
        if let Some(code) = codes.known.remove(digest) {
            codes.order.remove(&(code.until, *digest));
        }
    }

    /// Whether the other process may send a code. If it may, this process does not.
    pub fn give(&self, wanted: &Wanted) -> bool {
        let mut codes = self.current();
        match codes.known.get(&wanted.digest) {
            Some(known) => self.claims.give(&known.claim, wanted),
            None => codes.insert(wanted.digest, Code::theirs(self.end())).is_ok(),
        }
    }

    /// Gives the codes of this process to another one, in pieces of at most 256 KiB.
    pub fn export(&self, give: impl FnMut(&mut Writer)) {
        let codes: Vec<_> =
            self.current().order.iter().map(|(until, digest)| (*digest, *until)).collect();
        write_codes(&codes, give);
    }

    /// Takes the codes of another process, as many as there is room for.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn import(&self, piece: &[u8]) -> Result<(), Malformed> {
        let given = read_codes(piece)?;
        let mut codes = self.current();
        for (digest, until) in given {
            if !codes.known.contains_key(&digest) {
                let _ = codes.insert(digest, Code::theirs(until.min(self.end())));
            }
        }
        Ok(())
    }

    /// The codes, without those that have ended.
    fn current(&self) -> parking_lot::MutexGuard<'_, Codes> {
        let now = self.clock.now_millis();
        let mut codes = self.codes.lock();
        while let Some((until, digest)) = codes.order.first().copied()
            && until <= now
        {
            codes.known.remove(&digest);
            codes.order.pop_first();
        }
        codes
    }

    /// When a code is forgotten that is sent now.
    fn end(&self) -> u64 {
        self.clock.now_millis().saturating_add(millis(LIFETIME))
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        let codes = self.codes.lock();
        assert_eq!(codes.known.len(), codes.order.len());
        codes.known.len()
    }
}

impl Code {
    /// One that another process has sent.
    fn theirs(until: u64) -> Self {
        Self { until, claim: Arc::new(Claim::theirs()) }
    }
}

impl Codes {
    fn insert(&mut self, digest: CodeDigest, code: Code) -> Result<(), Unsendable> {
        if self.known.len() >= CAPACITY {
            return Err(Unsendable::Full);
        }
        self.order.insert((code.until, digest));
        self.known.insert(digest, code);
        Ok(())
    }
}
