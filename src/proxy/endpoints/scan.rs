//! The endpoints of scans: for the page, whose requests have the browser's cookie, and for the
//! phone, whose requests have a session.

use std::future::poll_fn;

use http::header::{CONTENT_TYPE, ORIGIN, SET_COOKIE, USER_AGENT, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method};
use serde::{Deserialize, Serialize};

use super::read_body;
use crate::access::browsers::BrowserHost;
use crate::access::cross_site::SEC_FETCH_SITE;
use crate::browser::scan::{Answer, COOKIE, CodeMaker, Confirmed, Owner, Polled, Scans, Stage};
use crate::config::Access;
use crate::login::LoginFacts;
use crate::message::header::Headers;
use crate::message::own_response::OwnResponse;
use crate::message::rejection::Rejection;
use crate::policy::Policy;
use crate::proxy::Gateway;
use crate::proxy::client::ClientConnection;
use crate::proxy::failure::Stop;
use crate::proxy::request::Request;

/// Longest body of a step, in bytes.
const MAX_BODY: u64 = 1 << 10;

/// The end of the path of a scan's Mini Program code.
const IMAGE: &str = ".png";

/// A step of the phone.
#[derive(Deserialize)]
struct Step {
    action: Action,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Scan,
    Confirm,
    Deny,
}

impl Gateway {
    /// Begins a scan.
    pub(in crate::proxy) async fn start_scan(
        &self,
        request: &Request,
    ) -> Result<OwnResponse, Rejection> {
        #[derive(Serialize)]
        struct Shown<'a> {
            scan_id: &'a str,
            expires_in: u64,
            content: String,
        }

        let policy = &request.policy;
        let scans = scans(policy)?;
        let host = request.browser().ok_or(Rejection::NotFound)?;
        if !is_same_origin(&request.lines, host) {
            return Err(Rejection::CrossSite);
        }
        let address = request.client.address;
        policy.check_address(address, Some(&scans.start_rate))?;
        let user_agent = request.lines.first(&USER_AGENT);
        let started = scans.start(owner(request, host), user_agent, address).await?;
        let mut response = OwnResponse::json(
            200,
            &Shown {
                scan_id: &started.id,
                expires_in: started.expires_in.as_secs(),
                content: scans.content(&host.origin, &started.id),
            },
        );
        let cookie = host.set(COOKIE, started.cookie.expose(), started.cookie_life);
        response.header(SET_COOKIE, cookie);
        Ok(response)
    }

    /// Serves the browser or the phone of a scan that has begun.
    pub(in crate::proxy) async fn scan(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
    ) -> Result<OwnResponse, Stop> {
        let id = request.path().rsplit('/').next().unwrap_or_default().to_owned();
        if request.method == Method::POST {
            return self.take_step(client, request, &id).await;
        }
        if let Some(id) = id.strip_suffix(IMAGE) {
            return Ok(show_code(request, id).await?);
        }
        let polled = tokio::select! {
            polled = self.poll_scan(request, &id) => polled?,
            // A confirmed scan must not be used up for a browser that has disconnected.
            _ = poll_fn(|context| client.poll_disconnect(context)) => {
                return Err(Stop::Disconnected);
            }
        };
        match polled {
            Polled::Stage(stage) => Ok(stage_response(stage)),
            Polled::Confirmed(confirmed) => Ok(self.log_browser_in(request, confirmed).await?),
        }
    }

    async fn poll_scan(&self, request: &Request, id: &str) -> Result<Polled, Rejection> {
        let host = request.browser().ok_or(Rejection::NotFound)?;
        // A page of another site must not log the browser in.
        if request.lines.first(&SEC_FETCH_SITE).is_some()
            && !request.site().is_same_origin(&request.lines)
        {
            return Err(Rejection::CrossSite);
        }
        let query = request.query().unwrap_or_default();
        let known = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "state");
        let known = match &known {
            Some((_, word)) => {
                Stage::parse(word).ok_or(Rejection::BadRequest("unknown \"state\""))?
            }
            None => Stage::Waiting,
        };
        let lifecycle = &self.process.lifecycle;
        let scans = scans(&request.policy)?;
        scans.poll(id, owner(request, host), known, || lifecycle.is_draining()).await
    }

    /// Gives the browser its session.
    async fn log_browser_in(
        &self,
        request: &mut Request,
        confirmed: Confirmed,
    ) -> Result<OwnResponse, Rejection> {
        let policy = request.policy.clone();
        let (scans, address) = (scans(&policy)?, request.client.address);
        let login = scans.log_in(confirmed, address, &policy.login, request.id_text()).await;
        if let Some(identity) = login.identity {
            let word = login.token.as_ref().map_or_else(Rejection::error, |_| "ok");
            self.process.metrics.login(identity.app_id.as_str(), word);
            request.login = Some(Box::new(LoginFacts {
                app_id: Some(identity.app_id),
                openid: Some(identity.openid),
                user_id: identity.user_id,
                errcode: None,
            }));
        }
        let Some(token) = login.token? else { return Ok(stage_response(Stage::Expired)) };
        let host = request.browser().ok_or(Rejection::InternalError)?;
        let mut response = stage_response(Stage::Confirmed);
        response.header(SET_COOKIE, host.session_cookie(&token));
        response.header(SET_COOKIE, host.cleared(COOKIE));
        Ok(response)
    }

    /// Takes a step of the phone.
    async fn take_step(
        &self,
        client: &mut ClientConnection,
        request: &mut Request,
        id: &str,
    ) -> Result<OwnResponse, Stop> {
        let policy = request.policy.clone();
        let scans = scans(&policy)?;
        let found;
        (request.verdict, found) =
            policy.authenticate(&request.lines, Access::Required, &request.site()).await;
        found?;
        let session = request.verdict.session.clone().ok_or(Rejection::InternalError)?;
        if session.identity.app_id != *scans.app_id() {
            return Err(Rejection::WrongApp.into());
        }
        let time = policy.limits.body_timeout;
        let body = read_body(client, request, MAX_BODY, time, None).await?;
        let step: Step = serde_json::from_slice(&body).map_err(|_| {
            Rejection::BadRequest(
                "the body is not {\"action\": \"scan\"}, \"confirm\" or \"deny\" in JSON",
            )
        })?;
        let answer = match step.action {
            Action::Scan => {
                return Ok(OwnResponse::json(200, &scans.scan(id, session.digest()).await?));
            }
            Action::Confirm => Answer::Confirm,
            Action::Deny => Answer::Deny,
        };
        scans.answer(id, session.digest(), answer).await?;
        Ok(OwnResponse::empty(204))
    }
}

