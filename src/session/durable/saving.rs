//! Writes snapshots: on the interval, earlier if the journal grows large, and at the end.

use std::io::{self, BufWriter, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::loading::in_thread;
use super::{Durable, OpenFiles};
use crate::clock::millis;
use crate::session::Sessions;
use crate::session::snapshot::disk::SnapshotFiles;
use crate::session::snapshot::facts::Facts;
use crate::session::snapshot::journal::FOLD_AT;
use crate::session::snapshot::sealed_file::{Counts, SnapshotId, SnapshotWriter, new_id};
use crate::telemetry::metrics::Stage;

/// How often it is decided whether a snapshot is due.
const TICK: Duration = Duration::from_secs(1);

/// The time between two snapshots is at least this many times the duration of the first.
const REST: u32 = 10;

/// The least time between a failure and the next attempt.
const RETRY: Duration = Duration::from_secs(10);

/// Bytes that are written at once.
const WRITE_AT_ONCE: usize = 1 << 18;

/// When the next snapshot may begin.
struct Schedule {
    interval: Duration,
    next: Instant,
    /// Even if it is urgent.
    earliest: Instant,
}

impl Schedule {
    fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, next: now + interval, earliest: now }
    }

    fn is_due(&mut self, now: Instant, is_changed: bool, is_urgent: bool) -> bool {
        if now < self.earliest {
            return false;
        }
        let is_time = now >= self.next;
        if is_time && !is_changed {
            self.next = now + self.interval;
        }
        is_urgent || is_time && is_changed
    }

    fn ended(&mut self, begun: Instant, now: Instant, is_saved: bool) {
        let rest = (now - begun).saturating_mul(REST);
        self.earliest = now + if is_saved { rest } else { rest.max(RETRY) };
        self.next = self.earliest.max(begun + self.interval);
    }
}

impl Sessions {
    /// Writes snapshots when they are due, and tries again to write changes that could not be
    /// written. Never returns; if sessions end with the process, returns at once.
    pub async fn keep_saving(&self) {
        let Some(durable) = &self.durable else { return };
        tokio::join!(self.keep_settling(durable), self.keep_scheduling(durable));
    }

    async fn keep_scheduling(&self, durable: &Durable) {
        let mut schedule = Schedule::new(durable.interval, Instant::now());
        loop {
            tokio::time::sleep(TICK).await;
            let is_changed = durable.is_changed.load(Ordering::Relaxed);
            let is_urgent = durable.is_urgent().await;
            let begun = Instant::now();
            if durable.has_files() && schedule.is_due(begun, is_changed, is_urgent) {
                let is_saved = self.save().await;
                schedule.ended(begun, Instant::now(), is_saved);
            }
        }
    }

    /// Writes a snapshot, unless nothing has changed since the last one or the other process has
    /// the files. Returns whether there is nothing left to write.
    pub async fn save(&self) -> bool {
        let Some(durable) = &self.durable else { return true };
        let saving = durable.saving.lock().await;
        let was_urgent = durable.is_urgent.swap(false, Ordering::Relaxed);
        let was_changed = durable.is_changed.swap(false, Ordering::Relaxed);
        let is_paused = durable.is_paused.load(Ordering::Acquire);
        if !was_urgent && !was_changed || !durable.has_files() || is_paused {
            return true;
        }
        let had_logins = durable.has_logins.swap(false, Ordering::Relaxed);
        let begun = Instant::now();
        let outcome = self.write_snapshot(durable).await;
        drop(saving);
        match outcome {
            Ok((counts, bytes)) => {
                let took = begun.elapsed();
                durable.metrics.snapshot.saved(counts.sessions, bytes, took);
                tracing::debug!(sessions = counts.sessions, bytes, ?took, "snapshot written");
                true
            }
            Err(error) => {
                durable.metrics.snapshot.failed(Stage::Save);
                if let Some(suppressed) = durable.cannot_save.suppressed() {
                    tracing::error!(
                        file = %durable.path.display(),
                        %error,
                        suppressed,
                        "cannot write the snapshot of sessions"
                    );
                }
                durable.note_change();
                durable.is_urgent.fetch_or(was_urgent, Ordering::Relaxed);
                durable.has_logins.fetch_or(had_logins, Ordering::Relaxed);
                false
            }
        }
    }

