//! Sessions of a user, for operators: list them, revoke one or all, block the user.
//!
//! Requires `admin.token`; without a configured token the path does not exist. A session is
//! identified by the first digits of its token's digest, which cannot be used as a token, and a
//! user by the openid or by the name in the access log, which is the user id if the login hook gave
//! one. Several openids may have one user id: the action is for all of them. When the 204 is sent,
//! every session that was created before the call is revoked; with a shared store, other gateways
//! learn of it as they learn of a logout. A block is set before the sessions are revoked, so that
//! no login in flight escapes both. Each action is logged in one line.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Method};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::AdminError;
use super::error::AdminError::BadRequest;
use crate::identity::secret::Secret;
use crate::identity::{AppId, OpenId, User, UserId};
use crate::listener::small_server::{Peer, Request};
use crate::login::Apps;
use crate::message::own_response::OwnResponse;
use crate::policy::{Policy, Process};
use crate::session::{KnownUser, Session, Sessions, StoreError};
use crate::telemetry::access_log::UserNames;

pub const PATH: &str = "/sessions";

/// The shortest and the longest block.
const SHORTEST_BLOCK: Duration = Duration::from_secs(1);
const LONGEST_BLOCK: Duration = Duration::from_secs(365 * 24 * 3600);

/// Characters of a user's name in the access log.
const NAME_LENGTH: usize = 16;

/// The user whose sessions an action is about.
enum Subject {
    OpenId(OpenId),
    /// The name in the access log, or the user id: both may have the same form.
    Named(UserId),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SessionAction {
    List,
    Revoke,
    Block(Duration),
    Unblock,
}

/// The fields of a query, not validated.
#[derive(Default)]
struct Query {
    app_id: Option<String>,
    openid: Option<String>,
    user: Option<String>,
    block: Option<String>,
}

/// A request for an action, as its log line shows it, and the action's result.
struct Report<'a> {
    app_id: Option<&'a str>,
    user: Option<String>,
    result: Result<Done, Failed>,
}

/// The response to an action, and how many sessions it has listed or revoked.
struct Done {
    response: OwnResponse,
    sessions: usize,
}

/// Why an action failed, and how many sessions it had revoked before.
struct Failed {
    error: AdminError,
    sessions: usize,
}

impl<E: Into<AdminError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), sessions: 0 }
    }
}

impl Done {
    fn empty(sessions: usize) -> Self {
        Self { response: OwnResponse::empty(204), sessions }
    }
}

impl Subject {
    /// The user's name in the access log, if that log names users.
    fn name(&self, names: Option<&UserNames>) -> Option<String> {
        match self {
            Self::OpenId(openid) => Some(names?.name(openid)),
            Self::Named(name) => Some(name.as_str().to_owned()),
        }
    }
}

/// Responds to a request for [`PATH`], or for a session below it.
pub async fn respond(
    process: &Process,
    policy: &Policy,
    token: &Secret,
    request: &Request,
    request_id: &HeaderValue,
    id: Option<&str>,
) -> Result<OwnResponse, AdminError> {
    let client = request.extensions().get::<Peer>().map(|peer| tracing::field::display(peer.0));
    let request_id = request_id.to_str().ok();
    if !is_authorized(token, request.headers()) {
        // Guesses must not fill the log.
        if let Some(suppressed) = process.operator_refusals.suppressed() {
            let outcome = "unauthorized";
            tracing::info!(outcome, request_id, client, suppressed, "operator action");
        }
        return Err(AdminError::Unauthorized);
    }
    let is_list = matches!(*request.method(), Method::GET | Method::HEAD) && id.is_none();
    if !is_list && request.method() != Method::DELETE {
        let allowed = if id.is_some() { "DELETE" } else { "GET, HEAD, DELETE" };
        return Err(AdminError::MethodNotAllowed(allowed));
    }
    let query = request.uri().query().unwrap_or_default();
    let Report { app_id, user, result } = act(process, policy, query, is_list, id).await;
    let (outcome, sessions) = match &result {
        Ok(done) => ("ok", done.sessions),
        Err(failed) => (failed.error.error(), failed.sessions),
    };
    let action = action_name(query, is_list);
    tracing::info!(action, outcome, user, app_id, sessions, request_id, client, "operator action");
    result.map(|done| done.response).map_err(|failed| failed.error)
}

