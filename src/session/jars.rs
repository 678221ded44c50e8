//! The cookies of services, kept for clients that keep none: a jar for each session and upstream.
//!
//! A jar is found by the digest of its session's token and by its upstream, so that no other
//! session can get it, and ends with its session. In memory, all jars together have
//! `session.jar_capacity` bytes; when that is used up, the least recently used jars are dropped,
//! and the service sees a new client. In a shared store, jars expire with their sessions.
//!
//! While two processes run, each tells the other about a jar that it changes, before it forwards
//! the response that has changed it. If both change one jar within the same milliseconds, each may
//! have the other's cookies until the next change.
//!
//! If a jar cannot be read, the request is rejected, as if its session could not be read: without
//! the cookies the service would treat the user as a new one. If a jar cannot be written, the
//! response is forwarded nevertheless, because the service has already served the request.

use std::hash::RandomState;
use std::sync::Arc;

use moka::Entry;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::memory::Memory;
use super::{Backend, Jar, Session, Sessions, StoreError};
use crate::handover::fields::{Malformed, Writer, read};
use crate::handover::peer::Topic;
use crate::identity::token::TokenDigest;

/// Numbers of the fields of handed-over jars.
mod field {
    pub const JAR: u32 = 1;

    pub const SESSION: u32 = 1;
    pub const UPSTREAM: u32 = 2;
    pub const COOKIES: u32 = 3;
}

/// A handed-over piece has about as many bytes.
const PIECE: usize = 256 << 10;

/// Locks that keep changes in their order: a session waits for few others.
const ORDERS: usize = 64;

/// An upstream with jars, as a part of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JarName([u8; 16]);

