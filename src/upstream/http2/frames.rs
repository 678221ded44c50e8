//! Sends the bytes of a body as HTTP/2 frames of a sensible size.
//!
//! The receiver's window often has room for less than a whole frame. If such small frames were
//! sent, and the receiver freed its window in pieces of the same size, all later frames would stay
//! small. So a small frame waits a moment for more room. Used towards clients and towards servers.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use tokio::time::Instant;

use crate::clock::deadline::Deadline;

/// A frame of this many bytes is always sent at once, and so is one of at least half the size of
/// the largest frame before it.
const WORTH_SENDING: usize = 8 << 10;

/// How long a smaller frame waits for more room. After every `largest` bytes, one small frame is
/// sent at once, because a receiver may free its window only when it is used up.
const PATIENCE: Duration = Duration::from_millis(200);

/// The frames that were sent of one body.
pub struct Frames {
    /// Size of the largest frame, and bytes of all frames since the last small one.
    largest: usize,
    since_small: usize,
    /// Whether the window is too small for a frame worth sending, and how long to wait in that
    /// case.
    is_short: bool,
    patience: Deadline,
}

impl Frames {
    pub fn new() -> Self {
        Self { largest: 0, since_small: 0, is_short: false, patience: Deadline::new() }
    }

    /// Sends one frame with the first bytes of `bytes`, once the window has room for it. Returns
    /// how many bytes were sent.
    pub fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        send: &mut SendStream<Bytes>,
        bytes: &[u8],
    ) -> Poll<Result<usize, SendError>> {
        send.reserve_capacity(bytes.len());
        let worth = bytes.len().min(WORTH_SENDING).min((self.largest / 2).max(1));
        let enough = if self.since_small >= self.largest { worth.min(1) } else { worth };
        while send.capacity() < enough {
            match send.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(SendError::Http2(error))),
                Poll::Ready(None) => return Poll::Ready(Err(SendError::Closed)),
                Poll::Pending if send.capacity() == 0 => return Poll::Pending,
                Poll::Pending => {
                    // The receiver may wait for these few bytes before it opens its window.
                    if !std::mem::replace(&mut self.is_short, true) {
                        self.patience.set(Instant::now() + PATIENCE);
                    }
                    ready!(self.patience.poll_over(cx));
                    break;
                }
            }
        }
        let has_waited = std::mem::take(&mut self.is_short) && send.capacity() < enough;
        let length = send.capacity().min(bytes.len());
        let since = if length < worth { 0 } else { self.since_small };
        self.since_small = since.saturating_add(length);
        // The window may have become permanently smaller.
        let largest = if has_waited { self.largest / 2 } else { self.largest };
        self.largest = largest.max(length);
        let data = Bytes::copy_from_slice(bytes.get(..length).unwrap_or_default());
        Poll::Ready(send.send_data(data, false).map(|()| length).map_err(SendError::Http2))
    }
}

/// Why no frame can be sent.
pub enum SendError {
    Http2(h2::Error),
    /// The receiver wants no more of the body.
    Closed,
}

impl From<SendError> for io::Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Http2(error) => Self::other(error),
            SendError::Closed => io::ErrorKind::BrokenPipe.into(),
        }
    }
}
