//! Forward-auth with nginx, Caddy and HAProxy, each with its file from `deploy/forward-auth`.
//!
//! `deploy/dev test` installs them; if one is missing, these tests fail and name it.

use std::path::{Path, PathBuf};

use wxgate::server::Command;

use super::start;
use crate::harness::client::{Connection, Response};
use crate::harness::program::{self, Program, server};
use crate::harness::upstream::{Received, Reply};
use crate::harness::{APP, PATIENCE, Stack, openid};

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/forward-auth").join(name)
}

/// A shipped file with the addresses of a stack in place of its own.
fn filled_in(name: &str, stack: &Stack, changes: &[(&str, String)]) -> String {
    let mut text = std::fs::read_to_string(shipped(name)).unwrap();
    let addresses = [
        ("127.0.0.1:8080", stack.gateway.to_string()),
        ("127.0.0.1:8081", stack.forward_auth.unwrap().to_string()),
        ("127.0.0.1:3000", stack.upstream.address.to_string()),
    ];
    for (from, to) in addresses.iter().chain(changes) {
        assert!(text.contains(from), "{from} is in {name}");
        text = text.replace(from, to);
    }
    text
}

pub fn nginx(stack: &Stack, http: &str, changes: &[(&str, String)]) -> Program {
    program::nginx(|directory, port| {
        let listen = [("listen 80;", format!("listen 127.0.0.1:{port};"))];
        let file = filled_in("nginx.conf", stack, &[&listen, changes].concat());
        let http = http.replace("{shown}", &directory.display().to_string());
        format!("access_log off; {http} {file}")
    })
}

pub fn caddy(stack: &Stack, changes: &[(&str, String)]) -> Program {
    server(&["caddy", "/usr/bin/caddy"], |directory, port| {
        let site = ("api.example.com {", format!("http://:{port} {{"));
        let file = filled_in("Caddyfile", stack, &[&[site], changes].concat());
        let config = format!("{{\n\tadmin off\n}}\n{file}");
        let path = directory.join("Caddyfile");
        std::fs::write(&path, config).unwrap();
        let path = path.display().to_string();
        ["run", "--adapter", "caddyfile", "--config", &path].map(str::to_owned).to_vec()
    })
}

pub fn haproxy(stack: &Stack, changes: &[(&str, String)]) -> Program {
    server(&["haproxy", "/usr/sbin/haproxy"], |directory, port| {
        let script = shipped("haproxy.lua").display().to_string();
        let own =
            [("bind :80", format!("bind 127.0.0.1:{port}")), ("/etc/haproxy/haproxy.lua", script)];
        let changes = [&own, changes].concat();
        let path = directory.join("haproxy.cfg");
        std::fs::write(&path, filled_in("haproxy.cfg", stack, &changes)).unwrap();
        ["-db", "-f", &path.display().to_string()].map(str::to_owned).to_vec()
    })
}

/// A client of a proxy in front, and the service behind it.
pub struct Front<'a> {
    pub stack: &'a Stack,
    pub port: u16,
}

impl Front<'_> {
    /// The response, and what the service received.
    async fn send(
        &self,
        request: &str,
        lines: &[(&str, &str)],
        body: &str,
    ) -> (Response, Vec<Received>) {
        let before = self.stack.upstream.requests().len();
        let lines: String =
            lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if body.is_empty() {
            String::new()
        } else {
            format!("Content-Length: {}\r\n", body.len())
        };
        let header = format!(
            "{request} HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n{lines}{length}\r\n"
        );
        let mut connection = Connection::open(([127, 0, 0, 1], self.port).into()).await;
        connection.send(format!("{header}{body}").as_bytes()).await;
        let response = connection.response(false).await;
        (response, self.stack.upstream.requests_after(before))
    }

    pub async fn get(&self, target: &str, lines: &[(&str, &str)]) -> (Response, Vec<Received>) {
        self.send(&format!("GET {target}"), lines, "").await
    }

    /// A request that must reach the service, as it received it.
    pub async fn forwarded(&self, target: &str, lines: &[(&str, &str)]) -> Received {
        let (response, mut received) = self.get(target, lines).await;
        assert_eq!(
            (response.status, received.len()),
            (200, 1),
            "{target} {lines:?} {}",
            response.text()
        );
        received.remove(0)
    }

    pub async fn assert_rejected(
        &self,
        target: &str,
        lines: &[(&str, &str)],
        status: u16,
        error: &str,
    ) {
        let (response, received) = self.get(target, lines).await;
        assert_eq!(response.status, status, "{target} {lines:?} {}", response.text());
        assert!(received.is_empty(), "{target} {lines:?} reached the service");
        assert_eq!(response.json()["error"], error);
        assert_eq!(response.header("x-wxgate-error"), Some(error));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        let action = if status == 401 { "login" } else { "none" };
        assert_eq!(response.json()["action"], action);
        if error == "missing_token" {
            assert_eq!(response.header("www-authenticate"), Some("Bearer"));
        }
    }
}

