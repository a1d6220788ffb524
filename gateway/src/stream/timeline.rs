//! One running time for a stream, whatever its publishers' clocks do.
//!
//! The first publisher's times pass unchanged. A publisher that takes over goes on one frame after the last unit; a
//! clock that jumps is followed, the other track with it, so that the offset between audio and video stays; tracks with
//! clocks of their own each get their own offset; a unit that is early within its track waits for its predecessor's
//! time; where a clock stands still, arrival counts. Must not be in here: wall clocks.

use protocols::media::{Kind, Track, Unit};

use super::gop::CLOCK_HZ;

/// A step between the last unit and a new publisher's first: one frame at 25 fps.
const STEP: i64 = CLOCK_HZ / 25;

/// A unit this much later than the last one is a jump of the clock, not a pause.
const FORWARD_MAX: i64 = 30 * CLOCK_HZ;

/// A unit this much earlier than the last one of its track is a jump of the clock, not disorder.
const BACKWARD_MAX: i64 = CLOCK_HZ / 2;

/// A track that begins may be this far behind the other one, which came in a burst: its first words count as its own time.
const BEHIND_MAX: i64 = 5 * CLOCK_HZ;

/// From decoding to showing; B-frames of any encoder stay within it.
const COMPOSITION_MAX: i64 = 10 * CLOCK_HZ;

/// So many units in a row with one time are no slices of a picture and no burst: the clock stands still.
const STUCK_MIN: u32 = 16;

/// Media clock ticks; see the module.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    /// The newest time of all tracks.
    last: Option<i64>,
    /// A frame was placed: until then there is nothing that a clock could have jumped from.
    runs: bool,
    video: Clock,
    audio: Clock,
    data: Clock,
    /// Jumps followed, early units held back, compositions ignored, units timed by their arrival.
    pub fixed: u64,
}

/// One track's.
#[derive(Debug, Clone, Copy, Default)]
struct Clock {
    /// What is added to the publisher's times.
    offset: i64,
    /// The newest time given.
    last: Option<i64>,
    /// The next frame opens a new publisher's time.
    rebase: bool,
    /// The publisher's newest time, and how often it came again in a row.
    published: Option<i64>,
    repeats: u32,
    /// Time given and time of arrival when the clock was found to stand still.
    stuck: Option<(i64, i64)>,
}

impl Timeline {
    /// A new publisher begins.
    pub(super) fn restart(&mut self) {
        for clock in [&mut self.video, &mut self.audio, &mut self.data] {
            *clock = Clock { rebase: self.last.is_some(), last: clock.last, ..Clock::default() };
        }
    }

    /// The newest time that was given.
    pub(super) fn now_90k(&self) -> i64 {
        self.last.unwrap_or(0)
    }

    /// Whether a publisher's clock stands still, so that arrival counts.
    pub(super) fn stands_still(&self) -> bool {
        self.video.stuck.is_some() || self.audio.stuck.is_some()
    }

    /// Puts the unit onto the running time. `arrived` tells the arrival, media clock ticks since any moment.
    pub(super) fn place(&mut self, unit: &mut Unit, arrived: impl FnOnce() -> i64) {
        let mut composition = unit.pts_90k.saturating_sub(unit.dts_90k);
        if composition.abs() > COMPOSITION_MAX {
            self.fixed += 1;
            composition = 0;
        }
        let frame = unit.kind != Kind::Config && unit.track != Track::Data;
        let dts = if frame { self.frame(unit.track, unit.dts_90k, arrived) } else { self.word(unit) };
        self.clock(unit.track).last = Some(dts);
        self.last = Some(self.last.map_or(dts, |last| last.max(dts)));
        unit.dts_90k = dts;
        unit.pts_90k = dts.saturating_add(composition);
    }

    fn clock(&mut self, track: Track) -> &mut Clock {
        match track {
            Track::Video => &mut self.video,
            Track::Audio => &mut self.audio,
            Track::Data => &mut self.data,
        }
    }

    /// A frame: its clock is the publisher's.
    fn frame(&mut self, track: Track, published: i64, arrived: impl FnOnce() -> i64) -> i64 {
        let (runs, last) = (std::mem::replace(&mut self.runs, true), self.last);
        let other = if track == Track::Video { self.audio } else { self.video };
        let clock = self.clock(track);
        clock.repeats = if clock.published == Some(published) { clock.repeats + 1 } else { 0 };
        clock.published = Some(published);
        let (true, Some(last)) = (runs, last) else {
            // Many encoders give the configurations ahead of it a time of 0.
            return clock.last.map_or(published, |before| before.max(published));
        };
        if clock.repeats >= STUCK_MIN {
            let arrived = arrived();
            let (began, began_arrived) = *clock.stuck.get_or_insert((last, arrived));
            let dts = began.saturating_add(arrived.saturating_sub(began_arrived));
            let dts = clock.last.map_or(dts, |before| before.max(dts));
            self.fixed += 1;
            return dts;
        }
        clock.stuck = None;
        if clock.rebase || !clock.fits(clock.offset, published, last) {
            let jumped = !clock.rebase && clock.last.is_some();
            let follows = !other.rebase && other.last.is_some() && clock.fits(other.offset, published, last);
            let opens = last.saturating_add(STEP).saturating_sub(published);
            clock.offset = if follows { other.offset } else { opens };
            clock.rebase = false;
            self.fixed += u64::from(jumped);
        }
        let clock = self.clock(track);
        let dts = published.saturating_add(clock.offset);
        let early = clock.last.filter(|before| *before > dts);
        self.fixed += u64::from(early.is_some());
        early.unwrap_or(dts)
    }

