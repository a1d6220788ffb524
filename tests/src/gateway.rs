//! The gateway under test.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::{Child, PATIENCE, binary, free_port, shell, wait_for};

/// A running `sluicegate run` with everything on free ports.
#[derive(Debug)]
pub struct Gateway {
    pub child: Child,
    pub folder: TempDir,
    pub options: Options,
    notify: UnixDatagram,
}

/// What a test sets; the rest is the same for all.
#[derive(Debug, Clone)]
pub struct Options {
    pub id: String,
    pub mqtt: u16,
    pub coap: u16,
    pub tcp: u16,
    pub udp: u16,
    pub media: u16,
    pub admin: u16,
    /// More configuration, TOML.
    pub more: String,
    /// Environment of the process.
    pub environment: Vec<(String, String)>,
    /// A program to run the binary under (an emulator), with its arguments.
    pub under: Vec<String>,
    pub binary: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            id: "gate-t".to_owned(),
            mqtt: free_port(),
            coap: free_port(),
            tcp: free_port(),
            udp: free_port(),
            media: free_port(),
            admin: free_port(),
            more: String::new(),
            environment: Vec::new(),
            under: Vec::new(),
            binary: binary(),
        }
    }
}

impl Options {
    /// More configuration.
    pub fn with(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self.more.push('\n');
        self
    }

    /// An upstream at this local port.
    pub fn upstream(self, port: u16, dialect: &str) -> Self {
        self.with(&format!(
            "[[upstream]]\nname = \"up\"\nurl = \"mqtt://127.0.0.1:{port}\"\ndialect = \"{dialect}\"\nbatch_ms = 50"
        ))
    }

    fn toml(&self, folder: &Path) -> String {
        let Self { id, mqtt, coap, tcp, udp, media, admin, more, .. } = self;
        let folder = folder.display();
        format!(
            r#"
[gateway]
id = "{id}"
models = "{folder}/models"
[store]
path = "{folder}/state"
[admin]
listen = "127.0.0.1:{admin}"
[[adapter]]
name = "mqtt"
listen = "tcp://127.0.0.1:{mqtt}"
protocol = "mqtt"
allow_anonymous = true
auto_register = true
product = "generic"
[[adapter]]
name = "coap"
listen = "udp://127.0.0.1:{coap}"
protocol = "coap"
allow_anonymous = true
auto_register = true
product = "generic"
[[adapter]]
name = "tcp"
listen = "tcp://127.0.0.1:{tcp}"
protocol = "raw"
allow_anonymous = true
auto_register = true
product = "generic"
[[adapter]]
name = "udp"
listen = "udp://127.0.0.1:{udp}"
protocol = "raw"
allow_anonymous = true
auto_register = true
product = "generic"
[[adapter]]
name = "media"
listen = "tcp://127.0.0.1:{media}"
protocol = ["rtmp", "http-flv", "hls"]
allow_anonymous = true
{more}
"#
        )
    }
}

