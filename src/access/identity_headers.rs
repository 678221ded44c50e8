//! The identity headers for services, and the headers that only the gateway may write.
//!
//! Services trust these headers blindly, so only this code may write them. It first removes what
//! the client sent under the same names, on every route, including those with `auth = "none"`.
//! CGI-like services fold `X_OpenId`, `X.OpenId` and `X-OpenId` into one variable, so names are
//! compared folded: every byte that is not a letter or digit counts as `_`, and case is ignored. It
//! must run after everything else that removes headers (`proxy::compose`). It does not know how an
//! identity was verified.

use http::header::{AUTHORIZATION, HeaderName, HeaderValue, InvalidHeaderValue};
use http::{HeaderMap, StatusCode};

use crate::config::{IdentitySection, SessionSection};
use crate::identity::token;
use crate::identity::{Identity, UnionId};
use crate::message::header::lines::write_line;
use crate::message::header::reserved::{
    CLOUD_RUN, FROM_TRUSTED, HTTP2_SETTINGS, METHOD_OVERRIDES, OF_CONNECTION, TOLD, WRITTEN,
};
use crate::message::header::{FoldedNames, HeadersMut, nominated};
use crate::message::rejection::ERROR_HEADER;

pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub static FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

pub static FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
pub static FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Removes and writes headers as one configuration says.
pub struct IdentityHeaders {
    request: FoldedNames,
    response: FoldedNames,
    strips_bearer: bool,
    /// The names for the openid, the app id and the unionid.
    identity: [HeaderName; 3],
    /// Headers that a forward-auth proxy writes or removes; folded, to recognise other spellings.
    decision_names: Vec<HeaderName>,
    decision_names_folded: FoldedNames,
}

/// The values of the forwarding headers.
pub struct Forwarding {
    pub request_id: HeaderValue,
    /// The whole value of `X-Forwarded-For`.
    pub forwarded_for: HeaderValue,
    pub proto: HeaderValue,
    pub host: Option<HeaderValue>,
    pub client: HeaderValue,
    /// Whether the peer is one of `server.trusted_proxies`.
    pub is_trusted: bool,
}

/// Why a header of a request is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemovalReason {
    #[error("reserved: only the gateway writes the identity")]
    Identity,
    #[error("the session header")]
    SessionHeader,
    #[error("the session token")]
    Token,
    #[error("reserved: services written for WeChat Cloud Run trust it")]
    CloudRun,
    #[error("replaced: the gateway writes it and ignores the client's value")]
    Written,
    #[error("only a trusted proxy may send it")]
    Untrusted,
    #[error("it applies only to the client's connection")]
    OfConnection,
    #[error("it could override the method, on which routes depend")]
    MethodOverride,
}

impl IdentityHeaders {
    pub fn new(identity: &IdentitySection, session: &SessionSection) -> Self {
        let own = [
            identity.openid_header.as_str(),
            identity.app_id_header.as_str(),
            identity.union_id_header.as_str(),
            session.header.as_str(),
        ];
        let request = own.iter().copied().chain(CLOUD_RUN).chain(WRITTEN).chain(FROM_TRUSTED);
        let request = request.chain([HTTP2_SETTINGS]);
        let identity = [
            identity.openid_header.clone(),
            identity.app_id_header.clone(),
            identity.union_id_header.clone(),
        ];
        let decision_names: Vec<_> = TOLD
            .into_iter()
            .chain(CLOUD_RUN)
            .map(HeaderName::from_static)
            .chain(identity.iter().cloned())
            .collect();
        let response = own.iter().copied().chain([ERROR_HEADER.as_str()]).chain(OF_CONNECTION);
        Self {
            request: FoldedNames::new(request),
            response: FoldedNames::new(response),
            strips_bearer: session.carriers.bearer,
            decision_names_folded: FoldedNames::new(decision_names.iter().map(HeaderName::as_str)),
            decision_names,
            identity,
        }
    }

