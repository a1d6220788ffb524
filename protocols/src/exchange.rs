//! The words between an MQTT session and the exchange (the broker core): routing, retained, kept sessions.
//!
//! The session knows the wire: packets, packet ids, acknowledgements, keep-alive. The exchange knows who subscribed to
//! what, what is retained and what waits for whom. Neither knows the other but by these words.
//!
//! The exchange numbers the deliveries of a session as MQTT numbers its packets (16 bits, unique while in flight), so
//! that a delivery keeps its packet id when it is repeated on a later connection. It also keeps the packet ids of QoS 2
//! publications that a client has not released yet, for the same reason.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_models::Report;

use crate::session::{Identity, Refusal, Ticket};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    AtMostOnce = 0,
    AtLeastOnce = 1,
    ExactlyOnce = 2,
}

/// A message with a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    pub topic: Arc<str>,
    pub payload: Bytes,
    pub qos: Qos,
    pub retain: bool,
    /// MQTT 5 properties that travel with the message; `None` when it has none.
    pub properties: Option<Arc<Properties>>,
}

/// MQTT 5 properties of a publication that a broker passes on unchanged, and its expiry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    pub payload_is_utf8: bool,
    pub expiry: Option<Duration>,
    pub content_type: Option<Arc<str>>,
    pub response_topic: Option<Arc<str>>,
    pub correlation_data: Option<Bytes>,
    pub user: Vec<(Arc<str>, Arc<str>)>,
}

/// A filter with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub filter: Arc<str>,
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0 send retained at subscribe, 1 only when the subscription is new, 2 never.
    pub retain_handling: u8,
    pub identifier: Option<u32>,
}

/// What the client left to be published when it goes without a goodbye.
#[derive(Debug, Clone, PartialEq)]
pub struct Will {
    pub publication: Publication,
    pub delay: Duration,
    /// What it says about devices, when its topic belongs to a dialect (an `offline` topic as a will is common).
    pub reports: Vec<Report>,
}

/// Session to exchange.
#[derive(Debug)]
pub enum Request {
    Attach {
        ticket: Ticket,
        by: Identity,
        client: Arc<str>,
        clean_start: bool,
        /// How long the session is kept after the connection ends; zero: not at all.
        expiry: Duration,
        /// Unacknowledged deliveries the client takes at a time.
        receive_max: u16,
        will: Option<Will>,
    },
    Subscribe {
        ticket: Ticket,
        subscriptions: Vec<Subscription>,
    },
    Unsubscribe {
        ticket: Ticket,
        filters: Vec<Arc<str>>,
    },
    /// Route it, and store what it says about devices. [`Input::Settled`](crate::Input::Settled) follows a ticket once
    /// everything that must be durable is.
    Publish {
        ticket: Option<Ticket>,
        publication: Publication,
        reports: Vec<Report>,
        /// At QoS 2 its packet id: kept until [`Request::Release`], so that a repetition is known also after a reconnect.
        packet_id: Option<u16>,
    },
    /// The client released the QoS 2 packet id of an earlier publication.
    Release {
        packet_id: u16,
    },
    /// A command for the device at the other end, as a publication that must match one of this session's own
    /// subscriptions. Answered by [`Event::Commanded`].
    Command {
        ticket: Ticket,
        publication: Publication,
    },
    /// The subscriber has this QoS 2 delivery (PUBREC). Answered by [`Event::Release`].
    Received {
        delivery: u16,
    },
    /// The subscriber is done with this delivery (PUBACK, PUBCOMP, a PUBREC with an error, or it cannot take it).
    Acknowledged {
        delivery: u16,
    },
    /// The client said goodbye; `publish_will` when it asked for its will nevertheless (MQTT 5 reason 0x04), `expiry`
    /// when it changed its session's.
    Detach {
        publish_will: bool,
        expiry: Option<Duration>,
    },
}

/// Exchange to session.
#[derive(Debug, Clone)]
pub enum Event {
    Attached {
        ticket: Ticket,
        outcome: Result<Attached, Refusal>,
    },
    /// One outcome a filter, in order.
    Subscribed {
        ticket: Ticket,
        outcomes: Vec<Result<Qos, Refusal>>,
    },
    /// Per filter: whether there was such a subscription.
    Unsubscribed {
        ticket: Ticket,
        outcomes: Vec<bool>,
    },
    Deliver(Delivery),
    /// Answer PUBREL for this QoS 2 delivery; `known` is false when there is no such delivery.
    Release {
        delivery: u16,
        known: bool,
    },
    /// The command was put into this session's queue, or no subscription of the session takes its topic
    /// ([`Refusal::NotFound`]).
    Commanded {
        ticket: Ticket,
        outcome: Result<(), Refusal>,
    },
    /// Another connection took the client id, or an operator closed it.
    Kicked {
        reason: KickReason,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub session_present: bool,
    /// How long the session is kept after the connection ends: what was asked, or the exchange's limit.
    pub expiry: Duration,
    /// Packet ids of QoS 2 publications that the client published on an earlier connection and has not released.
    pub unreleased: Vec<u16>,
}

/// A message for this subscriber; the publication's QoS is already the lower of published and subscribed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The packet id; 0 at QoS 0.
    pub id: u16,
    pub publication: Publication,
    /// It was sent on an earlier connection and not acknowledged.
    pub dup: bool,
    pub subscription_identifiers: Vec<u32>,
    /// The ticket of the [`Request::Command`] this delivery carries.
    pub command: Option<Ticket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KickReason {
    TakenOver,
    Administrative,
    ShuttingDown,
}
