//! Keys for TLS session tickets.
//!
//! rustls has such keys as well, but they cannot leave the process. These are given to the process
//! that takes over, so that phones resume their TLS sessions there. A ticket is the name of its
//! key, a nonce, and the session, sealed with ChaCha20-Poly1305. The nonce is random: a counter
//! would say how many tickets there are. Every six hours there is a new key; tickets of the one
//! before are accepted for six hours more.
//!
//! As in rustls, the name of the key is authenticated, and a ticket longer than every one that was
//! made with the key is not tried: a long ciphertext would let an attacker try many keys at once
//! (Len, Grubbs and Ristenpart, "Partitioning Oracle Attacks").

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::clock::{Clock, millis};
use crate::handover::fields::{Malformed, Writer, read};

/// How long a key makes tickets.
const ROTATION: Duration = Duration::from_secs(6 * 60 * 60);

/// Numbers of the fields of handed-over keys, and of one key.
mod field {
    pub const CURRENT: u32 = 1;
    pub const PREVIOUS: u32 = 2;
    /// In milliseconds of the clock.
    pub const ROTATES: u32 = 3;

    pub const NAME: u32 = 1;
    pub const SECRET: u32 = 2;
    pub const LONGEST: u32 = 3;
}

/// The keys of a process. They outlive a reload.
pub struct TicketKeys {
    keys: RwLock<Keys>,
    random: SystemRandom,
    clock: Clock,
}

struct Keys {
    current: Key,
    previous: Option<Key>,
    /// When the current key is replaced, in milliseconds of the clock.
    rotates: u64,
}

struct Key {
    name: [u8; 16],
    secret: Zeroizing<[u8; 32]>,
    aead: LessSafeKey,
    /// The length of the longest ticket made with it.
    longest: AtomicUsize,
}

impl TicketKeys {
    /// # Errors
    /// When the system provides no random bytes.
    pub fn new(clock: Clock) -> Result<Self, rustls::Error> {
        let random = SystemRandom::new();
        let current = Key::random(&random).ok_or(rustls::Error::FailedToGetRandomBytes)?;
        let keys = Keys { current, previous: None, rotates: next_rotation(clock.now_millis()) };
        Ok(Self { keys: RwLock::new(keys), random, clock })
    }

    /// Gives the keys to another process.
    pub fn export(&self) -> Writer {
        self.rotate();
        let keys = self.keys.read();
        let mut writer = Writer::new();
        writer.list(field::CURRENT, &keys.current.export()).u64(field::ROTATES, keys.rotates);
        if let Some(previous) = &keys.previous {
            writer.list(field::PREVIOUS, &previous.export());
        }
        writer
    }

    /// Replaces the keys by those of another process. Tickets that were made here are not accepted
    /// any more.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn import(&self, given: &[u8]) -> Result<(), Malformed> {
        let (mut current, mut previous, mut rotates) = (None, None, None);
        for field in read(given) {
            let field = field?;
            match field.number {
                field::CURRENT => current = Some(Key::import(field.value)?),
                field::PREVIOUS => previous = Some(Key::import(field.value)?),
                field::ROTATES => rotates = field.u64(),
                _ => {}
            }
        }
        let (Some(current), Some(rotates)) = (current, rotates) else { return Err(Malformed) };
        // A wrong clock must not keep a key for longer.
        let rotates = rotates.min(next_rotation(self.clock.now_millis()));
        *self.keys.write() = Keys { current, previous, rotates };
        Ok(())
    }

    /// Replaces the current key if it is time. Without random bytes it stays, and makes no ticket.
    fn rotate(&self) -> Option<()> {
        let now = self.clock.now_millis();
        if now < self.keys.read().rotates {
            return Some(());
        }
        let next = Key::random(&self.random)?;
        let mut keys = self.keys.write();
        // Another thread may have been faster.
        if now >= keys.rotates {
            let is_recent = now < next_rotation(keys.rotates);
            let replaced = std::mem::replace(&mut keys.current, next);
            keys.previous = is_recent.then_some(replaced);
            keys.rotates = next_rotation(now);
        }
        Some(())
    }
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    /// In seconds.
    fn lifetime(&self) -> u32 {
        u32::try_from(ROTATION.as_secs() * 2).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.rotate()?;
        self.keys.read().current.seal(session, &self.random)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.rotate()?;
        let keys = self.keys.read();
        let previous = || keys.previous.as_ref().and_then(|key| key.open(ticket));
        keys.current.open(ticket).or_else(previous)
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[redacted]")
    }
}

impl Key {
    fn random(random: &SystemRandom) -> Option<Self> {
        let (mut name, mut secret) = ([0; 16], Zeroizing::new([0; 32]));
        random.fill(&mut name).ok()?;
        random.fill(&mut *secret).ok()?;
        Self::new(name, secret, 0)
    }

