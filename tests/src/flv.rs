//! Viewers of our own: FLV over HTTP and over WebSocket, down to the units.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::thread::JoinHandle;

use bytes::{Bytes, BytesMut};
use protocols::media::flv::{Demux, TagType, take_tag};
use protocols::media::{Container, Kind, Unit};

use crate::{PATIENCE, Publisher};

/// FLV bytes as they came, in tags.
#[derive(Debug)]
pub struct Flv {
    /// The first two bytes of each video tag's body: how the codec is said.
    pub heads: Vec<[u8; 2]>,
    pub units: Vec<Unit>,
    /// Of the file header: 1 for video, 4 for audio.
    pub flags: u8,
}

impl Flv {
    /// Takes file bytes apart; a tag cut off at the end is left out.
    pub fn parse(bytes: &[u8]) -> Self {
        let flags = bytes.get(4).copied().filter(|_| bytes.starts_with(b"FLV")).unwrap_or(0);
        let (mut file, mut demux) = (BytesMut::from(bytes), Demux::default());
        let (mut heads, mut units) = (Vec::new(), Vec::new());
        while let Some(tag) = take_tag(&mut file).expect("FLV") {
            if tag.tag == TagType::Video {
                heads.extend(tag.body.first_chunk());
            }
            units.extend(demux.unit(tag.tag, tag.dts_ms, tag.body).expect("a unit"));
        }
        Self { heads, units, flags }
    }

    pub fn read(file: &Path) -> Self {
        Self::parse(&std::fs::read(file).expect("an FLV file"))
    }

    /// Everything a GET of HTTP/1.0 gives until the gateway ends it.
    pub fn get(port: u16, path: &str) -> Self {
        Self::answer(ask(port, path))
    }

    /// The frames of the same, for who asks before the stream begins: it has asked when this returns.
    pub fn frames_to_come(port: u16, path: &str) -> JoinHandle<Vec<Unit>> {
        let socket = ask(port, path);
        std::thread::spawn(move || Self::answer(socket).frames())
    }

    fn answer(mut socket: TcpStream) -> Self {
        let mut answer = Vec::new();
        socket.read_to_end(&mut answer).expect("a body");
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer[..head]));
        Self::parse(&answer[head + 4..])
    }

    /// The frames: what is neither configuration nor metadata.
    pub fn frames(&self) -> Vec<Unit> {
        self.units.iter().filter(|unit| unit.kind != Kind::Config).cloned().collect()
    }
}

/// A client of RFC 6455, just enough to watch.
#[derive(Debug)]
pub struct WebSocket {
    socket: TcpStream,
    unread: BytesMut,
}

impl WebSocket {
    /// Opens it; the key and its answer are the example of the standard.
    pub fn open(port: u16, path: &str) -> Self {
        let mut socket = connect(port);
        write!(
            socket,
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .expect("to ask");
        let mut client = Self { socket, unread: BytesMut::new() };
        let end = loop {
            if let Some(at) = client.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(client.fill(), "no answer");
        };
        let head = String::from_utf8_lossy(&client.unread.split_to(end)).into_owned();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        client
    }

    /// Sends a frame, masked with zeros; `first` holds the flags and the opcode.
    pub fn say(&mut self, first: u8, payload: &[u8]) {
        let mut frame = vec![first, 0x80 + u8::try_from(payload.len()).expect("a short frame"), 0, 0, 0, 0];
        frame.extend(payload);
        self.socket.write_all(&frame).expect("to send");
    }

    /// Announces a binary message of this many bytes, and sends none of them.
    pub fn announce(&mut self, len: u16) {
        let [high, low] = len.to_be_bytes();
        self.socket.write_all(&[0x82, 0xfe, high, low, 0, 0, 0, 0]).expect("to send");
    }

    /// The next frame: flags and opcode, payload. `None` at the end of the connection.
    #[allow(clippy::should_implement_trait, reason = "a client is no iterator")]
    pub fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            let (len, head) = match self.unread.get(..2).map(|two| two[1]) {
                Some(126) => (self.unread.get(2..4).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]]))), 4),
                Some(127) => {
                    let len = self.unread.get(2..10).and_then(|bytes| bytes.first_chunk());
                    (len.map(|bytes| usize::try_from(u64::from_be_bytes(*bytes)).expect("a length")), 10)
                }
                Some(len) => (Some(usize::from(len)), 2),
                None => (None, 2),
            };
            if let Some(len) = len
                && self.unread.len() >= head + len
            {
                let first = self.unread[0];
                let mut frame = self.unread.split_to(head + len).freeze();
                return Some((first, frame.split_off(head)));
            }
            if !self.fill() {
                return None;
            }
        }
    }

    fn fill(&mut self) -> bool {
        let mut buffer = [0; 16_384];
        let read = self.socket.read(&mut buffer).expect("bytes in time");
        self.unread.extend_from_slice(&buffer[..read]);
        read > 0
    }
}

fn ask(port: u16, path: &str) -> TcpStream {
    let mut socket = connect(port);
    write!(socket, "GET {path} HTTP/1.0\r\n\r\n").expect("to ask");
    socket
}

fn connect(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).expect("the media port");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    socket
}

/// Pushes the first seconds of the units at their own pace, as a camera would.
pub fn push_rtmp(port: u16, name: &str, units: &[Unit], container: Container) {
    let first = units.iter().take_while(|unit| unit.dts_90k < 5 * 90_000).cloned().collect::<Vec<_>>();
    push_rtmp_all(port, name, &first, container);
}

/// Pushes the units at their own pace.
pub fn push_rtmp_all(port: u16, name: &str, units: &[Unit], container: Container) {
    let mut camera = Publisher::publish_as(port, name, container);
    camera.send_in_time(units.iter().cloned()).expect("to send");
}
