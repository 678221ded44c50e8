//! The command line: one module for each command.

#![expect(clippy::doc_markdown, reason = "these comments are shown as help")]

mod check;
pub mod demo;
pub mod explain;
mod run;
mod sandbox;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use http::{HeaderName, HeaderValue};
use tokio::runtime::{Builder, Runtime};

use self::demo::Demo;
use crate::config::{LogDestination, LogFormat, LogLevel, LogSection, Problems};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process_log::{self, Flush};

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
    #[command(after_help = explain::command::HELP)]
    Explain {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The method, as GET.
        #[arg(value_name = "METHOD")]
        method: http::Method,
        /// The URL, as https://api.example.com/orders?page=2, or its path alone.
        #[allow(rustdoc::bare_urls, reason = "it is the help text, too")]
        #[arg(value_name = "URL")]
        url: String,
        /// A header of the request, repeatable.
        #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = explain::command::parse_header)]
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Write one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Try a whole gateway with a simulated WeChat; no account and no file is needed.
    Demo {
        /// A service of your own to stand in front of, as http://127.0.0.1:3000.
        #[arg(long, value_name = "URL", value_parser = demo::parse_upstream)]
        upstream: Option<String>,
        /// Where the gateway listens.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Where metrics and probes are.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
        admin: SocketAddr,
    },
    /// Run the simulated WeChat alone, for development and CI.
    #[command(after_help = sandbox::HELP)]
    Sandbox {
        /// Where it listens; `wechat.base_url` of a gateway is http://ADDR then.
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// An app that it knows, repeatable.
        #[arg(long = "app", value_name = "APP_ID:SECRET", value_parser = sandbox::parse_app)]
        apps: Vec<(String, String)>,
        #[command(flatten)]
        mood: sandbox::Mood,
    },
}

/// The exit code is 0 for success, 1 for a failure, and 2 for wrong usage.
pub fn main() -> ExitCode {
    // reqwest and redis use the process's TLS provider.
    drop(rustls::crypto::ring::default_provider().install_default());
    match Arguments::parse().command {
        Command::Run { config } => run::run(&config),
        Command::Check { config, without_secrets, live } => {
            check::check(&config, without_secrets, live)
        }
        Command::Explain { config, method, url, headers, json } => {
            explain::command::explain(&config, method, &url, headers, json)
        }
        Command::Demo { upstream, listen, admin } => demo::demo(Demo { listen, admin, upstream }),
        Command::Sandbox { listen, apps, mood } => sandbox::sandbox(listen, apps, &mood),
    }
}

/// Why a command fails.
type Failure = Box<dyn std::error::Error>;

/// Runs a future on this thread until it completes.
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

/// Problems already contain their file and position.
fn refuse_config(problems: &Problems) -> ExitCode {
    eprint!("{problems}");
    ExitCode::FAILURE
}

/// Logs warnings beside what the demo and the sandbox print.
fn log_warnings() -> Option<Flush> {
    let log = LogSection {
        level: LogLevel::Warn,
        format: LogFormat::Text,
        access: LogDestination::Off,
        openid_key: None,
    };
    let (flush, _) = process_log::install(&log, &*Metrics::new().ok()?);
    Some(flush)
}
