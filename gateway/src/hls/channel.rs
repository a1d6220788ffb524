//! One stream that is watched as HLS: its task, its viewers, and those who wait for what comes next.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocols::Refusal;
use protocols::hls::Piece;
use protocols::media::StreamName;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::debug;

use super::muxer::{Muxer, Step};
use super::ring::{Over, Ring};
use super::{FIRST_PATIENCE, Rules, Shared};
use crate::clock;
use crate::stream::{Tap, Tapped};

/// Viewers that are told apart; more are one.
const VIEWERS_MAX: usize = 10_000;
/// A viewer that asked for no playlist in this many target durations is gone.
const VIEWER_TARGETS: u32 = 3;
/// Units taken off the tap before anybody is told of them.
const BATCH_MAX: usize = 1_024;
/// A viewer that was closed gets no playlist for so long: a player that does not give up comes back as a new one.
const CLOSED_FOR: Duration = Duration::from_secs(60);
/// Closed viewers that are remembered; beyond them the list begins anew.
const CLOSED_MAX: usize = 1_000;
/// How often viewers are counted and idleness is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// Parts a second a stream may have on the average over its life: numbers begin at the time, so that none comes twice.
const PARTS_A_SECOND: u64 = 100;

/// Whether what is asked for is there.
#[derive(Debug)]
pub(super) enum Verdict<T> {
    Ready(T),
    NotYet,
    Never(Refusal),
}

#[derive(Debug)]
pub(super) struct Channel {
    ring: Mutex<Ring>,
    changes: watch::Sender<()>,
    audience: Mutex<Audience>,
    /// The first numbers of segments and of parts.
    numbers: (u64, u64),
}

/// Who asks.
#[derive(Debug)]
struct Audience {
    last: Instant,
    viewers: HashMap<u64, Viewer>,
    /// Whose media playlist was asked for last on a connection, and from an address: pieces do not say who wants them.
    connections: HashMap<u64, u64>,
    addresses: HashMap<IpAddr, u64>,
    closed: HashMap<u64, Instant>,
}

/// One viewer, as its playlists tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Viewer {
    /// When it last asked for a playlist.
    last: Instant,
    pub(super) peer: Option<SocketAddr>,
    /// Microseconds since 1970 UTC.
    pub(super) since_us: i64,
    pub(super) got: Got,
}

/// What a viewer got.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Got {
    /// Of playlists and pieces.
    pub(super) bytes: u64,
    /// Init segments, segments and parts.
    pub(super) pieces: u64,
    /// The last segment or part.
    newest: Option<Piece>,
    /// Microseconds since 1970 UTC; 0: nothing yet.
    pub(super) last_us: i64,
}

/// Who asks: the name of the connection, and its peer.
pub(super) type Asker = (u64, Option<SocketAddr>);

