//! Coalesces logins with one code into one exchange and one response.
//!
//! A code can be used once, but phones send it again: two pages log in at once, or a response is
//! lost. Logins with the same code share one exchange, which continues when a client disconnects.
//! For `login.replay_window` after it, a login with the code gets the same response. Outcomes that
//! may differ on the next attempt are not kept. Outcomes are kept in memory only, under the digest
//! of app, state and code; tokens are wiped when they are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::clock::{Clock, millis};
use crate::identity::token::SessionToken;
use crate::identity::{OpenId, UserId};
use crate::message::rejection::Rejection;
use crate::wechat::{ErrCode, WeChatError};

/// How many codes are kept. Beyond that the least recently used one is dropped, and a repeat of it
/// is exchanged again.
const CAPACITY: u64 = 100_000;

/// The result of a successful login.
pub struct Grant {
    pub token: SessionToken,
    pub expires_in: Duration,
    /// The user, for the log.
    pub openid: OpenId,
    pub user_id: Option<UserId>,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub rejection: Rejection,
    /// The errcode that WeChat reported, if any.
    pub errcode: Option<ErrCode>,
    /// The user, if WeChat returned one.
    pub openid: Option<OpenId>,
}

impl From<Rejection> for Failure {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, errcode: None, openid: None }
    }
}

impl From<&WeChatError> for Failure {
    fn from(error: &WeChatError) -> Self {
        Self { rejection: error.into(), errcode: error.errcode(), openid: None }
    }
}

pub type Outcome = Result<Arc<Grant>, Failure>;

/// The digest of an app id, a state and a code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// `state` is that of a login by redirect, else empty.
    pub fn of(app_id: &str, state: &str, code: &str) -> Self {
        let mut digest = Sha256::new();
        // Neither app ids nor states contain a zero byte.
        for part in [app_id, state] {
            digest.update(part);
            digest.update([0]);
        }
        digest.update(code);
        Self(digest.finalize().into())
    }
}

/// The exchanges in flight, and the recent outcomes.
#[derive(Clone)]
pub struct Coalescing {
    exchanges: Cache<Key, Arc<CoalescedExchange>>,
    window: Duration,
    longest: Duration,
    clock: Clock,
}

/// An exchange, in flight or completed.
struct CoalescedExchange {
    outcome: watch::Sender<Option<Outcome>>,
    /// In milliseconds of the clock. After that the outcome has expired.
    kept_until: AtomicU64,
}

/// Whether a login shared the exchange of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coalesced {
    /// It had its own exchange.
    No,
    /// It waited for an exchange in flight.
    InFlight,
    /// It got the outcome of a completed exchange.
    Cached,
}

impl Coalescing {
    /// `longest` is the longest time that an exchange may take.
    fn new(window: Duration, longest: Duration, clock: Clock) -> Self {
        Self::with_capacity(CAPACITY, window, longest, clock)
    }

