//! What the times in a file mean to a later process.
//!
//! Times in a file are those of the writer's clock, which ended with its process. The file says
//! what other clocks showed at one of its moments. From them follows how long ago that was: by the
//! time since boot if the machine has not been booted since, because that clock counts a suspended
//! machine's time and cannot be set; otherwise by the wall clock. A wall clock that was set back
//! makes it look as if no time had passed, never less: so nothing gets more time than it had left.
//!
//! A session that has ended by the writer's idle timeout has ended for a later process, too, even
//! if that has a longer one.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use crate::clock::{Clock, millis};
use crate::handover::fields::{Malformed, Writer, read};
use crate::session::entry::{BlockEntry, Change, Entry, KeysEntry, SessionEntry};

const CLOCK: u32 = 1;
const WALL: u32 = 2;
const BOOT: u32 = 3;
const UPTIME: u32 = 4;
const IDLE_TIMEOUT: u32 = 5;

/// Names the boot of this machine. Containers on it share it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What the clocks of a process show at one moment. In milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The [`Clock`] of the process.
    pub clock: u64,
    /// Since 1970.
    pub wall: u64,
    /// Which boot of which machine it is; empty if that is unknown.
    pub boot: String,
    /// Since that boot, with the time in which the machine was suspended.
    pub uptime: u64,
    /// After how long without a use a session of the process ends. `None`: an older program has
    /// written the facts.
    pub idle_timeout: Option<u64>,
}

impl Facts {
    /// What the clocks show now.
    pub fn now(clock: &Clock) -> Self {
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
        let uptime = clock_gettime(ClockId::Boottime);
        Self {
            clock: clock.now_millis(),
            wall: clock.wall_millis(),
            boot: boot.trim().to_owned(),
            uptime: uptime.try_into().map(millis).unwrap_or_default(),
            idle_timeout: None,
        }
    }

    /// Appends the fields to an empty list.
    pub fn encode(&self, list: &mut Writer) {
        list.u64(CLOCK, self.clock).u64(WALL, self.wall);
        list.text(BOOT, &self.boot).u64(UPTIME, self.uptime);
        if let Some(idle_timeout) = self.idle_timeout {
            list.u64(IDLE_TIMEOUT, idle_timeout);
        }
    }

    /// # Errors
    /// When the list is not one of facts.
    pub fn decode(list: &[u8]) -> Result<Self, Malformed> {
        let (mut clock, mut wall, mut boot, mut uptime) = (None, None, None, None);
        let mut idle_timeout = None;
        for field in read(list) {
            let field = field?;
            match field.number {
                CLOCK => clock = Some(field.u64().ok_or(Malformed)?),
                WALL => wall = Some(field.u64().ok_or(Malformed)?),
                BOOT => boot = Some(field.text().ok_or(Malformed)?.to_owned()),
                UPTIME => uptime = Some(field.u64().ok_or(Malformed)?),
                IDLE_TIMEOUT => idle_timeout = Some(field.u64().ok_or(Malformed)?),
                _ => {}
            }
        }
        Ok(Self {
            clock: clock.ok_or(Malformed)?,
            wall: wall.ok_or(Malformed)?,
            boot: boot.ok_or(Malformed)?,
            uptime: uptime.ok_or(Malformed)?,
            idle_timeout,
        })
    }

    /// Milliseconds from these facts to those of a later process.
    fn until(&self, here: &Self) -> u64 {
        let is_same_boot = !self.boot.is_empty() && self.boot == here.boot;
        // It may be less for a container that was moved or restored.
        match here.uptime.checked_sub(self.uptime) {
            Some(elapsed) if is_same_boot => elapsed,
            _ => here.wall.saturating_sub(self.wall),
        }
    }
}

/// Turns times of a file into times of this process's clock.
#[derive(Clone, Copy, Debug)]
pub struct Rebase {
    /// This process's clock.
    now: u64,
    /// What is added to a time.
    shift: i128,
    /// That of the process that has written the times.
    idle_timeout: Option<u64>,
}

impl Rebase {
    /// From the facts in a file to those of this process.
    pub fn new(written: &Facts, here: &Facts) -> Self {
        let elapsed = i128::from(written.until(here));
        let shift = i128::from(here.clock) - elapsed - i128::from(written.clock);
        Self { now: here.clock, shift, idle_timeout: written.idle_timeout }
    }

