//! The second way out of a stream, beside the viewers of the fan-out: units, to a task of the control plane (HLS,
//! recording, WebRTC). The stream's thread never waits for one: what finds the queue full is left out up to the next
//! key frame, and said.
//!
//! Must not be in here: containers, sockets, and what is done with the units.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use protocols::Refusal;
use protocols::media::{Kind, StreamName, Tracks, Unit};
use tokio::sync::{mpsc, oneshot};

use super::gop::Mark;
use super::info::TapInfo;
use super::{Order, StreamCore};

/// Places in the queue beyond the units: the configurations and the words about a gap.
const WORDS_MAX: usize = 8;

/// What the units are for: shown beside the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TapKind {
    Hls,
    Record,
    Relay,
    Rtsp,
    Transcode,
    WebRtc,
}

/// What a tap may hold back while its reader is busy.
#[derive(Debug, Clone, Copy)]
pub struct TapRules {
    pub kind: TapKind,
    /// Units in the queue.
    pub units_max: usize,
    /// Media bytes in the queue.
    pub bytes_max: u64,
}

/// What comes out of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tapped {
    /// Times are the stream's own: monotonic in each track, continuous across publishers.
    Unit(Unit),
    /// The reader was too slow: this much was left out. The configurations and a key frame follow.
    Skipped { units: u64, bytes: u64 },
    /// A publisher has the stream (again).
    Published,
    /// The publisher went; another may come within the grace time.
    Unpublished,
}

/// The reader's end. Dropping it leaves the stream.
#[derive(Debug)]
pub struct Tap {
    /// The configurations and what was published since the newest key frame.
    backlog: VecDeque<Unit>,
    incoming: mpsc::Receiver<Tapped>,
    shared: Arc<Shared>,
}

// === impl Tap ===