    /// Also removes headers that override the method, if routes match by method: otherwise the
    /// service could see another method than the one that was matched.
    #[must_use]
    pub fn removing_overrides(mut self, routes_trust_methods: bool) -> Self {
        let overrides = METHOD_OVERRIDES.into_iter().filter(|_| routes_trust_methods);
        for name in overrides {
            self.request.insert(name);
            // Another proxy would forward it.
            self.decision_names_folded.insert(name);
        }
        self
    }

    /// Removes the client's lines of the gateway's headers, and writes exactly one line of each.
    /// The identity headers are written only if there is an identity.
    ///
    /// # Errors
    /// When a value cannot be written; the request must then not be forwarded.
    pub fn apply(
        &self,
        request: &mut impl HeadersMut,
        forwarding: &Forwarding,
        identity: Option<&Identity>,
    ) -> Result<(), InvalidHeaderValue> {
        request.remove_if(|name, value| self.strips(name, value, forwarding.is_trusted));
        for (name, value) in [
            (&REQUEST_ID, &forwarding.request_id),
            (&FORWARDED_FOR, &forwarding.forwarded_for),
            (&FORWARDED_PROTO, &forwarding.proto),
            (&REAL_IP, &forwarding.client),
        ] {
            request.add(name, value);
        }
        if let Some(host) = &forwarding.host {
            request.add(&FORWARDED_HOST, host);
        }
        if let Some(identity) = identity {
            let [openid, app_id, unionid] = &self.identity;
            request.add(openid, &HeaderValue::from_str(identity.openid.as_str())?);
            request.add(app_id, &HeaderValue::from_str(identity.app_id.as_str())?);
            if let Some(value) = &identity.unionid {
                request.add(unionid, &HeaderValue::from_str(value.as_str())?);
            }
        }
        Ok(())
    }

