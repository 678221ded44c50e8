//! `wxgate demo`: a complete gateway to try, in one process.
//!
//! It runs a simulated WeChat and the gateway on loopback, in front of an echo service or of an
//! existing service. It needs no account and no file. It prints commands to paste into a shell, and
//! says what each of them shows. `page` is for browsers.

mod page;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use rand::distr::{Alphanumeric, SampleString};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{block_on, log_warnings};
use crate::clock::Clock;
use crate::config::{Config, Problems, Secrets};
use crate::identity::secret::Secret;
use crate::listener::small_server::{self, Request, Response, response};
use crate::server::signals::Signals;
use crate::server::{Command, Server, StartError};
use crate::telemetry::metrics::Metrics;
use crate::wechat::sandbox::{self, DEFAULT_APP, Sandbox};

/// The apps besides the Mini Program: an official account and a website.
const OFFICIAL_ACCOUNT: &str = "wx00000000000000a1";
const WEBSITE: &str = "wx00000000000000b2";

/// Characters of the token for the internal API.
const TOKEN_LENGTH: usize = 43;

/// The options of the demo.
pub struct Demo {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// Address of the API for services.
    pub internal: SocketAddr,
    /// Host and port of a service to use instead of the echo service.
    pub upstream: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Config(#[from] Problems),
    #[error("cannot listen on loopback: {0}")]
    Loopback(#[from] std::io::Error),
    #[error("cannot set up the metrics: {0}")]
    Metrics(String),
}

impl Demo {
    /// Runs until one of the `commands` stops it. Once the gateway listens, `say` prints the shell
    /// commands to paste.
    ///
    /// # Errors
    /// When an address is in use, or the service's address is invalid.
    pub async fn run(
        self,
        commands: mpsc::Receiver<Command>,
        say: impl Fn(&str),
    ) -> Result<(), DemoError> {
        let wechat = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let upstream = match &self.upstream {
            Some(upstream) => upstream.clone(),
            None => echo.local_addr()?.to_string(),
        };
        let token = Alphanumeric.sample_string(&mut rand::rng(), TOKEN_LENGTH);
        let (wechat_address, page) = (wechat.local_addr()?, echo.local_addr()?);
        let parse = |gateway: SocketAddr| -> Result<Config, Problems> {
            let text = self.config(gateway, wechat_address, &upstream, page);
            let mut config = Config::parse("demo", &text, Secrets::Ignore)?;
            for app in &mut config.apps {
                app.secret = Secret::new(DEFAULT_APP.1.to_owned());
            }
            for caller in config.internal.iter_mut().flat_map(|internal| &mut internal.callers) {
                caller.token = Secret::new(token.clone());
            }
            Ok(config)
        };
        let metrics = Metrics::new().map_err(|error| DemoError::Metrics(error.to_string()))?;
        let mut server = Server::bind(&parse(self.listen)?, Clock::system(), metrics)?;
        // The hosts of web pages have the gateway's port, which may be known only now.
        if let Some(gateway) = server.public_addresses().first().filter(|at| **at != self.listen) {
            server = server.with_config(&parse(*gateway)?)?;
        }
        say(&self.tour(&server, wechat_address, &token));

        let apps = [DEFAULT_APP.0, OFFICIAL_ACCOUNT, WEBSITE];
        let apps = apps.map(|app_id| (app_id.to_owned(), DEFAULT_APP.1.to_owned())).to_vec();
        let sandbox = Sandbox::new(apps, Clock::system());
        tokio::select! {
            ended = server.run(commands) => ended.map_err(DemoError::from),
            () = sandbox.serve(wechat) => Ok(()),
            never = small_server::serve(echo, |request| async move { Ok(respond(&request)) }) => match never {},
        }
    }

    /// `gateway` is the address at which it listens; its port may be 0 before that.
    fn config(
        &self,
        gateway: SocketAddr,
        wechat: SocketAddr,
        upstream: &str,
        page: SocketAddr,
    ) -> String {
        let Self { listen, admin, internal, .. } = self;
        let (app_id, _) = DEFAULT_APP;
        let browsers = browser_hosts(gateway).map_or_else(String::new, |hosts| {
            let hosts = hosts.map(|host| browser_config(&host, wechat));
            format!("{}{}", hosts.concat(), page_config(page))
        });
        format!(
            r#"
            [server]
            listen = "{listen}"
            [admin]
            listen = "{admin}"
            [internal]
            listen = "{internal}"
            token = {{ env = "UNUSED" }}
            [open_data]
            enabled = true
            [wechat]
            base_url = "http://{wechat}"
            [log]
            access = "off"
            [[app]]
            app_id = "{app_id}"
            app_secret = {{ env = "UNUSED" }}
            default = true
            [[upstream]]
            name = "demo"
            servers = ["{upstream}"]
            [[route]]
            path = "/"
            upstream = "demo"
            auth = "required"
            {browsers}
            "#
        )
    }

    fn tour(&self, server: &Server, wechat: SocketAddr, token: &str) -> String {
        let gateway = match server.public_addresses().first() {
            Some(address) => format!("http://{address}"),
            None => String::new(),
        };
        let admin = server.admin_address();
        let internal = server.internal_address().unwrap_or_default();
        let openid = sandbox::openid(DEFAULT_APP.0, "alice");
        let authorization = format!("-H 'Authorization: Bearer {token}'");
        let shown = match &self.upstream {
            Some(upstream) => format!("your service at http://{upstream}"),
            None => "an echo service that returns the requests it gets".to_owned(),
        };
        let mut tour = format!(
            "wxgate demo: the gateway is at {gateway}, in front of {shown};\n\
             WeChat is simulated. Paste these lines into another terminal, one after the other.\n"
        );
        let login = format!(
            "TOKEN=$(curl -s {gateway}/login -d code=user-alice-$(date +%s) | sed 's/.*\"token\":\"\\([^\"]*\\)\".*/\\1/'); echo $TOKEN"
        );
        let page = server.public_addresses().first().copied().and_then(browser_hosts);
        let mut number = 0;
        if let Some([host, _]) = page {
            number = 1;
            let _ = write!(
                tour,
                "\n# 1. Open http://{host}{} in a browser: log in with WeChat's login page or by a scan, and see what the service gets.\n",
                page::PATH
            );
        }
        let steps = [
            (
                "Log in as alice. A Mini Program gets the code from wx.login; here, any \"user-NAME-ANYTHING\" is a code.",
                login,
            ),
            (
                "Call the service with the token: it gets X-OpenId, written by the gateway.",
                format!("curl -s {gateway}/hello -H \"X-3rd-Session: $TOKEN\""),
            ),
            (
                "Try to forge the identity: the service does not get the forged headers.",
                format!(
                    "curl -s {gateway}/hello -H \"X-3rd-Session: $TOKEN\" -H 'X-OpenId: mallory' -H 'X_OpenId: mallory'"
                ),
            ),
            (
                "Call without a token: the gateway responds with 401, and the service gets no request.",
                format!("curl -s {gateway}/hello"),
            ),
            (
                "Decrypt what alice's phone gets from WeChat. The simulated WeChat encrypts it; a service sends it to the internal API, because only the gateway has the session_key.",
                format!(
                    "curl -s http://{wechat}/sandbox/encrypt -d '{{\"user\":\"alice\",\"data\":{{\"nickName\":\"Alice\"}}}}' | sed 's/.*\"encryptedData\":\"\\([^\"]*\\)\",\"iv\":\"\\([^\"]*\\)\".*/{{\"openid\":\"{openid}\",\"encrypted_data\":\"\\1\",\"iv\":\"\\2\"}}/' | curl -s http://{internal}/v1/open-data/decrypt {authorization} -d @-"
                ),
            ),
            (
                "Get alice's phone number. A Mini Program gets the code from its button; here, any \"phone-NAME-ANYTHING\" is a code.",
                format!(
                    "curl -s http://{internal}/v1/phone-number {authorization} -d \"{{\\\"openid\\\":\\\"{openid}\\\",\\\"code\\\":\\\"phone-alice-$(date +%s)\\\"}}\""
                ),
            ),
            (
                "Log out: the token is invalid at once.",
                format!(
                    "curl -s -X POST {gateway}/logout -H \"X-3rd-Session: $TOKEN\"; curl -s {gateway}/hello -H \"X-3rd-Session: $TOKEN\""
                ),
            ),
            ("Show the metrics.", format!("curl -s http://{admin}/metrics | grep ^wxgate_")),
        ];
        for (what, line) in steps {
            number += 1;
            // Writing to a string cannot fail.
            let _ = write!(tour, "\n# {number}. {what}\n{line}\n");
        }
        tour.push_str("\nCtrl-C ends the demo.\n");
        tour
    }
}

/// Host and port of the gateway in a browser on this machine; without TLS, browsers log in only on
/// loopback. `None`: there is no such address, or the port is not known yet.
fn browser_hosts(gateway: SocketAddr) -> Option<[String; 2]> {
    let (ip, port) = (gateway.ip(), gateway.port());
    if port == 0 || !(ip.is_loopback() || ip.is_unspecified()) {
        return None;
    }
    let ip = if ip.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { ip };
    Some([SocketAddr::new(ip, port).to_string(), format!("localhost:{port}")])
}

/// A host of the gateway, whose browsers log in by redirects to the simulated WeChat.
fn browser_config(host: &str, wechat: SocketAddr) -> String {
    format!(
        r#"
            [[browser]]
            base_url = "http://{host}"
            official_account = "{OFFICIAL_ACCOUNT}"
            website = "{WEBSITE}"
            authorize_base_url = "http://{wechat}"
        "#
    )
}

/// What the demo's page shows.
fn page_config(page: SocketAddr) -> String {
    let (app_id, _) = DEFAULT_APP;
    let (path, private) = (page::PATH.trim_end_matches('/'), page::PRIVATE);
    format!(
        r#"
            [[app]]
            app_id = "{OFFICIAL_ACCOUNT}"
            kind = "official_account"
            app_secret = {{ env = "UNUSED" }}
            [[app]]
            app_id = "{WEBSITE}"
            kind = "website"
            app_secret = {{ env = "UNUSED" }}
            [ticket]
            enabled = true
            [scan]
            enabled = true
            app_id = "{app_id}"
            [[upstream]]
            name = "page"
            servers = ["{page}"]
            [[route]]
            path = "{path}"
            upstream = "page"
            auth = "optional"
            [[route]]
            path = "{private}"
            upstream = "page"
            auth = "required"
            login = "redirect"
        "#
    )
}

/// The demo's own service: its page, and an echo of all other requests.
fn respond(request: &Request) -> Response {
    page::respond(request, DEFAULT_APP.0).unwrap_or_else(|| echo_response(request))
}

/// Returns the request as the service received it.
fn echo_response(request: &Request) -> Response {
    let mut headers = Map::new();
    for (name, value) in request.headers() {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.insert(name.to_string(), value.into());
    }
    let received: Value = json!({
        "method": request.method().as_str(),
        "path": request.uri().path_and_query().map(ToString::to_string),
        "headers": headers,
    });
    let text = serde_json::to_string_pretty(&received).unwrap_or_default() + "\n";
    response(200, "application/json", text)
}

pub fn demo(demo: Demo) -> ExitCode {
    let _log = log_warnings();
    block_on(async {
        let commands = Signals::catch()?.commands()?;
        demo.run(commands, |tour| println!("{tour}")).await?;
        Ok(())
    })
}

/// Host and port of an http URL.
pub fn parse_upstream(url: &str) -> Result<String, String> {
    let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    if authority.contains("://") || authority.contains('/') {
        return Err("expected http://HOST:PORT without a path".to_owned());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { authority.to_owned() } else { format!("{authority}:80") })
}
