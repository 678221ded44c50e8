//! How to connect to the servers of a shared store: addresses, users, TLS.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    ProtocolVersion, RedisConnectionInfo, RedisResult, TlsCertificates, TlsMode,
};

use crate::config::{RedisAddress, RedisSection, RedisServers};

/// Time to connect, including TLS and authentication.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// The same for each node of a cluster: a silent node delays the others.
const NODE_DIAL_TIMEOUT: Duration = Duration::from_millis(500);

/// The kind of a server, which determines the user and password.
#[derive(Clone, Copy)]
pub enum Role {
    Server,
    Sentinel,
}

/// Opens connections as configured.
pub struct Dialer {
    section: RedisSection,
}

impl Dialer {
    pub fn new(section: &RedisSection) -> Self {
        Self { section: section.clone() }
    }

    /// A connection for the commands of all tasks, in one pipeline. The caller limits the response
    /// time.
    pub async fn node(
        &self,
        address: &RedisAddress,
        role: Role,
    ) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(DIAL_TIMEOUT))
            .set_response_timeout(None);
        self.client(address, role)?.get_multiplexed_async_connection_with_config(&config).await
    }

    pub async fn subscriber(&self, address: &RedisAddress) -> RedisResult<PubSub> {
        self.client(address, Role::Server)?.get_async_pubsub().await
    }

    /// Connects to every primary of the cluster that the nodes belong to.
    pub async fn cluster(&self, nodes: &[RedisAddress]) -> RedisResult<ClusterConnection> {
        let nodes: RedisResult<Vec<_>> =
            nodes.iter().map(|node| self.info(node, Role::Server)).collect();
        let mut builder = ClusterClient::builder(nodes?)
            .connection_timeout(NODE_DIAL_TIMEOUT)
            // The caller's timeout ends first.
            .response_timeout(DIAL_TIMEOUT)
            .retries(3)
            .min_retry_wait(10)
            .max_retry_wait(200)
            .tcp_settings(tcp_settings())
            .use_protocol(ProtocolVersion::RESP2);
        if let Some(username) = &self.section.username {
            builder = builder.username(username);
        }
        if let Some(password) = &self.section.password {
            builder = builder.password(password.expose());
        }
        if let Some(certificates) = self.certificates() {
            builder = builder.tls(TlsMode::Secure).certs(certificates);
        }
        builder.build()?.get_async_connection().await
    }

    fn client(&self, address: &RedisAddress, role: Role) -> RedisResult<Client> {
        let info = self.info(address, role)?;
        match self.certificates() {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        }
    }

    fn info(&self, address: &RedisAddress, role: Role) -> RedisResult<ConnectionInfo> {
        let RedisAddress { host, port } = address.clone();
        let address = match &self.section.tls {
            Some(_) => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
            None => ConnectionAddr::Tcp(host, port),
        };
        let (username, password, database) = match (role, &self.section.servers) {
            (Role::Sentinel, _) => {
                (&self.section.sentinel_username, &self.section.sentinel_password, 0)
            }
            (
                Role::Server,
                RedisServers::Single { database, .. } | RedisServers::Sentinel { database, .. },
            ) => (&self.section.username, &self.section.password, *database),
            (Role::Server, RedisServers::Cluster { .. }) => {
                (&self.section.username, &self.section.password, 0)
            }
        };
        let mut login = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP2)
            .set_lib_name("wxgate", env!("CARGO_PKG_VERSION"))
            .set_db(database);
        if let Some(username) = username {
            login = login.set_username(username);
        }
        if let Some(password) = password {
            login = login.set_password(password.expose());
        }
        let info = address.into_connection_info()?;
        Ok(info.set_redis_settings(login).set_tcp_settings(tcp_settings()))
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        let tls = self.section.tls.as_ref()?;
        Some(TlsCertificates { client_tls: None, root_cert: tls.roots.clone() })
    }
}

fn tcp_settings() -> TcpSettings {
    TcpSettings::default().set_nodelay(true)
}
