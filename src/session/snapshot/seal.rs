//! The ciphers of the files of sessions.
//!
//! Each file has a key of its own: HMAC-SHA-256, with the seal key, of the purpose and the file's
//! salt. So nothing of one file opens in another, and a number can be the nonce. What must not be
//! exchanged besides (the header of the file, flags) is associated data.
//!
//! A snapshot is large, and is written once from beginning to end: it is sealed with AES-256-GCM. A
//! journal is small, and a record whose write failed is replaced by another in its place. It is
//! sealed with AES-256-GCM-SIV (RFC 8452), which is safe even if a nonce were used twice.

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Tag};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::identity::secret::SealKey;

/// Random bytes at the start of a file.
pub const SALT: usize = 32;

/// What sealing adds, in bytes.
pub const TAG: usize = 16;

/// What kind of file a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Snapshot,
    Journal,
}

/// The key of one file.
pub struct FileKey(Cipher);

enum Cipher {
    Gcm(Box<LessSafeKey>),
    GcmSiv(Box<Aes256GcmSiv>),
}

/// Nothing is sealed without a key, or more than the cipher can seal. Neither occurs in a process
/// that serves.
#[derive(Debug, thiserror::Error)]
#[error("cannot seal")]
pub struct SealError;

impl FileKey {
    /// The key of a file with this salt. `None` cannot occur.
    pub fn derive(key: &SealKey, purpose: Purpose, salt: &[u8; SALT]) -> Option<Self> {
        let derive = |purpose: &[u8]| key.derive(&[purpose, salt].concat());
        Some(Self(match purpose {
            Purpose::Snapshot => {
                let key = derive(b"wxgate snapshot")?;
                Cipher::Gcm(Box::new(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).ok()?)))
            }
            Purpose::Journal => {
                let key = derive(b"wxgate journal")?;
                Cipher::GcmSiv(Box::new(Aes256GcmSiv::new_from_slice(&*key).ok()?))
            }
        }))
    }

    /// The key that opens `sealed`, and what was sealed: with the first of `keys` that can.
    pub fn find(
        keys: &[SealKey],
        (purpose, salt): (Purpose, &[u8; SALT]),
        number: u64,
        associated: &[u8],
        sealed: &[u8],
    ) -> Option<(Self, Zeroizing<Vec<u8>>)> {
        keys.iter().find_map(|key| {
            let key = Self::derive(key, purpose, salt)?;
            // A failed attempt destroys its input.
            let mut attempt = Zeroizing::new(sealed.to_vec());
            let length = key.open(number, associated, &mut attempt)?.len();
            attempt.truncate(length);
            Some((key, attempt))
        })
    }

    /// Seals `buffer` in place, and appends [`TAG`] bytes. In a snapshot, a number must be used
    /// only once.
    pub fn seal(
        &self,
        number: u64,
        associated: &[u8],
        buffer: &mut Vec<u8>,
    ) -> Result<(), SealError> {
        let nonce = nonce(number);
        match &self.0 {
            Cipher::Gcm(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.seal_in_place_append_tag(nonce, Aad::from(associated), buffer)
                    .map_err(|_| SealError)
            }
            Cipher::GcmSiv(key) => {
                let text = buffer.as_mut_slice().into();
                let tag = key.encrypt_inout_detached(&nonce.into(), associated, text);
                buffer.extend(tag.map_err(|_| SealError)?);
                Ok(())
            }
        }
    }

    /// Opens what [`Self::seal`] made, in place. `None` if it was not sealed with this key, for
    /// this number and with this associated data; then `sealed` may be destroyed.
    pub fn open<'a>(
        &self,
        number: u64,
        associated: &[u8],
        sealed: &'a mut [u8],
    ) -> Option<&'a [u8]> {
        let nonce = nonce(number);
        match &self.0 {
            Cipher::Gcm(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(associated), sealed).ok().map(|plain| &*plain)
            }
            Cipher::GcmSiv(key) => {
                let (text, tag) = sealed.split_last_chunk_mut::<TAG>()?;
                let tag = Tag::from(*tag);
                key.decrypt_inout_detached(&nonce.into(), associated, (&mut *text).into(), &tag)
                    .ok()?;
                Some(text)
            }
        }
    }
}

fn nonce(number: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    let (_, end) = nonce.split_at_mut(4);
    end.copy_from_slice(&number.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALTS: [[u8; SALT]; 2] = [[1; SALT], [2; SALT]];

    #[test]
    fn what_was_sealed_opens_only_in_its_place() {
        let seal_key = SealKey::random();
        for purpose in [Purpose::Snapshot, Purpose::Journal] {
            let key = FileKey::derive(&seal_key, purpose, &SALTS[0]).unwrap();
            for text in [&b""[..], b"text", &vec![7; 70_000]] {
                let mut sealed = text.to_vec();
                key.seal(5, b"header", &mut sealed).unwrap();
                assert_eq!(sealed.len(), text.len() + TAG);
                let opens = |key: &FileKey, number, associated: &[u8], mut sealed: Vec<u8>| {
                    key.open(number, associated, &mut sealed).map(<[u8]>::to_vec)
                };
                assert_eq!(opens(&key, 5, b"header", sealed.clone()).as_deref(), Some(text));
                assert_eq!(opens(&key, 6, b"header", sealed.clone()), None);
                assert_eq!(opens(&key, 5, b"Header", sealed.clone()), None);
                assert_eq!(opens(&key, 5, b"header", sealed[1..].to_vec()), None);
                assert_eq!(opens(&key, 5, b"header", sealed[..TAG - 1].to_vec()), None);
                let other = FileKey::derive(&seal_key, purpose, &SALTS[1]).unwrap();
                assert_eq!(opens(&other, 5, b"header", sealed.clone()), None);
                let other = FileKey::derive(&SealKey::random(), purpose, &SALTS[0]).unwrap();
                assert_eq!(opens(&other, 5, b"header", sealed.clone()), None);
                for at in [0, sealed.len() / 2, sealed.len() - 1] {
                    let mut sealed = sealed.clone();
                    sealed[at] ^= 1;
                    assert_eq!(opens(&key, 5, b"header", sealed), None);
                }
            }
        }
    }

    #[test]
    fn the_key_is_found_among_the_seal_keys() {
        let keys = [SealKey::random(), SealKey::random()];
        let place = (Purpose::Journal, &SALTS[0]);
        let mut sealed = b"text".to_vec();
        let key = FileKey::derive(&keys[1], place.0, place.1).unwrap();
        key.seal(0, b"", &mut sealed).unwrap();
        let (found, text) = FileKey::find(&keys, place, 0, b"", &sealed).unwrap();
        assert_eq!(&**text, b"text");
        assert!(found.open(0, b"", &mut sealed.clone()).is_some());
        assert!(FileKey::find(&keys[..1], place, 0, b"", &sealed).is_none());
        assert!(FileKey::find(&[], place, 0, b"", &sealed).is_none());
    }

    #[test]
    fn a_repeated_number_in_a_journal_shows_nothing_of_the_texts() {
        let key = FileKey::derive(&SealKey::random(), Purpose::Journal, &SALTS[0]).unwrap();
        let seal = |text: &[u8]| {
            let mut sealed = text.to_vec();
            key.seal(1, b"", &mut sealed).unwrap();
            sealed
        };
        let (one, other) = (seal(&[0; 64]), seal(&[1; 64]));
        let is_difference = one.iter().zip(&other).take(64).all(|(one, other)| one ^ other == 1);
        assert!(!is_difference);
    }
}