    /// A time that may be in the future. Times before the beginning of this process's clock become
    /// its beginning.
    pub fn time(&self, time: u64) -> u64 {
        let time = i128::from(time).saturating_add(self.shift).max(0);
        u64::try_from(time).unwrap_or(u64::MAX)
    }

    /// A time that has passed. It can be later than the facts of the file, whose writing takes
    /// time.
    fn past(&self, time: u64) -> u64 {
        self.time(time).min(self.now)
    }

    pub fn session(&self, session: &mut SessionEntry) {
        let life = session.ends.saturating_sub(session.created);
        session.created = self.past(session.created);
        session.used = self.past(session.used);
        session.ends = self.time(session.ends).min(session.created.saturating_add(life));
        let idle_end = self.idle_timeout.map(|timeout| session.used.saturating_add(timeout));
        if let Some(idle_end) = idle_end.filter(|idle_end| *idle_end <= self.now) {
            session.ends = session.ends.min(idle_end);
        }
    }

    pub fn block(&self, block: &mut BlockEntry) {
        block.until = self.time(block.until);
    }

    pub fn entry(&self, entry: &mut Entry) {
        match entry {
            Entry::Session(session) => self.session(session),
            Entry::Block(block) => self.block(block),
            Entry::Keys(KeysEntry { keys, .. }) => {
                for key in keys {
                    key.logged_in_at_millis = self.past(key.logged_in_at_millis);
                }
            }
        }
    }

