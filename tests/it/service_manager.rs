//! The program under a service manager: what it reports, and the sockets that it is given.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self, UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use rustix::time::{ClockId, clock_gettime};

use crate::harness::PATIENCE;
use crate::harness::command::{Running, write_config, wxgate};
use crate::tls::https;

const SERVING: &str = "READY=1\nSTATUS=serving";

/// What a service manager receives.
struct Receiver(UnixDatagram);

impl Receiver {
    fn at(path: &Path) -> Self {
        Self::of(UnixDatagram::bind(path).unwrap())
    }

    fn of(socket: UnixDatagram) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn next(&self) -> String {
        let mut buffer = [0; 1024];
        let length = self.0.recv(&mut buffer).expect("a message");
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// What has arrived; for a program that has ended.
    fn rest(&self) -> Vec<String> {
        self.0.set_nonblocking(true).unwrap();
        let mut buffer = [0; 1024];
        let next = || self.0.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec());
        std::iter::from_fn(next).map(|message| String::from_utf8(message).unwrap()).collect()
    }
}

fn start(directory: &Path, changes: &str) -> (Running, Receiver) {
    let receiver = Receiver::at(&directory.join("notify"));
    let file = write_config(directory, changes);
    let mut command = wxgate();
    command.env("NOTIFY_SOCKET", directory.join("notify")).args(["run", "-c"]).arg(file);
    (Running::start(&mut command, true), receiver)
}

fn monotonic_microseconds() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

/// The status of the response.
fn get(mut connection: impl Read + Write, path: &str) -> String {
    write!(connection, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).unwrap();
    response.split(' ').nth(1).expect("a status line").to_owned()
}

fn connect(address: SocketAddr) -> TcpStream {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection
}

#[test]
fn the_gateway_reports_ready_when_it_serves_and_stopping_when_it_drains() {
    let directory = tempfile::tempdir().unwrap();
    let (mut gateway, receiver) = start(directory.path(), "endpoints.health = \"/health\"");
    assert_eq!(receiver.next(), SERVING);
    let (line, public) = gateway.started();
    let admin = line["admin"].as_str().unwrap().parse().unwrap();
    assert_eq!(get(connect(admin), "/readyz"), "200");
    assert_eq!(get(connect(public), "/health"), "200");

    gateway.signal("TERM");
    assert_eq!(receiver.next(), "STOPPING=1\nSTATUS=draining");
    assert_eq!(gateway.code(), 0);
    assert!(receiver.rest().is_empty());
}

#[test]
fn a_gateway_that_cannot_start_never_reports_ready() {
    let directory = tempfile::tempdir().unwrap();
    let (_taken, address) = tcp();
    // The last listener that is opened.
    let (mut gateway, receiver) = start(directory.path(), &format!("admin.listen = \"{address}\""));
    assert_eq!(gateway.code(), 1);
    assert!(receiver.rest().is_empty());
}

#[test]
fn a_reload_is_reported_with_its_time_and_its_end_even_if_it_was_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let (gateway, receiver) = start(directory.path(), "");
    assert_eq!(receiver.next(), SERVING);
    let rejected = "READY=1\nSTATUS=serving; the last reload was rejected, see the log";
    for (text, outcome) in
        [(None, SERVING), (Some("broken"), rejected), (Some("broken too"), rejected)]
    {
        if let Some(text) = text {
            std::fs::write(directory.path().join("gateway.toml"), text).unwrap();
        }
        let before = monotonic_microseconds();
        gateway.signal("HUP");
        let reloading = receiver.next();
        let lines: Vec<_> = reloading.lines().collect();
        let [state, time, _status] = lines[..] else { panic!("{reloading}") };
        assert_eq!(state, "RELOADING=1");
        let time: i64 = time.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!((before..=monotonic_microseconds()).contains(&time), "{time} after {before}");
        assert_eq!(receiver.next(), outcome);
    }
}

