//! Taking a changed configuration into service.
//!
//! On SIGHUP, and when one of the files that make up the configuration has changed, the whole
//! of it is read and checked as at the start, made into a policy beside the one that serves,
//! and put in its place at one stroke: whatever has begun ends under the configuration it
//! began with. If anything is wrong nothing changes; the log says what, as `wxgate check`
//! would, and a metric stands at 0 until a later reload succeeds.
//!
//! Files are watched by looking at them: what the system tells of changes it tells of one
//! file system and one name, and Kubernetes swaps a link beside it, network file systems tell
//! nothing. A change is taken when two looks in a row see the same.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::config::{Changes, Config, Files, Loaded, Problems, Secrets, listed};
use crate::policy::{Policies, Policy, PolicyError, Process};
use crate::telemetry::process_log::LogControl;
use crate::upstream::Pool;

/// A new policy waits no longer than this for host names to be resolved.
const FIRST_RESOLVE: Duration = Duration::from_secs(5);

/// Problems of one configuration that are logged.
const MOST_PROBLEMS: usize = 100;

/// Where a running configuration came from.
pub struct Origin {
    pub path: PathBuf,
    pub config: Arc<Config>,
    pub files: Files,
    /// Of the process's log, where it has one.
    pub log: Option<LogControl>,
}

/// Keeps a gateway at what its files say.
pub struct Reloader {
    origin: Origin,
    process: Arc<Process>,
    policies: Arc<Policies>,
    seen: Looks,
    resolving: JoinSet<()>,
}

/// What a look at a file shows of it: device, inode, length, and when it last changed.
type Look = (u64, u64, u64, (i64, i64), (i64, i64));

/// `None` for a file that is not there.
type Looks = BTreeMap<PathBuf, Option<Look>>;

/// Why a configuration is not taken.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("the configuration has {} problems", .0.len())]
    Config(#[from] Problems),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the configuration cannot be read: {0}")]
    Read(io::Error),
}

impl Reloader {
    pub fn new(origin: Origin, process: Arc<Process>, policies: Arc<Policies>) -> Self {
        let seen = look(&origin.files);
        Self { origin, process, policies, seen, resolving: JoinSet::new() }
    }

    /// Reloads whenever it is asked to or a file has changed, until nobody can ask any more.
    pub async fn run(mut self, mut asked: mpsc::Receiver<()>) {
        loop {
            tokio::select! {
                asked = asked.recv() => match asked {
                    Some(()) => tracing::info!("SIGHUP: reloading"),
                    None => return,
                },
                () = self.change() => tracing::info!("files have changed: reloading"),
            }
            self.reload().await;
        }
    }

    /// Waits until the files are others than those last read, and stay so for a moment.
    async fn change(&self) {
        let interval = self.origin.config.server.watch_interval;
        if interval.is_zero() {
            return std::future::pending().await;
        }
        let mut before = self.seen.clone();
        loop {
            sleep(interval).await;
            let now = self.look().await;
            if now != self.seen && now == before {
                return;
            }
            before = now;
        }
    }

    async fn reload(&mut self) {
        let before = self.look().await;
        let files = self.changed_files(&before);
        let outcome = self.try_reload().await;
        // What changed meanwhile may have been read as it was or as it is: it is news either way.
        self.seen = self.look().await;
        for (file, known) in before {
            self.seen.entry(file).and_modify(|look| *look = known);
        }
        let files = listed(&files);
        match &outcome {
            Ok(changes) if changes.is_empty() => {
                tracing::info!(files, "the configuration is reloaded without changes");
            }
            Ok(Changes { added, removed, changed }) => tracing::info!(
                files,
                added = listed(added),
                removed = listed(removed),
                changed = listed(changed),
                "the configuration is reloaded"
            ),
            Err(error) => {
                if let ReloadError::Config(problems) = error {
                    log_problems(problems);
                }
                tracing::error!(
                    files,
                    %error,
                    "reload rejected; still running the previous configuration"
                );
            }
        }
        // Whoever sees this finds the rest in the log.
        self.process.metrics.reloaded(outcome.is_ok());
    }

