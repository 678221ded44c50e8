//! The program as a process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::canary;
use crate::harness::client::{self, Connection};
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, SECRET, config_text};

pub fn wxgate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_wxgate"))
}

/// A running program that does not outlive its test.
pub struct Running {
    pub child: Child,
    lines: BufReader<Box<dyn Read + Send>>,
    /// All output so far.
    pub transcript: String,
    is_gateway: bool,
}

impl Running {
    pub fn start(command: &mut Command, reads_stderr: bool) -> Self {
        let (out, err) = (Stdio::piped(), Stdio::piped());
        let mut child = command.stdout(out).stderr(err).stdin(Stdio::null()).spawn().unwrap();
        let lines: Box<dyn Read + Send> = match reads_stderr {
            true => Box::new(child.stderr.take().unwrap()),
            false => Box::new(child.stdout.take().unwrap()),
        };
        let is_gateway = command.get_args().next().is_some_and(|first| first == "run");
        Self { child, lines: BufReader::new(lines), transcript: String::new(), is_gateway }
    }

    /// Reads up to a line that contains `text`.
    pub fn line_with(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = self.lines.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "no line with {text}: {}", self.transcript);
            self.transcript.push_str(&line);
        }
        line
    }

    /// Waits until the gateway has started: the fields of its first line, and where it listens.
    pub fn started(&mut self) -> (serde_json::Value, SocketAddr) {
        let line: serde_json::Value = serde_json::from_str(&self.line_with("started")).unwrap();
        let first = line["public"].as_str().unwrap().split(", ").next().unwrap();
        let address = first.parse().unwrap();
        (line, address)
    }

    /// Reads the rest of the output of a program that has ended.
    pub fn read_to_end(&mut self) -> String {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        self.transcript.push_str(&rest);
        rest
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub fn code(&mut self) -> i32 {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("an exit, not a signal");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The sandbox and the demo print the secret that they are given.
        if self.is_gateway {
            canary::look_for_in("the program", &self.transcript);
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `run` with a file of this text.
pub fn write_config(directory: &Path, changes: &str) -> std::path::PathBuf {
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let text = config_text(directory, "http://127.0.0.1:1", nowhere, changes);
    let file = directory.join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    file
}

fn run(subcommand: &str, file: &Path) -> Output {
    canary::plant(SECRET);
    let output = wxgate().args([subcommand, "-c"]).arg(file).stdin(Stdio::null()).output().unwrap();
    canary::look_for_in("the program", &(text(&output.stdout) + &text(&output.stderr)));
    output
}

#[test]
fn wrong_usage_is_2_and_help_and_version_are_0() {
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
fn check_is_0_for_a_good_file_and_1_with_every_problem_for_a_bad_one() {
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
fn check_can_do_without_secrets() {
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
fn a_listener_that_cannot_bind_is_a_clear_message_and_1() {
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
fn a_bad_certificate_is_a_clear_message_and_1() {
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
fn run_says_by_name_when_no_roots_are_found() {
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
async fn the_program_serves_until_it_is_told_to_stop_and_logs_no_secret() {
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
        gateway.lines.read_to_string(&mut gateway.transcript).unwrap();
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
async fn the_demos_lines_work_when_pasted() {
    let arguments = ["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut demo = Running::start(wxgate().args(arguments), false);
    let mut tour = Vec::new();
    while tour.last().is_none_or(|line: &String| !line.contains("Ctrl-C")) {
        let mut line = String::new();
        assert_ne!(demo.lines.read_line(&mut line).unwrap(), 0);
        tour.push(line);
    }
    let script: String = tour
        .iter()
        .filter(|line| line.starts_with("TOKEN=") || line.starts_with("curl"))
        .cloned()
        .collect();
    assert!(script.lines().count() >= 6, "{script}");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    let shown = text(&output.stdout);
    let openid = wxgate::wechat::sandbox::openid(crate::harness::APP, "alice");
    assert_eq!(shown.matches(&format!("\"x-openid\": \"{openid}\"")).count(), 2, "{shown}");
    assert!(!shown.contains("mallory"), "{shown}");
    assert!(shown.contains("\"error\":\"missing_token\""), "{shown}");
    assert!(shown.contains("\"error\":\"session_expired\""), "{shown}");
    assert!(shown.contains("wxgate_logins_total"), "{shown}");
    demo.signal("INT");
    assert_eq!(demo.code(), 0);
    let mut said = String::new();
    demo.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "nothing is warned of");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_can_stand_in_front_of_a_service_of_the_readers_own() {
    let upstream = Upstream::start().await;
    let url = format!("http://{}/", upstream.address);
    let arguments =
        ["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--upstream", &url];
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

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_keeps_wechats_semantics() {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0", "--app", "wx1:one", "--app", "wx2:two"];
    let mut sandbox = Running::start(wxgate().args(arguments), false);
    let line = sandbox.line_with("http://");
    let address: SocketAddr = line.trim().rsplit('/').next().unwrap().parse().unwrap();
    assert!(sandbox.line_with("wx1").contains("one"));

    let ask = async |query: &str| {
        let answer = client::get(address, &format!("/sns/jscode2session?{query}")).await;
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain")));
        answer.json()
    };
    let query = |app: &str, secret: &str, code: &str| {
        format!("appid={app}&secret={secret}&js_code={code}&grant_type=authorization_code")
    };
    let granted = ask(&query("wx1", "one", "user-bob-1")).await;
    let openid = granted["openid"].as_str().unwrap();
    assert_eq!(openid.len(), 28);
    assert_eq!(granted["session_key"].as_str().unwrap().len(), 24);
    assert!(granted.get("unionid").is_none());
    let elsewhere = ask(&query("wx2", "two", "user-bob-2")).await;
    assert_ne!(elsewhere["openid"], openid, "an openid belongs to one app");
    let (one, two) = (
        ask(&query("wx1", "one", "user-unionbob-1")).await,
        ask(&query("wx2", "two", "user-unionbob-2")).await,
    );
    assert_eq!(one["unionid"], two["unionid"]);
    assert!(one["unionid"].is_string());
    for (query, errcode) in [
        (query("wx1", "one", "user-bob-1"), 40163),
        (query("wx1", "one", "nonsense"), 40029),
        (query("wx1", "two", "user-bob-3"), 40125),
        (query("wx9", "one", "user-bob-3"), 40013),
        ("secret=one&js_code=user-bob-3&grant_type=authorization_code".to_owned(), 41002),
        ("appid=wx1&js_code=user-bob-3&grant_type=authorization_code".to_owned(), 41004),
        ("appid=wx1&secret=one&grant_type=authorization_code".to_owned(), 41008),
        ("appid=wx1&secret=one&js_code=user-bob-3".to_owned(), 40002),
        (query("wx1", "one", "err-45011-x"), 45011),
        (query("wx1", "one", "err--1-x"), -1),
    ] {
        let failed = ask(&query).await;
        assert_eq!(failed["errcode"], errcode, "{query}");
        assert!(failed["errmsg"].as_str().unwrap().contains("rid: "));
    }

    let refused = client::post(address, "/sandbox/codes", &json!({ "user": "a b" })).await;
    assert_eq!(refused.status, 400);
    let given = client::post(address, "/sandbox/codes", &json!({ "user": "carol" })).await;
    let code = given.json()["code"].as_str().unwrap().to_owned();
    assert_eq!(code.len(), 32);
    assert!(ask(&query("wx1", "one", &code)).await["openid"].is_string());
    assert_eq!(ask(&query("wx1", "one", &code)).await["errcode"], 40163);
    sandbox.signal("INT");
    assert_eq!(sandbox.code(), 0);
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

/// A sandbox on a port of its own, and its address.
fn start_sandbox(options: &[&str]) -> (Running, SocketAddr) {
    let arguments = ["sandbox", "--listen", "127.0.0.1:0"];
    let mut sandbox = Running::start(wxgate().args(arguments).args(options), false);
    let line = sandbox.line_with("http://");
    let address = line.trim().rsplit('/').next().unwrap().parse().unwrap();
    (sandbox, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_has_the_moods_of_wechat() {
    let ask = async |address: SocketAddr, code: &str| {
        let query = format!(
            "appid={}&secret={SECRET}&js_code={code}&grant_type=authorization_code",
            crate::harness::APP
        );
        client::get(address, &format!("/sns/jscode2session?{query}")).await.json()
    };
    let (_sandbox, quota) = start_sandbox(&["--user-quota", "2", "--quota", "3"]);
    assert!(ask(quota, "user-alice-1").await["openid"].is_string());
    assert!(ask(quota, "user-alice-2").await["openid"].is_string());
    assert_eq!(ask(quota, "user-alice-3").await["errcode"], 45011);
    assert!(ask(quota, "user-bob-1").await["openid"].is_string());
    assert_eq!(ask(quota, "user-bob-2").await["errcode"], 45009);

    let (_sandbox, refusing) = start_sandbox(&["--refuse-ip"]);
    let refused = ask(refusing, "user-alice-1").await;
    assert_eq!(refused["errcode"], 40164);
    assert!(refused["errmsg"].as_str().unwrap().contains("invalid ip 203.0.113.7"));

    let (_sandbox, slow) = start_sandbox(&["--latency", "100ms", "--slow-start", "1s"]);
    let time = async |code: &str| {
        let began = Instant::now();
        assert!(ask(slow, code).await["openid"].is_string());
        began.elapsed()
    };
    assert!(time("user-alice-1").await > Duration::from_millis(200));
    while time(&format!("user-alice-{}", rand::random::<u32>())).await > Duration::from_millis(200)
    {
    }
    assert!(time("user-alice-2").await >= Duration::from_millis(100));
}

/// A new login invalidates the previous session_key.
#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_displaces_session_keys() {
    use base64::Engine;
    use hmac::{Hmac, KeyInit, Mac};

    let (_sandbox, address) = start_sandbox(&[]);
    let key = async |code: &str| {
        let query = format!(
            "appid={}&secret={SECRET}&js_code={code}&grant_type=authorization_code",
            crate::harness::APP
        );
        let path = format!("/sns/jscode2session?{query}");
        let granted = client::get(address, &path).await.json();
        granted["session_key"].as_str().unwrap().to_owned()
    };
    let check = async |key: &str| {
        let key = base64::engine::general_purpose::STANDARD.decode(key).unwrap();
        let signature = Hmac::<sha2::Sha256>::new_from_slice(&key).unwrap().finalize();
        let signature: String =
            signature.into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let openid = crate::harness::openid("alice");
        let path = format!(
            "/wxa/checksession?access_token=x&openid={openid}&signature={signature}&sig_method=hmac_sha256"
        );
        client::get(address, &path).await.json()["errcode"].as_i64().unwrap()
    };
    let first = key("user-alice-1").await;
    assert_eq!(check(&first).await, 0);
    let second = key("user-alice-2").await;
    assert_eq!((check(&first).await, check(&second).await), (87009, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_check_says_whether_wechat_takes_the_app_and_spends_no_code() {
    let check = |address: SocketAddr, changes: &str| {
        let directory = tempfile::tempdir().unwrap();
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let url = format!("http://{address}");
        let text = config_text(directory.path(), &url, nowhere, changes);
        let file = directory.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let output = wxgate().args(["check", "--live", "-c"]).arg(&file).output().unwrap();
        let shown = text_of(&output);
        canary::look_for_in("the program", &shown);
        (output.status.code().unwrap(), shown)
    };
    let (_good, address) = start_sandbox(&[]);
    let (code, shown) = check(address, "");
    assert!(code == 0 && shown.contains("WeChat accepts the app"), "{shown}");
    let stats = client::get(address, "/sandbox/stats").await.json();
    assert_eq!(stats["exchanges"], 1);

    let (_other, address) = start_sandbox(&["--app", &format!("{}:other", crate::harness::APP)]);
    let (code, shown) = check(address, "");
    assert!(code == 1 && shown.contains("errcode 40125") && shown.contains("rid "), "{shown}");
    assert!(shown.contains("the AppSecret is wrong"), "{shown}");
    let (_unlisted, address) = start_sandbox(&["--refuse-ip"]);
    let (code, shown) = check(address, "");
    assert!(code == 1 && shown.contains("40164") && shown.contains("203.0.113.7"), "{shown}");
    assert!(shown.contains("IP allow list"), "{shown}");
    let (code, shown) = check("127.0.0.1:1".parse().unwrap(), "");
    let cause = "cannot be reached: connection refused (http://127.0.0.1:1)";
    assert!(code == 1 && shown.contains(cause), "{shown}");
    // The path of a relay may be a secret.
    canary::plant("a-relay-s-secret-path");
    let changes = "wechat.fallback_base_url = \"http://127.0.0.1:1/a-relay-s-secret-path\"";
    let (code, shown) = check(address, changes);
    assert!(code == 1 && shown.contains("http://127.0.0.1:1: WeChat cannot be reached"), "{shown}");
    let (_fallback, fallback) = start_sandbox(&[]);
    let changes = format!("wechat.fallback_base_url = \"http://{fallback}\"");
    let (code, shown) = check("127.0.0.1:1".parse().unwrap(), &changes);
    let names = |address: &str, outcome: &str| {
        shown.lines().any(|line| line.contains(address) && line.contains(outcome))
    };
    assert!(code == 1 && names("127.0.0.1:1:", "cannot be reached"), "{shown}");
    assert!(names(&fallback.to_string(), "WeChat accepts the app"), "{shown}");
    let usage = wxgate().args(["check", "--live", "--without-secrets", "-c", "x"]).output();
    assert_eq!(usage.unwrap().status.code(), Some(2));
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
