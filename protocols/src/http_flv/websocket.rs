//! WebSocket (RFC 6455), as much as a viewer needs: the opening handshake, and the few frames a viewer sends.
//!
//! Must not be in here: the frames viewers get, which are muxed once for all (`media/mux.rs`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use sha1::{Digest, Sha1};

use crate::http::{Method, Request};

/// Bytes a viewer's message may have: it has nothing to tell, but some players send a word or two.
pub const PAYLOAD_MAX: usize = 4 * 1024;

/// Bytes of a control frame's payload (5.5).
const CONTROL_MAX: usize = 125;

/// 1.3
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a request to open a WebSocket is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeError {
    #[error("only version 13 of WebSocket is spoken")]
    Version,
    #[error("not a WebSocket handshake: {0}")]
    Malformed(&'static str),
}

/// The value of `Sec-WebSocket-Accept` when the request asks for a WebSocket; `None` when it asks for none.
pub fn upgrade(request: &Request) -> Option<Result<String, UpgradeError>> {
    let asks = request.has_token("upgrade", "websocket");
    asks.then(|| accept(request))
}

/// 4.2.1
fn accept(request: &Request) -> Result<String, UpgradeError> {
    if request.method != Method::Get || request.minor == 0 {
        return Err(UpgradeError::Malformed("it takes a GET of HTTP/1.1"));
    }
    if !request.has_token("connection", "upgrade") {
        return Err(UpgradeError::Malformed("no Connection: Upgrade"));
    }
    if request.field("sec-websocket-version") != Some("13") {
        return Err(UpgradeError::Version);
    }
    let key = request.field("sec-websocket-key").unwrap_or_default();
    if !STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16) {
        return Err(UpgradeError::Malformed("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    Ok(STANDARD.encode(digest))
}

/// What a viewer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A message or part of one: nothing a viewer could say is heard.
    Data,
    Ping(Bytes),
    Pong,
    /// The status code, 1005 where there is none.
    Close(u16),
}

/// A frame that breaks the rules; the code goes into our Close (7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameError {
    pub code: u16,
    pub what: &'static str,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebSocket frame: {}", self.what)
    }
}

const PROTOCOL: u16 = 1002;
const TOO_BIG: u16 = 1009;

/// Takes a viewer's frame (5.2) off the front; `None` when it is not all there.
pub fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let broken = |what| FrameError { code: PROTOCOL, what };
    let &[first, second, ..] = &buffer[..] else { return Ok(None) };
    let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
    if first & 0x70 != 0 {
        return Err(broken("reserved bits are set"));
    }
    if second & 0x80 == 0 {
        return Err(broken("a client's frame is not masked"));
    }
    let short = usize::from(second & 0x7f);
    let control = opcode & 8 != 0;
    match opcode {
        0..=2 => {}
        8..=10 if !last => return Err(broken("a control frame in pieces")),
        8..=10 if short > CONTROL_MAX => return Err(broken("a control frame of more than 125 bytes")),
        8..=10 => {}
        _ => return Err(broken("unknown opcode")),
    }
    let (len, head) = match (short, &buffer[..]) {
        (126, &[_, _, a, b, ..]) => (usize::from(u16::from_be_bytes([a, b])), 4),
        (127, _) => return Err(FrameError { code: TOO_BIG, what: "a message of more than 4096 bytes" }),
        (126, _) => return Ok(None),
        (short, _) => (short, 2),
    };
    if !control && len > PAYLOAD_MAX {
        return Err(FrameError { code: TOO_BIG, what: "a message of more than 4096 bytes" });
    }
    let Some(&[m0, m1, m2, m3]) = buffer.get(head..head + 4) else { return Ok(None) };
    if buffer.len() < head + 4 + len {
        return Ok(None);
    }
    buffer.advance(head + 4);
    let mut payload = buffer.split_to(len);
    for (byte, mask) in payload.iter_mut().zip([m0, m1, m2, m3].into_iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some(match opcode {
        8 => match (payload.first_chunk(), payload.len()) {
            (Some(code), _) => Frame::Close(u16::from_be_bytes(*code)),
            (None, 0) => Frame::Close(1005),
            (None, _) => return Err(broken("half a status code")),
        },
        9 => Frame::Ping(payload.freeze()),
        10 => Frame::Pong,
        _ => Frame::Data,
    }))
}

/// The answer to a ping.
pub fn pong(payload: &[u8]) -> Bytes {
    control(0x8a, &[payload])
}

