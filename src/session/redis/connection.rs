//! The connections to a shared store, and whether its responses can be trusted.
//!
//! A separate task connects, checks the store twice a second, and reconnects when a check fails.
//! Requests use the existing connections, or fail at once. A primary that was replaced unnoticed
//! still responds, with outdated data. So a primary with Sentinels is trusted only while most of
//! them name it or, if the Sentinels cannot be reached, while all of its replicas that were up
//! still follow it. Writes on the connection for revocations are confirmed by replicas (`WAIT`): by
//! one, if a server or a primary of a cluster has any; with Sentinels by all replicas that they
//! report as up, because any of these may become the primary.
//!
//! Before a new primary is used, this gateway's revocations are written to it again. If that fails,
//! it is not used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::{RedisError, RedisResult, cmd};
use tokio::time::{sleep, timeout};

use super::address::{Dialer, Role};
use super::failure;
use super::key_names::KeyNames;
use super::primaries::{Connection, primary_ids, process_id, ready_replicas};
use super::sentinel::Sentinels;
use crate::clock::{Clock, millis};
use crate::config::{RedisAddress, RedisSection, RedisServers};
use crate::session::StoreError;
use crate::telemetry::log_throttle::LogThrottles;
use crate::telemetry::metrics::{Counters, Metrics};

/// Time between two heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Time for one heartbeat.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_millis(450);

/// How long the store is trusted after the beginning of the last successful heartbeat.
const TRUST_PERIOD: Duration = Duration::from_millis(1500);

/// Time to connect to the store, with the Sentinels before it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause between two attempts to connect.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// A store that was reached.
pub struct Store {
    /// For everything except writes that are confirmed.
    common: Connection,
    /// For writes that are confirmed: `WAIT` delays the commands after it.
    revocations: Connection,
    /// `None` for a cluster, which has several primaries.
    pub address: Option<RedisAddress>,
    /// Identifies the process of the server, or of all primaries: a new process may have lost
    /// revocations.
    identity: String,
    /// Replicas that must confirm a revocation, if there is one primary.
    acknowledgements: AtomicUsize,
    /// In milliseconds since the `StoreConnection` was created.
    usable_until: AtomicU64,
}

impl Store {
    pub fn common(&self) -> Connection {
        self.common.clone()
    }

    pub fn revocations(&self) -> Connection {
        self.revocations.clone()
    }

    /// Waits until the required replicas have received what was written for a key on `connection`,
    /// one of the [`Store::revocations`].
    pub async fn confirm(
        &self,
        connection: &mut Connection,
        key: &[u8],
        time_limit: Duration,
    ) -> RedisResult<()> {
        let required = self.acknowledgements.load(Ordering::Acquire);
        connection.wait(key, required, time_limit).await
    }
}

/// The outcome of an operation on a shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    Ok,
    Error,
    Timeout,
    /// The limit of concurrent operations was reached.
    Refused,
}

impl StoreOutcome {
    const ALL: [Self; 4] = [Self::Ok, Self::Error, Self::Timeout, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
        }
    }
}

pub struct StoreConnection {
    dialer: Arc<Dialer>,
    servers: RedisServers,
    /// The key for heartbeats.
    lease: String,
    store: ArcSwapOption<Store>,
    was_reached: AtomicBool,
    created: Instant,
    metrics: Arc<Metrics>,
    outcomes: Counters<4>,
    /// Throttled by cause.
    failures: LogThrottles<String>,
}

impl StoreConnection {
    pub fn new(section: &RedisSection, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self {
            dialer: Arc::new(Dialer::new(section)),
            servers: section.servers.clone(),
            lease: KeyNames::new(&section.key_prefix).lease(),
            store: ArcSwapOption::empty(),
            was_reached: AtomicBool::new(false),
            created: Instant::now(),
            outcomes: metrics.store_outcomes(StoreOutcome::ALL.map(StoreOutcome::as_str)),
            metrics,
            failures: LogThrottles::new(clock),
        }
    }

    /// Whether the store has ever been reached.
    pub fn was_reached(&self) -> bool {
        self.was_reached.load(Ordering::Acquire)
    }