/// Shows the browser the Mini Program code of its scan.
async fn show_code(request: &Request, id: &str) -> Result<OwnResponse, Rejection> {
    let policy = &request.policy;
    let scans = scans(policy)?;
    let host = request.browser().ok_or(Rejection::NotFound)?;
    let maker = CodeMaker {
        wechat: policy.wechat.clone(),
        access_tokens: policy.access_tokens.clone().ok_or(Rejection::InternalError)?,
        app_id: scans.app_id().clone(),
    };
    let image = scans.code(id, owner(request, host), &maker, request.id_text()).await?;
    let mut response = OwnResponse::empty(200);
    response.header(CONTENT_TYPE, image.content_type.clone());
    response.header(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response.body = image.bytes.to_vec();
    Ok(response)
}

fn scans(policy: &Policy) -> Result<&Scans, Rejection> {
    policy.scans.as_ref().ok_or(Rejection::NoRoute)
}

/// The browser that has sent a request. Whether it owns the scan is checked later.
fn owner<'a>(request: &'a Request, host: &'a BrowserHost) -> Owner<'a> {
    Owner { origin: &host.origin, cookie: host.value(&request.lines, COOKIE) }
}

fn stage_response(stage: Stage) -> OwnResponse {
    #[derive(Serialize)]
    struct Shown {
        state: Stage,
    }

    OwnResponse::json(200, &Shown { state: stage })
}

/// Whether no header says that the request comes from another origin.
fn is_same_origin(headers: &impl Headers, host: &BrowserHost) -> bool {
    let is_absent_or = |name, expected: &[u8]| {
        headers.first(name).is_none() || headers.only(name) == Some(expected)
    };
    is_absent_or(&SEC_FETCH_SITE, b"same-origin") && is_absent_or(&ORIGIN, host.origin.as_bytes())
}
