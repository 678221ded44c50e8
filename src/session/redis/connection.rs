//! The connections to a shared store, and whether its responses can be trusted.
//!
//! A separate task connects, checks the store twice a second, and reconnects when a check fails.
//! Requests use the existing connections, or fail at once. A primary that was replaced without our
//! knowledge still responds, with outdated data. So a primary with Sentinels is trusted only while
//! most of them name it or, if the Sentinels cannot be reached, while all of its replicas that were
//! up still follow it. Writes on the connection for revocations are confirmed by replicas (`WAIT`):
//! by one, if a server or a primary of a cluster has any; with Sentinels by all replicas that they
//! see up, because any of these may become the primary.
//!
//! Before a new primary is used, this gateway's revocations are written to it again. If that fails,
//! it is not used.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr,
};
use redis::{
    Cmd, FromRedisValue, Pipeline, RedisError, RedisFuture, RedisResult, Value, cmd,
    from_redis_value, pipe,
};
use tokio::time::{sleep, timeout};

use super::address::{Dialer, Role};
use super::sentinel::Sentinels;
use crate::clock::{Clock, millis};
use crate::config::{RedisAddress, RedisSection, RedisServers};
use crate::session::StoreError;
use crate::telemetry::log_throttle::LogThrottles;
use crate::telemetry::metrics::{Counters, Metrics};

const HEARTBEAT: Duration = Duration::from_millis(500);

/// Time for one heartbeat.
const HEARTBEAT_PATIENCE: Duration = Duration::from_millis(450);

/// How long the store is trusted after the beginning of the last successful heartbeat.
const BELIEF: Duration = Duration::from_millis(1500);

/// Time to reach the store.
const REACH: Duration = Duration::from_secs(3);

/// Pause between two attempts to reach the store.
const PAUSE: Duration = Duration::from_millis(250);

/// One pipeline to a server, or one to each primary of a cluster. Clones share it.
#[derive(Clone)]
pub enum Connection {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Node(node) => node.req_packed_command(command),
            Self::Cluster(cluster) => cluster.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Node(node) => node.req_packed_commands(commands, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Node(node) => node.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

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
        patience: Duration,
    ) -> RedisResult<()> {
        // Zero would mean no timeout.
        let patience = millis(patience).max(1);
        let wait = |needed: usize| cmd("WAIT").arg(needed).arg(patience).to_owned();
        let (needed, confirmed): (usize, usize) = match connection {
            Connection::Node(node) => {
                let needed = self.acknowledgements.load(Ordering::Acquire);
                if needed == 0 {
                    return Ok(());
                }
                (needed, wait(needed).query_async(node).await?)
            }
            Connection::Cluster(cluster) => {
                let route = Route::with_key(key, SlotAddr::Master);
                let primary =
                    || RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
                let role = cluster.route_command(cmd("ROLE"), primary()).await?;
                let needed = replicas(role)?.min(1);
                if needed == 0 {
                    return Ok(());
                }
                let confirmed = cluster.route_command(wait(needed), primary()).await?;
                (needed, from_redis_value(confirmed)?)
            }
        };
        if confirmed < needed {
            return Err(failure("too few replicas have it"));
        }
        Ok(())
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
    made: Instant,
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
            lease: format!("{}lease", section.key_prefix),
            store: ArcSwapOption::empty(),
            was_reached: AtomicBool::new(false),
            made: Instant::now(),
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
            .filter(|store| self.since_made() < store.usable_until.load(Ordering::Acquire))
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
        patience: Duration,
        dealings: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let (outcome, result) = match timeout(patience, dealings).await {
            Ok(Ok(value)) => (StoreOutcome::Ok, Ok(value)),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the session store answered with an error");
                (StoreOutcome::Error, Err(StoreError))
            }
            Err(_) => (StoreOutcome::Timeout, Err(StoreError)),
        };
        self.count(outcome);
        self.metrics.store_took(begun.elapsed());
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
    /// gateway's revocations, `tell` writes them again before the store is used.
    pub async fn run<F>(&self, tell: impl Fn(Arc<Store>) -> F)
    where
        F: Future<Output = RedisResult<()>>,
    {
        let mut sentinels = match &self.servers {
            RedisServers::Sentinel { sentinels, primary, .. } => {
                Some(Sentinels::new(self.dialer.clone(), sentinels, primary))
            }
            _ => None,
        };
        let mut told = None;
        // Whether the last log line says that the store is unavailable.
        let mut is_logged = true;
        loop {
            match self.reach(sentinels.as_mut(), told.as_deref(), &tell).await {
                Ok(store) => {
                    told = Some(store.identity.clone());
                    self.store.store(Some(store.clone()));
                    self.was_reached.store(true, Ordering::Release);
                    self.metrics.store_up(true);
                    if std::mem::take(&mut is_logged) {
                        tracing::info!("the session store is reached");
                    }
                    let reason = self.watch(&store, sentinels.as_mut()).await.to_string();
                    if let Some(suppressed) = self.failures.suppressed(reason.clone()) {
                        is_logged = true;
                        tracing::warn!(reason, suppressed, "the session store is lost");
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
                        tracing::error!(error, suppressed, "the session store is not reached");
                    }
                }
            }
            self.metrics.store_up(false);
            sleep(PAUSE).await;
        }
    }

