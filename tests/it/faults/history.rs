//! The history of requests with their times and outcomes, and which outcomes must not occur.

use std::collections::HashMap;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Login,
    Request,
    Logout,
}

/// One request of a client. A session is the client's own number for a login.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub session: usize,
    pub gateway: usize,
    pub what: What,
    pub start: Instant,
    pub end: Instant,
    /// `None` without a response.
    pub status: Option<u16>,
}

/// The fault, and when it was.
#[derive(Clone, Copy)]
pub struct Conditions {
    /// `session.redis.near_cache_ttl`.
    pub bound: Duration,
    pub started: Instant,
    /// From the first moment of the fault until two seconds after the store was back.
    pub faulty: (Instant, Instant),
    /// Logins of this time may be lost with their primary.
    pub lossy: Option<(Instant, Instant)>,
}

/// The verdict on a history.
#[derive(Debug, Default)]
pub struct Verdict {
    pub logins: usize,
    pub logouts: usize,
    pub requests: usize,
    /// 200 after an acknowledged logout, later than the cache explains.
    pub revived: Vec<String>,
    /// 401 for a session that was not ended, and that is not declared lost.
    pub lost: Vec<String>,
    /// A session that the gateway had just read was rejected.
    pub missed_hits: Vec<String>,
    /// 503 outside the fault, or a status that is none of 200, 204, 401 and 503.
    pub out_of_place: Vec<String>,
    /// 503 in all.
    pub unavailable: usize,
    /// Logins that were lost where that is declared.
    pub declared_lost: usize,
    /// Latencies of requests with a cached session: before the fault, in two halves, and during it.
    pub hits_before: [Vec<Duration>; 2],
    pub hits_during: Vec<Duration>,
    /// The longest time from an acknowledged logout to the last 200 of its session.
    pub longest_afterlife: Duration,
}

/// Judges a whole history.
pub fn judge(operations: &[Operation], conditions: &Conditions) -> Verdict {
    let mut verdict = Verdict::default();
    let sessions = operations.iter().map(|one| one.session + 1).max().unwrap_or(0);
    let mut by_session = vec![Vec::new(); sessions];
    for one in operations {
        by_session[one.session].push(*one);
    }
    for mut operations in by_session {
        operations.sort_by_key(|one| one.start);
        judge_session(&operations, conditions, &mut verdict);
    }
    verdict.hits_before.iter_mut().for_each(|half| half.sort());
    verdict.hits_during.sort();
    verdict
}

fn judge_session(operations: &[Operation], conditions: &Conditions, verdict: &mut Verdict) {
    let touches =
        |one: &Operation, window: (Instant, Instant)| one.start <= window.1 && one.end >= window.0;
    let login = operations.iter().find(|one| one.what == What::Login);
    let begun = login.filter(|login| login.status == Some(200));
    let first_logout =
        operations.iter().filter(|one| one.what == What::Logout).map(|one| one.start).min();
    let acknowledged = operations
        .iter()
        .filter(|one| one.what == What::Logout && one.status == Some(204))
        .map(|one| one.end)
        .min();
    let mut reads = Reads::new();
    if let Some(login) = begun {
        // A gateway caches the sessions that it created itself.
        reads.insert(login.gateway, vec![(login.start, login.end)]);
    }
    let mut is_lost = false;
    for one in operations {
        match one.what {
            What::Login => verdict.logins += usize::from(one.status == Some(200)),
            What::Logout => verdict.logouts += usize::from(one.status == Some(204)),
            What::Request => verdict.requests += 1,
        }
        match one.status {
            Some(503) => {
                verdict.unavailable += 1;
                if !touches(one, conditions.faulty) {
                    verdict.out_of_place.push(format!("{one:?}"));
                }
            }
            Some(200 | 204 | 401) => {}
            _ => verdict.out_of_place.push(format!("{one:?}")),
        }
        if one.what != What::Request {
            continue;
        }
        if one.status == Some(200)
            && let Some(acknowledged) = acknowledged
            && one.start > acknowledged
        {
            let after = one.start - acknowledged;
            verdict.longest_afterlife = verdict.longest_afterlife.max(after);
            if after > conditions.bound {
                verdict.revived.push(format!("{after:?} after its end: {one:?}"));
            }
        }
        let is_ended = first_logout.is_some_and(|logout| logout <= one.end);
        if one.status == Some(401) && !is_ended && begun.is_some() {
            let may_be = conditions
                .lossy
                .is_some_and(|window| begun.is_some_and(|login| touches(login, window)));
            if may_be {
                verdict.declared_lost += usize::from(!is_lost);
            } else {
                verdict.lost.push(format!("{one:?}"));
            }
            is_lost = true;
        }
        if !is_ended && begun.is_some() && !is_lost {
            judge_hit(one, conditions, &mut reads, verdict);
        }
    }
}

/// When a gateway may have read the session that it has cached: in one of these times.
type Reads = HashMap<usize, Vec<(Instant, Instant)>>;

/// The rounding of a gateway's clock.
const WHOLE_MILLISECONDS: Duration = Duration::from_millis(1);

