//! One MQTT 5 connection to a broker, over TCP or TLS: what was handed to it is confirmed by token, one by one, or the
//! link is down. The only file that names rumqttc.
//!
//! rumqttc 0.25 keeps a queue of its own and loses it in several ways (a reconnect without a session clears it, a
//! collision survives it), so a [`Link`] never outlives its connection: at the first error it is [`Event::Down`], is
//! dropped, and whoever owns the messages opens another and sends again what was not confirmed. QoS 1 alone: rumqttc's
//! QoS 2 window leaks. Must not be in here: what is sent, and when to try again.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, LastWill, Packet, PubAck, PubAckReason, Publish, SubscribeReasonCode};
use rumqttc::v5::{AsyncClient, ClientError, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::threads::Tasks;
use crate::tls::{TlsError, Trust};

/// Events between the connection's task and the link's owner. The connection waits when it is full.
const EVENTS_MAX: usize = 256;
/// TCP, TLS and CONNACK together, seconds.
const CONNECT_SECONDS_MAX: u64 = 15;
/// Largest packet that is taken from the broker: a catalog of a large gateway, a batch for `receive`.
const INCOMING_BYTES_MAX: u32 = 4 << 20;
/// rumqttc refuses less.
const KEEP_ALIVE_MIN: Duration = Duration::from_secs(5);
/// Acknowledgements that rumqttc has not taken yet, and how long until they are offered again.
const OWED_MAX: usize = 10_000;
const OWED_PAUSE: Duration = Duration::from_millis(10);
/// Requests beside the window's publishes: subscriptions, the last word.
const REQUESTS_BESIDE: usize = 8;

/// Everything a connection needs to know beforehand.
#[derive(Debug, Clone)]
pub struct Settings {
    pub host: String,
    pub port: u16,
    /// `Some` for TLS.
    pub trust: Option<Trust>,
    pub client_id: String,
    pub credentials: Option<(String, String)>,
    pub keep_alive: Duration,
    /// Whether the broker forgets what it held for this client id.
    pub clean_start: bool,
    /// How long the broker holds messages for us when we are away.
    pub session_expiry: Duration,
    /// Publishes unconfirmed at a time, both ways.
    pub window: u16,
    /// Retained, sent by the broker when we vanish: topic and payload.
    pub will: Option<(String, Vec<u8>)>,
}

/// Where a broker is: `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("`{0}` is no broker's address: it reads mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")]
    Url(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the link takes no more for now: {0}")]
    Full(String),
}

/// What a link has to say.
#[derive(Debug)]
pub enum Event {
    /// Connected. `packet_max`: the largest packet the broker takes, if it says so.
    Up { packet_max: Option<usize> },
    /// The broker has the publish with this token.
    Confirmed(u64),
    /// The broker does not want the publish with this token.
    Refused { token: u64, reason: String },
    /// Something arrived on a subscription; hand it to [`Link::acknowledge`] when it is done with.
    Arrived(Arrival),
    /// The broker refuses a subscription.
    NotSubscribed(String),
    /// A subscription is in force.
    Subscribed,
    /// It is over; nothing follows.
    Down(String),
}

/// A publication for us, not yet acknowledged.
#[derive(Debug)]
pub struct Arrival {
    pub topic: String,
    pub payload: Bytes,
    publish: Box<Publish>,
}

/// One connection.
#[derive(Debug)]
pub struct Link {
    client: AsyncClient,
    events: mpsc::Receiver<Result<rumqttc::v5::Event, String>>,
    task: JoinHandle<()>,
    /// Tokens handed to rumqttc and not yet written, in order.
    unsent: VecDeque<u64>,
    /// Written and not yet confirmed: packet id to token.
    sent: HashMap<u16, u64>,
    /// Taken by rumqttc, but held back until its packet id is free.
    held: Option<(u16, u64)>,
    /// Arrivals done with whose acknowledgements rumqttc has not taken yet.
    owed: VecDeque<Box<Publish>>,
    next_token: u64,
    down: bool,
}

// === impl Place ===

impl std::str::FromStr for Place {
    type Err = LinkError;

    fn from_str(url: &str) -> Result<Self, LinkError> {
        let wrong = || LinkError::Url(url.to_owned());
        let (tls, rest) = match url.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) => (true, rest),
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // A colon inside of brackets belongs to an IPv6 address.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (rest, if tls { 8883 } else { 1883 }),
        };
        if host.is_empty() || host.contains(['/', '@', '?', ' ']) || port == 0 {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

// === impl Link ===

impl Link {
    /// Begins to connect; [`Event::Up`] or [`Event::Down`] follows.
    pub fn open(settings: &Settings, tasks: &Tasks) -> Result<Self, LinkError> {
        let (client, eventloop) = AsyncClient::new(options(settings)?, usize::from(settings.window) + REQUESTS_BESIDE);
        let (send, events) = mpsc::channel(EVENTS_MAX);
        let task = tasks.spawn("mqtt link", poll(eventloop, send));
        Ok(Self {
            client,
            events,
            task,
            unsent: VecDeque::new(),
            sent: HashMap::new(),
            held: None,
            owed: VecDeque::new(),
            next_token: 1,
            down: false,
        })
    }

    /// Hands over one publish and answers the token it will be confirmed by. Never waits.
    pub fn publish(&mut self, topic: String, payload: impl Into<Bytes>, retain: bool) -> Result<u64, LinkError> {
        self.handed(self.client.try_publish(topic, QoS::AtLeastOnce, retain, payload.into()))?;
        let token = self.next_token;
        self.next_token += 1;
        self.unsent.push_back(token);
        Ok(token)
    }

    pub fn subscribe(&self, filter: &str) -> Result<(), LinkError> {
        // Dialects whose replies go out on the topic that the command came in on must not hear themselves.
        let filter = Filter { nolocal: true, ..Filter::new(filter, QoS::AtLeastOnce) };
        self.handed(self.client.try_subscribe_many([filter]))
    }

    /// Tells the broker that an arrival is done with; [`next`](Self::next) sees it through. Never waits.
    pub fn acknowledge(&mut self, arrival: Arrival) -> Result<(), LinkError> {
        // A broker that keeps to our receive maximum never comes near.
        if self.owed.len() >= OWED_MAX {
            return Err(LinkError::Full(format!("{OWED_MAX} acknowledgements wait")));
        }
        self.owed.push_back(arrival.publish);
        self.pay();
        Ok(())
    }

    fn pay(&mut self) {
        while let Some(publish) = self.owed.front() {
            if self.client.try_ack(publish).is_err() {
                return;
            }
            self.owed.pop_front();
        }
    }

    /// Publishes handed over and not yet confirmed.
    pub fn unconfirmed(&self) -> usize {
        self.unsent.len() + self.sent.len() + usize::from(self.held.is_some())
    }

    /// What happens next. Cancel safe. After [`Event::Down`] it stays silent for ever.
    pub async fn next(&mut self) -> Event {
        if self.down {
            return std::future::pending().await;
        }
        loop {
            self.pay();
            // rumqttc does not say when it has room again: what is owed is offered at every event, or after a moment.
            let patience = if self.owed.is_empty() { Duration::MAX } else { OWED_PAUSE };
            let event = match tokio::time::timeout(patience, self.events.recv()).await {
                Err(_) => None,
                Ok(Some(Ok(event))) => self.sort(event),
                Ok(Some(Err(reason))) => Some(Event::Down(reason)),
                Ok(None) => Some(Event::Down("the connection's task has ended".to_owned())),
            };
            if let Some(event) = event {
                self.down = matches!(event, Event::Down(_));
                return event;
            }
        }
    }

    /// Says goodbye, so that the broker keeps the will to itself, and waits for it at most `patience`.
    pub async fn close(mut self, patience: Duration) {
        if self.down || self.client.try_disconnect().is_err() {
            return;
        }
        let gone = async { while !matches!(self.next().await, Event::Down(_)) {} };
        if tokio::time::timeout(patience, gone).await.is_err() {
            tracing::debug!("the broker did not see us go");
        }
    }

    /// A connection that is gone takes nothing any more; that is told by [`Event::Down`], which comes in its turn.
    fn handed(&self, result: Result<(), ClientError>) -> Result<(), LinkError> {
        match result {
            Err(error) if !self.events.is_closed() => Err(LinkError::Full(error.to_string())),
            _ => Ok(()),
        }
    }

    /// Matches what rumqttc says with the tokens: it writes in the order it was given, and names packet ids as it does.
    fn sort(&mut self, event: rumqttc::v5::Event) -> Option<Event> {
        use rumqttc::v5::Event::{Incoming, Outgoing as Out};
        match event {
            Out(Outgoing::Publish(id)) => {
                match self.held.take() {
                    Some((held, token)) if held == id => self.sent.insert(id, token),
                    held => {
                        self.held = held;
                        self.unsent.pop_front().and_then(|token| self.sent.insert(id, token))
                    }
                };
                None
            }
            Out(Outgoing::AwaitAck(id)) => {
                self.held = self.unsent.pop_front().map(|token| (id, token));
                None
            }
            Incoming(Packet::ConnAck(ack)) => {
                let packet_max = ack.properties.and_then(|properties| properties.max_packet_size);
                Some(Event::Up { packet_max: packet_max.map(|bytes| bytes as usize) })
            }
            Incoming(Packet::PubAck(ack)) => self.confirmed(&ack),
            Incoming(Packet::Publish(publish)) => Some(Event::Arrived(Arrival {
                topic: String::from_utf8_lossy(&publish.topic).into_owned(),
                payload: publish.payload.clone(),
                publish: Box::new(publish),
            })),
            Incoming(Packet::SubAck(ack)) => ack
                .return_codes
                .iter()
                .find(|code| !matches!(code, SubscribeReasonCode::Success(_)))
                .map_or(Some(Event::Subscribed), |code| Some(Event::NotSubscribed(format!("{code:?}")))),
            _ => None,
        }
    }

    fn confirmed(&mut self, ack: &PubAck) -> Option<Event> {
        // A PUBACK for nothing of ours is the broker's slip; whatever it meant, nothing is deleted for it.
        let token = self.sent.remove(&ack.pkid)?;
        match ack.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Some(Event::Confirmed(token)),
            reason => Some(Event::Refused { token, reason: format!("{reason:?}") }),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The event loop holds a sender to itself and would never end.
        self.task.abort();
    }
}

/// Drops `events` before `eventloop`: whoever finds the latter gone can see it by the former.
async fn poll(mut eventloop: EventLoop, events: mpsc::Sender<Result<rumqttc::v5::Event, String>>) {
    loop {
        let event = eventloop.poll().await.map_err(|error| error.to_string());
        let over = event.is_err();
        if events.send(event).await.is_err() || over {
            return;
        }
    }
}

fn options(settings: &Settings) -> Result<MqttOptions, LinkError> {
    let mut options = MqttOptions::new(&settings.client_id, &settings.host, settings.port);
    if let Some(trust) = &settings.trust {
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(trust.client_config()?)));
    }
    if let Some((name, password)) = &settings.credentials {
        options.set_credentials(name, password);
    }
    if let Some((topic, payload)) = &settings.will {
        options.set_last_will(LastWill::new(topic, payload.clone(), QoS::AtLeastOnce, true, None));
    }
    let window = settings.window.max(1);
    options
        .set_keep_alive(settings.keep_alive.max(KEEP_ALIVE_MIN))
        .set_clean_start(settings.clean_start)
        .set_connection_timeout(CONNECT_SECONDS_MAX)
        .set_max_packet_size(Some(INCOMING_BYTES_MAX))
        .set_receive_maximum(Some(window))
        .set_session_expiry_interval(Some(u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)))
        .set_manual_acks(true)
        // Without it rumqttc makes room for 65,535 publishes: 14 MB.
        .set_outgoing_inflight_upper_limit(window);
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_documented() {
        let place = |host: &str, port, tls| Place { host: host.to_owned(), port, tls };
        for (url, expected) in [
            ("mqtt://localhost", place("localhost", 1883, false)),
            ("mqtts://broker.example:9999", place("broker.example", 9999, true)),
            ("mqtts://broker.example/", place("broker.example", 8883, true)),
            ("mqtt://[::1]:1884", place("[::1]", 1884, false)),
            ("mqtt://[::1]", place("[::1]", 1883, false)),
        ] {
            assert_eq!(url.parse::<Place>().unwrap(), expected, "{url}");
        }
        for url in ["localhost", "http://x", "mqtt://", "mqtt://x:0", "mqtt://x:99999", "mqtt://u:p@x", "mqtt://x/y"] {
            assert!(url.parse::<Place>().is_err(), "{url}");
        }
    }
}
