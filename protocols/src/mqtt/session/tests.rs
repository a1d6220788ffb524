//! Talks of a client with the session: what goes out for what comes in, without sockets.

use std::time::{Duration, Instant};

use bytes::Bytes;
use device_models::{Command, Failure, Order, Report, Value, Word};

use super::*;
use crate::exchange::{Attached, Delivery, Publication, Qos, Request};
use crate::mqtt::Options;
use crate::mqtt::frame::{ConnAck, Filter, Publish, Subscribe};

/// A client and the gateway around the session, in virtual time.
struct Talk {
    session: MqttSession,
    buffer: BytesMut,
    out: Outbox,
    now: Instant,
    version: Version,
}

#[allow(clippy::disallowed_methods, reason = "a starting point for virtual time")]
fn start() -> Instant {
    Instant::now()
}

fn peer() -> Peer {
    Peer { address: None, adapter: Arc::from("mqtt"), seed: [7; 32], secure: false }
}

impl Talk {
    fn new(options: &str) -> Self {
        let options: Options = toml::from_str(options).expect("options");
        let settings = Arc::new(Settings::check(&options).expect("settings"));
        let session = MqttSession::new(settings, &peer());
        Self { session, buffer: BytesMut::new(), out: Outbox::default(), now: start(), version: Version::V311 }
    }

    fn up(version: Version, options: &str) -> Self {
        let mut talk = Self::new(options);
        talk.connect(connect(version)).expect("no fault");
        talk.take();
        talk
    }

    fn connect(&mut self, connect: Connect) -> Result<(), Fault> {
        self.version = connect.version;
        self.client(&Packet::Connect(Box::new(connect)))?;
        let Some(Output::Admit { ticket, .. }) = self.out.pop() else { panic!("admission expected") };
        self.input(Input::Admission { ticket, outcome: Ok(Identity::anonymous()) })?;
        let Some(Output::Exchange(Request::Attach { ticket, expiry, .. })) = self.out.pop() else {
            panic!("attach expected")
        };
        let attached = Attached { session_present: false, expiry, unreleased: vec![9] };
        self.exchange(Event::Attached { ticket, outcome: Ok(attached) })
    }

    fn input(&mut self, input: Input<'_>) -> Result<(), Fault> {
        self.session.receive(self.now, input, &mut self.out)
    }

    fn exchange(&mut self, event: Event) -> Result<(), Fault> {
        self.input(Input::Exchange(event))
    }

    fn client(&mut self, packet: &Packet) -> Result<(), Fault> {
        self.raw(&frame::encode(packet, self.version))
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.buffer.extend_from_slice(bytes);
        self.feed()
    }

    fn feed(&mut self) -> Result<(), Fault> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = self.session.receive(self.now, Input::Stream(&mut buffer), &mut self.out);
        self.buffer = buffer;
        outcome
    }

    fn take(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.out.pop()).collect()
    }

    /// The packets that went out; other outputs are dropped.
    fn sent(&mut self) -> Vec<Packet> {
        let mut bytes = BytesMut::new();
        for output in self.take() {
            if let Output::Send(part) = output {
                bytes.extend_from_slice(&part);
            }
        }
        let mut packets = Vec::new();
        while let Some(raw) = frame::split(&mut bytes, 1 << 20).expect("a packet") {
            packets.push(frame::decode(raw, self.version, Side::Server).expect("a server's packet"));
        }
        assert!(bytes.is_empty());
        packets
    }

    /// Publishes and gives the ticket and the reports of the request.
    fn publish(&mut self, publish: Publish) -> (Option<Ticket>, Publication, Vec<Report>) {
        self.client(&Packet::Publish(publish)).expect("no fault");
        self.published().expect("a publication")
    }

    fn published(&mut self) -> Option<(Option<Ticket>, Publication, Vec<Report>)> {
        self.take().into_iter().find_map(|output| match output {
            Output::Exchange(Request::Publish { ticket, publication, reports, .. }) => {
                Some((ticket, publication, reports))
            }
            _ => None,
        })
    }

    fn settle(&mut self, ticket: Ticket, outcome: Result<(), Refusal>) -> Result<(), Fault> {
        self.input(Input::Settled { ticket, outcome })
    }
}

fn connect(version: Version) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive: 60,
        client: Arc::from("dev-1"),
        will: None,
        user: None,
        password: None,
        properties: None,
    }
}

