//! Real MQTT sessions on a real exchange, without sockets: every fault of brokers in the field that applies is a test.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use protocols::exchange::Qos;
use protocols::mqtt::frame::{
    self, Ack, ConnAck, Connect, Filter, Goodbye, Outcomes, Packet, PropertySet, Publish, Reason, Side, Subscribe,
    Unsubscribe, Version, Will,
};
use protocols::{Endpoint, Input, Outbox, Output, Peer, Reach, Session, Ticket};
use tempfile::TempDir;

use super::*;
use crate::bus::Bus;

/// A gateway's exchange on a store of its own.
struct Door {
    broker: Broker,
    bus: Bus,
    tasks: Tasks,
    wills: mpsc::Receiver<WillReport>,
    folder: Arc<TempDir>,
}

impl Door {
    async fn open() -> Self {
        Self::open_with(&config::Broker::default(), Arc::new(TempDir::new().expect("folder"))).await
    }

    async fn open_with(config: &config::Broker, folder: Arc<TempDir>) -> Self {
        let tasks = Tasks::new();
        let store = config::Store { path: folder.path().to_owned(), ..config::Store::default() };
        let (bus, _) = tasks.blocking(move || Bus::open(&store)).await.expect("joined").expect("bus");
        let gatekeeper = Arc::new(Gatekeeper::new(Vec::new(), tasks.clone()));
        let (broker, wills) = Broker::open(config, bus.keyed(), gatekeeper, &tasks).expect("broker");
        Self { broker, bus, tasks, wills, folder }
    }

    /// Stops and starts on the same store.
    async fn restart(self) -> Self {
        self.tasks.join(Duration::from_secs(2)).await;
        self.bus.close().await;
        drop(self.broker);
        Self::open_with(&config::Broker::default(), self.folder).await
    }

    async fn client(&self, connect: Connect) -> Client {
        let mut client = Client::new(self, connect.version);
        client.send(&Packet::Connect(Box::new(connect))).await;
        client
    }

    /// Connected, with its CONNACK read.
    async fn up(&self, connect: Connect) -> Client {
        let mut client = self.client(connect).await;
        let Packet::ConnAck(ack) = client.read().await else { panic!("CONNACK expected") };
        assert_eq!(ack.reason, Reason::SUCCESS);
        client.present = ack.session_present;
        client
    }
}

/// A client, its session and what the driver does between them.
struct Client {
    broker: Broker,
    session: Box<dyn Session>,
    attachment: Option<Attachment>,
    buffer: BytesMut,
    received: BytesMut,
    out: Outbox,
    waiting: VecDeque<(Ticket, u64)>,
    version: Version,
    present: bool,
    closed: Option<String>,
}

impl Client {
    fn new(door: &Door, version: Version) -> Self {
        let endpoint: Arc<dyn Endpoint> = protocols::protocol("mqtt")
            .expect("row")
            .configure(&"receive_max = 500".parse().unwrap())
            .expect("options");
        let peer = Peer { address: None, adapter: Arc::from("mqtt"), seed: [1; 32], secure: false };
        Self {
            broker: door.broker.clone(),
            session: endpoint.open(&peer),
            attachment: None,
            buffer: BytesMut::new(),
            received: BytesMut::new(),
            out: Outbox::default(),
            waiting: VecDeque::new(),
            version,
            present: false,
            closed: None,
        }
    }

    async fn send(&mut self, packet: &Packet) {
        self.buffer.extend_from_slice(&frame::encode(packet, self.version));
        self.pump().await;
    }

    async fn pump(&mut self) {
        loop {
            let before = self.buffer.len();
            let mut buffer = std::mem::take(&mut self.buffer);
            self.feed(|session, out| session.receive(Instant::now(), Input::Stream(&mut buffer), out));
            self.buffer = buffer;
            self.carry_out().await;
            if self.closed.is_some() || self.buffer.is_empty() || self.buffer.len() == before {
                return;
            }
        }
    }

    fn feed(&mut self, input: impl FnOnce(&mut dyn Session, &mut Outbox) -> Result<(), protocols::Fault>) {
        if let Err(fault) = input(&mut *self.session, &mut self.out)
            && fault.fatal
        {
            self.closed = Some(fault.to_string());
        }
    }

