//! How bodies are read and streamed: with a limit, deadlines and a count.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::error::ApiError;
use crate::wechat::pass_through::upload::BodyError;

/// The body of a response.
pub type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;

/// The longest JSON body, in bytes.
const MAX_JSON: u64 = 1 << 20;

/// How many bytes of a body have passed, and why it ended early.
#[derive(Default)]
pub struct Meter {
    bytes: AtomicU64,
    fault: AtomicU8,
}

/// A body ended early because it was too slow or too long.
#[derive(Debug, thiserror::Error)]
#[error("too slow or too long")]
struct EndedEarly;

const TOO_LONG: u8 = 1;
const TOO_SLOW: u8 = 2;

impl Meter {
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, data: &Bytes) -> u64 {
        let length = data.len() as u64;
        self.bytes.fetch_add(length, Ordering::Relaxed) + length
    }

    /// The caller's fault, if there is one.
    pub fn fault(&self) -> Option<ApiError> {
        match self.fault.load(Ordering::Relaxed) {
            TOO_LONG => Some(ApiError::BodyTooLarge),
            TOO_SLOW => Some(ApiError::RequestTimeout),
            _ => None,
        }
    }
}

/// Checks the declared length of a body.
///
/// # Errors
/// When it is longer than `most` bytes.
pub fn check_length(headers: &HeaderMap, most: u64) -> Result<(), ApiError> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > most) {
        return Err(ApiError::BodyTooLarge);
    }
    Ok(())
}

/// Reads a whole body of JSON. `time` is for all of it.
///
/// # Errors
/// When it is too long, too slow, or broken off.
pub async fn read(
    headers: &HeaderMap,
    mut body: Incoming,
    time: Duration,
    meter: &Meter,
) -> Result<Bytes, ApiError> {
    check_length(headers, MAX_JSON)?;
    let read = async {
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let broken = ApiError::bad_request("the body was broken off");
            let Ok(data) = frame.map_err(|_| broken)?.into_data() else { continue };
            if meter.count(&data) > MAX_JSON {
                return Err(ApiError::BodyTooLarge);
            }
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    };
    timeout(time, read).await.unwrap_or(Err(ApiError::RequestTimeout))
}

/// A body that is streamed. Trailers are dropped.
pub struct Metered<B> {
    body: B,
    /// In bytes.
    most: u64,
    /// Between two frames.
    timeout: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    meter: Arc<Meter>,
}

impl<B> Metered<B> {
    pub fn new(body: B, most: u64, timeout: Duration, meter: Arc<Meter>) -> Self {
        Self { body, most, timeout, waiting: None, meter }
    }

    fn end(&self, fault: u8) -> BodyError {
        self.meter.fault.store(fault, Ordering::Relaxed);
        EndedEarly.into()
    }
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes, Error: Into<BodyError>> + Unpin,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                let timeout = self.timeout;
                let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(timeout)));
                if waiting.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                waiting.as_mut().reset(Instant::now());
                return Poll::Ready(Some(Err(self.end(TOO_SLOW))));
            };
            self.waiting = None;
            let Some(frame) = frame else { return Poll::Ready(None) };
            let Ok(data) = frame.map_err(Into::into)?.into_data() else { continue };
            if self.meter.count(&data) > self.most {
                return Poll::Ready(Some(Err(self.end(TOO_LONG))));
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
