//! The access log: one JSON line per request.
//!
//! The fields are an allow-list: no token, code, secret, query or header can appear, and a user
//! only as the user id that the login hook gave, or as a keyed hash of the openid. When the
//! destination is too slow, lines are dropped and counted (`wxgate_log_lines_dropped_total`).

use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use rand::distr::{Alphanumeric, SampleString};
use serde::Serialize;
use sha2::Sha256;
use tracing_appender::non_blocking::NonBlocking;

use crate::clock::Clock;
use crate::config::{LogDestination, LogSection};
use crate::identity::secret::Secret;
use crate::identity::{OpenId, UserId};
use crate::telemetry::log_file::LogFile;
use crate::telemetry::log_writer::{Flush, queued, timestamp};
use crate::telemetry::metrics::Metrics;

/// The status of a request whose client disconnected before its response, as nginx logs it.
pub const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The fields of one request. Times are in milliseconds, sizes are bytes of bodies.
#[derive(Serialize)]
pub struct AccessLine<'a> {
    pub time: String,
    pub request_id: &'a str,
    /// `None` if the request came through a Unix socket.
    pub client: Option<IpAddr>,
    pub method: &'a str,
    /// Without the query.
    pub path: &'a str,
    pub route: &'a str,
    pub status: u16,
    pub error: Option<&'a str>,
    pub duration_ms: f64,
    pub upstream: Option<String>,
    pub upstream_status: Option<u16>,
    pub bytes_in: usize,
    pub bytes_out: usize,
    pub decision: Option<&'a str>,
    pub app_id: Option<&'a str>,
    pub user: Option<String>,
    /// The errcode of a login or a call that WeChat did not accept.
    pub errcode: Option<i64>,
    /// `internal`; absent for all other listeners.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listener: Option<&'a str>,
    /// The name of the token of a call of the internal API; absent for all other listeners.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<&'a str>,
}

impl<'a> AccessLine<'a> {
    /// The line of a request that ends now and `took` this long; all other fields are empty.
    pub fn new(
        request_id: &'a str,
        client: impl Into<Option<IpAddr>>,
        status: u16,
        took: Duration,
    ) -> Self {
        Self {
            time: timestamp(),
            request_id,
            client: client.into(),
            method: "",
            path: "",
            route: "",
            status,
            error: None,
            duration_ms: milliseconds(took),
            upstream: None,
            upstream_status: None,
            bytes_in: 0,
            bytes_out: 0,
            decision: None,
            app_id: None,
            user: None,
            errcode: None,
            listener: None,
            caller: None,
        }
    }
}

/// A line on the same stream as the process log.
#[derive(Serialize)]
struct Marked<'a> {
    log: &'static str,
    #[serde(flatten)]
    line: &'a AccessLine<'a>,
}

/// The destination of the access log.
pub struct AccessLog {
    writer: Option<(NonBlocking, Flush)>,
    file: Option<Arc<LogFile>>,
    user_names: UserNames,
    /// Whether the key is from the configuration: then names stay the same after a restart.
    has_key: bool,
}

/// The names of users in the log.
///
/// The key is set up once; each name is made with a copy.
#[derive(Clone)]
pub struct UserNames(Hmac<Sha256>);

impl UserNames {
    /// 96 bits of HMAC-SHA-256 of the openid under `log.openid_key`, as 16 characters.
    pub fn name(&self, openid: &OpenId) -> String {
        let mut mac = self.0.clone();
        mac.update(openid.as_str().as_bytes());
        let hash = mac.finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(hash.first_chunk::<12>().unwrap_or(&[0; 12]))
    }
}

impl AccessLog {
    /// Opens the configured destination.
    ///
    /// # Errors
    /// When `log.access` names a file that cannot be opened for appending.
    pub fn open(log: &LogSection, clock: &Clock, metrics: &Metrics) -> io::Result<Self> {
        let file = match &log.access {
            LogDestination::File(path) => Some(LogFile::open(path)?),
            _ => None,
        };
        let sink: Option<Box<dyn Write + Send>> = match &log.access {
            LogDestination::Off => None,
            LogDestination::Stderr => Some(Box::new(io::stderr())),
            LogDestination::Stdout => Some(Box::new(io::stdout())),
            LogDestination::File(_) => {
                let writer = |file: &Arc<LogFile>| file.writer(clock.clone(), metrics);
                file.as_ref().map(writer).map(|writer| Box::new(writer) as Box<_>)
            }
        };
        let key = match &log.openid_key {
            Some(key) => key.clone(),
            None => Secret::new(Alphanumeric.sample_string(&mut rand::rng(), 43)),
        };
        let user_names = Hmac::new_from_slice(key.expose().as_bytes()).map_err(io::Error::other)?;
        Ok(Self {
            writer: sink.map(|sink| queued(sink, metrics)),
            file,
            user_names: UserNames(user_names),
            has_key: log.openid_key.is_some(),
        })
    }

    /// The file that lines are written to, if it is a file.
    pub fn file(&self) -> Option<&Arc<LogFile>> {
        self.file.as_ref()
    }

    /// Whether lines are written: if not, they need not be built.
    pub fn is_on(&self) -> bool {
        self.writer.is_some()
    }

    pub fn write(&self, line: &AccessLine<'_>) {
        let Some((writer, _)) = &self.writer else { return };
        let mut text = Vec::with_capacity(512);
        if serde_json::to_writer(&mut text, &Marked { log: "access", line }).is_ok() {
            text.push(b'\n');
            // The writer itself counts lines dropped because of a full queue.
            let _ = writer.clone().write_all(&text);
        }
    }

    /// The user of a line: the user id, or else the name that is made of the openid.
    pub fn user(&self, openid: &OpenId, user_id: Option<&UserId>) -> String {
        user_id.map_or_else(|| self.user_names.name(openid), |id| id.as_str().to_owned())
    }

    /// The source of users' names, for looking up a user by name. `None` unless `log.openid_key` is
    /// set: without that key, names differ between processes.
    pub fn user_names(&self) -> Option<UserNames> {
        self.has_key.then(|| self.user_names.clone())
    }
}

/// A duration for the log: milliseconds with at most three decimals.
fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_decimals_at_most() {
        for (nanos, shown) in [
            (0, "0.0"),
            (499, "0.0"),
            (2_870_160, "2.87"),
            (1_005_283_668, "1005.284"),
            (3_600_000_123_456, "3600000.123"),
        ] {
            let took = Duration::from_nanos(nanos);
            assert_eq!(serde_json::to_string(&milliseconds(took)).unwrap(), shown);
        }
    }
}
