//! WeChat's API as far as access tokens matter, and what a gateway calls it with.
//!
//! Tokens are granted as `stable_token` does in its normal mode, on the test's clock. What valid
//! calls get is the test's choice.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wxgate::clock::Clock;
use wxgate::config::{Config, Secrets};
use wxgate::handover::peer::Peer;
use wxgate::identity::AppId;
use wxgate::session::Sessions;
use wxgate::telemetry::metrics::Metrics;
use wxgate::wechat::WeChat;
use wxgate::wechat::access_token::AccessTokens;

use super::{APP, PATIENCE, SECRET, canary, config_text, install_provider, process_log};

pub type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;
type Replying = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Script = dyn Fn(Request<Incoming>) -> Replying + Send + Sync;

/// How the next requests for a token are met.
#[derive(Clone, Copy, PartialEq)]
pub enum Granting {
    Grants,
    Reports(i64),
    /// Closes the connection without a response.
    Closes,
}

struct State {
    clock: Clock,
    granting: Granting,
    /// The tokens that are valid, with their ends in seconds; the last one is granted.
    tokens: Vec<(String, u64)>,
    granted: usize,
    token_calls: usize,
    /// Targets of the calls with tokens, and whether the token was valid.
    calls: Vec<(String, bool)>,
    script: Arc<Script>,
}

pub struct WeChatApi {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Requests for a token wait for a permit.
    pub gate: Arc<Semaphore>,
    accepting: JoinHandle<()>,
}

impl WeChatApi {
    pub async fn start(clock: &Clock) -> Self {
        install_provider();
        process_log::install();
        canary::plant(SECRET);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            clock: clock.clone(),
            granting: Granting::Grants,
            tokens: Vec::new(),
            granted: 0,
            token_calls: 0,
            calls: Vec::new(),
            script: Arc::new(|_| Box::pin(async { reply(json!({ "errcode": 0 }).to_string()) })),
        }));
        let gate = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        let (shared, waiting) = (state.clone(), gate.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, gate) = (shared.clone(), waiting.clone());
                let service =
                    service_fn(move |request| serve(state.clone(), gate.clone(), request));
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(serving.await) });
            }
        });
        Self { address, state, gate, accepting }
    }

    pub fn meet_requests_for_tokens(&self, granting: Granting) {
        self.state.lock().unwrap().granting = granting;
    }

    /// What calls with a valid token get from now on.
    pub fn respond<F>(&self, script: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.state.lock().unwrap().script = Arc::new(move |request| Box::pin(script(request)));
    }

    /// Another program has fetched a token with `force_refresh`: no other is valid any more.
    pub fn refresh_elsewhere(&self) {
        let mut state = self.state.lock().unwrap();
        state.tokens.clear();
        state.grant();
    }

    /// How often a token was requested.
    pub fn token_calls(&self) -> usize {
        self.state.lock().unwrap().token_calls
    }

    pub async fn until_token_calls(&self, count: usize) {
        let reached = async {
            while self.token_calls() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("the token is requested");
        assert_eq!(self.token_calls(), count);
    }

    /// The calls with tokens: target, and whether the token was valid.
    pub fn calls(&self) -> Vec<(String, bool)> {
        self.state.lock().unwrap().calls.clone()
    }
}

impl Drop for WeChatApi {
    fn drop(&mut self) {
        self.accepting.abort();
        if !std::thread::panicking() {
            canary::assert_none_shown();
        }
    }
}

impl State {
    /// The token of the normal mode, and its remaining seconds.
    fn grant(&mut self) -> (String, u64) {
        let now = self.clock.now().as_secs();
        self.tokens.retain(|(_, end)| now < *end);
        if self.tokens.last().is_none_or(|(_, end)| end - now <= 300) {
            self.granted += 1;
            let token =
                format!("the-{}-access_token/+=&of-{:016x}", self.granted, rand::random::<u64>());
            canary::plant(&token);
            self.tokens.push((token, now + 7200));
        }
        let (token, end) = self.tokens.last().unwrap();
        (token.clone(), end - now)
    }
}