    /// Connects to a store, and makes sure that it has this gateway's revocations.
    async fn reach<F>(
        &self,
        sentinels: Option<&mut Sentinels>,
        told: Option<&str>,
        tell: &impl Fn(Arc<Store>) -> F,
    ) -> RedisResult<Arc<Store>>
    where
        F: Future<Output = RedisResult<()>>,
    {
        let dialled = timeout(REACH, self.dial(sentinels)).await;
        let store = dialled.unwrap_or_else(|_| Err(failure("no connection in time")))?;
        let store = Arc::new(store);
        if told.is_some_and(|told| *told != store.identity) {
            tell(store.clone()).await?;
        }
        Ok(store)
    }

    async fn dial(&self, sentinels: Option<&mut Sentinels>) -> RedisResult<Store> {
        let begun = self.since_made();
        let (common, revocations, address, identity, acknowledgements) = match &self.servers {
            RedisServers::Single { address, .. } => {
                self.dial_primary(address.clone(), None).await?
            }
            RedisServers::Sentinel { .. } => {
                let agreed = match sentinels {
                    Some(sentinels) => sentinels.ask().await,
                    None => None,
                };
                let agreed = agreed.ok_or_else(|| failure("most Sentinels name no primary"))?;
                self.dial_primary(agreed.primary, Some(agreed.replicas)).await?
            }
            RedisServers::Cluster { nodes } => {
                let dialled =
                    tokio::try_join!(self.dialer.cluster(nodes), self.dialer.cluster(nodes));
                let (mut common, revocations) = dialled?;
                let identity = primaries(&mut common).await?;
                (Connection::Cluster(common), Connection::Cluster(revocations), None, identity, 0)
            }
        };
        Ok(Store {
            common,
            revocations,
            address,
            identity,
            acknowledgements: AtomicUsize::new(acknowledgements),
            // A cluster's primary stops responding when it is cut off from most of the others.
            usable_until: AtomicU64::new(match &self.servers {
                RedisServers::Cluster { .. } => u64::MAX,
                _ => begun + millis(BELIEF),
            }),
        })
    }

    async fn dial_primary(
        &self,
        address: RedisAddress,
        acknowledgements: Option<usize>,
    ) -> RedisResult<(Connection, Connection, Option<RedisAddress>, String, usize)> {
        let dialled = tokio::try_join!(
            self.dialer.node(&address, Role::Server),
            self.dialer.node(&address, Role::Server)
        );
        let (mut common, revocations) = dialled?;
        let replicas = followers(&mut common).await?;
        let info: String = cmd("INFO").arg("server").query_async(&mut common).await?;
        Ok((
            Connection::Node(common),
            Connection::Node(revocations),
            Some(address),
            run_id(&info)?.to_owned(),
            acknowledgements.unwrap_or(replicas.min(1)),
        ))
    }

