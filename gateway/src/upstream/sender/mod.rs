//! The task of one destination: connect, fill the window, hear what is confirmed, and after a lost connection begin
//! again at the cursor.

mod begin;
mod figures;
mod fill;
mod hear;
mod receipts;
mod refused;
mod roads;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use device_models::Class;
use device_models::wire::Catalog;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

use super::Parts;
use super::destination::place::Place;
use super::destination::{self, Arrival, Connection, Event, LinkError};
use super::dialect::{Dialect, Publication, Run, Scope, Station, dialect};
use super::down::Down;
use super::filter::Filter;
use super::introductions::Introductions;
use super::lane::Lane;
use super::pace::{Pace, Rates};
use super::queue::{Limits, Queue, RECORDS_MAX};
use super::receipt::Receipt;
use super::status::Status;
use super::things::Things;
use super::window::{BatchId, Window};
use receipts::Receipts;

use crate::bus::{Keyed, Reader, Road};
use crate::corrections::Corrections;
use crate::metrics::Metrics;
use crate::threads::Tasks;
use crate::tls::Trust;
use crate::{clock, config};

/// Pause before another try to connect: doubles, and a random half of it is added so that a fleet does not come at once.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A broker that confirms nothing for this long is taken for dead, whatever its pings say.
const CONFIRM_SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a stop waits for what is under way, and then for the goodbye.
const DRAIN_MAX: Duration = Duration::from_secs(1);
const CLOSE_MAX: Duration = Duration::from_millis(500);
/// A new list of things is published at most this often: things that register by the hundred must not each cost a
/// catalog. Until then they go by name.
const CATALOG_PAUSE: Duration = Duration::from_secs(10);
/// Pause after an error of the disk.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// How long numbers that the filter leaves out wait for company before they are accounted for alone.
const SKIP_PAUSE: Duration = Duration::from_secs(60);
/// What MQTT adds to topic and payload, at most.
const PACKET_BESIDE: usize = 32;

/// Why a connection is over.
enum End {
    Stopping,
    /// The platform wants us to go, for now.
    Left(String),
    /// `rest`: the destination asks not to be tried again before that.
    Lost {
        reason: String,
        rest: Option<Duration>,
    },
}

pub(super) struct Sender {
    config: config::Upstream,
    place: Place,
    trust: Option<Trust>,
    gateway: Arc<str>,
    epoch: u64,
    dialect: Box<dyn Dialect>,
    keyed: Keyed,
    /// Connections before this one, where the dialect counts them; and whether this run has counted one.
    session: u64,
    counted: bool,
    things: Arc<dyn Things>,
    down: Down,
    tasks: Tasks,
    metrics: Metrics,
    status: watch::Sender<Status>,
    reader: Reader,
    limits: Limits,
    /// By lane.
    queues: [Queue; Lane::COUNT],
    filter: Arc<Filter>,
    /// Those in use, in the order they are asked.
    lanes: &'static [Lane],
    pace: Pace,
    /// Batches cut: now and then the backlog is asked first.
    turn: u64,
    /// By class, while nothing of it is at hand: when its oldest message was taken in.
    oldest_us: [Option<i64>; 4],
    window: Window,
    /// Made and not yet handed to the link: one batch's worth.
    outbox: VecDeque<(Publication, Option<BatchId>)>,
    names: Names,
    /// What the destination will never take, by class: it goes as holes.
    refused: [Vec<(u64, String)>; 4],
    /// Tokens up to this one, of this connection, are of what has been read again since.
    stale: u64,
    last_token: u64,
    /// Refused one after the other, with nothing taken between.
    refused_in_row: u32,
    quarantine: PathBuf,
    introductions: Introductions,
    /// Made before the introductions began anew: it goes after them.
    later: VecDeque<(Publication, Option<BatchId>)>,
    /// Since when the dialect waits for something.
    waiting: Option<Instant>,
    /// Distinguishes commands that bring no id: the time, but never the same twice.
    stamp: i64,
    connected_us: i64,
    corrections: Corrections,
    packet_max: usize,
    /// When the broker last confirmed something, or was given something while it owed nothing.
    progress: Instant,
    /// Not before it does the disk want to be asked again.
    store_rest: Option<Instant>,
    /// Whether this connection confirmed anything.
    useful: bool,
    receipts: Receipts,
    /// Arrivals the destination does not know to be taken yet: the commands among them found no room.
    unacknowledged: VecDeque<Arrival>,
}

