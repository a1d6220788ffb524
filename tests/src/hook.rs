//! A service that is asked by hooks: it answers as it is told and keeps what it heard.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use crate::{PATIENCE, wait_for};

/// How a hook answers about one stream.
#[derive(Debug, Clone, Copy)]
pub enum HookReply {
    Status(u16),
    /// Nothing at all, for so long.
    Hang(Duration),
}

/// One request: path with query, and body.
#[derive(Debug, Clone)]
pub struct Asked {
    pub target: String,
    pub body: Value,
}

/// An HTTP server on a port of its own. Streams it has no word for are allowed.
#[derive(Debug, Clone)]
pub struct HookServer {
    pub port: u16,
    replies: Arc<Mutex<HashMap<String, HookReply>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl HookServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = Self { port, replies: Arc::default(), asked: Arc::default() };
        let own = server.clone();
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let server = own.clone();
                std::thread::spawn(move || while server.answer(&socket).is_some() {});
            }
        });
        server
    }

    /// How it answers to this event about this stream from now on.
    pub fn reply(&self, event: &str, stream: &str, reply: HookReply) {
        self.replies.lock().expect("no panic").insert(format!("{event} {stream}"), reply);
    }

    /// Everything asked and told of this event, so far.
    pub fn asked(&self, event: &str) -> Vec<Asked> {
        let path = format!("/{event}");
        let all = self.asked.lock().expect("no panic");
        all.iter().filter(|asked| asked.target.split('?').next() == Some(&path)).cloned().collect()
    }

    /// The first that is asked or told of this event about this stream.
    pub fn until(&self, event: &str, stream: &str) -> Asked {
        wait_for(&format!("{event} of {stream}"), PATIENCE, || {
            self.asked(event).into_iter().find(|asked| asked.body["stream"] == stream)
        })
    }

    /// The lines of `[hooks]` for these events.
    pub fn toml(&self, events: &[&str]) -> String {
        let port = self.port;
        let line = |event: &&str| format!("{event} = \"http://127.0.0.1:{port}/{event}\"\n");
        format!("[hooks]\n{}", events.iter().map(line).collect::<String>())
    }

    /// One request and its answer; `None` at the connection's end.
    fn answer(&self, mut socket: &TcpStream) -> Option<()> {
        let mut bytes = Vec::new();
        let (head, length) = loop {
            let mut buffer = [0; 4096];
            let read = socket.read(&mut buffer).ok().filter(|read| *read > 0)?;
            bytes.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head.to_lowercase().lines().find_map(|l| l.strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.expect("a length");
            if body.len() >= length {
                break (head.to_owned(), length);
            }
        };
        assert!(head.starts_with("POST "), "{head}");
        let target = head.split(' ').nth(1)?.to_owned();
        let body: Value = serde_json::from_slice(&bytes[bytes.len() - length..]).expect("JSON");
        let event = target.trim_start_matches('/').split('?').next()?.to_owned();
        let key = format!("{event} {}", body["stream"].as_str()?);
        self.asked.lock().expect("no panic").push(Asked { target, body });
        let reply = self.replies.lock().expect("no panic").get(&key).copied().unwrap_or(HookReply::Status(200));
        match reply {
            HookReply::Status(status) => write!(socket, "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\n\r\n").ok(),
            HookReply::Hang(time) => {
                std::thread::sleep(time);
                None
            }
        }
    }
}
