//! One attack after another on one gateway, and what must hold after each of them.
//!
//! An attack is bytes on a connection. Whatever it does, afterwards
//!
//! - every request that the service received has, of each reserved header and in any spelling,
//!   exactly the line that the gateway writes for the request's session, or no line without a
//!   session;
//! - the service received exactly the requests that the access log reports as forwarded;
//! - tokens, codes, the session key, the app secret and openids are in no log line, no metric, no
//!   error response and no request target that the service received;
//! - another user is served with their own identity, on the attacker's connection if that is still
//!   open, and on a connection of their own, each time with exactly one request;
//! - nothing in the gateway has panicked.
//!
//! Services differ in whether they use the first, the last or all lines of a repeated header. With
//! one line they cannot differ, so one recorder, which compares names as CGI does, represents all.

mod attack;
mod invariants;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

pub use self::attack::{Aim, Attack, Must, READERS, ROUTES};
use self::wire::{Wire, read_responses};
pub use self::wire::{connect, trusting};
use super::wechat::WeChat;
use crate::harness::client::Response;
use crate::harness::more_identity::MoreIdentity;
use crate::harness::process_log;
use crate::harness::upstream::{Received, Reply};
use crate::harness::{PATIENCE, SECRET, Stack, THREE_ROUTES, openid};
use crate::tls::https;

/// The outcome of an attack, without the bystander's requests.
pub struct Outcome {
    pub responses: Vec<Response>,
    /// Complete requests that the service received.
    pub received: Vec<Received>,
    /// Whether the bystander was served on the attacker's connection.
    pub goes_on: bool,
}

struct User {
    token: String,
    openid: String,
}

const MALLORY: &str = "unionmallory";
const BYSTANDER: &str = "bystander";

pub struct Siege {
    pub stack: Stack,
    pub wechat: WeChat,
    witness: Witness,
    mallory: User,
    bystander: User,
    /// Secrets that must appear nowhere.
    pub secrets: Vec<String>,
    tls: Option<Arc<rustls::ClientConfig>>,
    log: PathBuf,
    /// How far the logs have been read.
    read_log: u64,
    read_process_log: usize,
    begun: usize,
    whole: usize,
    logged: f64,
    canaries: usize,
    may_lose_requests: bool,
    /// Log lines of requests that were forwarded and have not arrived.
    given_up: Vec<Value>,
    /// Set if the gateway also writes these headers.
    pub more: Option<MoreIdentity>,
    _certificate: Option<tempfile::TempDir>,
}

/// Which service records the requests of the attacks.
enum Witness {
    /// The recorder of the stack, byte for byte.
    Recorder,
    /// A program of others, with lines of JSON in a file: a request's id, the openid
    /// that the service trusts, and the request line.
    Service { log: PathBuf, read: u64, arrived: Vec<Received> },
}

impl Siege {
    pub async fn start() -> Self {
        Self::start_with("", THREE_ROUTES).await
    }

    /// With keys of its own in front, and other tables behind; the bystander requests
    /// `/required`.
    pub async fn start_with(keys: &str, tables: &str) -> Self {
        Self::open(&format!("{keys}\n{tables}"), Witness::Recorder, None, None, None).await
    }

    /// With all identity headers, behind HTTPS or not.
    pub async fn start_with_more(header: &'static str, is_https: bool) -> Self {
        let more = MoreIdentity::start(header).await;
        let keys = more.keys();
        if is_https {
            return Self::open_https(&keys, Some(more)).await;
        }
        let changes = format!("{keys}\n{THREE_ROUTES}");
        Self::open(&changes, Witness::Recorder, None, None, Some(more)).await
    }

    /// In front of a service on this port, which logs the identities that it trusts.
    pub async fn start_before(port: u16, log: PathBuf) -> Self {
        let service =
            format!("[[upstream]]\nname = \"recorder\"\nservers = [\"127.0.0.1:{port}\"]");
        let read = std::fs::metadata(&log).unwrap().len();
        let witness = Witness::Service { log, read, arrived: Vec::new() };
        Self::open(&format!("{THREE_ROUTES}\n{service}"), witness, None, None, None).await
    }

    /// The same routes behind HTTPS.
    pub async fn start_https(keys: &str) -> Self {
        Self::open_https(keys, None).await
    }

    async fn open_https(keys: &str, more: Option<MoreIdentity>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (changes, identity) = https(directory.path(), &format!("{keys}\n{THREE_ROUTES}"));
        let tls = trusting(&identity);
        Self::open(&changes, Witness::Recorder, Some(tls), Some(directory), more).await
    }

