//! The requests of an upstream that wait for a connection, in the order in which they came.
//!
//! Only the first one looks for a connection. When it leaves, with a connection or without (its
//! client left, or it waited too long), the next one is first, and looks at once. So no wake-up is
//! lost, whichever request leaves, and however many connections become free before the first one
//! runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// The waiting requests of one upstream.
#[derive(Default)]
pub struct Pending {
    queue: Mutex<Queue>,
    /// The length of the queue.
    count: AtomicUsize,
}

#[derive(Default)]
struct Queue {
    /// By the order in which they came.
    waiters: BTreeMap<u64, Waiter>,
    next: u64,
}

#[derive(Default)]
struct Waiter {
    /// Whether to look for a connection. Only the first one does.
    is_called: bool,
    waker: Option<Waker>,
}

impl Queue {
    /// Tells the first one to look for a connection. The result must be woken without the lock.
    fn call_first(&mut self) -> Option<Waker> {
        let mut first = self.waiters.first_entry()?;
        let first = first.get_mut();
        first.is_called = true;
        first.waker.take()
    }
}

impl Pending {
    /// Adds a request to the queue, unless `most` requests are waiting.
    pub fn enter(self: &Arc<Self>, most: usize) -> Option<Waiting> {
        // Without the lock: at overload most requests end here.
        if self.len() >= most {
            return None;
        }
        let mut queue = self.queue.lock();
        if queue.waiters.len() >= most {
            return None;
        }
        let place = queue.next;
        queue.next += 1;
        // A connection may have become free before the request was in the queue.
        let is_called = queue.waiters.is_empty();
        queue.waiters.insert(place, Waiter { is_called, waker: None });
        self.count.store(queue.waiters.len(), Ordering::Relaxed);
        drop(queue);
        // Before it looks for a connection; see `notify`.
        fence(Ordering::SeqCst);
        Some(Waiting { pending: self.clone(), place })
    }

    /// Says that a connection may be free: one was closed or became idle, or a server came back.
    pub fn notify(&self) {
        // Either this sees the request that has entered the queue, or that request sees the
        // connection that was freed before.
        fence(Ordering::SeqCst);
        if self.len() == 0 {
            return;
        }
        let waker = self.queue.lock().call_first();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How many requests wait. A new request must not look for a connection before these.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// A place in the queue, until it is dropped.
pub struct Waiting {
    pending: Arc<Pending>,
    place: u64,
}

impl Waiting {
    /// Ready when a connection may be free for this request. If there is none after all, call it
    /// again: the place in the queue is kept.
    pub fn poll_freed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut queue = self.pending.queue.lock();
        let Some(waiter) = queue.waiters.get_mut(&self.place) else { return Poll::Ready(()) };
        if std::mem::take(&mut waiter.is_called) {
            return Poll::Ready(());
        }
        match &mut waiter.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut queue = self.pending.queue.lock();
        let was_first =
            queue.waiters.first_key_value().is_some_and(|(first, _)| *first == self.place);
        queue.waiters.remove(&self.place);
        self.pending.count.store(queue.waiters.len(), Ordering::Relaxed);
        let waker = if was_first { queue.call_first() } else { None };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    fn is_called(waiting: &mut Waiting) -> bool {
        poll_fn(|cx| waiting.poll_freed(cx)).now_or_never().is_some()
    }

    #[test]
    fn the_first_looks_at_once_and_the_others_in_order() {
        let pending = Arc::new(Pending::default());
        let mut waiting: Vec<_> = (0..3).map(|_| pending.enter(3).unwrap()).collect();
        assert!(pending.enter(3).is_none());
        assert!(pending.enter(0).is_none());
        assert_eq!(waiting.iter_mut().map(is_called).collect::<Vec<_>>(), [true, false, false]);
        pending.notify();
        pending.notify();
        assert_eq!(waiting.iter_mut().map(is_called).collect::<Vec<_>>(), [true, false, false]);
        waiting.remove(0);
        assert_eq!(waiting.iter_mut().map(is_called).collect::<Vec<_>>(), [true, false]);
        assert_eq!(pending.len(), 2);
        waiting.push(pending.enter(3).unwrap());
        // One that was not first changes nothing.
        waiting.remove(1);
        assert_eq!(waiting.iter_mut().map(is_called).collect::<Vec<_>>(), [false, false]);
        pending.notify();
        assert_eq!(waiting.iter_mut().map(is_called).collect::<Vec<_>>(), [true, false]);
        drop(waiting);
        assert_eq!(pending.len(), 0);
        pending.notify();
    }

    #[test]
    fn one_that_leaves_after_it_was_called_passes_the_call_on() {
        let pending = Arc::new(Pending::default());
        let mut first = pending.enter(2).unwrap();
        let mut second = pending.enter(2).unwrap();
        assert!(is_called(&mut first));
        pending.notify();
        drop(first);
        assert!(is_called(&mut second));
    }

    /// Connections that threads take, hold for a moment, and free.
    struct Connections {
        free: AtomicUsize,
        pending: Arc<Pending>,
    }

    impl Connections {
        fn take(&self) -> bool {
            let one_less = |free: usize| free.checked_sub(1);
            self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok()
        }

        async fn serve(&self, leaves: bool, most: usize) -> bool {
            if self.pending.len() > 0 || !self.take() {
                let Some(mut waiting) = self.pending.enter(most) else { return false };
                if leaves {
                    // Leaves at any moment, even when it has just been called.
                    is_called(&mut waiting);
                    tokio::task::yield_now().await;
                    return false;
                }
                loop {
                    poll_fn(|cx| waiting.poll_freed(cx)).await;
                    if self.take() {
                        break;
                    }
                }
            }
            tokio::task::yield_now().await;
            self.free.fetch_add(1, Ordering::Relaxed);
            self.pending.notify();
            true
        }
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        const TASKS: usize = 16;
        const THREADS: usize = 4;
        let connections =
            Arc::new(Connections { free: AtomicUsize::new(3), pending: Arc::default() });
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let connections = connections.clone();
                std::thread::spawn(move || {
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = runtime.enable_time().build().unwrap();
                    runtime.block_on(async {
                        let task = async |seed: usize| {
                            for round in 0..2_000 {
                                let leaves = (seed + round).is_multiple_of(5);
                                assert!(connections.serve(leaves, TASKS * THREADS).await || leaves);
                            }
                        };
                        let all = futures_util::future::join_all((0..TASKS).map(task));
                        // Without its wake-up, a request would wait for ever.
                        let ended = tokio::time::timeout(Duration::from_secs(60), all).await;
                        ended.expect("no wake-up is lost")
                    })
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(connections.pending.len(), 0);
        assert_eq!(connections.free.load(Ordering::Relaxed), 3);
    }
}
