use std::num::NonZeroUsize;

use std::sync::atomic::AtomicUsize;

use futures_util::FutureExt;

use super::entry::SessionEntry;
use super::*;
use crate::config::Carriers;
use crate::handover::peer::Peer;
use crate::identity::session_key::SessionKey;
use crate::identity::{AppId, OpenId};
use crate::telemetry::metrics::RestoredFrom;

pub struct Store {
    pub sessions: Sessions,
    pub clock: Clock,
    metrics: Arc<Metrics>,
}

impl Store {
    pub fn new(capacity: u64) -> Self {
        Self::limited(capacity, None)
    }

    fn limited(capacity: u64, max_per_user: Option<NonZeroUsize>) -> Self {
        let section = SessionSection {
            ttl: Duration::from_secs(100),
            idle_timeout: Duration::from_secs(10),
            capacity,
            carriers: Carriers { header: true, bearer: true, cookie: false },
            header: http::HeaderName::from_static("x-3rd-session"),
            max_per_user,
            seal_keys: Vec::new(),
            jar_capacity: 1 << 20,
            shared: None,
            snapshot: None,
        };
        let clock = Clock::manual();
        let metrics = Metrics::new().unwrap();
        let sessions = Sessions::new(&section, clock.clone(), metrics.clone(), Peer::default(), 0);
        Self { sessions, clock, metrics }
    }

    pub async fn login(&self) -> TokenDigest {
        let identity = Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse("o1").unwrap(),
            unionid: None,
            user_id: None,
        };
        let client = IpAddr::from([192, 0, 2, 1]);
        self.sessions.create(identity, client, None).await.unwrap().0.digest()
    }

    async fn is_live(&self, digest: &TokenDigest) -> bool {
        self.sessions.get(digest).await.unwrap().is_some()
    }

    fn metric(&self, line: &str) -> u64 {
        self.sessions.maintain();
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let value =
            text.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("{line}"));
        value.trim().parse().unwrap()
    }
}

#[tokio::test]
async fn a_session_that_is_used_lives_until_its_absolute_end() {
    let store = Store::new(100);
    let digest = store.login().await;
    for _ in 0..11 {
        store.clock.advance(Duration::from_secs(9));
        assert!(store.is_live(&digest).await);
    }
    store.clock.advance(Duration::from_millis(999));
    assert!(store.is_live(&digest).await);
    store.clock.advance(Duration::from_millis(1));
    assert!(!store.is_live(&digest).await);
    assert_eq!(store.metric("wxgate_sessions_removed_total{cause=\"expired\"}"), 1);
}

#[tokio::test]
async fn a_session_that_is_not_used_ends_after_the_idle_timeout() {
    let store = Store::new(100);
    let digest = store.login().await;
    store.clock.advance(Duration::from_secs(10));
    assert!(!store.is_live(&digest).await);
}

#[tokio::test]
async fn a_revoked_session_is_removed_and_counted_once() {
    let store = Store::new(100);
    let digest = store.login().await;
    store.sessions.revoke(&digest).await.unwrap();
    store.sessions.revoke(&digest).await.unwrap();
    assert!(!store.is_live(&digest).await);
    assert_eq!(store.metric("wxgate_sessions_removed_total{cause=\"revoked\"}"), 1);
    assert_eq!(store.metric("wxgate_sessions "), 0);
}

#[tokio::test]
async fn a_full_store_accepts_new_logins_and_evicts_the_least_recently_used() {
    let store = Store::new(100);
    let first = store.login().await;
    let mut others = Vec::new();
    for _ in 0..99 {
        others.push(store.login().await);
    }
    store.sessions.maintain();
    // Used again, so that the second oldest is evicted.
    assert!(store.is_live(&first).await);
    store.sessions.maintain();
    let newest = store.login().await;
    store.sessions.maintain();
    assert!(store.is_live(&newest).await);
    assert!(store.is_live(&first).await);
    assert!(!store.is_live(&others[0]).await);
    assert_eq!(store.metric("wxgate_sessions_removed_total{cause=\"evicted\"}"), 1);
    assert_eq!(store.metric("wxgate_sessions "), 100);
}

