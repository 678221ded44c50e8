//! Users' session keys: what holds wherever they are kept, and what reaches them from a login.

mod kept;
mod login;
mod stored;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use redis::cmd;
use tokio::task::AbortHandle;
use wxgate::clock::Clock;
use wxgate::config::{Config, Loaded, Secrets};
use wxgate::handover::peer::Peer;
use wxgate::identity::session_key::SessionKey;
use wxgate::identity::{AppId, Identity, OpenId, User};
use wxgate::session::{LoginKey, Session, Sessions};
use wxgate::telemetry::metrics::Metrics;

use crate::harness::redis::{RedisServer, cluster};
use crate::harness::{APP, config_text, process_log};
use crate::shared_store::url;

/// The keys of a user who has none.
const NONE: [u8; 0] = [];

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The gateways' seal key, and the one before.
const SEAL_KEYS: [&str; 2] = ["11", "22"];

/// The session stores of gateways that share their sessions, and one clock.
struct Stores {
    all: Vec<Sessions>,
    clock: Clock,
    running: Vec<AbortHandle>,
    /// Outlives them.
    servers: Vec<RedisServer>,
}

impl Stores {
    async fn in_memory(more: &str) -> Self {
        let clock = Clock::manual();
        let sessions = store("", more, &clock, &[]).await.0;
        Self { all: vec![sessions], clock, running: Vec::new(), servers: Vec::new() }
    }

    async fn on_redis(more: &str) -> Self {
        let server = RedisServer::start();
        Self::at(&url(&server), more, vec![server]).await
    }

    async fn on_cluster(more: &str) -> Self {
        let nodes = cluster();
        let addresses: Vec<_> =
            nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
        Self::at(&format!("redis+cluster://{}", addresses.join(",")), more, nodes).await
    }

    async fn at(url: &str, more: &str, servers: Vec<RedisServer>) -> Self {
        let clock = Clock::manual();
        let (mut all, mut running) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (sessions, run) = store(url, more, &clock, &SEAL_KEYS[..1]).await;
            all.push(sessions);
            running.push(run);
        }
        Self { all, clock, running, servers }
    }

    fn here(&self) -> &Sessions {
        self.all.first().unwrap()
    }

    /// Another gateway's, where there is one.
    fn there(&self) -> &Sessions {
        self.all.last().unwrap()
    }

    fn now(&self) -> u64 {
        self.clock.now_millis()
    }

    /// Logs a user in with a key, as of now.
    async fn login(&self, at: &Sessions, user: &str, key: u8) -> Arc<Session> {
        login(at, user, Some((key, self.now()))).await
    }

    /// The user's keys, which must be the same for all gateways.
    async fn keys(&self, user: &str) -> Vec<u8> {
        let found = keys(self.here(), user).await;
        assert_eq!(found, keys(self.there(), user).await);
        found
    }

    /// How many session keys the store holds, if it is a shared one.
    fn stored(&self) -> usize {
        let [server] = &self.servers[..] else { return 0 };
        let names: Vec<String> = cmd("KEYS").arg("*k:*").query(&mut server.connection()).unwrap();
        let count = |name| cmd("ZCARD").arg(name).query::<usize>(&mut server.connection());
        names.iter().map(|name| count(name).unwrap()).sum()
    }
}

impl Drop for Stores {
    fn drop(&mut self) {
        self.running.iter().for_each(AbortHandle::abort);
    }
}

/// The session store of a gateway that keeps session keys; the first seal key seals.
async fn store(
    url: &str,
    more: &str,
    clock: &Clock,
    seal_keys: &[&str],
) -> (Sessions, AbortHandle) {
    crate::harness::install_provider();
    process_log::install();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let more = redis(url, path, seal_keys) + more;
    let nowhere = "127.0.0.1:9".parse().unwrap();
    let text = config_text(path, "http://127.0.0.1:9", nowhere, &more);
    let file = path.join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    let Loaded { config, .. } = Config::read(&file, Secrets::Load, None);
    let config: Config = config.unwrap_or_else(|problems| panic!("{problems}"));
    let metrics = Metrics::new().unwrap();
    metrics.register_store().unwrap();
    let sessions = Sessions::new(&config.session, clock.clone(), metrics, Peer::default(), 0);
    sessions.keep_session_keys(true);
    let running = sessions.clone();
    let run = tokio::spawn(async move { running.run().await }).abort_handle();
    while !sessions.was_reached() {
        tokio::task::yield_now().await;
    }
    (sessions, run)
}

/// TOML for a shared store, where there is one.
fn redis(url: &str, directory: &Path, seal_keys: &[&str]) -> String {
    let files = seal_keys.iter().map(|key| {
        let file = directory.join(key);
        std::fs::write(&file, key.repeat(32)).unwrap();
        format!("{{ file = \"{}\" }}", file.display())
    });
    let files: Vec<_> = files.collect();
    let [first, previous @ ..] = &files[..] else { return String::new() };
    format!(
        "session.redis.url = \"{url}\"\nsession.redis.timeout = \"5s\"\nsession.seal_key = {first}\n\
         session.previous_seal_keys = [{}]\n",
        previous.join(", ")
    )
}

fn user_of(app_id: &str, name: &str) -> User {
    User { app_id: AppId::parse(app_id).unwrap(), openid: OpenId::parse(name).unwrap() }
}

fn user(name: &str) -> User {
    user_of(APP, name)
}

fn key(number: u8) -> SessionKey {
    let mut bytes = *b"sandbox-xxxxxxxx";
    bytes[15] = number;
    SessionKey::from_bytes(&bytes)
}

async fn login(at: &Sessions, name: &str, key: Option<(u8, u64)>) -> Arc<Session> {
    login_to(at, APP, name, key).await
}

async fn login_to(
    at: &Sessions,
    app_id: &str,
    name: &str,
    login: Option<(u8, u64)>,
) -> Arc<Session> {
    let User { app_id, openid } = user_of(app_id, name);
    let identity = Identity { app_id, openid, unionid: None, user_id: None };
    let login = login.map(|(number, logged_in_at_millis)| LoginKey {
        session_key: key(number),
        logged_in_at_millis,
    });
    let digest = at.create(identity, CLIENT, login).await.unwrap().0.digest();
    at.get(&digest).await.unwrap().unwrap()
}

/// The numbers of a user's keys, newest first.
async fn keys(at: &Sessions, name: &str) -> Vec<u8> {
    keys_of(at, &user(name)).await
}

async fn keys_of(at: &Sessions, user: &User) -> Vec<u8> {
    let keys = at.session_keys(user).await.unwrap();
    keys.iter().map(|key| key.bytes()[15]).collect()
}

/// Every name and value of a server, as text.
fn contents(server: &RedisServer) -> Vec<String> {
    let mut connection = server.connection();
    let names: Vec<String> = cmd("KEYS").arg("*").query(&mut connection).unwrap();
    let mut contents = names.clone();
    for name in names {
        let kind: String = cmd("TYPE").arg(&name).query(&mut connection).unwrap();
        let values: Vec<Vec<u8>> = match kind.as_str() {
            "string" => vec![cmd("GET").arg(&name).query(&mut connection).unwrap()],
            "zset" => cmd("ZRANGE").arg(&name).arg(0).arg(-1).query(&mut connection).unwrap(),
            other => panic!("{other}"),
        };
        contents.extend(values.iter().map(|value| String::from_utf8_lossy(value).into_owned()));
    }
    contents
}