#[test]
fn the_watchdog_is_fed_only_by_the_process_that_it_watches() {
    for (pid, is_watched) in [("", true), ("$$", true), ("1", false)] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let receiver = Receiver::at(&path);
        let file = write_config(directory.path(), "");
        let setup = format!(
            "export NOTIFY_SOCKET={} WATCHDOG_USEC=10000\n{}",
            path.display(),
            if pid.is_empty() { String::new() } else { format!("export WATCHDOG_PID={pid}") }
        );
        let mut gateway = Running::start_by_shell(&setup, [None, None], &file);
        assert_eq!(receiver.next(), SERVING);
        if is_watched {
            for _ in 0..3 {
                assert_eq!(receiver.next(), "WATCHDOG=1");
            }
        }
        // A watched process tells the watchdog at once, and so before the end of a reload.
        gateway.signal("HUP");
        while receiver.next() != SERVING {}
        gateway.signal("TERM");
        assert_eq!(gateway.code(), 0);
        let told = receiver.rest().iter().any(|message| message == "WATCHDOG=1");
        assert!(is_watched || !told, "pid {pid}");
    }
}

/// A process of which this test is not the parent.
struct Stranger(u32);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", &self.0.to_string()]).status();
    }
}

/// A service manager waits at its stop only for a main process that is its child. The parent of a
/// process is another one as soon as its first parent has ended.
#[test]
fn an_upgrade_is_reported_by_the_old_process_and_the_new_one_is_not_its_child() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("upgrade.sock");
    let changes = format!("server.upgrade_socket = \"{}\"", socket.display());
    let (mut old, receiver) = start(directory.path(), &changes);
    assert_eq!(receiver.next(), SERVING);
    old.signal("QUIT");
    let message = receiver.next();
    let pid = message.strip_prefix("MAINPID=").unwrap_or_else(|| panic!("{message}"));
    let new = Stranger(pid.parse().unwrap());
    // The old process drains for a second.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    assert_ne!(parent.trim(), old.child.id().to_string());
    assert_eq!(receiver.next(), SERVING);
    assert_eq!(old.code(), 0);

    let term = Command::new("kill").args(["-TERM", pid]).status().unwrap();
    assert!(term.success());
    assert_eq!(receiver.next(), "STOPPING=1\nSTATUS=draining");
    drop(new);
    assert!(receiver.rest().is_empty());
}

#[test]
fn an_abstract_address_is_reported_to() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("wxgate-test-{:x}", rand::random::<u64>());
    let address = net::SocketAddr::from_abstract_name(&name).unwrap();
    let receiver = Receiver::of(UnixDatagram::bind_addr(&address).unwrap());
    let file = write_config(directory.path(), "");
    let mut command = wxgate();
    command.env("NOTIFY_SOCKET", format!("@{name}")).args(["run", "-c"]).arg(file);
    let _gateway = Running::start(&mut command, true);
    assert_eq!(receiver.next(), SERVING);
}

#[test]
fn a_service_manager_that_is_gone_does_no_harm() {
    for address in
        ["/nonexistent/notify", "@wxgate-test-nobody", "vsock:2:1", "neither-path-nor-name", ""]
    {
        let directory = tempfile::tempdir().unwrap();
        let file = write_config(directory.path(), "endpoints.health = \"/health\"");
        let mut command = wxgate();
        command.env("NOTIFY_SOCKET", address).env("WATCHDOG_USEC", "1000");
        let mut gateway = Running::start(command.args(["run", "-c"]).arg(file), true);
        let (_, public) = gateway.started();
        gateway.signal("HUP");
        gateway.line_with("configuration reloaded");
        assert_eq!(get(connect(public), "/health"), "200");
        gateway.signal("TERM");
        assert_eq!(gateway.code(), 0);
    }
}

const PASSED: &str = "export LISTEN_PID=$$ LISTEN_FDS=";

fn tcp() -> (OwnedFd, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener.into(), address)
}

