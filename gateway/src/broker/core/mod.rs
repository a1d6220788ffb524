//! The exchange's state and everything that changes it. One mutex around it, held for no longer than one message's
//! routing; no waiting in here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use protocols::exchange::{Publication, Qos, Subscription};
use protocols::{Refusal, Ticket};
use tokio::sync::{Notify, mpsc};

use super::keep::{Keep, Waiting};
use super::retained::{self, Retained, Walk, size};
use super::rumqttd::{Fanout, Flight};
use super::sessions::{Queued, Session};
use super::topics::{Slot, Subscriber, Topics};
use super::{Limits, Stat, WillReport};

mod leave;

#[derive(Debug)]
pub(super) struct Core {
    pub limits: Limits,
    slots: Vec<Option<Box<Session>>>,
    free: Vec<Slot>,
    by_client: HashMap<Arc<str>, Slot>,
    pub topics: Topics,
    pub retained: Retained,
    pub keep: Keep,
    pub stat: Stat,
    /// Carries messages in our stead; absent: we do it ourselves.
    pub fanout: Option<Fanout>,
    /// Bytes waiting for all sessions.
    pub bytes: usize,
    connections: u64,
    wills: mpsc::Sender<WillReport>,
    /// Some full session has room again.
    pub room: Arc<Notify>,
    /// Some connection is gone.
    pub left: Arc<Notify>,
    /// A deadline came before those known.
    pub hurry: Arc<Notify>,
    found: Vec<Subscriber>,
}

/// What routing came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Routed {
    pub matched: usize,
    /// The session that asked is among the matched.
    pub own: bool,
    /// Something went to the disk that the publisher's acknowledgement must wait for.
    pub stored: bool,
}

/// Somebody who takes the message has no room.
#[derive(Debug)]
pub(super) enum NotRouted {
    /// Try again when there is room.
    Full,
    Refused(Refusal),
}

/// A publication on its way to its subscribers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Routing<'a> {
    pub publication: &'a Publication,
    /// The publishing session, for no-local subscriptions.
    pub from: Option<Slot>,
    /// For the session `from` alone it is this command.
    pub command: Option<Ticket>,
    /// Whether a full subscriber refuses the publication for now; else the message is turned away there.
    pub patient: bool,
    /// Whether a busy second core refuses it for now; else it goes past that core.
    pub waits: bool,
}

// === impl Core ===

impl Core {
    pub(super) fn new(limits: Limits, keep: Keep, wills: mpsc::Sender<WillReport>) -> Self {
        Self {
            limits,
            slots: Vec::new(),
            free: Vec::new(),
            by_client: HashMap::new(),
            topics: Topics::default(),
            retained: Retained::new(limits.retained_bytes),
            keep,
            stat: Stat::default(),
            fanout: None,
            bytes: 0,
            connections: 0,
            wills,
            room: Arc::new(Notify::new()),
            left: Arc::new(Notify::new()),
            hurry: Arc::new(Notify::new()),
            found: Vec::new(),
        }
    }

    pub(super) fn session(&mut self, slot: Slot) -> Option<&mut Session> {
        self.slots.get_mut(slot as usize)?.as_deref_mut()
    }

