//! Buffers that are reused between connections. An idle connection holds none.

use std::cell::RefCell;

/// Bytes of a fresh buffer: a header and often its body.
const FRESH: usize = 4 << 10;

/// A buffer that has grown beyond this is not kept.
const LARGEST: usize = 64 << 10;

/// Buffers that a worker keeps.
const MOST: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer.
pub fn take() -> Vec<u8> {
    FREE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(FRESH))
}

/// Gives a buffer back.
pub fn give(mut buffer: Vec<u8>) {
    if buffer.capacity() == 0 || buffer.capacity() > LARGEST {
        return;
    }
    buffer.clear();
    FREE.with_borrow_mut(|free| {
        if free.len() < MOST {
            free.push(buffer);
        }
    });
}
