//! A login, from the request's body to the answer.
//!
//! Takes the code in one of the accepted forms and finds the app; logins with one code share
//! an exchange and its answer, which holds the token and nothing of the identity. It does not
//! read sockets: `proxy.rs` hands it the body within its limit.

mod exchange;
mod notices;
mod pace;
mod replay;

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::exchange::Exchange;
use self::replay::{Grant, Key, Replays, Source};
use crate::answer::Answer;
use crate::clock::Clock;
use crate::config::{Config, LoginForms, LoginSection};
use crate::identity::AppId;
use crate::metrics::Metrics;
use crate::rejection::Rejection;
use crate::secret::Secret;
use crate::session::Sessions;
use crate::wechat::{ClientError, Code};

/// Counts logins whose app is not known.
const UNKNOWN_APP: &str = "unknown";

/// Serves logins by one configuration.
pub struct Login {
    section: LoginSection,
    exchange: Arc<Exchange>,
    replays: Replays,
    sessions: Sessions,
    metrics: Arc<Metrics>,
}

/// A login as it was sent.
#[derive(Clone, Copy)]
pub enum LoginRequest<'a> {
    Body { content_type: Option<&'a str>, body: &'a [u8] },
    Query(&'a str),
}

/// What a login says.
#[derive(Deserialize)]
pub struct Fields {
    pub code: Secret,
    pub app_id: Option<String>,
}

impl Login {
    /// Goes on where `previous` was with whatever is configured as it was there: a code that is
    /// under way stays one, an app that is slowed stays slow.
    ///
    /// # Errors
    /// When the client for WeChat cannot be built.
    pub fn new(
        config: &Config,
        previous: Option<&Self>,
        sessions: Sessions,
        clock: &Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientError> {
        let window = config.login.replay_window;
        let longest = config.wechat.queue_timeout + config.wechat.timeout;
        let known = previous.map(|previous| &previous.replays);
        let replays = match known.filter(|known| known.is_for(window, longest)) {
            Some(known) => known.clone(),
            None => Replays::new(window, longest, clock.clone()),
        };
        let previous = previous.map(|previous| &*previous.exchange);
        let exchange = Exchange::new(config, previous, sessions.clone(), clock, metrics.clone())?;
        Ok(Self {
            replays,
            exchange: Arc::new(exchange),
            section: config.login.clone(),
            sessions,
            metrics,
        })
    }

    /// Frees what is over. Called every second.
    pub fn maintain(&self) {
        self.replays.maintain();
    }

    /// Bytes of body that a login may have.
    pub fn max_body(&self) -> usize {
        self.section.max_body
    }

    /// Whether `GET` with a query is taken.
    pub fn accepts_query(&self) -> bool {
        self.section.accept.query
    }

    /// Counts a login that was refused before it could be read.
    pub fn refused(&self, rejection: &Rejection) {
        self.metrics.login(UNKNOWN_APP, rejection.error());
    }

    /// Serves one login that `client` sent. Whatever comes of it is counted.
    ///
    /// # Errors
    /// The refusal to answer with; its cause is in the log.
    pub async fn serve(
        &self,
        request: LoginRequest<'_>,
        client: IpAddr,
        request_id: &str,
    ) -> Result<Answer, Rejection> {
        let mut app_id = UNKNOWN_APP;
        let outcome = self.run(request, client, request_id, &mut app_id).await;
        let word = outcome.as_ref().map_or_else(Rejection::error, |_| "ok");
        self.metrics.login(app_id, word);
        outcome
    }

    async fn run<'a>(
        &'a self,
        request: LoginRequest<'_>,
        client: IpAddr,
        request_id: &str,
        counted_app: &mut &'a str,
    ) -> Result<Answer, Rejection> {
        let fields = parse(request, self.section.accept)?;
        let asked = self.app(fields.app_id.as_deref());
        let (index, app_id) = asked.map_err(Rejection::BadRequest)?;
        let app_id = app_id.as_str();
        *counted_app = app_id;
        if Code::is_mock(fields.code.expose()) {
            return Err(Rejection::InvalidCode);
        }
        let code = Code::parse(fields.code.expose())
            .ok_or(Rejection::BadRequest("code is not one of wx.login"))?;

        let key = Key::of(app_id, fields.code.expose());
        let (exchange, request_id) = (self.exchange.clone(), request_id.to_owned());
        let trade = || async move { exchange.trade(index, code, client, &request_id).await };
        let (outcome, source) = self.replays.share(key, trade).await;
        if source != Source::Own {
            self.metrics.login_coalesced();
        }
        let grant = outcome?;
        if source == Source::Repeated && !self.is_live(&grant).await? {
            return Err(Rejection::InvalidCode);
        }
        Ok(granted(&grant))
    }

    /// Whether nobody has ended the session since.
    async fn is_live(&self, grant: &Grant) -> Result<bool, Rejection> {
        let known = self.sessions.knows(&grant.token.digest()).await;
        known.map_err(|_| Rejection::StoreUnavailable)
    }

