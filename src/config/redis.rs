//! Where and how a shared session store is reached.

use std::time::Duration;

use crate::identity::secret::Secret;

/// The section `session.redis`: a Redis or a Valkey.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisSection {
    pub servers: RedisServers,
    /// `None`: plain connections.
    pub tls: Option<RedisTls>,
    /// Of an ACL; `None`: the default user.
    pub username: Option<String>,
    pub password: Option<Secret>,
    /// For the Sentinels, which have users of their own.
    pub sentinel_username: Option<String>,
    pub sentinel_password: Option<Secret>,
    /// In front of every key and channel.
    pub key_prefix: String,
    /// Of one request's dealings with the store.
    pub timeout: Duration,
    /// How long a session that was read is believed without asking again.
    pub near_cache_ttl: Duration,
    /// Look-ups under way at once.
    pub max_lookups: usize,
}

/// How the store is made up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedisServers {
    Single {
        address: RedisAddress,
        database: i64,
    },
    /// Sentinels, never none, that know where the primary called `primary` is.
    Sentinel {
        sentinels: Vec<RedisAddress>,
        primary: String,
        database: i64,
    },
    /// Some nodes of a cluster, never none; they know the others.
    Cluster {
        nodes: Vec<RedisAddress>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisAddress {
    /// A name or an address; IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisTls {
    /// Roots to trust instead of the system's, from `ca_file`, as PEM.
    pub roots: Option<Vec<u8>>,
}
