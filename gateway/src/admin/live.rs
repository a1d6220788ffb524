//! `/api/v1/live`: every message as it is taken in, as server-sent events.
//!
//! An event `messages` carries a JSON array of messages (as `docs` of the JSON dialect say); an event `missed` says how
//! many were left out because the client was too slow. A comment goes out when nothing else did, so that both ends
//! notice a dead connection.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use axum::response::sse::{Event, KeepAlive, Sse};
use device_models::Message;
use device_models::wire::message_json;
use futures_core::Stream;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::mpsc;

use super::problem::Problem;
use crate::metrics::{Figure, Metrics};
use crate::threads::Tasks;

/// Clients at a time.
const CLIENTS_MAX: usize = 16;
/// Messages one event may carry.
const BATCH_MAX: usize = 256;
/// Messages are collected this long, so that a busy box does not send an event a message.
const COLLECT: Duration = Duration::from_millis(100);
/// Events on their way to one client that does not read them yet; behind them the gateway's own buffer fills, and what
/// does not fit there is counted and said.
const EVENTS_MAX: usize = 4;
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The feed's clients.
#[derive(Debug, Clone)]
pub(super) struct Feed {
    clients: Arc<AtomicUsize>,
    metrics: Metrics,
    tasks: Tasks,
}

impl Feed {
    pub(super) fn new(metrics: Metrics, tasks: Tasks) -> Self {
        Self { clients: Arc::default(), metrics, tasks }
    }

    /// Opens the feed for one client.
    pub(super) fn open(&self, messages: impl FnOnce() -> broadcast::Receiver<Arc<Message>>) -> Response {
        let Some(seat) = Seat::take(self) else {
            self.metrics.add(Figure::AdminRefused, &["live"], 1);
            let detail = format!("{CLIENTS_MAX} clients follow the live feed already");
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
        };
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        self.tasks.spawn("live-feed", follow(messages(), events, seat, self.clone()));
        Sse::new(Events(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }
}

/// Copies messages to one client until it goes or the gateway stops.
async fn follow(mut messages: broadcast::Receiver<Arc<Message>>, events: mpsc::Sender<Event>, _seat: Seat, feed: Feed) {
    loop {
        let event = tokio::select! {
            event = collect(&mut messages, &feed.metrics) => event,
            () = events.closed() => return,
            () = feed.tasks.stopping() => return,
        };
        let Some(event) = event else { return };
        tokio::select! {
            sent = events.send(event) => if sent.is_err() { return },
            () = feed.tasks.stopping() => return,
        }
    }
}

/// The next event; `None` when there will be none any more.
async fn collect(messages: &mut broadcast::Receiver<Arc<Message>>, metrics: &Metrics) -> Option<Event> {
    let first = match messages.recv().await {
        Ok(message) => message,
        Err(RecvError::Lagged(missed)) => {
            metrics.add(Figure::LiveDropped, &[], missed);
            return Some(Event::default().event("missed").data(missed.to_string()));
        }
        Err(RecvError::Closed) => return None,
    };
    tokio::time::sleep(COLLECT).await;
    let mut batch = vec![message_json(&first)];
    while batch.len() < BATCH_MAX {
        match messages.try_recv() {
            Ok(message) => batch.push(message_json(&message)),
            // What is said about it is said with the next event.
            Err(TryRecvError::Lagged(missed)) => metrics.add(Figure::LiveDropped, &[], missed),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    Some(Event::default().event("messages").data(serde_json::Value::Array(batch).to_string()))
}

/// The events as the response's body wants them.
struct Events(mpsc::Receiver<Event>);

impl Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|event| event.map(Ok))
    }
}

/// One client's place; given back when dropped.
struct Seat {
    clients: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl Seat {
    fn take(feed: &Feed) -> Option<Self> {
        let taken = feed.clients.fetch_add(1, Ordering::Relaxed);
        // Made first, so that the place is given back either way.
        let seat = Self { clients: Arc::clone(&feed.clients), metrics: feed.metrics.clone() };
        seat.metrics.change(Figure::LiveViewers, &[], 1.0);
        (taken < CLIENTS_MAX).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.clients.fetch_sub(1, Ordering::Relaxed);
        self.metrics.change(Figure::LiveViewers, &[], -1.0);
    }
}
