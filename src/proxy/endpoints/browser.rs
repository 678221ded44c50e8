//! Logins of browsers by redirect: their start, their callback, and what a page request without a
//! session gets.

use http::Method;
use http::header::REFERER;

use crate::browser::page_request::{Language, is_declared_hidden, is_page_request};
use crate::browser::pages::{self, Reason};
use crate::browser::redirect::{log_in, safe_return};
use crate::browser::{Completion, Redirects};
use crate::login::Sender;
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::proxy::Gateway;
use crate::proxy::failure::Stop;
use crate::proxy::request::Request;
use crate::route::{Endpoint, RouteLookup};

impl Gateway {
    /// Begins a login. The parameter `return` says where the browser goes afterwards.
    ///
    /// # Errors
    /// A script, a frame or a prefetch begins no login: it could not complete it.
    pub(in crate::proxy) fn start(request: &mut Request) -> Result<OwnResponse, Rejection> {
        if is_declared_hidden(&request.method, &request.lines) {
            return Err(Rejection::MissingToken);
        }
        let query = request.query().unwrap_or_default();
        let mut wanted =
            form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "return");
        let wanted = match (wanted.next(), wanted.next()) {
            (Some((_, wanted)), None) => wanted.into_owned(),
            _ => "/".to_owned(),
        };
        let return_to = return_path(request, &wanted);
        Self::begin_login(request, &return_to)
    }

    /// Completes a login.
    pub(in crate::proxy) async fn callback(
        &self,
        request: &mut Request,
    ) -> Result<OwnResponse, Stop> {
        let received_at_millis = self.process.clock.now_millis();
        let policy = request.policy.clone();
        let (host, redirects) =
            request.browser().zip(policy.redirects.as_ref()).ok_or(Rejection::NoRoute)?;
        let client = request.client.address;
        if let Err(rejection) = policy.check_address(client, policy.login_rate.as_deref()) {
            policy.login.count_rejected(&rejection);
            return Ok(show(request, &Reason::Failed(rejection), "/"));
        }
        let query = request.query().unwrap_or_default().to_owned();
        let state = Redirects::state_of(&query).unwrap_or_default();
        let cookie = host.value(&request.lines, &state).unwrap_or_default().to_vec();
        let callback = Completion { origin: host.origin.clone(), query, cookie: cookie.clone() };
        let referer = request.lines.first(&REFERER);
        let referer = referer.and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned);
        let request_id = request.id_text().to_owned();
        let logins = policy.clone();
        // A task of its own: a repeated callback gets its outcome even if this client disconnects.
        let completed = tokio::spawn(async move {
            let redirects = logins.redirects.as_ref()?;
            let sender = Sender {
                client,
                request_id: &request_id,
                referer: referer.as_deref(),
                received_at_millis,
            };
            Some(redirects.complete(callback, &logins.login, sender).await)
        });
        let (facts, return_to, result) =
            completed.await.ok().flatten().ok_or(Rejection::InternalError)?;
        let response = match &result {
            Ok(logged_in) => log_in(host, logged_in, &cookie),
            Err(reason) => {
                let again = redirects.start_path(&return_to);
                let response = page(request, reason, &again);
                request.rejection = Some(reason.rejection());
                response
            }
        };
        request.login = facts.app_id.is_some().then(|| Box::new(facts));
        Ok(response)
    }

    /// What a page request gets instead of a rejection, if its route sends browsers to WeChat.
    pub(in crate::proxy) fn page_instead(
        request: &mut Request,
        rejection: &Rejection,
    ) -> Option<OwnResponse> {
        let redirects = request.route().is_some_and(|route| route.redirects);
        if !redirects
            || *rejection != Rejection::MissingToken
            || !is_page_request(&request.method, &request.lines)
        {
            return None;
        }
        let wanted = request.text(request.header.path_and_query).to_owned();
        let return_to = safe_return(&wanted).unwrap_or_else(|| "/".to_owned());
        Self::begin_login(request, &return_to).ok()
    }

    fn begin_login(request: &mut Request, return_to: &str) -> Result<OwnResponse, Rejection> {
        let policy = request.policy.clone();
        let (host, redirects) =
            request.browser().zip(policy.redirects.as_ref()).ok_or(Rejection::NoRoute)?;
        match redirects.begin(host, &request.lines, return_to) {
            Ok(response) => Ok(response),
            Err(None) => Err(Rejection::MissingToken),
            Err(Some(reason)) => Ok(show(request, &reason, &redirects.start_path(return_to))),
        }
    }
}

/// A page, which has the status and the log entry of its reason.
fn show(request: &mut Request, reason: &Reason, again: &str) -> OwnResponse {
    let response = page(request, reason, again);
    request.rejection = Some(reason.rejection());
    response
}

fn page(request: &Request, reason: &Reason, again: &str) -> OwnResponse {
    pages::page(reason, Language::of(&request.lines), again, request.id_text())
}

/// The path to which a login returns: `wanted`, if a route of this host serves it.
fn return_path(request: &Request, wanted: &str) -> String {
    let path = safe_return(wanted).filter(|wanted| {
        let path = wanted.split(['?', '#']).next().unwrap_or_default();
        let host = request.header.host.map(|host| request.text(host));
        let lookup = RouteLookup { path, host, method: &Method::GET, headers: &request.lines };
        // Endpoints could begin another login.
        matches!(request.policy.routes.resolve(&lookup), Ok(Endpoint::Route(_)))
    });
    path.unwrap_or_else(|| "/".to_owned())
}
