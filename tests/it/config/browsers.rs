//! What works in the configuration of browsers, tickets, scans, kinds of apps and cookie jars, but
//! is warned of, and what has a default that depends on other keys.

use std::fs;

use wxgate::config::{AppKind, Config, Secrets};

fn valid() -> String {
    fs::read_to_string("tests/config/valid/browsers.toml").unwrap()
}

/// Keys and messages of the warnings.
fn warnings(text: &str) -> Vec<String> {
    let config = Config::parse("file", text, Secrets::Ignore).unwrap();
    let shown = |warning: &String| warning.split_once(": ").unwrap().1.to_owned();
    config.warnings.iter().map(shown).collect()
}

#[test]
fn what_has_no_effect_or_is_not_safe_is_warned_of() {
    assert_eq!(warnings(&valid()), [""; 0]);
    let old = "path = \"/old\"\nhost = \"*.example.com\"\nupstream = \"old\"\nlogin = \"json\"";
    let old_with = |line: &str| old.replace("login = \"json\"", line);
    let pages = "path = \"/\"\nupstream = \"pages\"\nauth = \"optional\"";
    for (line, replacement, expected) in [
        (
            "cookie = \"__Host-desk\"",
            "cookie = \"desk\"".to_owned(),
            &["browser[1].cookie: without the prefix __Host-, other hosts"][..],
        ),
        (
            "cookie = \"__Host-desk\"",
            "cookie = \"__Secure-desk\"".to_owned(),
            &["browser[1].cookie: without the prefix __Host-, other hosts"],
        ),
        (
            "official_account = \"wx0000000000000001\"\n",
            String::new(),
            &["app[1].app_id: no user can log in: no [[browser]] has it as official_account"],
        ),
        (
            "website = \"wx0000000000000002\"\n",
            String::new(),
            &["app[2].app_id: no user can log in: no [[browser]] has it as website"],
        ),
        (
            "scope = \"snsapi_userinfo\"",
            "authorize_base_url = \"https://api.weixin.qq.com\"".to_owned(),
            &["browser[0].authorize_base_url: api.weixin.qq.com is not the host of WeChat's login"],
        ),
        (
            "scope = \"snsapi_userinfo\"",
            "authorize_base_url = \"http://127.0.0.1:9000\"".to_owned(),
            &["browser[0].authorize_base_url: these are not WeChat's login pages"],
        ),
        (
            "base_url = \"https://desk.example.com\"\ncookie = \"__Host-desk\"",
            "base_url = \"https://h5.example.com:8443\"".to_owned(),
            &["browser[1].base_url: shares its cookies with https://h5.example.com"],
        ),
        (
            "[ticket]\nenabled = true",
            "[ticket]\nenabled = false".to_owned(),
            &["endpoints.ticket: has no effect without [ticket]"],
        ),
        (
            "[ticket]\nenabled = true",
            "[ticket]".to_owned(),
            &[
                "ticket.enabled: tickets are off: add enabled = true",
                "endpoints.ticket: has no effect without [ticket]",
            ],
        ),
        (
            "[scan]\nenabled = true",
            "[scan]\nenabled = false".to_owned(),
            &[
                "scan.app_id: has no effect without enabled = true",
                "scan.lifetime: has no effect without enabled = true",
                "endpoints.scan: has no effect without [scan]",
            ],
        ),
        (
            "[scan]\nenabled = true",
            "[scan]".to_owned(),
            &[
                "scan.enabled: scans are off: add enabled = true",
                "endpoints.scan: has no effect without [scan]",
            ],
        ),
        (
            "cookie_jar = true\n",
            String::new(),
            &["session.jar_capacity: has no effect: no [[upstream]] has cookie_jar = true"],
        ),
        (
            "[session]\n",
            "[session.redis]\nurl = \"redis://127.0.0.1\"\n[session]\n".to_owned(),
            &["session.jar_capacity: has no effect with a shared store"],
        ),
        (
            old,
            old_with("auth = \"none\""),
            &["upstream[1].cookie_jar: has no effect: cookies are kept with a session"],
        ),
        (
            old,
            old_with("set_request_headers = { Cookie = \"a=1\" }"),
            &["route[2].set_request_headers: this Cookie replaces those that cookie_jar keeps"],
        ),
        (old, old_with("remove_request_headers = [\"Cookie\"]"), &[]),
        (
            pages,
            format!("{pages}\nlogin = \"redirect\""),
            &["route[0].login: a page request without a session is anonymous"],
        ),
        (
            "login = \"redirect\"",
            "login = \"redirect\"\napps = [\"wx0000000000000001\"]".to_owned(),
            &["route[1].login: users who log in to wx0000000000000002 by a redirect get 403"],
        ),
        (
            "login = \"redirect\"",
            "login = \"redirect\"\napps = [\"wx0000000000000001\", \"wx0000000000000002\"]"
                .to_owned(),
            &[],
        ),
        (
            "upstream = \"pages\"\n",
            "upstream = \"pages\"\nhost = \"h5.example.com\"\n".to_owned(),
            &["browser[2].base_url: no route is for this host"],
        ),
    ] {
        let text = valid();
        assert!(text.contains(line), "{line}");
        let found = warnings(&text.replace(line, &replacement).replace(
            // The scope is of an official account.
            "scope = \"snsapi_userinfo\"\n",
            if line.starts_with("official") { "" } else { "scope = \"snsapi_userinfo\"\n" },
        ));
        assert_eq!(found.len(), expected.len(), "{replacement}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    }
}

#[test]
fn endpoints_of_a_feature_that_is_off_are_warned_of_unless_they_are_the_default() {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    let with = |line: &str| warnings(&format!("{text}\n[endpoints]\n{line}"));
    assert_eq!(with("start = \"/login/start\"\nscan = [\"/scan\"]\nticket = \"/ticket\""), [""; 0]);
    for (line, feature) in [
        ("start = \"/x\"", "[[browser]]"),
        ("callback = []", "[[browser]]"),
        ("ticket = \"/x\"", "[ticket]"),
        ("scan = [\"/scan\", \"/x\"]", "[scan]"),
    ] {
        let key = line.split(' ').next().unwrap();
        let expected = format!("endpoints.{key}: has no effect without {feature}");
        assert_eq!(with(line), [expected], "{line}");
    }
    let config = Config::parse("file", &text, Secrets::Ignore).unwrap();
    let endpoints = &config.endpoints;
    for paths in [&endpoints.start, &endpoints.callback, &endpoints.ticket, &endpoints.scan] {
        assert!(paths.is_empty(), "{endpoints:?}");
    }
}

#[test]
fn a_browser_host_without_a_certificate_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["h5.example.com".to_owned()]).unwrap();
    let (cert, key) = (folder.path().join("crt"), folder.path().join("key"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    let text = text
        .replace(
            "[server]",
            &format!("[server]\ntls = {{ cert_file = {cert:?}, key_file = {key:?} }}"),
        )
        .replace("env = \"WECHAT_APP_SECRET\"", "file = \"tests/config/app_secret\"");
    let uncovered = |host: &str| {
        let text = format!("{text}\n[[browser]]\nbase_url = \"https://{host}\"");
        let warnings = Config::parse("file", &text, Secrets::Load).unwrap().warnings;
        warnings.into_iter().filter(|warning| warning.contains(": browser[0]")).collect::<Vec<_>>()
    };
    assert_eq!(uncovered("h5.example.com"), [""; 0]);
    assert_eq!(uncovered("h5.example.com:8443"), [""; 0]);
    let found = uncovered("m.example.com");
    let expected = "base_url: no certificate in server.tls is valid for \"m.example.com\"";
    assert!(found.len() == 1 && found[0].ends_with(expected), "{found:?}");
}

#[test]
fn the_only_app_whose_users_send_codes_is_the_default() {
    let of = |text: &str| {
        let config = Config::parse("file", text, Secrets::Ignore).unwrap();
        let default = config.apps.iter().find(|app| app.is_default);
        default.map(|app| app.kind)
    };
    let text = valid().replace("default = true\n", "");
    assert_eq!(of(&valid()), Some(AppKind::MiniProgram));
    assert_eq!(of(&text), None);
    let mobile = "[[app]]\napp_id = \"wx0000000000000003\"\n\
                  app_secret = { env = \"MOBILE_SECRET\" }\nkind = \"mobile\"\n";
    assert_eq!(of(&text.replace(mobile, "")), Some(AppKind::MiniProgram));
}

#[test]
fn session_keys_without_a_mini_program_are_warned_of() {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    let text = text + "\n[open_data]\nenabled = true";
    assert_eq!(warnings(&text), [""; 0]);
    let mobile = text.replace("app_id = ", "kind = \"mobile\"\napp_id = ");
    let expected =
        "open_data.enabled: has no effect: only users of Mini Programs have session keys";
    assert_eq!(warnings(&mobile), [expected]);
}

#[test]
fn the_mini_program_that_scans_is_the_only_one_if_none_is_named() {
    let text = valid().replace("\napp_id = \"wx0123456789abcdef\"\nlifetime", "\nlifetime");
    let scan = Config::parse("file", &text, Secrets::Ignore).unwrap().scan.unwrap();
    assert_eq!(scan.app_id.as_str(), "wx0123456789abcdef");
}

#[test]
fn the_default_of_a_cookie_depends_on_its_host_and_the_cookie_is_a_carrier() {
    let text = fs::read_to_string("config/gateway.toml").unwrap();
    let parse = |text: &str| Config::parse("file", text, Secrets::Ignore).unwrap();
    assert!(!parse(&text).session.carriers.cookie);
    for (base_url, shown, cookie) in [
        ("https://H5.Example.com:443/", "https://h5.example.com", "__Host-wxgate"),
        ("https://h5.example.com:8443", "https://h5.example.com:8443", "__Host-wxgate"),
        ("http://localhost:80", "http://localhost", "wxgate"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "wxgate"),
        ("https://商店.example.com", "https://xn--czrs0t.example.com", "__Host-wxgate"),
    ] {
        let config = parse(&format!("{text}\n[[browser]]\nbase_url = \"{base_url}\""));
        let [browser] = config.browsers.as_slice() else { panic!("{base_url}") };
        assert_eq!((&*browser.base_url.to_string(), &*browser.cookie), (shown, cookie));
        assert_eq!(browser.authorize_base_url, "https://open.weixin.qq.com");
        assert!(config.session.carriers.cookie);
        let carriers = config.session.carrier_headers();
        assert!(carriers.iter().any(|name| name == "cookie"), "{carriers:?}");
    }
}

#[test]
fn check_says_what_only_one_gateway_knows() {
    let parse = |text: &str| Config::parse("file", text, Secrets::Ignore).unwrap().one_gateway();
    let plain = fs::read_to_string("config/gateway.toml").unwrap();
    assert_eq!(parse(&plain), None);
    assert!(parse(&format!("{plain}\n[ticket]\nenabled = true")).is_some());
    assert!(parse(&valid()).unwrap().contains("without [session.redis]"));
    assert_eq!(parse(&format!("{}\n[session.redis]\nurl = \"redis://127.0.0.1\"", valid())), None);
}
