//! `wxgate run`: the gateway in the foreground.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{Failure, report_failure, report_problems, runtime};
use crate::clock::Clock;
use crate::config::{Config, Loaded, Secrets};
use crate::server::received_sockets::ReceivedSockets;
use crate::server::reload::Origin;
use crate::server::service_manager::ServiceManager;
use crate::server::signals::Signals;
use crate::server::upgrade::{Invocation, Predecessor};
use crate::server::{Server, StartError};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::process_log;

/// `upgrades`: takes over from the process that serves.
pub fn run(path: &Path, upgrades: bool) -> ExitCode {
    if upgrades && Invocation::is_intermediate() {
        return match Invocation::of_this_process().and_then(|invocation| invocation.start_again()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => report_failure(&error),
        };
    }
    // First, while no other thread reads the environment and no file is open.
    let received = match ReceivedSockets::from_environment() {
        Ok(received) => received,
        Err(error) => return report_failure(&error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return report_failure(&error),
    };
    let signals = {
        let _entered = runtime.enter();
        match Signals::catch() {
            Ok(signals) => signals,
            Err(error) => return report_failure(&error),
        }
    };
    let Loaded { config, files } = Config::read(path, Secrets::Load, None);
    let config = match config {
        Ok(config) => Arc::new(config),
        Err(problems) => return report_problems(&problems),
    };
    let metrics = match Metrics::new() {
        Ok(metrics) => metrics,
        Err(error) => return report_failure(&error),
    };
    // Dropped last, because it writes queued lines.
    let (_log, level) = process_log::install(&config.log, &metrics);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let served = harden().map_err(Failure::from).and_then(|()| {
        runtime.block_on(async {
            let commands = signals.commands()?;
            let server = if upgrades {
                // Those of the old process are used instead.
                drop(received);
                let socket = config.server.upgrade_socket.as_deref();
                let predecessor = Predecessor::find(socket).await.map_err(StartError::from)?;
                let clock = predecessor.clock();
                Server::bind_after(predecessor, &config, clock, metrics)?
            } else {
                Server::bind_with(&config, Clock::system(), metrics, received)?
            };
            let origin = Origin { path: path.to_owned(), config, files, log: Some(level) };
            let manager = Arc::new(ServiceManager::from_environment());
            let mut server = server.following(origin).reporting_to(manager);
            match Invocation::of_this_process() {
                Ok(invocation) => server = server.started_by(invocation),
                Err(error) => tracing::warn!(%error, "SIGQUIT cannot start a new process"),
            }
            server.run(commands).await?;
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

/// Keeps memory, which contains secrets and tokens, out of core dumps and key logs.
fn harden() -> Result<(), String> {
    reject_key_log()?;
    let no_core = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, no_core)
        .map_err(|error| format!("cannot disable core dumps: {error}"))?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| format!("cannot disable core dumps: {error}"))?;
    Ok(())
}

pub fn reject_key_log() -> Result<(), String> {
    if std::env::var_os("SSLKEYLOGFILE").is_some() {
        return Err("SSLKEYLOGFILE is set, which would write the keys of TLS connections to a file: unset it"
            .to_owned());
    }
    Ok(())
}
