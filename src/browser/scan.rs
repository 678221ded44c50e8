//! Logins of a browser by a scan with the Mini Program.
//!
//! Decides which steps a scan takes, and who may take them. The browser that begins a scan gets an
//! id, which it shows as a code, and a secret in a cookie, which it does not show. The phone that
//! scans the code first takes the scan, with its session; only this session confirms or denies it.
//! After that the browser, and no other, gets a session of its own for the same user, once. So a
//! client that only knows the code can neither poll the scan nor get its session. The gateway
//! cannot prevent that an attacker shows a code to another user: the user sees the browser and its
//! address, and decides.
//!
//! A scan is one record of the store. Each step replaces it, unless it has changed since it was
//! read, so that of several requests, at any gateway, one takes the step.

mod code;
mod record;
mod user_agent;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

pub use self::code::CodeMaker;
use self::code::Codes;
pub use self::record::{Owner, Stage};
use self::record::{Scan, ScanRecords};
use crate::access::rate_limiter::RateLimit;
use crate::clock::{Clock, millis};
use crate::config::{self, Config, Rate, ScanSection};
use crate::identity::secret::Secret;
use crate::identity::token::{SessionToken, TokenDigest};
use crate::identity::{AppId, Identity};
use crate::login;
use crate::message::rejection::Rejection;
use crate::session::{Record, Session, Sessions};
use crate::wechat::mini_program_code::Image;

/// The suffix of the cookie's name.
pub const COOKIE: &str = "scan";

/// Scans that may be begun from one address.
const STARTS: u32 = 10;
const STARTS_PERIOD: Duration = Duration::from_secs(60);

/// Scans begun here that no phone has scanned yet.
const MOST_WAITING: usize = 10_000;

/// The longest time of a poll.
const LONGEST_POLL: Duration = Duration::from_secs(25);

/// How often a poll reads the record.
const INTERVAL: Duration = Duration::from_millis(500);

/// How often a step is tried again because the record has changed.
const MOST_TRIES: usize = 5;

/// Scans as one configuration requires.
pub struct Scans {
    section: ScanSection,
    /// The path of a scan without its id, such as `/scan/`.
    path: String,
    pub start_rate: Arc<RateLimit>,
    sessions: Sessions,
    clock: Clock,
    state: Arc<State>,
}

/// What a reload keeps.
struct State {
    records: ScanRecords,
    /// Ids of scans begun here that may be waiting, the oldest first, with their ends in
    /// milliseconds of the clock.
    waiting: Mutex<VecDeque<(String, u64)>>,
    codes: Arc<Codes>,
}

/// A scan that has begun.
pub struct Started {
    pub id: String,
    /// The value of the browser's cookie.
    pub cookie: Secret,
    pub expires_in: Duration,
    /// How long the cookie is needed.
    pub cookie_life: Duration,
}

/// What the user is shown before the scan is confirmed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Words from a fixed list.
    pub browser: String,
    pub address: IpAddr,
    /// When the browser began the scan (RFC 3339).
    pub since: String,
}

/// The answer of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Confirm,
    Deny,
}

/// What a poll finds.
pub enum Polled {
    Stage(Stage),
    Confirmed(Confirmed),
}

/// A scan that was confirmed, and not used when it was read.
pub struct Confirmed {
    id: String,
    record: Record,
    scan: Scan,
}

/// The login of a browser by a scan that was confirmed.
pub struct Login {
    /// The user. `None`: the scan was used, or the session that confirmed has ended.
    pub identity: Option<Identity>,
    /// `None` if there is no user.
    pub token: Result<Option<SessionToken>, Rejection>,
}

impl Scans {
    /// With the state from before a reload.
    pub fn new(
        config: &Config,
        section: &ScanSection,
        previous: Option<&Self>,
        sessions: &Sessions,
        clock: &Clock,
    ) -> Self {
        let count = NonZeroU32::new(STARTS).unwrap_or(NonZeroU32::MIN);
        let rate = Rate { count, period: STARTS_PERIOD };
        let capacity = config.limits.max_rate_clients;
        let start_rate = previous.map(|previous| &previous.start_rate);
        let state = previous.map(|previous| previous.state.clone());
        let path = config.endpoints.scan.first().map(config::RoutePath::as_str);
        Self {
            section: section.clone(),
            path: format!("{}/", path.unwrap_or_default()),
            start_rate: RateLimit::carried_over(start_rate, rate, capacity, clock),
            sessions: sessions.clone(),
            clock: clock.clone(),
            state: state.unwrap_or_else(|| Arc::new(State::new(sessions, clock))),
        }
    }

