//! Which sessions have ended here, although a snapshot may have them.
//!
//! A logout must be written if a snapshot may have its session, even when the session is gone: it
//! may have been evicted or replaced, or an earlier logout could not be written. A logout with an
//! invented token must write nothing, or anybody could keep the disk busy. So the sessions that
//! have ended since the last snapshot are remembered, until the next one, which does not have them.
//! Eight bytes of a digest are enough, because nobody chooses a digest.
//!
//! Beyond a limit, and while it is not known what the snapshot has, every logout is written.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::identity::token::TokenDigest;
use crate::session::DigestHash;

/// The most sessions that are remembered, of 8 to 16 bytes each.
const MOST: usize = 1 << 20;

/// Sessions that have ended.
#[derive(Default)]
pub struct Ended(Mutex<Sets>);

#[derive(Default)]
struct Sets {
    /// Since the last snapshot began.
    now: Set,
    /// Before the snapshot that is being written.
    before: Set,
}

#[derive(Default)]
struct Set {
    known: HashSet<u64, DigestHash>,
    /// There are more, which are not known.
    has_more: bool,
}

impl Set {
    fn add(&mut self, word: u64) {
        if self.known.len() < MOST {
            self.known.insert(word);
        } else {
            self.has_more |= !self.known.contains(&word);
        }
    }

    fn may_have(&self, word: u64) -> bool {
        self.has_more || self.known.contains(&word)
    }
}

impl Ended {
    pub fn add(&self, digest: &TokenDigest) {
        self.0.lock().now.add(word(digest));
    }

    /// The journal says now that the session has ended.
    pub fn remove(&self, digest: &TokenDigest) {
        let mut sets = self.0.lock();
        sets.now.known.remove(&word(digest));
        sets.before.known.remove(&word(digest));
    }

    /// Whether a snapshot may have a session that is not here any more.
    pub fn may_have(&self, digest: &TokenDigest) -> bool {
        let sets = self.0.lock();
        sets.now.may_have(word(digest)) || sets.before.may_have(word(digest))
    }

    /// Another process wrote the snapshot, and which sessions it has ended since is not known here.
    pub fn add_unknown(&self) {
        self.0.lock().now.has_more = true;
    }

    /// A snapshot begins. Sessions that have ended before are not in it.
    pub fn begin_snapshot(&self) {
        let mut sets = self.0.lock();
        let now = std::mem::take(&mut sets.now);
        sets.before.has_more |= now.has_more;
        if sets.before.known.is_empty() {
            sets.before.known = now.known;
        } else {
            now.known.into_iter().for_each(|word| sets.before.add(word));
        }
    }

    /// The snapshot is written, or has failed.
    pub fn end_snapshot(&self, is_written: bool) {
        let mut sets = self.0.lock();
        let before = std::mem::take(&mut sets.before);
        if !is_written {
            sets.now.has_more |= before.has_more;
            before.known.into_iter().for_each(|word| sets.now.add(word));
        }
    }

    /// Whether a snapshot is due, because the limit is near or was passed.
    pub fn is_large(&self) -> bool {
        let sets = self.0.lock();
        sets.now.has_more || sets.now.known.len() >= MOST / 2
    }
}

fn word(digest: &TokenDigest) -> u64 {
    digest.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: usize) -> TokenDigest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        TokenDigest::from_bytes(bytes)
    }

    #[test]
    fn an_ended_session_is_remembered_until_a_snapshot_without_it_is_written() {
        let ended = Ended::default();
        ended.add(&digest(1));
        ended.begin_snapshot();
        ended.add(&digest(2));
        assert!(ended.may_have(&digest(1)) && ended.may_have(&digest(2)));
        ended.end_snapshot(false);
        assert!(ended.may_have(&digest(1)), "the snapshot failed");
        ended.begin_snapshot();
        ended.add(&digest(3));
        ended.end_snapshot(true);
        let may_have: Vec<_> = (1..=4).map(|number| ended.may_have(&digest(number))).collect();
        assert_eq!(may_have, [false, false, true, false]);
        ended.remove(&digest(3));
        assert!(!ended.may_have(&digest(3)));
    }

    #[test]
    fn beyond_the_limit_every_session_may_have_ended_until_a_snapshot_is_written() {
        let ended = Ended::default();
        (0..MOST / 2).for_each(|number| ended.add(&digest(number)));
        assert!(ended.is_large());
        (0..MOST).for_each(|number| ended.add(&digest(number)));
        assert!(!ended.may_have(&digest(MOST)));
        ended.add(&digest(MOST));
        assert!(ended.may_have(&digest(MOST)) && ended.may_have(&digest(MOST + 1)));
        assert_eq!(ended.0.lock().now.known.len(), MOST);
        ended.begin_snapshot();
        ended.end_snapshot(true);
        assert!(!ended.may_have(&digest(MOST)) && !ended.is_large());
    }
}