/// The catalog in use on this connection.
struct Names {
    catalog: Arc<Catalog>,
    published: bool,
    adopted: Option<Instant>,
}

// === impl Sender ===

impl Sender {
    pub(super) fn new(
        config: config::Upstream,
        place: Place,
        trust: Option<Trust>,
        reader: Reader,
        parts: &Parts,
    ) -> (Self, watch::Receiver<Status>) {
        let now = Instant::now();
        let spoken = dialect(&config);
        let status = Status {
            name: config.name.clone(),
            url: config.url.clone(),
            dialect: spoken.word(),
            acked: reader.committed(),
            backlog: reader.backlog(),
            ..Status::default()
        };
        let (status, watch) = watch::channel(status);
        let Parts { gateway, bus, corrections, things, tasks, metrics, quarantine } = parts.clone();
        let filter = Arc::new(Filter::new(&config.filter));
        let skip_pause = if spoken.accounts() { SKIP_PAUSE } else { Duration::ZERO };
        let live_first = config.order == config::Order::LiveFirst && spoken.tells_time();
        let lanes = if live_first { Lane::LIVE_FIRST } else { Lane::IN_ORDER };
        let rates = Rates {
            messages: config.drain_messages_per_second,
            bytes: config.drain_kib_per_second.saturating_mul(1024),
        };
        let sender = Self {
            limits: Limits {
                records: RECORDS_MAX,
                bytes: usize::try_from(config.batch_kib.clamp(1, 256) << 10).unwrap_or(64 << 10),
                time: Duration::from_millis(config.batch_ms.min(10_000)),
            },
            dialect: spoken,
            keyed: bus.keyed(),
            session: 0,
            counted: false,
            epoch: bus.epoch(),
            down: Down::new(Arc::clone(&things), bus, tasks.clone(), metrics.clone()),
            queues: queues(&filter, skip_pause, now),
            filter,
            lanes,
            pace: Pace::new(usize::from(config.inflight_max.max(1)), rates, now),
            turn: 0,
            oldest_us: [None; 4],
            window: Window::default(),
            outbox: VecDeque::new(),
            names: Names::none(),
            refused: Default::default(),
            stale: 0,
            last_token: 0,
            refused_in_row: 0,
            quarantine,
            introductions: Introductions::default(),
            later: VecDeque::new(),
            waiting: None,
            stamp: 0,
            connected_us: 0,
            corrections,
            packet_max: usize::MAX,
            progress: now,
            store_rest: None,
            useful: false,
            receipts: Receipts::new(config.acknowledge, config.acknowledge_seconds),
            unacknowledged: VecDeque::new(),
            config,
            place,
            trust,
            gateway,
            things,
            tasks,
            metrics,
            status,
            reader,
        };
        (sender, watch)
    }

    pub(super) async fn run(mut self) {
        let mut pause = PAUSE_MIN;
        if let Err(error) = self.reader.settle().await {
            warn!(upstream = self.config.name, %error, "the cursor is not on disk yet");
        }
        loop {
            self.metrics.link(&self.config.name, false);
            let (reason, rest) = match self.connection().await {
                End::Stopping => break,
                End::Left(reason) => (reason, None),
                End::Lost { reason, rest } => (reason, rest),
            };
            self.lost(reason);
            self.back();
            self.look_at_oldest().await;
            if self.useful {
                pause = PAUSE_MIN;
            }
            let rest = jitter(pause).max(rest.unwrap_or_default());
            tokio::select! {
                () = tokio::time::sleep(rest) => pause = (pause * 2).min(PAUSE_MAX),
                () = self.tasks.stopping() => break,
            }
        }
        self.down.close().await;
        self.metrics.link(&self.config.name, false);
        self.status.send_modify(|status| status.connected = false);
        debug!(upstream = self.config.name, "stopped");
    }