/// A goodbye; 1005 stands for no code, which is sent as none.
pub fn close(code: u16, reason: &str) -> Bytes {
    if code == 1005 {
        return control(0x88, &[]);
    }
    let end = (0..=reason.len().min(CONTROL_MAX - 2)).rev().find(|&end| reason.is_char_boundary(end)).unwrap_or(0);
    let reason = reason.get(..end).unwrap_or_default();
    control(0x88, &[&code.to_be_bytes(), reason.as_bytes()])
}

fn control(first: u8, parts: &[&[u8]]) -> Bytes {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = BytesMut::with_capacity(2 + len);
    out.put_slice(&[first, len.min(CONTROL_MAX) as u8]);
    for part in parts {
        out.put_slice(part);
    }
    out.truncate(2 + CONTROL_MAX);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(fields: &str) -> Request {
        let text = format!("GET /live/x.flv HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        Request::parse(text.as_bytes()).unwrap().unwrap()
    }

    const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

    #[test]
    fn the_handshake_of_the_standard() {
        let good =
            format!("Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n{KEY}");
        assert_eq!(upgrade(&request(&good)), Some(Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned())));
        assert_eq!(upgrade(&request("Upgrade: h2c\r\n")), None);
        assert_eq!(upgrade(&request(&good.replace("13", "8"))), Some(Err(UpgradeError::Version)));
        for (from, to) in [("keep-alive, Upgrade", "close"), ("dGhl", "")] {
            let outcome = upgrade(&request(&good.replace(from, to)));
            assert!(matches!(outcome, Some(Err(UpgradeError::Malformed(_)))), "{to:?}: {outcome:?}");
        }
    }

    fn masked(first: u8, payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::from(&[first][..]);
        match payload.len() {
            len @ 0..=125 => out.put_u8(0x80 | len as u8),
            len => {
                out.put_u8(0xfe);
                out.put_u16(len as u16);
            }
        }
        out.put_slice(&[1, 2, 3, 4]);
        out.extend(payload.iter().zip([1, 2, 3, 4].into_iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    #[test]
    fn what_viewers_say() {
        for (mut bytes, frame) in [
            (masked(0x89, b"hello"), Frame::Ping(Bytes::from_static(b"hello"))),
            (masked(0x8a, b""), Frame::Pong),
            (masked(0x88, &[0x03, 0xe8, b'x']), Frame::Close(1000)),
            (masked(0x88, b""), Frame::Close(1005)),
            (masked(0x81, &[b'a'; 300]), Frame::Data),
            (masked(0x01, b"part"), Frame::Data),
        ] {
            for cut in 0..bytes.len() {
                assert_eq!(take_frame(&mut BytesMut::from(&bytes[..cut])), Ok(None), "{frame:?} cut at {cut}");
            }
            bytes.put_u8(0xff);
            assert_eq!(take_frame(&mut bytes), Ok(Some(frame)));
            assert_eq!(bytes[..], [0xff]);
        }
    }

    #[test]
    fn what_breaks_the_rules_is_refused_with_its_code() {
        for (bytes, code) in [
            (&[0x81, 0x05][..], 1002),
            (&[0xc1, 0x80], 1002),
            (&[0x83, 0x80], 1002),
            (&[0x09, 0x80], 1002),
            (&[0x89, 0xfe, 0, 126], 1002),
            (&[0x82, 0xfe, 0x10, 0x01], 1009),
            (&[0x82, 0xff, 0, 0], 1009),
            (&[0x88, 0x81, 0, 0, 0, 0, 3], 1002),
        ] {
            let outcome = take_frame(&mut BytesMut::from(bytes));
            assert_eq!(outcome.map_err(|error| error.code), Err(code), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_goodbye_fits_a_control_frame() {
        assert_eq!(close(1000, "bye")[..], [0x88, 5, 3, 0xe8, b'b', b'y', b'e']);
        assert_eq!(close(1005, "x")[..], [0x88, 0]);
        let long = close(1001, &"é".repeat(100));
        assert!(long.len() <= 127 && usize::from(long[1]) == long.len() - 2);
        assert!(std::str::from_utf8(&long[4..]).is_ok());
        assert_eq!(pong(b"hi")[..], [0x8a, 2, b'h', b'i']);
    }

    proptest! {
        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let mut buffer = BytesMut::from(&noise[..]);
            while let Ok(Some(_)) = take_frame(&mut buffer) {}
        }
    }
}
