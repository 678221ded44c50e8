//! The names of the headers in `[identity]`: which are rejected, and what has no effect.

use std::fs;

use wxgate::config::{Config, Problem, Problems, Secrets};

/// The smallest file with these sections, which begin with keys of the root.
fn parse(sections: &str) -> Result<Config, Problems> {
    let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
    Config::parse("file", &format!("{sections}\n{smallest}"), Secrets::Ignore)
}

/// Keys and messages of the problems.
fn problems(sections: &str) -> Vec<String> {
    let shown = |problem: Problem<'_>| format!("{}: {}", problem.key, problem.message);
    parse(sections).err().map_or_else(Vec::new, |found| found.iter().map(shown).collect())
}

/// Keys and messages of the warnings.
fn warnings(sections: &str) -> Vec<String> {
    let shown = |warning: &String| warning.split_once(": ").unwrap().1.to_owned();
    parse(sections).unwrap().warnings.iter().map(shown).collect()
}

const JWT: &str = "[identity.jwt]\nkey = { file = \"key.pem\" }\nissuer = \"https://wxgate\"\n";
const HOOK: &str = "[login.hook]\nurl = \"https://users.internal/login\"\n\
                    token = { file = \"token\" }\n";

#[test]
fn two_headers_that_services_could_not_distinguish_are_rejected() {
    const SAME: &str = "services could not distinguish it from";
    for (sections, expected) in [
        (
            format!("[identity]\nuser_id_header = \"x_openid\"\n{HOOK}"),
            format!("identity.user_id_header: {SAME} identity.openid_header"),
        ),
        (
            // The default of a header that is on.
            format!("[identity]\nopenid_header = \"X-User-Id\"\n{HOOK}"),
            format!("identity.openid_header: {SAME} identity.user_id_header"),
        ),
        (
            format!("session.header = \"X.User.Id\"\n{HOOK}"),
            format!("session.header: {SAME} identity.user_id_header"),
        ),
        (
            format!("{JWT}header = \"X_OpenId\""),
            format!("identity.jwt.header: {SAME} identity.openid_header"),
        ),
        (
            format!("{JWT}header = \"X_User_Id\"\n{HOOK}"),
            format!("identity.jwt.header: {SAME} identity.user_id_header"),
        ),
        (
            format!("session.header = \"X-Identity\"\n{JWT}header = \"X_Identity\""),
            format!("identity.jwt.header: {SAME} session.header"),
        ),
        (
            // Reserved even without the signed identity.
            "[identity]\nopenid_header = \"X_Wxgate_Jwt\"".to_owned(),
            format!("identity.openid_header: {SAME} identity.jwt.header"),
        ),
        (
            "session.header = \"X-Wxgate-Jwt\"".to_owned(),
            format!("session.header: {SAME} identity.jwt.header"),
        ),
        (
            "[identity]\npreset = \"wxcloudrun\"\nopenid_header = \"X-WX-OPENID\"".to_owned(),
            format!("identity.openid_header: {SAME} one that identity.preset writes"),
        ),
        (
            "[session]\nheader = \"X_WX_SOURCE\"\n[identity]\npreset = \"wxcloudrun\"".to_owned(),
            format!("session.header: {SAME} one that identity.preset writes"),
        ),
    ] {
        assert_eq!(problems(&sections), [expected], "{sections}");
    }
    // A header that is off has no name.
    for sections in
        ["[identity]\nopenid_header = \"X-User-Id\"", "[identity]\nopenid_header = \"X-WX-OPENID\""]
    {
        assert_eq!(problems(sections), [""; 0], "{sections}");
    }
}

#[test]
fn the_headers_of_the_signed_identity_and_the_user_id_cannot_have_another_meaning() {
    let taken = |name: &str| format!("\"{name}\" already has another meaning");
    for (sections, key, name) in [
        (format!("{JWT}header = \"Cookie\""), "identity.jwt.header", "cookie"),
        (format!("{JWT}header = \"X-Forwarded-User\""), "identity.jwt.header", "x-forwarded-user"),
        (
            format!("[identity]\nuser_id_header = \"Authorization\"\n{HOOK}"),
            "identity.user_id_header",
            "authorization",
        ),
    ] {
        assert_eq!(problems(&sections), [format!("{key}: {}", taken(name))], "{sections}");
    }
    // The two names of the contract, and any other that is free.
    for (session, header) in [
        ("", "header = \"x-wxgate-jwt\""),
        ("", "header = \"X-Identity\""),
        ("session.carriers = [\"header\"]\n", "header = \"Authorization\""),
    ] {
        let sections = format!("{session}{JWT}{header}");
        assert_eq!(problems(&sections), [""; 0], "{sections}");
    }
}

#[test]
fn authorization_cannot_have_both_the_clients_token_and_the_signed_identity() {
    let expected = "identity.jwt.header: services get the signed identity in it, so clients \
                    cannot send their token in it";
    for session in ["", "session.carriers = [\"header\", \"bearer\"]\n"] {
        let sections = format!("{session}{JWT}header = \"authorization\"");
        assert_eq!(problems(&sections), [expected], "{sections}");
    }
    let sections = format!(
        "session.carriers = [\"header\"]\n{JWT}header = \"Authorization\"\n[[route]]\n\
         path = \"/x\"\nupstream = \"shop\"\nremove_request_headers = [\"Authorization\"]"
    );
    assert_eq!(
        problems(&sections),
        ["route[0].remove_request_headers: \"authorization\" is reserved for the gateway"]
    );
}

#[test]
fn a_user_id_header_without_a_hook_and_a_preset_without_a_mini_program_are_warned_of() {
    assert_eq!(
        warnings("[identity]\nuser_id_header = \"X-OpenId\""),
        ["identity.user_id_header: has no effect without [login.hook]"]
    );
    let preset = "[identity]\npreset = \"wxcloudrun\"";
    assert_eq!(warnings(preset), [""; 0]);
    let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
    let mobile = smallest.replace("[[app]]\n", "[[app]]\nkind = \"mobile\"\n");
    assert_ne!(mobile, smallest);
    let config = Config::parse("file", &format!("{preset}\n{mobile}"), Secrets::Ignore).unwrap();
    assert_eq!(
        config.warnings,
        ["file:2: identity.preset: has no effect: no [[app]] is of the kind mini_program"]
    );
}

#[test]
fn a_decision_that_is_cached_for_longer_than_its_signed_identity_is_valid_is_warned_of() {
    let smallest = fs::read_to_string("tests/config/valid/smallest.toml").unwrap();
    let smallest = smallest.replace("[server]\n", "[server]\ntrusted_proxies = [\"10.0.0.1\"]\n");
    let warnings = |cache: &str, jwt: &str| {
        let forward_auth = format!("[forward_auth]\nlisten = \"127.0.0.1:8081\"\n{cache}");
        let text = format!("{forward_auth}\n{jwt}\n{smallest}");
        Config::parse("file", &text, Secrets::Ignore).unwrap().warnings
    };
    let expected = "file:3: forward_auth.cache: the signed identity of a cached decision may have \
                    expired: use less than half of identity.jwt.lifetime";
    assert_eq!(warnings("cache = \"30s\"", JWT), [expected]);
    for (cache, jwt) in [("cache = \"29s\"", JWT), ("", JWT), ("cache = \"1m\"", "")] {
        assert_eq!(warnings(cache, jwt), [""; 0], "{cache} {jwt}");
    }
}
