//! WeChat's login pages: the one of official accounts, which phones show, and the one of websites,
//! which has a QR code. Instead of a phone, links choose who logs in and what happens.
//!
//! A page ends with a redirect to the `redirect_uri` of its own URL. WeChat allows only the hosts
//! of the app; the sandbox does not know them, and redirects to every http and https URL. So it must
//! never be reachable by others.

mod html;

use std::time::Duration;

use http::header::{CACHE_CONTROL, COOKIE, HeaderValue, LOCATION, SET_COOKIE};
use reqwest::Url;

use super::codes::CODE_LIFETIME;
use super::login::{LoginCode, PageLogin};
use super::users::is_user_name;
use super::{Request, Response, Sandbox, parameter, response};

/// Lifetime of the codes of websites (网站应用微信登录 as of 2026-07-20).
const WEBSITE_CODE_LIFETIME: Duration = Duration::from_secs(600);

/// How long the exchange of a slow code takes.
const SLOW: Duration = Duration::from_secs(2);

/// Longest state, in bytes.
const LONGEST_STATE: usize = 128;

/// The parameters of a page, in the order in which WeChat requires them.
const PARAMETERS: [&str; 5] = ["appid", "redirect_uri", "response_type", "scope", "state"];

/// The cookie that names the user of this browser, who is logged in silently.
const USER_COOKIE: &str = "sandbox_user";

/// A login page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum LoginPage {
    OfficialAccount,
    Website,
}

/// The parameters of a login page, which are valid.
struct LoginLink {
    page: LoginPage,
    app_id: String,
    redirect_uri: Url,
    scope: &'static str,
    state: String,
}

/// Why a page shows an error: WeChat's number, and what is wrong.
struct PageError(u32, &'static str);

/// What happens after a link was chosen.
enum Choice {
    Allow {
        user: String,
        delay: Duration,
        is_snapshot: bool,
    },
    /// The user denies, and WeChat redirects without a code.
    Deny,
    /// The user denies, and WeChat closes the page.
    Close,
}

impl LoginPage {
    pub fn at(path: &str) -> Option<Self> {
        match path {
            "/connect/oauth2/authorize" => Some(Self::OfficialAccount),
            "/connect/qrconnect" => Some(Self::Website),
            _ => None,
        }
    }

    fn scopes(self) -> &'static [&'static str] {
        match self {
            Self::OfficialAccount => &["snsapi_base", "snsapi_userinfo"],
            Self::Website => &["snsapi_login"],
        }
    }

    fn code_lifetime(self) -> Duration {
        match self {
            Self::OfficialAccount => CODE_LIFETIME,
            Self::Website => WEBSITE_CODE_LIFETIME,
        }
    }
}

impl Choice {
    /// The choice in the query of a page; `None`: nothing was chosen yet.
    ///
    /// # Errors
    /// When it means nothing.
    fn parse(query: &str) -> Result<Option<Self>, PageError> {
        let (user, answer) = (parameter(query, "user"), parameter(query, "answer"));
        let (delay, is_snapshot) = match answer.as_str() {
            "deny" => return Ok(Some(Self::Deny)),
            "close" => return Ok(Some(Self::Close)),
            "" | "allow" if user.is_empty() => return Ok(None),
            "" | "allow" => (Duration::ZERO, false),
            "slow" => (SLOW, false),
            "snapshot" => (Duration::ZERO, true),
            _ => return Err(PageError(40097, "answer is not one of the sandbox")),
        };
        if !is_user_name(&user) {
            return Err(PageError(40097, "user is not a name of a user of the sandbox"));
        }
        Ok(Some(Self::Allow { user, delay, is_snapshot }))
    }
}

impl Sandbox {
    /// Shows a login page, or redirects if the user is known.
    pub(super) fn login_page(&self, page: LoginPage, request: &Request) -> Response {
        let query = request.uri().query().unwrap_or_default();
        let outcome = self.link(page, query).and_then(|link| Ok((link, Choice::parse(query)?)));
        let (link, choice) = match outcome {
            Ok(read) => read,
            Err(PageError(number, what)) => return html::error(number, what),
        };
        let silent = || {
            let user = user_of(request).filter(|_| link.scope == "snsapi_base")?;
            Some(Choice::Allow { user, delay: Duration::ZERO, is_snapshot: false })
        };
        match choice.or_else(silent) {
            None => html::choices(&link),
            Some(Choice::Close) => html::closed(),
            Some(Choice::Deny) => link.redirect(None),
            Some(Choice::Allow { user, delay, is_snapshot }) => {
                let login = PageLogin { app_id: link.app_id.clone(), scope: link.scope };
                let code = LoginCode { user, is_snapshot, page: Some(login) };
                let code = self.codes.issue_for(code, page.code_lifetime(), delay);
                link.redirect(Some(&code))
            }
        }
    }

