//! The command line.

#![expect(clippy::doc_markdown, reason = "these comments are shown as help")]

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use http::{HeaderName, HeaderValue};
use rustix::process::{Resource, Rlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use wxgate::clock::Clock;
use wxgate::config::{Config, Loaded, LogDestination, LogFormat, LogLevel, LogSection, Secrets};
use wxgate::demo::Demo;
use wxgate::explain::Question;
use wxgate::metrics::Metrics;
use wxgate::reload::Origin;
use wxgate::sandbox::{DEFAULT_APP, Habits, Sandbox};
use wxgate::server::{Order, Server};
use wxgate::signals::Signals;
use wxgate::telemetry::{self, Flush};
use wxgate::wechat::WeChat;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// WeChat Mini Program login in front of services that stay as they are.
#[derive(Parser)]
#[command(name = "wxgate", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway in the foreground; it logs to stderr.
    Run {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Validate a configuration as `run` does, and print every problem. Does all that a start does,
    /// except to listen and to create the access log's file.
    Check {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Do not read secrets, keys and certificates, and do not check the folder of the access
        /// log: for machines that do not have them, as in CI.
        #[arg(long)]
        without_secrets: bool,
        /// Also ask WeChat, at each of its addresses, whether it can be reached, its certificate
        /// is good and it takes each app. Each is asked once for each app, with a code that is
        /// none: no code is spent. That it looks at the secret before the code is its habit,
        /// not its promise.
        #[arg(long, conflicts_with = "without_secrets")]
        live: bool,
    },
    /// Show what would happen to a request: which route matches, why the others do not, what the
    /// service would get, and what is removed. Reads no secrets, keys, certificates or response
    /// files, and calls nothing. The client is not a trusted proxy.
    #[command(after_help = EXPLAIN_HELP)]
    Explain {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The method, as GET.
        #[arg(value_name = "METHOD")]
        method: http::Method,
        /// The URL, as https://api.example.com/orders?page=2, or its path alone.
        #[arg(value_name = "URL")]
        url: String,
        /// A header of the request, repeatable.
        #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Write one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Try a whole gateway with a simulated WeChat; no account and no file is needed.
    Demo {
        /// A service of your own to stand in front of, as http://127.0.0.1:3000.
        #[arg(long, value_name = "URL", value_parser = parse_upstream)]
        upstream: Option<String>,
        /// Where the gateway listens.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Where metrics and probes are.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
        admin: SocketAddr,
    },
    /// Run the simulated WeChat alone, for development and CI.
    #[command(after_help = SANDBOX_HELP)]
    Sandbox {
        /// Where it listens; `wechat.base_url` of a gateway is http://ADDR then.
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// An app that it knows, repeatable.
        #[arg(long = "app", value_name = "APP_ID:SECRET", value_parser = parse_app)]
        apps: Vec<(String, String)>,
        #[command(flatten)]
        mood: Mood,
    },
}

/// How the simulated WeChat behaves.
#[derive(clap::Args)]
struct Mood {
    /// Time that an exchange takes.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// So long after the start exchanges take longer: two seconds at first, less and less.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    slow_start: Duration,
    /// Logins of one user in a minute; those beyond get 45011.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    user_quota: u32,
    /// Logins in all; those beyond get 45009. By default any number.
    #[arg(long, value_name = "COUNT")]
    quota: Option<u64>,
    /// Answer everything with 40164, as if the caller's address were not on the whitelist.
    #[arg(long)]
    refuse_ip: bool,
}

const SANDBOX_HELP: &str = "\
Codes:
  user-NAME, user-NAME-ANYTHING  good once, for user NAME; names that begin with
                                 \"union\" have a unionid
  POST /sandbox/codes {\"user\":\"NAME\"}
                                 gives a fresh code that ages like a real one:
                                 good once, for five minutes
  err-40029-ANYTHING             is answered with that errcode
  slow-3s-NAME                   is answered after three seconds
  hang-, garbage-, drop-ANYTHING is never answered, is answered with no JSON, or
                                 ends the connection
  status-500-, half-, huge-      is answered with that HTTP status, with half of a
                                 JSON, or with 100 MiB

Each login gives the user a new session_key and makes the one before worthless:
  GET /wxa/checksession?access_token=ANY&openid=...&signature=...&sig_method=hmac_sha256
                                 says whether a signature is of the last one
  GET /sandbox/stats             exchanges so far, and the most at once";

const EXPLAIN_HELP: &str = "\
Exit code:
  0  the request is forwarded, or the gateway responds; a session may be needed
  1  it is rejected, or the file has problems
  2  wrong usage

JSON fields, all of them always present:
  method, host, path  the request
  outcome             forwarded, answered, rejected or forward_auth
  status, error, reason, allow
                      the gateway's own response, as far as it is known
  endpoint            login, logout, session or health, where the path is one
  route               index, name, file, line, auth, preflight, apps, max_body (bytes),
                      rate_per_user, rate_per_address, websocket, cors, preflights
  upstreams           for each: name, servers, percent, connect_timeout, read_timeout,
                      write_timeout
  request             method, target and headers (name, value) as the service gets them
  removed             for each header that the service does not get: name, reason
  response_headers    set (name, value), removed (names), vary
  other_routes        for each: index, name, file, line, reason";

fn main() -> ExitCode {
    // reqwest and redis use the process's TLS provider.
    drop(rustls::crypto::ring::default_provider().install_default());
    match Arguments::parse().command {
        Command::Run { config } => run(&config),
        Command::Check { config, without_secrets, live } => check(&config, without_secrets, live),
        Command::Explain { config, method, url, headers, json } => {
            match Question::new(method, &url, headers) {
                Ok(question) => explain(&config, &question, json),
                Err(error) => {
                    eprintln!("wxgate: {url}: {error}");
                    ExitCode::from(2)
                }
            }
        }
        Command::Demo { upstream, listen, admin } => demo(Demo { listen, admin, upstream }),
        Command::Sandbox { listen, apps, mood } => sandbox(listen, apps, &mood),
    }
}

fn run(path: &Path) -> ExitCode {
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error),
    };
    let signals = {
        let _entered = runtime.enter();
        match Signals::catch() {
            Ok(signals) => signals,
            Err(error) => return refuse(&error),
        }
    };
    let Loaded { config, files } = Config::read(path, Secrets::Load, None);
    let config = match config {
        Ok(config) => Arc::new(config),
        Err(problems) => return refuse_config(&problems),
    };
    let metrics = match Metrics::new() {
        Ok(metrics) => metrics,
        Err(error) => return refuse(&error),
    };
    // Dropped last: it writes what is queued.
    let (_log, level) = telemetry::install(&config.log, &metrics);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let served = harden().map_err(Failure::from).and_then(|()| {
        runtime.block_on(async {
            let orders = signals.orders()?;
            let server = Server::bind(&config, Clock::system(), metrics)?;
            let origin = Origin { path: path.to_owned(), config, files, log: Some(level) };
            server.following(origin).run(orders).await?;
            Ok(())
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            ExitCode::FAILURE
        }
    }
}

/// Keeps what is in memory, secrets and tokens among it, in memory.
fn harden() -> Result<(), String> {
    refuse_key_log()?;
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, no_core).map_err(|error| format!("core dumps: {error}"))?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| format!("core dumps: {error}"))?;
    Ok(())
}

fn refuse_key_log() -> Result<(), String> {
    if std::env::var_os("SSLKEYLOGFILE").is_some() {
        return Err("SSLKEYLOGFILE is set: it asks for the keys of TLS connections to be written \
                    down. Unset it"
            .to_owned());
    }
    Ok(())
}

fn check(path: &Path, without_secrets: bool, live: bool) -> ExitCode {
    let secrets = if without_secrets { Secrets::Ignore } else { Secrets::Load };
    match Config::load(path, secrets) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            // Without secrets there is nothing that it could be started with.
            let outcome = match secrets {
                Secrets::Load => rehearse(&config),
                Secrets::Ignore => Ok(()),
            };
            if let Err(error) = outcome {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
            println!("{}: ok\n{}", path.display(), config.summary());
            if live { block_on(check_live(&config)) } else { ExitCode::SUCCESS }
        }
        Err(problems) => refuse_config(&problems),
    }
}

