//! `wxgate explain`: what becomes of a request, held against what becomes of it.

use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use wxgate::cli::explain::{DescribedRequest, Explanation, Outcome, explain};
use wxgate::config::{Config, Secrets};

use crate::command::{text, write_config, wxgate};
use crate::harness::Stack;
use crate::harness::client::Connection;

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
    connect_timeout 2s, read_timeout 5m, write_timeout 1m
  all other users: upstream "recorder" at 127.0.0.1:1
    connect_timeout 2s, read_timeout 5m, write_timeout 1m
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
    x-openid: reserved: only the gateway writes the identity
  added to responses: x-served-by: shop
  added to responses: Vary: X-3rd-Session, Authorization
  added to responses to users: Cache-Control: private, unless the service sends a Cache-Control that decides
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

fn explained(stack: &Stack, method: &str, path: &str, headers: &[(&str, &str)]) -> Explanation {
    let config = Config::load(&stack.config_file(), Secrets::Ignore).unwrap();
    let header = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
    };
    let headers = headers.iter().map(header).collect();
    let url = format!("http://gateway.test{path}");
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let request = DescribedRequest::new(method, &url, headers);
    explain(&config, &request.unwrap())
}

/// The explanation never differs from what the gateway does.
#[tokio::test(flavor = "multi_thread")]
async fn explain_agrees_with_what_the_gateway_does() {
    const PREFLIGHT: [(&str, &str); 2] =
        [("Origin", "https://h5.example.com"), ("Access-Control-Request-Method", "PUT")];
    const OLD_WEBSOCKET: [(&str, &str); 4] = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "8"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    const ONE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const OTHER: &str = "Bearer BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA";
    let base = r#"
        endpoints.health = "/health"
        limits.max_header_count = 20
        limits.max_target = "100B"
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "none"
        [[route]]
        name = "needs"
        path = "/needs"
        upstream = "recorder"
        max_body = "1KiB"
        [[route]]
        name = "read"
        path = "/read"
        upstream = "recorder"
        auth = "none"
        methods = ["GET", "HEAD"]
        [[route]]
        name = "cors"
        path = "/cors"
        upstream = "recorder"
        auth = "none"
        cors = { origins = ["https://h5.example.com"], methods = ["PUT"] }
        [[route]]
        name = "ws"
        path = "/ws"
        upstream = "recorder"
        auth = "none"
        websocket = true
        [[route]]
        name = "file"
        path = "/file"
        match = "exact"
        auth = "none"
        respond = { status = 203, body = "x" }
    "#;
    let long = format!("/{}", "x".repeat(100));
    let many: Vec<(String, &str)> = (0..20).map(|number| (format!("x-{number}"), "1")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (&**name, *value)).collect();
    let mut outcomes = std::collections::BTreeSet::new();
    for (changes, hosts) in [
        ("", true),
        ("login.accept = [\"json\", \"query\"]", true),
        ("endpoints.hosts = [\"other.test\"]", false),
        ("endpoints.hosts = [\"gateway.test\"]", true),
    ] {
        let stack = Stack::start_with(&format!("{changes}\n{base}")).await;
        let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND"];
        let odd = ["get", "Post", "TRACE", "CONNECT", "M_SEARCH", "M-SEARCH"];
        let paths = [
            "/login",
            "/logout",
            "/session",
            "/health",
            "/login/",
            "/read",
            "/read/x",
            "/cors",
            "/file",
            "/x",
            "/%zz",
            "/read/a%2f..%2f..%2flogin",
            "/x`y",
            &long,
        ];
        let all = methods.into_iter().chain(odd);
        let plain = all.flat_map(|method| paths.map(|path| (method, path, &[][..])));
        let preflights = paths.map(|path| ("OPTIONS", path, &PREFLIGHT[..]));
        let odd_headers = [
            ("GET", "/x", &many[..]),
            ("GET", "/x", &[("Content-Length", "x")][..]),
            ("GET", "/x", &[("Transfer-Encoding", "gzip")][..]),
            ("GET", "/x", &[("Connection", "host")][..]),
            ("GET", "/x", &[("Connection", "Upgrade"), ("Upgrade", "h2c")][..]),
            ("GET", "/x", &[("Connection", "Upgrade"), ("Upgrade", "websocket")][..]),
            ("GET", "/login", &[("Connection", "Upgrade"), ("Upgrade", "websocket")][..]),
            ("GET", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "websocket")][..]),
            ("GET", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "websocket, h2c")][..]),
            ("GET", "/ws", &OLD_WEBSOCKET[..]),
            ("GET", "/needs", &[("X-3rd-Session", "x"), ("X-3rd-Session", "x")][..]),
            ("GET", "/needs", &[("X-3rd-Session", ONE), ("Authorization", OTHER)][..]),
            ("GET", "/x", &[("X-3rd-Session", "x"), ("X-3rd-Session", "x")][..]),
            ("POST", "/needs", &[("Content-Length", "1025")][..]),
        ];
        for (method, path, headers) in plain.chain(preflights).chain(odd_headers) {
            let explanation = explained(&stack, method, path, headers);
            let mut connection = Connection::open(stack.gateway).await;
            let lines: String =
                headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let request = format!("{method} {path} HTTP/1.1\r\nHost: gateway.test\r\n{lines}\r\n");
            connection.send(request.as_bytes()).await;
            let answer = connection.response(method == "HEAD").await;
            let what = format!("{changes} {method} {path} {headers:?}: {explanation:?}");
            match explanation.outcome {
                Outcome::Rejected => {
                    assert_eq!(Some(answer.status), explanation.status, "{what}");
                    assert_eq!(answer.header("allow"), explanation.allow.as_deref(), "{what}");
                    if let Some(error) = answer.header("x-wxgate-error") {
                        assert_eq!(Some(error), explanation.error, "{what}");
                    }
                }
                Outcome::Answered => {
                    let refused = [400, 404, 405, 431].contains(&answer.status);
                    // A login without a body is 400, as an endpoint's own.
                    assert!(
                        !refused || explanation.endpoint == Some("login"),
                        "{what} {}",
                        answer.status
                    );
                    assert!(
                        explanation.status.is_none_or(|status| status == answer.status),
                        "{what}"
                    );
                }
                Outcome::Forwarded => {
                    assert_eq!(answer.status, 200, "{what}");
                    assert_eq!(answer.header("x-wxgate-error"), None, "{what}");
                }
                Outcome::ForwardAuth => panic!("{what}"),
            }
            let is_login = hosts && path == "/login" && !odd_method(method);
            assert!(explanation.endpoint != Some("login") || is_login, "{what}");
            outcomes.insert((format!("{:?}", explanation.outcome), explanation.status));
        }
    }
    for status in [Some(400), Some(405), Some(413), Some(426), Some(431)] {
        assert!(outcomes.contains(&("Rejected".to_owned(), status)), "{outcomes:?}");
    }
    assert!(outcomes.contains(&("Answered".to_owned(), Some(204))), "{outcomes:?}");
}

