//! Worker threads, and the choice of a worker for each connection.
//!
//! Each worker has its own runtime, and a connection stays on its worker: requests do not move
//! between cores, and need no locks. Connections are accepted in one place and given to the worker
//! with the fewest connections, in turn among equals, so that no worker is idle while another has a
//! queue. With one socket per worker, the kernel would distribute them at random, and those of a
//! busy worker would wait.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listener::accepting;
use crate::telemetry::log_throttle::LogThrottle;

/// Threads, each with its own runtime. They end when this is dropped.
pub struct Workers {
    all: Arc<[Worker]>,
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
}

struct Worker {
    runtime: Handle,
    /// The number of its connections.
    connections: AtomicUsize,
}

/// Finds out whether the workers run.
pub struct Probe(Arc<[Worker]>);

/// A connection of a worker, counted until it is dropped.
struct WorkerConnection(Arc<[Worker]>, usize);

impl WorkerConnection {
    /// Chooses the worker with the fewest connections, the first of them from `turn` on.
    fn new(workers: &Arc<[Worker]>, turn: usize) -> Option<Self> {
        let count = workers.len();
        let order = (turn..turn + count).map(|index| index % count);
        let least = order.min_by_key(|index| {
            workers.get(*index).map(|worker| worker.connections.load(Ordering::Relaxed))
        })?;
        workers.get(least)?.connections.fetch_add(1, Ordering::Relaxed);
        Some(Self(workers.clone(), least))
    }

    fn runtime(&self) -> Option<&Handle> {
        self.0.get(self.1).map(|worker| &worker.runtime)
    }
}

impl Drop for WorkerConnection {
    fn drop(&mut self) {
        if let Some(worker) = self.0.get(self.1) {
            worker.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Workers {
    /// Starts this many worker threads.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be created.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = watch::Sender::new(false);
        let mut all = Vec::new();
        let mut workers = Self { all: Arc::new([]), threads: Vec::new(), stop };
        for number in 0..count {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            all.push(Worker { runtime: runtime.handle().clone(), connections: 0.into() });
            let mut stopped = workers.stop.subscribe();
            let run = move || {
                // The sender is dropped only together with its owner.
                let _ = runtime.block_on(stopped.wait_for(|stop| *stop));
                runtime.shutdown_background();
            };
            let thread = std::thread::Builder::new().name(format!("worker-{number}")).spawn(run)?;
            workers.threads.push(thread);
        }
        workers.all = all.into();
        Ok(workers)
    }

    /// Runs a future on one worker.
    #[cfg(test)]
    pub fn spawn_on(&self, worker: usize, future: impl Future<Output = ()> + Send + 'static) {
        self.all[worker].runtime.spawn(future);
    }

    pub fn probe(&self) -> Probe {
        Probe(self.all.clone())
    }

    /// Accepts connections until `closing` is cancelled, and then those that wait in the kernel's
    /// queue, which would be reset with the listener. `connections` tracks them; `failed` throttles
    /// the log lines about failures.
    pub fn accept<F: Future<Output = ()> + Send + 'static>(
        &self,
        listener: TcpListener,
        serve: impl Fn(TcpStream, SocketAddr) -> F + Clone + Send + 'static,
        connections: TaskTracker,
        failed: Arc<LogThrottle>,
        closing: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let workers = self.all.clone();
        let mut turns = (0..workers.len()).cycle();
        let mut give = move |stream: std::net::TcpStream, peer| {
            let Some(turn) = turns.next() else { return };
            let Some(connection) = WorkerConnection::new(&workers, turn) else { return };
            let serve = serve.clone();
            let runtime = connection.runtime().cloned();
            let served = async move {
                if let Ok(stream) = TcpStream::from_std(stream) {
                    serve(stream, peer).await;
                }
                drop(connection);
            };
            if let Some(runtime) = runtime {
                runtime.spawn(connections.track_future(served));
            }
        };
        async move {
            let accept = async {
                loop {
                    let (stream, peer) = next(&listener, &failed).await;
                    // Deregisters the connection from this thread's reactor, so that its worker can
                    // register it.
                    if let Ok(stream) = stream.into_std() {
                        give(stream, peer);
                    }
                }
            };
            closing.run_until_cancelled(accept).await;
            let Ok(listener) = listener.into_std() else { return };
            for (stream, peer) in accepting::waiting(|| listener.accept()) {
                if stream.set_nonblocking(true).is_ok() {
                    give(stream, peer);
                }
            }
        }
    }
}

impl Probe {
    /// Completes when every worker has run a task that was given to it now. Never, if a worker has
    /// ended.
    pub async fn respond(&self) {
        let all = self.0.iter();
        let responses: Vec<_> = all.map(|worker| worker.runtime.spawn(async {})).collect();
        for response in responses {
            if response.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn next(listener: &TcpListener, failed: &LogThrottle) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            // There are no descriptors left, or there is no memory.
            Err(error) => {
                if let Some(suppressed) = failed.suppressed() {
                    tracing::error!(%error, suppressed, "cannot accept connections");
                }
                tokio::time::sleep(accepting::PAUSE).await;
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            // An error means that the worker has panicked.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio::io::AsyncReadExt;
    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    use super::*;
    use crate::clock::Clock;

    #[tokio::test]
    async fn a_connection_goes_to_the_worker_with_the_fewest() {
        let workers = Workers::start(3).unwrap();
        let (name, mut names) = mpsc::unbounded_channel();
        let serve = move |mut stream: TcpStream, _| {
            let name = name.clone();
            async move {
                name.send(std::thread::current().name().unwrap().to_owned()).unwrap();
                while stream.read(&mut [0]).await.unwrap() > 0 {}
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = TaskTracker::new();
        let throttle = Arc::new(LogThrottle::new(Clock::system()));
        tokio::spawn(workers.accept(
            listener,
            serve,
            connections.clone(),
            throttle,
            CancellationToken::new(),
        ));

        let mut open = BTreeMap::<String, Vec<TcpStream>>::new();
        for _ in 0..12 {
            let client = TcpStream::connect(address).await.unwrap();
            open.entry(names.recv().await.unwrap()).or_default().push(client);
        }
        assert!(open.values().all(|clients| clients.len() == 4), "{open:?}");

        // All clients of one worker disconnect. The next connections go to this worker.
        open.get_mut("worker-1").unwrap().clear();
        while connections.len() > 8 {
            yield_now().await;
        }
        let mut kept = Vec::new();
        for _ in 0..4 {
            kept.push(TcpStream::connect(address).await.unwrap());
            assert_eq!(names.recv().await.unwrap(), "worker-1");
        }
    }
}
