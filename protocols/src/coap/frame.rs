//! Bytes to messages and back (RFC 7252 section 3). The only file that names the codec crate.
//!
//! The codec behind takes more than the standard allows, so every packet passes a strict check of our own first.
//! Must not be in here: what a message is for.

use bytes::Bytes;
use coap_lite::{CoapOption, MessageClass, MessageType, Packet};

use crate::session::Fault;

/// Options of one message: each costs the codec allocations.
const OPTIONS_MAX: usize = 64;

/// Bytes we send in one packet: a payload of 1024 and room for the rest (RFC 7252 section 4.6), below the IPv6 MTU.
const SEND_MAX: usize = 1280;

/// A code: three bits of class, five of detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code(pub(super) u8);

impl Code {
    pub(super) const EMPTY: Self = Self(0);
    pub(super) const GET: Self = Self(1);
    pub(super) const POST: Self = Self(2);
    pub(super) const PUT: Self = Self(3);
    pub(super) const CHANGED: Self = Self::new(2, 4);
    pub(super) const CONTENT: Self = Self::new(2, 5);
    pub(super) const CONTINUE: Self = Self::new(2, 31);
    pub(super) const BAD_REQUEST: Self = Self::new(4, 0);
    pub(super) const UNAUTHORIZED: Self = Self::new(4, 1);
    pub(super) const BAD_OPTION: Self = Self::new(4, 2);
    pub(super) const FORBIDDEN: Self = Self::new(4, 3);
    pub(super) const NOT_FOUND: Self = Self::new(4, 4);
    pub(super) const METHOD_NOT_ALLOWED: Self = Self::new(4, 5);
    pub(super) const NOT_ACCEPTABLE: Self = Self::new(4, 6);
    pub(super) const REQUEST_ENTITY_INCOMPLETE: Self = Self::new(4, 8);
    pub(super) const REQUEST_ENTITY_TOO_LARGE: Self = Self::new(4, 13);
    pub(super) const UNSUPPORTED_CONTENT_FORMAT: Self = Self::new(4, 15);
    pub(super) const TOO_MANY_REQUESTS: Self = Self::new(4, 29);
    pub(super) const SERVICE_UNAVAILABLE: Self = Self::new(5, 3);
    pub(super) const PROXYING_NOT_SUPPORTED: Self = Self::new(5, 5);

    const fn new(class: u8, detail: u8) -> Self {
        Self(class << 5 | detail)
    }

    pub(super) const fn class(self) -> u8 {
        self.0 >> 5
    }

    pub(super) const fn is_request(self) -> bool {
        self.class() == 0 && self.0 != 0
    }
}

/// Option numbers (RFC 7252 section 5.10, RFC 7641, RFC 7959).
pub(super) mod number {
    pub(in super::super) const URI_HOST: u16 = 3;
    pub(in super::super) const ETAG: u16 = 4;
    pub(in super::super) const OBSERVE: u16 = 6;
    pub(in super::super) const URI_PORT: u16 = 7;
    pub(in super::super) const URI_PATH: u16 = 11;
    pub(in super::super) const CONTENT_FORMAT: u16 = 12;
    pub(in super::super) const MAX_AGE: u16 = 14;
    pub(in super::super) const URI_QUERY: u16 = 15;
    pub(in super::super) const ACCEPT: u16 = 17;
    pub(in super::super) const BLOCK2: u16 = 23;
    pub(in super::super) const BLOCK1: u16 = 27;
    pub(in super::super) const SIZE2: u16 = 28;
    pub(in super::super) const PROXY_URI: u16 = 35;
    pub(in super::super) const PROXY_SCHEME: u16 = 39;
    pub(in super::super) const SIZE1: u16 = 60;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Confirmable,
    NonConfirmable,
    Acknowledgement,
    Reset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) code: Code,
    pub(super) id: u16,
    /// 0 to 8 bytes.
    pub(super) token: Bytes,
    /// In ascending order of their numbers.
    pub(super) options: Vec<(u16, Bytes)>,
    pub(super) payload: Bytes,
}

/// A packet that is no message we take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejected {
    pub(super) fault: Fault,
    pub(super) answer: Rejection,
}

