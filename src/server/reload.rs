//! Reloads the configuration.
//!
//! On SIGHUP, and when a file of the configuration has changed, the whole configuration is read and
//! checked as at the start, and made into a new policy, which replaces the current one atomically:
//! requests that have begun keep the configuration they began with. If there is any problem,
//! nothing changes; the log says what is wrong, as `wxgate check` does, and a metric is 0 until a
//! reload succeeds.
//!
//! Files are polled. Change notifications of the system (inotify) are not enough: they watch one
//! name on one file system, while Kubernetes replaces a symbolic link in its path, and network file
//! systems send none. A change is loaded when two checks in a row see the same files.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::service_manager::ServiceManager;
use crate::config::{Changes, Config, Files, Loaded, Problems, Secrets, listed};
use crate::policy::{Policies, Policy, PolicyError, Process};
use crate::telemetry::process_log::LogControl;
use crate::upstream::Pool;

/// A new policy waits at most this long for host names to be resolved.
const FIRST_RESOLVE: Duration = Duration::from_secs(5);

/// Maximum number of problems of one configuration that are logged.
const MOST_PROBLEMS: usize = 100;

/// The origin of the running configuration.
pub struct Origin {
    pub path: PathBuf,
    pub config: Arc<Config>,
    pub files: Files,
    /// Control of the process log, if there is one.
    pub log: Option<LogControl>,
}

/// Keeps a gateway's configuration up to date with its files.
pub struct Reloader {
    origin: Origin,
    process: Arc<Process>,
    policies: Arc<Policies>,
    manager: Arc<ServiceManager>,
    loaded: FileStates,
    resolving: JoinSet<()>,
}

/// The state of a file: device, inode, length, and times of the last changes.
type FileState = (u64, u64, u64, (i64, i64), (i64, i64));

/// `None`: the file does not exist.
type FileStates = BTreeMap<PathBuf, Option<FileState>>;

/// Why a configuration was rejected.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("problems in the configuration: {}", .0.len())]
    Config(#[from] Problems),
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("cannot read the configuration: {0}")]
    Read(io::Error),
}

impl Reloader {
    pub fn new(
        origin: Origin,
        process: Arc<Process>,
        policies: Arc<Policies>,
        manager: Arc<ServiceManager>,
    ) -> Self {
        let loaded = file_states(&origin.files);
        Self { origin, process, policies, manager, loaded, resolving: JoinSet::new() }
    }

    /// Reloads on each command and when a file has changed, until the channel of commands is
    /// closed.
    pub async fn run(mut self, mut requests: mpsc::Receiver<()>) {
        loop {
            tokio::select! {
                request = requests.recv() => match request {
                    Some(()) => tracing::info!("SIGHUP: reloading"),
                    None => return,
                },
                () = self.change() => tracing::info!("files have changed: reloading"),
            }
            self.reload().await;
        }
    }

    /// Waits until the files differ from those last read, and have stayed the same for one
    /// interval.
    async fn change(&self) {
        let interval = self.origin.config.server.watch_interval;
        if interval.is_zero() {
            return std::future::pending().await;
        }
        let mut before = self.loaded.clone();
        loop {
            sleep(interval).await;
            let now = self.file_states().await;
            if now != self.loaded && now == before {
                return;
            }
            before = now;
        }
    }

