//! Coalesces logins with one code into one exchange and one response.
//!
//! A code can be used once, but phones send it again: two pages log in at once, or a response is
//! lost. Logins with the same code share one exchange, which continues when a client disconnects.
//! For `login.replay_window` after it, a login with the code gets the same response. Outcomes that
//! may differ on the next attempt are not kept. Outcomes are kept in memory only, under the digest
//! of app, state and code; tokens are wiped when they are dropped.
//!
//! A code that another process has exchanged, or is about to, is rejected here (`InvalidCode`) for
//! as long as that process would repeat its response: the phone then gets a new code.

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
use crate::handover::claims::{Claim, Claims, CodeKind, Wanted};
use crate::handover::codes::{read_codes, write_codes};
use crate::handover::fields::{Malformed, Writer};
use crate::handover::peer::Peer;
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
    claims: Claims,
    clock: Clock,
}

/// An exchange, in flight or completed.
struct CoalescedExchange {
    outcome: watch::Sender<Option<Outcome>>,
    /// In milliseconds of the clock. After that the outcome has expired.
    kept_until: AtomicU64,
    claim: Claim,
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
    fn new(window: Duration, longest: Duration, peer: Peer, clock: Clock) -> Self {
        Self::with_capacity(CAPACITY, window, longest, peer, clock)
    }

    fn with_capacity(
        capacity: u64,
        window: Duration,
        longest: Duration,
        peer: Peer,
        clock: Clock,
    ) -> Self {
        let exchanges = Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(Retention { in_flight: longest * 2, completed: window })
            .build();
        let claims = Claims::new(CodeKind::Login, peer);
        Self { exchanges, window, longest, claims, clock }
    }

    /// The one from before a reload if the times have not changed, else a new one.
    pub fn carried_over(
        previous: Option<&Self>,
        window: Duration,
        longest: Duration,
        peer: &Peer,
        clock: &Clock,
    ) -> Self {
        let same =
            previous.filter(|previous| (previous.window, previous.longest) == (window, longest));
        same.cloned().unwrap_or_else(|| Self::new(window, longest, peer.clone(), clock.clone()))
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
        let coalesced =
            Arc::new(CoalescedExchange { outcome, kept_until, claim: Claim::default() });
        let coalescing = self.clone();
        let completion = Completion { key, exchange: coalesced.clone(), coalescing };
        tokio::spawn(async move {
            let Completion { exchange: own, coalescing, .. } = &completion;
            if coalescing.claims.claim(&key.0, &own.claim).await {
                completion.complete(exchange.await);
            } else {
                completion.complete(Err(Rejection::InvalidCode.into()));
            }
        });
        coalesced
    }

    /// Whether the other process may exchange a code. If it may, this process does not.
    pub fn give(&self, wanted: &Wanted) -> bool {
        let now = self.clock.now_millis();
        let mut is_given = true;
        self.exchanges.entry(Key(wanted.digest)).and_compute_with(|entry| {
            if let Some(entry) = entry
                && now < entry.value().kept_until.load(Ordering::Acquire)
            {
                is_given = self.claims.give(&entry.value().claim, wanted);
                let is_under_way = entry.value().outcome.borrow().is_none();
                if !is_given || is_under_way {
                    return Op::Nop;
                }
            }
            Op::Put(Arc::new(CoalescedExchange::theirs(self.theirs_until(now))))
        });
        is_given
    }

    /// How long a code counts as that of the other process, which exchanges it now.
    fn theirs_until(&self, now: u64) -> u64 {
        now.saturating_add(millis(self.longest + self.window))
    }

    /// Gives the codes of this process to another one, in pieces of at most 256 KiB.
    pub fn export(&self, give: impl FnMut(&mut Writer)) {
        let now = self.clock.now_millis();
        let mut codes = Vec::new();
        for (key, exchange) in &self.exchanges {
            let until = exchange.kept_until.load(Ordering::Acquire).min(self.theirs_until(now));
            if now < until && !exchange.claim.is_theirs() {
                codes.push((key.0, until));
            }
        }
        write_codes(&codes, give);
    }

    /// Takes the codes of another process.
    ///
    /// # Errors
    /// When they are malformed.
    pub fn import(&self, piece: &[u8]) -> Result<(), Malformed> {
        let latest = self.theirs_until(self.clock.now_millis());
        for (digest, until) in read_codes(piece)? {
            let theirs = CoalescedExchange::theirs(until.min(latest));
            self.exchanges.entry(Key(digest)).or_insert_with(|| Arc::new(theirs));
        }
        Ok(())
    }

    /// Frees expired outcomes. Called every second.
    pub fn maintain(&self) {
        self.exchanges.run_pending_tasks();
    }
}

impl CoalescedExchange {
    /// The exchange of another process.
    fn theirs(kept_until: u64) -> Self {
        Self {
            outcome: watch::Sender::new(Some(Err(Rejection::InvalidCode.into()))),
            kept_until: AtomicU64::new(kept_until),
            claim: Claim::theirs(),
        }
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
        let kept = if self.exchange.claim.is_theirs() {
            self.coalescing.longest + self.coalescing.window
        } else if is_final {
            self.coalescing.window
        } else {
            Duration::ZERO
        };
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

impl Retention {
    fn of(&self, exchange: &CoalescedExchange) -> Duration {
        if exchange.claim.is_theirs() {
            self.in_flight + self.completed
        } else if exchange.outcome.borrow().is_some() {
            self.completed
        } else {
            self.in_flight
        }
    }
}

impl Expiry<Key, Arc<CoalescedExchange>> for Retention {
    fn expire_after_create(
        &self,
        _: &Key,
        exchange: &Arc<CoalescedExchange>,
        _: Instant,
    ) -> Option<Duration> {
        Some(self.of(exchange))
    }

    fn expire_after_update(
        &self,
        _: &Key,
        exchange: &Arc<CoalescedExchange>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(self.of(exchange))
    }
}

#[cfg(test)]
mod tests;
