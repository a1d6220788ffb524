//! HLS and low-latency HLS from memory. Nothing is muxed until somebody asks for a stream's playlist; some seconds after
//! the last request everything of it is given up again. Nothing is written to disk.
//!
//! `channel.rs` runs one stream: its tap, its idle time, who waits for what comes next; `muxer.rs` cuts units into parts
//! and segments; `ring.rs` keeps them within bounds and tells playlists of them. Must not be in here: HTTP and the text of
//! playlists, which are `protocols::hls`'s, and admission.

mod channel;
mod muxer;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocols::Refusal;
use protocols::hls::{Body, Content, Piece};
use protocols::media::StreamName;
use tokio::sync::Semaphore;

use self::channel::{Asker, Channel, Verdict, Viewer};
use crate::clock;
use crate::config;
use crate::metrics::{Figure, Metrics, Sample};
use crate::stream::{StreamCore, TapKind, TapRules, ViewerInfo};
use crate::threads::Tasks;

/// Memory below which a stream is not worth opening: about a segment of an ordinary camera, bytes.
const SHARE_MIN: u64 = 1024 * 1024;
/// How long the first playlist of a stream may be waited for: its longest segment, and a little.
const FIRST_PATIENCE: Duration = Duration::from_secs(12);
/// Units a stream may hold back while its segments are cut: 10 s of video and audio.
const TAP_UNITS_MAX: usize = 1_024;

/// The streams that are watched as HLS; clones share them.
#[derive(Clone)]
pub struct Hls {
    shared: Arc<Shared>,
}

struct Shared {
    rules: Rules,
    streams: StreamCore,
    tasks: Tasks,
    metrics: Metrics,
    channels: Mutex<HashMap<StreamName, Arc<Channel>>>,
    /// Requests that may wait for something to come.
    waiting: Semaphore,
}

/// The settings, in the shapes they are used in.
#[derive(Debug, Clone, Copy)]
struct Rules {
    part_90k: i64,
    segment_90k: i64,
    /// What a playlist names; as much again is kept.
    window_90k: i64,
    stream_bytes: u64,
    total_bytes: u64,
    idle: Duration,
}

impl Hls {
    pub fn new(config: &config::Hls, streams: StreamCore, tasks: Tasks, metrics: Metrics) -> Self {
        let ticks = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX / 90).saturating_mul(90);
        let rules = Rules {
            part_90k: ticks(config.part_ms),
            segment_90k: ticks(config.segment_ms),
            window_90k: ticks(config.window_seconds.saturating_mul(1_000)),
            stream_bytes: config.stream_kib.saturating_mul(1_024),
            total_bytes: config.total_mib.saturating_mul(1_024 * 1_024),
            idle: Duration::from_secs(config.idle_seconds),
        };
        let waiting = Semaphore::new(config.waiting_max);
        let channels = Mutex::default();
        let shared = Arc::new(Shared { rules, streams, tasks, metrics, channels, waiting });
        let sampled = Arc::downgrade(&shared);
        shared.metrics.sample(move || sampled.upgrade().map(|shared| shared.samples()).unwrap_or_default());
        Self { shared }
    }

    /// Whether the stream is kept here, also for a while after its end.
    pub fn holds(&self, stream: &StreamName) -> bool {
        self.shared.channels().contains_key(stream)
    }

    /// Who watches the stream as HLS, as its playlists tell: sessions, not connections.
    pub fn viewers(&self, stream: &StreamName) -> Vec<ViewerInfo> {
        let channel = self.shared.channels().get(stream).cloned();
        let all = channel.map(|channel| channel.audience_now()).unwrap_or_default();
        let mut all: Vec<ViewerInfo> =
            all.into_iter().map(|(viewer, known, behind)| listed(viewer, known, behind)).collect();
        all.sort_by_key(|viewer| viewer.since_us);
        all
    }

    /// Gives a viewer no more playlists; `false` when there is none of this number.
    pub fn close_viewer(&self, stream: &StreamName, id: u64) -> bool {
        let channel = self.shared.channels().get(stream).cloned();
        channel.is_some_and(|channel| {
            let own = channel.audience_now().into_iter().find(|(viewer, ..)| number_of(*viewer) == id);
            own.is_some_and(|(viewer, ..)| channel.dismiss(viewer))
        })
    }

    /// A playlist or a piece, once it is there.
    pub async fn fetch(self, stream: StreamName, piece: Piece, carried: String, asker: Asker) -> Result<Body, Refusal> {
        let shared = &self.shared;
        shared.metrics.add(Figure::HlsRequests, &[name_of(piece)], 1);
        let outcome = match piece {
            Piece::Multivariant | Piece::Media { .. } => match shared.open(&stream).await {
                Ok(channel) => shared.piece(&channel, piece, &carried, asker).await,
                Err(refusal) => Err(refusal),
            },
            Piece::Init(_) | Piece::Segment(_) | Piece::Part(_) => {
                let channel = shared.channels().get(&stream).cloned();
                match channel {
                    Some(channel) => shared.piece(&channel, piece, &carried, asker).await,
                    None => Err(Refusal::NotFound(format!("stream {stream} is not kept"))),
                }
            }
        };
        if let Err(refusal) = &outcome {
            shared.metrics.add(Figure::HlsRefused, &[crate::intake::reason(refusal)], 1);
        }
        outcome
    }
}

impl Shared {
    fn channels(&self) -> MutexGuard<'_, HashMap<StreamName, Arc<Channel>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each stream may keep: all together stay within their budget whatever each of them does.
    fn share(&self) -> u64 {
        let streams = self.channels().len().max(1) as u64;
        self.rules.stream_bytes.min(self.rules.total_bytes / streams)
    }

