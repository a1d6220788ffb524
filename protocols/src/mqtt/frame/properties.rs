//! The properties of MQTT 5 (2.2.2): one table of number, type and where each may stand.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::wire::{Reader, put_binary, put_varint, varint_len};
use super::{Malformed, Reason};

/// All properties a packet can carry; absent ones are `None` or empty.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PropertySet {
    pub payload_format: Option<u8>,
    /// Seconds.
    pub message_expiry: Option<u32>,
    pub content_type: Option<Arc<str>>,
    pub response_topic: Option<Arc<str>>,
    pub correlation_data: Option<Bytes>,
    pub subscription_identifiers: Vec<u32>,
    /// Seconds.
    pub session_expiry: Option<u32>,
    pub assigned_client: Option<Arc<str>>,
    /// Seconds.
    pub server_keep_alive: Option<u16>,
    pub authentication_method: Option<Arc<str>>,
    pub authentication_data: Option<Bytes>,
    pub request_problem_information: Option<u8>,
    /// Seconds.
    pub will_delay: Option<u32>,
    pub request_response_information: Option<u8>,
    pub response_information: Option<Arc<str>>,
    pub server_reference: Option<Arc<str>>,
    pub reason: Option<Arc<str>>,
    pub receive_max: Option<u16>,
    pub topic_alias_max: Option<u16>,
    pub topic_alias: Option<u16>,
    pub qos_max: Option<u8>,
    pub retain_available: Option<u8>,
    pub user: Vec<(Arc<str>, Arc<str>)>,
    /// Bytes of a whole packet.
    pub packet_max: Option<u32>,
    pub wildcards_available: Option<u8>,
    pub identifiers_available: Option<u8>,
    pub shared_available: Option<u8>,
}

/// Where a property may stand: one bit a packet type, and one for the will.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(u16);

impl Place {
    pub(super) const WILL: Self = Self(1);

    pub(super) const fn packet(kind: u8) -> Self {
        Self(1 << kind)
    }
}

const WILL: u16 = 1;
const CONNECT: u16 = 1 << 1;
const CONNACK: u16 = 1 << 2;
const PUBLISH: u16 = 1 << 3;
const ACKS: u16 = 0xf << 4;
const SUBSCRIBE: u16 = 1 << 8;
const SUBACK: u16 = 1 << 9;
const UNSUBACK: u16 = 1 << 11;
const DISCONNECT: u16 = 1 << 14;
const AUTH: u16 = 1 << 15;

/// Places of the property with this number (table 2-4); 0 when there is no such property.
const fn places(number: u32) -> u16 {
    match number {
        0x01 | 0x02 | 0x03 | 0x08 | 0x09 => PUBLISH | WILL,
        0x0b => PUBLISH | SUBSCRIBE,
        0x11 => CONNECT | CONNACK | DISCONNECT,
        0x12 | 0x13 | 0x1a | 0x24 | 0x25 | 0x28 | 0x29 | 0x2a => CONNACK,
        0x15 | 0x16 => CONNECT | CONNACK | AUTH,
        0x17 | 0x19 => CONNECT,
        0x18 => WILL,
        0x1c => CONNACK | DISCONNECT,
        0x1f => CONNACK | ACKS | SUBACK | UNSUBACK | DISCONNECT | AUTH,
        0x21 | 0x22 | 0x27 => CONNECT | CONNACK,
        0x23 => PUBLISH,
        0x26 => u16::MAX,
        _ => 0,
    }
}

impl PropertySet {
    /// Reads length and properties. `None` when there are none.
    pub(super) fn read(reader: &mut Reader, place: Place) -> Result<Option<Box<Self>>, Malformed> {
        let len = reader.varint("property length")?;
        if len == 0 {
            return Ok(None);
        }
        let mut part = reader.part(len as usize, "properties")?;
        let mut set = Box::<Self>::default();
        while !part.is_empty() {
            let at = part.at();
            let number = part.varint("property number")?;
            let places = places(number);
            if places & place.0 == 0 {
                let what = if places == 0 { "unknown property" } else { "property in the wrong packet" };
                let reason = if places == 0 { Reason::MALFORMED } else { Reason::PROTOCOL_ERROR };
                return Err(Malformed::new(reason, format!("{what} {number:#04x}"), at));
            }
            set.read_one(number, &mut part, at)?;
        }
        Ok(Some(set))
    }