    async fn reload(&mut self) {
        self.manager.reloading();
        let before = self.file_states().await;
        let files = self.changed_files(&before);
        let outcome = self.try_reload().await;
        // A file that changed during the reload may have been read before or after the change, so
        // it must count as changed.
        self.loaded = self.file_states().await;
        for (file, before) in before {
            self.loaded.entry(file).and_modify(|state| *state = before);
        }
        let files = listed(&files);
        match &outcome {
            Ok(changes) if changes.is_empty() => {
                tracing::info!(files, "configuration reloaded without changes");
            }
            Ok(Changes { added, removed, changed }) => tracing::info!(
                files,
                added = listed(added),
                removed = listed(removed),
                changed = listed(changed),
                "configuration reloaded"
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
        // An operator who sees this metric finds the reason in the log.
        self.process.metrics.reloaded(outcome.is_ok());
        self.manager.ready(match outcome {
            Ok(_) => "serving",
            Err(_) => "serving; the last reload was rejected, see the log",
        });
    }

    /// Files that have changed since they were last read, and new and removed files.
    fn changed_files(&self, now: &FileStates) -> Vec<String> {
        let of = |states: &FileStates, file: &PathBuf| states.get(file).copied().flatten();
        let mut files: Vec<_> = now.keys().chain(self.loaded.keys()).collect();
        files.sort_unstable();
        files.dedup();
        files.retain(|file| of(now, file) != of(&self.loaded, file));
        files.into_iter().map(|file| file.display().to_string()).collect()
    }

    async fn try_reload(&mut self) -> Result<Changes, ReloadError> {
        let (path, running) = (self.origin.path.clone(), self.origin.config.clone());
        let read = spawn_blocking(move || Config::read(&path, Secrets::Load, Some(&running)));
        let Loaded { config, files } =
            read.await.map_err(|error| ReloadError::Read(error.into()))?;
        let config = config.inspect_err(|_| {
            // Files of a rejected configuration are watched as well: the problem may be fixed in
            // any of them.
            self.origin.files.add(&files);
        })?;
        let current = self.policies.current();
        let policy = Arc::new(Policy::new(&config, &self.process, Some(&current))?);
        let is_new =
            |pool: &&Arc<Pool>| !current.pools.iter().any(|current| Arc::ptr_eq(current, pool));
        let new: Vec<_> = policy.pools.iter().filter(is_new).cloned().collect();
        resolve(&new, &mut self.resolving).await;

        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        self.process.sessions.set_ttl(config.session.ttl);
        self.process.sessions.keep_session_keys(config.open_data.enabled);
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

    /// Removes the metric series of apps, upstreams and routes that the new configuration does not
    /// have.
    fn forget_series(&self, config: &Config) {
        let metrics = &self.process.metrics;
        for old in &self.origin.config.apps {
            if config.apps.iter().all(|app| app.app_id != old.app_id) {
                metrics.forget_app(old.app_id.as_str());
            }
        }
        for old in &self.origin.config.upstreams {
            if config.upstreams.iter().all(|upstream| upstream.name != old.name) {
                metrics.forget_upstream(&old.name);
            }
        }
        for old in &self.origin.config.routes {
            if config.routes.iter().all(|route| route.name != old.name) {
                metrics.forget_route(&old.name);
            }
        }
    }

    async fn file_states(&self) -> FileStates {
        let files = self.origin.files.clone();
        // A file system may be slow.
        spawn_blocking(move || file_states(&files)).await.unwrap_or_default()
    }
}

fn file_states(files: &Files) -> FileStates {
    let state = |file: PathBuf| {
        // Follows links, so that a new target counts as a change.
        let metadata = std::fs::metadata(&file).ok();
        let state = metadata.map(|of| {
            let modified = (of.mtime(), of.mtime_nsec());
            (of.dev(), of.ino(), of.len(), modified, (of.ctime(), of.ctime_nsec()))
        });
        (file, state)
    };
    files.find().into_iter().map(state).collect()
}

/// Logs one line for each problem, up to [`MOST_PROBLEMS`].
fn log_problems(problems: &Problems) {
    for problem in problems.iter().take(MOST_PROBLEMS) {
        tracing::error!(
            file = problem.file,
            line = problem.line,
            column = problem.column,
            key = problem.key,
            problem = problem.message,
            help = (!problem.help.is_empty()).then_some(problem.help),
            "problem in the configuration"
        );
    }
}

/// Resolves the servers of upstreams: waits briefly for the first results, and then continues for
/// as long as an upstream is in use.
pub async fn resolve(pools: &[Arc<Pool>], resolving: &mut JoinSet<()>) {
    // Removes the tasks of pools that are no longer in use.
    while resolving.try_join_next().is_some() {}
    let first: JoinSet<()> =
        pools.iter().cloned().map(|pool| async move { pool.resolve().await }).collect();
    let _ = timeout(FIRST_RESOLVE, first.join_all()).await;
    for pool in pools {
        resolving.spawn(Pool::keep_resolving(Arc::downgrade(pool)));
        resolving.spawn(Pool::keep_checking(Arc::downgrade(pool)));
    }
}