    /// Files that have changed since they were last read, are new, or are gone.
    fn changed_files(&self, now: &Looks) -> Vec<String> {
        let of = |looks: &Looks, file: &PathBuf| looks.get(file).copied().flatten();
        let mut files: Vec<_> = now.keys().chain(self.seen.keys()).collect();
        files.sort_unstable();
        files.dedup();
        files.retain(|file| of(now, file) != of(&self.seen, file));
        files.into_iter().map(|file| file.display().to_string()).collect()
    }

    async fn try_reload(&mut self) -> Result<Changes, ReloadError> {
        let (path, running) = (self.origin.path.clone(), self.origin.config.clone());
        let read = spawn_blocking(move || Config::read(&path, Secrets::Load, Some(&running)));
        let Loaded { config, files } =
            read.await.map_err(|error| ReloadError::Read(error.into()))?;
        let config = config.inspect_err(|_| {
            // What was good before may be what is mended.
            self.origin.files.add(&files);
        })?;
        let current = self.policies.current();
        let policy = Arc::new(Policy::new(&config, &self.process, Some(&current))?);
        let is_new =
            |pool: &&Arc<Pool>| !current.pools.iter().any(|known| Arc::ptr_eq(known, pool));
        let new: Vec<_> = policy.pools.iter().filter(is_new).cloned().collect();
        resolve(&new, &mut self.resolving).await;

        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        self.process.sessions.set_ttl(config.session.ttl);
        if let Some(log) = &self.origin.log {
            log.set(config.log.level);
        }
        self.policies.replace(policy);
        self.forget_series(&config);
        let changes = Changes::between(&self.origin.config, &config);
        self.origin.config = Arc::new(config);
        self.origin.files = files;
        Ok(changes)
    }

    /// Ends the series of apps and routes that a new configuration does not have.
    fn forget_series(&self, config: &Config) {
        let metrics = &self.process.metrics;
        for old in &self.origin.config.apps {
            if config.apps.iter().all(|app| app.app_id != old.app_id) {
                metrics.forget_app(old.app_id.as_str());
            }
        }
        for old in &self.origin.config.routes {
            if config.routes.iter().all(|route| route.name != old.name) {
                metrics.forget_route(&old.name);
            }
        }
    }

    async fn look(&self) -> Looks {
        let files = self.origin.files.clone();
        // A file system may make it wait.
        spawn_blocking(move || look(&files)).await.unwrap_or_default()
    }
}

fn look(files: &Files) -> Looks {
    let look = |file: PathBuf| {
        // Through links, so that another target is another file.
        let metadata = std::fs::metadata(&file).ok();
        let look = metadata.map(|of| {
            let modified = (of.mtime(), of.mtime_nsec());
            (of.dev(), of.ino(), of.len(), modified, (of.ctime(), of.ctime_nsec()))
        });
        (file, look)
    };
    files.find().into_iter().map(look).collect()
}

/// One line for each problem, of the first hundred.
fn log_problems(problems: &Problems) {
    for problem in problems.iter().take(MOST_PROBLEMS) {
        tracing::error!(
            file = problem.file,
            line = problem.line,
            column = problem.column,
            key = problem.key,
            problem = problem.message,
            help = (!problem.help.is_empty()).then_some(problem.help),
            "the configuration has a problem"
        );
    }
}

/// Looks up the servers of pools, for a moment before they are needed and then again and again
/// for as long as anybody has them.
pub async fn resolve(pools: &[Arc<Pool>], resolving: &mut JoinSet<()>) {
    // Of those that nobody has any more.
    while resolving.try_join_next().is_some() {}
    let first: JoinSet<()> =
        pools.iter().cloned().map(|pool| async move { pool.resolve().await }).collect();
    let _ = timeout(FIRST_RESOLVE, first.join_all()).await;
    for pool in pools {
        resolving.spawn(Pool::keep_resolving(Arc::downgrade(pool)));
    }
}
