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
const PATIENCE: Duration = Duration::from_millis(300);

pub struct Sentinels {
    dialer: Arc<Dialer>,
    addresses: Vec<RedisAddress>,
    /// The name of the primary.
    primary: String,
    /// In the order of the addresses; `None` if not connected.
    connections: Vec<Option<MultiplexedConnection>>,
}

/// What most of the Sentinels agree on.
pub struct Agreed {
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

    /// `None` if most do not respond, or do not agree.
    pub async fn ask(&mut self) -> Option<Agreed> {
        let mut asking = JoinSet::new();
        for (index, (address, known)) in
            self.addresses.iter().zip(&mut self.connections).enumerate()
        {
            let (dialer, address, known) = (self.dialer.clone(), address.clone(), known.take());
            let primary = self.primary.clone();
            asking.spawn(async move {
                let asked = async {
                    let mut connection = match known {
                        Some(connection) => connection,
                        None => dialer.node(&address, Role::Sentinel).await?,
                    };
                    let answer = ask_one(&mut connection, &primary).await?;
                    RedisResult::Ok((connection, answer))
                };
                (index, timeout(PATIENCE, asked).await)
            });
        }
        let mut votes: HashMap<(String, u16), Vec<usize>> = HashMap::new();
        while let Some(answered) = asking.join_next().await {
            let Ok((index, Ok(Ok((connection, (primary, replicas)))))) = answered else { continue };
            if let Some(place) = self.connections.get_mut(index) {
                *place = Some(connection);
            }
            if let Some(primary) = primary {
                votes.entry(primary).or_default().push(replicas);
            }
        }
        let most = self.addresses.len() / 2 + 1;
        let ((host, port), seen) = votes.into_iter().find(|(_, seen)| seen.len() >= most)?;
        let replicas = seen.into_iter().max().unwrap_or(0);
        Some(Agreed { primary: RedisAddress { host, port }, replicas })
    }
}

/// A Sentinel's information about a replica.
type Fields = HashMap<String, String>;

type Answer = (Option<(String, u16)>, usize);

async fn ask_one(connection: &mut MultiplexedConnection, primary: &str) -> RedisResult<Answer> {
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