/// Does what a start does before it listens.
fn rehearse(config: &Config) -> Result<(), Failure> {
    refuse_key_log()?;
    Server::rehearse(config, Metrics::new()?)?;
    Ok(())
}

fn explain(path: &Path, question: &Question, is_json: bool) -> ExitCode {
    match Config::load(path, Secrets::Ignore) {
        Ok(config) => {
            let explanation = wxgate::explain::explain(&config, question);
            let text = match serde_json::to_string_pretty(&explanation) {
                Ok(json) if is_json => json + "\n",
                _ => explanation.to_string(),
            };
            // A reader such as `head` may have closed it.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if explanation.is_served() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problems) => refuse_config(&problems),
    }
}

/// Says of each app whether WeChat takes it, at each of its addresses.
async fn check_live(config: &Config) -> Result<(), Failure> {
    let wechat = WeChat::new(&config.wechat, Clock::system(), Metrics::new()?)?;
    let mut failed = 0;
    for app in &config.apps {
        let app_id = app.app_id.as_str();
        for (address, outcome) in wechat.probe(app).await {
            match outcome {
                Ok(()) => println!("{app_id}: {address}: WeChat takes the app"),
                Err(error) => {
                    failed += 1;
                    println!("{app_id}: {address}: {error}{}", error.details());
                }
            }
        }
    }
    match failed {
        0 => Ok(()),
        1 => Err("one check of WeChat failed".into()),
        failed => Err(format!("{failed} checks of WeChat failed").into()),
    }
}

fn demo(demo: Demo) -> ExitCode {
    let _log = log_warnings();
    block_on(async {
        let orders = Signals::catch()?.orders()?;
        demo.run(orders, |tour| println!("{tour}")).await?;
        Ok(())
    })
}

fn sandbox(listen: SocketAddr, mut apps: Vec<(String, String)>, mood: &Mood) -> ExitCode {
    let habits = Habits {
        latency: mood.latency,
        slow_start: mood.slow_start,
        user_quota: mood.user_quota,
        quota: mood.quota,
        refuses_address: mood.refuse_ip,
    };
    if apps.is_empty() {
        apps.push((DEFAULT_APP.0.to_owned(), DEFAULT_APP.1.to_owned()));
    }
    let _log = log_warnings();
    block_on(async {
        let mut orders = Signals::catch()?.orders()?;
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        let mut out = std::io::stdout();
        // A reader such as `head` may have closed it.
        let _ = writeln!(out, "simulated WeChat at http://{}", listener.local_addr()?);
        for (app_id, secret) in &apps {
            let _ = writeln!(out, "app {app_id} with secret {secret}");
        }
        let sandbox = Sandbox::with_habits(apps, Clock::system(), habits);
        tokio::select! {
            () = sandbox.serve(listener) => {}
            () = stopped(&mut orders) => {}
        }
        Ok(())
    })
}

type Failure = Box<dyn std::error::Error>;

/// Runs on this thread until it is over.
fn block_on(future: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let outcome = runtime().map_err(Failure::from).and_then(|runtime| runtime.block_on(future));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => refuse(&*error),
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn refuse(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("wxgate: {error}");
    ExitCode::FAILURE
}

/// Problems name their file and place themselves.
fn refuse_config(problems: &wxgate::config::Problems) -> ExitCode {
    eprint!("{problems}");
    ExitCode::FAILURE
}

/// What is worth a line beside what the demo and the sandbox print.
fn log_warnings() -> Option<Flush> {
    let log = LogSection {
        level: LogLevel::Warn,
        format: LogFormat::Text,
        access: LogDestination::Off,
        openid_key: None,
    };
    let (flush, _) = telemetry::install(&log, &*Metrics::new().ok()?);
    Some(flush)
}

/// Waits until the sandbox is to end.
async fn stopped(orders: &mut mpsc::Receiver<Order>) {
    loop {
        match orders.recv().await {
            None | Some(Order::Drain | Order::Stop) => return,
            Some(Order::Reload) => tracing::warn!("SIGHUP: there is no file to reload"),
            Some(Order::HandOver) => tracing::warn!("SIGQUIT has no effect"),
            Some(Order::ReopenLogs | Order::Ignored { .. }) => {}
        }
    }
}

/// Host and port of an http URL.
fn parse_upstream(url: &str) -> Result<String, String> {
    let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    if authority.contains("://") || authority.contains('/') {
        return Err("expected http://HOST:PORT without a path".to_owned());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { authority.to_owned() } else { format!("{authority}:80") })
}

fn parse_header(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = line.split_once(':').ok_or("expected NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| "that is not a header's name".to_owned())?;
    let value = value.trim().parse().map_err(|_| "that is not a header's value".to_owned())?;
    Ok((name, value))
}

fn parse_app(app: &str) -> Result<(String, String), String> {
    match app.split_once(':') {
        Some((app_id, secret)) if !app_id.is_empty() && !secret.is_empty() => {
            Ok((app_id.to_owned(), secret.to_owned()))
        }
        _ => Err("expected APP_ID:SECRET".to_owned()),
    }
}
