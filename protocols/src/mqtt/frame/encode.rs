//! Packets to bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::properties::PropertySet;
use super::wire::{put_binary, put_varint, varint_len};
use super::{Ack, ConnAck, Connect, Filter, Goodbye, Outcomes, Packet, Publish, Reason, Version};

/// Writes one packet. A CONNECT says its version itself.
pub fn encode(packet: &Packet, version: Version) -> Bytes {
    let mut body = BytesMut::new();
    let first = match packet {
        Packet::Connect(connect) => {
            put_connect(connect, &mut body);
            0x10
        }
        Packet::ConnAck(ack) => {
            put_conn_ack(ack, version, &mut body);
            0x20
        }
        Packet::Publish(publish) => {
            let mut out = publish_header(publish, version);
            out.put_slice(&publish.payload);
            return out.freeze();
        }
        Packet::PubAck(ack) => return put_ack(0x40, ack, version),
        Packet::PubRec(ack) => return put_ack(0x50, ack, version),
        Packet::PubRel(ack) => return put_ack(0x62, ack, version),
        Packet::PubComp(ack) => return put_ack(0x70, ack, version),
        Packet::Subscribe(subscribe) => {
            body.put_u16(subscribe.packet_id);
            put_properties(subscribe.properties.as_deref(), version, &mut body);
            for filter in &subscribe.filters {
                put_binary(&mut body, filter.filter.as_bytes());
                body.put_u8(filter_options(filter));
            }
            0x82
        }
        Packet::SubAck(outcomes) => {
            put_outcomes(outcomes, version, &mut body);
            0x90
        }
        Packet::Unsubscribe(unsubscribe) => {
            body.put_u16(unsubscribe.packet_id);
            put_properties(unsubscribe.properties.as_deref(), version, &mut body);
            for filter in &unsubscribe.filters {
                put_binary(&mut body, filter.as_bytes());
            }
            0xa2
        }
        Packet::UnsubAck(outcomes) => {
            put_outcomes(outcomes, version, &mut body);
            0xb0
        }
        Packet::PingReq => 0xc0,
        Packet::PingResp => 0xd0,
        Packet::Disconnect(goodbye) => {
            put_goodbye(goodbye, version, &mut body);
            0xe0
        }
        Packet::Auth(goodbye) => {
            put_goodbye(goodbye, version, &mut body);
            0xf0
        }
    };
    let mut out = BytesMut::with_capacity(1 + varint_len(body.len()) + body.len());
    out.put_u8(first);
    put_varint(&mut out, body.len());
    out.put_slice(&body);
    out.freeze()
}

/// Everything of a PUBLISH but its payload, with room for it: the caller sends a large payload as it is.
pub fn publish_header(publish: &Publish, version: Version) -> BytesMut {
    let id_len = if publish.qos as u8 == 0 { 0 } else { 2 };
    let properties = publish.properties.as_deref();
    let properties_len = if version == Version::V5 { PropertySet::written_len(properties) } else { 0 };
    let body_len = 2 + publish.topic.len() + id_len + properties_len + publish.payload.len();
    let mut out = BytesMut::with_capacity(1 + varint_len(body_len) + body_len);
    out.put_u8(0x30 | u8::from(publish.dup) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain));
    put_varint(&mut out, body_len);
    put_binary(&mut out, publish.topic.as_bytes());
    if id_len > 0 {
        out.put_u16(publish.packet_id);
    }
    put_properties(properties, version, &mut out);
    out
}

fn put_connect(connect: &Connect, out: &mut BytesMut) {
    put_binary(out, if connect.version == Version::V31 { b"MQIsdp" } else { b"MQTT" });
    out.put_u8(connect.version.level());
    let will = connect.will.as_ref().map_or(0, |will| 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5);
    let login = u8::from(connect.user.is_some()) << 7 | u8::from(connect.password.is_some()) << 6;
    out.put_u8(u8::from(connect.clean_start) << 1 | will | login);
    out.put_u16(connect.keep_alive);
    put_properties(connect.properties.as_deref(), connect.version, out);
    put_binary(out, connect.client.as_bytes());
    if let Some(will) = &connect.will {
        put_properties(will.properties.as_deref(), connect.version, out);
        put_binary(out, will.topic.as_bytes());
        put_binary(out, &will.payload);
    }
    if let Some(user) = &connect.user {
        put_binary(out, user.as_bytes());
    }
    if let Some(password) = &connect.password {
        put_binary(out, password);
    }
}

fn put_conn_ack(ack: &ConnAck, version: Version, out: &mut BytesMut) {
    // 3.1 knows no session present flag.
    out.put_u8(u8::from(ack.session_present && version >= Version::V311));
    if version == Version::V5 {
        out.put_u8(ack.reason.0);
        PropertySet::write(ack.properties.as_deref(), out);
    } else {
        out.put_u8(return_code(ack.reason));
    }
}

/// The return code of 3.1.1 (table 3.1) that says most of what the reason says.
fn return_code(reason: Reason) -> u8 {
    match reason {
        Reason::SUCCESS => 0,
        Reason::UNSUPPORTED_VERSION => 1,
        Reason::CLIENT_ID_NOT_VALID => 2,
        Reason::BAD_CREDENTIALS => 4,
        Reason::NOT_AUTHORIZED | Reason::BAD_AUTHENTICATION_METHOD => 5,
        _ => 3,
    }
}

fn put_ack(first: u8, ack: &Ack, version: Version) -> Bytes {
    let mut out = BytesMut::with_capacity(8);
    out.put_u8(first);
    let quiet = ack.reason == Reason::SUCCESS && ack.properties.is_none();
    if version < Version::V5 || quiet {
        out.put_u8(2);
        out.put_u16(ack.packet_id);
    } else if let Some(set) = ack.properties.as_deref() {
        put_varint(&mut out, 3 + PropertySet::written_len(Some(set)));
        out.put_u16(ack.packet_id);
        out.put_u8(ack.reason.0);
        PropertySet::write(Some(set), &mut out);
    } else {
        out.put_u8(3);
        out.put_u16(ack.packet_id);
        out.put_u8(ack.reason.0);
    }
    out.freeze()
}

fn put_outcomes(outcomes: &Outcomes, version: Version, out: &mut BytesMut) {
    out.put_u16(outcomes.packet_id);
    put_properties(outcomes.properties.as_deref(), version, out);
    for reason in &outcomes.reasons {
        out.put_u8(reason.0);
    }
}

fn put_goodbye(goodbye: &Goodbye, version: Version, out: &mut BytesMut) {
    if version == Version::V5 && (goodbye.reason != Reason::SUCCESS || goodbye.properties.is_some()) {
        out.put_u8(goodbye.reason.0);
        if goodbye.properties.is_some() {
            PropertySet::write(goodbye.properties.as_deref(), out);
        }
    }
}

fn filter_options(filter: &Filter) -> u8 {
    filter.qos as u8
        | u8::from(filter.no_local) << 2
        | u8::from(filter.retain_as_published) << 3
        | filter.retain_handling << 4
}

fn put_properties(set: Option<&PropertySet>, version: Version, out: &mut BytesMut) {
    if version == Version::V5 {
        PropertySet::write(set, out);
    }
}
