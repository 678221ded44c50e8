//! The explanation of a request, compared with what the gateway does with it.

use http::{HeaderName, HeaderValue, Method};
use wxgate::cli::explain::{DescribedRequest, Explanation, Outcome, explain};
use wxgate::config::{Config, Secrets};

use crate::harness::Stack;
use crate::harness::client::Connection;

pub fn explained(stack: &Stack, method: &str, path: &str, headers: &[(&str, &str)]) -> Explanation {
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
            let response = connection.response(method == "HEAD").await;
            let what = format!("{changes} {method} {path} {headers:?}: {explanation:?}");
            match explanation.outcome {
                Outcome::Rejected => {
                    assert_eq!(Some(response.status), explanation.status, "{what}");
                    assert_eq!(response.header("allow"), explanation.allow.as_deref(), "{what}");
                    if let Some(error) = response.header("x-wxgate-error") {
                        assert_eq!(Some(error), explanation.error, "{what}");
                    }
                }
                Outcome::Answered => {
                    let rejected = [400, 404, 405, 431].contains(&response.status);
                    // A login without a body is 400, as an endpoint's own.
                    assert!(
                        !rejected || explanation.endpoint == Some("login"),
                        "{what} {}",
                        response.status
                    );
                    assert!(
                        explanation.status.is_none_or(|status| status == response.status),
                        "{what}"
                    );
                }
                Outcome::Forwarded => {
                    assert_eq!(response.status, 200, "{what}");
                    assert_eq!(response.header("x-wxgate-error"), None, "{what}");
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
        ("X-WX-CLOUDBASE-ACCESS-TOKEN", "me", "WeChat Cloud Run"),
        ("X_Original-Forwarded.For", "1.2.3.4", "WeChat Cloud Run"),
        ("X_Wxgate_Jwt", "a.b.c", "only the gateway sends the signed identity"),
        ("X-User-Id", "1", ""),
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
    let received = headers
        .iter()
        .fold(stack.get("/x?y=1"), |request, (name, value)| request.header(name, value));
    let received = received.forwarded().await;
    let forwarded = explanation.request.unwrap();
    assert_eq!(forwarded.target, received.target());
    let names = |names: Vec<String>| {
        let mut names: Vec<_> = names.iter().map(|name| name.to_lowercase()).collect();
        names.sort();
        names
    };
    let on_the_wire = names(received.lines.iter().map(|(name, _)| name.clone()).collect());
    let explained = forwarded.headers.iter().map(|header| header.name.clone());
    assert_eq!(names(explained.collect()), on_the_wire);
    for (name, value, why) in sent {
        let removed = explanation.removed.iter().find(|one| one.name.eq_ignore_ascii_case(name));
        assert_eq!(received.all(name).contains(&value), removed.is_none(), "{name}");
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
