//! The units since the last key frame, so that the first viewer in a container starts at once too: nothing is muxed
//! before somebody asks. Bounded like a log, in bytes, time and number.

use std::collections::VecDeque;

use protocols::media::Unit;

use super::gop::{CLOCK_HZ, Keep, Mark};

#[derive(Debug)]
pub(super) struct Recent {
    units: VecDeque<(Mark, Unit)>,
    bytes: u64,
    /// The stream has shown a video key frame.
    video: bool,
    /// This GOP went over the limits; nothing is kept before the next key frame.
    over: bool,
    keep: Keep,
}

/// How much of an audio-only stream is kept, media clock ticks: more than where viewers join.
const AUDIO_SPAN: i64 = 2 * CLOCK_HZ;

impl Recent {
    pub(super) fn new(keep: Keep) -> Self {
        Self { units: VecDeque::new(), bytes: 0, video: false, over: false, keep }
    }

    /// Takes the next unit in; `true` when the GOP just went over the limits.
    pub(super) fn push(&mut self, mark: Mark, unit: &Unit) -> bool {
        if mark == Mark::Key {
            self.clear();
            self.video = true;
        }
        if self.over {
            return false;
        }
        self.bytes += unit.data.len() as u64;
        self.units.push_back((mark, unit.clone()));
        let span = |units: &VecDeque<(Mark, Unit)>| units.front().map_or(0, |(_, first)| unit.dts_90k - first.dts_90k);
        let beyond = |units: &VecDeque<(Mark, Unit)>, bytes: u64, span_max: i64| {
            bytes > self.keep.bytes_max || units.len() > self.keep.units_max || span(units) > span_max
        };
        if self.video {
            self.over = beyond(&self.units, self.bytes, self.keep.span_max);
            if self.over {
                self.units = VecDeque::new();
                self.bytes = 0;
            }
            return self.over;
        }
        while beyond(&self.units, self.bytes, AUDIO_SPAN.min(self.keep.span_max))
            && let Some((_, gone)) = self.units.pop_front()
        {
            self.bytes -= gone.data.len() as u64;
        }
        false
    }

    /// Forgets everything: a key frame begins anew, or the publisher changed.
    pub(super) fn clear(&mut self) {
        self.units.clear();
        self.bytes = 0;
        self.over = false;
    }

    /// The publisher changed: whether there is video is to be seen.
    pub(super) fn restart(&mut self) {
        self.video = false;
    }

    pub(super) fn units(&self) -> impl Iterator<Item = &(Mark, Unit)> {
        self.units.iter()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}