    /// One connection from its beginning to its end.
    async fn connection(&mut self) -> End {
        if let Err(reason) = self.begin().await {
            return End::lost(reason);
        }
        let opened = match self.settings().await {
            Ok(settings) => destination::open(&settings, &self.tasks).map_err(|error| error.to_string()),
            Err(reason) => Err(reason),
        };
        let mut link = match opened {
            Ok(link) => link,
            Err(reason) => return End::lost(reason),
        };
        let event = tokio::select! {
            event = link.next() => event,
            () = self.tasks.stopping() => return End::Stopping,
        };
        let end = match event {
            Event::Up { packet_max } => match self.up(&mut *link, packet_max) {
                Ok(()) => self.talk(&mut *link).await,
                Err(error) => End::lost(error.to_string()),
            },
            Event::Down { reason, rest } => End::Lost { reason, rest },
            other => End::lost(format!("the destination began with {other:?}")),
        };
        if !matches!(end, End::Lost { .. }) {
            self.drain(&mut *link).await;
            link.close(CLOSE_MAX).await;
        }
        end
    }

    /// Everything that is not confirmed is read again.
    fn back(&mut self) {
        let now = Instant::now();
        self.reader.rewind();
        let skip_pause = if self.dialect.accounts() { SKIP_PAUSE } else { Duration::ZERO };
        self.queues = queues(&self.filter, skip_pause, now);
        self.window.clear();
        self.outbox.clear();
        self.later.clear();
        self.unacknowledged.clear();
        self.pace.reset();
        self.split();
        self.stale = self.last_token;
    }

    fn up(&mut self, link: &mut dyn Connection, packet_max: Option<usize>) -> Result<(), LinkError> {
        self.connected_us = clock::now_us();
        // What came since the connection was asked for waited too.
        self.back();
        self.packet_max = packet_max.unwrap_or(usize::MAX);
        for filter in self.dialect.filters(self.scope()) {
            link.subscribe(&filter)?;
        }
        if self.receipts.patience.is_some() {
            link.subscribe(&Receipt::topic(&self.gateway))?;
        }
        if let Some(online) = self.station().and_then(|station| station.online) {
            link.send(online)?;
        }
        self.progress = Instant::now();
        self.metrics.link(&self.config.name, true);
        info!(upstream = self.config.name, url = self.config.url, "connected");
        let since_us = self.connected_us;
        self.status.send_modify(|status| {
            status.connected = true;
            status.since_us = since_us;
            status.error = None;
        });
        Ok(())
    }

    fn lost(&mut self, reason: String) {
        self.metrics.link(&self.config.name, false);
        self.metrics.link_failed(&self.config.name);
        let known = self.status.borrow().error.as_ref() == Some(&reason);
        if known {
            debug!(upstream = self.config.name, reason, "still not connected");
        } else {
            warn!(upstream = self.config.name, url = self.config.url, reason, "not connected");
        }
        self.note();
        self.status.send_modify(|status| {
            if status.connected {
                status.connected = false;
                status.since_us = clock::now_us();
            }
            status.error = Some(reason);
        });
    }

