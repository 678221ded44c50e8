//! A login by redirect: to WeChat's page, and back with a code.
//!
//! Official accounts log in inside WeChat, websites outside of it, so `User-Agent` selects the app.
//! WeChat sometimes calls the callback twice. State, code and cookie together get one outcome for a
//! minute, on every gateway that shares a store, and no second exchange; the state with another
//! code, and the code with another state, are rejected. The state's cookie stays for that minute,
//! because the first response may be lost. Sources: WeChat's documentation of web logins, RFC 9700
//! (sections 2.1.2 and 4.7).

use std::fmt::Write as _;

use http::header::SET_COOKIE;
use sha2::{Digest, Sha256};

use self::callbacks::{Callbacks, REPEATS};
use super::page_request::is_wechat;
use super::pages::{self, Reason};
use super::state::{LIFETIME, State, States, is_state};
use crate::access::browsers::BrowserHost;
use crate::clock::Clock;
use crate::config::{Browser, Config};
use crate::identity::AppId;
use crate::identity::secret::SealKey;
use crate::identity::token::SessionToken;
use crate::login::{Login, LoginFacts, Sender};
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::session::Sessions;

mod callbacks;

/// The longest path, with its query, to which a browser returns, in bytes.
const LONGEST_RETURN: usize = 2 << 10;

/// The logins by redirect of one configuration.
pub struct Redirects {
    states: States,
    callbacks: Callbacks,
    start: String,
    callback: String,
}

/// A callback, as it was received.
pub struct Completion {
    pub origin: String,
    /// The query of the callback's URL.
    pub query: String,
    /// The value of the state's cookie.
    pub cookie: Vec<u8>,
}

/// A user who has logged in.
pub struct LoggedIn {
    pub token: SessionToken,
    pub return_to: String,
    /// The state, whose cookie is kept for a while.
    pub state: String,
}

impl Redirects {
    /// `key` is one of this process, for a configuration without seal keys.
    pub fn new(config: &Config, key: &SealKey, sessions: Sessions, clock: &Clock) -> Self {
        let own = [key.clone()];
        let keys = &config.session.seal_keys;
        let first = |paths: &[crate::config::RoutePath]| {
            paths.first().map_or_else(String::new, |path| path.as_str().to_owned())
        };
        Self {
            states: States::new(if keys.is_empty() { &own } else { keys }, clock),
            callbacks: Callbacks::new(sessions, clock, config.longest_login()),
            start: first(&config.endpoints.start),
            callback: first(&config.endpoints.callback),
        }
    }

    /// Sends a browser to WeChat. After the login it goes to `return_to`.
    ///
    /// # Errors
    /// Why this browser cannot log in; `None`: the host has no app.
    pub fn begin(
        &self,
        host: &BrowserHost,
        headers: &impl Headers,
        return_to: &str,
    ) -> Result<OwnResponse, Option<Reason>> {
        let section = &host.section;
        let app_id = app_for(section, headers)?;
        let state = State { app_id: app_id.as_str().to_owned(), return_to: return_to.to_owned() };
        let begun = self.states.begin(&host.origin, &state);
        let begun = begun.ok_or(Some(Reason::Failed(Rejection::InternalError)))?;
        let mut response = pages::redirect(&self.authorize_url(host, app_id, &begun.text));
        for surplus in States::surplus(host.others(headers), begun.cookie.len()) {
            response.header(SET_COOKIE, host.cleared(surplus));
        }
        response.header(SET_COOKIE, host.set(&begun.text, &begun.cookie, LIFETIME));
        Ok(response)
    }

    /// The URL at which a script can begin a login; `None`: this browser cannot log in here.
    pub fn login_url(&self, host: &BrowserHost, headers: &impl Headers) -> Option<String> {
        app_for(&host.section, headers).ok()?;
        Some(format!("{}{}", host.origin, self.start))
    }

    /// The path at which a login begins that returns to `return_to`.
    pub fn start_path(&self, return_to: &str) -> String {
        let encoded: String = form_urlencoded::byte_serialize(return_to.as_bytes()).collect();
        format!("{}?return={encoded}", self.start)
    }

    /// The state that a callback names, if it names one.
    pub fn state_of(query: &str) -> Option<String> {
        parameter(query, "state").ok().flatten().filter(|state| is_state(state))
    }

    /// The URL of WeChat's login page. The order of the parameters and the fragment are WeChat's.
    fn authorize_url(&self, host: &BrowserHost, app_id: &AppId, state: &str) -> String {
        let section = &host.section;
        let (page, scope) = if section.official_account.as_ref() == Some(app_id) {
            ("/connect/oauth2/authorize", section.scope.as_str())
        } else {
            ("/connect/qrconnect", "snsapi_login")
        };
        let back = format!("{}{}", host.origin, self.callback);
        let back: String = form_urlencoded::byte_serialize(back.as_bytes()).collect();
        format!(
            "{}{page}?appid={}&redirect_uri={back}&response_type=code&scope={scope}&state={state}\
             #wechat_redirect",
            section.authorize_base_url,
            app_id.as_str()
        )
    }