/// Compares digests: their bytes do not reveal how much of a guess is right.
fn is_authorized(token: &Secret, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, presented)) = value.as_bytes().split_at_checked(7) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ")
        && Sha256::digest(presented.trim_ascii()) == Sha256::digest(token.expose())
}

/// The name of an action in the log, even of a rejected one.
fn action_name(query: &str, is_list: bool) -> &'static str {
    let mut fields = form_urlencoded::parse(query.as_bytes());
    let block = fields.find(|(name, _)| name == "block");
    match block.map(|(_, time)| block_time(&time)) {
        _ if is_list => "list",
        None => "end",
        Some(Some(Duration::ZERO)) => "unblock",
        Some(_) => "block",
    }
}

/// The duration of a block; zero removes the block.
fn block_time(text: &str) -> Option<Duration> {
    // humantime reads `M` as months, but an operator would mean minutes.
    let time = humantime::parse_duration(text).ok().filter(|_| !text.contains('M'))?;
    (time.is_zero() || (SHORTEST_BLOCK..=LONGEST_BLOCK).contains(&time)).then_some(time)
}

/// The app, the user and the action of a query.
fn parse<'a>(
    apps: &'a Apps,
    query: &str,
    is_list: bool,
    has_id: bool,
) -> Result<(&'a AppId, Subject, SessionAction), AdminError> {
    let mut fields = Query::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let field = match &*name {
            "app_id" => &mut fields.app_id,
            "openid" => &mut fields.openid,
            "user" => &mut fields.user,
            "block" => &mut fields.block,
            // An unknown parameter might have meant fewer sessions.
            _ => {
                return Err(BadRequest("unknown parameter: use app_id, openid or user, and block"));
            }
        };
        if field.replace(value.into_owned()).is_some() {
            return Err(BadRequest("duplicate parameter"));
        }
    }
    let app_id = apps.named(fields.app_id.as_deref()).map_err(BadRequest)?.app_id();
    let subject = match (fields.openid, fields.user) {
        (Some(openid), None) => {
            let openid = OpenId::parse(&openid);
            Subject::OpenId(openid.ok_or(BadRequest("invalid openid"))?)
        }
        (None, Some(name)) => {
            let message = "user must be a name from the access log, or a user id";
            Subject::Named(UserId::parse(&name).ok_or(BadRequest(message))?)
        }
        _ => return Err(BadRequest("set exactly one of openid and user")),
    };
    let action = match fields.block {
        None if is_list => SessionAction::List,
        None => SessionAction::Revoke,
        Some(_) if is_list || has_id => {
            return Err(BadRequest("block is only allowed with DELETE /sessions"));
        }
        Some(time) => match block_time(&time) {
            Some(Duration::ZERO) => SessionAction::Unblock,
            Some(time) => SessionAction::Block(time),
            None => {
                return Err(BadRequest(
                    "block must be a duration from 1s to 365d, or 0s to unblock",
                ));
            }
        },
    };
    Ok((app_id, subject, action))
}

fn is_name(text: &str) -> bool {
    let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    text.len() == NAME_LENGTH && text.bytes().all(is_legal)
}

async fn act<'a>(
    process: &Process,
    policy: &'a Policy,
    query: &str,
    is_list: bool,
    id: Option<&str>,
) -> Report<'a> {
    match parse(policy.login.apps(), query, is_list, id.is_some()) {
        Ok((app_id, subject, action)) => {
            let name = subject.name(process.access_log.user_names().as_ref());
            let users = find_users(process, policy, app_id, subject).await;
            // What names nobody may be an openid in the wrong parameter: it must not be logged.
            let is_known = users.as_ref().is_ok_and(|users| !users.is_empty());
            let user = name.filter(|name| is_known || is_name(name));
            let result = match users {
                Ok(users) => perform(process, &users, action, id).await,
                Err(error) => Err(error.into()),
            };
            Report { app_id: Some(app_id.as_str()), user, result }
        }
        Err(error) => Report { app_id: None, user: None, result: Err(error.into()) },
    }
}

