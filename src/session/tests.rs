use super::*;
use crate::config::Carriers;
use crate::identity::{AppId, OpenId};

struct Store {
    sessions: Sessions,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Store {
    fn new(capacity: u64) -> Self {
        let section = SessionSection {
            ttl: Duration::from_secs(100),
            idle_timeout: Duration::from_secs(10),
            capacity,
            carriers: Carriers { header: true, bearer: true },
            header: http::HeaderName::from_static("x-3rd-session"),
            max_per_user: None,
            shared: None,
        };
        let clock = Clock::manual();
        let metrics = Metrics::new().unwrap();
        let sessions = Sessions::new(&section, clock.clone(), metrics.clone());
        Self { sessions, clock, metrics }
    }

    async fn login(&self) -> TokenDigest {
        let identity = Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse("o1").unwrap(),
            unionid: None,
        };
        let client = IpAddr::from([192, 0, 2, 1]);
        self.sessions.create(identity, client).await.unwrap().0.digest()
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
    };
    for number in 0..5000 {
        let start = Arc::new(tokio::sync::Barrier::new(2));
        let (sessions, begin) = (store.sessions.clone(), start.clone());
        let login = tokio::spawn(async move {
            begin.wait().await;
            drop(sessions.create(identity(number), IpAddr::from([192, 0, 2, 1])).await);
        });
        let (sessions, user) = (store.sessions.clone(), identity(number).user());
        let block = tokio::spawn(async move {
            start.wait().await;
            sessions.block(&user, Duration::from_secs(1)).await.unwrap();
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
