//! Bytes to packets (chapter 3 of either standard).

use std::sync::Arc;

use super::properties::{Place, PropertySet};
use super::wire::Reader;
use super::{
    Ack, ConnAck, Connect, Filter, Goodbye, Malformed, Outcomes, Packet, Publish, Raw, Reason, Side, Subscribe,
    Unsubscribe, Version, Will, qos,
};
use crate::mqtt::topic;

/// Reads one packet sent by `from`. A CONNECT carries its own version; for every other packet `version` is the
/// connection's. Packet types that this end may not send are refused before anything of them is read.
pub fn decode(raw: Raw, version: Version, from: Side) -> Result<Packet, Malformed> {
    let kind = raw.first >> 4;
    let allowed = match (from, kind) {
        (_, 3..=7) | (Side::Client, 1 | 8 | 10 | 12) | (Side::Server, 2 | 9 | 11 | 13) => true,
        (side, 14) => side == Side::Client || version == Version::V5,
        (_, 15) => version == Version::V5,
        _ => false,
    };
    if !allowed {
        let what = format!("packet type {kind} from the {}", if from == Side::Client { "client" } else { "server" });
        return Err(Malformed::new(Reason::PROTOCOL_ERROR, what, 0));
    }
    let flags = raw.first & 0x0f;
    let mut reader = Reader::new(raw.body, raw.header_len);
    let packet = match kind {
        1 => Packet::Connect(Box::new(connect(&mut reader)?)),
        2 => Packet::ConnAck(conn_ack(&mut reader, version)?),
        3 => Packet::Publish(publish(&mut reader, flags, version, from)?),
        4 => Packet::PubAck(ack(&mut reader, kind, version)?),
        5 => Packet::PubRec(ack(&mut reader, kind, version)?),
        6 => Packet::PubRel(ack(&mut reader, kind, version)?),
        7 => Packet::PubComp(ack(&mut reader, kind, version)?),
        8 => Packet::Subscribe(subscribe(&mut reader, version)?),
        9 => Packet::SubAck(outcomes(&mut reader, kind, version)?),
        10 => Packet::Unsubscribe(unsubscribe(&mut reader, version)?),
        11 => Packet::UnsubAck(outcomes(&mut reader, kind, version)?),
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => Packet::Disconnect(goodbye(&mut reader, kind, version)?),
        _ => Packet::Auth(goodbye(&mut reader, kind, version)?),
    };
    reader.end()?;
    Ok(packet)
}

fn connect(reader: &mut Reader) -> Result<Connect, Malformed> {
    let at = reader.at();
    let name = reader.text("protocol name")?;
    let level = reader.u8("protocol level")?;
    let version = match (&*name, level) {
        ("MQIsdp", 3) => Version::V31,
        ("MQTT", 4) => Version::V311,
        ("MQTT", 5) => Version::V5,
        ("MQTT" | "MQIsdp", _) => {
            let what = format!("{name} level {level}; 3.1, 3.1.1 and 5 are spoken here");
            return Err(Malformed::new(Reason::UNSUPPORTED_VERSION, what, reader.at() - 1));
        }
        _ => return Err(Malformed::new(Reason::UNSUPPORTED_VERSION, "protocol name is not MQTT", at)),
    };
    let flags = reader.u8("connect flags")?;
    let will_qos = (flags >> 3) & 3;
    if flags & 0x01 != 0 && version >= Version::V311 {
        return Err(reader.malformed("reserved connect flag"));
    }
    if flags & 0x04 == 0 && flags & 0x38 != 0 {
        return Err(reader.malformed("will flags without a will"));
    }
    let Some(will_qos) = qos(will_qos) else { return Err(reader.malformed("will QoS 3")) };
    if flags & 0xc0 == 0x40 && version < Version::V5 {
        return Err(reader.malformed("password without a user name"));
    }
    let keep_alive = reader.u16("keep alive")?;
    let properties = properties(reader, version, Place::packet(1))?;
    let client = reader.text("client id")?;
    let will = if flags & 0x04 == 0 {
        None
    } else {
        let properties = self::properties(reader, version, Place::WILL)?;
        let at = reader.at();
        let topic = reader.text("will topic")?;
        topic::check_name(&topic).map_err(|what| Malformed::new(Reason::TOPIC_INVALID, what, at + 2))?;
        let payload = reader.binary("will payload")?;
        Some(Will { topic, payload, qos: will_qos, retain: flags & 0x20 != 0, properties })
    };
    let user = if flags & 0x80 == 0 { None } else { Some(reader.text("user name")?) };
    let password = if flags & 0x40 == 0 { None } else { Some(reader.binary("password")?) };
    Ok(Connect { version, clean_start: flags & 0x02 != 0, keep_alive, client, will, user, password, properties })
}

fn conn_ack(reader: &mut Reader, version: Version) -> Result<ConnAck, Malformed> {
    let flags = reader.u8("acknowledge flags")?;
    if flags & 0xfe != 0 {
        return Err(reader.malformed("reserved acknowledge flags"));
    }
    let code = reader.u8("reason")?;
    let reason = if version == Version::V5 { Reason(code) } else { from_return_code(code) };
    let properties = properties(reader, version, Place::packet(2))?;
    Ok(ConnAck { session_present: flags == 1, reason, properties })
}

/// The return codes of 3.1.1 (table 3.1) as reasons.
fn from_return_code(code: u8) -> Reason {
    match code {
        0 => Reason::SUCCESS,
        1 => Reason::UNSUPPORTED_VERSION,
        2 => Reason::CLIENT_ID_NOT_VALID,
        3 => Reason::SERVER_UNAVAILABLE,
        4 => Reason::BAD_CREDENTIALS,
        5 => Reason::NOT_AUTHORIZED,
        _ => Reason::UNSPECIFIED,
    }
}