    fn input(&mut self, input: Input<'_>) {
        self.feed(|session, out| session.receive(Instant::now(), input, out));
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.out.pop() {
            match output {
                Output::Send(bytes) => self.received.extend_from_slice(&bytes),
                Output::Admit { ticket, claim } => {
                    let protocols::Claim::Device { user, .. } = claim else { panic!("a device's claim") };
                    let name = Arc::from(user.unwrap_or_else(|| "anonymous".to_owned()));
                    self.input(Input::Admission { ticket, outcome: Ok(Identity { name, reach: Reach::Any }) });
                }
                Output::Exchange(request) => Box::pin(self.exchange(request)).await,
                Output::Close { reason } => {
                    self.closed = Some(reason.to_string());
                    self.attachment = None;
                }
                _ => {}
            }
        }
        if self.closed.is_some() {
            self.attachment = None;
        }
    }

    async fn exchange(&mut self, request: Request) {
        match request {
            Request::Attach { .. } => {
                let event = match self.broker.attach(request, &adapter()).await {
                    Ok((attachment, event)) => {
                        self.attachment = Some(attachment);
                        event
                    }
                    Err(event) => event,
                };
                self.input(Input::Exchange(event));
            }
            Request::Publish { ticket, publication, packet_id, .. } => {
                let Some(attachment) = &mut self.attachment else { return };
                let outcome = attachment.publish(publication, packet_id).await;
                let Some(ticket) = ticket else { return };
                match outcome {
                    Ok(published) if published.kept > 0 => self.waiting.push_back((ticket, published.kept)),
                    outcome => self.input(Input::Settled { ticket, outcome: outcome.map(drop) }),
                }
            }
            other => {
                let Some(attachment) = &mut self.attachment else { return };
                if let Some(event) = attachment.request(other).await {
                    self.input(Input::Exchange(event));
                }
            }
        }
    }

    /// The next packet for the client, or `None` once its connection is closed.
    async fn try_read(&mut self) -> Option<Packet> {
        loop {
            if let Some(raw) = frame::split(&mut self.received, 1 << 24).expect("a packet") {
                return Some(frame::decode(raw, self.version, Side::Server).expect("a server's packet"));
            }
            if let Some((ticket, change)) = self.waiting.pop_front() {
                let mut kept = self.broker.kept();
                kept.wait_for(|kept| kept.settled(change) == Some(true)).await.expect("durable");
                self.input(Input::Settled { ticket, outcome: Ok(()) });
            } else {
                let event = self.attachment.as_mut()?.next().await;
                self.input(Input::Exchange(event));
            }
            self.carry_out().await;
        }
    }

    async fn read(&mut self) -> Packet {
        let read = tokio::time::timeout(Duration::from_secs(10), self.try_read()).await.expect("in time");
        read.unwrap_or_else(|| panic!("closed: {:?}", self.closed))
    }

    /// Whether nothing more comes: a ping is answered after everything that was there.
    async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(150), self.try_read()).await.is_err()
    }

    async fn message(&mut self) -> Publish {
        match self.read().await {
            Packet::Publish(publish) => publish,
            other => panic!("PUBLISH expected, found {other:?}"),
        }
    }

    /// Takes a message and acknowledges it as its QoS asks.
    async fn take(&mut self) -> Publish {
        let publish = self.message().await;
        match publish.qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.send(&Packet::PubAck(ack(publish.packet_id))).await,
            Qos::ExactlyOnce => {
                self.send(&Packet::PubRec(ack(publish.packet_id))).await;
                assert!(matches!(self.read().await, Packet::PubRel(_)));
                self.send(&Packet::PubComp(ack(publish.packet_id))).await;
            }
        }
        publish
    }

    async fn subscribe(&mut self, filter: &str, qos: Qos) -> Reason {
        self.subscribe_with(filter, qos, |_, _| {}).await
    }

    async fn subscribe_with(
        &mut self,
        filter: &str,
        qos: Qos,
        change: impl FnOnce(&mut Filter, &mut PropertySet),
    ) -> Reason {
        let mut filter =
            Filter { filter: Arc::from(filter), qos, no_local: false, retain_as_published: false, retain_handling: 0 };
        let mut set = PropertySet::default();
        change(&mut filter, &mut set);
        let properties = (self.version == Version::V5).then(|| Box::new(set));
        let filters = vec![filter];
        self.send(&Packet::Subscribe(Subscribe { packet_id: 77, filters, properties })).await;
        match self.read().await {
            Packet::SubAck(Outcomes { packet_id: 77, reasons, .. }) => reasons[0],
            other => panic!("SUBACK expected, found {other:?}"),
        }
    }

    async fn publish(&mut self, topic: &str, payload: &str, qos: Qos) -> Reason {
        self.publish_with(topic, payload, qos, |_| {}).await
    }

    async fn publish_with(
        &mut self,
        topic: &str,
        payload: &str,
        qos: Qos,
        change: impl FnOnce(&mut Publish),
    ) -> Reason {
        let mut publish = message(topic, payload, qos, 5);
        change(&mut publish);
        let packet_id = publish.packet_id;
        self.send(&Packet::Publish(publish)).await;
        match qos {
            Qos::AtMostOnce => Reason::SUCCESS,
            Qos::AtLeastOnce => match self.read().await {
                Packet::PubAck(ack) => ack.reason,
                other => panic!("PUBACK expected, found {other:?}"),
            },
            Qos::ExactlyOnce => {
                let Packet::PubRec(answer) = self.read().await else { panic!("PUBREC expected") };
                self.send(&Packet::PubRel(ack(packet_id))).await;
                assert!(matches!(self.read().await, Packet::PubComp(_)));
                answer.reason
            }
        }
    }

    async fn disconnect(mut self) {
        self.send(&Packet::Disconnect(Goodbye { reason: Reason::SUCCESS, properties: None })).await;
        assert!(self.closed.is_some());
    }
}

