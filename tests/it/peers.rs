//! Third-party clients and services: curl, Python's requests, Node's http, OpenSSL.
//!
//! `deploy/dev test` installs them; if one is missing, these tests fail and name it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::harness::certificate::Authority;
use crate::harness::{Stack, openid};

struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name)
}

/// Debian's own python, where the one in the path has no requests.
fn python_with_requests() -> &'static str {
    let has_requests = |python: &&str| {
        let import = Command::new(python).args(["-c", "import requests"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    let found = ["python3", "/usr/bin/python3"].into_iter().find(has_requests);
    found.expect("python3 has requests (deploy/dev test installs it)")
}

fn node_service() -> (Service, u16) {
    let mut child = Command::new("node")
        .arg(script("service.js"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("node runs (deploy/dev test installs it)");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Service(child), line.trim().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client_and_a_node_service_find_each_other() {
    let (_service, port) = node_service();
    let stack = Stack::start_with(&format!(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"127.0.0.1:{port}\"]"
    ))
    .await;
    let client = Command::new(python_with_requests())
        .arg(script("client.py"))
        .arg(format!("http://{}", stack.gateway))
        .arg(openid("alice"))
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&client.stderr);
    assert_eq!(String::from_utf8_lossy(&client.stdout), "all well\n", "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_uploads_with_expect_and_reads_the_response() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    let upload = stack.directory.path().join("upload");
    std::fs::write(&upload, vec![b'x'; 3_000_000]).unwrap();
    let curl = |path: &str, headers: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "--noproxy", "*", "-w", "\n%{http_code}", "-H", "Expect: 100-continue"]);
        for header in headers {
            curl.args(["-H", header]);
        }
        curl.arg("--data-binary").arg(format!("@{}", upload.display()));
        let output = curl.arg(format!("http://{}{path}", stack.gateway)).output();
        String::from_utf8(output.expect("curl runs").stdout).unwrap()
    };
    let header = format!("X-3rd-Session: {token}");
    assert_eq!(curl("/upload", &[&header]), "hello\n200");
    assert_eq!(stack.upstream.requests()[0].body.len(), 3_000_000);
    let rejected = curl("/upload", &[]);
    assert!(rejected.ends_with("401") && rejected.contains("missing_token"), "{rejected}");
    assert!(curl("/login", &[]).ends_with("413"));
    assert_eq!(stack.upstream.requests().len(), 1);
}

/// OpenSSL completes no chain that it is not given, as phones do not.
#[tokio::test(flavor = "multi_thread")]
async fn openssl_verifies_the_chain_and_agrees_on_tls_1_2_and_1_3_only() {
    let directory = tempfile::tempdir().unwrap();
    let root = Authority::root("root");
    let middle = root.intermediate("middle");
    let tls = middle.issue(&["a.test"]).write(directory.path(), "a", &[&middle.certificate]);
    let root_file = directory.path().join("root.pem");
    std::fs::write(&root_file, root.certificate.pem()).unwrap();
    let stack = Stack::start_with(&format!("server.tls = {{ {tls} }}")).await;
    let connect = |arguments: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-brief", "-verify_return_error", "-servername", "a.test"]);
        openssl.args(["-verify_hostname", "a.test", "-alpn", "h2,http/1.1", "-connect"]);
        openssl.arg(stack.gateway.to_string()).arg("-CAfile").arg(&root_file).args(arguments);
        let output = openssl.stdin(Stdio::null()).output();
        let output = output.expect("openssl runs (deploy/dev test installs it)");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (version, shown) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let (is_connected, said) = connect(&[version]);
        assert!(is_connected && said.contains("Verification: OK"), "{said}");
        assert!(said.contains(&format!("Protocol version: {shown}")), "{said}");
    }
    for version in ["-tls1", "-tls1_1"] {
        // Debian's build would not even try otherwise.
        let (is_connected, said) = connect(&[version, "-cipher", "DEFAULT@SECLEVEL=0"]);
        assert!(!is_connected && said.contains("SSL alert number"), "{said}");
    }
    stack.until_metric("wxgate_tls_handshakes_failed_total", 2.0).await;
}
