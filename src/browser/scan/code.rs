//! The Mini Program codes of scans: each is made once, and kept for a while.
//!
//! Requests for one code share a call to WeChat. A failure is kept for some seconds, so that a page
//! that is loaded again and again does not use up WeChat's quota.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::identity::AppId;
use crate::message::rejection::{Rejection, jittered};
use crate::telemetry::log_throttle::LogThrottle;
use crate::wechat::access_token::AccessTokens;
use crate::wechat::mini_program_code::Image;
use crate::wechat::{WeChat, WeChatError};

/// Memory for all codes together, in bytes.
const CAPACITY: u64 = 64 << 20;

/// What an entry takes besides its image, about.
const OVERHEAD: u32 = 1 << 10;

/// How long a code is kept: longer than a scan may take.
const LIFE: Duration = Duration::from_secs(900);

/// Calls to WeChat at the same time.
const MOST_CALLS: usize = 32;

/// How long a failure is the response to further requests.
const FAILURE_LIFE: Duration = Duration::from_secs(3);

/// The codes that were made.
pub struct Codes {
    made: Cache<String, Arc<Entry>>,
    calls: Semaphore,
    failures: LogThrottle,
}

/// What is called to make a code.
#[derive(Clone)]
pub struct CodeMaker {
    pub wechat: Arc<WeChat>,
    pub access_tokens: Arc<AccessTokens>,
    pub app_id: AppId,
}

#[derive(Default)]
struct Entry {
    /// Held while WeChat is called.
    outcome: Mutex<Option<Outcome>>,
    size: AtomicU32,
}

#[derive(Clone)]
enum Outcome {
    Made(Arc<Image>),
    Failed(Rejection, Instant),
}

impl Codes {
    pub fn new(clock: &Clock) -> Self {
        let made = Cache::builder()
            .max_capacity(CAPACITY)
            .weigher(|id: &String, entry: &Arc<Entry>| {
                let id = u32::try_from(id.len()).unwrap_or(u32::MAX);
                entry.size.load(Ordering::Relaxed).saturating_add(OVERHEAD).saturating_add(id)
            })
            .time_to_live(LIFE)
            .build();
        let failures = LogThrottle::new(clock.clone());
        Self { made, calls: Semaphore::new(MOST_CALLS), failures }
    }

    /// The code of a scan, which the caller has found to be live.
    ///
    /// # Errors
    /// When WeChat cannot be called or makes none, or too many codes are being made.
    pub async fn get(
        self: &Arc<Self>,
        maker: &CodeMaker,
        id: &str,
        request_id: &str,
    ) -> Result<Arc<Image>, Rejection> {
        let entry = self.made.get_with(id.to_owned(), Arc::default);
        let (codes, maker) = (self.clone(), maker.clone());
        let (id, request_id) = (id.to_owned(), request_id.to_owned());
        // In a task of its own: if the browser disconnects, the next request finds the code.
        let task = tokio::spawn(async move {
            let mut outcome = entry.outcome.lock().await;
            match &*outcome {
                Some(Outcome::Made(image)) => return Ok(image.clone()),
                Some(Outcome::Failed(rejection, at)) if at.elapsed() < FAILURE_LIFE => {
                    return Err(rejection.clone());
                }
                _ => {}
            }
            let Ok(_permit) = codes.calls.try_acquire() else {
                return Err(Rejection::Overloaded);
            };
            let made =
                maker.wechat.mini_program_code(&maker.access_tokens, &maker.app_id, &id).await;
            match made {
                Ok(image) => {
                    let size = u32::try_from(image.bytes.len()).unwrap_or(u32::MAX);
                    entry.size.store(size, Ordering::Relaxed);
                    let image = Arc::new(image);
                    *outcome = Some(Outcome::Made(image.clone()));
                    // Weighs the entry again.
                    codes.made.insert(id, entry.clone());
                    Ok(image)
                }
                Err(error) => {
                    codes.log(&error, &maker.app_id, &request_id);
                    let rejection = rejection(&error);
                    *outcome = Some(Outcome::Failed(rejection.clone(), Instant::now()));
                    Err(rejection)
                }
            }
        });
        task.await.unwrap_or(Err(Rejection::InternalError))
    }

    fn log(&self, error: &WeChatError, app_id: &AppId, request_id: &str) {
        let Some(suppressed) = self.failures.suppressed() else { return };
        let (app_id, details) = (app_id.as_str(), error.details());
        tracing::warn!(
            request_id,
            app_id,
            suppressed,
            "cannot get a Mini Program code for a scan: {error}{details}"
        );
    }
}

/// Unlike at a login nothing is used up by a call without a response: it can be repeated.
fn rejection(error: &WeChatError) -> Rejection {
    match Rejection::from(error) {
        busy @ Rejection::WeChatBusy { .. } => busy,
        Rejection::WeChatTimeout { retry_after } | Rejection::RateLimited { retry_after } => {
            Rejection::WeChatBusy { retry_after: retry_after.max(jittered(2, 5)) }
        }
        _ => Rejection::WeChatRejected,
    }
}
