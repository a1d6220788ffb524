//! Bytes to RTSP messages (RFC 2326, 4 to 7) and interleaved packets (10.12), and answers to bytes.
//!
//! `rtsp-types` reads the messages, behind limits of ours. Must not be in here: what a request is answered.

use std::fmt::Write as _;

use bytes::{Buf, Bytes, BytesMut};
use rtsp_types::{Message, Method, ParseError, Version};

use crate::pass::percent_decode;

/// Bytes of a message's head.
pub const HEAD_MAX: usize = 8 * 1024;

/// Bytes of a message's body: a session description.
pub const BODY_MAX: usize = 16 * 1024;

/// Bytes of an interleaved packet with its head.
pub const PACKET_MAX: usize = 4 + 0xffff;

/// What stands at the front of a connection's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Request(Box<Request>),
    /// An answer to nothing we asked.
    Response,
    /// A packet on a channel.
    Packet {
        channel: u8,
        packet: Bytes,
    },
}

/// A request, as far as it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    pub version: Version,
    /// Absent for `*`.
    pub target: Option<Target>,
    /// Names in lower case.
    fields: Vec<(String, String)>,
    pub body: Bytes,
}

/// The address of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Without query and without a track's end: `rtsp://host:8554/live/gate-1`.
    pub base: String,
    /// Percent-decoded path without slashes at its ends and without a track's end.
    pub path: String,
    pub query: String,
    /// The number behind `trackID=`.
    pub track: Option<usize>,
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("not an RTSP message")]
    Malformed,
    #[error("message head of more than {HEAD_MAX} bytes or body of more than {BODY_MAX}")]
    TooLarge,
    #[error("only RTSP 1.0 is spoken")]
    Version,
}

impl Frame {
    /// Takes the next frame off the front; `None` while it is not all there.
    pub fn take(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        // Some clients keep connections alive with line ends.
        let blank = buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        buffer.advance(blank);
        match buffer.first() {
            None => Ok(None),
            Some(b'$') => Ok(take_packet(buffer)),
            Some(_) => take_message(buffer),
        }
    }
}

fn take_packet(buffer: &mut BytesMut) -> Option<Frame> {
    let &[_, channel, high, low] = buffer.first_chunk()?;
    let len = usize::from(u16::from_be_bytes([high, low]));
    if buffer.len() < 4 + len {
        return None;
    }
    buffer.advance(4);
    Some(Frame::Packet { channel, packet: buffer.split_to(len).freeze() })
}

fn take_message(buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let end = buffer.windows(4).take(HEAD_MAX).position(|four| four == b"\r\n\r\n");
    let Some(end) = end else {
        // What cannot become a message any more need not be waited for.
        let text =
            buffer.iter().take(HEAD_MAX).all(|&byte| matches!(byte, b'\r' | b'\n' | b'\t' | 0x20..=0x7e | 0x80..));
        return match (text, buffer.len() > HEAD_MAX + 3) {
            (false, _) => Err(FrameError::Malformed),
            (true, true) => Err(FrameError::TooLarge),
            (true, false) => Ok(None),
        };
    };
    let head = buffer.get(..end + 4).unwrap_or_default();
    if !head.iter().all(|&byte| matches!(byte, b'\r' | b'\n' | b'\t' | 0x20..=0x7e | 0x80..)) {
        return Err(FrameError::Malformed);
    }
    let body_len = content_length(head)?;
    if buffer.len() < end + 4 + body_len {
        return Ok(None);
    }
    let message = buffer.split_to(end + 4 + body_len);
    match Message::<Vec<u8>>::parse(&message) {
        Ok((Message::Request(request), consumed)) if consumed == message.len() => {
            Ok(Some(Frame::Request(Box::new(Request::of(&request)?))))
        }
        Ok((Message::Response(_), consumed)) if consumed == message.len() => Ok(Some(Frame::Response)),
        Ok(_) | Err(ParseError::Incomplete(_)) => Err(FrameError::Malformed),
        Err(ParseError::Error) => {
            Err(if other_version(&message) { FrameError::Version } else { FrameError::Malformed })
        }
    }
}

/// Whether it would be a request in a version that nobody here knows.
fn other_version(message: &[u8]) -> bool {
    let line = message.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    version.starts_with(b"RTSP/") && version != b"RTSP/1.0"
}

