use http::HeaderMap;
use proptest::prelude::*;

use super::*;
use crate::config::{Carriers, Config, Secrets};
use crate::identity::{AppId, OpenId};

fn identity_headers() -> IdentityHeaders {
    let text = include_str!("../../../config/gateway.toml");
    let config = Config::parse("gateway.toml", text, Secrets::Ignore).unwrap();
    assert_eq!(config.session.carriers, Carriers { header: true, bearer: true, cookie: false });
    IdentityHeaders::new(&config)
}

fn append(headers: &mut HeaderMap, name: &str, value: &str) {
    let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
    headers.append(name, HeaderValue::from_str(value).unwrap());
}

fn forwarding(is_trusted: bool) -> Forwarding {
    Forwarding {
        request_id: HeaderValue::from_static("gateway"),
        forwarded_for: HeaderValue::from_static("gateway"),
        proto: HeaderValue::from_static("gateway"),
        host: Some(HeaderValue::from_static("gateway")),
        client: HeaderValue::from_static("gateway"),
        is_trusted,
    }
}

/// Listed here again, independently of the code under test.
const RESERVED: [&str; 31] = [
    "x_openid",
    "x_appid",
    "x_unionid",
    "x_3rd_session",
    "x_wx_openid",
    "x_wx_appid",
    "x_wx_unionid",
    "x_wx_from_openid",
    "x_wx_from_appid",
    "x_wx_from_unionid",
    "x_wx_source",
    "x_wx_env",
    "x_wx_cloudbase_access_token",
    "x_wx_from_cloudbase_access_token",
    "x_original_forwarded_for",
    "x_wxgate_jwt",
    "x_request_id",
    "x_forwarded_for",
    "x_forwarded_proto",
    "x_forwarded_host",
    "x_real_ip",
    "forwarded",
    "x_forwarded_port",
    "x_forwarded_prefix",
    "x_forwarded_uri",
    "x_forwarded_path",
    "x_original_url",
    "x_rewrite_url",
    "script_name",
    "path_info",
    "proxy",
];

fn cgi_name(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' })
        .collect()
}

/// A name that folds to one of the gateway's own, in any spelling.
fn spelling() -> impl Strategy<Value = String> {
    let separators = prop::sample::select("!#$%&'*+-.^_`|~".chars().collect::<Vec<_>>());
    (
        prop::sample::select(RESERVED.to_vec()),
        prop::collection::vec((any::<bool>(), separators), 40),
    )
        .prop_map(|(name, choices)| {
            name.chars()
                .zip(choices)
                .map(|(c, (upper, separator))| match c {
                    '_' => separator,
                    c if upper => c.to_ascii_uppercase(),
                    c => c,
                })
                .collect()
        })
}

fn any_name() -> impl Strategy<Value = String> {
    prop_oneof![3 => spelling(), 1 => "[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,24}"]
}

proptest! {
    /// No list of headers gets another spelling through.
    #[test]
    fn services_get_reserved_headers_only_from_the_gateway(
        names in prop::collection::vec(any_name(), 0..24),
        has_identity in any::<bool>(),
    ) {
        let mut request = HeaderMap::new();
        for name in &names {
            append(&mut request, name, "client");
        }
        let identity = Identity {
            app_id: AppId::parse("gateway").unwrap(),
            openid: OpenId::parse("gateway").unwrap(),
            unionid: None,
            user_id: None,
        };
        identity_headers().apply(&mut request, &forwarding(false), has_identity.then_some(&identity), None).unwrap();

        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}\n", value.to_str().unwrap());
        let wire: String = request.iter().map(line).collect();
        let mut counts = std::collections::HashMap::new();
        for line in wire.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            let name = cgi_name(name);
            if RESERVED.contains(&name.as_str()) {
                prop_assert_eq!(value, "gateway", "{}", line);
                *counts.entry(name).or_insert(0) += 1;
            }
        }
        prop_assert!(counts.values().all(|count| *count == 1), "{:?}", counts);
        prop_assert_eq!(counts.contains_key("x_openid"), has_identity);
        prop_assert_eq!(counts.contains_key("x_appid"), has_identity);
        prop_assert!(!counts.contains_key("x_unionid"));
        prop_assert_eq!(counts.len(), if has_identity { 7 } else { 5 });
        let foreign = names.iter().filter(|name| !RESERVED.contains(&cgi_name(name).as_str()));
        prop_assert_eq!(foreign.count(), wire.lines().filter(|line| line.ends_with(": client")).count());
    }
}

#[test]
fn headers_of_a_trusted_proxy_are_forwarded_only_in_their_own_spelling() {
    let mut request = HeaderMap::new();
    for name in ["X-Forwarded-Port", "X_Forwarded_Port", "Forwarded", "X_Forwarded_For"] {
        append(&mut request, name, "client");
    }
    identity_headers().apply(&mut request, &forwarding(true), None, None).unwrap();
    let mut kept: Vec<_> = request
        .iter()
        .filter(|(_, value)| *value == "client")
        .map(|(name, _)| name.as_str())
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, ["forwarded", "x-forwarded-port"]);
}

#[test]
fn only_authorization_lines_with_a_session_token_are_removed() {
    let mut request = HeaderMap::new();
    let ours = format!("Bearer {}", "a".repeat(token::TOKEN_LENGTH));
    append(&mut request, "Authorization", "Basic abc");
    append(&mut request, "authorization", &ours);
    identity_headers().apply(&mut request, &forwarding(false), None, None).unwrap();
    let kept: Vec<_> = request.get_all("authorization").iter().collect();
    assert_eq!(kept, ["Basic abc"]);
}

/// The header lines of a response that remain.
fn cleaned(status: u16, lines: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut response = HeaderMap::new();
    for (name, value) in lines {
        append(&mut response, name, value);
    }
    identity_headers().clean_response(status, &mut response);
    response
}

fn names(response: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = response.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_response_keeps_only_headers_for_the_client() {
    let response = cleaned(
        200,
        &[
            ("X-OpenId", "o1"),
            ("x_openid", "o1"),
            ("X-AppId", "wx1"),
            ("X-UnionId", "u1"),
            ("X-3rd-Session", "token"),
            ("X-Wxgate-Error", "mine"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "close"),
            ("Content-Length", "5"),
            ("X-Request-Id", "theirs"),
            ("X-Foreign", "kept"),
        ],
    );
    assert_eq!(names(&response), ["content-length", "x-foreign", "x-request-id"]);
}

#[test]
fn headers_that_connection_names_are_removed_except_framing() {
    let response = cleaned(
        101,
        &[
            ("Connection", "upgrade, X-Hop"),
            ("connection", "content-length,transfer-encoding , x-other"),
            ("X-Hop", "1"),
            ("X-Other", "1"),
            ("X-Foreign", "kept"),
            ("Content-Length", "5"),
            ("Transfer-Encoding", "chunked"),
            ("Upgrade", "websocket"),
        ],
    );
    assert_eq!(names(&response), ["connection", "upgrade", "x-foreign"]);
    let framing = [("Connection", "content-length, x-hop"), ("Content-Length", "5")];
    let response = cleaned(200, &[&framing[..], &[("X-Hop", "1")]].concat());
    assert_eq!(names(&response), ["connection", "content-length"]);
}

#[test]
fn a_response_without_a_body_has_no_length() {
    let framing = [("Content-Length", "0"), ("Transfer-Encoding", "chunked")];
    for status in [100, 103, 204] {
        let response = cleaned(status, &[&framing[..], &[("X-Foreign", "kept")]].concat());
        assert_eq!(names(&response), ["x-foreign"], "{status}");
    }
}
