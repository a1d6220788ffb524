//! Units of a stream to fragments. When to cut is its user's affair; how long each unit lasts is known here, from the
//! next one of its track.

use bytes::Bytes;

use super::{Description, Run, Sample, fragment};
use crate::media::{Kind, Track, Unit};

/// Audio that is this close to where the packet before it ends is put right there, in milliseconds: FLV and RTMP tell
/// whole ones, and decoders want no gaps.
const SNAP_MS: u32 = 3;

/// Ticks a second of a unit's times.
const CLOCK: i128 = 90_000;

/// Collects units. Holds back the newest of each track, whose duration the next one tells.
#[derive(Debug)]
pub struct Fragmenter {
    lanes: Vec<Lane>,
    sequence: u32,
}

/// A fragment and what a playlist or an index says of it. Times are the stream's, of the video where there is any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    pub data: Bytes,
    pub start_90k: i64,
    pub duration_90k: i64,
    /// It begins with a frame from which decoding can start.
    pub key: bool,
}

impl Fragmenter {
    /// For tracks that an [`init`](super::init) segment has told.
    pub fn new(tracks: &[Description]) -> Self {
        Self { lanes: tracks.iter().cloned().map(Lane::new).collect(), sequence: 0 }
    }

    /// Takes a unit. `false` when it is none of the tracks' (another codec, a configuration, script data).
    pub fn push(&mut self, unit: &Unit) -> bool {
        let frame = unit.kind != Kind::Config;
        let lane = self.lanes.iter_mut().find(|lane| lane.is_for(unit)).filter(|_| frame);
        lane.map(|lane| lane.push(unit)).is_some()
    }

    /// How long what a [`cut`](Self::cut) would give lasts, in 1/90,000 s.
    pub fn span_90k(&self) -> i64 {
        self.leading().map_or(0, Lane::span_90k)
    }

    /// Bytes of all units that are held.
    pub fn bytes(&self) -> usize {
        self.lanes.iter().map(|lane| lane.bytes).sum()
    }

    /// A fragment of all units but the newest of each track; `None` where there is none.
    pub fn cut(&mut self) -> Option<Fragment> {
        let leading = self.leading()?;
        let (start_90k, duration_90k) = (leading.start_90k(), leading.span_90k());
        let key = leading.ready.first().is_some_and(|sample| sample.sync);
        let runs: Vec<Run> = self.lanes.iter_mut().filter_map(Lane::take).collect();
        self.sequence = self.sequence.wrapping_add(1);
        Some(Fragment { data: fragment(self.sequence, &runs), start_90k, duration_90k, key })
    }

    /// The same with all units: the newest last as long as those before them. For the end of a stream or file.
    pub fn finish(&mut self) -> Option<Fragment> {
        self.lanes.iter_mut().for_each(Lane::close);
        self.cut()
    }

    /// The video where it has anything, else what lasts longest.
    fn leading(&self) -> Option<&Lane> {
        let full = || self.lanes.iter().filter(|lane| !lane.ready.is_empty());
        full().find(|lane| lane.track.track == Track::Video).or_else(|| full().max_by_key(|lane| lane.span_90k()))
    }
}

/// One track.
#[derive(Debug)]
struct Lane {
    track: Description,
    /// Decode time of the first of `ready`, in ticks of the track's clock.
    start: i64,
    ready: Vec<Sample>,
    /// Ticks all of `ready` last.
    span: i64,
    /// The newest unit, and its decode time.
    newest: Option<(i64, Sample)>,
    bytes: usize,
    duration_before: u32,
}

impl Lane {
    fn new(track: Description) -> Self {
        Self { track, start: 0, ready: Vec::new(), span: 0, newest: None, bytes: 0, duration_before: 0 }
    }

    fn is_for(&self, unit: &Unit) -> bool {
        self.track.track == unit.track && self.track.codec == unit.codec
    }

    fn push(&mut self, unit: &Unit) {
        let mut dts = self.ticks(unit.dts_90k);
        if let Some((before, sample)) = self.newest.take() {
            let snap = i64::from(self.track.timescale.saturating_mul(SNAP_MS) / 1_000);
            let end = self.track.ticks_of(&sample.data).map(|ticks| before.saturating_add(i64::from(ticks)));
            if let Some(end) = end.filter(|end| (end - dts).abs() <= snap) {
                dts = end;
            }
            // Decode times rise: two units of one time are a tick apart.
            dts = dts.max(before.saturating_add(1));
            self.settle(before, sample, u32::try_from(dts - before).unwrap_or(u32::MAX));
        }
        let composition = self.ticks(unit.pts_90k).saturating_sub(self.ticks(unit.dts_90k));
        let composition = composition.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
        self.bytes += unit.data.len();
        let sync = unit.kind == Kind::Key || unit.track == Track::Audio;
        self.newest = Some((dts, Sample { duration: 0, composition, sync, data: unit.data.clone() }));
    }

    fn settle(&mut self, dts: i64, sample: Sample, duration: u32) {
        if self.ready.is_empty() {
            (self.start, self.span) = (dts, 0);
        }
        self.span += i64::from(duration);
        self.duration_before = duration;
        self.ready.push(Sample { duration, ..sample });
    }

    fn close(&mut self) {
        let Some((dts, sample)) = self.newest.take() else { return };
        let duration = self.track.ticks_of(&sample.data).unwrap_or(self.duration_before).max(1);
        self.settle(dts, sample, duration);
    }

    fn take(&mut self) -> Option<Run> {
        let samples = std::mem::take(&mut self.ready);
        self.span = 0;
        self.bytes = self.newest.as_ref().map_or(0, |(_, sample)| sample.data.len());
        (!samples.is_empty()).then_some(Run { track_id: self.track.id, dts: self.start, samples })
    }

    fn span_90k(&self) -> i64 {
        self.in_90k(self.start.saturating_add(self.span)) - self.start_90k()
    }

    fn start_90k(&self) -> i64 {
        self.in_90k(self.start)
    }

    fn ticks(&self, time_90k: i64) -> i64 {
        (i128::from(time_90k) * i128::from(self.track.timescale)).div_euclid(CLOCK) as i64
    }

    fn in_90k(&self, ticks: i64) -> i64 {
        (i128::from(ticks) * CLOCK).div_euclid(i128::from(self.track.timescale.max(1))) as i64
    }
}