    /// Writes the forwarding headers and the request id. Every line that [`Self::strips`] selects
    /// must have been removed before.
    pub fn write(&self, forwarding: &Forwarding, out: &mut Vec<u8>) {
        for (name, value) in [
            (&REQUEST_ID, Some(&forwarding.request_id)),
            (&FORWARDED_FOR, Some(&forwarding.forwarded_for)),
            (&FORWARDED_PROTO, Some(&forwarding.proto)),
            (&REAL_IP, Some(&forwarding.client)),
            (&FORWARDED_HOST, forwarding.host.as_ref()),
        ] {
            if let Some(value) = value {
                write_line(out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
    }

    /// Writes the identity headers. The same lines must have been removed before.
    pub fn write_identity(&self, identity: &Identity, out: &mut Vec<u8>) {
        let [openid, app_id, unionid] = &self.identity;
        write_line(out, openid.as_str().as_bytes(), identity.openid.as_str().as_bytes());
        write_line(out, app_id.as_str().as_bytes(), identity.app_id.as_str().as_bytes());
        if let Some(value) = &identity.unionid {
            write_line(out, unionid.as_str().as_bytes(), value.as_str().as_bytes());
        }
    }

    /// Whether a header line of a request is removed before the gateway writes its own.
    pub fn strips(&self, name: &[u8], value: &[u8], is_trusted: bool) -> bool {
        self.is_stripped(name, is_trusted) || self.is_token(name, value)
    }

    fn is_token(&self, name: &[u8], value: &[u8]) -> bool {
        self.strips_bearer
            && name.eq_ignore_ascii_case(AUTHORIZATION.as_str().as_bytes())
            && token::bearer_token(value).is_some()
    }

    /// Writes the identity into the response to another proxy. Each header is written once, and is
    /// empty if it has no value, so that it replaces what the client sent.
    ///
    /// # Errors
    /// When a value cannot be written; the request must then not be allowed.
    pub fn write_decision(
        &self,
        headers: &mut HeaderMap,
        identity: Option<&Identity>,
    ) -> Result<(), InvalidHeaderValue> {
        let unionid = identity.and_then(|identity| identity.unionid.as_ref());
        let values = [
            identity.map(|identity| identity.openid.as_str()),
            identity.map(|identity| identity.app_id.as_str()),
            unionid.map(UnionId::as_str),
        ];
        for (name, value) in self.identity.iter().zip(values) {
            let value = match value {
                Some(value) => HeaderValue::from_str(value)?,
                None => HeaderValue::from_static(""),
            };
            headers.insert(name, value);
        }
        Ok(())
    }

    /// Whether another proxy forwarded a header that it should have written or removed, in a
    /// spelling that it does not recognise.
    pub fn has_lookalike(&self, passed_on: &HeaderMap) -> bool {
        passed_on.keys().any(|name| {
            self.decision_names_folded.contains(name.as_str())
                && !self.decision_names.contains(name)
        })
    }

    fn is_stripped(&self, name: &[u8], is_trusted: bool) -> bool {
        let is_it = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
        self.request.contains(name) && !(is_trusted && FROM_TRUSTED.iter().any(|one| is_it(one)))
    }

    /// Why a header line of a request is removed; `None` if it is not. Only for `wxgate explain`.
    pub fn removal_reason(
        &self,
        name: &HeaderName,
        value: &HeaderValue,
        is_trusted: bool,
    ) -> Option<RemovalReason> {
        if !self.is_stripped(name.as_str().as_bytes(), is_trusted) {
            let is_token = self.is_token(name.as_str().as_bytes(), value.as_bytes());
            return is_token.then_some(RemovalReason::Token);
        }
        let is_among =
            |names: &[&str]| FoldedNames::new(names.iter().copied()).contains(name.as_str());
        let [openid, app_id, union_id] = &self.identity;
        Some(if is_among(&[openid, app_id, union_id].map(HeaderName::as_str)) {
            RemovalReason::Identity
        } else if is_among(&CLOUD_RUN) {
            RemovalReason::CloudRun
        } else if is_among(&WRITTEN) {
            RemovalReason::Written
        } else if is_among(&FROM_TRUSTED) {
            RemovalReason::Untrusted
        } else if is_among(&METHOD_OVERRIDES) {
            RemovalReason::MethodOverride
        } else if is_among(&[HTTP2_SETTINGS]) {
            RemovalReason::OfConnection
        } else {
            RemovalReason::SessionHeader
        })
    }

    /// Removes from a service's response the identity and session headers, error marks (only the
    /// gateway may set them), and headers about the service's connection.
    pub fn clean_response(&self, status: u16, response: &mut impl HeadersMut) {
        let is_kept = |name: &[u8]| {
            // A service must not remove framing; the others are connection options.
            is_framing(name) || is_any(name, &["upgrade", "keep-alive", "close"])
        };
        let nominated = nominated(response).filter(|name| !is_kept(name));
        let nominated: Vec<Box<[u8]>> = nominated.map(Box::from).collect();
        // A service's offer to upgrade, such as Apache's of HTTP/2, is meant for the gateway.
        let declines = status != StatusCode::SWITCHING_PROTOCOLS.as_u16();
        // These have no body, and must not announce one (RFC 9110, section 8.6, and RFC 9112,
        // section 6.1).
        let has_no_body = status < 200 || status == StatusCode::NO_CONTENT.as_u16();
        response.remove_if(|name, _| {
            self.response.contains(name)
                || nominated.iter().any(|one| one.eq_ignore_ascii_case(name))
                || declines && is_any(name, &["upgrade"])
                || has_no_body && is_framing(name)
        });
    }

    /// Whether a header of a service's response is removed, whatever the status.
    pub fn cleans(&self, name: &[u8]) -> bool {
        self.response.contains(name)
    }
}

fn is_framing(name: &[u8]) -> bool {
    is_any(name, &["content-length", "transfer-encoding"])
}

fn is_any(name: &[u8], known: &[&str]) -> bool {
    known.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Carriers, Config, Secrets};
    use crate::identity::{AppId, OpenId};

    fn identity_headers() -> IdentityHeaders {
        let text = include_str!("../../config/gateway.toml");
        let config = Config::parse("gateway.toml", text, Secrets::Ignore).unwrap();
        assert_eq!(config.session.carriers, Carriers { header: true, bearer: true });
        IdentityHeaders::new(&config.identity, &config.session)
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
    const GATEWAYS_OWN: [&str; 27] = [
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
            prop::sample::select(GATEWAYS_OWN.to_vec()),
            prop::collection::vec((any::<bool>(), separators), 24),
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
        fn upstream_sees_of_the_gateways_names_only_what_the_gateway_wrote(
            names in prop::collection::vec(any_name(), 0..24),
            is_known in any::<bool>(),
        ) {
            let mut request = HeaderMap::new();
            for name in &names {
                append(&mut request, name, "client");
            }
            let identity = Identity {
                app_id: AppId::parse("gateway").unwrap(),
                openid: OpenId::parse("gateway").unwrap(),
                unionid: None,
            };
            identity_headers().apply(&mut request, &forwarding(false), is_known.then_some(&identity)).unwrap();

            let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}\n", value.to_str().unwrap());
            let wire: String = request.iter().map(line).collect();
            let mut seen = std::collections::HashMap::new();
            for line in wire.lines() {
                let (name, value) = line.split_once(": ").unwrap();
                let name = cgi_name(name);
                if GATEWAYS_OWN.contains(&name.as_str()) {
                    prop_assert_eq!(value, "gateway", "{}", line);
                    *seen.entry(name).or_insert(0) += 1;
                }
            }
            prop_assert!(seen.values().all(|count| *count == 1), "{:?}", seen);
            prop_assert_eq!(seen.contains_key("x_openid"), is_known);
            prop_assert_eq!(seen.contains_key("x_appid"), is_known);
            prop_assert!(!seen.contains_key("x_unionid"));
            prop_assert_eq!(seen.len(), if is_known { 7 } else { 5 });
            let foreign = names.iter().filter(|name| !GATEWAYS_OWN.contains(&cgi_name(name).as_str()));
            prop_assert_eq!(foreign.count(), wire.lines().filter(|line| line.ends_with(": client")).count());
        }
    }

    #[test]
    fn a_trusted_proxys_headers_pass_only_in_their_own_spelling() {
        let mut request = HeaderMap::new();
        for name in ["X-Forwarded-Port", "X_Forwarded_Port", "Forwarded", "X_Forwarded_For"] {
            append(&mut request, name, "client");
        }
        identity_headers().apply(&mut request, &forwarding(true), None).unwrap();
        let mut kept: Vec<_> = request
            .iter()
            .filter(|(_, value)| *value == "client")
            .map(|(name, _)| name.as_str())
            .collect();
        kept.sort_unstable();
        assert_eq!(kept, ["forwarded", "x-forwarded-port"]);
    }

    #[test]
    fn only_authorization_lines_with_a_token_of_ours_are_removed() {
        let mut request = HeaderMap::new();
        let ours = format!("Bearer {}", "a".repeat(token::TOKEN_LENGTH));
        append(&mut request, "Authorization", "Basic abc");
        append(&mut request, "authorization", &ours);
        identity_headers().apply(&mut request, &forwarding(false), None).unwrap();
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
    fn an_answer_keeps_only_what_is_for_the_client() {
        let answer = cleaned(
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
        assert_eq!(names(&answer), ["content-length", "x-foreign", "x-request-id"]);
    }

    #[test]
    fn what_an_answers_connection_nominates_goes_but_for_its_framing() {
        let answer = cleaned(
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
        assert_eq!(names(&answer), ["connection", "upgrade", "x-foreign"]);
        let framing = [("Connection", "content-length, x-hop"), ("Content-Length", "5")];
        let answer = cleaned(200, &[&framing[..], &[("X-Hop", "1")]].concat());
        assert_eq!(names(&answer), ["connection", "content-length"]);
    }

    #[test]
    fn an_answer_without_a_body_has_no_length() {
        let framing = [("Content-Length", "0"), ("Transfer-Encoding", "chunked")];
        for status in [100, 103, 204] {
            let answer = cleaned(status, &[&framing[..], &[("X-Foreign", "kept")]].concat());
            assert_eq!(names(&answer), ["x-foreign"], "{status}");
        }
    }
}
