//! Ends of WebSockets, byte by byte.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::Pair;
use crate::harness::PATIENCE;
use crate::harness::redis::RedisServer;

const WEBSOCKET: &str = "GET / HTTP/1.1\r\nHost: gateway.test\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_delivers_the_last_message_of_the_service() {
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"none\"\n\
                 websocket = true\n";
    let pair = Pair::start(route).await;
    let mut client = pair.client().await;
    client.send(format!("{WEBSOCKET}\r\n").as_bytes()).await;
    let mut service = pair.accept_request().await;
    service.send(SWITCHING).await;
    assert_eq!(client.response(true).await.status, 101);
    client.send(b"bye").await;
    client.finish().await;
    service.read_until("bye").await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, service.stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    service.send("bye to you").await;
    assert!(client.reads(b"bye to you").await, "the service's last message is lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_forwards_bytes_while_the_store_is_slow() {
    let redis = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("seal");
    std::fs::write(&key, "0".repeat(64)).unwrap();
    let changes = format!(
        "session.seal_key = {{ file = \"{}\" }}\nsession.redis.url = \"redis://127.0.0.1:{}\"\n\
         session.redis.timeout = \"3s\"\nsession.redis.near_cache_ttl = \"100ms\"\n[[route]]\npath = \"/\"\nupstream = \"recorder\"\n\
         auth = \"required\"\nwebsocket = true\n",
        key.display(),
        redis.port
    );
    let pair = Pair::start(&changes).await;
    let token = pair.stack.login("alice").await;
    let mut client = pair.client().await;
    client.send(format!("{WEBSOCKET}X-3rd-Session: {token}\r\n\r\n").as_bytes()).await;
    let mut service = pair.accept_request().await;
    service.send(SWITCHING).await;
    assert_eq!(client.response(true).await.status, 101);
    redis.stop();
    // Until the session is looked up again.
    tokio::time::sleep(Duration::from_millis(800)).await;
    client.send(b"hello").await;
    let passed = timeout(Duration::from_millis(500), service.read_until("hello")).await;
    redis.go_on();
    assert!(passed.is_ok(), "the WebSocket waits for the store");
}
