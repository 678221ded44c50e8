//! Tests that run with each session store: in memory, and in a Redis that two gateways share.

mod blocks;
mod operators;
mod sessions;

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::client::Response;
use crate::harness::redis::RedisServer;
use crate::harness::{OPERATOR, PATIENCE, Stack, openid};
use crate::shared_store::{gateway, url};

/// Gateways that share their sessions.
struct Gateways {
    all: Vec<Stack>,
    /// Outlives them.
    _store: Option<RedisServer>,
}

impl Gateways {
    async fn in_memory(more: &str) -> Self {
        let all = vec![Stack::start_with(&with_operator(more)).await];
        Self { all, _store: None }
    }

    async fn on_redis(more: &str) -> Self {
        let store = RedisServer::start();
        let more = with_operator(more);
        let all = vec![gateway(&url(&store), &more).await, gateway(&url(&store), &more).await];
        Self { all, _store: Some(store) }
    }

    fn here(&self) -> &Stack {
        self.all.first().unwrap()
    }

    /// The other gateway, if there are two.
    fn there(&self) -> &Stack {
        self.all.last().unwrap()
    }

    fn advance(&self, by: Duration) {
        self.all.iter().for_each(|stack| stack.clock.advance(by));
    }

    /// Lists sessions at the admin listener of one gateway.
    async fn operate(&self, method: &str, path: &str) -> Response {
        self.here().request(method, path).bearer(OPERATOR).send_to_admin().await
    }

    async fn list(&self, path: &str) -> Value {
        let response = self.operate("GET", path).await;
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    async fn listed(&self, user: &str) -> Vec<Value> {
        self.list(&of(user)).await["sessions"].as_array().unwrap().clone()
    }

    /// Sends a DELETE to one gateway, which must succeed.
    async fn delete(&self, path: &str) {
        let response = self.operate("DELETE", path).await;
        assert_eq!((response.status, response.body.len()), (204, 0), "{}", response.text());
    }
}

/// With a key for the names of users in the access log.
const NAMED: &str = "log.openid_key = { file = \"{dir}/operator\" }";

/// The name in the access log of the user whose session was used.
pub async fn name_in_the_log(stack: &Stack, token: &str) -> String {
    let request = stack.get("/optional/name").token(token).send().await;
    assert_eq!(request.status, 200);
    let begun = Instant::now();
    let path = stack.directory.path().join("access.log");
    loop {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut used = lines.filter(|line| line["path"] == "/optional/name");
        if let Some(line) = used.next() {
            return text_of(&line, "user");
        }
        assert!(begun.elapsed() < PATIENCE, "no line in {text}");
        tokio::task::yield_now().await;
    }
}

fn text_of(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

/// Logs in with a new code and returns the response.
async fn try_login(stack: &Stack, user: &str) -> Response {
    let code: u64 = rand::random();
    stack.try_login(&format!("user-{user}-{code}")).await
}

async fn assert_login_is_rejected(stack: &Stack, user: &str) {
    try_login(stack, user).await.assert_error(403, "login_refused", "none");
}

fn with_operator(more: &str) -> String {
    format!("admin.token = {{ file = \"{{dir}}/operator\" }}\n{more}")
}

fn of(user: &str) -> String {
    format!("/sessions?openid={}", openid(user))
}

fn text<'a>(session: &'a Value, field: &str) -> &'a str {
    session[field].as_str().unwrap()
}

/// Each test once per kind of store.
macro_rules! in_memory_and_on_redis {
    ($($name:ident($more:expr);)*) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Gateways::in_memory($more).await).await;
            })*
        }

        mod on_redis {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $name() {
                super::$name(super::Gateways::on_redis($more).await).await;
            })*
        }
    };
}

use in_memory_and_on_redis;

/// Waits until the list shows a use of alice's session after a time, and returns when.
async fn until_used_after(gateways: &Gateways, before: &str) -> String {
    let begun = Instant::now();
    loop {
        let listed = gateways.listed("alice").await;
        let last = listed.iter().map(|session| text(session, "last_seen")).max().unwrap();
        if last > before {
            return last.to_owned();
        }
        assert!(begun.elapsed() < PATIENCE, "{listed:?}");
    }
}
