//! Tickets: a session for one path, for requests that cannot have a session header.
//!
//! Requests for images, videos, web-views and sockets of some platforms cannot have a token. A
//! client with a session gets a ticket for a path, and adds it to the query of the URL. A ticket
//! serves one request; with `reuse` it serves any number until it expires, from the address of its
//! first client. It is the right to use a session, not a session: the session is looked up at each
//! use, so that its end ends its tickets.
//!
//! A request for another path, from another client, or without a live session does not use a ticket
//! up. URLs get into logs and `Referer`, so the parameter is removed before a request is forwarded.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Method;
use rand::Rng;
use serde::Deserialize;

use self::kept::Kept;
use crate::access::authenticator::{AuthError, Authenticator};
use crate::clock::{Clock, millis};
use crate::identity::secret::Secret;
use crate::identity::token::{SessionToken, has_token_shape};
use crate::login::Login;
use crate::message::rejection::Rejection;
use crate::session::{Record, RecordKind, Session, Sessions, StoreError};

mod kept;

/// How long a ticket can be used.
pub const LIFE: Duration = Duration::from_secs(30);

/// Tickets of one user that can be used at a time.
const MOST_OF_USER: usize = 100;

/// The longest path with its query, in bytes.
pub const LONGEST_PATH: usize = 2 << 10;

/// The name of the parameter, and what follows it.
const PARAMETER: &[u8] = b"wxgate_ticket=";

const KIND: RecordKind = RecordKind::Ticket;

/// The body of a request for a ticket. Other fields are ignored.
#[derive(Deserialize)]
pub struct TicketRequest {
    /// A path. With a query, the ticket is for this query only.
    pub path: String,
    #[serde(default)]
    pub reuse: bool,
    /// Whether a page request of a web-view may exchange it for a session cookie.
    #[serde(default)]
    pub cookie: bool,
}

/// The tickets of a process, or of all gateways with a shared store.
pub struct Tickets {
    sessions: Sessions,
    clock: Clock,
}

/// A request with a ticket.
pub struct TicketUse<'a> {
    /// The value of the parameter, as received.
    pub ticket: &'a [u8],
    /// Path and query without the parameter.
    pub target: String,
    pub client: IpAddr,
}

/// The session of a ticket, and whether the ticket may be exchanged for a cookie.
pub struct Redeemed {
    pub session: Arc<Session>,
    pub offer: CookieOffer,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CookieOffer {
    #[default]
    None,
    /// By this request, whose ticket is spent.
    Now,
    /// Once: the ticket has `reuse`, and is spent by the exchange.
    Once,
}

impl Tickets {
    pub fn new(sessions: Sessions, clock: &Clock) -> Self {
        Self { sessions, clock: clock.clone() }
    }

