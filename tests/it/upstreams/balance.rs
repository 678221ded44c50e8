//! How requests are spread over servers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Notify;

use super::service::Service;
use crate::harness::client::Request;
use crate::harness::upstream::{Reply, Upstream};
use crate::harness::{Stack, until};

const TRUSTED: &str = "server.trusted_proxies = [\"127.0.0.1\"]\n";

async fn services(count: usize) -> Vec<Service> {
    let mut services = Vec::new();
    for number in 0..count {
        services.push(Service::tcp(&format!("{number}"), "127.0.0.1:0").await);
    }
    services
}

fn section(servers: &[&Service], keys: &str) -> String {
    let servers: Vec<_> = servers.iter().map(|service| &service.address).collect();
    format!("{TRUSTED}[[upstream]]\nname = \"recorder\"\nservers = {servers:?}\n{keys}\n")
}

/// Which service a request is sent to.
async fn served_by(request: Request<'_>) -> String {
    let response = request.send().await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.text()
}

/// The service of each of some keys.
async fn placed(count: usize, request: impl AsyncFn(String) -> String) -> HashMap<String, String> {
    let mut placed = HashMap::new();
    for number in 0..count {
        let key = format!("key-{number}");
        placed.insert(key.clone(), request(key).await);
    }
    placed
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_take_turns_by_weight() {
    let services = services(3).await;
    let [one, three, two] = [0, 1, 2].map(|index| services[index].address.clone());
    let changes = format!(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"{one}\", \
         {{ address = \"{three}\", weight = 3 }}, {{ address = \"{two}\", weight = 2 }}]\n"
    );
    let stack = Stack::start_with(&changes).await;
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut last = (String::new(), 0);
    for _ in 0..60 {
        let name = served_by(stack.get("/none")).await;
        last = if last.0 == name { (name.clone(), last.1 + 1) } else { (name.clone(), 1) };
        assert!(last.1 <= 2, "not in a burst");
        *counts.entry(name).or_default() += 1;
    }
    assert_eq!([counts["0"], counts["1"], counts["2"]], [10, 30, 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn least_requests_leaves_a_server_alone_that_is_busy() {
    let (busy, free) = (Upstream::start().await, Upstream::start().await);
    let release = Arc::new(Notify::new());
    for server in [&busy, &free] {
        let release = release.clone();
        server.reply(move |request| match request.target() {
            "/none/slow" => {
                Reply::When(release.clone(), b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())
            }
            _ => Reply::ok("", "fast"),
        });
    }
    let servers: [SocketAddr; 2] = [busy.address, free.address];
    let servers = servers.map(|address| address.to_string());
    let changes = format!(
        "[[upstream]]\nname = \"recorder\"\nservers = {servers:?}\nbalance = \"least_requests\"\n"
    );
    let stack = Stack::start_with(&changes).await;
    let slow = stack.get("/none/slow").send();
    let others = async {
        let begun = |server: &Upstream| server.begun_after(0).len();
        until("it has begun", async || begun(&busy) + begun(&free) == 1).await;
        let (with_slow, other) = if begun(&busy) == 1 { (&busy, &free) } else { (&free, &busy) };
        for _ in 0..20 {
            assert_eq!(stack.get("/none").send().await.text(), "fast");
        }
        assert_eq!((begun(with_slow), begun(other)), (1, 20));
        release.notify_waiters();
    };
    let (slow, ()) = tokio::join!(slow, others);
    assert_eq!(slow.status, 204);
    // Both are free again.
    let before = [busy.begun_after(0).len(), free.begun_after(0).len()];
    for _ in 0..100 {
        stack.get("/none").send().await;
    }
    assert!(busy.begun_after(before[0]).len() > 20 && free.begun_after(before[1]).len() > 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_chooses_the_server_and_a_server_that_leaves_moves_only_its_own_keys() {
    let services = services(4).await;
    let hash = "balance = \"hash\"\nhash = { header = \"X-Shop-Id\" }";
    let all: Vec<&Service> = services.iter().collect();
    let stack = Stack::start_with(&section(&all, hash)).await;
    let ask = async |key: String| served_by(stack.get("/none").header("X-Shop-Id", &key)).await;
    let before = placed(60, ask).await;
    assert_eq!(placed(60, ask).await, before, "it is always the same one");
    let mut used: Vec<_> = before.values().collect();
    used.sort();
    used.dedup();
    assert_eq!(used, ["0", "1", "2", "3"]);
    // Another gateway that knows the servers in another order agrees.
    let reversed: Vec<&Service> = services.iter().rev().collect();
    let other = Stack::start_with(&section(&reversed, hash)).await;
    let ask_other =
        async |key: String| served_by(other.get("/none").header("X-Shop-Id", &key)).await;
    assert_eq!(placed(60, ask_other).await, before);

    let left: Vec<&Service> = services.iter().take(3).collect();
    assert!(stack.reload(&section(&left, hash)).await);
    let after = placed(60, ask).await;
    for (key, service) in &before {
        match service.as_str() {
            "3" => assert_ne!(after[key], "3"),
            _ => assert_eq!(after[key], *service),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_lines_of_the_header_count_as_one() {
    let services = services(8).await;
    let all: Vec<&Service> = services.iter().collect();
    let hash = "balance = \"hash\"\nhash = { header = \"X-Shop-Id\" }";
    let stack = Stack::start_with(&section(&all, hash)).await;
    for number in 0..10 {
        let (one, two) = (format!("a{number}"), format!("b{number}"));
        let request = stack.get("/none").header("X-Shop-Id", &one).header("x-shop-id", &two);
        let joined = stack.get("/none").header("X-Shop-Id", &format!("{one}, {two}"));
        assert_eq!(served_by(request).await, served_by(joined).await);
    }
    // Without a value the address counts.
    for number in 0..10 {
        let from = format!("10.1.2.{number}");
        let bare = || stack.get("/none").header("X-Forwarded-For", &from);
        let absent = served_by(bare()).await;
        assert_eq!(served_by(bare().header("X-Shop-Id", "")).await, absent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_chooses_the_server() {
    let services = services(4).await;
    let all: Vec<&Service> = services.iter().collect();
    let stack = Stack::start_with(&section(&all, "balance = \"hash\"\nhash = \"address\"")).await;
    let ask = async |key: String| {
        let from = key.replace("key-", "10.1.2.");
        served_by(stack.get("/none").header("X-Forwarded-For", &from)).await
    };
    let before = placed(40, ask).await;
    assert_eq!(placed(40, ask).await, before);
    assert!(before.values().any(|service| *service != before["key-0"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_chooses_the_server_wherever_the_user_is() {
    let services = services(4).await;
    let all: Vec<&Service> = services.iter().collect();
    let stack = Stack::start_with(&section(&all, "balance = \"hash\"\nhash = \"user\"")).await;
    let mut used = Vec::new();
    for user in ["anna", "bert", "cleo", "dora", "emil", "fred", "gina", "hugo"] {
        // Two sessions of one user.
        let tokens = [stack.login(user).await, stack.login(user).await];
        let mut servers = Vec::new();
        for (number, token) in tokens.iter().enumerate() {
            let from = format!("10.1.2.{number}");
            let request = stack.get("/").token(token).header("X-Forwarded-For", &from);
            servers.push(served_by(request).await);
        }
        assert_eq!(servers[0], servers[1], "{user}");
        used.push(servers.remove(0));
    }
    assert!(used.iter().any(|service| *service != used[0]), "{used:?}");
    // Without a session the address counts.
    let ask = async |key: String| {
        let from = key.replace("key-", "10.1.2.");
        served_by(stack.get("/none").header("X-Forwarded-For", &from)).await
    };
    let before = placed(20, ask).await;
    assert_eq!(placed(20, ask).await, before);
    assert!(before.values().any(|service| *service != before["key-0"]));
}
