//! What operators get from the admin listener and the access log.

use crate::harness::client::{self, Connection};
use crate::harness::{APP, OPERATOR, OTHER_APP, SECRET, Stack, openid};

#[tokio::test(flavor = "multi_thread")]
async fn documented_metrics_exist() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    stack.get("/").token(&token).send().await;
    stack.until_metric("wxgate_http_requests_in_flight", 0.0).await;
    let response = client::get(stack.admin, "/metrics").await;
    assert!(response.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let text = response.text();
    let login = format!("wxgate_logins_total{{app_id=\"{APP}\",outcome=\"ok\"}} 1");
    let exchange =
        format!("wxgate_code2session_requests_total{{app_id=\"{APP}\",errcode=\"ok\"}} 1");
    let version = format!("wxgate_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    for line in [
        "wxgate_http_requests_total{code=\"200\",route=\"/\"} 1",
        "wxgate_http_requests_total{code=\"200\",route=\"@login\"} 1",
        "wxgate_http_request_duration_seconds_bucket{route=\"/\",le=\"0.001\"}",
        "wxgate_http_request_duration_seconds_bucket{route=\"/\",le=\"10\"} 1",
        "wxgate_http_request_duration_seconds_count{route=\"/\"} 1",
        "wxgate_http_requests_in_flight 0",
        "wxgate_auth_decisions_total{decision=\"ok\"} 1",
        "wxgate_auth_decisions_total{decision=\"anonymous\"} 0",
        "wxgate_auth_decisions_total{decision=\"missing\"} 0",
        "wxgate_auth_decisions_total{decision=\"invalid\"} 0",
        "wxgate_auth_decisions_total{decision=\"error\"} 0",
        login.as_str(),
        exchange.as_str(),
        "wxgate_code2session_duration_seconds_count 1",
        "wxgate_login_coalesced_total 0",
        "wxgate_sessions 1",
        "wxgate_sessions_created_total 1",
        "wxgate_sessions_removed_total{cause=\"expired\"} 0",
        "wxgate_sessions_removed_total{cause=\"revoked\"} 0",
        "wxgate_sessions_removed_total{cause=\"evicted\"} 0",
        "wxgate_sessions_removed_total{cause=\"replaced\"} 0",
        "wxgate_tls_handshakes_failed_total 0",
        "wxgate_log_lines_dropped_total 0",
        "wxgate_config_last_reload_successful 1",
        "wxgate_config_last_reload_success_timestamp_seconds 1",
        version.as_str(),
        "process_resident_memory_bytes ",
        "process_open_fds ",
    ] {
        assert!(text.lines().any(|known| known.starts_with(line)), "{line} is not in\n{text}");
    }
    let series = text.lines().filter(|line| !line.starts_with('#'));
    assert!(series.clone().all(|line| line.starts_with("wxgate_") || line.starts_with("process_")));
}

const ROUTE_CODES: [&str; 9] = ["200", "401", "403", "429", "500", "501", "502", "503", "504"];

const ERRCODES: [&str; 12] = [
    "ok",
    "timeout",
    "transport",
    "malformed",
    "40029",
    "40163",
    "40226",
    "45009",
    "45011",
    "40013",
    "40125",
    "40164",
];

const OUTCOMES: [&str; 11] = [
    "ok",
    "bad_request",
    "invalid_code",
    "user_blocked",
    "login_refused",
    "rate_limited",
    "internal_error",
    "wechat_rejected",
    "wechat_busy",
    "store_unavailable",
    "wechat_timeout",
];

fn assert_series(text: &str, name: &str, labels: &str) {
    let series = format!("{name}{{{labels}}} 0");
    assert!(text.lines().any(|line| line == series), "{series} is not in\n{text}");
}