fn adapter() -> Arc<AdapterInfo> {
    Arc::new(AdapterInfo { name: Arc::from("mqtt"), product: None, auto_register: false, allow_anonymous: true })
}

fn ack(packet_id: u16) -> Ack {
    Ack { packet_id, reason: Reason::SUCCESS, properties: None }
}

fn message(topic: &str, payload: &str, qos: Qos, packet_id: u16) -> Publish {
    let packet_id = if qos == Qos::AtMostOnce { 0 } else { packet_id };
    let payload = Bytes::copy_from_slice(payload.as_bytes());
    Publish { dup: false, qos, retain: false, topic: Arc::from(topic), packet_id, payload, properties: None }
}

fn connect(client: &str, version: Version) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive: 60,
        client: Arc::from(client),
        will: None,
        user: None,
        password: None,
        properties: None,
    }
}

fn old(client: &str) -> Connect {
    connect(client, Version::V311)
}

fn new(client: &str) -> Connect {
    connect(client, Version::V5)
}

fn kept(client: &str) -> Connect {
    Connect { clean_start: false, ..old(client) }
}

fn will(topic: &str, delay: u32) -> Will {
    let properties = (delay > 0).then(|| Box::new(PropertySet { will_delay: Some(delay), ..PropertySet::default() }));
    Will { topic: Arc::from(topic), payload: Bytes::from("gone"), qos: Qos::AtLeastOnce, retain: false, properties }
}

fn expiring(connect: Connect, seconds: u32) -> Connect {
    let set = PropertySet { session_expiry: Some(seconds), ..PropertySet::default() };
    Connect { properties: Some(Box::new(set)), ..connect }
}

const QOS: [Qos; 3] = [Qos::AtMostOnce, Qos::AtLeastOnce, Qos::ExactlyOnce];

// === messages ===

#[tokio::test]
async fn topic_first_char_not_ascii() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("设备/#", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    device.publish("设备/1", "你好", Qos::AtLeastOnce).await;
    let message = listener.take().await;
    assert_eq!((&*message.topic, &message.payload[..]), ("设备/1", "你好".as_bytes()));
}

#[tokio::test]
async fn qos_out_is_the_lower_of_both() {
    let door = Door::open().await;
    for published in QOS {
        for subscribed in QOS {
            let mut listener = door.up(old("l")).await;
            assert_eq!(listener.subscribe("a", subscribed).await, Reason(subscribed as u8));
            let mut device = door.up(new("d")).await;
            device.publish("a", "x", published).await;
            assert_eq!(listener.take().await.qos, published.min(subscribed));
        }
    }
}

#[tokio::test]
async fn qos2_duplicate_not_delivered_twice() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("a", Qos::ExactlyOnce).await;
    let mut device = door.up(kept("d")).await;
    device.send(&Packet::Publish(message("a", "one", Qos::ExactlyOnce, 5))).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    drop(device);
    // The connection is lost before the release; the client repeats on the next one.
    let mut device = door.up(kept("d")).await;
    let again = Publish { dup: true, ..message("a", "one", Qos::ExactlyOnce, 5) };
    device.send(&Packet::Publish(again)).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    device.send(&Packet::PubRel(ack(5))).await;
    assert!(matches!(device.read().await, Packet::PubComp(answer) if answer.reason == Reason::SUCCESS));
    device.publish("a", "two", Qos::ExactlyOnce).await;
    assert_eq!(listener.take().await.payload, "one");
    assert_eq!(listener.take().await.payload, "two");
    assert!(listener.is_quiet().await);
}

