//! Of the gateway's headers an upstream sees only what the gateway wrote; of the others all.
//!
//! The first byte of an input chooses the configuration and the circumstances; each line
//! after it is a header. Which names are the gateway's is written out here anew, folded.

#![cfg_attr(fuzzing, no_main)]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use http::{HeaderName, HeaderValue};
use wxgate::access::identity_headers::{Forwarding, IdentityHeaders};
use wxgate::config::{Config, Secrets};
use wxgate::fuzzing::lines;
use wxgate::identity::{AppId, Identity, OpenId, UnionId};

/// A gateway, and its names as the file has them.
struct Gateway {
    injector: IdentityHeaders,
    openid: &'static str,
    app_id: &'static str,
    union_id: &'static str,
    session: &'static str,
    reads_bearer: bool,
}

static GATEWAYS: LazyLock<[Gateway; 2]> = LazyLock::new(|| {
    [
        gateway("X-OpenId", "X-AppId", "X-UnionId", "X-3rd-Session", true),
        gateway("Shop_User", "shop.app", "U", "session~Token", false),
    ]
});

const WRITTEN: [&str; 5] =
    ["X-Request-Id", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Real-IP"];
const FROM_TRUSTED: [&str; 10] = [
    "Forwarded",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Uri",
    "X-Forwarded-Path",
    "X-Original-URL",
    "X-Rewrite-URL",
    "Script-Name",
    "Path-Info",
    "Proxy",
];
const CLOUD_RUN: [&str; 12] = [
    "X-WX-OPENID",
    "X-WX-APPID",
    "X-WX-UNIONID",
    "X-WX-FROM-OPENID",
    "X-WX-FROM-APPID",
    "X-WX-FROM-UNIONID",
    "X-WX-SOURCE",
    "X-WX-ENV",
    "X-WX-CLOUDBASE-ACCESS-TOKEN",
    "X-WX-FROM-CLOUDBASE-ACCESS-TOKEN",
    "X-Original-Forwarded-For",
    "X-Wxgate-Jwt",
];

/// The bits of the first byte.
const IS_OTHER_GATEWAY: u8 = 1;
const IS_TRUSTED: u8 = 2;
const HAS_IDENTITY: u8 = 4;
const HAS_UNIONID: u8 = 8;
const HAS_HOST: u8 = 16;
const IS_NO_CONTENT: u8 = 32;

/// Values by name in lower case, in their order, each with the name as it was spelled.
type Lines = BTreeMap<String, Vec<(String, Vec<u8>)>>;

fn gateway(
    openid: &'static str,
    app_id: &'static str,
    union_id: &'static str,
    session: &'static str,
    reads_bearer: bool,
) -> Gateway {
    let carriers = if reads_bearer { "[\"header\", \"bearer\"]" } else { "\"header\"" };
    let text = format!(
        r#"
        [server]
        listen = "127.0.0.1:0"
        [session]
        header = "{session}"
        carriers = {carriers}
        [identity]
        openid_header = "{openid}"
        app_id_header = "{app_id}"
        union_id_header = "{union_id}"
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
    let injector = IdentityHeaders::new(&config);
    Gateway { injector, openid, app_id, union_id, session, reads_bearer }
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Some((choice, lines)) = input.split_first() else { return };
    let has = |bit: u8| choice & bit != 0;
    let gateway = &GATEWAYS[usize::from(has(IS_OTHER_GATEWAY))];
    let lines: Vec<(String, HeaderValue)> = lines
        .split(|b| *b == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|b| *b == b':')?;
            let name = std::str::from_utf8(&line[..colon]).ok()?;
            HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name.to_owned(), HeaderValue::from_bytes(&line[colon + 1..]).ok()?))
        })
        .collect();

    let identity = Identity {
        app_id: AppId::parse("wx1").expect("legal"),
        openid: OpenId::parse("the-user").expect("legal"),
        unionid: has(HAS_UNIONID).then(|| UnionId::parse("the-union").expect("legal")),
        user_id: None,
    };
    let identity = has(HAS_IDENTITY).then_some(&identity);
    check_request(gateway, &lines, identity, has(IS_TRUSTED), has(HAS_HOST));
    check_response(gateway, &lines, if has(IS_NO_CONTENT) { 204 } else { 200 });
}

/// Lines as they are held.
fn header(lines: &[(String, HeaderValue)]) -> lines::Lines {
    let (mut text, mut list) = (Vec::new(), Vec::new());
    for (name, value) in lines {
        let begin = text.len();
        text.extend_from_slice(name.as_bytes());
        let middle = text.len();
        text.extend_from_slice(value.as_bytes());
        let name = lines::Span::new(begin..middle);
        list.push(lines::Line { name, value: lines::Span::new(middle..text.len()) });
    }
    lines::Lines::new(text, list)
}

