//! Changed files are reloaded without a signal.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::date_time_ymd;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::OPEN;
use crate::harness::certificate::{Authority, Issued, credulous};
use crate::harness::upstream::Upstream;
use crate::harness::{RELOAD_SUCCESSFUL, RELOAD_TIME, Stack, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_reloaded_automatically() {
    let stack = Stack::start_with("server.watch_interval = \"10ms\"").await;
    let open = format!("server.watch_interval = \"10ms\"\n{OPEN}");
    stack.write_config(&open);
    until("the file is loaded", async || stack.get("/").send().await.status == 200).await;
    // Broken, and mended.
    fs::write(stack.config_file(), "broken").unwrap();
    stack.until_metric(RELOAD_SUCCESSFUL, 0.0).await;
    stack.write_config("server.watch_interval = \"10ms\"");
    until("it is loaded again", async || stack.get("/").send().await.status == 401).await;
    stack.until_metric(RELOAD_SUCCESSFUL, 1.0).await;
}

/// A secret is a file of its own, and so is what is included.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_is_reloaded_automatically() {
    let stack = Stack::start_with("server.watch_interval = \"10ms\"").await;
    let secret = stack.directory.path().join("wechat-secret");
    fs::write(&secret, "0000000000000000000000000000dead").unwrap();
    let rejected = async || {
        let code: u64 = rand::random();
        stack.try_login(&format!("user-anna-{code}")).await.status == 502
    };
    until("the new secret is used", rejected).await;
    fs::write(&secret, crate::harness::SECRET).unwrap();
    until("the old one is used again", async || !rejected().await).await;
}

/// The file of a route's response is part of the configuration, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_of_a_response_is_reloaded_automatically() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("verify.txt");
    fs::write(&file, "one").unwrap();
    let stack = Stack::start_with(&format!(
        "server.watch_interval = \"10ms\"\n[[route]]\npath = \"/\"\nauth = \"none\"\n\
         respond = {{ file = {file:?} }}"
    ))
    .await;
    assert_eq!(stack.get("/").send().await.text(), "one");
    fs::write(&file, "another").unwrap();
    until("it is the response", async || stack.get("/").send().await.text() == "another").await;
}

/// A service registry writes it. A list that cannot be used changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_list_of_servers_is_reloaded_automatically() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("servers");
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let line = |upstream: &Upstream| format!("# one\n{} weight=2\n", upstream.address);
    fs::write(&file, line(&first)).unwrap();
    let stack = Stack::start_with(&format!(
        "server.watch_interval = \"10ms\"\n[[upstream]]\nname = \"recorder\"\n\
         servers_file = {file:?}\n[[route]]\npath = \"/\"\nupstream = \"recorder\"\n\
         auth = \"none\""
    ))
    .await;
    assert_eq!(stack.get("/").send().await.status, 200);
    assert_eq!(first.requests().len(), 1);
    fs::write(&file, line(&second)).unwrap();
    let is_second = async || {
        assert_eq!(stack.get("/").send().await.status, 200);
        !second.requests().is_empty()
    };
    until("the new list is used", is_second).await;
    let used = first.requests().len();
    for unusable in ["# none at present\n", "[]", "10.0.0.1\n", "{\"servers\": []}"] {
        fs::write(&file, unusable).unwrap();
        stack.until_metric(RELOAD_SUCCESSFUL, 0.0).await;
        assert_eq!(stack.get("/").send().await.status, 200, "{unusable}");
        fs::write(&file, line(&second)).unwrap();
        stack.until_metric(RELOAD_SUCCESSFUL, 1.0).await;
    }
    assert_eq!(first.requests().len(), used);
}

/// Servers reject an expired one, but others of the gateway's services may not need it.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_client_certificate_is_reloaded_automatically() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::root("root");
    let expired = authority.issue_with(&["gateway"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let keys = expired.write(directory.path(), "client", &[]);
    let stack = Stack::start_with(&format!(
        "server.watch_interval = \"10ms\"\n[[upstream]]\nname = \"recorder\"\n\
         servers = [\"localhost:1\"]\ntls = {{ {keys} }}"
    ))
    .await;
    let expiry = format!(
        "wxgate_tls_certificate_expiry_timestamp_seconds{{certificate=\"{}\"}}",
        directory.path().join("client.crt").display()
    );
    assert!((stack.metric(&expiry).await - 1_580_515_200.0).abs() < 1.0);
    authority.issue(&["gateway"]).write(directory.path(), "client", &[]);
    until("it is renewed", async || stack.metric(&expiry).await > 4e9).await;
}

/// A ConfigMap is a folder of links through one link, `..data`, which is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_link_of_a_config_map_is_noticed() {
    let stack = Stack::start_with("server.watch_interval = \"10ms\"\n").await;
    let volume = stack.directory.path();
    let file = stack.config_file();
    let text = fs::read_to_string(&file).unwrap();
    for (version, auth) in [("..1", "required"), ("..2", "none")] {
        fs::create_dir(volume.join(version)).unwrap();
        let text = text.replace("\"required\"", &format!("\"{auth}\""));
        fs::write(volume.join(version).join("gateway.toml"), text).unwrap();
    }
    symlink("..1", volume.join("..data")).unwrap();
    fs::remove_file(&file).unwrap();
    symlink("..data/gateway.toml", &file).unwrap();
    let taken = stack.metric(RELOAD_TIME).await;
    until("the link is noticed", async || stack.metric(RELOAD_TIME).await > taken).await;
    assert_eq!(stack.get("/").send().await.status, 401);
    symlink("..2", volume.join("..next")).unwrap();
    fs::rename(volume.join("..next"), volume.join("..data")).unwrap();
    until("the replaced link is loaded", async || stack.get("/").send().await.status == 200).await;
}

/// The two files of a certificate cannot change at once: until they match, the old certificate
/// is shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_reloaded_automatically_and_no_handshake_fails() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::root("root");
    let (first, second) = (authority.issue(&["localhost"]), authority.issue(&["localhost"]));
    let tls = first.write(directory.path(), "site", &[]);
    let changes = format!("server.watch_interval = \"10ms\"\nserver.tls = {{ {tls} }}");
    let stack = Arc::new(Stack::start_with(&changes).await);
    let shown = {
        let stack = stack.clone();
        async move |config: Arc<rustls::ClientConfig>| {
            let stream = TcpStream::connect(stack.gateway).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
            stream.get_ref().1.peer_certificates().unwrap()[0].clone()
        }
    };
    let ends = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let (shown, ends) = (shown.clone(), ends.clone());
            tokio::spawn(async move {
                // Each client comes back with its ticket.
                let config = Arc::new(credulous());
                while !ends.load(Ordering::Relaxed) {
                    shown(config.clone()).await;
                }
            })
        })
        .collect();
    let is_shown = async |issued: &Issued| shown(Arc::new(credulous())).await == *issued.der();
    assert!(is_shown(&first).await);
    fs::write(directory.path().join("site.crt"), second.certificate.pem()).unwrap();
    stack.until_metric(RELOAD_SUCCESSFUL, 0.0).await;
    assert!(is_shown(&first).await, "its key is not there yet");
    second.write(directory.path(), "site", &[]);
    until("the new one is shown", async || is_shown(&second).await).await;
    stack.until_metric(RELOAD_SUCCESSFUL, 1.0).await;
    ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(stack.metric("wxgate_tls_handshakes_failed_total").await, 0.0);
}
