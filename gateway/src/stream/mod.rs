//! The streaming core: publishers and viewers of live streams, on threads of their own.
//!
//! Each stream lives on one pinned thread, from its first publisher until its last grace time: ingest (`ingest.rs`),
//! what is kept (`recent.rs`, `log.rs`, `gop.rs`), viewers (`cursor.rs`, `viewer.rs`, `fanout.rs`, `audience.rs`),
//! audio that has to become another (`sound.rs`, `transcode.rs`) and the camera as a thing (`camera.rs`); a stream hotter
//! than one core spills to others (`spill.rs`). Tasks of the control plane take units out by a `tap.rs` and put them in by a `feed.rs`. The threads share nothing but the directory in
//! here, which says which stream is where. A connection arrives as a [`Handover`] when its protocol has said what it wants.
//!
//! Must not be in here: protocols, admission, listeners.

mod audience;
mod camera;
mod cursor;
mod fanout;
mod feed;
mod figures;
mod gop;
mod hub;
mod info;
mod ingest;
mod log;
mod recent;
mod socket;
mod sockets;
mod sound;
mod source;
mod spill;
mod tap;
mod timeline;
mod transcode;
mod viewer;
mod window;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use device_models::Report;
use protocols::media::{Container, StreamName};
use protocols::{Limits, Outbox, Output, Peer, Refusal, Session};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

pub use self::audience::ViewerInfo;
pub use self::camera::PRODUCT as CAMERA;
use self::fanout::Patience;
pub use self::feed::{Feed, Parted};
use self::gop::Keep;
pub use self::info::{AudioInfo, Refused, StreamCounters, StreamInfo, TapInfo, ThreadInfo, VideoInfo};
pub use self::socket::Parked;
use self::spill::{Copied, Share};
pub use self::tap::{Tap, TapKind, TapRules, Tapped};
use crate::config;
use crate::hooks::Stay;
use crate::threads::{self, Tasks};

/// Connections on their way to one thread. A thread takes thousands a second; more than this waiting means it hangs.
const ORDERS_MAX: usize = 4096;

/// How long a thread may take to end.
const STOP_MAX: Duration = Duration::from_secs(2);

/// Why the core did not start.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("cannot start stream thread {name}: {error}")]
    Thread { name: String, error: io::Error },
}

/// A connection whose protocol has said that it is a stream's source or viewer.
pub struct Handover {
    /// Non-blocking, and registered with no runtime.
    pub socket: Parked,
    pub session: Box<dyn Session>,
    /// Its first output is the `Source` or `Watch`; what follows has not been carried out.
    pub outbox: Outbox,
    /// Bytes read and not yet taken by the session.
    pub unread: BytesMut,
    pub limits: Limits,
    pub peer: Peer,
    /// Held as long as the connection is a source or viewer.
    pub stay: Option<Stay>,
}

/// The streaming core; clones share it.
#[derive(Clone)]
pub struct StreamCore {
    shared: Arc<Shared>,
    seats: Arc<[Seat]>,
    joins: Arc<Mutex<Vec<JoinHandle<()>>>>,
    tasks: Tasks,
}

impl StreamCore {
    /// Starts the threads. Reports of cameras go out on `reports`: device is the stream's name, product `ip-camera`.
    pub fn start(config: &config::Stream, reports: mpsc::Sender<Report>, tasks: &Tasks) -> Result<Self, StreamError> {
        let cpus = threads::cpus();
        let count = if config.threads == 0 { cpus.len().saturating_sub(1).max(1) } else { config.threads };
        let shared = Arc::new(Shared::new(Rules::new(config), count, tasks));
        let (mut seats, mut joins) = (Vec::new(), Vec::new());
        for index in 0..count {
            let name = format!("sg-stream-{index}");
            // The last CPUs: the first ones usually take the interrupts.
            let cpu =
                cpus.len().checked_sub(1 + index % cpus.len().max(1)).and_then(|at| cpus.get(at)).map_or(0, |c| *c);
            let (send, orders) = mpsc::channel(ORDERS_MAX);
            let (shared, reports, thread) = (shared.clone(), reports.clone(), name.clone());
            let main = move || hub::run(index, thread, cpu, shared, reports, orders);
            let join =
                threads::pinned(&name, cpu, main).map_err(|error| StreamError::Thread { name: name.clone(), error })?;
            seats.push(Seat { orders: send });
            joins.push(join);
        }
        let seats: Arc<[Seat]> = seats.into();
        // Weak: the threads end when the last handle of the core is gone.
        let _first = shared.seats.set(Arc::downgrade(&seats));
        Ok(Self { shared, seats, joins: Arc::new(Mutex::new(joins)), tasks: tasks.clone() })
    }

