//! Who a request is from, and that no token goes further than the gateway.
//!
//! The first byte of an input chooses the gateway and the route's access; each line after it
//! is a header: `s` for the session header, `a` for Authorization, anything else for one that
//! nobody reads. In a value the bytes 1 to 4 stand for tokens, see [`Tokens::expand`].

#![cfg_attr(fuzzing, no_main)]

use std::pin::pin;
use std::sync::{LazyLock, Mutex};
use std::task::{Context, Poll, Waker};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use wxgate::access::authenticator::{AuthError, Authenticator};
use wxgate::access::identity_headers::{Forwarding, IdentityHeaders};
use wxgate::clock::Clock;
use wxgate::config::{Access, Config, Secrets};
use wxgate::fuzzing::Site;
use wxgate::handover::peer::Peer;
use wxgate::identity::{AppId, Identity, OpenId};
use wxgate::session::Sessions;
use wxgate::telemetry::metrics::Metrics;

const SESSION_HEADER: &str = "x-3rd-session";
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

struct Gateway {
    authenticator: Authenticator,
    injector: IdentityHeaders,
    sessions: Sessions,
    reads_header: bool,
    reads_bearer: bool,
    tokens: Mutex<Tokens>,
}

/// Two tokens that are good, for the users `a` and `b`.
struct Tokens {
    a: String,
    b: String,
}

/// What the contract says of a request's tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    Nobody,
    User(&'static str),
    Missing,
    Expired,
    Conflict,
    /// A malformed token and a conflict: either refusal will do.
    ExpiredOrConflict,
}

static GATEWAYS: LazyLock<[Gateway; 3]> =
    LazyLock::new(|| [gateway(true, true), gateway(true, false), gateway(false, true)]);

fn gateway(reads_header: bool, reads_bearer: bool) -> Gateway {
    let carriers = match (reads_header, reads_bearer) {
        (true, true) => r#"["header", "bearer"]"#,
        (true, false) => r#"["header"]"#,
        _ => r#"["bearer"]"#,
    };
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [session]
        carriers = {carriers}
        [[app]]
        app_id = "wx1"
        app_secret = {{ env = "X" }}
        [[upstream]]
        name = "u"
        servers = ["127.0.0.1:1"]
        [[route]]
        path = "/"
        upstream = "u"
        "#
    );
    let config = Config::parse("fuzz", &text, Secrets::Ignore).expect("the text is valid");
    let metrics = Metrics::new().expect("fresh");
    let sessions = Sessions::new(&config.session, Clock::manual(), metrics, Peer::default(), 0);
    let tokens = Tokens { a: log_in(&sessions, "a"), b: log_in(&sessions, "b") };
    Gateway {
        authenticator: Authenticator::new(sessions.clone(), &config.session, &config.apps),
        injector: IdentityHeaders::new(&config),
        sessions,
        reads_header,
        reads_bearer,
        tokens: Mutex::new(tokens),
    }
}

fn log_in(sessions: &Sessions, user: &str) -> String {
    let identity = Identity {
        app_id: AppId::parse("wx1").expect("legal"),
        openid: OpenId::parse(user).expect("legal"),
        unionid: None,
        user_id: None,
    };
    let (token, _) = ready(sessions.create(identity, [192, 0, 2, 1].into(), None))
        .expect("memory does not fail");
    let text = token.expose().to_owned();
    assert!(has_shape(text.as_bytes()));
    text
}

/// Nothing here waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("memory does not wait"),
    }
}

impl Tokens {
    /// 1 and 2: the good tokens. 3: the first in another spelling of the same 32 bytes, which
    /// is another token. 4: one that nobody has.
    fn expand(&self, value: &[u8]) -> Vec<u8> {
        let mut expanded = Vec::new();
        for byte in value {
            match byte {
                1 => expanded.extend_from_slice(self.a.as_bytes()),
                2 => expanded.extend_from_slice(self.b.as_bytes()),
                3 => {
                    let (rest, last) = self.a.split_at(42);
                    let digit = ALPHABET.iter().position(|b| last.as_bytes() == [*b]).unwrap();
                    assert_eq!(digit % 4, 0, "32 bytes leave two bits of the last digit unused");
                    expanded.extend_from_slice(rest.as_bytes());
                    expanded.push(ALPHABET[digit + 1]);
                }
                4 => expanded.extend_from_slice(&[b'-'; 43]),
                _ => expanded.push(*byte),
            }
        }
        expanded
    }

