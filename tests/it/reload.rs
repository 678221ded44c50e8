//! Reloads: a changed configuration is applied while the gateway runs.

mod watch;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Notify;

use crate::harness::client::Connection;
use crate::harness::process_log;
use crate::harness::upstream::{Reply, Upstream};
use crate::harness::{APP, OTHER_APP, RELOAD_SUCCESSFUL, RELOAD_TIME, Stack, openid, until};

const OPEN: &str = r#"
    [[route]]
    path = "/"
    upstream = "recorder"
    auth = "none"
"#;

/// The process log lines about a stack's files.
fn lines(stack: &Stack) -> Vec<Value> {
    let directory = stack.directory.path().display().to_string();
    let log = process_log::text_after(0);
    let lines = log.lines().filter(|line| line.contains(&directory));
    lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"].clone()).collect()
}

/// The problems among them, as `check` shows them.
fn problems(stack: &Stack) -> String {
    let problem = |line: &Value| {
        let text = |field: &str| match &line[field] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let key = Some(text("key") + ": ").filter(|key| key != ": ").unwrap_or_default();
        let [file, at, column] = ["file", "line", "column"].map(text);
        format!("{file}:{at}:{column}: {key}{} | {}\n", text("problem"), text("help"))
    };
    let lines = lines(stack);
    lines.iter().filter(|line| line.get("problem").is_some()).map(problem).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_routes_upstreams_apps_and_limits() {
    let stack = Stack::start().await;
    let other = Upstream::start().await;
    assert_eq!(stack.get("/other").send().await.status, 401);
    let changes = format!(
        r#"
        [limits]
        max_target = "64B"
        [[app]]
        app_id = "{APP}"
        app_secret = {{ file = "{{dir}}/wechat-secret" }}
        [[app]]
        app_id = "{OTHER_APP}"
        app_secret = {{ file = "{{dir}}/wechat-secret" }}
        [[upstream]]
        name = "recorder"
        servers = ["{{upstream}}"]
        [[upstream]]
        name = "other"
        servers = ["{}"]
        [[route]]
        path = "/"
        upstream = "recorder"
        [[route]]
        path = "/other"
        upstream = "other"
        auth = "none"
        "#,
        other.address
    );
    assert!(stack.reload(&changes).await);
    assert_eq!(stack.get("/other").send().await.status, 200);
    assert_eq!(other.requests().len(), 1);
    assert_eq!(stack.get(&format!("/{}", "x".repeat(80))).send().await.status, 431);
    let login = serde_json::json!({ "code": "user-anna-1", "app_id": OTHER_APP });
    assert_eq!(stack.post("/login").json(&login).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_a_reload_and_a_new_ttl_is_for_new_ones() {
    let stack = Stack::start().await;
    let old = stack.login("anna").await;
    assert!(stack.reload("session.ttl = \"3h\"").await);
    let new = stack.login("bert").await;
    let is_live = async |token: &str| stack.get("/").token(token).send().await.status == 200;
    for _ in 0..3 {
        assert!(is_live(&old).await && is_live(&new).await);
        stack.clock.advance(Duration::from_secs(3600));
    }
    assert!(is_live(&old).await, "it began with a longer ttl");
    assert!(!is_live(&new).await);
}

/// Sessions of a removed app are rejected, and valid again if the app comes back.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_of_a_removed_app_are_rejected() {
    let stack = Stack::start().await;
    let token = stack.login("anna").await;
    let other = format!(
        "[[app]]\napp_id = \"{OTHER_APP}\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}"
    );
    assert!(stack.reload(&other).await);
    stack.get("/").token(&token).send().await.assert_error(401, "session_expired", "login");
    stack.get("/optional").token(&token).send().await.assert_error(401, "session_expired", "login");
    assert!(stack.reload("").await);
    assert_eq!(stack.get("/").token(&token).send().await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_logs_which_files_and_what_has_changed() {
    let stack = Stack::start().await;
    let changes = format!(
        "[limits]\nmax_target = \"64B\"\n\
         [[app]]\napp_id = \"{OTHER_APP}\"\napp_secret = {{ file = \"{{dir}}/wechat-secret\" }}\n\
         [[upstream]]\nname = \"recorder\"\nservers = [\"{{upstream}}\"]\n\
         [[upstream]]\nname = \"shop\"\nservers = [\"{{upstream}}\"]\n\
         [[route]]\npath = \"/\"\nupstream = \"shop\"\n\
         [[route]]\npath = \"/none\"\nupstream = \"recorder\"\nauth = \"none\"\n\
         [[route]]\npath = \"/new\"\nupstream = \"shop\"\n"
    );
    assert!(stack.reload(&changes).await);
    let line = lines(&stack).into_iter().find(|line| line.get("added").is_some()).unwrap();
    assert_eq!(line["message"], "configuration reloaded");
    let file = stack.config_file().display().to_string();
    assert!(line["files"].as_str().unwrap().contains(&file), "{line}");
    assert_eq!(line["added"], format!("app {OTHER_APP}, upstream shop, route /new"));
    assert_eq!(line["removed"], format!("app {APP}, route /optional"));
    assert_eq!(line["changed"], "[limits], route /");
    assert!(stack.reload(&format!("{changes}# a comment")).await);
    let lines = lines(&stack);
    let last = lines.last().unwrap();
    assert_eq!(last["message"], "configuration reloaded without changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_reload_is_one_event_for_each_problem_and_one_as_text() {
    let stack = Stack::start().await;
    let secret = "a-literal-that-nobody-may-see";
    let changes = format!("server.treads = 1\nsession.ttl = 5\nadmin.token = \"{secret}\"\n");
    assert!(!stack.reload(&changes).await);
    let lines = lines(&stack);
    let problems: Vec<_> = lines.iter().filter(|line| line.get("problem").is_some()).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    for (problem, key) in problems.iter().zip(["admin.token", "server.treads", "session.ttl"]) {
        assert_eq!(problem["key"], key);
        assert_eq!(problem["file"], stack.config_file().display().to_string());
        assert!(problem["line"].as_u64().unwrap() > 0 && problem["column"].as_u64().unwrap() > 0);
        assert!(!problem.to_string().contains('\n') && !problem.to_string().contains(secret));
    }
    let last = lines.last().unwrap();
    assert_eq!(last["message"], "reload rejected; still running the previous configuration");
}

/// A file is applied as a whole or not at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_changes_nothing_and_the_log_says_what_is_wrong() {
    let stack = Stack::start().await;
    let taken = stack.metric(RELOAD_TIME).await;
    for (changes, problem) in [
        ("server.treads = 1", "server.treads: unknown key"),
        ("session.ttl = 5", "session.ttl: expected"),
        (
            "app = [{ app_id = \"wx1\", app_secret = { file = \"{dir}/absent\" } }]",
            "app[0].app_secret: file",
        ),
        ("[[route]]\npath = \"/\"\nupstream = \"absent\"", "no upstream named"),
    ] {
        // So that the failure can be noticed.
        assert!(stack.reload("").await);
        assert!(!stack.reload(&format!("{changes}\n")).await, "{changes}");
        assert!(problems(&stack).contains(problem), "{problem}");
        assert_eq!(stack.get("/").send().await.status, 401);
        assert_eq!(stack.get("/none").send().await.status, 200);
    }
    assert!(stack.reload("").await);
    fs::write(stack.config_file(), "[server\nlisten").unwrap();
    assert!(!stack.order_reload().await);
    assert!(problems(&stack).contains("gateway.toml:1:8: not TOML"));
    fs::remove_file(stack.config_file()).unwrap();
    assert_eq!(stack.get("/none").send().await.status, 200);
    assert!(stack.reload("").await, "the corrected file is loaded");
    assert_eq!(stack.metric(RELOAD_SUCCESSFUL).await, 1.0);
    assert!(stack.metric(RELOAD_TIME).await > taken);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_restart_only_key_is_rejected_by_name() {
    let stack = Stack::start().await;
    for (key, change) in [
        ("server.listen", "server.listen = \"127.0.0.1:1\""),
        ("server.threads", "server.threads = 2"),
        ("admin.listen", "admin.listen = \"127.0.0.1:1\""),
        ("session.capacity", "session.capacity = 5"),
        ("session.idle_timeout", "session.idle_timeout = \"1m\""),
        ("limits.max_connections", "limits.max_connections = 5"),
        ("log.access", "log.access = \"off\""),
        ("log.format", "log.format = \"text\""),
    ] {
        assert!(stack.reload("").await);
        // Together with a change that could be applied.
        assert!(!stack.reload(&format!("{change}\nsession.header = \"X-Other\"")).await, "{key}");
        let rejection = format!("{key}: cannot be changed by a reload");
        assert!(problems(&stack).contains(&rejection), "{rejection}");
        assert!(problems(&stack).contains("restart the gateway"));
        assert!(!problems(&stack).contains("upgrade"), "nobody promises one");
        let token = stack.login("anna").await;
        assert_eq!(stack.get("/").token(&token).send().await.status, 200);
    }
}

/// A request that is in flight during a reload ends with its old configuration.
#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_one_configuration() {
    let stack = Stack::start().await;
    let token = stack.login("anna").await;
    let release = Arc::new(Notify::new());
    let released = release.clone();
    let late =
        b"HTTP/1.1 200 OK\r\nX-Other: secret\r\nX-OpenId: own\r\nContent-Length: 4\r\n\r\nlate";
    stack.upstream.reply(move |_| Reply::When(released.clone(), late.to_vec()));
    let mut busy = Connection::open(stack.gateway).await;
    busy.send(&stack.get("/").token(&token).bytes()).await;
    stack.until_metric("wxgate_http_requests_in_flight", 1.0).await;
    assert!(stack.reload("identity.openid_header = \"X-Other\"").await);
    release.notify_one();
    let response = busy.response(false).await;
    assert_eq!(response.header("x-other"), Some("secret"), "the old names are removed");
    assert_eq!(response.header("x-openid"), None);
    // The next one, on the same connection, gets the new configuration.
    release.notify_one();
    busy.send(&stack.get("/").token(&token).bytes()).await;
    let response = busy.response(false).await;
    assert_eq!(response.header("x-other"), None);
    assert_eq!(response.header("x-openid"), Some("own"));
    let received = stack.upstream.requests();
    assert_eq!(received[0].all("x-openid"), [openid("anna")]);
    assert_eq!(received[1].all("x-other"), [openid("anna")]);
    assert!(received[1].all("x-openid").is_empty());
}

/// Reading a pipe would block, and with it all later reloads.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_in_place_of_a_file_is_rejected_and_delays_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let zeros = PathBuf::from("/dev/zero");
    let stack = Stack::start().await;
    for file in [pipe, zeros] {
        for changes in [
            format!("include = [{file:?}]"),
            format!("[[app]]\napp_id = \"{APP}\"\napp_secret = {{ file = {file:?} }}"),
            format!("wechat.ca_file = {file:?}"),
            format!("[[route]]\npath = \"/\"\nrespond = {{ file = {file:?} }}"),
        ] {
            assert!(!stack.reload(&changes).await, "{changes}");
            assert!(stack.reload("").await, "{changes}");
        }
        fs::remove_file(stack.config_file()).unwrap();
        symlink(&file, stack.config_file()).unwrap();
        assert!(!stack.order_reload().await);
        fs::remove_file(stack.config_file()).unwrap();
        assert!(stack.reload("").await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn included_files_add_routes_and_are_watched() {
    let watched = "server.watch_interval = \"10ms\"\n";
    let stack = Stack::start_with(&format!("include = [\"conf.d/*.toml\"]\n{watched}")).await;
    let folder = stack.directory.path().join("conf.d");
    fs::create_dir(&folder).unwrap();
    let service = Upstream::start().await;
    let text = format!(
        "[[upstream]]\nname = \"shop\"\nservers = [\"{}\"]\n\
         [[route]]\npath = \"/shop\"\nupstream = \"shop\"\nauth = \"none\"\n",
        service.address
    );
    fs::write(folder.join("shop.toml"), &text).unwrap();
    until("a new file is found", async || stack.get("/shop").send().await.status == 200).await;
    assert!(!service.requests().is_empty());
    // Not meant to be read.
    fs::write(folder.join(".#shop.toml"), "half").unwrap();
    fs::write(folder.join("shop.toml"), text.replace("none", "required")).unwrap();
    until("a change is found", async || stack.get("/shop").send().await.status == 401).await;
    fs::write(folder.join("shop.toml"), format!("{text}[session]\nttl = \"1h\"\n")).unwrap();
    stack.until_metric(RELOAD_SUCCESSFUL, 0.0).await;
    assert!(problems(&stack).contains("shop.toml:8:2: session: is not allowed in an included"));
    fs::remove_file(folder.join("shop.toml")).unwrap();
    stack.until_metric(RELOAD_SUCCESSFUL, 1.0).await;
    assert_eq!(stack.get("/shop").send().await.status, 401, "only the route of / is left");
}

/// Rate limits and recent codes survive a reload.
#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_rates_and_responses_of_codes_that_it_does_not_change() {
    let rates = "[[route]]\npath = \"/\"\nupstream = \"recorder\"\nauth = \"none\"\n\
                 rate_per_address = \"2/h\"\n";
    let stack = Stack::start_with(rates).await;
    let code = format!("user-anna-{}", rand::random::<u64>());
    let token = stack.try_login(&code).await.json()["token"].clone();
    assert_eq!(stack.get("/").send().await.status, 200);
    assert!(stack.reload(&format!("session.ttl = \"5h\"\n{rates}")).await);
    assert_eq!(stack.try_login(&code).await.json()["token"], token);
    assert_eq!(stack.get("/").send().await.status, 200);
    assert_eq!(stack.get("/").send().await.status, 429);
    assert!(stack.reload(&rates.replace("2/h", "3/h")).await);
    assert_eq!(stack.get("/").send().await.status, 200, "another rate begins anew");
}

#[tokio::test(flavor = "multi_thread")]
async fn reloads_under_load_fail_no_request() {
    let stack = Arc::new(Stack::start().await);
    let token = stack.login("anna").await;
    let (ends, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients = (0..4).map(|number| {
        let (stack, token, ends) = (stack.clone(), token.clone(), ends.clone());
        let served = served.clone();
        tokio::spawn(async move {
            let mut connection = Connection::open(stack.gateway).await;
            while !ends.load(Ordering::Relaxed) {
                connection.send(&stack.get("/").token(&token).bytes()).await;
                let response = connection.response(false).await;
                assert_eq!(response.status, 200, "{}", response.text());
                if response.header("connection") == Some("close") {
                    connection = Connection::open(stack.gateway).await;
                }
                if served.fetch_add(1, Ordering::Relaxed) % 50 == number {
                    stack.login(&format!("user{number}")).await;
                }
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    for round in 0..30 {
        let before = served.load(Ordering::Relaxed);
        let upstreams = format!(
            "[[upstream]]\nname = \"recorder\"\nservers = [\"{{upstream}}\"]\n\
             read_timeout = \"{}s\"\n",
            30 + round
        );
        assert!(stack.reload(&upstreams).await);
        until("requests go on", async || served.load(Ordering::Relaxed) > before + 20).await;
    }
    ends.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
}