    /// Waits until the stream is there, at most the configured time. For viewers, before they are admitted.
    pub async fn available(&self, stream: &StreamName) -> Result<(), Refusal> {
        if self.shared.viewers.load(Ordering::Relaxed) >= self.shared.rules.viewers_max {
            self.shared.refused.viewers.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::Limit(format!("{} viewers", self.shared.rules.viewers_max)));
        }
        let mut changes = self.shared.changes.subscribe();
        let appears = async {
            while !self.shared.is_there(stream) {
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let patience = self.shared.rules.wait_max;
        let _want = Want::new(&self.shared, stream);
        tokio::time::timeout(patience, appears).await.map_err(|_| Refusal::NotFound(format!("stream {stream}")))
    }

    /// Whether somebody waits for a stream of this name that is not there.
    pub fn is_wanted(&self, stream: &StreamName) -> bool {
        lock(&self.shared.wanted).contains_key(stream)
    }

    /// Somebody began to wait for a stream that is not there; look with [`is_wanted`](Self::is_wanted).
    pub fn wants(&self) -> watch::Receiver<()> {
        self.shared.wants.subscribe()
    }

    /// Whether a publisher of the stream would be taken now. For publishers, before they are admitted.
    pub fn publishable(&self, stream: &StreamName) -> Result<(), Refusal> {
        let directory = self.shared.directory();
        let home = directory.get(stream);
        if home.is_some_and(Home::live) && !self.shared.rules.takeover {
            return Err(Refusal::Unavailable(format!("stream {stream} has a publisher")));
        }
        if home.is_none() && directory.len() >= self.shared.rules.sources_max {
            return Err(Refusal::Limit(format!("{} streams", self.shared.rules.sources_max)));
        }
        Ok(())
    }

    /// Takes a connection to the thread of its stream. What cannot be taken is told so and closed, and counted.
    pub fn adopt(&self, mut handover: Handover) {
        let (stream, container) = match handover.outbox.pop() {
            Some(Output::Source { stream }) => (stream, None),
            Some(Output::Watch { stream, container }) => (stream, Some(container)),
            other => {
                debug!(?other, "a handover that is neither source nor viewer");
                return;
            }
        };
        let seat = match container {
            None => self.seat_for_publisher(&stream),
            Some(_) => self.seat_for_viewer(&stream),
        };
        let seat = match seat {
            Ok(seat) => seat,
            Err(refusal) => {
                debug!(%stream, %refusal, peer = ?handover.peer.address, "not adopted");
                hub::refuse(handover, &refusal.to_string());
                return;
            }
        };
        let viewer = container.is_some();
        let handover = Box::new(handover);
        let order = match container {
            None => Order::Publish { stream: stream.clone(), handover },
            Some(container) => Order::Watch { stream: stream.clone(), container, handover },
        };
        let sent = self.seats.get(seat).map(|seat| seat.orders.try_send(order));
        if !matches!(sent, Some(Ok(()))) {
            warn!(%stream, seat, "a stream thread takes no more connections");
            self.shared.refused.busy.fetch_add(1, Ordering::Relaxed);
            self.shared.arrived(&stream);
            self.shared.settle(&stream);
            self.shared.viewers.fetch_sub(usize::from(viewer), Ordering::Relaxed);
        }
    }

    fn seat_for_publisher(&self, stream: &StreamName) -> Result<usize, Refusal> {
        let least = self.shared.least_loaded();
        let mut directory = self.shared.directory();
        if !directory.contains_key(stream) && directory.len() >= self.shared.rules.sources_max {
            self.shared.refused.publishers.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::Limit(format!("{} streams", self.shared.rules.sources_max)));
        }
        let home = directory.entry(stream.clone()).or_insert_with(|| Home::new(least));
        home.arrivals += 1;
        Ok(home.thread)
    }

