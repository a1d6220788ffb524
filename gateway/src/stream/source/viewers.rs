//! Who watches a stream on its thread: viewers by container, and the taps of tasks elsewhere.
//!
//! Must not be in here: what a viewer is written (`fanout.rs`, `viewer.rs`).

use std::collections::VecDeque;
use std::time::Instant;

use protocols::media::{Codec, Container, Hevc, Unit};

use super::Source;
use crate::stream::audience::ViewerInfo;
use crate::stream::fanout::{Patience, Pick, Place, Rendition, Round, Tally, visit};
use crate::stream::tap::{Spout, Tap, TapKind, TapRules};
use crate::stream::viewer::{Closed, Viewer};

impl Source {
    /// Takes a viewer in and writes what there is for it.
    pub(in crate::stream) fn join(&mut self, container: Container, mut viewer: Viewer, patience: Patience) -> Tally {
        viewer.hevc = container.hevc();
        // Without H.265 both dialects are the same bytes, and their viewers share them.
        let alike = self.told.video_codec.is_some_and(|codec| codec != Codec::H265);
        let at = self.rendition(if alike { container.with_hevc(Hevc::Enhanced) } else { container }, &patience);
        let round = Round { now: Instant::now(), tracks: &self.key_tracks, patience };
        let tally = self.renditions.get_mut(at).map(|rendition| rendition.join(viewer, &round)).unwrap_or_default();
        self.counters.add_viewers(&tally.counters);
        tally
    }

    /// The stream in this container, muxed from what was published lately when nobody watched it so far.
    fn rendition(&mut self, container: Container, patience: &Patience) -> usize {
        if let Some(at) = self.renditions.iter().position(|rendition| rendition.container == container) {
            return at;
        }
        let mut rendition = Rendition::new(container, self.keep, &self.key_tracks);
        for at in 0..self.recent.len() {
            let Some((mark, unit)) = self.recent.get(at) else { break };
            let place = rendition.append(&unit, mark, &self.key_tracks, patience);
            if self.renditions.is_empty() {
                self.recent.follow(rendition.log(), at, place);
            }
        }
        self.renditions.push(rendition);
        self.renditions.len() - 1
    }

    /// Lets units out to a task elsewhere, from the newest key frame on.
    pub(in crate::stream) fn tap(&mut self, rules: TapRules) -> Tap {
        let mut backlog = self.backlog();
        if self.treatment.transcodes() && rules.kind == TapKind::WebRtc {
            backlog.retain(|unit| unit.codec != Codec::Aac);
        }
        let (spout, tap) = Spout::open(rules, backlog);
        self.taps.push(spout);
        tap
    }

    /// The configurations and what was published since the newest key frame.
    pub(super) fn backlog(&self) -> VecDeque<Unit> {
        let begins = self.recent.units().next().map_or(self.timeline.now_90k(), |(_, unit)| unit.dts_90k);
        let configs = self.key_tracks.head(begins, begins);
        configs.chain(self.recent.units().map(|(_, unit)| unit.clone())).collect()
    }

    /// What is new is to be seen by then, if not before.
    pub(in crate::stream) fn visit_by(&mut self, at: Instant) {
        self.visit_at = Some(self.visit_at.map_or(at, |before| before.min(at)));
    }

    pub(in crate::stream) fn visit_at(&self) -> Option<Instant> {
        self.visit_at
    }

    /// Whether a pass has to look at this source; a phase of a pass counts the news down.
    pub(in crate::stream) fn take_due(&mut self, pick: Pick) -> bool {
        match pick {
            Pick::All => (self.due, self.visit_at) = (0, None),
            Pick::Phase(..) => (self.due, self.visit_at) = (self.due.saturating_sub(1), None),
            Pick::Ready | Pick::Sweep => {}
        }
        self.due > 0
    }

    /// The viewers are visited in so many phases from now on.
    pub(in crate::stream) fn regroup(&mut self, phases: usize) {
        self.due = if self.due > 0 { phases } else { 0 };
    }

    /// Visits the next batch of viewers; `false` beside the tally when that was the last.
    pub(in crate::stream) fn flush(&mut self, place: &mut Place, pick: Pick, patience: Patience) -> (Tally, bool) {
        let mut tally = Tally::default();
        let round = Round { now: Instant::now(), tracks: &self.key_tracks, patience };
        let goes_on = visit(&mut self.renditions, place, pick, &round, &mut tally);
        self.counters.add_viewers(&tally.counters);
        (tally, goes_on)
    }

    /// Closes one viewer; `None` when it is not of this stream.
    pub(in crate::stream) fn dismiss(&mut self, id: u64, now: Instant) -> Option<Tally> {
        let mut tally = Tally::default();
        let found = self.renditions.iter_mut().any(|rendition| rendition.dismiss(id, now, &mut tally));
        self.counters.add_viewers(&tally.counters);
        found.then_some(tally)
    }

    /// Each viewer.
    pub(in crate::stream) fn audience(&self, thread: &str) -> Vec<ViewerInfo> {
        let mut all = Vec::new();
        self.renditions.iter().for_each(|rendition| rendition.describe(thread, &mut all));
        all
    }

    pub(in crate::stream) fn is_tapped(&self) -> bool {
        !self.taps.is_empty()
    }

    /// Whether it matters when a unit comes: somebody gets it, or the moment becomes its time.
    pub(in crate::stream) fn is_heard(&self) -> bool {
        self.has_viewers() || self.is_tapped() || !self.replicas.is_empty() || self.timeline.stands_still()
    }

    pub(super) fn has_viewers(&self) -> bool {
        self.renditions.iter().any(|rendition| !rendition.viewers.is_empty())
    }

    /// All viewers go, and the taps.
    pub(in crate::stream) fn end(&mut self, now: Instant) -> Tally {
        let mut tally = Tally::default();
        for rendition in &mut self.renditions {
            rendition.close(now, Closed::Ended, &mut tally);
        }
        self.taps.clear();
        self.replicas.iter().for_each(|replica| replica.end(&self.name));
        self.replicas.clear();
        self.counters.add_viewers(&tally.counters);
        tally
    }

    /// How far the viewer that is furthest behind is.
    pub(super) fn lag_ms(&self) -> u64 {
        self.renditions.iter().map(Rendition::lag_ms).max().unwrap_or(0)
    }

    pub(in crate::stream) fn viewers(&self) -> usize {
        let watching = |rendition: &Rendition| rendition.viewers.len();
        let tapping: usize = self.taps.iter().map(Spout::viewers).sum();
        self.renditions.iter().map(watching).sum::<usize>() + tapping
    }
}
