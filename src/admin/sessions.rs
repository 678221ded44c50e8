//! Sessions of a user, for operators: list them, revoke one or all, block the user.
//!
//! Requires `admin.token`; without a configured token the path does not exist. A session is
//! identified by the first digits of its token's digest, which cannot be used as a token, and a
//! user by the openid or by the name in the access log. When the 204 is sent, every session that
//! was created before the call is revoked; with a shared store, other gateways learn of it as they
//! learn of a logout. A block is set before the sessions are revoked, so that no login in flight
//! escapes both. Each action is logged in one line.

use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Method};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::AdminError;
use super::error::AdminError::BadRequest;
use crate::identity::secret::Secret;
use crate::identity::{AppId, OpenId, User};
use crate::listener::small_server::{Peer, Request};
use crate::login::Apps;
use crate::message::own_response::OwnResponse;
use crate::policy::{Policy, Process};
use crate::session::Session;
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
    /// The name in the access log.
    Name(String),
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
        let names = names?;
        Some(match self {
            Self::OpenId(openid) => names.name(openid),
            Self::Name(name) => name.clone(),
        })
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
        (None, Some(name)) if is_name(&name) => Subject::Name(name),
        (None, Some(_)) => {
            return Err(BadRequest("user must be the 16-character name from the access log"));
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
            let user = subject.name(process.access_log.user_names().as_ref());
            let result = perform(process, app_id, subject, action, id).await;
            Report { app_id: Some(app_id.as_str()), user, result }
        }
        Err(error) => Report { app_id: None, user: None, result: Err(error.into()) },
    }
}

async fn perform(
    process: &Process,
    app_id: &AppId,
    subject: Subject,
    action: SessionAction,
    id: Option<&str>,
) -> Result<Done, Failed> {
    let Some(user) = find_user(process, app_id, subject).await? else {
        return match action {
            SessionAction::Block(_) => Err(AdminError::NoUser.into()),
            SessionAction::List => Ok(listing(process, &[], None)),
            SessionAction::Revoke if id.is_some() => Err(AdminError::NoSession.into()),
            SessionAction::Revoke | SessionAction::Unblock => Ok(Done::empty(0)),
        };
    };
    let sessions = &process.sessions;
    match action {
        SessionAction::List => {
            let mut live = sessions.of_user(&user).await?;
            live.retain(|session| sessions.is_live(session));
            Ok(listing(process, &live, sessions.blocked_until(&user).await?))
        }
        SessionAction::Unblock => {
            sessions.unblock(&user).await?;
            Ok(Done::empty(0))
        }
        SessionAction::Block(time) => {
            // The block comes first: a login in flight is rejected, or its session exists and is
            // revoked below.
            sessions.block(&user, time).await?;
            Ok(Done::empty(revoke(process, &user, None).await?))
        }
        SessionAction::Revoke => Ok(Done::empty(revoke(process, &user, id).await?)),
    }
}

/// The user of an openid, or the user with this name if it has a session or is blocked.
async fn find_user(
    process: &Process,
    app_id: &AppId,
    subject: Subject,
) -> Result<Option<User>, AdminError> {
    match subject {
        Subject::OpenId(openid) => Ok(Some(User { app_id: app_id.clone(), openid })),
        Subject::Name(name) => {
            let names = process.access_log.user_names();
            let names = names.ok_or(BadRequest("set log.openid_key to look up a user by name"))?;
            let matches = move |openid: &OpenId| names.name(openid) == name;
            Ok(process.sessions.find_user(app_id, matches).await?)
        }
    }
}

fn listing(process: &Process, sessions: &[Arc<Session>], blocked_until: Option<u64>) -> Done {
    #[derive(Serialize)]
    struct Entry {
        id: String,
        created: String,
        last_seen: String,
        client: String,
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
    };
    let entries = sessions.iter().map(entry).collect();
    let listing = Listing { sessions: entries, blocked_until: blocked_until.map(time) };
    Done { response: OwnResponse::json(200, &listing), sessions: sessions.len() }
}

/// Revokes the session with this id, or all sessions, and returns how many.
async fn revoke(process: &Process, user: &User, id: Option<&str>) -> Result<usize, Failed> {
    let mut sessions = process.sessions.of_user(user).await?;
    if let Some(id) = id {
        sessions.retain(|session| session.digest().id() == id);
        if sessions.is_empty() {
            return Err(AdminError::NoSession.into());
        }
    }
    for (revoked, session) in sessions.iter().enumerate() {
        let result = process.sessions.revoke(session.digest()).await;
        result.map_err(|error| Failed { error: error.into(), sessions: revoked })?;
    }
    Ok(sessions.len())
}
