//! Notices from other gateways: revoked sessions, and removed blocks.
//!
//! A gateway that revokes a session publishes that on a channel of the store, and all gateways
//! listen. This only makes a revocation known at once. If a notice is lost, sessions that were read
//! before are cached for at most `session.redis.near_cache_ttl`.

use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use redis::{RedisError, RedisResult};
use tokio::time::{sleep, timeout};

use super::address::DIAL_TIMEOUT;
use super::connection::StoreConnection;
use crate::config::{RedisAddress, RedisServers};

/// Time without a notice after which the connection is checked, and time for that check.
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Pause between two attempts to listen.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// Listens for notices on whichever store the connection currently uses. Never returns.
pub async fn listen(
    connection: &StoreConnection,
    channel: &str,
    on_subscribed: impl Fn(),
    on_notice: impl Fn(&[u8]),
) {
    loop {
        for address in addresses(connection) {
            let error = listen_to(connection, &address, channel, &on_subscribed, &on_notice).await;
            if let Err(error) = error {
                tracing::debug!(%error, "lost the subscription to the session store");
            }
        }
        sleep(RETRY_INTERVAL).await;
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
    on_subscribed: &impl Fn(),
    on_notice: &impl Fn(&[u8]),
) -> RedisResult<()> {
    let subscribed = async {
        let mut channels: PubSub = connection.dialer().subscriber(address).await?;
        channels.subscribe(channel).await?;
        RedisResult::Ok(channels)
    };
    let (mut sink, mut messages) =
        timeout(2 * DIAL_TIMEOUT, subscribed).await.map_err(timed_out)??.split();
    on_subscribed();
    loop {
        match timeout(PING_INTERVAL, messages.next()).await {
            Ok(Some(message)) => on_notice(message.get_payload_bytes()),
            Ok(None) => return Ok(()),
            Err(_) => {
                timeout(PING_INTERVAL, sink.ping::<()>()).await.map_err(timed_out)??;
                // A primary that was replaced sends no more notices.
                if !addresses(connection).contains(address) {
                    return Ok(());
                }
            }
        }
    }
}

fn timed_out(_: tokio::time::error::Elapsed) -> RedisError {
    RedisError::from((redis::ErrorKind::Io, "no response in time"))
}
