//! `config/reference.toml` has every key, its default, and whether it needs a restart.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use wxgate::config::{Config, Secrets};

/// Keys that have no default: the reference shows them as comments.
const WITHOUT_DEFAULT: [&str; 114] = [
    "admin.token",
    "app[].default",
    "app[].login_rate",
    "browser[].authorize_base_url",
    "browser[].base_url",
    "browser[].cookie",
    "browser[].official_account",
    "browser[].scope",
    "browser[].website",
    "errors.codes",
    "errors.content_type",
    "errors.template",
    "identity.jwt.algorithm",
    "identity.jwt.audience",
    "identity.jwt.header",
    "identity.jwt.issuer",
    "identity.jwt.key",
    "identity.jwt.lifetime",
    "identity.jwt.next_keys",
    "identity.jwt.previous_keys",
    "identity.preset",
    "identity.user_id_header",
    "internal.allow_plain_http",
    "internal.listen",
    "internal.tls.cert_file",
    "internal.tls.client_ca_file",
    "internal.tls.key_file",
    "internal.token[].allow",
    "internal.token[].apps",
    "internal.token[].name",
    "internal.token[].token",
    "internal.token[].wechat_paths",
    "internal.wechat_paths",
    "log.openid_key",
    "login.hook.on_failure",
    "login.hook.timeout",
    "login.hook.token",
    "login.hook.url",
    "route[].add_prefix",
    "route[].apps",
    "route[].connect_timeout",
    "route[].cors.credentials",
    "route[].cors.expose",
    "route[].cors.headers",
    "route[].cors.max_age",
    "route[].cors.methods",
    "route[].cors.origins",
    "route[].headers",
    "route[].host",
    "route[].max_body",
    "route[].methods",
    "route[].name",
    "route[].read_timeout",
    "route[].remove_request_headers",
    "route[].remove_response_headers",
    "route[].respond.body",
    "route[].respond.content_type",
    "route[].respond.file",
    "route[].respond.status",
    "route[].retry.attempts",
    "route[].retry.budget",
    "route[].retry.on",
    "route[].retry.per_try_timeout",
    "route[].set_request_headers",
    "route[].set_response_headers",
    "route[].split[].percent",
    "route[].split[].upstream",
    "route[].strip_prefix",
    "route[].timeout",
    "route[].write_timeout",
    "scan.app_id",
    "server.tls.cert_file",
    "server.tls.certificate[].cert_file",
    "server.tls.certificate[].key_file",
    "server.tls.client_ca_file",
    "server.tls.client_certificate",
    "server.tls.handshake_timeout",
    "server.tls.key_file",
    "server.upgrade_socket",
    "session.carriers",
    "session.previous_seal_keys",
    "session.redis.ca_file",
    "session.redis.key_prefix",
    "session.redis.max_lookups",
    "session.redis.near_cache_ttl",
    "session.redis.password",
    "session.redis.sentinel_password",
    "session.redis.sentinel_username",
    "session.redis.timeout",
    "session.redis.url",
    "session.redis.username",
    "session.seal_key",
    "session.snapshot.interval",
    "session.snapshot.path",
    "upstream[].hash",
    "upstream[].health_check.healthy_after",
    "upstream[].health_check.host",
    "upstream[].health_check.interval",
    "upstream[].health_check.path",
    "upstream[].health_check.status",
    "upstream[].health_check.tcp",
    "upstream[].health_check.timeout",
    "upstream[].health_check.unhealthy_after",
    "upstream[].idle_timeout",
    "upstream[].retry.on",
    "upstream[].retry.per_try_timeout",
    "upstream[].servers_file",
    "upstream[].tls.ca_file",
    "upstream[].tls.cert_file",
    "upstream[].tls.key_file",
    "upstream[].tls.server_name",
    "wechat.ca_file",
    "wechat.fallback_base_url",
    "wechat.proxy",
];

fn reference() -> String {
    fs::read_to_string("config/reference.toml").unwrap()
}

/// The reference with its examples in force.
fn reference_with_examples() -> String {
    let is_example = |line: &str| {
        let key = line.split(" = ").next().unwrap_or_default();
        line.starts_with('[')
            || key != line && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let uncomment = |line: &str| match line.strip_prefix("# ") {
        Some(example) if is_example(example) => format!("{example}\n"),
        _ => format!("{line}\n"),
    };
    reference().lines().map(uncomment).collect()
}

/// A valid file with as many examples in force as possible, and this key. Sessions are either in a
/// store or in a snapshot.
pub fn reference_with_examples_for(key: &str) -> String {
    let is_snapshot = key.starts_with("session.snapshot.");
    let left_out = if is_snapshot { "[session.redis]" } else { "[session.snapshot]" };
    let mut section = "";
    let text = reference_with_examples();
    let kept = text.lines().filter(|line| {
        if line.starts_with('[') {
            section = *line;
        }
        section != left_out
    });
    kept.collect::<Vec<_>>().join("\n")
}

/// The keys in a text, as `section.key` or `section[].key`.
fn keys(text: &str) -> BTreeSet<String> {
    let known = Config::known_keys();
    let mut keys = BTreeSet::new();
    let mut values = vec![(String::new(), toml::Value::Table(text.parse().unwrap()))];
    while let Some((path, value)) = values.pop() {
        match value {
            toml::Value::Table(table) if !known.contains(&path) => {
                let prefix = if path.is_empty() { path } else { format!("{path}.") };
                values.extend(
                    table.into_iter().map(|(key, value)| (format!("{prefix}{key}"), value)),
                );
            }
            toml::Value::Array(array) if !known.contains(&path) => {
                values.extend(array.into_iter().map(|value| (format!("{path}[]"), value)));
            }
            _ => drop(keys.insert(path)),
        }
    }
    keys
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let known = BTreeSet::from_iter(Config::known_keys());
    for key in ["session.redis.url", "session.snapshot.path"] {
        let text = reference_with_examples_for(key);
        Config::parse("reference.toml", &text, Secrets::Ignore).unwrap();
    }
    assert_eq!(keys(&reference_with_examples()), known);

    let commented: Vec<_> = known.difference(&keys(&reference())).cloned().collect();
    assert_eq!(commented, WITHOUT_DEFAULT);
}

#[test]
fn the_reference_marks_the_keys_that_need_a_restart() {
    let mut marked = BTreeSet::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for line in reference().lines() {
        let example = line.strip_prefix("# ").filter(|line| {
            line.starts_with('[')
                || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '))
        });
        let line = example.unwrap_or(line);
        if let Some(text) = line.strip_prefix('#') {
            comment += text;
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
        }
        let key = match line.split_once(" = ") {
            Some((key, _)) => format!("{section}.{key}"),
            None => section.clone(),
        };
        let words = comment.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
        if words.contains("needs a restart") && !words.contains("is behind") {
            marked.insert(key);
        }
        comment.clear();
    }
    assert_eq!(marked, Config::restart_only_keys().into_iter().map(str::to_owned).collect());
}

#[test]
fn the_reference_shows_every_default() {
    let load = |file: &str| Config::load(Path::new(file), Secrets::Ignore).unwrap();
    let smallest = format!("{:#?}", load("config/gateway.toml"));
    assert_eq!(format!("{:#?}", load("config/reference.toml")), smallest);
}