    fn seat_for_viewer(&self, stream: &StreamName) -> Result<usize, Refusal> {
        let mut directory = self.shared.directory();
        let Some(home) = directory.get_mut(stream) else {
            self.shared.refused.orphans.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::NotFound(format!("stream {stream}")));
        };
        if self.shared.viewers.fetch_add(1, Ordering::Relaxed) >= self.shared.rules.viewers_max {
            self.shared.viewers.fetch_sub(1, Ordering::Relaxed);
            self.shared.refused.viewers.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::Limit(format!("{} viewers", self.shared.rules.viewers_max)));
        }
        home.arrivals += 1;
        Ok(spill::seat(home.thread, &lock(&self.shared.threads), &self.shared.rules))
    }

    /// Changes when a stream appears, loses its publisher or ends: look again with [`list`](Self::list).
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changes.subscribe()
    }

    /// All streams, by name. At most a second old.
    pub fn list(&self) -> Vec<StreamInfo> {
        let mut all: Vec<_> = self.shared.directory().values().filter_map(|home| home.info.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// The stream threads. At most a second old while they have streams.
    pub fn threads(&self) -> Vec<ThreadInfo> {
        lock(&self.shared.threads).clone()
    }

    /// What was turned away since the start.
    pub fn refused(&self) -> Refused {
        let refused = &self.shared.refused;
        Refused {
            publishers: refused.publishers.load(Ordering::Relaxed),
            viewers: refused.viewers.load(Ordering::Relaxed),
            orphans: refused.orphans.load(Ordering::Relaxed),
            busy: refused.busy.load(Ordering::Relaxed),
        }
    }

    /// Ends one stream: its publisher and its viewers are closed. `false` when there is none of this name.
    pub async fn end(&self, stream: &StreamName) -> bool {
        let Some(thread) = self.shared.directory().get(stream).map(|home| home.thread) else { return false };
        let (reply, ended) = oneshot::channel();
        let order = Order::Close { stream: stream.clone(), reply };
        self.send(thread, order).await.is_ok() && ended.await.unwrap_or(false)
    }

    /// Tells a thread something; waits while its queue is full.
    async fn send(&self, seat: usize, order: Order) -> Result<(), Stopped> {
        let seat = self.seats.get(seat).ok_or(Stopped)?;
        seat.orders.send(order).await.map_err(|_| Stopped)
    }

    /// Whether every thread answers within `patience`: what the watchdog asks.
    pub async fn responsive(&self, patience: Duration) -> bool {
        let asked = async {
            for seat in self.seats.iter() {
                let (reply, answer) = oneshot::channel();
                if seat.orders.send(Order::Probe(reply)).await.is_err() || answer.await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(patience, asked).await.unwrap_or(false)
    }

    /// Ends all streams and joins the threads.
    pub async fn close(&self) {
        for seat in self.seats.iter() {
            let (reply, stopped) = oneshot::channel();
            if seat.orders.send(Order::Stop(reply)).await.is_ok()
                && tokio::time::timeout(STOP_MAX, stopped).await.is_err()
            {
                warn!("a stream thread did not stop within {STOP_MAX:?}");
            }
        }
        let joins: Vec<_> = std::mem::take(&mut *lock(&self.joins));
        let joined = self.tasks.blocking(move || joins.into_iter().all(|join| join.join().is_ok()));
        match tokio::time::timeout(STOP_MAX, joined).await {
            Ok(Ok(true)) => {}
            outcome => warn!(?outcome, "stream threads did not end well"),
        }
    }
}

impl fmt::Debug for StreamCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamCore").field("threads", &self.seats.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover").field("peer", &self.peer.address).finish_non_exhaustive()
    }
}

// === what the threads share ===

/// The way to one thread.
struct Seat {
    orders: mpsc::Sender<Order>,
}

/// The thread is gone: the core stops.
struct Stopped;