    fn user(&self, token: &[u8]) -> Option<&'static str> {
        match token {
            _ if token == self.a.as_bytes() => Some("a"),
            _ if token == self.b.as_bytes() => Some("b"),
            _ => None,
        }
    }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, lines)) = input.split_first() else { return };
    let gateway = &GATEWAYS[usize::from(*choice) % 3];
    let access = [Access::Required, Access::Optional, Access::None][usize::from(*choice) / 3 % 3];
    let mut tokens = gateway.tokens.lock().expect("not poisoned");

    let mut request = HeaderMap::new();
    let mut lines: Vec<(&'static str, Vec<u8>)> = lines
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let (first, value) = line.split_first()?;
            let name = match first {
                b's' => SESSION_HEADER,
                b'a' => "authorization",
                _ => "x-authorization",
            };
            Some((name, tokens.expand(value)))
        })
        .collect();
    lines.retain(|(_, value)| HeaderValue::from_bytes(value).is_ok());
    for (name, value) in &lines {
        let value = HeaderValue::from_bytes(value).expect("legal");
        request.append(HeaderName::from_static(name), value);
    }

    let (_, found) = ready(gateway.authenticator.authenticate(&request, access, None));
    let found = match &found {
        Ok(None) => Expected::Nobody,
        Ok(Some(session)) => match session.identity.openid.as_str() {
            "a" => Expected::User("a"),
            _ => Expected::User("b"),
        },
        Err(AuthError::MissingToken) => Expected::Missing,
        Err(AuthError::InvalidToken) => Expected::Expired,
        Err(AuthError::ConflictingTokens) => Expected::Conflict,
        Err(AuthError::Store(_)) => panic!("memory does not fail"),
    };
    let expected = expected(gateway, &lines, access, &tokens);
    match expected {
        Expected::ExpiredOrConflict => {
            assert!(matches!(found, Expected::Expired | Expected::Conflict), "{found:?}");
        }
        expected => assert_eq!(found, expected, "{lines:?}"),
    }

    // A logout ends the session that the request was from, and no other.
    let site = Site { host: None, method: &Method::POST, is_websocket: false, cors: None };
    if matches!(lines.len(), 1..=2) && ready(gateway.authenticator.revoke(&request, &site)).is_ok()
    {
        let as_required = self::expected(gateway, &lines, Access::Required, &tokens);
        for (user, token) in [("a", tokens.a.clone()), ("b", tokens.b.clone())] {
            let is_live = is_live(gateway, &token);
            assert_eq!(is_live, as_required != Expected::User(user));
            if !is_live {
                let fresh = log_in(&gateway.sessions, user);
                *(if user == "a" { &mut tokens.a } else { &mut tokens.b }) = fresh;
            }
        }
    }

    check_upstream(gateway, request, &lines);
}

fn is_live(gateway: &Gateway, token: &str) -> bool {
    let (name, value) = if gateway.reads_header {
        (SESSION_HEADER, token.to_owned())
    } else {
        ("authorization", format!("Bearer {token}"))
    };
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static(name),
        HeaderValue::from_str(&value).expect("legal"),
    )]);
    ready(gateway.authenticator.authenticate(&headers, Access::Required, None)).1.is_ok()
}

fn expected(
    gateway: &Gateway,
    lines: &[(&str, Vec<u8>)],
    access: Access,
    tokens: &Tokens,
) -> Expected {
    if access == Access::None {
        return Expected::Nobody;
    }
    let of = |wanted: &str| -> Vec<&[u8]> {
        lines.iter().filter(|(name, _)| *name == wanted).map(|(_, value)| &**value).collect()
    };
    let mut carried: Vec<&[u8]> = Vec::new();
    let mut is_malformed = false;
    if gateway.reads_header {
        match *of(SESSION_HEADER) {
            [] => {}
            [value] => match value.trim_ascii() {
                [] => {}
                text if has_shape(text) => carried.push(text),
                _ => is_malformed = true,
            },
            _ => return Expected::Conflict,
        }
    }
    if gateway.reads_bearer {
        carried.extend(of("authorization").into_iter().filter_map(bearer));
    }
    carried.sort_unstable();
    carried.dedup();
    match (&carried[..], is_malformed) {
        ([], false) if access == Access::Optional => Expected::Nobody,
        ([], false) => Expected::Missing,
        ([] | [_], true) => Expected::Expired,
        ([token], false) => match tokens.user(token) {
            Some(user) => Expected::User(user),
            None => Expected::Expired,
        },
        ([_, _, ..], true) => Expected::ExpiredOrConflict,
        ([_, _, ..], false) => Expected::Conflict,
    }
}

/// What goes upstream holds no token in the places where one is read.
fn check_upstream(gateway: &Gateway, mut request: HeaderMap, lines: &[(&str, Vec<u8>)]) {
    let value = HeaderValue::from_static;
    let forwarding = Forwarding {
        request_id: value("id"),
        forwarded_for: value("192.0.2.1"),
        proto: value("http"),
        host: None,
        client: value("192.0.2.1"),
        is_trusted: false,
    };
    gateway.injector.apply(&mut request, &forwarding, None, None).expect("legal");
    assert!(!request.contains_key(SESSION_HEADER));
    let sent: Vec<&[u8]> =
        request.get_all("authorization").iter().map(HeaderValue::as_bytes).collect();
    let kept: Vec<&[u8]> = lines
        .iter()
        .filter(|(name, value)| {
            *name == "authorization" && !(gateway.reads_bearer && bearer(value).is_some())
        })
        .map(|(_, value)| &**value)
        .collect();
    assert_eq!(sent, kept);
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer")
        && rest.first().is_some_and(|b| matches!(b, b' ' | b'\t'));
    let text = rest.trim_ascii();
    (is_bearer && has_shape(text)).then_some(text)
}

fn has_shape(text: &[u8]) -> bool {
    text.len() == 43 && text.iter().all(|b| ALPHABET.contains(b))
}
