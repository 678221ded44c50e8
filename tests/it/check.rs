//! `wxgate check`: the problems that it finds before a start, its warnings, and its output for a
//! good file.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::command::wxgate;
use crate::harness::{APP, config_text};

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
    fn refuses(&self, expected: &str) {
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
fn a_good_file_is_ok_and_summed_up_in_one_line() {
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

/// Common mistakes in each secret, from a file and from a variable.
#[test]
fn an_app_secret_that_looks_wrong_is_warned_of_and_never_shown() {
    let folder = Folder::new();
    let check = |content: &str| {
        folder.write("given", content);
        let app = |reference: &str| {
            format!("[[app]]\napp_id = \"{APP}\"\napp_secret = {{ {reference} }}")
        };
        let from_file = folder.check(&app("file = \"{dir}/given\""));
        let variable = app("env = \"WXGATE_TEST_GIVEN\"");
        let from_variable =
            folder.check_with(&variable, wxgate().env("WXGATE_TEST_GIVEN", content));
        [from_file, from_variable]
    };
    for (content, expected) in [
        (format!("\"{SECRET}\""), "it begins with a quote"),
        (format!("'{SECRET}'\n"), "it begins with a quote"),
        (format!("{}\u{200b}{}", &SECRET[..16], &SECRET[16..]), "invisible character, U+200B"),
        (format!("{} {}", &SECRET[..16], &SECRET[16..]), "contains whitespace"),
        (APP.to_owned(), "it is the app id"),
        (STANDARD.encode(SECRET), "it is base64-encoded text: decode it"),
        (format!("WECHAT_APP_SECRET={SECRET}"), "NAME=VALUE"),
        (SECRET[1..].to_owned(), "it has 31 characters"),
        (SECRET.to_uppercase(), "upper-case"),
        (SECRET.replace('0', "z"), "not a hexadecimal digit"),
        ("７".repeat(32), "not ASCII"),
    ] {
        for outcome in check(&content) {
            outcome.warns("app[0].app_secret: does not look like an app secret");
            outcome.warns(expected);
            let shown = outcome.err + &outcome.out;
            for part in [content.trim(), &SECRET[..8], &SECRET[20..]] {
                assert!(part == APP || !shown.contains(part), "{part} in {shown}");
            }
        }
    }
    for content in [format!("{SECRET}\n"), format!("\u{feff}{SECRET}\r\n"), format!(" {SECRET}\t")]
    {
        for outcome in check(&content) {
            assert_eq!(outcome.code, 0);
            assert!(!outcome.err.contains("app_secret"), "{}", outcome.err);
        }
    }
    for (content, expected) in [
        (format!("{SECRET}\n{SECRET}\n"), "several lines"),
        (format!("{}\r{}", &SECRET[..16], &SECRET[16..]), "several lines"),
        (format!("{}\u{2028}{}", &SECRET[..16], &SECRET[16..]), "several lines"),
        (format!("{SECRET}\u{7}x"), "control character"),
        ("\u{feff}\n".to_owned(), "is empty"),
    ] {
        for outcome in check(&content) {
            outcome.refuses(expected);
            assert!(!outcome.err.contains(&SECRET[..8]), "{}", outcome.err);
        }
    }
    let utf16: Vec<u8> = SECRET.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for content in [[&[0xff, 0xfe], &*utf16].concat(), utf16] {
        folder.write("given", content);
        let app =
            "[[app]]\napp_id = \"wx0123456789abcdef\"\napp_secret = { file = \"{dir}/given\" }";
        folder.check(app).refuses("is UTF-16: save it as UTF-8");
    }
}

#[test]
fn an_app_id_that_looks_wrong_is_warned_of() {
    let folder = Folder::new();
    for (app_id, expected) in [
        ("gh_0123456789ab", "original id of an account"),
        ("touristappid", "developer tools"),
        ("wx0123456789abcde", "it has 17 characters"),
        ("WX0123456789ABCDEF", "upper-case"),
        ("wx0123456789ABCDEF", "upper-case"),
        ("wx0123456789abcdeg", "not a hexadecimal digit"),
        ("1234567890", "does not begin with \"wx\""),
        ("ww0123456789abcdef", "does not begin with \"wx\""),
    ] {
        let app = "[[app]]\napp_id = \"ID\"\napp_secret = { file = \"{dir}/wechat-secret\" }";
        let outcome = folder.check(&app.replace("ID", app_id));
        outcome.warns("app[0].app_id: does not look like an app id");
        outcome.warns(expected);
    }
}

#[test]
fn other_secrets_that_look_wrong_are_warned_of_or_rejected() {
    let folder = Folder::new();
    let token = "an-operator-s-token-of-so-many-letters";
    for (content, expected) in [
        (format!("\"{token}\""), "admin.token: it begins with a quote"),
        (format!("{token}\u{feff}x"), "admin.token: it contains an invisible character, U+FEFF"),
        (format!("TOKEN={token}"), "admin.token: it has the form NAME=VALUE"),
    ] {
        folder.write("given", content);
        folder.check("admin.token = { file = \"{dir}/given\" }").warns(expected);
    }
    folder.write("given", format!("{token}\n{token}"));
    folder.check("admin.token = { file = \"{dir}/given\" }").refuses("several lines");

    folder.write("given", "short");
    folder
        .check("log.openid_key = { file = \"{dir}/given\" }")
        .warns("log.openid_key: it has only 5");

    let key = STANDARD.encode([7; 32]);
    for (content, expected) in [
        (STANDARD.encode(&key), "base64-encoded text"),
        (format!("\"{key}\""), "begins with a quote"),
        (key[..40].to_owned(), "it is base64 of 30 bytes"),
        (key[..41].to_owned(), "it has 41 characters"),
    ] {
        folder.write("given", &content);
        let changes = "session.redis.url = \"redis://127.0.0.1\"\n\
                       session.seal_key = { file = \"{dir}/given\" }";
        let outcome = folder.check(changes);
        outcome.refuses("session.seal_key: must be 32 bytes");
        outcome.refuses(expected);
        assert!(!outcome.err.contains(&content[..10]), "{}", outcome.err);
    }
    folder.write("given", "'password'");
    folder.write("seal", format!("\u{feff}{key}\r\n"));
    let changes = "session.redis = { url = \"redis://127.0.0.1\", password = { file = \"{dir}/given\" } }\n\
                   session.seal_key = { file = \"{dir}/seal\" }";
    folder.check(changes).warns("session.redis.password: it begins with a quote");
}

#[test]
fn the_kind_of_a_wrong_certificate_or_key_file_is_shown() {
    let folder = Folder::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
    let request = params.serialize_request(&key).unwrap().pem().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let (pem, key_pem, der) = (certificate.pem(), key.serialize_pem(), certificate.der().to_vec());
    let indented = |pem: &str| pem.lines().map(|line| format!("  {line}\n")).collect::<String>();
    let labelled = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let check = |cert: &[u8], key: &[u8]| {
        folder.write("cert", cert);
        folder.write("key", key);
        folder.check("server.tls = { cert_file = \"{dir}/cert\", key_file = \"{dir}/key\" }")
    };
    // Bytes that editors on Windows add.
    for (cert, key) in [
        (format!("\u{feff}{pem}"), format!("\u{feff}{key_pem}")),
        (pem.replace('\n', "\r\n"), key_pem.replace('\n', "\r\n")),
    ] {
        let outcome = check(cert.as_bytes(), key.as_bytes());
        assert_eq!(outcome.code, 0, "{}", outcome.err);
    }
    for (cert, expected) in [
        (request.as_bytes(), "cert_file: contains no certificate: it is a certificate request"),
        (key_pem.as_bytes(), "cert_file: contains no certificate: it is a private key"),
        (&der, "cert_file: contains no certificate: it is DER or PKCS#12, not PEM"),
        (indented(&pem).as_bytes(), "its PEM does not start at the beginning of a line"),
        (labelled("PKCS7").as_bytes(), "contains no certificate: it is PKCS7"),
        (labelled("PUBLIC KEY").as_bytes(), "contains no certificate: it is a public key"),
        (b"", "cert_file: contains no certificate\n"),
    ] {
        check(cert, key_pem.as_bytes()).refuses(expected);
    }
    for (key, expected) in [
        (pem.as_bytes(), "key_file: contains no private key: it is a certificate"),
        (request.as_bytes(), "key_file: contains no private key: it is a certificate request"),
        (labelled("PUBLIC KEY").as_bytes(), "contains no private key: it is a public key"),
        (labelled("ENCRYPTED PRIVATE KEY").as_bytes(), "a private key with a passphrase"),
        (labelled("OPENSSH PRIVATE KEY").as_bytes(), "it is an SSH key"),
        (&key.serialize_der(), "contains no private key: it is DER"),
        (
            b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "a private key with a passphrase",
        ),
    ] {
        check(pem.as_bytes(), key).refuses(expected);
    }
    // Both files are checked; they may just be swapped.
    let outcome = check(key_pem.as_bytes(), pem.as_bytes());
    outcome.refuses("server.tls.cert_file: ");
    outcome.refuses("server.tls.key_file: ");
    outcome.refuses("are cert_file and key_file swapped?");
    assert!(!outcome.err.contains(key_pem.lines().nth(1).unwrap()), "{}", outcome.err);
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
        outcome.refuses("log.access: cannot be opened: ");
        outcome.refuses(expected);
        // With its place, as from `run`.
        outcome.refuses(&format!("{}:", folder.path("gateway.toml").display()));
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
    no_roots.refuses("ca-certificates");
    folder.check_with("", wxgate().env("SSLKEYLOGFILE", "/tmp/x")).refuses("SSLKEYLOGFILE");
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
        check(listen, server).refuses(expected);
    }
    check("127.0.0.1:8080", "127.0.0.1:9464")
        .refuses("is a listener of this gateway, admin.listen");
    check("127.0.0.1:8080", "localhost:8081")
        .refuses("is a listener of this gateway, forward_auth.listen");
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
fn values_that_work_but_look_like_mistakes_are_warned_of() {
    let folder = Folder::new();
    for (changes, expected) in [
        (
            "server.trusted_proxies = [\"0.0.0.0/0\"]",
            "server.trusted_proxies: this trusts every address",
        ),
        ("server.trusted_proxies = [\"10.0.0.0/8\", \"::/0\"]", "all clients can forge"),
        ("server.trusted_proxies = [\"0.0.0.0/1\", \"128.0.0.0/1\"]", "all clients can forge"),
        ("wechat.base_url = \"http://localhost:1\"", "wechat.base_url: this is not WeChat"),
        ("wechat.base_url = \"http://[::1]:1\"", "wechat.base_url: this is not WeChat"),
        (
            "wechat.base_url = \"https://api.weixin.qq.com\"\nwechat.fallback_base_url = \"http://127.0.0.1:1\"",
            "wechat.fallback_base_url: this is not WeChat",
        ),
        (
            "wechat.base_url = \"https://mp.weixin.qq.com\"",
            "mp.weixin.qq.com is not the host of WeChat's API",
        ),
        (
            "wechat.base_url = \"https://api.weixin.qq.com/cgi-bin\"",
            "WeChat's API has no path prefix: leave out the path",
        ),
        (
            "[[upstream]]\nname = \"recorder\"\nservers = [\"h:1\"]\n[[upstream]]\nname = \"old\"\nservers = [\"h:2\"]",
            "upstream[1].name: no route uses \"old\"",
        ),
        ("session.capacity = 100_000_000", "session.capacity: sessions may use 50 GB of memory"),
        ("limits.max_rate_clients = 1_000_000_000", "each rate limit may use 400 GB of memory"),
        (
            "session.max_per_user = 0",
            "session.max_per_user: there is no limit: one user can use all",
        ),
        ("session.ttl = \"3650d\"", "session.ttl: a stolen token"),
        ("session.ttl = \"30s\"", "session.ttl: every user must log in"),
        ("session.idle_timeout = \"1ms\"", "session.idle_timeout: users must log in again"),
        ("endpoints.login = \"/api/login/\"", "endpoints.login: \"/api/login\" does not match"),
        (
            "[[route]]\npath = \"/api/orders$\"\nupstream = \"recorder\"",
            "regular expressions are not supported",
        ),
        (
            "[[route]]\npath = \"/users/:id\"\nupstream = \"recorder\"",
            "path parameters are not supported",
        ),
    ] {
        folder.check(changes).warns(expected);
    }
    let apps = "[[app]]\napp_id = \"wx0123456789abcdef\"\napp_secret = { file = \"{dir}/wechat-secret\" }\ndefault = true\n\
                [[app]]\napp_id = \"wx1123456789abcdef\"\napp_secret = { file = \"{dir}/wechat-secret\" }\n\
                [[route]]\npath = \"/\"\nupstream = \"recorder\"\napps = [\"wx0123456789abcdef\"]\n\
                [[route]]\npath = \"/x\"\nupstream = \"recorder\"\nauth = \"none\"";
    let outcome = folder.check(apps);
    outcome.warns(":12: app[1].app_id: no route accepts the sessions of this app");
    assert!(!outcome.err.contains("app[0]"), "{}", outcome.err);
    // In an included file too, which is named.
    folder.write("old.toml", "[[upstream]]\nname = \"old\"\nservers = [\"h:2\"]");
    let outcome = folder.check("include = [\"old.toml\"]");
    outcome.warns(&format!("{}:2: upstream[0].name: no route", folder.path("old.toml").display()));
}

#[test]
fn syntax_of_other_programs_is_rejected_with_the_reason() {
    let folder = Folder::new();
    let of_server = |server: &str| {
        folder.check(&format!("[[upstream]]\nname = \"recorder\"\nservers = [\"{server}\"]"))
    };
    for (server, expected) in [
        ("http://127.0.0.1:3000", "leave out http://\n"),
        ("http://127.0.0.1:3000/", "leave out http://\n"),
        ("http://127.0.0.1:3000/api", "leave out http:// and the path"),
        ("https://shop.internal:443/api", "HTTPS to a server is not supported yet"),
        ("tcp://127.0.0.1:3000", "leave out tcp://\n"),
        ("unix:/run/shop.sock", "unix sockets are not supported yet"),
        ("/run/shop.sock", "unix sockets are not supported yet"),
        ("shop:3000/api", "leave out the path"),
        ("shop：3000", "'：' is not ASCII: write :"),
    ] {
        of_server(server).refuses(expected);
    }
    for path in [
        "^/api/.*$",
        "/api/.*",
        "~ ^/api",
        "^/api",
        "(/a|/b)",
        "/a(?:b)",
        "/a/(b|c)",
        "/a/[0-9]+",
        r"/a/\d+",
    ] {
        let route = format!("[[route]]\npath = '{path}'\nupstream = \"recorder\"");
        folder.check(&route).refuses("looks like a regular expression: paths are prefixes");
    }
    let route = "[[route]]\npath = \"/users/{id}\"\nupstream = \"recorder\"";
    folder.check(route).refuses("contains '{': path parameters are not supported");
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\ncors = true";
    folder.check(route).refuses("write [route.cors]");
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\ntimeout = \"5s\"";
    let expected = "did you mean \"connect_timeout\", \"read_timeout\" or \"write_timeout\"?";
    folder.check(route).refuses(expected);

    let good = smallest();
    assert_eq!(folder.check_text(&good).code, 0);
    assert_eq!(folder.check_text(format!("\u{feff}{good}")).code, 0);
    for (from, to, expected) in [
        ("listen = \"0.0.0.0:8080\"", "listen = “0.0.0.0:8080”", "'“' is not ASCII: write \""),
        ("listen = \"0.0.0.0:8080\"", "listen = \"0.0.0.0:8080”", "'”' is not ASCII: write \""),
        ("listen = \"", "listen ＝ \"", "'＝' is not ASCII: write ="),
        ("listen = \"", "listen\u{a0}= \"", "U+00A0 is not an ASCII space: write ' '"),
        ("listen = \"", "listen\u{200b} = \"", "U+200B is an invisible character: delete it"),
        ("[server]", "【server】", "'【' is not ASCII: write ["),
        ("0.0.0.0:8080\"", "0.0.0.0：8080\"", "'：' is not ASCII: write :"),
        (
            "listen = \"0.0.0.0:8080\"",
            "listen = [\"0.0.0.0:8080\"，\"0.0.0.0:8082\"]",
            "'，' is not ASCII: write ,",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        folder.check_text(good.replacen(from, to, 1)).refuses(expected);
    }
    for (text, expected) in [
        ("server:\n  listen: 0.0.0.0:8080\napp:\n  - app_id: wx1\n", "this is YAML"),
        ("---\n# x\nserver:\n  listen: 1\n", "this is YAML"),
        ("{\n  \"server\": { \"listen\": \"0.0.0.0:8080\" }\n}\n", "this is JSON"),
    ] {
        let outcome = folder.check_text(text);
        outcome.refuses(expected);
        assert_eq!(outcome.err.matches("gateway.toml:").count(), 1, "{}", outcome.err);
    }
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for text in [[&[0xff, 0xfe], &*utf16].concat(), utf16] {
        folder.check_text(text).refuses("cannot read the file: is UTF-16: save it as UTF-8");
    }
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
