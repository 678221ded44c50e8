//! `wxgate check` of upstreams: values that have no effect, certificates, and files of servers.

use rcgen::date_time_ymd;

use super::{Folder, Outcome};
use crate::harness::certificate::Authority;
use crate::harness::command::wxgate;

/// The verdict on an upstream with these keys.
fn check(folder: &Folder, keys: &str) -> Outcome {
    folder.check(&format!("[[upstream]]\nname = \"recorder\"\n{keys}"))
}

/// The verdict on such a configuration where there are no secrets.
fn without_secrets(folder: &Folder, changes: &str) -> Outcome {
    folder.check(changes);
    let file = folder.path("gateway.toml");
    Outcome::of(wxgate().args(["check", "--without-secrets", "-c"]).arg(file))
}

#[test]
fn a_value_without_effect_is_a_warning() {
    let folder = Folder::new();
    for (keys, expected) in [
        ("max_pending = 5", "upstream[0].max_pending: has no effect without max_connections"),
        ("pending_timeout = \"5s\"", "pending_timeout: has no effect without max_connections"),
        ("ejection = { failures = 0, duration = \"5s\" }", "duration: has no effect with failures"),
        (
            "ejection = { failures = 0, max_percent = 1 }",
            "max_percent: has no effect with failures",
        ),
        ("retry = { attempts = 0, budget = \"5%\" }", "budget: has no effect with attempts = 0"),
        ("retry = { attempts = 0, on = [\"502\"] }", "retry.on: has no effect with attempts = 0"),
        (
            "read_timeout = \"5s\"\nretry = { per_try_timeout = \"5s\" }",
            "per_try_timeout: has no effect: read_timeout (5s) ends the request",
        ),
        (
            "health_check = { tcp = true, status = [200] }",
            "health_check.status: has no effect with tcp = true",
        ),
        (
            "health_check = { tcp = true, host = \"shop\" }",
            "health_check.host: has no effect with tcp = true",
        ),
        (
            "health_check = { tcp = true, interval = \"1s\", timeout = \"2s\" }",
            "health_check.timeout: is longer than interval",
        ),
        (
            "buffer_body = \"2MiB\"\n[limits]\nmax_buffered = \"1MiB\"",
            "buffer_body: is larger than limits.max_buffered",
        ),
    ] {
        check(&folder, &format!("servers = [\"127.0.0.1:1\"]\n{keys}")).warns(expected);
    }
    check(&folder, "servers = [\"shop.internal:443\"]")
        .warns("upstream[0].servers: shop.internal:443 would get plain HTTP: add [upstream.tls]");
    let route = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\n";
    folder
        .check(&format!("{route}retry = {{ attempts = 0, on = [\"reset\"] }}"))
        .warns("route[0].retry.on: has no effect with attempts = 0");
    folder
        .check(&format!("{route}read_timeout = \"1s\"\nretry = {{ per_try_timeout = \"1s\" }}"))
        .warns("route[0].retry.per_try_timeout: has no effect: read_timeout (1s)");
}

#[test]
fn a_route_may_set_what_the_retries_of_its_upstream_lack() {
    let folder = Folder::new();
    let outcome = folder.check(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"127.0.0.1:1\"]\n\
         retry = { per_try_timeout = \"1s\" }\n\
         [[route]]\npath = \"/\"\nupstream = \"recorder\"\nretry = { on = [\"timeout\"] }",
    );
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(!outcome.err.contains("retry"), "{}", outcome.err);
}

#[test]
fn the_files_of_an_upstream_with_tls_are_checked() {
    let folder = Folder::new();
    let root = Authority::root("the root");
    folder.write("ca.pem", root.certificate.pem());
    let ca_file = folder.path("ca.pem");
    let with = |keys: &str| {
        let tls = format!("[upstream.tls]\nserver_name = \"shop.internal\"\n{keys}");
        check(&folder, &format!("servers = [\"127.0.0.1:1\"]\n{tls}"))
    };
    let issued = root.issue(&["gateway"]);
    let keys = issued.write(folder.0.path(), "client", &[]).replace(", ", "\n");
    let outcome = with(&format!("ca_file = {ca_file:?}\n{keys}"));
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(!outcome.err.contains("tls"), "{}", outcome.err);

    let expired = root.issue_with(&["gateway"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    let keys = expired.write(folder.0.path(), "expired", &[]).replace(", ", "\n");
    with(&keys).warns("tls.cert_file: certificate 1, \"gateway\", expired on 2020-02-01");

    let (cert_file, key_file) = (folder.path("client.crt"), folder.path("expired.key"));
    with(&format!("cert_file = {cert_file:?}\nkey_file = {key_file:?}"))
        .rejects("tls.key_file: does not match the certificate in cert_file");
    with(&format!("cert_file = {key_file:?}\nkey_file = {key_file:?}"))
        .rejects("contains no certificate: it is a private key");
    with(&format!("ca_file = {key_file:?}")).rejects("contains no certificate");
    with("ca_file = \"missing.pem\"").rejects("tls.ca_file: no such file");
    // In CI there are no keys.
    let text = "servers = [\"127.0.0.1:1\"]\n[upstream.tls]\nserver_name = \"shop\"\n\
                ca_file = \"missing.pem\"\ncert_file = \"missing.pem\"\nkey_file = \"missing.pem\"";
    let changes = format!("[[upstream]]\nname = \"recorder\"\n{text}");
    let outcome = without_secrets(&folder, &changes);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}

#[test]
fn a_file_of_servers_is_checked_line_by_line() {
    let folder = Folder::new();
    let file = folder.path("servers");
    let with = |content: &str| {
        folder.write("servers", content);
        check(&folder, &format!("servers_file = {file:?}"))
    };
    for good in ["10.0.0.1:1\n", "# two\n10.0.0.1:1 weight=3\n[::1]:1 # here\n", "[\"10.0.0.1:1\"]"]
    {
        let outcome = with(good);
        assert_eq!(outcome.code, 0, "{good}: {}", outcome.err);
    }
    let place = |line: usize| format!("servers_file: {}:{line}: ", file.display());
    with("10.0.0.1:1\n\n10.0.0.2").rejects(&format!("{}expected an address", place(3)));
    with("10.0.0.1:1\n10.0.0.1:1").rejects(&format!("{}10.0.0.1:1 is listed twice", place(2)));
    with("[\"10.0.0.1:1\",\n\"10.0.0.2\"]").rejects(&format!("{}expected an address", place(2)));
    with("# none\n").rejects("servers_file: has no server");
    with("[]").rejects("servers_file: has no server");
    let many: String = (0..1025).map(|port| format!("10.0.0.1:{}\n", port + 1)).collect();
    with(&many).rejects("servers_file: has more than 1024 servers");
    std::fs::remove_file(&file).unwrap();
    check(&folder, &format!("servers_file = {file:?}")).rejects("servers_file: no such file");
    // A registry of services writes it, but not in CI.
    let changes = format!("[[upstream]]\nname = \"recorder\"\nservers_file = {file:?}");
    let outcome = without_secrets(&folder, &changes);
    assert_eq!(outcome.code, 0, "{}", outcome.err);
}
