//! The program `wxgate` as a child process.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{PATIENCE, canary, config_text};

pub fn wxgate() -> Command {
    Command::new(env!("CARGO_BIN_EXE_wxgate"))
}

/// A running program that does not outlive its test.
pub struct Running {
    pub child: Child,
    lines: BufReader<Box<dyn Read + Send>>,
    /// All output so far.
    pub transcript: String,
    is_gateway: bool,
}

impl Running {
    pub fn start(command: &mut Command, reads_stderr: bool) -> Self {
        let (out, err) = (Stdio::piped(), Stdio::piped());
        let mut child = command.stdout(out).stderr(err).stdin(Stdio::null()).spawn().unwrap();
        let lines: Box<dyn Read + Send> = match reads_stderr {
            true => Box::new(child.stderr.take().unwrap()),
            false => Box::new(child.stdout.take().unwrap()),
        };
        let is_gateway = command.get_args().next().is_some_and(|first| first == "run");
        Self { child, lines: BufReader::new(lines), transcript: String::new(), is_gateway }
    }

    /// `run`, started by a shell that has set the environment and the descriptors from 3 on, as a
    /// service manager does: `$$` is the process's id, and the two sockets are 0 and 1 at first.
    pub fn start_by_shell(setup: &str, sockets: [Option<OwnedFd>; 2], file: &Path) -> Self {
        let [first, second] = sockets.map(|socket| socket.map_or_else(Stdio::null, Stdio::from));
        let script =
            format!("exec 3<&0 4<&1 0</dev/null 1>/dev/null\n{setup}\nexec \"$0\" run -c \"$1\"");
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_wxgate")).arg(file);
        let mut child = command.stdin(first).stdout(second).stderr(Stdio::piped()).spawn().unwrap();
        let lines: Box<dyn Read + Send> = Box::new(child.stderr.take().unwrap());
        Self { child, lines: BufReader::new(lines), transcript: String::new(), is_gateway: true }
    }

    /// Reads up to a line that contains `text`.
    pub fn line_with(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let read = self.lines.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "no line with {text}: {}", self.transcript);
            self.transcript.push_str(&line);
        }
        line
    }

    /// Waits until the gateway has started: the fields of its first line, and where it listens.
    pub fn started(&mut self) -> (serde_json::Value, SocketAddr) {
        let line: serde_json::Value = serde_json::from_str(&self.line_with("started")).unwrap();
        let first = line["public"].as_str().unwrap().split(", ").next().unwrap();
        let address = first.parse().unwrap();
        (line, address)
    }

    /// Reads the rest of the output of a program that has ended.
    pub fn read_to_end(&mut self) -> String {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        self.transcript.push_str(&rest);
        rest
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    pub fn code(&mut self) -> i32 {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().expect("an exit, not a signal");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The sandbox and the demo print the secret that they are given.
        if self.is_gateway {
            canary::search("the program", &self.transcript);
        }
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `run` with a file of this text.
pub fn write_config(directory: &Path, changes: &str) -> std::path::PathBuf {
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let text = config_text(directory, "http://127.0.0.1:1", nowhere, changes);
    let file = directory.join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    file
}
