//! `wxgate check`: the problems that it finds before a start, its warnings, and its output for a
//! valid file.

mod live;
mod mistakes;
mod secrets;
mod upstreams;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::harness::command::wxgate;
use crate::harness::config_text;

const SECRET: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl Outcome {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().expect("an exit, not a signal");
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    #[track_caller]
    fn warns(&self, expected: &str) {
        let warnings: Vec<_> =
            self.err.lines().filter(|line| line.starts_with("warning: ")).collect();
        let found = warnings.iter().any(|warning| warning.contains(expected));
        assert!(found, "no warning with {expected:?}: {}", self.err);
        assert_eq!(self.code, 0, "{}", self.err);
    }

    #[track_caller]
    fn rejects(&self, expected: &str) {
        assert!(self.err.contains(expected), "no problem with {expected:?}: {}", self.err);
        assert_eq!(self.code, 1, "{}", self.err);
    }
}

/// A folder with a valid configuration, which calls the simulated WeChat.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;

        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// `wxgate check` of that configuration with changes, as [`config_text`] takes them.
    fn check_with(&self, changes: &str, command: &mut Command) -> Outcome {
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let text = config_text(self.0.path(), "http://127.0.0.1:1", nowhere, changes);
        self.write("wechat-secret", SECRET);
        let file = self.write("gateway.toml", text);
        Outcome::of(command.arg("check").arg("-c").arg(file))
    }

    fn check(&self, changes: &str) -> Outcome {
        self.check_with(changes, &mut wxgate())
    }

    /// The same, for a file as it is.
    fn check_text(&self, text: impl AsRef<[u8]>) -> Outcome {
        let file = self.write("gateway.toml", text);
        Outcome::of(wxgate().args(["check", "-c"]).arg(file))
    }
}

fn smallest() -> String {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    text.replace("{ env = \"WECHAT_APP_SECRET\" }", "{ file = \"tests/config/app_secret\" }")
}

#[test]
fn a_valid_file_is_ok_and_summed_up_in_one_line() {
    let folder = Folder::new();
    let outcome = folder.check("");
    let file = folder.path("gateway.toml");
    let summary = "2 listeners, 1 app, 1 upstream, 3 routes, sessions in memory";
    assert_eq!(outcome.out, format!("{}: ok\n{summary}\n", file.display()));
    // The only warning is about the simulated WeChat.
    assert_eq!(outcome.err.lines().count(), 1, "{}", outcome.err);
    outcome.warns("wechat.base_url: this is not WeChat");

    folder.write("seal", STANDARD.encode([7; 32]));
    let changes = r#"
        server.trusted_proxies = ["127.0.0.1"]
        server.listen = ["127.0.0.1:0", "[::1]:0"]
        forward_auth.listen = "127.0.0.1:0"
        session.seal_key = { file = "{dir}/seal" }
        session.redis.url = "redis://127.0.0.1"
    "#;
    let outcome = folder.check(changes);
    let summary = "4 listeners, 1 app, 1 upstream, 3 routes, sessions in Redis";
    assert_eq!(outcome.out.lines().nth(1), Some(summary), "{}", outcome.err);
}

#[test]
fn problems_that_would_fail_a_start_are_found_by_check() {
    let folder = Folder::new();
    folder.write("plain", "");
    for (access, expected) in [
        ("{dir}/absent/access.log", "/absent: no such file"),
        ("{dir}/plain/access.log", "/plain"),
        ("{dir}/", "log.access: cannot be opened: is a directory"),
        ("{dir}/absent/", "log.access: cannot be opened: is a directory"),
    ] {
        let changes = format!("log.access = \"{access}\"");
        let outcome = folder.check(&changes);
        outcome.rejects("log.access: cannot be opened: ");
        outcome.rejects(expected);
        // With its place, as from `run`.
        outcome.rejects(&format!("{}:", folder.path("gateway.toml").display()));
        let run = Outcome::of(wxgate().arg("run").arg("-c").arg(folder.path("gateway.toml")));
        assert_eq!(run.err, outcome.err);
        let command = &mut wxgate();
        let file = folder.path("gateway.toml");
        let without = Outcome::of(command.args(["check", "--without-secrets", "-c"]).arg(file));
        assert_eq!(without.code, 0, "{}", without.err);
    }
    let outcome = folder.check("log.access = \"{dir}/new.log\"");
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(!folder.path("new.log").exists(), "nothing is created");

    let none = folder.path("none");
    let no_roots = folder.check_with(
        "wechat.base_url = \"https://api.weixin.qq.com\"",
        wxgate().env("SSL_CERT_FILE", &none).env("SSL_CERT_DIR", &none),
    );
    no_roots.rejects("ca-certificates");
    folder.check_with("", wxgate().env("SSLKEYLOGFILE", "/tmp/x")).rejects("SSLKEYLOGFILE");
}

