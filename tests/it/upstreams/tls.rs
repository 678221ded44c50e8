//! HTTPS to servers: the certificate is always verified.

use rcgen::date_time_ymd;

use super::service::Service;
use crate::harness::certificate::{Authority, Issued};
use crate::harness::client::{Connection, Response};
use crate::harness::process_log::{logged, logged_about, position};
use crate::harness::{Stack, until};

const NAME: &str = "shop.internal";

const TLS_ERRORS: &str = "wxgate_upstream_requests_total{code=\"tls_error\",upstream=\"recorder\"}";

/// The section of the upstream, with these keys of `upstream.tls`. No request is sent again.
fn section(service: &Service, tls: &str) -> String {
    let address = &service.address;
    format!(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"{address}\"]\n\
         [upstream.retry]\nattempts = 0\n[upstream.tls]\n{tls}\n"
    )
}

/// A service with a certificate of an authority, and a gateway that trusts `{dir}/ca.pem`.
async fn start(authority: &Authority, issued: &Issued) -> (Stack, Service) {
    start_with(authority, issued, "127.0.0.1:0", "server_name = \"shop.internal\"").await
}

async fn start_with(
    authority: &Authority,
    issued: &Issued,
    address: &str,
    keys: &str,
) -> (Stack, Service) {
    let service = Service::tcp("secure", address).await;
    service.certify(issued);
    let stack = trusting(authority, &section(&service, keys)).await;
    (stack, service)
}

/// A gateway with a configuration that is completed by the authority's certificate.
async fn trusting(authority: &Authority, changes: &str) -> Stack {
    // The directory of a stack does not exist before the stack.
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, authority.certificate.pem()).unwrap();
    Stack::start_with(&format!("{changes}ca_file = {ca_file:?}\n")).await
}

async fn get(stack: &Stack) -> Response {
    stack.get("/none").send().await
}