async fn perform(
    process: &Process,
    users: &[KnownUser],
    action: SessionAction,
    id: Option<&str>,
) -> Result<Done, Failed> {
    let sessions = &process.sessions;
    match action {
        SessionAction::Block(_) if users.is_empty() => Err(AdminError::NoUser.into()),
        SessionAction::List => {
            let (mut live, mut blocked_until) = (Vec::new(), None);
            for KnownUser { user, .. } in users {
                live.extend(sessions.of_user(user).await?);
                blocked_until = blocked_until.max(sessions.blocked_until(user).await?);
            }
            live.retain(|session| sessions.is_live(session));
            live.sort_by_key(|session| session.created_at_millis);
            Ok(listing(process, &live, blocked_until))
        }
        SessionAction::Unblock => {
            for KnownUser { user, .. } in users {
                sessions.unblock(user).await?;
            }
            Ok(Done::empty(0))
        }
        SessionAction::Block(time) => {
            for known in users {
                // The block comes first: a login in flight is rejected, or its session exists and
                // is revoked below.
                sessions.block(&with_id(sessions, known).await?, time).await?;
            }
            Ok(Done::empty(revoke(process, users, None).await?))
        }
        SessionAction::Revoke => Ok(Done::empty(revoke(process, users, id).await?)),
    }
}

/// A user with the user id, if a session has one: the block keeps it.
async fn with_id(sessions: &Sessions, known: &KnownUser) -> Result<KnownUser, StoreError> {
    let mut known = known.clone();
    if known.user_id.is_none() {
        let of_user = sessions.of_user(&known.user).await?;
        known.user_id = of_user.iter().rev().find_map(|session| session.identity.user_id.clone());
    }
    Ok(known)
}

/// The user of an openid, or the users with this name or id who have a session or are blocked.
async fn find_users(
    process: &Process,
    policy: &Policy,
    app_id: &AppId,
    subject: Subject,
) -> Result<Vec<KnownUser>, AdminError> {
    let wanted = match subject {
        Subject::OpenId(openid) => {
            return Ok(vec![User { app_id: app_id.clone(), openid }.into()]);
        }
        Subject::Named(wanted) => wanted,
    };
    let may_be_name = is_name(wanted.as_str());
    let names = process.access_log.user_names();
    if may_be_name && names.is_none() && policy.login.hook().is_none() {
        return Err(BadRequest("set log.openid_key to look up a user by name"));
    }
    let names = names.filter(|_| may_be_name);
    let matches = move |openid: &OpenId, user_id: Option<&UserId>| {
        user_id == Some(&wanted)
            || names.as_ref().is_some_and(|names| names.name(openid) == wanted.as_str())
    };
    Ok(process.sessions.find_users(app_id, matches).await?)
}

fn listing(process: &Process, sessions: &[Arc<Session>], blocked_until: Option<u64>) -> Done {
    #[derive(Serialize)]
    struct Entry {
        id: String,
        created: String,
        last_seen: String,
        client: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<String>,
    }
    #[derive(Serialize)]
    struct Listing {
        sessions: Vec<Entry>,
        blocked_until: Option<String>,
    }

    let time = |millis| {
        let wall = Duration::from_millis(process.clock.to_wall(millis));
        humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + wall).to_string()
    };
    let entry = |session: &Arc<Session>| Entry {
        id: session.digest().id(),
        created: time(session.created_at_millis),
        last_seen: time(session.last_used()),
        client: session.client.to_string(),
        user_id: session.identity.user_id.as_ref().map(|id| id.as_str().to_owned()),
    };
    let entries = sessions.iter().map(entry).collect();
    let listing = Listing { sessions: entries, blocked_until: blocked_until.map(time) };
    Done { response: OwnResponse::json(200, &listing), sessions: sessions.len() }
}

/// Revokes the session with this id, or all sessions, of these users, and returns how many.
async fn revoke(process: &Process, users: &[KnownUser], id: Option<&str>) -> Result<usize, Failed> {
    let mut revoked = 0;
    for KnownUser { user, .. } in users {
        let stopped = |error: StoreError| Failed { error: error.into(), sessions: revoked };
        let mut sessions = process.sessions.of_user(user).await.map_err(stopped)?;
        if let Some(id) = id {
            sessions.retain(|session| session.digest().id() == id);
        }
        for session in sessions {
            let result = process.sessions.revoke(session.digest()).await;
            result.map_err(|error| Failed { error: error.into(), sessions: revoked })?;
            revoked += 1;
        }
    }
    // What an earlier call could not write is found by no user any more.
    let stopped = |error: StoreError| Failed { error: error.into(), sessions: revoked };
    process.sessions.settle().await.map_err(stopped)?;
    if id.is_some() && revoked == 0 {
        return Err(AdminError::NoSession.into());
    }
    Ok(revoked)
}