#[tokio::test]
async fn created_minus_removed_equals_the_number_of_sessions() {
    let store = Store::new(50);
    for round in 0..500u64 {
        let digest = store.login().await;
        match round % 3 {
            0 => store.sessions.revoke(&digest).await.unwrap(),
            1 => store.clock.advance(Duration::from_secs(1)),
            _ => {}
        }
    }
    store.sessions.maintain();
    let created = store.metric("wxgate_sessions_created_total");
    let removed: u64 = ["expired", "revoked", "evicted", "replaced"]
        .iter()
        .map(|cause| store.metric(&format!("wxgate_sessions_removed_total{{cause=\"{cause}\"}}")))
        .sum();
    let Backend::Memory(memory) = &store.sessions.backend else { unreachable!() };
    assert_eq!(created, 500);
    assert_eq!(created - removed, memory.len());
}

/// Blocks a user and revokes its sessions, as an operator does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_session_is_left_by_a_login_while_its_user_is_being_blocked() {
    let store = Arc::new(Store::new(1_000_000));
    let identity = |number: u32| Identity {
        app_id: AppId::parse("wx1").unwrap(),
        openid: OpenId::parse(&format!("o{number}")).unwrap(),
        unionid: None,
        user_id: None,
    };
    for number in 0..5000 {
        let start = Arc::new(tokio::sync::Barrier::new(2));
        let (sessions, begin) = (store.sessions.clone(), start.clone());
        let login = tokio::spawn(async move {
            begin.wait().await;
            drop(sessions.create(identity(number), IpAddr::from([192, 0, 2, 1]), None).await);
        });
        let (sessions, user) = (store.sessions.clone(), identity(number).user());
        let block = tokio::spawn(async move {
            start.wait().await;
            sessions.block(&user.clone().into(), Duration::from_secs(1)).await.unwrap();
            for session in sessions.of_user(&user).await.unwrap() {
                sessions.revoke(session.digest()).await.unwrap();
            }
        });
        login.await.unwrap();
        block.await.unwrap();
        let left = store.sessions.of_user(&identity(number).user()).await.unwrap();
        assert!(left.is_empty(), "round {number}");
    }
}

fn identity(number: usize) -> Identity {
    Identity {
        app_id: AppId::parse("wx1").unwrap(),
        openid: OpenId::parse(&format!("o{number}")).unwrap(),
        unionid: None,
        user_id: None,
    }
}

impl Store {
    /// Logs a user in with a key, if it gets one.
    async fn login_with(&self, user: usize, key: Option<u8>) -> TokenDigest {
        let login = key.map(|number| LoginKey {
            session_key: SessionKey::from_bytes(&[number; 16]),
            logged_in_at_millis: self.clock.now_millis(),
        });
        let client = IpAddr::from([192, 0, 2, 1]);
        self.sessions.create(identity(user), client, login).await.unwrap().0.digest()
    }

    fn memory(&self) -> &memory::Memory {
        let Backend::Memory(memory) = &self.sessions.backend else { unreachable!() };
        memory
    }
}

/// Logs users in and ends their sessions by all causes at once, in threads.
#[test]
fn session_keys_are_held_exactly_as_long_as_their_user_has_a_session() {
    const USERS: usize = 4;
    for round in 0..200 {
        // Half of the rounds evict sessions.
        let capacity = if round % 2 == 0 { 1_000 } else { 3 };
        let store = Store::limited(capacity, NonZeroUsize::new(2));
        store.sessions.keep_session_keys(true);
        std::thread::scope(|scope| {
            for thread in 0..4_u8 {
                let store = &store;
                scope.spawn(move || {
                    let mut digests = Vec::new();
                    for step in 0..12 {
                        let user = (usize::from(thread) + step) % USERS;
                        let login = store.login_with(user, Some(thread + 1));
                        digests.push(login.now_or_never().unwrap());
                        if step % 3 != 0 {
                            store.memory().remove(&digests.swap_remove(0), Removal::Revoked);
                        }
                        if step % 5 == 0 {
                            store.sessions.maintain();
                        }
                    }
                    if thread % 2 == 0 {
                        for digest in &digests {
                            store.memory().remove(digest, Removal::Expired);
                        }
                    }
                });
            }
        });
        // What moka has still to report.
        store.memory().len();
        let of_user = |number| store.memory().of_user(&identity(number).user()).len();
        let with_sessions = (0..USERS).filter(|user| of_user(*user) > 0);
        for user in 0..USERS {
            let keys = store.memory().session_keys(&identity(user).user(), |_| true);
            assert_eq!(!keys.is_empty(), of_user(user) > 0, "round {round}");
        }
        assert_eq!(store.memory().users_with_keys(), with_sessions.count(), "round {round}");
        for user in 0..USERS {
            for session in store.memory().of_user(&identity(user).user()) {
                store.memory().remove(session.digest(), Removal::Revoked);
            }
        }
        assert_eq!(store.memory().users_with_keys(), 0, "round {round}");
    }
}

