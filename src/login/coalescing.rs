//! One code, one exchange, one answer.
//!
//! A code is good once, and phones send it again: two pages log in at once, or an answer is
//! lost on the way. Logins with the same code share one exchange, which nobody's leaving
//! ends, and for `login.replay_window` after it a repeat gets the very same answer. What may
//! come out otherwise when it is tried again is not remembered. Kept in memory only, under
//! the digest of app and code; tokens are wiped when they are dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::identity::OpenId;
use crate::identity::token::SessionToken;
use crate::message::rejection::Rejection;
use crate::wechat::{ErrCode, WeChatError};

/// Codes remembered. When there are as many, the least recently used is forgotten, and a
/// repeat of it is an exchange of its own.
const CAPACITY: u64 = 100_000;

/// What a login gives.
pub struct Grant {
    pub token: SessionToken,
    pub expires_in: Duration,
    /// Whose session it is, for the log.
    pub openid: OpenId,
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub rejection: Rejection,
    /// What WeChat reported, if it did.
    pub errcode: Option<ErrCode>,
    /// Whose login it was, if WeChat said so.
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

/// An app and a code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    pub fn of(app_id: &str, code: &str) -> Self {
        let mut digest = Sha256::new();
        // No app id holds a zero byte.
        digest.update(app_id);
        digest.update([0]);
        digest.update(code);
        Self(digest.finalize().into())
    }
}

/// What became of the codes of late.
#[derive(Clone)]
pub struct Replays {
    flights: Cache<Key, Arc<Flight>>,
    window: Duration,
    longest: Duration,
    clock: Clock,
}

/// An exchange, under way or over.
struct Flight {
    outcome: watch::Sender<Option<Outcome>>,
    /// On the clock, in milliseconds; beyond it the outcome is nobody's any more.
    kept_until: AtomicU64,
}

/// How a login came to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By an exchange of its own.
    Own,
    /// By one that was under way.
    Shared,
    /// It is the answer of an earlier login.
    Repeated,
}

impl Replays {
    /// `longest` is how long an exchange may take.
    fn new(window: Duration, longest: Duration, clock: Clock) -> Self {
        Self::with_capacity(CAPACITY, window, longest, clock)
    }

    fn with_capacity(capacity: u64, window: Duration, longest: Duration, clock: Clock) -> Self {
        let flights = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Freed { under_way: longest * 2, over: window })
            .build();
        Self { flights, window, longest, clock }
    }

    /// Those from before a reload where the times have not changed, else new ones.
    pub fn carried_over(
        previous: Option<&Self>,
        window: Duration,
        longest: Duration,
        clock: &Clock,
    ) -> Self {
        let same = previous.filter(|known| (known.window, known.longest) == (window, longest));
        same.cloned().unwrap_or_else(|| Self::new(window, longest, clock.clone()))
    }

    /// The outcome for a code; `exchange` is run where there is none yet. It runs to its end
    /// whoever still waits for it.
    pub async fn share<F>(&self, key: Key, exchange: impl FnOnce() -> F) -> (Outcome, Source)
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let mut source = Source::Shared;
        let now = self.clock.now_millis();
        let joined = self.flights.entry(key).and_compute_with(|entry| match entry {
            Some(entry) if now < entry.value().kept_until.load(Ordering::Acquire) => {
                if entry.value().outcome.borrow().is_some() {
                    source = Source::Repeated;
                }
                Op::Nop
            }
            _ => {
                source = Source::Own;
                Op::Put(self.start(key, exchange()))
            }
        });
        let (CompResult::Inserted(entry)
        | CompResult::ReplacedWith(entry)
        | CompResult::Unchanged(entry)) = joined
        else {
            return (Err(Rejection::InternalError.into()), source);
        };
        let mut outcome = entry.into_value().outcome.subscribe();
        let landed = outcome.wait_for(Option::is_some).await;
        let outcome = landed.ok().and_then(|outcome| outcome.clone());
        (outcome.unwrap_or(Err(Rejection::InternalError.into())), source)
    }

    fn start<F>(&self, key: Key, exchange: F) -> Arc<Flight>
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (outcome, kept_until) = (watch::Sender::new(None), AtomicU64::new(u64::MAX));
        let flight = Arc::new(Flight { outcome, kept_until });
        let landing = Landing { key, flight: flight.clone(), replays: self.clone() };
        tokio::spawn(async move { landing.land(exchange.await) });
        flight
    }

    /// Frees what is over. Called every second.
    pub fn maintain(&self) {
        self.flights.run_pending_tasks();
    }
}

/// The end of an exchange; there is one even if it panics.
struct Landing {
    key: Key,
    flight: Arc<Flight>,
    replays: Replays,
}

impl Landing {
    fn land(&self, outcome: Outcome) {
        let is_final = match &outcome {
            Ok(_) => true,
            Err(failure) => matches!(
                failure.rejection,
                Rejection::InvalidCode | Rejection::UserBlocked | Rejection::LoginRefused
            ),
        };
        let kept = if is_final { self.replays.window } else { Duration::ZERO };
        let kept_until = (self.replays.clock.now() + kept).as_millis();
        let kept_until = u64::try_from(kept_until).unwrap_or(u64::MAX);
        self.flight.kept_until.store(kept_until, Ordering::Release);
        self.flight.outcome.send_replace(Some(outcome));
        self.replays.flights.entry(self.key).and_compute_with(|entry| match entry {
            // Another may have taken its place.
            Some(entry) if !Arc::ptr_eq(entry.value(), &self.flight) => Op::Nop,
            _ if kept.is_zero() => Op::Remove,
            _ => Op::Put(self.flight.clone()),
        });
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.flight.outcome.borrow().is_none() {
            self.land(Err(Rejection::InternalError.into()));
        }
    }
}

