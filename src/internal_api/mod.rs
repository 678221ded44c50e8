//! The internal API: what services need a session key, an access token or the app secret for.
//!
//! Only services call it, on a listener of its own, each with a token that says what it may do. The
//! order of checks is the same for every call: the token, then path and method, then rights, then
//! the body. Only the description and the public keys need no token. `listener` accepts
//! connections; `caller` decides who may do what, and `endpoint` knows the paths. Keys, tokens and
//! calls to WeChat are in `session`, `open_data` and `wechat`. A call that has begun goes on if its
//! caller disconnects, because WeChat may have done its part.

mod access_token;
mod body;
mod caller;
mod description;
mod endpoint;
mod error;
pub mod listener;
mod messages;
mod open_data;
mod pass_through;
mod phone_codes;
mod phone_number;
mod record;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, HeaderValue};
use http::{HeaderMap, Response, StatusCode, request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio_util::task::TaskTracker;

use self::body::{Meter, ResponseBody};
use self::endpoint::Endpoint;
use self::error::{ApiError, Call, Failure};
use self::messages::{
    DecryptRequest, PhoneNumberRequest, RenewRequest, UserRequest, VerifyRequest, field_fault,
};
use self::phone_codes::PhoneCodes;
use self::record::{Facts, Record, Recorded};
use crate::access::identity_headers::REQUEST_ID;
use crate::access::signed_identity::JWKS_PATH;
use crate::access::trusted_proxies::{fresh_request_id, is_request_id};
use crate::config::Caller;
use crate::identity::{AppId, OpenId, User};
use crate::listener::small_server::Request;
use crate::message::own_response::OwnResponse;
use crate::policy::{InternalPolicy, Policies, Policy, Process};
use crate::telemetry::log_throttle::LogThrottles;
use crate::wechat::{ErrCode, WeChatError};

/// What the fuzz target needs.
#[cfg(any(fuzzing, test))]
pub mod fuzzing {
    pub use super::endpoint::Endpoint;
    pub use super::error::ApiError;
    pub use super::messages::{
        DecryptRequest, PhoneNumberRequest, RenewRequest, UserRequest, VerifyRequest,
    };
    pub use super::pass_through::{has_reserved_key, split as split_wechat_path};
    pub use super::{app_id_in, json as parse_json};
}

/// The internal API of a process.
pub struct InternalApi {
    process: Arc<Process>,
    policies: Arc<Policies>,
    codes: Arc<PhoneCodes>,
    failures: Arc<Failures>,
    /// Calls that go on if their caller disconnects.
    calls: TaskTracker,
}

/// Limits how often the same failure of a call to WeChat is logged: by app and kind.
type Failures = LogThrottles<(String, Cow<'static, str>)>;

/// What a call needs, under one configuration.
struct Context {
    process: Arc<Process>,
    policy: Arc<Policy>,
    internal: Arc<InternalPolicy>,
    caller: Arc<Caller>,
    codes: Arc<PhoneCodes>,
    failures: Arc<Failures>,
    request_id: HeaderValue,
}

/// The outcome of a call, and what is known about it.
type Answer = (Facts, Result<OwnResponse, Failure>);

impl InternalApi {
    /// `calls` tracks the calls in flight.
    pub fn new(process: Arc<Process>, policies: Arc<Policies>, calls: TaskTracker) -> Self {
        for endpoint in Endpoint::ALL {
            let Some(label) = endpoint.label() else { continue };
            let errors = ApiError::ALL.iter().filter(|error| endpoint.can_fail_with(error));
            // Calls without a valid token are not counted: they have no operation.
            let errors = errors.filter(|error| **error != ApiError::Unauthorized);
            let outcomes = ["ok"].into_iter().chain(errors.map(ApiError::error));
            process.metrics.open_data.from_start(label, outcomes);
        }
        let codes = Arc::new(PhoneCodes::new(process.phone_codes.clone()));
        let failures = Arc::new(LogThrottles::new(process.clock.clone()));
        Self { process, policies, codes, failures, calls }
    }

    /// Responds to a request of a peer; a peer on a Unix socket has no address.
    async fn respond(&self, request: Request, peer: Option<IpAddr>) -> Response<Recorded> {
        let (request, body) = request.into_parts();
        let given = request.headers.get(&REQUEST_ID).filter(|id| is_request_id(id.as_bytes()));
        let request_id = given.cloned().unwrap_or_else(fresh_request_id);
        let (method, path) = (&request.method, request.uri.path());
        let mut record = Record::new(&self.process, request_id, peer, method, path);
        let outcome = self.serve(&request, body, &mut record).await;
        let mut response = match outcome {
            Ok(response) => {
                record.errcode = response.extensions().get::<ErrCode>().map(|code| code.number());
                response
            }
            Err(Failure { error, errcode }) => {
                record.error = Some(error.error());
                record.errcode = errcode;
                let mut response = into_response(error.response(&record.request_id));
                // The rest of the body could be long in coming.
                if matches!(error, ApiError::RequestTimeout | ApiError::BodyTooLarge) {
                    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        };
        record.status = response.status().as_u16();
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID.clone(), record.request_id.clone());
        // WeChat's responses have their own.
        if path != JWKS_PATH {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        if self.process.lifecycle.is_draining() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Recorded::new(body, record))
    }

    async fn serve(
        &self,
        request: &request::Parts,
        body: Incoming,
        record: &mut Record,
    ) -> Result<Response<ResponseBody>, Failure> {
        let (method, path) = (&request.method, request.uri.path());
        let policy = self.policies.current();
        if let Some(open) = Endpoint::without_token(path) {
            Endpoint::find(path, method)?;
            let response = match open {
                Endpoint::Jwks => policy.signed_identity.as_ref().map(|one| one.jwks().clone()),
                _ => Some(description::response()),
            };
            return Ok(into_response(response.ok_or(ApiError::NotFound)?));
        }
        let internal = policy.internal.clone().ok_or(ApiError::Internal)?;
        let caller = caller::find(&internal.callers, &request.headers).cloned();
        let caller = caller.ok_or(ApiError::Unauthorized)?;
        record.caller = Some(caller.name.clone());
        let endpoint = Endpoint::find(path, method)?;
        let context = Arc::new(Context {
            process: self.process.clone(),
            policy,
            internal,
            caller,
            codes: self.codes.clone(),
            failures: self.failures.clone(),
            request_id: record.request_id.clone(),
        });
        if endpoint == Endpoint::WeChat {
            caller::check_endpoint(&context.caller, endpoint, &context.internal)?;
            let Record { facts, received, .. } = record;
            return pass_through::call(&context, request, body, facts, received).await;
        }
        let given = match context.receive(endpoint, request, body, &record.received).await {
            Ok(given) => given,
            Err(error) => {
                context.count(endpoint, error.error());
                return Err(error.into());
            }
        };
        let call = async move {
            let answer = context.answer(endpoint, &given).await;
            let failed = answer.1.as_ref().err().map(|failure| failure.error.error());
            context.count(endpoint, failed.unwrap_or("ok"));
            answer
        };
        let (facts, outcome) = self.calls.spawn(call).await.map_err(|_| ApiError::Internal)?;
        record.facts = facts;
        outcome.map(into_response)
    }
}

impl Context {
    /// Checks the rights, then reads the body, or the query of a request without one.
    async fn receive(
        &self,
        endpoint: Endpoint,
        request: &request::Parts,
        body: Incoming,
        meter: &Meter,
    ) -> Result<Bytes, ApiError> {
        caller::check_endpoint(&self.caller, endpoint, &self.internal)?;
        let query = request.uri.query().unwrap_or_default();
        if endpoint == Endpoint::AccessToken {
            return Ok(Bytes::copy_from_slice(query.as_bytes()));
        }
        if !query.is_empty() {
            return Err(ApiError::bad_request("fields belong in the body, not in the query"));
        }
        body::read(&request.headers, body, self.policy.limits.body_timeout, meter).await
    }

    /// Serves a call. `given` is its body, or its query.
    async fn answer(self: &Arc<Self>, endpoint: Endpoint, given: &[u8]) -> Answer {
        let mut facts = Facts::default();
        let outcome = self.perform(endpoint, given, &mut facts).await;
        (facts, outcome)
    }

    async fn perform(
        self: &Arc<Self>,
        endpoint: Endpoint,
        given: &[u8],
        facts: &mut Facts,
    ) -> Result<OwnResponse, Failure> {
        match endpoint {
            Endpoint::Decrypt => {
                let request: DecryptRequest = json(given)?;
                let user = self.user(request.app_id.as_deref(), &request.openid, facts)?;
                open_data::decrypt(self, user, request).await
            }
            Endpoint::Verify => {
                let request: VerifyRequest = json(given)?;
                let user = self.user(request.app_id.as_deref(), &request.openid, facts)?;
                open_data::verify(self, &user, &request).await
            }
            Endpoint::CheckKey | Endpoint::ResetKey => {
                let request: UserRequest = json(given)?;
                let user = self.user(request.app_id.as_deref(), &request.openid, facts)?;
                match endpoint {
                    Endpoint::CheckKey => open_data::check(self, &user).await,
                    _ => open_data::reset(self, &user).await,
                }
            }
            Endpoint::PhoneNumber => {
                let request: PhoneNumberRequest = json(given)?;
                let user = self.user(request.app_id.as_deref(), &request.openid, facts)?;
                phone_number::get(self, user, request.code).await
            }
            Endpoint::AccessToken => {
                let app_id = self.app(app_id_in(given)?.as_deref(), facts)?;
                access_token::get(self, &app_id).await
            }
            Endpoint::RenewAccessToken => {
                let request: RenewRequest = json(given)?;
                let app_id = self.app(request.app_id.as_deref(), facts)?;
                access_token::renew(self, &app_id, &request.access_token).await
            }
            Endpoint::WeChat | Endpoint::Description | Endpoint::Jwks => {
                Err(ApiError::Internal.into())
            }
        }
    }

    fn app(&self, named: Option<&str>, facts: &mut Facts) -> Result<AppId, ApiError> {
        let app_id = caller::find_app(&self.caller, self.policy.login.apps(), named)?;
        facts.app_id = Some(app_id.clone());
        Ok(app_id)
    }

    fn user(
        &self,
        app_id: Option<&str>,
        openid: &str,
        facts: &mut Facts,
    ) -> Result<User, ApiError> {
        let app_id = self.app(app_id, facts)?;
        let openid =
            OpenId::parse(openid).ok_or(ApiError::bad_request("openid is not an openid"))?;
        facts.openid = Some(openid.clone());
        Ok(User { app_id, openid })
    }

    fn count(&self, endpoint: Endpoint, outcome: &str) {
        if let Some(label) = endpoint.label() {
            self.process.metrics.open_data.count(label, outcome);
        }
    }

    /// Logs why a call to WeChat failed, unless the same was logged less than a minute ago.
    fn failed(&self, app_id: &AppId, error: &WeChatError, call: Call) -> Failure {
        let app_id = app_id.as_str();
        if let Some(suppressed) = self.failures.suppressed((app_id.to_owned(), error.kind())) {
            let report = error.error_report();
            tracing::error!(
                request_id = self.request_id.to_str().ok(),
                app_id,
                caller = self.caller.name,
                %error,
                meaning = error.errcode().and_then(ErrCode::meaning),
                rid = report.and_then(|report| report.rid.as_deref()),
                seen_address = report.and_then(|r| r.seen_address).map(tracing::field::display),
                suppressed,
                "call for a service failed at WeChat; logged once a minute"
            );
        }
        Failure::of_wechat(error, call)
    }
}

pub fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // An array of the values would be read, too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::bad_request("the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| {
        if error.is_data() {
            ApiError::BadRequest(field_fault(&error))
        } else {
            ApiError::bad_request("the body is not JSON")
        }
    })
}

/// The only parameter of a query.
pub fn app_id_in(query: &[u8]) -> Result<Option<String>, ApiError> {
    let mut app_id = None;
    for (name, value) in form_urlencoded::parse(query) {
        if name != "app_id" || app_id.replace(value.into_owned()).is_some() {
            return Err(ApiError::bad_request("the query has only app_id, and only once"));
        }
    }
    Ok(app_id)
}

fn into_response(own: OwnResponse) -> Response<ResponseBody> {
    let body = Full::new(Bytes::from(own.body)).map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() =
        StatusCode::from_u16(own.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = HeaderMap::from_iter(own.headers);
    response
}