/// Asserts the identity that the service received, and that it received no token.
#[track_caller]
fn assert_identity(received: &Received, expected: Option<&str>, token: &str) {
    let given = |name| {
        let values = received.folded(name);
        values.into_iter().filter(|value| !value.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(given("x-openid"), Vec::from_iter(expected), "{received:?}");
    assert_eq!(given("x-appid"), Vec::from_iter(expected.map(|_| APP)), "{received:?}");
    assert_eq!(given("x-unionid"), [""; 0], "{received:?}");
    for name in ["x-wx-openid", "x-3rd-session", "forwarded", "x-forwarded-prefix"] {
        assert_eq!(given(name), [""; 0], "{received:?}");
    }
    assert!(received.lines.iter().all(|(_, value)| !value.contains(token)), "{received:?}");
    assert_eq!(given("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(given("x-forwarded-proto"), ["http"]);
}

const FORGED: [(&str, &str); 9] = [
    ("X-OpenId", "evil"),
    ("x-openid", "evil"),
    ("X-AppId", "evil"),
    ("X-UnionId", "evil"),
    ("X-WX-OPENID", "evil"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Proto", "https"),
    ("Forwarded", "for=6.6.6.6"),
    ("X-Forwarded-Prefix", "/evil"),
];

/// All promises of forward-auth, for a proxy with its shipped file.
async fn holds_its_promises(mut stack: Stack, proxy: Program) {
    let front = Front { stack: &stack, port: proxy.port };
    let login = [("Content-Type", "application/json")];
    let (response, received) =
        front.send("POST /login", &login, r#"{"code":"user-alice-1"}"#).await;
    assert_eq!((response.status, received.len()), (200, 0), "{}", response.text());
    let token = response.json()["token"].as_str().unwrap().to_owned();
    let alice = openid("alice");
    let with_token = [("X-3rd-Session", &*token)];

    // The client's identity arrives, and no other.
    let more = [("Authorization", "Basic c2hvcA=="), with_token[0]];
    let lines: Vec<(&str, &str)> = FORGED.into_iter().chain(more).collect();
    let received = front.forwarded("/orders/7?page=2", &lines).await;
    assert_identity(&received, Some(&alice), &token);
    assert_eq!(received.target(), "/orders/7?page=2");
    assert_eq!(received.all("authorization"), ["Basic c2hvcA=="]);
    let bearer = format!("Bearer {token}");
    let received = front.forwarded("/", &[("Authorization", &*bearer)]).await;
    assert_identity(&received, Some(&alice), &token);
    assert_eq!(received.all("authorization"), [""; 0]);
    let body = "x".repeat(100_000);
    let (response, received) = front.send("POST /orders", &with_token, &body).await;
    assert_eq!((response.status, received.len()), (200, 1));
    assert_eq!(received[0].body.len(), body.len());
    assert_identity(&received[0], Some(&alice), &token);
    let received = front.forwarded("/optional", &lines).await;
    assert_identity(&received, Some(&alice), &token);

    // Caches in front of the proxy get the headers that keep users apart.
    stack.upstream.reply(|received| match received.target() {
        "/public" => Reply::ok("Cache-Control: max-age=60, public\r\n", ""),
        _ => Reply::ok("", ""),
    });
    for (path, lines, cache_control) in [
        ("/orders", &with_token[..], Some("private")),
        ("/optional", &with_token, Some("private")),
        ("/optional", &[], None),
        ("/public", &with_token, Some("max-age=60, public")),
    ] {
        let (response, _) = front.get(path, lines).await;
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(response.header("vary"), Some("X-3rd-Session, Authorization"), "{path}");
        assert_eq!(response.header("cache-control"), cache_control, "{path}");
    }

    // Anonymous has no identity.
    assert_identity(&front.forwarded("/optional", &FORGED).await, None, &token);
    assert_identity(&front.forwarded("/none", &lines).await, None, &token);
    // Other spellings that a service would read as the same header.
    for alias in ["X_OpenId", "X.OpenId", "x_openid", "X!OpenId", "X-Open_Id"] {
        let (response, received) = front.get("/none", &[(alias, "evil")]).await;
        assert!(response.status == 403 || response.status == 200, "{}", response.text());
        for received in received {
            let is_evil = |value: &&str| value.contains("evil");
            assert!(!received.folded("x-openid").iter().any(is_evil), "{received:?}");
        }
    }

    // A rejection reaches the client, and the request does not reach the service.
    front.assert_rejected("/", &[], 401, "missing_token").await;
    front.assert_rejected("/", &FORGED, 401, "missing_token").await;
    let unknown = "A".repeat(43);
    front.assert_rejected("/", &[("X-3rd-Session", &unknown)], 401, "session_expired").await;
    front.assert_rejected("/optional", &[("X-3rd-Session", "x")], 401, "session_expired").await;
    let twice = [with_token[0], with_token[0]];
    front.assert_rejected("/", &twice, 403, "bad_request").await;
    // The client cannot choose which request is checked.
    for lines in [
        [("X-Forwarded-Uri", "/none"), ("X-Forwarded-Method", "GET")],
        [("X_Forwarded_Uri", "/none"), ("X-Forwarded-Uri", "/none")],
        [("X-Original-URL", "/none"), ("X-Rewrite-URL", "/none")],
        [("X-Forwarded-Host", "other.example"), ("X.Forwarded.Uri", "/none")],
    ] {
        let (response, received) = front.get("/", &lines).await;
        assert!(matches!(response.status, 401 | 403), "{}", response.text());
        assert!(received.is_empty());
    }
    for path in [
        "/none/../orders",
        "/none/%2e%2e/orders",
        "/none/..;/orders",
        "/none%2f..%2forders",
        "//none",
    ] {
        let (response, received) = front.get(path, &[]).await;
        assert!(
            matches!(response.status, 400..=403),
            "{path} {} {}",
            response.status,
            response.text()
        );
        assert!(received.is_empty(), "{path}");
    }
    for path in ["/auth", "/_wxgate", "/auth/none"] {
        let (_, received) = front.get(path, &[]).await;
        assert!(received.is_empty(), "{path}");
    }
    let (response, _) = front.get("/session", &with_token).await;
    assert_eq!(response.json()["app_id"], APP);
    let (response, _) = front.send("POST /logout", &with_token, "").await;
    assert_eq!(response.status, 204);
    front.assert_rejected("/", &with_token, 401, "session_expired").await;

    // Without the gateway nothing is forwarded.
    let before = stack.upstream.requests().len();
    stack.commands.send(Command::Stop).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, &mut stack.ended).await;
    ended.expect("an end in time").unwrap().unwrap();
    let front = Front { stack: &stack, port: proxy.port };
    for path in ["/none", "/optional", "/"] {
        let (response, _) = front.get(path, &FORGED).await;
        assert!(response.status >= 500, "{} {}", response.status, response.text());
    }
    assert_eq!(stack.upstream.requests().len(), before);
    assert_eq!(stack.upstream.faults(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_works_with_auth_request() {
    let stack = start().await;
    let proxy = nginx(&stack, "", &[]);
    holds_its_promises(stack, proxy).await;
}

/// As the file describes.
#[tokio::test(flavor = "multi_thread")]
async fn nginx_keeps_decisions_and_gives_each_to_those_that_it_is_about() {
    let stack = super::start_with("forward_auth.cache = \"10s\"").await;
    let zone = "proxy_cache_path {shown}/cache keys_zone=wxgate:1m;";
    let uncommented = ["", "_key", "_valid"].map(|key| {
        let from = match key {
            "" => "# proxy_cache wxgate",
            "_key" => "# proxy_cache_key",
            _ => "# proxy_cache_valid",
        };
        (from, from.trim_start_matches("# ").to_owned())
    });
    let ignore = ("# proxy_ignore_headers", "proxy_ignore_headers".to_owned());
    let proxy = nginx(&stack, zone, &[&uncommented[..], &[ignore]].concat());
    let front = Front { stack: &stack, port: proxy.port };
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let (alice_s, bob_s) = ([("X-3rd-Session", &*alice)], [("X-3rd-Session", &*bob)]);
    let bearer = format!("Bearer {bob}");
    let decided = "wxgate_http_requests_total{code=\"200\",route=\"@forward_auth\"}";
    for _ in 0..3 {
        assert_identity(
            &front.forwarded("/orders", &alice_s).await,
            Some(&openid("alice")),
            &alice,
        );
    }
    stack.until_metric(decided, 1.0).await;
    for _ in 0..2 {
        assert_identity(&front.forwarded("/orders", &bob_s).await, Some(&openid("bob")), &bob);
        let by_bearer = [("Authorization", &*bearer)];
        assert_identity(&front.forwarded("/orders", &by_bearer).await, Some(&openid("bob")), &bob);
        front.assert_rejected("/orders", &[], 401, "missing_token").await;
        let wrong = "A".repeat(43);
        front
            .assert_rejected("/orders", &[("X-3rd-Session", &wrong)], 401, "session_expired")
            .await;
        // A path that another route allows is not allowed here.
        assert_identity(&front.forwarded("/none", &[]).await, None, &bob);
        assert_identity(&front.forwarded("/optional", &[]).await, None, &bob);
        front.assert_rejected("/orders", &[], 401, "missing_token").await;
        front.assert_rejected("/orders?x", &[], 401, "missing_token").await;
    }
    stack.until_metric(decided, 5.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_works_with_forward_auth() {
    let stack = start().await;
    let proxy = caddy(&stack, &[]);
    holds_its_promises(stack, proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_works_with_its_script() {
    let stack = start().await;
    let proxy = haproxy(&stack, &[]);
    holds_its_promises(stack, proxy).await;
}
