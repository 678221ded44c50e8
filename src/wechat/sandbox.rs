//! A simulated WeChat for development and tests.
//!
//! It implements code2Session with WeChat's behaviour: a code works once and for five minutes, app
//! id and secret are checked, errors come with HTTP 200, and every response is `text/plain`. It is
//! only started by its own command, by the demo and by tests; no gateway configuration can start
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use http_body_util::BodyExt;
use moka::sync::Cache;
use rand::Rng;
use rand::distr::{Alphanumeric, SampleString};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::listener::internal::{self, Dropped, Request, Response, response};

/// The app that exists if none is configured.
pub const DEFAULT_APP: (&str, &str) = ("wx0123456789abcdef", "sandbox-secret");

/// The prefix of every session key of the sandbox, so that tests recognise it where it must not be.
pub const SESSION_KEY: &str = "c2FuZGJve";

/// Lifetime of WeChat's codes (wx.login).
const CODE_LIFE: Duration = Duration::from_secs(300);

/// Bytes of a response that is too long to be read to its end.
const HUGE: usize = 100 << 20;

/// Duration of an exchange at the beginning of a slow start.
const SLOWEST: Duration = Duration::from_secs(2);

/// Maximum number of codes that are remembered, issued or used; the oldest are forgotten.
const CODES_KEPT: u64 = 100_000;

/// Maximum bytes of a request for a code.
const LONGEST_BODY: usize = 4 << 10;

/// A simulated WeChat.
pub struct Sandbox {
    /// App ids and secrets.
    apps: Vec<(String, String)>,
    clock: Clock,
    /// Issued by `POST /sandbox/codes`.
    given: Cache<String, Given>,
    used: Cache<String, ()>,
    habits: Habits,
    began: Duration,
    /// The current `session_key` of each user, by openid.
    keys: Cache<String, [u8; 16]>,
    /// Logins of each user in the current minute.
    minutes: Cache<String, (u64, u32)>,
    logins: AtomicU64,
    exchanges: AtomicU64,
    at_once: AtomicU64,
    most_at_once: AtomicU64,
}

/// How the simulated WeChat behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// Duration of an exchange.
    pub latency: Duration,
    /// For this time after the start, exchanges take longer: two seconds at first, then less and
    /// less.
    pub slow_start: Duration,
    /// Logins per user and minute; further ones get 45011.
    pub user_quota: u32,
    /// Logins in total; further ones get 45009.
    pub quota: Option<u64>,
    /// Whether the caller's address is missing from the whitelist: every call gets 40164.
    pub refuses_address: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            latency: Duration::ZERO,
            slow_start: Duration::ZERO,
            // The value that WeChat's documentation gave.
            user_quota: 100,
            quota: None,
            refuses_address: false,
        }
    }
}

#[derive(Clone)]
struct Given {
    user: String,
    at: Duration,
}

/// What a code makes the sandbox do.
enum Meaning {
    Login { user: String },
    Slow { delay: Duration, user: String },
    Fail { errcode: i64 },
    Status(u16),
    Garbage,
    Half,
    Huge,
    Hang,
    Drop,
}

impl Sandbox {
    pub fn new(apps: Vec<(String, String)>, clock: Clock) -> Arc<Self> {
        Self::with_habits(apps, clock, Habits::default())
    }

    pub fn with_habits(apps: Vec<(String, String)>, clock: Clock, habits: Habits) -> Arc<Self> {
        Arc::new(Self {
            apps,
            began: clock.now(),
            clock,
            given: Cache::new(CODES_KEPT),
            used: Cache::new(CODES_KEPT),
            habits,
            keys: Cache::new(CODES_KEPT),
            minutes: Cache::new(CODES_KEPT),
            logins: AtomicU64::new(0),
            exchanges: AtomicU64::new(0),
            at_once: AtomicU64::new(0),
            most_at_once: AtomicU64::new(0),
        })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let handler = move |request| {
            let sandbox = self.clone();
            async move { sandbox.answer(request).await }
        };
        match internal::serve(listener, handler).await {}
    }

