//! Notices from other gateways: ended sessions, and removed blocks.
//!
//! A gateway that ends a session publishes that on a channel of the store, and all gateways listen.
//! This only makes an end known at once. If a notice is lost, sessions that were read before are
//! cached for at most `session.redis.near_cache_ttl`.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use redis::{RedisError, RedisResult};
use tokio::time::{sleep, timeout};

use super::address::DIAL;
use super::connection::StoreConnection;
use crate::config::{RedisAddress, RedisServers};

/// Time between two checks of the channel's connection.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Pause between two attempts to listen.
const PAUSE: Duration = Duration::from_millis(50);

/// Listens on the store that the connection has at the time. Never returns.
pub async fn listen(
    connection: &StoreConnection,
    channel: &str,
    listens: impl Fn(),
    heard: impl Fn(&[u8]),
) {
    loop {
        for address in addresses(connection) {
            let error = listen_to(connection, &address, channel, &listens, &heard).await;
            if let Err(error) = error {
                tracing::debug!(%error, "the channel of the session store is cut");
            }
        }
        sleep(PAUSE).await;
    }
}

/// Where to listen: at the primary, or at any node of a cluster, because nodes forward messages.
fn addresses(connection: &StoreConnection) -> Vec<RedisAddress> {
    let Some(store) = connection.usable() else { return Vec::new() };
    match (&store.address, connection.servers()) {
        (Some(address), _) => vec![address.clone()],
        (None, RedisServers::Cluster { nodes }) => nodes.clone(),
        (None, _) => Vec::new(),
    }
}

async fn listen_to(
    connection: &StoreConnection,
    address: &RedisAddress,
    channel: &str,
    listens: &impl Fn(),
    heard: &impl Fn(&[u8]),
) -> RedisResult<()> {
    let subscribed = async {
        let mut channels: PubSub = connection.dialer().subscriber(address).await?;
        channels.subscribe(channel).await?;
        RedisResult::Ok(channels)
    };
    let (mut sink, mut messages) = timeout(2 * DIAL, subscribed).await.map_err(late)??.split();
    listens();
    loop {
        match timeout(HEARTBEAT, messages.next()).await {
            Ok(Some(message)) => heard(message.get_payload_bytes()),
            Ok(None) => return Ok(()),
            Err(_) => {
                timeout(HEARTBEAT, sink.ping::<()>()).await.map_err(late)??;
                // A primary that was replaced sends no more notices.
                if !addresses(connection).contains(address) {
                    return Ok(());
                }
            }
        }
    }
}

fn late(_: tokio::time::error::Elapsed) -> RedisError {
    RedisError::from((redis::ErrorKind::Io, "no answer in time"))
}