/// Nothing else in the test listens there, so that who responds has taken the socket; and who has
/// not taken it cannot bind its address.
#[test]
fn a_passed_socket_is_used_for_the_listener_of_its_address() {
    let forward_auth = "server.trusted_proxies = [\"127.0.0.1\"]\nforward_auth.listen = ";
    let internal = "internal.token = { file = \"{dir}/any\" }\ninternal.listen = ";
    for (key, path, status) in [
        ("admin.listen = ", "/healthz", "200"),
        (forward_auth, "/", "403"),
        (internal, "/openapi.json", "200"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let ((public, public_address), (other, other_address)) = (tcp(), tcp());
        let changes = format!(
            "endpoints.health = \"/health\"\nserver.listen = \"{public_address}\"\n\
             {key}\"{other_address}\"\n"
        );
        let changes = changes.replace("{dir}", directory.path().to_str().unwrap());
        let file = write_config(directory.path(), &changes);
        // Not in the order of the configuration.
        let sockets = [Some(other), Some(public)];
        let mut gateway = Running::start_by_shell(&format!("{PASSED}2"), sockets, &file);
        let (line, first) = gateway.started();
        assert_eq!(first, public_address);
        assert!(line.to_string().contains(&other_address.to_string()), "{line}");
        assert_eq!(get(connect(public_address), "/health"), "200", "{key}");
        assert_eq!(get(connect(other_address), path), status, "{key}");
        gateway.signal("TERM");
        assert_eq!(gateway.code(), 0);
        assert!(TcpStream::connect(public_address).is_err(), "it is closed at the end");
    }
}

#[test]
fn a_passed_socket_is_used_for_a_redirect() {
    let directory = tempfile::tempdir().unwrap();
    let ((public, public_address), (redirect, address)) = (tcp(), tcp());
    let listeners =
        format!("server.listen = \"{public_address}\"\nserver.redirect = \"{address}\"\n");
    let (changes, _) = https(directory.path(), &listeners);
    let file = write_config(directory.path(), &changes);
    let sockets = [Some(redirect), Some(public)];
    let mut gateway = Running::start_by_shell(&format!("{PASSED}2"), sockets, &file);
    gateway.started();
    assert_eq!(get(connect(address), "/"), "308");
}

#[test]
fn a_passed_unix_socket_keeps_its_file_when_the_gateway_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("internal.sock");
    let socket = UnixListener::bind(&path).unwrap();
    let changes = format!(
        "internal.token = {{ file = \"{}/any\" }}\ninternal.listen = \"unix:{}\"",
        directory.path().display(),
        path.display()
    );
    let file = write_config(directory.path(), &changes);
    for _ in 0..2 {
        let passed = socket.try_clone().unwrap().into();
        let mut gateway =
            Running::start_by_shell(&format!("{PASSED}1"), [Some(passed), None], &file);
        gateway.started();
        let connection = UnixStream::connect(&path).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(get(connection, "/openapi.json"), "200");
        gateway.signal("TERM");
        assert_eq!(gateway.code(), 0);
    }
    // The service manager still listens.
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_passed_socket_that_fits_no_listener_ends_the_start_with_its_address() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, address) = tcp();
    let path = directory.path().join("s");
    let unix = UnixListener::bind(&path).unwrap();
    let file = write_config(directory.path(), "");
    for (passed, named) in
        [(socket, address.to_string()), (OwnedFd::from(unix), format!("unix:{}", path.display()))]
    {
        let mut gateway =
            Running::start_by_shell(&format!("{PASSED}1"), [Some(passed), None], &file);
        let line = gateway.line_with("cannot start");
        assert!(line.contains(&format!("listens on {named}, ")), "{line}");
        assert_eq!(gateway.code(), 1);
    }
}

#[test]
fn passed_descriptors_that_are_no_listeners_end_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, address) = tcp();
    let file = write_config(directory.path(), &format!("server.listen = \"{address}\""));
    let bound = UnixDatagram::bind(directory.path().join("datagrams")).unwrap();
    for (count, second, error) in [
        ("2", None, "received socket 2 is not a listening TCP or Unix socket"),
        ("2", Some(bound.into()), "received socket 2 is not a listening TCP or Unix socket"),
        ("99999999", None, "LISTEN_FDS: \"99999999\" is not a number of sockets"),
        ("two", None, "LISTEN_FDS: \"two\" is not a number of sockets"),
    ] {
        let sockets = [Some(socket.try_clone().unwrap()), second];
        let mut gateway = Running::start_by_shell(&format!("{PASSED}{count}"), sockets, &file);
        gateway.line_with(error);
        assert_eq!(gateway.code(), 1);
    }
}

#[test]
fn sockets_that_were_passed_to_another_process_are_not_used() {
    for setup in ["export LISTEN_FDS=1 LISTEN_PID=1", "export LISTEN_FDS=1; unset LISTEN_PID"] {
        let directory = tempfile::tempdir().unwrap();
        let (socket, address) = tcp();
        // Used or not, this socket would fit no listener and end the start.
        let file = write_config(directory.path(), "");
        let mut gateway = Running::start_by_shell(setup, [Some(socket), None], &file);
        let (_, public) = gateway.started();
        assert_ne!(public, address);
    }
}