fn publish(reader: &mut Reader, flags: u8, version: Version, from: Side) -> Result<Publish, Malformed> {
    let Some(qos) = qos((flags >> 1) & 3) else { return Err(reader.malformed("QoS 3")) };
    let at = reader.at();
    let topic = reader.text("topic")?;
    let packet_id = if qos as u8 == 0 { 0 } else { packet_id(reader)? };
    let properties = properties(reader, version, Place::packet(3))?;
    let alias = properties.as_ref().and_then(|set| set.topic_alias);
    if !topic.is_empty() || alias.is_none() {
        topic::check_name(&topic).map_err(|what| Malformed::new(Reason::TOPIC_INVALID, what, at + 2))?;
    }
    if let Some(set) = &properties {
        if from == Side::Client && !set.subscription_identifiers.is_empty() {
            return Err(Malformed::new(Reason::PROTOCOL_ERROR, "subscription identifier from a client", at));
        }
        if let Some(response) = &set.response_topic {
            topic::check_name(response).map_err(|what| Malformed::new(Reason::PROTOCOL_ERROR, what, at))?;
        }
    }
    let payload = reader.rest();
    let format = properties.as_ref().and_then(|set| set.payload_format);
    if format == Some(1) && std::str::from_utf8(&payload).is_err() {
        return Err(Malformed::new(Reason::PAYLOAD_FORMAT_INVALID, "payload is not the UTF-8 it says it is", at));
    }
    Ok(Publish { dup: flags & 0x08 != 0, qos, retain: flags & 0x01 != 0, topic, packet_id, payload, properties })
}

fn ack(reader: &mut Reader, kind: u8, version: Version) -> Result<Ack, Malformed> {
    let packet_id = packet_id(reader)?;
    let (reason, properties) = reason_and_properties(reader, kind, version)?;
    Ok(Ack { packet_id, reason, properties })
}

fn goodbye(reader: &mut Reader, kind: u8, version: Version) -> Result<Goodbye, Malformed> {
    let (reason, properties) = reason_and_properties(reader, kind, version)?;
    Ok(Goodbye { reason, properties })
}

/// The tail that MQTT 5 lets be left out when it says nothing.
fn reason_and_properties(
    reader: &mut Reader,
    kind: u8,
    version: Version,
) -> Result<(Reason, Option<Box<PropertySet>>), Malformed> {
    if version < Version::V5 || reader.is_empty() {
        return Ok((Reason::SUCCESS, None));
    }
    let reason = Reason(reader.u8("reason")?);
    let properties = if reader.is_empty() { None } else { PropertySet::read(reader, Place::packet(kind))? };
    Ok((reason, properties))
}

fn subscribe(reader: &mut Reader, version: Version) -> Result<Subscribe, Malformed> {
    let packet_id = packet_id(reader)?;
    let properties = properties(reader, version, Place::packet(8))?;
    if properties.as_ref().is_some_and(|set| set.subscription_identifiers.len() > 1) {
        return Err(Malformed::new(Reason::PROTOCOL_ERROR, "two subscription identifiers", reader.at()));
    }
    let mut filters = Vec::new();
    while !reader.is_empty() {
        let filter = reader.text("topic filter")?;
        let options = reader.u8("subscription options")?;
        let reserved = if version == Version::V5 { 0xc0 } else { 0xfc };
        let Some(qos) = qos(options & 3) else { return Err(reader.malformed("subscription with QoS 3")) };
        if options & reserved != 0 || options & 0x30 == 0x30 {
            return Err(reader.malformed(format!("subscription options {options:#04x}")));
        }
        let no_local = options & 0x04 != 0;
        if no_local && filter.starts_with("$share/") {
            return Err(Malformed::new(Reason::PROTOCOL_ERROR, "no local on a shared subscription", reader.at()));
        }
        let retain_as_published = options & 0x08 != 0;
        filters.push(Filter { filter, qos, no_local, retain_as_published, retain_handling: (options >> 4) & 3 });
    }
    if filters.is_empty() {
        return Err(Malformed::new(Reason::PROTOCOL_ERROR, "SUBSCRIBE without a filter", reader.at()));
    }
    Ok(Subscribe { packet_id, filters, properties })
}

fn unsubscribe(reader: &mut Reader, version: Version) -> Result<Unsubscribe, Malformed> {
    let packet_id = packet_id(reader)?;
    let properties = properties(reader, version, Place::packet(10))?;
    let mut filters: Vec<Arc<str>> = Vec::new();
    while !reader.is_empty() {
        filters.push(reader.text("topic filter")?);
    }
    if filters.is_empty() {
        return Err(Malformed::new(Reason::PROTOCOL_ERROR, "UNSUBSCRIBE without a filter", reader.at()));
    }
    Ok(Unsubscribe { packet_id, filters, properties })
}

fn outcomes(reader: &mut Reader, kind: u8, version: Version) -> Result<Outcomes, Malformed> {
    let packet_id = packet_id(reader)?;
    let properties = properties(reader, version, Place::packet(kind))?;
    Ok(Outcomes { packet_id, reasons: reader.rest().iter().map(|code| Reason(*code)).collect(), properties })
}

fn packet_id(reader: &mut Reader) -> Result<u16, Malformed> {
    match reader.u16("packet id")? {
        0 => Err(Malformed::new(Reason::PROTOCOL_ERROR, "packet id 0", reader.at() - 2)),
        id => Ok(id),
    }
}

fn properties(reader: &mut Reader, version: Version, place: Place) -> Result<Option<Box<PropertySet>>, Malformed> {
    if version == Version::V5 { PropertySet::read(reader, place) } else { Ok(None) }
}
