//! The identity headers that are off by default: in decisions, and behind nginx, Caddy and HAProxy
//! with their files from `deploy/forward-auth`.

use super::peers::{Front, caddy, haproxy, nginx};
use super::{DecisionRequest, ON, about};
use crate::harness::client::Response;
use crate::harness::more_identity::{MoreIdentity, NAMES};
use crate::harness::program::Program;
use crate::harness::upstream::Received;
use crate::harness::{APP, Stack, openid};

const HEADERS: [&str; 2] = ["X-Wxgate-Jwt", "Authorization"];

async fn start(header: &'static str, tables: &str) -> (Stack, MoreIdentity) {
    let more = MoreIdentity::start(header).await;
    let stack = Stack::start_with(&format!("{}\n{ON}\n{tables}", more.keys())).await;
    (stack, more)
}

/// Asserts that a decision has each header exactly once, empty if it has no value.
#[track_caller]
fn assert_decision(response: &Response, more: &MoreIdentity, user: Option<&str>, audience: &str) {
    let lines = response.headers.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut received = Received { lines: lines.collect(), ..Received::default() };
    for name in ["X-User-Id", "X-WX-OPENID", "X-WX-APPID", "X-WX-UNIONID", "X-WX-SOURCE"] {
        assert_eq!(received.all(name).len(), 1, "{name}: {received:?}");
    }
    assert_eq!(received.all(more.header).len(), 1, "{received:?}");
    received.lines.retain(|(_, value)| !value.is_empty());
    more.assert_received(&received, user, audience);
}

