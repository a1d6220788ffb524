//! The exchange behind the MQTT door: who subscribed to what, what is retained, what waits for whom, who may.
//!
//! `topics.rs` routes (`rumqttd/` carries, where it is built in and chosen), `sessions.rs` queues, `retained.rs` remembers, `keep.rs` survives, `access.rs` permits; `core/`
//! holds them together under one short lock. The words to and from a session are [`protocols::exchange`]; must not be in
//! here: packets, sockets, what a payload means.
//!
//! What is promised: a QoS 1 or 2 publication is acknowledged (by the driver) only when everything it put into kept
//! sessions is on disk. A subscriber that is there but slow makes its publishers wait, at most `PATIENCE` once; then it
//! counts as stuck, and what does not fit its queue is turned away and counted until it has taken half of it.

mod access;
mod attachment;
mod core;
mod keep;
mod retained;
#[cfg(feature = "rumqttd")]
mod rumqttd;
#[cfg(not(feature = "rumqttd"))]
#[path = "without_rumqttd.rs"]
mod rumqttd;
mod sessions;
mod sys;
mod topics;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use device_models::Report;
use protocols::exchange::{Attached, Event, KickReason, Publication, Qos, Request, Will};
use protocols::{Identity, Refusal};
use tokio::sync::{Notify, mpsc, watch};
use tracing::warn;

use crate::bus::{BusError, Keyed};
use crate::config;
use crate::credentials::Gatekeeper;
use crate::intake::AdapterInfo;
use crate::threads::Tasks;
use access::Access;
pub use attachment::Attachment;
use core::{Core, NotRouted, Routing};
use keep::Keep;
pub use keep::Kept;
use sessions::{Away, Inflight, Queued, Session};
use topics::Slot;

/// How long a publisher waits for a subscriber without room, and a new connection for the one it takes over from.
const PATIENCE: Duration = Duration::from_secs(1);
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(5);
/// Deliveries in flight to one client, whatever it offers: each is memory until it is acknowledged.
const WINDOW_MAX: u16 = 128;
/// Reports of wills that may wait for the intake.
const WILL_REPORTS_MAX: usize = 1024;
/// The least time between two looks at all sessions' deadlines.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Cheap to clone; all clones are one exchange.
#[derive(Debug, Clone)]
pub struct Broker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    access: Access,
    kept: watch::Sender<Kept>,
    /// Something waits to be made durable.
    flush: Notify,
    started: Instant,
    /// A second core carries messages.
    carried: bool,
}

/// What a will says about devices.
#[derive(Debug)]
pub struct WillReport {
    pub adapter: Arc<AdapterInfo>,
    pub by: Identity,
    pub reports: Vec<Report>,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Sessions it went to.
    pub matched: usize,
    /// The change that must be durable before the publication is acknowledged ([`Kept::settled`]); 0: none.
    pub kept: u64,
}

/// Why the exchange cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    #[error("what the broker kept cannot be read: {0}")]
    Kept(#[from] BusError),
    #[error("the broker's routing core cannot start: {error}")]
    Core { error: std::io::Error },
}

/// Counters and sizes, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    pub connected: usize,
    pub sessions: usize,
    pub retained: usize,
    pub retained_bytes: usize,
    /// Bytes waiting for all sessions.
    pub queued_bytes: usize,
    /// Publications taken.
    pub published: u64,
    /// Deliveries handed out.
    pub delivered: u64,
    /// QoS 0 messages dropped from a full queue.
    pub dropped: u64,
    /// Messages that did not fit a queue.
    pub turned_away: u64,
    /// Messages that expired in a queue.
    pub outdated: u64,
    pub retained_refused: u64,
    pub subscriptions_refused: u64,
    pub sessions_refused: u64,
    /// Topics and filters that a client may not use.
    pub forbidden: u64,
    pub takeovers: u64,
    /// Sessions whose expiry passed.
    pub expired: u64,
    pub wills: u64,
    pub will_reports_lost: u64,
    /// Messages that the second core carried to a session's queue.
    pub carried: u64,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    sessions: usize,
    queue_bytes: usize,
    queues_bytes: usize,
    retained_bytes: usize,
    subscriptions: usize,
    session_expiry: Duration,
}

// === impl Broker ===

