//! Varnish and nginx as shared caches in front of the gateway, with their packages' configuration.
//!
//! `deploy/dev test` installs them; if one is missing, these tests fail and name it.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::harness::client::{Connection, Response};
use crate::harness::program::{self, Program, server};
use crate::harness::upstream::{Received, Reply};
use crate::harness::{PATIENCE, Stack, THREE_ROUTES, openid};

/// What services say about their responses: the end of the path, status and headers.
const CASES: [(&str, u16, &str); 24] = [
    ("nothing", 200, ""),
    ("max-age", 200, "Cache-Control: max-age=60\r\n"),
    ("public", 200, "Cache-Control: public, max-age=60\r\n"),
    ("s-maxage", 200, "Cache-Control: s-maxage=60\r\n"),
    ("must-revalidate", 200, "Cache-Control: max-age=60, must-revalidate\r\n"),
    ("no-cache", 200, "Cache-Control: no-cache\r\n"),
    ("no-store", 200, "Cache-Control: no-store\r\n"),
    ("private", 200, "Cache-Control: private, max-age=60\r\n"),
    ("private-field", 200, "Cache-Control: max-age=60, private=\"set-cookie\"\r\n"),
    ("quoted", 200, "Cache-Control: max-age=60, x=\"public, no-store\"\r\n"),
    ("unclosed", 200, "Cache-Control: x=\"y, max-age=60\r\nCache-Control: max-age=60\r\n"),
    ("expires", 200, "Expires: Thu, 31 Dec 2099 23:59:59 GMT\r\n"),
    ("vary-star", 200, "Cache-Control: max-age=60\r\nVary: *\r\n"),
    ("vary-star-too", 200, "Cache-Control: public, max-age=60\r\nVary: Accept, *\r\n"),
    ("vary-other", 200, "Cache-Control: public, max-age=60\r\nVary: Accept-Language\r\n"),
    ("vary-lines", 200, "Cache-Control: public, max-age=60\r\nVary: Accept\r\nVary: Cookie\r\n"),
    ("vary-ours", 200, "Cache-Control: public, max-age=60\r\nVary: x-3rd-session\r\n"),
    ("surrogate", 200, "Surrogate-Control: max-age=60\r\n"),
    ("accel", 200, "X-Accel-Expires: 60\r\n"),
    ("cdn", 200, "CDN-Cache-Control: max-age=60\r\n"),
    ("part", 206, "Cache-Control: public, max-age=60\r\n"),
    ("moved", 301, "Cache-Control: max-age=60\r\nLocation: /elsewhere\r\n"),
    ("not-found", 404, "Cache-Control: public, max-age=60\r\n"),
    ("known", 200, "Cache-Control: public, max-age=60\r\nETag: \"v1\"\r\n"),
];

const ROUTES: [&str; 3] = ["/required", "/optional", "/none"];

/// The text of a response, by whom the service takes the client for.
fn text_for(openid: &str) -> String {
    format!("for {openid}.")
}

fn reply(received: &Received) -> Reply {
    let path = received.target().split('?').next().unwrap();
    let name = path.rsplit('/').next().unwrap();
    let case = CASES.iter().find(|(known, ..)| *known == name);
    let (_, status, headers) = case.unwrap_or(&CASES[0]);
    let status = match *status {
        200 if !received.all("if-none-match").is_empty() => 304,
        // A 206 only for a request with `Range`.
        206 if received.all("range").is_empty() => 200,
        status => status,
    };
    let whose = received.all("x-openid").first().map_or("nobody".to_owned(), |id| (*id).to_owned());
    let body = if status == 304 { String::new() } else { text_for(&whose) };
    let length = body.len();
    let length = match status {
        304 => String::new(),
        206 => format!(
            "Content-Length: {length}\r\nContent-Range: bytes 0-{}/{length}\r\n",
            length - 1
        ),
        _ => format!("Content-Length: {length}\r\n"),
    };
    Reply::Bytes(format!("HTTP/1.1 {status} Status\r\n{length}{headers}\r\n{body}").into())
}

