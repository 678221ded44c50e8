//! Sends each code for a phone number to WeChat once.
//!
//! Concurrent requests of one user with one code share a call. Which codes were sent is remembered
//! in `wechat::sent_codes`.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::error::{ApiError, Failure};
use super::messages::PhoneNumberResponse;
use crate::handover::claims::{Claim, CodeDigest};
use crate::identity::User;
use crate::identity::secret::Secret;
use crate::wechat::sent_codes::{SentCodes, Unsendable};

type Outcome = Result<PhoneNumberResponse, Failure>;

/// The outcome of sending a code.
pub struct Sent {
    pub outcome: Outcome,
    /// Whether WeChat may have looked at the code.
    pub is_spent: bool,
}

/// The codes of all apps.
pub struct PhoneCodes {
    sent: Arc<SentCodes>,
    in_flight: Mutex<HashMap<CodeDigest, Call>>,
}

/// A call in flight: its user, and its outcome.
type Call = (User, watch::Receiver<Option<Outcome>>);

/// What is to be done with a code.
enum Turn {
    Send(InFlight, Arc<Claim>, watch::Sender<Option<Outcome>>),
    Await(watch::Receiver<Option<Outcome>>),
}

/// A call in flight. It ends when this is dropped, even if it panics.
struct InFlight {
    codes: Arc<PhoneCodes>,
    digest: CodeDigest,
    is_spent: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut in_flight = self.codes.in_flight.lock();
        in_flight.remove(&self.digest);
        if !self.is_spent {
            self.codes.sent.forget(&self.digest);
        }
    }
}

impl PhoneCodes {
    pub fn new(sent: Arc<SentCodes>) -> Self {
        Self { sent, in_flight: Mutex::default() }
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
            Turn::Send(mut in_flight, claim, sender) => {
                let (receiver, codes, call) = (sender.subscribe(), self.clone(), send());
                // A caller that disconnects does not cancel what others wait for.
                tokio::spawn(async move {
                    let outcome = if codes.sent.claim(&in_flight.digest, &claim).await {
                        let Sent { outcome, is_spent } = call.await;
                        in_flight.is_spent = is_spent;
                        outcome
                    } else {
                        Err(ApiError::InvalidPhoneCode.into())
                    };
                    drop(in_flight);
                    sender.send_replace(Some(outcome));
                });
                receiver
            }
        };
        // The sender is dropped without an outcome only if its task panics.
        let outcome = shared.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or(Err(ApiError::Internal.into()))
    }

    fn turn(self: &Arc<Self>, user: User, code: &Secret) -> Result<Turn, ApiError> {
        let digest = digest(&user, code);
        let mut in_flight = self.in_flight.lock();
        let claim = match self.sent.add(digest) {
            Ok(claim) => claim,
            Err(Unsendable::Full) => return Err(ApiError::Overloaded),
            Err(Unsendable::Sent) => {
                let shared = in_flight.get(&digest).filter(|(of, _)| *of == user);
                let shared = shared.map(|(_, outcome)| Turn::Await(outcome.clone()));
                return shared.ok_or(ApiError::InvalidPhoneCode);
            }
        };
        let (sender, receiver) = watch::channel(None);
        in_flight.insert(digest, (user, receiver));
        let in_flight = InFlight { codes: self.clone(), digest, is_spent: true };
        Ok(Turn::Send(in_flight, claim, sender))
    }
}

fn digest(user: &User, code: &Secret) -> CodeDigest {
    let mut hash = Sha256::new();
    // An app id has no zero byte.
    hash.update(user.app_id.as_str());
    hash.update([0]);
    hash.update(code.expose());
    hash.finalize().into()
}

#[cfg(test)]
mod tests;
