//! How one call is sent to WeChat's API: to which address, with which deadline, and what its
//! failures mean.
//!
//! URLs contain secrets, so no URL and no text from WeChat gets into an error. If the first address
//! cannot be connected to, nothing was sent, and the second one is called. Otherwise a call is
//! never repeated here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use reqwest::{RequestBuilder, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::addresses::{Address, Addresses};
use super::call_error::{self, CallError, Cause, Destination};
use super::pass_through::upload::Upload;
use super::reply::{Reply, readable};
use super::{ClientError, WeChatError};
use crate::clock::Clock;
use crate::config::WeChatSection;
use crate::identity::secret::Secret;

/// Maximum bytes of a response that are read; WeChat's have less than 2 KiB.
const MAX_RESPONSE: usize = 64 << 10;

/// Idle connections are closed before WeChat closes them, so that no code is sent on a connection
/// that is just being closed.
const POOL_IDLE: Duration = Duration::from_secs(10);

/// Sends calls to WeChat.
pub struct Transport {
    client: reqwest::Client,
    addresses: Addresses,
    timeout: Duration,
}

/// One call.
pub struct Call<'a> {
    pub method: Method,
    /// Begins with a slash.
    pub path: &'a str,
    pub query: &'a [(&'a str, &'a str)],
    /// A body of JSON.
    pub json: Option<Bytes>,
}

/// A call whose bodies stream.
pub struct StreamedCall<'a> {
    pub method: Method,
    /// Begins with a slash.
    pub path: &'a str,
    /// As in a URL, without the access token.
    pub query: Option<&'a str>,
    pub headers: HeaderMap,
    pub upload: Upload,
}

/// A response from an address of WeChat.
pub struct Response {
    pub status: StatusCode,
    /// In seconds. A date is ignored.
    pub retry_after: Option<u32>,
    pub body: Zeroizing<Vec<u8>>,
    pub destination: Arc<Destination>,
}

impl Transport {
    /// # Errors
    /// When there are no root certificates to verify WeChat with, or the client cannot be created.
    pub fn new(section: &WeChatSection, clock: Clock) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(section.connect_timeout)
            .pool_idle_timeout(POOL_IDLE)
            .tls_certs_only(roots(section)?);
        if let Some(proxy) = &section.proxy {
            let proxy = reqwest::Proxy::all(proxy.expose())
                .map_err(|_| ClientError::Other("proxy".to_owned()))?;
            builder = builder.proxy(proxy);
        }
        let client =
            builder.build().map_err(|error| ClientError::Other(error.without_url().to_string()))?;
        let addresses = Addresses::new(section, clock);
        Ok(Self { client, addresses, timeout: section.timeout })
    }

    /// Sends a call, and reads the whole response.
    ///
    /// # Errors
    /// When there is no complete response within `wechat.timeout`, or its status is a 5xx.
    pub async fn call(&self, call: &Call<'_>) -> Result<Response, WeChatError> {
        let deadline = Instant::now() + self.timeout;
        let (first, second) = self.addresses.in_order();
        let outcome = self.call_at(first, call, deadline).await;
        match self.next_address(first, second, &outcome) {
            Some(second) => self.call_at(second, call, deadline).await,
            None => outcome,
        }
    }

    /// Sends a call with an access token, and returns the response once its header is there,
    /// whatever its status.
    ///
    /// # Errors
    /// When no response begins, and the upload makes no progress.
    pub async fn open(
        &self,
        call: &StreamedCall<'_>,
        token: &Secret,
    ) -> Result<(reqwest::Response, Arc<Destination>), WeChatError> {
        let (first, second) = self.addresses.in_order();
        let outcome = self.open_at(first, call, token).await;
        match self.next_address(first, second, &outcome) {
            Some(second) => self.open_at(second, call, token).await,
            None => outcome,
        }
    }

    /// Sends a call to each address, and returns each outcome with the address, which is shown
    /// without its path.
    pub async fn call_all(&self, call: &Call<'_>) -> Vec<(&str, Result<Response, WeChatError>)> {
        let mut outcomes = Vec::new();
        for address in self.addresses.all() {
            let deadline = Instant::now() + self.timeout;
            let outcome = self.call_at(address, call, deadline).await;
            outcomes.push((address.destination.address(), outcome));
        }
        outcomes
    }

    /// The second address, if the first one could not be connected to: nothing was sent, so this
    /// is not a repetition. The outcome also decides which one is called first from now on.
    fn next_address<'a, T>(
        &self,
        first: &Address,
        second: Option<&'a Address>,
        outcome: &Result<T, WeChatError>,
    ) -> Option<&'a Address> {
        let second = second?;
        let call_error = match outcome {
            Err(WeChatError::Unreachable(call_error)) => Some(call_error),
            _ => None,
        };
        self.addresses.report(first, call_error);
        call_error.map(|_| second)
    }

    fn request(
        &self,
        address: &Address,
        method: &Method,
        path: &str,
        add_query: impl FnOnce(&mut Url),
    ) -> Result<RequestBuilder, WeChatError> {
        let url = Url::parse(&format!("{}{path}", address.url));
        let mut url = url.map_err(|_| WeChatError::malformed("base_url"))?;
        add_query(&mut url);
        Ok(self.client.request(method.clone(), url))
    }

    async fn open_at(
        &self,
        address: &Address,
        call: &StreamedCall<'_>,
        token: &Secret,
    ) -> Result<(reqwest::Response, Arc<Destination>), WeChatError> {
        let destination = &address.destination;
        let request = self.request(address, &call.method, call.path, |url| {
            let token: String =
                form_urlencoded::byte_serialize(token.expose().as_bytes()).collect();
            let query = match call.query {
                Some(query) if !query.is_empty() => format!("access_token={token}&{query}"),
                _ => format!("access_token={token}"),
            };
            url.set_query(Some(&query));
        })?;
        let request = request.headers(call.headers.clone()).body(call.upload.body());
        let response = tokio::select! {
            response = request.send() => response.map_err(|e| transport_error(destination, &e))?,
            () = call.upload.stalled() => {
                let call_error = CallError::new(Some(destination.clone()), Cause::NoResponse);
                return Err(WeChatError::Timeout(call_error));
            }
        };
        Ok((response, destination.clone()))
    }

    async fn call_at(
        &self,
        address: &Address,
        call: &Call<'_>,
        deadline: Instant,
    ) -> Result<Response, WeChatError> {
        let destination = &address.destination;
        let mut request = self.request(address, &call.method, call.path, |url| {
            if !call.query.is_empty() {
                url.query_pairs_mut().extend_pairs(call.query);
            }
        })?;
        let broken = |error: reqwest::Error| transport_error(destination, &error);
        if let Some(json) = &call.json {
            let json_type = HeaderValue::from_static("application/json");
            request = request.header(CONTENT_TYPE, json_type).body(json.clone());
        }
        let request = request.timeout(deadline - Instant::now());
        let mut response = request.send().await.map_err(broken)?;
        let status = response.status();
        if status.is_server_error() {
            let cause = Cause::Status(status.as_u16());
            return Err(WeChatError::Broken(CallError::new(Some(destination.clone()), cause)));
        }
        let retry_after = response.headers().get(RETRY_AFTER);
        let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let mut body = Zeroizing::new(Vec::with_capacity(1024));
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > MAX_RESPONSE {
                return Err(WeChatError::malformed("too long").at(destination));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Response { status, retry_after, body, destination: destination.clone() })
    }
}

