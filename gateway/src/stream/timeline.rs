//! One running time for a stream, whatever its publishers' clocks do.
//!
//! The first publisher's times pass unchanged. A publisher that takes over goes on one frame after the last unit; a
//! clock that jumps is followed with the audio/video offset kept; a unit that is early within its track waits for its
//! predecessor's time. Must not be in here: wall clocks.

use protocols::media::{Track, Unit};

use super::gop::CLOCK_HZ;

/// A step between the last unit and a new publisher's first: one frame at 25 fps.
const STEP: i64 = CLOCK_HZ / 25;

/// A unit this much later than the last one is a jump of the clock, not a pause.
const FORWARD_MAX: i64 = 30 * CLOCK_HZ;

/// A unit this much earlier than the last one of its track is a jump of the clock, not disorder.
const BACKWARD_MAX: i64 = CLOCK_HZ / 2;

/// Media clock ticks; see the module.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    offset: i64,
    /// The newest time of all tracks, as published.
    last: Option<i64>,
    tracks: [Option<i64>; 3],
    /// The next unit opens a new publisher's time.
    rebase: bool,
    /// Jumps followed and early units held back.
    pub fixed: u64,
}

impl Timeline {
    /// A new publisher begins.
    pub(super) fn restart(&mut self) {
        self.rebase = self.last.is_some();
    }

    /// The newest time that was given.
    pub(super) fn now_90k(&self) -> i64 {
        self.last.unwrap_or(0)
    }

    /// Puts the unit onto the running time.
    pub(super) fn place(&mut self, unit: &mut Unit) {
        let slot = match unit.track {
            Track::Video => 0,
            Track::Audio => 1,
            Track::Data => 2,
        };
        let reorder = unit.pts_90k.saturating_sub(unit.dts_90k);
        let mut dts = unit.dts_90k.saturating_add(self.offset);
        if let Some(last) = self.last {
            let track_last = self.tracks.get(slot).copied().flatten();
            let jumped = dts.saturating_sub(last) > FORWARD_MAX
                || last.saturating_sub(dts) > FORWARD_MAX
                || track_last.is_some_and(|t| t.saturating_sub(dts) > BACKWARD_MAX);
            if self.rebase || jumped {
                self.fixed += u64::from(!self.rebase);
                self.rebase = false;
                dts = last.saturating_add(STEP);
                self.offset = dts.saturating_sub(unit.dts_90k);
            } else if let Some(early) = track_last.filter(|t| *t > dts) {
                self.fixed += 1;
                dts = early;
            }
        }
        if let Some(track) = self.tracks.get_mut(slot) {
            *track = Some(dts);
        }
        self.last = Some(self.last.map_or(dts, |last| last.max(dts)));
        unit.dts_90k = dts;
        unit.pts_90k = dts.saturating_add(reorder);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use protocols::media::{Codec, Kind};

    use super::*;

    fn unit(track: Track, dts_90k: i64) -> Unit {
        let codec = if track == Track::Video { Codec::H264 } else { Codec::Aac };
        Unit { track, codec, dts_90k, pts_90k: dts_90k + 7200, kind: Kind::Delta, data: Bytes::new() }
    }

    fn place(timeline: &mut Timeline, track: Track, dts: i64) -> i64 {
        let mut unit = unit(track, dts);
        timeline.place(&mut unit);
        assert_eq!(unit.pts_90k - unit.dts_90k, 7200, "B-frame reordering is kept");
        unit.dts_90k
    }

    #[test]
    fn the_first_publisher_passes_unchanged() {
        let mut timeline = Timeline::default();
        for dts in [900_000, 903_600, 907_200] {
            assert_eq!(place(&mut timeline, Track::Video, dts), dts);
            assert_eq!(place(&mut timeline, Track::Audio, dts - 1000), dts - 1000);
        }
        assert_eq!(timeline.fixed, 0);
    }

    #[test]
    fn the_next_publisher_goes_on_one_frame_later_with_its_offset_between_tracks() {
        let mut timeline = Timeline::default();
        place(&mut timeline, Track::Video, 900_000);
        timeline.restart();
        let video = place(&mut timeline, Track::Video, 50);
        let audio = place(&mut timeline, Track::Audio, 150);
        assert_eq!(video, 900_000 + STEP);
        assert_eq!(audio - video, 100);
    }

    #[test]
    fn a_clock_that_jumps_is_followed() {
        let mut timeline = Timeline::default();
        place(&mut timeline, Track::Video, 0);
        assert_eq!(place(&mut timeline, Track::Video, 100 * CLOCK_HZ), STEP);
        assert_eq!(place(&mut timeline, Track::Video, 100 * CLOCK_HZ + 3600), STEP + 3600);
        assert_eq!(place(&mut timeline, Track::Video, 0), 2 * STEP + 3600);
        assert_eq!(timeline.fixed, 2);
    }

    proptest! {
        #[test]
        fn any_clock_comes_out_monotonic_per_track(steps in prop::collection::vec((any::<bool>(), any::<i32>(), prop::bool::weighted(0.05)), 1..200)) {
            let mut timeline = Timeline::default();
            let mut last: [Option<i64>; 2] = [None; 2];
            for (video, dts, restart) in steps {
                if restart { timeline.restart(); }
                let track = if video { Track::Video } else { Track::Audio };
                let mut unit = unit(track, i64::from(dts));
                timeline.place(&mut unit);
                let slot = &mut last[usize::from(video)];
                prop_assert!(slot.is_none_or(|before| unit.dts_90k >= before));
                *slot = Some(unit.dts_90k);
            }
        }
    }
}
