//! What operators see of the program: its log, and what signals do to it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::command::{Running, wxgate};
use crate::harness::certificate::Authority;
use crate::harness::client::{self, Connection};
use crate::harness::upstream::Upstream;
use crate::harness::{PATIENCE, config_text};

/// A configuration file in a folder, for a service.
fn write_config(directory: &Path, upstream: SocketAddr, changes: &str) -> PathBuf {
    let text = config_text(directory, "http://127.0.0.1:1", upstream, changes);
    let file = directory.join("gateway.toml");
    fs::write(&file, text).unwrap();
    file
}

fn start(file: &Path) -> Running {
    Running::start(wxgate().args(["run", "-c"]).arg(file), true)
}

/// All that is left of what a program writes, once it has ended.
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

/// One line with `text`, of a log of JSON.
fn only(log: &str, text: &str) -> Value {
    let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(lines.len(), 1, "{text}: {log}");
    serde_json::from_str(lines[0]).unwrap()
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let held = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, held).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_logs_have_one_name_for_the_time_and_say_which_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let file = write_config(directory.path(), upstream.address, "log.access = \"stderr\"");
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
async fn the_start_is_one_line_that_says_what_was_started() {
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
    assert_eq!((&line["apps"], &line["upstreams"]), (&json!(1), &json!(1)));
    assert_eq!((&line["routes"], &line["sessions"]), (&json!(3), &json!("memory")));
    assert_eq!(line["warnings"].as_u64().unwrap(), {
        let warned = gateway.transcript.matches("\"level\":\"WARN\"").count();
        u64::try_from(warned).unwrap()
    });
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

/// Who collects lines of JSON finds the end of a start among them.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_at_the_start_has_the_format_of_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (format, is_json) in [("json", true), ("text", false)] {
        let changes = format!("log.format = \"{format}\"\nserver.listen = \"{address}\"");
        let file = write_config(directory.path(), address, &changes);
        let output = wxgate().args(["run", "-c"]).arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let shown = String::from_utf8(output.stderr).unwrap();
        let last = shown.lines().last().unwrap();
        let reason = format!("cannot listen on {address}: the address is in use");
        assert!(last.contains(&reason) && last.contains("cannot start"), "{shown}");
        if is_json {
            let line: Value = serde_json::from_str(last).unwrap();
            assert_eq!((&line["level"], &line["error"]), (&json!("ERROR"), &json!(reason)));
        }
    }
    // Which format is meant cannot be known.
    let file = write_config(directory.path(), address, "nonsense = 1");
    let output = wxgate().args(["run", "-c"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(shown.starts_with(&format!("{}:", file.display())), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_line_of_a_drain_says_what_is_waited_for_and_how_long() {
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream::start().await;
    let changes = "[server]\nshutdown_delay = \"50ms\"\ndrain_timeout = \"1500ms\"";
    let file = write_config(directory.path(), upstream.address, changes);
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
    assert_eq!(only(&log, "cut short")["cut"], 1);
}
