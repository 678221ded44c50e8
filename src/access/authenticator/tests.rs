use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use super::*;
use crate::clock::Clock;
use crate::config::Carriers;
use crate::handover::peer::Peer;
use crate::telemetry::metrics::Metrics;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn app(app_id: &str) -> App {
    App {
        app_id: AppId::parse(app_id).unwrap(),
        kind: crate::config::AppKind::MiniProgram,
        secret: crate::identity::secret::Secret::new(String::new()),
        is_default: true,
        login_rate: None,
    }
}

fn authenticator(header: bool, bearer: bool) -> Authenticator {
    let section = SessionSection {
        ttl: Duration::from_secs(60),
        idle_timeout: Duration::from_secs(60),
        capacity: 10,
        carriers: Carriers { header, bearer, cookie: false },
        header: HeaderName::from_static("x-3rd-session"),
        max_per_user: None,
        seal_keys: Vec::new(),
        jar_capacity: 1 << 20,
        shared: None,
        snapshot: None,
    };
    let sessions =
        Sessions::new(&section, Clock::manual(), Metrics::new().unwrap(), Peer::default(), 0);
    Authenticator::new(sessions, &section, &[app("wx1")])
}

fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_str(value).unwrap());
    }
    headers
}

#[test]
fn one_token_is_found_and_two_are_rejected() {
    let (a, b) = ("A".repeat(43), "B".repeat(43));
    let (bearer_a, bearer_b) = (format!("Bearer {a}"), format!("Bearer {b}"));
    let both = authenticator(true, true);
    let (s, auth) = ("x-3rd-session", "authorization");

    let find = |lines: &[(&'static str, &str)]| {
        let headers = headers(lines);
        both.presented(&headers, None).map(|presented| match presented {
            Presented::Nothing => "nothing".to_owned(),
            Presented::Malformed => "malformed".to_owned(),
            Presented::Token(text) | Presented::Cookie(text) => {
                String::from_utf8(text.to_vec()).unwrap()
            }
        })
    };
    assert_eq!(find(&[]).unwrap(), "nothing");
    assert_eq!(find(&[(s, "")]).unwrap(), "nothing");
    assert_eq!(find(&[(s, &a)]).unwrap(), a);
    assert_eq!(find(&[(auth, &bearer_a)]).unwrap(), a);
    assert_eq!(find(&[(s, ""), (auth, &bearer_a)]).unwrap(), a);
    assert_eq!(find(&[(s, &a), (auth, &bearer_a)]).unwrap(), a);
    assert_eq!(find(&[(auth, "Basic eA=="), (auth, &bearer_a)]).unwrap(), a);
    assert_eq!(find(&[(auth, "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x")]).unwrap(), "nothing");
    assert_eq!(find(&[(s, "short")]).unwrap(), "malformed");
    assert_eq!(find(&[(s, "short"), (auth, &bearer_a)]).unwrap(), "malformed");
    for conflict in [
        vec![(s, a.as_str()), (s, a.as_str())],
        vec![(s, ""), (s, a.as_str())],
        vec![(s, a.as_str()), (auth, bearer_b.as_str())],
        vec![(auth, bearer_a.as_str()), (auth, bearer_b.as_str())],
    ] {
        assert!(matches!(find(&conflict), Err(AuthError::ConflictingTokens)), "{conflict:?}");
    }
}

#[test]
fn only_configured_carriers_are_read() {
    let token = "A".repeat(43);
    let lines = headers(&[("authorization", &format!("Bearer {token}"))]);
    assert_eq!(authenticator(true, false).presented(&lines, None).unwrap(), Presented::Nothing);
    let lines = headers(&[("x-3rd-session", &token)]);
    assert_eq!(authenticator(false, true).presented(&lines, None).unwrap(), Presented::Nothing);
}

#[tokio::test]
async fn a_session_of_a_removed_app_is_invalid() {
    let authenticator = authenticator(true, true);
    let identity = crate::identity::Identity {
        app_id: AppId::parse("wx2").unwrap(),
        openid: crate::identity::OpenId::parse("o1").unwrap(),
        unionid: None,
        user_id: None,
    };
    let (token, _) = authenticator.sessions.create(identity, CLIENT, None).await.unwrap();
    let lines = headers(&[("x-3rd-session", token.expose())]);
    for access in [Access::Required, Access::Optional] {
        let (_, outcome) = authenticator.authenticate(&lines, access, None).await;
        assert!(matches!(outcome, Err(AuthError::InvalidToken)));
    }
}

#[tokio::test]
async fn a_request_is_authenticated_by_the_access_of_its_route() {
    let authenticator = authenticator(true, true);
    let identity = crate::identity::Identity {
        app_id: AppId::parse("wx1").unwrap(),
        openid: crate::identity::OpenId::parse("o1").unwrap(),
        unionid: None,
        user_id: None,
    };
    let (token, _) = authenticator.sessions.create(identity.clone(), CLIENT, None).await.unwrap();
    let valid = headers(&[("x-3rd-session", token.expose())]);
    let unknown = headers(&[("x-3rd-session", &"A".repeat(43))]);
    let malformed = headers(&[("x-3rd-session", "short")]);
    let nothing = HeaderMap::new();
    let authenticate = async |lines: &HeaderMap, access| {
        let (_, outcome) = authenticator.authenticate(lines, access, None).await;
        outcome.map(|session| session.map(|session| session.identity.clone()))
    };
    for access in [Access::Required, Access::Optional] {
        assert_eq!(authenticate(&valid, access).await.unwrap(), Some(identity.clone()));
        for bad in [&unknown, &malformed] {
            assert!(matches!(authenticate(bad, access).await, Err(AuthError::InvalidToken)));
        }
    }
    assert!(matches!(authenticate(&nothing, Access::Required).await, Err(AuthError::MissingToken)));
    assert_eq!(authenticate(&nothing, Access::Optional).await.unwrap(), None);
    assert_eq!(authenticate(&valid, Access::None).await.unwrap(), None);

    let site = Site { host: None, method: &http::Method::POST, is_websocket: false, cors: None };
    authenticator.revoke(&nothing, &site).await.unwrap();
    authenticator.revoke(&malformed, &site).await.unwrap();
    assert!(authenticate(&valid, Access::Required).await.is_ok());
    authenticator.revoke(&valid, &site).await.unwrap();
    assert!(matches!(authenticate(&valid, Access::Required).await, Err(AuthError::InvalidToken)));
}
