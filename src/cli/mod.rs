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

/// WeChat Mini Program login for services, without changes to the services.
#[derive(Parser)]
#[command(name = "wxgate", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway in the foreground, and log to stderr.
    Run {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Take over from the process that serves at server.upgrade_socket: its listening sockets,
        /// its sessions and its rate limits. The old process then ends when its requests have
        /// ended. If this fails, it goes on serving, and the exit code is 1.
        #[arg(long)]
        upgrade: bool,
    },
    /// Validate a configuration as `run` does, and print every problem. Performs every step of
    /// startup, except opening listeners and creating the access log file.
    Check {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// Do not read secrets, keys or certificates, and do not check the directory of the access
        /// log. For machines that do not have them, such as in CI.
        #[arg(long)]
        without_secrets: bool,
        /// Also call WeChat, once for each app at each of WeChat's addresses, to check that it is
        /// reachable, that its certificate is valid, and that it accepts the app id and secret.
        /// The login code of the call is invalid, so none is consumed. This relies on WeChat
        /// checking the secret before the code, which it does today but does not document.
        #[arg(long, conflicts_with = "without_secrets")]
        live: bool,
    },
    /// Show how a request would be handled: which route matches and why the others do not, which
    /// headers the service would get, and which are removed. Reads no secrets, keys, certificates
    /// or files of fixed responses, and makes no calls. Assumes that the client is not a trusted
    /// proxy.
    #[command(after_help = explain::command::HELP)]
    Explain {
        /// The configuration file.
        #[arg(short, long, value_name = "FILE")]
        config: PathBuf,
        /// The method, such as GET.
        #[arg(value_name = "METHOD")]
        method: http::Method,
        /// The URL, such as https://api.example.com/orders?page=2, or only its path.
        #[allow(rustdoc::bare_urls, reason = "it is the help text, too")]
        #[arg(value_name = "URL")]
        url: String,
        /// A header of the request. Can be repeated.
        #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = explain::command::parse_header)]
        headers: Vec<(HeaderName, HeaderValue)>,
        /// Write one JSON object instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Try a complete gateway with a simulated WeChat. Needs no account and no file.
    Demo {
        /// Your own service to put behind the gateway, such as http://127.0.0.1:3000.
        #[arg(long, value_name = "URL", value_parser = demo::parse_upstream)]
        upstream: Option<String>,
        /// Address on which the gateway listens.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Address of metrics and probes.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9464")]
        admin: SocketAddr,
        /// Address of the API for services.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9191")]
        internal: SocketAddr,
    },
    /// Run the simulated WeChat alone, for development and CI.
    #[command(after_help = sandbox::HELP)]
    Sandbox {
        /// Address on which it listens. Set `wechat.base_url` of the gateway to http://ADDR.
        #[arg(long, value_name = "ADDR")]
        listen: SocketAddr,
        /// An app that it accepts. Can be repeated. By default wx0123456789abcdef, with the secret
        /// sandbox-secret.
        #[arg(long = "app", value_name = "APP_ID:SECRET", value_parser = sandbox::parse_app)]
        apps: Vec<(String, String)>,
        #[command(flatten)]
        options: sandbox::SandboxOptions,
    },
}

/// The exit code is 0 for success, 1 for a failure, and 2 for wrong usage.
pub fn main() -> ExitCode {
    // reqwest and redis use the process's TLS provider.
    drop(rustls::crypto::ring::default_provider().install_default());
    match Arguments::parse().command {
        Command::Run { config, upgrade } => run::run(&config, upgrade),
        Command::Check { config, without_secrets, live } => {
            check::check(&config, without_secrets, live)
        }
        Command::Explain { config, method, url, headers, json } => {
            explain::command::explain(&config, method, &url, headers, json)
        }
        Command::Demo { upstream, listen, admin, internal } => {
            demo::demo(Demo { listen, admin, internal, upstream })
        }
        Command::Sandbox { listen, apps, options } => sandbox::sandbox(listen, apps, &options),
    }
}

/// Why a command fails.
type Failure = Box<dyn std::error::Error>;

/// Runs a future on this thread until it completes.
fn block_on(future: impl Future<Output = Result<(), Failure>>) -> ExitCode {
    let outcome = runtime().map_err(Failure::from).and_then(|runtime| runtime.block_on(future));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report_failure(&*error),
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn report_failure(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("wxgate: {error}");
    ExitCode::FAILURE
}

/// Problems already contain their file and position.
fn report_problems(problems: &Problems) -> ExitCode {
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
