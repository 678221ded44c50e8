//! `wxgate explain` shows how the requests of a route are sent to its servers.

use serde_json::{Value, json};

use crate::harness::command::{text, write_config, wxgate};

const UPSTREAMS: &str = r#"
    [[upstream]]
    name = "recorder"
    servers = ["10.0.0.1:3000", { address = "shop.internal:443", weight = 3 }]
    protocol = "h2"
    balance = "hash"
    hash = { header = "X-Shop-Id" }
    host = "shop.example.com"
    max_connections = 100
    [upstream.tls]
    server_name = "shop.internal"
    [upstream.health_check]
    path = "/healthz"
    [upstream.retry]
    attempts = 1
    budget = "2.5%"
    [[upstream]]
    name = "sockets"
    servers = ["unix:/run/shop.sock"]
    balance = "least_requests"
    host = "server"
    buffer_body = "1MiB"
    health_check = { tcp = true, interval = "1s" }
    ejection = { failures = 0 }
    [[route]]
    path = "/"
    upstream = "recorder"
    timeout = "30s"
    retry = { per_try_timeout = "5s" }
    [[route]]
    path = "/sockets"
    upstream = "sockets"
    retry = { attempts = 0 }
"#;

fn explain(arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = write_config(directory.path(), UPSTREAMS);
    let output = wxgate().args(["explain", "-c"]).arg(&file).args(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn explain_shows_the_policy_of_the_chosen_upstream() {
    let shown = explain(&["GET", "https://m.example.com/x"]);
    let expected = r#"  upstream "recorder" at 10.0.0.1:3000, shop.internal:443 (weight 3)
    protocol h2 with TLS for shop.internal, balance hash of x-shop-id, host shop.example.com
    connect_timeout 2s, read_timeout 1m, write_timeout 1m, timeout 30s
    up to 1 retry on connect, reset, timeout, budget 2.5%, per_try_timeout 5s
    max_connections 100 to each server, max_pending 1024, pending_timeout 1s
    ejection after 5 failures for 10s, at most 50%; health check GET /healthz every 5s, unhealthy after 3, healthy after 2
  the service gets:
    GET /x
    host: shop.example.com
"#;
    assert!(shown.contains(expected), "{shown}");
    let shown = explain(&["GET", "https://m.example.com/sockets"]);
    let expected = r#"  upstream "sockets" at unix:/run/shop.sock
    protocol http1, balance least_requests, host server, buffer_body 1MiB
    connect_timeout 2s, read_timeout 1m, write_timeout 1m
    no retries
    no ejection; health check connect every 1s, unhealthy after 3, healthy after 2
  the service gets:
    GET /sockets
    host: localhost
"#;
    assert!(shown.contains(expected), "{shown}");
}

#[test]
fn explain_shows_after_which_failures_a_post_is_retried() {
    let shown = explain(&["POST", "https://m.example.com/x"]);
    let expected = "    up to 1 retry on connect (not on reset, timeout: POST is not idempotent), \
                    per_try_timeout 5s\n";
    assert!(shown.contains(expected), "{shown}");
}

#[test]
fn explain_as_json_has_the_policy_of_the_chosen_upstream() {
    let shown = explain(&["--json", "GET", "https://m.example.com/x"]);
    let explanation: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        explanation["upstreams"],
        json!([{
            "name": "recorder", "servers": ["10.0.0.1:3000", "shop.internal:443"],
            "weights": [1, 3], "percent": 100.0, "protocol": "h2",
            "tls": { "server_name": "shop.internal" }, "balance": "hash", "hash": "x-shop-id",
            "host": "shop.example.com", "buffer_body": 0, "cookie_jar": false,
            "connect_timeout": "2s", "read_timeout": "1m", "write_timeout": "1m", "timeout": "30s", "max_connections": 100,
            "max_pending": 1024, "pending_timeout": "1s",
            "retry": {
                "attempts": 1, "on": ["connect", "reset", "timeout"], "budget": "2.5%",
                "per_try_timeout": "5s",
            },
            "ejection": { "failures": 5, "duration": "10s", "max_percent": 50 },
            "health_check": {
                "path": "/healthz", "interval": "5s", "timeout": "2s", "unhealthy_after": 3,
                "healthy_after": 2,
            },
        }])
    );
}