#[tokio::test]
async fn acks_out_of_order_and_unsolicited_are_taken() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for payload in ["1", "2", "3"] {
        device.publish("a", payload, Qos::AtLeastOnce).await;
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(listener.message().await.packet_id);
    }
    for id in [ids[2], 999, ids[0], ids[1]] {
        listener.send(&Packet::PubAck(ack(id))).await;
    }
    assert!(listener.closed.is_none());
    assert_eq!(door.broker.stat().queued_bytes, 0);
}

#[tokio::test]
async fn overlapping_subscriptions_give_one_copy_with_all_identifiers() {
    let door = Door::open().await;
    let mut listener = door.up(new("l")).await;
    for (filter, qos, identifier) in
        [("a/#", Qos::AtMostOnce, 1), ("a/+", Qos::ExactlyOnce, 2), ("+/b", Qos::AtLeastOnce, 3)]
    {
        listener.subscribe_with(filter, qos, |_, set| set.subscription_identifiers = vec![identifier]).await;
    }
    let mut device = door.up(new("d")).await;
    device.publish("a/b", "x", Qos::ExactlyOnce).await;
    let message = listener.take().await;
    let mut identifiers = message.properties.expect("properties").subscription_identifiers;
    identifiers.sort_unstable();
    assert_eq!((message.qos, identifiers), (Qos::ExactlyOnce, vec![1, 2, 3]));
    assert!(listener.is_quiet().await, "one copy");
}

#[tokio::test]
async fn subscription_options_are_kept_to() {
    let door = Door::open().await;
    let mut client = door.up(new("c")).await;
    client.subscribe_with("own", Qos::AtMostOnce, |filter, _| filter.no_local = true).await;
    client.subscribe_with("kept", Qos::AtMostOnce, |filter, _| filter.retain_as_published = true).await;
    client.publish("own", "x", Qos::AtMostOnce).await;
    client.publish_with("kept", "y", Qos::AtMostOnce, |publish| publish.retain = true).await;
    let message = client.take().await;
    assert_eq!((&*message.topic, message.retain), ("kept", true));
    // Handling 1: retained messages only for a new subscription. Handling 2: never.
    client.subscribe_with("kept", Qos::AtMostOnce, |filter, _| filter.retain_handling = 1).await;
    assert!(client.is_quiet().await);
    client.subscribe_with("+", Qos::AtMostOnce, |filter, _| filter.retain_handling = 2).await;
    assert!(client.is_quiet().await);
    client.subscribe("kept", Qos::AtMostOnce).await;
    assert_eq!(client.take().await.payload, "y", "sent anew at every subscription");
}

#[tokio::test]
async fn v5_properties_to_v311_subscriber() {
    let door = Door::open().await;
    let mut old_one = door.up(old("o")).await;
    let mut new_one = door.up(new("n")).await;
    old_one.subscribe("a", Qos::AtLeastOnce).await;
    new_one.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(new("d")).await;
    let set = PropertySet {
        content_type: Some(Arc::from("text/plain")),
        user: vec![(Arc::from("k"), Arc::from("v"))],
        payload_format: Some(1),
        ..PropertySet::default()
    };
    device.publish_with("a", "x", Qos::AtLeastOnce, |publish| publish.properties = Some(Box::new(set.clone()))).await;
    assert_eq!(old_one.take().await.payload, "x");
    assert_eq!(new_one.take().await.properties.as_deref(), Some(&set));
}

#[tokio::test]
async fn shared_members_share_and_a_dropped_one_with_unacked_messages_harms_nobody() {
    let door = Door::open().await;
    let mut one = door.up(kept("one")).await;
    let mut two = door.up(old("two")).await;
    for member in [&mut one, &mut two] {
        member.subscribe("$share/g/a/#", Qos::AtLeastOnce).await;
        member.subscribe("$share/g/b", Qos::AtLeastOnce).await;
    }
    let mut device = door.up(old("d")).await;
    for _ in 0..4 {
        device.publish("a/1", "x", Qos::AtLeastOnce).await;
    }
    one.message().await;
    drop(one);
    for _ in 0..3 {
        device.publish("b", "y", Qos::AtLeastOnce).await;
    }
    let mut topics = Vec::new();
    for _ in 0..5 {
        topics.push(two.take().await.topic.to_string());
    }
    assert_eq!(topics, ["a/1", "a/1", "b", "b", "b"]);
    let mut one = door.up(kept("one")).await;
    assert!(one.take().await.dup);
}

