//! What the `[[browser]]` of a request's host does with the request: its cookie, and the login.

use std::fmt::{self, Formatter};

use serde::Serialize;

use super::DescribedRequest;
use crate::access::authenticator::reads_cookie;
use crate::access::browsers::BrowserHost;
use crate::access::cross_site::Site;
use crate::browser::page_request::is_page_request;
use crate::browser::redirect::app_for;
use crate::config::{Access, Config, Route as RouteSection};
use crate::route::Route;

/// The `[[browser]]` of the request's host.
#[derive(Debug, Serialize)]
pub struct ExplainedBrowser {
    pub base_url: String,
    /// Name of the session cookie.
    pub cookie: String,
    /// Whether the request's token is in this cookie: it has one, and none in a header.
    pub is_read: bool,
    /// Whether a session that is found by this cookie is rejected with 403 `cross_site`.
    pub is_cross_site: bool,
    /// What the request gets without a session, if the route needs one: `redirect` to WeChat,
    /// `page` (that says where to open it), or `json` (401).
    pub without_session: Option<&'static str>,
    /// The app to which it is redirected.
    pub app: Option<String>,
}

impl ExplainedBrowser {
    /// For a request to a route with this access.
    pub fn new(
        config: &Config,
        host: &BrowserHost,
        (section, route): (&RouteSection, &Route),
        request: &DescribedRequest,
        (access, is_websocket): (Access, bool),
    ) -> Self {
        let (method, headers) = (&request.method, &request.headers);
        let is_read = access != Access::None && reads_cookie(headers, &config.session, host);
        let site = Site { host: Some(host), method, is_websocket, cors: route.cors.as_ref() };
        let app = app_for(&host.section, headers);
        let is_page = section.redirects && is_page_request(method, headers);
        Self {
            base_url: host.section.base_url.to_string(),
            cookie: host.section.cookie.clone(),
            is_read,
            is_cross_site: is_read && site.check(headers).is_err(),
            without_session: (access == Access::Required).then_some(match &app {
                Ok(_) if is_page => "redirect",
                Err(Some(_)) if is_page => "page",
                _ => "json",
            }),
            app: app.ok().filter(|_| is_page).map(|app_id| app_id.as_str().to_owned()),
        }
    }

    pub(super) fn write(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Self { base_url, cookie, .. } = self;
        writeln!(out, "  browser: {base_url}, cookie {cookie}")?;
        if self.is_read {
            writeln!(out, "    the token is that of the cookie: no header has one")?;
        }
        if self.is_cross_site {
            writeln!(
                out,
                "    403 cross_site: the method needs Sec-Fetch-Site: same-origin, or else Origin: \
                 {base_url}"
            )?;
        }
        match (self.without_session, &self.app) {
            (Some("redirect"), Some(app)) => {
                writeln!(out, "    without a session: redirected to WeChat, to log in to {app}")
            }
            (Some("page"), _) => {
                writeln!(out, "    without a session: a page that says where to open this URL")
            }
            (Some(_), _) => writeln!(out, "    without a session: 401 as JSON"),
            (None, _) => Ok(()),
        }
    }
}
