//! A login hook whose answers are the test's choice.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::harness::{SERVICES, canary, until};

/// A secret in the URL of every hook.
const KEY: &str = "planted-in-the-hook-s-url";

/// A call as the hook received it.
#[derive(Clone)]
pub struct Call {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Value,
}

struct State {
    calls: Vec<Call>,
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

pub struct FakeHook {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Calls that were received wait for a permit.
    gate: Arc<Semaphore>,
    accepting: JoinHandle<()>,
}

impl FakeHook {
    /// It accepts every user as `member-7`.
    pub async fn start() -> Self {
        canary::plant(KEY);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            calls: Vec::new(),
            status: 200,
            headers: Vec::new(),
            body: "{\"user_id\":\"member-7\"}".to_owned(),
        }));
        let gate = Arc::new(Semaphore::new(OPEN));
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

    /// Path and query of the hook.
    pub fn target(&self) -> String {
        format!("/hook?key={KEY}")
    }

    /// Changes with this hook, and what follows.
    pub fn section(&self, more: &str) -> String {
        section(&format!("http://{}{}", self.address, self.target()), more)
    }

    /// What calls get from now on.
    pub fn answers(&self, status: u16, body: &str) {
        self.answers_with(status, Vec::new(), body);
    }

    pub fn answers_with(&self, status: u16, headers: Vec<(&'static str, String)>, body: &str) {
        let mut state = self.state.lock().unwrap();
        (state.status, state.headers, state.body) = (status, headers, body.to_owned());
    }

    /// Calls get no answer until [`Self::release`].
    pub fn hold(&self) {
        self.gate.forget_permits(OPEN);
    }

    pub fn release(&self) {
        self.gate.add_permits(OPEN);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.state.lock().unwrap().calls.clone()
    }

    pub async fn until_calls(&self, count: usize) {
        until("the hook is called", async || self.calls().len() >= count).await;
    }
}

/// More than the calls of a test.
const OPEN: usize = 10_000;

impl Drop for FakeHook {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Changes with a hook at this URL.
pub fn section(url: &str, more: &str) -> String {
    let token = SERVICES[0].0;
    let hook =
        format!("login.hook = {{ url = \"{url}\", token = {{ file = \"{{dir}}/{token}\" }} }}\n");
    // Keys of an inline table cannot be added to.
    let (keys, rest): (Vec<&str>, Vec<&str>) =
        more.split_inclusive('\n').partition(|line| line.starts_with("login.hook."));
    let keys: Vec<_> =
        keys.iter().map(|line| line.trim().trim_start_matches("login.hook.")).collect();
    let hook = match &keys[..] {
        [] => hook,
        keys => hook.replace(" } }\n", &format!(" }}, {} }}\n", keys.join(", "))),
    };
    format!("{hook}{}", rest.concat())
}

async fn serve(
    state: Arc<Mutex<State>>,
    gate: Arc<Semaphore>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let call = Call {
        method: head.method,
        target: head.uri.to_string(),
        headers: head.headers,
        body: serde_json::from_slice(&body).unwrap(),
    };
    state.lock().unwrap().calls.push(call);
    drop(gate.acquire().await.unwrap());
    let state = state.lock().unwrap();
    let mut response = Response::builder().status(state.status);
    for (name, value) in &state.headers {
        response = response.header(*name, value);
    }
    Ok(response.body(Full::new(Bytes::from(state.body.clone()))).unwrap())
}
