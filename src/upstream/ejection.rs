//! When a server that fails requests is taken out, and when it comes back.
//!
//! After a number of consecutive failures a server is ejected. When the time of its ejection is
//! over, one request is its trial: a success brings the server back, a failure ejects it again. A
//! trial that ends without a verdict (its client left) leaves its place to the next request. The
//! outcomes of requests that began before the ejection are ignored, because they say nothing about
//! the server as it is now. There is no lock, no clock and no log here.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock;
use crate::config::Ejection;

/// In use. Every other state is out of use.
const IN: u64 = 0;

/// A trial is due at any time.
const DUE: u64 = 1;

/// A trial is on its way.
const ON_TRIAL: u64 = u64::MAX;

/// What is known from the requests to one server.
#[derive(Default)]
pub struct EjectionState {
    /// [`IN`], [`ON_TRIAL`], or one more than the time, in milliseconds, from which a trial is
    /// admitted.
    state: AtomicU64,
    /// Consecutive failures while the server is in use.
    failures: AtomicU32,
}

/// Whether a request may be sent to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    In,
    /// The request is the trial. Its end must be reported, with `is_trial`.
    Trial,
    Out,
}

/// A server was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejected {
    /// After so many consecutive failures.
    Failures(u32),
    /// Its trial failed.
    Again,
}

impl EjectionState {
    /// Whether the server is ejected, or on trial.
    pub fn is_out(&self) -> bool {
        self.state.load(Ordering::Relaxed) != IN
    }

    /// Whether [`Self::admit`] would admit a request now. Changes nothing.
    pub fn would_admit(&self, now_millis: u64) -> bool {
        match self.state.load(Ordering::Relaxed) {
            IN => true,
            ON_TRIAL => false,
            until => now_millis.saturating_add(DUE) >= until,
        }
    }

    /// Whether a request may be sent now. Of all callers after the ejection one gets the trial.
    pub fn admit(&self, now_millis: u64) -> Admission {
        let state = self.state.load(Ordering::Relaxed);
        if state == IN {
            return Admission::In;
        }
        if !self.would_admit(now_millis) {
            return Admission::Out;
        }
        let taken =
            self.state.compare_exchange(state, ON_TRIAL, Ordering::Relaxed, Ordering::Relaxed);
        match taken {
            Ok(_) => Admission::Trial,
            Err(IN) => Admission::In,
            Err(_) => Admission::Out,
        }
    }

    /// Reports a request that the server served. Returns whether it is back in use.
    pub fn succeeded(&self, is_trial: bool) -> bool {
        // Written only after a failure: all requests to the server share it.
        if self.failures.load(Ordering::Relaxed) != 0 && (is_trial || !self.is_out()) {
            self.failures.store(0, Ordering::Relaxed);
        }
        is_trial && self.end_trial(IN)
    }

    /// Reports a request that the server failed. `may_eject` returns a guard if one more server may
    /// be out; it is held until the server is.
    pub fn failed<G>(
        &self,
        section: &Ejection,
        now_millis: u64,
        is_trial: bool,
        may_eject: impl FnOnce() -> Option<G>,
    ) -> Option<Ejected> {
        let end = now_millis.saturating_add(clock::millis(section.duration));
        let out = end.saturating_add(DUE).min(ON_TRIAL - 1);
        if is_trial {
            return self.end_trial(out).then_some(Ejected::Again);
        }
        if section.failures == 0 || self.is_out() {
            return None;
        }
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < section.failures {
            return None;
        }
        let _guard = may_eject()?;
        let taken = self.state.compare_exchange(IN, out, Ordering::Relaxed, Ordering::Relaxed);
        taken.is_ok().then_some(Ejected::Failures(failures))
    }

    /// Reports a trial that says nothing about the server.
    pub fn trial_dropped(&self) {
        self.end_trial(DUE);
    }

    fn end_trial(&self, next: u64) -> bool {
        let ended =
            self.state.compare_exchange(ON_TRIAL, next, Ordering::Relaxed, Ordering::Relaxed);
        ended.is_ok()
    }
}

