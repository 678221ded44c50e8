//! A configuration is accepted as a whole, or rejected with every problem in it and its place.
//!
//! Fixtures are in `tests/config`. The expected output for a file of `invalid` is in `snapshots`,
//! under the name of the file.

mod browsers;
mod identity;
mod jwt;
mod reference;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use wxgate::config::{Config, Problem, Problems, Secrets};

use self::reference::reference_with_examples_for;

fn fixtures(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new("tests/config").join(folder);
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn every_valid_file_loads() {
    let files = fixtures("valid");
    assert_eq!(files.len(), 12);
    for file in files.iter().map(PathBuf::as_path).chain([Path::new("config/gateway.toml")]) {
        Config::load(file, Secrets::Ignore).unwrap();
    }
}

#[test]
fn the_manifest_for_kubernetes_has_a_valid_file_and_gives_the_gateway_time_to_drain() {
    let manifest = fs::read_to_string("deploy/kubernetes/wxgate.yaml").unwrap();
    let (_, text) = manifest.split_once("  gateway.toml: |\n").unwrap();
    let (text, _) = text.split_once("\n---\n").unwrap();
    let config = Config::parse("gateway.toml", text, Secrets::Ignore).unwrap();
    assert!(config.session.snapshot.is_some());

    let (_, grace) = manifest.split_once("terminationGracePeriodSeconds: ").unwrap();
    let (grace, _) = grace.split_once('\n').unwrap();
    let grace = Duration::from_secs(grace.parse().unwrap());
    assert!(grace > config.server.shutdown_delay + config.server.drain_timeout);
}

#[test]
fn every_invalid_file_is_rejected_with_its_problems_and_their_places() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../config/snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);

    let files = fixtures("invalid");
    assert!(files.len() > 90, "the fixtures are where they are looked for");
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(file).unwrap();
        let Err(problems) = Config::parse(name, &text, Secrets::Load) else {
            panic!("{name} is not rejected");
        };
        let stem = file.file_stem().unwrap().to_str().unwrap();
        settings.bind(|| insta::assert_snapshot!(stem, problems));
    }
    assert_eq!(fixtures("snapshots").len(), files.len());
}

/// File and line of each problem.
fn places(problems: &Problems) -> BTreeSet<(String, usize)> {
    let place = |problem: Problem<'_>| (problem.file.to_owned(), problem.line.unwrap());
    problems.iter().map(place).collect()
}

/// A problem must not hide behind the others of its file: each line of a fixture that has one is
/// marked, with `# wrong` at its end. A key that is missing is a problem of the header of its
/// section, or of line 1 where the section is missing, too.
#[test]
fn every_wrong_line_has_a_problem_and_no_other_line_has_one() {
    let included = fixtures("included");
    assert_eq!(included.len(), 2);
    for file in fixtures("invalid") {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let Err(problems) = Config::parse(name, &text, Secrets::Load) else {
            panic!("{name} is not rejected");
        };
        let mut marked = BTreeSet::new();
        let mut mark = |name: &str, text: &str| {
            let is_marked = |(_, line): &(usize, &str)| line.trim_end().ends_with("# wrong");
            let lines = text.lines().enumerate().filter(is_marked);
            marked.extend(lines.map(|(at, _)| (name.to_owned(), at + 1)));
        };
        mark(name, &text);
        let found = places(&problems);
        for file in included.iter().map(|file| file.to_str().unwrap()) {
            if text.contains(file) {
                mark(file, &fs::read_to_string(file).unwrap());
            }
        }
        let silent: Vec<_> = marked.difference(&found).collect();
        assert!(silent.is_empty(), "marked as wrong, but without a problem: {silent:?}");
        let unmarked: Vec<_> = found.difference(&marked).collect();
        assert!(unmarked.is_empty(), "with a problem, but not marked \"# wrong\": {unmarked:?}");
    }
}

/// Replaces the value of a key, which is written as in [`Config::known_keys`]. Returns the key
/// as problems name it.
fn replace(table: &mut toml::Table, key: &str, value: &toml::Value) -> Option<String> {
    let Some((section, rest)) = key.split_once('.') else {
        *table.get_mut(key)? = value.clone();
        return Some(key.to_owned());
    };
    let Some(name) = section.strip_suffix("[]") else {
        let table = table.get_mut(section)?.as_table_mut()?;
        return Some(format!("{section}.{}", replace(table, rest, value)?));
    };
    let elements = table.get_mut(name)?.as_array_mut()?.iter_mut().enumerate();
    // The first one that has it.
    let (index, rest) = elements
        .filter_map(|(index, element)| {
            Some((index, replace(element.as_table_mut()?, rest, value)?))
        })
        .next()?;
    Some(format!("{name}[{index}].{rest}"))
}