/// What a thread is told.
enum Order {
    Publish {
        stream: StreamName,
        handover: Box<Handover>,
    },
    Watch {
        stream: StreamName,
        container: Container,
        handover: Box<Handover>,
    },
    Feed {
        stream: StreamName,
        origin: String,
        reply: oneshot::Sender<Result<Feed, Refusal>>,
    },
    Tap {
        stream: StreamName,
        rules: TapRules,
        reply: oneshot::Sender<Option<Tap>>,
    },
    /// From a thread that got a viewer of another one's stream; then to it, and what ends it on either side.
    CopyTo {
        stream: StreamName,
        thread: usize,
    },
    Copied {
        stream: StreamName,
        copied: Vec<Copied>,
    },
    CopyEnough {
        stream: StreamName,
        thread: usize,
    },
    CopyEnded {
        stream: StreamName,
    },
    Close {
        stream: StreamName,
        reply: oneshot::Sender<bool>,
    },
    Viewers {
        stream: StreamName,
        reply: oneshot::Sender<Vec<ViewerInfo>>,
    },
    CloseViewer {
        stream: StreamName,
        id: u64,
        reply: oneshot::Sender<bool>,
    },
    Probe(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// The settings, in the shapes the threads want them in.
#[derive(Debug, Clone)]
struct Rules {
    window_min_ms: u64,
    window_max_ms: u64,
    keep: Keep,
    patience: Patience,
    silence_max: Duration,
    wait_max: Duration,
    grace: Duration,
    takeover: bool,
    spill_percent: u64,
    sources_max: usize,
    viewers_max: usize,
    unplayable_audio: config::UnplayableAudio,
    audio_choices: Arc<[config::AudioRule]>,
}

impl Rules {
    fn new(config: &config::Stream) -> Self {
        Self {
            window_min_ms: config.window_min_ms,
            window_max_ms: config.window_max_ms,
            keep: Keep::new(config.gop_kib, config.gop_seconds),
            patience: Patience::new(config.lag_max_ms, Duration::from_secs(config.stall_max_seconds)),
            silence_max: Duration::from_secs(config.silence_max_seconds.max(1)),
            wait_max: Duration::from_secs(config.wait_max_seconds),
            grace: Duration::from_secs(config.grace_seconds),
            takeover: config.takeover,
            spill_percent: config.spill_percent,
            sources_max: config.sources_max,
            viewers_max: config.viewers_max,
            unplayable_audio: config.unplayable_audio,
            audio_choices: config.audio_rules.as_slice().into(),
        }
    }

    fn unplayable_audio(&self, stream: &StreamName) -> config::UnplayableAudio {
        let rule = self.audio_choices.iter().find(|rule| crate::outlet::chosen(&rule.stream, stream.as_str()));
        rule.map_or(self.unplayable_audio, |rule| rule.unplayable_audio)
    }
}

/// Where a stream lives.
struct Home {
    thread: usize,
    /// Connections on their way to the thread: while there are any, the name stays where it is.
    arrivals: usize,
    info: Option<StreamInfo>,
    /// What its replicas on other threads did.
    shares: Vec<Share>,
    /// The same of replicas that are no more.
    spilled: StreamCounters,
}

impl Home {
    fn new(thread: usize) -> Self {
        Self { thread, arrivals: 0, info: None, shares: Vec::new(), spilled: StreamCounters::default() }
    }

    fn live(&self) -> bool {
        self.info.as_ref().is_some_and(|info| info.live)
    }
}

#[derive(Default)]
struct RefusedCounts {
    publishers: AtomicU64,
    viewers: AtomicU64,
    orphans: AtomicU64,
    busy: AtomicU64,
}

/// A viewer that waits for a stream; over when dropped.
struct Want<'a> {
    shared: &'a Shared,
    stream: &'a StreamName,
}

impl<'a> Want<'a> {
    fn new(shared: &'a Shared, stream: &'a StreamName) -> Self {
        *lock(&shared.wanted).entry(stream.clone()).or_default() += 1;
        shared.wants.send_replace(());
        Self { shared, stream }
    }
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        let mut wanted = lock(&self.shared.wanted);
        if let Some(count) = wanted.get_mut(self.stream) {
            *count -= 1;
            if *count == 0 {
                wanted.remove(self.stream);
            }
        }
    }
}

struct Shared {
    /// Streams that are not there and how many wait for each.
    wanted: Mutex<HashMap<StreamName, usize>>,
    wants: watch::Sender<()>,
    rules: Rules,
    tasks: Tasks,
    /// The control plane's runtime, where the core was started on one.
    control: Option<Handle>,
    directory: Mutex<HashMap<StreamName, Home>>,
    threads: Mutex<Vec<ThreadInfo>>,
    changes: watch::Sender<()>,
    viewers: AtomicUsize,
    viewer_ids: AtomicU64,
    /// The ways from thread to thread.
    seats: OnceLock<Weak<[Seat]>>,
    refused: RefusedCounts,
}

