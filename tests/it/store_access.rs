//! How gateways connect to a shared store: as an ACL user, over TLS, and before it is available.

use std::path::Path;
use std::time::Duration;

use redis::cmd;
use sha2::{Digest, Sha256};

use crate::harness::certificate::Authority;
use crate::harness::client;
use crate::harness::fault_proxy::{FaultProxy, Way};
use crate::harness::redis::{RedisServer, cluster_with, free_port, sentinels_with};
use crate::harness::upstream::Reply;
use crate::harness::{OPERATOR, Stack, openid, process_log};
use crate::shared_store::{gateway, status, unready_gateway, until_status};
use crate::stores::name_in_the_log;

const PASSWORD: &str = "a password of the store";

/// Writes a file of `deploy/redis` as an operator would: with a digest, and another user who may
/// do everything.
fn acl_file(directory: &Path, name: &str) -> String {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/redis").join(name);
    let shipped = std::fs::read_to_string(shipped).unwrap();
    let users: Vec<_> = shipped.lines().filter(|line| !line.starts_with('#')).collect();
    let digest: String =
        Sha256::digest(PASSWORD).iter().map(|byte| format!("{byte:02x}")).collect();
    let users = users.join("\n").replace(&"0".repeat(64), &digest);
    assert!(users.contains(&digest), "{users}");
    let path = directory.join(name);
    std::fs::write(&path, format!("user default on nopass ~* &* +@all\n{users}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

fn acl_denials(server: &RedisServer) -> Vec<redis::Value> {
    cmd("ACL").arg("LOG").query(&mut server.connection()).unwrap()
}

/// Makes two gateways use every command, as the user of the shipped files.
async fn do_everything(url: &str, servers: &[&RedisServer]) {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let password = format!("{{ file = \"{}\" }}", password.display());
    let mut more = format!(
        "session.ttl = \"1h\"\nsession.idle_timeout = \"30m\"\nsession.max_per_user = 2\n\
         admin.token = {{ file = \"{{dir}}/operator\" }}\n\
         log.openid_key = {{ file = \"{{dir}}/operator\" }}\nopen_data.enabled = true\nticket.enabled = true\n\
         session.redis.username = \"wxgate\"\nsession.redis.password = {password}\n"
    );
    if url.contains("sentinel") {
        more += &format!(
            "session.redis.sentinel_username = \"wxgate\"\n\
             session.redis.sentinel_password = {password}\n"
        );
    }
    more += crate::cookie_jar::JAR;
    let (here, there) = (gateway(url, &more).await, gateway(url, &more).await);
    for stack in [&here, &there] {
        stack.upstream.reply(|_| Reply::ok("Set-Cookie: sid=1\r\n", ""));
    }
    let first = here.login("alice").await;
    assert_eq!(status(&there, &first).await, 200);
    let second = there.login("alice").await;
    for stack in [&here, &there] {
        stack.clock.advance(Duration::from_secs(19 * 60));
        assert_eq!(status(stack, &second).await, 200);
    }
    let third = here.login("alice").await;
    for body in [r#"{"path":"/a"}"#, r#"{"path":"/a","reuse":true}"#] {
        let response = here.post("/ticket").token(&third).body(body).send().await;
        let ticket = response.json()["ticket"].as_str().unwrap().to_owned();
        let used = format!("/a?wxgate_ticket={ticket}");
        assert_eq!(there.get(&used).send().await.status, 200);
    }
    until_status(&there, &first, 401).await;
    assert_eq!(there.post("/logout").token(&second).send().await.status, 204);
    let all = format!("/sessions?openid={}", openid("alice"));
    let operator = async |method, path: &str| {
        here.request(method, path).bearer(OPERATOR).send_to_admin().await
    };
    let listed = operator("GET", &all).await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(listed.json()["sessions"].as_array().unwrap().len(), 1);
    let named = format!("/sessions?user={}", name_in_the_log(&here, &third).await);
    let listed = operator("GET", &named).await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(listed.json()["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(operator("DELETE", &format!("{named}&block=24h")).await.status, 204);
    until_status(&there, &third, 401).await;
    for stack in [&here, &there] {
        let rejected = stack.try_login(&format!("user-alice-{}", stack.gateway.port())).await;
        rejected.assert_error(403, "login_refused", "none");
    }
    assert!(operator("GET", &named).await.json()["blocked_until"].is_string());
    assert_eq!(operator("DELETE", &format!("{named}&block=0s")).await.status, 204);
    let fourth = there.login("alice").await;
    assert_eq!(operator("DELETE", &all).await.status, 204);
    until_status(&there, &fourth, 401).await;
    for server in servers {
        assert_eq!(acl_denials(server), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_user_may_do_what_a_gateway_does_on_a_server() {
    let directory = tempfile::tempdir().unwrap();
    let users = acl_file(directory.path(), "users.acl");
    let server = RedisServer::start_with(&["--aclfile", &users]);
    do_everything(&format!("redis://127.0.0.1:{}", server.port), &[&server]).await;
}

/// As with the file of an earlier version.
#[tokio::test(flavor = "multi_thread")]
async fn without_scan_permission_only_lookups_of_users_by_name_fail() {
    let directory = tempfile::tempdir().unwrap();
    let users = acl_file(directory.path(), "users.acl");
    let shipped = std::fs::read_to_string(&users).unwrap();
    std::fs::write(&users, shipped.replace(" +scan", "")).unwrap();
    let server = RedisServer::start_with(&["--aclfile", &users]);
    let password = directory.path().join("password");
    std::fs::write(&password, PASSWORD).unwrap();
    let more = format!(
        "admin.token = {{ file = \"{{dir}}/operator\" }}\n\
         log.openid_key = {{ file = \"{{dir}}/operator\" }}\n\
         session.redis.username = \"wxgate\"\n\
         session.redis.password = {{ file = \"{}\" }}\n",
        password.display()
    );
    let stack = gateway(&format!("redis://127.0.0.1:{}", server.port), &more).await;
    let token = stack.login("alice").await;
    let operator = async |method, path: &str| {
        stack.request(method, path).bearer(OPERATOR).send_to_admin().await
    };
    let position = process_log::position();
    for method in ["GET", "DELETE"] {
        let rejected = operator(method, "/sessions?user=AAAAAAAAAAAAAAAA").await;
        assert_eq!(
            (rejected.status, &rejected.json()["error"]),
            (503, &"store_unavailable".into())
        );
    }
    let log = process_log::text_after(position);
    assert!(log.contains("cannot search the session store") && log.contains("scan"), "{log}");
    assert_eq!(status(&stack, &token).await, 200);
    let block = format!("/sessions?openid={}&block=1h", openid("alice"));
    assert_eq!(operator("DELETE", &block).await.status, 204);
    assert_eq!(status(&stack, &token).await, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_users_may_do_what_a_gateway_does_under_sentinels() {
    let directory = tempfile::tempdir().unwrap();
    let users = acl_file(directory.path(), "users.acl");
    let primary = RedisServer::start_with(&["--aclfile", &users]);
    let _replica = RedisServer::replica_of(&primary);
    let users = acl_file(directory.path(), "sentinel-users.acl");
    let sentinels = sentinels_with(primary.port, 1, &["--aclfile", &users]);
    let addresses = sentinels.each_ref().map(|one| format!("127.0.0.1:{}", one.port)).join(",");
    let [one, two, three] = &sentinels;
    let url = format!("redis+sentinel://{addresses}/main");
    do_everything(&url, &[&primary, one, two, three]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shipped_user_may_do_what_a_gateway_does_on_a_cluster() {
    let directory = tempfile::tempdir().unwrap();
    let users = acl_file(directory.path(), "users.acl");
    let nodes = cluster_with(&["--aclfile", &users]);
    let addresses: Vec<_> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let nodes: Vec<_> = nodes.iter().collect();
    do_everything(&format!("redis+cluster://{}", addresses.join(",")), &nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_used_over_tls_only_with_a_trusted_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::root("ours"), Authority::root("another"));
    ours.issue(&["localhost"]).write(directory.path(), "store", &[]);
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(file("ours.pem"), ours.certificate.pem()).unwrap();
    std::fs::write(file("another.pem"), other.certificate.pem()).unwrap();
    let port = free_port();
    let _server = RedisServer::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("store.crt"),
        "--tls-key-file",
        &file("store.key"),
        "--tls-auth-clients",
        "no",
        "--tls-ca-cert-file",
        &file("ours.pem"),
    ]);
    let trusting = |name: &str| format!("session.redis.ca_file = \"{}\"", file(name));
    let url = format!("rediss://localhost:{port}");
    let (here, there) =
        (gateway(&url, &trusting("ours.pem")).await, gateway(&url, &trusting("ours.pem")).await);
    let token = here.login("alice").await;
    assert_eq!(status(&there, &token).await, 200);
    assert_eq!(here.post("/logout").token(&token).send().await.status, 204);
    until_status(&there, &token, 401).await;

    let wrong_name = format!("rediss://127.0.0.1:{port}");
    for (url, trusted) in [(&url, "another.pem"), (&wrong_name, "ours.pem")] {
        let stack = unready_gateway(url, &trusting(trusted)).await;
        stack.until_metric("wxgate_store_up", 0.0).await;
        assert_unready(&stack).await;
    }
}

async fn assert_unready(stack: &Stack) {
    assert_eq!(client::get(stack.admin, "/readyz").await.status, 503);
    let made_up = "A".repeat(43);
    stack.get("/").token(&made_up).send().await.assert_error(503, "store_unavailable", "retry");
    let rejected = stack.try_login("user-alice-1").await;
    rejected.assert_error(503, "store_unavailable", "retry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_ready_only_once_the_store_was_reached() {
    let server = RedisServer::start();
    let door = FaultProxy::to(server.port).await;
    for way in [Way::Cut, Way::Silent] {
        door.set(way);
        let stack = unready_gateway(&format!("redis://127.0.0.1:{}", door.port), "").await;
        assert_unready(&stack).await;
        assert_eq!(client::get(stack.admin, "/healthz").await.status, 200);
        door.set(Way::Open);
        stack.until_ready().await;
        stack.login("alice").await;
    }
}
