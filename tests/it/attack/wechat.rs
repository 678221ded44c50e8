//! A simulated WeChat whose responses the test chooses, with known session keys.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use wxgate::wechat::sandbox;

use crate::harness::APP;

type Replies = dyn Fn(&str) -> Vec<u8> + Send + Sync;

pub struct WeChat {
    pub address: SocketAddr,
    /// It is in every reply, and must appear nowhere else.
    pub session_key: String,
    requests: Arc<Mutex<Vec<String>>>,
    replies: Arc<Mutex<Arc<Replies>>>,
    accepting: JoinHandle<()>,
}

impl WeChat {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let session_key = format!("canary+{:016x}/==", rand::random::<u64>());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let replies: Arc<Mutex<Arc<Replies>>> = Arc::new(Mutex::new(granting(&session_key)));
        let (recorded, scripted) = (requests.clone(), replies.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(converse(stream, recorded.clone(), scripted.clone()));
            }
        });
        Self { address, session_key, requests, replies, accepting }
    }

    /// Replies with exactly these bytes from now on.
    pub fn respond(&self, bytes: Vec<u8>) {
        *self.replies.lock().unwrap() = Arc::new(move |_| bytes.clone());
    }

    /// Replies as WeChat does again.
    pub fn behave(&self) {
        *self.replies.lock().unwrap() = granting(&self.session_key);
    }

    /// The targets of the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for WeChat {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Codes mean what they mean to the sandbox: `user-NAME-ANYTHING` is user NAME, once.
fn granting(session_key: &str) -> Arc<Replies> {
    let session_key = session_key.to_owned();
    let used = Mutex::new(HashSet::new());
    Arc::new(move |target| {
        if !used.lock().unwrap().insert(target.to_owned()) {
            return ok("{\"errcode\":40163,\"errmsg\":\"code been used\"}");
        }
        // Of a Mini Program, or of another app.
        let code = target.split("js_code=").nth(1).or_else(|| target.split("&code=").nth(1));
        let user = code.unwrap_or_default().split(['-', '&']).nth(1).unwrap_or_default();
        let mut grant = json!({ "openid": sandbox::openid(APP, user), "session_key": session_key });
        if let Some(unionid) = sandbox::unionid(user) {
            grant["unionid"] = unionid.into();
        }
        ok(&grant.to_string())
    })
}

/// A complete response with this body.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

async fn converse(
    mut stream: TcpStream,
    requests: Arc<Mutex<Vec<String>>>,
    replies: Arc<Mutex<Arc<Replies>>>,
) {
    let mut header = Vec::new();
    while !header.ends_with(b"\r\n\r\n") {
        if !matches!(stream.read_buf(&mut header).await, Ok(1..)) {
            return;
        }
    }
    let header = String::from_utf8_lossy(&header).into_owned();
    let target = header.split(' ').nth(1).unwrap_or_default().to_owned();
    requests.lock().unwrap().push(target.clone());
    let reply = replies.lock().unwrap().clone();
    let _ = stream.write_all(&reply(&target)).await;
}