/// What the sender is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rejection {
    /// Nothing: not even CoAP, or a message that must not be answered.
    Silence,
    /// The confirmable message with this id is reset (RFC 7252 section 4.2).
    Reset(u16),
    /// A whole request that is larger than we take in one packet.
    TooLarge(Box<Message>),
}

// === decode ===

/// Reads a packet of at most `message_max` bytes.
pub(super) fn decode(packet: &Bytes, message_max: usize) -> Result<Message, Rejected> {
    let head = Head::read(packet)?;
    let checked = check(packet, &head).map_err(|fault| Rejected { fault, answer: head.rejection() })?;
    if packet.len() > message_max && head.code.is_request() {
        let fault = Fault::recoverable(format!("a message of {} bytes, at most {message_max}", packet.len()));
        let token = packet.slice(4..checked.options_from);
        let message = Message { token, ..Message::new(head.kind, head.code, head.id) };
        return Err(Rejected { fault, answer: Rejection::TooLarge(Box::new(message)) });
    }
    let read = Packet::from_bytes(packet).map_err(|error| {
        let fault = Fault::recoverable(format!("the codec refuses what passed the check: {error}")).ours();
        Rejected { fault, answer: head.rejection() }
    })?;
    let options =
        read.options().flat_map(|(number, values)| values.iter().map(|v| (*number, Bytes::copy_from_slice(v))));
    Ok(Message {
        token: Bytes::copy_from_slice(read.get_token()),
        options: options.collect(),
        payload: Bytes::from(read.payload),
        ..Message::new(head.kind, head.code, head.id)
    })
}

struct Head {
    kind: Kind,
    token_len: usize,
    code: Code,
    id: u16,
}

struct Checked {
    options_from: usize,
}

impl Head {
    fn read(packet: &[u8]) -> Result<Self, Rejected> {
        let silence = |fault| Rejected { fault, answer: Rejection::Silence };
        let Some(&[first, code, id_high, id_low]) = packet.first_chunk::<4>() else {
            return Err(silence(Fault::recoverable("shorter than a CoAP header").at(packet.len())));
        };
        // Messages of unknown versions are ignored in silence (section 3).
        if first >> 6 != 1 {
            return Err(silence(Fault::recoverable("not version 1 of CoAP").at(0)));
        }
        let kind = match first >> 4 & 3 {
            0 => Kind::Confirmable,
            1 => Kind::NonConfirmable,
            2 => Kind::Acknowledgement,
            _ => Kind::Reset,
        };
        let id = u16::from_be_bytes([id_high, id_low]);
        Ok(Self { kind, token_len: usize::from(first & 0x0f), code: Code(code), id })
    }

    fn rejection(&self) -> Rejection {
        match self.kind {
            Kind::Confirmable => Rejection::Reset(self.id),
            _ => Rejection::Silence,
        }
    }
}

/// Everything the standard calls a message format error.
fn check(packet: &[u8], head: &Head) -> Result<Checked, Fault> {
    let wrong = |what: &'static str, at: usize| Err(Fault::recoverable(what).at(at));
    if head.token_len > 8 {
        return wrong("a token of more than 8 bytes", 0);
    }
    let options_from = 4 + head.token_len;
    if packet.len() < options_from {
        return wrong("it ends inside the token", packet.len());
    }
    match (head.code, head.kind) {
        (Code::EMPTY, _) if packet.len() > 4 => return wrong("an empty message with something in it", 4),
        (Code::EMPTY, _) => {}
        (_, Kind::Reset) => return wrong("a reset that is not empty", 1),
        (code, Kind::Acknowledgement) if code.is_request() => return wrong("a request in an acknowledgement", 1),
        (code, _) if !matches!(code.class(), 0 | 2 | 4 | 5) => return wrong("a code of a reserved class", 1),
        _ => {}
    }
    let mut at = options_from;
    let (mut number, mut count) = (0_usize, 0);
    while let Some(&first) = packet.get(at) {
        if first == 0xff {
            return match packet.len() - at {
                1 => wrong("a payload marker without a payload", at),
                _ => Ok(Checked { options_from }),
            };
        }
        let option_at = at;
        at += 1;
        let Some(delta) = extended(packet, first >> 4, &mut at) else { return wrong("option delta", option_at) };
        let Some(len) = extended(packet, first & 0x0f, &mut at) else { return wrong("option length", option_at) };
        number += delta;
        at += len;
        count += 1;
        if number > usize::from(u16::MAX) {
            return wrong("an option number above 65535", option_at);
        }
        if at > packet.len() {
            return wrong("it ends inside an option", option_at);
        }
        if count > OPTIONS_MAX {
            return wrong("more than 64 options", option_at);
        }
    }
    Ok(Checked { options_from })
}