    /// A change that is in a journal.
    pub fn change(&self, change: &mut Change) {
        if let Change::Blocked(block) = change {
            self.block(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn facts(clock: u64, wall: u64, boot: &str, uptime: u64) -> Facts {
        Facts { clock, wall, boot: boot.into(), uptime, idle_timeout: None }
    }

    /// Written at 100 h on the clock.
    fn written() -> Facts {
        facts(100 * HOUR, 500 * HOUR, "boot", 50 * HOUR)
    }

    /// What was left of something that ends three hours after it was written, and how long ago its
    /// last use is, which was an hour before; in a process that starts at 1000 h on its clock.
    fn left_and_ago(wall: u64, boot: &str, uptime: u64) -> (u64, u64) {
        let rebase = Rebase::new(&written(), &facts(1000 * HOUR, wall, boot, uptime));
        let hours = |time: u64| rebase.time(time * HOUR) / HOUR;
        (hours(103) - 1000, 1000 - hours(99))
    }

    #[test]
    fn on_the_same_boot_only_the_time_since_boot_counts() {
        for wall in [0, 400 * HOUR, 500 * HOUR, 502 * HOUR, 9000 * HOUR, u64::MAX] {
            assert_eq!(left_and_ago(wall, "boot", 50 * HOUR), (3, 1));
            // With the time in which the machine was suspended: clock and wall may show less.
            assert_eq!(left_and_ago(wall, "boot", 52 * HOUR), (1, 3));
        }
    }

    #[test]
    fn after_another_boot_the_wall_clock_counts_and_never_gives_time() {
        for boot in ["other", ""] {
            for uptime in [0, 50 * HOUR, 51 * HOUR, u64::MAX] {
                assert_eq!(left_and_ago(502 * HOUR, boot, uptime), (1, 3));
                // Set back.
                assert_eq!(left_and_ago(500 * HOUR, boot, uptime), (3, 1));
                assert_eq!(left_and_ago(400 * HOUR, boot, uptime), (3, 1));
                assert_eq!(left_and_ago(0, boot, uptime), (3, 1));
            }
        }
        // Set forward, or a long time.
        let here = facts(1000 * HOUR, 504 * HOUR, "other", 0);
        assert!(Rebase::new(&written(), &here).time(103 * HOUR) < here.clock);
    }

    #[test]
    fn an_unknown_boot_is_no_same_boot() {
        let written = Facts { boot: String::new(), ..written() };
        let here = facts(0, 502 * HOUR, "", 51 * HOUR);
        assert_eq!(Rebase::new(&written, &here).time(103 * HOUR), HOUR);
    }

    #[test]
    fn a_time_since_boot_that_went_back_is_not_used() {
        assert_eq!(left_and_ago(502 * HOUR, "boot", 49 * HOUR), (1, 3));
        assert_eq!(left_and_ago(400 * HOUR, "boot", 49 * HOUR), (3, 1));
    }

    #[test]
    fn times_at_the_limits_do_not_overflow() {
        let limits = [0, 1, HOUR, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        for clock in limits {
            for wall in limits {
                for here in limits {
                    let written = facts(clock, wall, "boot", clock);
                    let here = facts(here, here, "other", wall);
                    let rebase = Rebase::new(&written, &here);
                    for time in limits {
                        let left = time.saturating_sub(clock);
                        assert!(rebase.time(time) <= here.clock.saturating_add(left));
                        assert!(rebase.past(time) <= here.clock);
                    }
                }
            }
        }
    }

    #[test]
    fn a_session_keeps_its_times_and_a_use_is_never_in_the_future() {
        use crate::identity::token::TokenDigest;
        use crate::identity::{AppId, Identity, OpenId};

        let identity = Identity {
            app_id: AppId::parse("wx1").unwrap(),
            openid: OpenId::parse("o1").unwrap(),
            unionid: None,
            user_id: None,
        };
        let rebased_with = |idle: Option<u64>, [created, used, ends]: [u64; 3], elapsed: u64| {
            let mut session = SessionEntry {
                digest: TokenDigest::from_bytes([1; 32]),
                identity: identity.clone(),
                client: [127, 0, 0, 1].into(),
                created: created * HOUR,
                used: used * HOUR,
                ends: ends * HOUR,
            };
            let here = facts(1000 * HOUR, (500 + elapsed) * HOUR, "other", 0);
            let written = Facts { idle_timeout: idle.map(|idle| idle * HOUR), ..written() };
            Rebase::new(&written, &here).session(&mut session);
            [session.created, session.used, session.ends].map(|time| time / HOUR)
        };
        let rebased = |times, elapsed| rebased_with(None, times, elapsed);
        assert_eq!(rebased([90, 99, 110], 0), [990, 999, 1010]);
        assert_eq!(rebased([90, 99, 110], 2), [988, 997, 1008]);
        // Created and used after the facts were taken: it gets no more than its whole life.
        assert_eq!(rebased([101, 102, 105], 0), [1000, 1000, 1004]);
        assert_eq!(rebased([101, 102, 105], 3), [998, 999, 1002]);
        // It has ended.
        assert_eq!(rebased([90, 99, 110], 11), [979, 988, 999]);
        // By the idle timeout of the process that has written it.
        assert_eq!(rebased_with(Some(4), [90, 99, 110], 2), [988, 997, 1008]);
        assert_eq!(rebased_with(Some(3), [90, 99, 110], 2), [988, 997, 1000]);
        assert_eq!(rebased_with(Some(1), [90, 99, 110], 2), [988, 997, 998]);
        assert_eq!(rebased_with(Some(u64::MAX / HOUR), [90, 99, 110], 2), [988, 997, 1008]);
    }

    #[test]
    fn facts_come_back_and_a_missing_one_is_an_error() {
        let here = Facts::now(&Clock::system());
        assert!(here.uptime > 0 && here.clock > 0 && here.wall > 0, "{here:?}");
        assert!(!here.boot.is_empty() && here.boot.trim() == here.boot, "{here:?}");
        let mut list = Writer::new();
        here.encode(&mut list);
        list.text(99, "new");
        assert_eq!(Facts::decode(list.as_bytes()), Ok(here.clone()));
        let here = Facts { idle_timeout: Some(7), ..here };
        let mut with_idle_timeout = Writer::new();
        here.encode(&mut with_idle_timeout);
        assert_eq!(Facts::decode(with_idle_timeout.as_bytes()), Ok(here));
        for missing in 1..=4 {
            let mut without = Writer::new();
            for field in read(list.as_bytes()).map(Result::unwrap) {
                if field.number != missing {
                    without.bytes(field.number, field.value);
                }
            }
            assert_eq!(Facts::decode(without.as_bytes()), Err(Malformed));
        }
    }

    #[test]
    fn nothing_changes_between_processes_at_one_moment() {
        let clock = Clock::system();
        let facts = Facts::now(&clock);
        let rebase = Rebase::new(&facts, &facts.clone());
        assert_eq!(rebase.time(facts.clock + 7), facts.clock + 7);
        assert_eq!(rebase.time(facts.clock - 7), facts.clock - 7);
    }
}
