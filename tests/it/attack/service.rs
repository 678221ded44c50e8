//! The attacks of the other modules against third-party services: nginx, Apache httpd, Node and
//! Python's WSGI.
//!
//! Each is configured to be as lenient as possible, and reads headers in its own way. The openid
//! that it reads must be that of the session, or none. `deploy/dev test` installs the services; if
//! one is missing, these tests fail and name it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::framing::{DOUBTFUL_CHUNKS, DOUBTFUL_LENGTHS, SMUGGLED, with_body};
use super::identity::{FOLDED, OWN, with_lines};
use super::siege::{Attack, Must, READERS, ROUTES, Siege};
use crate::harness::PATIENCE;
use crate::harness::program::{self, Program, script, server};

/// Whether the service trusts an identity in a request that did not come through the gateway.
fn is_deceived(service: &Program, lines: &str) -> bool {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, service.port)).unwrap();
    let request = format!("GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{lines}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    // Some servers log after their response.
    let started = Instant::now();
    while !std::fs::read(service.log()).unwrap().ends_with(b"\n") {
        assert!(started.elapsed() < PATIENCE, "nothing was logged: {answer}");
        std::thread::sleep(Duration::from_millis(5));
    }
    answer.contains("[\"evil\"]")
}

fn nginx() -> Program {
    program::nginx(|directory, port| {
        let shown = directory.display();
        format!(
            r#"
            underscores_in_headers on;
            ignore_invalid_headers off;
            keepalive_requests 1000000;
            log_format trusted escape=json
                '{{"id":"$http_x_request_id","openid":"$http_x_openid","line":"$request"}}';
            access_log {shown}/trusted trusted;
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    return 200 '{{"openid":["$http_x_openid"],"target":"$request_uri"}}';
                }}
            }}
            "#
        )
    })
}

/// The headers reach a shell script as CGI has it, and by the rule for misspelled ones that
/// Apache's documentation gives.
fn apache() -> Program {
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
        let script = directory.join("cgi");
        let text = r#"#!/bin/sh
body="{\"openid\":[\"$HTTP_X_OPENID\"],\"target\":\"$REQUEST_URI\"}"
printf 'X-Trusted: %s\r\nContent-Length: %s\r\n\r\n%s' "$HTTP_X_OPENID" "${#body}" "$body"
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
            LogFormat "{{\"id\":\"%{{X-Request-Id}}i\",\"openid\":\"%{{X-Trusted}}o\",\"received\":\"%{{X-OpenId}}i\",\"line\":\"%r\"}}" trusted
            CustomLog {shown}/trusted trusted
            SetEnvIf Request_URI ^ ap_trust_cgilike_cl
            SetEnvIfNoCase ^X.OpenId$ ^(.*)$ HTTP_X_OPENID=$1
            ScriptAliasMatch ^/ {shown}/cgi
            "#
        );
        std::fs::write(directory.join("apache.conf"), config).unwrap();
        ["-f", &format!("{shown}/apache.conf"), "-DFOREGROUND"].map(str::to_owned).to_vec()
    })
}

async fn besiege(service: &Program) {
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
    // A body that stops in the middle.
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
async fn nginx_trusts_only_identities_of_the_gateway() {
    let service = nginx();
    assert!(is_deceived(&service, "X_OpenId: evil\r\n"), "it folds names");
    besiege(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apache_and_its_cgi_trust_only_identities_of_the_gateway() {
    let service = apache();
    assert!(is_deceived(&service, "X.OpenId: evil\r\n"), "it folds names");
    besiege(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_trusts_only_identities_of_the_gateway() {
    let service = script("node", "believer.js");
    assert!(is_deceived(&service, "X-OpenId: evil\r\n"));
    besiege(&service).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wsgi_service_trusts_only_identities_of_the_gateway() {
    let service = script("python3", "believer.py");
    assert!(is_deceived(&service, "X_OpenId: evil\r\n"), "it folds names");
    besiege(&service).await;
}
