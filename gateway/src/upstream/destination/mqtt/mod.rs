//! One MQTT connection to a broker, version 3.1.1 or 5, over TCP, TLS or WebSocket: what was handed to it is confirmed by
//! token, one by one, or the link is down. Only this folder names rumqttc.
//!
//! rumqttc 0.25 keeps a queue of its own and loses it in several ways (a reconnect without a session clears it, a
//! collision survives it), so a [`Link`] never outlives its connection: at the first error it is [`Event::Down`], is
//! dropped, and whoever owns the messages opens another and sends again what was not confirmed. QoS 1, and QoS 0 where a
//! dialect asks for it (`flight.rs`); no QoS 2: rumqttc's window of it leaks. Must not be in here: what is sent, and when to try again.

mod flight;
mod v311;
mod v5;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::place::Scheme;
use super::{Arrival, Connection, Event, LinkError, Publication, Settings, Soon, Version};
use crate::threads::Tasks;
use flight::Flight;

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

/// rumqttc's client of either version.
#[derive(Debug)]
enum Client {
    V5(v5::Client),
    V311(v311::Client),
}

/// What rumqttc says, in both versions' common words.
#[derive(Debug)]
enum Notice {
    Up {
        packet_max: Option<usize>,
    },
    /// A publish was written with this packet id; 0: QoS 0.
    Written(u16),
    /// A publish waits for this packet id to be free.
    Held(u16),
    /// `refusal`: the broker does not want it.
    Confirmed {
        id: u16,
        refusal: Option<String>,
    },
    Arrived(Arrival),
    Subscribed {
        refusal: Option<String>,
    },
    /// A ping was written, and answered.
    Asked,
    Answered,
    /// An acknowledgement was written.
    Acknowledged,
}

/// What an arrival is acknowledged by.
#[derive(Debug)]
pub(super) enum Receipt {
    V5(v5::Receipt),
    V311(v311::Receipt),
}

/// Why rumqttc does not take a request: it has no room, or has ended.
#[derive(Debug)]
struct Jammed(String);

/// One connection.
#[derive(Debug)]
pub struct Link {
    client: Client,
    events: mpsc::Receiver<Result<Notice, String>>,
    task: JoinHandle<()>,
    /// Tokens handed to rumqttc and not yet written, in order.
    unsent: VecDeque<u64>,
    /// Written and not yet confirmed: packet id to token.
    sent: HashMap<u16, u64>,
    /// Written with QoS 0, and nothing is known of it.
    flight: Flight,
    /// Taken by rumqttc, but held back until its packet id is free.
    held: Option<(u16, u64)>,
    /// Arrivals done with whose acknowledgements rumqttc has not taken yet.
    owed: VecDeque<Receipt>,
    /// Acknowledgements that rumqttc has taken and not yet written, and how many it may have: they go through the same
    /// queue as publishes, for which there must be room.
    acknowledging: usize,
    acknowledging_max: usize,
    next_token: u64,
    down: bool,
}

// === impl Client ===

impl Client {
    fn publish(&self, publication: Publication) -> Result<(), Jammed> {
        match self {
            Self::V5(client) => client.publish(publication),
            Self::V311(client) => client.publish(publication),
        }
    }

    fn subscribe(&self, filter: &str) -> Result<(), Jammed> {
        match self {
            Self::V5(client) => client.subscribe(filter),
            Self::V311(client) => client.subscribe(filter),
        }
    }

    /// Whether there is anything to be written for it.
    fn acknowledge(&self, receipt: &Receipt) -> Result<bool, Jammed> {
        match (self, receipt) {
            (Self::V5(client), Receipt::V5(receipt)) => client.acknowledge(receipt),
            (Self::V311(client), Receipt::V311(receipt)) => client.acknowledge(receipt),
            // Not of this connection: nobody waits for it here.
            _ => Ok(false),
        }
    }

    fn disconnect(&self) -> Result<(), Jammed> {
        match self {
            Self::V5(client) => client.disconnect(),
            Self::V311(client) => client.disconnect(),
        }
    }
}

