//! MQTT control packets: bytes to packets and back, for 3.1, 3.1.1 and 5.
//!
//! [`split`] takes one packet off a buffer, [`decode`] reads it, [`encode`] writes one. Both directions are here: the
//! session decodes a client's packets and encodes the server's; tests and simulated clients do the reverse. Payloads
//! are slices of the buffer they came in. Strict: whatever the standard calls malformed is [`Malformed`], with the
//! reason code of MQTT 5 (2.4) and the byte.
//!
//! Must not be in here: what a packet means for the talk (packet ids in use, sessions, permissions).

mod decode;
mod encode;
mod properties;
mod wire;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::exchange::Qos;
use crate::session::Fault;

pub use decode::decode;
pub use encode::{encode, publish_header};
pub use properties::PropertySet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V31 = 3,
    V311 = 4,
    V5 = 5,
}

/// Which end sent a packet: some types and properties belong to one end only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(ConnAck),
    Publish(Publish),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(Outcomes),
    Unsubscribe(Unsubscribe),
    UnsubAck(Outcomes),
    PingReq,
    PingResp,
    Disconnect(Goodbye),
    Auth(Goodbye),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Connect {
    pub version: Version,
    pub clean_start: bool,
    /// Seconds; 0: none.
    pub keep_alive: u16,
    pub client: Arc<str>,
    pub will: Option<Will>,
    pub user: Option<Arc<str>>,
    pub password: Option<Bytes>,
    pub properties: Option<Box<PropertySet>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Will {
    pub topic: Arc<str>,
    pub payload: Bytes,
    pub qos: Qos,
    pub retain: bool,
    pub properties: Option<Box<PropertySet>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ConnAck {
    pub session_present: bool,
    /// An MQTT 5 reason; for 3.1.1 the encoder turns it into a return code (and back).
    pub reason: Reason,
    pub properties: Option<Box<PropertySet>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Publish {
    pub dup: bool,
    pub qos: Qos,
    pub retain: bool,
    /// Empty only in MQTT 5, with a topic alias.
    pub topic: Arc<str>,
    /// 0 at QoS 0.
    pub packet_id: u16,
    pub payload: Bytes,
    pub properties: Option<Box<PropertySet>>,
}

/// PUBACK, PUBREC, PUBREL, PUBCOMP.
#[derive(Debug, Clone, PartialEq)]
pub struct Ack {
    pub packet_id: u16,
    pub reason: Reason,
    pub properties: Option<Box<PropertySet>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Subscribe {
    pub packet_id: u16,
    pub filters: Vec<Filter>,
    pub properties: Option<Box<PropertySet>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    pub filter: Arc<str>,
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: u8,
}

/// SUBACK and UNSUBACK.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcomes {
    pub packet_id: u16,
    /// One a filter. Empty in an UNSUBACK before MQTT 5.
    pub reasons: Vec<Reason>,
    pub properties: Option<Box<PropertySet>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Unsubscribe {
    pub packet_id: u16,
    pub filters: Vec<Arc<str>>,
    pub properties: Option<Box<PropertySet>>,
}

/// DISCONNECT and AUTH.
#[derive(Debug, Clone, PartialEq)]
pub struct Goodbye {
    pub reason: Reason,
    pub properties: Option<Box<PropertySet>>,
}

/// A reason code of MQTT 5 (2.4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason(pub u8);

impl Reason {
    pub const SUCCESS: Self = Self(0x00);
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    pub const NO_MATCHING_SUBSCRIBERS: Self = Self(0x10);
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    pub const UNSPECIFIED: Self = Self(0x80);
    pub const MALFORMED: Self = Self(0x81);
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    pub const IMPLEMENTATION: Self = Self(0x83);
    pub const UNSUPPORTED_VERSION: Self = Self(0x84);
    pub const CLIENT_ID_NOT_VALID: Self = Self(0x85);
    pub const BAD_CREDENTIALS: Self = Self(0x86);
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    pub const SHUTTING_DOWN: Self = Self(0x8b);
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8c);
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8d);
    pub const TAKEN_OVER: Self = Self(0x8e);
    pub const FILTER_INVALID: Self = Self(0x8f);
    pub const TOPIC_INVALID: Self = Self(0x90);
    pub const PACKET_ID_IN_USE: Self = Self(0x91);
    pub const PACKET_ID_NOT_FOUND: Self = Self(0x92);
    pub const RECEIVE_MAX_EXCEEDED: Self = Self(0x93);
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    pub const ADMINISTRATIVE: Self = Self(0x98);
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);

    /// 0x80 and above say no.
    pub const fn is_error(self) -> bool {
        self.0 >= 0x80
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// A packet that the standard does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at}")]
pub struct Malformed {
    pub reason: Reason,
    pub what: Cow<'static, str>,
    /// Offset into the packet, its fixed header included.
    pub at: usize,
}

impl Malformed {
    pub(super) fn new(reason: Reason, what: impl Into<Cow<'static, str>>, at: usize) -> Self {
        Self { reason, what: what.into(), at }
    }
}

impl From<&Malformed> for Fault {
    fn from(malformed: &Malformed) -> Self {
        Self::fatal(malformed.what.clone()).at(malformed.at)
    }
}

/// One packet's bytes, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raw {
    /// Type and flags.
    pub first: u8,
    /// Everything after the fixed header.
    pub body: Bytes,
    /// Bytes of the fixed header, so that offsets count from the packet's start.
    pub header_len: usize,
}

/// Takes one whole packet off the front of the buffer; `None` while more bytes are needed.
///
/// The first byte and the length are judged as soon as they are there, before the rest has arrived. `packet_max` counts
/// the whole packet, fixed header included. A length padded with continuation bytes is accepted: the standard asks for
/// the shortest form only in MQTT 5, and small devices do pad.
pub fn split(buffer: &mut BytesMut, packet_max: usize) -> Result<Option<Raw>, Malformed> {
    let Some(&first) = buffer.first() else { return Ok(None) };
    check_first(first)?;
    let mut body_len = 0_usize;
    let mut header_len = 1;
    loop {
        let Some(&byte) = buffer.get(header_len) else { return Ok(None) };
        body_len |= usize::from(byte & 0x7f) << (7 * (header_len - 1));
        header_len += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if header_len == 5 {
            return Err(Malformed::new(Reason::MALFORMED, "remaining length of more than four bytes", 4));
        }
    }
    if header_len + body_len > packet_max {
        let what = format!("packet of {} bytes is larger than {packet_max}", header_len + body_len);
        return Err(Malformed::new(Reason::PACKET_TOO_LARGE, what, 1));
    }
    if buffer.len() < header_len + body_len {
        return Ok(None);
    }
    buffer.advance(header_len);
    Ok(Some(Raw { first, body: buffer.split_to(body_len).freeze(), header_len }))
}

/// Type and flags of the first byte (2.1.2, 2.1.3).
fn check_first(first: u8) -> Result<(), Malformed> {
    let flags = first & 0x0f;
    let right = match first >> 4 {
        0 => return Err(Malformed::new(Reason::MALFORMED, "packet type 0 is reserved", 0)),
        3 => flags & 0x06 != 0x06 && (flags & 0x0e != 0x08),
        6 | 8 | 10 => flags == 0x02,
        _ => flags == 0,
    };
    if right { Ok(()) } else { Err(Malformed::new(Reason::MALFORMED, format!("flags of first byte {first:#04x}"), 0)) }
}

impl Version {
    pub const fn level(self) -> u8 {
        self as u8
    }
}

/// QoS of two bits; 3 is nobody's.
pub(super) fn qos(bits: u8) -> Option<Qos> {
    match bits {
        0 => Some(Qos::AtMostOnce),
        1 => Some(Qos::AtLeastOnce),
        2 => Some(Qos::ExactlyOnce),
        _ => None,
    }
}
