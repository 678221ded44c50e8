//! Sessions of a user, for operators: list them, end one or all, block the user.
//!
//! Requires `admin.token`; without a configured token the path does not exist. A session is
//! identified by the first digits of its token's digest, which cannot be used as a token, and a
//! user by the openid or by the name in the access log. When the 204 is sent, every session that
//! was created before the call has ended; with a shared store, other gateways learn of it as they
//! learn of a logout. A block is set before the sessions are ended, so that no login in flight
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
use crate::listener::internal::{Peer, Request};
use crate::login::Apps;
use crate::message::own_response::OwnResponse;
use crate::policy::{Policy, Process};
use crate::session::Session;

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
    End,
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

/// What is logged about an action.
#[derive(Default)]
struct Audit<'a> {
    app_id: Option<&'a str>,
    user: Option<String>,
    sessions: usize,
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
    if !is_shown(token, request.headers()) {
        // Guesses must not fill the log.
        if let Some(suppressed) = process.operator_refusals.suppressed() {
            let outcome = "unauthorized";
            tracing::info!(outcome, request_id, client, suppressed, "operator action");
        }
        return Err(AdminError::Unauthorized);
    }
    let is_look = matches!(*request.method(), Method::GET | Method::HEAD) && id.is_none();
    if !is_look && request.method() != Method::DELETE {
        let allowed = if id.is_some() { "DELETE" } else { "GET, HEAD, DELETE" };
        return Err(AdminError::MethodNotAllowed(allowed));
    }
    let query = request.uri().query().unwrap_or_default();
    let mut audit = Audit::default();
    let acted = act(process, policy, query, is_look, id, &mut audit).await;
    let outcome = acted.as_ref().map_or_else(AdminError::error, |_| "ok");
    let Audit { app_id, user, sessions } = audit;
    let action = word(query, is_look);
    tracing::info!(action, outcome, user, app_id, sessions, request_id, client, "operator action");
    acted
}

/// Compares digests: their bytes do not reveal how much of a guess is right.
fn is_shown(token: &Secret, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, shown)) = value.as_bytes().split_at_checked(7) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ")
        && Sha256::digest(shown.trim_ascii()) == Sha256::digest(token.expose())
}

