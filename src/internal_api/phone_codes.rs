//! Which codes for phone numbers were sent to WeChat: each is sent once.
//!
//! A code is remembered for ten minutes, twice as long as WeChat accepts it. Concurrent requests of
//! one user with one code share a call. Codes are kept as digests. When too many are remembered,
//! new ones are rejected rather than old ones forgotten.

use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::error::{ApiError, Failure};
use super::messages::PhoneNumberResponse;
use crate::clock::{Clock, millis};
use crate::identity::User;
use crate::identity::secret::Secret;

/// How long a code is remembered.
const LIFETIME: Duration = Duration::from_secs(600);

/// Codes that are remembered.
const CAPACITY: usize = 100_000;

type Outcome = Result<PhoneNumberResponse, Failure>;

/// App and code.
type Key = [u8; 32];

/// The outcome of sending a code.
pub struct Sent {
    pub outcome: Outcome,
    /// Whether WeChat may have looked at the code.
    pub is_spent: bool,
}

/// The codes of all apps.
pub struct PhoneCodes {
    codes: Mutex<Codes>,
    clock: Clock,
}

#[derive(Default)]
struct Codes {
    known: HashMap<Key, Code>,
    /// By the time when they are forgotten.
    order: BTreeSet<(u64, Key)>,
}

struct Code {
    user: User,
    /// When it is forgotten, on the clock, in milliseconds.
    until: u64,
    /// Set while the call is in flight.
    outcome: Option<watch::Receiver<Option<Outcome>>>,
}

/// What is to be done with a code.
enum Turn {
    Send(Key, watch::Sender<Option<Outcome>>),
    Await(watch::Receiver<Option<Outcome>>),
}

impl PhoneCodes {
    pub fn new(clock: Clock) -> Self {
        Self { codes: Mutex::default(), clock }
    }

    /// Sends a code with `send`, or waits for the call that has sent it.
    ///
    /// # Errors
    /// When the code was sent before, or the call fails.
    pub async fn send_once<F>(
        self: &Arc<Self>,
        user: User,
        code: &Secret,
        send: impl FnOnce() -> F,
    ) -> Outcome
    where
        F: Future<Output = Sent> + Send + 'static,
    {
        let mut shared = match self.turn(user, code)? {
            Turn::Await(shared) => shared,
            Turn::Send(key, sender) => {
                let (receiver, codes, call) = (sender.subscribe(), self.clone(), send());
                // A caller that disconnects does not cancel what others wait for.
                tokio::spawn(async move {
                    let Sent { outcome, is_spent } = call.await;
                    codes.settle(&key, is_spent);
                    sender.send_replace(Some(outcome));
                });
                receiver
            }
        };
        // The sender is dropped without an outcome only if its task panics.
        let outcome = shared.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(ApiError::Internal.into()))
    }

    fn turn(&self, user: User, code: &Secret) -> Result<Turn, ApiError> {
        let now = self.clock.now_millis();
        let key = key(&user, code);
        let mut codes = self.codes.lock();
        codes.forget(now);
        if let Some(known) = codes.known.get(&key) {
            let shared = known.outcome.clone().filter(|_| known.user == user);
            return shared.map(Turn::Await).ok_or(ApiError::InvalidPhoneCode);
        }
        if codes.known.len() >= CAPACITY {
            return Err(ApiError::Overloaded);
        }
        let (sender, receiver) = watch::channel(None);
        let until = now.saturating_add(millis(LIFETIME));
        codes.order.insert((until, key));
        codes.known.insert(key, Code { user, until, outcome: Some(receiver) });
        Ok(Turn::Send(key, sender))
    }

    fn settle(&self, key: &Key, is_spent: bool) {
        let mut codes = self.codes.lock();
        if !is_spent {
            if let Some(code) = codes.known.remove(key) {
                codes.order.remove(&(code.until, *key));
            }
        } else if let Some(code) = codes.known.get_mut(key) {
            code.outcome = None;
        }
    }
}

impl Codes {
    fn forget(&mut self, now: u64) {
        while let Some((until, key)) = self.order.first()
            && *until <= now
        {
            self.known.remove(key);
            self.order.pop_first();
        }
    }
}

fn key(user: &User, code: &Secret) -> Key {
    let mut hash = Sha256::new();
    // An app id has no zero byte.
    hash.update(user.app_id.as_str());
    hash.update([0]);
    hash.update(code.expose());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{AppId, OpenId};

    fn user(openid: &str) -> User {
        let app_id = AppId::parse("wx0123456789abcdef").unwrap();
        User { app_id, openid: OpenId::parse(openid).unwrap() }
    }

    async fn send(codes: &Arc<PhoneCodes>, code: &str, is_spent: bool) -> Outcome {
        let outcome = Err(Failure::from(ApiError::WeChatRejected));
        let send = || async move { Sent { outcome, is_spent } };
        codes.send_once(user("o1"), &Secret::new(code.to_owned()), send).await
    }

    fn error(outcome: Outcome) -> ApiError {
        outcome.err().unwrap().error
    }

    #[tokio::test]
    async fn a_code_is_remembered_for_ten_minutes() {
        let clock = Clock::manual();
        let codes = Arc::new(PhoneCodes::new(clock.clone()));
        assert_eq!(error(send(&codes, "a", false).await), ApiError::WeChatRejected);
        clock.advance(LIFETIME / 2);
        assert_eq!(error(send(&codes, "a", true).await), ApiError::WeChatRejected);
        clock.advance(LIFETIME.saturating_sub(Duration::from_millis(1)));
        assert_eq!(error(send(&codes, "a", true).await), ApiError::InvalidPhoneCode);
        clock.advance(Duration::from_millis(1));
        assert_eq!(error(send(&codes, "a", true).await), ApiError::WeChatRejected);
        assert_eq!(codes.codes.lock().order.len(), 1);
    }

    #[tokio::test]
    async fn attempts_that_were_not_sent_take_no_room() {
        let codes = Arc::new(PhoneCodes::new(Clock::manual()));
        for _ in 0..3 {
            assert_eq!(error(send(&codes, "a", false).await), ApiError::WeChatRejected);
        }
        assert_eq!(codes.codes.lock().order.len(), 0);
    }

    #[tokio::test]
    async fn when_too_many_codes_are_known_new_ones_are_rejected() {
        let clock = Clock::manual();
        let codes = Arc::new(PhoneCodes::new(clock.clone()));
        for number in 0..CAPACITY {
            let turn = codes.turn(user("o1"), &Secret::new(number.to_string()));
            assert!(matches!(turn, Ok(Turn::Send(..))));
        }
        assert_eq!(error(send(&codes, "new", true).await), ApiError::Overloaded);
        clock.advance(LIFETIME);
        assert_eq!(error(send(&codes, "new", true).await), ApiError::WeChatRejected);
    }

    #[tokio::test]
    async fn a_call_that_panics_spends_its_code() {
        let codes = Arc::new(PhoneCodes::new(Clock::manual()));
        let code = Secret::new("a".to_owned());
        let send = || async { panic!("on purpose") };
        assert_eq!(error(codes.send_once(user("o1"), &code, send).await), ApiError::Internal);
        let again = codes.send_once(user("o1"), &code, || async { unreachable!() }).await;
        assert_eq!(error(again), ApiError::Internal);
    }
}