    /// Checks a store until a check fails, and returns the reason.
    async fn watch(&self, store: &Store, mut sentinels: Option<&mut Sentinels>) -> RedisError {
        loop {
            sleep(HEARTBEAT).await;
            let begun = self.since_made();
            let beat = timeout(HEARTBEAT_PATIENCE, self.beat(store, sentinels.as_deref_mut()));
            match beat.await.unwrap_or_else(|_| Err(failure("no answer in time"))) {
                Ok(()) => {
                    store.usable_until.fetch_max(begun + millis(BELIEF), Ordering::AcqRel);
                }
                Err(error) => return error,
            }
        }
    }

    async fn beat(&self, store: &Store, sentinels: Option<&mut Sentinels>) -> RedisResult<()> {
        let mut node = match store.common() {
            Connection::Node(node) => node,
            Connection::Cluster(mut cluster) => {
                if primaries(&mut cluster).await? != store.identity {
                    return Err(failure("the cluster has other primaries"));
                }
                return Ok(());
            }
        };
        let replicas = followers(&mut node).await?;
        let Some(sentinels) = sentinels else {
            store.acknowledgements.store(replicas.min(1), Ordering::Release);
            return Ok(());
        };
        match sentinels.ask().await {
            Some(agreed) if Some(&agreed.primary) == store.address.as_ref() => {
                store.acknowledgements.store(agreed.replicas, Ordering::Release);
                Ok(())
            }
            Some(_) => Err(failure("the Sentinels name another primary")),
            None => self.hold_lease(store).await,
        }
    }

    /// Checks that all replicas that were up still follow, so that none of them has become the
    /// primary.
    async fn hold_lease(&self, store: &Store) -> RedisResult<()> {
        let mut connection = store.revocations();
        let life = millis(10 * BELIEF);
        let written = cmd("SET").arg(&self.lease).arg("").arg("PX").arg(life).to_owned();
        written.query_async::<()>(&mut connection).await?;
        store.confirm(&mut connection, self.lease.as_bytes(), HEARTBEAT_PATIENCE / 3).await
    }

    fn since_made(&self) -> u64 {
        millis(self.made.elapsed())
    }
}

/// The number of replicas in the response to `ROLE`.
///
/// # Errors
/// When it is not the response of a primary.
fn replicas(role: Value) -> RedisResult<usize> {
    type Primary = (String, u64, Vec<Value>);
    match Primary::from_redis_value(role) {
        Ok((role, _, replicas)) if role == "master" => Ok(replicas.len()),
        _ => Err(failure("the server is not a primary")),
    }
}

/// The number of replicas of a primary that is ready to serve.
async fn followers(node: &mut MultiplexedConnection) -> RedisResult<usize> {
    // A server that is still loading rejects the first command.
    let (_, role): (Value, Value) = pipe().cmd("PING").cmd("ROLE").query_async(node).await?;
    replicas(role)
}

/// The id of a server's process, from the response to `INFO server`.
fn run_id(info: &str) -> RedisResult<&str> {
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    id.ok_or_else(|| failure("a server without an id"))
}

/// The ids of a cluster's primaries and of their processes, as one text, if all of them are ready
/// to serve.
async fn primaries(cluster: &mut ClusterConnection) -> RedisResult<String> {
    let all = |policy| RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, policy));
    cluster.route_command(cmd("PING"), all(Some(ResponsePolicy::AllSucceeded))).await?;
    let infos = cluster.route_command(cmd("INFO").arg("server").to_owned(), all(None)).await?;
    let infos: HashMap<String, String> = from_redis_value(infos)?;
    let random = RoutingInfo::SingleNode(SingleNodeRoutingInfo::Random);
    let slots = cluster.route_command(cmd("CLUSTER").arg("SLOTS").to_owned(), random).await?;
    let ranges: Vec<Vec<Value>> = from_redis_value(slots)?;
    let mut ids = Vec::new();
    for info in infos.values() {
        ids.push(run_id(info)?.to_owned());
    }
    for range in ranges {
        let primary = range.into_iter().nth(2).ok_or_else(|| failure("a slot without a node"))?;
        let node: Vec<Value> = from_redis_value(primary)?;
        let id = node.into_iter().nth(2).ok_or_else(|| failure("a node without an id"))?;
        ids.push(from_redis_value::<String>(id)?);
    }
    ids.sort();
    ids.dedup();
    Ok(ids.join(" "))
}

fn failure(reason: &'static str) -> RedisError {
    RedisError::from((redis::ErrorKind::Io, reason))
}