fn content_length(head: &[u8]) -> Result<usize, FrameError> {
    let text = std::str::from_utf8(head).map_err(|_| FrameError::Malformed)?;
    let lines = text.split("\r\n").filter_map(|line| line.split_once(':'));
    let mut lengths = lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-length"));
    let Some((_, value)) = lengths.next() else { return Ok(0) };
    let len = value.trim().parse::<usize>().map_err(|_| FrameError::Malformed)?;
    match (lengths.next(), len) {
        (Some(_), _) => Err(FrameError::Malformed),
        (None, 0..=BODY_MAX) => Ok(len),
        (None, _) => Err(FrameError::TooLarge),
    }
}

impl Request {
    fn of(request: &rtsp_types::Request<Vec<u8>>) -> Result<Self, FrameError> {
        let fields = request.headers();
        Ok(Self {
            method: request.method().clone(),
            version: request.version(),
            target: request.request_uri().map(|uri| Target::of(uri).ok_or(FrameError::Malformed)).transpose()?,
            fields: fields
                .map(|(name, value)| (name.as_str().to_ascii_lowercase(), value.as_str().to_owned()))
                .collect(),
            body: Bytes::copy_from_slice(request.body()),
        })
    }

    /// The value of the field with this (lower-case) name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

impl Target {
    fn of(uri: &rtsp_types::Url) -> Option<Self> {
        if !matches!(uri.scheme(), "rtsp" | "rtspu" | "rtsps") {
            return None;
        }
        // Clients append the track to whatever they were given, a query included.
        let (mut path, mut query) = (uri.path(), uri.query().unwrap_or_default());
        let mut track = None;
        for part in [&mut path, &mut query] {
            if let Some((rest, end)) = part.rsplit_once("/trackID=") {
                track = Some(end.trim_end_matches('/').parse().ok()?);
                *part = rest;
            }
        }
        let host = uri.host_str()?;
        let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = path.trim_matches('/');
        let base = format!("{}://{host}{port}/{path}", uri.scheme());
        let path = percent_decode(path)?.into_owned();
        Some(Self { base, path, query: query.trim_end_matches('/').to_owned(), track })
    }
}

/// An answer's code and words (RFC 2326, 7.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16, pub &'static str);

impl Status {
    pub const OK: Self = Self(200, "OK");
    pub const BAD_REQUEST: Self = Self(400, "Bad Request");
    pub const UNAUTHORIZED: Self = Self(401, "Unauthorized");
    pub const FORBIDDEN: Self = Self(403, "Forbidden");
    pub const NOT_FOUND: Self = Self(404, "Not Found");
    pub const METHOD_NOT_ALLOWED: Self = Self(405, "Method Not Allowed");
    pub const NOT_ACCEPTABLE: Self = Self(406, "Not Acceptable");
    pub const TOO_LARGE: Self = Self(413, "Request Entity Too Large");
    pub const UNSUPPORTED_MEDIA: Self = Self(415, "Unsupported Media Type");
    pub const PARAMETER: Self = Self(451, "Parameter Not Understood");
    pub const SESSION_NOT_FOUND: Self = Self(454, "Session Not Found");
    pub const NOT_IN_THIS_STATE: Self = Self(455, "Method Not Valid in This State");
    pub const INVALID_RANGE: Self = Self(457, "Invalid Range");
    pub const UNSUPPORTED_TRANSPORT: Self = Self(461, "Unsupported Transport");
    pub const NOT_IMPLEMENTED: Self = Self(501, "Not Implemented");
    pub const UNAVAILABLE: Self = Self(503, "Service Unavailable");
    pub const VERSION: Self = Self(505, "RTSP Version Not Supported");
    pub const OPTION: Self = Self(551, "Option not supported");
}

/// An answer under way.
#[derive(Debug)]
pub struct Answer {
    text: String,
    body: String,
}

impl Answer {
    pub fn new(status: Status, cseq: Option<u32>) -> Self {
        let mut answer = Self { text: format!("RTSP/1.0 {} {}\r\n", status.0, status.1), body: String::new() };
        if let Some(cseq) = cseq {
            answer = answer.field("CSeq", cseq);
        }
        answer.field("Server", "sluicegate")
    }

