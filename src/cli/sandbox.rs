//! `wxgate sandbox`: the simulated WeChat alone.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::mpsc;

use super::{block_on, log_warnings};
use crate::clock::Clock;
use crate::server::Command;
use crate::server::signals::Signals;
use crate::wechat::sandbox::{Behaviour, DEFAULT_APP, Sandbox};

/// How the simulated WeChat behaves.
#[derive(clap::Args)]
pub struct SandboxOptions {
    /// Time that each exchange takes.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// Simulate a slow start for this long: exchanges take two seconds at first, then less.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    slow_start: Duration,
    /// Maximum number of logins per user and minute; further ones get errcode 45011.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    user_quota: u32,
    /// Maximum number of logins in total; further ones get errcode 45009. By default no limit.
    #[arg(long, value_name = "COUNT")]
    quota: Option<u64>,
    /// Respond to everything with errcode 40164, as if the caller's address were not on the
    /// whitelist.
    #[arg(long)]
    refuse_ip: bool,
}

pub const HELP: &str = "\
Codes:
  user-NAME, user-NAME-ANYTHING  valid once, for user NAME; users whose name begins
                                 with \"union\" have a unionid
  POST /sandbox/codes {\"user\":\"NAME\"}
                                 creates a code that is valid once, for five minutes,
                                 like a real one
  err-40029-ANYTHING             the response has this errcode
  slow-3s-NAME                   the response comes after three seconds
  hang-ANYTHING                  there is no response
  garbage-ANYTHING               the response is not JSON
  drop-ANYTHING                  the connection is closed without a response
  status-500-ANYTHING            the response has this HTTP status
  half-ANYTHING                  the response ends in the middle of the JSON
  huge-ANYTHING                  the response has 100 MiB

Each login gives the user a new session_key and invalidates the previous one:
  GET /wxa/checksession?access_token=ANY&openid=...&signature=...&sig_method=hmac_sha256
                                 whether a signature is of the current session_key
  GET /sandbox/stats             the number of exchanges so far, and the largest
                                 number at the same time";

pub fn sandbox(
    listen: SocketAddr,
    mut apps: Vec<(String, String)>,
    options: &SandboxOptions,
) -> ExitCode {
    let behaviour = Behaviour {
        latency: options.latency,
        slow_start: options.slow_start,
        user_quota: options.user_quota,
        quota: options.quota,
        rejects_address: options.refuse_ip,
    };
    if apps.is_empty() {
        apps.push((DEFAULT_APP.0.to_owned(), DEFAULT_APP.1.to_owned()));
    }
    let _log = log_warnings();
    block_on(async {
        let mut commands = Signals::catch()?.commands()?;
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .map_err(|error| format!("cannot listen on {listen}: {error}"))?;
        let mut out = std::io::stdout();
        // A reader such as `head` may have closed stdout.
        let _ = writeln!(out, "simulated WeChat at http://{}", listener.local_addr()?);
        for (app_id, secret) in &apps {
            let _ = writeln!(out, "app {app_id} with secret {secret}");
        }
        let sandbox = Sandbox::with_behaviour(apps, Clock::system(), behaviour);
        tokio::select! {
            () = sandbox.serve(listener) => {}
            () = stopped(&mut commands) => {}
        }
        Ok(())
    })
}

/// Waits for a command to stop.
async fn stopped(commands: &mut mpsc::Receiver<Command>) {
    loop {
        match commands.recv().await {
            None | Some(Command::Drain | Command::Stop) => return,
            Some(Command::Reload) => tracing::warn!("SIGHUP ignored: no configuration file"),
            Some(Command::HandOver) => tracing::warn!("SIGQUIT ignored"),
            Some(Command::ReopenLogs | Command::Ignored { .. }) => {}
        }
    }
}

pub fn parse_app(app: &str) -> Result<(String, String), String> {
    match app.split_once(':') {
        Some((app_id, secret)) if !app_id.is_empty() && !secret.is_empty() => {
            Ok((app_id.to_owned(), secret.to_owned()))
        }
        _ => Err("expected APP_ID:SECRET".to_owned()),
    }
}
