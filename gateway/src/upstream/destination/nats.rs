//! NATS JetStream: a publication is a message whose subject is its topic with dots (`sg.v1.GATEWAY.up.live`,
//! `sg.v1.GATEWAY.json.THING.properties`), confirmed by the acknowledgement of the stream that keeps it. The header
//! `Nats-Msg-Id` lets the stream drop repeats. Commands come by plain subscription. The only file that names async-nats.
//!
//! Streams are the platform's: this makes none, and says so when no stream takes a subject.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_core::Stream;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::super::dialect::{level, unlevel};
use super::courier::{Courier, Order};
use super::{Arrival, Event, LinkError, Publication, Settings};
use crate::threads::Tasks;

/// TCP, TLS and the server's greeting.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// Commands from the platform that wait for us; the server's client drops what comes beyond.
const SUBSCRIPTION_MAX: usize = 256;
/// JetStream's error of a message that is larger than the stream's limit: it will never be taken.
const TOO_LARGE: u32 = 10_054;

/// What a stream answers to a publish.
#[derive(Debug, Deserialize)]
struct PubAck {
    error: Option<AckError>,
}

#[derive(Debug, Deserialize)]
struct AckError {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

pub(super) fn open(settings: &Settings, tasks: &Tasks) -> Result<Courier, LinkError> {
    let (lost, loss) = mpsc::channel(1);
    let mut options = ConnectOptions::new()
        .name(&settings.client_id)
        .connection_timeout(CONNECT_MAX)
        .ping_interval(settings.keep_alive)
        .subscription_capacity(SUBSCRIPTION_MAX)
        .client_capacity(usize::from(settings.window).max(8))
        .max_reconnects(1)
        .event_callback(move |event| {
            let lost = lost.clone();
            async move {
                if !matches!(event, async_nats::Event::Connected) {
                    // One is enough, and afterwards nobody listens.
                    drop(lost.try_send(event.to_string()));
                }
            }
        });
    if let Some(token) = &settings.token {
        options = options.token(token.clone());
    } else if let Some((name, password)) = &settings.credentials {
        options = options.user_and_password(name.clone(), password.clone());
    }
    if let Some(trust) = &settings.trust {
        options = options.require_tls(true).tls_client_config(trust.client_config()?.as_ref().clone());
    }
    let server = settings.place.authority();
    Ok(Courier::start("nats upstream", tasks, settings.window, |orders, events| async move {
        if let Err(reason) = talk(options, &server, loss, orders, &events).await {
            // Whoever asked may be gone.
            drop(events.send(Event::Down { reason, rest: None }).await);
        }
    }))
}

/// Until the owner lets go (`Ok`) or the connection is over.
async fn talk(
    options: ConnectOptions,
    server: &str,
    mut loss: mpsc::Receiver<String>,
    mut orders: mpsc::Receiver<Order>,
    events: &mpsc::Sender<Event>,
) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let client = options.connect(server).await.map_err(|error| text(&error))?;
    let inbox = client.new_inbox();
    let mut acks = [client.subscribe(format!("{inbox}.*")).await.map_err(|error| text(&error))?];
    // Few: a dialect names them, and the receipts.
    let mut commands: Vec<Subscriber> = Vec::new();
    let packet_max = Some(client.server_info().max_payload);
    let mut told = Ok(Event::Up { packet_max });
    loop {
        if events.send(told?).await.is_err() {
            return Ok(());
        }
        told = loop {
            tokio::select! {
                order = orders.recv() => match order {
                    None => {
                        return client.flush().await.map_err(|error| text(&error));
                    }
                    Some(Order::Send { token, publication }) => publish(&client, &inbox, token, publication).await?,
                    Some(Order::Subscribe(filter)) => {
                        let subject = subject(&filter).map_err(|error| text(&error))?;
                        commands.push(client.subscribe(subject).await.map_err(|error| text(&error))?);
                        break Ok(Event::Subscribed);
                    }
                },
                message = next(&mut acks) => match message {
                    None => break Err("the connection has ended".to_owned()),
                    Some(message) => if let Some(event) = acknowledged(&message) {
                        break event;
                    },
                },
                message = next(&mut commands) => match message {
                    None => break Err("the subscription has ended".to_owned()),
                    Some(message) => break Ok(Event::Arrived(Arrival {
                        topic: topic(&message.subject),
                        payload: message.payload,
                        receipt: None,
                    })),
                },
                Some(reason) = loss.recv() => break Err(reason),
            }
        };
    }
}