async fn start(changes: &str) -> Stack {
    let stack = Stack::start_with(&format!(
        r#"
        login.accept = ["json", "query"]
        endpoints.health = "/healthy"
        {changes}
        {THREE_ROUTES}
        [[browser]]
        base_url = "https://shop.test"
        [[route]]
        path = "/static"
        respond = {{ body = "for users" }}
        set_response_headers = {{ Cache-Control = "max-age=60" }}
        "#
    ))
    .await;
    stack.upstream.reply(reply);
    stack
}

/// Without a file of its own: the built-in rules alone.
fn varnish(stack: &Stack) -> Program {
    server(&["varnishd", "/usr/sbin/varnishd"], |_, port| {
        let (listen, backend) = (format!("127.0.0.1:{port}"), stack.gateway.to_string());
        let state = varnish_state(stack);
        let arguments =
            ["-F", "-j", "none", "-n", &state, "-a", &listen, "-b", &backend, "-s", "malloc,32m"];
        arguments.map(str::to_owned).to_vec()
    })
}

fn varnish_state(stack: &Stack) -> String {
    stack.directory.path().join("varnish").display().to_string()
}

fn nginx(stack: &Stack, cache: &str) -> Program {
    program::nginx(|directory, port| {
        let (shown, gateway) = (directory.display(), stack.gateway);
        format!(
            "access_log off;
            proxy_cache_path {shown}/cache keys_zone=cache:1m;
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://{gateway};
                    proxy_set_header Host $http_host;
                    proxy_cache cache;
                    proxy_cache_valid any 1m;
                    {cache}
                }}
            }}"
        )
    })
}

/// Where a client puts its token.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    Header,
    Bearer,
    Cookie,
}

impl Carrier {
    fn line(self, token: Option<&str>) -> String {
        match (self, token) {
            (_, None) => String::new(),
            (Self::Header, Some(token)) => format!("X-3rd-Session: {token}\r\n"),
            (Self::Bearer, Some(token)) => format!("Authorization: Bearer {token}\r\n"),
            (Self::Cookie, Some(token)) => format!("Cookie: a=1; __Host-wxgate={token}\r\n"),
        }
    }
}

async fn send(cache: &Program, request: &str, lines: &str) -> Response {
    let header =
        format!("{request} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n{lines}\r\n");
    let mut connection = Connection::open(([127, 0, 0, 1], cache.port).into()).await;
    connection.send(header.as_bytes()).await;
    connection.response(request.starts_with("HEAD")).await
}

/// Whose response to a client it must be, at each of its requests; `None`: it is rejected.
struct Client<'a> {
    token: Option<&'a str>,
    required: Option<String>,
    optional: Option<String>,
}

/// Asserts that no client gets another's response, whatever the service's headers say.
async fn keeps_users_apart(stack: &Stack, cache: &Program, carrier: Carrier) {
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let user = |name: &str| Some(text_for(&openid(name)));
    let nobody = || Some(text_for("nobody"));
    let wrong = "A".repeat(43);
    let client = |token| Client { token, required: None, optional: None };
    let alice_s =
        || Client { required: user("alice"), optional: user("alice"), ..client(Some(&alice)) };
    let clients = [
        alice_s(),
        Client { required: user("bob"), optional: user("bob"), ..client(Some(&bob)) },
        Client { optional: nobody(), ..client(None) },
        match carrier {
            Carrier::Cookie => Client { optional: nobody(), ..client(Some(&wrong)) },
            Carrier::Header | Carrier::Bearer => client(Some(&wrong)),
        },
        alice_s(),
    ];
    for (at, route) in ROUTES.into_iter().enumerate() {
        for (name, status, _) in CASES {
            for request in ["GET", "HEAD", "GET if-none-match", "GET range"] {
                let (method, condition) = request.split_once(' ').unwrap_or((request, ""));
                let extra = match condition {
                    "if-none-match" => "If-None-Match: \"v1\"\r\n",
                    "range" => "Range: bytes=0-\r\n",
                    _ => "",
                };
                for client in &clients {
                    let expected = match at {
                        0 => client.required.clone(),
                        1 => client.optional.clone(),
                        _ => nobody(),
                    };
                    let path = format!("{route}/{carrier:?}/{}/{name}", request.replace(' ', "-"));
                    let lines = format!("{}{extra}", carrier.line(client.token));
                    let response = send(cache, &format!("{method} {path}"), &lines).await;
                    let shown = format!("{request} {path} {lines:?}: {response:?}");
                    let Some(expected) = expected else {
                        assert_eq!(response.status, 401, "{shown}");
                        continue;
                    };
                    let known = condition == "if-none-match" && response.status == 304;
                    let may_be_part = condition == "range" || status == 206;
                    let part = may_be_part && matches!(response.status, 206 | 200);
                    assert!(response.status == status || known || part, "{shown}");
                    if !known && method == "GET" {
                        assert_eq!(response.text(), expected, "{shown}");
                    }
                }
            }
        }
    }
}

