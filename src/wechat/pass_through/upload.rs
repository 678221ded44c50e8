//! The body of a service's call: held while it is short, and streamed from then on.
//!
//! The first part stays in memory. If that is the whole body, it can be sent again. Otherwise the
//! rest is read only as fast as WeChat reads it, and can be sent once.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

/// Bytes of a body that are held. A body that is not longer can be sent again.
const MAX_HELD: usize = 64 << 10;

/// The longest time without progress of a body that is not held as a whole.
const PATIENCE: Duration = Duration::from_secs(30);

/// Any error of a service's body.
pub type BodyError = Box<dyn Error + Send + Sync>;

/// The body of a service's request, within the caller's limit on its length.
pub type CallerBody = UnsyncBoxBody<Bytes, BodyError>;

/// Why a service's body could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Reading it failed, for example because it is longer than the caller's limit.
    #[error("the request body cannot be read")]
    Body(BodyError),
    #[error("the request body made no progress for 30 seconds")]
    Idle,
}

/// A service's body, to be sent to WeChat.
pub struct Upload {
    held: Bytes,
    rest: Option<Arc<Mutex<Rest>>>,
    /// The longest time without progress.
    patience: Duration,
}

/// What follows the held part.
struct Rest {
    body: CallerBody,
    is_begun: bool,
    /// Whether the service has to send next.
    waits_for_service: bool,
    last_progress: Instant,
    error: Option<BodyError>,
}

impl Upload {
    /// Reads a body until it ends or becomes too long to be held. WeChat must begin to respond
    /// within `patience` if it is held as a whole.
    ///
    /// # Errors
    /// When the body fails.
    pub async fn hold(mut body: CallerBody, patience: Duration) -> Result<Self, UploadError> {
        let mut held = BytesMut::new();
        while held.len() <= MAX_HELD {
            let frame = timeout(PATIENCE, body.frame()).await.map_err(|_| UploadError::Idle)?;
            let Some(frame) = frame else {
                return Ok(Self { held: held.freeze(), rest: None, patience });
            };
            // Trailers are not forwarded.
            if let Ok(data) = frame.map_err(UploadError::Body)?.into_data() {
                held.extend_from_slice(&data);
            }
        }
        let rest = Rest {
            body,
            is_begun: false,
            waits_for_service: false,
            last_progress: Instant::now(),
            error: None,
        };
        let (held, rest) = (held.freeze(), Some(Arc::new(Mutex::new(rest))));
        Ok(Self { held, rest, patience: patience.max(PATIENCE) })
    }

    /// Whether it can be sent again.
    pub fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// The body, from its beginning.
    pub fn body(&self) -> reqwest::Body {
        match &self.rest {
            None => self.held.clone().into(),
            Some(rest) => {
                let held = Some(self.held.clone());
                reqwest::Body::wrap(Stream { held, rest: rest.clone(), is_mine: false })
            }
        }
    }

    /// Returns when there was no progress for too long, neither of the service nor of WeChat.
    pub async fn stalled(&self) {
        let mut last = Instant::now();
        loop {
            last = self.rest.as_ref().map_or(last, |rest| last.max(rest.lock().last_progress));
            let deadline = last + self.patience;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }

    /// Why the body could not be sent, if that is the service's fault.
    pub fn failure(&self) -> Option<UploadError> {
        let mut rest = self.rest.as_ref()?.lock();
        if let Some(error) = rest.error.take() {
            return Some(UploadError::Body(error));
        }
        let is_idle = rest.waits_for_service && rest.last_progress.elapsed() >= self.patience;
        is_idle.then_some(UploadError::Idle)
    }
}

/// A body that is sent: the held part, and what follows.
struct Stream {
    held: Option<Bytes>,
    rest: Arc<Mutex<Rest>>,
    /// Whether this is the stream that has begun to send the rest.
    is_mine: bool,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let mut rest = this.rest.lock();
        if let Some(held) = this.held.take() {
            rest.last_progress = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(held))));
        }
        // A call is sent to a second address only if the first one has got nothing.
        if std::mem::replace(&mut rest.is_begun, true) && !this.is_mine {
            return Poll::Ready(Some(Err("the body was sent before".into())));
        }
        this.is_mine = true;
        loop {
            rest.waits_for_service = true;
            let frame = ready!(Pin::new(&mut rest.body).poll_frame(context));
            rest.waits_for_service = false;
            rest.last_progress = Instant::now();
            match frame {
                None => return Poll::Ready(None),
                Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
                // Trailers are not forwarded.
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    rest.error = Some(error);
                    return Poll::Ready(Some(Err("the service's body failed".into())));
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.held.as_ref().map_or(0, |held| held.len() as u64);
        let rest = self.rest.lock().body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(rest.lower().saturating_add(held));
        hint
    }
}
