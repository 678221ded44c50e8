//! Whatever a configuration file holds, it is a configuration or has problems, each with a
//! place in it; and a secret that was put there by mistake is never shown.
//!
//! An input is the text of a file; after a `+`, of one with [`BASE`] at its end. Where a secret is put into it, and how it is written, is
//! chosen by a hash of the text, so that files of all kinds can serve as they are.

#![cfg_attr(fuzzing, no_main)]

use std::hash::{DefaultHasher, Hash, Hasher};

use wxgate::config::{Config, Problems, Secrets};

/// What a file must have.
const BASE: &str = r#"
[server]
listen = "127.0.0.1:0"
[[app]]
app_id = "wx1"
app_secret = { env = "X" }
[[upstream]]
name = "u"
servers = ["127.0.0.1:1"]
[[route]]
path = "/"
upstream = "u"
"#;

/// What WeChat gives out as an app's secret.
const CANARIES: [&str; 2] =
    ["c0ffee00c0ffee00c0ffee00c0ffee00", "0badc0de0badc0de0badc0de0badc0de"];

/// How an operator may write a secret into the file. `@` stands for it.
const PLANTED: [&str; 20] = [
    "app_secret = \"@\"",
    "app_secret = '@'",
    "app_secret=\"@\" # the real one",
    "  app_secret = @",
    "app_secret: @",
    "app_secret: \"@\",",
    "app_secret @",
    "app_secret = \"@",
    "app_secret = \"\"\"@\"\"\"",
    "app_secret = [\"@\"]",
    "app_secret = { value = \"@\" }",
    "app_secret = { env = \"@\" }",
    "app_secret = { file = '@', env = '@' }",
    "app_secret = {\n  env = \"@\",\n}",
    "app_sekret_token = \"@\"",
    "appsecret = \"@\"",
    "[[app]]\napp_id = \"wx9\"\napp_secret = \"@\"",
    "[log]\nopenid_key = \"@\"",
    "[wechat]\nproxy = \"http://relay:@@10.0.0.9:3128\"",
    "# app_secret = \"@\"",
];

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| check(input));

pub fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let text = &*match text.strip_prefix('+') {
        Some(rest) => format!("{rest}{BASE}"),
        None => text.to_owned(),
    };
    if let Err(problems) = Config::parse("FUZZ", text, Secrets::Ignore) {
        check_problems(&problems, text);
    }

    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let hash = hasher.finish();
    let canary = CANARIES[hash as usize % 2];
    if text.to_ascii_lowercase().contains(&canary[..8]) {
        return;
    }
    let mut choose = hash >> 1;
    let mut choice = |among: usize| {
        let chosen = choose % among as u64;
        choose /= among as u64;
        usize::try_from(chosen).expect("less than a length")
    };
    let planted = PLANTED[choice(PLANTED.len())];
    // A proxy's URL has a second `@`, which belongs to it.
    let planted = match planted.split_once("@@") {
        Some((before, after)) => format!("{before}{canary}@{after}"),
        None => planted.replace('@', canary),
    };
    let mut lines: Vec<&str> = text.split('\n').collect();
    let place = choice(lines.len() + 1);
    lines.insert(place, &planted);
    let text = lines.join("\n");
    match Config::parse("FUZZ", &text, Secrets::Ignore) {
        Ok(config) => assert!(!format!("{config:?}").contains(canary), "{text}"),
        Err(problems) => {
            let shown = check_problems(&problems, &text);
            assert!(!shown.contains(canary), "{shown}\nof\n{text}");
        }
    }
}

/// Every problem has a place that is there. Returns what is shown.
fn check_problems(problems: &Problems, text: &str) -> String {
    let shown = problems.to_string();
    assert_eq!(format!("{problems:?}"), shown);
    let lines: Vec<&str> = text.split('\n').collect();
    let mut count = 0;
    for line in shown.lines() {
        let printable = |c: char| !c.is_control();
        assert!(line.chars().all(printable), "{line:?}");
        let Some(place) = line.strip_prefix("FUZZ:") else {
            if line.get(5..8) != Some(" | ") {
                // In a file that the text includes.
                let mut parts = line.split(':').skip(1);
                let mut number = || parts.next()?.parse::<usize>().ok();
                assert!(number().is_some() && number().is_some(), "{line:?}");
                count += 1;
            }
            continue;
        };
        count += 1;
        let mut parts = place.splitn(3, ':');
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (Some(row), Some(column)) = (number(), number()) else {
            panic!("no place: {line:?}");
        };
        let message = parts.next().unwrap_or_default();
        assert!(message.starts_with(' ') && message.trim().len() > 2, "{line:?}");
        assert!((1..=lines.len()).contains(&row), "{line:?} of {} lines", lines.len());
        assert!((1..=lines[row - 1].chars().count() + 1).contains(&column), "{line:?}");
    }
    assert!(count > 0);
    assert_eq!(count, problems.len());
    shown
}