/// A delta or length with its extension bytes; `None` for the reserved 15 or when they are missing.
fn extended(packet: &[u8], nibble: u8, at: &mut usize) -> Option<usize> {
    let mut byte = || {
        let byte = packet.get(*at).copied();
        *at += 1;
        byte.map(usize::from)
    };
    match nibble {
        15 => None,
        14 => Some((byte()? << 8 | byte()?) + 269),
        13 => Some(byte()? + 13),
        short => Some(usize::from(short)),
    }
}

// === impl Message ===

impl Message {
    pub(super) fn new(kind: Kind, code: Code, id: u16) -> Self {
        Self { kind, code, id, token: Bytes::new(), options: Vec::new(), payload: Bytes::new() }
    }

    pub(super) fn values(&self, number: u16) -> impl Iterator<Item = &Bytes> {
        self.options.iter().filter(move |(n, _)| *n == number).map(|(_, value)| value)
    }

    /// Adds an option whose value is an unsigned integer (no leading zero bytes, section 3.2).
    pub(super) fn with_uint(mut self, number: u16, value: u32) -> Self {
        let bytes = value.to_be_bytes();
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        self.options.push((number, Bytes::copy_from_slice(bytes.get(zeros..).unwrap_or_default())));
        self
    }

    /// The packet. What is larger than [`SEND_MAX`] loses its payload: callers slice theirs into blocks.
    pub(super) fn encode(&self) -> Bytes {
        let mut packet = Packet::new();
        packet.header.set_version(1);
        packet.header.set_type(match self.kind {
            Kind::Confirmable => MessageType::Confirmable,
            Kind::NonConfirmable => MessageType::NonConfirmable,
            Kind::Acknowledgement => MessageType::Acknowledgement,
            Kind::Reset => MessageType::Reset,
        });
        packet.header.code = MessageClass::from(self.code.0);
        packet.header.message_id = self.id;
        packet.set_token(self.token.to_vec());
        for (number, value) in &self.options {
            packet.add_option(CoapOption::from(*number), value.to_vec());
        }
        packet.payload = self.payload.to_vec();
        packet.to_bytes_with_limit(SEND_MAX).map_or_else(|_| self.bare(), Bytes::from)
    }

    fn bare(&self) -> Bytes {
        let kind = match self.kind {
            Kind::Confirmable => 0,
            Kind::NonConfirmable => 1,
            Kind::Acknowledgement => 2,
            Kind::Reset => 3,
        };
        let mut bytes = vec![0x40 | kind << 4 | self.token.len() as u8, self.code.0];
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&self.token);
        Bytes::from(bytes)
    }
}