fn forged(mut asked: DecisionRequest, more: &MoreIdentity) -> DecisionRequest {
    for name in NAMES.into_iter().chain([more.header]) {
        asked = asked.line(name, "evil");
    }
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_has_each_of_the_other_identity_headers_once() {
    for header in HEADERS {
        let tables = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\n[[route]]\n\
            path = \"/optional\"\nupstream = \"recorder\"\nauth = \"optional\"\n[[route]]\n\
            path = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n[[route]]\n\
            name = \"elsewhere\"\npath = \"/elsewhere\"";
        let (stack, more) = start(header, tables).await;
        for user in ["alice", "unionbob", "nameless"] {
            let token = stack.login(user).await;
            for (path, audience) in
                [("/", "recorder"), ("/optional", "recorder"), ("/elsewhere", "elsewhere")]
            {
                let asked = about(path).token(&token);
                for asked in [asked.clone(), forged(asked, &more)] {
                    let response = asked.send(&stack).await;
                    assert_eq!(response.status, 200, "{}", response.text());
                    assert_decision(&response, &more, Some(user), audience);
                }
            }
            let response = forged(about("/none").token(&token), &more).send(&stack).await;
            assert_decision(&response, &more, None, "");
        }
        for (path, status) in [("/optional", 200), ("/none", 200), ("/", 401)] {
            let response = forged(about(path), &more).send(&stack).await;
            assert_eq!(response.status, status, "{path}");
            assert_decision(&response, &more, None, "");
        }
    }
}

/// The proxy overwrites only the exact names.
#[tokio::test(flavor = "multi_thread")]
async fn another_spelling_of_the_other_identity_headers_is_rejected() {
    for header in HEADERS {
        let (stack, _more) = start(header, "").await;
        let token = stack.login("alice").await;
        for name in NAMES {
            for separator in ["_", ".", "!", "~"] {
                for path in ["/none", "/optional", "/"] {
                    let alias = name.replace('-', separator);
                    let asked = about(path).token(&token).line(&alias, "evil");
                    asked.send(&stack).await.assert_error(403, "bad_request", "none");
                }
            }
        }
    }
    // Services that verify a signed identity may be behind the proxy, even if none is sent now.
    let stack = super::start().await;
    let asked = about("/none").line("x_wxgate_jwt", "evil");
    asked.send(&stack).await.assert_error(403, "bad_request", "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_reads_no_session_from_the_header_of_the_signed_identity() {
    let (stack, more) = start("Authorization", "").await;
    let token = stack.login("alice").await;
    let bearer = format!("Bearer {token}");
    let response = about("/").line("Authorization", &bearer).send(&stack).await;
    response.assert_error(401, "missing_token", "login");
    let response = about("/optional").line("Authorization", &bearer).send(&stack).await;
    assert_decision(&response, &more, None, "");
}

/// A request with these lines, as the service received it, without its empty lines.
async fn forwarded(front: &Front<'_>, target: &str, lines: &[(&str, &str)]) -> Received {
    let mut received = front.forwarded(target, lines).await;
    received.lines.retain(|(_, value)| !value.is_empty());
    received
}

/// What services get of the gateway, and nothing of the client's.
async fn holds_its_promises(stack: Stack, more: MoreIdentity, proxy: Program) {
    let front = Front { stack: &stack, port: proxy.port };
    let mut forged: Vec<(&str, &str)> = NAMES.iter().map(|name| (*name, "evil")).collect();
    let lower: Vec<String> = NAMES.iter().map(|name| name.to_lowercase()).collect();
    forged.extend(lower.iter().map(|name| (name.as_str(), "evil")));
    let authorized = [&forged[..], &[("Authorization", "Basic c2hvcA==")]].concat();
    for user in ["alice", "unionbob", "nameless"] {
        let token = stack.login(user).await;
        let own = ("X-3rd-Session", &*token);
        for path in ["/orders/7?page=2", "/optional"] {
            for lines in [&[own][..], &[&authorized[..], &[own]].concat()] {
                let received = forwarded(&front, path, lines).await;
                more.assert_received(&received, Some(user), "recorder");
                assert_eq!(received.all("x-openid"), [openid(user)]);
                assert_eq!(received.all("x-appid"), [APP]);
            }
        }
        let received = forwarded(&front, "/none", &[&authorized[..], &[own]].concat()).await;
        more.assert_received(&received, None, "");
    }
    for path in ["/optional", "/none"] {
        more.assert_received(&forwarded(&front, path, &[]).await, None, "");
        let received = forwarded(&front, path, &authorized).await;
        more.assert_received(&received, None, "");
        let is_the_services = more.header != "Authorization";
        let basic = Vec::from_iter(is_the_services.then_some("Basic c2hvcA=="));
        assert_eq!(received.all("authorization"), basic);
    }
    front.assert_rejected("/", &forged, 401, "missing_token").await;
    // Other spellings are removed by the proxy, or rejected by the gateway.
    let token = stack.login("alice").await;
    for name in NAMES {
        for separator in ["_", ".", "!", "~"] {
            let alias = name.replace('-', separator);
            let lines = [(&*alias, "evil"), ("X-3rd-Session", &*token)];
            for (path, user) in [("/none", None), ("/", Some("alice"))] {
                let (response, received) = front.get(path, &lines).await;
                assert!(matches!(response.status, 200 | 403), "{}", response.text());
                assert_eq!(received.len(), usize::from(response.status == 200));
                for mut received in received {
                    received.lines.retain(|(_, value)| !value.is_empty());
                    more.assert_received(&received, user, "recorder");
                }
            }
        }
    }
}

/// The changes that a file describes in a comment.
fn uncommented(lines: &[&'static str]) -> Vec<(&'static str, String)> {
    lines.iter().map(|line| (*line, line.trim_start_matches("# ").to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_tells_services_all_of_the_identity() {
    for header in HEADERS {
        let (stack, more) = start(header, "").await;
        let mut changes = vec![];
        if header == "Authorization" {
            changes = uncommented(&["# auth_request_set $jwt_authorization"]);
            let old = "proxy_set_header Authorization $authorization_of_shop;";
            changes.push((old, old.replace("$authorization_of_shop", "$jwt_authorization")));
        }
        let proxy = nginx(&stack, "", &changes);
        holds_its_promises(stack, more, proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_tells_services_all_of_the_identity() {
    for header in HEADERS {
        let (stack, more) = start(header, "").await;
        let mut changes = uncommented(&[
            "# copy_headers X-User-Id",
            "# copy_headers X-WX-OPENID",
            "# @no_cloud_run",
            "# request_header @no_cloud_run",
        ]);
        let jwt = "# copy_headers X-Wxgate-Jwt";
        changes.push((jwt, format!("copy_headers {header}")));
        if header == "Authorization" {
            changes.extend(uncommented(&["# request_header -Authorization"]));
        }
        let proxy = caddy(&stack, &changes);
        holds_its_promises(stack, more, proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_tells_services_all_of_the_identity() {
    for header in HEADERS {
        let (stack, more) = start(header, "").await;
        let changes = match header {
            "Authorization" => uncommented(&[
                "# http-request del-header Authorization",
                "# http-request set-header Authorization",
            ]),
            _ => vec![],
        };
        let proxy = haproxy(&stack, &changes);
        holds_its_promises(stack, more, proxy).await;
    }
}