    async fn talk(&mut self, link: &mut dyn Connection) -> End {
        let silence_max = self.silence_max();
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(reason) = self.fill(link).await {
                return End::lost(reason);
            }
            let room = self.room(link) && self.store_rest.is_none() && self.dialect.waits().is_none();
            let wanted = self.wanted();
            let (due, receipt_due) = (self.due(link), self.receipt_due());
            tokio::select! {
                event = link.next() => {
                    if let Some(end) = self.hear(link, event).await {
                        return end;
                    }
                }
                () = self.reader.ready_on(&wanted), if room => {}
                () = self.down.room(), if !self.unacknowledged.is_empty() => {
                    if let Some(end) = self.acknowledge(link) {
                        return end;
                    }
                }
                () = tokio::time::sleep_until(due.unwrap_or(self.progress)), if due.is_some() => self.store_rest = None,
                () = tokio::time::sleep_until(self.progress + silence_max), if link.unconfirmed() > 0 => {
                    return End::lost(format!("the destination has confirmed nothing for {silence_max:?}"));
                }
                _ = beat.tick() => {
                    self.note();
                    if let Some(end) = self.waited() {
                        return end;
                    }
                }
                () = tokio::time::sleep_until(receipt_due.unwrap_or(self.progress)), if receipt_due.is_some() => self.unanswered(),
                () = self.tasks.stopping() => return End::Stopping,
            }
        }
    }

    /// Where only an answered ping confirms, one may take a while.
    fn silence_max(&self) -> Duration {
        let pinged = Duration::from_secs(self.config.keep_alive_seconds.saturating_mul(2));
        if self.dialect.at_most_once() { CONFIRM_SILENCE_MAX.max(pinged) } else { CONFIRM_SILENCE_MAX }
    }

    /// Says what the dialect waits for, and gives the connection up when that takes too long.
    fn waited(&mut self) -> Option<End> {
        let wait = self.dialect.waits();
        let Some(wait) = wait else {
            if self.waiting.take().is_some() {
                self.status.send_modify(|status| status.error = None);
            }
            return None;
        };
        let since = *self.waiting.get_or_insert_with(Instant::now);
        if wait.most.is_some_and(|most| since.elapsed() > most) {
            return Some(End::lost(format!("waited in vain for {}", wait.what)));
        }
        let told = format!("waits for {}", wait.what);
        self.status.send_if_modified(|status| {
            let news = status.error.as_ref() != Some(&told);
            status.error = Some(told);
            news
        });
        None
    }

    /// Whether another publish may go: the outbox is bound by it, and with it everything before.
    fn room(&self, link: &dyn Connection) -> bool {
        self.outbox.is_empty() && link.unconfirmed() < self.inflight_max() && self.may_owe()
    }

    /// The lanes whose queues have room for more.
    fn wanted(&self) -> Vec<(Road, Class)> {
        let hungry = |lane: &&Lane| self.queues.get(lane.index()).is_some_and(|queue| queue.room(self.limits).0 > 0);
        self.lanes.iter().filter(hungry).map(|lane| (lane.road, lane.class)).collect()
    }

    /// A destination that takes one at a time needs no more than the next one at hand.
    fn inflight_max(&self) -> usize {
        let max = usize::from(self.config.inflight_max.max(1));
        if destination::gathers(self.place.scheme) { max.min(2) } else { max }
    }

    /// When there is something to do without anything happening.
    fn due(&self, link: &dyn Connection) -> Option<Instant> {
        if let Some(rest) = self.store_rest {
            return Some(rest);
        }
        if !self.room(link) {
            return None;
        }
        let introduction = if self.dialect.introduces() { self.introductions.due(&*self.things) } else { None };
        if self.dialect.waits().is_some() {
            return introduction;
        }
        let paced = |lane: &Lane, deadline: Instant| {
            if self.is_backlog(*lane) { Some(deadline.max(self.pace.due()?)) } else { Some(deadline) }
        };
        let deadline = |lane: &Lane| paced(lane, self.queues.get(lane.index())?.deadline()?);
        self.lanes.iter().filter_map(deadline).chain(introduction).min()
    }

    /// Before a stop: hears out what is under way, and says that we go.
    async fn drain(&mut self, link: &mut dyn Connection) {
        if let Some(station) = self.station()
            && link.send(station.stopped).is_err()
        {
            return;
        }
        let done = async {
            while link.unconfirmed() > 0 || self.window.owing() > 0 {
                match link.next().await {
                    Event::Confirmed(token) => self.confirmed(token),
                    Event::Arrived(arrival) => self.last_arrived(&arrival.topic, &arrival.payload),
                    Event::Down { .. } => return,
                    _ => {}
                }
            }
        };
        if tokio::time::timeout(DRAIN_MAX, done).await.is_err() {
            debug!(upstream = self.config.name, "stopped with batches under way: they go again");
        }
        self.note();
    }

    fn scope(&self) -> Scope<'_> {
        Scope { gateway: &self.gateway, upstream: &self.config.name }
    }

    /// Only a broker can say that we vanished, so only to one is it said that we are there.
    fn station(&self) -> Option<Station> {
        if !self.place.scheme.is_mqtt() {
            return None;
        }
        self.dialect
            .station(self.scope(), Run { now_us: clock::now_us(), since_us: self.connected_us, epoch: self.epoch })
    }
}

// === impl End ===

impl End {
    const fn lost(reason: String) -> Self {
        Self::Lost { reason, rest: None }
    }
}

// === impl Names ===

impl Names {
    fn none() -> Self {
        Self { catalog: Arc::new(Catalog::new(0)), published: false, adopted: None }
    }
}

fn queues(filter: &Arc<Filter>, skip_pause: Duration, now: Instant) -> [Queue; Lane::COUNT] {
    std::array::from_fn(|_| Queue::new(Arc::clone(filter), skip_pause, now))
}

/// The pause and a random part of half of it, at most the longest pause.
fn jitter(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or_default();
    (pause + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)).min(PAUSE_MAX)
}