async fn serve(
    state: Arc<Mutex<State>>,
    gate: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Reply, String> {
    if request.uri().path() == "/cgi-bin/stable_token" {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wanted = json!({ "grant_type": "client_credential", "appid": APP, "secret": SECRET });
        // No force_refresh.
        assert_eq!(body, wanted);
        state.lock().unwrap().token_calls += 1;
        drop(gate.acquire().await.unwrap());
        let mut state = state.lock().unwrap();
        return match state.granting {
            Granting::Grants => {
                let (token, expires_in) = state.grant();
                Ok(reply(json!({ "access_token": token, "expires_in": expires_in }).to_string()))
            }
            Granting::Reports(errcode) => {
                let errmsg = format!("invalid ip 192.0.2.1, not in whitelist, {SECRET}");
                Ok(reply(json!({ "errcode": errcode, "errmsg": errmsg }).to_string()))
            }
            Granting::Closes => Err("closed".to_owned()),
        };
    }
    let query = request.uri().query().unwrap_or_default();
    let given: Vec<String> = form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "access_token")
        .map(|(_, value)| value.into_owned())
        .collect();
    let script = {
        let mut state = state.lock().unwrap();
        let now = state.clock.now().as_secs();
        let is_valid = match &given[..] {
            [given] => state.tokens.iter().any(|(token, end)| token == given && now < *end),
            _ => panic!("{} access tokens", given.len()),
        };
        // The token is a canary.
        let query: Vec<&str> =
            query.split('&').filter(|part| !part.starts_with("access_token=")).collect();
        let target = format!("{}?{}", request.uri().path(), query.join("&"));
        state.calls.push((target, is_valid));
        if !is_valid {
            let errmsg = "invalid credential, access_token is invalid or not latest";
            let rejection = json!({ "errcode": 40001, "errmsg": errmsg });
            return Ok(closing(reply(rejection.to_string())));
        }
        state.script.clone()
    };
    Ok(closing(script(request).await))
}

/// A response that ends its connection. Few scripts read the body of their request, and hyper closes
/// such a connection, perhaps after the gateway has chosen it for its next call.
fn closing(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

pub fn reply(body: impl Into<Bytes>) -> Reply {
    Response::new(Full::new(body.into()).boxed_unsync())
}

/// What a gateway calls WeChat with.
pub struct Caller {
    pub wechat: Arc<WeChat>,
    pub tokens: AccessTokens,
    pub config: Config,
    pub app_id: AppId,
    pub clock: Clock,
    pub metrics: Arc<Metrics>,
    pub sessions: Sessions,
    running: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Caller {
    /// With `changes` to the configuration, as a stack's.
    pub async fn new(api: &WeChatApi, clock: &Clock, changes: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("seal"), "5".repeat(64)).unwrap();
        let base_url = format!("http://{}", api.address);
        let text = config_text(directory.path(), &base_url, api.address, changes);
        let config = Config::parse("gateway.toml", &text, Secrets::Load).unwrap();
        let metrics = Metrics::new().unwrap();
        let wechat = WeChat::new(&config.wechat, clock.clone(), metrics.clone()).unwrap();
        let wechat = Arc::new(wechat);
        let sessions =
            Sessions::new(&config.session, clock.clone(), metrics.clone(), Peer::default(), 0);
        let tokens = AccessTokens::new(
            None,
            &config.apps,
            &wechat,
            sessions.shared_tokens().as_ref(),
            clock,
            &metrics,
        );
        let run = sessions.clone();
        let running = tokio::spawn(async move { run.run().await });
        let app_id = AppId::parse(APP).unwrap();
        let clock = clock.clone();
        Self {
            wechat,
            tokens,
            config,
            app_id,
            clock,
            metrics,
            sessions,
            running,
            _directory: directory,
        }
    }

    pub async fn get(&self) -> String {
        let token = self.tokens.get(&self.app_id).await.unwrap();
        token.token.expose().to_owned()
    }

    /// A second passes, or several, and what happens every second happens once.
    pub fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.tokens.maintain();
    }

    /// A value of the metrics, by the whole name with its labels; `None`: there is none.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().unwrap())
    }

    pub fn renewals(&self, outcome: &str) -> f64 {
        let labels = format!("{{app_id=\"{APP}\",outcome=\"{outcome}\"}}");
        self.metric(&format!("wxgate_access_token_renewals_total{labels}")).unwrap()
    }

    pub fn api_calls(&self, errcode: &str) -> f64 {
        let labels = format!("{{app_id=\"{APP}\",errcode=\"{errcode}\"}}");
        self.metric(&format!("wxgate_wechat_api_requests_total{labels}")).unwrap_or(0.0)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.running.abort();
    }
}
