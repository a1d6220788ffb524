//! One connection's hold on its session.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use protocols::exchange::{Event, KickReason, Publication, Qos, Request};
use protocols::{Refusal, Ticket};

use super::core::{Core, NotRouted, Routing};
use super::retained::{Step, remaining};
use super::sessions::{Queued, delivery};
use super::topics::Slot;
use super::{Published, Shared, sys};

/// What a connection does with the exchange. Dropped without [`Request::Detach`] it counts as lost: its will is
/// published.
#[derive(Debug)]
pub struct Attachment {
    shared: Arc<Shared>,
    slot: Slot,
    connection: u64,
    attached: bool,
}

/// What [`Attachment::poll_next`] found.
enum Next {
    Event(Event),
    /// A long look through retained messages found nothing yet.
    Again,
    Nothing,
}

// === impl Attachment ===

impl Attachment {
    pub(super) fn new(shared: Arc<Shared>, slot: Slot, connection: u64) -> Self {
        Self { shared, slot, connection, attached: true }
    }

    /// Everything a session asks but [`Request::Attach`] and [`Request::Publish`]; the event is the answer, where there
    /// is one.
    pub async fn request(&mut self, request: Request) -> Option<Event> {
        match request {
            Request::Subscribe { ticket, subscriptions } => {
                let mut outcomes = Vec::with_capacity(subscriptions.len());
                for subscription in subscriptions {
                    outcomes.push(self.subscribe(subscription).await);
                }
                if let Err(refusal) = self.saved().await {
                    outcomes.fill(Err(refusal));
                }
                Some(Event::Subscribed { ticket, outcomes })
            }
            Request::Unsubscribe { ticket, filters } => {
                let outcomes: Vec<bool> = {
                    let mut core = self.shared.lock();
                    let owned = core.owned(self.slot, self.connection).is_some();
                    filters.iter().map(|filter| owned && core.unsubscribe(self.slot, filter)).collect()
                };
                for filter in &filters {
                    self.shared.unlink(self.slot, self.connection, filter).await;
                }
                // A subscription that a crash brings back is unsubscribed again by its client.
                drop(self.saved().await);
                Some(Event::Unsubscribed { ticket, outcomes })
            }
            Request::Command { ticket, publication } => {
                let outcome = self.command(ticket, &publication);
                Some(Event::Commanded { ticket, outcome })
            }
            Request::Received { delivery } => {
                let mut core = self.shared.lock();
                let owned = core.owned(self.slot, self.connection).is_some();
                Some(Event::Release { delivery, known: owned && core.received(self.slot, delivery) })
            }
            Request::Acknowledged { delivery } => {
                let mut core = self.shared.lock();
                if core.owned(self.slot, self.connection).is_some() {
                    core.acknowledge(self.slot, delivery);
                }
                None
            }
            Request::Release { packet_id } => {
                let mut core = self.shared.lock();
                if let Some(session) = core.owned(self.slot, self.connection)
                    && session.unreleased.remove(&packet_id)
                    && session.is_kept()
                {
                    let client = Arc::clone(&session.client);
                    core.keep.released(&client, packet_id);
                }
                None
            }
            Request::Detach { publish_will, expiry } => {
                self.detach(publish_will, expiry);
                None
            }
            Request::Attach { .. } | Request::Publish { .. } => None,
        }
    }

    /// Routes a publication of this client. Waits a while when a subscriber has no room: the caller reads nothing more
    /// from the client meanwhile, so that it feels it. A refused publication is not stored, nor is its QoS 2 packet id.
    pub async fn publish(&mut self, publication: Publication, packet_id: Option<u16>) -> Result<Published, Refusal> {
        {
            let mut core = self.shared.lock();
            let Some(session) = core.owned(self.slot, self.connection) else { return Err(taken_over()) };
            let (client, by) = (Arc::clone(&session.client), session.by.clone());
            if !self.shared.access.may_publish(&by, &client, &publication.topic) {
                core.stat.forbidden += 1;
                return Err(Refusal::Forbidden(format!("publishing to {}", publication.topic)));
            }
        }
        let mut published = self.shared.publish(&publication, Some(self.slot)).await?;
        let Some(packet_id) = packet_id else { return Ok(published) };
        let mut core = self.shared.lock();
        let Some(session) = core.owned(self.slot, self.connection) else { return Ok(published) };
        session.unreleased.insert(packet_id);
        if session.is_kept() {
            let client = Arc::clone(&session.client);
            core.keep.unreleased(&client, packet_id)?;
            published.kept = core.keep.changes;
            drop(core);
            self.shared.flush.notify_one();
        }
        Ok(published)
    }