/// How many of an upstream's servers may be out, by `max_percent`.
pub fn most_out(servers: usize, max_percent: u8) -> usize {
    servers.saturating_mul(max_percent.into()) / 100
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECTION: Ejection =
        Ejection { failures: 3, duration: Duration::from_secs(10), max_percent: 50 };

    fn fail(state: &EjectionState, now: u64) -> Option<Ejected> {
        state.failed(&SECTION, now, false, || Some(()))
    }

    fn ejected() -> EjectionState {
        let state = EjectionState::default();
        assert_eq!((fail(&state, 0), fail(&state, 0)), (None, None));
        assert_eq!(fail(&state, 0), Some(Ejected::Failures(3)));
        state
    }

    #[test]
    fn only_consecutive_failures_eject() {
        let state = EjectionState::default();
        for _ in 0..10 {
            fail(&state, 0);
            fail(&state, 0);
            assert!(!state.succeeded(false));
            assert_eq!(state.admit(0), Admission::In);
        }
        let state = ejected();
        assert!(state.is_out());
        assert_eq!(state.admit(9_999), Admission::Out);
    }

    #[test]
    fn zero_failures_never_eject() {
        let section = Ejection { failures: 0, ..SECTION };
        let state = EjectionState::default();
        for _ in 0..1000 {
            assert_eq!(state.failed(&section, 0, false, || Some(())), None);
        }
        assert!(!state.is_out());
    }

    #[test]
    fn a_server_that_may_not_go_goes_as_soon_as_it_may() {
        let state = EjectionState::default();
        for _ in 0..10 {
            assert_eq!(state.failed(&SECTION, 0, false, || None::<()>), None);
        }
        assert!(!state.is_out());
        assert_eq!(fail(&state, 0), Some(Ejected::Failures(11)));
    }

    #[test]
    fn one_trial_at_a_time_decides() {
        let state = ejected();
        assert!(state.would_admit(10_000));
        assert_eq!(state.admit(10_000), Admission::Trial);
        assert!(!state.would_admit(99_000));
        assert_eq!(state.admit(99_000), Admission::Out);
        assert_eq!(state.failed(&SECTION, 99_000, true, || None::<()>), Some(Ejected::Again));
        assert_eq!(state.admit(108_999), Admission::Out);
        assert_eq!(state.admit(109_000), Admission::Trial);
        assert!(state.succeeded(true));
        assert!(!state.is_out());
        assert_eq!((fail(&state, 0), fail(&state, 0)), (None, None), "it begins anew");
    }

    #[test]
    fn a_trial_without_a_verdict_leaves_its_place() {
        let state = ejected();
        assert_eq!(state.admit(10_000), Admission::Trial);
        state.trial_dropped();
        assert!(state.is_out());
        assert_eq!(state.admit(10_000), Admission::Trial);
        assert_eq!(state.admit(10_000), Admission::Out);
    }

    #[test]
    fn requests_from_before_the_ejection_decide_nothing() {
        let state = ejected();
        assert!(!state.succeeded(false));
        assert_eq!(fail(&state, 9_000), None);
        assert!(state.is_out());
        assert_eq!(state.admit(10_000), Admission::Trial, "their failures do not prolong it");
        assert!(!state.succeeded(false));
        assert_eq!(state.admit(10_000), Admission::Out);
    }

    #[test]
    fn one_of_many_threads_gets_the_trial() {
        for _ in 0..100 {
            let state = ejected();
            let admitted = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| state.admit(10_000))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(admitted.iter().filter(|one| **one == Admission::Trial).count(), 1);
            assert_eq!(admitted.iter().filter(|one| **one == Admission::Out).count(), 3);
        }
    }

    #[test]
    fn the_share_of_servers_that_may_be_out_is_rounded_down() {
        for (servers, most) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (10, 5)] {
            assert_eq!(most_out(servers, 50), most);
        }
        assert_eq!((most_out(3, 100), most_out(3, 0), most_out(3, 99)), (3, 0, 2));
    }
}