impl Channel {
    pub(super) fn new(rules: &Rules, now_us: i64) -> Self {
        let seconds = u64::try_from(now_us / 1_000_000).unwrap_or(0);
        let numbers = (seconds, seconds.saturating_mul(PARTS_A_SECOND));
        Self {
            ring: Mutex::new(Ring::new(rules, numbers.1)),
            changes: watch::channel(()).0,
            audience: Mutex::new(Audience::new()),
            numbers,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.ring().over().is_some()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.ring().bytes()
    }

    pub(super) fn viewers(&self) -> usize {
        self.audience().viewers.len()
    }

    /// Somebody asks for a playlist.
    pub(super) fn asked(&self, viewer: Option<u64>, (player, peer): Asker) -> Result<(), Refusal> {
        let now = Instant::now();
        let mut audience = self.audience();
        if viewer.and_then(|viewer| audience.closed.get(&viewer)).is_some_and(|at| at.elapsed() < CLOSED_FOR) {
            return Err(Refusal::Forbidden("this viewer was closed".to_owned()));
        }
        audience.last = now;
        let room = audience.viewers.len() < VIEWERS_MAX;
        match viewer.and_then(|viewer| audience.viewers.get_mut(&viewer)) {
            Some(known) => known.last = now,
            None if room => {
                let new = Viewer { last: now, peer, since_us: clock::now_us(), got: Got::default() };
                audience.viewers.extend(viewer.map(|viewer| (viewer, new)));
            }
            None => {}
        }
        if let Some(viewer) = viewer.filter(|_| audience.connections.len() < VIEWERS_MAX) {
            audience.connections.insert(player, viewer);
            audience.addresses.extend(peer.map(|peer| (peer.ip(), viewer)));
        }
        Ok(())
    }

    /// Somebody gets a playlist or a piece.
    pub(super) fn served(&self, (player, peer): Asker, piece: Piece, bytes: u64) {
        let mut audience = self.audience();
        let own = audience.connections.get(&player).copied();
        // On a connection that no playlist came over: a player that has several, if there is but one at its address.
        let viewer = own.or_else(|| audience.addresses.get(&peer?.ip()).copied());
        let Some(Viewer { got, .. }) = viewer.and_then(|viewer| audience.viewers.get_mut(&viewer)) else { return };
        got.bytes += bytes;
        got.last_us = clock::now_us();
        if !matches!(piece, Piece::Multivariant | Piece::Media { .. }) {
            got.pieces += 1;
        }
        if matches!(piece, Piece::Segment(_) | Piece::Part(_)) {
            got.newest = Some(piece);
        }
    }

    /// Who watches, by number, and how far what each got is behind the newest part, in 1/90,000 s.
    pub(super) fn audience_now(&self) -> Vec<(u64, Viewer, i64)> {
        let all: Vec<_> = self.audience().viewers.iter().map(|(viewer, known)| (*viewer, *known)).collect();
        let ring = self.ring();
        let behind = |known: &Viewer| known.got.newest.map_or(0, |piece| ring.behind_90k(piece));
        all.into_iter().map(|(viewer, known)| (viewer, known, behind(&known))).collect()
    }

    /// One viewer is to go; `false` when there is none of this number.
    pub(super) fn dismiss(&self, viewer: u64) -> bool {
        let mut audience = self.audience();
        if audience.viewers.remove(&viewer).is_none() {
            return false;
        }
        if audience.closed.len() >= CLOSED_MAX {
            audience.closed.clear();
        }
        audience.closed.insert(viewer, Instant::now());
        true
    }

    /// What is there at once or not at all.
    pub(super) fn now<T>(&self, find: impl Fn(&mut Ring) -> Option<T>) -> Result<T, Refusal> {
        self.audience().last = Instant::now();
        find(&mut self.ring()).ok_or_else(|| Refusal::NotFound("it is no longer kept, or never was".to_owned()))
    }

    /// What may still have to come. `waiting` has a place for each request that waits.
    pub(super) async fn wait<T>(
        &self,
        waiting: &Semaphore,
        find: impl Fn(&mut Ring) -> Verdict<T>,
    ) -> Result<T, Refusal> {
        let mut changes = self.changes.subscribe();
        let (mut place, mut deadline) = (None, None);
        loop {
            changes.mark_unchanged();
            let (verdict, over, patience) = {
                let mut ring = self.ring();
                let verdict = find(&mut ring);
                (verdict, ring.over(), patience(&ring))
            };
            match (verdict, over) {
                (Verdict::Ready(found), _) => return Ok(found),
                (Verdict::Never(refusal), _) => return Err(refusal),
                (Verdict::NotYet, Some(over)) => return Err(refusal_of(over)),
                (Verdict::NotYet, None) => {}
            }
            if place.is_none() {
                let full = |_| Refusal::Limit("requests that wait".to_owned());
                place = Some(waiting.try_acquire().map_err(full)?);
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
            let late = |_| Refusal::Unavailable("the stream brings nothing new".to_owned());
            // The sender is our own: it does not go while we wait.
            drop(tokio::time::timeout_at(deadline, changes.changed()).await.map_err(late)?);
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn audience(&self) -> MutexGuard<'_, Audience> {
        self.audience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Viewers that still ask, and how long ago anybody asked for anything.
    fn count(&self) -> (usize, Duration) {
        let patience = VIEWER_TARGETS * Duration::from_secs(self.ring().target_seconds().unsigned_abs());
        let mut audience = self.audience();
        let Audience { viewers, connections, addresses, .. } = &mut *audience;
        viewers.retain(|_, viewer| viewer.last.elapsed() <= patience.max(3 * EVERY));
        connections.retain(|_, viewer| viewers.contains_key(viewer));
        addresses.retain(|_, viewer| viewers.contains_key(viewer));
        (audience.viewers.len(), audience.last.elapsed())
    }

    fn apply(&self, steps: &mut Vec<Step>, anchor_us: Option<i64>, bytes_max: u64) {
        if steps.is_empty() {
            return;
        }
        {
            let mut ring = self.ring();
            ring.bytes_max = bytes_max;
            steps.drain(..).for_each(|step| ring.apply(step, anchor_us));
        }
        self.changes.send_replace(());
    }

    fn end(&self, over: Over) {
        self.ring().end(over);
        self.changes.send_replace(());
    }
}

impl Audience {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            viewers: HashMap::new(),
            connections: HashMap::new(),
            addresses: HashMap::new(),
            closed: HashMap::new(),
        }
    }
}

/// How long a request waits (rfc8216bis, 6.2.5.2: three target durations).
fn patience(ring: &Ring) -> Duration {
    let reloads = Duration::from_secs(3 * ring.target_seconds().unsigned_abs());
    if ring.is_empty() { reloads.max(FIRST_PATIENCE) } else { reloads }
}

fn refusal_of(over: Over) -> Refusal {
    match over {
        Over::Ended => Refusal::NotFound("the stream has ended".to_owned()),
        Over::Unplayable => Refusal::NotFound("the stream has no codec that HLS carries".to_owned()),
        Over::GivenUp => Refusal::Unavailable("the stream is no longer kept".to_owned()),
    }
}

/// Runs until the stream has ended or nobody asked for a while.
pub(super) async fn run(
    shared: Arc<Shared>,
    stream: StreamName,
    channel: Arc<Channel>,
    tap: Tap,
    expected: (bool, bool),
) {
    debug!(%stream, "HLS begins");
    let (segment, part) = channel.numbers;
    let muxer = Muxer::new(&shared.rules, expected, segment, part);
    let over = tokio::select! {
        over = mux(&shared, &channel, tap, muxer) => over,
        () = shared.tasks.stopping() => Over::GivenUp,
    };
    channel.end(over);
    if over != Over::GivenUp {
        // Those who watch shall see the end.
        let idle = async {
            while channel.count().1 < shared.rules.idle {
                tokio::time::sleep(EVERY).await;
            }
        };
        tokio::select! {
            () = idle => {},
            () = shared.tasks.stopping() => {},
        }
    }
    shared.close(&stream, &channel);
    debug!(%stream, "HLS ends");
}

async fn mux(shared: &Shared, channel: &Channel, mut tap: Tap, mut muxer: Muxer) -> Over {
    let mut every = tokio::time::interval(EVERY);
    let mut steps = Vec::new();
    loop {
        tokio::select! {
            tapped = tap.next() => {
                let bytes_max = shared.share();
                muxer.segment_bytes_max = bytes_max / 4;
                let more = take(&mut tap, tapped, &mut muxer, &mut steps).await;
                channel.apply(&mut steps, more.anchor_us, bytes_max);
                if more.ended {
                    return Over::Ended;
                }
            }
            _ = every.tick() => {
                let (viewers, idle) = channel.count();
                tap.set_viewers(viewers);
                if idle >= shared.rules.idle {
                    return Over::GivenUp;
                }
            }
        }
        if channel.is_over() {
            return Over::Unplayable;
        }
    }
}

/// What a batch of units said.
struct Taken {
    /// Microseconds since 1970 at the stream's time 0, by the newest unit: what was kept since the last key frame comes all
    /// at once and says nothing about when it was made.
    anchor_us: Option<i64>,
    ended: bool,
}

/// Takes this and everything else that is there already.
async fn take(tap: &mut Tap, first: Option<Tapped>, muxer: &mut Muxer, steps: &mut Vec<Step>) -> Taken {
    let (mut tapped, mut newest_90k) = (first, None);
    for taken in 1.. {
        match tapped {
            Some(Tapped::Unit(unit)) => {
                newest_90k = Some(unit.dts_90k);
                muxer.unit(unit, steps);
            }
            Some(Tapped::Skipped { .. }) => muxer.gap(steps),
            Some(Tapped::Published) => {}
            Some(Tapped::Unpublished) => muxer.flush(steps),
            None => {
                muxer.flush(steps);
                return Taken { anchor_us: newest_90k.map(anchor), ended: true };
            }
        }
        if taken >= BATCH_MAX {
            break;
        }
        tapped = tokio::select! {
            biased;
            tapped = tap.next() => tapped,
            () = std::future::ready(()) => break,
        };
    }
    Taken { anchor_us: newest_90k.map(anchor), ended: false }
}

fn anchor(newest_90k: i64) -> i64 {
    clock::now_us().saturating_sub(newest_90k.saturating_mul(100) / 9)
}