/// Asserts that responses of the gateway itself reach only their own client.
async fn keeps_the_gateways_own_apart(stack: &Stack, cache: &Program, carrier: Carrier) {
    let alice = stack.login("alice").await;
    let (token, nobody) = (carrier.line(Some(&alice)), String::new());
    let wrong = carrier.line(Some(&"A".repeat(43)));
    for path in ["/session", "/static"] {
        for (lines, status) in
            [(&nobody, 401), (&token, 200), (&nobody, 401), (&wrong, 401), (&token, 200)]
        {
            let response = send(cache, &format!("GET {path}"), lines).await;
            assert_eq!(response.status, status, "{path} {lines} {response:?}");
        }
    }
    let reached = "wxgate_http_requests_total{code=\"200\",route=\"@login\"}";
    let before = stack.metric(reached).await;
    let login = format!("GET /login?code=user-carol-{carrier:?}");
    for _ in 0..2 {
        let response = send(cache, &login, "").await;
        assert_eq!(response.status, 200, "{}", response.text());
    }
    stack.until_metric(reached, before + 2.0).await;
    stack.clock.advance(std::time::Duration::from_secs(60));
    let response = send(cache, &login, "").await;
    assert_eq!(response.status, 401, "a code is good once: {}", response.text());
    // Nor is the response of a session that was ended.
    let lines = format!("{token}Sec-Fetch-Site: same-origin\r\nContent-Length: 0\r\n");
    let response = send(cache, "POST /logout", &lines).await;
    assert_eq!(response.status, 204);
    for path in ["/session", "/static", "/required/nothing"] {
        assert_eq!(send(cache, &format!("GET {path}"), &token).await.status, 401, "{path}");
    }
    let optional = send(cache, "GET /optional/max-age", &token).await;
    match carrier {
        Carrier::Cookie => assert_eq!(optional.text(), text_for("nobody")),
        Carrier::Header | Carrier::Bearer => assert_eq!(optional.status, 401),
    }
}

/// How many of these equal requests reach the service.
async fn reached(stack: &Stack, cache: &Program, path: &str, lines: &str) -> usize {
    let before = stack.upstream.requests().len();
    for _ in 0..3 {
        assert_eq!(send(cache, &format!("GET {path}"), lines).await.status, 200);
    }
    stack.upstream.requests_after(before).len()
}