impl Tap {
    /// The next thing; `None` when the stream has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Tapped> {
        if let Some(unit) = self.backlog.pop_front() {
            return Some(Tapped::Unit(unit));
        }
        let tapped = self.incoming.recv().await?;
        if let Tapped::Unit(unit) = &tapped {
            self.shared.bytes.fetch_sub(unit.data.len() as u64, Ordering::Relaxed);
        }
        Some(tapped)
    }

    /// How many people watch the stream through this tap: they count as its viewers.
    pub fn set_viewers(&self, viewers: usize) {
        self.shared.viewers.store(viewers, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// In the queue.
    bytes: AtomicU64,
    viewers: AtomicUsize,
}

impl StreamCore {
    /// Opens a tap: first come the configurations and what was published since the newest key frame.
    pub async fn tap(&self, stream: &StreamName, rules: TapRules) -> Result<Tap, Refusal> {
        let missing = || Refusal::NotFound(format!("stream {stream}"));
        let thread = self.shared.directory().get(stream).map(|home| home.thread).ok_or_else(missing)?;
        let (reply, opened) = oneshot::channel();
        let order = Order::Tap { stream: stream.clone(), rules, reply };
        self.send(thread, order).await.map_err(|_| Refusal::Unavailable("the streaming core stops".to_owned()))?;
        opened.await.ok().flatten().ok_or_else(missing)
    }
}

// === the stream's end ===

/// The stream's end of a tap.
#[derive(Debug)]
pub(super) struct Spout {
    rules: TapRules,
    outgoing: mpsc::Sender<Tapped>,
    shared: Arc<Shared>,
    /// What was left out since the queue was full.
    gap: Option<(u64, u64)>,
    /// A change of publisher that found the queue full.
    unsaid: Option<Tapped>,
    skipped_units: u64,
}

impl Spout {
    /// A tap that begins with `backlog`.
    pub(super) fn open(rules: TapRules, backlog: VecDeque<Unit>) -> (Self, Tap) {
        let (outgoing, incoming) = mpsc::channel(rules.units_max.saturating_add(WORDS_MAX));
        let shared = Arc::new(Shared::default());
        let spout = Self { rules, outgoing, shared: shared.clone(), gap: None, unsaid: None, skipped_units: 0 };
        (spout, Tap { backlog, incoming, shared })
    }

    /// Whether G.711 is played there: it is WebRTC's own (RFC 7874, 3).
    pub(super) fn plays_g711(&self) -> bool {
        self.rules.kind == TapKind::WebRtc
    }

    pub(super) fn is_closed(&self) -> bool {
        self.outgoing.is_closed()
    }

    pub(super) fn viewers(&self) -> usize {
        self.shared.viewers.load(Ordering::Relaxed)
    }

    pub(super) fn info(&self) -> TapInfo {
        TapInfo {
            kind: self.rules.kind,
            viewers: self.viewers(),
            queued_bytes: self.shared.bytes.load(Ordering::Relaxed),
            skipped_units: self.skipped_units,
        }
    }

    /// Offers one unit, or leaves it out.
    pub(super) fn offer(&mut self, mark: Mark, unit: &Unit, tracks: &Tracks) {
        if let Some(word) = self.unsaid.take() {
            self.say(word);
        }
        let starts = mark == Mark::Key || (mark == Mark::Audio && !tracks.has_video());
        if self.gap.is_some() && !(starts && self.has_room(unit) && self.close_gap(unit, tracks)) {
            self.leave_out(unit);
            return;
        }
        if self.has_room(unit) {
            self.send(unit.clone());
        } else {
            self.leave_out(unit);
        }
    }

    /// Says that a publisher came or went.
    pub(super) fn say(&mut self, word: Tapped) {
        if let Err(mpsc::error::TrySendError::Full(word)) = self.outgoing.try_send(word) {
            self.unsaid = Some(word);
        }
    }

    /// Configurations and words keep their own places.
    fn has_room(&self, unit: &Unit) -> bool {
        let bytes = self.shared.bytes.load(Ordering::Relaxed) + unit.data.len() as u64;
        self.outgoing.capacity() > WORDS_MAX && bytes <= self.rules.bytes_max
    }

    fn close_gap(&mut self, unit: &Unit, tracks: &Tracks) -> bool {
        let Some((units, bytes)) = self.gap else { return true };
        if self.outgoing.try_send(Tapped::Skipped { units, bytes }).is_err() {
            return false;
        }
        self.gap = None;
        for config in tracks.head(unit.dts_90k, unit.dts_90k).filter(|config| config.kind == Kind::Config) {
            self.send(config);
        }
        true
    }

    fn send(&mut self, unit: Unit) {
        let len = unit.data.len() as u64;
        // The reader takes it off again: it must not do so first.
        self.shared.bytes.fetch_add(len, Ordering::Relaxed);
        if self.outgoing.try_send(Tapped::Unit(unit)).is_err() {
            self.shared.bytes.fetch_sub(len, Ordering::Relaxed);
        }
    }

    fn leave_out(&mut self, unit: &Unit) {
        let (units, bytes) = self.gap.unwrap_or_default();
        self.gap = Some((units + 1, bytes + unit.data.len() as u64));
        self.skipped_units += 1;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocols::media::{Codec, Track};

    use super::*;

    const RULES: TapRules = TapRules { kind: TapKind::Record, units_max: 6, bytes_max: 1000 };

    fn video(kind: Kind, n: i64, len: usize) -> Unit {
        let data = Bytes::from(vec![n as u8; len]);
        Unit { track: Track::Video, codec: Codec::H264, dts_90k: n, pts_90k: n, kind, data }
    }

    async fn drained(tap: &mut Tap) -> Vec<Tapped> {
        let mut all = Vec::new();
        while let Ok(Some(tapped)) = tokio::time::timeout(std::time::Duration::ZERO, tap.next()).await {
            all.push(tapped);
        }
        all
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed_and_goes_on_at_a_key_frame() {
        let (mut spout, mut tap) = Spout::open(RULES, VecDeque::new());
        let mut tracks = Tracks::default();
        tracks.note(&video(Kind::Config, 0, 30));
        let mut offer = |mark, unit: &Unit| spout.offer(mark, unit, &tracks);
        offer(Mark::Key, &video(Kind::Key, 1, 600));
        offer(Mark::Video, &video(Kind::Delta, 2, 600));
        offer(Mark::Video, &video(Kind::Delta, 3, 10));
        assert_eq!(drained(&mut tap).await, [Tapped::Unit(video(Kind::Key, 1, 600))]);
        offer(Mark::Video, &video(Kind::Delta, 4, 10));
        offer(Mark::Key, &video(Kind::Key, 5, 20));
        offer(Mark::Video, &video(Kind::Delta, 6, 20));
        let seen = drained(&mut tap).await;
        assert_eq!(seen.first(), Some(&Tapped::Skipped { units: 3, bytes: 620 }));
        let kinds: Vec<_> = seen
            .iter()
            .filter_map(|t| if let Tapped::Unit(u) = t { Some((u.kind, u.dts_90k)) } else { None })
            .collect();
        let video_kinds: Vec<_> = kinds.into_iter().filter(|(_, dts)| *dts >= 5).collect();
        assert!(video_kinds.ends_with(&[(Kind::Config, 5), (Kind::Key, 5), (Kind::Delta, 6)]), "{video_kinds:?}");
        assert_eq!((spout.info().skipped_units, spout.info().queued_bytes), (3, 0));
    }

    #[tokio::test]
    async fn units_are_bounded_and_words_are_not_lost() {
        let (mut spout, mut tap) = Spout::open(RULES, VecDeque::new());
        let tracks = Tracks::default();
        for n in 0..100 {
            spout.offer(Mark::Key, &video(Kind::Key, n, 1), &tracks);
        }
        for _ in 0..20 {
            spout.say(Tapped::Unpublished);
        }
        assert!(drained(&mut tap).await.len() <= RULES.units_max + WORDS_MAX);
        spout.offer(Mark::Key, &video(Kind::Key, 100, 1), &tracks);
        let seen = drained(&mut tap).await;
        assert_eq!(seen.first(), Some(&Tapped::Unpublished), "said as soon as there was room");
        assert!(matches!(seen.get(1), Some(Tapped::Skipped { units: 94, .. })), "{seen:?}");
        drop(tap);
        assert!(spout.is_closed());
    }
}
