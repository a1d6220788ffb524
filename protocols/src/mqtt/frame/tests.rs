//! Packets of every kind and version, round trips, and the hostile table.

use proptest::prelude::*;

use super::*;

fn packet(bytes: &[u8], version: Version) -> Result<Option<Packet>, Malformed> {
    let mut buffer = BytesMut::from(bytes);
    split(&mut buffer, 4096)?.map(|raw| decode(raw, version, Side::Client)).transpose()
}

fn reason(bytes: &[u8], version: Version) -> Reason {
    match packet(bytes, version) {
        Err(malformed) => malformed.reason,
        other => panic!("{bytes:02x?} gave {other:?}"),
    }
}

#[test]
fn malformed_packets_are_refused_with_their_reason() {
    let table: &[(&str, &[u8], Version, Reason)] = &[
        ("type 0", b"\x00\x00", Version::V311, Reason::MALFORMED),
        ("type 15 before 5", b"\xf0\x00", Version::V311, Reason::PROTOCOL_ERROR),
        ("CONNACK from a client", b"\x20\x02\0\0", Version::V5, Reason::PROTOCOL_ERROR),
        ("SUBACK from a client", b"\x90\x03\0\x01\0", Version::V311, Reason::PROTOCOL_ERROR),
        ("UNSUBACK from a client", b"\xb0\x02\0\x01", Version::V5, Reason::PROTOCOL_ERROR),
        ("PINGRESP from a client", b"\xd0\0", Version::V311, Reason::PROTOCOL_ERROR),
        ("QoS 3", b"\x36\x06\0\x01a\0\x01x", Version::V311, Reason::MALFORMED),
        ("DUP at QoS 0", b"\x38\x04\0\x01ax", Version::V311, Reason::MALFORMED),
        ("PUBREL flags", b"\x60\x02\0\x01", Version::V311, Reason::MALFORMED),
        ("SUBSCRIBE flags", b"\x80\x06\0\x01\0\x01a\0", Version::V311, Reason::MALFORMED),
        ("length of five bytes", b"\x30\xff\xff\xff\xff\x01", Version::V311, Reason::MALFORMED),
        ("too large", b"\x30\xff\xff\xff\x7f", Version::V311, Reason::PACKET_TOO_LARGE),
        ("packet id 0", b"\x32\x05\0\x01a\0\0", Version::V311, Reason::PROTOCOL_ERROR),
        ("wildcard topic +", b"\x30\x03\0\x01+", Version::V311, Reason::TOPIC_INVALID),
        ("wildcard topic #", b"\x30\x05\0\x03a/#", Version::V311, Reason::TOPIC_INVALID),
        ("empty topic", b"\x30\x02\0\0", Version::V311, Reason::TOPIC_INVALID),
        ("empty topic, no alias", b"\x30\x03\0\0\0", Version::V5, Reason::TOPIC_INVALID),
        ("NUL in topic", b"\x30\x05\0\x03a\0b", Version::V311, Reason::MALFORMED),
        ("bad UTF-8", b"\x30\x04\0\x02\xc3\x28", Version::V311, Reason::MALFORMED),
        ("surrogate", b"\x30\x05\0\x03\xed\xa0\x80", Version::V311, Reason::MALFORMED),
        ("overlong UTF-8", b"\x30\x04\0\x02\xc0\xaf", Version::V311, Reason::MALFORMED),
        ("topic past the end", b"\x30\x03\0\x09a", Version::V311, Reason::MALFORMED),
        ("no packet id", b"\x32\x03\0\x01a", Version::V311, Reason::MALFORMED),
        ("no filter", b"\x82\x02\0\x01", Version::V311, Reason::PROTOCOL_ERROR),
        ("filter QoS 3", b"\x82\x06\0\x01\0\x01a\x03", Version::V311, Reason::MALFORMED),
        ("filter options of 5", b"\x82\x06\0\x01\0\x01a\x04", Version::V311, Reason::MALFORMED),
        ("retain handling 3", b"\x82\x07\0\x01\0\0\x01a\x30", Version::V5, Reason::MALFORMED),
        ("shared no local", b"\x82\x10\0\x01\0\0\x0a$share/g/a\x04", Version::V5, Reason::PROTOCOL_ERROR),
        ("no unsubscribe filter", b"\xa2\x02\0\x01", Version::V311, Reason::PROTOCOL_ERROR),
        ("PINGREQ with a body", b"\xc0\x01x", Version::V311, Reason::MALFORMED),
        ("DISCONNECT with a body", b"\xe0\x01\0", Version::V311, Reason::MALFORMED),
        ("PUBACK tail", b"\x40\x03\0\x01\0", Version::V311, Reason::MALFORMED),
        ("unknown property", b"\x30\x06\0\x01a\x02\x7f\0", Version::V5, Reason::MALFORMED),
        ("property of another packet", b"\x30\x09\0\x01a\x05\x11\0\0\0\x01", Version::V5, Reason::PROTOCOL_ERROR),
        ("property twice", b"\x30\x08\0\x01a\x04\x01\0\x01\0", Version::V5, Reason::PROTOCOL_ERROR),
        ("property past its end", b"\x30\x06\0\x01a\x02\x02\0", Version::V5, Reason::MALFORMED),
        ("payload format 2", b"\x30\x06\0\x01a\x02\x01\x02", Version::V5, Reason::PROTOCOL_ERROR),
        ("payload not UTF-8", b"\x30\x07\0\x01a\x02\x01\x01\xff", Version::V5, Reason::PAYLOAD_FORMAT_INVALID),
        ("identifier from a client", b"\x30\x06\0\x01a\x02\x0b\x01", Version::V5, Reason::PROTOCOL_ERROR),
        ("response topic #", b"\x30\x08\0\x01a\x04\x08\0\x01#", Version::V5, Reason::PROTOCOL_ERROR),
        ("padded property length", b"\x30\x06\0\x01a\x80\0\0", Version::V5, Reason::MALFORMED),
        ("wrong name", b"\x10\x0c\0\x04MQTX\x04\x02\0\0\0\0", Version::V311, Reason::UNSUPPORTED_VERSION),
        ("level 6", b"\x10\x0c\0\x04MQTT\x06\x02\0\0\0\0", Version::V311, Reason::UNSUPPORTED_VERSION),
        ("bridge level", b"\x10\x0c\0\x04MQTT\x84\x02\0\0\0\0", Version::V311, Reason::UNSUPPORTED_VERSION),
        ("reserved flag", b"\x10\x0c\0\x04MQTT\x04\x03\0\0\0\0", Version::V311, Reason::MALFORMED),
        ("will QoS without will", b"\x10\x0c\0\x04MQTT\x04\x0a\0\0\0\0", Version::V311, Reason::MALFORMED),
        ("will QoS 3", b"\x10\x12\0\x04MQTT\x04\x1e\0\0\0\0\0\x01a\0\x01b", Version::V311, Reason::MALFORMED),
        ("password alone", b"\x10\x0f\0\x04MQTT\x04\x42\0\0\0\0\0\x01p", Version::V311, Reason::MALFORMED),
        ("bytes behind CONNECT", b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\0x", Version::V311, Reason::MALFORMED),
        ("receive maximum 0", b"\x10\x10\0\x04MQTT\x05\x02\0\0\x03\x21\0\0\0\0", Version::V311, Reason::PROTOCOL_ERROR),
        ("will topic +", b"\x10\x12\0\x04MQTT\x04\x06\0\0\0\0\0\x01+\0\x01b", Version::V311, Reason::TOPIC_INVALID),
    ];
    let wrong: Vec<_> = table
        .iter()
        .map(|(name, bytes, version, expected)| (name, reason(bytes, *version), *expected))
        .filter(|(_, found, expected)| found != expected)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn a_packet_is_judged_before_it_is_whole() {
    assert_eq!(packet(b"", Version::V311), Ok(None));
    assert_eq!(packet(b"\x30", Version::V311), Ok(None));
    assert_eq!(packet(b"\x30\x80", Version::V311), Ok(None));
    assert_eq!(reason(b"\x0f", Version::V311), Reason::MALFORMED);
    assert_eq!(reason(b"\x30\x80\x80\x40", Version::V311), Reason::PACKET_TOO_LARGE);
}

#[test]
fn a_length_padded_by_a_small_device_is_read() {
    let padded = packet(b"\xc0\x80\x00", Version::V311);
    assert_eq!(padded, Ok(Some(Packet::PingReq)));
}

#[test]
fn a_topic_may_begin_with_any_character() {
    let bytes = b"\x30\x0a\0\x08\xe8\xae\xbe\xe5\xa4\x87/1";
    let Ok(Some(Packet::Publish(publish))) = packet(bytes, Version::V311) else { panic!("publish expected") };
    assert_eq!(&*publish.topic, "设备/1");
}

fn text(max: usize) -> impl Strategy<Value = Arc<str>> {
    proptest::collection::vec(any::<char>().prop_filter("no NUL", |c| *c != '\0'), 0..max)
        .prop_map(|chars| chars.into_iter().collect::<String>().into())
}

fn topic() -> impl Strategy<Value = Arc<str>> {
    "[a-z设é/]{1,12}".prop_map(Arc::from)
}

fn bytes() -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from)
}

