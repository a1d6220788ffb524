//! HTTP(S) POST: one publication a request, one request at a time, so that order holds at the receiver. 2xx confirms; a
//! body that will never be taken (most of 4xx) is refused; everything else ends the connection and is tried again later.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::debug;

use super::courier::{Courier, Order};
use super::{Event, LinkError, Publication, Settings};
use crate::http::{Answer, Client, HttpError};
use crate::threads::Tasks;

/// TCP and TLS, to see whether anybody is there.
const CONNECT_MAX: Duration = Duration::from_secs(15);
/// From the connection to the last byte of the answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// The longest pause a receiver may ask for by `Retry-After`.
const REST_MAX: Duration = Duration::from_secs(3600);

/// The start of a refusal's body that is told.
const REASON_LEN_MAX: usize = 200;

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Taken,
    Refused,
    Later,
}

pub(super) fn open(settings: &Settings, tasks: &Tasks) -> Result<Courier, LinkError> {
    let trust = settings.trust.clone().unwrap_or_default();
    let client = Client::new(&settings.place.to_string(), &trust)?;
    let authorization = match (&settings.token, &settings.credentials) {
        (Some(token), _) => Some(format!("Bearer {token}")),
        (None, Some((name, password))) => Some(format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))),
        (None, None) => None,
    };
    let receiver = Receiver { client, content_type: settings.content_type, authorization };
    Ok(Courier::start("http upstream", tasks, settings.window, |orders, events| run(receiver, orders, events)))
}

/// Where the requests go, and what each carries.
struct Receiver {
    client: Client,
    content_type: &'static str,
    authorization: Option<String>,
}

async fn run(receiver: Receiver, mut orders: mpsc::Receiver<Order>, events: mpsc::Sender<Event>) {
    if let Err(error) = receiver.client.warm(CONNECT_MAX).await {
        // Whoever asked may be gone.
        drop(events.send(Event::Down { reason: error.to_string(), rest: None }).await);
        return;
    }
    if events.send(Event::Up { packet_max: None }).await.is_err() {
        return;
    }
    while let Some(order) = orders.recv().await {
        let (token, publication) = match order {
            Order::Send { token, publication } => (token, publication),
            Order::Subscribe(filter) => {
                debug!(filter, "a receiver of POSTs has no way down");
                continue;
            }
        };
        let event = match receiver.post(publication).await {
            Ok(answer) => told(token, &answer),
            Err(error) => Event::Down { reason: error.to_string(), rest: None },
        };
        let over = matches!(event, Event::Down { .. });
        if events.send(event).await.is_err() || over {
            return;
        }
    }
}

impl Receiver {
    async fn post(&self, publication: Publication) -> Result<Answer, HttpError> {
        let key = publication.origin.map(|origin| origin.to_string());
        let named = [
            ("sluicegate-topic", Some(&publication.topic)),
            ("idempotency-key", key.as_ref()),
            ("authorization", self.authorization.as_ref()),
        ];
        let headers: Vec<_> =
            named.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?.as_str()))).collect();
        self.client.post("", self.content_type, &headers, Bytes::from(publication.payload), ANSWER_MAX).await
    }
}

fn told(token: u64, answer: &Answer) -> Event {
    let reason = || {
        let text = String::from_utf8_lossy(&answer.body);
        let text: String = text.lines().next().unwrap_or_default().chars().take(REASON_LEN_MAX).collect();
        format!("the receiver answers {} {text}", answer.status).trim_end().to_owned()
    };
    match verdict(answer.status) {
        Verdict::Taken => Event::Confirmed(token),
        Verdict::Refused => Event::Refused { token, reason: reason() },
        Verdict::Later => Event::Down { reason: reason(), rest: answer.retry_after.map(|rest| rest.min(REST_MAX)) },
    }
}

/// What speaks of the body is final; what speaks of us (who we are, where we knocked, how often) may change.
const fn verdict(status: u16) -> Verdict {
    match status {
        200..=299 => Verdict::Taken,
        401 | 403 | 404 | 405 | 407 | 408 | 410 | 421 | 423 | 425 | 426 | 429 | 511 => Verdict::Later,
        400..=499 => Verdict::Refused,
        _ => Verdict::Later,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_about_the_body_is_final_and_one_about_us_is_not() {
        for (status, expected) in [
            (200, Verdict::Taken),
            (204, Verdict::Taken),
            (301, Verdict::Later),
            (400, Verdict::Refused),
            (413, Verdict::Refused),
            (422, Verdict::Refused),
            (401, Verdict::Later),
            (404, Verdict::Later),
            (429, Verdict::Later),
            (500, Verdict::Later),
            (503, Verdict::Later),
        ] {
            assert_eq!(verdict(status), expected, "{status}");
        }
    }
}
