//! One stream in one container to all its viewers, and the loop of a stream thread that visits them.
//!
//! The loop writes at once while the thread has time to spare; under load it visits one phase of the viewers at a time,
//! so that every viewer is written to once a merge window and ingest gets its turn between the batches.

use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use protocols::media::{Codec, Container, Mux, Tracks, Unit, mux};
use tokio::task::yield_now;
use tokio::time::sleep_until;

use super::audience::{self, ViewerInfo};
use super::gop::{CLOCK_HZ, Keep, Mark};
use super::hub::{Hub, SWEEP};
use super::info::StreamCounters;
use super::log::Log;
use super::viewer::{Closed, Flushed, Viewer};

/// Groups of viewers that are written to one after the other within a merge window: one for each so many viewers, since
/// every burst wakes readers, and many short bursts cost more than one long one.
const PHASE_VIEWERS: usize = 1000;
const PHASES_MAX: usize = 8;

/// Bytes that containers put behind a unit: the size of an FLV tag and the end of an HTTP chunk.
const TRAILER_MAX: usize = 6;

/// Viewers visited before ingest gets its turn.
const BATCH: usize = 64;

/// Between two visits of viewers that were blocked: thousands that take a little each wake the thread once.
const READY_STEP: Duration = Duration::from_millis(5);

/// Which viewers a pass visits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pick {
    All,
    /// Those the kernel takes more for again, or that have more to get than one visit brings.
    Ready,
    /// This one of so many groups.
    Phase(usize, usize),
    /// All, and their sessions' clocks.
    Sweep,
}

/// What went out and who went away.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Tally {
    /// What the stream's counters get of it.
    pub counters: StreamCounters,
    /// Viewers that went, of whatever reason.
    pub viewers_gone: usize,
    /// Some viewer has more to get at once.
    pub more: bool,
}

impl Tally {
    fn gone(&mut self, reason: Closed) {
        let counters = &mut self.counters;
        *match reason {
            Closed::Left | Closed::Parted => &mut counters.viewers_left,
            Closed::Stalled => &mut counters.viewers_stalled,
            Closed::Slow => &mut counters.viewers_slow,
            Closed::Fault => &mut counters.viewers_fault,
            Closed::Ended => &mut counters.viewers_ended,
            Closed::Dismissed => &mut counters.viewers_dismissed,
        } += 1;
        self.viewers_gone += 1;
    }
}

/// What the passes go by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Media clock ticks.
    pub lag_max: i64,
    pub stall_max: Duration,
}

impl Patience {
    pub(super) fn new(lag_max_ms: u64, stall_max: Duration) -> Self {
        let lag_max = i64::try_from(lag_max_ms).unwrap_or(i64::MAX / CLOCK_HZ).saturating_mul(CLOCK_HZ / 1000);
        Self { lag_max, stall_max }
    }
}

/// A stream in one container: muxed once, read by all its viewers.
pub(super) struct Rendition {
    pub(super) container: Container,
    mux: Box<dyn Mux>,
    log: Log,
    pub(super) viewers: Vec<Viewer>,
    scratch: BytesMut,
    /// The preamble of those who start at this offset.
    preamble: Option<(u64, Bytes)>,
    pub(super) idle_since: Option<Instant>,
}

impl Rendition {
    pub(super) fn new(container: Container, keep: Keep, tracks: &Tracks) -> Self {
        let mut mux = mux(container);
        mux.prime(tracks);
        Self {
            container,
            mux,
            log: Log::new(keep),
            viewers: Vec::new(),
            scratch: BytesMut::new(),
            preamble: None,
            idle_since: None,
        }
    }