    pub fn field(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        // Writing to a string does not fail.
        let _infallible = write!(self.text, "{name}: {value}\r\n");
        self
    }

    pub fn body(mut self, kind: &str, body: String) -> Self {
        self = self.field("Content-Type", kind).field("Content-Length", body.len());
        self.body = body;
        self
    }

    pub fn bytes(mut self) -> Bytes {
        self.text.push_str("\r\n");
        self.text.push_str(&self.body);
        Bytes::from(self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn take(text: &str) -> Result<Option<Frame>, FrameError> {
        Frame::take(&mut BytesMut::from(text))
    }

    fn target(uri: &str) -> Target {
        match take(&format!("SETUP {uri} RTSP/1.0\r\nCSeq: 1\r\n\r\n")) {
            Ok(Some(Frame::Request(request))) => request.target.unwrap(),
            other => panic!("{uri}: {other:?}"),
        }
    }

    #[test]
    fn a_players_request() {
        let text =
            "\r\nDESCRIBE rtsp://h:8554/live/gate-1?key=a%2Bb RTSP/1.0\r\nCSeq: 2\r\nAccept: application/sdp\r\n\r\n";
        let mut buffer = BytesMut::from(text);
        buffer.extend_from_slice(b"$\x01\x00\x02ab");
        let Ok(Some(Frame::Request(request))) = Frame::take(&mut buffer) else { panic!() };
        let found = request.target.clone().unwrap();
        assert_eq!((request.method.clone(), found.path.as_str()), (Method::Describe, "live/gate-1"));
        assert_eq!((request.field("cseq"), found.query.as_str()), (Some("2"), "key=a%2Bb"));
        assert_eq!(found.base, "rtsp://h:8554/live/gate-1");
        let packet = Bytes::from_static(b"ab");
        assert_eq!(Frame::take(&mut buffer), Ok(Some(Frame::Packet { channel: 1, packet })));
        for cut in 1..text.len() {
            assert_eq!(take(&text[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn tracks_are_found_wherever_clients_put_them() {
        for uri in [
            "rtsp://h/live/x/trackID=1",
            "rtsp://h/live/x/trackID=1?key=k",
            "rtsp://h/live/x?key=k/trackID=1",
            "rtsp://h/live/x/?key=k/trackID=1/",
        ] {
            let found = target(uri);
            assert_eq!((found.path.as_str(), found.track, found.base.as_str()), ("live/x", Some(1), "rtsp://h/live/x"));
            assert!(found.query.is_empty() || found.query == "key=k", "{uri}: {found:?}");
        }
        assert_eq!(target("rtsp://[::1]:8554/live/x/").base, "rtsp://[::1]:8554/live/x");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let long = format!("OPTIONS * RTSP/1.0\r\nA: {}\r\n\r\n", "b".repeat(HEAD_MAX));
        for (text, error) in [
            ("OPTIONS * RTSP/3.0\r\nCSeq: 1\r\n\r\n", FrameError::Version),
            ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", FrameError::Malformed),
            ("OPTIONS\u{1}", FrameError::Malformed),
            ("DESCRIBE http://h/live/x RTSP/1.0\r\n\r\n", FrameError::Malformed),
            ("DESCRIBE rtsp://h/live/%zz RTSP/1.0\r\n\r\n", FrameError::Malformed),
            ("OPTIONS * RTSP/1.0\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", FrameError::Malformed),
            ("OPTIONS * RTSP/1.0\r\nContent-Length: 99999999\r\n\r\n", FrameError::TooLarge),
            (&long, FrameError::TooLarge),
        ] {
            assert_eq!(take(text), Err(error), "{text:.60}");
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(noise in "(OPTIONS|PLAY) [ -~\r\n]{0,60}( RTSP/1[.]0)?(\r\n\r\n)?[ -~]{0,9}", cut in any::<prop::sample::Index>()) {
            let cut = cut.index(noise.len() + 1);
            match take(&noise[..cut]) {
                Ok(None) => {}
                Ok(frame) => prop_assert_eq!(take(&noise), Ok(frame)),
                Err(error) => prop_assert_eq!(take(&noise), Err(error)),
            }
        }

        #[test]
        fn noise_is_never_a_panic(noise: Vec<u8>) {
            let _frame = Frame::take(&mut BytesMut::from(&noise[..]));
        }
    }
}
