//! What must survive a restart, in the keyed store: retained messages, kept sessions with their subscriptions, what
//! waits for them, and the packet ids of QoS 2 publications they have not released.
//!
//! Changes are numbered; [`Keep::changes`] of a publication is what [`Kept::settled`] is asked for before its publisher
//! is told that it is safe. An expiry counts anew after a restart: there may be no clock yet to say how long it took.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use protocols::Refusal;
use protocols::exchange::{Properties, Publication, Qos, Subscription};
use tracing::warn;

use crate::bus::{BusError, Keyed};

const RETAINED: &str = "mqtt-retained";
const SESSIONS: &str = "mqtt-sessions";
const QUEUES: &str = "mqtt-queues";
const UNRELEASED: &str = "mqtt-unreleased";

/// How far the broker's state is on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Changes up to this number are durable.
    pub through: u64,
    /// Changes up to this number that are not durable failed; they are tried again, but nobody may rely on them.
    pub failed: u64,
}

impl Kept {
    /// Whether the change is durable (`true`), failed (`false`), or not decided.
    pub fn settled(self, change: u64) -> Option<bool> {
        if change <= self.through {
            Some(true)
        } else if change <= self.failed {
            Some(false)
        } else {
            None
        }
    }
}

#[derive(Debug)]
pub(super) struct Keep {
    keyed: Keyed,
    pub(super) changes: u64,
}

/// What a restart finds.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub retained: Vec<Publication>,
    pub sessions: Vec<FoundSession>,
}

#[derive(Debug)]
pub(super) struct FoundSession {
    pub client: Arc<str>,
    pub user: Arc<str>,
    pub expiry: Duration,
    pub subscriptions: Vec<Subscription>,
    pub queue: Vec<FoundMessage>,
    pub unreleased: Vec<u16>,
}

#[derive(Debug)]
pub(super) struct FoundMessage {
    pub number: u64,
    pub publication: Publication,
    pub identifiers: Vec<u32>,
    /// 0: not sent yet.
    pub packet_id: u16,
    pub released: bool,
}

/// A message that waits for a session.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting<'a> {
    pub number: u64,
    pub publication: &'a Publication,
    pub identifiers: &'a [u32],
    pub packet_id: u16,
    pub released: bool,
}

// === impl Keep ===