fn check_request(
    gateway: &Gateway,
    lines: &[(String, HeaderValue)],
    identity: Option<&Identity>,
    is_trusted: bool,
    has_host: bool,
) {
    let mut request = header(lines);
    let value = HeaderValue::from_static;
    let forwarding = Forwarding {
        request_id: value("the-id"),
        forwarded_for: value("192.0.2.1"),
        proto: value("https"),
        host: has_host.then(|| value("shop.example")),
        client: value("192.0.2.2"),
        is_trusted,
    };
    gateway.injector.apply(&mut request, &forwarding, identity, None).expect("legal");
    let mut wire = Vec::new();
    request.write_to(&mut wire);
    let mut seen = parse(&wire);

    let mut written = BTreeMap::from([
        ("X-Request-Id", "the-id"),
        ("X-Forwarded-For", "192.0.2.1"),
        ("X-Forwarded-Proto", "https"),
        ("X-Real-IP", "192.0.2.2"),
    ]);
    if has_host {
        written.insert("X-Forwarded-Host", "shop.example");
    }
    if let Some(identity) = identity {
        written.insert(gateway.openid, "the-user");
        written.insert(gateway.app_id, "wx1");
        if identity.unionid.is_some() {
            written.insert(gateway.union_id, "the-union");
        }
    }
    for (name, value) in written {
        let found = seen.remove(&name.to_ascii_lowercase()).unwrap_or_default();
        let found: Vec<&[u8]> = found.iter().map(|(_, value)| &**value).collect();
        assert_eq!(found, [value.as_bytes()], "{name}");
    }

    let own: Vec<&str> = [gateway.openid, gateway.app_id, gateway.union_id, gateway.session]
        .into_iter()
        .chain(WRITTEN)
        .chain(FROM_TRUSTED)
        .chain(CLOUD_RUN)
        .chain(["HTTP2-Settings"])
        .collect();
    let expected = lines.iter().filter(|(name, value)| {
        let is_own = own.iter().any(|own| folded(own) == folded(name));
        let passes =
            is_trusted && FROM_TRUSTED.iter().any(|trusted| trusted.eq_ignore_ascii_case(name));
        let is_token = gateway.reads_bearer
            && name.eq_ignore_ascii_case("authorization")
            && is_bearer_of_ours(value.as_bytes());
        (!is_own || passes) && !is_token
    });
    assert_same(seen, expected, "authorization");
}

fn check_response(gateway: &Gateway, lines: &[(String, HeaderValue)], status: u16) {
    let mut response = header(lines);
    gateway.injector.clean_response(status, &mut response);
    let mut wire = Vec::new();
    response.write_to(&mut wire);

    let own = [gateway.openid, gateway.app_id, gateway.union_id, gateway.session]
        .into_iter()
        .chain(["X-Wxgate-Error", "X-Wxgate-Jwt", "Keep-Alive", "Proxy-Connection"])
        .collect::<Vec<_>>();
    let mut hop_by_hop = Vec::new();
    for (name, value) in lines {
        if name.eq_ignore_ascii_case("connection") {
            hop_by_hop.extend(
                value
                    .as_bytes()
                    .split(|b| *b == b',')
                    .map(|name| name.trim_ascii().to_ascii_lowercase()),
            );
        }
    }
    // Not for a service to take away.
    let kept = ["content-length", "transfer-encoding", "upgrade"];
    let has_no_body = status < 200 || status == 204;
    let expected = lines.iter().filter(|(name, _)| {
        let lower = name.to_ascii_lowercase();
        let is_own = own.iter().any(|own| folded(own) == folded(name));
        let is_removed = hop_by_hop.contains(&lower.clone().into_bytes())
            && !kept.contains(&lower.as_str())
            || lower == "upgrade" && status != 101
            || kept[..2].contains(&lower.as_str()) && has_no_body;
        !is_own && !is_removed
    });
    assert_same(parse(&wire), expected, "");
}

/// `respelled` is the name whose spelling may change.
fn assert_same<'a>(
    mut seen: Lines,
    expected: impl Iterator<Item = &'a (String, HeaderValue)>,
    respelled: &str,
) {
    let mut kept = Lines::new();
    for (name, value) in expected {
        let lines = kept.entry(name.to_ascii_lowercase()).or_default();
        lines.push((name.clone(), value.as_bytes().to_vec()));
    }
    for lines in [&mut kept, &mut seen] {
        for (spelling, _) in lines.get_mut(respelled).into_iter().flatten() {
            *spelling = respelled.to_owned();
        }
    }
    assert_eq!(seen, kept);
}

/// As a CGI-like server has it.
fn folded(name: &str) -> String {
    let fold = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    name.chars().map(fold).collect()
}

fn is_bearer_of_ours(value: &[u8]) -> bool {
    let Some((scheme, rest)) = value.split_at_checked(6) else { return false };
    let text = rest.trim_ascii();
    scheme.eq_ignore_ascii_case(b"bearer")
        && rest.first().is_some_and(|b| matches!(b, b' ' | b'\t'))
        && text.len() == 43
        && text.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
}

fn parse(wire: &[u8]) -> Lines {
    let mut lines = Lines::new();
    let text = wire.strip_suffix(b"\r\n").unwrap_or(wire);
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let colon = line.iter().position(|b| *b == b':').expect("a header line");
        let name = String::from_utf8(line[..colon].to_vec()).expect("ASCII");
        let value = line[colon + 1..].strip_prefix(b" ").expect("a blank").to_vec();
        lines.entry(name.to_ascii_lowercase()).or_default().push((name, value));
    }
    lines
}