#[tokio::test]
async fn a_client_gets_no_more_in_flight_than_it_takes() {
    let door = Door::open().await;
    let set = PropertySet { receive_max: Some(2), ..PropertySet::default() };
    let mut listener = door.up(Connect { properties: Some(Box::new(set)), ..new("l") }).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for _ in 0..5 {
        device.publish("a", "x", Qos::AtLeastOnce).await;
    }
    let first = listener.message().await.packet_id;
    listener.message().await;
    assert!(listener.is_quiet().await);
    listener.send(&Packet::PubAck(ack(first))).await;
    listener.message().await;
}

#[tokio::test]
async fn expired_messages_are_not_delivered() {
    let door = Door::open().await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    drop(listener);
    let mut device = door.up(new("d")).await;
    let expiring = |seconds| {
        move |publish: &mut Publish| {
            let set = PropertySet { message_expiry: Some(seconds), ..PropertySet::default() };
            publish.properties = Some(Box::new(set));
        }
    };
    device.publish_with("a", "late", Qos::AtLeastOnce, expiring(0)).await;
    device.publish_with("a", "good", Qos::AtLeastOnce, expiring(100)).await;
    let mut listener = door.up(kept("l")).await;
    assert_eq!(listener.take().await.payload, "good");
    assert_eq!(door.broker.stat().outdated, 1);
}

// === retained ===

#[tokio::test]
async fn retained_500_all_delivered() {
    let door = Door::open().await;
    let mut device = door.up(old("d")).await;
    for number in 0..500 {
        let topic = format!("kept/{number}");
        device.publish_with(&topic, "x", Qos::AtLeastOnce, |publish| publish.retain = true).await;
        device.publish_with(&format!("other/{number}"), "x", Qos::AtMostOnce, |publish| publish.retain = true).await;
    }
    for qos in QOS {
        let mut listener = door.up(old("l")).await;
        listener.subscribe("kept/+", qos).await;
        for _ in 0..500 {
            let message = listener.take().await;
            assert!(message.retain && message.topic.starts_with("kept/"));
        }
        assert!(listener.is_quiet().await);
    }
}

#[tokio::test]
async fn only_a_retained_empty_publish_clears() {
    let door = Door::open().await;
    let mut device = door.up(old("d")).await;
    device.publish_with("a", "x", Qos::AtLeastOnce, |publish| publish.retain = true).await;
    device.publish("a", "", Qos::AtLeastOnce).await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    assert_eq!(listener.take().await.payload, "x");
    device.publish_with("a", "", Qos::AtLeastOnce, |publish| publish.retain = true).await;
    assert!(!listener.take().await.retain);
    listener.subscribe("a", Qos::AtLeastOnce).await;
    assert!(listener.is_quiet().await);
}