impl Keep {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self { keyed, changes: 0 }
    }

    pub(super) fn retained(&mut self, publication: &Publication) -> Result<(), Refusal> {
        let key = publication.topic.as_bytes();
        if publication.payload.is_empty() {
            return self.done(self.keyed.remove(RETAINED, key));
        }
        self.done(self.keyed.put(RETAINED, key, &record(publication, &[]).encode_to_vec()))
    }

    pub(super) fn forget_retained(&mut self, topic: &str) -> Result<(), Refusal> {
        self.done(self.keyed.remove(RETAINED, topic.as_bytes()))
    }

    pub(super) fn session<'a>(
        &mut self,
        client: &str,
        user: &str,
        expiry: Duration,
        subscriptions: impl Iterator<Item = &'a Subscription>,
    ) -> Result<(), Refusal> {
        let record = SessionRecord {
            user: user.to_owned(),
            expiry_seconds: expiry.as_secs(),
            subscriptions: subscriptions.map(SubscriptionRecord::from).collect(),
        };
        self.done(self.keyed.put(SESSIONS, client.as_bytes(), &record.encode_to_vec()))
    }

    pub(super) fn waiting(&mut self, client: &str, message: Waiting<'_>) -> Result<(), Refusal> {
        let mut record = record(message.publication, message.identifiers);
        record.packet_id = u32::from(message.packet_id);
        record.released = message.released;
        if message.released {
            record.payload = Bytes::new();
        }
        self.done(self.keyed.put(QUEUES, &queue_key(client, message.number), &record.encode_to_vec()))
    }

    /// Failing to forget is no fault of the moment: the message would come once more after a restart.
    pub(super) fn done_waiting(&mut self, client: &str, number: u64) {
        self.forgive(self.keyed.remove(QUEUES, &queue_key(client, number)));
    }

    pub(super) fn unreleased(&mut self, client: &str, packet_id: u16) -> Result<(), Refusal> {
        self.done(self.keyed.put(UNRELEASED, &unreleased_key(client, packet_id), &[1]))
    }

    pub(super) fn released(&mut self, client: &str, packet_id: u16) {
        self.forgive(self.keyed.remove(UNRELEASED, &unreleased_key(client, packet_id)));
    }

    pub(super) fn forget_session(&mut self, client: &str) {
        self.forgive(self.keyed.remove(SESSIONS, client.as_bytes()));
    }

    fn done(&mut self, change: Result<u64, BusError>) -> Result<(), Refusal> {
        self.changes += 1;
        change.map(drop).map_err(|error| Refusal::Unavailable(format!("the broker's state is not kept: {error}")))
    }

    fn forgive(&mut self, change: Result<u64, BusError>) {
        self.changes += 1;
        if let Err(error) = change {
            warn!(%error, "the broker's state could not be forgotten");
        }
    }

    /// Reads everything back. A record that cannot be read is left out and said.
    pub(super) fn load(&self) -> Result<Found, BusError> {
        let mut found = Found::default();
        for (key, value) in self.keyed.scan(RETAINED, b"")? {
            match MessageRecord::decode(value) {
                Ok(record) => found.retained.push(record.publication()),
                Err(error) => warn!(topic = %String::from_utf8_lossy(&key), %error, "unreadable retained message"),
            }
        }
        for (key, value) in self.keyed.scan(SESSIONS, b"")? {
            let client = String::from_utf8_lossy(&key);
            match SessionRecord::decode(value) {
                Ok(record) => found.sessions.push(self.load_session(&client, record)?),
                Err(error) => warn!(%client, %error, "unreadable session"),
            }
        }
        Ok(found)
    }

    fn load_session(&self, client: &str, record: SessionRecord) -> Result<FoundSession, BusError> {
        let mut queue = Vec::new();
        let prefix = prefix(client);
        for (key, value) in self.keyed.scan(QUEUES, &prefix)? {
            let number = key.get(prefix.len()..).and_then(|tail| tail.try_into().ok()).map(u64::from_be_bytes);
            let (Ok(record), Some(number)) = (MessageRecord::decode(value), number) else {
                warn!(%client, "unreadable message in a session's queue");
                continue;
            };
            queue.push(FoundMessage {
                number,
                identifiers: record.identifiers.clone(),
                packet_id: record.packet_id as u16,
                released: record.released,
                publication: record.publication(),
            });
        }
        let ids = self.keyed.scan(UNRELEASED, &prefix)?;
        let id = |key: &[u8]| key.get(prefix.len()..)?.try_into().ok().map(u16::from_be_bytes);
        Ok(FoundSession {
            client: Arc::from(client),
            user: Arc::from(record.user),
            expiry: Duration::from_secs(record.expiry_seconds),
            subscriptions: record.subscriptions.into_iter().map(Subscription::from).collect(),
            queue,
            unreleased: ids.iter().filter_map(|(key, _)| id(key)).collect(),
        })
    }
}

/// A client id may hold any character but U+0000, so that one ends it.
fn prefix(client: &str) -> Vec<u8> {
    let mut key = client.as_bytes().to_vec();
    key.push(0);
    key
}