impl Broker {
    /// Reads back what was kept and starts the tasks that keep it. The receiver gives what wills say about devices.
    pub fn open(
        config: &config::Broker,
        keyed: Keyed,
        gatekeeper: Arc<Gatekeeper>,
        tasks: &Tasks,
    ) -> Result<(Self, mpsc::Receiver<WillReport>), BrokerError> {
        let carried = config.core == config::BrokerCore::Rumqttd;
        let limits = Limits {
            sessions: config.sessions_max,
            queue_bytes: config.queue_kib as usize * 1024,
            queues_bytes: config.queues_mib as usize * 1024 * 1024,
            retained_bytes: config.retained_mib as usize * 1024 * 1024,
            subscriptions: config.subscriptions_max,
            // The second core keeps no session.
            session_expiry: Duration::from_secs(if carried { 0 } else { config.session_expiry_max_seconds }),
        };
        let (wills, will_reports) = mpsc::channel(WILL_REPORTS_MAX);
        let mut core = Core::new(limits, Keep::new(keyed.clone()), wills);
        restore(&mut core, !carried, Instant::now())?;
        let shared = Arc::new(Shared {
            core: Mutex::new(core),
            access: Access::new(gatekeeper),
            kept: watch::Sender::new(Kept::default()),
            flush: Notify::new(),
            started: Instant::now(),
            carried,
        });
        if carried {
            rumqttd::start(&shared, tasks).map_err(|error| BrokerError::Core { error })?;
        }
        tasks.spawn("broker-keep", keep_durable(Arc::clone(&shared), keyed, tasks.clone()));
        tasks.spawn("broker-time", pass_time(Arc::clone(&shared), tasks.clone()));
        Ok((Self { shared }, will_reports))
    }

    /// Lets a client in: resumes its session or makes one, after whoever held it is gone. Takes
    /// [`Request::Attach`]; the event is the answer either way.
    pub async fn attach(&self, request: Request, adapter: &Arc<AdapterInfo>) -> Result<(Attachment, Event), Event> {
        let Request::Attach { ticket, by, client, clean_start, expiry, receive_max, will } = request else {
            let ticket = protocols::Ticket(0);
            return Err(Event::Attached { ticket, outcome: Err(Refusal::Invalid("not an attach request".to_owned())) });
        };
        let refused = |refusal| Event::Attached { ticket, outcome: Err(refusal) };
        if let Some(will) = &will
            && !self.shared.access.may_publish(&by, &client, &will.publication.topic)
        {
            self.shared.lock().stat.forbidden += 1;
            return Err(refused(Refusal::Forbidden(format!("a will on {}", will.publication.topic))));
        }
        let entry = Entry {
            by,
            client,
            adapter: Arc::clone(adapter),
            clean_start,
            expiry,
            window: receive_max.min(WINDOW_MAX),
            will,
        };
        let (slot, connection, attached) = loop {
            self.vacate(&entry.client, &entry.by).await.map_err(refused)?;
            let mut core = self.shared.lock();
            // Somebody else may have been let in between.
            let held = core.find(&entry.client);
            if !held.is_some_and(|slot| core.session(slot).is_some_and(|session| session.is_connected())) {
                break core.enter(entry, Instant::now()).map_err(refused)?;
            }
        };
        let attachment = Attachment::new(Arc::clone(&self.shared), slot, connection);
        Ok((attachment, Event::Attached { ticket, outcome: Ok(attached) }))
    }

    /// A publication of the gateway itself: no permission is asked.
    pub async fn publish(&self, publication: Publication) -> Result<Published, Refusal> {
        self.shared.publish(&publication, None).await
    }

    /// How far the exchange's state is on disk.
    pub fn kept(&self) -> watch::Receiver<Kept> {
        self.shared.kept.subscribe()
    }

    pub fn stat(&self) -> Stat {
        self.shared.lock().stat()
    }

    /// Closes a client's connection.
    pub fn kick(&self, client: &str) -> bool {
        let mut core = self.shared.lock();
        let Some(slot) = core.find(client) else { return false };
        core.kick(slot, KickReason::Administrative)
    }

