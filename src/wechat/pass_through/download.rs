//! WeChat's response to a service's call: inspected while it may be an error, and streamed from
//! then on.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use memchr::memmem;
use tokio::time::{Instant, Sleep, sleep, timeout};

use crate::identity::secret::Secret;
use crate::wechat::reply::Reply;
use crate::wechat::transport::transport_error;
use crate::wechat::{CallError, Cause, Destination, WeChatError};

/// The longest body that is inspected, in bytes. WeChat's errors are shorter.
const MAX_INSPECTED: usize = 4 << 10;

/// The longest time without progress.
const PATIENCE: Duration = Duration::from_secs(30);

/// WeChat's response, up to its body.
pub struct Received {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Download,
    /// The error that WeChat reports in the body.
    pub error: Option<WeChatError>,
    /// Whether what was read of the body contains the access token, as error pages of proxies that
    /// quote the URL do.
    shows_token: bool,
    destination: Arc<Destination>,
}

impl Received {
    /// Reads as much of the body as is inspected: the beginning of JSON, and of what has not the
    /// status of WeChat's own responses.
    ///
    /// # Errors
    /// When the response is not a final one, or the body fails before its inspected part ends:
    /// until then it can be replaced by another response.
    pub async fn read(
        (response, destination): (reqwest::Response, Arc<Destination>),
        token: &Secret,
    ) -> Result<Self, WeChatError> {
        if response.status().is_informational() {
            // The call did not request another protocol.
            return Err(WeChatError::malformed("not a final response").at(&destination));
        }
        let (parts, mut rest) = http::Response::<reqwest::Body>::from(response).into_parts();
        let mut start = BytesMut::new();
        let is_whole = loop {
            let is_other =
                parts.status.is_success() && start.first().is_some_and(|first| *first != b'{');
            if is_other || start.len() > MAX_INSPECTED {
                break false;
            }
            let Ok(frame) = timeout(PATIENCE, rest.frame()).await else {
                let call_error = CallError::new(Some(destination.clone()), Cause::NoResponse);
                return Err(WeChatError::Timeout(call_error));
            };
            let Some(frame) = frame else { break true };
            let frame = frame.map_err(|error| transport_error(&destination, &error))?;
            // Trailers are not forwarded.
            if let Ok(data) = frame.into_data() {
                start.extend_from_slice(&data);
            }
        };
        let reply = (is_whole && !start.is_empty()).then(|| Reply::parse(&start));
        // What is not WeChat's JSON is none of its errors.
        let error = reply.and_then(Result::ok).and_then(|reply| reply.failure().ok().flatten());
        let token = token.expose();
        let escaped: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
        let shows_token =
            [token, &escaped].iter().any(|text| memmem::find(&start, text.as_bytes()).is_some());
        let start = Some(start.freeze()).filter(|start| !start.is_empty());
        let rest = (!is_whole).then_some(rest);
        let body = Download { start, rest, idle: Box::pin(sleep(PATIENCE)), is_waiting: false };
        Ok(Self {
            status: parts.status,
            headers: parts.headers,
            body,
            error,
            shows_token,
            destination,
        })
    }

    /// # Errors
    /// When the response contains the access token, which the service must not see.
    pub fn without_token(self) -> Result<Self, WeChatError> {
        if self.shows_token {
            return Err(WeChatError::malformed("shows the access_token").at(&self.destination));
        }
        Ok(self)
    }

    /// The label `errcode` of metrics.
    pub fn label(&self) -> &'static str {
        match &self.error {
            Some(error) => error.label(),
            None if self.status.is_success() => "ok",
            None if self.status.is_server_error() => "transport",
            None => "malformed",
        }
    }
}

/// The body of WeChat's response ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("the response of WeChat is incomplete")]
pub struct Incomplete;

/// The body of WeChat's response, read as fast as the service reads it.
pub struct Download {
    start: Option<Bytes>,
    rest: Option<reqwest::Body>,
    idle: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl Body for Download {
    type Data = Bytes;
    type Error = Incomplete;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Incomplete>>> {
        let this = &mut *self;
        if let Some(start) = this.start.take() {
            return Poll::Ready(Some(Ok(Frame::data(start))));
        }
        let Some(rest) = &mut this.rest else { return Poll::Ready(None) };
        loop {
            match Pin::new(&mut *rest).poll_frame(context) {
                Poll::Ready(frame) => {
                    this.is_waiting = false;
                    match frame {
                        None => return Poll::Ready(None),
                        Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                        // Trailers are not forwarded.
                        Some(Ok(_)) => {}
                        // It contains the URL.
                        Some(Err(_)) => return Poll::Ready(Some(Err(Incomplete))),
                    }
                }
                Poll::Pending => {
                    // Only the time that WeChat takes counts, not the service's.
                    if !std::mem::replace(&mut this.is_waiting, true) {
                        this.idle.as_mut().reset(Instant::now() + PATIENCE);
                    }
                    return this.idle.as_mut().poll(context).map(|()| Some(Err(Incomplete)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.start.is_none() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let start = self.start.as_ref().map_or(0, |start| start.len() as u64);
        let rest = self.rest.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(start));
        }
        hint.set_lower(rest.lower().saturating_add(start));
        hint
    }
}