    /// The Mini Program that scans.
    pub fn app_id(&self) -> &AppId {
        &self.section.app_id
    }

    /// The text of an ordinary QR code for a scan from this origin.
    pub fn content(&self, origin: &str, id: &str) -> String {
        format!("{origin}{}{id}", self.path)
    }

    /// Begins a scan. If too many are waiting, the oldest of them ends.
    ///
    /// # Errors
    /// When the store is unavailable.
    pub async fn start(
        &self,
        browser: Owner<'_>,
        user_agent: Option<&[u8]>,
        address: IpAddr,
    ) -> Result<Started, Rejection> {
        let (id, secret) = (record::random(), record::random());
        let lifetime = self.section.lifetime;
        let now = self.clock.now_millis();
        let ends_at = now.saturating_add(millis(lifetime));
        let scan = Scan {
            stage: Stage::Waiting,
            origin: browser.origin.to_owned(),
            secret: record::digest(secret.as_bytes()),
            browser: user_agent::describe(user_agent),
            address,
            since: self.clock.to_wall(now),
            ends_at: self.clock.to_wall(ends_at),
            scanned_by: None,
        };
        self.state.records.insert(&id, &scan).await?;
        if let Some(oldest) = self.state.add(id.clone(), ends_at, now) {
            self.end(&oldest).await?;
        }
        let cookie = record::cookie(&secret, browser.cookie);
        let cookie_life = lifetime + record::AFTERLIFE;
        Ok(Started { id, cookie, expires_in: lifetime, cookie_life })
    }

    /// Waits until a scan is at another stage than `known`, or the poll `is_over`, for at most
    /// [`LONGEST_POLL`].
    ///
    /// # Errors
    /// When it is unknown or another browser's, or the store is unavailable.
    pub async fn poll(
        &self,
        id: &str,
        browser: Owner<'_>,
        known: Stage,
        is_over: impl Fn() -> bool,
    ) -> Result<Polled, Rejection> {
        let end = Instant::now() + LONGEST_POLL;
        loop {
            let mut changed = pin!(self.state.records.changed(id));
            // From before the record is read, so that no change is missed.
            changed.as_mut().enable();
            let (record, scan) = self.read_of(id, browser).await?;
            if scan.stage == Stage::Confirmed {
                return Ok(Polled::Confirmed(Confirmed { id: id.to_owned(), record, scan }));
            }
            let now = Instant::now();
            if scan.stage != known || now >= end || is_over() {
                return Ok(Polled::Stage(scan.stage));
            }
            tokio::select! {
                () = changed => {}
                () = sleep_until(end.min(now + INTERVAL)) => {}
            }
        }
    }

    /// Logs in the browser that polls a confirmed scan: once, and only while the session that
    /// confirmed is live. A login that fails uses the scan up as well.
    pub async fn log_in(
        &self,
        confirmed: Confirmed,
        client: IpAddr,
        logins: &login::Login,
        request_id: &str,
    ) -> Login {
        let nobody = |token| Login { identity: None, token };
        let session = match self.session(confirmed).await {
            Ok(Some(session)) => session,
            none => return nobody(none.map(|_| None)),
        };
        let identity = match logins.admit(&session, request_id).await {
            Ok(Some(identity)) => identity,
            Ok(None) => return nobody(Ok(None)),
            Err(rejection) => {
                return Login { identity: Some(session.identity.clone()), token: Err(rejection) };
            }
        };
        let created = self.sessions.create(identity.clone(), client, None).await;
        let token = created.map(|(token, _)| Some(token)).map_err(Rejection::from);
        Login { identity: Some(identity), token }
    }

    /// Uses a scan up, and returns the session that confirmed it.
    async fn session(&self, confirmed: Confirmed) -> Result<Option<Arc<Session>>, Rejection> {
        let Confirmed { id, record, scan } = confirmed;
        let scan = Scan { stage: Stage::Expired, ..scan };
        if !self.state.records.replace(&id, &record, &scan).await? {
            return Ok(None);
        }
        let Some(digest) = scan.scanned_by.map(TokenDigest::from_bytes) else { return Ok(None) };
        let session = self.sessions.get(&digest).await.map_err(|_| Rejection::StoreUnavailable)?;
        Ok(session.filter(|session| session.identity.app_id == self.section.app_id))
    }