impl Shared {
    fn new(rules: Rules, threads: usize, tasks: &Tasks) -> Self {
        Self {
            rules,
            tasks: tasks.clone(),
            control: Handle::try_current().ok(),
            directory: Mutex::default(),
            threads: Mutex::new(vec![ThreadInfo::default(); threads]),
            changes: watch::channel(()).0,
            wanted: Mutex::default(),
            wants: watch::channel(()).0,
            viewers: AtomicUsize::new(0),
            viewer_ids: AtomicU64::new(1),
            seats: OnceLock::new(),
            refused: RefusedCounts::default(),
        }
    }

    fn directory(&self) -> MutexGuard<'_, HashMap<StreamName, Home>> {
        lock(&self.directory)
    }

    fn is_there(&self, stream: &StreamName) -> bool {
        self.directory().get(stream).is_some_and(|home| home.info.is_some())
    }

    /// By use of the CPU in steps of 10 %, then by streams.
    fn least_loaded(&self) -> usize {
        let mut streams: HashMap<usize, usize> = HashMap::new();
        for home in self.directory().values() {
            *streams.entry(home.thread).or_default() += 1;
        }
        let threads = lock(&self.threads);
        let load = |(index, info): &(usize, &ThreadInfo)| {
            ((info.busy * 10.0) as u64, streams.get(index).copied().unwrap_or(0))
        };
        threads.iter().enumerate().min_by_key(load).map_or(0, |(index, _)| index)
    }

    /// An order reached its thread (or never will).
    fn arrived(&self, stream: &StreamName) {
        let mut directory = self.directory();
        if let Some(home) = directory.get_mut(stream) {
            home.arrivals = home.arrivals.saturating_sub(1);
        }
    }

    fn publish_info(&self, thread: usize, stream: &StreamName, info: StreamInfo) {
        self.directory().entry(stream.clone()).or_insert_with(|| Home::new(thread)).info = Some(info);
    }

    fn publish_thread(&self, thread: usize, info: ThreadInfo) {
        if let Some(slot) = lock(&self.threads).get_mut(thread) {
            *slot = info;
        }
    }

    fn changed(&self) {
        self.changes.send_replace(());
    }

    /// The stream is no more, unless somebody is on the way to it.
    fn home(&self, stream: &StreamName) -> Option<usize> {
        self.directory().get(stream).filter(|home| home.info.is_some()).map(|home| home.thread)
    }

    /// A replica's figures, for its stream's.
    fn publish_share(&self, stream: &StreamName, share: Share) {
        if let Some(home) = self.directory().get_mut(stream) {
            home.shares.retain(|other| other.thread != share.thread);
            home.shares.push(share);
        }
    }

    fn forget_share(&self, stream: &StreamName, thread: usize) {
        if let Some(home) = self.directory().get_mut(stream) {
            home.shares
                .iter()
                .filter(|share| share.thread == thread)
                .for_each(|share| home.spilled.add_viewers(&share.counters));
            home.shares.retain(|share| share.thread != thread);
        }
    }

    /// Adds what replicas did.
    fn add_shares(&self, stream: &StreamName, info: &mut StreamInfo) {
        let directory = self.directory();
        let Some(home) = directory.get(stream) else { return };
        info.counters.add_viewers(&home.spilled);
        for share in &home.shares {
            info.viewers += share.viewers;
            info.lag_ms = info.lag_ms.max(share.lag_ms);
            info.viewers_elsewhere += share.viewers;
            info.counters.add_viewers(&share.counters);
        }
    }

    fn forget(&self, stream: &StreamName) {
        let mut directory = self.directory();
        if let Some(home) = directory.get_mut(stream) {
            home.info = None;
        }
        drop(directory);
        self.settle(stream);
    }

    /// Removes the name if there is neither a stream nor anybody on the way to it.
    fn settle(&self, stream: &StreamName) {
        let mut directory = self.directory();
        if directory.get(stream).is_some_and(|home| home.arrivals == 0 && home.info.is_none()) {
            directory.remove(stream);
        }
    }
}

/// A thread that panicked with the lock leaves plain data behind, not a broken invariant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
