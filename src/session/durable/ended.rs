//! Which sessions have ended here, although a snapshot may have them.
//!
//! A logout must be written if a snapshot may have its session, even when the session is gone: it
//! may have been evicted or replaced, or an earlier logout could not be written. A logout with an
//! invented token must write nothing, or anybody could keep the disk busy. So the sessions that
//! have ended since the last snapshot are remembered, until the next one, which does not have them.
//! Eight bytes of a digest are enough, because nobody chooses a digest.
//!
//! Beyond a limit, and while it is not known what the snapshot has, every logout is written. In an
//! upgrade the new process gets what the old one remembers, if both have the same files.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use parking_lot::Mutex;

use crate::handover::fields::{Malformed, Writer, read};
use crate::identity::token::TokenDigest;
use crate::session::DigestHash;

/// The most sessions that are remembered, of 8 to 16 bytes each.
const MOST: usize = 1 << 20;

/// Numbers of the fields of handed-over sessions.
mod field {
    /// The path of the snapshot.
    pub const PATH: u32 = 1;
    /// Parts of digests, of eight bytes each.
    pub const WORDS: u32 = 2;
    /// Has no value. It is there if more sessions have ended than are known.
    pub const HAS_MORE: u32 = 3;
}

/// Sessions in one handed-over piece, of eight bytes each.
const WORDS_IN_A_PIECE: usize = 32_768;

/// Sessions that have ended.
#[derive(Default)]
pub struct Ended(Mutex<Sets>);

#[derive(Default)]
struct Sets {
    /// Since the last snapshot began.
    now: Set,
    /// Before the snapshot that is being written.
    before: Set,
    /// Whether another process has given what it remembered.
    is_given: bool,
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

    /// Continues the files of another process. Unless that has given what it remembered, it is not
    /// known here which sessions have ended there since the snapshot.
    pub fn continue_another(&self) {
        let mut sets = self.0.lock();
        let is_given = std::mem::take(&mut sets.is_given);
        sets.now.has_more |= !is_given;
    }

    /// Gives all to another process, in pieces of at most 256 KiB, of which there is at least one.
    /// No snapshot may be being written.
    pub fn export(&self, snapshot: &Path, mut give: impl FnMut(&mut Writer)) {
        let (words, has_more) = {
            let sets = self.0.lock();
            let words: Vec<_> = sets.now.known.iter().copied().collect();
            (words, sets.now.has_more || sets.before.has_more)
        };
        let mut words = words.chunks(WORDS_IN_A_PIECE);
        let mut next = Some(words.next().unwrap_or_default());
        while let Some(some) = next {
            let mut piece = Writer::new();
            piece.bytes(field::PATH, snapshot.as_os_str().as_bytes());
            piece.bytes(
                field::WORDS,
                &some.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>(),
            );
            if has_more {
                piece.bytes(field::HAS_MORE, &[]);
            }
            give(&mut piece);
            next = words.next();
        }
    }

    /// Takes a piece of another process, if it is about the same snapshot.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn import(&self, snapshot: &Path, piece: &[u8]) -> Result<(), Malformed> {
        let (mut path, mut words, mut has_more) = (None, None, false);
        for field in read(piece) {
            let field = field?;
            match field.number {
                field::PATH => path = Some(field.value),
                field::WORDS => words = Some(field.value.as_chunks::<8>()),
                field::HAS_MORE => has_more = true,
                _ => {}
            }
        }
        let (Some(path), Some((words, []))) = (path, words) else { return Err(Malformed) };
        // A relative path may mean another file there.
        if path == snapshot.as_os_str().as_bytes() && snapshot.is_absolute() {
            let mut sets = self.0.lock();
            for word in words {
                sets.now.add(u64::from_be_bytes(*word));
            }
            sets.now.has_more |= has_more;
            sets.is_given = true;
        }
        Ok(())
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
    fn a_new_process_remembers_what_it_was_given_and_everything_if_it_was_given_nothing() {
        let path = Path::new("/run/wxgate/sessions");
        let exported = |ended: &Ended, path: &str| {
            let mut pieces = Vec::new();
            ended.export(Path::new(path), |piece| pieces.push(piece.as_bytes().to_vec()));
            assert!(pieces.iter().all(|piece| piece.len() < 270_000));
            pieces
        };
        let given = |pieces: &[Vec<u8>]| {
            let ended = Ended::default();
            for piece in pieces {
                ended.import(path, piece).unwrap();
            }
            ended.continue_another();
            ended
        };
        let old = Ended::default();
        assert!(!given(&exported(&old, "/run/wxgate/sessions")).may_have(&digest(0)));
        (0..40_000).for_each(|number| old.add(&digest(number)));
        let pieces = exported(&old, "/run/wxgate/sessions");
        assert_eq!(pieces.len(), 2);
        let new = given(&pieces);
        assert!((0..40_000).all(|number| new.may_have(&digest(number))));
        assert!(!new.may_have(&digest(40_000)));
        // That counts once: another process may have had the files in between.
        new.continue_another();
        assert!(new.may_have(&digest(40_000)));
        // More have ended there than are known, or its files have another path.
        for pieces in [
            exported(&new, "/run/wxgate/sessions"),
            exported(&old, "/run/wxgate/other"),
            exported(&old, "sessions"),
            Vec::new(),
        ] {
            assert!(given(&pieces).may_have(&digest(40_000)));
        }
        let relative = Ended::default();
        relative.import(Path::new("sessions"), &exported(&old, "sessions")[0]).unwrap();
        relative.continue_another();
        assert!(relative.may_have(&digest(40_000)));
        for length in 0..pieces[1].len() {
            let cut = &pieces[1][..length];
            assert_eq!(Ended::default().import(path, cut), Err(Malformed), "{length}");
        }
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