/// When memory is freed, in real time.
struct Freed {
    under_way: Duration,
    over: Duration,
}

impl Expiry<Key, Arc<Flight>> for Freed {
    fn expire_after_create(&self, _: &Key, _: &Arc<Flight>, _: Instant) -> Option<Duration> {
        Some(self.under_way)
    }

    fn expire_after_update(
        &self,
        _: &Key,
        flight: &Arc<Flight>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        let is_over = flight.outcome.borrow().is_some();
        Some(if is_over { self.over } else { self.under_way })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    fn replays(capacity: u64) -> (Replays, Clock) {
        let clock = Clock::manual();
        (Replays::with_capacity(capacity, WINDOW, Duration::from_secs(60), clock.clone()), clock)
    }

    fn grant() -> Arc<Grant> {
        let openid = OpenId::parse("o1").unwrap();
        Arc::new(Grant { token: SessionToken::generate(), expires_in: WINDOW, openid })
    }

    fn key(code: usize) -> Key {
        Key::of("wx1", &code.to_string())
    }

    fn token(outcome: &Outcome) -> String {
        outcome.as_ref().unwrap().token.expose().to_owned()
    }

    #[tokio::test]
    async fn a_repeat_gets_the_same_answer_until_the_window_is_over() {
        let (replays, clock) = replays(10);
        let (first, source) = replays.share(key(1), || async { Ok(grant()) }).await;
        assert_eq!(source, Source::Own);
        clock.advance(Duration::from_millis(9_999));
        let (second, source) = replays.share(key(1), || async { Ok(grant()) }).await;
        assert_eq!((token(&second), source), (token(&first), Source::Repeated));
        clock.advance(Duration::from_millis(1));
        let (third, source) = replays.share(key(1), || async { Ok(grant()) }).await;
        assert_eq!(source, Source::Own);
        assert_ne!(token(&third), token(&first));
    }

    #[tokio::test]
    async fn only_what_cannot_come_out_otherwise_is_remembered() {
        let (replays, _) = replays(100);
        for (number, (rejection, expected)) in [
            (Rejection::InvalidCode, Source::Repeated),
            (Rejection::UserBlocked, Source::Repeated),
            (Rejection::LoginRefused, Source::Repeated),
            (Rejection::WeChatBusy { retry_after: 1 }, Source::Own),
            (Rejection::RateLimited { retry_after: 1 }, Source::Own),
            (Rejection::WeChatTimeout { retry_after: 1 }, Source::Own),
            (Rejection::WeChatRejected, Source::Own),
            (Rejection::StoreUnavailable, Source::Own),
        ]
        .into_iter()
        .enumerate()
        {
            let first = Failure::from(rejection.clone());
            replays.share(key(number), || async { Err(first) }).await.0.err().unwrap();
            let (_, source) = replays.share(key(number), || async { Ok(grant()) }).await;
            assert_eq!(source, expected, "{rejection:?}");
        }
    }

    #[tokio::test]
    async fn who_leaves_does_not_end_the_exchange_and_who_stays_shares_it() {
        let (replays, _) = replays(10);
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let left = {
            let replays = replays.clone();
            tokio::spawn(async move {
                replays
                    .share(key(1), || async {
                        drop(released.await);
                        Ok(grant())
                    })
                    .await
            })
        };
        while replays.flights.get(&key(1)).is_none() {
            tokio::task::yield_now().await;
        }
        left.abort();
        let stays = {
            let replays = replays.clone();
            tokio::spawn(async move { replays.share(key(1), || async { Ok(grant()) }).await.1 })
        };
        tokio::task::yield_now().await;
        release.send(()).unwrap();
        assert_eq!(stays.await.unwrap(), Source::Shared);
    }

    #[tokio::test]
    async fn an_exchange_that_panics_is_a_fault_and_forgotten() {
        let (replays, _) = replays(10);
        let panics = || async { panic!("a fault") };
        let (outcome, _) = replays.share(key(1), panics).await;
        assert_eq!(outcome.err().unwrap().rejection, Rejection::InternalError);
        assert_eq!(replays.share(key(1), || async { Ok(grant()) }).await.1, Source::Own);
    }

    #[tokio::test]
    async fn no_more_codes_are_remembered_than_may_be() {
        let (replays, _) = replays(100);
        for code in 0..1000 {
            replays.share(key(code), || async { Ok(grant()) }).await.0.unwrap();
        }
        replays.maintain();
        assert_eq!(replays.flights.entry_count(), 100);
        assert_eq!(replays.share(key(999), || async { Ok(grant()) }).await.1, Source::Repeated);
        assert_eq!(replays.share(key(0), || async { Ok(grant()) }).await.1, Source::Own);
    }

    #[test]
    fn apps_do_not_share_codes() {
        assert!(Key::of("wx1", "a") != Key::of("wx2", "a"));
        assert!(Key::of("wx1", "1a") != Key::of("wx11", "a"));
    }
}
