//! One attack after another on one gateway, and what must hold after each of them.
//!
//! An attack is bytes on a connection. Whatever it does, after it
//!
//! - every request that the service received has of each reserved header exactly the line that
//!   the gateway writes for its session, or none without a session, in any spelling;
//! - the service received the requests that the access log has as forwarded, and no other;
//! - tokens, codes, the session key, the app secret and openids appear in no line of a log, in no
//!   metric, in no error response and in no target that the service received;
//! - a bystander is served, as herself, on the attacker's connection, if that is kept, and on
//!   one of her own, each time by exactly one request;
//! - nothing in the gateway has panicked.
//!
//! Services that take the first, the last or all of several lines cannot differ where there
//! is one, so one recorder that compares names as a CGI does stands for all of them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{CertifiedKey, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::wechat::WeChat;
use crate::harness::client::{self, Response};
use crate::harness::process_log;
use crate::harness::upstream::{Received, Reply};
use crate::harness::{APP, PATIENCE, SECRET, Stack, THREE_ROUTES, openid};
use crate::tls::https;

/// The outcome that an attack must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// At most one 4xx, then the connection is closed; nothing is forwarded.
    Cut,
    /// Only rejections; nothing is forwarded.
    Refused,
    /// So many requests are forwarded and get 200, and the connection is kept.
    Served(usize),
    /// The connection may be kept or not, as long as the invariants hold.
    Harmless,
}

/// Bytes with `{method}`, `{path}` and `{auth}` to be filled in.
#[derive(Clone, Debug)]
pub struct Attack {
    template: Vec<u8>,
    must: Must,
    is_unfinished: bool,
    part: usize,
}

impl Attack {
    pub fn new(template: impl AsRef<[u8]>, must: Must) -> Self {
        let template = template.as_ref().to_vec();
        Self { template, must, is_unfinished: false, part: usize::MAX }
    }

    /// More bytes would be read as the rest of it: the client closes its half instead.
    pub fn unfinished(mut self) -> Self {
        self.is_unfinished = true;
        self
    }

    /// Sends it in parts of this size.
    pub fn in_parts(mut self, part: usize) -> Self {
        self.part = part;
        self
    }
}

/// The target of an attack.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    pub method: &'static str,
    pub path: &'static str,
    pub has_token: bool,
}

const fn aim(method: &'static str, path: &'static str, has_token: bool) -> Aim {
    Aim { method, path, has_token }
}

/// The three kinds of routes, with a token and without.
pub const ROUTES: [Aim; 6] = [
    aim("GET", "/required", true),
    aim("GET", "/required", false),
    aim("GET", "/optional", true),
    aim("GET", "/optional", false),
    aim("GET", "/none", true),
    aim("GET", "/none", false),
];

/// Every kind of reader of a request's body.
pub const READERS: [Aim; 8] = [
    aim("POST", "/required", true),
    aim("POST", "/none", false),
    aim("GET", "/optional", true),
    aim("OPTIONS", "/none", false),
    aim("POST", "/login", false),
    aim("POST", "/logout", false),
    aim("GET", "/session", true),
    aim("POST", "/nowhere", true),
];

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

pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl Siege {
    pub async fn start() -> Self {
        Self::start_with("", THREE_ROUTES).await
    }

    /// With keys of its own in front, and other tables behind; the bystander requests
    /// `/required`.
    pub async fn start_with(keys: &str, tables: &str) -> Self {
        Self::open(&format!("{keys}\n{tables}"), Witness::Recorder, None, None).await
    }

    /// In front of a service on this port, which logs the identities that it trusts.
    pub async fn start_before(port: u16, log: PathBuf) -> Self {
        let service =
            format!("[[upstream]]\nname = \"recorder\"\nservers = [\"127.0.0.1:{port}\"]");
        let read = std::fs::metadata(&log).unwrap().len();
        let witness = Witness::Service { log, read, arrived: Vec::new() };
        Self::open(&format!("{THREE_ROUTES}\n{service}"), witness, None, None).await
    }

    /// The same routes behind HTTPS.
    pub async fn start_https(keys: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (changes, identity) = https(directory.path(), &format!("{keys}\n{THREE_ROUTES}"));
        let tls = trusting(&identity);
        Self::open(&changes, Witness::Recorder, Some(tls), Some(directory)).await
    }

    async fn open(
        changes: &str,
        witness: Witness,
        tls: Option<Arc<rustls::ClientConfig>>,
        certificate: Option<tempfile::TempDir>,
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
            _certificate: certificate,
        };
        siege.mallory = siege.log_in("unionmallory").await;
        siege.bystander = siege.log_in("bystander").await;
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
        self.mallory = self.log_in("unionmallory").await;
        self.bystander = self.log_in("bystander").await;
    }

    /// Logs a user in on a connection of its own; the token becomes a secret.
    pub async fn token_of(&mut self, user: &str) -> String {
        self.log_in(user).await.token
    }

    async fn log_in(&mut self, user: &str) -> User {
        let code = self.code_of(user);
        let body = format!("{{\"code\":\"{code}\"}}");
        let head = format!(
            "POST /login HTTP/1.1\r\nHost: gateway.test\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut wire = self.connect(&[]).await;
        wire.write_all((head + &body).as_bytes()).await.unwrap();
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
                attack.must = Must::Refused;
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
            Must::Refused => {
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
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: gateway.test\r\nX-3rd-Session: {token}\r\n\r\n"
        );
        (target, head.into_bytes())
    }

    pub fn bystanders_token(&self) -> &str {
        &self.bystander.token
    }

    /// Asserts the invariants, and returns the complete requests that the service received
    /// since the last time.
    pub async fn hold(&mut self, after: &str) -> Vec<Received> {
        if !self.bystander.token.is_empty() {
            self.send_as_bystander(after).await;
        }
        let (lines, metrics) = self.settle(after).await;
        let begun = self.begun();
        let whole = match &mut self.witness {
            Witness::Recorder => self.stack.upstream.requests_after(self.whole),
            Witness::Service { arrived, .. } => std::mem::take(arrived),
        };
        self.begun += begun.len();
        self.whole += whole.len();
        assert!(self.stack.upstream.faults().is_empty(), "{:?}", self.stack.upstream.faults());
        for received in &begun {
            let id = received.all("x-request-id");
            let mut known = self.given_up.iter().chain(&lines);
            let line = known.find(|line| id == [line["request_id"].as_str().unwrap()]);
            let line = line.unwrap_or_else(|| panic!("{received:?} was not logged, after {after}"));
            self.assert_identity(received, line, after);
        }
        let log: Vec<String> = lines.iter().map(Value::to_string).collect();
        if self.may_lose_requests {
            // A service may log an aborted request later, but only once.
            self.given_up.extend(lines);
            let has_come = |line: &Value| {
                begun.iter().any(|received| received.all("x-request-id") == [&line["request_id"]])
            };
            self.given_up.retain(|line| !line["upstream"].is_null() && !has_come(line));
        }
        let process_log = process_log::text_after(self.read_process_log);
        self.read_process_log += process_log.len();
        for secret in self.secrets.iter().chain([&self.mallory.openid, &self.bystander.openid]) {
            if secret.is_empty() {
                continue;
            }
            assert!(!log.iter().any(|line| line.contains(secret)), "{secret} in {log:?}: {after}");
            assert!(!process_log.contains(secret), "{secret} in {process_log}: {after}");
            assert!(!metrics.contains(secret), "{secret} in metrics: {after}");
        }
        assert_eq!(process_log::panics(), [""; 0], "after {after}");
        whole
    }

    /// Requests since the last time of which at least the header has come.
    fn begun(&mut self) -> Vec<Received> {
        match &mut self.witness {
            Witness::Recorder => self.stack.upstream.begun_after(self.begun),
            Witness::Service { log, read, arrived } => {
                for line in new_lines(log, read) {
                    arrived.extend(logged_request(&line));
                }
                arrived.clone()
            }
        }
    }

    /// Waits until everything is logged: as many lines as requests were counted, and
    /// every forwarded one has arrived. Returns the new lines, and the metrics.
    async fn settle(&mut self, after: &str) -> (Vec<Value>, String) {
        let mut lines: Vec<Value> = Vec::new();
        let mut shown = String::new();
        let mut was_quiet = false;
        let settled = async {
            loop {
                let metrics = client::get(self.stack.admin, "/metrics").await.text();
                let counted = sum(&metrics, "wxgate_http_requests_total{");
                let in_flight = sum(&metrics, "wxgate_http_requests_in_flight ");
                lines.extend(new_lines(&self.log, &mut self.read_log));
                let begun = self.begun();
                let mut forwarded: Vec<&str> = lines
                    .iter()
                    .filter(|line| !line["upstream"].is_null())
                    .map(|line| line["request_id"].as_str().unwrap())
                    .collect();
                let mut read: Vec<&str> =
                    begun.iter().flat_map(|received| received.all("x-request-id")).collect();
                forwarded.sort_unstable();
                read.sort_unstable();
                let is_logged = (counted - self.logged - lines.len() as f64).abs() < 0.5;
                let answered = |line: &&Value| line["upstream_status"] == 200;
                let is_told = match self.may_lose_requests {
                    true => lines.iter().filter(answered).all(|line| {
                        read.binary_search(&line["request_id"].as_str().unwrap()).is_ok()
                    }),
                    false => forwarded == read,
                };
                let are_all_known = read.len() == begun.len();
                // The counter may be older than the gauge beside it: it is read once more.
                if was_quiet && in_flight == 0.0 && is_logged && is_told && are_all_known {
                    self.logged = counted;
                    return metrics;
                }
                if in_flight == 0.0 && !was_quiet {
                    was_quiet = true;
                    continue;
                }
                shown = format!("{in_flight} in flight, {lines:?} for {begun:?}");
                sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(PATIENCE, settled).await {
            Ok(metrics) => (lines, metrics),
            Err(_) => panic!("log and requests differ: {shown}, after {after}"),
        }
    }

    /// Asserts that the reserved headers of a request are the gateway's.
    fn assert_identity(&self, received: &Received, line: &Value, after: &str) {
        let target = received.target();
        let is_known = line["decision"] == "ok";
        let openid = match target.rsplit_once("/of/") {
            _ if is_canary_target(target) => self.bystander.openid.clone(),
            Some((_, user)) => openid(user),
            None => self.mallory.openid.clone(),
        };
        let unionid = Some(wxgate::wechat::sandbox::unionid("unionmallory").unwrap())
            .filter(|_| openid == self.mallory.openid);
        let if_known = |value: &str| is_known.then(|| value.to_owned());
        let proto = if self.tls.is_some() { "https" } else { "http" };
        let host = received.all("host").first().map(|host| (*host).to_owned());
        let expected = [
            ("x-openid", if_known(&openid)),
            ("x-appid", if_known(APP)),
            ("x-unionid", unionid.filter(|_| is_known)),
            ("x-forwarded-for", Some("127.0.0.1".to_owned())),
            ("x-real-ip", Some("127.0.0.1".to_owned())),
            ("x-forwarded-proto", Some(proto.to_owned())),
            ("x-forwarded-host", host),
            ("x-request-id", Some(line["request_id"].as_str().unwrap().to_owned())),
        ];
        let none = NEVER_SENT.map(|name| (name, None));
        // A service only logs whose request it takes it for.
        let shown = match &self.witness {
            Witness::Recorder => usize::MAX,
            Witness::Service { .. } => 1,
        };
        for (name, value) in expected.into_iter().chain(none).take(shown) {
            let value: Vec<&str> = value.iter().map(String::as_str).collect();
            assert_eq!(received.folded(name), value, "{name} of {received:?}, after {after}");
            assert_eq!(
                received.all(name),
                value,
                "in its own spelling: {received:?}, after {after}"
            );
        }
        let said =
            |secret: &&String| received.lines.iter().any(|(_, value)| value.contains(*secret));
        assert_eq!(self.secrets.iter().find(said), None, "{received:?}, after {after}");
        let is_told = |secret: &&String| target.contains(*secret) && !after.contains(*secret);
        assert_eq!(self.secrets.iter().find(is_told), None, "{target}, after {after}");
    }

    /// Asserts that a response shows no secret of WeChat, and an error no secret at all.
    pub fn assert_shows_no_secret(&self, response: &Response, after: &str) {
        let text = format!("{response:?} {}", response.text());
        let wechats = [SECRET, &self.wechat.session_key];
        assert!(!wechats.iter().any(|secret| text.contains(secret)), "{text}, after {after}");
        if response.status >= 400 {
            let shown = self.secrets.iter().find(|secret| text.contains(*secret));
            assert_eq!(shown, None, "{text}, after {after}");
        }
    }
}

/// A client's side of TLS that trusts this certificate.
pub fn trusting(identity: &CertifiedKey<KeyPair>) -> Arc<rustls::ClientConfig> {
    crate::harness::install_provider();
    let mut roots = RootCertStore::empty();
    roots.add(identity.cert.der().clone()).unwrap();
    let config = rustls::ClientConfig::builder();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

pub async fn connect(
    address: SocketAddr,
    tls: Option<&Arc<rustls::ClientConfig>>,
    protocols: &[&str],
) -> Box<dyn Wire> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let Some(tls) = tls else { return Box::new(stream) };
    let mut tls = rustls::ClientConfig::clone(tls);
    tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    Box::new(TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap())
}

/// Reserved headers that the gateway does not send.
const NEVER_SENT: [&str; 12] = [
    "x-3rd-session",
    "x-wx-openid",
    "x-wx-appid",
    "x-wx-unionid",
    "x-wx-from-openid",
    "x-wx-from-appid",
    "x-wx-from-unionid",
    "x-wx-source",
    "x-wx-env",
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
];

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

/// Whole lines of JSON that were added to a file.
fn new_lines(file: &Path, read: &mut u64) -> Vec<Value> {
    let mut file = File::open(file).unwrap();
    file.seek(SeekFrom::Start(*read)).unwrap();
    let mut new = Vec::new();
    file.read_to_end(&mut new).unwrap();
    let end = new.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    *read += end as u64;
    let new = std::str::from_utf8(&new[..end]).unwrap();
    new.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A request as a service logs it; `None` for a line about a connection.
fn logged_request(line: &Value) -> Option<Received> {
    let text = |key: &str| line[key].as_str().filter(|text| !matches!(*text, "" | "-"));
    let request_line = text("line")?.to_owned();
    // The header that it received counts if it does not log whom it trusts.
    let openid = text("openid").or(text("told"));
    let lines = [("x-request-id", text("id")), ("x-openid", openid)];
    let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let lines = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Some(Received { request_line, lines, ..Received::default() })
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

/// The sum of all series of a metric.
pub fn sum(metrics: &str, prefix: &str) -> f64 {
    let values = metrics.lines().filter(|line| line.starts_with(prefix));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

struct ReadResponses {
    responses: Vec<Response>,
    has_ended: bool,
}

/// Reads complete responses until there are enough of them, or to the end.
async fn read_responses(
    wire: &mut (impl AsyncRead + Unpin),
    is_first_bodyless: bool,
    are_enough: impl Fn(&[Response]) -> bool,
) -> ReadResponses {
    let mut bytes = Vec::new();
    let mut responses = Vec::new();
    loop {
        let read = Pin::new(&mut *wire).read_buf(&mut bytes).await;
        let has_ended = !matches!(read, Ok(1..));
        while let Some((response, length)) =
            Response::parse(&bytes, is_first_bodyless && responses.is_empty(), has_ended)
        {
            bytes.drain(..length);
            responses.push(response);
        }
        if has_ended || are_enough(&responses) {
            return ReadResponses { responses, has_ended };
        }
    }
}