    /// Muxes one unit for all; gives where in the log its media bytes lie, if in one piece.
    pub(super) fn append(&mut self, unit: &Unit, mark: Mark, tracks: &Tracks, patience: &Patience) -> Option<u64> {
        self.scratch.clear();
        self.mux.unit(unit, &mut self.scratch);
        if self.scratch.is_empty() {
            // The container cannot say it.
            return None;
        }
        let place = place(&self.scratch, &unit.data).map(|at| self.log.gop().head() + at as u64);
        let sealed = self.log.append(mark, unit.dts_90k, &self.scratch);
        if sealed || mark == Mark::Key || self.log.bound() > self.log.gop().tail() {
            self.evict(tracks, patience);
        }
        place
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    /// Lets go of what no healthy viewer and no joining one needs, and of what the limits demand.
    fn evict(&mut self, tracks: &Tracks, patience: &Patience) {
        let log = &self.log;
        let healthy = self.viewers.iter().filter(|v| v.cursor.lag(log) <= patience.lag_max);
        let needed = healthy.filter_map(|v| v.cursor.needs()).min().map_or(u64::MAX, |o| log.gop().tag_start(o));
        let tail = log.gop().floor().min(needed).max(log.bound());
        if tail <= log.gop().tail() {
            return;
        }
        for viewer in &mut self.viewers {
            if let Some(passed) = viewer.cursor.displace(log, tail) {
                viewer.displace();
                if passed {
                    viewer.cursor.interject(configs(&mut *self.mux, tracks, log.gop().head_dts()));
                }
            }
        }
        self.log.evict(tail);
    }

    /// Takes a viewer in at the newest key frame and writes to it.
    pub(super) fn join(&mut self, mut viewer: Viewer, round: &Round<'_>) -> Tally {
        viewer.cursor.start(&self.log);
        self.idle_since = None;
        self.viewers.push(viewer);
        let mut tally = Tally::default();
        let mut at = self.viewers.len() - 1;
        // At once, not with the next phase: a player's first picture is what its user waits for.
        self.visit(&mut at, Pick::All, round, &mut tally);
        tally
    }

    /// A configuration appeared or changed: what was prepared for joining viewers is stale.
    pub(super) fn tracks_changed(&mut self) {
        self.preamble = None;
    }

    /// Visits up to [`BATCH`] viewers from `at` on; `false` when there are no more.
    fn visit(&mut self, at: &mut usize, pick: Pick, round: &Round<'_>, tally: &mut Tally) -> bool {
        let step = if let Pick::Phase(_, phases) = pick { phases } else { 1 };
        for _ in 0..BATCH {
            if *at >= self.viewers.len() {
                return false;
            }
            match self.visit_one(*at, pick, round, tally) {
                Flushed::Gone(reason) => {
                    let viewer = self.viewers.swap_remove(*at);
                    tally.gone(reason);
                    viewer.close(&self.log, round.now, reason);
                    // The last viewer is here now; it may be visited twice this round, which does no harm.
                    continue;
                }
                Flushed::More => tally.more = true,
                Flushed::Blocked | Flushed::Done => {}
            }
            *at += step;
        }
        true
    }

    fn visit_one(&mut self, at: usize, pick: Pick, round: &Round<'_>, tally: &mut Tally) -> Flushed {
        let Some(viewer) = self.viewers.get_mut(at) else { return Flushed::Done };
        // One the kernel takes nothing for costs a look at its gate; its time runs on, once a sweep.
        if pick == Pick::Ready && !viewer.is_unfinished() || pick != Pick::Sweep && viewer.is_shut() {
            return Flushed::Done;
        }
        // The stream became H.265 in the dialect that this viewer does not know; it gets its own when it comes again.
        if viewer.hevc != self.container.hevc() && round.tracks.video_codec == Some(Codec::H265) {
            return Flushed::Gone(Closed::Ended);
        }
        let ticked = if pick == Pick::Sweep { viewer.tick(round.now) } else { Ok(()) };
        if let Err(reason) = ticked.and_then(|()| viewer.hear(round.now)) {
            return Flushed::Gone(reason);
        }
        if pick == Pick::Sweep && !viewer.is_unfinished() && !viewer.cursor.speaks() {
            // It gets what is new with its phase: one write a window and no more.
            return Flushed::Done;
        }
        let mut passed = viewer.cursor.waiting() && viewer.cursor.settle(&self.log) && viewer.greeted;
        if viewer.is_blocked()
            && viewer.cursor.lag(&self.log) > round.patience.lag_max
            && let Some(passes) = viewer.cursor.jump(&self.log)
        {
            passed |= passes;
            viewer.displace();
        }
        if let Some(bearable) = viewer.take_skip(round.now) {
            tally.counters.skips += 1;
            if !bearable {
                return Flushed::Gone(Closed::Slow);
            }
        }
        if passed {
            let at = self.log.gop().head_dts() - viewer.cursor.lag(&self.log);
            viewer.cursor.interject(configs(&mut *self.mux, round.tracks, at));
        }
        if !viewer.greeted
            && let Some(offset) = viewer.cursor.needs()
        {
            let cached = self.preamble.take().filter(|(at, _)| *at == offset);
            let at = self.log.gop().head_dts() - self.log.gop().lag(offset);
            let (_, preamble) =
                self.preamble.insert(cached.unwrap_or_else(|| (offset, self.mux.preamble(round.tracks, at))));
            if let Err(reason) = viewer.joined(at, round.now) {
                return Flushed::Gone(reason);
            }
            viewer.cursor.interject(preamble.clone());
            viewer.greeted = true;
        }
        viewer.write(&self.log, round.now, round.patience.stall_max, &mut tally.counters.bytes_out)
    }

    /// Closes one viewer; `false` when it is not here.
    pub(super) fn dismiss(&mut self, id: u64, now: Instant, tally: &mut Tally) -> bool {
        let Some(at) = self.viewers.iter().position(|viewer| viewer.account.id == id) else { return false };
        let viewer = self.viewers.swap_remove(at);
        tally.gone(Closed::Dismissed);
        viewer.close(&self.log, now, Closed::Dismissed);
        true
    }

    /// Adds what is known of each viewer.
    pub(super) fn describe(&self, thread: &str, into: &mut Vec<ViewerInfo>) {
        into.extend(self.viewers.iter().map(|viewer| audience::describe(viewer, self.container, &self.log, thread)));
    }

    /// Everybody goes.
    pub(super) fn close(&mut self, now: Instant, reason: Closed, tally: &mut Tally) {
        for viewer in self.viewers.drain(..) {
            tally.gone(reason);
            viewer.close(&self.log, now, reason);
        }
    }

    /// How far the viewer that is furthest behind is.
    pub(super) fn lag_ms(&self) -> u64 {
        let lag = self.viewers.iter().map(|viewer| viewer.cursor.lag(&self.log)).max().unwrap_or(0);
        u64::try_from(lag / (CLOCK_HZ / 1000)).unwrap_or(0)
    }

    /// Bytes held in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.log.bytes()
    }
}