fn assert_fault(response: &Response, cause: &str) {
    response.assert_error(502, "bad_gateway", "retry");
    let lines = logged(response);
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let line = line.get("fields").unwrap_or(line);
    assert_eq!(line["cause"], format!("TLS: {cause}"));
    assert_eq!(line["upstream"], "recorder");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_a_valid_certificate_is_reached_over_tls_and_its_connection_kept() {
    let authority = Authority::root("ours");
    let (stack, service) = start(&authority, &authority.issue(&[NAME])).await;
    for _ in 0..5 {
        assert_eq!(get(&stack).await.text(), "secure");
    }
    assert_eq!(service.used(), 1);
    assert_eq!(stack.metric(TLS_ERRORS).await, 0.0);
    // More than fits into the buffers of both sides.
    let response = stack.post("/none").body(vec![b'x'; 900_000]).send().await;
    assert_eq!(response.text(), "secure");
    assert_eq!(service.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_name_is_what_certificates_are_verified_against() {
    let authority = Authority::root("ours");
    let service = Service::tcp("secure", "127.0.0.1:0").await;
    service.certify(&authority.issue(&["localhost"]));
    let port = service.address.rsplit(':').next().unwrap();
    let section = |tls: &str| {
        format!(
            "[[upstream]]\nname = \"recorder\"\nservers = [\"localhost:{port}\"]\n\
             [upstream.tls]\n{tls}\n"
        )
    };
    let stack = trusting(&authority, &section("")).await;
    assert_eq!(get(&stack).await.text(), "secure");
    // The configured name is used instead.
    let stack = trusting(&authority, &section("server_name = \"shop.internal\"")).await;
    assert_eq!(get(&stack).await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_certificate_does_not_verify_gets_no_request() {
    let (ours, theirs) = (Authority::root("ours"), Authority::root("theirs"));
    let expired = ours.issue_with(&[NAME], |params| params.not_after = date_time_ymd(2020, 1, 1));
    for (issued, cause) in [
        (expired, "the server's certificate has expired"),
        (
            ours.issue(&["other.internal"]),
            "the server's certificate is for another name: see upstream.tls.server_name",
        ),
        (
            theirs.issue(&[NAME]),
            "the server's certificate was not issued by a trusted CA: see upstream.tls.ca_file",
        ),
    ] {
        let (stack, service) = start(&ours, &issued).await;
        assert_fault(&get(&stack).await, cause);
        assert_eq!(stack.metric(TLS_ERRORS).await, 1.0);
        assert_eq!(service.used(), 0);
        // Once it is right, nothing has to be restarted.
        service.certify(&ours.issue(&[NAME]));
        assert_eq!(get(&stack).await.text(), "secure");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_gets_no_request() {
    let authority = Authority::root("ours");
    let address = crate::harness::serve_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let changes = format!(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"{address}\"]\n\
         [upstream.retry]\nattempts = 0\n[upstream.tls]\nserver_name = \"shop.internal\"\n"
    );
    let stack = trusting(&authority, &changes).await;
    assert_fault(&get(&stack).await, "the server responded without TLS: does this port use TLS?");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_handshake_is_retried_on_another_server_for_every_method() {
    let (ours, theirs) = (Authority::root("ours"), Authority::root("theirs"));
    let (bad, good) =
        (Service::tcp("bad", "127.0.0.1:0").await, Service::tcp("good", "127.0.0.1:0").await);
    bad.certify(&theirs.issue(&[NAME]));
    good.certify(&ours.issue(&[NAME]));
    let changes = format!(
        "[[upstream]]\nname = \"recorder\"\nservers = [\"{}\", \"{}\"]\n\
         [upstream.tls]\nserver_name = \"shop.internal\"\n",
        bad.address, good.address
    );
    let stack = trusting(&ours, &changes).await;
    for _ in 0..4 {
        assert_eq!(stack.post("/none").send().await.text(), "good");
    }
    assert_eq!(bad.used(), 0);
    assert!(stack.metric(TLS_ERRORS).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_presented() {
    let (ours, theirs) = (Authority::root("ours"), Authority::root("theirs"));
    let service = Service::tcp("secure", "127.0.0.1:0").await;
    service.certify_with(&ours.issue(&[NAME]), Some(&ours), &[]);
    let directory = tempfile::tempdir().unwrap();
    let section = |certificate: &str| {
        let keys = certificate.replace(", ", "\n");
        section(&service, &format!("server_name = \"shop.internal\"\n{keys}"))
    };
    let accepted = ours.issue(&["gateway"]).write(directory.path(), "ours", &[]);
    let stack = trusting(&ours, &section(&accepted)).await;
    assert_eq!(get(&stack).await.text(), "secure");
    assert_eq!(service.presented(), 1);
    // A server that does not accept it says so only after the handshake.
    let rejected = theirs.issue(&["gateway"]).write(directory.path(), "theirs", &[]);
    let stack = trusting(&ours, &section(&rejected)).await;
    assert_fault(&get(&stack).await, "the server rejected the client certificate");
    assert_eq!(stack.metric(TLS_ERRORS).await, 1.0);
    let stack = trusting(&ours, &section("")).await;
    assert_fault(
        &get(&stack).await,
        "the server requires a client certificate: see upstream.tls.cert_file",
    );
    assert_eq!(service.used(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_choose_http2_gets_no_request() {
    let authority = Authority::root("ours");
    for alpn in [&["http/1.1"][..], &[]] {
        let service = Service::tcp("old", "127.0.0.1:0").await;
        service.certify_with(&authority.issue(&[NAME]), None, alpn);
        let keys = "server_name = \"shop.internal\"";
        let section = section(&service, keys)
            .replace("[upstream.retry]", "protocol = \"h2\"\n[upstream.retry]");
        let stack = trusting(&authority, &section).await;
        assert_fault(
            &get(&stack).await,
            "the server did not choose HTTP/2 (ALPN h2): for HTTP/1.1, set protocol = \"http1\"",
        );
        assert_eq!(stack.metric(TLS_ERRORS).await, 1.0);
        assert_eq!(service.used(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_unannounced_is_never_the_end_of_a_response() {
    let authority = Authority::root("ours");
    let (stack, service) = start(&authority, &authority.issue(&[NAME])).await;
    let cause = |response: &Response| {
        let lines = logged(response);
        let line = lines.last().unwrap();
        line.get("fields").unwrap_or(line)["cause"].clone()
    };
    for (sent, expected) in [
        ("", "connection closed before a response"),
        ("HTTP/1.1 200 OK\r\n", "connection closed within the response header"),
    ] {
        service.end_with(sent);
        let response = get(&stack).await;
        response.assert_error(502, "bad_gateway", "retry");
        assert_eq!(cause(&response), expected);
    }
    // The end of the connection is the end of this body, but anybody could have caused it.
    service.end_with("HTTP/1.1 200 OK\r\n\r\nhalf");
    let mut client = Connection::open(stack.gateway).await;
    client.send(b"GET /none HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let response = client.strict_response(false).await.unwrap();
    assert_eq!((response.text().as_str(), response.is_whole), ("half", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_that_changes_is_used_for_new_connections_and_old_ones_are_not_used() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let service = Service::tcp("secure", "127.0.0.1:0").await;
    service.certify(&old.issue(&[NAME]));
    let directory = tempfile::tempdir().unwrap();
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, old.certificate.pem()).unwrap();
    let keys = format!("server_name = \"shop.internal\"\nca_file = {ca_file:?}");
    let section = section(&service, &keys);
    let stack = Stack::start_with(&format!("server.watch_interval = \"10ms\"\n{section}")).await;
    assert_eq!(get(&stack).await.text(), "secure");
    // The service's certificate is renewed: nothing has to be done.
    service.certify(&old.issue(&[NAME]));
    assert_eq!(get(&stack).await.text(), "secure");
    assert_eq!(service.used(), 1, "the connection is kept");
    // Replaced as a whole, as tools do it.
    let next = directory.path().join("next.pem");
    std::fs::write(&next, new.certificate.pem()).unwrap();
    std::fs::rename(&next, &ca_file).unwrap();
    until("the old CA is no longer trusted", async || get(&stack).await.status == 502).await;
    assert_eq!(service.used(), 1, "the idle connection is not used");
    service.certify(&new.issue(&[NAME]));
    assert_eq!(get(&stack).await.text(), "secure");
    assert_eq!(service.used(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_works_on_unix_sockets_and_ipv6_addresses() {
    let authority = Authority::root("ours");
    let directory = tempfile::tempdir().unwrap();
    let unix = Service::unix("secure", &directory.path().join("shop.sock"));
    unix.certify(&authority.issue(&[NAME]));
    let keys = "server_name = \"shop.internal\"";
    let stack = trusting(&authority, &section(&unix, keys)).await;
    assert_eq!(get(&stack).await.text(), "secure");
    let issued = authority.issue(&[NAME]);
    let (stack, _service) = start_with(&authority, &issued, "[::1]:0", keys).await;
    assert_eq!(get(&stack).await.text(), "secure");
}

#[tokio::test(flavor = "multi_thread")]
async fn health_checks_do_the_handshake_and_verify_the_certificate() {
    let authority = Authority::root("ours");
    for probe in ["path = \"/healthz\"", "tcp = true"] {
        let service = Service::tcp("secure", "127.0.0.1:0").await;
        let before = position();
        service.certify(&authority.issue(&[NAME]));
        let changes = format!(
            "[[upstream]]\nname = \"recorder\"\nservers = [\"{}\"]\n\
             [upstream.health_check]\n{probe}\ninterval = \"60ms\"\ntimeout = \"20s\"\n\
             [upstream.tls]\nserver_name = \"{NAME}\"\n",
            service.address
        );
        let stack = trusting(&authority, &changes).await;
        let checked = |outcome: &str| {
            let labels = format!("outcome=\"{outcome}\",upstream=\"recorder\"");
            format!("wxgate_upstream_health_checks_total{{{labels}}}")
        };
        until("a check", async || stack.metric(&checked("ok")).await > 0.0).await;
        assert_eq!(stack.metric(&checked("failed")).await, 0.0);
        service.certify(&authority.issue(&["other.internal"]));
        super::until_servers(&stack, "unhealthy", 1.0).await;
        let lines = logged_about(&service.address, before);
        let lines: Vec<_> = lines.iter().filter(|line| line["level"] == "WARN").collect();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let cause =
            "TLS: the server's certificate is for another name: see upstream.tls.server_name";
        assert_eq!(lines[0]["fields"]["cause"], cause);
    }
}
