//! A deadline that is moved with every request and rarely reached.
//!
//! A tokio timer is inserted into a list, under a lock, each time it is set. This one is inserted
//! once. When it fires, it checks where the deadline is by then.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// The deadline of what a connection waits for.
pub struct Deadline {
    at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub fn new() -> Self {
        Self { at: Instant::now(), timer: None }
    }

    pub fn set(&mut self, at: Instant) {
        self.at = at;
    }

    /// The output of `future`, if it completes in time.
    pub async fn limit<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
            Poll::Pending => self.poll_over(cx).map(|()| None),
        })
        .await
    }

    /// Ready once the deadline has passed.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.at)));
        if self.at < timer.deadline() {
            timer.as_mut().reset(self.at);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= self.at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_moved_deadline_applies_at_once() {
        let start = Instant::now();
        let seconds = |count| start + Duration::from_secs(count);
        let mut deadline = Deadline::new();
        // Later, earlier, and later than what the timer was set to.
        for (at, end) in [(10, 10), (70, 70), (75, 75), (72, 75), (200, 200)] {
            deadline.set(seconds(at));
            assert_eq!(deadline.limit(pending::<()>()).await, None);
            assert_eq!(Instant::now(), seconds(end));
        }
        deadline.set(seconds(300));
        assert_eq!(deadline.limit(tokio::time::sleep(Duration::from_secs(1))).await, Some(()));
        deadline.set(seconds(202));
        assert_eq!(deadline.limit(pending::<()>()).await, None);
        assert_eq!(Instant::now(), seconds(202));
    }
}
