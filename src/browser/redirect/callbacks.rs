//! The callbacks of logins by redirect: each state is used once, with one code.
//!
//! The first callback claims its state for its code. Repeats wait for it, and get its outcome for a
//! while. The record lives for as long as the state can be opened, so that no other code can be
//! used with it. After a failure that may pass there is no record: otherwise requests that never
//! get to WeChat could fill the store.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use crate::browser::state::LIFETIME;
use crate::clock::{Clock, millis};
use crate::identity::token::{SessionToken, TokenDigest};
use crate::message::rejection::Rejection;
use crate::session::{Record, RecordKind, Sessions, StoreError};

/// How long a callback that is repeated gets the same outcome.
pub const REPEATS: Duration = Duration::from_secs(60);

/// How often a repeated callback looks for the outcome of the first one.
const POLL: Duration = Duration::from_millis(50);

const KIND: RecordKind = RecordKind::Callback;

/// The callbacks of a process, or of all gateways with a shared store.
pub struct Callbacks {
    sessions: Sessions,
    clock: Clock,
    /// The longest time of an exchange.
    patience: Duration,
}

/// The callback of a state, as it is kept for as long as the state's cookie may be.
#[derive(Serialize, Deserialize)]
struct Callback {
    /// The digest of the code.
    code: [u8; 32],
    progress: Progress,
}

#[derive(Serialize, Deserialize)]
enum Progress {
    UnderWay,
    /// A repeat gets this token, or the word of this rejection, until a time in milliseconds since
    /// 1970.
    Done {
        until: u64,
        result: Result<String, String>,
        /// The message of the login hook that has refused the user.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
    },
}

impl Callbacks {
    pub fn new(sessions: Sessions, clock: &Clock, patience: Duration) -> Self {
        Self { sessions, clock: clock.clone(), patience }
    }

    /// Claims a state for the login with a code. `Some`: the login was done before, and has given
    /// this token.
    ///
    /// # Errors
    /// The outcome that it had, or the state was used with another code.
    pub async fn claim(
        &self,
        text: &str,
        code: [u8; 32],
    ) -> Result<Option<SessionToken>, Rejection> {
        let records = self.sessions.records();
        let unavailable = |_| Rejection::StoreUnavailable;
        let claim = encoded(&Callback { code, progress: Progress::UnderWay });
        if records.insert(KIND, text, &claim, LIFETIME).await.map_err(unavailable)? {
            return Ok(None);
        }
        let deadline = Instant::now() + self.patience;
        loop {
            let record = records.get(KIND, text).await.map_err(unavailable)?;
            // It failed in a way that may be different next time.
            let callback = record.as_ref().and_then(decoded);
            let callback = callback.ok_or(Rejection::WeChatBusy { retry_after: 1 })?;
            if callback.code != code {
                return Err(Rejection::InvalidCode);
            }
            match callback.progress {
                Progress::Done { until, .. } if until <= self.now() => {
                    return Err(Rejection::InvalidCode);
                }
                Progress::Done { result: Ok(token), .. } => {
                    return self.live(&token).await.map(Some);
                }
                Progress::Done { result: Err(word), message, .. } => {
                    let rejection = final_rejection(&word, message.as_deref());
                    return Err(rejection.unwrap_or(Rejection::InternalError));
                }
                Progress::UnderWay if Instant::now() < deadline => sleep(POLL).await,
                Progress::UnderWay => return Err(Rejection::WeChatTimeout { retry_after: 1 }),
            }
        }
    }

    /// Keeps the outcome of the login that has claimed a state.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn complete(
        &self,
        text: &str,
        code: [u8; 32],
        outcome: &Result<SessionToken, Rejection>,
    ) -> Result<(), StoreError> {
        let until = self.now().saturating_add(millis(REPEATS));
        let result = match outcome {
            Ok(token) => Ok(token.expose().to_owned()),
            Err(rejection) if is_final(rejection) => Err(rejection.error().to_owned()),
            Err(_) => return self.sessions.records().remove(KIND, text).await,
        };
        let message = match outcome {
            Err(Rejection::LoginRefused(message)) => message.as_deref().map(str::to_owned),
            _ => None,
        };
        let records = self.sessions.records();
        let claim = records.get(KIND, text).await?;
        // If the store has dropped it, the state may be claimed for another code.
        if let Some(claim) = claim.filter(|claim| decoded(claim).is_some_and(|of| of.code == code))
        {
            let progress = Progress::Done { until, result, message };
            let value = encoded(&Callback { code, progress });
            records.replace(KIND, text, &claim, &value, LIFETIME).await?;
        }
        Ok(())
    }

    /// A token, if its session has not ended since.
    async fn live(&self, token: &str) -> Result<SessionToken, Rejection> {
        let digest = TokenDigest::parse(token.as_bytes()).ok_or(Rejection::InternalError)?;
        match self.sessions.contains(&digest).await {
            Ok(true) => SessionToken::parse(token).ok_or(Rejection::InternalError),
            Ok(false) => Err(Rejection::InvalidCode),
            Err(_) => Err(Rejection::StoreUnavailable),
        }
    }

    /// Milliseconds since 1970: gateways compare them.
    fn now(&self) -> u64 {
        self.clock.to_wall(self.clock.now_millis())
    }
}

/// Whether a repeat of the callback would get this rejection as well.
fn is_final(rejection: &Rejection) -> bool {
    final_rejection(rejection.error(), None).is_some()
}

/// The final rejection with this word.
fn final_rejection(word: &str, message: Option<&str>) -> Option<Rejection> {
    let all = [
        Rejection::InvalidCode,
        Rejection::UserBlocked,
        Rejection::LoginRefused(message.map(Into::into)),
        Rejection::SnapshotUser,
    ];
    all.into_iter().find(|rejection| rejection.error() == word)
}

fn encoded(callback: &Callback) -> Zeroizing<Vec<u8>> {
    // Numbers and texts can always be serialized.
    Zeroizing::new(serde_json::to_vec(callback).unwrap_or_default())
}

fn decoded(record: &Record) -> Option<Callback> {
    serde_json::from_slice(&record.value).ok()
}
