//! Paths that servers read in different ways.

use super::siege::{Attack, Must, Siege};

const SITE: &str = r#"
    [[route]]
    path = "/"
    upstream = "recorder"
    auth = "required"
    [[route]]
    path = "/public"
    upstream = "recorder"
    auth = "none"
    [[route]]
    path = "/admin"
    upstream = "recorder"
    auth = "required"
"#;

fn get(path: &str, lines: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

/// A path that is forwarded without a token must be public in every reading.
#[tokio::test(flavor = "multi_thread")]
async fn no_reading_of_a_public_path_is_a_protected_one() {
    let mut siege = Siege::start_with("", SITE).await;
    for path in [
        "/public/../admin",
        "/public/..;/admin",
        "/public/..;x=y/admin",
        "/public;/../admin",
        "/public;x/../admin",
        "/public/.;/../admin",
        "/public/.;/..;/admin",
        "/public/%2e%2e/admin",
        "/public/.%2e/admin",
        "/public/%2E./admin",
        "/public/%2e%2e%2fadmin",
        "/public/..%2fadmin",
        "/public/..%2Fadmin",
        "/public%2f..%2fadmin",
        "/public/%252e%252e/admin",
        "/public/%252e%252e%252fadmin",
        "/public/%25%32%65%25%32%65/admin",
        "/public/..%255cadmin",
        "/public/..%5cadmin",
        "/public%5c..%5cadmin",
        "/public/..%5c..%5cadmin",
        "/public/x/../../admin",
        "/public/x/..%2f../admin",
        "/public/x%2f../../../admin",
        "/public//../admin",
        "/public//../../admin",
        "/public/./../admin",
        "/public/../admin/../public/../admin",
        "/public/..%3b/admin",
        "/public/..%3f/admin",
        "/public%3f/../admin",
        "/public/%3b/../../admin",
        "/public/..%23/../admin",
        "/public/..",
        "/public/..;",
        "/public/%2e%2e",
        "/public/x/../..",
        "/%70ublic/../admin",
        "/publi%63/%2e%2e/admin",
        "/%2e/admin",
        "/./admin",
        "//admin",
        "//admin//",
        "/%2fadmin",
        "/%2f/admin",
        "/admin;x",
        "/admin%3bx",
        "/%61dmin",
        "/%2561dmin",
        "/;/admin",
        "/;x=y/admin",
        "/x/../admin",
        "/x/..;/admin",
        "/..;/admin",
        "/../admin",
        "/public/../../../../admin",
        "/publicadmin",
        "/public-admin",
        "/public.admin",
        "/PUBLIC/x",
        "/Public",
        "/%50ublic",
        "/public%00/x",
        "/public/..%00/admin",
        "/public/%00",
        "/public/x%0d%0aX-OpenId:%20evil",
        "/public/x%0a",
        "/public/%01",
        "/public/%7f",
        "/public/%c0%ae%c0%ae/admin",
        "/public/%e0%80%ae%e0%80%ae/admin",
        "/public/%f0%80%80%ae/admin",
        "/public/%c0%af../admin",
        "/public/%c1%9c../admin",
        "/public/%25c0%25ae/admin",
        "/public/%",
        "/public/%2",
        "/public/%zz",
        "/public/%u002e%u002e/admin",
        "/public/%%32%65/admin",
    ] {
        let outcome = siege.run(&Attack::new(get(path, ""), Must::Rejected)).await;
        let [response] = &outcome.responses[..] else { panic!("{path}: {:?}", outcome.responses) };
        assert!(matches!(response.status, 400 | 401), "{path}: {}", response.status);
        let absolute = get(&format!("http://h{path}"), "");
        siege.run(&Attack::new(absolute, Must::Rejected)).await;
        // With a token it is either rejected, or forwarded unchanged on the route that was checked.
        let token = siege.token().to_owned();
        let lines = format!("X-3rd-Session: {token}\r\n");
        let outcome = siege.run(&Attack::new(get(path, &lines), Must::Harmless)).await;
        for received in outcome.received {
            assert_eq!(received.target(), path);
            assert_eq!(received.folded("x-openid").len(), 1, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_path_with_one_reading_of_its_route_is_forwarded_unchanged() {
    let mut siege = Siege::start_with("", SITE).await;
    for path in [
        "/public",
        "/public/",
        "/public/x",
        "/public?x=/../admin",
        "/public?/../admin",
        "/public/x?%00%0d%0a;..//\u{7b}",
        "/public/%E4%BD%A0",
        "/public/%b2%e2",
        "/public/a%20b",
        "/public/a+b",
        "/public/100%25",
        "/public/x;jsessionid=1",
        "/public/a%2fb",
        "/public/a%5cb",
        "/public/a//b",
        "/public/a/../b",
        "/public/a/./b",
        "/public/...",
        "/public/..x",
        "/public/x..",
        "/public/.well-known",
        "/public/~user",
        "/public/@x:y",
        "/public/%70",
    ] {
        let outcome = siege.run(&Attack::new(get(path, ""), Must::Served(1))).await;
        assert_eq!(outcome.received[0].target(), path);
    }
}

/// Headers neither choose the path of a request nor authorize it.
#[tokio::test(flavor = "multi_thread")]
async fn no_header_changes_the_route() {
    let mut siege = Siege::start_with("", SITE).await;
    for lines in [
        "X-Original-URL: /public/x\r\n",
        "X-Rewrite-URL: /public/x\r\n",
        "X-Forwarded-Uri: /public/x\r\n",
        "X-Forwarded-Path: /public\r\nX-Forwarded-Prefix: /public\r\n",
        "X-Forwarded-Host: public\r\nX-Host: public\r\nX-Forwarded-Server: public\r\n",
        "X-HTTP-Method-Override: GET\r\nX-HTTP-Method: OPTIONS\r\n",
        "X-Auth-Request-Redirect: /public\r\nX-Envoy-Original-Path: /public\r\n",
        "X-Forwarded-For: 127.0.0.1\r\nX-Real-IP: 127.0.0.1\r\nX-Forwarded-Proto: https\r\n",
        "X-Forwarded-For: a\r\nForwarded: for=127.0.0.1;host=public\r\n",
        "User-Agent: kube-probe/1.30\r\n",
        "User-Agent: GoogleHC/1.0\r\n",
        "User-Agent:\r\n",
        "User-Agent: ELB-HealthChecker/2.0\r\nAccept: */*\r\n",
        "Referer: http://h/public\r\nOrigin: http://h\r\n",
        "X-Wxgate-Error: x\r\nX-Internal: 1\r\nX-Accel-Redirect: /public\r\n",
    ] {
        for path in ["/admin", "/metrics", "/healthz", "/readyz", "/debug/pprof", "/server-status"]
        {
            let outcome = siege.run(&Attack::new(get(path, lines), Must::Rejected)).await;
            outcome.responses[0].assert_error(401, "missing_token", "login");
        }
    }
    for method in ["OPTIONS", "HEAD", "PROPFIND", "PURGE"] {
        let request = get("/admin", "").replace("GET", method);
        let outcome = siege.run(&Attack::new(request, Must::Rejected)).await;
        assert_eq!(outcome.responses[0].status, 401, "{method}");
    }
}

/// The gateway's own endpoints have one spelling each; others are rejected or routed.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_has_one_spelling() {
    let mut siege = Siege::start_with("endpoints.health = \"/lb\"\n", SITE).await;
    for path in [
        "/login/",
        "/login/x",
        "/login;x",
        "/%6cogin",
        "/login%2f",
        "//login",
        "/./login",
        "/x/../login",
        "/public/../login",
        "/Login",
        "/login%20",
        "/login%3f",
        "/lb/",
        "/%6cb",
        "/lb;x",
        "/lb/../admin",
        "/session/..",
        "/logout%00",
        "/public/%2e%2e/login",
    ] {
        for method in ["GET", "POST"] {
            let request = get(path, "").replace("GET", method);
            let outcome = siege.run(&Attack::new(request, Must::Rejected)).await;
            let status = outcome.responses[0].status;
            assert!(matches!(status, 400 | 401), "{method} {path}: {status}");
        }
    }
    for request in
        ["GET /lb HTTP/1.0\r\n\r\n", "GET /lb?x HTTP/1.1\r\n\r\n", "HEAD /lb HTTP/1.1\r\n\r\n"]
    {
        let outcome = siege.run(&Attack::new(request, Must::Harmless)).await;
        assert_eq!(outcome.responses[0].status, 200, "{request}");
        assert!(outcome.received.is_empty());
    }
    // Only the health endpoint works without Host.
    for target in ["/lbx", "/lb/x", "/admin", "/public", "http://h/admin", "/public?/lb"] {
        let request = format!("GET {target} HTTP/1.1\r\n\r\n");
        siege.run(&Attack::new(request, Must::Cut)).await;
    }
}
