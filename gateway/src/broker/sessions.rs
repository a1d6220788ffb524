//! One client's session: what it subscribed to, what waits for it, what is on its way.
//!
//! Idle sessions are small: every list is empty until used. Must not be in here: who else gets a message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use protocols::exchange::{Delivery, KickReason, Publication, Qos, Subscription, Will};
use protocols::{Identity, Ticket};

use super::retained::{Walk, size};
use crate::intake::AdapterInfo;

/// A message that waits for the client.
#[derive(Debug)]
pub(super) struct Queued {
    /// Its place in the session's stored queue; 0: not stored.
    pub number: u64,
    pub publication: Publication,
    pub identifiers: Vec<u32>,
    pub arrived: Instant,
    pub command: Option<Ticket>,
}

/// A message that was sent and is not acknowledged.
#[derive(Debug)]
pub(super) struct Inflight {
    pub packet_id: u16,
    pub message: Queued,
    /// The client has it (PUBREC); only its release is owed.
    pub released: bool,
}

#[derive(Debug)]
pub(super) struct Session {
    pub client: Arc<str>,
    pub by: Identity,
    /// What it came in through; absent until its first connection since the start.
    pub adapter: Option<Arc<AdapterInfo>>,
    /// The connection that owns the session; 0: none.
    pub connection: u64,
    pub kicked: Option<KickReason>,
    pub expiry: Duration,
    /// Deliveries that may be in flight.
    pub window: u16,
    pub will: Option<Box<Will>>,
    pub subscriptions: BTreeMap<Arc<str>, Subscription>,
    pub queue: VecDeque<Queued>,
    pub inflight: VecDeque<Inflight>,
    /// Entries of `inflight` that this connection still has to see again.
    pub resend: u32,
    /// Looks through what is retained, the next one last.
    pub walks: Vec<Walk>,
    pub unreleased: BTreeSet<u16>,
    /// Bytes of everything in `queue` and `inflight`.
    pub bytes: usize,
    /// QoS 0 messages in `queue`.
    pub loose: u32,
    /// It takes so little that nobody waits for it any more.
    pub stuck: bool,
    pub next_number: u64,
    next_packet_id: u16,
    /// Of the connection's task, while it waits for something to do.
    waker: Option<Waker>,
    /// Of a kept session without a connection.
    pub away: Option<Box<Away>>,
}

/// What time brings to a session whose client is away.
#[derive(Debug)]
pub(super) struct Away {
    /// When it ends.
    pub ends: Option<Instant>,
    /// When the will of the lost connection is published.
    pub will_due: Option<Instant>,
}

// === impl Session ===

impl Session {
    pub(super) fn new(client: Arc<str>, by: Identity) -> Self {
        Self {
            client,
            by,
            adapter: None,
            connection: 0,
            kicked: None,
            expiry: Duration::ZERO,
            window: 1,
            will: None,
            subscriptions: BTreeMap::new(),
            queue: VecDeque::new(),
            inflight: VecDeque::new(),
            resend: 0,
            walks: Vec::new(),
            unreleased: BTreeSet::new(),
            bytes: 0,
            loose: 0,
            stuck: false,
            next_number: 1,
            next_packet_id: 0,
            waker: None,
            away: None,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection != 0
    }

    /// Whether it outlives its connection.
    pub(super) fn is_kept(&self) -> bool {
        !self.expiry.is_zero()
    }

    /// Notes whom to wake when there is something to do.
    pub(super) fn wait(&mut self, waker: &Waker) {
        match &mut self.waker {
            Some(known) => known.clone_from(waker),
            None => self.waker = Some(waker.clone()),
        }
    }

    /// Wakes the connection, if it waits.
    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Appends a message whose bytes are counted already.
    pub(super) fn push(&mut self, message: Queued) {
        self.loose += u32::from(message.publication.qos == Qos::AtMostOnce);
        self.queue.push_back(message);
        self.wake();
    }

    /// Takes the oldest QoS 0 message off the queue: the first to go when there is no room. Returns its bytes.
    pub(super) fn drop_loose(&mut self) -> Option<usize> {
        if self.loose == 0 {
            return None;
        }
        let index = self.queue.iter().position(|queued| queued.publication.qos == Qos::AtMostOnce)?;
        let dropped = self.queue.remove(index)?;
        self.loose -= 1;
        Some(self.forget_bytes(&dropped.publication))
    }

    /// The next message of the queue, if the window has room for it.
    pub(super) fn pop(&mut self) -> Option<Queued> {
        let loose = self.queue.front()?.publication.qos == Qos::AtMostOnce;
        if !loose && self.inflight.len() >= usize::from(self.window) {
            return None;
        }
        let queued = self.queue.pop_front()?;
        self.loose -= u32::from(loose);
        if self.queue.is_empty() && self.queue.capacity() > 64 {
            self.queue = VecDeque::new();
        }
        Some(queued)
    }

    /// Puts a message in flight and gives the delivery.
    pub(super) fn send(&mut self, message: Queued) -> Delivery {
        let packet_id = if message.publication.qos == Qos::AtMostOnce { 0 } else { self.packet_id() };
        let delivery = delivery(&message, packet_id, false);
        if packet_id > 0 {
            self.inflight.push_back(Inflight { packet_id, message, released: false });
            self.resend = self.inflight.len() as u32;
        }
        delivery
    }

    /// Takes an acknowledged delivery out of flight.
    pub(super) fn acknowledge(&mut self, packet_id: u16) -> Option<Inflight> {
        let index = self.inflight.iter().position(|inflight| inflight.packet_id == packet_id)?;
        let done = self.inflight.remove(index)?;
        if index < self.resend as usize {
            self.resend -= 1;
        }
        if self.inflight.is_empty() && self.inflight.capacity() > 64 {
            self.inflight = VecDeque::new();
        }
        Some(done)
    }

    pub(super) fn forget_bytes(&mut self, publication: &Publication) -> usize {
        let size = size(publication).min(self.bytes);
        self.bytes -= size;
        size
    }

    /// A packet id that is not in flight. The window is far smaller than the ids.
    fn packet_id(&mut self) -> u16 {
        loop {
            self.next_packet_id = self.next_packet_id.wrapping_add(1).max(1);
            let id = self.next_packet_id;
            if !self.inflight.iter().any(|inflight| inflight.packet_id == id) {
                return id;
            }
        }
    }
}

/// The delivery of a message under this packet id.
pub(super) fn delivery(message: &Queued, packet_id: u16, dup: bool) -> Delivery {
    Delivery {
        id: packet_id,
        publication: message.publication.clone(),
        dup,
        subscription_identifiers: message.identifiers.clone(),
        command: message.command,
    }
}