    /// How often code2Session was called.
    pub fn exchanges(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// Maximum number of concurrent calls of code2Session so far.
    pub fn most_at_once(&self) -> u64 {
        self.most_at_once.load(Ordering::Relaxed)
    }

    async fn answer(&self, request: Request) -> Result<Response, Dropped> {
        match (request.uri().path(), request.method()) {
            ("/sns/jscode2session", _) => self.code_to_session(&request).await,
            ("/wxa/checksession", &Method::GET) => Ok(self.check_session(&request)),
            ("/sandbox/stats", &Method::GET) => {
                let stats = json!({
                    "exchanges": self.exchanges(),
                    "most_at_once": self.most_at_once(),
                });
                Ok(response(200, "application/json", stats.to_string()))
            }
            ("/sandbox/codes", &Method::POST) => Ok(self.give_code(request).await),
            _ => Ok(response(404, "text/plain", "not found\n")),
        }
    }

    async fn code_to_session(&self, request: &Request) -> Result<Response, Dropped> {
        self.exchanges.fetch_add(1, Ordering::Relaxed);
        let _under_way = UnderWay::begin(self);
        tokio::time::sleep(self.delay()).await;
        let query = match *request.method() {
            Method::GET => request.uri().query().unwrap_or_default(),
            // WeChat reads the parameters of GET requests only.
            _ => "",
        };
        let parameter = |name: &str| parameter(query, name);
        let (app_id, secret, code) =
            (parameter("appid"), parameter("secret"), parameter("js_code"));
        if let Some(errcode) = self.refusal(&app_id, &secret, &code, &parameter("grant_type")) {
            return Ok(failure(errcode));
        }
        let user = match self.meaning(&code) {
            Meaning::Login { .. } | Meaning::Slow { .. } if !self.take(&code) => {
                return Ok(failure(40163));
            }
            Meaning::Login { user } => user,
            Meaning::Slow { delay, user } => {
                tokio::time::sleep(delay).await;
                user
            }
            Meaning::Fail { errcode } => return Ok(failure(errcode)),
            Meaning::Status(status) => {
                let mut answer = response(status, "text/html", "<html>oops</html>");
                if let Ok(location) = "https://elsewhere.invalid/".parse() {
                    answer.headers_mut().insert(http::header::LOCATION, location);
                }
                return Ok(answer);
            }
            Meaning::Garbage => return Ok(response(200, "text/html", "<html>{\"openid\":\"o\"")),
            Meaning::Half => return Ok(response(200, "text/plain", "{\"openid\":\"o12")),
            Meaning::Huge => return Ok(response(200, "text/plain", vec![0; HUGE])),
            Meaning::Hang => return std::future::pending().await,
            Meaning::Drop => return Err(Dropped),
        };
        if let Some(errcode) = self.quota_refusal(&app_id, &user) {
            self.used.invalidate(&code);
            return Ok(failure(errcode));
        }
        Ok(text(&self.grant(&app_id, &user)))
    }

    /// Marks a code as used, even if its response never arrives. Of two concurrent calls, one
    /// succeeds.
    fn take(&self, code: &str) -> bool {
        self.used.entry_by_ref(code).or_insert(()).is_fresh()
    }

    /// How long the response takes.
    fn delay(&self) -> Duration {
        let left = (self.began + self.habits.slow_start).saturating_sub(self.clock.now());
        if left.is_zero() {
            return self.habits.latency;
        }
        self.habits.latency + SLOWEST.mul_f64(left.div_duration_f64(self.habits.slow_start))
    }

    fn quota_refusal(&self, app_id: &str, user: &str) -> Option<i64> {
        let minute = self.clock.now().as_secs() / 60;
        let counted = self.minutes.entry(openid(app_id, user)).and_upsert_with(|last| {
            match last.map(moka::Entry::into_value) {
                Some((at, count)) if at == minute => (minute, count.saturating_add(1)),
                _ => (minute, 1),
            }
        });
        if counted.into_value().1 > self.habits.user_quota {
            return Some(45011);
        }
        let quota = self.habits.quota?;
        (self.logins.fetch_add(1, Ordering::Relaxed) >= quota).then_some(45009)
    }

    /// Each login gives the user a new `session_key`, and invalidates the one before.
    fn grant(&self, app_id: &str, user: &str) -> Value {
        let mut key = *b"sandbox-xxxxxxxx";
        rand::rng().fill_bytes(key.get_mut(8..).unwrap_or_default());
        self.keys.insert(openid(app_id, user), key);
        let mut grant =
            json!({ "session_key": STANDARD.encode(key), "openid": openid(app_id, user) });
        if let (Some(unionid), Some(fields)) = (unionid(user), grant.as_object_mut()) {
            fields.insert("unionid".to_owned(), unionid.into());
        }
        grant
    }

    /// auth.checkSessionKey: whether a signature was made with the user's `session_key`. Any
    /// `access_token` is accepted.
    fn check_session(&self, request: &Request) -> Response {
        let query = request.uri().query().unwrap_or_default();
        let key = self.keys.get(&parameter(query, "openid")).unwrap_or_default();
        let signature = Hmac::<Sha256>::new_from_slice(&key)
            .map(|hmac| hmac.finalize().into_bytes())
            .unwrap_or_default();
        let is_right = parameter(query, "sig_method") == "hmac_sha256"
            && self.keys.contains_key(&parameter(query, "openid"))
            && parameter(query, "signature") == hex(&signature);
        if is_right { text(&json!({ "errcode": 0, "errmsg": "ok" })) } else { failure(87009) }
    }

    /// The checks that WeChat makes before it checks the code.
    fn refusal(&self, app_id: &str, secret: &str, code: &str, grant_type: &str) -> Option<i64> {
        if app_id.is_empty() {
            return Some(41002);
        }
        if secret.is_empty() {
            return Some(41004);
        }
        if code.is_empty() {
            return Some(41008);
        }
        if grant_type != "authorization_code" {
            return Some(40002);
        }
        if self.habits.refuses_address {
            return Some(40164);
        }
        match self.apps.iter().find(|(known, _)| known == app_id) {
            None => Some(40013),
            Some((_, expected)) if expected != secret => Some(40125),
            Some(_) => None,
        }
    }

    fn meaning(&self, code: &str) -> Meaning {
        if self.used.contains_key(code) {
            return Meaning::Fail { errcode: 40163 };
        }
        if let Some(given) = self.given.get(code) {
            let is_fresh = self.clock.now() < given.at + CODE_LIFE;
            return if is_fresh {
                Meaning::Login { user: given.user }
            } else {
                Meaning::Fail { errcode: 40029 }
            };
        }
        parse_meaning(code).unwrap_or(Meaning::Fail { errcode: 40029 })
    }

    async fn give_code(&self, request: Request) -> Response {
        #[derive(Deserialize)]
        struct Wish {
            user: String,
        }

        let body = http_body_util::Limited::new(request.into_body(), LONGEST_BODY).collect().await;
        let wish = body.ok().and_then(|body| serde_json::from_slice::<Wish>(&body.to_bytes()).ok());
        let Some(Wish { user }) = wish.filter(|wish| is_user(&wish.user)) else {
            let help = "expected {\"user\":\"NAME\"}, NAME of letters, digits, \".\" and \"_\"\n";
            return response(400, "text/plain", help);
        };
        let code = Alphanumeric.sample_string(&mut rand::rng(), 32);
        self.given.insert(code.clone(), Given { user, at: self.clock.now() });
        response(200, "application/json", json!({ "code": code }).to_string())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn parameter(query: &str, name: &str) -> String {
    form_urlencoded::parse(query.as_bytes())
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}

/// A call in flight, counted until it is dropped.
struct UnderWay<'a>(&'a Sandbox);

impl<'a> UnderWay<'a> {
    fn begin(sandbox: &'a Sandbox) -> Self {
        let at_once = sandbox.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        sandbox.most_at_once.fetch_max(at_once, Ordering::Relaxed);
        Self(sandbox)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::Relaxed);
    }
}

fn parse_meaning(code: &str) -> Option<Meaning> {
    let (kind, rest) = code.split_once('-')?;
    match kind {
        "user" => user(rest).map(|user| Meaning::Login { user }),
        "slow" => {
            let (delay, rest) = rest.split_once('-').unwrap_or((rest, "slow"));
            let delay = humantime::parse_duration(delay).ok()?;
            user(rest).map(|user| Meaning::Slow { delay, user })
        }
        "err" => {
            // The number may be negative.
            let digits = rest.strip_prefix('-');
            let (number, _) =
                digits.unwrap_or(rest).split_once('-').unwrap_or((digits.unwrap_or(rest), ""));
            let number: i64 = number.parse().ok()?;
            Some(Meaning::Fail { errcode: if digits.is_some() { -number } else { number } })
        }
        "status" => Some(Meaning::Status(rest.split('-').next()?.parse().ok()?)),
        "garbage" => Some(Meaning::Garbage),
        "half" => Some(Meaning::Half),
        "huge" => Some(Meaning::Huge),
        "hang" => Some(Meaning::Hang),
        "drop" => Some(Meaning::Drop),
        _ => None,
    }
}

/// The NAME of `NAME` or `NAME-ANYTHING`.
fn user(text: &str) -> Option<String> {
    let name = text.split('-').next()?;
    is_user(name).then(|| name.to_owned())
}

fn is_user(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'))
}

/// The openid of a user in an app: 28 characters, as WeChat's. It contains the name, so that
/// readers recognise it, and differs between apps.
pub fn openid(app_id: &str, user: &str) -> String {
    id('o', &format!("{app_id} {user}"), user)
}

/// The unionid of a user, the same in all apps. Users whose names begin with `union` have one; the
/// others are as in apps that are not bound to an Open Platform account.
pub fn unionid(user: &str) -> Option<String> {
    user.starts_with("union").then(|| id('u', user, user))
}

fn id(letter: char, of: &str, user: &str) -> String {
    let digest = URL_SAFE_NO_PAD.encode(Sha256::digest(of));
    let shown: String = user.replace('.', "_").chars().take(16).collect();
    format!("{letter}{shown}_{digest}").chars().take(28).collect()
}

fn failure(errcode: i64) -> Response {
    let words = match errcode {
        -1 => "system error",
        40002 => "invalid grant_type",
        40013 => "invalid appid",
        40029 => "invalid code",
        40125 => "invalid appsecret",
        40163 => "code been used",
        40164 => "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
        40226 => "code blocked",
        41002 => "appid missing",
        41004 => "appsecret missing",
        41008 => "missing code",
        45009 => "reach max api daily quota limit",
        45011 => "api minute-quota reach limit mustslower retry next minute",
        87009 => "invalid signature",
        _ => "error",
    };
    let [a, b, c]: [u32; 3] = rand::random();
    let rid = format!("{a:08x}-{b:08x}-{c:08x}");
    text(&json!({ "errcode": errcode, "errmsg": format!("{words}, rid: {rid}") }))
}

fn text(value: &Value) -> Response {
    response(200, "text/plain", value.to_string())
}
