//! Chromium, driven through Debian's chromedriver by the W3C WebDriver protocol.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Child, PATIENCE, free_port, root, wait_for};

/// The page's own FLV player, unpacked into `folder`.
pub fn mpegts_js(folder: &Path) -> PathBuf {
    let packed = root().join("gateway/src/admin/page/vendor/mpegts.js.gz");
    let output = Command::new("gzip").args(["-dc"]).arg(packed).output().expect("gzip");
    assert!(output.status.success(), "gzip: {}", String::from_utf8_lossy(&output.stderr));
    let file = folder.join("mpegts.js");
    std::fs::write(&file, output.stdout).expect("the player");
    file
}

/// One headless browser with one window.
#[derive(Debug)]
pub struct Browser {
    port: u16,
    session: String,
    _driver: Child,
    _profile: TempDir,
}

impl Browser {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Started with more switches.
    pub fn start_with(switches: &[&str]) -> Self {
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = Child::start(&mut command);
        wait_for("chromedriver", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).ok());
        let profile = TempDir::new().expect("a temporary folder");
        let data = format!("--user-data-dir={}", profile.path().display());
        let mut arguments = vec![
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--mute-audio",
            "--autoplay-policy=no-user-gesture-required",
            "--window-size=1280,1400",
            data.as_str(),
        ];
        arguments.extend(switches);
        let wish = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments, "binary": "/usr/bin/chromium"},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let mut browser = Self { port, session: String::new(), _driver: driver, _profile: profile };
        let answer = browser.call("POST", "/session", &wish);
        browser.session.push_str(answer["sessionId"].as_str().expect("a session"));
        browser
    }

    pub fn open(&self, url: &str) {
        self.act("POST", "/url", &json!({"url": url}));
    }

    /// The value of a JavaScript function body.
    pub fn run(&self, script: &str) -> Value {
        self.act("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Waits until a JavaScript function body gives something other than null and false. What the page says instead goes
    /// into the failure.
    pub fn until(&self, what: &str, patience: Duration, script: &str) -> Value {
        let started = Instant::now();
        loop {
            let value = self.run(script);
            if !value.is_null() && value != Value::Bool(false) {
                return value;
            }
            if started.elapsed() > patience {
                let page = self.run("return document.body.innerText");
                panic!("waited {patience:?} for {what}; the console: {:?}; the page: {page}", self.console());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the page wrote to its console, errors of the network included, as `LEVEL text`.
    pub fn console(&self) -> Vec<String> {
        let entries = self.act("POST", "/se/log", &json!({"type": "browser"}));
        let line = |entry: &Value| format!("{} {}", entry["level"].as_str()?, entry["message"].as_str()?).into();
        entries.as_array().map(|all| all.iter().filter_map(line).collect()).unwrap_or_default()
    }

    /// Keeps a picture of the window.
    pub fn screenshot(&self, file: &Path) {
        let answer = self.act("GET", "/screenshot", &Value::Null);
        let picture = decode_base64(answer.as_str().expect("a picture"));
        std::fs::write(file, picture).expect("to keep the picture");
    }

    fn act(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("chromedriver");
        stream.set_read_timeout(Some(PATIENCE * 2)).expect("a time-out");
        let len = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\
             Connection: close\r\n\r\n{body}",
            self.port
        )
        .expect("to ask");
        let mut answer = Vec::new();
        // The length is said; the connection may stay open.
        let mut buffer = vec![0; 65_536];
        loop {
            let count = stream.read(&mut buffer).expect("an answer");
            answer.extend_from_slice(&buffer[..count]);
            if count == 0 || is_whole(&answer) {
                break;
            }
        }
        let text = String::from_utf8_lossy(&answer);
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        let value: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{path}: {e}: {body}"));
        assert!(value["value"]["error"].is_null(), "{path}: {}", value["value"]);
        value["value"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium too; a failing test has nothing to add.
        if !self.session.is_empty() && !std::thread::panicking() {
            self.act("DELETE", "", &Value::Null);
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let len = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    len.is_some_and(|len| body.len() >= len)
}

fn decode_base64(text: &str) -> Vec<u8> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => continue,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
