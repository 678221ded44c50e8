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
    /// Time that each call takes.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    latency: Duration,
    /// Simulate a slow start for this long: calls take two seconds at first, then less.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    slow_start: Duration,
    /// Maximum number of logins, or calls of another API, per user and minute; further ones get
    /// errcode 45011.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    user_quota: u32,
    /// Maximum number of logins, and calls of each other API, in total; further ones get errcode
    /// 45009. By default no limit.
    #[arg(long, value_name = "COUNT")]
    quota: Option<u64>,
    /// Respond to every exchange with errcode 40164, as if the caller's address were not on the
    /// allowlist.
    #[arg(long)]
    refuse_ip: bool,
    /// Time until a session_key expires after the user's last login.
    #[arg(long, value_name = "TIME", default_value = "3d", value_parser = humantime::parse_duration)]
    session_key_lifetime: Duration,
    /// Time for which a session_key stays the same when the user logs in again. By default, each
    /// login makes a new one.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = humantime::parse_duration)]
    session_key_refresh: Duration,
}

pub const HELP: &str = "\
Codes:
  user-NAME, user-NAME-ANYTHING  valid once, for user NAME; users whose name begins
                                 with \"union\" have a unionid
  snapshot-NAME-ANYTHING         valid once, at /sns/oauth2/access_token: WeChat reports
                                 a made-up user and sets is_snapshotuser
  POST /sandbox/codes {\"user\":\"NAME\"}
                                 creates a code that is valid once, for five minutes,
                                 like a real one
  phone-NAME, phone-NAME-ANYTHING
                                 a code of the button for phone numbers, valid once
  POST /sandbox/phone-codes {\"user\":\"NAME\",\"phone\":\"13800138000\",\"app_id\":\"APP_ID\"}
                                 creates such a code that is valid once, for five
                                 minutes; phone and app_id are optional
  err-40029-ANYTHING             the response has this errcode
  slow-3s-NAME                   the response comes after three seconds
  hang-ANYTHING                  there is no response
  garbage-ANYTHING               the response is not JSON
  drop-ANYTHING                  the connection is closed without a response
  status-500-ANYTHING            the response has this HTTP status
  half-ANYTHING                  the response ends in the middle of the JSON
  huge-ANYTHING                  the response is 100 MiB long

WeChat's login APIs:
  GET  /sns/jscode2session       for Mini Programs
  GET  /sns/oauth2/access_token  for official accounts, websites and native apps

WeChat's login pages, for browsers:
  GET  /connect/oauth2/authorize official accounts
  GET  /connect/qrconnect        websites; a link simulates the scan of the QR code
                                 The links of a page choose who logs in and what
                                 happens. \"&user=NAME\" in the URL of a page chooses
                                 without a page, with \"&answer=\" allow, slow,
                                 snapshot, deny (redirects without a code) or close.
                                 A code is valid once, for its app, for five minutes,
                                 that of a website for ten.
  GET  /sandbox/user?name=NAME   sets the user of this browser in a cookie: the scope
                                 snsapi_base then shows no page; an empty name
                                 removes it
  The pages redirect to every http and https URL that they are called with: do not
  make the sandbox reachable for others.

WeChat's APIs, besides the login:
  POST /cgi-bin/stable_token, GET /cgi-bin/token
  GET  /wxa/checksession, GET /wxa/resetusersessionkey
                                 a login gives the user a new session_key and
                                 invalidates the previous one
  POST /wxa/business/getuserphonenumber
  POST /cgi-bin/message/subscribe/send
                                 \"err-43101-ANYTHING\" as the template's id makes the
                                 response have this errcode
  POST /wxa/getwxacodeunlimit, POST /wxa/getwxacode,
  POST /cgi-bin/wxaapp/createwxaqrcode
                                 the image is a plain QR code
  POST /wxa/msg_sec_check, POST /wxa/img_sec_check
                                 a text or file name with \"sandbox-risky\" is risky
  POST /cgi-bin/media/upload, GET /cgi-bin/media/get

The other side, for development:
  POST /sandbox/encrypt {\"user\":\"NAME\",\"data\":{...},\"app_id\":\"APP_ID\"}
                                 encryptedData, iv, rawData and signature, as the
                                 phone of the user, who has logged in, gets them
  POST /sandbox/revoke-token {\"app_id\":\"APP_ID\"}
                                 invalidates the access_tokens of the app, as when
                                 another program refreshes them
  GET  /sandbox/messages         the subscribe messages that were sent
  GET  /sandbox/stats            the number of exchanges so far, the largest number
                                 at the same time, and the calls of other APIs";

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
        session_key_lifetime: options.session_key_lifetime,
        session_key_refresh: options.session_key_refresh,
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
