//! Small devices that know what was acknowledged to them: one speaks MQTT 3.1.1 at QoS 1, one newline JSON over TCP.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Reports on their way without an acknowledgement.
const WINDOW: usize = 16;
/// A connection without an answer for this long is dead.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// What a device says on the wire, and how it hears "acknowledged".
#[derive(Debug, Clone, Copy)]
pub enum Language {
    Mqtt,
    Raw,
}

/// A device that counts: `{"n": 1}`, `{"n": 2}`, … each sent until it is acknowledged.
#[derive(Debug)]
pub struct Counter {
    pub name: String,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Counter {
    pub fn start(language: Language, name: &str, port: u16) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let device = Device {
            language,
            name: name.to_owned(),
            port,
            acknowledged: Arc::clone(&acknowledged),
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::spawn(move || device.run());
        Self { name: name.to_owned(), acknowledged, stop, thread }
    }

    /// All reports up to this one are acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Stops counting; returns the last acknowledged report.
    pub fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the device's thread");
        self.acknowledged.load(Ordering::Acquire)
    }
}

struct Device {
    language: Language,
    name: String,
    port: u16,
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Device {
    fn run(&self) {
        while !self.stop.load(Ordering::Acquire) {
            // The gateway may be killed at any moment: come again, as a device would.
            if self.talk().is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    fn talk(&self) -> io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        if matches!(self.language, Language::Mqtt) {
            stream.write_all(&connect(&self.name))?;
            let mut connack = [0; 4];
            answers.read_exact(&mut connack)?;
            if connack[3] != 0 {
                return Err(io::Error::other("refused"));
            }
        }
        let mut next = self.acknowledged() + 1;
        let mut waiting = VecDeque::new();
        while !self.stop.load(Ordering::Acquire) {
            while waiting.len() < WINDOW {
                stream.write_all(&self.report(next))?;
                waiting.push_back(next);
                next += 1;
            }
            let answered = self.answer(&mut answers)?;
            let expected = waiting.pop_front();
            if answered.is_some_and(|id| expected.map(packet_id) != Some(id)) {
                return Err(io::Error::other("acknowledged out of order"));
            }
            self.acknowledged.store(expected.unwrap_or_default(), Ordering::Release);
        }
        Ok(())
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    fn report(&self, n: u64) -> Vec<u8> {
        match self.language {
            Language::Raw => format!("{{\"device\":\"{}\",\"n\":{n}}}\n", self.name).into_bytes(),
            Language::Mqtt => publish("v1/devices/me/telemetry", packet_id(n), format!("{{\"n\":{n}}}").as_bytes()),
        }
    }

    /// Waits for one acknowledgement; its packet id where the language has one.
    fn answer(&self, answers: &mut BufReader<TcpStream>) -> io::Result<Option<u16>> {
        match self.language {
            Language::Raw => {
                let mut line = String::new();
                if answers.read_line(&mut line)? == 0 || !line.contains("\"ok\":true") {
                    return Err(io::Error::other(format!("not acknowledged: {line}")));
                }
                Ok(None)
            }
            Language::Mqtt => {
                let mut puback = [0; 4];
                answers.read_exact(&mut puback)?;
                if puback[0] != 0x40 {
                    return Err(io::Error::other("not a PUBACK"));
                }
                Ok(Some(u16::from_be_bytes([puback[2], puback[3]])))
            }
        }
    }
}

fn packet_id(n: u64) -> u16 {
    (n % 60_000) as u16 + 1
}

/// An MQTT 3.1.1 CONNECT with a clean session and no keep-alive.
fn connect(client: &str) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    body.extend((client.len() as u16).to_be_bytes());
    body.extend(client.as_bytes());
    packet(0x10, &body)
}

/// An MQTT 3.1.1 PUBLISH at QoS 1.
fn publish(topic: &str, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    body.extend(id.to_be_bytes());
    body.extend(payload);
    packet(0x32, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut len = body.len();
    loop {
        let more = if len > 127 { 0x80 } else { 0 };
        bytes.push((len % 128) as u8 | more);
        len /= 128;
        if len == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}