/// The name of an action in the log, even of a rejected one.
fn word(query: &str, is_look: bool) -> &'static str {
    let mut fields = form_urlencoded::parse(query.as_bytes());
    let block = fields.find(|(name, _)| name == "block");
    match block.map(|(_, time)| block_time(&time)) {
        _ if is_look => "list",
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
    is_look: bool,
    is_of_one: bool,
) -> Result<(&'a AppId, Subject, SessionAction), AdminError> {
    let mut fields = Query::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let field = match &*name {
            "app_id" => &mut fields.app_id,
            "openid" => &mut fields.openid,
            "user" => &mut fields.user,
            "block" => &mut fields.block,
            // An unknown parameter might have meant fewer sessions.
            _ => return Err(BadRequest("a query may have app_id, openid or user, and block")),
        };
        if field.replace(value.into_owned()).is_some() {
            return Err(BadRequest("a parameter is repeated"));
        }
    }
    let app_id = apps.find(fields.app_id.as_deref()).map_err(BadRequest)?.app_id();
    let subject = match (fields.openid, fields.user) {
        (Some(openid), None) => {
            let openid = OpenId::parse(&openid);
            Subject::OpenId(openid.ok_or(BadRequest("openid is malformed"))?)
        }
        (None, Some(name)) if is_name(&name) => Subject::Name(name),
        (None, Some(_)) => {
            return Err(BadRequest("user must be the 16 characters of the access log"));
        }
        _ => return Err(BadRequest("exactly one of openid and user is required")),
    };
    let action = match fields.block {
        None if is_look => SessionAction::List,
        None => SessionAction::End,
        Some(_) if is_look || is_of_one => {
            return Err(BadRequest("block is allowed with DELETE /sessions only"));
        }
        Some(time) => match block_time(&time) {
            Some(Duration::ZERO) => SessionAction::Unblock,
            Some(time) => SessionAction::Block(time),
            None => {
                return Err(BadRequest("block must be a time from 1s to 365d, or 0s to lift it"));
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
    is_look: bool,
    id: Option<&str>,
    audit: &mut Audit<'a>,
) -> Result<OwnResponse, AdminError> {
    let (app_id, subject, action) = parse(policy.login.apps(), query, is_look, id.is_some())?;
    audit.app_id = Some(app_id.as_str());
    let Some(user) = find(process, app_id, subject, audit).await? else {
        return match action {
            SessionAction::Block(_) => Err(AdminError::NoUser),
            SessionAction::List => Ok(listing(process, &[], None)),
            SessionAction::End if id.is_some() => Err(AdminError::NoSession),
            SessionAction::End | SessionAction::Unblock => Ok(OwnResponse::empty(204)),
        };
    };
    let sessions = &process.sessions;
    match action {
        SessionAction::List => {
            let mut found = sessions.of_user(&user).await?;
            found.retain(|session| sessions.is_live(session));
            audit.sessions = found.len();
            return Ok(listing(process, &found, sessions.blocked_until(&user).await?));
        }
        SessionAction::Unblock => sessions.unblock(&user).await?,
        SessionAction::Block(time) => {
            // The block comes first: a login in flight is rejected, or its session exists and is
            // ended below.
            sessions.block(&user, time).await?;
            end(process, &user, None, &mut audit.sessions).await?;
        }
        SessionAction::End => end(process, &user, id, &mut audit.sessions).await?,
    }
    Ok(OwnResponse::empty(204))
}

/// The user with this name, if it has a session or is blocked.
async fn find(
    process: &Process,
    app_id: &AppId,
    subject: Subject,
    audit: &mut Audit<'_>,
) -> Result<Option<User>, AdminError> {
    let names = process.access_log.user_names();
    match subject {
        Subject::OpenId(openid) => {
            audit.user = names.map(|names| names.name(&openid));
            Ok(Some(User { app_id: app_id.clone(), openid }))
        }
        Subject::Name(name) => {
            let names = names.ok_or(BadRequest("user needs log.openid_key, which is not set"))?;
            audit.user = Some(name.clone());
            let is_sought = move |openid: &OpenId| names.name(openid) == name;
            Ok(process.sessions.find_user(app_id, is_sought).await?)
        }
    }
}

fn listing(
    process: &Process,
    sessions: &[Arc<Session>],
    blocked_until: Option<u64>,
) -> OwnResponse {
    #[derive(Serialize)]
    struct Listed {
        id: String,
        created: String,
        last_seen: String,
        client: String,
    }
    #[derive(Serialize)]
    struct Listing {
        sessions: Vec<Listed>,
        blocked_until: Option<String>,
    }

    let time = |millis| {
        let wall = Duration::from_millis(process.clock.to_wall(millis));
        humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + wall).to_string()
    };
    let listed = |session: &Arc<Session>| Listed {
        id: session.digest().id(),
        created: time(session.created_at_millis),
        last_seen: time(session.last_used()),
        client: session.client.to_string(),
    };
    let sessions = sessions.iter().map(listed).collect();
    OwnResponse::json(200, &Listing { sessions, blocked_until: blocked_until.map(time) })
}

/// Ends the session with this id, or all sessions, and counts those that were ended.
async fn end(
    process: &Process,
    user: &User,
    id: Option<&str>,
    ended: &mut usize,
) -> Result<(), AdminError> {
    let mut sessions = process.sessions.of_user(user).await?;
    if let Some(id) = id {
        sessions.retain(|session| session.digest().id() == id);
        if sessions.is_empty() {
            return Err(AdminError::NoSession);
        }
    }
    for session in &sessions {
        process.sessions.revoke(session.digest()).await?;
        *ended += 1;
    }
    Ok(())
}