impl Gateway {
    /// Starts it and waits until it says that it is ready.
    pub fn start(options: Options) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        std::fs::create_dir_all(folder.path().join("models")).expect("the models' folder");
        Self::start_in(folder, options)
    }

    fn start_in(folder: TempDir, options: Options) -> Self {
        let config = folder.path().join("sluicegate.toml");
        std::fs::write(&config, options.toml(folder.path())).expect("the configuration");
        let socket = folder.path().join("notify");
        drop(std::fs::remove_file(&socket));
        let notify = UnixDatagram::bind(&socket).expect("a notify socket");
        let child = spawn(&options, &config, &socket, folder.path());
        let mut gateway = Self { child, folder, options, notify };
        gateway.wait_ready();
        gateway
    }

    /// The `READY=1` that systemd would get.
    fn wait_ready(&mut self) {
        self.notify.set_read_timeout(Some(Duration::from_millis(200))).expect("a time-out");
        let mut message = [0; 256];
        wait_for("READY=1", PATIENCE * 2, || {
            assert!(self.child.is_running(), "the gateway ended at start:\n{}", self.log());
            let len = self.notify.recv(&mut message).ok()?;
            String::from_utf8_lossy(&message[..len]).contains("READY=1").then_some(())
        });
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// SIGKILL at this moment, then a new start in the same folder.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.restart();
    }

    pub fn kill(&mut self) {
        self.child.signal(rustix::process::Signal::KILL);
        drop(self.child.inner.wait());
    }

    /// Starts again in the same folder.
    pub fn restart(&mut self) {
        let config = self.folder.path().join("sluicegate.toml");
        std::fs::write(&config, self.options.toml(self.folder.path())).expect("the configuration");
        let socket = self.folder.path().join("notify");
        self.child = spawn(&self.options, &config, &socket, self.folder.path());
        self.wait_ready();
    }

    /// SIGTERM; must end well and soon.
    pub fn stop(mut self) -> String {
        self.terminate();
        self.log()
    }

    /// SIGTERM; must end well and soon. Its folder stays, for a [`restart`](Self::restart).
    pub fn terminate(&mut self) {
        self.child.signal(rustix::process::Signal::TERM);
        let status = self.child.wait(Duration::from_secs(10));
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
    }

    /// A GET of the admin port; the body of a 200 answer.
    pub fn get(&self, path: &str) -> String {
        let (status, body) = self.request("GET", path, "");
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// A request to the admin port: status and body.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let port = self.options.admin;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the admin port");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"
        )
        .expect("to send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body =
            if head.to_lowercase().contains("transfer-encoding: chunked") { dechunk(body) } else { body.to_owned() };
        (status, body)
    }

    /// A device reports each `n` of this range over MQTT; over when all are acknowledged.
    pub fn count_up(&self, range: std::ops::RangeInclusive<u64>) {
        let lines: Vec<_> = range.map(|n| serde_json::json!({ "properties": { "n": n } }).to_string()).collect();
        let file = self.folder.path().join("lines");
        std::fs::write(&file, lines.join("\n")).expect("the folder");
        let (port, file) = (self.options.mqtt, file.display());
        shell(&format!("mosquitto_pub -p {port} -q 1 -i t-1 -t /generic/t-1/properties/report -l < {file}"));
    }

    /// The live streams, as the API lists them.
    pub fn streams(&self) -> Vec<Value> {
        serde_json::from_str(&self.get("/api/v1/streams")).expect("a list of streams")
    }

    /// Waits for a stream of this name of which `enough` is known.
    pub fn wait_stream(&self, name: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let found = || self.streams().into_iter().find(|stream| stream["name"] == name && enough(stream));
        wait_for(&format!("stream {name}"), PATIENCE, found)
    }

    /// One figure of `/metrics`: the line that begins with this text.
    pub fn metric(&self, line: &str) -> f64 {
        let text = self.get("/metrics");
        text.lines().find(|l| l.starts_with(line)).and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// Resident memory, KiB.
    pub fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid())).expect("its status");
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
    }
}

fn spawn(options: &Options, config: &Path, socket: &Path, folder: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).expect("a log");
    let mut arguments = options.under.clone();
    arguments.push(options.binary.display().to_string());
    arguments.extend(["run".to_owned(), "--config".to_owned(), config.display().to_string()]);
    let mut command = Command::new(&arguments[0]);
    command.args(&arguments[1..]).env("NOTIFY_SOCKET", socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.envs(options.environment.iter().cloned());
    Child::start(&mut command)
}

fn dechunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((len, rest)) = body.split_once("\r\n") {
        let len = usize::from_str_radix(len.trim(), 16).unwrap_or(0);
        if len == 0 || rest.len() < len {
            break;
        }
        text.push_str(&rest[..len]);
        body = rest.get(len + 2..).unwrap_or("");
    }
    text
}
