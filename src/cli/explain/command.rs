//! The `wxgate explain` command: how it reads its arguments, and what it prints.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use http::{HeaderName, HeaderValue, Method};

use super::DescribedRequest;
use crate::cli::report_problems;
use crate::config::{Config, Secrets};

pub const HELP: &str = "\
Exit code:
  0  the request is forwarded (given a session, where one is required), or the gateway itself
     serves it
  1  it is rejected, or the file has problems
  2  wrong usage

JSON fields (all are always present):
  method, host, path  the request
  outcome             forwarded, answered, rejected or forward_auth
  status, error, reason, allow
                      the gateway's own response, if it is known
  endpoint            login, logout, session, start, callback, ticket, scan, health or jwks, if the
                      path is one of them
  route               index, name, file, line, auth, preflight, apps, max_body (bytes),
                      rate_per_user, rate_per_address, websocket, cors, preflights
  browser             null, or for the [[browser]] of the host: base_url, cookie, is_read,
                      is_cross_site, without_session (redirect, page, json or null), app
  ticket              whether the query has a ticket
  upstreams           for each one: name, servers, weights, percent, protocol, tls (null, or
                      server_name), balance, hash, host, buffer_body (bytes), cookie_jar,
                      connect_timeout, read_timeout, write_timeout, timeout, max_connections, max_pending,
                      pending_timeout, retry (attempts, on, budget, per_try_timeout), ejection
                      (failures, duration, max_percent), health_check (null, or path, interval,
                      timeout, unhealthy_after, healthy_after)
  request             method, target and headers (name, value) as the service gets them
  removed             for each header that the service does not get: name, reason
  response_headers    set (name, value), removed (names), vary
  other_routes        for each one: index, name, file, line, reason";

pub fn explain(
    path: &Path,
    method: Method,
    url: &str,
    headers: Vec<(HeaderName, HeaderValue)>,
    is_json: bool,
) -> ExitCode {
    let request = match DescribedRequest::new(method, url, headers) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("wxgate: {url}: {error}");
            return ExitCode::from(2);
        }
    };
    match Config::load(path, Secrets::Ignore) {
        Ok(config) => {
            let explanation = super::explain(&config, &request);
            let text = match serde_json::to_string_pretty(&explanation) {
                Ok(json) if is_json => json + "\n",
                _ => explanation.to_string(),
            };
            // A reader such as `head` may have closed stdout.
            let _ = std::io::stdout().write_all(text.as_bytes());
            if explanation.is_served() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(problems) => report_problems(&problems),
    }
}

pub fn parse_header(line: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = line.split_once(':').ok_or("expected NAME: VALUE")?;
    let name = name.trim().parse().map_err(|_| "invalid header name".to_owned())?;
    let value = value.trim().parse().map_err(|_| "invalid header value".to_owned())?;
    Ok((name, value))
}