    /// The index and the id of an app that is asked for, or of the default one.
    ///
    /// # Errors
    /// Why there is none.
    pub fn app(&self, app_id: Option<&str>) -> Result<(usize, &AppId), &'static str> {
        let mut apps = self.exchange.apps.iter().map(|(app, _)| app).enumerate();
        let found = match app_id {
            Some(app_id) => apps.find(|(_, app)| app.app_id.as_str() == app_id),
            None => apps.find(|(_, app)| app.is_default),
        };
        found.map(|(index, app)| (index, &app.app_id)).ok_or(match app_id {
            Some(_) => "this app_id is not known here",
            None => "app_id is needed: there are several apps and no default",
        })
    }
}

fn granted(grant: &Grant) -> Answer {
    #[derive(Serialize)]
    struct Granted<'a> {
        token: &'a str,
        token_type: &'static str,
        expires_in: u64,
    }

    let (token, expires_in) = (grant.token.expose(), grant.expires_in.as_secs());
    Answer::json(200, &Granted { token, token_type: "Bearer", expires_in })
}

/// Takes the fields of a login out of what was sent.
///
/// # Errors
/// When it is in no form that is accepted, or says something twice.
pub fn parse(request: LoginRequest<'_>, accept: LoginForms) -> Result<Fields, Rejection> {
    match request {
        // Whether it is accepted was judged with the method.
        LoginRequest::Query(query) => parse_form(query.as_bytes()),
        LoginRequest::Body { content_type, body } => match media_type(content_type).as_str() {
            "" | "text/plain" | "application/json" if accept.json => parse_json(body),
            "application/x-www-form-urlencoded" if accept.form => parse_form(body),
            _ => Err(Rejection::BadRequest("a login of this Content-Type is not taken")),
        },
    }
}

/// The media type in lower case, without parameters; empty where there is none.
fn media_type(content_type: Option<&str>) -> String {
    let whole = content_type.unwrap_or_default();
    whole.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A repeated field is an error: two readers could take two codes from it.
fn parse_json(body: &[u8]) -> Result<Fields, Rejection> {
    // serde would read the fields from an array too.
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let fields = is_object.then(|| serde_json::from_slice(body).ok()).flatten();
    fields.ok_or(Rejection::BadRequest("expected a JSON object with one \"code\""))
}

fn parse_form(body: &[u8]) -> Result<Fields, Rejection> {
    let mut code = None;
    let mut app_id = None;
    for (name, value) in form_urlencoded::parse(body) {
        let field = match &*name {
            "code" => &mut code,
            "app_id" => &mut app_id,
            _ => continue,
        };
        if field.replace(value.into_owned()).is_some() {
            return Err(Rejection::BadRequest("a field stands twice"));
        }
    }
    let code = code.ok_or(Rejection::BadRequest("expected one field \"code\""))?;
    Ok(Fields { code: Secret::new(code), app_id })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: LoginForms = LoginForms { json: true, form: true, query: true };

    fn code(content_type: Option<&str>, body: &str, accept: LoginForms) -> Option<String> {
        let request = LoginRequest::Body { content_type, body: body.as_bytes() };
        parse(request, accept).ok().map(|fields| fields.code.expose().to_owned())
    }

    #[test]
    fn the_form_is_told_by_the_content_type() {
        let json = r#"{"code":"abc","x":[1,{"y":2}]}"#;
        for content_type in [
            None,
            Some("text/plain"),
            Some("application/json; charset=utf-8"),
            Some("Application/JSON"),
        ] {
            assert_eq!(code(content_type, json, ALL).as_deref(), Some("abc"), "{content_type:?}");
        }
        let form = Some("application/x-www-form-urlencoded");
        assert_eq!(code(form, "x=1&code=a%62c", ALL).as_deref(), Some("abc"));
        assert_eq!(code(form, json, ALL), None);
        assert_eq!(code(None, "code=abc", ALL), None);
        assert_eq!(code(Some("multipart/form-data"), json, ALL), None);
        assert_eq!(code(None, json, LoginForms { json: false, ..ALL }), None);
        assert_eq!(code(form, "code=abc", LoginForms { form: false, ..ALL }), None);
    }

    #[test]
    fn what_is_not_one_code_is_refused() {
        for body in [
            "",
            "null",
            "[]",
            "[\"abc\"]",
            "\"abc\"",
            "{}",
            "{",
            r#"{"code":1}"#,
            r#"{"code":null}"#,
            r#"{"code":["a"]}"#,
            r#"{"code":"a","code":"b"}"#,
            r#"{"code":"a","app_id":"x","app_id":"y"}"#,
            r#"["abc",null]"#,
            r#"{"code":"a"} x"#,
            "\u{feff}{\"code\":\"a\"}",
        ] {
            assert_eq!(code(None, body, ALL), None, "{body}");
        }
        for body in ["", "x=1", "code=a&code=b", "code=a&app_id=x&app_id=y"] {
            assert_eq!(code(Some("application/x-www-form-urlencoded"), body, ALL), None, "{body}");
        }
    }
}
