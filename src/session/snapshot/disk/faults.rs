//! A disk that fails or hangs, for tests.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::{SnapshotFiles, Step};

/// What the disk does. Clones share it.
#[derive(Clone, Default)]
pub struct Faults(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    faults: HashMap<Step, Fault>,
    counts: HashMap<Step, usize>,
    observer: Option<Arc<dyn Fn(Step) + Send + Sync>>,
}

#[derive(Clone, Copy)]
enum Fault {
    Error(rustix::io::Errno),
    Hang,
}

impl Faults {
    /// Locks the files on this disk.
    pub fn lock(&self, path: &Path) -> SnapshotFiles {
        let faults = self.clone();
        let before = move |step| faults.before(step);
        SnapshotFiles::lock_with(path, Some(Box::new(before))).unwrap()
    }

    /// From now on, this step fails.
    pub fn fail(&self, step: Step, error: rustix::io::Errno) {
        self.0.state.lock().faults.insert(step, Fault::Error(error));
    }

    /// From now on, this step waits until the disk is healed.
    pub fn hang(&self, step: Step) {
        self.0.state.lock().faults.insert(step, Fault::Hang);
    }

    /// From now on, everything works.
    pub fn heal(&self) {
        self.0.state.lock().faults.clear();
        self.0.changed.notify_all();
    }

    /// How often this step was begun.
    pub fn count(&self, step: Step) -> usize {
        self.0.state.lock().counts.get(&step).copied().unwrap_or(0)
    }

    /// Calls `observer` before each step.
    pub fn observe(&self, observer: impl Fn(Step) + Send + Sync + 'static) {
        self.0.state.lock().observer = Some(Arc::new(observer));
    }

    fn before(&self, step: Step) -> io::Result<()> {
        let observer = self.0.state.lock().observer.clone();
        if let Some(observer) = observer {
            observer(step);
        }
        let mut state = self.0.state.lock();
        *state.counts.entry(step).or_default() += 1;
        loop {
            match state.faults.get(&step) {
                None => return Ok(()),
                Some(Fault::Error(error)) => return Err((*error).into()),
                Some(Fault::Hang) => self.0.changed.wait(&mut state),
            }
        }
    }
}
