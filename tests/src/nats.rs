//! Debian's nats-server with JetStream, and as much of its protocol as a test needs.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Child, PATIENCE, free_port, wait_for};

#[derive(Debug)]
pub struct NatsServer {
    pub port: u16,
    folder: TempDir,
    child: Option<Child>,
}

impl NatsServer {
    pub fn start() -> Self {
        let mut server = Self { port: free_port(), folder: TempDir::new().expect("a folder"), child: None };
        server.resume();
        server
    }

    /// Starts it (again) on the same port, with what it kept.
    pub fn resume(&mut self) {
        let mut command = Command::new("/usr/sbin/nats-server");
        command.args(["-js", "-a", "127.0.0.1", "-p", &self.port.to_string(), "-sd"]).arg(self.folder.path());
        command.args(["--user", "gate", "--pass", "sesame"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(Child::start(&mut command));
        wait_for("nats-server", PATIENCE, || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    pub fn pause(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.signal(rustix::process::Signal::TERM);
            child.wait(Duration::from_secs(10));
        }
    }

    /// One request and its answer, on a connection of its own.
    pub fn request(&self, subject: &str, body: &str) -> Value {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("nats-server");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut writer = stream.try_clone().expect("its other half");
        let mut reader = BufReader::new(stream);
        let len = body.len();
        write!(
            writer,
            "CONNECT {{\"user\":\"gate\",\"pass\":\"sesame\",\"verbose\":false}}\r\nSUB box 1\r\nPUB {subject} box {len}\r\n{body}\r\n"
        )
        .expect("to ask");
        let mut line = String::new();
        while !line.starts_with("MSG ") {
            line.clear();
            assert!(reader.read_line(&mut line).expect("an answer") > 0, "nats-server hung up");
            assert!(!line.starts_with("-ERR"), "{line}");
        }
        let len: usize = line.trim().rsplit(' ').next().and_then(|n| n.parse().ok()).expect("its length");
        let mut answer = vec![0; len];
        reader.read_exact(&mut answer).expect("the answer");
        serde_json::from_slice(&answer).expect("JSON")
    }
}
