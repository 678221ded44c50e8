//! `wxgate check --live`: a call to WeChat with the secret of each app.

use std::net::SocketAddr;
use std::process::Output;

use crate::command::start_sandbox;
use crate::harness::command::{text, wxgate};
use crate::harness::{canary, client, config_text};

#[tokio::test(flavor = "multi_thread")]
async fn a_live_check_shows_whether_wechat_accepts_the_app_and_uses_no_code() {
    let check = |address: SocketAddr, changes: &str| {
        let directory = tempfile::tempdir().unwrap();
        let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let url = format!("http://{address}");
        let text = config_text(directory.path(), &url, nowhere, changes);
        let file = directory.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let output = wxgate().args(["check", "--live", "-c"]).arg(&file).output().unwrap();
        let shown = text_of(&output);
        canary::search("the program", &shown);
        (output.status.code().unwrap(), shown)
    };
    let (_good, address) = start_sandbox(&[]);
    let (code, shown) = check(address, "");
    assert!(code == 0 && shown.contains("WeChat accepts the app"), "{shown}");
    let stats = client::get(address, "/sandbox/stats").await.json();
    assert_eq!(stats["exchanges"], 1);

    let native = format!(
        "[[app]]\napp_id = \"{}\"\nkind = \"mobile\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}",
        crate::harness::APP
    );
    let (code, shown) = check(address, &native);
    assert!(code == 0 && shown.contains("WeChat accepts the app"), "{shown}");
    let stats = client::get(address, "/sandbox/stats").await.json();
    assert_eq!(stats["calls"]["/sns/oauth2/access_token"], 1);

    let (_other, address) = start_sandbox(&["--app", &format!("{}:other", crate::harness::APP)]);
    let (code, shown) = check(address, "");
    assert!(code == 1 && shown.contains("errcode 40125") && shown.contains("rid "), "{shown}");
    assert!(shown.contains("the AppSecret is wrong"), "{shown}");
    let (_unlisted, address) = start_sandbox(&["--refuse-ip"]);
    let (code, shown) = check(address, "");
    assert!(code == 1 && shown.contains("40164") && shown.contains("203.0.113.7"), "{shown}");
    assert!(shown.contains("IP allow list"), "{shown}");
    let (code, shown) = check("127.0.0.1:1".parse().unwrap(), "");
    let cause = "cannot be reached: connection refused (http://127.0.0.1:1)";
    assert!(code == 1 && shown.contains(cause), "{shown}");
    // The path of a relay may be a secret.
    canary::plant("a-relay-s-secret-path");
    let changes = "wechat.fallback_base_url = \"http://127.0.0.1:1/a-relay-s-secret-path\"";
    let (code, shown) = check(address, changes);
    assert!(code == 1 && shown.contains("http://127.0.0.1:1: WeChat cannot be reached"), "{shown}");
    let (_fallback, fallback) = start_sandbox(&[]);
    let changes = format!("wechat.fallback_base_url = \"http://{fallback}\"");
    let (code, shown) = check("127.0.0.1:1".parse().unwrap(), &changes);
    let names = |address: &str, outcome: &str| {
        shown.lines().any(|line| line.contains(address) && line.contains(outcome))
    };
    assert!(code == 1 && names("127.0.0.1:1:", "cannot be reached"), "{shown}");
    assert!(names(&fallback.to_string(), "WeChat accepts the app"), "{shown}");
    let usage = wxgate().args(["check", "--live", "--without-secrets", "-c", "x"]).output();
    assert_eq!(usage.unwrap().status.code(), Some(2));
}

fn text_of(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}
