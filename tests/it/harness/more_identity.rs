//! What services get besides the openid: the user id of a login hook, a signed identity, and the
//! headers of WeChat Cloud Run.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::KeyPair;
use serde_json::{Value, json};

use super::upstream::{Received, Reply, Upstream};
use super::{APP, canary, openid};

/// The name of the gateway in a signed identity.
pub const ISSUER: &str = "https://gateway.test";

/// Every header that only the gateway may write, besides those that are on by default.
pub const NAMES: [&str; 13] = [
    "X-User-Id",
    "X-Wxgate-Jwt",
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
];

/// A login hook, and files that a gateway with all of it needs.
pub struct MoreIdentity {
    pub hook: Upstream,
    /// The header of the signed identity.
    pub header: &'static str,
    files: tempfile::TempDir,
}

impl MoreIdentity {
    pub async fn start(header: &'static str) -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("key.pem"), KeyPair::generate().unwrap().serialize_pem())
            .unwrap();
        let token = format!("a-token-of-the-hook-{:016x}", rand::random::<u64>());
        canary::plant(&token);
        std::fs::write(files.path().join("token"), token).unwrap();
        let hook = Upstream::start().await;
        hook.reply(|received| {
            let asked: Value = serde_json::from_slice(&received.body).unwrap();
            let answer = match user_id(asked["openid"].as_str().unwrap()) {
                Some(user_id) => json!({ "user_id": user_id }),
                None => json!({}),
            };
            Reply::ok("Content-Type: application/json\r\n", &answer.to_string())
        });
        Self { hook, header, files }
    }

    /// The keys of a configuration, to be written before its sections.
    pub fn keys(&self) -> String {
        let (hook, files) = (self.hook.address, self.files.path().display());
        format!(
            "identity.preset = \"wxcloudrun\"\nsession.carriers = [\"header\"]\n\
             identity.jwt = {{ key = {{ file = \"{files}/key.pem\" }}, issuer = \"{ISSUER}\", \
             header = \"{}\" }}\n\
             login.hook = {{ url = \"http://{hook}/hook\", token = {{ file = \"{files}/token\" }} }}\n",
            self.header
        )
    }

    /// Asserts that each of the headers that the service received is the gateway's: one line, in
    /// its own spelling. `user` is `None` if the request has no session.
    #[track_caller]
    pub fn assert_received(&self, received: &Received, user: Option<&str>, audience: &str) {
        let openid = user.map(openid);
        let unionid = user.and_then(wxgate::wechat::sandbox::unionid);
        let user_id = openid.as_deref().and_then(user_id);
        let expected = [
            ("x-user-id", user_id.as_deref()),
            ("x-wx-openid", openid.as_deref()),
            ("x-wx-appid", user.map(|_| APP)),
            ("x-wx-unionid", unionid.as_deref()),
            ("x-wx-source", user.map(|_| "wx_client")),
        ];
        let of = |name: &str| {
            let known = expected.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            known.and_then(|(_, value)| *value)
        };
        let is_jwt = |name: &str| name.eq_ignore_ascii_case(self.header);
        for name in NAMES.into_iter().filter(|name| !is_jwt(name)) {
            let value = Vec::from_iter(of(name));
            assert_eq!(received.folded(name), value, "{name}: {received:?}");
            assert_eq!(received.all(name), value, "{name} in its own spelling: {received:?}");
        }
        let Some(token) = self.token(received) else {
            assert_eq!(user, None, "no signed identity: {received:?}");
            return;
        };
        let claims = claims(&token);
        for (claim, value) in [
            ("iss", Some(ISSUER)),
            ("sub", openid.as_deref()),
            ("aud", Some(audience)),
            ("app_id", user.map(|_| APP)),
            ("unionid", unionid.as_deref()),
            ("user_id", user_id.as_deref()),
        ] {
            assert_eq!(claims[claim].as_str(), value, "{claim}: {claims}");
        }
    }

    /// The signed identity, if there is one: the only line of its header. It becomes a secret.
    #[track_caller]
    pub fn token(&self, received: &Received) -> Option<String> {
        let lines = received.folded(self.header);
        assert_eq!(received.all(self.header), lines, "in its own spelling: {received:?}");
        let is_bearer = self.header == "Authorization";
        let token = match lines[..] {
            [] => return None,
            [line] if is_bearer => line.strip_prefix("Bearer "),
            [line] => Some(line),
            _ => None,
        };
        let token = token.unwrap_or_else(|| panic!("one line: {received:?}"));
        canary::plant(token);
        Some(token.to_owned())
    }
}

/// The user id that the hook gives; `None` for users whose name begins with "nameless". It does not
/// show the openid.
pub fn user_id(openid: &str) -> Option<String> {
    let is_known = !openid.starts_with("onameless");
    is_known.then(|| format!("member-{}", openid.chars().rev().collect::<String>()))
}

/// The claims of a signed identity, whatever its signature.
pub fn claims(token: &str) -> Value {
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "{token}");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap()
}