#[test]
fn a_value_of_a_wrong_type_is_a_problem_of_its_key() {
    let values = "string = \"\\u0001\"\ninteger = -1\nfloat = -1.5\nboolean = true\n\
                  date = 1979-05-27\narray = [[]]\ntable = { \"\\u0001\" = [] }";
    let values: toml::Table = values.parse().unwrap();
    let (mut tried, mut silent) = (0, Vec::new());
    for key in Config::known_keys() {
        let reference: toml::Table = reference_with_examples_for(&key).parse().unwrap();
        for (kind, value) in &values {
            let mut changed = reference.clone();
            let shown = replace(&mut changed, &key, value).expect("the reference has every key");
            // Nothing in these is wrong: any boolean will do, and any text.
            let takes = match kind.as_str() {
                "boolean" => matches!(
                    &*key,
                    "app[].default"
                        | "route[].cors.credentials"
                        | "route[].websocket"
                        | "internal.allow_plain_http"
                        | "open_data.enabled"
                        | "scan.enabled"
                        | "server.h2c"
                        | "ticket.enabled"
                        | "upstream[].cookie_jar"
                        | "upstream[].health_check.tcp"
                        | "wechat.allow_plain_http"
                ),
                "string" => matches!(
                    &*key,
                    "route[].respond.body"
                        | "session.redis.username"
                        | "session.redis.sentinel_username"
                ),
                _ => false,
            };
            let text = changed.to_string();
            let problems = match Config::parse("file", &text, Secrets::Ignore) {
                Ok(_) if takes => continue,
                Ok(_) => String::new(),
                Err(problems) => problems.to_string(),
            };
            tried += 1;
            let of_key = |line: &&str| {
                line.strip_prefix("file:")
                    .and_then(|line| line.split(' ').nth(1))
                    .is_some_and(|found| found.starts_with(&*shown))
            };
            if !problems.lines().any(|line| of_key(&line)) {
                silent.push(format!("{key} = {value} ({kind}): {problems}"));
            }
        }
    }
    assert!(silent.is_empty(), "{silent:#?}");
    assert!(tried > 900, "{tried}");
}

#[test]
fn all_problems_of_a_file_are_found_at_once() {
    let text = fs::read_to_string("tests/config/invalid/everything_at_once.toml").unwrap();
    let problems = Config::parse("everything_at_once.toml", &text, Secrets::Load).unwrap_err();
    assert_eq!(problems.len(), 18);
}

/// Fixtures hold secrets where an operator might put them by mistake.
#[test]
fn no_message_repeats_a_secret() {
    const PLANTED: [&str; 3] = ["planted", "700700700", "0123456789abcdef0123456789abcdef"];
    let mut with_secrets = 0;
    for file in fixtures("invalid") {
        let text = fs::read_to_string(&file).unwrap();
        let problems = Config::parse("file", &text, Secrets::Load).unwrap_err();
        with_secrets += usize::from(PLANTED.iter().any(|secret| text.contains(secret)));
        for shown in [format!("{problems}"), format!("{problems:?}")] {
            assert!(!PLANTED.iter().any(|secret| shown.contains(secret)), "{shown}");
        }
    }
    assert_eq!(with_secrets, 18);
    for file in fixtures("snapshots") {
        let shown = fs::read_to_string(&file).unwrap();
        assert!(!PLANTED.iter().any(|secret| shown.contains(secret)), "{}", file.display());
    }
}

/// Every rejection has a reason, and no file makes the gateway panic.
#[test]
fn a_changed_file_loads_or_has_problems_with_places() {
    const VALUES: [&str; 12] = [
        "",
        "5",
        "-1",
        "true",
        "\"\"",
        "\"\\u0000\"",
        "\"名\"",
        "[]",
        "[[]]",
        "[5, \"x\"]",
        "{}",
        "{ x = 1 }",
    ];
    let mut tried = 0;
    for file in fixtures("valid") {
        let text = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let key = line.split(" = ").next().filter(|key| key.len() < line.len());
            let replaced =
                key.into_iter().flat_map(|key| VALUES.map(|value| format!("{key} = {value}")));
            for change in
                replaced.chain([String::new(), "[x]".to_owned(), "\u{feff}\t[".to_owned()])
            {
                let (before, after) = (lines[..at].join("\n"), lines[at + 1..].join("\n"));
                let changed = format!("{before}\n{change}\n{after}");
                tried += 1;
                if let Err(problems) = Config::parse("file", &changed, Secrets::Ignore) {
                    assert!(!problems.is_empty(), "{changed}");
                    assert!(problems.to_string().starts_with("file:"), "{problems}");
                }
            }
        }
    }
    assert!(tried > 1000, "{tried}");
    let deep = format!("a = {}", "[".repeat(100_000));
    assert!(Config::parse("file", &deep, Secrets::Ignore).is_err());
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let latin = folder.path().join("latin.toml");
    fs::write(&latin, b"# caf\xe9\n").unwrap();
    for (path, reason) in [
        (folder.path().join("absent.toml"), "no such file"),
        (folder.path().to_owned(), "is a directory"),
        (latin, "not UTF-8 text"),
    ] {
        let problems = Config::load(&path, Secrets::Ignore).unwrap_err();
        let shown = format!("{}: cannot read the file: {reason}\n", path.display());
        assert_eq!(problems.to_string(), shown);
    }
}

