//! The program for operators: its logs, and its signals.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::certificate::Authority;
use crate::harness::client::{self, Connection};
use crate::harness::command::{Running, wxgate};
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, config_text, until};

/// A configuration file in a folder, for a service.
fn write_config(directory: &Path, upstream: SocketAddr, changes: &str) -> PathBuf {
    let text = config_text(directory, "http://127.0.0.1:1", upstream, changes);
    let file = directory.join("gateway.toml");
    fs::write(&file, text).unwrap();
    file
}

/// A folder, a service, and a configuration file for both.
async fn set_up(changes: &str) -> (tempfile::TempDir, Upstream, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let file = write_config(directory.path(), upstream.address, changes);
    (directory, upstream, file)
}

fn start(file: &Path) -> Running {
    Running::start(wxgate().args(["run", "-c"]).arg(file), true)
}

/// The rest of a program's output, once it has ended.
fn rest(mut gateway: Running) -> String {
    gateway.signal("TERM");
    assert_eq!(gateway.code(), 0);
    gateway.read_to_end()
}

fn parse(log: &str) -> Vec<Value> {
    log.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

/// The only line with `text` in a JSON log.
fn only(log: &str, text: &str) -> Value {
    let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(lines.len(), 1, "{text}: {log}");
    serde_json::from_str(lines[0]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_logs_have_the_same_name_for_the_time_and_name_themselves() {
    let (_directory, _upstream, file) = set_up("log.access = \"stderr\"").await;
    let mut gateway = start(&file);
    let (_, address) = gateway.started();
    for _ in 0..20 {
        assert_eq!(client::get(address, "/none").await.status, 200);
    }
    let log = rest(gateway);
    let lines = parse(&log);
    let of = |kind: &str| lines.iter().filter(|line| line["log"] == kind).count();
    assert_eq!((of("access"), of("access") + of("process")), (20, lines.len()), "{log}");
    for line in lines {
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && &time[19..20] == ".", "{line}");
        assert_eq!(line.get("timestamp"), None);
        assert_eq!(line.get("level").is_some(), line["log"] == "process", "{line}");
        if line["log"] == "access" {
            let duration = line["duration_ms"].to_string();
            let decimals = duration.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            assert!(decimals <= 3, "{duration}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_is_one_line_with_what_was_started() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let authority = Authority::root("root");
    let tls = authority.issue(&["localhost"]).write(directory.path(), "site", &[]);
    let changes = format!(
        "server = {{ listen = [\"127.0.0.1:0\", \"127.0.0.2:0\"], redirect = \"127.0.0.3:0\", \
         trusted_proxies = \"10.0.0.0/8\", \
         tls = {{ {tls} }} }}\nforward_auth.listen = \"127.0.0.4:0\""
    );
    let file = write_config(directory.path(), upstream.address, &changes);
    let mut gateway = start(&file);
    let (line, _) = gateway.started();
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(line["config"], file.display().to_string());
    assert_eq!(line["public"].as_str().unwrap().split(", ").count(), 2);
    assert_eq!(line["tls"], true);
    for listener in ["redirect", "forward_auth", "admin"] {
        line[listener].as_str().unwrap().parse::<SocketAddr>().expect(listener);
    }
    let counts = ["apps", "upstreams", "routes", "sessions"].map(|field| &line[field]);
    assert_eq!(counts, [&json!(1), &json!(1), &json!(3), &json!("memory")]);
    let warned = gateway.transcript.matches("\"level\":\"WARN\"").count();
    assert_eq!(line["warnings"], json!(warned));
    let admin: SocketAddr = line["admin"].as_str().unwrap().parse().unwrap();
    assert_eq!(client::get(admin, "/readyz").await.status, 200);
    let log = gateway.transcript.clone() + &rest(gateway);
    let other = parse(&log).iter().filter(|line| line["level"] == "INFO").count();
    assert_eq!(other, 3, "started, draining, stopped: {log}");

    let file = write_config(directory.path(), upstream.address, "log.format = \"text\"");
    let mut gateway = start(&file);
    let line = gateway.line_with("started");
    for part in ["INFO", "started", "tls=false", "apps=1", "routes=3", "sessions=memory"] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

/// A log collector that reads JSON must be able to read the failure of a start.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_the_start_has_the_format_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let upstream = Upstream::start().await.address;
    for (format, is_json) in [("json", true), ("text", false)] {
        let changes = format!("log.format = \"{format}\"\nserver.listen = \"{address}\"");
        let file = write_config(directory.path(), upstream, &changes);
        let output = wxgate().args(["run", "-c"]).arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let shown = String::from_utf8(output.stderr).unwrap();
        let last = shown.lines().last().unwrap();
        let reason = format!("cannot listen on {address}: address in use");
        assert!(last.contains(&reason) && last.contains("cannot start"), "{shown}");
        if is_json {
            let line: Value = serde_json::from_str(last).unwrap();
            assert_eq!((&line["level"], &line["error"]), (&json!("ERROR"), &json!(reason)));
        }
    }
    // The format is not known, as the file is not valid.
    let file = write_config(directory.path(), upstream, "nonsense = 1");
    let output = wxgate().args(["run", "-c"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.starts_with(&format!("{}:", file.display())), "{shown}");
}

/// Opening such a pipe blocks until it has a reader, and signals would have no effect meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_a_pipe_without_a_reader_is_an_error_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let upstream = Upstream::start().await;
    let changes = format!("log.access = {pipe:?}");
    let file = write_config(directory.path(), upstream.address, &changes);
    let mut child = wxgate()
        .args(["run", "-c"])
        .arg(&file)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("it waits");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let output = child.wait_with_output().unwrap();
    let shown = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(shown.lines().last().unwrap().contains("log.access: cannot open the file"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_drain_has_the_requests_in_flight_and_the_timeouts() {
    let changes = "[server]\nshutdown_delay = \"50ms\"\ndrain_timeout = \"1500ms\"";
    let (_directory, upstream, file) = set_up(changes).await;
    let mut gateway = start(&file);
    let (line, address) = gateway.started();
    let admin: SocketAddr = line["admin"].as_str().unwrap().parse().unwrap();
    upstream.reply(|_| crate::harness::upstream::Reply::Stall(Vec::new()));
    let mut busy = Connection::open(address).await;
    busy.send(b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let in_flight = "wxgate_http_requests_in_flight 1";
    until("it is under way", async || {
        client::get(admin, "/metrics").await.text().contains(in_flight)
    })
    .await;
    let log = rest(gateway);
    let line = only(&log, "draining");
    assert_eq!(line["in_flight"], 1);
    assert_eq!(
        (&line["shutdown_delay"], &line["drain_timeout"]),
        (&json!("50ms"), &json!("1s 500ms"))
    );
    assert_eq!(only(&log, "drain ended early")["cut"], 1);
}

/// Signals that end a process by default, and some that do not.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_documented_signals_end_the_program() {
    let (_directory, _upstream, file) = set_up("").await;
    let named = [
        "HUP", "QUIT", "USR1", "USR2", "PIPE", "ALRM", "VTALRM", "PROF", "IO", "PWR", "STKFLT",
        "XCPU", "XFSZ", "WINCH", "URG", "CHLD", "TTIN", "TTOU", "TSTP", "CONT",
    ];
    // The C library uses 32 and 33 itself: they cannot be caught.
    let real_time = (34..=64).map(|number| number.to_string());
    let signals: Vec<String> = named.map(str::to_owned).into_iter().chain(real_time).collect();
    for subcommand in ["run", "demo", "sandbox"] {
        let mut command = wxgate();
        match subcommand {
            "run" => command.args(["run", "-c"]).arg(&file),
            "demo" => command.args([
                "demo",
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--internal",
                "127.0.0.1:0",
            ]),
            _ => command.args(["sandbox", "--listen", "127.0.0.1:0"]),
        };
        let is_gateway = subcommand == "run";
        let mut program = Running::start(&mut command, is_gateway);
        let address: SocketAddr = match subcommand {
            "run" => program.started().1,
            _ => {
                let line = program.line_with("http://127.0.0.1:");
                let address = line.split("http://").nth(1).unwrap();
                address.split([',', ' ', '\n']).next().unwrap().parse().unwrap()
            }
        };
        for signal in &signals {
            program.signal(signal);
            // Some only stop it.
            program.signal("CONT");
            let response = client::get(address, "/none").await;
            assert!(response.status > 0, "{subcommand} after {signal}");
            let ended = program.child.try_wait().unwrap();
            assert!(ended.is_none(), "{subcommand} was ended by {signal}: {ended:?}");
        }
        if is_gateway {
            for line in ["configuration reloaded", "SIGQUIT ignored", "SIGUSR2"] {
                assert!(program.transcript.contains(line) || !program.line_with(line).is_empty());
            }
        }
        program.signal("TERM");
        assert_eq!(program.code(), 0, "{subcommand}");
        let log = program.read_to_end();
        assert!(!log.contains("started a new process"), "{log}");
    }
}

/// With a limit on file sizes a write fails; the gateway must not end.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_at_its_size_limit_loses_lines_and_nothing_else() {
    let (directory, _upstream, file) = set_up("").await;
    let script = format!("ulimit -f 1; exec {:?} run -c {file:?}", env!("CARGO_BIN_EXE_wxgate"));
    let mut gateway = Running::start(std::process::Command::new("sh").args(["-c", &script]), true);
    let (line, address) = gateway.started();
    let admin: SocketAddr = line["admin"].as_str().unwrap().parse().unwrap();
    for _ in 0..10 {
        assert_eq!(client::get(address, "/none").await.status, 200);
    }
    let line = gateway.line_with("cannot write the access log");
    assert!(line.contains("File too large"), "{line}");
    let dropped = async || {
        let text = client::get(admin, "/metrics").await.text();
        let line = text.lines().find(|l| l.starts_with("wxgate_log_lines_dropped_total"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    let written = || fs::read_to_string(directory.path().join("access.log")).unwrap();
    let is_whole = |line: &&str| serde_json::from_str::<Value>(line).is_ok();
    until("each is written or counted", async || {
        dropped().await + written().lines().filter(is_whole).count() == 10
    })
    .await;
}

/// As logrotate does: rename, then SIGUSR1.
#[tokio::test(flavor = "multi_thread")]
async fn rotation_by_rename_and_signal_loses_no_line() {
    const CLIENTS: usize = 4;
    let (directory, _upstream, file) = set_up("").await;
    let mut gateway = start(&file);
    let (_, address) = gateway.started();
    let path = directory.path().join("access.log");
    let ends = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let ends = ends.clone();
            tokio::spawn(async move {
                let mut sent = 0;
                let mut connection = Connection::open(address).await;
                while !ends.load(std::sync::atomic::Ordering::Relaxed) {
                    connection.send(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n").await;
                    let response = connection.response(false).await;
                    assert_eq!(response.status, 401);
                    sent += 1;
                    if response.header("connection") == Some("close") {
                        connection = Connection::open(address).await;
                    }
                }
                sent
            })
        })
        .collect();
    let mut files = vec![path.clone()];
    for number in 0..20 {
        until("lines come", async || fs::metadata(&path).is_ok_and(|of| of.len() > 0)).await;
        let rotated = directory.path().join(format!("access.log.{number}"));
        fs::rename(&path, &rotated).unwrap();
        gateway.signal("USR1");
        // Also where no line comes.
        until("the file is there again", async || path.exists()).await;
        files.push(rotated);
    }
    ends.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut sent = 0;
    for client in clients {
        sent += client.await.unwrap();
    }
    let log = rest(gateway);
    let count = |file: &PathBuf| parse(&fs::read_to_string(file).unwrap()).len();
    assert_eq!(files.iter().map(count).sum::<usize>(), sent, "{log}");
    assert!(log.contains("access log reopened"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_file_is_created_once_its_folder_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let folder = directory.path().join("logs");
    fs::create_dir(&folder).unwrap();
    let path = folder.join("access.log");
    let file = write_config(directory.path(), upstream.address, &format!("log.access = {path:?}"));
    let mut gateway = start(&file);
    let (_, address) = gateway.started();
    let request = async || assert_eq!(client::get(address, "/none").await.status, 200);
    let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
    request().await;
    until("it is logged", async || lines(&path) == 1).await;

    // The folder is renamed, and another one is in its place at once.
    let moved = directory.path().join("moved");
    fs::rename(&folder, &moved).unwrap();
    fs::create_dir(&folder).unwrap();
    gateway.signal("USR1");
    until("the file is made", async || path.exists()).await;
    request().await;
    until("it is logged there", async || lines(&path) == 1).await;
    assert_eq!(lines(&moved.join("access.log")), 1);

    // It is gone for a while: lines are written to the previous file.
    let gone = directory.path().join("gone");
    fs::rename(&folder, &gone).unwrap();
    gateway.signal("USR1");
    let line = gateway.line_with("cannot reopen the access log");
    assert!(line.contains("No such file or directory"), "{line}");
    request().await;
    until("it is logged there", async || lines(&gone.join("access.log")) == 2).await;
    fs::create_dir(&folder).unwrap();
    // Without another signal.
    until("the file is made", async || path.exists()).await;
    request().await;
    until("it is logged there", async || lines(&path) == 1).await;

    // Something else is in its place, as if it were read-only.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    gateway.signal("USR1");
    request().await;
    fs::remove_dir(&path).unwrap();
    until("the file is made", async || path.exists()).await;
    let log = gateway.transcript.clone() + &rest(gateway);
    assert_eq!(log.matches("cannot reopen").count(), 1, "once a minute: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_log_file_the_signal_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    for access in ["stderr", "stdout", "off"] {
        let changes = format!("log.access = \"{access}\"");
        let file = write_config(directory.path(), upstream.address, &changes);
        let mut gateway = start(&file);
        let (_, address) = gateway.started();
        gateway.signal("USR1");
        gateway.line_with("SIGUSR1 ignored");
        assert_eq!(client::get(address, "/none").await.status, 200);
    }
}
