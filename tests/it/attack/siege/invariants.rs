//! The invariants after each attack, checked against logs, metrics and the service.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::{BYSTANDER, MALLORY, Siege, Witness, is_canary_target};
use crate::harness::client::{self, Response};
use crate::harness::process_log;
use crate::harness::upstream::Received;
use crate::harness::{APP, PATIENCE, SECRET, openid};

impl Siege {
    /// Asserts the invariants, and returns the complete requests that the service received
    /// since the last time.
    pub async fn hold(&mut self, after: &str) -> Vec<Received> {
        if !self.bystander.token.is_empty() {
            self.send_as_bystander(after).await;
        }
        let (lines, metrics) = self.settle(after).await;
        let begun = self.begun();
        let whole = match &mut self.witness {
            Witness::Recorder => self.stack.upstream.requests_after(self.whole),
            Witness::Service { arrived, .. } => std::mem::take(arrived),
        };
        self.begun += begun.len();
        self.whole += whole.len();
        assert!(self.stack.upstream.faults().is_empty(), "{:?}", self.stack.upstream.faults());
        for received in &begun {
            let id = received.all("x-request-id");
            let mut known = self.given_up.iter().chain(&lines);
            let line = known.find(|line| id == [line["request_id"].as_str().unwrap()]);
            let line = line.unwrap_or_else(|| panic!("{received:?} was not logged, after {after}"));
            self.assert_identity(received, line, after);
        }
        let log: Vec<String> = lines.iter().map(Value::to_string).collect();
        if self.may_lose_requests {
            // A service may log an aborted request later, but only once.
            self.given_up.extend(lines);
            let has_come = |line: &Value| {
                begun.iter().any(|received| received.all("x-request-id") == [&line["request_id"]])
            };
            self.given_up.retain(|line| !line["upstream"].is_null() && !has_come(line));
        }
        let process_log = process_log::text_after(self.read_process_log);
        self.read_process_log += process_log.len();
        let token = |received: &Received| self.more.as_ref()?.token(received);
        let signed: Vec<String> = begun.iter().filter_map(token).collect();
        let openids = [&self.mallory.openid, &self.bystander.openid];
        for secret in self.secrets.iter().chain(openids).chain(&signed) {
            if secret.is_empty() {
                continue;
            }
            assert!(!log.iter().any(|line| line.contains(secret)), "{secret} in {log:?}: {after}");
            assert!(!process_log.contains(secret), "{secret} in {process_log}: {after}");
            assert!(!metrics.contains(secret), "{secret} in metrics: {after}");
        }
        assert_eq!(process_log::panics(), [""; 0], "after {after}");
        whole
    }

    /// Requests since the last time of which at least the header has come.
    pub(super) fn begun(&mut self) -> Vec<Received> {
        match &mut self.witness {
            Witness::Recorder => self.stack.upstream.begun_after(self.begun),
            Witness::Service { log, read, arrived } => {
                for line in new_lines(log, read) {
                    arrived.extend(logged_request(&line));
                }
                arrived.clone()
            }
        }
    }

    /// Waits until everything is logged: as many lines as requests were counted, and
    /// every forwarded one has arrived. Returns the new lines, and the metrics.
    pub(super) async fn settle(&mut self, after: &str) -> (Vec<Value>, String) {
        let mut lines: Vec<Value> = Vec::new();
        let mut shown = String::new();
        let mut was_quiet = false;
        let settled = async {
            loop {
                let metrics = client::get(self.stack.admin, "/metrics").await.text();
                let counted = sum(&metrics, "wxgate_http_requests_total{");
                let in_flight = sum(&metrics, "wxgate_http_requests_in_flight ");
                lines.extend(new_lines(&self.log, &mut self.read_log));
                let begun = self.begun();
                let mut forwarded: Vec<&str> = lines
                    .iter()
                    .filter(|line| !line["upstream"].is_null())
                    .map(|line| line["request_id"].as_str().unwrap())
                    .collect();
                let mut read: Vec<&str> =
                    begun.iter().flat_map(|received| received.all("x-request-id")).collect();
                forwarded.sort_unstable();
                read.sort_unstable();
                let is_logged = (counted - self.logged - lines.len() as f64).abs() < 0.5;
                let answered = |line: &&Value| line["upstream_status"] == 200;
                let is_complete = match self.may_lose_requests {
                    true => lines.iter().filter(answered).all(|line| {
                        read.binary_search(&line["request_id"].as_str().unwrap()).is_ok()
                    }),
                    false => forwarded == read,
                };
                let are_all_known = read.len() == begun.len();
                // The counter may be older than the gauge beside it: it is read once more.
                if was_quiet && in_flight == 0.0 && is_logged && is_complete && are_all_known {
                    self.logged = counted;
                    return metrics;
                }
                if in_flight == 0.0 && !was_quiet {
                    was_quiet = true;
                    continue;
                }
                shown = format!("{in_flight} in flight, {lines:?} for {begun:?}");
                sleep(Duration::from_millis(2)).await;
            }
        };
        match timeout(PATIENCE, settled).await {
            Ok(metrics) => (lines, metrics),
            Err(_) => panic!("log and requests differ: {shown}, after {after}"),
        }
    }