    /// The store, if it is trusted at present.
    pub fn usable(&self) -> Option<Arc<Store>> {
        self.store
            .load_full()
            .filter(|store| self.age_millis() < store.usable_until.load(Ordering::Acquire))
    }

    /// The store, for a request.
    ///
    /// # Errors
    /// At once, when it is not trusted at present.
    pub fn store(&self) -> Result<Arc<Store>, StoreError> {
        self.usable().ok_or_else(|| {
            self.count(StoreOutcome::Error);
            StoreError
        })
    }

    /// Runs an operation on the store, with a time limit.
    pub async fn within<T>(
        &self,
        time_limit: Duration,
        operation: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, StoreError> {
        let started = Instant::now();
        let (outcome, result) = match timeout(time_limit, operation).await {
            Ok(Ok(value)) => (StoreOutcome::Ok, Ok(value)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the session store returned an error");
                (StoreOutcome::Error, Err(StoreError))
            }
            Err(_) => (StoreOutcome::Timeout, Err(StoreError)),
        };
        self.count(outcome);
        self.metrics.store_took(started.elapsed());
        result
    }

    pub fn count(&self, outcome: StoreOutcome) {
        self.outcomes.count(outcome as usize);
    }

    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    pub fn servers(&self) -> &RedisServers {
        &self.servers
    }

    /// Keeps the connection to the store, and never returns. If a store may have lost this
    /// gateway's revocations, `rewrite` writes them again before the store is used.
    pub async fn run<F>(&self, rewrite: impl Fn(Arc<Store>) -> F)
    where
        F: Future<Output = RedisResult<()>>,
    {
        let mut sentinels = match &self.servers {
            RedisServers::Sentinel { sentinels, primary, .. } => {
                Some(Sentinels::new(self.dialer.clone(), sentinels, primary))
            }
            _ => None,
        };
        // That of the last store that had all of them.
        let mut last_identity = None;
        // Whether the last log line says that the store is unavailable.
        let mut is_logged = true;
        loop {
            match self.connect(sentinels.as_mut(), last_identity.as_deref(), &rewrite).await {
                Ok(store) => {
                    last_identity = Some(store.identity.clone());
                    self.store.store(Some(store.clone()));
                    self.was_reached.store(true, Ordering::Release);
                    self.metrics.store_up(true);
                    if std::mem::take(&mut is_logged) {
                        tracing::info!("connected to the session store");
                    }
                    let reason = self.watch(&store, sentinels.as_mut()).await.to_string();
                    if let Some(suppressed) = self.failures.suppressed(reason.clone()) {
                        is_logged = true;
                        tracing::warn!(
                            reason,
                            suppressed,
                            "session store check failed, reconnecting"
                        );
                    }
                    // In a cluster, the other primaries may still be available.
                    if store.address.is_some() {
                        self.store.store(None);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if let Some(suppressed) = self.failures.suppressed(error.clone()) {
                        is_logged = true;
                        tracing::error!(error, suppressed, "cannot connect to the session store");
                    }
                }
            }
            self.metrics.store_up(false);
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Connects to a store, and makes sure that it has this gateway's revocations.
    async fn connect<F>(
        &self,
        sentinels: Option<&mut Sentinels>,
        last_identity: Option<&str>,
        rewrite: &impl Fn(Arc<Store>) -> F,
    ) -> RedisResult<Arc<Store>>
    where
        F: Future<Output = RedisResult<()>>,
    {
        let dialled = timeout(CONNECT_TIMEOUT, self.dial(sentinels)).await;
        let store = dialled.unwrap_or_else(|_| Err(failure("connection timed out")))?;
        let store = Arc::new(store);
        if last_identity.is_some_and(|last| *last != store.identity) {
            rewrite(store.clone()).await?;
        }
        Ok(store)
    }

    async fn dial(&self, sentinels: Option<&mut Sentinels>) -> RedisResult<Store> {
        let usable_until = self.age_millis() + millis(TRUST_PERIOD);
        match &self.servers {
            RedisServers::Single { address, .. } => {
                self.dial_primary(address.clone(), None, usable_until).await
            }
            RedisServers::Sentinel { .. } => {
                let agreement = match sentinels {
                    Some(sentinels) => sentinels.agreement().await,
                    None => None,
                };
                let agreement = agreement
                    .ok_or_else(|| failure("no majority of Sentinels agrees on a primary"))?;
                self.dial_primary(agreement.primary, Some(agreement.replicas), usable_until).await
            }
            RedisServers::Cluster { nodes } => self.dial_cluster(nodes).await,
        }
    }

    async fn dial_primary(
        &self,
        address: RedisAddress,
        acknowledgements: Option<usize>,
        usable_until: u64,
    ) -> RedisResult<Store> {
        let dialled = tokio::try_join!(
            self.dialer.node(&address, Role::Server),
            self.dialer.node(&address, Role::Server)
        );
        let (mut common, revocations) = dialled?;
        let replicas = ready_replicas(&mut common).await?;
        let identity = process_id(&mut common).await?;
        Ok(Store {
            common: Connection::Node(common),
            revocations: Connection::Node(revocations),
            address: Some(address),
            identity,
            acknowledgements: AtomicUsize::new(acknowledgements.unwrap_or(replicas.min(1))),
            usable_until: AtomicU64::new(usable_until),
        })
    }

    async fn dial_cluster(&self, nodes: &[RedisAddress]) -> RedisResult<Store> {
        let dialled = tokio::try_join!(self.dialer.cluster(nodes), self.dialer.cluster(nodes));
        let (mut common, revocations) = dialled?;
        let identity = primary_ids(&mut common).await?;
        Ok(Store {
            common: Connection::Cluster(common),
            revocations: Connection::Cluster(revocations),
            address: None,
            identity,
            acknowledgements: AtomicUsize::new(0),
            // A cluster's primary stops responding when it is cut off from most of the others.
            usable_until: AtomicU64::new(u64::MAX),
        })
    }

    /// Checks a store until a check fails, and returns the reason.
    async fn watch(&self, store: &Store, mut sentinels: Option<&mut Sentinels>) -> RedisError {
        loop {
            sleep(HEARTBEAT_INTERVAL).await;
            let started = self.age_millis();
            let heartbeat =
                timeout(HEARTBEAT_TIMEOUT, self.heartbeat(store, sentinels.as_deref_mut()));
            match heartbeat.await.unwrap_or_else(|_| Err(failure("no response in time"))) {
                Ok(()) => {
                    store.usable_until.fetch_max(started + millis(TRUST_PERIOD), Ordering::AcqRel);
                }
                Err(error) => return error,
            }
        }
    }

    async fn heartbeat(&self, store: &Store, sentinels: Option<&mut Sentinels>) -> RedisResult<()> {
        let mut node = match store.common() {
            Connection::Node(node) => node,
            Connection::Cluster(mut cluster) => {
                if primary_ids(&mut cluster).await? != store.identity {
                    return Err(failure("the primaries of the cluster have changed"));
                }
                return Ok(());
            }
        };
        let replicas = ready_replicas(&mut node).await?;
        let Some(sentinels) = sentinels else {
            store.acknowledgements.store(replicas.min(1), Ordering::Release);
            return Ok(());
        };
        match sentinels.agreement().await {
            Some(agreement) if Some(&agreement.primary) == store.address.as_ref() => {
                store.acknowledgements.store(agreement.replicas, Ordering::Release);
                Ok(())
            }
            Some(_) => Err(failure("the Sentinels report another primary")),
            None => self.confirm_lease(store).await,
        }
    }

    /// Checks that all replicas that were up still follow, so that none of them has become the
    /// primary.
    async fn confirm_lease(&self, store: &Store) -> RedisResult<()> {
        let mut connection = store.revocations();
        let life = millis(10 * TRUST_PERIOD);
        let written = cmd("SET").arg(&self.lease).arg("").arg("PX").arg(life).to_owned();
        written.query_async::<()>(&mut connection).await?;
        store.confirm(&mut connection, self.lease.as_bytes(), HEARTBEAT_TIMEOUT / 3).await
    }

    fn age_millis(&self) -> u64 {
        millis(self.created.elapsed())
    }
}