/// An unsigned integer of at most `len_max` bytes.
pub(super) fn uint(value: &[u8], len_max: usize) -> Option<u32> {
    (value.len() <= len_max.min(4)).then(|| value.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(bytes: &[u8]) -> (String, Rejection) {
        let rejected = decode(&Bytes::copy_from_slice(bytes), 1152).unwrap_err();
        (rejected.fault.to_string(), rejected.answer)
    }

    #[test]
    fn format_errors_are_told_apart() {
        let cases: &[(&[u8], &str, Rejection)] = &[
            (&[], "shorter than", Rejection::Silence),
            (&[0x40, 1, 0], "shorter than", Rejection::Silence),
            (&[0xc0, 1, 0, 1], "version 1", Rejection::Silence),
            (&[0x49, 1, 0, 1], "more than 8 bytes", Rejection::Reset(1)),
            (&[0x44, 1, 0, 1, 9], "inside the token", Rejection::Reset(1)),
            (&[0x40, 0, 0, 1, 9], "empty message", Rejection::Reset(1)),
            (&[0x50, 0, 0, 1, 9], "empty message", Rejection::Silence),
            (&[0x40, 0x21, 0, 1], "reserved class", Rejection::Reset(1)),
            (&[0x40, 0xe1, 0, 1], "reserved class", Rejection::Reset(1)),
            (&[0x60, 1, 0, 1], "request in an ack", Rejection::Silence),
            (&[0x70, 1, 0, 1], "reset that is not empty", Rejection::Silence),
            (&[0x40, 1, 0, 1, 0xf0], "option delta at byte 4", Rejection::Reset(1)),
            (&[0x40, 1, 0, 1, 0x0f], "option length at byte 4", Rejection::Reset(1)),
            (&[0x40, 1, 0, 1, 0xd0], "option delta", Rejection::Reset(1)),
            (&[0x40, 1, 0, 1, 0xe0, 1], "option delta", Rejection::Reset(1)),
            (&[0x40, 1, 0, 1, 0xb5, b'a'], "inside an option", Rejection::Reset(1)),
            (&[0x40, 1, 0, 1, 0xe0, 0xff, 0xff], "above 65535", Rejection::Reset(1)),
            (&[0x40, 1, 0, 1, 0xff], "without a payload", Rejection::Reset(1)),
        ];
        for (bytes, what, answer) in cases {
            let (text, rejection) = refused(bytes);
            assert!(text.contains(what), "{bytes:02x?}: {text}");
            assert_eq!(rejection, *answer, "{bytes:02x?}");
        }
        let many = [&[0x40, 1, 0, 1, 0xb0][..], &[0x00; 64]].concat();
        assert!(refused(&many).0.contains("more than 64"));
        let large = [&[0x41, 2, 0, 1, 7, 0xff][..], &[0x20; 1200]].concat();
        assert!(matches!(refused(&large).1, Rejection::TooLarge(message) if message.token[..] == [7]));
    }

    #[test]
    fn a_request_is_read() {
        // GET /a?b with token 01 02 and payload "x"
        let bytes = [0x42, 1, 0x12, 0x34, 1, 2, 0xb1, b'a', 0x41, b'b', 0xff, b'x'];
        let message = decode(&Bytes::copy_from_slice(&bytes), 1152).unwrap();
        assert_eq!(message.values(number::URI_PATH).next().unwrap(), "a");
        assert_eq!(message.values(number::URI_QUERY).next().unwrap(), "b");
        assert_eq!((message.id, &message.payload[..]), (0x1234, &b"x"[..]));
        assert_eq!(&message.encode()[..], bytes);
    }

    #[test]
    fn integers_have_no_leading_zeros() {
        for (value, len) in [(0, 0), (1, 1), (255, 1), (256, 2), (0x0001_0000, 3)] {
            let message = Message::new(Kind::Confirmable, Code::GET, 1).with_uint(number::OBSERVE, value);
            assert_eq!(message.options[0].1.len(), len);
            assert_eq!(uint(&message.options[0].1, 3), Some(value));
        }
        assert_eq!(uint(&[1, 2], 1), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(packet in proptest::collection::vec(any::<u8>(), 0..80), first in 0x40_u8..0x44) {
            let mut packet = packet;
            if let Some(byte) = packet.first_mut() {
                *byte = first;
            }
            let packet = Bytes::from(packet);
            if let Ok(message) = decode(&packet, 1152) {
                let again = decode(&message.encode(), 1152);
                prop_assert_eq!(again.unwrap(), message);
            }
        }

        #[test]
        fn what_is_written_is_read_the_same(
            numbers in proptest::collection::btree_map(any::<u16>(), proptest::collection::vec(any::<u8>(), 0..300), 0..3),
            token in proptest::collection::vec(any::<u8>(), 0..=8),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut message = Message::new(Kind::NonConfirmable, Code::POST, 77);
            message.token = token.into();
            message.options = numbers.into_iter().map(|(number, value)| (number, Bytes::from(value))).collect();
            message.payload = payload.into();
            prop_assert_eq!(decode(&message.encode(), SEND_MAX).unwrap(), message);
        }
    }
}
