//! A client of MQTT 3.1.1, as small as a device's: CONNECT, SUBSCRIBE, PUBLISH at QoS 1 with its PUBACK, keep-alive.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{ANSWER_MAX, SimError};

const KEEP_ALIVE_SECONDS: u16 = 20;
/// Largest packet taken from the gateway, bytes.
const PACKET_MAX: usize = 64 * 1024;

// Packet types (3.1.1, table 2.1) with the flags they must carry.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH_QOS1: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGREQ: u8 = 0xc0;

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    buffer: BytesMut,
    packet_id: u16,
    said: Instant,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    Acknowledged,
    Message { topic: String, payload: Bytes },
}

impl Client {
    pub(super) async fn connect(address: SocketAddr, client_id: &str) -> Result<Self, SimError> {
        let stream = TcpStream::connect(address).await?;
        let mut client = Self { stream, buffer: BytesMut::new(), packet_id: 0, said: Instant::now() };
        let mut body = BytesMut::new();
        put_text(&mut body, "MQTT");
        body.put_u8(4);
        // Clean session.
        body.put_u8(2);
        body.put_u16(KEEP_ALIVE_SECONDS);
        put_text(&mut body, client_id);
        client.say(CONNECT, &body).await?;
        let (kind, answer) = client.answer().await?;
        match (kind, answer.get(1)) {
            (CONNACK, Some(0)) => Ok(client),
            (_, code) => Err(SimError::Refused(format!("packet {kind:#x}, code {code:?} to CONNECT"))),
        }
    }

    pub(super) async fn subscribe(&mut self, filter: &str) -> Result<(), SimError> {
        let mut body = BytesMut::new();
        body.put_u16(self.next_id());
        put_text(&mut body, filter);
        body.put_u8(1);
        self.say(SUBSCRIBE, &body).await?;
        let (kind, answer) = self.answer().await?;
        match (kind, answer.get(2)) {
            (SUBACK, Some(0..=2)) => Ok(()),
            (_, code) => Err(SimError::Refused(format!("packet {kind:#x}, code {code:?} to SUBSCRIBE"))),
        }
    }

    /// Sends a message; its [`Arrived::Acknowledged`] follows.
    pub(super) async fn publish(&mut self, topic: &str, payload: &serde_json::Value) -> Result<(), SimError> {
        let mut body = BytesMut::new();
        put_text(&mut body, topic);
        body.put_u16(self.next_id());
        body.put_slice(payload.to_string().as_bytes());
        self.say(PUBLISH_QOS1, &body).await
    }

    /// The next thing that comes. Cancel safe: what was read stays in the buffer.
    pub(super) async fn next(&mut self) -> Result<Arrived, SimError> {
        loop {
            let (kind, mut body) = self.packet().await?;
            match kind & 0xf0 {
                PUBACK => return Ok(Arrived::Acknowledged),
                0x30 => {
                    let topic = take_text(&mut body).ok_or_else(|| broken("PUBLISH"))?;
                    if kind & 0x06 != 0 {
                        let id = body.try_get_u16().map_err(|_| broken("PUBLISH"))?;
                        self.say(PUBACK, &id.to_be_bytes()).await?;
                    }
                    return Ok(Arrived::Message { topic, payload: body.freeze() });
                }
                // PINGRESP, and what a device does not care for.
                _ => {}
            }
        }
    }

    /// Sends a PINGREQ when it is time for one; call it now and then.
    pub(super) async fn ping(&mut self) -> Result<(), SimError> {
        if self.said.elapsed() > Duration::from_secs(u64::from(KEEP_ALIVE_SECONDS) / 2) {
            self.say(PINGREQ, &[]).await?;
        }
        Ok(())
    }

    fn next_id(&mut self) -> u16 {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        self.packet_id
    }

    async fn say(&mut self, kind: u8, body: &[u8]) -> Result<(), SimError> {
        let mut packet = BytesMut::with_capacity(body.len() + 5);
        packet.put_u8(kind);
        put_length(&mut packet, body.len());
        packet.put_slice(body);
        self.stream.write_all(&packet).await?;
        self.said = Instant::now();
        Ok(())
    }

    async fn answer(&mut self) -> Result<(u8, BytesMut), SimError> {
        timeout(ANSWER_MAX, self.packet()).await.map_err(|_| SimError::Silent)?
    }

    async fn packet(&mut self) -> Result<(u8, BytesMut), SimError> {
        loop {
            if let Some(packet) = take_packet(&mut self.buffer)? {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

fn broken(what: &str) -> SimError {
    SimError::Refused(format!("a {what} that cannot be read"))
}

fn put_text(body: &mut BytesMut, text: &str) {
    body.put_u16(text.len() as u16);
    body.put_slice(text.as_bytes());
}

fn take_text(body: &mut BytesMut) -> Option<String> {
    let len = usize::from(body.try_get_u16().ok()?);
    (len <= body.len()).then(|| String::from_utf8_lossy(&body.split_to(len)).into_owned())
}

/// The remaining length (3.1.1, 2.2.3): seven bits a byte, the lowest first.
fn put_length(packet: &mut BytesMut, mut len: usize) {
    loop {
        let byte = (len & 0x7f) as u8;
        len >>= 7;
        if len == 0 {
            return packet.put_u8(byte);
        }
        packet.put_u8(byte | 0x80);
    }
}

fn take_packet(buffer: &mut BytesMut) -> Result<Option<(u8, BytesMut)>, SimError> {
    let mut len = 0;
    for at in 0..4 {
        let Some(byte) = buffer.get(1 + at).copied() else { return Ok(None) };
        len |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 != 0 {
            continue;
        }
        if len > PACKET_MAX {
            return Err(SimError::Refused(format!("a packet of {len} bytes")));
        }
        let head = 2 + at;
        if buffer.len() < head + len {
            return Ok(None);
        }
        let kind = buffer.get_u8();
        buffer.advance(head - 1);
        return Ok(Some((kind, buffer.split_to(len))));
    }
    Err(broken("length"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_taken_whole_wherever_the_bytes_are_cut() {
        let mut bytes = BytesMut::new();
        for len in [0, 1, 127, 128, 20_000] {
            bytes.put_u8(PUBLISH_QOS1);
            put_length(&mut bytes, len);
            bytes.put_bytes(7, len);
        }
        let mut buffer = BytesMut::new();
        let mut lengths = Vec::new();
        for byte in bytes {
            buffer.put_u8(byte);
            while let Some((kind, body)) = take_packet(&mut buffer).unwrap() {
                assert_eq!(kind, PUBLISH_QOS1);
                lengths.push(body.len());
            }
        }
        assert_eq!(lengths, [0, 1, 127, 128, 20_000]);
        assert!(take_packet(&mut BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0xff][..])).is_err());
        assert!(take_packet(&mut BytesMut::from(&[0x30, 0xff, 0xff, 0x7f][..])).is_err());
    }
}