    /// The stream's channel; the first request opens its tap.
    async fn open(self: &Arc<Self>, stream: &StreamName) -> Result<Arc<Channel>, Refusal> {
        let existing = self.channels().get(stream).cloned();
        if let Some(channel) = existing.as_ref().filter(|channel| !channel.is_over()) {
            return Ok(Arc::clone(channel));
        }
        let rules = TapRules { kind: TapKind::Hls, units_max: TAP_UNITS_MAX, bytes_max: self.share() / 4 };
        let tap = match (self.streams.tap(stream, rules).await, existing) {
            (Ok(tap), _) => tap,
            // It has ended, and is kept for those who have not seen the end.
            (Err(_), Some(ended)) => return Ok(ended),
            (Err(refusal), None) => return Err(refusal),
        };
        let hint = self.streams.list().into_iter().find(|info| info.name == stream.as_str());
        let tracks = hint.map_or((false, false), |info| (info.video.is_some(), info.audio.is_some()));
        let channel = {
            let mut channels = self.channels();
            // Another request may have been quicker: its tap stays, ours goes.
            if let Some(other) = channels.get(stream).filter(|other| !other.is_over()) {
                return Ok(Arc::clone(other));
            }
            let replaces = channels.contains_key(stream);
            if !replaces && (channels.len() as u64 + 1).saturating_mul(SHARE_MIN) > self.rules.total_bytes {
                return Err(Refusal::Limit(format!("{} streams as HLS", channels.len())));
            }
            let channel = Arc::new(Channel::new(&self.rules, clock::now_us()));
            channels.insert(stream.clone(), Arc::clone(&channel));
            channel
        };
        let run = channel::run(Arc::clone(self), stream.clone(), Arc::clone(&channel), tap, tracks);
        self.tasks.spawn("hls", run);
        Ok(channel)
    }

    /// Forgets the channel, unless another has taken its place.
    fn close(&self, stream: &StreamName, channel: &Arc<Channel>) {
        let mut channels = self.channels();
        if channels.get(stream).is_some_and(|other| Arc::ptr_eq(other, channel)) {
            channels.remove(stream);
        }
        if channels.is_empty() {
            channels.shrink_to_fit();
        }
    }

    async fn piece(&self, channel: &Channel, piece: Piece, carried: &str, asker: Asker) -> Result<Body, Refusal> {
        let media = |chunks| Body { content: Content::Media, chunks };
        let playlist = |text| Body { content: Content::Playlist, chunks: vec![text] };
        let body = match piece {
            Piece::Multivariant => {
                channel.asked(None, asker)?;
                let there = channel.wait(&self.waiting, |ring| ring.multivariant(carried, asker.0).into());
                playlist(there.await?)
            }
            Piece::Media { viewer, wait } => {
                channel.asked(Some(viewer), asker)?;
                playlist(channel.wait(&self.waiting, |ring| ring.media(carried, wait)).await?)
            }
            Piece::Init(number) => media(vec![channel.now(|ring| ring.init(number))?]),
            Piece::Segment(number) => media(channel.now(|ring| ring.segment(number))?),
            Piece::Part(number) => media(vec![channel.wait(&self.waiting, |ring| ring.part(number)).await?]),
        };
        let bytes = body.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        channel.served(asker, piece, bytes);
        self.metrics.add(Figure::HlsSent, &[], bytes);
        Ok(body)
    }

    fn samples(&self) -> Vec<Sample> {
        let channels: Vec<_> = self.channels().iter().map(|(name, channel)| (name.clone(), channel.clone())).collect();
        let mut samples = vec![Sample::new(Figure::HlsStreams, &[], channels.len() as f64)];
        for (name, channel) in channels {
            samples.push(Sample::new(Figure::HlsViewers, &[name.as_str()], channel.viewers() as f64));
            samples.push(Sample::new(Figure::HlsBytes, &[name.as_str()], channel.bytes() as f64));
        }
        samples
    }
}

impl fmt::Debug for Hls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hls").field("rules", &self.shared.rules).finish_non_exhaustive()
    }
}

impl<T> From<Option<T>> for Verdict<T> {
    fn from(found: Option<T>) -> Self {
        found.map_or(Self::NotYet, Self::Ready)
    }
}

/// Numbers of viewers begin here, above all others and within what JSON holds exactly.
const NUMBERS: u64 = 1 << 52;

fn number_of(viewer: u64) -> u64 {
    NUMBERS | viewer & (NUMBERS - 1)
}

fn listed(viewer: u64, Viewer { peer, since_us, got, .. }: Viewer, behind_90k: i64) -> ViewerInfo {
    let (id, container, hevc) = (number_of(viewer), "hls", "enhanced");
    let (bytes, tags, lag_ms, written_us) = (got.bytes, got.pieces, (behind_90k / 90).unsigned_abs(), got.last_us);
    let (thread, skips) = (String::new(), 0);
    ViewerInfo { id, peer, container, hevc, thread, since_us, bytes, tags, lag_ms, skips, written_us }
}

fn name_of(piece: Piece) -> &'static str {
    match piece {
        Piece::Multivariant => "multivariant",
        Piece::Media { wait: None, .. } => "media",
        Piece::Media { wait: Some(_), .. } => "media_blocking",
        Piece::Init(_) => "init",
        Piece::Segment(_) => "segment",
        Piece::Part(_) => "part",
    }
}
