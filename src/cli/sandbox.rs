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
pub struct Mood {
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

pub const HELP: &str = "\
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

pub fn sandbox(listen: SocketAddr, mut apps: Vec<(String, String)>, mood: &Mood) -> ExitCode {
    let behaviour = Behaviour {
        latency: mood.latency,
        slow_start: mood.slow_start,
        user_quota: mood.user_quota,
        quota: mood.quota,
        rejects_address: mood.refuse_ip,
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