    fn new(name: [u8; 16], secret: Zeroizing<[u8; 32]>, longest: usize) -> Option<Self> {
        let aead = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &*secret).ok()?);
        Some(Self { name, secret, aead, longest: AtomicUsize::new(longest) })
    }

    fn export(&self) -> Writer {
        let mut writer = Writer::new();
        let longest = u64::try_from(self.longest.load(Ordering::Relaxed)).unwrap_or(0);
        writer
            .bytes(field::NAME, &self.name)
            .bytes(field::SECRET, &*self.secret)
            .u64(field::LONGEST, longest);
        writer
    }

    fn import(given: &[u8]) -> Result<Self, Malformed> {
        let (mut name, mut secret, mut longest) = (None, None, None);
        for field in read(given) {
            let field = field?;
            match field.number {
                field::NAME => name = field.array(),
                field::SECRET => secret = field.array().map(Zeroizing::new),
                field::LONGEST => longest = field.u64().and_then(|n| usize::try_from(n).ok()),
                _ => {}
            }
        }
        let (Some(name), Some(secret), Some(longest)) = (name, secret, longest) else {
            return Err(Malformed);
        };
        Self::new(name, secret, longest).ok_or(Malformed)
    }

    fn seal(&self, session: &[u8], random: &SystemRandom) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        random.fill(&mut nonce).ok()?;
        let mut sealed = session.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        let tag = self.aead.seal_in_place_separate_tag(unique, self.associated(), &mut sealed);
        let ticket = [&self.name, &nonce[..], &sealed, tag.ok()?.as_ref()].concat();
        self.longest.fetch_max(ticket.len(), Ordering::Relaxed);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > self.longest.load(Ordering::Relaxed) {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<16>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        if !bool::from(self.name.ct_eq(name)) {
            return None;
        }
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let mut opened = sealed.to_vec();
        let length = self.aead.open_in_place(nonce, self.associated(), &mut opened).ok()?.len();
        opened.truncate(length);
        Some(opened)
    }

    fn associated(&self) -> Aad<[u8; 16]> {
        Aad::from(self.name)
    }
}

fn next_rotation(now: u64) -> u64 {
    now.saturating_add(millis(ROTATION))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> (TicketKeys, Clock) {
        let clock = Clock::manual();
        (TicketKeys::new(clock.clone()).unwrap(), clock)
    }

    #[test]
    fn a_ticket_is_valid_while_its_key_or_the_next_one_is_current() {
        let (keys, clock) = keys();
        let first = keys.encrypt(b"first").unwrap();
        assert!(!first.windows(5).any(|part| part == b"first"));
        clock.advance(ROTATION);
        let second = keys.encrypt(b"second").unwrap();
        assert_ne!(first[..16], second[..16]);
        clock.advance(ROTATION.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(keys.decrypt(&first).unwrap(), b"first");
        assert_eq!(keys.decrypt(&second).unwrap(), b"second");
        clock.advance(Duration::from_millis(1));
        assert_eq!(keys.decrypt(&first), None);
        assert_eq!(keys.decrypt(&second).unwrap(), b"second");
    }

    #[test]
    fn a_key_that_was_not_replaced_in_time_opens_nothing_any_more() {
        let (keys, clock) = keys();
        let ticket = keys.encrypt(b"old").unwrap();
        clock.advance(ROTATION * 2);
        assert_eq!(keys.decrypt(&ticket), None);
    }

    #[test]
    fn what_was_not_sealed_here_is_not_opened() {
        let (keys, clock) = keys();
        assert_eq!(keys.decrypt(b""), None);
        let ticket = keys.encrypt(b"session").unwrap();
        let other = TicketKeys::new(clock).unwrap();
        other.encrypt(b"session").unwrap();
        assert_eq!(other.decrypt(&ticket), None);
        for position in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[position] ^= 1;
            assert_eq!(keys.decrypt(&changed), None, "{position}");
            assert_eq!(keys.decrypt(&ticket[..position]), None, "{position}");
        }
        // Each ticket has a nonce of its own.
        assert_ne!(keys.encrypt(b"session").unwrap(), ticket);
    }

    #[test]
    fn a_ticket_longer_than_all_that_were_made_is_not_tried() {
        let (keys, clock) = keys();
        let short = keys.encrypt(b"short").unwrap();
        let other = TicketKeys::new(clock).unwrap();
        other.import(keys.export().as_bytes()).unwrap();
        let long = keys.encrypt(b"longer than short").unwrap();
        assert_eq!(other.decrypt(&short).unwrap(), b"short");
        assert_eq!(other.decrypt(&long), None);
        other.encrypt(b"longer than short").unwrap();
        assert_eq!(other.decrypt(&long).unwrap(), b"longer than short");
    }

    #[test]
    fn another_process_goes_on_with_the_same_keys_and_rotates_them_at_the_same_time() {
        let (old, clock) = keys();
        let first = old.encrypt(b"first").unwrap();
        clock.advance(ROTATION + Duration::from_secs(60));
        let second = old.encrypt(b"second").unwrap();
        let new = TicketKeys::new(clock.clone()).unwrap();
        new.import(old.export().as_bytes()).unwrap();
        assert_eq!(new.decrypt(&first).unwrap(), b"first");
        assert_eq!(new.decrypt(&second).unwrap(), b"second");
        assert_eq!(old.decrypt(&new.encrypt(b"third").unwrap()).unwrap(), b"third");
        clock.advance(ROTATION.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(new.decrypt(&first).unwrap(), b"first");
        clock.advance(Duration::from_millis(1));
        assert_eq!(new.decrypt(&first), None);
        assert_eq!(new.decrypt(&second).unwrap(), b"second");
    }

    #[test]
    fn malformed_keys_change_nothing() {
        let (keys, clock) = keys();
        let ticket = keys.encrypt(b"session").unwrap();
        let exported = keys.export();
        let new = TicketKeys::new(clock).unwrap();
        for length in 0..exported.as_bytes().len() {
            assert_eq!(new.import(&exported.as_bytes()[..length]), Err(Malformed), "{length}");
        }
        assert_eq!(new.decrypt(&ticket), None);
        let mut newer = exported.as_bytes().to_vec();
        newer.extend(Writer::new().text(99, "of a newer program").as_bytes());
        new.import(&newer).unwrap();
        assert_eq!(new.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(format!("{new:?}"), "[redacted]");
    }
}
