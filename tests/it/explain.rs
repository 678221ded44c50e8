//! `wxgate explain`: its output for a request, as text and as JSON.

mod agreement;
mod browser;
mod identity;
mod policy;

use serde_json::{Value, json};

use crate::harness::command::{text, write_config, wxgate};

#[test]
fn explain_shows_the_matching_route_why_others_do_not_match_and_the_forwarded_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = write_config(
        directory.path(),
        r#"
        [[upstream]]
        name = "recorder"
        servers = ["127.0.0.1:1"]
        [[upstream]]
        name = "canary"
        servers = ["canary.internal:3000"]
        [[route]]
        name = "shop"
        host = "*.example.com"
        path = "/api"
        upstream = "recorder"
        methods = ["GET", "POST"]
        strip_prefix = "/api"
        add_prefix = "/v2"
        split = [{ upstream = "canary", percent = 2.5 }]
        set_request_headers = { X-Version = "2", Authorization = "Basic hunter2" }
        remove_request_headers = ["X-Debug"]
        set_response_headers = { X-Served-By = "shop" }
        read_timeout = "5m"
        [[route]]
        name = "beta"
        path = "/api"
        upstream = "recorder"
        headers = { X-Beta = "1" }
        [[route]]
        name = "staff"
        host = "staff.example.net"
        path = "/api"
        upstream = "recorder"
        [[route]]
        name = "docs"
        path = "/docs"
        upstream = "recorder"
        auth = "none"
        [[route]]
        name = "write"
        host = "*.example.com"
        path = "/api"
        methods = ["PUT"]
        headers = { X-Beta = "1" }
        upstream = "recorder"
        [[route]]
        name = "rest"
        path = "/api"
        upstream = "recorder"
        [[route]]
        name = "file"
        path = "/file.txt"
        match = "exact"
        auth = "none"
        respond = { body = "x" }
        cors = { origins = ["*"] }
        "#,
    );
    let explain = |arguments: &[&str]| {
        let output = wxgate().args(["explain", "-c"]).arg(&file).args(arguments).output().unwrap();
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let url = "https://m.example.com:8443/api/%E5%95%86?x=1#part";
    let (code, shown) = explain(&["GET", url, "-H", "X_Debug: 1", "-H", "x-openid: me"]);
    assert_eq!(code, Some(0), "{shown}");
    let lines = std::fs::read_to_string(&file).unwrap();
    let name = lines.lines().position(|line| line.trim() == "name = \"shop\"").unwrap();
    let line = 1 + lines
        .lines()
        .take(name)
        .collect::<Vec<_>>()
        .iter()
        .rposition(|line| line.trim() == "[[route]]")
        .unwrap();
    let place = format!("{}:{line}\n", file.display());
    assert_eq!(
        shown.replace(&place, "FILE:LINE\n"),
        r#"route[0] "shop" matches, FILE:LINE
  auth: required: 401 without a session
  limits: max_body 10MiB, rate_per_user off, rate_per_address off
  2.5% of users: upstream "canary" at canary.internal:3000
    protocol http1, balance round_robin, host client
    connect_timeout 2s, read_timeout 5m, write_timeout 1m
    up to 2 retries on connect, reset, budget 20%
    ejection after 5 failures for 10s, at most 50%; no health checks
  all other users: upstream "recorder" at 127.0.0.1:1
    protocol http1, balance round_robin, host client
    connect_timeout 2s, read_timeout 5m, write_timeout 1m
    up to 2 retries on connect, reset, budget 20%
    ejection after 5 failures for 10s, at most 50%; no health checks
  the service gets:
    GET /v2/%E5%95%86?x=1
    host: m.example.com:8443
    x-request-id: REQUEST_ID
    x-forwarded-for: CLIENT
    x-forwarded-proto: SCHEME
    x-real-ip: CLIENT
    x-forwarded-host: m.example.com:8443
    x-openid: OPENID
    x-appid: APP_ID
    x-unionid: UNIONID-if-known
    authorization: (not shown)
    x-version: 2
  removed from the request:
    x_debug: removed by the route's remove_request_headers
    x-openid: reserved: only the gateway sends the identity
  added to responses: x-served-by: shop
  added to responses: Vary: X-3rd-Session, Authorization
  added to responses to users: Cache-Control: private, unless the service sends a Cache-Control that says how to cache it
route[1] "beta" does not match: it requires other values of x-beta
route[2] "staff" does not match: it is for the host staff.example.net
route[3] "docs" does not match: its prefix is /docs
route[4] "write" does not match: it requires other values of x-beta
route[5] "rest" does not match: the matching route is more specific
route[6] "file" does not match: its path is /file.txt
"#
    );
    for (arguments, code, expected) in [
        (&["GET", "/file.txt"][..], 0, "  auth: none\n  the gateway responds with 200"),
        (
            &["POST", "/login"],
            0,
            "the gateway responds itself: this is the path of endpoints.login",
        ),
        (&["OPTIONS", "/login"], 1, "405 method_not_allowed: Allow: POST\n"),
        (&["GET", "/login"], 1, "405 method_not_allowed: Allow: POST\n"),
        (&["POST", "/session"], 1, "405 method_not_allowed: Allow: GET, HEAD\n"),
        (&["get", "/docs"], 1, "400 bad_request: this method is not supported"),
        (&["TRACE", "/docs"], 1, "400 bad_request: this method is not supported"),
        (&["GET", "/elsewhere"], 1, "404 no_route"),
        (&["DELETE", "http://m.example.com/api"], 1, "405 method_not_allowed: Allow: GET, POST\n"),
        (&["GET", "http://m.example.com/api/a%2Fb"], 1, "400 bad_request: servers could read"),
        (&["GET", "/api/%zz"], 1, "400 bad_request: the path contains invalid bytes"),
        (&["PUT", "http://m.example.com/api", "-H", "X-Beta: 1"], 0, "route[4] \"write\" matches"),
        (&["GET", "/api", "-H", "Host: m.example.com"], 0, "route[0] \"shop\" matches"),
        (
            &[
                "OPTIONS",
                "/file.txt",
                "-H",
                "Origin: x",
                "-H",
                "Access-Control-Request-Method: GET",
            ],
            0,
            "the gateway responds with 204",
        ),
        (&["GET", "ftp://x/"], 2, "expected http"),
        (&["GET", "/", "-H", "nothing"], 2, "expected NAME: VALUE"),
    ] {
        let (found, shown) = explain(arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {shown}");
        assert!(shown.contains(expected), "{arguments:?}: {shown}");
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let bad = write_config(directory.path(), "server = { threds = 1 }");
    let output = wxgate().args(["explain", "-c"]).arg(&bad).args(["GET", "/"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(": server.threds: unknown key"));
}

#[test]
fn explain_as_json_has_the_fields_that_help_lists() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("docs.toml"),
        "# x\n[[route]]\npath = \"/docs\"\nupstream = \"recorder\"\nrate_per_user = \"50/10s\"\nmax_body = \"1KiB\"",
    )
    .unwrap();
    let file = write_config(directory.path(), "include = [\"docs.toml\"]");
    let explain = |arguments: &[&str]| {
        let command = &mut wxgate();
        let command = command.args(["explain", "--json", "-c"]).arg(&file).args(arguments);
        let output = command.output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), json)
    };
    let (code, explanation) = explain(&["GET", "https://h/docs/1?x=2", "-H", "X-OpenId: me"]);
    assert_eq!(code, Some(0));
    let included = directory.path().join("docs.toml").display().to_string();
    assert_eq!(explanation["outcome"], "forwarded");
    assert_eq!(
        explanation["route"],
        json!({
            "index": 3, "name": "/docs", "file": included, "line": 2, "auth": "required",
            "preflight": false, "apps": [], "max_body": 1024, "rate_per_user": "50/10s",
            "rate_per_address": null, "websocket": false, "cors": false,
            "preflights": "answer",
        })
    );
    assert_eq!(
        explanation["upstreams"],
        json!([{
            "name": "recorder", "servers": ["127.0.0.1:1"], "weights": [1], "percent": 100.0,
            "protocol": "http1", "tls": null, "balance": "round_robin", "hash": null,
            "host": "client", "buffer_body": 0, "cookie_jar": false,
            "connect_timeout": "2s", "read_timeout": "1m", "write_timeout": "1m", "timeout": null,
            "max_connections": 0, "max_pending": 1024, "pending_timeout": "1s",
            "retry": {
                "attempts": 2, "on": ["connect", "reset"], "budget": "20%", "per_try_timeout": null,
            },
            "ejection": { "failures": 5, "duration": "10s", "max_percent": 50 },
            "health_check": null,
        }])
    );
    assert_eq!(explanation["request"]["target"], "/docs/1?x=2");
    assert_eq!(explanation["request"]["headers"][0], json!({ "name": "host", "value": "h" }));
    assert_eq!(explanation["removed"][0]["name"], "x-openid");
    assert_eq!(explanation["other_routes"].as_array().unwrap().len(), 3);

    let (code, explanation) = explain(&["GET", "/login"]);
    assert_eq!(code, Some(1));
    let facts =
        ["outcome", "status", "error", "allow", "endpoint"].map(|field| explanation[field].clone());
    assert_eq!(json!(facts), json!(["rejected", 405, "method_not_allowed", "POST", "login"]));

    // Each field is named in the help, and none is not.
    let help = wxgate().args(["explain", "--help"]).output().unwrap();
    let help = text(&help.stdout);
    let (_, fields) = help.split_once("JSON fields").unwrap();
    for field in explanation.as_object().unwrap().keys() {
        assert!(fields.contains(field.as_str()), "{field}");
    }
}