fn judge_hit(one: &Operation, conditions: &Conditions, reads: &mut Reads, verdict: &mut Verdict) {
    let reads = reads.entry(one.gateway).or_default();
    let bound = conditions.bound;
    let would_be_hit =
        |(from, to): &_| *to <= one.start && one.end + WHOLE_MILLISECONDS < *from + bound;
    let is_hit = !reads.is_empty() && reads.iter().all(would_be_hit);
    if one.status == Some(200) {
        if !is_hit {
            reads.retain(|(_, to)| one.start <= *to + bound);
            reads.push((one.start, one.end));
        } else if is_in(one.start, conditions.faulty) {
            verdict.hits_during.push(one.end - one.start);
        } else if one.end < conditions.faulty.0 {
            let half = (conditions.faulty.0 - conditions.started) / 2;
            let half = usize::from(one.start > conditions.started + half);
            verdict.hits_before[half].push(one.end - one.start);
        }
    } else if is_hit {
        verdict.missed_hits.push(format!("{one:?}"));
    } else {
        // A cache hit is not a read; the entry that has expired may have been the last read.
        reads.retain(|read| !would_be_hit(read));
    }
}

fn is_in(at: Instant, window: (Instant, Instant)) -> bool {
    window.0 <= at && at <= window.1
}

/// A quantile of sorted times, in milliseconds.
pub fn quantile(times: &[Duration], part: f64) -> f64 {
    let index = ((times.len() as f64 - 1.0) * part).round();
    times.get(index as usize).map_or(f64::NAN, |time| time.as_secs_f64() * 1000.0)
}

struct Story {
    zero: Instant,
    operations: Vec<Operation>,
}

impl Story {
    /// In milliseconds, at gateway 0.
    fn then(mut self, what: What, start: u64, end: u64, status: u16) -> Self {
        let at = |millis| self.zero + Duration::from_millis(millis);
        self.operations.push(Operation {
            session: 0,
            gateway: 0,
            what,
            start: at(start),
            end: at(end),
            status: Some(status),
        });
        self
    }

    fn verdict(&self, lossy: Option<(u64, u64)>) -> Verdict {
        let at = |millis| self.zero + Duration::from_millis(millis);
        judge(
            &self.operations,
            &Conditions {
                bound: Duration::from_secs(1),
                started: self.zero,
                faulty: (at(5_000), at(6_000)),
                lossy: lossy.map(|(from, to)| (at(from), at(to))),
            },
        )
    }
}

fn story() -> Story {
    Story { zero: Instant::now(), operations: Vec::new() }.then(What::Login, 0, 10, 200)
}

#[test]
fn a_session_that_outlives_its_acknowledged_end_by_more_than_the_bound_is_found() {
    let story = story().then(What::Logout, 100, 110, 204);
    let story = story.then(What::Request, 1_100, 1_120, 200);
    assert_eq!(story.verdict(None).revived.len(), 0);
    assert_eq!(story.then(What::Request, 1_111, 1_120, 200).verdict(None).revived.len(), 1);
}

#[test]
fn a_session_that_is_lost_without_a_logout_is_found() {
    let lost = story().then(What::Request, 100, 110, 401);
    assert_eq!(lost.verdict(None).lost.len(), 1);
    assert_eq!(lost.verdict(Some((0, 5))).lost.len(), 0);
    assert_eq!(lost.verdict(Some((0, 5))).declared_lost, 1);
    assert_eq!(lost.verdict(Some((11, 20))).lost.len(), 1);
    let ended = story().then(What::Logout, 90, 200, 503).then(What::Request, 100, 110, 401);
    assert_eq!(ended.verdict(None).lost.len(), 0);
}

#[test]
fn a_session_that_was_just_read_must_be_accepted_and_503_has_its_time() {
    let read = || story().then(What::Request, 4_500, 4_600, 200);
    let begun = story().then(What::Request, 500, 510, 200).then(What::Request, 1_200, 1_210, 503);
    assert_eq!(begun.verdict(None).missed_hits.len(), 0);
    let verdict = read().then(What::Request, 5_100, 5_200, 503).verdict(None);
    assert_eq!((verdict.missed_hits.len(), verdict.out_of_place.len()), (1, 0));
    let verdict = read().then(What::Request, 5_550, 5_560, 503).verdict(None);
    assert_eq!((verdict.missed_hits.len(), verdict.unavailable), (0, 1));
    let verdict = read().then(What::Request, 6_100, 6_200, 503).verdict(None);
    assert_eq!((verdict.missed_hits.len(), verdict.out_of_place.len()), (0, 1));
    let verdict = read().then(What::Request, 5_100, 5_200, 200).verdict(None);
    assert_eq!((verdict.hits_before.concat().len(), verdict.hits_during.len()), (0, 1));
}

#[test]
fn a_response_that_may_have_been_a_cache_hit_proves_no_read() {
    // Each of the first three may have been the last read, unless one of them is refuted.
    let story = story().then(What::Request, 990, 1_020, 200).then(What::Request, 1_030, 1_040, 200);
    let story = story.then(What::Request, 2_000, 2_005, 200).then(What::Request, 2_022, 2_028, 503);
    assert_eq!(story.then(What::Request, 2_100, 2_110, 503).verdict(None).missed_hits.len(), 0);
}
