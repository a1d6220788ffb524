//! A broker that misbehaves as a test wants, for what no real one does: MQTT 5, as much of it as an upstream needs.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use crate::PATIENCE;

/// What becomes of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Acknowledge,
    AcknowledgeTwice,
    /// After the next one that is acknowledged.
    Later,
    /// After this time.
    Slowly(Duration),
    /// Never.
    Forget,
    /// Takes it and closes the connection without a word.
    Vanish,
}

/// One publish as it came: which connection, topic, payload.
#[derive(Debug, Clone)]
pub struct Published {
    pub connection: usize,
    pub topic: String,
    pub payload: Vec<u8>,
}

type Script = Box<dyn FnMut(&Published) -> Act + Send>;

#[derive(Debug)]
pub struct StandIn {
    pub port: u16,
    published: mpsc::Receiver<Published>,
}

impl StandIn {
    /// `script` says what becomes of each publish of a message; a state is always acknowledged.
    pub fn start(script: impl FnMut(&Published) -> Act + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (sender, published) = mpsc::sync_channel(1_000_000);
        let script: Arc<Mutex<Script>> = Arc::new(Mutex::new(Box::new(script)));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let (sender, script) = (sender.clone(), Arc::clone(&script));
                std::thread::spawn(move || serve(&stream, connection, &sender, &script));
            }
        });
        Self { port, published }
    }

    /// The next publish of a message.
    pub fn next(&self) -> Published {
        self.published.recv_timeout(PATIENCE).expect("a publish")
    }

    /// What came since, without waiting.
    pub fn waiting(&self) -> Vec<Published> {
        self.published.try_iter().collect()
    }
}

/// Ends with the connection.
fn serve(
    mut stream: &TcpStream,
    connection: usize,
    sender: &mpsc::SyncSender<Published>,
    script: &Mutex<Script>,
) -> Option<()> {
    let mut later = Vec::new();
    loop {
        let (head, body) = packet(stream)?;
        match head >> 4 {
            1 => stream.write_all(&[0x20, 3, 0, 0, 0]).ok()?,
            3 => {
                let topic_len = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
                let topic = String::from_utf8(body.get(2..2 + topic_len)?.to_vec()).ok()?;
                let id = [*body.get(2 + topic_len)?, *body.get(3 + topic_len)?];
                // Properties are always short here: one byte of length.
                let payload = 5 + topic_len + usize::from(*body.get(4 + topic_len)?);
                let published = Published { connection, topic, payload: body.get(payload..)?.to_vec() };
                let act = if published.topic.ends_with("/state") {
                    Act::Acknowledge
                } else {
                    let act = script.lock().expect("no script panics")(&published);
                    drop(sender.send(published));
                    act
                };
                let ack = [0x40, 2, id[0], id[1]];
                match act {
                    Act::Later => later.push(ack),
                    Act::Forget => {}
                    Act::Vanish => return stream.shutdown(Shutdown::Both).ok(),
                    Act::Slowly(time) => {
                        std::thread::sleep(time);
                        stream.write_all(&ack).ok()?;
                    }
                    Act::AcknowledgeTwice => stream.write_all(&[ack, ack].concat()).ok()?,
                    Act::Acknowledge => {
                        stream.write_all(&ack).ok()?;
                        for ack in later.drain(..).rev() {
                            stream.write_all(&ack).ok()?;
                        }
                    }
                }
            }
            8 => stream.write_all(&[0x90, 4, *body.first()?, *body.get(1)?, 0, 1]).ok()?,
            12 => stream.write_all(&[0xD0, 0]).ok()?,
            14 => return Some(()),
            _ => {}
        }
    }
}

fn packet(mut stream: &TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    let head = byte[0];
    let (mut len, mut shift) = (0, 0);
    loop {
        stream.read_exact(&mut byte).ok()?;
        len |= usize::from(byte[0] & 0x7F) << shift;
        shift += 7;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}