    /// Takes a scan for a session, which must be one of the app's. A repeat by this session has the
    /// same result.
    ///
    /// # Errors
    /// When it is unknown or has ended, another session has taken it, or the store is unavailable.
    pub async fn scan(&self, id: &str, by: &TokenDigest) -> Result<Shown, Rejection> {
        let by = Some(*by.as_bytes());
        let step = self.step(id, |scan| match scan.stage {
            Stage::Waiting => Ok(Some(Scan { stage: Stage::Scanned, scanned_by: by, ..scan })),
            Stage::Scanned if scan.scanned_by == by => Ok(None),
            _ => Err(Rejection::NotAllowed("another session has scanned this code")),
        });
        let scan = step.await?;
        self.state.remove(id);
        let since = UNIX_EPOCH + Duration::from_millis(scan.since);
        let since = humantime::format_rfc3339_seconds(since).to_string();
        Ok(Shown { browser: scan.browser, address: scan.address, since })
    }

    /// Confirms or denies a scan.
    ///
    /// # Errors
    /// When the scan is unknown or has ended, was not taken by this session, was confirmed or
    /// denied before, or the store is unavailable.
    pub async fn answer(
        &self,
        id: &str,
        by: &TokenDigest,
        answer: Answer,
    ) -> Result<(), Rejection> {
        let stage = match answer {
            Answer::Confirm => Stage::Confirmed,
            Answer::Deny => Stage::Denied,
        };
        let by = Some(*by.as_bytes());
        let step = self.step(id, |scan| {
            if scan.stage == Stage::Scanned && scan.scanned_by == by {
                Ok(Some(Scan { stage, ..scan }))
            } else {
                Err(Rejection::NotAllowed(
                    "only the session that scanned the code can confirm or deny, once",
                ))
            }
        });
        step.await.map(|_| ())
    }

    /// The Mini Program code of a scan that is not over.
    ///
    /// # Errors
    /// When it is unknown, over or another browser's, the store is unavailable, or WeChat makes no
    /// code.
    pub async fn code(
        &self,
        id: &str,
        browser: Owner<'_>,
        maker: &CodeMaker,
        request_id: &str,
    ) -> Result<Arc<Image>, Rejection> {
        let (_, scan) = self.read_of(id, browser).await?;
        match scan.stage {
            Stage::Waiting | Stage::Scanned => self.state.codes.get(maker, id, request_id).await,
            Stage::Confirmed | Stage::Denied | Stage::Expired => Err(Rejection::NotFound),
        }
    }

    /// Takes a step, and returns the scan after it. `next` returns the scan after the step, `None`
    /// if the step was taken before.
    async fn step(
        &self,
        id: &str,
        next: impl Fn(Scan) -> Result<Option<Scan>, Rejection>,
    ) -> Result<Scan, Rejection> {
        for _ in 0..MOST_TRIES {
            let found = self.state.records.read(id).await?;
            let found = found.filter(|(_, scan)| scan.stage != Stage::Expired);
            let (record, scan) = found.ok_or(Rejection::NotFound)?;
            let Some(after) = next(scan.clone())? else { return Ok(scan) };
            if self.state.records.replace(id, &record, &after).await? {
                return Ok(after);
            }
        }
        Err(Rejection::StoreUnavailable)
    }

    /// Ends a scan if it is waiting.
    async fn end(&self, id: &str) -> Result<(), Rejection> {
        if let Some((record, scan)) = self.state.records.read(id).await?
            && scan.stage == Stage::Waiting
        {
            let scan = Scan { stage: Stage::Expired, ..scan };
            // If it has changed, it is not waiting any more.
            self.state.records.replace(id, &record, &scan).await?;
        }
        Ok(())
    }

    /// A scan, if this browser has begun it.
    async fn read_of(&self, id: &str, browser: Owner<'_>) -> Result<(Record, Scan), Rejection> {
        let found = self.state.records.read(id).await?;
        found.filter(|(_, scan)| scan.is_of(browser)).ok_or(Rejection::NotFound)
    }
}

impl State {
    fn new(sessions: &Sessions, clock: &Clock) -> Self {
        Self {
            records: ScanRecords::new(sessions.records().clone(), clock.clone()),
            waiting: Mutex::default(),
            codes: Arc::new(Codes::new(clock)),
        }
    }

    /// Adds a scan to those that are waiting. Returns the oldest one if there are too many.
    fn add(&self, id: String, ends_at: u64, now: u64) -> Option<String> {
        let mut waiting = self.waiting.lock();
        while waiting.front().is_some_and(|(_, ends_at)| *ends_at <= now) {
            waiting.pop_front();
        }
        waiting.push_back((id, ends_at));
        let is_full = waiting.len() > MOST_WAITING;
        is_full.then(|| waiting.pop_front()).flatten().map(|(id, _)| id)
    }

    fn remove(&self, id: &str) {
        self.waiting.lock().retain(|(other, _)| other != id);
    }
}

#[cfg(test)]
mod tests;