fn publish(topic: &str, payload: &str, qos: Qos, packet_id: u16) -> Publish {
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Publish { dup: false, qos, retain: false, topic: Arc::from(topic), packet_id, payload, properties: None }
}

fn code(packet: &Packet) -> (u16, Reason) {
    match packet {
        Packet::PubAck(ack) | Packet::PubRec(ack) | Packet::PubComp(ack) | Packet::PubRel(ack) => {
            (ack.packet_id, ack.reason)
        }
        Packet::ConnAck(ConnAck { reason, .. }) => (0, *reason),
        Packet::Disconnect(goodbye) => (0, goodbye.reason),
        other => panic!("no code in {other:?}"),
    }
}

const JETLINKS: &str = "/meter/m-1/properties/report";

#[test]
fn an_idle_session_is_small() {
    assert!(size_of::<MqttSession>() <= 512, "{} bytes", size_of::<MqttSession>());
}

#[test]
fn three_versions_on_one_port() {
    for version in [Version::V31, Version::V311, Version::V5] {
        let mut talk = Talk::new("");
        talk.connect(connect(version)).expect("no fault");
        let sent = talk.sent();
        assert_eq!(code(&sent[0]), (0, Reason::SUCCESS), "{version:?}");
    }
}

#[test]
fn puback_only_after_settled_and_in_order() {
    let mut talk = Talk::up(Version::V311, "");
    let (first, _, reports) = talk.publish(publish(JETLINKS, r#"{"properties":{"u":1}}"#, Qos::AtLeastOnce, 1));
    assert_eq!(reports[0].device, "m-1");
    let (second, ..) = talk.publish(publish("设备/1", "x", Qos::ExactlyOnce, 2));
    talk.settle(second.unwrap(), Ok(())).unwrap();
    assert!(talk.sent().is_empty(), "the first is not settled");
    talk.settle(first.unwrap(), Ok(())).unwrap();
    let sent = talk.sent();
    assert!(matches!(&sent[..], [Packet::PubAck(a), Packet::PubRec(b)] if a.packet_id == 1 && b.packet_id == 2));
}

#[test]
fn qos2_duplicate_is_not_published_twice() {
    let mut talk = Talk::up(Version::V311, "");
    let (ticket, ..) = talk.publish(publish("a", "x", Qos::ExactlyOnce, 5));
    let again = Packet::Publish(Publish { dup: true, ..publish("a", "x", Qos::ExactlyOnce, 5) });
    talk.client(&again).unwrap();
    assert!(talk.take().is_empty(), "neither a PUBREC before it is stored nor a second publication");
    talk.settle(ticket.unwrap(), Ok(())).unwrap();
    talk.take();
    talk.client(&again).unwrap();
    assert!(matches!(talk.sent()[..], [Packet::PubRec(_)]));
    talk.raw(b"\x62\x02\0\x05").unwrap();
    assert!(matches!(talk.take()[..], [Output::Exchange(Request::Release { packet_id: 5 }), Output::Send(_)]));
}

#[test]
fn qos2_ids_of_an_earlier_connection() {
    let mut talk = Talk::up(Version::V311, "");
    let repeated = Publish { dup: true, ..publish("a", "x", Qos::ExactlyOnce, 9) };
    talk.client(&Packet::Publish(repeated)).unwrap();
    assert!(matches!(talk.sent()[..], [Packet::PubRec(_)]), "taken before the reconnect");
    let (ticket, ..) = talk.publish(publish("a", "new", Qos::ExactlyOnce, 9));
    assert!(ticket.is_some(), "a first sending reuses the id");
}

#[test]
fn dead_keepalive_with_traffic() {
    let mut talk = Talk::up(Version::V5, "");
    let start = talk.now;
    for second in 0..90 {
        talk.now = start + Duration::from_secs(second);
        let publication = Publication {
            topic: Arc::from("a"),
            payload: Bytes::new(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: None,
        };
        let delivery = Delivery { id: 0, publication, dup: false, subscription_identifiers: vec![], command: None };
        talk.exchange(Event::Deliver(delivery)).unwrap();
        talk.session.tick(talk.now, &mut talk.out);
    }
    assert_eq!(talk.session.deadline(), Some(start + Duration::from_secs(90)), "outgoing traffic changes nothing");
    talk.take();
    talk.now = start + Duration::from_secs(90);
    talk.session.tick(talk.now, &mut talk.out);
    let outputs = talk.take();
    assert!(matches!(&outputs[..], [Output::Send(_), Output::Close { .. }]), "{outputs:?}");
}

#[test]
fn keep_alive_zero_is_none() {
    let mut talk = Talk::new("");
    talk.connect(Connect { keep_alive: 0, ..connect(Version::V311) }).unwrap();
    assert_eq!(talk.session.deadline(), None);
    let mut talk = Talk::new("keep_alive_max_seconds = 10");
    talk.connect(Connect { keep_alive: 0, ..connect(Version::V5) }).unwrap();
    assert_eq!(talk.session.deadline(), Some(talk.now + Duration::from_secs(15)));
    let sent = talk.sent();
    let Packet::ConnAck(ack) = &sent[0] else { panic!("CONNACK expected") };
    assert_eq!(ack.properties.as_ref().and_then(|set| set.server_keep_alive), Some(10));
}

#[test]
fn refusals_are_said_in_the_words_of_the_version() {
    for (version, refusal, expected) in [
        (Version::V311, Refusal::Unauthorized, Reason::BAD_CREDENTIALS),
        (Version::V311, Refusal::Forbidden(String::new()), Reason::NOT_AUTHORIZED),
        (Version::V311, Refusal::Limit(String::new()), Reason::SERVER_UNAVAILABLE),
        (Version::V5, Refusal::Limit(String::new()), Reason::QUOTA_EXCEEDED),
        (Version::V5, Refusal::Unauthorized, Reason::BAD_CREDENTIALS),
    ] {
        let mut talk = Talk::new("");
        talk.version = version;
        talk.client(&Packet::Connect(Box::new(connect(version)))).unwrap();
        let Some(Output::Admit { ticket, .. }) = talk.out.pop() else { panic!("admission expected") };
        let fault = talk.input(Input::Admission { ticket, outcome: Err(refusal) }).unwrap_err();
        assert!(fault.fatal);
        assert_eq!(code(&talk.sent()[0]), (0, expected));
    }
    let mut talk = Talk::new("");
    assert!(talk.raw(b"\x10\x0c\0\x04MQTT\x06\x02\0\0\0\0").unwrap_err().fatal);
    assert!(matches!(&talk.take()[..], [Output::Send(bytes)] if bytes[..] == *b"\x20\x02\0\x01"));
}

#[test]
fn an_empty_client_id_gets_one() {
    let mut talk = Talk::new("");
    talk.connect(Connect { client: Arc::from(""), ..connect(Version::V5) }).unwrap();
    let sent = talk.sent();
    let Packet::ConnAck(ack) = &sent[0] else { panic!("CONNACK expected") };
    assert!(ack.properties.as_ref().unwrap().assigned_client.as_ref().unwrap().starts_with("sg-0707"));
    let mut talk = Talk::new("");
    let kept = Connect { client: Arc::from(""), clean_start: false, ..connect(Version::V311) };
    assert!(talk.client(&Packet::Connect(Box::new(kept))).is_err());
    assert_eq!(code(&talk.sent()[0]), (0, Reason::CLIENT_ID_NOT_VALID));
}

#[test]
fn bytes_behind_connect_wait_for_the_admission() {
    let mut talk = Talk::new("");
    let mut bytes = frame::encode(&Packet::Connect(Box::new(connect(Version::V311))), Version::V311).to_vec();
    bytes.extend_from_slice(b"\xc0\0");
    talk.raw(&bytes).unwrap();
    assert!(talk.session.paused());
    assert_eq!(talk.buffer.len(), 2);
    assert_eq!(talk.session.deadline(), None, "its silence is ours");
}

#[test]
fn an_old_client_is_held_back_and_a_new_one_is_judged() {
    let mut talk = Talk::up(Version::V311, "receive_max = 2");
    let mut tickets = Vec::new();
    for id in 1..=2 {
        tickets.push(talk.publish(publish("a", "x", Qos::AtLeastOnce, id)).0.unwrap());
    }
    assert!(talk.session.paused());
    talk.client(&Packet::Publish(publish("a", "y", Qos::AtLeastOnce, 3))).unwrap();
    assert!(talk.published().is_none(), "unread");
    talk.settle(tickets[0], Ok(())).unwrap();
    assert!(!talk.session.paused());
    talk.feed().unwrap();
    assert!(talk.published().is_some(), "read on");

    let mut talk = Talk::up(Version::V5, "receive_max = 2");
    let first = talk.publish(publish("a", "x", Qos::AtLeastOnce, 1)).0.unwrap();
    let second = talk.publish(publish("a", "x", Qos::ExactlyOnce, 2)).0.unwrap();
    talk.client(&Packet::Publish(publish("a", "x", Qos::AtLeastOnce, 3))).unwrap();
    talk.settle(first, Ok(())).unwrap();
    let fault = talk.settle(second, Ok(())).unwrap_err();
    assert!(fault.fatal);
    let codes: Vec<_> = talk.sent().iter().map(code).collect();
    let owed_first = [(1, Reason::SUCCESS), (2, Reason::SUCCESS), (0, Reason::RECEIVE_MAX_EXCEEDED)];
    assert_eq!(codes, owed_first);
}

#[test]
fn malformed_json_is_not_called_stored() {
    let mut talk = Talk::up(Version::V5, "");
    let fault = talk.client(&Packet::Publish(publish(JETLINKS, "{", Qos::AtLeastOnce, 1))).unwrap_err();
    assert!(!fault.fatal, "{fault}");
    assert_eq!(code(&talk.sent()[0]), (1, Reason::PAYLOAD_FORMAT_INVALID));
    let mut talk = Talk::up(Version::V311, "");
    assert!(talk.client(&Packet::Publish(publish(JETLINKS, "{", Qos::AtMostOnce, 0))).is_err());
    assert!(talk.published().is_none());
}

#[test]
fn what_could_not_be_stored_is_sent_again_by_an_old_client() {
    let mut talk = Talk::up(Version::V311, "");
    let (ticket, ..) = talk.publish(publish("a", "x", Qos::AtLeastOnce, 1));
    let fault = talk.settle(ticket.unwrap(), Err(Refusal::Unavailable("disk full".to_owned()))).unwrap_err();
    assert!(fault.fatal && fault.whose == crate::session::Whose::Ours);
    assert!(talk.sent().is_empty(), "no acknowledgement");
}

#[test]
fn topic_aliases_both_ways() {
    let mut talk = Talk::new("topic_alias_max = 2");
    let offers = Some(Box::new(PropertySet { topic_alias_max: Some(1), ..PropertySet::default() }));
    talk.connect(Connect { properties: offers, ..connect(Version::V5) }).unwrap();
    talk.take();
    let aliased = |topic: &str, alias| {
        let set = PropertySet { topic_alias: Some(alias), ..PropertySet::default() };
        Publish { properties: Some(Box::new(set)), ..publish(topic, "x", Qos::AtMostOnce, 0) }
    };
    talk.publish(aliased("a/1", 2));
    assert_eq!(&*talk.publish(aliased("", 2)).1.topic, "a/1");
    let mut topics = Vec::new();
    for topic in ["b/1", "b/2", "b/1"] {
        let publication = Publication {
            topic: Arc::from(topic),
            payload: Bytes::new(),
            qos: Qos::AtMostOnce,
            retain: false,
            properties: None,
        };
        let delivery = Delivery { id: 0, publication, dup: false, subscription_identifiers: vec![], command: None };
        talk.exchange(Event::Deliver(delivery)).unwrap();
        let Packet::Publish(publish) = talk.sent().remove(0) else { panic!("publish expected") };
        topics.push((publish.topic.to_string(), publish.properties.and_then(|set| set.topic_alias)));
    }
    assert_eq!(topics, [("b/1".into(), Some(1)), ("b/2".into(), None), (String::new(), Some(1))]);
    assert!(talk.client(&Packet::Publish(aliased("a", 3))).unwrap_err().fatal);
    assert_eq!(code(&talk.sent()[0]), (0, Reason::TOPIC_ALIAS_INVALID));
}

#[test]
fn each_filter_gets_its_outcome() {
    let mut talk = Talk::up(Version::V5, "");
    let filter = |filter: &str| Filter {
        filter: Arc::from(filter),
        qos: Qos::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: 0,
    };
    let filters = ["a/#/b", "设备/#", "v1/devices/me/rpc/request/+"].map(filter).to_vec();
    talk.client(&Packet::Subscribe(Subscribe { packet_id: 7, filters, properties: None })).unwrap();
    let Some(Output::Exchange(Request::Subscribe { ticket, subscriptions })) = talk.out.pop() else {
        panic!("subscribe expected")
    };
    let asked: Vec<_> = subscriptions.iter().map(|s| &*s.filter).collect();
    assert_eq!(asked, ["设备/#", "v1/devices/dev-1/rpc/request/+"]);
    let outcomes = vec![Ok(Qos::AtLeastOnce), Err(Refusal::Forbidden(String::new()))];
    talk.exchange(Event::Subscribed { ticket, outcomes }).unwrap();
    let sent = talk.sent();
    let Packet::SubAck(ack) = &sent[0] else { panic!("SUBACK expected") };
    assert_eq!(ack.reasons, [Reason::FILTER_INVALID, Reason(1), Reason::NOT_AUTHORIZED]);
}

fn write(id: &str) -> Command {
    Command {
        id: id.to_owned(),
        device: "m-1".to_owned(),
        product: "meter".to_owned(),
        order: Order::Write(vec![("r".to_owned(), Value::Int(1))]),
        patience: Duration::from_secs(5),
    }
}

#[test]
fn a_command_goes_down_and_its_reply_comes_back() {
    let mut talk = Talk::up(Version::V311, "");
    talk.publish(publish(JETLINKS, r#"{"properties":{"u":1}}"#, Qos::AtMostOnce, 0));
    talk.input(Input::Command(write("c/7"))).unwrap();
    let Some(Output::Exchange(Request::Command { publication, .. })) = talk.out.pop() else {
        panic!("command expected")
    };
    assert_eq!(&*publication.topic, "/meter/m-1/properties/write");
    let body: serde_json::Value = serde_json::from_slice(&publication.payload).unwrap();
    let wire = body["messageId"].as_str().unwrap().to_owned();
    let reply = format!(r#"{{"messageId":"{wire}","success":true,"properties":{{"r":1}}}}"#);
    let (_, _, reports) = talk.publish(publish("/meter/m-1/properties/write/reply", &reply, Qos::AtMostOnce, 0));
    assert!(matches!(&reports[0].word, Word::Reply { id, outcome: Ok(_) } if id == "c/7"), "{reports:?}");
}

#[test]
fn a_command_without_a_subscriber_names_the_topic() {
    let mut talk = Talk::up(Version::V311, "dialects = ['jetlinks', 'thingsboard']");
    talk.input(Input::Command(write("c-7"))).unwrap();
    for _ in 0..2 {
        let Some(Output::Exchange(Request::Command { ticket, publication })) = talk.out.pop() else {
            panic!("command expected")
        };
        let outcome = Err(Refusal::NotFound(publication.topic.to_string()));
        talk.exchange(Event::Commanded { ticket, outcome }).unwrap();
    }
    let Some(Output::Answer { id, outcome: Err(Failure::Unsupported(why)) }) = talk.out.pop() else {
        panic!("answer expected")
    };
    assert_eq!(id, "c-7");
    assert!(why.contains("must subscribe"), "{why}");
}

#[test]
fn an_acknowledgement_answers_where_no_reply_will_come() {
    let mut talk = Talk::up(Version::V311, "dialects = ['thingsboard']");
    talk.input(Input::Command(Command { device: "dev-1".to_owned(), ..write("c-7") })).unwrap();
    let Some(Output::Exchange(Request::Command { ticket, publication })) = talk.out.pop() else {
        panic!("command expected")
    };
    assert_eq!(&*publication.topic, "v1/devices/dev-1/attributes");
    talk.exchange(Event::Commanded { ticket, outcome: Ok(()) }).unwrap();
    let delivery = Delivery { id: 3, publication, dup: false, subscription_identifiers: vec![], command: Some(ticket) };
    talk.exchange(Event::Deliver(delivery)).unwrap();
    let sent = talk.sent();
    assert!(matches!(&sent[0], Packet::Publish(publish) if &*publish.topic == "v1/devices/me/attributes"));
    talk.raw(b"\x40\x02\0\x03").unwrap();
    let outputs = talk.take();
    assert!(matches!(&outputs[1], Output::Answer { outcome: Ok(Value::Null), .. }), "{outputs:?}");
}

#[test]
fn first_packet_must_be_connect_and_only_once() {
    let mut talk = Talk::new("");
    assert!(talk.raw(b"\xc0\0").unwrap_err().fatal);
    let mut talk = Talk::up(Version::V5, "");
    let fault = talk.client(&Packet::Connect(Box::new(connect(Version::V5)))).unwrap_err();
    assert!(fault.fatal);
    assert_eq!(code(&talk.sent()[0]), (0, Reason::PROTOCOL_ERROR));
}