    /// Checks the parameters of a page, as WeChat does.
    fn link(&self, page: LoginPage, query: &str) -> Result<LoginLink, PageError> {
        let mut expected = PARAMETERS.iter();
        for (name, _) in form_urlencoded::parse(query.as_bytes()) {
            let is_known = PARAMETERS.contains(&&*name);
            if is_known && !expected.any(|next| *next == name) {
                return Err(PageError(40097, "the parameters are repeated or in another order"));
            }
        }
        let [app_id, redirect_uri, response_type, scope, state] =
            PARAMETERS.map(|name| parameter(query, name));
        for (value, number, what) in [
            (&app_id, 10012, "appid is empty"),
            (&redirect_uri, 10011, "redirect_uri is empty"),
            (&scope, 10010, "scope is empty"),
            (&state, 10013, "state is empty"),
        ] {
            if value.is_empty() {
                return Err(PageError(number, what));
            }
        }
        if !self.apps.iter().any(|(known, _)| *known == app_id) {
            return Err(PageError(40013, "appid is not that of an app"));
        }
        let redirect_uri = Url::parse(&redirect_uri).ok();
        let redirect_uri = redirect_uri
            .filter(|uri| matches!(uri.scheme(), "http" | "https") && uri.host_str().is_some());
        let redirect_uri =
            redirect_uri.ok_or(PageError(10003, "redirect_uri is not an http or https URL"))?;
        if response_type != "code" {
            return Err(PageError(40097, "response_type is not \"code\""));
        }
        let scope = page.scopes().iter().find(|known| **known == scope);
        let scope = scope.ok_or(PageError(10005, "scope is not one of this page"))?;
        let is_state =
            state.len() <= LONGEST_STATE && state.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_state {
            return Err(PageError(10013, "state is not at most 128 letters and digits"));
        }
        Ok(LoginLink { page, app_id, redirect_uri, scope, state })
    }

    /// Sets or removes the user of this browser.
    pub(super) fn browser_user(request: &Request) -> Response {
        let name = parameter(request.uri().query().unwrap_or_default(), "name");
        if !name.is_empty() && !is_user_name(&name) {
            return html::error(40097, "name is not a name of a user of the sandbox");
        }
        let mut response = html::browser_user(&name);
        let life = if name.is_empty() { "; Max-Age=0" } else { "" };
        let cookie = format!("{USER_COOKIE}={name}; Path=/; HttpOnly; SameSite=Lax{life}");
        if let Ok(cookie) = HeaderValue::try_from(cookie) {
            response.headers_mut().insert(SET_COOKIE, cookie);
        }
        response
    }
}

impl LoginLink {
    /// The URL of the page, with a choice.
    fn with_choice(&self, user: &str, answer: &str) -> String {
        let path = match self.page {
            LoginPage::OfficialAccount => "/connect/oauth2/authorize",
            LoginPage::Website => "/connect/qrconnect",
        };
        let values = [&self.app_id, self.redirect_uri.as_str(), "code", self.scope, &self.state];
        let query = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(PARAMETERS.iter().zip(values))
            .append_pair("user", user)
            .append_pair("answer", answer)
            .finish();
        format!("{path}?{query}")
    }

    /// Redirects to the app, with a code if the user has allowed it.
    fn redirect(&self, code: Option<&str>) -> Response {
        let mut uri = self.redirect_uri.clone();
        if let Some(code) = code {
            uri.query_pairs_mut().append_pair("code", code);
        }
        uri.query_pairs_mut().append_pair("state", &self.state);
        let mut response = response(302, "text/plain", "");
        let headers = response.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // A serialized URL is ASCII.
        if let Ok(location) = HeaderValue::try_from(uri.as_str()) {
            headers.insert(LOCATION, location);
        }
        response
    }
}

/// The user that the browser's cookie names.
fn user_of(request: &Request) -> Option<String> {
    let cookies = request.headers().get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
    let mut pairs = cookies.flat_map(|line| line.split(';')).filter_map(|p| p.split_once('='));
    let (_, user) = pairs.find(|(name, _)| name.trim() == USER_COOKIE)?;
    let user = user.trim();
    is_user_name(user).then(|| user.to_owned())
}