    /// The session, if this connection still owns it.
    pub(super) fn owned(&mut self, slot: Slot, connection: u64) -> Option<&mut Session> {
        self.session(slot).filter(|session| session.connection == connection)
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = (Slot, &Session)> {
        self.slots.iter().enumerate().filter_map(|(slot, session)| Some((slot as Slot, session.as_deref()?)))
    }

    pub(super) fn find(&self, client: &str) -> Option<Slot> {
        self.by_client.get(client).copied()
    }

    pub(super) fn new_connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    /// A place for a new session.
    pub(super) fn insert(&mut self, session: Session) -> Result<Slot, Refusal> {
        if self.by_client.len() >= self.limits.sessions {
            self.stat.sessions_refused += 1;
            return Err(Refusal::Limit(format!("{} MQTT sessions", self.limits.sessions)));
        }
        let client = Arc::clone(&session.client);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as Slot
        });
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(Box::new(session));
        }
        self.by_client.insert(client, slot);
        Ok(slot)
    }

    /// Ends a session for good. Its will, if it still has one, is the caller's to publish.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<Box<Session>> {
        let mut session = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        self.by_client.remove(&session.client);
        for filter in session.subscriptions.keys() {
            self.topics.remove(filter, slot);
        }
        self.bytes -= session.bytes.min(self.bytes);
        if session.is_kept() {
            for number in session.queue.iter().map(|queued| queued.number) {
                self.keep.done_waiting(&session.client, number);
            }
            for number in session.inflight.iter().map(|inflight| inflight.message.number) {
                self.keep.done_waiting(&session.client, number);
            }
            for packet_id in std::mem::take(&mut session.unreleased) {
                self.keep.released(&session.client, packet_id);
            }
            self.keep.forget_session(&session.client);
        }
        self.room.notify_waiters();
        Some(session)
    }

    /// Stores the session's description, if it outlives its connection.
    pub(super) fn save(&mut self, slot: Slot) -> Result<(), Refusal> {
        let Some(session) = self.slots.get(slot as usize).and_then(Option::as_deref) else { return Ok(()) };
        if !session.is_kept() {
            return Ok(());
        }
        self.keep.session(&session.client, &session.by.name, session.expiry, session.subscriptions.values())
    }

    /// Retains what asks for it and gives the publication to every subscriber once, at the lower QoS, with the
    /// identifiers of all filters that took it (MQTT 5, 3.3.4).
    pub(super) fn route(&mut self, routing: Routing<'_>, now: Instant) -> Result<Routed, NotRouted> {
        let mut found = std::mem::take(&mut self.found);
        found.clear();
        let slots = &self.slots;
        let connected =
            |slot: Slot| slots.get(slot as usize).and_then(Option::as_deref).is_some_and(Session::is_connected);
        self.topics.matches(&routing.publication.topic, &connected, &mut found);
        // A shared subscription is a copy of its own; the others of one session are one.
        found.sort_by_key(|subscriber| (subscriber.slot, subscriber.shared));
        let outcome = self.route_to(&found, routing, now);
        self.found = found;
        outcome
    }

    fn route_to(&mut self, found: &[Subscriber], routing: Routing<'_>, now: Instant) -> Result<Routed, NotRouted> {
        let publication = routing.publication;
        if routing.patient && found.iter().any(|subscriber| self.must_wait_for(subscriber, routing)) {
            return Err(NotRouted::Full);
        }
        let busy = self.fanout.as_ref().is_some_and(|fanout| fanout.is_busy(publication));
        if busy && routing.waits && !found.is_empty() {
            return Err(NotRouted::Full);
        }
        let mut routed = Routed { own: found.iter().any(|s| Some(s.slot) == routing.from), ..Routed::default() };
        if routing.command.is_some() && !routed.own {
            return Ok(routed);
        }
        if publication.retain {
            self.retain(publication, now).map_err(NotRouted::Refused)?;
        }
        let mut flight = self.fanout.as_mut().filter(|_| !found.is_empty()).and_then(|f| f.flight(publication));
        for copies in found.chunk_by(|a, b| a.slot == b.slot && !a.shared && !b.shared) {
            let mut copy =
                copies.iter().filter(|s| !(s.no_local && Some(s.slot) == routing.from && routing.command.is_none()));
            let Some(first) = copy.next() else {
                if let (Some(flight), Some(none), Some(fanout)) = (&mut flight, copies.first(), &self.fanout) {
                    fanout.expect(flight, none.slot, copies.len(), None);
                }
                continue;
            };
            let (mut qos, mut as_published) = (first.qos, first.retain_as_published);
            let mut identifiers: Vec<u32> = first.identifier.into_iter().collect();
            for subscriber in copy {
                qos = qos.max(subscriber.qos);
                as_published |= subscriber.retain_as_published;
                identifiers.extend(subscriber.identifier);
            }
            routed.matched += 1;
            let mut message = publication.clone();
            message.qos = message.qos.min(qos);
            message.retain = publication.retain && as_published;
            let command = routing.command.filter(|_| Some(first.slot) == routing.from);
            let message = Queued { number: 0, publication: message, identifiers, arrived: now, command };
            match flight.as_mut().filter(|_| !first.shared) {
                Some(flight) => self.board(flight, first.slot, copies.len(), message),
                None => routed.stored |= self.enqueue(first.slot, message).map_err(NotRouted::Refused)?,
            }
        }
        if let Some(flight) = flight {
            self.launch(flight);
        }
        Ok(routed)
    }

    /// Whether the publisher should wait for this subscriber: it is there, takes messages that must not be lost, has no
    /// room, and is not given up on.
    fn must_wait_for(&self, subscriber: &Subscriber, routing: Routing<'_>) -> bool {
        let publication = routing.publication;
        // Who publishes to itself cannot take anything while it waits.
        if Some(subscriber.slot) == routing.from && routing.command.is_none() {
            return false;
        }
        if publication.qos == Qos::AtMostOnce || subscriber.qos == Qos::AtMostOnce {
            return false;
        }
        let Some(session) = self.slots.get(subscriber.slot as usize).and_then(Option::as_deref) else { return false };
        let loose_only = session.loose > 0;
        session.is_connected() && !session.stuck && !loose_only && self.is_full(session, size(publication))
    }

    fn is_full(&self, session: &Session, size: usize) -> bool {
        // One message always fits, however large.
        (session.bytes > 0 && session.bytes + size > self.limits.queue_bytes)
            || self.bytes + size > self.limits.queues_bytes
    }

    /// Sends a session's message by the second core. A command does not take the way round.
    fn board(&mut self, flight: &mut Flight, slot: Slot, copies: usize, message: Queued) {
        if !self.admit(slot, &message) {
            if let Some(fanout) = &self.fanout {
                fanout.expect(flight, slot, copies, None);
            }
            return;
        }
        let now = match &self.fanout {
            Some(fanout) if message.command.is_some() => {
                fanout.expect(flight, slot, copies, None);
                Some(message)
            }
            Some(fanout) => fanout.expect(flight, slot, copies, Some(message)),
            None => Some(message),
        };
        if let Some(message) = now {
            self.put(slot, message);
        }
    }

    /// Puts a message into a session's queue, or turns it away. True when it was stored on disk.
    fn enqueue(&mut self, slot: Slot, mut message: Queued) -> Result<bool, Refusal> {
        if !self.admit(slot, &message) {
            return Ok(false);
        }
        let Some(session) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return Ok(false) };
        let stored = message.publication.qos > Qos::AtMostOnce && session.is_kept();
        if stored {
            message.number = session.next_number;
            let waiting = Waiting {
                number: message.number,
                publication: &message.publication,
                identifiers: &message.identifiers,
                packet_id: 0,
                released: false,
            };
            if let Err(refusal) = self.keep.waiting(&session.client, waiting) {
                self.bytes -= session.forget_bytes(&message.publication).min(self.bytes);
                return Err(refusal);
            }
            session.next_number += 1;
        }
        self.put(slot, message);
        Ok(stored)
    }

    /// Makes room for a message in a session's queue and reserves it; false when it is turned away.
    fn admit(&mut self, slot: Slot, message: &Queued) -> bool {
        let size = size(&message.publication);
        let Some(session) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return false };
        let loose = message.publication.qos == Qos::AtMostOnce;
        if loose && !session.is_connected() {
            return false;
        }
        let over = |session: &Session, all: usize, limits: &Limits| {
            (session.bytes > 0 && session.bytes + size > limits.queue_bytes) || all + size > limits.queues_bytes
        };
        while over(session, self.bytes, &self.limits) {
            let Some(freed) = session.drop_loose() else {
                session.stuck |= session.connection != 0 && !loose;
                self.stat.turned_away += 1;
                return false;
            };
            self.bytes -= freed;
            self.stat.dropped += 1;
        }
        session.bytes += size;
        self.bytes += size;
        true
    }

    /// Puts a message that was admitted into the session's queue.
    pub(super) fn put(&mut self, slot: Slot, mut message: Queued) {
        let Some(session) = self.session(slot) else { return };
        if !session.queue.is_empty() || !session.is_connected() {
            // It may wait for long: a slice would keep the whole read buffer it came in.
            message.publication.payload = Bytes::copy_from_slice(&message.publication.payload);
        }
        session.push(message);
    }

    /// Puts a message of ours into a session's queue; what does not fit is counted.
    pub(super) fn offer(&mut self, slot: Slot, message: Queued) {
        if let Err(refusal) = self.enqueue(slot, message) {
            self.stat.turned_away += 1;
            tracing::debug!(%refusal, "a message of the broker's own is not stored");
        }
    }

    fn retain(&mut self, publication: &Publication, now: Instant) -> Result<(), Refusal> {
        match self.retained.set(publication, now) {
            retained::Kept::Stored | retained::Kept::Cleared => self.keep.retained(publication),
            retained::Kept::Nothing => Ok(()),
            retained::Kept::TurnedAway => {
                self.stat.retained_refused += 1;
                self.keep.forget_retained(&publication.topic)
            }
        }
    }

    pub(super) fn subscribe(&mut self, slot: Slot, subscription: Subscription) -> Result<Qos, Refusal> {
        let subscriptions_max = self.limits.subscriptions;
        let Some(session) = self.session(slot) else { return Err(Refusal::Unavailable("no session".to_owned())) };
        let filter = Arc::clone(&subscription.filter);
        let is_new = !session.subscriptions.contains_key(&filter);
        if is_new && session.subscriptions.len() >= subscriptions_max {
            self.stat.subscriptions_refused += 1;
            return Err(Refusal::Limit(format!("{subscriptions_max} subscriptions a session")));
        }
        let subscriber = Subscriber::new(slot, &subscription);
        let wanted = match subscription.retain_handling {
            0 => true,
            1 => is_new,
            _ => false,
        };
        // A walk under way for the same filter is replaced, so that subscribing again and again costs nothing.
        session.walks.retain(|walk| walk.filter != filter);
        if wanted && !subscriber.shared {
            session.walks.insert(0, Walk::new(Arc::clone(&filter), subscriber));
            session.wake();
        }
        let qos = subscription.qos;
        session.subscriptions.insert(Arc::clone(&filter), subscription);
        self.topics.insert(&filter, subscriber);
        Ok(qos)
    }

    pub(super) fn unsubscribe(&mut self, slot: Slot, filter: &str) -> bool {
        let Some(session) = self.session(slot) else { return false };
        let was = session.subscriptions.remove(filter).is_some();
        session.walks.retain(|walk| *walk.filter != *filter);
        if was {
            self.topics.remove(filter, slot);
        }
        was
    }

    /// The client is done with a delivery.
    pub(super) fn acknowledge(&mut self, slot: Slot, packet_id: u16) {
        let Some(session) = self.session(slot) else { return };
        let Some(done) = session.acknowledge(packet_id) else { return };
        let client = Arc::clone(&session.client);
        self.forget(slot, &done.message.publication);
        if done.message.number > 0 {
            self.keep.done_waiting(&client, done.message.number);
        }
    }

    /// A message left a session's queue for good.
    pub(super) fn forget(&mut self, slot: Slot, publication: &Publication) {
        let queue_bytes = self.limits.queue_bytes;
        let Some(session) = self.session(slot) else { return };
        let before = session.bytes;
        let freed = session.forget_bytes(publication);
        let half = queue_bytes / 2;
        if before > half && session.bytes <= half || session.bytes == 0 {
            session.stuck = false;
            self.room.notify_waiters();
        }
        self.bytes -= freed.min(self.bytes);
    }

    /// The client has a QoS 2 delivery: only its release is owed from here on. False when there is no such delivery.
    pub(super) fn received(&mut self, slot: Slot, packet_id: u16) -> bool {
        let Some(session) = self.slots.get_mut(slot as usize).and_then(Option::as_deref_mut) else { return false };
        let Some(inflight) = session.inflight.iter_mut().find(|inflight| inflight.packet_id == packet_id) else {
            return false;
        };
        inflight.released = true;
        let message = &inflight.message;
        if message.number > 0 {
            let (publication, identifiers, number) = (&message.publication, &message.identifiers[..], message.number);
            let waiting = Waiting { number, publication, identifiers, packet_id, released: true };
            // What is not stored now is sent once more after a restart, under an id that the client knows.
            drop(self.keep.waiting(&session.client, waiting));
        }
        true
    }

    /// A message goes in flight: its packet id is stored, so that a repetition after a restart carries the same.
    pub(super) fn note_sent(&mut self, slot: Slot, packet_id: u16) {
        let Some(session) = self.slots.get(slot as usize).and_then(Option::as_deref) else { return };
        let Some(inflight) = session.inflight.iter().rev().find(|inflight| inflight.packet_id == packet_id) else {
            return;
        };
        let message = &inflight.message;
        if message.number > 0 {
            let (publication, identifiers, number) = (&message.publication, &message.identifiers[..], message.number);
            drop(
                self.keep
                    .waiting(&session.client, Waiting { number, publication, identifiers, packet_id, released: false }),
            );
        }
    }

    /// The expiry that a client gets of what it asked for.
    pub(super) fn granted(&self, expiry: Duration) -> Duration {
        expiry.min(self.limits.session_expiry)
    }
}