impl JarName {
    pub fn of(upstream: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(upstream).into();
        Self(digest.first_chunk().copied().unwrap_or_default())
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// The upstreams that have had jars since the start. None is removed, because its jars must be
/// found when a session ends. Clones share them.
#[derive(Clone, Default)]
pub struct KnownJars(Arc<RwLock<Vec<JarName>>>);

impl KnownJars {
    fn add(&self, name: JarName) {
        let mut names = self.0.write();
        if !names.contains(&name) {
            names.push(name);
        }
    }

    pub fn names(&self) -> Vec<JarName> {
        self.0.read().clone()
    }
}

/// Jars in memory. Clones share them.
#[derive(Clone)]
pub struct Jars {
    cache: Cache<Key, Arc<Jar>, RandomState>,
    known: KnownJars,
    /// One is held while a jar is changed and told, so that the other process gets the changes of
    /// one session in their order.
    orders: Arc<[Mutex<()>; ORDERS]>,
}

type Key = (TokenDigest, JarName);

impl Jars {
    /// `capacity` is in bytes.
    pub fn new(capacity: u64, known: KnownJars) -> Self {
        let weigh = |_: &Key, jar: &Arc<Jar>| u32::try_from(jar.weight()).unwrap_or(u32::MAX);
        let cache = Cache::builder()
            .max_capacity(capacity)
            .weigher(weigh)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let orders = Arc::new(std::array::from_fn(|_| Mutex::default()));
        Self { cache, known, orders }
    }

    fn get(&self, session: &Session, name: JarName) -> Arc<Jar> {
        self.cache.get(&(*session.digest(), name)).unwrap_or_default()
    }

    fn order(&self, session: &Session) -> &Mutex<()> {
        let [first, ..] = session.digest().as_bytes();
        let [orders @ .., last] = &*self.orders;
        orders.get(usize::from(*first) % ORDERS).unwrap_or(last)
    }

    /// Returns whether the jar is another one now.
    fn change(&self, session: &Session, name: JarName, change: impl Fn(&Jar) -> Jar) -> bool {
        let result = self.cache.entry((*session.digest(), name)).and_compute_with(|entry| {
            let jar = entry.map(Entry::into_value).unwrap_or_default();
            let changed = change(&jar);
            if changed == *jar {
                Op::Nop
            } else if changed.is_empty() {
                Op::Remove
            } else {
                Op::Put(Arc::new(changed))
            }
        });
        self.remove_ended(session);
        !matches!(result, CompResult::StillNone(_) | CompResult::Unchanged(_))
    }

    /// Removes the jars of a session if it has ended. Called after one was added.
    fn remove_ended(&self, session: &Session) {
        if session.is_removed() {
            // Either this is seen here, or the jar is seen by what removes the session.
            self.remove_all(session.digest());
        }
    }

    fn export(&self, mut give: impl FnMut(&mut Writer)) {
        let mut piece = Writer::new();
        for (key, jar) in &self.cache {
            piece.list(field::JAR, &encode(&key, &jar));
            if piece.as_bytes().len() >= PIECE {
                give(&mut piece);
                piece.clear();
            }
        }
        if !piece.as_bytes().is_empty() {
            give(&mut piece);
        }
    }

    /// Takes one jar of another process, if its session is here. One whose format is unknown here
    /// is left out. What was told is newer than what is handed over, even if it came before.
    fn import(
        &self,
        list: &[u8],
        is_told: bool,
        session: impl Fn(&TokenDigest) -> Option<Arc<Session>>,
    ) -> Result<(), Malformed> {
        let (mut digest, mut name, mut cookies) = (None, None, None);
        for field in read(list) {
            let field = field?;
            match field.number {
                field::SESSION => digest = field.array().map(TokenDigest::from_bytes),
                field::UPSTREAM => name = field.array().map(JarName),
                field::COOKIES => cookies = Some(field.value),
                _ => {}
            }
        }
        let (Some(digest), Some(name), Some(cookies)) = (digest, name, cookies) else {
            return Err(Malformed);
        };
        if let Some(session) = session(&digest)
            && let Some(jar) = Jar::decode(cookies)
        {
            self.known.add(name);
            let (key, jar) = ((digest, name), Arc::new(jar));
            if is_told {
                // Even if it is empty: an older one that is handed over later must not replace it.
                self.cache.insert(key, jar);
            } else {
                self.cache.entry(key).or_insert(jar);
            }
            self.remove_ended(&session);
        }
        Ok(())
    }

    /// Removes all jars of a session that has ended.
    pub fn remove_all(&self, digest: &TokenDigest) {
        for name in self.known.0.read().iter() {
            self.cache.invalidate(&(*digest, *name));
        }
    }

    pub fn maintain(&self) {
        self.cache.run_pending_tasks();
    }
}

/// A jar as it is given to another process.
fn encode((digest, name): &Key, jar: &Jar) -> Writer {
    let mut writer = Writer::new();
    writer
        .bytes(field::SESSION, digest.as_bytes())
        .bytes(field::UPSTREAM, name.as_bytes())
        .bytes(field::COOKIES, &Zeroizing::new(jar.encode()));
    writer
}

impl Sessions {
    /// From now on an upstream has jars.
    pub fn keep_jars_of(&self, upstream: JarName) {
        self.known_jars.add(upstream);
    }

    /// The jar of a session at an upstream; empty if there is none.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn jar(&self, session: &Session, upstream: JarName) -> Result<Arc<Jar>, StoreError> {
        match &self.backend {
            Backend::Memory(memory) => Ok(memory.jars.get(session, upstream)),
            Backend::Redis(redis) => redis.jar(session, upstream).await.map(Arc::new),
        }
    }

    /// Changes the jar of a session at an upstream in one step, so that no other change is lost.
    /// `change` gets the present jar and the time in milliseconds since 1970; it may be called
    /// several times. A failure is logged.
    pub async fn change_jar(
        &self,
        session: &Session,
        upstream: JarName,
        change: impl Fn(&Jar, u64) -> Jar,
    ) {
        let now = self.wall_millis();
        let change = |jar: &Jar| change(jar, now);
        let changed = match &self.backend {
            Backend::Memory(memory) => {
                if self.peer.is_linked() {
                    // Boxed: otherwise it would make the future of every connection larger.
                    Box::pin(self.change_both(memory, session, upstream, change)).await;
                } else {
                    memory.jars.change(session, upstream, change);
                }
                Ok(())
            }
            Backend::Redis(redis) => redis.change_jar(session, upstream, change).await,
        };
        if changed.is_err()
            && let Some(suppressed) = self.jar_failures.suppressed()
        {
            tracing::error!(
                suppressed,
                "cannot keep the cookies of a service: the session store is unavailable"
            );
        }
    }

    /// Changes a jar here and in the other process.
    async fn change_both(
        &self,
        memory: &Memory,
        session: &Session,
        upstream: JarName,
        change: impl Fn(&Jar) -> Jar,
    ) {
        let _order = memory.jars.order(session).lock().await;
        if memory.jars.change(session, upstream, change) {
            let key = (*session.digest(), upstream);
            let jar = encode(&key, &memory.jars.get(session, upstream));
            // Without an answer there is nobody else any more.
            let _ = self.peer.ask(Topic::Jar, jar.as_bytes().to_vec()).await;
        }
    }

    /// Takes a jar that the other process has changed.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn take_jar(&self, told: &[u8]) -> Result<(), Malformed> {
        match &self.backend {
            Backend::Memory(memory) => memory.jars.import(told, true, |digest| memory.get(digest)),
            Backend::Redis(_) => Ok(()),
        }
    }

    /// Gives the jars in memory to another process, in pieces of about 256 KiB.
    pub fn export_jars(&self, give: impl FnMut(&mut Writer)) {
        if let Backend::Memory(memory) = &self.backend {
            memory.jars.export(give);
        }
    }

    /// Takes jars of another process, whose sessions must be here already.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn import_jars(&self, piece: &[u8]) -> Result<(), Malformed> {
        let Backend::Memory(memory) = &self.backend else { return Ok(()) };
        for field in read(piece) {
            let field = field?;
            if field.number == field::JAR {
                memory.jars.import(field.value, false, |digest| memory.get(digest))?;
            }
        }
        Ok(())
    }

    /// The time in milliseconds since 1970, in which the ends of cookies are given.
    pub fn wall_millis(&self) -> u64 {
        self.clock.to_wall(self.clock.now_millis())
    }
}

#[cfg(test)]
mod tests;
