//! `wxgate explain` for identity headers that are off by default: the user id, the signed identity,
//! and those of WeChat Cloud Run.

use std::fs;

use http::{HeaderName, HeaderValue, Method};
use wxgate::cli::explain::{DescribedRequest, Explanation, Outcome, explain};
use wxgate::config::{Config, Secrets};

const CHANGES: &str = r#"
    session.carriers = ["header"]
    [identity]
    preset = "wxcloudrun"
    [identity.jwt]
    key = { file = "key.pem" }
    issuer = "https://api.example.com"
    [login.hook]
    url = "https://users.internal/login"
    token = { file = "token" }
    [[app]]
    app_id = "wx0000000000000001"
    app_secret = { file = "tests/config/app_secret" }
    kind = "mobile"
    [[route]]
    path = "/none"
    upstream = "shop"
    auth = "none"
    [[route]]
    path = "/mobile"
    upstream = "shop"
    apps = ["wx0000000000000001"]
"#;

/// The explanation of a request with `headers`, by the smallest file with changes.
fn explained(changes: &str, path: &str, headers: &[(&str, &str)]) -> Explanation {
    let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
    let text = format!("{changes}\n{smallest}");
    let config = Config::parse("file", &text, Secrets::Ignore).unwrap();
    let header = |(name, value): &(&str, &str)| {
        (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
    };
    let headers = headers.iter().map(header).collect();
    explain(&config, &DescribedRequest::new(Method::GET, path, headers).unwrap())
}

/// The identity headers that the service gets.
fn identity(explanation: &Explanation) -> Vec<String> {
    let request = explanation.request.as_ref().unwrap();
    let own = |name: &str| {
        !name.starts_with("x-forwarded-") && !["x-real-ip", "x-request-id"].contains(&name)
    };
    let headers = request.headers.iter().filter(|header| own(&header.name));
    headers.map(|header| format!("{}: {}", header.name, header.value)).collect()
}

#[test]
fn explain_shows_every_identity_header_that_a_service_gets() {
    let usual = [
        "x-openid: OPENID",
        "x-appid: APP_ID",
        "x-unionid: UNIONID-if-known",
        "x-user-id: USER_ID-if-known",
        "x-wxgate-jwt: JWT",
    ];
    let of_mini_programs = [
        "x-wx-openid: OPENID",
        "x-wx-appid: APP_ID",
        "x-wx-unionid: UNIONID-if-known",
        "x-wx-source: wx_client",
    ];
    let all = [&usual[..], &of_mini_programs[..]].concat();
    assert_eq!(identity(&explained(CHANGES, "/", &[])), all);
    // Only users of Mini Programs have the headers of WeChat Cloud Run.
    assert_eq!(identity(&explained(CHANGES, "/mobile", &[])), usual);
    assert_eq!(identity(&explained(CHANGES, "/none", &[])), [""; 0]);
    assert_eq!(identity(&explained("", "/", &[])), usual[..3]);

    let issuer = "issuer = \"https://api.example.com\"";
    let bearer = CHANGES.replace(issuer, &format!("{issuer}\nheader = \"Authorization\""));
    let shown = identity(&explained(&bearer, "/mobile", &[]));
    assert_eq!(shown.last().unwrap(), "authorization: Bearer JWT");
}

#[test]
fn explain_shows_why_a_clients_own_identity_headers_are_removed() {
    const FORGED: [(&str, &str); 8] = [
        ("X_User_Id", "1"),
        ("X-User-Id", "1"),
        ("X_Wxgate.Jwt", "a.b.c"),
        ("X-WX-OPENID", "me"),
        ("X-Wx_Source", "wx_client"),
        ("X-WX-CLOUDBASE-ACCESS-TOKEN", "1"),
        ("X-Original-Forwarded-For", "1.2.3.4"),
        ("Authorization", "Basic eDp5"),
    ];
    const IDENTITY: &str = "reserved: only the gateway sends the identity";
    const SIGNED: &str = "reserved: only the gateway sends the signed identity";
    const CLOUD_RUN: &str = "reserved: services written for WeChat Cloud Run trust it";
    const AUTHORIZATION: &str = "replaced: services get the signed identity in it";
    let issuer = "issuer = \"https://api.example.com\"";
    let bearer = CHANGES.replace(issuer, &format!("{issuer}\nheader = \"Authorization\""));
    let other = CHANGES.replace(issuer, &format!("{issuer}\nheader = \"X-Identity\""));
    let reasons = |changes: &str, path: &str| {
        let headers = [&FORGED[..], &[("X_Identity", "a.b.c")]].concat();
        let removed = explained(changes, path, &headers).removed;
        let of = |name: &str| {
            let removed = removed.iter().find(|removed| removed.name.eq_ignore_ascii_case(name));
            removed.map(|removed| removed.reason.clone()).unwrap_or_default()
        };
        Vec::from_iter(headers.iter().map(|(name, _)| of(name)))
    };
    let own = [IDENTITY, IDENTITY, SIGNED, CLOUD_RUN, CLOUD_RUN, CLOUD_RUN, CLOUD_RUN];
    // On routes without authentication, too.
    for path in ["/", "/mobile", "/none"] {
        assert_eq!(reasons(CHANGES, path), [&own[..], &["", ""]].concat(), "{path}");
        assert_eq!(reasons(&bearer, path), [&own[..], &[AUTHORIZATION, ""]].concat(), "{path}");
        assert_eq!(reasons(&other, path), [&own[..], &["", SIGNED]].concat(), "{path}");
    }
    // What is off is not reserved, except what services may trust by habit.
    let off = ["", "", SIGNED, CLOUD_RUN, CLOUD_RUN, CLOUD_RUN, CLOUD_RUN, "", ""];
    assert_eq!(reasons("", "/"), off);
}

#[test]
fn explain_knows_the_endpoint_of_the_public_keys() {
    const PATH: &str = "/.well-known/jwks.json";
    let changes = format!("endpoints.jwks = \"{PATH}\"\n{CHANGES}");
    let explanation = explained(&changes, PATH, &[]);
    assert_eq!((explanation.outcome, explanation.endpoint), (Outcome::Answered, Some("jwks")));
    // Off by default: a route gets it.
    let explanation = explained(CHANGES, PATH, &[]);
    assert_eq!((explanation.outcome, explanation.endpoint), (Outcome::Forwarded, None));
}