    async fn open(
        changes: &str,
        witness: Witness,
        tls: Option<Arc<rustls::ClientConfig>>,
        certificate: Option<tempfile::TempDir>,
        more: Option<MoreIdentity>,
    ) -> Self {
        let wechat = WeChat::start().await;
        let keys = format!(
            "wechat.base_url = \"http://{}\"\nwechat.breaker_failures = 0\nlog.access = \"{{dir}}/access.log\"\n",
            wechat.address
        );
        let stack = Stack::start_with(&(keys + changes)).await;
        stack.upstream.reply(|received| {
            let body = serde_json::json!({
                "target": received.target(),
                "openid": received.folded("x-openid"),
            });
            Reply::ok("", &body.to_string())
        });
        let nobody = || User { token: String::new(), openid: String::new() };
        let secrets = vec![SECRET.to_owned(), wechat.session_key.clone()];
        let mut siege = Self {
            log: stack.directory.path().join("access.log"),
            stack,
            wechat,
            witness,
            mallory: nobody(),
            bystander: nobody(),
            secrets,
            tls,
            read_log: 0,
            read_process_log: process_log::position(),
            begun: 0,
            whole: 0,
            logged: 0.0,
            canaries: 0,
            may_lose_requests: false,
            given_up: Vec::new(),
            more,
            _certificate: certificate,
        };
        siege.mallory = siege.log_in(MALLORY).await;
        siege.bystander = siege.log_in(BYSTANDER).await;
        siege.hold("the logins").await;
        siege
    }

    /// From now on the client may abort requests: not all that are forwarded arrive.
    pub fn may_lose_requests(&mut self) {
        self.may_lose_requests = true;
    }

    /// The attacker's own session.
    pub fn token(&self) -> &str {
        &self.mallory.token
    }

    /// New sessions for both, when the old ones have ended.
    pub async fn renew(&mut self) {
        self.mallory = self.log_in(MALLORY).await;
        self.bystander = self.log_in(BYSTANDER).await;
    }

    /// Logs a user in on a connection of its own; the token becomes a secret.
    pub async fn token_of(&mut self, user: &str) -> String {
        self.log_in(user).await.token
    }

