//! The streaming core: publishers and viewers of live streams, on threads of their own.
//!
//! Each stream lives on one pinned thread (`orders.rs`, `hub.rs`), from its first publisher until its last grace time: ingest (`ingest.rs`, `gather.rs`),
//! what is kept (`recent.rs`, `log.rs`, `gop.rs`), viewers (`cursor.rs`, `viewer.rs`, `gate.rs`, `fanout.rs`, `audience.rs`),
//! audio that has to become another (`sound.rs`, `transcode.rs`) and the camera as a thing (`camera.rs`, `unsaid.rs`); a stream hotter
//! than one core spills to others (`spill.rs`). Tasks of the control plane take units out by a `tap.rs` and put them in by a `feed.rs`. The threads share nothing but
//! `directory.rs`, which says which stream is where. A connection arrives as a [`Handover`] when its protocol has said what it wants.
//!
//! Must not be in here: protocols, admission, listeners.

mod audience;
mod camera;
mod cursor;
mod directory;
mod fanout;
mod feed;
mod figures;
mod gate;
mod gather;
mod gop;
mod hub;
mod info;
mod ingest;
mod log;
mod orders;
mod recent;
mod rhythm;
mod rules;
mod socket;
mod sockets;
mod sound;
mod source;
mod spill;
mod tap;
mod timeline;
mod transcode;
mod unsaid;
mod viewer;
mod window;

use std::fmt;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;
use device_models::Report;
use protocols::media::{Container, StreamName};
use protocols::{Limits, Outbox, Output, Peer, Refusal, Session};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, warn};

pub use self::audience::ViewerInfo;
pub use self::camera::PRODUCT as CAMERA;
use self::directory::{Home, Shared, Want};
pub use self::feed::{Feed, Parted};
pub use self::info::{AudioInfo, Refused, StreamCounters, StreamInfo, TapInfo, ThreadInfo, VideoInfo};
use self::rules::Rules;
pub use self::socket::Parked;
use self::spill::Copied;
pub use self::tap::{Tap, TapKind, TapRules, Tapped};
use crate::config;
use crate::hooks::{Silence, Stay};
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
            let main = move || orders::run(index, thread, cpu, shared, reports, orders);
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
            words: self.shared.words_lost.load(Ordering::Relaxed),
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
        silence: Option<Silence>,
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

/// A thread that panicked with the lock leaves plain data behind, not a broken invariant.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
