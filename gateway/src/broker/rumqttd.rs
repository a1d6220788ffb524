//! The exchange's second core: rumqttd's router carries messages from publishers to the queues of the subscribers.
//!
//! Everything else stays ours: the door, permission, queues, packet ids, retained messages, wills, and the list of who
//! subscribed to what, which says for every message how many copies of it must come out of the router. So nothing that
//! the router drops goes unseen: what is not there after [`FLIGHT_PATIENCE`], or when the router dies, is delivered by
//! our own core, which routes alone from then on.
//!
//! What the router must never see: MQTT 5 properties (they wait here and rejoin the message), topics or filters that
//! begin with `$` (our own core routes them, and with them every shared subscription), a first byte that is not ASCII
//! ([`name`]), retained messages, QoS above 0 (no acknowledgement is ever forwarded, so none can be out of order), more
//! unread bytes than its log holds ([`FLIGHT_BYTES_MAX`]), a disconnected link (links are cleaned and used again), more
//! links, filters and topics than the limits below: it frees none of them. Blocking calls into it are made on one thread.
//!
//! Sessions are not kept with this core: every session ends with its connection.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use protocols::Refusal;
use protocols::exchange::Publication;
use protocols::mqtt::topic;
use rumqttd::local::{LinkBuilder, LinkError, LinkRx, LinkTx};
use rumqttd::{Notification, Router, RouterConfig};
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::Shared;
use super::core::Core;
use super::sessions::Queued;
use super::topics::Slot;
use crate::threads::{self, Tasks};

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
        if let Err(error) = carry(&received, &weak, &tasks)
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

// === impl Fanout ===

impl Fanout {
    /// Whether a publisher must wait until the router has caught up.
    pub(super) fn is_busy(&self, publication: &Publication) -> bool {
        let bytes = flight_bytes(publication);
        self.flights.len() >= FLIGHTS_MAX || self.bytes > 0 && self.bytes + bytes > FLIGHT_BYTES_MAX
    }

    /// A message about to go through the router; `None` when our own core must route it.
    pub(super) fn flight(&mut self, publication: &Publication) -> Option<Flight> {
        if publication.topic.starts_with('$') || self.is_busy(publication) {
            return None;
        }
        if !self.topics.contains(&publication.topic) {
            if self.topics.len() >= TOPICS_MAX {
                return None;
            }
            self.topics.insert(Arc::clone(&publication.topic));
        }
        let (publication, bytes) = (publication.clone(), flight_bytes(publication));
        Some(Flight { publication, bytes, started: Instant::now(), copies: Vec::new() })
    }

    /// Notes what the router owes this session. Gives the message back when the session has no link.
    pub(super) fn expect(
        &self,
        flight: &mut Flight,
        slot: Slot,
        copies: usize,
        message: Option<Queued>,
    ) -> Option<Queued> {
        let Some(lane) = self.lanes.get(&slot) else { return message };
        flight.copies.push(Copies { link: lane.link, slot, left: copies, message });
        None
    }

    /// The session's connection is gone.
    pub(super) fn release(&mut self, slot: Slot) {
        let Some(lane) = self.lanes.remove(&slot) else { return };
        for flight in self.flights.values_mut() {
            flight.copies.retain(|copies| copies.link != lane.link);
        }
        self.land();
        self.clean(lane.link, lane.filters);
    }

    fn clean(&mut self, link: Link, filters: BTreeSet<Arc<str>>) {
        if filters.is_empty() {
            self.free.push(link);
        } else if let Err(error) = self.orders.try_send(Order::Clean { link, filters })
            && let std::sync::mpsc::TrySendError::Full(Order::Clean { link, filters }) = error
        {
            self.unclean.push((link, filters));
        }
    }

    /// Takes flights off that owe nobody anything. True when there was one.
    fn land(&mut self) -> bool {
        let before = self.flights.len();
        let bytes = &mut self.bytes;
        self.flights.retain(|_, flight| {
            let flying = !flight.copies.is_empty();
            *bytes -= if flying { 0 } else { flight.bytes };
            flying
        });
        self.flights.len() < before
    }

    fn send(&mut self, flight: Flight) -> Result<(), Flight> {
        let (topic, payload) = (Arc::clone(&flight.publication.topic), flight.publication.payload.clone());
        if self.orders.try_send(Order::Publish { number: self.next, topic, payload }).is_err() {
            return Err(flight);
        }
        self.bytes += flight.bytes;
        self.flights.insert(self.next, flight);
        self.next += 1;
        Ok(())
    }

    /// Asks the router for a filter; `None` when it has it already.
    fn subscribe(&mut self, slot: Slot, filter: &str) -> Result<Option<oneshot::Receiver<()>>, Refusal> {
        if !self.filters.contains(filter) && self.filters.len() >= FILTERS_MAX {
            return Err(Refusal::Limit(format!("{FILTERS_MAX} filters in this core")));
        }
        let link = match self.lanes.get(&slot) {
            Some(lane) if lane.filters.contains(filter) => return Ok(None),
            Some(lane) if lane.filters.len() >= LINK_FILTERS_MAX => {
                return Err(Refusal::Limit(format!("{LINK_FILTERS_MAX} filters of one connection in this core")));
            }
            Some(lane) => lane.link,
            None => {
                let link = self.link()?;
                self.lanes.insert(slot, Lane { link, filters: BTreeSet::new() });
                link
            }
        };
        let filter: Arc<str> = Arc::from(filter);
        let (done, answer) = oneshot::channel();
        if self.orders.try_send(Order::Subscribe { link, filter: Arc::clone(&filter), done }).is_err() {
            return Err(not_answering());
        }
        self.filters.insert(Arc::clone(&filter));
        if let Some(lane) = self.lanes.get_mut(&slot) {
            lane.filters.insert(filter);
        }
        Ok(Some(answer))
    }

