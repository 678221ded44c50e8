//! The cookies of services, kept for clients that keep none: a jar for each session and upstream.
//!
//! A jar is found by the digest of its session's token and by its upstream, so that no other
//! session can get it, and ends with its session. In memory, all jars together have
//! `session.jar_capacity` bytes; when that is used up, the least recently used jars are dropped,
//! and the service sees a new client. In a shared store, jars expire with their sessions.
//!
//! If a jar cannot be read, the request is rejected, as if its session could not be read: without
//! the cookies the service would treat the user as a new one. If a jar cannot be written, the
//! response is forwarded nevertheless, because the service has already served the request.

use std::hash::RandomState;
use std::sync::Arc;

use moka::Entry;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{Backend, Jar, Session, Sessions, StoreError};
use crate::handover::fields::{Malformed, Writer, read};
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
        Self { cache, known }
    }

    fn get(&self, session: &Session, name: JarName) -> Arc<Jar> {
        self.cache.get(&(*session.digest(), name)).unwrap_or_default()
    }

    fn change(&self, session: &Session, name: JarName, change: impl Fn(&Jar) -> Jar) {
        self.cache.entry((*session.digest(), name)).and_compute_with(|entry| {
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
        if session.is_removed() {
            // Either this is seen here, or the jar is seen by what removes the session.
            self.remove_all(session.digest());
        }
    }

    fn export(&self, mut give: impl FnMut(&mut Writer)) {
        let mut piece = Writer::new();
        for (key, jar) in &self.cache {
            let (digest, name) = &*key;
            let mut writer = Writer::new();
            writer
                .bytes(field::SESSION, digest.as_bytes())
                .bytes(field::UPSTREAM, name.as_bytes())
                .bytes(field::COOKIES, &Zeroizing::new(jar.encode()));
            piece.list(field::JAR, &writer);
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
    /// is left out.
    fn import(
        &self,
        list: &[u8],
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
            self.change(&session, name, |_| jar.clone());
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
                memory.jars.change(session, upstream, change);
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
                memory.jars.import(field.value, |digest| memory.get(digest))?;
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
mod tests {
    use super::*;
    use crate::message::set_cookie::SetCookie;
    use crate::session::tests::Store;

    fn name() -> JarName {
        JarName::of("shop")
    }

    async fn set(store: &Store, session: &Session, name: JarName, line: &str) {
        let change = |jar: &Jar, now| {
            jar.with(SetCookie::parse(line.as_bytes(), now).into_iter(), b"/", now)
        };
        store.sessions.change_jar(session, name, change).await;
    }

    async fn sent(store: &Store, session: &Session, name: JarName) -> String {
        let jar = store.sessions.jar(session, name).await.unwrap();
        let sent = jar.sent(b"/", false, store.sessions.wall_millis());
        let pair = |(name, value): (&[u8], &[u8])| [name, b"=", value].concat();
        let pairs: Vec<Vec<u8>> = sent.into_iter().map(pair).collect();
        String::from_utf8(pairs.join(&b"; "[..])).unwrap()
    }

    #[tokio::test]
    async fn a_jar_is_of_one_session_and_one_upstream_and_ends_with_the_session() {
        let store = Store::new(100);
        store.sessions.keep_jars_of(name());
        let (one, other) = (store.login().await, store.login().await);
        let one = store.sessions.get(&one).await.unwrap().unwrap();
        let other = store.sessions.get(&other).await.unwrap().unwrap();
        set(&store, &one, name(), "a=1").await;
        set(&store, &one, name(), "b=2; Max-Age=5").await;
        assert_eq!(sent(&store, &one, name()).await, "a=1; b=2");
        assert_eq!(sent(&store, &other, name()).await, "");
        assert_eq!(sent(&store, &one, JarName::of("shop2")).await, "");
        store.clock.advance(std::time::Duration::from_secs(5));
        assert_eq!(sent(&store, &one, name()).await, "a=1");
        store.sessions.revoke(one.digest()).await.unwrap();
        assert_eq!(sent(&store, &one, name()).await, "");
        // A response that comes later brings nothing back.
        set(&store, &one, name(), "a=3").await;
        assert_eq!(sent(&store, &one, name()).await, "");
    }

    #[tokio::test]
    async fn jars_are_handed_over_with_their_sessions() {
        let [old, new] = [Store::new(100), Store::new(100)];
        old.sessions.keep_jars_of(name());
        let (kept, ended) = (old.login().await, old.login().await);
        let kept = old.sessions.get(&kept).await.unwrap().unwrap();
        let ended = old.sessions.get(&ended).await.unwrap().unwrap();
        let long = format!("long={}", "x".repeat(3000));
        for session in [&kept, &ended] {
            set(&old, session, name(), "a=1").await;
            set(&old, session, name(), &long).await;
        }
        let mut pieces = Vec::new();
        old.sessions.export_jars(|piece| pieces.push(piece.as_bytes().to_vec()));
        let here = |digest: &TokenDigest| (digest == kept.digest()).then(|| kept.clone());
        let Backend::Memory(memory) = &new.sessions.backend else { panic!() };
        for piece in &pieces {
            assert_eq!(new.sessions.import_jars(&piece[..piece.len() - 1]), Err(Malformed));
            for field in read(piece) {
                memory.jars.import(field.unwrap().value, here).unwrap();
            }
        }
        assert_eq!(sent(&new, &kept, name()).await, format!("a=1; {long}"));
        assert_eq!(sent(&new, &ended, name()).await, "");
        // They end with their sessions there, too, though no configuration has named the upstream.
        memory.jars.remove_all(kept.digest());
        assert_eq!(sent(&new, &kept, name()).await, "");
        // Without its session, none is taken.
        new.sessions.import_jars(&pieces[0]).unwrap();
        assert_eq!(sent(&new, &kept, name()).await, "");
    }

    #[tokio::test]
    async fn an_evicted_session_takes_its_jars_along() {
        let store = Store::new(1);
        store.sessions.keep_jars_of(name());
        let first = store.login().await;
        let first = store.sessions.get(&first).await.unwrap().unwrap();
        set(&store, &first, name(), "a=1").await;
        assert_eq!(sent(&store, &first, name()).await, "a=1");
        store.login().await;
        store.sessions.maintain();
        assert_eq!(sent(&store, &first, name()).await, "");
    }

    #[test]
    fn the_least_recently_used_jars_are_dropped() {
        let known = KnownJars::default();
        known.add(name());
        let jars = Jars::new(100_000, known);
        let digests: Vec<_> = (0..100_u8).map(|n| TokenDigest::from_bytes([n; 32])).collect();
        let line = format!("a={}", "x".repeat(2000));
        let cookie = SetCookie::parse(line.as_bytes(), 0).unwrap();
        let jar = Arc::new(Jar::default().with([cookie].into_iter(), b"/", 0));
        for digest in &digests {
            jars.cache.insert((*digest, name()), jar.clone());
            // The first is used all the time.
            assert!(jars.cache.get(&(digests[0], name())).is_some());
            jars.maintain();
        }
        let kept = digests.iter().filter(|digest| jars.cache.contains_key(&(**digest, name())));
        assert!((40..=43).contains(&kept.count()));
        assert!(jars.cache.contains_key(&(digests[0], name())));
        assert!(!jars.cache.contains_key(&(digests[1], name())));
        assert!(jars.cache.weighted_size() <= 100_000);
    }
}