    /// Makes a ticket for a session. The caller has checked the path.
    ///
    /// # Errors
    /// When the user has too many tickets, or the store is unavailable.
    pub async fn make(
        &self,
        session: &Session,
        wanted: &TicketRequest,
    ) -> Result<Secret, Rejection> {
        let mut bytes = [0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        let id = Secret::new(URL_SAFE_NO_PAD.encode(bytes));
        let records = self.sessions.records();
        let user = session.identity.user();
        let counted = records.count(KIND, &user, MOST_OF_USER, id.expose(), LIFE).await;
        if let Err(left) = counted.map_err(unavailable)? {
            // Rounded up, so that there is room then.
            let seconds = left.as_millis().div_ceil(1000).max(1);
            let retry_after = u32::try_from(seconds).unwrap_or(u32::MAX);
            return Err(Rejection::RateLimited { retry_after });
        }
        let kept = Kept {
            ends_at_millis: self
                .clock
                .to_wall(self.clock.now_millis())
                .saturating_add(millis(LIFE)),
            digest: *session.digest(),
            reuse: wanted.reuse,
            cookie: wanted.cookie,
            client: None,
            path: wanted.path.clone(),
        };
        let inserted = records.insert(KIND, id.expose(), &kept.encode(), LIFE).await;
        // Ids do not repeat: the store has lost the response to its first attempt.
        if inserted.map_err(unavailable)? { Ok(id) } else { Err(Rejection::StoreUnavailable) }
    }

    /// The session of a ticket that is used. A ticket without `reuse` is spent.
    ///
    /// # Errors
    /// As a token in a header.
    pub async fn redeem(
        &self,
        wanted: &TicketUse<'_>,
        authenticator: &Authenticator,
    ) -> Result<Redeemed, AuthError> {
        let id = Some(wanted.ticket).filter(|ticket| has_token_shape(ticket));
        let id = id.and_then(|id| std::str::from_utf8(id).ok()).ok_or(AuthError::InvalidToken)?;
        let record = self.sessions.records().get(KIND, id).await?;
        let record = record.ok_or(AuthError::InvalidToken)?;
        let kept = Kept::decode(&record.value).ok_or(AuthError::InvalidToken)?;
        if !kept.is_for(&wanted.target) || self.left(&kept).is_zero() {
            return Err(AuthError::InvalidToken);
        }
        let session = authenticator.session(&kept.digest).await?;
        let (reuse, cookie) = (kept.reuse, kept.cookie);
        let is_first = if reuse {
            self.is_of_first_client(id, kept, record, wanted.client).await?
        } else {
            self.spend(id, &session).await?
        };
        if !is_first {
            return Err(AuthError::InvalidToken);
        }
        let offer = match (cookie, reuse) {
            (false, _) => CookieOffer::None,
            (true, false) => CookieOffer::Now,
            (true, true) => CookieOffer::Once,
        };
        Ok(Redeemed { session, offer })
    }

    /// A new session for the browser that used a ticket, of the same user: so the token of the
    /// Mini Program never gets into the browser. It ends no later than the ticket's session.
    /// `None`: the offer was taken before.
    ///
    /// # Errors
    /// When the user is blocked or refused, the session has ended while the login hook was called,
    /// or the hook or the store has failed. The offer is taken all the same.
    pub async fn exchange(
        &self,
        offer: CookieOffer,
        used: &TicketUse<'_>,
        session: &Session,
        logins: &Login,
        request_id: &str,
    ) -> Result<Option<SessionToken>, Rejection> {
        let is_ours = match offer {
            CookieOffer::None => false,
            CookieOffer::Now => true,
            CookieOffer::Once => {
                let id = std::str::from_utf8(used.ticket).unwrap_or_default();
                self.spend(id, session).await.map_err(unavailable)?
            }
        };
        if !is_ours {
            return Ok(None);
        }
        let identity = logins.admit(session, request_id).await?;
        let identity = identity.ok_or(Rejection::SessionExpired)?;
        let created = self.sessions.create_beside(session, identity, used.client).await;
        Ok(created.map(|(token, _)| Some(token))?)
    }

    /// Takes a ticket. Returns whether it was there.
    async fn spend(&self, id: &str, session: &Session) -> Result<bool, StoreError> {
        let records = self.sessions.records();
        let user = session.identity.user();
        let (taken, _) = tokio::join!(records.take(KIND, id), records.uncount(KIND, &user, id));
        Ok(taken?.is_some())
    }

    /// Whether a ticket with `reuse` is used by its first client. The first use decides who that
    /// is.
    async fn is_of_first_client(
        &self,
        id: &str,
        mut kept: Kept,
        record: Record,
        client: IpAddr,
    ) -> Result<bool, StoreError> {
        if let Some(first) = kept.client {
            return Ok(first == client);
        }
        kept.client = Some(client);
        let records = self.sessions.records();
        let life = self.left(&kept);
        if records.replace(KIND, id, &record, &kept.encode(), life).await? {
            return Ok(true);
        }
        // Another request was first.
        let record = records.get(KIND, id).await?;
        let kept = record.and_then(|record| Kept::decode(&record.value));
        Ok(kept.is_some_and(|kept| kept.client == Some(client)))
    }

    fn left(&self, kept: &Kept) -> Duration {
        let now = self.clock.to_wall(self.clock.now_millis());
        Duration::from_millis(kept.ends_at_millis.saturating_sub(now))
    }
}

fn unavailable(_: StoreError) -> Rejection {
    Rejection::StoreUnavailable
}

/// Whether a request may be served by a ticket. A WebSocket handshake is a GET.
pub fn allows_method(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The position of a ticket in path and query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketParameter {
    /// What is removed: the parameter, and the `&` or `?` that belongs to it.
    begin: u32,
    end: u32,
    value_begin: u32,
    value_end: u32,
    /// Whether there is another one.
    pub is_repeated: bool,
}

impl TicketParameter {
    /// The first ticket in a path with its query. The name is compared byte for byte: what is
    /// written in another way is the service's own.
    pub fn find(target: &[u8]) -> Option<Self> {
        // Most queries have none.
        memchr::memmem::find(target, PARAMETER)?;
        let query = memchr::memchr(b'?', target)? + 1;
        let hits = memchr::memmem::find_iter(target.get(query..)?, PARAMETER);
        let mut hits = hits.map(|at| query + at).filter(|at| {
            *at == query || at.checked_sub(1).and_then(|before| target.get(before)) == Some(&b'&')
        });
        let at = hits.next()?;
        let value = at + PARAMETER.len();
        let rest = target.get(value..)?;
        let value_end = value + memchr::memchr(b'&', rest).unwrap_or(rest.len());
        // Of the first of several parameters, the `&` after it; else the byte before it.
        let is_first_of_several = at == query && value_end < target.len();
        let removed = if is_first_of_several { at..value_end + 1 } else { at - 1..value_end };
        let short = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Some(Self {
            begin: short(removed.start),
            end: short(removed.end),
            value_begin: short(value),
            value_end: short(value_end),
            is_repeated: hits.next().is_some(),
        })
    }

    /// The value in the path and query in which it was found.
    pub fn value(self, target: &[u8]) -> &[u8] {
        target.get(self.value_begin as usize..self.value_end as usize).unwrap_or_default()
    }

    /// What is left of path and query: what comes before the parameter, and after it.
    pub fn around(self, target: &[u8]) -> (&[u8], &[u8]) {
        let before = target.get(..self.begin as usize).unwrap_or_default();
        (before, target.get(self.end as usize..).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