    /// Completes a login: turns the code of a callback into a session, once. Also returns what the
    /// access log says, and where the browser may begin again.
    ///
    /// # Errors
    /// What the page for the user says.
    pub async fn complete(
        &self,
        callback: Completion,
        login: &Login,
        sender: Sender<'_>,
    ) -> (LoginFacts, String, Result<LoggedIn, Reason>) {
        let opened = Self::state_of(&callback.query).and_then(|text| {
            let state = self.states.open(&callback.origin, &text, &callback.cookie)?;
            Some((text, state))
        });
        let Some((text, state)) = opened else {
            return (LoginFacts::default(), "/".to_owned(), Err(Reason::NotBegun));
        };
        let code = match parameter(&callback.query, "code") {
            Ok(Some(code)) if !code.is_empty() => code,
            // Without a code, the user has declined.
            Ok(_) => return (LoginFacts::default(), state.return_to, Err(Reason::Denied)),
            Err(Repeated) => {
                return (LoginFacts::default(), state.return_to, Err(Reason::NotBegun));
            }
        };
        let (facts, result) = self.once(&text, &state, &code, login, sender).await;
        let result = result.map_err(Reason::Failed);
        let logged_in =
            result.map(|token| LoggedIn { token, return_to: state.return_to.clone(), state: text });
        (facts, state.return_to, logged_in)
    }

    /// Runs the login of a state and a code, or returns the outcome that it had.
    async fn once(
        &self,
        text: &str,
        state: &State,
        code: &str,
        login: &Login,
        sender: Sender<'_>,
    ) -> (LoginFacts, Result<SessionToken, Rejection>) {
        let none = LoginFacts::default;
        let digest: [u8; 32] = Sha256::digest(code).into();
        match self.callbacks.claim(text, digest).await {
            Ok(None) => {}
            Ok(Some(token)) => return (none(), Ok(token)),
            Err(rejection) => return (none(), Err(rejection)),
        }
        let Some(app_id) = AppId::parse(&state.app_id) else {
            return (none(), Err(Rejection::InternalError));
        };
        let (facts, outcome) = login.by_redirect(&app_id, text, code, sender).await;
        let outcome = outcome.and_then(|grant| {
            let token = SessionToken::parse(grant.token.expose());
            token.ok_or(Rejection::InternalError)
        });
        // If the store fails here, a repeat gets no outcome, and its page says to try again.
        let _ = self.callbacks.complete(text, digest, &outcome).await;
        (facts, outcome)
    }
}

/// The app of a host for this browser.
///
/// # Errors
/// What the page for the user says; `None`: the host has no app.
pub fn app_for<'a>(
    section: &'a Browser,
    headers: &impl Headers,
) -> Result<&'a AppId, Option<Reason>> {
    match (&section.official_account, &section.website, is_wechat(headers)) {
        (Some(app_id), _, true) | (_, Some(app_id), false) => Ok(app_id),
        (Some(_), None, false) => Err(Some(Reason::OnlyInWeChat)),
        (None, Some(_), true) => Err(Some(Reason::OnlyOutside)),
        (None, None, _) => Err(None),
    }
}

/// Where a browser goes after a login: `wanted`, if that is a path of this host and can be in a
/// URL. It may have a query and a fragment, in which some pages keep their own routes. `None`: it
/// goes to `/`. The caller checks which route the path matches.
pub fn safe_return(wanted: &str) -> Option<String> {
    let rest = wanted.strip_prefix('/')?;
    // Browsers take `//` and `/\` for the beginning of another host.
    if rest.starts_with(['/', '\\']) || wanted.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return None;
    }
    let mut path = String::with_capacity(wanted.len());
    for byte in wanted.bytes() {
        match byte {
            0x80.. => {
                // Writing to a string cannot fail.
                let _ = write!(path, "%{byte:02X}");
            }
            byte => path.push(char::from(byte)),
        }
    }
    (path.len() <= LONGEST_RETURN).then_some(path)
}

/// A parameter occurs more than once: two readers could take two different values.
struct Repeated;

/// The value of a parameter, if it occurs.
fn parameter(query: &str, name: &str) -> Result<Option<String>, Repeated> {
    let mut values = form_urlencoded::parse(query.as_bytes()).filter(|(other, _)| other == name);
    let first = values.next().map(|(_, value)| value.into_owned());
    if values.next().is_some() { Err(Repeated) } else { Ok(first) }
}

/// Adds the cookies of a login to its response.
pub fn log_in(host: &BrowserHost, logged_in: &LoggedIn, cookie: &[u8]) -> OwnResponse {
    let mut location = logged_in.return_to.clone();
    // WeChat's page has a fragment, which a browser adds to the URLs of redirects that have none.
    if !location.contains('#') {
        location.push('#');
    }
    let mut response = pages::redirect(&location);
    response.header(SET_COOKIE, host.session_cookie(&logged_in.token));
    if let Ok(value) = std::str::from_utf8(cookie) {
        response.header(SET_COOKIE, host.set(&logged_in.state, value, REPEATS));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_path_stays_on_its_host() {
        for path in ["/", "/a", "/a?b=c&d=//e", "/a//b", "/@evil.com", "/:80", "/%2f%2fevil", "/."]
        {
            assert_eq!(safe_return(path).as_deref(), Some(path));
        }
        assert_eq!(safe_return("/中").as_deref(), Some("/%E4%B8%AD"));
        assert_eq!(safe_return("/a#/b").as_deref(), Some("/a#/b"));
        let long = format!("/{}", "a".repeat(LONGEST_RETURN - 1));
        assert_eq!(safe_return(&long), Some(long.clone()));
        for path in [
            "",
            "a",
            "//evil.com",
            "/\\evil.com",
            "\\evil.com",
            "https://evil.com",
            "/\t/evil.com",
            "/\n/evil.com",
            " /a",
            "/a b",
            "/\u{7f}",
            "/a\r\nSet-Cookie: x",
            &format!("{long}a"),
            "javascript:alert(1)",
        ] {
            assert_eq!(safe_return(path), None, "{path}");
        }
    }
}