#[tokio::test]
async fn session_keys_are_removed_with_evicted_and_expired_sessions() {
    let store = Store::new(50);
    store.sessions.keep_session_keys(true);
    for user in 0..500 {
        store.login_with(user, Some(1)).await;
    }
    assert_eq!(store.memory().len(), 50);
    assert_eq!(store.memory().users_with_keys(), 50);
    store.clock.advance(Duration::from_secs(10));
    for user in 0..500 {
        for session in store.memory().of_user(&identity(user).user()) {
            assert!(!store.is_live(session.digest()).await);
        }
    }
    assert_eq!(store.memory().users_with_keys(), 0);
}

#[tokio::test]
async fn session_keys_are_wiped_when_they_are_not_kept_any_more() {
    let store = Store::new(50);
    store.login_with(1, Some(1)).await;
    assert_eq!(store.memory().users_with_keys(), 0, "off at first");
    store.sessions.keep_session_keys(true);
    store.login_with(1, Some(1)).await;
    assert_eq!(store.memory().users_with_keys(), 1);
    store.sessions.keep_session_keys(false);
    assert_eq!(store.memory().users_with_keys(), 0);
}

/// As for frames of a WebSocket.
#[tokio::test]
async fn touching_a_session_keeps_it_like_a_lookup() {
    let store = Store::new(3);
    let held = store.login().await;
    let session = store.sessions.get(&held).await.unwrap().unwrap();
    for _ in 0..8 {
        // After ten seconds without a use it would expire.
        store.clock.advance(Duration::from_secs(4));
        store.sessions.touch(&session);
        store.login().await;
        store.sessions.maintain();
    }
    assert!(store.sessions.is_live(&session));
    assert!(store.is_live(&held).await, "others were pushed out, this one was not");
}

/// Sessions of one user come in at the same time in several threads.
#[tokio::test]
async fn no_user_has_more_sessions_than_allowed_when_sessions_come_in() {
    const USERS: usize = 10_000;
    let store = Store::limited(1 << 20, NonZeroUsize::new(1));
    let restoring = store.sessions.begin_restoring(RestoredFrom::Upgrade);
    let given = AtomicUsize::new(0);
    let next = || {
        let number = given.fetch_add(1, Ordering::Relaxed);
        let mut incoming = Incoming::default();
        incoming.add(Entry::Session(session_entry(number / 2, number)));
        Ok::<_, ()>((number < 2 * USERS).then_some(incoming))
    };
    restoring.insert_all(next).unwrap();
    restoring.finish().unwrap();
    for number in 0..USERS {
        let user = session_entry(number, 0).identity.user();
        let sessions = store.sessions.of_user(&user).await.unwrap();
        assert_eq!(sessions.len(), 1, "{number}");
        assert_eq!(sessions[0].created_at_millis, 2 * number as u64 + 1, "{number}");
    }
    assert_eq!(store.metric("wxgate_sessions "), USERS as u64);
    let replaced = store.metric("wxgate_sessions_removed_total{cause=\"replaced\"}");
    assert_eq!(replaced, USERS as u64);
}

fn session_entry(user: usize, number: usize) -> SessionEntry {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    SessionEntry {
        digest: TokenDigest::from_bytes(digest),
        identity: Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse(&format!("o{user}")).unwrap(),
            unionid: None,
            user_id: None,
        },
        client: IpAddr::from([192, 0, 2, 1]),
        created: number as u64,
        ends: u64::MAX,
        used: 0,
    }
}