    /// Makes the connection that holds the client's session leave, and waits until it has.
    async fn vacate(&self, client: &str, by: &Identity) -> Result<(), Refusal> {
        let deadline = tokio::time::Instant::now() + TAKEOVER_PATIENCE;
        loop {
            let left = Arc::clone(&self.shared.lock().left);
            let left = left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            {
                let mut core = self.shared.lock();
                let Some(slot) = core.find(client) else { return Ok(()) };
                let Some(session) = core.session(slot) else { return Ok(()) };
                if session.by.name != by.name {
                    return Err(Refusal::Forbidden(format!("client id `{client}` belongs to another user's session")));
                }
                if !session.is_connected() {
                    return Ok(());
                }
                core.kick(slot, KickReason::TakenOver);
            }
            if tokio::time::timeout_at(deadline, left).await.is_err() {
                // Its task hangs (in a write, most likely). Its attachment is worth nothing from here on.
                let mut core = self.shared.lock();
                if let Some(slot) = core.find(client)
                    && core.session(slot).is_some_and(|session| session.is_connected())
                {
                    core.leave(slot, true, Instant::now());
                }
                return Ok(());
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Routes, waiting a while for subscribers that are full. `from` is the publishing session.
    async fn publish(&self, publication: &Publication, from: Option<Slot>) -> Result<Published, Refusal> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut patient = publication.qos > Qos::AtMostOnce;
        let mut waits = true;
        loop {
            let room = Arc::clone(&self.lock().room);
            let room = room.notified();
            tokio::pin!(room);
            if patient || self.carried && waits {
                room.as_mut().enable();
            }
            {
                let mut core = self.lock();
                let routing = Routing { publication, from, command: None, patient, waits };
                match core.route(routing, Instant::now()) {
                    Ok(routed) => {
                        core.stat.published += 1;
                        let kept = if routed.stored { core.keep.changes } else { 0 };
                        drop(core);
                        if kept > 0 {
                            self.flush.notify_one();
                        }
                        return Ok(Published { matched: routed.matched, kept });
                    }
                    Err(NotRouted::Refused(refusal)) => return Err(refusal),
                    Err(NotRouted::Full) => {}
                }
            }
            let in_time = tokio::time::timeout_at(deadline, room).await.is_ok();
            patient &= in_time;
            waits = in_time;
        }
    }

    /// Waits until a change is durable.
    async fn durable(&self, change: u64) -> Result<(), Refusal> {
        self.flush.notify_one();
        let mut kept = self.kept.subscribe();
        let settled = kept.wait_for(|kept| kept.settled(change).is_some()).await.map(|kept| kept.settled(change));
        match settled {
            Ok(Some(true)) => Ok(()),
            _ => Err(Refusal::Unavailable("the broker's state could not be written".to_owned())),
        }
    }
}

// === impl Core ===

/// A client on its way in.
struct Entry {
    by: Identity,
    client: Arc<str>,
    adapter: Arc<AdapterInfo>,
    clean_start: bool,
    expiry: Duration,
    window: u16,
    will: Option<Will>,
}

impl Core {
    fn enter(&mut self, entry: Entry, now: Instant) -> Result<(Slot, u64, Attached), Refusal> {
        let mut slot = self.find(&entry.client);
        if let Some(old) = slot.filter(|_| entry.clean_start)
            && let Some(mut old) = self.remove(old)
        {
            slot = None;
            // The old session ends here, and with it the delay of its will.
            if let Some(will) = old.will.take() {
                self.publish_will(&old.by, old.adapter.as_ref(), &will, now);
            }
        }
        let session_present = slot.is_some();
        let slot = match slot {
            Some(slot) => slot,
            None => self.insert(Session::new(Arc::clone(&entry.client), entry.by.clone()))?,
        };
        let connection = self.new_connection();
        let expiry = self.granted(entry.expiry);
        let Some(session) = self.session(slot) else { return Err(Refusal::Unavailable("no session".to_owned())) };
        let was_kept = session.is_kept();
        session.by = entry.by;
        session.adapter = Some(entry.adapter);
        session.connection = connection;
        session.kicked = None;
        session.expiry = expiry;
        session.window = entry.window.max(1);
        session.will = entry.will.map(Box::new);
        session.away = None;
        session.resend = 0;
        let attached = Attached { session_present, expiry, unreleased: session.unreleased.iter().copied().collect() };
        self.stat.connected += 1;
        if let Err(refusal) = self.save(slot) {
            self.leave(slot, false, now);
            return Err(refusal);
        }
        if was_kept && expiry.is_zero() {
            // Nothing of it outlives this connection any more.
            self.unkeep(slot);
        }
        Ok((slot, connection, attached))
    }

    /// Takes a session that is no longer kept off the disk.
    fn unkeep(&mut self, slot: Slot) {
        let Some(session) = self.session(slot) else { return };
        let client = Arc::clone(&session.client);
        let mut numbers: Vec<u64> = session.queue.iter_mut().map(|m| std::mem::take(&mut m.number)).collect();
        numbers.extend(session.inflight.iter_mut().map(|inflight| std::mem::take(&mut inflight.message.number)));
        let unreleased: Vec<u16> = session.unreleased.iter().copied().collect();
        for number in numbers.into_iter().filter(|number| *number > 0) {
            self.keep.done_waiting(&client, number);
        }
        for packet_id in unreleased {
            self.keep.released(&client, packet_id);
        }
        self.keep.forget_session(&client);
    }

    fn kick(&mut self, slot: Slot, reason: KickReason) -> bool {
        let Some(session) = self.session(slot).filter(|session| session.is_connected()) else { return false };
        if session.kicked.is_none() {
            session.kicked = Some(reason);
            session.wake();
            self.stat.takeovers += u64::from(reason == KickReason::TakenOver);
        }
        true
    }

    fn stat(&self) -> Stat {
        Stat {
            sessions: self.sessions().count(),
            retained: self.retained.len(),
            retained_bytes: self.retained.bytes(),
            queued_bytes: self.bytes,
            ..self.stat
        }
    }
}

/// Fills the exchange with what was kept; without `sessions`, with what was retained alone.
fn restore(core: &mut Core, sessions: bool, now: Instant) -> Result<(), BusError> {
    let found = core.keep.load()?;
    for publication in found.retained {
        core.retained.set(&publication, now);
    }
    if !sessions && !found.sessions.is_empty() {
        warn!(sessions = found.sessions.len(), "kept sessions stay on the disk: this core resumes none");
    }
    for found in found.sessions.into_iter().filter(|_| sessions) {
        let by = Identity { name: Arc::clone(&found.user), reach: protocols::Reach::Only(Arc::from([])) };
        let mut session = Session::new(Arc::clone(&found.client), by);
        session.expiry = core.granted(found.expiry);
        session.away = Some(Box::new(Away { ends: now.checked_add(session.expiry), will_due: None }));
        session.unreleased = found.unreleased.into_iter().collect();
        let mut bytes = 0;
        for message in found.queue {
            session.next_number = session.next_number.max(message.number + 1);
            bytes += retained::size(&message.publication);
            let (packet_id, released) = (message.packet_id, message.released);
            let message = Queued {
                number: message.number,
                publication: message.publication,
                identifiers: message.identifiers,
                arrived: now,
                command: None,
            };
            if packet_id > 0 {
                session.inflight.push_back(Inflight { packet_id, message, released });
            } else {
                session.queue.push_back(message);
            }
        }
        session.bytes = bytes;
        match core.insert(session) {
            Ok(slot) => {
                core.bytes += bytes;
                for subscription in found.subscriptions {
                    let subscriber = topics::Subscriber::new(slot, &subscription);
                    core.topics.insert(&subscription.filter, subscriber);
                    if let Some(session) = core.session(slot) {
                        session.subscriptions.insert(Arc::clone(&subscription.filter), subscription);
                    }
                }
            }
            Err(refusal) => warn!(client = %found.client, %refusal, "a kept session has no place any more"),
        }
    }
    Ok(())
}

/// Makes changes durable that somebody waits for, one flush at a time: what comes meanwhile shares the next.
async fn keep_durable(shared: Arc<Shared>, keyed: Keyed, tasks: Tasks) {
    loop {
        tokio::select! {
            () = shared.flush.notified() => {}
            () = tasks.stopping() => return,
        }
        let newest = shared.lock().keep.changes;
        match keyed.flush().await {
            Ok(()) => shared.kept.send_modify(|kept| kept.through = newest),
            Err(error) => {
                warn!(%error, "the broker's state is not kept");
                shared.kept.send_modify(|kept| kept.failed = newest);
            }
        }
    }
}

/// Wills with a delay, and sessions that expire.
async fn pass_time(shared: Arc<Shared>, tasks: Tasks) {
    let hurry = Arc::clone(&shared.lock().hurry);
    loop {
        let next = shared.lock().pass_time(Instant::now());
        let wait = async {
            tokio::time::sleep(LOOK_EVERY).await;
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        let hurried = async {
            tokio::time::sleep(LOOK_EVERY).await;
            hurry.notified().await;
        };
        tokio::select! {
            () = wait => {}
            () = hurried => {}
            () = tasks.stopping() => return,
        }
    }
}
