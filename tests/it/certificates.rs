//! Certificate files are checked as a phone would check them, when the configuration is read.

use std::path::Path;

use rcgen::{CertificateParams, date_time_ymd};
use wxgate::config::{Config, Problems, Secrets};

use crate::harness::certificate::{Authority, Issued};
use crate::harness::command::wxgate;

/// The problems and warnings of a configuration with these keys of `[server.tls]`.
fn parse(tls: &str) -> Result<Vec<String>, Problems> {
    parse_with(tls, "")
}

fn parse_with(tls: &str, rest: &str) -> Result<Vec<String>, Problems> {
    let text = std::fs::read_to_string("config/gateway.toml").unwrap();
    let text = text
        .replace("[server]", &format!("[server]\ntls = {{ {tls} }}"))
        .replace("env = \"WECHAT_APP_SECRET\"", "file = \"tests/config/app_secret\"");
    let config = Config::parse("gateway.toml", &format!("{text}\n{rest}"), Secrets::Load)?;
    // Without their places.
    let warnings = config.warnings.iter().filter_map(|warning| warning.split_once(": "));
    let others = warnings.filter(|(_, warning)| !warning.starts_with("app[0]"));
    Ok(others.map(|(_, warning)| warning.to_owned()).collect())
}

#[track_caller]
fn assert_problem(parsed: Result<Vec<String>, Problems>, key: &str, parts: &[&str]) {
    let problems = parsed.unwrap_err();
    let shown = problems.to_string();
    assert_eq!(problems.len(), 1, "{shown}");
    assert!(shown.contains(&format!(" server.tls.{key}: ")), "{shown}");
    for part in parts {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
}

/// Changes a file of [`Issued::write`].
fn rewrite(directory: &Path, name: &str, certificates: &[&rcgen::Certificate]) {
    let pem: String = certificates.iter().map(|certificate| certificate.pem()).collect();
    std::fs::write(directory.join(format!("{name}.crt")), pem).unwrap();
}

struct Chain {
    root: Authority,
    middle: Authority,
    leaf: Issued,
    directory: tempfile::TempDir,
}

impl Chain {
    fn new() -> Self {
        let root = Authority::root("the root");
        let middle = root.intermediate("the middle");
        let leaf = middle.issue(&["a.test"]);
        Self { root, middle, leaf, directory: tempfile::tempdir().unwrap() }
    }

    fn write(&self, after: &[&rcgen::Certificate]) -> String {
        self.leaf.write(self.directory.path(), "leaf", after)
    }

    /// The verdict on a file with these certificates.
    fn parse(&self, certificates: &[&rcgen::Certificate]) -> Result<Vec<String>, Problems> {
        let tls = self.write(&[]);
        rewrite(self.directory.path(), "leaf", certificates);
        parse(&tls)
    }
}

#[test]
fn a_chain_up_to_its_root_has_no_warning() {
    let chain = Chain::new();
    let tls = chain.write(&[&chain.middle.certificate, &chain.root.certificate]);
    assert_eq!(parse(&tls).unwrap(), Vec::<String>::new());
}

#[test]
fn certificates_out_of_order_are_rejected_with_the_order_found() {
    let chain = Chain::new();
    let (leaf, middle, root) =
        (&chain.leaf.certificate, &chain.middle.certificate, &chain.root.certificate);
    let found = "found 1: \"a.test\" issued by \"the middle\", 2: \"the root\" issued by \
                 \"the root\", 3: \"the middle\" issued by \"the root\"";
    let order = "the certificates are in the wrong order: ";
    let what = format!("{order}number 2 is not the issuer of number 1");
    assert_problem(chain.parse(&[leaf, root, middle]), "cert_file", &[&what, found]);
    let what = format!("{order}number 3 is the one that matches key_file");
    assert_problem(chain.parse(&[root, middle, leaf]), "cert_file", &[&what]);
    let what = format!("{order}number 2 is not the issuer of number 1");
    assert_problem(chain.parse(&[leaf, leaf, middle]), "cert_file", &[&what]);
}

#[test]
fn an_issuer_with_the_right_name_that_did_not_sign_is_rejected() {
    let chain = Chain::new();
    let other = chain.root.intermediate("the middle");
    let parsed = chain.parse(&[&chain.leaf.certificate, &other.certificate]);
    let what = "certificate 2 has the name of the issuer of certificate 1, but did not sign it";
    assert_problem(parsed, "cert_file", &[what]);
}

#[test]
fn the_key_must_be_that_of_the_first_certificate() {
    let chain = Chain::new();
    let other = chain.middle.issue(&["a.test"]);
    let what = "does not match the certificate in cert_file";
    assert_problem(chain.parse(&[&other.certificate]), "key_file", &[what]);
}

#[test]
fn a_file_that_is_not_a_certificate_is_rejected() {
    let chain = Chain::new();
    let tls = chain.write(&[]);
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let file = chain.directory.path().join("leaf.crt");
    std::fs::write(file, chain.leaf.certificate.pem() + pem).unwrap();
    assert_problem(parse(&tls), "cert_file", &["certificate 2 in it cannot be parsed"]);
}

/// Valid between these days, counted from today.
fn valid(params: &mut CertificateParams, from: i64, to: i64) {
    let today = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / (24 * 3600);
    let day = |days: i64| {
        let days = today.checked_add_signed(days).unwrap();
        date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(days * 24 * 3600)
    };
    (params.not_before, params.not_after) = (day(from), day(to));
}

#[test]
fn a_certificate_must_be_valid_and_is_to_be_renewed_in_time() {
    let mut chain = Chain::new();
    let mut judge = |from, to| {
        chain.leaf = chain.middle.issue_with(&["a.test"], |params| valid(params, from, to));
        let tls = chain.write(&[&chain.middle.certificate, &chain.root.certificate]);
        parse(&tls)
    };
    let renew = ["certificate 1, \"a.test\", expired on 20", "^ renew it"];
    assert_problem(judge(-90, -1), "cert_file", &renew);
    let clock = ["certificate 1, \"a.test\", is valid only from 20", "the clock of this machine"];
    assert_problem(judge(2, 90), "cert_file", &clock);
    assert_eq!(judge(-60, 32).unwrap(), Vec::<String>::new());
    let warnings = judge(-60, 29).unwrap();
    assert_eq!(warnings.len(), 1);
    let warning = &warnings[0];
    assert!(warning.starts_with("server.tls.cert_file: certificate 1, \"a.test\", expires on 20"));
    assert!(warning.ends_with("in 28 days: renew it"), "{warning}");
}

/// It is not renewed by the operator, but the chain fails with it.
#[test]
fn a_certificate_further_up_must_be_valid_too() {
    let root = Authority::root("the root");
    let middle = root.intermediate_with("the middle", |params| valid(params, -90, -1));
    let leaf = middle.issue(&["a.test"]);
    let directory = tempfile::tempdir().unwrap();
    let tls = leaf.write(directory.path(), "leaf", &[&middle.certificate, &root.certificate]);
    let what = ["certificate 2, \"the middle\", expired on", "use the chain of a renewed"];
    assert_problem(parse(&tls), "cert_file", &what);
}

#[test]
fn an_incomplete_chain_is_warned_of() {
    let chain = Chain::new();
    let alone = chain.parse(&[&chain.leaf.certificate]).unwrap();
    assert_eq!(
        alone,
        ["server.tls.cert_file: the chain ends with certificate 1, \"a.test\", whose issuer \
          \"the middle\" is not a root certificate of this machine: phones do not fetch missing \
          certificates; add all of them, up to the root"]
    );
    let identity = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
    let own = Issued { certificate: identity.cert, key: identity.signing_key };
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        parse(&own.write(directory.path(), "own", &[])).unwrap(),
        ["server.tls.cert_file: the certificate is self-signed: phones do not trust it"]
    );
}

