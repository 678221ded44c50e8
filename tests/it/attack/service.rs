//! The same against services that we did not write: nginx, Apache httpd, Node, Python's WSGI.
//!
//! Each is as lenient as it can be made and believes its headers in its own way; what it
//! believes must be the session's openid, or nobody. `deploy/dev test` installs them; where one
//! is missing these tests fail and say so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::framing::{DOUBTFUL_CHUNKS, DOUBTFUL_LENGTHS, SMUGGLED, with_body};
use super::identity::{FOLDED, OWN, with_lines};
use super::siege::{Attack, Must, READERS, ROUTES, Siege};
use crate::harness::PATIENCE;

/// A service, and where it writes down what it believed.
pub struct Service {
    child: Child,
    pub port: u16,
    directory: tempfile::TempDir,
}

impl Service {
    fn log(&self) -> PathBuf {
        self.directory.path().join("believed")
    }

    /// Whether the service believes a request that did not come through the gateway.
    fn is_deceived_by(&self, lines: &str) -> bool {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        let request = format!("GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{lines}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        // Some servers write it down after their answer.
        let started = Instant::now();
        while !std::fs::read(self.log()).unwrap().ends_with(b"\n") {
            assert!(started.elapsed() < PATIENCE, "nothing was written down: {answer}");
            std::thread::sleep(Duration::from_millis(5));
        }
        answer.contains("[\"evil\"]")
    }
}

impl Drop for Service {
    /// Asked to end, a server takes its children with it.
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    // A server that root has started reads it as somebody else.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).unwrap();
    std::fs::write(directory.path().join("believed"), "").unwrap();
    directory
}

/// A script of `tests/peers`, which says what port it has.
fn script(program: &str, name: &str) -> Service {
    let directory = directory();
    let mut child = Command::new(program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name))
        .arg(directory.path().join("believed"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|_| panic!("{program} runs (deploy/dev test installs it)"));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Service { child, port: line.trim().parse().unwrap(), directory }
}

/// A server that cannot choose its port: one that is free now, or the next.
pub fn server(programs: &[&str], write_config: impl Fn(&Path, u16) -> Vec<String>) -> Service {
    for _ in 0..10 {
        let directory = directory();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let arguments = write_config(directory.path(), port);
        drop(free);
        let child = programs.iter().find_map(|program| {
            // Apache ends its whole process group.
            let mut command = Command::new(program);
            // Caddy keeps what it ran with.
            command.env("XDG_CONFIG_HOME", directory.path());
            command.env("XDG_DATA_HOME", directory.path());
            command.args(&arguments).stderr(Stdio::piped()).process_group(0).spawn().ok()
        });
        let child = child
            .unwrap_or_else(|| panic!("none of {programs:?} runs (deploy/dev test installs them)"));
        let mut service = Service { child, port, directory };
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Ok(Some(_)) = service.child.try_wait() {
                break;
            }
            if TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok() {
                return service;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut errors = String::new();
        let _ = service.child.kill();
        let _ = service.child.stderr.take().unwrap().read_to_string(&mut errors);
        assert!(errors.contains("in use"), "{programs:?} do not start: {errors}");
    }
    panic!("no port for {programs:?}")
}

fn nginx() -> Service {
    server(&["nginx", "/usr/sbin/nginx"], |directory, port| {
        let shown = directory.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {shown}/{name};\n"))
            .concat();
        let config = format!(
            r#"
            daemon off;
            master_process off;
            pid {shown}/pid;
            error_log stderr;
            events {{ worker_connections 256; }}
            http {{
                {temporary}
                underscores_in_headers on;
                ignore_invalid_headers off;
                keepalive_requests 1000000;
                log_format believed escape=json
                    '{{"id":"$http_x_request_id","openid":"$http_x_openid","line":"$request"}}';
                access_log {shown}/believed believed;
                server {{
                    listen 127.0.0.1:{port};
                    location / {{
                        return 200 '{{"openid":["$http_x_openid"],"target":"$request_uri"}}';
                    }}
                }}
            }}
            "#
        );
        std::fs::write(directory.join("nginx.conf"), config).unwrap();
        let config = format!("{shown}/nginx.conf");
        ["-p", &shown.to_string(), "-c", &config, "-e", "stderr"].map(str::to_owned).to_vec()
    })
}

/// The headers reach a shell script as CGI has it, and by the rule for misspelled ones that
/// Apache's documentation gives.
fn apache() -> Service {
    let modules = [
        "/usr/lib/apache2/modules",
        "/usr/lib64/httpd/modules",
        "/usr/lib/apache2",
        "/opt/homebrew/lib/httpd/modules",
    ];
    let modules = modules.iter().find(|path| Path::new(path).join("mod_cgi.so").exists());
    let modules = modules.expect("Apache's modules are there (deploy/dev test installs them)");
    let loaded: String = ["mpm_prefork", "log_config", "unixd", "authz_core", "setenvif", "alias", "cgi"]
        .map(|name| {
            format!("<IfModule !{name}_module>\nLoadModule {name}_module {modules}/mod_{name}.so\n</IfModule>\n")
        })
        .concat()
        .replace("<IfModule !mpm_prefork_module>", "<IfModule !prefork.c>");
    server(&["apache2", "/usr/sbin/apache2", "httpd", "/usr/sbin/httpd"], |directory, port| {
        let shown = directory.display();
        let script = directory.join("believe");
        let text = r#"#!/bin/sh
body="{\"openid\":[\"$HTTP_X_OPENID\"],\"target\":\"$REQUEST_URI\"}"
printf 'X-Believed: %s\r\nContent-Length: %s\r\n\r\n%s' "$HTTP_X_OPENID" "${#body}" "$body"
"#;
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = format!(
            r#"
            ServerRoot {shown}
            ServerName localhost
            Listen 127.0.0.1:{port}
            PidFile {shown}/pid
            Mutex file:{shown}
            ErrorLog /dev/stderr
            {loaded}
            User #65534
            Group #65534
            HttpProtocolOptions Unsafe LenientMethods Allow0.9
            KeepAlive On
            MaxKeepAliveRequests 0
            StartServers 8
            MaxSpareServers 200
            KeepAliveTimeout 1
            LogFormat "{{\"id\":\"%{{X-Request-Id}}i\",\"openid\":\"%{{X-Believed}}o\",\"told\":\"%{{X-OpenId}}i\",\"line\":\"%r\"}}" believed
            CustomLog {shown}/believed believed
            SetEnvIf Request_URI ^ ap_trust_cgilike_cl
            SetEnvIfNoCase ^X.OpenId$ ^(.*)$ HTTP_X_OPENID=$1
            ScriptAliasMatch ^/ {shown}/believe
            "#
        );
        std::fs::write(directory.join("apache.conf"), config).unwrap();
        ["-f", &format!("{shown}/apache.conf"), "-DFOREGROUND"].map(str::to_owned).to_vec()
    })
}

async fn besiege(service: &Service) {
    let mut siege = Siege::start_before(service.port, service.log()).await;
    siege.may_lose_requests();
    for byte in FOLDED {
        let spelled = |name: &&str| name.replace('-', &char::from(*byte).to_string());
        let lines = OWN.iter().filter(|name| **name != "X-3rd-Session" || *byte != b'-');
        let lines: String = lines.map(|name| format!("{}: evil\r\n", spelled(name))).collect();
        siege.run_on(&ROUTES, &Attack::new(with_lines(&lines), Must::Served(1))).await;
    }
    for lines in [
        "X-OpenId: a\r\nX_OPENID: b\r\nx.openid: c\r\nX-OpenId: d\r\n",
        "Connection: X-OpenId\r\nX-OpenId: evil\r\n",
        "Connection: keep-alive, x-openid, x-appid\r\n",
        "HTTP_X_OPENID: evil\r\nHttp-X-OpenId: evil\r\n",
        "Proxy: evil\r\n",
    ] {
        siege.run_on(&ROUTES, &Attack::new(with_lines(lines), Must::Served(1))).await;
    }
    for lines in DOUBTFUL_LENGTHS {
        let body = format!("0\r\n\r\n{SMUGGLED}");
        siege.run_on(&READERS[..2], &Attack::new(with_body(lines, &body), Must::Cut)).await;
    }
    for body in DOUBTFUL_CHUNKS {
        let template = with_body("Transfer-Encoding: chunked\r\n", &format!("{body}{SMUGGLED}"));
        let attack = Attack::new(template, Must::Harmless);
        siege.run_on(&READERS[..2], &attack).await;
        siege.run_on(&READERS[..1], &attack.in_parts(9)).await;
    }
    let evil = "GET /none/smuggled HTTP/1.1\r\nHost: h\r\nX-OpenId: evil\r\n\r\n";
    let chunks = format!("{:x}\r\n{evil}\r\n0\r\n\r\n", evil.len());
    let trailers =
        format!("{:x}\r\n{evil}\r\n0\r\nX-OpenId: evil\r\nX_OpenId: evil\r\n\r\n", evil.len());
    let length = format!("Content-Length: {}\r\n", evil.len());
    for (lines, body) in [
        (length.clone(), evil),
        ("Transfer-Encoding: chunked\r\n".to_owned(), &*chunks),
        ("Transfer-Encoding: chunked\r\nTrailer: X-OpenId\r\n".to_owned(), &*trailers),
        (format!("Expect: 100-continue\r\n{length}"), evil),
        (format!("Expect: y 100-continue\r\n{length}"), evil),
        (format!("{length}Content_Length: 0\r\nTransfer_Encoding: chunked\r\n"), evil),
        (format!("Upgrade: foo\r\n{length}"), evil),
    ] {
        let attack = Attack::new(with_body(&lines, body), Must::Harmless);
        siege.run_on(&READERS[..4], &attack).await;
        siege.run_on(&READERS[..4], &attack.in_parts(50)).await;
    }
    // A body that stops coming, and what a service makes of what it has.
    for half in
        ["", "GET /none/smug", "GET /none/smuggled HTTP/1.1\r\nHost: h\r\nX-OpenId: evil\r\n"]
    {
        let attack = Attack::new(with_body(&length, half), Must::Harmless).unfinished();
        siege.run_on(&READERS[..2], &attack).await;
        let begun = format!("{:x}\r\n{half}", evil.len());
        let attack = with_body("Transfer-Encoding: chunked\r\n", &begun);
        siege.run_on(&READERS[..2], &Attack::new(attack, Must::Harmless).unfinished()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_believes_nobody_but_the_gateway() {
    let service = nginx();
    assert!(service.is_deceived_by("X_OpenId: evil\r\n"), "it folds names");
    besiege(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apache_and_its_cgi_believe_nobody_but_the_gateway() {
    let service = apache();
    assert!(service.is_deceived_by("X.OpenId: evil\r\n"), "it folds names");
    besiege(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_believes_nobody_but_the_gateway() {
    let service = script("node", "believer.js");
    assert!(service.is_deceived_by("X-OpenId: evil\r\n"));
    besiege(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wsgi_service_believes_nobody_but_the_gateway() {
    let service = script("python3", "believer.py");
    assert!(service.is_deceived_by("X_OpenId: evil\r\n"), "it folds names");
    besiege(&service).await;
}
