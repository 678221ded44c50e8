//! How many threads share work on all sessions.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// More threads would wait for each other: moka does a part of its work in one thread at a time.
const MOST_THREADS: usize = 4;

/// Calls `step` until it returns `false`, in as many threads as the machine has cores, and at most
/// [`MOST_THREADS`].
///
/// # Errors
/// An error of `step`, which ends the work in all threads.
pub fn in_parallel<E: Send>(step: impl Fn() -> Result<bool, E> + Sync) -> Result<(), E> {
    let is_over = AtomicBool::new(false);
    let work = || {
        while !is_over.load(Ordering::Relaxed) {
            let more = step();
            if !matches!(more, Ok(true)) {
                is_over.store(true, Ordering::Relaxed);
            }
            more?;
        }
        Ok(())
    };
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        // If a thread cannot be started, the work only takes longer.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let others: Vec<_> = (1..cores.min(MOST_THREADS)).filter_map(start).collect();
        let own = work();
        others.into_iter().fold(own, |outcome, other| {
            let ended = other.join().unwrap_or_else(|panic| resume_unwind(panic));
            outcome.and(ended)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_step_is_done_once() {
        let (given, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let step = || {
            let number = given.fetch_add(1, Ordering::Relaxed);
            if number < 1000 {
                done.fetch_add(number, Ordering::Relaxed);
            }
            Ok::<_, ()>(number < 1000)
        };
        in_parallel(step).unwrap();
        assert_eq!(done.into_inner(), 999 * 1000 / 2);
    }

    #[test]
    fn an_error_ends_the_work() {
        let given = AtomicUsize::new(0);
        let step = || match given.fetch_add(1, Ordering::Relaxed) {
            10 => Err("failed"),
            _ => Ok(true),
        };
        assert_eq!(in_parallel(step), Err("failed"));
    }
}