#[test]
fn check_reads_the_roots_of_the_machine_and_shows_warnings() {
    let chain = Chain::new();
    let path = |name: &str| chain.directory.path().join(name);
    std::fs::write(path("roots.pem"), chain.root.certificate.pem()).unwrap();
    let text = std::fs::read_to_string("config/gateway.toml").unwrap();
    let check = |after: &[&rcgen::Certificate]| {
        let tls = chain.write(after);
        let text = text
            .replace("[server]", &format!("[server]\ntls = {{ {tls} }}"))
            .replace("env = \"WECHAT_APP_SECRET\"", "file = \"tests/config/app_secret\"");
        std::fs::write(path("gateway.toml"), text).unwrap();
        let mut command = wxgate();
        command.args(["check", "-c"]).arg(path("gateway.toml"));
        let output = command.env("SSL_CERT_FILE", path("roots.pem")).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stderr).unwrap()
    };
    let warning = ": server.tls.cert_file: the chain ends with";
    assert!(!check(&[&chain.middle.certificate]).contains("server.tls"));
    assert!(check(&[]).contains(warning));
}

#[test]
fn missing_and_duplicate_names_are_warned_of() {
    let root = Authority::root("the root");
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, names: &[&str]| {
        root.issue(names).write(directory.path(), name, &[&root.certificate])
    };
    let listed = format!(
        "certificate = [{{ {} }}, {{ {} }}], {}",
        write("one", &["one.test", "*.one.test"]),
        write("two", &["two.test", "ONE.test"]),
        write("default", &["two.test", "10.0.0.1"])
    );
    let hosts = "endpoints.hosts = [\"Two.test\", \"a.one.test\", \"a.two.test\", \"b.a.one.test\", \
                 \"10.0.0.1\"]";
    let text = std::fs::read_to_string("config/gateway.toml").unwrap();
    assert!(!text.contains("[endpoints]"));
    assert_eq!(
        parse_with(&listed, &hosts.replace("endpoints.", "[endpoints]\n")).unwrap(),
        [
            "server.tls.certificate[1].cert_file: \"one.test\" is also in \
             server.tls.certificate[0].cert_file, which is used for it",
            "server.tls.cert_file: \"two.test\" is also in server.tls.certificate[1].cert_file, \
             which is used for it",
            "endpoints.hosts: no certificate in server.tls is valid for \"a.two.test\"",
            "endpoints.hosts: no certificate in server.tls is valid for \"b.a.one.test\"",
        ]
    );
}

#[test]
fn a_certificate_without_a_host_name_is_reported() {
    let root = Authority::root("the root");
    let directory = tempfile::tempdir().unwrap();
    let nameless = root.issue_with(&["a.test"], |params| params.subject_alt_names.clear());
    let nameless = nameless.write(directory.path(), "nameless", &[&root.certificate]);
    let expected = "server.tls.cert_file: the certificate has no host name in its subject alternative names: \
         clients reject it";
    assert_eq!(parse(&nameless).unwrap(), [expected]);
    let default = root.issue(&["a.test"]).write(directory.path(), "a", &[&root.certificate]);
    let parsed = parse(&format!("certificate = [{{ {nameless} }}], {default}"));
    let what = ["this certificate would never be used: it has no host name"];
    assert_problem(parsed, "certificate[0].cert_file", &what);
}
