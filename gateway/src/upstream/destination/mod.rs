//! The seam to destinations: what carries encoded messages to a platform, whatever it is spoken to by. Each kind is one
//! file or folder here and one arm of `open`.
//!
//! | kind | confirmed by | commands down |
//! |---|---|---|
//! | `mqtt/` (3.1.1 and 5; TCP, TLS, WebSocket) | PUBACK | by subscription |
//! | `http.rs` (POST) | 2xx | none |
//! | `nats.rs` (JetStream; feature `nats`) | publish acknowledgement of the stream | by subscription |
//! | `kafka.rs` (feature `kafka`) | all replicas in sync (acks = all) | none |
//!
//! A connection never outlives its first error: it is [`Event::Down`], is dropped, and whoever owns the messages opens
//! another and sends again what was not confirmed. Must not be in here: what is sent, and when to try again.

mod courier;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
pub mod mqtt;
#[cfg(feature = "nats")]
mod nats;
pub mod place;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_models::Class;

use crate::config::Sasl;
use crate::http::HttpError;
use crate::threads::Tasks;
use crate::tls::{TlsError, Trust};
use place::{Place, Scheme};

/// Everything a connection needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Settings {
    pub place: Place,
    /// Of MQTT.
    pub version: Version,
    /// `Some` for TLS.
    pub trust: Option<Trust>,
    pub client_id: String,
    pub credentials: Option<(String, String)>,
    /// How Kafka is shown the name and password.
    pub sasl: Sasl,
    /// Instead of a name and password: a bearer token.
    pub token: Option<String>,
    pub keep_alive: Duration,
    /// Whether the broker forgets what it held for this client id.
    pub clean_start: bool,
    /// How long the broker holds messages for us when we are away.
    pub session_expiry: Duration,
    /// Publishes unconfirmed at a time, both ways.
    pub window: u16,
    /// Sent by the broker when we vanish.
    pub will: Option<Publication>,
    /// The media type of all that is sent.
    pub content_type: &'static str,
}

/// The version of MQTT that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    #[default]
    V5,
    V311,
}

/// One piece on its way: an MQTT publish, the body of a POST, a message of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// In MQTT's form, whatever the destination makes of it.
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    /// Nobody confirms it (MQTT QoS 0). It counts as [confirmed](Event::Confirmed) when the destination has shown later that it is
    /// still there; see `mqtt/flight.rs`.
    pub at_most_once: bool,
    /// Which messages it carries; `None`: a catalog, a state, an introduction.
    pub origin: Option<Origin>,
}

/// The messages in a publication: the same messages in the same publication have the same origin for ever, which lets a
/// destination drop repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    pub gateway: Arc<str>,
    pub epoch: u64,
    pub class: Class,
    pub first: u64,
    pub last: u64,
    /// The thing they are all of, if they are.
    pub thing: Option<Arc<str>>,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the link takes no more for now: {0}")]
    Full(String),
    #[error("{0}")]
    Unsupported(String),
}

/// What a connection has to say.
#[derive(Debug)]
pub enum Event {
    /// Connected. `packet_max`: the largest packet the destination takes, if it says so.
    Up { packet_max: Option<usize> },
    /// The destination has the publication with this token.
    Confirmed(u64),
    /// A publication that nobody confirms is on its way: there is room for another.
    Sent,
    /// The destination does not want the publication with this token, and will not want it again.
    Refused { token: u64, reason: String },
    /// Something arrived on a subscription; hand it to [`Connection::acknowledge`] when it is done with.
    Arrived(Arrival),
    /// The destination refuses a subscription.
    NotSubscribed(String),
    /// A subscription is in force.
    Subscribed,
    /// It is over; nothing follows. `rest`: the destination asks not to be tried again before that.
    Down { reason: String, rest: Option<Duration> },
}

