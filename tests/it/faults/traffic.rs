//! Users that log in, send requests and log out at any gateway, and record the outcomes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::history::{Operation, What};
use crate::harness::client::Response;

/// Timeout of a client.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two requests of a user.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Traffic {
    shared: Arc<Shared>,
    users: JoinSet<()>,
}

struct Shared {
    gateways: Vec<SocketAddr>,
    /// `session.redis.near_cache_ttl`.
    bound: Duration,
    history: Mutex<Vec<Operation>>,
    sessions: AtomicUsize,
    /// Sessions whose logout was acknowledged, and their tokens.
    ended: Mutex<Vec<(usize, String)>>,
    is_over: AtomicBool,
}

impl Traffic {
    /// `changing` users log in and out without end, `steady` ones stay, at each gateway as many.
    pub fn start(
        gateways: Vec<SocketAddr>,
        bound: Duration,
        changing: usize,
        steady: usize,
    ) -> Self {
        let shared = Arc::new(Shared {
            gateways,
            bound,
            history: Mutex::default(),
            sessions: AtomicUsize::new(0),
            ended: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let mut users = JoinSet::new();
        for _ in 0..changing {
            let mut user = User::new(&shared);
            users.spawn(async move { user.change().await });
        }
        for gateway in 0..shared.gateways.len() {
            for _ in 0..steady {
                let mut user = User::new(&shared);
                users.spawn(async move { user.stay(gateway).await });
            }
        }
        Self { shared, users }
    }

    /// Lets every user finish, sends one more request for each session that has ended,
    /// and returns the history.
    pub async fn stop(mut self) -> Vec<Operation> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.users.join_next().await {
            ended.unwrap();
        }
        let ended = std::mem::take(&mut *self.shared.ended.lock().unwrap());
        let mut user = User::new(&self.shared);
        for (session, token) in ended {
            for gateway in 0..user.connections.len() {
                user.send(gateway, session, &token).await;
            }
        }
        std::mem::take(&mut *self.shared.history.lock().unwrap())
    }
}

/// One user, with a connection to each gateway.
struct User {
    shared: Arc<Shared>,
    connections: Vec<Option<TcpStream>>,
}

impl User {
    fn new(shared: &Arc<Shared>) -> Self {
        let connections = shared.gateways.iter().map(|_| None).collect();
        Self { shared: shared.clone(), connections }
    }

    fn is_over(&self) -> bool {
        self.shared.is_over.load(Ordering::Relaxed)
    }

    fn any_gateway(&self) -> usize {
        rand::rng().random_range(0..self.connections.len())
    }

    async fn change(&mut self) {
        // Not all at the same time: some must log out at every moment of a fault.
        let part = rand::rng().random_range(0.0..2.0);
        sleep(self.shared.bound.mul_f64(part)).await;
        while !self.is_over() {
            let any = self.any_gateway();
            let Some((session, token)) = self.login(any).await else {
                sleep(PAUSE).await;
                continue;
            };
            let count = rand::rng().random_range(1..40);
            for _ in 0..count {
                let any = self.any_gateway();
                self.send(any, session, &token).await;
                sleep(PAUSE).await;
            }
            // Others send requests while it ends.
            let mut other = Self::new(&self.shared);
            let asking = async {
                for gateway in 0..other.connections.len() {
                    other.send(gateway, session, &token).await;
                }
            };
            let any = self.any_gateway();
            let (ended, ()) = tokio::join!(self.logout(any, session, &token), asking);
            let mut is_ended = ended;
            // Longer than it may be cached.
            let mut until = Instant::now() + self.shared.bound * 2;
            while Instant::now() < until {
                for gateway in 0..self.connections.len() {
                    self.send(gateway, session, &token).await;
                }
                if !is_ended && !self.is_over() {
                    let any = self.any_gateway();
                    is_ended = self.logout(any, session, &token).await;
                    until = Instant::now() + self.shared.bound * 2;
                }
                sleep(PAUSE).await;
            }
        }
    }

    async fn stay(&mut self, gateway: usize) {
        while !self.is_over() {
            let Some((session, token)) = self.login(gateway).await else {
                sleep(PAUSE).await;
                continue;
            };
            while !self.is_over() && self.send(gateway, session, &token).await != Some(401) {
                sleep(PAUSE).await;
            }
        }
    }

    async fn login(&mut self, gateway: usize) -> Option<(usize, String)> {
        let session = self.shared.sessions.fetch_add(1, Ordering::Relaxed);
        let body = format!("{{\"code\":\"user-u{session}-1\"}}");
        let request = format!(
            "POST /login HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let response = self.exchange(gateway, session, What::Login, &request).await?;
        (response.status == 200)
            .then(|| (session, response.json()["token"].as_str().unwrap().to_owned()))
    }

    async fn send(&mut self, gateway: usize, session: usize, token: &str) -> Option<u16> {
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nX-3rd-Session: {token}\r\n\r\n");
        Some(self.exchange(gateway, session, What::Request, &request).await?.status)
    }

    /// Whether it is acknowledged.
    async fn logout(&mut self, gateway: usize, session: usize, token: &str) -> bool {
        let request = format!(
            "POST /logout HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nX-3rd-Session: {token}\r\n\r\n"
        );
        let response = self.exchange(gateway, session, What::Logout, &request).await;
        let is_ended = response.is_some_and(|response| response.status == 204);
        if is_ended {
            self.shared.ended.lock().unwrap().push((session, token.to_owned()));
        }
        is_ended
    }

    async fn exchange(
        &mut self,
        gateway: usize,
        session: usize,
        what: What,
        request: &str,
    ) -> Option<Response> {
        let start = Instant::now();
        let connection = &mut self.connections[gateway];
        let exchanged = timeout(PATIENCE, async {
            if connection.is_none() {
                let stream = TcpStream::connect(self.shared.gateways[gateway]).await.ok()?;
                stream.set_nodelay(true).unwrap();
                *connection = Some(stream);
            }
            let stream = connection.as_mut()?;
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut read = Vec::new();
            loop {
                if let Some((response, _)) = Response::parse(&read, false, false) {
                    return Some(response);
                }
                if stream.read_buf(&mut read).await.ok()? == 0 {
                    return None;
                }
            }
        });
        let response = exchanged.await.ok().flatten();
        let closes = |response: &Response| response.header("connection") == Some("close");
        if response.as_ref().is_none_or(closes) {
            self.connections[gateway] = None;
        }
        let status = response.as_ref().map(|response| response.status);
        let end = Instant::now();
        let operation = Operation { session, gateway, what, start, end, status };
        self.shared.history.lock().unwrap().push(operation);
        response
    }
}
