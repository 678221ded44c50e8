//! The address of the primary, as most of the Sentinels see it.
//!
//! A Sentinel that is cut off from the others may name a former primary, so more than half of the
//! configured Sentinels must agree.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, cmd, pipe};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::address::{Dialer, Role};
use crate::config::RedisAddress;

/// Time for the responses of all Sentinels.
const QUERY_TIMEOUT: Duration = Duration::from_millis(300);

pub struct Sentinels {
    dialer: Arc<Dialer>,
    addresses: Vec<RedisAddress>,
    /// The name of the primary.
    primary: String,
    /// In the order of the addresses; `None` if not connected.
    connections: Vec<Option<MultiplexedConnection>>,
}

/// What most of the Sentinels agree on.
pub struct Agreement {
    pub primary: RedisAddress,
    /// Replicas that are up and follow, as counted by the Sentinel that sees most of them.
    pub replicas: usize,
}

impl Sentinels {
    pub fn new(dialer: Arc<Dialer>, addresses: &[RedisAddress], primary: &str) -> Self {
        Self {
            dialer,
            addresses: addresses.to_vec(),
            primary: primary.to_owned(),
            connections: vec![None; addresses.len()],
        }
    }

    /// Asks all Sentinels for the primary. `None` if most do not respond, or do not agree.
    pub async fn agreement(&mut self) -> Option<Agreement> {
        let mut queries = JoinSet::new();
        for (index, (address, open)) in self.addresses.iter().zip(&mut self.connections).enumerate()
        {
            let (dialer, address, open) = (self.dialer.clone(), address.clone(), open.take());
            let primary = self.primary.clone();
            queries.spawn(async move {
                let query = async {
                    let mut connection = match open {
                        Some(connection) => connection,
                        None => dialer.node(&address, Role::Sentinel).await?,
                    };
                    let view = query_sentinel(&mut connection, &primary).await?;
                    RedisResult::Ok((connection, view))
                };
                (index, timeout(QUERY_TIMEOUT, query).await)
            });
        }
        let mut votes: HashMap<(String, u16), Vec<usize>> = HashMap::new();
        while let Some(finished) = queries.join_next().await {
            let Ok((index, Ok(Ok((connection, (primary, replicas)))))) = finished else { continue };
            if let Some(kept) = self.connections.get_mut(index) {
                *kept = Some(connection);
            }
            if let Some(primary) = primary {
                votes.entry(primary).or_default().push(replicas);
            }
        }
        let majority = self.addresses.len() / 2 + 1;
        let ((host, port), counts) =
            votes.into_iter().find(|(_, counts)| counts.len() >= majority)?;
        let replicas = counts.into_iter().max().unwrap_or(0);
        Some(Agreement { primary: RedisAddress { host, port }, replicas })
    }
}

/// A Sentinel's information about a replica.
type Fields = HashMap<String, String>;

/// The primary that a Sentinel names, and the number of its replicas that are up and follow.
type View = (Option<(String, u16)>, usize);

async fn query_sentinel(
    connection: &mut MultiplexedConnection,
    primary: &str,
) -> RedisResult<View> {
    let (address, replicas): (Option<(String, u16)>, Vec<Fields>) = pipe()
        .add_command(cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(primary).to_owned())
        .add_command(cmd("SENTINEL").arg("REPLICAS").arg(primary).to_owned())
        .query_async(connection)
        .await?;
    let is_up = |replica: &&Fields| {
        let field = |name| replica.get(name).map_or("", String::as_str);
        let is_down = |flag| matches!(flag, "s_down" | "o_down" | "disconnected");
        field("master-link-status") == "ok" && !field("flags").split(',').any(is_down)
    };
    Ok((address, replicas.iter().filter(is_up).count()))
}
