//! A connection carried by a task of its own: publications go to it through a bounded queue, events come back. What the
//! task does with them is the destination's file.

use std::future::Future;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::{Arrival, Connection, Event, LinkError, Publication, Soon};
use crate::threads::Tasks;

/// Publications beside the window's: a catalog, the last word.
const BESIDE: usize = 8;
/// Events between the task and the connection's owner. The task waits when it is full.
const EVENTS_MAX: usize = 256;

/// What the task gets to do.
#[derive(Debug)]
pub(super) enum Order {
    Send { token: u64, publication: Publication },
    Subscribe(String),
}

#[derive(Debug)]
pub(super) struct Courier {
    /// `None` once it is closed.
    orders: Option<mpsc::Sender<Order>>,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
    next_token: u64,
    unconfirmed: usize,
    down: bool,
}

// === impl Courier ===

impl Courier {
    /// Starts the task. It ends when its orders do, or after it sent [`Event::Down`].
    pub(super) fn start<F>(
        name: &'static str,
        tasks: &Tasks,
        window: u16,
        work: impl FnOnce(mpsc::Receiver<Order>, mpsc::Sender<Event>) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (orders, taken) = mpsc::channel(usize::from(window) + BESIDE);
        let (told, events) = mpsc::channel(EVENTS_MAX);
        let task = tasks.spawn(name, work(taken, told));
        Self { orders: Some(orders), events, task, next_token: 1, unconfirmed: 0, down: false }
    }

    fn order(&self, order: Order) -> Result<(), LinkError> {
        let full =
            |orders: &mpsc::Sender<Order>| matches!(orders.try_send(order), Err(mpsc::error::TrySendError::Full(_)));
        // A connection that is gone takes nothing any more; Event::Down comes in its turn.
        if self.orders.as_ref().is_some_and(full) {
            return Err(LinkError::Full("the destination's queue is full".to_owned()));
        }
        Ok(())
    }

    async fn event(&mut self) -> Event {
        if self.down {
            return std::future::pending().await;
        }
        let event = self.events.recv().await;
        let event = event.unwrap_or_else(|| Event::Down { reason: "the connection has ended".to_owned(), rest: None });
        match event {
            Event::Confirmed(_) | Event::Refused { .. } => self.unconfirmed = self.unconfirmed.saturating_sub(1),
            Event::Down { .. } => self.down = true,
            _ => {}
        }
        event
    }
}

impl Connection for Courier {
    fn send(&mut self, publication: Publication) -> Result<u64, LinkError> {
        let token = self.next_token;
        self.order(Order::Send { token, publication })?;
        self.next_token += 1;
        self.unconfirmed += 1;
        Ok(token)
    }

    fn subscribe(&mut self, filter: &str) -> Result<(), LinkError> {
        self.order(Order::Subscribe(filter.to_owned()))
    }

    fn acknowledge(&mut self, _arrival: Arrival) -> Result<(), LinkError> {
        Ok(())
    }

    fn unconfirmed(&self) -> usize {
        self.unconfirmed
    }

    fn next(&mut self) -> Soon<'_, Event> {
        Box::pin(self.event())
    }

    fn close(mut self: Box<Self>, patience: Duration) -> Soon<'static, ()> {
        Box::pin(async move {
            self.orders = None;
            let gone = async { while self.events.recv().await.is_some() {} };
            if tokio::time::timeout(patience, gone).await.is_err() {
                tracing::debug!("the destination did not see us go");
            }
        })
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.task.abort();
    }
}
