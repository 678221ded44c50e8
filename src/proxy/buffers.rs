//! Buffers that are shared by connections. An idle connection holds none.
//!
//! Small buffers are for headers and the bytes after them, large ones for bodies. One read is
//! limited to the size of the buffer's kind, even if the buffer has grown: otherwise each use could
//! make it grow further.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BufMut;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// Bytes of a small buffer: enough for a header, and often for its body.
pub const SMALL: usize = 4 << 10;

/// Bytes of a large buffer: one read of a body.
pub const LARGE: usize = 32 << 10;

/// A small buffer that has grown beyond this is not kept.
const GROWN: usize = 8 << 10;

/// Maximum number of buffers of each kind that a worker keeps.
const MOST_SMALL: usize = 256;
const MOST_LARGE: usize = 32;

#[derive(Default)]
struct Free {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// An empty small buffer.
pub fn take() -> Vec<u8> {
    FREE.with_borrow_mut(|free| free.small.pop()).unwrap_or_else(|| Vec::with_capacity(SMALL))
}

/// An empty buffer for reads of `size` bytes, at most [`LARGE`].
pub fn take_for(size: usize) -> Vec<u8> {
    match size {
        ..=SMALL => take(),
        LARGE => FREE
            .with_borrow_mut(|free| free.large.pop())
            .unwrap_or_else(|| Vec::with_capacity(LARGE)),
        _ => Vec::with_capacity(size),
    }
}

/// Gives a buffer back, to be reused.
pub fn give(mut buffer: Vec<u8>) {
    let size = buffer.capacity();
    buffer.clear();
    FREE.with_borrow_mut(|free| {
        let (kind, most) = match size {
            SMALL..=GROWN => (&mut free.small, MOST_SMALL),
            LARGE => (&mut free.large, MOST_LARGE),
            _ => return,
        };
        if kind.len() < most {
            kind.push(buffer);
        }
    });
}

/// Reads up to `size` bytes, and appends them to `buffer`.
pub fn poll_read<R: AsyncRead + Unpin>(
    reader: &mut R,
    cx: &mut Context<'_>,
    buffer: &mut Vec<u8>,
    size: usize,
) -> Poll<std::io::Result<usize>> {
    if buffer.capacity() - buffer.len() < size / 2 {
        buffer.reserve_exact(size);
    }
    poll_read_buf(Pin::new(reader), cx, &mut buffer.limit(size))
}