// === impl Link ===

impl Link {
    /// Begins to connect; [`Event::Up`] or [`Event::Down`] follows.
    pub fn open(settings: &Settings, tasks: &Tasks) -> Result<Self, LinkError> {
        let acknowledging_max = usize::from(settings.window.max(1));
        let room = usize::from(settings.window) + acknowledging_max + REQUESTS_BESIDE;
        let (send, events) = mpsc::channel(EVENTS_MAX);
        let (client, task) = match settings.version {
            Version::V5 => {
                let (client, eventloop) = v5::open(settings, room)?;
                (Client::V5(client), tasks.spawn("mqtt link", v5::poll(eventloop, send)))
            }
            Version::V311 => {
                let (client, eventloop) = v311::open(settings, room)?;
                (Client::V311(client), tasks.spawn("mqtt link", v311::poll(eventloop, send)))
            }
        };
        Ok(Self {
            client,
            events,
            task,
            unsent: VecDeque::new(),
            sent: HashMap::new(),
            flight: Flight::new(settings.keep_alive.max(KEEP_ALIVE_MIN)),
            held: None,
            owed: VecDeque::new(),
            acknowledging: 0,
            acknowledging_max,
            next_token: 1,
            down: false,
        })
    }

    /// Hands over one publish and answers the token it will be confirmed by. Never waits.
    pub fn publish(&mut self, publication: Publication) -> Result<u64, LinkError> {
        self.handed(self.client.publish(publication))?;
        let token = self.next_token;
        self.next_token += 1;
        self.unsent.push_back(token);
        Ok(token)
    }

    pub fn subscribe(&self, filter: &str) -> Result<(), LinkError> {
        self.handed(self.client.subscribe(filter))
    }

    /// Tells the broker that an arrival is done with; [`next`](Self::next) sees it through. Never waits.
    pub fn acknowledge(&mut self, arrival: Arrival) -> Result<(), LinkError> {
        // A broker that keeps to our receive maximum never comes near.
        if self.owed.len() >= OWED_MAX {
            return Err(LinkError::Full(format!("{OWED_MAX} acknowledgements wait")));
        }
        self.owed.extend(arrival.receipt);
        self.pay();
        Ok(())
    }

    fn pay(&mut self) {
        while let Some(receipt) = self.owed.front().filter(|_| self.acknowledging < self.acknowledging_max) {
            let Ok(written) = self.client.acknowledge(receipt) else { return };
            self.acknowledging += usize::from(written);
            self.owed.pop_front();
        }
    }

    /// Publishes handed over and not yet confirmed; those with QoS 0 only while they are not written, are at the broker for
    /// sure, or are too many.
    pub fn unconfirmed(&self) -> usize {
        self.unsent.len() + self.sent.len() + usize::from(self.held.is_some()) + self.flight.pressing()
    }

    /// What happens next. Cancel safe. After [`Event::Down`] it stays silent for ever.
    pub async fn next(&mut self) -> Event {
        if self.down {
            return std::future::pending().await;
        }
        let down = |reason| Event::Down { reason, rest: None };
        loop {
            self.pay();
            let now = Instant::now();
            if let Some(token) = self.flight.landed(now) {
                return Event::Confirmed(token);
            }
            // rumqttc does not say when it has room again: what is owed is offered at every event, or after a moment.
            let patience = if self.owed.is_empty() { self.flight.patience(now) } else { OWED_PAUSE };
            let event = match tokio::time::timeout(patience, self.events.recv()).await {
                Err(_) => None,
                Ok(Some(Ok(notice))) => self.sort(notice),
                Ok(Some(Err(reason))) => Some(down(reason)),
                Ok(None) => Some(down("the connection's task has ended".to_owned())),
            };
            if let Some(event) = event {
                self.down = matches!(event, Event::Down { .. });
                return event;
            }
        }
    }

