//! Real MQTT sessions on a real exchange, without sockets: every fault of brokers in the field that applies is a test.

mod limits;
mod messages;
mod retained;
#[cfg(feature = "rumqttd")]
mod rumqttd;
mod sessions;
mod wills;

use std::collections::VecDeque;
use std::future::poll_fn;
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
                let attachment = self.attachment.as_mut()?;
                let event = poll_fn(|cx| attachment.poll_next(cx)).await;
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
    Arc::new(AdapterInfo {
        name: Arc::from("mqtt"),
        product: None,
        auto_register: false,
        allow_anonymous: true,
        push_without_key: Vec::new(),
        commit: None,
    })
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
