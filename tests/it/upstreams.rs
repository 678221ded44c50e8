//! Which server of an upstream gets a request, and what happens if it fails.

mod balance;
mod ejection;
mod goodput;
mod grpc;
mod h2;
mod h2_framing;
mod health;
mod metrics;
mod overload;
mod requests;
mod retry;
mod servers;
mod service;
mod tls;

use std::net::SocketAddr;

use crate::harness::Stack;

/// The section of the upstream `recorder`, with these servers and keys.
pub fn upstream(servers: &[SocketAddr], keys: &str) -> String {
    let servers: Vec<_> = servers.iter().map(ToString::to_string).collect();
    format!("[[upstream]]\nname = \"recorder\"\nservers = {servers:?}\n{keys}\n")
}

/// The number of the upstream's servers in a state.
async fn servers(stack: &Stack, state: &str) -> f64 {
    stack.metric(&servers_metric(state)).await
}

async fn until_servers(stack: &Stack, state: &str, count: f64) {
    stack.until_metric(&servers_metric(state), count).await;
}

fn servers_metric(state: &str) -> String {
    format!("wxgate_upstream_servers{{state=\"{state}\",upstream=\"recorder\"}}")
}

/// Sends GET requests that must all be served.
async fn get_all(stack: &Stack, count: usize) {
    for _ in 0..count {
        let response = stack.get("/none").send().await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
}

/// An address that refuses connections, reserved while the socket is there.
pub fn nobody() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}