    fn read_one(&mut self, number: u32, part: &mut Reader, at: usize) -> Result<(), Malformed> {
        match number {
            0x01 => once(&mut self.payload_format, flag(part, at)?, number, at),
            0x02 => once(&mut self.message_expiry, part.u32("message expiry")?, number, at),
            0x03 => once(&mut self.content_type, part.text("content type")?, number, at),
            0x08 => once(&mut self.response_topic, part.text("response topic")?, number, at),
            0x09 => once(&mut self.correlation_data, part.binary("correlation data")?, number, at),
            0x0b => {
                let identifier = part.varint("subscription identifier")?;
                if identifier == 0 {
                    return Err(Malformed::new(Reason::PROTOCOL_ERROR, "subscription identifier 0", at));
                }
                self.subscription_identifiers.push(identifier);
                Ok(())
            }
            0x11 => once(&mut self.session_expiry, part.u32("session expiry")?, number, at),
            0x12 => once(&mut self.assigned_client, part.text("assigned client id")?, number, at),
            0x13 => once(&mut self.server_keep_alive, part.u16("server keep alive")?, number, at),
            0x15 => once(&mut self.authentication_method, part.text("authentication method")?, number, at),
            0x16 => once(&mut self.authentication_data, part.binary("authentication data")?, number, at),
            0x17 => once(&mut self.request_problem_information, flag(part, at)?, number, at),
            0x18 => once(&mut self.will_delay, part.u32("will delay")?, number, at),
            0x19 => once(&mut self.request_response_information, flag(part, at)?, number, at),
            0x1a => once(&mut self.response_information, part.text("response information")?, number, at),
            0x1c => once(&mut self.server_reference, part.text("server reference")?, number, at),
            0x1f => once(&mut self.reason, part.text("reason")?, number, at),
            0x21 => once(&mut self.receive_max, positive(part.u16("receive maximum")?, at)?, number, at),
            0x22 => once(&mut self.topic_alias_max, part.u16("topic alias maximum")?, number, at),
            0x23 => once(&mut self.topic_alias, part.u16("topic alias")?, number, at),
            0x24 => once(&mut self.qos_max, flag(part, at)?, number, at),
            0x25 => once(&mut self.retain_available, flag(part, at)?, number, at),
            0x26 => {
                self.user.push((part.text("user property name")?, part.text("user property value")?));
                Ok(())
            }
            0x27 => once(&mut self.packet_max, positive(part.u32("maximum packet size")?, at)?, number, at),
            0x28 => once(&mut self.wildcards_available, flag(part, at)?, number, at),
            0x29 => once(&mut self.identifiers_available, flag(part, at)?, number, at),
            _ => once(&mut self.shared_available, flag(part, at)?, number, at),
        }
    }

    /// Writes length and properties.
    pub(super) fn write(set: Option<&Self>, out: &mut BytesMut) {
        let Some(set) = set else {
            out.put_u8(0);
            return;
        };
        let mut body = BytesMut::new();
        set.write_body(&mut body);
        put_varint(out, body.len());
        out.put_slice(&body);
    }

    fn write_body(&self, out: &mut BytesMut) {
        put_u8(out, 0x01, self.payload_format);
        put_u32(out, 0x02, self.message_expiry);
        put_bytes(out, 0x03, self.content_type.as_deref().map(str::as_bytes));
        put_bytes(out, 0x08, self.response_topic.as_deref().map(str::as_bytes));
        put_bytes(out, 0x09, self.correlation_data.as_deref());
        for identifier in &self.subscription_identifiers {
            out.put_u8(0x0b);
            put_varint(out, *identifier as usize);
        }
        put_u32(out, 0x11, self.session_expiry);
        put_bytes(out, 0x12, self.assigned_client.as_deref().map(str::as_bytes));
        put_u16(out, 0x13, self.server_keep_alive);
        put_bytes(out, 0x15, self.authentication_method.as_deref().map(str::as_bytes));
        put_bytes(out, 0x16, self.authentication_data.as_deref());
        put_u8(out, 0x17, self.request_problem_information);
        put_u32(out, 0x18, self.will_delay);
        put_u8(out, 0x19, self.request_response_information);
        put_bytes(out, 0x1a, self.response_information.as_deref().map(str::as_bytes));
        put_bytes(out, 0x1c, self.server_reference.as_deref().map(str::as_bytes));
        put_bytes(out, 0x1f, self.reason.as_deref().map(str::as_bytes));
        put_u16(out, 0x21, self.receive_max);
        put_u16(out, 0x22, self.topic_alias_max);
        put_u16(out, 0x23, self.topic_alias);
        put_u8(out, 0x24, self.qos_max);
        put_u8(out, 0x25, self.retain_available);
        for (name, value) in &self.user {
            out.put_u8(0x26);
            put_binary(out, name.as_bytes());
            put_binary(out, value.as_bytes());
        }
        put_u32(out, 0x27, self.packet_max);
        put_u8(out, 0x28, self.wildcards_available);
        put_u8(out, 0x29, self.identifiers_available);
        put_u8(out, 0x2a, self.shared_available);
    }

    /// Bytes that [`write`](Self::write) writes.
    pub(super) fn written_len(set: Option<&Self>) -> usize {
        let mut body = BytesMut::new();
        if let Some(set) = set {
            set.write_body(&mut body);
        }
        varint_len(body.len()) + body.len()
    }
}

fn once<T>(slot: &mut Option<T>, value: T, number: u32, at: usize) -> Result<(), Malformed> {
    if slot.replace(value).is_some() {
        return Err(Malformed::new(Reason::PROTOCOL_ERROR, format!("property {number:#04x} twice"), at));
    }
    Ok(())
}

fn flag(part: &mut Reader, at: usize) -> Result<u8, Malformed> {
    match part.u8("flag property")? {
        value @ (0 | 1) => Ok(value),
        value => Err(Malformed::new(Reason::PROTOCOL_ERROR, format!("flag property of value {value}"), at)),
    }
}

fn positive<T: Copy + PartialEq + Default>(value: T, at: usize) -> Result<T, Malformed> {
    if value == T::default() {
        return Err(Malformed::new(Reason::PROTOCOL_ERROR, "limit property of value 0", at));
    }
    Ok(value)
}

fn put_u8(out: &mut BytesMut, number: u8, value: Option<u8>) {
    if let Some(value) = value {
        out.put_u8(number);
        out.put_u8(value);
    }
}

fn put_u16(out: &mut BytesMut, number: u8, value: Option<u16>) {
    if let Some(value) = value {
        out.put_u8(number);
        out.put_u16(value);
    }
}

fn put_u32(out: &mut BytesMut, number: u8, value: Option<u32>) {
    if let Some(value) = value {
        out.put_u8(number);
        out.put_u32(value);
    }
}

fn put_bytes(out: &mut BytesMut, number: u8, value: Option<&[u8]>) {
    if let Some(value) = value {
        out.put_u8(number);
        put_binary(out, value);
    }
}
