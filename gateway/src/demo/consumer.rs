//! The demo's platform behind the door: the reference consumer, and its book for the status page.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config::Sasl;
use crate::receive::Consumer;
use crate::threads::Tasks;
use crate::upstream::destination::mqtt::Link;
use crate::upstream::destination::place::Place;
use crate::upstream::destination::{Event, Settings, Version};

/// Publishes the door may send before we acknowledge.
const WINDOW: u16 = 100;
/// The catalogs first: the batches need them.
const FILTERS: [&str; 2] = ["sg/v1/+/model/+", "sg/v1/+/up/+"];
const AGAIN: Duration = Duration::from_millis(500);
const CLOSE_MAX: Duration = Duration::from_millis(200);

/// What came so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Book {
    pub(super) messages: u64,
    pub(super) duplicates: u64,
    pub(super) missing: u64,
}

/// The consumer at work. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Platform {
    book: Arc<Mutex<Book>>,
    /// Its subscriptions are in force: what the gateway sends before that, nobody would get.
    listening: CancellationToken,
    end: CancellationToken,
}

impl Platform {
    pub(super) fn start(door: SocketAddr, tasks: &Tasks) -> Self {
        let platform =
            Self { book: Arc::default(), listening: CancellationToken::new(), end: CancellationToken::new() };
        let settings = Settings {
            place: Place::mqtt(door.ip().to_string(), door.port()),
            version: Version::V5,
            trust: None,
            client_id: "reference-consumer".to_owned(),
            credentials: None,
            keep_alive: Duration::from_secs(15),
            clean_start: false,
            session_expiry: Duration::from_secs(3600),
            window: WINDOW,
            will: None,
            sasl: Sasl::default(),
            token: None,
            content_type: "",
        };
        let (running, tasks_of_link) = (platform.clone(), tasks.clone());
        tasks.spawn("demo-platform", async move { running.run(&settings, &tasks_of_link).await });
        platform
    }

    /// Resolves when its subscriptions are in force.
    pub(super) async fn listening(&self) {
        self.listening.cancelled().await;
    }

    pub(super) fn book(&self) -> Book {
        *self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it; the devices' stop alone does not, so that it takes what is still on its way.
    pub(super) fn end(&self) {
        self.end.cancel();
    }

    async fn run(&self, settings: &Settings, tasks: &Tasks) {
        let mut consumer = Consumer::new();
        while !self.end.is_cancelled() {
            match Link::open(settings, tasks) {
                Ok(mut link) => {
                    tokio::select! {
                        () = self.talk(&mut link, &mut consumer) => {}
                        () = self.end.cancelled() => {}
                    }
                    link.close(CLOSE_MAX).await;
                }
                Err(error) => tracing::warn!(%error, "the demo's platform cannot listen"),
            }
            tokio::select! {
                () = tokio::time::sleep(AGAIN) => {}
                () = self.end.cancelled() => {}
            }
        }
    }

    /// Takes what comes until the link is down.
    async fn talk(&self, link: &mut Link, consumer: &mut Consumer) {
        let mut subscribed = 0;
        loop {
            let done = match link.next().await {
                Event::Up { .. } => FILTERS.iter().try_for_each(|filter| link.subscribe(filter)),
                Event::Subscribed => {
                    subscribed += 1;
                    if subscribed == FILTERS.len() {
                        self.listening.cancel();
                    }
                    Ok(())
                }
                Event::Arrived(arrival) => {
                    let messages = consumer.take(&arrival.topic, &arrival.payload).len() as u64;
                    self.note(messages, consumer);
                    link.acknowledge(arrival)
                }
                Event::NotSubscribed(reason) => {
                    tracing::warn!(reason, "the demo's platform may not listen");
                    return;
                }
                Event::Down { .. } => return,
                Event::Confirmed(_) | Event::Sent | Event::Refused { .. } => Ok(()),
            };
            if done.is_err() {
                return;
            }
        }
    }

    fn note(&self, messages: u64, consumer: &Consumer) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.messages += messages;
        book.duplicates = consumer.accounts().map(|(_, account)| account.duplicates).sum();
        book.missing = consumer.missing();
    }
}