fn queue_key(client: &str, number: u64) -> Vec<u8> {
    let mut key = prefix(client);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn unreleased_key(client: &str, packet_id: u16) -> Vec<u8> {
    let mut key = prefix(client);
    key.extend_from_slice(&packet_id.to_be_bytes());
    key
}

// === records ===

#[derive(Clone, PartialEq, prost::Message)]
struct MessageRecord {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(bytes = "bytes", tag = "2")]
    payload: Bytes,
    #[prost(uint32, tag = "3")]
    qos: u32,
    #[prost(bool, tag = "4")]
    retain: bool,
    #[prost(bool, tag = "5")]
    payload_is_utf8: bool,
    #[prost(uint64, optional, tag = "6")]
    expiry_seconds: Option<u64>,
    #[prost(string, optional, tag = "7")]
    content_type: Option<String>,
    #[prost(string, optional, tag = "8")]
    response_topic: Option<String>,
    #[prost(bytes = "bytes", optional, tag = "9")]
    correlation_data: Option<Bytes>,
    #[prost(message, repeated, tag = "10")]
    user: Vec<PairRecord>,
    #[prost(uint32, repeated, tag = "11")]
    identifiers: Vec<u32>,
    #[prost(uint32, tag = "12")]
    packet_id: u32,
    #[prost(bool, tag = "13")]
    released: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PairRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SessionRecord {
    #[prost(string, tag = "1")]
    user: String,
    #[prost(uint64, tag = "2")]
    expiry_seconds: u64,
    #[prost(message, repeated, tag = "3")]
    subscriptions: Vec<SubscriptionRecord>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SubscriptionRecord {
    #[prost(string, tag = "1")]
    filter: String,
    #[prost(uint32, tag = "2")]
    qos: u32,
    #[prost(bool, tag = "3")]
    no_local: bool,
    #[prost(bool, tag = "4")]
    retain_as_published: bool,
    #[prost(uint32, tag = "5")]
    retain_handling: u32,
    #[prost(uint32, optional, tag = "6")]
    identifier: Option<u32>,
}

fn record(publication: &Publication, identifiers: &[u32]) -> MessageRecord {
    let properties = publication.properties.as_deref();
    let text = |text: Option<&Arc<str>>| text.map(ToString::to_string);
    let user = properties.map_or(&[][..], |p| &p.user);
    MessageRecord {
        topic: publication.topic.to_string(),
        payload: publication.payload.clone(),
        qos: publication.qos as u32,
        retain: publication.retain,
        payload_is_utf8: properties.is_some_and(|p| p.payload_is_utf8),
        expiry_seconds: properties.and_then(|p| p.expiry).map(|expiry| expiry.as_secs()),
        content_type: text(properties.and_then(|p| p.content_type.as_ref())),
        response_topic: text(properties.and_then(|p| p.response_topic.as_ref())),
        correlation_data: properties.and_then(|p| p.correlation_data.clone()),
        user: user
            .iter()
            .map(|(name, value)| PairRecord { name: name.to_string(), value: value.to_string() })
            .collect(),
        identifiers: identifiers.to_vec(),
        packet_id: 0,
        released: false,
    }
}

impl MessageRecord {
    fn publication(self) -> Publication {
        let properties = Properties {
            payload_is_utf8: self.payload_is_utf8,
            expiry: self.expiry_seconds.map(Duration::from_secs),
            content_type: self.content_type.map(Arc::from),
            response_topic: self.response_topic.map(Arc::from),
            correlation_data: self.correlation_data,
            user: self.user.into_iter().map(|pair| (Arc::from(pair.name), Arc::from(pair.value))).collect(),
        };
        Publication {
            topic: Arc::from(self.topic),
            payload: self.payload,
            qos: qos(self.qos),
            retain: self.retain,
            properties: (properties != Properties::default()).then(|| Arc::new(properties)),
        }
    }
}

impl From<&Subscription> for SubscriptionRecord {
    fn from(subscription: &Subscription) -> Self {
        Self {
            filter: subscription.filter.to_string(),
            qos: subscription.qos as u32,
            no_local: subscription.no_local,
            retain_as_published: subscription.retain_as_published,
            retain_handling: u32::from(subscription.retain_handling),
            identifier: subscription.identifier,
        }
    }
}

impl From<SubscriptionRecord> for Subscription {
    fn from(record: SubscriptionRecord) -> Self {
        Self {
            filter: Arc::from(record.filter),
            qos: qos(record.qos),
            no_local: record.no_local,
            retain_as_published: record.retain_as_published,
            retain_handling: record.retain_handling as u8,
            identifier: record.identifier,
        }
    }
}

fn qos(number: u32) -> Qos {
    match number {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        _ => Qos::ExactlyOnce,
    }
}