/// The next message of any of them; `None`: one has ended. Never without a subscription.
async fn next(subscribers: &mut [Subscriber]) -> Option<Message> {
    poll_fn(|cx| {
        for subscriber in &mut *subscribers {
            if let Poll::Ready(message) = Pin::new(subscriber).poll_next(cx) {
                return Poll::Ready(message);
            }
        }
        Poll::Pending
    })
    .await
}

async fn publish(client: &Client, inbox: &str, token: u64, publication: Publication) -> Result<(), String> {
    let mut headers = HeaderMap::new();
    if let Some(origin) = &publication.origin {
        headers.insert("Nats-Msg-Id", origin.to_string());
        headers.insert("Sluicegate-Epoch", format!("{:016x}", origin.epoch));
        headers.insert("Sluicegate-Seq", origin.first.to_string());
    }
    let subject = subject(&publication.topic)?;
    let reply = format!("{inbox}.{token}");
    let payload = Bytes::from(publication.payload);
    client.publish_with_reply_and_headers(subject, reply, headers, payload).await.map_err(|error| error.to_string())
}

/// What an acknowledgement says of the publication its subject ends with.
fn acknowledged(message: &Message) -> Option<Result<Event, String>> {
    let token: u64 = message.subject.rsplit('.').next()?.parse().ok()?;
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Some(Err("no stream takes these subjects: make one for sg.v1.GATEWAY.>".to_owned()));
    }
    let ack: PubAck = match serde_json::from_slice(&message.payload) {
        Ok(ack) => ack,
        Err(error) => return Some(Err(format!("an acknowledgement that nobody can read: {error}"))),
    };
    Some(match ack.error {
        None => Ok(Event::Confirmed(token)),
        Some(AckError { err_code: TOO_LARGE, description }) => Ok(Event::Refused { token, reason: description }),
        Some(AckError { description, .. }) => Err(format!("the stream does not take it: {description}")),
    })
}

/// A topic as a subject: levels as tokens. What a token must not hold goes as `%` and two hex digits.
fn subject(topic: &str) -> Result<String, String> {
    let mut tokens = Vec::new();
    for part in topic.split('/') {
        tokens.push(match part {
            "" => return Err(format!("`{topic}` has an empty level: NATS has no such subject")),
            "#" => ">".to_owned(),
            "+" => "*".to_owned(),
            part => token(part),
        });
    }
    Ok(tokens.join("."))
}

fn token(part: &str) -> String {
    level(part).replace('.', "%2e").replace('*', "%2a").replace('>', "%3e").replace(' ', "%20")
}

/// The way back of [`subject`].
fn topic(subject: &str) -> String {
    let levels: Vec<_> = subject.split('.').map(|part| unlevel(part).unwrap_or_else(|| part.to_owned())).collect();
    levels.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_subjects_and_back() {
        for (given, expected) in [
            ("sg/v1/g/up/live", "sg.v1.g.up.live"),
            ("sg/v1/g/json/meter 1.5/properties", "sg.v1.g.json.meter%201%2e5.properties"),
            ("sg/v1/g/json/50%/properties", "sg.v1.g.json.50%25.properties"),
        ] {
            assert_eq!(subject(given).unwrap(), expected);
            assert_eq!(topic(expected), given);
        }
        assert_eq!(subject("sg/v1/g/down/#").unwrap(), "sg.v1.g.down.>");
        assert!(subject("sg//up").is_err());
    }
}