fn odd_method(method: &str) -> bool {
    ["get", "Post", "TRACE", "CONNECT", "M_SEARCH"].contains(&method)
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_explained_as_removed_do_not_reach_the_service() {
    let stack = Stack::start_with(
        r#"
        [[route]]
        path = "/"
        upstream = "recorder"
        auth = "none"
        methods = ["GET", "POST"]
        set_request_headers = { X-Version = "2" }
        remove_request_headers = ["X-Debug"]
        "#,
    )
    .await;
    let token = "A".repeat(43);
    let bearer = format!("Bearer {token}");
    let sent = [
        ("X-OpenId", "me", "only the gateway sends the identity"),
        ("X_Open.Id", "me", ""),
        ("x.appid", "me", "only the gateway sends the identity"),
        ("X_UnionId", "me", "only the gateway sends the identity"),
        ("X-3rd-Session", &*token, "the session header"),
        ("Authorization", &*bearer, "the session token"),
        ("X-WX-OPENID", "me", "WeChat Cloud Run"),
        ("X-Wx_Source", "me", "WeChat Cloud Run"),
        ("X-Forwarded-For", "1.2.3.4", "the gateway sends its own value"),
        ("X_Real_IP", "1.2.3.4", "the gateway sends its own value"),
        ("X-Request-Id", "mine", "the gateway sends its own value"),
        ("Forwarded", "for=1.2.3.4", "only a trusted proxy may send it"),
        ("X-Original-URL", "/x", "only a trusted proxy may send it"),
        ("X-HTTP-Method-Override", "DELETE", "it could override the method"),
        ("Connection", "keep-alive, X-Hop", "only to the client's connection"),
        ("X-Hop", "1", "only to the client's connection"),
        ("Keep-Alive", "timeout=5", "only to the client's connection"),
        ("TE", "trailers", "only to the client's connection"),
        ("Proxy-Authorization", "Basic eDp5", "only to the client's connection"),
        ("X-Version", "1", "replaced by the route's set_request_headers"),
        ("X_Debug", "1", "removed by the route's remove_request_headers"),
        ("Accept", "*/*", ""),
        ("Cookie", "a=b", ""),
        ("X-Kept", "1", ""),
    ];
    let headers = sent.map(|(name, value, _)| (name, value));
    let explanation = explained(&stack, "GET", "/x?y=1", &headers);
    let seen = headers
        .iter()
        .fold(stack.get("/x?y=1"), |request, (name, value)| request.header(name, value));
    let seen = seen.forwarded().await;
    let forwarded = explanation.request.unwrap();
    assert_eq!(forwarded.target, seen.target());
    let names = |names: Vec<String>| {
        let mut names: Vec<_> = names.iter().map(|name| name.to_lowercase()).collect();
        names.sort();
        names
    };
    let on_the_wire = names(seen.lines.iter().map(|(name, _)| name.clone()).collect());
    let explained = forwarded.headers.iter().map(|header| header.name.clone());
    assert_eq!(names(explained.collect()), on_the_wire);
    for (name, value, why) in sent {
        let removed = explanation.removed.iter().find(|one| one.name.eq_ignore_ascii_case(name));
        assert_eq!(seen.all(name).contains(&value), removed.is_none(), "{name}");
        match removed {
            None => assert_eq!(why, "", "{name} is not removed"),
            Some(removed) => assert!(
                !why.is_empty() && removed.reason.contains(why),
                "{name}: {}",
                removed.reason
            ),
        }
    }
    // Where Authorization carries something else it stays.
    let explanation = explained_authorization(&stack, "Basic eDp5");
    assert!(explanation.removed.is_empty(), "{:?}", explanation.removed);
}

fn explained_authorization(stack: &Stack, value: &str) -> Explanation {
    explained(stack, "GET", "/x", &[("Authorization", value)])
}

#[test]
fn an_explanation_as_json_has_the_fields_that_help_names() {
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
            "name": "recorder", "servers": ["127.0.0.1:1"], "percent": 100.0,
            "connect_timeout": "2s", "read_timeout": "1m", "write_timeout": "1m",
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