    /// Says goodbye, so that the broker keeps the will to itself, and waits for it at most `patience`.
    pub async fn close(mut self, patience: Duration) {
        if self.down || self.client.disconnect().is_err() {
            return;
        }
        let gone = async { while !matches!(self.next().await, Event::Down { .. }) {} };
        if tokio::time::timeout(patience, gone).await.is_err() {
            tracing::debug!("the broker did not see us go");
        }
    }

    /// A connection that is gone takes nothing any more; that is told by [`Event::Down`], which comes in its turn.
    fn handed(&self, result: Result<(), Jammed>) -> Result<(), LinkError> {
        match result {
            Err(Jammed(reason)) if !self.events.is_closed() => Err(LinkError::Full(reason)),
            _ => Ok(()),
        }
    }

    /// Matches what rumqttc says with the tokens: it writes in the order it was given, and names packet ids as it does.
    fn sort(&mut self, notice: Notice) -> Option<Event> {
        match notice {
            Notice::Written(0) => {
                self.flight.written(self.unsent.pop_front()?, Instant::now());
                Some(Event::Sent)
            }
            Notice::Asked => {
                self.flight.asked();
                None
            }
            Notice::Answered => {
                self.flight.answered();
                None
            }
            Notice::Acknowledged => {
                self.acknowledging = self.acknowledging.saturating_sub(1);
                None
            }
            Notice::Written(id) => {
                match self.held.take() {
                    Some((held, token)) if held == id => self.sent.insert(id, token),
                    held => {
                        self.held = held;
                        self.unsent.pop_front().and_then(|token| self.sent.insert(id, token))
                    }
                };
                None
            }
            Notice::Held(id) => {
                self.held = self.unsent.pop_front().map(|token| (id, token));
                None
            }
            Notice::Up { packet_max } => Some(Event::Up { packet_max }),
            Notice::Confirmed { id, refusal } => {
                // A PUBACK for nothing of ours is the broker's slip; whatever it meant, nothing is deleted for it.
                let token = self.sent.remove(&id)?;
                self.flight.passed(token);
                Some(match refusal {
                    None => Event::Confirmed(token),
                    Some(reason) => Event::Refused { token, reason },
                })
            }
            Notice::Arrived(arrival) => Some(Event::Arrived(arrival)),
            Notice::Subscribed { refusal } => Some(refusal.map_or(Event::Subscribed, Event::NotSubscribed)),
        }
    }
}

impl Connection for Link {
    fn send(&mut self, publication: Publication) -> Result<u64, LinkError> {
        self.publish(publication)
    }

    fn subscribe(&mut self, filter: &str) -> Result<(), LinkError> {
        Self::subscribe(self, filter)
    }

    fn acknowledge(&mut self, arrival: Arrival) -> Result<(), LinkError> {
        Self::acknowledge(self, arrival)
    }

    fn unconfirmed(&self) -> usize {
        Self::unconfirmed(self)
    }

    fn next(&mut self) -> Soon<'_, Event> {
        Box::pin(Self::next(self))
    }

    fn close(self: Box<Self>, patience: Duration) -> Soon<'static, ()> {
        Box::pin(Self::close(*self, patience))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The event loop holds a sender to itself and would never end.
        self.task.abort();
    }
}

/// The wire, and what rumqttc calls the broker's address on it: a host, or a URL for WebSocket.
fn wire(settings: &Settings) -> Result<(Transport, String), LinkError> {
    let place = &settings.place;
    let tls = match &settings.trust {
        Some(trust) => Some(TlsConfiguration::Rustls(trust.client_config()?)),
        None => None,
    };
    Ok(match (place.scheme, tls) {
        (Scheme::Ws, _) => (Transport::ws(), place.to_string()),
        (Scheme::Wss, Some(tls)) => (Transport::wss_with_config(tls), place.to_string()),
        (_, Some(tls)) => (Transport::tls_with_config(tls), place.host.clone()),
        (_, None) => (Transport::tcp(), place.host.clone()),
    })
}

fn network(mut options: NetworkOptions) -> NetworkOptions {
    options.set_tcp_nodelay(true);
    options.set_connection_timeout(CONNECT_SECONDS_MAX);
    options
}
