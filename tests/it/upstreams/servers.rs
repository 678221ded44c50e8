//! Where servers listen.

use super::service::Service;
use crate::harness::{Stack, until};

fn section(servers: &[&str]) -> String {
    format!("[[upstream]]\nname = \"recorder\"\nservers = {servers:?}\n")
}

async fn get(stack: &Stack) -> String {
    let response = stack.get("/none").send().await;
    assert_eq!(response.status, 200, "{}", response.text());
    response.text()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_a_server_like_any_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    let unix = Service::unix("unix", &path);
    let tcp = Service::tcp("tcp", "127.0.0.1:0").await;
    let stack = Stack::start_with(&section(&[&unix.address, &tcp.address])).await;
    let mut served = [get(&stack).await, get(&stack).await, get(&stack).await, get(&stack).await];
    served.sort();
    assert_eq!(served, ["tcp", "tcp", "unix", "unix"]);
    assert_eq!((unix.used(), tcp.used()), (1, 1), "connections are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_that_is_not_there_yet_is_connected_to_later() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shop.sock");
    let stack = Stack::start_with(&section(&[&format!("unix:{}", path.display())])).await;
    stack.get("/none").send().await.assert_error(502, "bad_gateway", "retry");
    let unix = Service::unix("unix", &path);
    assert_eq!(get(&stack).await, "unix");
    drop(unix);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_address_is_a_server() {
    let service = Service::tcp("six", "[::1]:0").await;
    let stack = Stack::start_with(&section(&[&service.address])).await;
    assert_eq!(get(&stack).await, "six");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_an_address_does_not_keep_the_gateway_from_starting() {
    let service = Service::tcp("here", "127.0.0.1:0").await;
    // Never resolves (RFC 6761, section 6.4).
    let stack = Stack::start_with(&section(&["nobody.invalid:3000"])).await;
    stack.get("/none").send().await.assert_error(503, "no_upstream", "retry");
    // Beside it, others serve.
    assert!(stack.reload(&section(&["nobody.invalid:3000", &service.address])).await);
    until("the service is known", async || stack.get("/none").send().await.status == 200).await;
    assert_eq!(get(&stack).await, "here");
}

#[tokio::test(flavor = "multi_thread")]
async fn localhost_is_resolved_as_the_system_does() {
    let service = Service::tcp("local", "127.0.0.1:0").await;
    let port = service.address.rsplit(':').next().unwrap();
    let stack = Stack::start_with(&section(&[&format!("localhost:{port}")])).await;
    for _ in 0..4 {
        // On [::1] nobody listens; another address of the name is tried.
        assert_eq!(get(&stack).await, "local");
    }
}
