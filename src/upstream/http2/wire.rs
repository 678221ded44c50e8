//! The transport of a connection, as `h2` sees it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Shared;

/// Bytes that are read before streams get a turn to process them. Even as frames of one byte, they
/// need less than half of [`DATA_FRAMES`](super::DATA_FRAMES).
const TURN: usize = 16 << 10;

/// Counts reads, and lets streams have their turn.
pub struct Wire<T> {
    transport: T,
    shared: Arc<Shared>,
    /// Bytes read in a row, and whether it is the streams' turn.
    read_at_once: usize,
    is_others_turn: bool,
}

impl<T> Wire<T> {
    pub fn new(transport: T, shared: Arc<Shared>) -> Self {
        Self { transport, shared, read_at_once: 0, is_others_turn: false }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.is_others_turn) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.transport).poll_read(cx, buffer);
        let length = buffer.filled().len() - before;
        if length > 0 {
            self.shared.received.fetch_add(1, Ordering::Relaxed);
        }
        self.read_at_once += length;
        if read.is_pending() || self.read_at_once >= TURN {
            self.is_others_turn = read.is_ready();
            self.read_at_once = 0;
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.transport.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