    /// A configuration or script data: many encoders give them a time of 0, or that of the connection's begin. They never
    /// move a clock.
    fn word(&mut self, unit: &Unit) -> i64 {
        let Some(last) = self.last else { return unit.dts_90k };
        let frames = if unit.track == Track::Audio || self.video.last.is_none() { self.audio } else { self.video };
        let own = *self.clock(unit.track);
        let before = own.last;
        let dts = unit.dts_90k.saturating_add(frames.offset);
        let begins = unit.track != Track::Data && own.published.is_none();
        let behind_max = if begins { BEHIND_MAX } else { BACKWARD_MAX };
        let usual = !frames.rebase && (-behind_max..=BACKWARD_MAX).contains(&dts.saturating_sub(last));
        let dts = if usual { dts } else { last };
        before.map_or(dts, |before| before.max(dts))
    }
}

impl Clock {
    /// Whether a time makes sense with this offset.
    fn fits(&self, offset: i64, published: i64, last: i64) -> bool {
        let dts = published.saturating_add(offset);
        let near = dts.saturating_sub(last) <= FORWARD_MAX && last.saturating_sub(dts) <= FORWARD_MAX;
        near && self.last.is_none_or(|before| before.saturating_sub(dts) <= BACKWARD_MAX)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use protocols::media::Codec;

    use super::*;

    fn unit(track: Track, kind: Kind, dts_90k: i64) -> Unit {
        let codec = if track == Track::Video { Codec::H264 } else { Codec::Aac };
        Unit { track, codec, dts_90k, pts_90k: dts_90k + 7200, kind, data: Bytes::new() }
    }

    fn place(timeline: &mut Timeline, track: Track, dts: i64) -> i64 {
        let mut unit = unit(track, Kind::Delta, dts);
        timeline.place(&mut unit, || 0);
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
    fn configurations_of_time_0_do_not_move_a_clock_that_runs_for_hours() {
        let mut timeline = Timeline::default();
        for track in [Track::Data, Track::Video, Track::Audio] {
            let mut word = unit(track, Kind::Config, 0);
            timeline.place(&mut word, || 0);
            assert_eq!(word.dts_90k, 0);
        }
        let hours = 5 * 3_600 * CLOCK_HZ;
        assert_eq!(place(&mut timeline, Track::Video, hours), hours);
        assert_eq!(place(&mut timeline, Track::Audio, hours + 900), hours + 900);
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

    /// An encoder that starts with a burst, and a socket of its own for each track.
    #[test]
    fn sound_whose_configuration_comes_behind_a_burst_of_pictures_keeps_its_time() {
        let mut timeline = Timeline::default();
        for n in 0..20 {
            place(&mut timeline, Track::Video, 90_000 + n * 3_600);
        }
        let mut word = unit(Track::Audio, Kind::Config, 87_930);
        timeline.place(&mut word, || 0);
        assert_eq!(word.dts_90k, 87_930);
        assert_eq!(place(&mut timeline, Track::Audio, 87_930), 87_930);
        assert_eq!(timeline.fixed, 0);
    }

    /// The units of both tracks that are on their way while the clock jumps are of the old time.
    #[test]
    fn a_jump_keeps_the_offset_between_tracks_though_they_jump_one_after_the_other() {
        let mut timeline = Timeline::default();
        let jump = 7_000 * CLOCK_HZ;
        place(&mut timeline, Track::Video, 3_600);
        place(&mut timeline, Track::Audio, 4_000);
        let video = place(&mut timeline, Track::Video, jump + 7_200);
        assert_eq!(place(&mut timeline, Track::Audio, 6_000), 6_000);
        let audio = place(&mut timeline, Track::Audio, jump + 8_000);
        assert_eq!(audio - video, 800);
        assert_eq!(timeline.fixed, 2);
    }

    #[test]
    fn tracks_with_clocks_of_their_own_each_run_at_their_pace() {
        let mut timeline = Timeline::default();
        let placed: Vec<(i64, i64)> = (0..100)
            .map(|n| {
                let video = place(&mut timeline, Track::Video, n * 3_600);
                (video, place(&mut timeline, Track::Audio, (1 << 40) + n * 3_600))
            })
            .collect();
        assert_eq!(placed[99].0, 99 * 3_600);
        assert!(placed.iter().all(|(video, audio)| audio - video == STEP));
        assert_eq!(timeline.fixed, 0);
    }

    #[test]
    fn a_camera_that_says_0_all_the_time_is_timed_by_arrival() {
        let mut timeline = Timeline::default();
        let mut times = Vec::new();
        for n in 0..100 {
            for (track, late) in [(Track::Video, 0), (Track::Audio, 900)] {
                let mut unit = Unit { pts_90k: 0, ..unit(track, Kind::Delta, 0) };
                timeline.place(&mut unit, || n * 3_600 + late);
                times.push((track, unit.dts_90k));
            }
        }
        let video: Vec<i64> = times.iter().filter(|(track, _)| *track == Track::Video).map(|(_, dts)| *dts).collect();
        assert!(video[20..].windows(2).all(|pair| pair[1] - pair[0] == 3_600), "{video:?}");
        let audio: Vec<i64> = times.iter().filter(|(track, _)| *track == Track::Audio).map(|(_, dts)| *dts).collect();
        assert!(audio[20..].iter().zip(&video[20..]).all(|(audio, video)| (audio - video).abs() <= 3_600));
        // Two of the same time are nothing special.
        let mut timeline = Timeline::default();
        let doubled: Vec<i64> = (0..40).map(|n| place(&mut timeline, Track::Video, n / 2 * 3_600)).collect();
        assert_eq!((doubled[39], timeline.fixed), (19 * 3_600, 0));
    }

    #[test]
    fn configurations_and_metadata_do_not_move_the_clock() {
        let mut timeline = Timeline::default();
        place(&mut timeline, Track::Video, 900_000);
        for (track, published) in [(Track::Video, 0), (Track::Data, 0), (Track::Audio, 1 << 40)] {
            let mut word = unit(track, Kind::Config, published);
            timeline.place(&mut word, || 0);
            assert_eq!(word.dts_90k, 900_000);
        }
        assert_eq!(place(&mut timeline, Track::Video, 903_600), 903_600);
        timeline.restart();
        let mut word = unit(Track::Data, Kind::Config, 0);
        timeline.place(&mut word, || 0);
        assert_eq!(word.dts_90k, 903_600);
        assert_eq!(place(&mut timeline, Track::Video, 5 << 30), 903_600 + STEP);
        assert_eq!(timeline.fixed, 0);
    }

    #[test]
    fn a_composition_out_of_all_reason_is_ignored_and_a_negative_one_kept() {
        let mut timeline = Timeline::default();
        for (pts, shown) in [(-3_600, -3_600), (1 << 40, 0)] {
            let mut frame = Unit { pts_90k: pts, ..unit(Track::Video, Kind::Delta, 0) };
            timeline.place(&mut frame, || 0);
            assert_eq!(frame.pts_90k - frame.dts_90k, shown);
        }
    }

    /// A publisher whose two tracks share a clock that jumps by more than half a minute now and then.
    fn jumps() -> impl Strategy<Value = Vec<(bool, i64, Option<i64>)>> {
        let far = (FORWARD_MAX * 2..1i64 << 45).prop_flat_map(|by| prop::sample::select(vec![by, -by]));
        prop::collection::vec((any::<bool>(), 0i64..CLOCK_HZ / 4, prop::option::weighted(0.05, far)), 2..300)
    }

    proptest! {
        #[test]
        fn any_clock_comes_out_monotonic_per_track(steps in prop::collection::vec((any::<bool>(), any::<i64>(), any::<bool>(), prop::bool::weighted(0.05)), 1..200)) {
            let mut timeline = Timeline::default();
            let mut last: [Option<i64>; 2] = [None; 2];
            for (at, (video, dts, config, restart)) in steps.into_iter().enumerate() {
                if restart { timeline.restart(); }
                let track = if video { Track::Video } else { Track::Audio };
                // Within what an unwrapped RTMP clock can reach.
                let mut unit = unit(track, if config { Kind::Config } else { Kind::Delta }, dts >> 8);
                timeline.place(&mut unit, || at as i64 * 3_600);
                let slot = &mut last[usize::from(video)];
                prop_assert!(slot.is_none_or(|before| unit.dts_90k >= before));
                *slot = Some(unit.dts_90k);
            }
        }

        #[test]
        fn the_offset_between_audio_and_video_survives_every_jump(steps in jumps()) {
            let (mut timeline, mut clock) = (Timeline::default(), 0i64);
            let (mut offsets, mut jumps, mut settled) = ([0i64; 2], 0, [true; 2]);
            for (video, step, jump) in steps {
                if let Some(by) = jump {
                    clock += by;
                    jumps += 1;
                    settled = [false; 2];
                }
                clock += step;
                let placed = place(&mut timeline, if video { Track::Video } else { Track::Audio }, clock);
                (offsets[usize::from(video)], settled[usize::from(video)]) = (placed - clock, true);
                if settled == [true; 2] && jumps > 0 {
                    prop_assert_eq!(offsets[0], offsets[1], "after {} jumps", jumps);
                }
            }
        }
    }
}