/// Where in a muxed tag the unit's bytes lie: at its end, but for the few that a container puts behind.
fn place(tag: &[u8], data: &[u8]) -> Option<usize> {
    let last = tag.len().checked_sub(data.len())?;
    (last.saturating_sub(TRAILER_MAX)..=last).rev().find(|at| tag.get(*at..*at + data.len()) == Some(data))
}

/// What one pass goes by.
pub(super) struct Round<'a> {
    pub now: Instant,
    pub tracks: &'a Tracks,
    pub patience: Patience,
}

/// Where a pass is: rendition and viewer.
#[derive(Debug, Default)]
pub(super) struct Place {
    rendition: usize,
    viewer: usize,
    begun: bool,
}

/// Visits a batch of viewers; `false` at the end.
pub(super) fn visit(
    renditions: &mut [Rendition],
    place: &mut Place,
    pick: Pick,
    round: &Round<'_>,
    tally: &mut Tally,
) -> bool {
    let first = if let Pick::Phase(phase, _) = pick { phase } else { 0 };
    if !place.begun {
        place.begun = true;
        place.viewer = first;
    }
    let Some(rendition) = renditions.get_mut(place.rendition) else { return false };
    if !rendition.visit(&mut place.viewer, pick, round, tally) {
        place.rendition += 1;
        place.viewer = first;
    }
    place.rendition < renditions.len()
}

