//! An operator's hold on the sessions of a user: to see them, to end one, to end all.
//!
//! There for whoever shows `admin.token`, and not there where none is configured. A session is
//! named by the first digits of its token's digest, which open nothing. Every session that a
//! login was answered with before the call is ended when its 204 is sent; where the store is
//! shared, on the other gateways as after a logout.

use http::header::{ALLOW, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use http::{HeaderMap, Method};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::answer::Answer;
use crate::http_server::Request;
use crate::identity::{OpenId, User};
use crate::login::Login;
use crate::policy::{Policy, Process};
use crate::secret::Secret;
use crate::session::{Session, StoreError};

pub const PATH: &str = "/sessions";

/// A refusal, in the shape of those of the public listener.
struct Refusal {
    status: u16,
    error: &'static str,
    message: &'static str,
}

impl From<StoreError> for Refusal {
    fn from(_: StoreError) -> Self {
        let message = "the session store does not answer; what was to be ended may go on";
        Self { status: 503, error: "store_unavailable", message }
    }
}

/// Answers a request for [`PATH`] or, where it names a session, for what is below it.
pub async fn answer(
    process: &Process,
    policy: &Policy,
    token: &Secret,
    request: &Request,
    id: Option<&str>,
) -> Answer {
    if !is_shown(token, request.headers()) {
        let message = "Authorization: Bearer with admin.token is needed";
        let mut refused = refused(&Refusal { status: 401, error: "unauthorized", message });
        refused.header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return refused;
    }
    let allowed = if id.is_some() { "DELETE" } else { "GET, HEAD, DELETE" };
    let is_look = matches!(*request.method(), Method::GET | Method::HEAD) && id.is_none();
    if !is_look && request.method() != Method::DELETE {
        let message = "not by this method";
        let mut refused = refused(&Refusal { status: 405, error: "method_not_allowed", message });
        refused.header(ALLOW, HeaderValue::from_static(allowed));
        return refused;
    }
    let answer = async {
        let user = user(&policy.login, request.uri().query().unwrap_or_default())?;
        if is_look { list(process, &user).await } else { end(process, &user, id).await }
    };
    answer.await.unwrap_or_else(|refusal| refused(&refusal))
}

/// Digests are compared, whose bytes tell nothing about how far a guess is right.
fn is_shown(token: &Secret, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let Some((scheme, shown)) = value.as_bytes().split_at_checked(7) else { return false };
    scheme.eq_ignore_ascii_case(b"bearer ")
        && Sha256::digest(shown.trim_ascii()) == Sha256::digest(token.expose())
}

/// Whose sessions a query is about.
fn user(login: &Login, query: &str) -> Result<User, Refusal> {
    let bad = |message| Refusal { status: 400, error: "bad_request", message };
    let (mut app_id, mut openid) = (None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let field = match &*name {
            "app_id" => &mut app_id,
            "openid" => &mut openid,
            // A word that is not understood might have meant fewer sessions.
            _ => return Err(bad("app_id and openid are what a query may hold")),
        };
        if field.replace(value).is_some() {
            return Err(bad("a field stands twice"));
        }
    }
    let openid = openid.and_then(|openid| OpenId::parse(&openid));
    let openid = openid.ok_or(bad("an openid is needed"))?;
    let app_id = login.app(app_id.as_deref()).map_err(bad)?.1.clone();
    Ok(User { app_id, openid })
}

async fn list(process: &Process, user: &User) -> Result<Answer, Refusal> {
    #[derive(Serialize)]
    struct Listed {
        id: String,
        created: String,
        last_seen: String,
        client: String,
    }
    #[derive(Serialize)]
    struct Sessions {
        sessions: Vec<Listed>,
    }

    let time = |millis| {
        let wall = std::time::Duration::from_millis(process.clock.to_wall(millis));
        humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + wall).to_string()
    };
    let listed = |session: &Session| Listed {
        id: session.digest().id(),
        created: time(session.created_at_millis),
        last_seen: time(session.last_used()),
        client: session.client.to_string(),
    };
    let sessions = process.sessions.of_user(user).await?;
    let live = sessions.iter().filter(|session| process.sessions.is_live(session));
    let sessions = live.map(|session| listed(session)).collect();
    Ok(Answer::json(200, &Sessions { sessions }))
}

/// Ends the session of this id, or all of them.
async fn end(process: &Process, user: &User, id: Option<&str>) -> Result<Answer, Refusal> {
    let mut sessions = process.sessions.of_user(user).await?;
    if let Some(id) = id {
        sessions.retain(|session| session.digest().id() == id);
        if sessions.is_empty() {
            let message = "the user has no such session";
            return Err(Refusal { status: 404, error: "no_session", message });
        }
    }
    for session in &sessions {
        process.sessions.revoke(session.digest()).await?;
    }
    let (app_id, name) = (user.app_id.as_str(), process.access_log.user(&user.openid));
    tracing::info!(app_id, user = name, count = sessions.len(), "an operator ended sessions");
    Ok(Answer::empty(204))
}

fn refused(refusal: &Refusal) -> Answer {
    #[derive(Serialize)]
    struct Body {
        error: &'static str,
        message: &'static str,
    }
    let Refusal { status, error, message } = *refusal;
    Answer::json(status, &Body { error, message })
}