    async fn log_in(&mut self, user: &str) -> User {
        let code = self.code_of(user);
        let body = format!("{{\"code\":\"{code}\"}}");
        let header = format!(
            "POST /login HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut wire = self.connect(&[]).await;
        wire.write_all((header + &body).as_bytes()).await.unwrap();
        let responses = read_responses(&mut wire, false, |responses| !responses.is_empty()).await;
        let responses = responses.responses;
        assert_eq!(responses[0].status, 200, "{}", responses[0].text());
        let token = responses[0].json()["token"].as_str().unwrap().to_owned();
        self.secrets.push(token.clone());
        User { token, openid: openid(user) }
    }

    /// A valid code for a user; it becomes a secret.
    pub fn code_of(&mut self, user: &str) -> String {
        let code = format!("user-{user}-{:016x}", rand::random::<u64>());
        self.secrets.push(code.clone());
        code
    }

    /// A connection to the gateway, over TLS if it is HTTPS, with these protocols in ALPN.
    pub async fn connect(&self, protocols: &[&str]) -> Box<dyn Wire> {
        connect(self.stack.gateway, self.tls.as_ref(), protocols).await
    }

    /// Runs an attack against each of the aims.
    pub async fn run_on(&mut self, aims: &[Aim], attack: &Attack) {
        for aim in aims {
            let mut attack = attack.clone();
            let may_be_forwarded = matches!(attack.must, Must::Served(_) | Must::Harmless);
            if may_be_forwarded && aim.path == "/required" && !aim.has_token {
                attack.must = Must::Rejected;
            }
            let auth = match aim.has_token {
                true => format!("X-3rd-Session: {}\r\n", self.mallory.token),
                false => String::new(),
            };
            for (name, value) in
                [("{method}", aim.method), ("{path}", aim.path), ("{auth}", auth.as_str())]
            {
                attack.template = replaced(&attack.template, name.as_bytes(), value.as_bytes());
            }
            self.run(&attack).await;
        }
    }

    /// Runs an attack as it is.
    pub async fn run(&mut self, attack: &Attack) -> Outcome {
        let name = name_of(&attack.template);
        let (canary, canary_bytes) = self.canary();
        let mut bytes = attack.template.clone();
        if !attack.is_unfinished {
            bytes.extend_from_slice(&canary_bytes);
        }
        let (mut from, mut to) = tokio::io::split(self.connect(&["http/1.1"]).await);
        let sending = async {
            for part in bytes.chunks(attack.part.min(bytes.len().max(1))) {
                if to.write_all(part).await.is_err() || to.flush().await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            if attack.is_unfinished {
                let _ = to.shutdown().await;
            }
            std::future::pending::<()>().await;
        };
        let is_canary = |response: &Response| is_response_to(response, &canary);
        let is_head = attack.template.starts_with(b"HEAD ");
        let reading =
            read_responses(&mut from, is_head, |responses| responses.last().is_some_and(is_canary));
        let mut read = tokio::select! {
            read = timeout(PATIENCE, reading) => {
                read.unwrap_or_else(|_| panic!("neither a response nor an end: {name}"))
            }
            () = sending => unreachable!(),
        };
        drop((from, to));
        let goes_on = read.responses.last().is_some_and(is_canary);
        if goes_on {
            let response = read.responses.pop().unwrap();
            self.assert_bystander(&response, &name);
        }
        for response in &read.responses {
            self.assert_shows_no_secret(response, &name);
        }
        let received = self.hold(&name).await;
        let (received, canaries): (Vec<Received>, Vec<Received>) =
            received.into_iter().partition(|request| !is_canary_target(request.target()));
        // Her own connection's and, if it went on, the attacker's.
        assert_eq!(canaries.len(), 1 + usize::from(goes_on), "the bystander's requests: {name}");
        let outcome = Outcome { responses: read.responses, received, goes_on };
        self.judge(&name, attack.must, &outcome, read.has_ended);
        outcome
    }

    fn judge(&self, name: &str, must: Must, outcome: &Outcome, has_ended: bool) {
        let statuses: Vec<u16> = outcome.responses.iter().map(|response| response.status).collect();
        let shown = format!("{must:?}, but {statuses:?} and {:?}: {name}", outcome.received);
        let are_refusals = statuses.iter().all(|status| matches!(status, 100 | 400..=499));
        match must {
            Must::Cut => {
                assert!(
                    are_refusals && statuses.len() <= 1 && outcome.received.is_empty(),
                    "{shown}"
                );
                assert!(has_ended && !outcome.goes_on, "{shown}");
            }
            Must::Rejected => {
                assert!(are_refusals && outcome.received.is_empty(), "{shown}");
                assert!(!statuses.is_empty() || has_ended, "{shown}");
            }
            Must::Served(count) => {
                assert_eq!(statuses, vec![200; count], "{shown}");
                assert_eq!(outcome.received.len(), count, "{shown}");
                assert!(outcome.goes_on, "{shown}");
            }
            Must::Harmless => {}
        }
    }

    /// Sends a request of the bystander on a connection of her own.
    pub async fn send_as_bystander(&mut self, after: &str) {
        let (canary, bytes) = self.canary();
        let mut wire = self.connect(&["http/1.1"]).await;
        wire.write_all(&bytes).await.unwrap();
        wire.flush().await.unwrap();
        let reading = read_responses(&mut wire, false, |responses| !responses.is_empty());
        let received = timeout(PATIENCE, reading).await;
        let received = received.unwrap_or_else(|_| panic!("the bystander waits after {after}"));
        let response = received.responses.first();
        let response =
            response.unwrap_or_else(|| panic!("no response to the bystander after {after}"));
        assert!(is_response_to(response, &canary), "{}: after {after}", response.text());
        self.assert_bystander(response, after);
    }

    fn assert_bystander(&self, response: &Response, after: &str) {
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(
            response.json()["openid"],
            serde_json::json!([self.bystander.openid]),
            "{after}"
        );
    }

    /// A request of the bystander's, and its target.
    pub fn canary(&mut self) -> (String, Vec<u8>) {
        self.canaries += 1;
        let target = format!("/required/canary/{}", self.canaries);
        let token = &self.bystander.token;
        let header = format!(
            "GET {target} HTTP/1.1\r\nHost: gateway.test\r\nX-3rd-Session: {token}\r\n\r\n"
        );
        (target, header.into_bytes())
    }

    pub fn bystanders_token(&self) -> &str {
        &self.bystander.token
    }
}

fn is_canary_target(target: &str) -> bool {
    target.starts_with("/required/canary/")
}

fn is_response_to(response: &Response, target: &str) -> bool {
    let body = serde_json::from_slice::<Value>(&response.body);
    body.is_ok_and(|body| body["target"] == target)
}

/// Bytes as text, for failures.
pub fn name_of(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(600)];
    format!("{}{}", shown.escape_ascii(), if shown.len() < bytes.len() { "..." } else { "" })
}

fn replaced(text: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(name.len()).position(|window| window == name) {
        replaced.extend_from_slice(&rest[..at]);
        replaced.extend_from_slice(value);
        rest = &rest[at + name.len()..];
    }
    replaced.extend_from_slice(rest);
    replaced
}