fn any_qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn publish_properties() -> impl Strategy<Value = Option<Box<PropertySet>>> {
    (proptest::option::of(any::<u32>()), proptest::option::of(text(8)), proptest::option::of(bytes()), text(4), text(4))
        .prop_map(|(message_expiry, content_type, correlation_data, key, value)| {
            let user = vec![(key, value)];
            Some(Box::new(PropertySet {
                message_expiry,
                content_type,
                correlation_data,
                user,
                ..PropertySet::default()
            }))
        })
}

fn any_packet(version: Version) -> impl Strategy<Value = Packet> {
    let v5 = version == Version::V5;
    let properties = move || publish_properties().prop_map(move |set| if v5 { set } else { None });
    let publish = (any::<bool>(), any_qos(), any::<bool>(), topic(), 1..=u16::MAX, bytes(), properties()).prop_map(
        |(dup, qos, retain, topic, id, payload, properties)| {
            let least = qos > Qos::AtMostOnce;
            let packet_id = if least { id } else { 0 };
            Packet::Publish(Publish { dup: dup && least, qos, retain, topic, packet_id, payload, properties })
        },
    );
    let ack = (1..=u16::MAX, any::<u8>(), proptest::option::of(text(8))).prop_map(move |(packet_id, code, reason)| {
        let properties = reason.filter(|_| v5);
        let properties = properties.map(|r| Box::new(PropertySet { reason: Some(r), ..PropertySet::default() }));
        Packet::PubRec(Ack { packet_id, reason: Reason(if v5 { code } else { 0 }), properties })
    });
    let filter =
        (topic(), any_qos(), any::<bool>(), any::<bool>(), 0..3_u8).prop_map(move |(filter, qos, nl, rap, rh)| {
            Filter {
                filter,
                qos,
                no_local: nl && v5,
                retain_as_published: rap && v5,
                retain_handling: if v5 { rh } else { 0 },
            }
        });
    let subscribe = (1..=u16::MAX, proptest::collection::vec(filter, 1..5))
        .prop_map(|(packet_id, filters)| Packet::Subscribe(Subscribe { packet_id, filters, properties: None }));
    let will = (topic(), bytes(), any_qos(), any::<bool>()).prop_map(|(topic, payload, qos, retain)| Will {
        topic,
        payload,
        qos,
        retain,
        properties: None,
    });
    let connect =
        (any::<bool>(), any::<u16>(), text(20), proptest::option::of(will), proptest::option::of(text(9)), bytes())
            .prop_map(move |(clean_start, keep_alive, client, will, user, password)| {
                let password = user.is_some().then_some(password);
                let properties = None;
                Packet::Connect(Box::new(Connect {
                    version,
                    clean_start,
                    keep_alive,
                    client,
                    will,
                    user,
                    password,
                    properties,
                }))
            });
    prop_oneof![publish, ack, subscribe, connect, Just(Packet::PingReq)]
}