    fn with_capacity(capacity: u64, window: Duration, longest: Duration, clock: Clock) -> Self {
        let exchanges = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Retention { in_flight: longest * 2, completed: window })
            .build();
        Self { exchanges, window, longest, clock }
    }

    /// The one from before a reload if the times have not changed, else a new one.
    pub fn carried_over(
        previous: Option<&Self>,
        window: Duration,
        longest: Duration,
        clock: &Clock,
    ) -> Self {
        let same =
            previous.filter(|previous| (previous.window, previous.longest) == (window, longest));
        same.cloned().unwrap_or_else(|| Self::new(window, longest, clock.clone()))
    }

    /// The outcome for a code. Runs `exchange` if there is none yet; the exchange runs to its end
    /// even if all clients disconnect.
    pub async fn share<F>(&self, key: Key, exchange: impl FnOnce() -> F) -> (Outcome, Coalesced)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut coalesced = Coalesced::InFlight;
        let now = self.clock.now_millis();
        let joined = self.exchanges.entry(key).and_compute_with(|entry| match entry {
            Some(entry) if now < entry.value().kept_until.load(Ordering::Acquire) => {
                if entry.value().outcome.borrow().is_some() {
                    coalesced = Coalesced::Cached;
                }
                Op::Nop
            }
            _ => {
                coalesced = Coalesced::No;
                Op::Put(self.start(key, exchange()))
            }
        });
        let (CompResult::Inserted(entry)
        | CompResult::ReplacedWith(entry)
        | CompResult::Unchanged(entry)) = joined
        else {
            return (Err(Rejection::InternalError.into()), coalesced);
        };
        let mut outcome = entry.into_value().outcome.subscribe();
        let completed = outcome.wait_for(Option::is_some).await;
        let outcome = completed.ok().and_then(|outcome| outcome.clone());
        (outcome.unwrap_or(Err(Rejection::InternalError.into())), coalesced)
    }

    fn start<F>(&self, key: Key, exchange: F) -> Arc<CoalescedExchange>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (outcome, kept_until) = (watch::Sender::new(None), AtomicU64::new(u64::MAX));
        let coalesced = Arc::new(CoalescedExchange { outcome, kept_until });
        let coalescing = self.clone();
        let completion = Completion { key, exchange: coalesced.clone(), coalescing };
        tokio::spawn(async move { completion.complete(exchange.await) });
        coalesced
    }

    /// Frees expired outcomes. Called every second.
    pub fn maintain(&self) {
        self.exchanges.run_pending_tasks();
    }
}

/// Completes an exchange, even if it panics.
struct Completion {
    key: Key,
    exchange: Arc<CoalescedExchange>,
    coalescing: Coalescing,
}

impl Completion {
    fn complete(&self, outcome: Outcome) {
        let is_final = match &outcome {
            Ok(_) => true,
            Err(failure) => matches!(
                failure.rejection,
                Rejection::InvalidCode
                    | Rejection::UserBlocked
                    | Rejection::LoginRefused(_)
                    | Rejection::SnapshotUser
            ),
        };
        let kept = if is_final { self.coalescing.window } else { Duration::ZERO };
        let kept_until = millis(self.coalescing.clock.now() + kept);
        self.exchange.kept_until.store(kept_until, Ordering::Release);
        self.exchange.outcome.send_replace(Some(outcome));
        self.coalescing.exchanges.entry(self.key).and_compute_with(|entry| match entry {
            // Another exchange may have replaced it.
            Some(entry) if !Arc::ptr_eq(entry.value(), &self.exchange) => Op::Nop,
            _ if kept.is_zero() => Op::Remove,
            _ => Op::Put(self.exchange.clone()),
        });
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if self.exchange.outcome.borrow().is_none() {
            self.complete(Err(Rejection::InternalError.into()));
        }
    }
}

/// When memory is freed, in real time.
struct Retention {
    in_flight: Duration,
    completed: Duration,
}

