//! `wxgate check`: finds problems in a configuration.

use std::path::Path;
use std::process::ExitCode;

use super::run::reject_key_log;
use super::{Failure, block_on, report_problems};
use crate::clock::Clock;
use crate::config::{Config, Secrets};
use crate::server::Server;
use crate::telemetry::metrics::Metrics;
use crate::wechat::WeChat;

pub fn check(path: &Path, without_secrets: bool, live: bool) -> ExitCode {
    let secrets = if without_secrets { Secrets::Ignore } else { Secrets::Load };
    match Config::load(path, secrets) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("warning: {warning}");
            }
            // Without secrets the gateway cannot be started.
            let outcome = match secrets {
                Secrets::Load => rehearse(&config),
                Secrets::Ignore => Ok(()),
            };
            if let Err(error) = outcome {
                eprintln!("{}: {error}", path.display());
                return ExitCode::FAILURE;
            }
            println!("{}: ok\n{}", path.display(), config.summary());
            if let Some(line) = config.one_gateway() {
                println!("{line}");
            }
            if live { block_on(check_live(&config)) } else { ExitCode::SUCCESS }
        }
        Err(problems) => report_problems(&problems),
    }
}

/// Does everything that a start does before it listens.
fn rehearse(config: &Config) -> Result<(), Failure> {
    reject_key_log()?;
    Server::rehearse(config, Metrics::new()?)?;
    Ok(())
}

/// Reports for each app, at each of WeChat's addresses, whether WeChat accepts it.
async fn check_live(config: &Config) -> Result<(), Failure> {
    let wechat = WeChat::new(&config.wechat, Clock::system(), Metrics::new()?)?;
    let mut failed = 0;
    for app in &config.apps {
        let app_id = app.app_id.as_str();
        for (address, outcome) in wechat.probe(app).await {
            match outcome {
                Ok(()) => println!("{app_id}: {address}: WeChat accepts the app"),
                Err(error) => {
                    failed += 1;
                    println!("{app_id}: {address}: {error}{}", error.details());
                }
            }
        }
    }
    match failed {
        0 => Ok(()),
        1 => Err("1 check of WeChat failed".into()),
        failed => Err(format!("{failed} checks of WeChat failed").into()),
    }
}
