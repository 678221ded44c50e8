//! How services connect: Unix sockets, TLS, and what a drain does.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use wxgate::server::Command;

use super::{ONE_TOKEN, request, token};
use crate::harness::certificate::{Authority, Issued, credulous, credulous_with};
use crate::harness::client::Connection;
use crate::harness::{PATIENCE, Stack, process_log};

/// Sends a request over a stream, and returns the status of the response.
pub async fn status(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) -> Option<u16> {
    let request = format!(
        "GET /v1/access-token?no HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Authorization: Bearer {}\r\n\r\n",
        token("any")
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.split(' ').nth(1)?.parse().ok()
}

async fn ended(stack: &mut Stack) {
    let ended = tokio::time::timeout(PATIENCE, &mut stack.ended).await;
    ended.expect("an end in time").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_for_owner_and_group_and_ends_with_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("internal.sock");
    // What a killed gateway leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let changes = ONE_TOKEN.replace("127.0.0.1:0", &format!("unix:{}", path.display()));
    let mut stack = Stack::start_with(&changes).await;
    let metadata = std::fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    assert_eq!(status(UnixStream::connect(&path).await.unwrap()).await, Some(400));
    let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "{files:?}");

    stack.commands.send(Command::Drain).await.unwrap();
    ended(&mut stack).await;
    assert!(!path.exists());
}

fn tls(issued: &Issued, directory: &std::path::Path, more: &str) -> String {
    let files = issued.write(directory, "internal", &[]);
    format!("{ONE_TOKEN}\n[internal.tls]\n{}\n{more}\n", files.replace(", ", "\n"))
}

/// Whether a service gets a response, and the certificate that it was shown.
async fn connect(stack: &Stack, mut client: rustls::ClientConfig) -> (Option<u16>, Vec<u8>) {
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(stack.internal.unwrap()).await.unwrap();
    let connector = TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from("internal.test").unwrap();
    let Ok(stream) = connector.connect(name, stream).await else { return (None, Vec::new()) };
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "h2 is not served");
    let shown = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    (status(stream).await, shown)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_has_certificates_of_its_own_that_a_reload_replaces() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::root("services");
    let (first, second) =
        (authority.issue(&["internal.test"]), authority.issue(&["internal.test"]));
    let stack = Stack::start_with(&tls(&first, directory.path(), "")).await;
    let (status, shown) = connect(&stack, credulous()).await;
    assert_eq!((status, shown.as_slice()), (Some(400), &first.der()[..]));
    assert!(stack.reload(&tls(&second, directory.path(), "")).await);
    let (status, shown) = connect(&stack, credulous()).await;
    assert_eq!((status, shown.as_slice()), (Some(400), &second.der()[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_client_authority_only_its_certificates_are_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::root("services"), Authority::root("strangers"));
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, authority.certificate.pem()).unwrap();
    let more = format!("client_ca_file = {ca_file:?}");
    let changes = tls(&authority.issue(&["internal.test"]), directory.path(), &more);
    let stack = Stack::start_with(&changes).await;
    let shows = |issued: Option<&Issued>| credulous_with(rustls::DEFAULT_VERSIONS, issued);
    let (service, other) = (authority.issue(&["orders"]), stranger.issue(&["orders"]));
    assert_eq!(connect(&stack, shows(Some(&service))).await.0, Some(400));
    assert_eq!(connect(&stack, shows(Some(&other))).await.0, None);
    assert_eq!(connect(&stack, shows(None)).await.0, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_most_are_closed_and_logged() {
    let changes = format!("{ONE_TOKEN}\n[limits]\nmax_connections = 2");
    let stack = Stack::start_with(&changes).await;
    let internal = stack.internal.unwrap();
    let mut first = Connection::open(internal).await;
    let bytes = request(&stack, "any", "GET", "/v1/nothing").bytes();
    first.send(&bytes).await;
    assert_eq!(first.response(false).await.status, 404);
    let position = process_log::position();
    let mut second = Connection::open(internal).await;
    assert!(second.is_closed().await);
    let logged = process_log::text_after(position);
    assert!(logged.contains("services have too many connections"), "{logged}");
    first.send(&bytes).await;
    assert_eq!(first.response(false).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_calls_and_closes_idle_connections() {
    let mut stack = Stack::start_with(ONE_TOKEN).await;
    let internal = stack.internal.unwrap();
    let mut idle = Connection::open(internal).await;
    idle.send(&request(&stack, "any", "GET", "/v1/nothing").bytes()).await;
    assert_eq!(idle.response(false).await.status, 404);
    let mut busy = Connection::open(internal).await;
    let body = r#"{"openid":"o1"}"#;
    let bytes = request(&stack, "any", "POST", "/v1/session-key/check").body(body).bytes();
    let (begin, end) = bytes.split_at(bytes.len() - 5);
    busy.send(begin).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;

    stack.commands.send(Command::Drain).await.unwrap();
    assert!(idle.is_closed().await);
    while TcpStream::connect(internal).await.is_ok() {
        tokio::task::yield_now().await;
    }
    busy.send(end).await;
    let answer = busy.response(false).await;
    assert_eq!((answer.status, answer.header("connection")), (404, Some("close")));
    ended(&mut stack).await;
}
