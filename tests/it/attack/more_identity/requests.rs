//! Which requests have which of the headers: by user, by upstream, by the way they take.

use wxgate::config::{Config, Secrets};

use super::{FORGED, HEADERS};
use crate::harness::client::{self, Connection, Request};
use crate::harness::more_identity::{MoreIdentity, NAMES, claims};
use crate::harness::process_log;
use crate::harness::upstream::{Received, Reply, Step, Upstream};
use crate::harness::{OPERATOR, Stack, THREE_ROUTES};
use crate::tickets::{ticket, with};
use crate::upstreams::nobody;

async fn start(header: &'static str, tables: &str) -> (Stack, MoreIdentity) {
    let more = MoreIdentity::start(header).await;
    let stack = Stack::start_with(&format!("{}\n{tables}", more.keys())).await;
    (stack, more)
}

/// With every header of the gateway, in two spellings.
fn forged<'a>(mut request: Request<'a>, more: &MoreIdentity) -> Request<'a> {
    for name in NAMES.into_iter().chain([more.header, "X-UnionId", "X-OpenId"]) {
        request = request.header(name, FORGED[0]).header(&name.replace('-', "_"), "evil");
    }
    request
}

/// What the gateway has no value for is absent, and not the client's.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_unionid_and_user_id_has_none_of_the_clients() {
    for header in HEADERS {
        let (stack, more) = start(header, THREE_ROUTES).await;
        for user in ["nameless", "unionbob", "alice"] {
            let token = stack.login(user).await;
            for path in ["/required", "/optional"] {
                let request = forged(stack.get(path).token(&token), &more);
                more.assert_received(&request.forwarded().await, Some(user), "recorder");
                let request = stack.get(path).token(&token);
                more.assert_received(&request.forwarded().await, Some(user), "recorder");
            }
            let request = forged(stack.get("/none").token(&token), &more);
            more.assert_received(&request.forwarded().await, None, "recorder");
        }
        for path in ["/optional", "/none"] {
            let received = forged(stack.get(path), &more).forwarded().await;
            more.assert_received(&received, None, "recorder");
        }
    }
}