#[tokio::test]
async fn retained_messages_have_a_cap() {
    let config = config::Broker { retained_mib: 1, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut device = door.up(old("d")).await;
    let large = "x".repeat(100 * 1024);
    for number in 0..20 {
        device.publish_with(&format!("a/{number}"), &large, Qos::AtLeastOnce, |publish| publish.retain = true).await;
    }
    let stat = door.broker.stat();
    assert!(stat.retained_bytes <= 1024 * 1024 && stat.retained == 10 && stat.retained_refused == 10, "{stat:?}");
}

// === sessions ===

#[tokio::test]
async fn what_waits_for_a_kept_session_comes_in_order_and_unacked_again_with_dup() {
    let door = Door::open().await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    for number in 0..3 {
        device.publish("a", &number.to_string(), Qos::AtLeastOnce).await;
    }
    let unacked = listener.message().await;
    drop(listener);
    for number in 3..300 {
        device.publish("a", &number.to_string(), Qos::AtLeastOnce).await;
    }
    let mut listener = door.up(kept("l")).await;
    assert!(listener.present);
    for number in 0..300 {
        let message = listener.take().await;
        assert_eq!(message.payload, number.to_string());
        assert_eq!(message.dup, number == 0);
        assert!(number > 0 || message.packet_id == unacked.packet_id);
    }
    assert!(listener.is_quiet().await);
}

#[tokio::test]
async fn sessions_retained_and_queues_survive_a_restart() {
    let door = Door::open().await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a/#", Qos::ExactlyOnce).await;
    let mut device = door.up(kept("d")).await;
    device.publish("a/1", "one", Qos::ExactlyOnce).await;
    device.publish("a/1", "two", Qos::AtLeastOnce).await;
    let first = listener.message().await;
    listener.send(&Packet::PubRec(ack(first.packet_id))).await;
    assert!(matches!(listener.read().await, Packet::PubRel(_)));
    drop(listener);
    device.publish_with("a/kept", "three", Qos::AtLeastOnce, |publish| publish.retain = true).await;
    device.send(&Packet::Publish(message("a/1", "four", Qos::ExactlyOnce, 9))).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    drop(device);

    let door = door.restart().await;
    let mut device = door.up(kept("d")).await;
    assert!(device.present);
    let again = Publish { dup: true, ..message("a/1", "four", Qos::ExactlyOnce, 9) };
    device.send(&Packet::Publish(again)).await;
    assert!(matches!(device.read().await, Packet::PubRec(_)));
    let mut listener = door.up(kept("l")).await;
    assert!(listener.present);
    assert!(matches!(listener.read().await, Packet::PubRel(release) if release.packet_id == first.packet_id));
    listener.send(&Packet::PubComp(ack(first.packet_id))).await;
    for expected in ["two", "three", "four"] {
        assert_eq!(listener.take().await.payload, expected);
    }
    assert!(listener.is_quiet().await, "nothing twice");
    let mut other = door.up(old("o")).await;
    other.subscribe("a/kept", Qos::AtMostOnce).await;
    assert_eq!(other.take().await.payload, "three");
    listener.disconnect().await;
    let door = door.restart().await;
    let mut listener = door.up(kept("l")).await;
    assert!(listener.present && listener.is_quiet().await, "what was acknowledged is gone for good");
}

#[tokio::test]
async fn a_clean_start_forgets_and_an_expiry_ends() {
    let door = Door::open().await;
    let mut client = door.up(kept("c")).await;
    client.subscribe("a", Qos::AtLeastOnce).await;
    drop(client);
    let client = door.up(old("c")).await;
    assert!(!client.present);
    client.disconnect().await;
    assert_eq!(door.broker.stat().sessions, 0);
    let client = door.up(expiring(new("c"), 1)).await;
    client.disconnect().await;
    assert_eq!(door.broker.stat().sessions, 1);
    assert!(door.up(Connect { clean_start: false, ..new("c") }).await.present);
    // The expiry of that connection was none.
    assert_eq!(door.broker.stat().sessions, 0);
    drop(door.up(expiring(new("c"), 1)).await);
    tokio::time::timeout(Duration::from_secs(5), async {
        while door.broker.stat().sessions > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the session expires");
}

#[tokio::test]
async fn unsubscribe_after_a_resume_is_answered_and_holds() {
    let door = Door::open().await;
    let mut client = door.up(kept("c")).await;
    client.subscribe("a", Qos::AtLeastOnce).await;
    drop(client);
    let mut client = door.up(kept("c")).await;
    for filters in [vec![Arc::from("a"), Arc::from("unknown")], vec![Arc::from("a")]] {
        client.send(&Packet::Unsubscribe(Unsubscribe { packet_id: 3, filters, properties: None })).await;
        assert!(matches!(client.read().await, Packet::UnsubAck(Outcomes { packet_id: 3, .. })));
    }
    client.publish("a", "x", Qos::AtLeastOnce).await;
    assert!(client.is_quiet().await);
}

#[tokio::test]
async fn takeover_race() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("will", Qos::AtLeastOnce).await;
    let mut old_one = door.up(Connect { will: Some(will("will", 0)), ..new("c") }).await;
    let broker = door.broker.clone();
    let (next, ()) = tokio::join!(door.up(Connect { will: Some(will("wrong", 0)), ..new("c") }), async {
        let Packet::Disconnect(goodbye) = old_one.read().await else { panic!("DISCONNECT expected") };
        assert_eq!(goodbye.reason, Reason::TAKEN_OVER);
        assert_eq!(broker.stat().takeovers, 1);
        drop(old_one);
    });
    assert_eq!(listener.take().await.payload, "gone", "the old connection's will");
    let mut next = next;
    next.publish("x", "y", Qos::AtLeastOnce).await;
    assert!(next.closed.is_none() && listener.is_quiet().await, "the new one lives and its will rests");
    drop(next);
    // Whoever comes after is not hit by what is left of those before.
    for _ in 0..200 {
        let lost = door.up(new("c")).await;
        drop(lost);
        let mut client = door.up(new("c")).await;
        assert_eq!(client.publish("x", "y", Qos::AtLeastOnce).await, Reason::SUCCESS);
        drop(client);
    }
    assert_eq!(door.broker.stat().connected, 1);
}

#[tokio::test]
async fn another_user_does_not_get_the_session() {
    let door = Door::open().await;
    let alice = Connect { user: Some(Arc::from("alice")), ..kept("c") };
    drop(door.up(alice).await);
    let mut mallory = door.client(Connect { user: Some(Arc::from("mallory")), ..kept("c") }).await;
    assert!(matches!(mallory.read().await, Packet::ConnAck(ConnAck { reason: Reason::NOT_AUTHORIZED, .. })));
}

#[tokio::test]
async fn sessions_and_subscriptions_have_a_cap() {
    let config = config::Broker { sessions_max: 2, subscriptions_max: 3, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut one = door.up(new("one")).await;
    let two = door.up(new("two")).await;
    for _ in 0..3 {
        let mut three = door.client(new("three")).await;
        assert!(matches!(three.read().await, Packet::ConnAck(ConnAck { reason: Reason::QUOTA_EXCEEDED, .. })));
    }
    drop(two);
    door.up(new("three")).await;
    for filter in ["a", "b", "c", "a"] {
        assert_eq!(one.subscribe(filter, Qos::AtMostOnce).await, Reason(0));
    }
    assert_eq!(one.subscribe("d", Qos::AtMostOnce).await, Reason::QUOTA_EXCEEDED);
}

// === wills ===

#[tokio::test]
async fn will_belongs_to_connection() {
    let mut door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    door.up(Connect { will: Some(will("silent", 0)), ..old("a") }).await.disconnect().await;
    drop(door.up(Connect { will: Some(will("loud", 0)), ..old("b") }).await);
    assert_eq!(&*listener.take().await.topic, "loud");
    let mut asked = door.up(Connect { will: Some(will("asked", 0)), ..new("c") }).await;
    asked.send(&Packet::Disconnect(Goodbye { reason: Reason::DISCONNECT_WITH_WILL, properties: None })).await;
    assert_eq!(&*listener.take().await.topic, "asked");
    drop(door.up(Connect { will: Some(will("/meter/m-1/offline", 0)), ..old("m-1") }).await);
    listener.take().await;
    let report = door.wills.recv().await.expect("a will's report");
    assert_eq!(report.reports[0].device, "m-1");
}

#[tokio::test]
async fn a_delayed_will_waits_for_the_client_to_come_back() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("will/#", Qos::AtLeastOnce).await;
    let delayed = |topic: &str| expiring(Connect { will: Some(will(topic, 1)), clean_start: false, ..new("c") }, 60);
    drop(door.up(delayed("will/1")).await);
    let back = door.up(delayed("will/2")).await;
    assert!(listener.is_quiet().await);
    drop(back);
    let started = Instant::now();
    assert_eq!(&*listener.take().await.topic, "will/2");
    assert!(started.elapsed() >= Duration::from_millis(800));
    // A session that ends takes its delay with it.
    drop(door.up(Connect { will: Some(will("will/3", 600)), ..new("d") }).await);
    assert_eq!(&*listener.take().await.topic, "will/3");
}

// === limits and bad manners ===

#[test]
fn an_idle_session_is_small() {
    let size = size_of::<sessions::Session>();
    assert!(size <= 512, "{size} bytes");
}

#[tokio::test]
async fn flooding_neighbour_loses_nothing_acked() {
    let door = Door::open().await;
    let mut listener = door.up(old("l")).await;
    listener.subscribe("#", Qos::AtLeastOnce).await;
    let mut flood = door.up(old("flood")).await;
    let mut polite = door.up(old("polite")).await;
    let payload = "x".repeat(1000);
    let flooding = async {
        for _ in 0..20_000 {
            flood.publish("flood", &payload, Qos::AtMostOnce).await;
            tokio::task::yield_now().await;
        }
        for _ in 0..2_000 {
            assert_eq!(flood.publish("flood1", &payload, Qos::AtLeastOnce).await, Reason::SUCCESS);
        }
    };
    let speaking = async {
        for number in 0..500 {
            polite.publish("polite", &number.to_string(), Qos::AtLeastOnce).await;
            tokio::task::yield_now().await;
        }
        polite.publish("polite", "end", Qos::AtLeastOnce).await;
    };
    let listening = async {
        let (mut next, mut flooded) = (0, 0);
        loop {
            let message = listener.take().await;
            match &*message.topic {
                "polite" if message.payload == "end" => {}
                "polite" => {
                    assert_eq!(message.payload, next.to_string());
                    next += 1;
                }
                "flood1" => flooded += 1,
                _ => {}
            }
            if next == 500 && flooded == 2_000 {
                return;
            }
        }
    };
    tokio::join!(flooding, speaking, listening);
    assert_eq!(door.broker.stat().turned_away, 0);
}

#[tokio::test]
async fn a_stuck_subscriber_costs_its_publishers_one_wait() {
    let config = config::Broker { queue_kib: 4, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut stuck = door.up(old("stuck")).await;
    stuck.subscribe("a", Qos::AtLeastOnce).await;
    let mut device = door.up(old("d")).await;
    let started = Instant::now();
    for _ in 0..200 {
        device.publish("a", &"x".repeat(500), Qos::AtLeastOnce).await;
    }
    assert!(started.elapsed() < PATIENCE * 3, "{:?}", started.elapsed());
    let stat = door.broker.stat();
    assert!(stat.turned_away > 150 && stat.queued_bytes <= 4096, "{stat:?}");
}

#[tokio::test]
async fn a_kept_queue_is_bounded_and_says_what_it_turned_away() {
    let config = config::Broker { queue_kib: 4, ..config::Broker::default() };
    let door = Door::open_with(&config, Arc::new(TempDir::new().expect("folder"))).await;
    let mut listener = door.up(kept("l")).await;
    listener.subscribe("a", Qos::AtLeastOnce).await;
    drop(listener);
    let mut device = door.up(old("d")).await;
    for _ in 0..50 {
        device.publish("a", &"x".repeat(500), Qos::AtLeastOnce).await;
    }
    let stat = door.broker.stat();
    assert!(stat.queued_bytes <= 4096 && stat.turned_away > 40, "{stat:?}");
}

#[tokio::test]
async fn subscribers_that_leave_with_a_backlog_leave_nothing() {
    let door = Door::open().await;
    let mut device = door.up(old("d")).await;
    for round in 0..50 {
        let mut listener = door.up(old(&format!("l{round}"))).await;
        listener.subscribe("a/#", Qos::AtLeastOnce).await;
        for _ in 0..50 {
            device.publish("a/1", "x", Qos::AtMostOnce).await;
        }
        listener.message().await;
        drop(listener);
    }
    let stat = door.broker.stat();
    assert_eq!((stat.sessions, stat.queued_bytes), (1, 0));
}

#[tokio::test]
async fn dollar_topics_are_hidden_and_asked_for_by_name() {
    let door = Door::open().await;
    let mut client = door.up(new("c")).await;
    client.subscribe("#", Qos::AtLeastOnce).await;
    assert_eq!(client.publish("$SYS/fake", "x", Qos::AtLeastOnce).await, Reason::NOT_AUTHORIZED);
    assert!(client.is_quiet().await);
    assert_eq!(client.subscribe("$SYS/broker/version", Qos::AtMostOnce).await, Reason(0));
    assert!(client.take().await.payload.starts_with(b"sluicegate"));
}

#[tokio::test]
async fn a_command_goes_to_the_device_alone_or_says_that_nobody_listens() {
    let door = Door::open().await;
    let mut device = door.up(old("dev-1")).await;
    device.subscribe("v1/devices/me/attributes", Qos::AtLeastOnce).await;
    let mut other = door.up(old("dev-2")).await;
    other.subscribe("v1/devices/me/attributes", Qos::AtLeastOnce).await;
    let attachment = device.attachment.as_mut().expect("attached");
    let publication = Publication {
        topic: Arc::from("v1/devices/dev-1/attributes"),
        payload: Bytes::from_static(b"{}"),
        qos: Qos::AtLeastOnce,
        retain: false,
        properties: None,
    };
    let ask = |publication| Request::Command { ticket: Ticket(1), publication };
    let answer = attachment.request(ask(publication.clone())).await;
    assert!(matches!(answer, Some(Event::Commanded { outcome: Ok(()), .. })));
    let nobody = Publication { topic: Arc::from("v1/devices/dev-2/attributes"), ..publication };
    let answer = attachment.request(ask(nobody)).await;
    assert!(matches!(answer, Some(Event::Commanded { outcome: Err(Refusal::NotFound(_)), .. })));
    assert_eq!(&*device.take().await.topic, "v1/devices/me/attributes");
    assert!(other.is_quiet().await);
}