/// So that `rate()` sees the first event.
#[tokio::test(flavor = "multi_thread")]
async fn series_exist_from_the_start_and_from_a_reload() {
    let stack = Stack::start().await;
    let text = client::get(stack.admin, "/metrics").await.text();
    for route in ["/", "/optional", "/none", "@login", "@logout", "@session"] {
        for code in ROUTE_CODES {
            let labels = format!("code=\"{code}\",route=\"{route}\"");
            assert_series(&text, "wxgate_http_requests_total", &labels);
        }
    }
    for outcome in OUTCOMES {
        let labels = format!("app_id=\"{APP}\",outcome=\"{outcome}\"");
        assert_series(&text, "wxgate_logins_total", &labels);
    }
    for errcode in ERRCODES {
        let labels = format!("app_id=\"{APP}\",errcode=\"{errcode}\"");
        assert_series(&text, "wxgate_code2session_requests_total", &labels);
    }
    for outcome in ["bad_request", "rate_limited", "body_too_large", "request_timeout"] {
        let labels = format!("app_id=\"unknown\",outcome=\"{outcome}\"");
        assert_series(&text, "wxgate_logins_total", &labels);
    }
    // Others only where they were counted.
    let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
    assert_eq!((count("code=\"404\""), count("\",route=\"@health\"")), (0, 0), "{text}");

    stack.get("/optional").send().await;
    let changes = format!(
        r#"
        app = [
            {{ app_id = "{APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }},
            {{ app_id = "{OTHER_APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }},
        ]
        route = [
            {{ path = "/optional", upstream = "recorder", auth = "optional" }},
            {{ path = "/new", upstream = "recorder" }},
        ]
        "#
    );
    assert!(stack.reload(&changes).await);
    let text = client::get(stack.admin, "/metrics").await.text();
    assert_series(&text, "wxgate_http_requests_total", "code=\"429\",route=\"/new\"");
    let labels = format!("app_id=\"{OTHER_APP}\",outcome=\"login_refused\"");
    assert_series(&text, "wxgate_logins_total", &labels);
    let labels = format!("app_id=\"{OTHER_APP}\",errcode=\"40125\"");
    assert_series(&text, "wxgate_code2session_requests_total", &labels);
    // Counters continue.
    let counted = "wxgate_http_requests_total{code=\"200\",route=\"/optional\"}";
    stack.until_metric(counted, 1.0).await;
}

/// Otherwise an alert for an app without logins would fire for a removed one.
#[tokio::test(flavor = "multi_thread")]
async fn series_of_what_a_reload_removes_are_removed() {
    let stack = Stack::start().await;
    stack.login("alice").await;
    stack.get("/none").send().await;
    let changes = format!(
        r#"
        app = [{{ app_id = "{OTHER_APP}", app_secret = {{ file = "{{dir}}/wechat-secret" }} }}]
        route = [{{ path = "/optional", upstream = "recorder", auth = "optional" }}]
        "#
    );
    assert!(stack.reload(&changes).await);
    let text = client::get(stack.admin, "/metrics").await.text();
    let labels = [format!("app_id=\"{APP}\""), "route=\"/none\"".to_owned()];
    for line in text.lines() {
        assert!(!labels.iter().any(|label| line.contains(label)), "{line}");
    }
    assert_series(&text, "wxgate_logins_total", "app_id=\"unknown\",outcome=\"bad_request\"");
    assert_series(&text, "wxgate_http_requests_total", "code=\"200\",route=\"/optional\"");
}

/// Labels come from closed sets: a client cannot make new series.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_clients_create_no_new_series() {
    let stack = Stack::start().await;
    let count = async || client::get(stack.admin, "/metrics").await.text().lines().count();
    let storm = async |from: usize| {
        let mut connection = Connection::open(stack.gateway).await;
        for number in from..from + 200 {
            let path = format!("/none/{number}?q={number}");
            let request = stack.request("GET", &path).header("User-Agent", &number.to_string());
            connection.send(&request.bytes()).await;
            assert_eq!(connection.response(false).await.status, 200);
            if number % 20 == 0 {
                stack.try_login(&format!("err-{}-x", 90000 + number)).await;
            }
        }
    };
    storm(0).await;
    let before = count().await;
    storm(200).await;
    assert_eq!(count().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_respond_and_no_path_of_the_admin_listener_is_public() {
    let stack = Stack::start().await;
    assert_eq!(client::get(stack.admin, "/healthz").await.status, 200);
    assert_eq!(client::get(stack.admin, "/readyz").await.status, 200);
    assert_eq!(client::get(stack.admin, "/other").await.status, 404);
    for path in ["/metrics", "/healthz", "/readyz"] {
        stack.get(path).send().await.assert_error(401, "missing_token", "login");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_has_one_line_per_request_and_no_secrets() {
    let stack = Stack::start_with(r#"log.access = "{dir}/access.log""#).await;
    let token = stack.login("alice").await;
    stack.get("/orders/7?password=canary-query").token(&token).send().await;
    stack.get("/none/x").send().await;
    stack.get("/orders").token(&"A".repeat(43)).send().await;
    stack.try_login("err-40029-canary").await;
    let mut connection = Connection::open(stack.gateway).await;
    connection.send(b"GET / HTTP/1.1\r\n\r\n").await;
    connection.response(false).await;
    connection.finish().await;
    assert!(connection.is_closed().await);

    let text = stack.access_log(6).await;
    for canary in [token.as_str(), "canary", SECRET, &openid("alice"), "user-alice"] {
        assert!(!text.contains(canary), "{canary} in\n{text}");
    }
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    let order = &lines[1];
    for (key, value) in [
        ("client", "127.0.0.1"),
        ("method", "GET"),
        ("path", "/orders/7"),
        ("route", "/"),
        ("decision", "ok"),
        ("app_id", APP),
    ] {
        assert_eq!(order[key], value, "{order}");
    }
    assert_eq!(order["status"], 200);
    assert_eq!(order["upstream"], stack.upstream.address.to_string());
    assert_eq!(order["upstream_status"], 200);
    assert_eq!(order["bytes_out"], 5);
    assert_eq!(order["error"], serde_json::Value::Null);
    assert_eq!(order["request_id"], stack.upstream.requests()[0].all("x-request-id")[0]);
    assert_eq!(order["user"].as_str().unwrap().len(), 16);
    assert!(order["time"].as_str().unwrap().ends_with('Z'));
    assert!(order["duration_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(order.as_object().unwrap().len(), 18);
    assert_eq!(lines[0]["route"], "@login");
    assert_eq!(lines[2]["decision"], serde_json::Value::Null);
    assert_eq!(
        (&lines[3]["error"], &lines[3]["decision"]),
        (&"session_expired".into(), &"invalid".into())
    );
    assert_eq!(lines[4]["error"], "invalid_code");
    assert_eq!((&lines[5]["route"], &lines[5]["status"]), (&"@none".into(), &400.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_the_same_name_in_the_log_under_the_same_key() {
    let name = async |key: &str| {
        let changes = format!("[log]\naccess = \"{{dir}}/access.log\"\n{key}");
        let stack = Stack::start_with(&changes).await;
        let token = stack.login("alice").await;
        stack.get("/").token(&token).send().await;
        let path = stack.directory.path().join("access.log");
        loop {
            let text = std::fs::read_to_string(&path).unwrap();
            if let Some(line) = text.lines().nth(1) {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                return line["user"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    // Any secret can be the key.
    let key = r#"openid_key = { file = "{dir}/wechat-secret" }"#;
    let kept = name(key).await;
    assert_eq!(kept, name(key).await);
    assert_ne!(kept, name("").await, "without a key each process has its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_admin_listener_have_the_shape_of_all_others() {
    let stack = Stack::start_with("admin.token = { file = \"{dir}/operator\" }").await;
    let of = |query: &str| format!("/sessions?{query}");
    for (request, status, error) in [
        (stack.get("/nothing"), 404, "not_found"),
        (stack.post("/metrics"), 405, "method_not_allowed"),
        (stack.get(&of("openid=o")), 401, "unauthorized"),
        (stack.get(&of("user=%20")).bearer(OPERATOR), 400, "bad_request"),
        (stack.post(&of("openid=o")).bearer(OPERATOR), 405, "method_not_allowed"),
        (stack.request("DELETE", "/sessions/1?openid=o").bearer(OPERATOR), 404, "no_session"),
    ] {
        let response = request.header("X-Request-Id", "an-id").send_to_admin().await;
        assert_eq!(response.header("x-request-id"), Some("an-id"));
        response.assert_error(status, error, "none");
    }
}