    fn link(&mut self) -> Result<Link, Refusal> {
        if let Some(link) = self.free.pop() {
            return Ok(link);
        }
        if self.made >= LINKS_MAX {
            return Err(Refusal::Limit(format!("{LINKS_MAX} subscribing connections in this core")));
        }
        self.made += 1;
        Ok(self.made - 1)
    }

    fn unsubscribe(&mut self, slot: Slot, filter: &str) -> Option<(Link, oneshot::Receiver<()>)> {
        let lane = self.lanes.get_mut(&slot)?;
        let filter = lane.filters.take(filter)?;
        let (done, answer) = oneshot::channel();
        let order = Order::Unsubscribe { link: lane.link, filter: Arc::clone(&filter), done };
        if self.orders.try_send(order).is_err() {
            // The link stays subscribed; what comes of it has no taker.
            lane.filters.insert(filter);
            return None;
        }
        Some((lane.link, answer))
    }
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

// === the router's thread ===

/// Carries out orders until the exchange is gone. The only place that may block in the router.
fn carry(orders: &Receiver<Order>, shared: &std::sync::Weak<Shared>, tasks: &Tasks) -> Result<(), Box<LinkError>> {
    let config = RouterConfig {
        max_connections: LINKS_MAX + 1,
        max_outgoing_packet_count: READ_MAX,
        max_segment_size: SEGMENT_BYTES,
        max_segment_count: SEGMENTS,
        ..RouterConfig::default()
    };
    let router = Router::new(0, config).spawn();
    let (mut publisher, _acknowledgements, _) = LinkBuilder::new("publisher", router.clone()).build()?;
    let mut links: HashMap<Link, (LinkTx, Waiters)> = HashMap::new();
    while let Ok(order) = orders.recv() {
        let link = match &order {
            Order::Publish { number, topic, payload } => {
                let mut numbered = BytesMut::with_capacity(8 + payload.len());
                numbered.put_u64(*number);
                numbered.put_slice(payload);
                publisher.publish(name(topic), numbered.freeze())?;
                continue;
            }
            Order::Subscribe { link, .. } | Order::Unsubscribe { link, .. } | Order::Clean { link, .. } => *link,
        };
        if let std::collections::hash_map::Entry::Vacant(entry) = links.entry(link) {
            let (sender, receiver, _) = LinkBuilder::new(&format!("subscriber-{link}"), router.clone()).build()?;
            let waiters = Waiters::default();
            let Some(shared) = shared.upgrade() else { return Ok(()) };
            tasks.spawn("broker-rumqttd", pump(shared, link, receiver, Arc::clone(&waiters), tasks.clone()));
            entry.insert((sender, waiters));
        }
        let Some((sender, waiters)) = links.get_mut(&link) else { continue };
        let wait = |waiter| waiters.lock().unwrap_or_else(PoisonError::into_inner).push_back(waiter);
        match order {
            Order::Publish { .. } => {}
            Order::Subscribe { filter, done, .. } => {
                wait(Waiter::Asked(done));
                sender.subscribe(name(&filter))?;
            }
            Order::Unsubscribe { filter, done, .. } => {
                wait(Waiter::Asked(done));
                sender.unsubscribe(name(&filter))?;
            }
            Order::Clean { filters, .. } => {
                let last = filters.len().saturating_sub(1);
                for (index, filter) in filters.iter().enumerate() {
                    wait(if index == last { Waiter::Clean } else { Waiter::Cleaning });
                    sender.unsubscribe(name(filter))?;
                }
            }
        }
    }
    Ok(())
}

/// Empties a link as fast as the router fills it: how slow its subscriber is shows in the subscriber's own queue.
async fn pump(shared: Arc<Shared>, link: Link, mut receiver: LinkRx, waiters: Waiters, tasks: Tasks) {
    loop {
        let next = tokio::select! {
            next = receiver.next() => next,
            () = tasks.stopping() => return,
        };
        let went_on = match next {
            Ok(Some(Notification::Forward(forward))) => {
                shared.lock().arrived(link, forward.publish.payload);
                Ok(())
            }
            Ok(Some(Notification::DeviceAck(_))) => {
                match waiters.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                    // Who asked may have left since.
                    Some(Waiter::Asked(done)) => drop(done.send(())),
                    Some(Waiter::Clean) => {
                        if let Some(fanout) = &mut shared.lock().fanout {
                            fanout.free.push(link);
                        }
                    }
                    Some(Waiter::Cleaning) | None => {}
                }
                Ok(())
            }
            Ok(Some(Notification::Unschedule)) => receiver.wake().await,
            Ok(Some(Notification::Disconnect(..))) => Err(LinkError::ConnectionAck("a link was closed".to_owned())),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = went_on {
            warn!(%error, link, "a link to rumqttd's router is gone");
            return shared.lock().do_without(&error.to_string());
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

/// What the router's log counts of a message, and somewhat more.
fn flight_bytes(publication: &Publication) -> usize {
    publication.topic.len() + publication.payload.len() + 32
}

/// A topic or filter as the router can take it: it cuts after the first byte, in the middle of a character that is not
/// ASCII. Wildcards match it as before.
fn name(name: &str) -> String {
    match name.bytes().next() {
        Some(first) if !first.is_ascii() || first == PREFIX => format!("{}{name}", char::from(PREFIX)),
        _ => name.to_owned(),
    }
}

fn not_answering() -> Refusal {
    Refusal::Unavailable("the broker's router does not answer".to_owned())
}