/// A publication for us, not yet acknowledged.
#[derive(Debug)]
pub struct Arrival {
    pub topic: String,
    pub payload: Bytes,
    receipt: Option<mqtt::Receipt>,
}

pub type Soon<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One connection to a destination.
pub trait Connection: Send {
    /// Hands over one publication and answers the token it will be confirmed by. Never waits.
    fn send(&mut self, publication: Publication) -> Result<u64, LinkError>;

    /// Asks for what is published on this topic filter.
    fn subscribe(&mut self, filter: &str) -> Result<(), LinkError>;

    /// Tells the destination that an arrival is done with. Never waits.
    fn acknowledge(&mut self, arrival: Arrival) -> Result<(), LinkError>;

    /// Publications handed over and not yet confirmed; of those that nobody confirms, the ones not yet on their way.
    fn unconfirmed(&self) -> usize;

    /// What happens next. Cancel safe. After [`Event::Down`] it stays silent for ever.
    fn next(&mut self) -> Soon<'_, Event>;

    /// Says goodbye and waits for it at most `patience`.
    fn close(self: Box<Self>, patience: Duration) -> Soon<'static, ()>;
}

/// Begins to connect; [`Event::Up`] or [`Event::Down`] follows.
pub(super) fn open(settings: &Settings, tasks: &Tasks) -> Result<Box<dyn Connection>, LinkError> {
    Ok(match settings.place.scheme {
        Scheme::Mqtt | Scheme::Mqtts | Scheme::Ws | Scheme::Wss => Box::new(mqtt::Link::open(settings, tasks)?),
        Scheme::Http | Scheme::Https => Box::new(http::open(settings, tasks)?),
        #[cfg(feature = "nats")]
        Scheme::Nats | Scheme::NatsTls => Box::new(nats::open(settings, tasks)?),
        #[cfg(not(feature = "nats"))]
        Scheme::Nats | Scheme::NatsTls => return Err(LinkError::Unsupported(without("nats"))),
        #[cfg(feature = "kafka")]
        Scheme::Kafka | Scheme::KafkaTls => Box::new(kafka::open(settings, tasks)?),
        #[cfg(not(feature = "kafka"))]
        Scheme::Kafka | Scheme::KafkaTls => return Err(LinkError::Unsupported(without("kafka"))),
    })
}

/// Why this build cannot speak to a scheme; `None`: it can.
pub fn unsupported(scheme: Scheme) -> Option<String> {
    match scheme {
        Scheme::Nats | Scheme::NatsTls if !cfg!(feature = "nats") => Some(without("nats")),
        Scheme::Kafka | Scheme::KafkaTls if !cfg!(feature = "kafka") => Some(without("kafka")),
        _ => None,
    }
}

fn without(feature: &str) -> String {
    format!("this build has no `{feature}`: build with the feature of that name")
}

/// Whether the batch goes as one piece (a JSON array) instead of a publication a message.
pub(super) const fn gathers(scheme: Scheme) -> bool {
    matches!(scheme, Scheme::Http | Scheme::Https)
}

// === impl Origin ===

impl std::fmt::Display for Origin {
    /// `GATEWAY/EPOCH/CLASS/FIRST-LAST`, the last left out where it is the first.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { gateway, epoch, class, first, last, .. } = self;
        write!(f, "{gateway}/{epoch:016x}/{}/{first}", class.topic())?;
        if last > first { write!(f, "-{last}") } else { Ok(()) }
    }
}

// === impl Publication ===

impl Publication {
    pub fn new(topic: String, payload: Vec<u8>) -> Self {
        Self { topic, payload, retain: false, at_most_once: false, origin: None }
    }

    pub(super) fn json(topic: String, payload: &serde_json::Value) -> Self {
        Self::new(topic, payload.to_string().into_bytes())
    }

    pub(super) fn retained(self) -> Self {
        Self { retain: true, ..self }
    }

    pub(super) fn at_most_once(self) -> Self {
        Self { at_most_once: true, ..self }
    }
}