#[test]
fn secrets_are_read_from_variables_and_files() {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    let secret = |reference: &str| {
        let text = text.replace("{ env = \"WECHAT_APP_SECRET\" }", reference);
        let config = Config::parse("gateway.toml", &text, Secrets::Load).unwrap();
        config.apps[0].secret.expose().to_owned()
    };
    // cargo sets it for tests.
    assert_eq!(secret("{ env = \"CARGO_PKG_NAME\" }"), "wxgate");
    assert_eq!(secret("{ file = \"tests/config/app_secret\" }"), "planted-secret");
}

#[test]
fn settings_that_let_caches_mix_up_users_are_warned_of() {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    for (lines, expected) in [
        ("cache = \"as_sent\"", Some("route[0].cache: responses to users are not marked")),
        ("auth = \"optional\"\ncache = \"as_sent\"", None),
        ("auth = \"none\"\ncache = \"as_sent\"", Some("route[0].cache: has no effect")),
        ("auth = \"none\"\ncache = \"private\"", None),
        (
            "set_response_headers = { Cache-Control = \"max-age=9, public\" }",
            Some("route[0].set_response_headers: this Cache-Control"),
        ),
        ("set_response_headers = { Cache-Control = \"max-age=9\" }", None),
        ("auth = \"none\"\nset_response_headers = { Cache-Control = \"public\" }", None),
    ] {
        let text = text.replace("auth = \"required\"", lines);
        let mut warnings = Config::parse("file", &text, Secrets::Ignore).unwrap().warnings;
        warnings.retain(|warning| warning.contains(": route["));
        assert_eq!(warnings.len(), usize::from(expected.is_some()), "{lines}: {warnings:?}");
        assert!(
            expected.is_none_or(|expected| warnings[0].contains(&format!(": {expected}"))),
            "{warnings:?}"
        );
    }
}

#[test]
fn a_route_that_matches_on_a_reserved_header_is_warned_of() {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    for (name, is_warned) in [
        ("X-Api-Version", false),
        ("Authorization", false),
        ("Upgrade", false),
        ("X-OpenId", true),
        ("x_openid", true),
        ("X-3rd-Session", true),
        ("X-WX-Source", true),
        ("X-Real-IP", true),
        ("X-Forwarded-Proto", true),
        ("X-Forwarded-Prefix", true),
    ] {
        let route = format!("auth = \"required\"\nheaders = {{ {name} = \"1\" }}");
        let text = text.replace("auth = \"required\"", &route);
        let mut warnings = Config::parse("file", &text, Secrets::Ignore).unwrap().warnings;
        warnings.retain(|warning| warning.contains(": route["));
        assert_eq!(warnings.len(), usize::from(is_warned), "{name}: {warnings:?}");
        let expected = ": route[0].headers: clients can forge a header";
        assert!(warnings.iter().all(|warning| warning.contains(expected)), "{warnings:?}");
    }
}

#[test]
fn a_certificate_needs_its_own_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["one", "two"] {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(path(&format!("{name}.crt")), made.cert.pem()).unwrap();
        fs::write(path(&format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    }
    let load = |cert: &str, key: &str| {
        let tls = format!("tls = {{ cert_file = {:?}, key_file = {:?} }}", path(cert), path(key));
        let text = fs::read_to_string("config/gateway.toml").unwrap();
        let text = text
            .replace("[server]", &format!("[server]\n{tls}"))
            .replace("env = \"WECHAT_APP_SECRET\"", "file = \"tests/config/app_secret\"");
        Config::parse("gateway.toml", &text, Secrets::Load)
    };
    let certificate = load("one.crt", "one.key").unwrap().server.tls.unwrap().default.unwrap();
    assert_eq!(certificate.names, ["localhost"]);
    let problems = load("one.crt", "two.key").unwrap_err().to_string();
    assert!(problems.contains("does not match the certificate"), "{problems}");
    let problems = load("one.key", "one.crt").unwrap_err().to_string();
    assert!(problems.contains("cert_file: contains no certificate"), "{problems}");
    assert!(
        problems.contains("key_file: contains no private key: it is a certificate"),
        "{problems}"
    );
}
