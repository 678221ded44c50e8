//! Third-party programs that tests start, such as nginx and Node.
//!
//! `deploy/dev test` installs them; if one is missing, a test fails and names it.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::PATIENCE;

/// A running server, which ends with the test.
pub struct Program {
    child: Child,
    pub port: u16,
    directory: tempfile::TempDir,
}

impl Program {
    /// The file in which a service records the requests that it received.
    pub fn log(&self) -> PathBuf {
        self.directory.path().join("trusted")
    }
}

impl Drop for Program {
    /// On SIGTERM a server also ends its children.
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    // A server that root has started reads it as another user.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).unwrap();
    std::fs::write(directory.path().join("trusted"), "").unwrap();
    directory
}

/// A script of `tests/peers`, which prints its port.
pub fn script(program: &str, name: &str) -> Program {
    let directory = directory();
    let mut child = Command::new(program)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(name))
        .arg(directory.path().join("trusted"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|_| panic!("{program} runs (deploy/dev test installs it)"));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Program { child, port: line.trim().parse().unwrap(), directory }
}

/// A server that cannot choose a free port itself.
pub fn server(programs: &[&str], write_config: impl Fn(&Path, u16) -> Vec<String>) -> Program {
    for _ in 0..10 {
        let directory = directory();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let arguments = write_config(directory.path(), port);
        drop(free);
        let child = programs.iter().find_map(|program| {
            // Apache signals its whole process group when it ends.
            let mut command = Command::new(program);
            // Caddy saves its last configuration.
            command.env("XDG_CONFIG_HOME", directory.path());
            command.env("XDG_DATA_HOME", directory.path());
            command.args(&arguments).stderr(Stdio::piped()).process_group(0).spawn().ok()
        });
        let child = child
            .unwrap_or_else(|| panic!("none of {programs:?} runs (deploy/dev test installs them)"));
        let mut service = Program { child, port, directory };
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Ok(Some(_)) = service.child.try_wait() {
                break;
            }
            if TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok() {
                return service;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut errors = String::new();
        let _ = service.child.kill();
        let _ = service.child.stderr.take().unwrap().read_to_string(&mut errors);
        assert!(errors.contains("in use"), "{programs:?} do not start: {errors}");
    }
    panic!("no port for {programs:?}")
}

/// nginx with these directives in its `http` block.
pub fn nginx(http: impl Fn(&Path, u16) -> String) -> Program {
    server(&["nginx", "/usr/sbin/nginx"], |directory, port| {
        let shown = directory.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {shown}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {shown}/pid; error_log stderr;
            events {{ worker_connections 256; }}
            http {{ {temporary} {} }}",
            http(directory, port)
        );
        std::fs::write(directory.join("nginx.conf"), config).unwrap();
        let config = format!("{shown}/nginx.conf");
        ["-p", &shown.to_string(), "-c", &config, "-e", "stderr"].map(str::to_owned).to_vec()
    })
}
