//! The exchange's second core: rumqttd's router carries messages from publishers to the queues of the subscribers.
//!
//! Everything else stays ours: the door, permission, queues, packet ids, retained messages, wills, and the list of who
//! subscribed to what, which says for every message how many copies of it must come out of the router. So nothing that
//! the router drops goes unseen: what is not there after [`FLIGHT_PATIENCE`], or when the router dies, is delivered by
//! our own core, which routes alone from then on.
//!
//! What the router must never see: MQTT 5 properties (they wait here and rejoin the message), topics or filters that
//! begin with `$` (our own core routes them, and with them every shared subscription), a first byte that is not ASCII
//! (`router.rs`), retained messages, QoS above 0 (no acknowledgement is ever forwarded, so none can be out of order), more
//! unread bytes than its log holds ([`FLIGHT_BYTES_MAX`]), a disconnected link (links are cleaned and used again), more
//! links, filters and topics than the limits below: it frees none of them. Blocking calls into it are made on one thread.
//!
//! Sessions are not kept with this core: every session ends with its connection.
//!
//! Inside: what both sides share and the exchange's part; `fanout.rs` our books about the router, `router.rs` its thread.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use protocols::Refusal;
use protocols::exchange::Publication;
use protocols::mqtt::topic;
use tokio::sync::oneshot;
use tracing::error;

use super::Shared;
use super::core::Core;
use super::sessions::Queued;
use super::topics::Slot;
use crate::threads::{self, Tasks};

mod fanout;
mod router;

/// Subscribing connections at a time: each costs the router some 38 KB.
const LINKS_MAX: usize = 1_000;
/// Filters of one connection, and different filters since the start: the router frees none, and each takes 232 KB of
/// address space, which a 32-bit box has 3 GB of.
const LINK_FILTERS_MAX: usize = 64;
const FILTERS_MAX: usize = 1_000;
/// Different topics since the start that go through the router: it keeps some 450 bytes of each.
const TOPICS_MAX: usize = 10_000;
/// The router's log of a filter: what is not read before it is full is gone.
const SEGMENT_BYTES: usize = 64 * 1024;
const SEGMENTS: usize = 4;
/// Bytes in the router that somebody has not got yet: half its log, so that nothing unread is ever overwritten.
const FLIGHT_BYTES_MAX: usize = SEGMENT_BYTES * SEGMENTS / 2;
const FLIGHTS_MAX: usize = 1_024;
/// Orders that wait for the router's thread: every message in flight, and as many others.
const ORDERS_MAX: usize = 2 * FLIGHTS_MAX;
/// Messages that the router reads from its log at once; its own queues hold 200.
const READ_MAX: u64 = 100;
/// How long a message may stay in the router before it counts as broken, and an order of ours unanswered.
const FLIGHT_PATIENCE: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Set before names whose first byte the router cannot take.
const PREFIX: u8 = 0x01;

type Link = usize;

/// Our side of the router, under the exchange's lock.
#[derive(Debug)]
pub(super) struct Fanout {
    orders: SyncSender<Order>,
    lanes: HashMap<Slot, Lane>,
    /// Links without an owner; those above `made` were never built.
    free: Vec<Link>,
    made: Link,
    /// Links whose clean-up found no room among the orders.
    unclean: Vec<(Link, BTreeSet<Arc<str>>)>,
    flights: BTreeMap<u64, Flight>,
    bytes: usize,
    next: u64,
    topics: HashSet<Arc<str>>,
    filters: HashSet<Arc<str>>,
}

/// The link of one connection, and the filters that the router knows of it.
#[derive(Debug)]
struct Lane {
    link: Link,
    filters: BTreeSet<Arc<str>>,
}

/// A message in the router.
#[derive(Debug)]
pub(super) struct Flight {
    publication: Publication,
    bytes: usize,
    started: Instant,
    copies: Vec<Copies>,
}

/// What must still come out of one link.
#[derive(Debug)]
struct Copies {
    link: Link,
    slot: Slot,
    /// One for each filter of the link that takes the topic.
    left: usize,
    /// Goes to the session with the first copy; its room is reserved. None: delivered, or not for this one.
    message: Option<Queued>,
}

/// What the router's thread is told.
#[derive(Debug)]
enum Order {
    Publish {
        number: u64,
        topic: Arc<str>,
        payload: Bytes,
    },
    Subscribe {
        link: Link,
        filter: Arc<str>,
        done: oneshot::Sender<()>,
    },
    Unsubscribe {
        link: Link,
        filter: Arc<str>,
        done: oneshot::Sender<()>,
    },
    /// The link's owner is gone.
    Clean {
        link: Link,
        filters: BTreeSet<Arc<str>>,
    },
}

/// Who waits for a link's next acknowledgement; they come in the order of the requests.
#[derive(Debug)]
enum Waiter {
    Asked(oneshot::Sender<()>),
    Cleaning,
    Clean,
}

type Waiters = Arc<Mutex<VecDeque<Waiter>>>;

/// Starts the router and lets the exchange route through it.
pub(super) fn start(shared: &Arc<Shared>, tasks: &Tasks) -> io::Result<()> {
    let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
    let (orders, received) = sync_channel(ORDERS_MAX);
    let carrier = (Arc::downgrade(shared), tasks.clone());
    threads::thread("broker-rumqttd", move || {
        let _entered = runtime.enter();
        let (weak, tasks) = carrier;
        if let Err(error) = router::carry(&received, &weak, &tasks)
            && let Some(shared) = weak.upgrade()
        {
            shared.lock().do_without(&error.to_string());
        }
    })?;
    shared.lock().fanout = Some(Fanout {
        orders,
        lanes: HashMap::new(),
        free: Vec::new(),
        made: 0,
        unclean: Vec::new(),
        flights: BTreeMap::new(),
        bytes: 0,
        next: 1,
        topics: HashSet::new(),
        filters: HashSet::new(),
    });
    tasks.spawn("broker-rumqttd", watch(Arc::clone(shared), tasks.clone()));
    Ok(())
}