/// A request would loop until it times out.
#[test]
fn an_upstream_that_is_a_listener_of_the_same_file_is_rejected() {
    let folder = Folder::new();
    let own = own_address();
    let check = |listen: &str, server: &str| {
        folder.check(&format!(
            "server.listen = \"{listen}\"\nserver.trusted_proxies = [\"127.0.0.1\"]\n\
             admin.listen = \"127.0.0.1:9464\"\nforward_auth.listen = \"127.0.0.1:8081\"\n\
             [[upstream]]\nname = \"recorder\"\nservers = [\"127.0.0.1:1\", \"{server}\"]"
        ))
    };
    for (listen, server) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "localhost:8080"),
        ("127.0.0.1:8080", "LocalHost.:8080"),
        ("127.0.0.1:8080", "0.0.0.0:8080"),
        ("127.0.0.1:8080", "[::ffff:127.0.0.1]:8080"),
        ("127.0.0.2:8080", "127.0.0.2:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.9:8080"),
        ("0.0.0.0:8080", "0.0.0.0:8080"),
        ("0.0.0.0:8080", &format!("{own}:8080")),
        ("0.0.0.0:8080", &format!("[::ffff:{own}]:8080")),
        ("[::]:8080", "127.0.0.1:8080"),
        ("[::]:8080", "[::1]:8080"),
        ("[::]:8080", "[::]:8080"),
        ("[::]:8080", &format!("{own}:8080")),
        ("[::1]:8080", "[::1]:8080"),
        ("[::1]:8080", "[::]:8080"),
        ("[::1]:8080", "localhost:8080"),
        (&format!("{own}:8080"), &format!("{own}:8080")),
    ] {
        let expected = "upstream[0].servers: is a listener of this gateway, server.listen: requests would loop";
        check(listen, server).rejects(expected);
    }
    check("127.0.0.1:8080", "127.0.0.1:9464")
        .rejects("is a listener of this gateway, admin.listen");
    check("127.0.0.1:8080", "localhost:8081")
        .rejects("is a listener of this gateway, forward_auth.listen");
    for (listen, server) in [
        ("127.0.0.1:8080", "127.0.0.1:8082"),
        ("127.0.0.1:8080", "127.0.0.2:8080"),
        ("127.0.0.1:8080", "[::1]:8080"),
        ("0.0.0.0:8080", "[::1]:8080"),
        ("0.0.0.0:8080", "192.0.2.1:8080"),
        ("0.0.0.0:8080", "shop.internal:8080"),
        ("[::]:8080", "[2001:db8::1]:8080"),
        ("127.0.0.1:8080", &format!("{own}:8080")),
    ] {
        let outcome = check(listen, server);
        assert_eq!(outcome.code, 0, "{listen} {server}: {}", outcome.err);
    }
}

/// An address of this machine that is not loopback, or else loopback.
fn own_address() -> String {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    match socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()) {
        Ok(address) => address.ip().to_string(),
        Err(_) => "127.0.0.3".to_owned(),
    }
}

#[test]
fn a_gateway_with_browsers_and_without_a_shared_store_is_said_to_be_alone() {
    let folder = Folder::new();
    let browser = "[[browser]]\nbase_url = \"https://h5.example.com\"";
    let checked = folder.check_with(browser, &mut wxgate());
    assert_eq!(checked.code, 0, "{}", checked.err);
    let line = "without [session.redis], sessions, logins in progress, tickets and scans are known \
                to one gateway only\n";
    assert!(checked.out.ends_with(line), "{}", checked.out);
    let checked = folder.check_with("", &mut wxgate());
    assert!(!checked.out.contains("one gateway"), "{}", checked.out);
}

/// The file of the first steps has no other warnings.
#[test]
fn the_smallest_file_has_no_warnings() {
    let folder = Folder::new();
    let secret = folder.write("secret", SECRET);
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    let reference = format!("{{ file = \"{}\" }}", Path::new(&secret).display());
    let text = text.replace("{ env = \"WECHAT_APP_SECRET\" }", &reference);
    let outcome = folder.check_text(text);
    assert_eq!((outcome.code, &*outcome.err), (0, ""));
}