    /// The next thing for this client.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let mut core = self.shared.lock();
        match core.next(self.slot, self.connection, Instant::now()) {
            Next::Event(event) => return Poll::Ready(event),
            Next::Again => cx.waker().wake_by_ref(),
            Next::Nothing => {
                if let Some(session) = core.owned(self.slot, self.connection) {
                    session.wait(cx.waker());
                }
            }
        }
        Poll::Pending
    }

    async fn subscribe(&self, subscription: protocols::exchange::Subscription) -> Result<Qos, Refusal> {
        let filter = Arc::clone(&subscription.filter);
        self.may_subscribe(&filter)?;
        self.shared.link(self.slot, self.connection, &filter).await?;
        let mut core = self.shared.lock();
        if core.owned(self.slot, self.connection).is_none() {
            return Err(taken_over());
        }
        let qos = core.subscribe(self.slot, subscription)?;
        if filter.starts_with("$SYS/") {
            let stat = core.stat();
            for publication in sys::publications(&stat, self.shared.started.elapsed(), &filter) {
                let message =
                    Queued { number: 0, publication, identifiers: Vec::new(), arrived: Instant::now(), command: None };
                core.offer(self.slot, message);
            }
        }
        Ok(qos)
    }

    fn may_subscribe(&self, filter: &str) -> Result<(), Refusal> {
        let mut core = self.shared.lock();
        let Some(session) = core.owned(self.slot, self.connection) else { return Err(taken_over()) };
        let (client, by) = (Arc::clone(&session.client), session.by.clone());
        if !self.shared.access.may_subscribe(&by, &client, filter) {
            core.stat.forbidden += 1;
            return Err(Refusal::Forbidden(format!("subscribing to {filter}")));
        }
        Ok(())
    }

    /// The session's description as it now is, on disk.
    async fn saved(&self) -> Result<(), Refusal> {
        let change = {
            let mut core = self.shared.lock();
            if !core.owned(self.slot, self.connection).is_some_and(|session| session.is_kept()) {
                return Ok(());
            }
            core.save(self.slot)?;
            core.keep.changes
        };
        self.shared.durable(change).await
    }

    fn command(&self, ticket: Ticket, publication: &Publication) -> Result<(), Refusal> {
        let mut core = self.shared.lock();
        if core.owned(self.slot, self.connection).is_none() {
            return Err(taken_over());
        }
        let routing =
            Routing { publication, from: Some(self.slot), command: Some(ticket), patient: true, waits: false };
        match core.route(routing, Instant::now()) {
            Ok(routed) if routed.own => Ok(()),
            Ok(_) => Err(Refusal::NotFound(publication.topic.to_string())),
            Err(NotRouted::Full) => Err(Refusal::Limit("the device's queue is full".to_owned())),
            Err(NotRouted::Refused(refusal)) => Err(refusal),
        }
    }

    fn detach(&mut self, publish_will: bool, expiry: Option<std::time::Duration>) {
        if !std::mem::replace(&mut self.attached, false) {
            return;
        }
        let mut core = self.shared.lock();
        let expiry = expiry.map(|expiry| core.granted(expiry));
        let Some(session) = core.owned(self.slot, self.connection) else { return };
        let was_kept = session.is_kept();
        if let Some(expiry) = expiry {
            session.expiry = expiry;
            let kept = session.is_kept();
            if kept {
                // Only how long it is kept changes; a failure leaves the longer or shorter time of before.
                drop(core.save(self.slot));
            } else if was_kept {
                core.unkeep(self.slot);
            }
        }
        core.leave(self.slot, publish_will, Instant::now());
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.detach(true, None);
    }
}

fn taken_over() -> Refusal {
    Refusal::Unavailable("another connection took the client id".to_owned())
}

// === impl Core ===

impl Core {
    fn next(&mut self, slot: Slot, connection: u64, now: Instant) -> Next {
        let Some(session) = self.owned(slot, connection) else {
            return Next::Event(Event::Kicked { reason: KickReason::TakenOver });
        };
        if let Some(reason) = session.kicked {
            return Next::Event(Event::Kicked { reason });
        }
        if let Some(inflight) = session.inflight.get(session.resend as usize) {
            session.resend += 1;
            let event = if inflight.released {
                Event::Release { delivery: inflight.packet_id, known: true }
            } else {
                Event::Deliver(delivery(&inflight.message, inflight.packet_id, true))
            };
            return Next::Event(event);
        }
        while let Some(message) = self.session(slot).and_then(super::sessions::Session::pop) {
            if let Some(publication) = remaining(&message.publication, message.arrived, now) {
                return Next::Event(self.send(slot, Queued { publication, ..message }));
            }
            self.stat.outdated += 1;
            self.forget(slot, &message.publication);
            self.forget_stored(slot, message.number);
        }
        self.walk(slot, now)
    }

    fn send(&mut self, slot: Slot, message: Queued) -> Event {
        self.stat.delivered += 1;
        let loose = (message.publication.qos == Qos::AtMostOnce).then(|| message.publication.clone());
        let Some(session) = self.session(slot) else { return Event::Kicked { reason: KickReason::TakenOver } };
        let delivery = session.send(message);
        match loose {
            Some(publication) => self.forget(slot, &publication),
            None => self.note_sent(slot, delivery.id),
        }
        Event::Deliver(delivery)
    }

    fn forget_stored(&mut self, slot: Slot, number: u64) {
        if number > 0
            && let Some(session) = self.session(slot)
        {
            let client = Arc::clone(&session.client);
            self.keep.done_waiting(&client, number);
        }
    }

    /// The next retained message that the client has not seen since it subscribed.
    fn walk(&mut self, slot: Slot, now: Instant) -> Next {
        let queue_bytes = self.limits.queue_bytes;
        let Some(session) = self.session(slot) else { return Next::Nothing };
        if !session.queue.is_empty()
            || session.inflight.len() >= usize::from(session.window)
            || session.bytes > queue_bytes / 2
        {
            return Next::Nothing;
        }
        let Some(mut walk) = session.walks.pop() else { return Next::Nothing };
        let subscriber = walk.subscriber;
        match self.retained.step(&mut walk, now) {
            Step::Done => Next::Again,
            Step::More => {
                self.walk_on(slot, walk);
                Next::Again
            }
            Step::Found(mut publication) => {
                self.walk_on(slot, walk);
                publication.qos = publication.qos.min(subscriber.qos);
                let identifiers = subscriber.identifier.into_iter().collect();
                let message = Queued { number: 0, publication, identifiers, arrived: now, command: None };
                // Through the queue, so that it is counted and stored like every other message.
                self.offer(slot, message);
                Next::Again
            }
        }
    }

    fn walk_on(&mut self, slot: Slot, walk: super::retained::Walk) {
        if let Some(session) = self.session(slot) {
            session.walks.push(walk);
        }
    }
}