fn round_trip(packet: &Packet, version: Version) {
    let mut buffer = BytesMut::from(&encode(packet, version)[..]);
    let raw = split(&mut buffer, 1 << 20).expect("whole").expect("complete");
    assert!(buffer.is_empty());
    assert_eq!(&decode(raw, version, Side::Client).expect("valid"), packet);
}

proptest! {
    #[test]
    fn what_is_written_is_read(old in any_packet(Version::V311), new in any_packet(Version::V5)) {
        round_trip(&old, Version::V311);
        round_trip(&new, Version::V5);
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..200), first in any::<u8>(), v5 in any::<bool>()) {
        let version = if v5 { Version::V5 } else { Version::V311 };
        let mut framed = vec![first, noise.len() as u8 & 0x7f];
        framed.extend_from_slice(&noise);
        for side in [Side::Client, Side::Server] {
            let mut buffer = BytesMut::from(&framed[..]);
            while let Ok(Some(raw)) = split(&mut buffer, 1000) {
                // Any outcome but a panic is right.
                drop(decode(raw, version, side));
            }
        }
    }
}

#[test]
fn server_packets_are_read_by_a_client() {
    let properties =
        Some(Box::new(PropertySet { receive_max: Some(9), server_keep_alive: Some(3), ..PropertySet::default() }));
    for (packet, version) in [
        (Packet::ConnAck(ConnAck { session_present: true, reason: Reason::SUCCESS, properties }), Version::V5),
        (
            Packet::ConnAck(ConnAck { session_present: false, reason: Reason::BAD_CREDENTIALS, properties: None }),
            Version::V311,
        ),
        (
            Packet::SubAck(Outcomes { packet_id: 7, reasons: vec![Reason(1), Reason(0x80)], properties: None }),
            Version::V311,
        ),
        (Packet::UnsubAck(Outcomes { packet_id: 7, reasons: vec![], properties: None }), Version::V311),
        (Packet::Disconnect(Goodbye { reason: Reason::TAKEN_OVER, properties: None }), Version::V5),
        (Packet::PingResp, Version::V5),
    ] {
        let mut buffer = BytesMut::from(&encode(&packet, version)[..]);
        let raw = split(&mut buffer, 4096).expect("whole").expect("complete");
        assert_eq!(decode(raw, version, Side::Server).expect("valid"), packet);
    }
}
