//! How many retries an upstream may get: a share of its requests of the last ten seconds.
//!
//! Without it every request to a sick upstream would become several. Requests and retries are
//! counted from the start and never reset; once a second the current counts are kept, and those of
//! ten seconds ago are what the counts are compared with.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The length of the window, in calls of [`RetryBudget::tick`].
const SECONDS: usize = 10;

/// Retries in the window that are always allowed.
const LEAST: u64 = 10;

/// 100 %, in the unit of `upstream.retry.budget`.
const WHOLE: u64 = 10_000;

/// The requests and retries of one upstream.
#[derive(Default)]
pub struct RetryBudget {
    requests: AtomicU64,
    retries: AtomicU64,
    /// The counts at the start of the window.
    before: Counts<AtomicU64>,
    /// The counts at each tick of the window, the oldest first.
    ticks: Mutex<VecDeque<Counts<u64>>>,
}

#[derive(Default)]
struct Counts<T> {
    requests: T,
    retries: T,
}

impl RetryBudget {
    /// Counts a request; its retries are not requests.
    pub fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Moves the window. Called once a second.
    pub fn tick(&self) {
        let requests = self.requests.load(Ordering::Relaxed);
        let retries = self.retries.load(Ordering::Relaxed);
        let mut ticks = self.ticks.lock();
        ticks.push_back(Counts { requests, retries });
        if ticks.len() > SECONDS
            && let Some(oldest) = ticks.pop_front()
        {
            self.before.requests.store(oldest.requests, Ordering::Relaxed);
            self.before.retries.store(oldest.retries, Ordering::Relaxed);
        }
    }

    /// Whether one more retry is within the budget; if so, counts it. `budget` is in hundredths of
    /// a percent.
    pub fn take(&self, budget: u32) -> bool {
        let since =
            |count: u64, before: &AtomicU64| count.saturating_sub(before.load(Ordering::Relaxed));
        let requests = since(self.requests.load(Ordering::Relaxed), &self.before.requests);
        let allowed = (requests.saturating_mul(budget.into()) / WHOLE).max(LEAST);
        let taken = self.retries.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |retries| {
            (since(retries, &self.before.retries) < allowed).then_some(retries + 1)
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u32 = 2_000;

    fn take_all(budget: &RetryBudget, share: u32) -> usize {
        std::iter::repeat_with(|| budget.take(share)).take_while(|taken| *taken).count()
    }

    #[test]
    fn ten_retries_in_ten_seconds_are_always_allowed() {
        for share in [0, BUDGET, 10_000] {
            let budget = RetryBudget::default();
            assert_eq!(take_all(&budget, share), 10);
            for _ in 0..10 {
                budget.tick();
                assert_eq!(take_all(&budget, share), 0);
            }
            budget.tick();
            assert_eq!(take_all(&budget, share), 10);
        }
    }

    #[test]
    fn the_budget_is_a_share_of_the_requests_of_the_last_ten_seconds() {
        let budget = RetryBudget::default();
        for _ in 0..20 {
            (0..100).for_each(|_| budget.count_request());
            budget.tick();
        }
        assert_eq!(take_all(&budget, BUDGET), 200, "20 % of 1000");
        assert_eq!(take_all(&budget, BUDGET), 0);
        assert_eq!(take_all(&budget, 3_000), 100, "a route may have a larger share");
        // Without further requests the budget shrinks to its minimum.
        (0..11).for_each(|_| budget.tick());
        assert_eq!(take_all(&budget, BUDGET), 10);
    }

    #[test]
    fn threads_together_take_no_more_than_the_budget() {
        let budget = RetryBudget::default();
        (0..5_000).for_each(|_| budget.count_request());
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| take_all(&budget, BUDGET))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 1_000);
    }
}
