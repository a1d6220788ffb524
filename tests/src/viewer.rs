//! A viewer of our own, over RTMP and over HTTP-FLV, that gives what it gets unit by unit.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use protocols::media::amf0::Value;
use protocols::media::flv::{Demux, TagType, take_tag};
use protocols::media::mux::{MessageHeader, write_message};
use protocols::media::{Kind, Track, Unit};
use protocols::rtmp::frame::ChunkReader;
use socket2::{Domain, Socket, Type};

use crate::PATIENCE;

/// Bytes of one half of RTMP's handshake.
const HELLO_LEN: usize = 1536;
/// Longest message taken.
const MESSAGE_MAX: usize = 16 << 20;

/// How a viewer comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Rtmp,
    HttpFlv,
}

/// The talk without the socket: what to send, and units out of what came.
#[derive(Debug)]
pub struct Viewing {
    name: String,
    stage: Stage,
    demux: Demux,
    out: BytesMut,
}

#[derive(Debug)]
enum Stage {
    /// The server's hello and echo are to come.
    Hello,
    /// The newest timestamp, as it stood and unwrapped.
    Chunks(Box<ChunkReader>, Option<(u32, i64)>),
    Head,
    Tags,
}

impl Viewing {
    /// A viewer of `live/NAME`.
    pub fn new(door: Door, name: &str) -> Self {
        let mut out = BytesMut::new();
        let stage = match door {
            Door::Rtmp => {
                out.put_u8(3);
                out.put_u64(0);
                out.put_bytes(0x5a, HELLO_LEN - 8);
                Stage::Hello
            }
            Door::HttpFlv => {
                // Without chunks around the tags.
                out.put_slice(format!("GET /live/{name}.flv HTTP/1.0\r\n\r\n").as_bytes());
                Stage::Head
            }
        };
        Self { name: name.to_owned(), stage, demux: Demux::default(), out }
    }

    /// What has to be sent next.
    pub fn take(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    /// Takes what came. Panics at what breaks the protocol: a stream that cannot be read is what a test is about.
    pub fn receive(&mut self, unread: &mut BytesMut, into: &mut VecDeque<Unit>) {
        loop {
            match &mut self.stage {
                Stage::Hello => {
                    if unread.len() < 1 + 2 * HELLO_LEN {
                        return;
                    }
                    self.out.put_slice(&unread[1..=HELLO_LEN]);
                    unread.advance(1 + 2 * HELLO_LEN);
                    introduce(&self.name, &mut self.out);
                    self.stage = Stage::Chunks(Box::new(ChunkReader::new(MESSAGE_MAX)), None);
                }
                Stage::Chunks(reader, clock) => {
                    let Some(message) = reader.read(unread).expect("a chunk stream") else { return };
                    let Some(tag) = TagType::of(message.type_id) else { continue };
                    let time = clock.map_or(i64::from(message.timestamp), |(before, unwrapped)| {
                        unwrapped + i64::from(message.timestamp.wrapping_sub(before) as i32)
                    });
                    *clock = Some((message.timestamp, time));
                    into.extend(self.demux.unit(tag, time, message.payload).expect("a unit"));
                }
                Stage::Head => {
                    let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") else { return };
                    let head = unread.split_to(end + 4);
                    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
                    self.stage = Stage::Tags;
                }
                Stage::Tags => {
                    let Some(tag) = take_tag(unread).expect("FLV") else { return };
                    into.extend(self.demux.unit(tag.tag, tag.dts_ms, tag.body).expect("a unit"));
                }
            }
        }
    }
}

/// connect, createStream and play, without waiting for the answers.
fn introduce(name: &str, out: &mut BytesMut) {
    let connect = [("app", "live"), ("flashVer", "LNX 9,0,124,2"), ("tcUrl", "rtmp://127.0.0.1/live")];
    let connect = Value::object(connect.map(|(key, value)| (key, Value::from(value))));
    let calls = [
        (0, vec![Value::from("connect"), 1.0.into(), connect]),
        (0, vec![Value::from("createStream"), 2.0.into(), Value::Null]),
        (1, vec![Value::from("play"), 3.0.into(), Value::Null, Value::from(name)]),
    ];
    for (stream_id, words) in calls {
        let mut body = BytesMut::new();
        for word in words {
            word.write(&mut body);
        }
        let header = MessageHeader { chunk_stream: 3, timestamp: 0, type_id: 20, stream_id };
        write_message(&header, &[&body], 128, out);
    }
}

/// A viewer on a socket of its own.
#[derive(Debug)]
pub struct Viewer {
    pub socket: TcpStream,
    viewing: Viewing,
    unread: BytesMut,
    waiting: VecDeque<Unit>,
}

impl Viewer {
    /// Watches `live/NAME` at a media port.
    pub fn open(port: u16, door: Door, name: &str) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the media port");
        Self::on(socket, door, name)
    }

    /// With a receive buffer so small that what it does not read waits in the gateway.
    pub fn narrow(port: u16, door: Door, name: &str) -> Self {
        Self::on(narrow(port, 16 << 10).expect("the media port"), door, name)
    }

    fn on(mut socket: TcpStream, door: Door, name: &str) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut viewing = Viewing::new(door, name);
        socket.write_all(&viewing.take()).expect("to ask");
        Self { socket, viewing, unread: BytesMut::new(), waiting: VecDeque::new() }
    }

    /// The next unit; `None` at the end of the connection.
    #[allow(clippy::should_implement_trait, reason = "a viewer is no iterator")]
    pub fn next(&mut self) -> Option<Unit> {
        loop {
            if let Some(unit) = self.waiting.pop_front() {
                return Some(unit);
            }
            if self.read().expect("bytes in time") == 0 {
                return None;
            }
        }
    }

    /// The next frame of a track.
    pub fn next_of(&mut self, track: Track) -> Option<Unit> {
        loop {
            let unit = self.next()?;
            if unit.track == track && unit.kind != Kind::Config {
                return Some(unit);
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16_384];
        let read = self.socket.read(&mut buffer)?;
        self.unread.extend_from_slice(&buffer[..read]);
        self.viewing.receive(&mut self.unread, &mut self.waiting);
        let answer = self.viewing.take();
        if !answer.is_empty() {
            self.socket.write_all(&answer)?;
        }
        Ok(read)
    }
}

/// A connection whose receive buffer has so many bytes (twice, by the kernel's count) and does not grow.
pub(crate) fn narrow(port: u16, bytes: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(bytes)?;
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    Ok(socket.into())
}
