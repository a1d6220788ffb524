//! A real broker as the upstream, and our reference consumer behind it.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Child, PATIENCE, binary, free_port, python, root, wait_for};

/// Debian's mosquitto, with persistence, on a free port.
#[derive(Debug)]
pub struct Mosquitto {
    pub port: u16,
    /// More lines of its configuration: another listener, a password file.
    more: String,
    folder: TempDir,
    child: Option<Child>,
}

impl Mosquitto {
    pub fn start() -> Self {
        Self::with("")
    }

    /// With more lines of configuration.
    pub fn with(more: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let mut broker = Self { port: free_port(), more: more.to_owned(), folder, child: None };
        broker.resume();
        broker
    }

    /// Starts it (again) on the same port, with what it kept.
    pub fn resume(&mut self) {
        let folder = self.folder.path();
        let config = format!(
            "listener {} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\nuser root\n\
             max_queued_messages 0\nmax_inflight_messages 100\n{}\n",
            self.port,
            folder.display(),
            self.more
        );
        let file = folder.join("mosquitto.conf");
        std::fs::write(&file, config).expect("its configuration");
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(Child::start(&mut command));
        wait_for("mosquitto", PATIENCE, || TcpStream::connect(("127.0.0.1", self.port)).ok());
    }

    /// Stops it as its service would: what it took is kept.
    pub fn pause(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.signal(rustix::process::Signal::TERM);
            // It writes its store first, which a flood makes hundreds of megabytes.
            child.wait(PATIENCE * 2);
        }
    }
}

/// A consumer on a broker, `sluicegate receive --json` or another: what it prints, line by line.
#[derive(Debug)]
pub struct Receiver {
    child: Child,
    lines: mpsc::Receiver<Value>,
    /// Everything received so far.
    pub seen: Vec<Value>,
}

impl Receiver {
    pub fn start(port: u16, more: &[&str]) -> Self {
        let mut command = Command::new(binary());
        command.args(["receive", "--json", "--url", &format!("mqtt://127.0.0.1:{port}")]).args(more);
        Self::of(command)
    }

    /// The consumer in Python that was written from the documentation alone.
    pub fn python(port: u16) -> Self {
        Self::python_with(port, &[])
    }

    pub fn python_with(port: u16, more: &[&str]) -> Self {
        let folder = root().join("tests/interop");
        let python = python("interop", &folder.join("requirements.txt"));
        let mut command = Command::new(python);
        command.arg(folder.join("consume.py")).args(["--broker", &format!("127.0.0.1:{port}")]).args(more);
        Self::of(command)
    }

    /// A Sparkplug host application made of `pysparkplug`.
    pub fn sparkplug(port: u16, group: &str) -> Self {
        let folder = root().join("tests/interop");
        let python = python("sparkplug", &folder.join("sparkplug.txt"));
        let mut command = Command::new(python);
        command.arg(folder.join("sparkplug.py")).args(["--port", &port.to_string(), "--group", group]);
        Self::of(command)
    }

    /// One JSON line to its standard input.
    pub fn tell(&mut self, order: &Value) {
        let stdin = self.child.inner.stdin.as_mut().expect("piped");
        writeln!(stdin, "{order}").expect("it listens");
    }

    fn of(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = Child::start(&mut command);
        let stdout = child.inner.stdout.take().expect("piped");
        let stderr = child.inner.stderr.take().expect("piped");
        let (sender, lines) = mpsc::sync_channel(1_000_000);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Ok(json) = serde_json::from_str(&line) {
                    drop(sender.send(json));
                }
            }
        });
        let (ready, subscribed) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if line.contains("subscribed") {
                    let _sent = ready.try_send(());
                }
                eprintln!("consumer: {line}");
            }
        });
        subscribed.recv_timeout(PATIENCE).expect("`receive` subscribes");
        Self { child, lines, seen: Vec::new() }
    }

    /// Waits until a message fits; it and everything before it is in `seen`.
    pub fn until(&mut self, what: &str, patience: Duration, fits: impl Fn(&Value) -> bool) -> Value {
        if let Some(found) = self.seen.iter().find(|m| fits(m)) {
            return found.clone();
        }
        let deadline = Instant::now() + patience;
        while let Ok(json) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.seen.push(json.clone());
            if fits(&json) {
                return json;
            }
        }
        panic!(
            "waited {patience:?} for {what}; received {} messages, the last: {:?}",
            self.seen.len(),
            self.seen.last()
        );
    }

    /// The next message, which is not kept in `seen`.
    pub fn next(&mut self, patience: Duration) -> anyhow::Result<Value> {
        self.lines.recv_timeout(patience).with_context(|| format!("nothing came within {patience:?}"))
    }

    /// Takes in what has been printed by now.
    pub fn drain(&mut self) {
        while let Ok(json) = self.lines.try_recv() {
            self.seen.push(json);
        }
    }

    /// SIGINT; returns its exit status after its own check of the sequence numbers.
    pub fn finish(mut self) -> (std::process::ExitStatus, Vec<Value>) {
        self.child.signal(rustix::process::Signal::INT);
        let status = self.child.wait(Duration::from_secs(10));
        while let Ok(json) = self.lines.recv_timeout(Duration::from_millis(200)) {
            self.seen.push(json);
        }
        (status, std::mem::take(&mut self.seen))
    }
}