    /// Asserts that the reserved headers of a request are the gateway's.
    pub(super) fn assert_identity(&self, received: &Received, line: &Value, after: &str) {
        let target = received.target();
        let is_known = line["decision"] == "ok";
        let user = match target.rsplit_once("/of/") {
            _ if is_canary_target(target) => BYSTANDER,
            Some((_, user)) => user,
            None => MALLORY,
        };
        let openid = openid(user);
        let unionid = wxgate::wechat::sandbox::unionid(user);
        let if_known = |value: &str| is_known.then(|| value.to_owned());
        let proto = if self.tls.is_some() { "https" } else { "http" };
        let host = received.all("host").first().map(|host| (*host).to_owned());
        let expected = [
            ("x-openid", if_known(&openid)),
            ("x-appid", if_known(APP)),
            ("x-unionid", unionid.filter(|_| is_known)),
            ("x-forwarded-for", Some("127.0.0.1".to_owned())),
            ("x-real-ip", Some("127.0.0.1".to_owned())),
            ("x-forwarded-proto", Some(proto.to_owned())),
            ("x-forwarded-host", host),
            ("x-request-id", Some(line["request_id"].as_str().unwrap().to_owned())),
        ];
        let mut never_sent = NEVER_SENT.to_vec();
        if let Some(more) = &self.more {
            more.assert_received(received, is_known.then_some(user), "recorder");
            let is_of_user =
                |name: &str| name.starts_with("x-wx-") || name.eq_ignore_ascii_case(more.header);
            never_sent.retain(|name| !is_of_user(name));
        }
        let none = never_sent.into_iter().map(|name| (name, None));
        // A service only logs whose request it takes it for.
        let shown = match &self.witness {
            Witness::Recorder => usize::MAX,
            Witness::Service { .. } => 1,
        };
        for (name, value) in expected.into_iter().chain(none).take(shown) {
            let value: Vec<&str> = value.iter().map(String::as_str).collect();
            assert_eq!(received.folded(name), value, "{name} of {received:?}, after {after}");
            assert_eq!(
                received.all(name),
                value,
                "in its own spelling: {received:?}, after {after}"
            );
        }
        let said =
            |secret: &&String| received.lines.iter().any(|(_, value)| value.contains(*secret));
        assert_eq!(self.secrets.iter().find(said), None, "{received:?}, after {after}");
        let is_shown = |secret: &&String| target.contains(*secret) && !after.contains(*secret);
        assert_eq!(self.secrets.iter().find(is_shown), None, "{target}, after {after}");
    }

    /// Asserts that a response shows no secret of WeChat, and an error no secret at all.
    pub fn assert_shows_no_secret(&self, response: &Response, after: &str) {
        let text = format!("{response:?} {}", response.text());
        let wechats = [SECRET, &self.wechat.session_key];
        assert!(!wechats.iter().any(|secret| text.contains(secret)), "{text}, after {after}");
        if response.status >= 400 {
            let shown = self.secrets.iter().find(|secret| text.contains(*secret));
            assert_eq!(shown, None, "{text}, after {after}");
        }
    }
}

/// Reserved headers that the gateway does not send.
const NEVER_SENT: [&str; 16] = [
    "x-3rd-session",
    "x-wx-openid",
    "x-wx-appid",
    "x-wx-unionid",
    "x-wx-from-openid",
    "x-wx-from-appid",
    "x-wx-from-unionid",
    "x-wx-source",
    "x-wx-env",
    "x-wx-cloudbase-access-token",
    "x-wx-from-cloudbase-access-token",
    "x-original-forwarded-for",
    "x-wxgate-jwt",
    "forwarded",
    "x-forwarded-port",
    "x-forwarded-prefix",
];

/// Whole lines of JSON that were added to a file.
fn new_lines(file: &Path, read: &mut u64) -> Vec<Value> {
    let mut file = File::open(file).unwrap();
    file.seek(SeekFrom::Start(*read)).unwrap();
    let mut new = Vec::new();
    file.read_to_end(&mut new).unwrap();
    let end = new.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    *read += end as u64;
    let new = std::str::from_utf8(&new[..end]).unwrap();
    new.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A request as a service logs it; `None` for a line about a connection.
fn logged_request(line: &Value) -> Option<Received> {
    let text = |key: &str| line[key].as_str().filter(|text| !matches!(*text, "" | "-"));
    let request_line = text("line")?.to_owned();
    // The header that it received counts if it does not log whom it trusts.
    let openid = text("openid").or(text("received"));
    let lines = [("x-request-id", text("id")), ("x-openid", openid)];
    let lines = lines.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let lines = lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Some(Received { request_line, lines, ..Received::default() })
}

/// The sum of all series of a metric.
pub fn sum(metrics: &str, prefix: &str) -> f64 {
    let values = metrics.lines().filter(|line| line.starts_with(prefix));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}