// === impl Core ===

impl Core {
    /// Hands a message to the router, with everything expected of it.
    pub(super) fn launch(&mut self, flight: Flight) {
        let Some(fanout) = &mut self.fanout else { return };
        if flight.copies.iter().all(|copies| copies.message.is_none()) {
            return;
        }
        if let Err(flight) = fanout.send(flight) {
            self.deliver(flight);
        }
    }

    /// A copy came out of a link.
    fn arrived(&mut self, link: Link, mut payload: Bytes) {
        let Some(fanout) = &mut self.fanout else { return };
        let Ok(number) = payload.try_get_u64() else { return };
        let Some(flight) = fanout.flights.get_mut(&number) else { return };
        let Some(index) = flight.copies.iter().position(|copies| copies.link == link) else { return };
        let Some(copies) = flight.copies.get_mut(index) else { return };
        copies.left -= 1;
        let (slot, message) = (copies.slot, copies.message.take());
        if copies.left == 0 {
            flight.copies.swap_remove(index);
            if flight.copies.is_empty() {
                fanout.bytes -= flight.bytes;
                fanout.flights.remove(&number);
                self.room.notify_waiters();
            }
        }
        if let Some(mut message) = message {
            message.publication.payload = payload;
            self.stat.carried += 1;
            self.put(slot, message);
        }
    }

    /// The router forgot a filter: it owes nothing for it any more.
    fn forget_filter(&mut self, slot: Slot, link: Link, filter: &str) {
        let Some(fanout) = &mut self.fanout else { return };
        if fanout.lanes.get(&slot).is_none_or(|lane| lane.link != link) {
            return;
        }
        let mut late = Vec::new();
        for flight in fanout.flights.values_mut() {
            if !topic::matches(filter, &flight.publication.topic) {
                continue;
            }
            for copies in flight.copies.iter_mut().filter(|copies| copies.link == link) {
                copies.left -= 1;
                late.extend(copies.message.take_if(|_| copies.left == 0));
            }
            flight.copies.retain(|copies| copies.left > 0);
        }
        if fanout.land() {
            self.room.notify_waiters();
        }
        for message in late {
            self.put(slot, message);
        }
    }

    /// Delivers without the router.
    fn deliver(&mut self, flight: Flight) {
        for copies in flight.copies {
            if let Some(message) = copies.message {
                self.put(copies.slot, message);
            }
        }
    }

    /// The router is not to be trusted any more: what is in it is delivered, and our own core routes from here on.
    pub(super) fn do_without(&mut self, why: &str) {
        let Some(fanout) = self.fanout.take() else { return };
        error!(why, in_flight = fanout.flights.len(), "rumqttd's router is given up; the own core routes from here on");
        for flight in fanout.flights.into_values() {
            self.deliver(flight);
        }
        self.room.notify_waiters();
    }

    fn look_at_flights(&mut self, now: Instant) {
        let Some(fanout) = &mut self.fanout else { return };
        for (link, filters) in std::mem::take(&mut fanout.unclean) {
            fanout.clean(link, filters);
        }
        let mut missing = false;
        for flight in fanout.flights.values_mut() {
            if now.saturating_duration_since(flight.started) < FLIGHT_PATIENCE {
                break;
            }
            missing |= flight.copies.iter().any(|copies| copies.message.is_some());
            // Second copies that did not come harm nobody.
            flight.copies.retain(|copies| copies.message.is_some());
        }
        if fanout.land() {
            self.room.notify_waiters();
        }
        if missing {
            self.do_without("messages did not come out of it");
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Makes the router give this connection what the filter takes, before the subscription counts.
    pub(super) async fn link(&self, slot: Slot, connection: u64, filter: &str) -> Result<(), Refusal> {
        if filter.starts_with('$') {
            return Ok(());
        }
        let answer = {
            let mut core = self.lock();
            // Whose session it is now is told by the subscribing that follows.
            let owned = core.owned(slot, connection).is_some();
            let Some(fanout) = core.fanout.as_mut().filter(|_| owned) else { return Ok(()) };
            match fanout.subscribe(slot, filter) {
                Ok(Some(answer)) => answer,
                Ok(None) => return Ok(()),
                Err(refusal) => {
                    core.stat.subscriptions_refused += 1;
                    return Err(refusal);
                }
            }
        };
        match tokio::time::timeout(FLIGHT_PATIENCE, answer).await {
            Ok(Ok(())) => Ok(()),
            _ if self.lock().fanout.is_none() => Ok(()),
            _ => Err(not_answering()),
        }
    }

    /// The connection does not want the filter any more.
    pub(super) async fn unlink(&self, slot: Slot, connection: u64, filter: &str) {
        let asked = {
            let mut core = self.lock();
            let owned = core.owned(slot, connection).is_some();
            core.fanout.as_mut().filter(|_| owned).and_then(|fanout| fanout.unsubscribe(slot, filter))
        };
        let Some((link, answer)) = asked else { return };
        if let Ok(Ok(())) = tokio::time::timeout(FLIGHT_PATIENCE, answer).await {
            self.lock().forget_filter(slot, link, filter);
        }
    }
}

async fn watch(shared: Arc<Shared>, tasks: Tasks) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => shared.lock().look_at_flights(Instant::now()),
            () = tasks.stopping() => return,
        }
    }
}

fn not_answering() -> Refusal {
    Refusal::Unavailable("the broker's router does not answer".to_owned())
}