/// Without a hook the name may be the service's own.
#[tokio::test(flavor = "multi_thread")]
async fn the_header_of_the_user_id_is_reserved_only_with_a_hook() {
    let stack = Stack::start().await;
    let token = stack.login("alice").await;
    let request = stack.get("/").token(&token).header("X-User-Id", "7").header("X_User_Id", "8");
    let received = request.header("X_Wxgate.Jwt", "evil").forwarded().await;
    assert_eq!(received.folded("x-user-id"), ["7", "8"]);
    assert_eq!(received.folded("x-wxgate-jwt"), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_and_a_websocket_have_the_identity_headers_of_their_session() {
    const ACCEPTED: &[u8] =
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    let socket = THREE_ROUTES.replace("auth =", "websocket = true\nauth =");
    for header in HEADERS {
        let (stack, more) = start(header, &format!("ticket.enabled = true\n{socket}")).await;
        let token = stack.login("unionbob").await;
        let used = with("/required/a", &ticket(&stack, &token, "/required/a").await);
        let received = forged(stack.get(&used), &more).forwarded().await;
        more.assert_received(&received, Some("unionbob"), "recorder");

        stack.upstream.reply(|_| Reply::Echo(ACCEPTED.to_vec()));
        let used = with("/required/b", &ticket(&stack, &token, "/required/b").await);
        for (request, user) in [
            (stack.get("/required").token(&token), Some("unionbob")),
            (stack.get(&used), Some("unionbob")),
            (stack.get("/optional"), None),
            (stack.get("/none").token(&token), None),
        ] {
            let before = stack.upstream.requests().len();
            let request = forged(request, &more)
                .header("Connection", &format!("Upgrade, {header}, X-User-Id"))
                .header("Upgrade", "websocket")
                .header("Sec-WebSocket-Version", "13")
                .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
            let mut connection = Connection::open(stack.gateway).await;
            connection.send(&request.bytes()).await;
            assert_eq!(connection.response(false).await.status, 101);
            let received = stack.upstream.requests_after(before);
            assert_eq!(received.len(), 1);
            more.assert_received(&received[0], user, "recorder");
        }
    }
}

/// The header is composed once more for each server.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_and_a_host_of_its_own_write_each_header_once() {
    let (refusing, _socket) = nobody();
    for header in HEADERS {
        let well = Upstream::start().await;
        let upstream = format!(
            "{THREE_ROUTES}\n[[upstream]]\nname = \"recorder\"\nhost = \"server\"\n\
             servers = [\"{refusing}\", \"{{upstream}}\", \"{}\"]\n\
             ejection = {{ failures = 0 }}\nretry = {{ attempts = 2, budget = \"100%\" }}",
            well.address
        );
        let (stack, more) = start(header, &upstream).await;
        // It resets the connection after the whole request.
        stack.upstream.reply(|_| Reply::Steps(vec![Step::Reset]));
        let token = stack.login("unionbob").await;
        for _ in 0..6 {
            let response = forged(stack.get("/required").token(&token), &more).send().await;
            assert_eq!(response.status, 200, "{}", response.text());
        }
        assert!(!stack.upstream.requests().is_empty(), "some were sent once more");
        for service in [&stack.upstream, &well] {
            for received in service.requests() {
                more.assert_received(&received, Some("unionbob"), "recorder");
                assert_eq!(received.all("host"), [service.address.to_string()]);
            }
        }
        assert_eq!(well.requests().len(), 6);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_upstream_gets_a_token_for_its_own_audience() {
    for header in HEADERS {
        let (canary, other) = (Upstream::start().await, Upstream::start().await);
        let tables = format!(
            r#"
            [[upstream]]
            name = "recorder"
            servers = ["{{upstream}}"]
            [[upstream]]
            name = "canary"
            servers = ["{}"]
            [[upstream]]
            name = "other"
            servers = ["{}"]
            [[route]]
            path = "/"
            upstream = "recorder"
            split = [{{ upstream = "canary", percent = 50 }}]
            [[route]]
            path = "/other"
            upstream = "other"
            "#,
            canary.address, other.address
        );
        let more = MoreIdentity::start(header).await;
        let keys = more.keys().replace(
            "identity.jwt = {",
            "identity.jwt = { audience = { other = \"https://other.test/api\" },",
        );
        let stack = Stack::start_with(&format!("{keys}\n{tables}")).await;
        let at = |service: &Upstream| service.requests().len();
        let mut users = 0;
        while at(&canary) == 0 || at(&stack.upstream) == 0 {
            let user = format!("user{users}");
            let token = stack.login(&user).await;
            let before = (at(&stack.upstream), at(&canary), at(&other));
            for path in ["/", "/other", "/", "/other"] {
                let response = forged(stack.get(path).token(&token), &more).send().await;
                assert_eq!(response.status, 200);
            }
            for (service, before, audience) in [
                (&stack.upstream, before.0, "recorder"),
                (&canary, before.1, "canary"),
                (&other, before.2, "https://other.test/api"),
            ] {
                for received in service.requests_after(before) {
                    more.assert_received(&received, Some(&user), audience);
                }
            }
            users += 1;
            assert!(users < 100, "both upstreams have users");
        }
    }
}

/// The secret that services take for the user, for as long as it is valid.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_identity_is_in_no_log_metric_error_or_page() {
    for header in HEADERS {
        let before = process_log::position();
        let tables = "admin.token = { file = \"{dir}/operator\" }\nlog.level = \"debug\"\n";
        let tables = format!("{tables}{THREE_ROUTES}read_timeout = \"200ms\"");
        let (stack, more) = start(header, &tables).await;
        let token = stack.login("unionbob").await;
        let echo = |received: &Received| format!("{received:?}");
        let mut shown = Vec::new();
        for reply in [
            Reply::ok("", ""),
            Reply::Steps(vec![Step::Reset]),
            Reply::Last(b"HTTP/1.1 200 O\r\nX: \x01\r\n\r\n".to_vec()),
            Reply::Last(b"garbage\r\n\r\n".to_vec()),
        ] {
            stack.upstream.reply(move |_| reply.clone());
            for request in [stack.get("/required"), stack.post("/required").body("x")] {
                let response = request.token(&token).send().await;
                shown.push(format!("{response:?} {}", response.text()));
            }
        }
        let requests = stack.upstream.requests();
        let tokens: Vec<String> =
            requests.iter().filter_map(|received| more.token(received)).collect();
        assert_eq!(tokens.len(), requests.len());
        assert!(tokens.iter().all(|token| echo(&requests[0]).contains(token)), "it is reused");
        // The login and eight requests, some of them sent more than once.
        shown.push(stack.access_log(9).await);
        for path in ["/metrics", "/", "/status.json", "/config", "/healthz", "/readyz"] {
            let page = client::get(stack.admin, path).await;
            shown.push(format!("{page:?} {}", page.text()));
            let page = stack.get(path).bearer(OPERATOR).send_to_admin().await;
            shown.push(format!("{page:?} {}", page.text()));
        }
        shown.push(process_log::text_after(before));
        let signature = tokens[0].rsplit('.').next().unwrap();
        let found = shown.iter().find(|text| text.contains(signature));
        assert_eq!(found, None);
        assert_eq!(claims(&tokens[0])["app_id"], crate::harness::APP);
    }
}

/// Else a route could replace what its service trusts.
#[tokio::test(flavor = "multi_thread")]
async fn a_route_cannot_set_or_remove_the_other_identity_headers() {
    for header in HEADERS {
        let (stack, more) = start(header, "").await;
        let is_legal = |edit: &str| {
            let route = format!("[[route]]\npath = \"/\"\nupstream = \"recorder\"\n{edit}");
            stack.write_config(&format!("{}\n{route}", more.keys()));
            Config::read(&stack.config_file(), Secrets::Load, None).config.is_ok()
        };
        for name in NAMES.into_iter().chain([header]) {
            for spelled in [name.to_owned(), name.to_lowercase(), name.replace('-', "_")] {
                for edit in [
                    format!("set_request_headers = {{ \"{spelled}\" = \"evil\" }}"),
                    format!("remove_request_headers = [\"{spelled}\"]"),
                ] {
                    assert!(!is_legal(&edit), "{header}: {edit}");
                }
            }
        }
        assert!(is_legal("set_request_headers = { \"X-User\" = \"any\" }"));
    }
}

/// A client cannot use this header. See `MoreIdentity::keys` for the carriers.
#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_read_from_the_header_of_the_signed_identity() {
    let (stack, more) = start("Authorization", THREE_ROUTES).await;
    let token = stack.login("alice").await;
    let response = stack.get("/required").bearer(&token).send().await;
    response.assert_error(401, "missing_token", "login");
    let received = stack.get("/optional").bearer(&token).forwarded().await;
    more.assert_received(&received, None, "recorder");
    for basic in ["Basic c2hvcA==", "Bearer of-the-service", "Token x"] {
        for path in ["/optional", "/none"] {
            let received = stack.get(path).header("Authorization", basic).forwarded().await;
            more.assert_received(&received, None, "recorder");
        }
    }
    assert_eq!(stack.get("/session").bearer(&token).send().await.status, 401);
    // The session still exists.
    stack.post("/logout").bearer(&token).send().await;
    let received = stack.get("/required").token(&token).bearer(&token).forwarded().await;
    more.assert_received(&received, Some("alice"), "recorder");
}
