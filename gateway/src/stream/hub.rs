//! What one stream thread owns: its sources by name, its merge window, its figures. Everything in here stays on its
//! thread: no locks, but for the directory of the core, which is touched when streams come and go and once a second.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use device_models::Report;
use protocols::media::{Container, StreamName, Unit};
use protocols::{Input, Outbox, Output};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, mpsc};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::audience::ViewerInfo;
use super::camera::Camera;
use super::fanout::{Pick, Place, Tally};
use super::gate::{Bell, Gate};
use super::gather::Reads;
use super::info::ThreadInfo;
use super::sound::{self, Treatment};
use super::source::{Generation, News, Source};
use super::unsaid::Unsaid;
use super::viewer::{Account, Viewer};
use super::window::Window;
use super::{Handover, Order, Rules, Shared, fanout, sockets};
use crate::clock;

/// How often a thread looks at all its streams and viewers.
pub(super) const SWEEP: Duration = Duration::from_secs(1);

/// How often the busy fraction is measured.
const MEASURE: Duration = Duration::from_millis(250);

/// Where a publisher is.
#[derive(Debug, Clone)]
pub(super) enum Origin {
    /// At the other end of a connection.
    Peer(Option<SocketAddr>),
    /// Behind a feed.
    Named(String),
}

impl Origin {
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        if let Self::Peer(address) = self { *address } else { None }
    }

    pub(super) fn name(&self) -> Option<String> {
        if let Self::Named(name) = self { Some(name.clone()) } else { None }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Peer(Some(address)) => address.fmt(f),
            Self::Peer(None) => f.write_str("unknown"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

pub(super) type SharedSource = Rc<RefCell<Source>>;

pub(super) struct Hub {
    pub(super) rules: Rules,
    index: usize,
    thread: String,
    cpu: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) unsaid: Rc<Unsaid>,
    pub(super) sources: RefCell<Vec<SharedSource>>,
    /// Sources with units that viewers have not seen.
    dirty: RefCell<Vec<SharedSource>>,
    visit_at: Cell<Option<Instant>>,
    wake: Notify,
    /// Rings when the kernel takes more for a viewer that was blocked.
    pub(super) bell: Arc<Bell>,
    window: RefCell<Window>,
    /// Groups of viewers in a merge window.
    phases: Cell<usize>,
    measured: Cell<(Instant, Duration)>,
    lag: Cell<Duration>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    pub(super) reads: Reads,
}

impl Hub {
    pub(super) fn new(
        index: usize,
        thread: String,
        cpu: usize,
        shared: Arc<Shared>,
        reports: mpsc::Sender<Report>,
    ) -> Self {
        let rules = shared.rules.clone();
        let window = Window::new(rules.window_min_ms, rules.window_max_ms);
        let unsaid = Unsaid::new(reports, rules.sources_max, shared.words_lost.clone());
        Self {
            rules,
            index,
            thread,
            cpu,
            shared,
            unsaid,
            sources: RefCell::default(),
            dirty: RefCell::default(),
            visit_at: Cell::default(),
            wake: Notify::new(),
            bell: Arc::default(),
            window: RefCell::new(window),
            phases: Cell::new(1),
            measured: Cell::new((Instant::now(), cpu_time())),
            lag: Cell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            reads: Reads::new(Instant::now()),
        }
    }

    pub(super) fn find(&self, name: &StreamName) -> Option<SharedSource> {
        self.sources.borrow().iter().find(|source| source.borrow().name == *name).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sources.borrow().is_empty()
    }

    // --- publishers ---

    /// Gives the stream to a new publisher, or says why not.
    pub(super) fn publish(
        self: &Rc<Self>,
        name: &StreamName,
        origin: &Origin,
    ) -> Result<(SharedSource, Generation, CancellationToken), &'static str> {
        // A replica that has not heard that its stream ended, and lives here now.
        self.copy_ended(name);
        let found = self.find(name);
        if found.as_ref().is_some_and(|source| source.borrow().is_live()) && !self.rules.takeover {
            return Err("the stream has a publisher, and takeover is off");
        }
        let source = found.unwrap_or_else(|| self.open(name));
        let stop = CancellationToken::new();
        let generation = source.borrow_mut().publish(origin, clock::now_us(), stop.clone());
        let publisher = origin.to_string();
        info!(stream = %name, publisher, thread = self.thread, "stream is live");
        source.borrow_mut().camera.online(&publisher, Instant::now());
        self.announce(&source);
        Ok((source, generation, stop))
    }

    fn open(self: &Rc<Self>, name: &StreamName) -> SharedSource {
        self.add(self.source(name))
    }

    fn source(&self, name: &StreamName) -> Source {
        let camera = Camera::new(name.to_string(), self.unsaid.clone());
        let treatment = Treatment::new(self.rules.unplayable_audio(name));
        Source::new(name.clone(), self.rules.keep, treatment, camera, Instant::now())
    }

    fn add(&self, source: Source) -> SharedSource {
        let source = Rc::new(RefCell::new(source));
        self.sources.borrow_mut().push(source.clone());
        self.wake.notify_one();
        source
    }

    /// A replica of a stream that lives on another thread; `None` when there is no such stream.
    fn replicate(&self, name: &StreamName) -> Option<SharedSource> {
        let home = self.shared.home(name).filter(|home| *home != self.index)?;
        self.seat(home)?.try_send(Order::CopyTo { stream: name.clone(), thread: self.index }).ok()?;
        Some(self.add(self.source(name).for_replica()))
    }

    /// The way to another thread.
    pub(super) fn seat(&self, thread: usize) -> Option<mpsc::Sender<Order>> {
        let seats = self.shared.seats.get()?.upgrade()?;
        seats.get(thread).map(|seat| seat.orders.clone())
    }

    pub(super) fn refused_publisher(&self) {
        self.shared.refused.publishers.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a publisher's unit.
    pub(super) fn push(self: &Rc<Self>, source: &SharedSource, unit: Unit) {
        self.bytes_in.set(self.bytes_in.get() + unit.data.len() as u64);
        if source.borrow().treatment.wants_lane(&unit) {
            sound::open_lane(self, source);
        }
        let news = source.borrow_mut().push(unit, &self.rules.patience, self.phases.get());
        self.note(source, news);
    }

    /// Takes a unit made of what the publisher sent.
    pub(super) fn put(&self, source: &SharedSource, unit: Unit) {
        let news = source.borrow_mut().put(unit, &self.rules.patience, self.phases.get());
        self.note(source, news);
    }

    /// Runs work that is none of a stream thread's on the control plane; `false` where there is none.
    pub(super) fn delegate(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let control = self.shared.control.as_ref();
        control.map(|runtime| self.shared.tasks.spawn_on(runtime, name, task)).is_some()
    }

    /// The source's viewers are to be visited, if there is news.
    pub(super) fn note(&self, source: &SharedSource, news: News) {
        if news.first {
            self.dirty.borrow_mut().push(source.clone());
        }
        let Some(within) = news.within else { return };
        let at = Instant::now() + within;
        source.borrow_mut().visit_by(at);
        if self.visit_at.get().is_none_or(|before| at < before) {
            self.visit_at.set(Some(at));
            self.wake.notify_one();
        }
    }

    /// When the viewers of dirty sources are to be visited, where nothing is collected for a merge window.
    pub(super) fn visit_at(&self) -> Option<Instant> {
        self.visit_at.get()
    }

    /// The publisher went; its viewers are kept for the grace time.
    pub(super) fn unpublish(&self, source: &SharedSource, generation: Generation, reason: &str) {
        let ended = source.borrow_mut().unpublish(generation, Instant::now());
        if ended {
            info!(stream = %source.borrow().name, reason, "stream has no publisher");
            source.borrow_mut().camera.offline(reason);
            // A stream that was closed is forgotten already, and stays so.
            if !self.sources.borrow().iter().any(|other| Rc::ptr_eq(other, source)) {
                return;
            }
            if self.rules.grace.is_zero() {
                // Not with the next sweep: until then it would still take viewers in.
                self.end(source, Instant::now());
            } else {
                self.announce(source);
            }
        }
    }

    // --- viewers ---

    pub(super) fn watch(&self, name: &StreamName, container: Container, handover: Handover) {
        let Some(source) = self.find(name).or_else(|| self.replicate(name)) else {
            self.shared.refused.orphans.fetch_add(1, Ordering::Relaxed);
            self.shared.viewers.fetch_sub(1, Ordering::Relaxed);
            self.shared.settle(name);
            refuse(handover, "the stream is gone");
            return;
        };
        sockets::prepare_viewer(handover.socket.tcp(), source.borrow().bits_per_second(), self.window());
        let Handover { socket, session, mut outbox, unread, limits, peer, stay } = handover;
        let socket = match socket.register() {
            Ok(socket) => socket,
            Err(error) => {
                debug!(stream = %name, %error, "cannot take over a viewer's socket");
                self.shared.viewers.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        debug!(stream = %name, ?container, peer = ?peer.address, "viewer");
        let (account, gate) = (self.account(peer.address), Gate::new(&self.bell));
        let mut viewer = Viewer::new(socket, session, unread, limits.frame_max, account, gate).staying(stay);
        if viewer.carry_out(&mut outbox).and_then(|()| viewer.understand_leftover(Instant::now())).is_err() {
            self.shared.viewers.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.join(&source, container, viewer);
    }

    /// The account of a viewer that comes now.
    pub(super) fn account(&self, peer: Option<SocketAddr>) -> Account {
        Account::new(self.shared.viewer_ids.fetch_add(1, Ordering::Relaxed), peer, clock::now_us())
    }

    pub(super) fn audience(&self, stream: &StreamName) -> Vec<ViewerInfo> {
        self.find(stream).map(|source| source.borrow().audience(&self.thread)).unwrap_or_default()
    }

    pub(super) fn dismiss(&self, stream: &StreamName, id: u64) -> bool {
        let tally = self.find(stream).and_then(|source| source.borrow_mut().dismiss(id, Instant::now()));
        tally.inspect(|tally| self.count(tally)).is_some()
    }

    pub(super) fn join(&self, source: &SharedSource, container: Container, viewer: Viewer) {
        let tally = source.borrow_mut().join(container, viewer, self.rules.patience);
        self.count(&tally);
        if tally.more {
            self.bell.ring();
        }
    }

    // --- the loop of fanout.rs ---

    /// Sources a pass that begins now has to visit.
    pub(super) fn due(&self, pick: Pick, now: Instant) -> Vec<SharedSource> {
        if matches!(pick, Pick::All | Pick::Phase(..)) {
            self.visit_at.set(None);
        }
        match pick {
            Pick::All => {
                // One whose sound waits for its picture is not visited for another's.
                let is_due = |source: &SharedSource| source.borrow().visit_at().is_none_or(|at| at <= now);
                let (due, later): (Vec<_>, Vec<_>) = self.dirty.take().into_iter().partition(is_due);
                for source in &due {
                    source.borrow_mut().take_due(pick);
                }
                self.visit_at.set(later.iter().filter_map(|source| source.borrow().visit_at()).min());
                self.dirty.replace(later);
                due
            }
            Pick::Phase(..) => {
                let due = self.dirty.borrow().clone();
                self.dirty.borrow_mut().retain(|source| source.borrow_mut().take_due(pick));
                due
            }
            Pick::Ready | Pick::Sweep => self.sources.borrow().clone(),
        }
    }

    pub(super) fn dirty(&self) -> bool {
        !self.dirty.borrow().is_empty()
    }

    pub(super) fn count(&self, tally: &Tally) {
        self.bytes_out.set(self.bytes_out.get() + tally.counters.bytes_out);
        if tally.viewers_gone > 0 {
            self.shared.viewers.fetch_sub(tally.viewers_gone, Ordering::Relaxed);
        }
    }

    /// Sleeps until `next`, or until there is news if it `listens`, or until the bell rings. The alarm is kept from rest to
    /// rest and may go off early: to set it anew for every frame costs more than to wake once too often.
    pub(super) async fn rest(&self, mut alarm: Pin<&mut Sleep>, next: Option<Instant>, listens: bool) {
        if next.is_some_and(|next| next <= Instant::now()) {
            // The others of this thread first.
            tokio::task::yield_now().await;
            return;
        }
        if let Some(next) = next
            && (alarm.is_elapsed() || next < alarm.deadline().into())
        {
            alarm.as_mut().reset(next.into());
        }
        tokio::select! {
            biased;
            () = self.wake.notified(), if listens || next.is_none() => {}
            () = self.bell.heard(), if !self.bell.is_rung() => {}
            () = alarm, if next.is_some() => {}
        }
    }

    pub(super) fn window(&self) -> Duration {
        self.window.borrow().length()
    }

    pub(super) fn phases(&self) -> usize {
        self.phases.get()
    }

    fn viewers(&self) -> usize {
        self.sources.borrow().iter().map(|source| source.borrow().viewers()).sum()
    }

    fn regroup(&self) {
        let phases = fanout::phases(self.viewers());
        if self.phases.replace(phases) != phases {
            self.sources.borrow().iter().for_each(|source| source.borrow_mut().regroup(phases));
        }
    }

    /// Measures the busy fraction when it is time to.
    pub(super) fn measure(&self, now: Instant) {
        let (at, used) = self.measured.get();
        let span = now.duration_since(at);
        if span >= MEASURE {
            let used_now = cpu_time();
            self.measured.set((now, used_now));
            self.window.borrow_mut().measured(used_now.saturating_sub(used).as_secs_f64() / span.as_secs_f64());
            self.reads.measured(self.window.borrow().busy(), span);
        }
    }

    /// Something began this much after its time.
    pub(super) fn late(&self, by: Duration) {
        self.lag.set(self.lag.get().max(by));
    }

    /// The once-a-second look at everything.
    pub(super) fn sweep(&self, now: Instant) {
        let sources = self.sources.borrow().clone();
        for source in &sources {
            let over = source.borrow_mut().sweep(now, self.rules.grace);
            let replica = source.borrow().is_replica();
            let home = if replica { self.shared.home(&source.borrow().name) } else { None };
            if over || (replica && home.is_none_or(|home| home == self.index)) {
                self.end(source, now);
            } else if replica {
                self.shared.publish_share(&source.borrow().name, source.borrow().share(self.index));
            } else {
                let mut info = source.borrow().info(&self.thread);
                self.shared.add_shares(&source.borrow().name, &mut info);
                source.borrow_mut().camera.observe(&info, now);
                self.shared.publish_info(self.index, &source.borrow().name, info);
            }
        }
        self.regroup();
        self.tell();
    }

    pub(super) fn tell(&self) {
        let told = ThreadInfo {
            name: self.thread.clone(),
            cpu: self.cpu,
            busy: if self.is_empty() { 0.0 } else { self.window.borrow().busy() },
            window_ms: self.window().as_millis() as u64,
            lag_ms: self.lag.take().as_secs_f64() * 1000.0,
            streams: self.sources.borrow().len(),
            viewers: self.viewers(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
        };
        self.shared.publish_thread(self.index, told);
    }

    /// Gives viewers what they have not got yet, as far as the kernel takes it.
    fn flush(&self, source: &SharedSource) {
        let (mut place, mut goes_on) = (Place::default(), true);
        while goes_on {
            let (tally, more) = source.borrow_mut().flush(&mut place, Pick::All, self.rules.patience);
            self.count(&tally);
            goes_on = more;
        }
    }

    fn announce(&self, source: &SharedSource) {
        let info = source.borrow().info(&self.thread);
        self.shared.publish_info(self.index, &source.borrow().name, info);
        self.shared.changed();
    }

    pub(super) fn end(&self, source: &SharedSource, now: Instant) {
        source.borrow().stop_publisher();
        if !source.borrow().is_replica() {
            // Before its viewers hear of it: who comes after them waits for the next stream of this name.
            self.shared.forget(&source.borrow().name);
        }
        self.flush(source);
        let tally = source.borrow_mut().end(now);
        self.count(&tally);
        self.sources.borrow_mut().retain(|other| !Rc::ptr_eq(other, source));
        self.dirty.borrow_mut().retain(|other| !Rc::ptr_eq(other, source));
        if source.borrow().is_replica() {
            let stream = source.borrow().name.clone();
            self.shared.publish_share(&stream, source.borrow().share(self.index));
            self.shared.forget_share(&stream, self.index);
            if let Some(home) = self.shared.home(&stream).filter(|home| *home != self.index).and_then(|h| self.seat(h))
            {
                // Lost, it costs the home a few handles a second until the stream ends.
                let _unsent = home.try_send(Order::CopyEnough { stream, thread: self.index });
            }
            return;
        }
        self.shared.changed();
        info!(stream = %source.borrow().name, "stream ended");
    }
}

/// Tells a peer that it cannot stay, as far as its socket takes it, and closes.
pub(super) fn refuse(handover: Handover, reason: &str) {
    let Handover { mut socket, mut session, mut outbox, .. } = handover;
    let mut goodbye = Outbox::default();
    // It is closed in any case: a fault in the goodbye changes nothing.
    let _fault = session.receive(Instant::now(), Input::Ended { reason }, &mut goodbye);
    let outputs = std::iter::from_fn(|| outbox.pop()).chain(std::iter::from_fn(|| goodbye.pop()));
    for bytes in outputs.filter_map(|output| if let Output::Send(bytes) = output { Some(bytes) } else { None }) {
        if socket.write(&bytes).is_err() {
            return;
        }
    }
}

/// CPU time this thread has used.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