impl Response {
    /// The reply in a response with a status of 2xx, which may be an error all the same. Neither it
    /// nor an error contains any of `secrets`.
    ///
    /// # Errors
    /// What is wrong with the response, or, if its status is another one, the error that it
    /// reports.
    pub fn reply<'a>(
        &self,
        secrets: impl IntoIterator<Item = &'a str>,
    ) -> Result<Reply, WeChatError> {
        let reply = Reply::parse(&self.body).map(|reply| reply.without(secrets));
        if self.status.is_success() {
            return reply.map_err(|error| error.at(&self.destination));
        }
        // A relay may change the status of errors. It never changes the status of a success.
        let reported = reply.and_then(|reply| reply.failure()).ok().flatten();
        let reported = reported.filter(|_| self.status.is_client_error());
        Err(reported.unwrap_or_else(|| self.status_error()))
    }

    /// Checks that WeChat reports no error. An error never contains any of `secrets`.
    ///
    /// # Errors
    /// The error that WeChat reports, or what else is wrong with the response.
    pub fn accepted<'a>(
        &self,
        secrets: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), WeChatError> {
        let reported = self.reply(secrets)?.failure();
        match reported.map_err(|error| error.at(&self.destination))? {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The fields of a response that was accepted; `None` if one is missing or has another type.
    pub fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&readable(&self.body)).ok()
    }

    /// The error of a response whose status is not 2xx. WeChat's only status is 200, but a relay
    /// may have others.
    pub fn status_error(&self) -> WeChatError {
        let cause = Cause::Status(self.status.as_u16());
        let call_error = CallError::new(Some(self.destination.clone()), cause);
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => {
                WeChatError::TooManyRequests(call_error, self.retry_after)
            }
            _ => WeChatError::Status(call_error),
        }
    }
}

/// A body of JSON. `None` if a value cannot be written as JSON, which no text is.
pub fn json_body(value: &impl Serialize) -> Option<Bytes> {
    serde_json::to_vec(value).ok().map(Bytes::from)
}

/// Distinguishes errors before anything was sent from errors after.
pub fn transport_error(destination: &Arc<Destination>, error: &reqwest::Error) -> WeChatError {
    let after = |cause| CallError::new(Some(destination.clone()), cause);
    // All connect timeouts together are shorter than the total timeout, so when the total timeout
    // ends, the request has been sent, at least in part.
    if let Some(call_error) = CallError::of_certificate(destination, error) {
        WeChatError::Certificate(call_error)
    } else if is_not_http(error) {
        WeChatError::malformed("not HTTP").at(destination)
    } else if error.is_connect() {
        WeChatError::Unreachable(CallError::of_connection(destination, error))
    } else if error.is_timeout() {
        WeChatError::Timeout(after(Cause::NoResponse))
    } else {
        WeChatError::Broken(after(Cause::Closed))
    }
}

/// Whether something was received that is not HTTP.
pub fn is_not_http(error: &reqwest::Error) -> bool {
    call_error::chain(error)
        .any(|link| link.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse))
}

fn roots(section: &WeChatSection) -> Result<Vec<reqwest::Certificate>, ClientError> {
    let roots = match &section.roots {
        Some(roots) => roots.clone(),
        None => rustls_native_certs::load_native_certs().certs,
    };
    if roots.is_empty() && section.is_https() {
        return Err(ClientError::NoRoots);
    }
    // The system's store may contain unreadable certificates; the others are used.
    Ok(roots.iter().filter_map(|root| reqwest::Certificate::from_der(root).ok()).collect())
}
