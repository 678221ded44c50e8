//! The program as a process: what its commands do and print.

mod demo;
mod sandbox;

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::harness::client::{self, Connection};
use crate::harness::command::{Running, text, write_config, wxgate};
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, SECRET, canary, config_text};

pub use self::sandbox::start_sandbox;

fn run(subcommand: &str, file: &Path) -> Output {
    canary::plant(SECRET);
    let output = wxgate().args([subcommand, "-c"]).arg(file).stdin(Stdio::null()).output().unwrap();
    canary::search("the program", &(text(&output.stdout) + &text(&output.stderr)));
    output
}

#[test]
fn wrong_usage_exits_with_2_and_help_and_version_with_0() {
    for (arguments, code) in [
        (vec![], 2),
        (vec!["fly"], 2),
        (vec!["run"], 2),
        (vec!["run", "-c"], 2),
        (vec!["sandbox"], 2),
        (vec!["sandbox", "--listen", "nowhere"], 2),
        (vec!["sandbox", "--listen", "127.0.0.1:0", "--app", "x"], 2),
        (vec!["demo", "--upstream", "ftp://x"], 2),
        (vec!["--help"], 0),
        (vec!["--version"], 0),
        (vec!["sandbox", "--help"], 0),
    ] {
        let output = wxgate().args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let shown = if code == 0 { output.stdout } else { output.stderr };
        assert!(!shown.is_empty(), "{arguments:?}");
    }
    let version = wxgate().arg("--version").output().unwrap();
    assert_eq!(text(&version.stdout), format!("wxgate {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn check_exits_with_0_for_a_valid_file_and_1_with_every_problem() {
    let directory = tempfile::tempdir().unwrap();
    let good = write_config(directory.path(), "");
    let output = run("check", &good);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with(&format!("{}: ok\n", good.display())));

    let bad = write_config(directory.path(), "server = { threds = 1 }\nsession = { ttl = 5 }");
    for subcommand in ["check", "run"] {
        let output = run(subcommand, &bad);
        assert_eq!(output.status.code(), Some(1));
        let shown = text(&output.stderr);
        assert_eq!(shown.matches(&format!("{}:", bad.display())).count(), 2, "{shown}");
        assert!(shown.contains(": server.threds: unknown key"), "{shown}");
        assert!(shown.contains(": session.ttl: expected a duration"), "{shown}");
    }
    for file in ["/nonexistent/gateway.toml", "/"] {
        for subcommand in ["check", "run"] {
            let output = run(subcommand, Path::new(file));
            assert_eq!(output.status.code(), Some(1));
            assert!(text(&output.stderr).starts_with(file), "{}", text(&output.stderr));
        }
    }
}

#[test]
fn check_works_without_secrets() {
    let directory = tempfile::tempdir().unwrap();
    let changes = "[[app]]\napp_id = \"wx1\"\napp_secret = { env = \"WXGATE_TEST_ABSENT\" }";
    let file = write_config(directory.path(), changes);
    let output = run("check", &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("environment variable WXGATE_TEST_ABSENT is not set"));
    let output = wxgate().args(["check", "--without-secrets", "-c"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn a_listener_that_cannot_bind_is_a_clear_message_and_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for section in ["server", "admin"] {
        let file = write_config(directory.path(), &format!("{section}.listen = \"{address}\""));
        let output = run("run", &file);
        assert_eq!(output.status.code(), Some(1));
        let shown = text(&output.stderr);
        assert!(shown.contains(&format!("cannot listen on {address}: address in use")), "{shown}");
    }
    let file = write_config(directory.path(), "server.listen = \"192.0.2.1:80\"");
    let output = run("run", &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no such address on this machine"));
}

#[test]
fn an_invalid_certificate_is_a_clear_message_and_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let one = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("cert.pem"), one.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), one.signing_key.serialize_pem()).unwrap();
    std::fs::write(path("other.pem"), other.signing_key.serialize_pem()).unwrap();
    std::fs::write(path("garbage.pem"), "garbage").unwrap();
    for (cert, key, message) in [
        ("missing.pem", "key.pem", "no such file"),
        ("garbage.pem", "key.pem", "contains no certificate"),
        ("cert.pem", "garbage.pem", "contains no private key"),
        ("cert.pem", "other.pem", "does not match the certificate"),
    ] {
        let tls = format!(
            "server.tls = {{ cert_file = \"{{dir}}/{cert}\", key_file = \"{{dir}}/{key}\" }}"
        )
        .replace("{dir}", &directory.path().display().to_string());
        let output = run("run", &write_config(directory.path(), &tls));
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
}

#[test]
fn run_names_the_package_of_missing_root_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_config(directory.path(), "wechat.base_url = \"https://api.weixin.qq.com\"");
    let output = wxgate()
        .args(["run", "-c"])
        .arg(&file)
        .env("SSL_CERT_FILE", directory.path().join("none"))
        .env("SSL_CERT_DIR", directory.path().join("none"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("ca-certificates"), "{}", text(&output.stderr));
}

/// From start to end: a file, signals, a session, the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_program_serves_until_a_signal_stops_it_and_logs_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let mut sandbox = Running::start(wxgate().args(["sandbox", "--listen", "127.0.0.1:0"]), false);
    let base_url = sandbox.line_with("http://");
    let base_url = base_url.trim().rsplit(' ').next().unwrap();
    let changes = "server.drain_timeout = \"5s\"\n[log]\naccess = \"stderr\"\nlevel = \"debug\"";
    let config = config_text(directory.path(), base_url, upstream.address, changes);
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, &config).unwrap();

    for signal in ["TERM", "INT"] {
        let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
        let (_, address) = gateway.started();

        let code = format!("user-alice-{signal}");
        let login = client::post(address, "/login", &json!({ "code": code })).await;
        let token = login.json()["token"].as_str().unwrap().to_owned();
        let mut connection = Connection::open(address).await;
        let request =
            format!("GET /x?canary HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n\r\n");
        connection.send(request.as_bytes()).await;
        assert_eq!(connection.response(false).await.text(), "hello");
        for _ in 0..3 {
            let forged = "GET /y HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
            connection.send(forged.as_bytes()).await;
            assert_eq!(connection.response(false).await.status, 401);
        }

        gateway.signal("HUP");
        gateway.line_with("configuration reloaded");
        gateway.signal("QUIT");
        gateway.line_with("SIGQUIT");
        gateway.signal(signal);
        assert_eq!(gateway.code(), 0, "{signal}");
        gateway.read_to_end();
        let log = &gateway.transcript;
        assert!(log.contains("\"path\":\"/x\""), "the access log is in it: {log}");
        assert!(log.contains("\"stopped\""), "{log}");
        assert_eq!(log.matches("server.trusted_proxies").count(), 1, "logged once: {log}");
        for canary in [token.as_str(), SECRET, "canary", "user-alice"] {
            assert!(!log.contains(canary), "{canary} in {log}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_level_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let file = directory.path().join("gateway.toml");
    let write = |changes: &str| {
        let text = config_text(directory.path(), "http://127.0.0.1:1", upstream.address, changes);
        std::fs::write(&file, text).unwrap();
    };
    write("");
    let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
    let (_, address) = gateway.started();

    write("log.level = \"error\"\nendpoints.health = \"/health\"");
    gateway.signal("HUP");
    // The new level applies once the new path does.
    let is_taken = async || client::get(address, "/health").await.status == 200;
    let taken = async {
        while !is_taken().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    std::fs::write(&file, "broken").unwrap();
    gateway.signal("HUP");
    gateway.line_with("reload rejected");
    assert_eq!(
        gateway.transcript.matches("SIGHUP: reloading").count(),
        1,
        "{}",
        gateway.transcript
    );
    assert!(!gateway.transcript.contains("configuration reloaded"), "{}", gateway.transcript);
}

/// The first steps of a new user: the printed commands work.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_that_the_demo_prints_work() {
    let mut arguments = vec!["demo"];
    arguments.extend(
        ["--listen", "--admin", "--internal"]
            .into_iter()
            .flat_map(|option| [option, "127.0.0.1:0"]),
    );
    let mut demo = Running::start(wxgate().args(arguments), false);
    demo.line_with("Ctrl-C");
    let script: String = demo
        .transcript
        .split_inclusive('\n')
        .filter(|line| line.starts_with("TOKEN=") || line.starts_with("curl"))
        .collect();
    assert!(script.lines().count() >= 6, "{script}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let shown = text(&output.stdout);
    let openid = wxgate::wechat::sandbox::openid(crate::harness::APP, "alice");
    assert_eq!(shown.matches(&format!("\"x-openid\": \"{openid}\"")).count(), 2, "{shown}");
    assert!(!shown.contains("mallory"), "{shown}");
    assert!(shown.contains("\"error\":\"missing_token\""), "{shown}");
    assert!(shown.contains("\"error\":\"session_expired\""), "{shown}");
    assert!(shown.contains("\"data\":{\"nickName\":\"Alice\""), "{shown}");
    assert!(shown.contains("\"phone_number\":\"199"), "{shown}");
    assert!(shown.contains("wxgate_logins_total"), "{shown}");
    demo.signal("INT");
    assert_eq!(demo.code(), 0);
    let mut warnings = String::new();
    demo.child.stderr.take().unwrap().read_to_string(&mut warnings).unwrap();
    assert_eq!(warnings, "", "nothing is warned of");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_can_forward_to_another_service() {
    let upstream = Upstream::start().await;
    let url = format!("http://{}/", upstream.address);
    let arguments = [
        "demo",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--internal",
        "127.0.0.1:0",
        "--upstream",
        &url,
    ];
    let mut demo = Running::start(wxgate().args(arguments), false);
    let line = demo.line_with("http://");
    let gateway = line.split("http://").nth(1).unwrap().split(',').next().unwrap();
    let gateway: SocketAddr = gateway.parse().unwrap();
    let login = client::post(gateway, "/login", &json!({ "code": "user-alice" })).await;
    let token = login.json()["token"].as_str().unwrap().to_owned();
    let mut connection = Connection::open(gateway).await;
    let request = format!("GET /own HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n\r\n");
    connection.send(request.as_bytes()).await;
    assert_eq!(connection.response(false).await.text(), "hello");
    assert_eq!(upstream.requests()[0].target(), "/own");
}

/// Nobody reads the log, and every request is served nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_pipe_blocks_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let config = config_text(
        directory.path(),
        "http://127.0.0.1:1",
        upstream.address,
        "log.access = \"stdout\"\nlimits.max_requests_per_connection = 100000",
    );
    let file = directory.path().join("gateway.toml");
    std::fs::write(&file, &config).unwrap();
    let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
    let (_, address) = gateway.started();

    // More lines than fit into the pipe and the queue.
    let mut connection = Connection::open(address).await;
    let request = b"GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n";
    for _ in 0..120 {
        connection.send(&request.repeat(100)).await;
        for _ in 0..100 {
            assert_eq!(connection.response(false).await.status, 401);
        }
    }
    gateway.signal("TERM");
    assert_eq!(gateway.code(), 0);
    let mut log = String::new();
    gateway.child.stdout.take().unwrap().read_to_string(&mut log).unwrap();
    assert!((100..12_000).contains(&log.lines().count()), "some were written and some given up");
}

#[test]
fn keys_and_memory_stay_in_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_config(directory.path(), "");
    let output = wxgate().args(["run", "-c"]).arg(&file).env("SSLKEYLOGFILE", "/tmp/x").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("SSLKEYLOGFILE"));

    let mut gateway = Running::start(wxgate().args(["run", "-c"]).arg(&file), true);
    gateway.started();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

#[test]
fn a_secret_file_that_everybody_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let file = write_config(directory.path(), "");
    let secret = directory.path().join("wechat-secret");
    for (mode, is_warned) in [(0o644, true), (0o640, false)] {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
        let output = run("check", &file);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(text(&output.stderr).contains(": app[0].app_secret: file"), is_warned);
    }
}
