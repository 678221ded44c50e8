//! Connections to the primary of a store, or to all primaries of a cluster, and what these report.
//!
//! Hides which of the two it is: how a command reaches one primary or all of them, how many
//! replicas follow, and how a new process is recognised.

use std::collections::HashMap;
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, Route, RoutingInfo, SingleNodeRoutingInfo, SlotAddr,
};
use redis::{
    Cmd, FromRedisValue, Pipeline, RedisFuture, RedisResult, Value, cmd, from_redis_value, pipe,
};

use super::failure;
use crate::clock::millis;

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

impl Connection {
    /// Waits until replicas have received what was written for a key on this connection:
    /// `required` replicas of a server; in a cluster one, if the key's primary has any.
    pub async fn wait(
        &mut self,
        key: &[u8],
        required: usize,
        time_limit: Duration,
    ) -> RedisResult<()> {
        // Zero would mean no timeout.
        let time_limit = millis(time_limit).max(1);
        let wait = |required: usize| cmd("WAIT").arg(required).arg(time_limit).to_owned();
        let (required, confirmed): (usize, usize) = match self {
            Self::Node(node) => {
                if required == 0 {
                    return Ok(());
                }
                (required, wait(required).query_async(node).await?)
            }
            Self::Cluster(cluster) => {
                let route = Route::with_key(key, SlotAddr::Master);
                let primary =
                    || RoutingInfo::SingleNode(SingleNodeRoutingInfo::SpecificNode(route));
                let role = cluster.route_command(cmd("ROLE"), primary()).await?;
                let required = replica_count(role)?.min(1);
                if required == 0 {
                    return Ok(());
                }
                let confirmed = cluster.route_command(wait(required), primary()).await?;
                (required, from_redis_value(confirmed)?)
            }
        };
        if confirmed < required {
            return Err(failure("too few replicas confirmed the write"));
        }
        Ok(())
    }

    /// The primaries of a cluster; otherwise the only server.
    pub async fn primaries(&mut self) -> RedisResult<Vec<Primary>> {
        let Self::Cluster(cluster) = self else { return Ok(vec![Primary(None)]) };
        let all = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let responses = cluster.route_command(cmd("PING"), all).await?;
        let responses: HashMap<String, Value> = from_redis_value(responses)?;
        let node = |address: String| {
            let (host, port) = address.rsplit_once(':')?;
            let (host, port) = (host.to_owned(), port.parse().ok()?);
            Some(SingleNodeRoutingInfo::ByAddress { host, port })
        };
        Ok(responses.into_keys().map(|address| Primary(node(address))).collect())
    }

    /// Runs a command on one of the primaries.
    pub async fn query<T: FromRedisValue>(
        &mut self,
        primary: &Primary,
        command: Cmd,
    ) -> RedisResult<T> {
        match (self, &primary.0) {
            (Self::Cluster(cluster), Some(node)) => {
                let node = RoutingInfo::SingleNode(node.clone());
                Ok(from_redis_value(cluster.route_command(command, node).await?)?)
            }
            (connection, _) => command.query_async(connection).await,
        }
    }
}

/// One of the [primaries](Connection::primaries).
pub struct Primary(Option<SingleNodeRoutingInfo>);

/// The number of replicas in the response to `ROLE`.
///
/// # Errors
/// When it is not the response of a primary.
fn replica_count(role: Value) -> RedisResult<usize> {
    type Primary = (String, u64, Vec<Value>);
    match Primary::from_redis_value(role) {
        Ok((role, _, replicas)) if role == "master" => Ok(replicas.len()),
        _ => Err(failure("the server is not a primary")),
    }
}

/// The number of replicas of a primary that is ready to serve.
pub async fn ready_replicas(node: &mut MultiplexedConnection) -> RedisResult<usize> {
    // A server that is still loading rejects the first command.
    let (_, role): (Value, Value) = pipe().cmd("PING").cmd("ROLE").query_async(node).await?;
    replica_count(role)
}

/// The id of a server's process.
pub async fn process_id(node: &mut MultiplexedConnection) -> RedisResult<String> {
    let info: String = cmd("INFO").arg("server").query_async(node).await?;
    Ok(run_id(&info)?.to_owned())
}

/// The id of a server's process, from the response to `INFO server`.
fn run_id(info: &str) -> RedisResult<&str> {
    let id = info.lines().find_map(|line| line.strip_prefix("run_id:"));
    id.ok_or_else(|| failure("INFO reports no run_id"))
}

/// The ids of a cluster's primaries and of their processes, as one text, if all of them are ready
/// to serve.
pub async fn primary_ids(cluster: &mut ClusterConnection) -> RedisResult<String> {
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
        let primary = range
            .into_iter()
            .nth(2)
            .ok_or_else(|| failure("CLUSTER SLOTS reports a slot without a node"))?;
        let node: Vec<Value> = from_redis_value(primary)?;
        let id = node
            .into_iter()
            .nth(2)
            .ok_or_else(|| failure("CLUSTER SLOTS reports a node without an id"))?;
        ids.push(from_redis_value::<String>(id)?);
    }
    ids.sort();
    ids.dedup();
    Ok(ids.join(" "))
}