/// The bare configurations, for a viewer that skipped over a change.
fn configs(mux: &mut dyn Mux, tracks: &Tracks, dts_90k: i64) -> Bytes {
    let mut out = BytesMut::new();
    for config in [&tracks.video, &tracks.audio].into_iter().flatten() {
        let mut config = config.clone();
        config.dts_90k = dts_90k;
        config.pts_90k = dts_90k;
        mux.unit(&config, &mut out);
    }
    out.freeze()
}

/// Groups for so many viewers.
pub(super) fn phases(viewers: usize) -> usize {
    (viewers / PHASE_VIEWERS).clamp(1, PHASES_MAX)
}

/// The loop of a stream thread; ends with the thread.
pub(super) async fn run(hub: Rc<Hub>) {
    let mut sweep_at = Instant::now() + SWEEP;
    let mut tick_at = Instant::now();
    let mut ready_at = Instant::now();
    let mut phase = 0;
    let mut more = false;
    let mut alarm = pin!(sleep_until(sweep_at.into()));
    loop {
        let phases = hub.phases();
        let step = hub.window() / phases as u32;
        let merging = !step.is_zero();
        let dirty = hub.dirty();
        let now = Instant::now();
        if hub.is_empty() {
            // Nothing to look at: the thread sleeps until there is.
            (sweep_at, more) = (now + SWEEP, false);
        }
        let mut next = (!hub.is_empty()).then_some(sweep_at.max(now));
        let mut at_latest = |at: Instant| next = Some(next.map_or(at, |before: Instant| before.min(at)));
        if more {
            at_latest(now);
        } else if hub.bell.is_rung() {
            at_latest(ready_at);
        }
        if dirty {
            // Without a window at once: the news may have come while all were swept, and is not said again.
            at_latest(if merging { tick_at } else { hub.visit_at().unwrap_or(now) });
        }
        hub.rest(alarm.as_mut(), next, !merging || !dirty).await;
        let now = Instant::now();
        hub.measure(now);
        if now >= sweep_at && !hub.is_empty() {
            hub.late(now.duration_since(sweep_at));
            more = pass(&hub, Pick::Sweep).await;
            hub.sweep(now);
            sweep_at = now + SWEEP;
        } else if merging && hub.dirty() && now >= tick_at {
            if dirty {
                hub.late(now.duration_since(tick_at));
            }
            more |= pass(&hub, Pick::Phase(phase % phases, phases)).await;
            phase = (phase + 1) % phases;
            tick_at = (tick_at + step).max(now + step / 2);
        } else if !merging && hub.dirty() && hub.visit_at().is_none_or(|at| now >= at) {
            more = pass(&hub, Pick::All).await;
        } else if more || (hub.bell.is_rung() && now >= ready_at) {
            hub.bell.reset();
            more = pass(&hub, Pick::Ready).await;
            ready_at = now + READY_STEP;
        }
    }
}

/// Visits the picked viewers of all sources; whether some have more to get at once.
async fn pass(hub: &Hub, pick: Pick) -> bool {
    let mut more = false;
    for source in hub.due(pick, Instant::now()) {
        let mut place = Place::default();
        loop {
            let (tally, goes_on) = source.borrow_mut().flush(&mut place, pick, hub.rules.patience);
            more |= tally.more;
            hub.count(&tally);
            if !goes_on {
                break;
            }
            yield_now().await;
        }
    }
    more
}