    /// Waits for a snapshot that is being written. None begins until [`Sessions::take_files`].
    pub async fn pause_saving(&self) {
        if let Some(durable) = &self.durable {
            durable.is_paused.store(true, Ordering::Release);
            drop(durable.saving.lock().await);
        }
    }

    /// Writes another snapshot if there were logins since the last one.
    pub async fn save_logins(&self) {
        let has_logins = |durable: &Durable| durable.has_logins.load(Ordering::Relaxed);
        if self.durable.as_deref().is_some_and(has_logins) {
            self.save().await;
        }
    }

    /// The order matters: see `journal`. Returns the size in bytes as well.
    async fn write_snapshot(&self, durable: &Durable) -> io::Result<(Counts, u64)> {
        let id = new_id();
        let open = durable.files.read().await;
        let Some(OpenFiles { files, journal }) = &*open else {
            return Err(io::Error::other("the other process has the files"));
        };
        journal.mark(id).await.map_err(io::Error::other)?;
        durable.ended.begin_snapshot();
        let last_unwritten = durable.unwritten.last();
        let (sessions, files) = (self.clone(), files.clone());
        let written = in_thread(move || sessions.write_to(&files, id)).await;
        let written = written.map_err(io::Error::other).and_then(|written| written);
        durable.ended.end_snapshot(written.is_ok());
        let written = written?;
        durable.unwritten.settle_until(last_unwritten);
        // The snapshot is there. With the old journal it is as good, only longer to load.
        if let Err(error) = journal.fold(id, Facts::now(&self.clock)).await {
            durable.log_failed_write(&error);
        }
        Ok(written)
    }

    fn write_to(&self, files: &SnapshotFiles, id: SnapshotId) -> io::Result<(Counts, u64)> {
        let Some(durable) = &self.durable else { return Ok((Counts::default(), 0)) };
        // Requests come first. If this fails, they are only slower meanwhile.
        let _ = rustix::process::nice(10);
        let idle_timeout = Some(millis(self.idle_timeout()));
        let facts = Facts { idle_timeout, ..Facts::now(&self.clock) };
        let file = BufWriter::with_capacity(WRITE_AT_ONCE, files.new_snapshot()?);
        let mut writer = SnapshotWriter::new(file, &durable.keys, id, &facts)?;
        self.export(|entry| writer.write(&entry))?;
        let (mut file, counts) = writer.finish()?;
        file.flush()?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        Ok((counts, file.finish()?))
    }
}

impl Durable {
    pub(super) async fn is_urgent(&self) -> bool {
        self.is_urgent.load(Ordering::Relaxed) || self.ended.is_large() || {
            let files = self.files.read().await;
            files.as_ref().is_some_and(|open| open.journal.bytes() >= FOLD_AT)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_due_on_the_interval_but_rests_ten_times_as_long_as_the_last_one_took() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut schedule = Schedule::new(Duration::from_secs(60), start);
        assert!(!schedule.is_due(at(59), true, false));
        assert!(!schedule.is_due(at(60), false, false), "nothing has changed");
        assert!(!schedule.is_due(at(119), true, false));
        assert!(schedule.is_due(at(120), true, false));
        schedule.ended(at(120), at(129), true);
        assert!(!schedule.is_due(at(218), true, true), "even if it is urgent");
        assert!(schedule.is_due(at(219), true, false));
        schedule.ended(at(219), at(219), true);
        assert!(!schedule.is_due(at(278), true, false));
        assert!(schedule.is_due(at(219), false, true), "it is urgent");
        schedule.ended(at(219), at(219), false);
        assert!(!schedule.is_due(at(228), true, true), "the last one has failed");
        assert!(schedule.is_due(at(229), true, true));
    }
}