#[tokio::test(flavor = "multi_thread")]
async fn varnish_gives_no_user_the_response_to_another() {
    let stack = start("").await;
    let cache = varnish(&stack);
    for carrier in [Carrier::Header, Carrier::Bearer, Carrier::Cookie] {
        keeps_users_apart(&stack, &cache, carrier).await;
        keeps_the_gateways_own_apart(&stack, &cache, carrier).await;
    }
    // It does cache, and keeps responses to users apart.
    let alice = Carrier::Header.line(Some(&stack.login("alice").await));
    let bob = Carrier::Header.line(Some(&stack.login("bob").await));
    for (path, lines, times) in [
        ("/none/kept/nothing", &alice, 1),
        ("/optional/kept/nothing", &String::new(), 1),
        ("/required/kept/public", &alice, 1),
        ("/required/kept/public", &bob, 1),
        ("/required/kept/max-age", &alice, 3),
    ] {
        assert_eq!(reached(&stack, &cache, path, lines).await, times, "{path} {lines}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_gives_no_user_the_response_to_another() {
    let stack = start("").await;
    let cache = nginx(&stack, "");
    for carrier in [Carrier::Header, Carrier::Bearer, Carrier::Cookie] {
        keeps_users_apart(&stack, &cache, carrier).await;
        keeps_the_gateways_own_apart(&stack, &cache, carrier).await;
        let alice = carrier.line(Some(&stack.login("alice").await));
        let bob = carrier.line(Some(&stack.login("bob").await));
        for (path, lines, times) in [
            ("/none/kept/nothing", &alice, 1),
            ("/optional/kept/nothing", &String::new(), 1),
            ("/required/kept/public", &alice, 1),
            ("/required/kept/public", &bob, 1),
            ("/required/kept/vary-lines", &bob, 1),
            ("/required/kept/max-age", &alice, 3),
        ] {
            let path = format!("{path}?{carrier:?}");
            assert_eq!(reached(&stack, &cache, &path, lines).await, times, "{path} {lines}");
        }
    }
}

/// As some CDNs do. Responses that the service marks public are not covered.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_ignores_vary_keeps_nothing_of_a_user_unless_the_service_allows_it() {
    let stack = start("").await;
    let cache =
        nginx(&stack, "proxy_cache_key $uri; proxy_ignore_headers Vary; proxy_cache_valid any 1m;");
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let alice_s = text_for(&openid("alice"));
    for route in ["/required", "/optional"] {
        for name in ["nothing", "max-age", "private-field", "quoted", "unclosed", "expires"] {
            for carrier in [Carrier::Header, Carrier::Bearer, Carrier::Cookie] {
                let line = carrier.line(Some(&alice));
                let target = format!("GET {route}/{name}");
                assert_eq!(send(&cache, &target, &line).await.text(), alice_s, "{target}");
                let bob = Carrier::Header.line(Some(&bob));
                let response = send(&cache, &target, &bob).await;
                assert_eq!(response.text(), text_for(&openid("bob")), "{target}");
            }
        }
    }
    assert_eq!(reached(&stack, &cache, "/none/nothing", "").await, 1, "it does cache");
}

/// A cache that gets two equal requests forwards one and lets the other wait.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_cache_lets_wait_for_anothers_get_responses_of_their_own() {
    let stack = start("").await;
    let (alice, bob) = (stack.login("alice").await, stack.login("bob").await);
    let varnish = varnish(&stack);
    let nginx = nginx(&stack, "proxy_cache_lock on;");
    for (cache, is_varnish) in [(&varnish, true), (&nginx, false)] {
        for name in ["nothing", "max-age", "public"] {
            let (released, is_first) = (Arc::new(Notify::new()), AtomicBool::new(true));
            let waits = released.clone();
            stack.upstream.reply(move |received| {
                match (reply(received), is_first.swap(false, Ordering::Relaxed)) {
                    (Reply::Bytes(bytes), true) => Reply::When(waits.clone(), bytes),
                    (reply, _) => reply,
                }
            });
            let target = format!("GET /optional/waits/{is_varnish}/{name}");
            let before = stack.upstream.begun_after(0).len();
            let slept = if is_varnish { asleep(&stack) } else { 0 };
            let first = Carrier::Header.line(Some(&alice));
            let second = Carrier::Header.line(Some(&bob));
            let others = async {
                while stack.upstream.begun_after(before).is_empty() {
                    tokio::task::yield_now().await;
                }
                let release = async {
                    while is_varnish && asleep(&stack) < slept + 2 {
                        tokio::task::yield_now().await;
                    }
                    released.notify_one();
                };
                let (bob, nobody, ()) =
                    tokio::join!(send(cache, &target, &second), send(cache, &target, ""), release);
                (bob, nobody)
            };
            let all = async { tokio::join!(send(cache, &target, &first), others) };
            let (alice, (bob, nobody)) = tokio::time::timeout(PATIENCE, all).await.unwrap();
            for (response, whose) in
                [(alice, openid("alice")), (bob, openid("bob")), (nobody, "nobody".to_owned())]
            {
                assert_eq!(response.text(), text_for(&whose), "{target}");
            }
        }
    }
}

/// Requests that Varnish has let wait for another.
fn asleep(stack: &Stack) -> u64 {
    let arguments = ["-n", &varnish_state(stack), "-1", "-f", "MAIN.busy_sleep"];
    let output = Command::new("varnishstat").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().nth(1).map_or(0, |count| count.parse().unwrap())
}