impl Expiry<Key, Arc<CoalescedExchange>> for Retention {
    fn expire_after_create(
        &self,
        _: &Key,
        _: &Arc<CoalescedExchange>,
        _: Instant,
    ) -> Option<Duration> {
        Some(self.in_flight)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        exchange: &Arc<CoalescedExchange>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        let is_completed = exchange.outcome.borrow().is_some();
        Some(if is_completed { self.completed } else { self.in_flight })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn coalescing(capacity: u64) -> (Coalescing, Clock) {
        let clock = Clock::manual();
        (Coalescing::with_capacity(capacity, WINDOW, Duration::from_secs(60), clock.clone()), clock)
    }

    fn grant() -> Arc<Grant> {
        let openid = OpenId::parse("o1").unwrap();
        let token = SessionToken::generate();
        Arc::new(Grant { token, expires_in: WINDOW, openid, user_id: None })
    }

    fn key(code: usize) -> Key {
        Key::of("wx1", "", &code.to_string())
    }

    fn token(outcome: &Outcome) -> String {
        outcome.as_ref().unwrap().token.expose().to_owned()
    }

    #[tokio::test]
    async fn a_repeat_gets_the_same_response_within_the_window() {
        let (coalescing, clock) = coalescing(10);
        let (first, coalesced) = coalescing.share(key(1), || async { Ok(grant()) }).await;
        assert_eq!(coalesced, Coalesced::No);
        clock.advance(Duration::from_millis(9_999));
        let (second, coalesced) = coalescing.share(key(1), || async { Ok(grant()) }).await;
        assert_eq!((token(&second), coalesced), (token(&first), Coalesced::Cached));
        clock.advance(Duration::from_millis(1));
        let (third, coalesced) = coalescing.share(key(1), || async { Ok(grant()) }).await;
        assert_eq!(coalesced, Coalesced::No);
        assert_ne!(token(&third), token(&first));
    }

    #[tokio::test]
    async fn only_final_outcomes_are_cached() {
        let (coalescing, _) = coalescing(100);
        for (number, (rejection, expected)) in [
            (Rejection::InvalidCode, Coalesced::Cached),
            (Rejection::UserBlocked, Coalesced::Cached),
            (Rejection::LoginRefused(None), Coalesced::Cached),
            (Rejection::LoginRefused(Some("no".into())), Coalesced::Cached),
            (Rejection::WeChatBusy { retry_after: 1 }, Coalesced::No),
            (Rejection::RateLimited { retry_after: 1 }, Coalesced::No),
            (Rejection::WeChatTimeout { retry_after: 1 }, Coalesced::No),
            (Rejection::LoginUnavailable { retry_after: 1 }, Coalesced::No),
            (Rejection::WeChatRejected, Coalesced::No),
            (Rejection::StoreUnavailable, Coalesced::No),
        ]
        .into_iter()
        .enumerate()
        {
            let first = Failure::from(rejection.clone());
            coalescing.share(key(number), || async { Err(first) }).await.0.err().unwrap();
            let (_, coalesced) = coalescing.share(key(number), || async { Ok(grant()) }).await;
            assert_eq!(coalesced, expected, "{rejection:?}");
        }
    }

    #[tokio::test]
    async fn an_exchange_continues_when_its_client_disconnects() {
        let (coalescing, _) = coalescing(10);
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let left = {
            let coalescing = coalescing.clone();
            tokio::spawn(async move {
                coalescing
                    .share(key(1), || async {
                        drop(released.await);
                        Ok(grant())
                    })
                    .await
            })
        };
        while coalescing.exchanges.get(&key(1)).is_none() {
            tokio::task::yield_now().await;
        }
        left.abort();
        let stays = {
            let coalescing = coalescing.clone();
            tokio::spawn(async move { coalescing.share(key(1), || async { Ok(grant()) }).await.1 })
        };
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        assert_eq!(stays.await.unwrap(), Coalesced::InFlight);
    }

    #[tokio::test]
    async fn a_panic_of_an_exchange_is_an_internal_error_and_not_cached() {
        let (coalescing, _) = coalescing(10);
        let panics = || async { panic!("a fault") };
        let (outcome, _) = coalescing.share(key(1), panics).await;
        assert_eq!(outcome.err().unwrap().rejection, Rejection::InternalError);
        assert_eq!(coalescing.share(key(1), || async { Ok(grant()) }).await.1, Coalesced::No);
    }

    #[tokio::test]
    async fn the_number_of_cached_codes_is_limited() {
        let (coalescing, _) = coalescing(100);
        for code in 0..1000 {
            coalescing.share(key(code), || async { Ok(grant()) }).await.0.unwrap();
        }
        coalescing.maintain();
        assert_eq!(coalescing.exchanges.entry_count(), 100);
        assert_eq!(coalescing.share(key(999), || async { Ok(grant()) }).await.1, Coalesced::Cached);
        assert_eq!(coalescing.share(key(0), || async { Ok(grant()) }).await.1, Coalesced::No);
    }

    #[test]
    fn apps_do_not_share_codes() {
        assert!(Key::of("wx1", "", "a") != Key::of("wx2", "", "a"));
        assert!(Key::of("wx1", "", "1a") != Key::of("wx11", "", "a"));
        assert!(Key::of("wx1", "s", "a") != Key::of("wx1", "t", "a"));
    }
}
