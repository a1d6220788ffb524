//! The muxer and the ring together, over made-up units: cuts, numbers, bounds, and what begins anew.

use bytes::Bytes;
use proptest::prelude::*;
use protocols::hls::Wait;
use protocols::media::{Codec, Kind, Track, Unit};

use super::Rules;
use super::channel::Verdict;
use super::muxer::{Muxer, Step};
use super::ring::{Over, Ring};

const FRAME: i64 = 3_600;
const AVC: &[u8] = &[
    1, 0x64, 0, 0x0c, 0xff, 0xe1, 0, 26, 0x67, 0x64, 0x00, 0x0c, 0xac, 0xd9, 0x41, 0x41, 0x9f, 0x9f, 0x01, 0x10, 0x00,
    0x00, 0x03, 0x00, 0x10, 0x00, 0x00, 0x03, 0x03, 0x20, 0xf1, 0x42, 0x99, 0x60, 1, 0, 1, 0x68,
];
const AAC: &[u8] = &[0x12, 0x10];

fn rules() -> Rules {
    let second = 90_000;
    Rules {
        part_90k: second / 5,
        segment_90k: 2 * second,
        window_90k: 8 * second,
        stream_bytes: 4 << 20,
        total_bytes: 8 << 20,
        idle: std::time::Duration::from_secs(2),
    }
}

/// A stream, from the camera to the playlist.
struct Bench {
    muxer: Muxer,
    ring: Ring,
    steps: usize,
    time: i64,
    frames: i64,
}

impl Bench {
    fn new(expected: (bool, bool)) -> Self {
        Self {
            muxer: Muxer::new(&rules(), expected, 100, 1_000),
            ring: Ring::new(&rules(), 1_000),
            steps: 0,
            time: 0,
            frames: 0,
        }
    }

    fn give(&mut self, track: Track, codec: Codec, kind: Kind, data: impl Into<Bytes>) {
        let unit = Unit { track, codec, dts_90k: self.time, pts_90k: self.time, kind, data: data.into() };
        self.with(|muxer, steps| muxer.unit(unit, steps));
    }

    fn with(&mut self, work: impl FnOnce(&mut Muxer, &mut Vec<Step>)) {
        let mut steps = Vec::new();
        work(&mut self.muxer, &mut steps);
        self.steps += steps.len();
        for step in steps {
            self.ring.apply(step, Some(1_700_000_000_000_000));
        }
    }

    fn video_config(&mut self) {
        self.give(Track::Video, Codec::H264, Kind::Config, AVC);
    }

    /// So many frames of 40 ms with a key frame every `gop`.
    fn video(&mut self, frames: i64, gop: i64, size: usize) {
        for n in self.frames..self.frames + frames {
            let kind = if n % gop == 0 { Kind::Key } else { Kind::Delta };
            self.give(Track::Video, Codec::H264, kind, vec![7; size]);
            self.time += FRAME;
        }
        self.frames += frames;
    }

    fn audio(&mut self, packets: i64) {
        for _ in 0..packets {
            self.give(Track::Audio, Codec::Aac, Kind::Key, &[1, 2, 3][..]);
            self.time += 2_090;
        }
    }

    fn playlist(&mut self) -> String {
        match self.ring.media("", None) {
            Verdict::Ready(text) => String::from_utf8(text.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

fn values(playlist: &str, tag: &str) -> Vec<f64> {
    let lines = playlist.lines().filter_map(|line| line.strip_prefix(tag));
    lines.map(|rest| rest.split(',').next().unwrap().parse().unwrap()).collect()
}

#[test]
fn groups_of_pictures_become_segments_and_frames_become_parts() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    bench.video(25 * 7 + 1, 25, 100);
    let playlist = bench.playlist();
    // The first is one group of pictures long, so that a player can begin; the others two.
    assert_eq!(values(&playlist, "#EXTINF:")[..4], [1.0, 2.0, 2.0, 2.0], "{playlist}");
    assert!(values(&playlist, "#EXT-X-PART:DURATION=").iter().all(|part| (part - 0.2).abs() < 1e-6), "{playlist}");
    assert!(playlist.contains("PART-TARGET=0.20500") && playlist.contains("#EXT-X-TARGETDURATION:2\n"));
    assert!(playlist.contains("#EXT-X-INDEPENDENT-SEGMENTS") && playlist.contains("#EXT-X-MAP:URI=\"init-100.mp4\""));
    let multivariant = String::from_utf8(bench.ring.multivariant("", 7).unwrap().to_vec()).unwrap();
    assert!(multivariant.contains("CODECS=\"avc1.64000c\",RESOLUTION=320x180,FRAME-RATE=25.000"), "{multivariant}");
}

/// RFC 8216, 4.3.3.1: the target duration is one and the same in every playlist of a stream.
#[test]
fn the_target_duration_never_changes_whatever_the_groups_of_pictures_do() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    bench.video(60, 25, 100);
    let said = values(&bench.playlist(), "#EXT-X-TARGETDURATION:");
    assert_eq!(said, [2.0]);
    // Key frames each 5 s, then one each second again.
    for gop in [125, 125, 25, 25] {
        bench.frames = 0;
        bench.video(gop * 3, gop, 100);
        let playlist = bench.playlist();
        assert_eq!(values(&playlist, "#EXT-X-TARGETDURATION:"), said);
        assert!(values(&playlist, "#EXTINF:").iter().all(|long| long.round() <= 2.0), "{playlist}");
    }
    bench.frames = 0;
    bench.video(25 * 30, 25, 100);
    let playlist = bench.playlist();
    assert!(playlist.contains("#EXT-X-INDEPENDENT-SEGMENTS"), "segments begin at key frames again: {playlist}");
    bench.with(Muxer::gap);
    bench.frames = 0;
    bench.video(125 * 2, 125, 100);
    assert_eq!(values(&bench.playlist(), "#EXT-X-TARGETDURATION:"), said);
}

/// A camera that pauses: the frame before lasts until the next, in a segment of its own, or is cut short.
#[test]
fn the_target_duration_never_changes_however_long_a_frame_lasts() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    bench.video(60, 25, 100);
    for (pause, discontinuities) in [(FRAME * 30, 0), (FRAME * 55, 0), (90_000 * 15, 1), (90_000 * 600, 2)] {
        bench.time += pause;
        bench.video(60, 25, 100);
        let playlist = bench.playlist();
        assert_eq!(values(&playlist, "#EXT-X-TARGETDURATION:"), [2.0], "{pause}");
        assert!(values(&playlist, "#EXTINF:").iter().all(|long| long.round() <= 2.0), "{pause}: {playlist}");
        assert_eq!(playlist.matches("#EXT-X-DISCONTINUITY\n").count(), discontinuities, "{pause}: {playlist}");
    }
    assert!(bench.ring.segment(101).is_some(), "and the pauses cost nobody what was kept");
}

#[test]
fn a_segment_is_its_parts_one_after_another() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    bench.video(76, 25, 100);
    let whole = bench.ring.segment(100).unwrap().concat();
    let part = |number| match bench.ring.part(number) {
        Verdict::Ready(part) => part,
        other => panic!("{number}: {other:?}"),
    };
    let parts: Vec<Bytes> = (1_000..1_005).map(part).collect();
    assert_eq!(whole, parts.concat());
    assert!(bench.ring.segment(99).is_none() && bench.ring.init(100).is_some() && bench.ring.init(101).is_none());
    assert!(matches!(bench.ring.part(999), Verdict::Never(_)));
}

#[test]
fn the_hinted_part_and_what_is_asked_to_be_waited_for_are_waited_for() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    assert!(matches!(bench.ring.media("", None), Verdict::NotYet));
    bench.video(33, 25, 100);
    let wait = |segment, part| Some(Wait { segment, part });
    assert!(bench.playlist().ends_with("#EXT-X-PRELOAD-HINT:TYPE=PART,URI=\"part-1006.m4s\"\n"));
    assert!(matches!(bench.ring.part(1_006), Verdict::NotYet));
    assert!(matches!(bench.ring.part(1_007), Verdict::Never(_)));
    assert!(matches!(bench.ring.media("", wait(100, None)), Verdict::Ready(_)));
    assert!(matches!(bench.ring.media("", wait(101, Some(0))), Verdict::Ready(_)));
    assert!(matches!(bench.ring.media("", wait(101, Some(1))), Verdict::NotYet));
    assert!(matches!(bench.ring.media("", wait(101, None)), Verdict::NotYet));
    assert!(matches!(bench.ring.media("", wait(102, None)), Verdict::NotYet));
    assert!(matches!(bench.ring.media("", wait(103, None)), Verdict::Never(_)));
    bench.video(5, 25, 100);
    assert!(matches!(bench.ring.part(1_006), Verdict::Ready(_)));
    bench.ring.end(Over::Ended);
    assert!(bench.playlist().ends_with("#EXT-X-ENDLIST\n"));
    assert!(matches!(bench.ring.media("", wait(103, None)), Verdict::Ready(_)), "nothing more comes");
}

#[test]
fn memory_is_bounded_in_bytes_and_in_time_whatever_the_groups_of_pictures() {
    for (gop, size) in [(25, 400), (1_000_000, 400), (25, 20_000), (1_000_000, 20_000), (1_000_000, 200_000)] {
        let mut bench = Bench::new((true, false));
        bench.video_config();
        for _ in 0..20 {
            bench.video(100, gop, size);
            assert!(bench.ring.bytes() <= (4 << 20) + (1 << 20) + 200_000, "{gop} {size}: {}", bench.ring.bytes());
        }
        let playlist = bench.playlist();
        let target = values(&playlist, "#EXT-X-TARGETDURATION:")[0];
        assert!(values(&playlist, "#EXTINF:").iter().all(|long| long.round() <= target), "{playlist}");
        assert!(target <= 10.0 && values(&playlist, "#EXTINF:").iter().sum::<f64>() < 45.0, "{playlist}");
        assert_eq!(playlist.contains("INDEPENDENT-SEGMENTS"), gop == 25, "{playlist}");
    }
}

#[test]
fn audio_alone_has_segments_too() {
    let mut bench = Bench::new((false, true));
    bench.give(Track::Audio, Codec::Aac, Kind::Config, AAC);
    bench.audio(500);
    let playlist = bench.playlist();
    assert!(values(&playlist, "#EXTINF:")[1..].iter().all(|long| (1.7..2.3).contains(long)), "{playlist}");
    let multivariant = String::from_utf8(bench.ring.multivariant("", 7).unwrap().to_vec()).unwrap();
    assert!(multivariant.contains("CODECS=\"mp4a.40.2\"\n"), "{multivariant}");
}

#[test]
fn other_codecs_and_a_late_track_begin_anew() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    bench.video(60, 25, 100);
    bench.give(Track::Audio, Codec::Aac, Kind::Config, AAC);
    bench.video(30, 25, 100);
    bench.audio(1);
    bench.video(30, 25, 100);
    let playlist = bench.playlist();
    assert_eq!(playlist.matches("#EXT-X-DISCONTINUITY\n#EXT-X-MAP").count(), 1, "{playlist}");
    assert_eq!(playlist.matches("#EXT-X-MAP").count(), 2, "{playlist}");
    // A configuration that is said again is nothing new.
    let steps = bench.steps;
    bench.video_config();
    assert_eq!(bench.steps, steps);
}

#[test]
fn a_pause_before_the_first_segment_ended_makes_none_longer_than_said() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    for (pause, kind) in [(0, Kind::Key), (18_777, Kind::Delta), (881_224, Kind::Delta)] {
        bench.time += pause;
        bench.give(Track::Video, Codec::H264, kind, &[1][..]);
    }
    bench.with(Muxer::gap);
    let playlist = bench.playlist();
    let target = values(&playlist, "#EXT-X-TARGETDURATION:")[0];
    assert!(values(&playlist, "#EXTINF:").iter().all(|long| long.round() <= target), "{playlist}");
}

#[test]
fn a_gap_is_a_discontinuity() {
    let mut bench = Bench::new((true, false));
    bench.video_config();
    bench.video(60, 25, 100);
    bench.with(Muxer::gap);
    bench.time += 900_000;
    bench.video(60, 25, 100);
    assert_eq!(bench.playlist().matches("#EXT-X-DISCONTINUITY\n").count(), 1);
}

#[test]
fn a_stream_of_g711_alone_is_unplayable_and_beside_video_left_out() {
    let mut bench = Bench::new((false, true));
    for _ in 0..200 {
        bench.give(Track::Audio, Codec::G711A, Kind::Key, vec![0xd5; 160]);
        bench.time += 1_800;
    }
    assert_eq!(bench.ring.over(), Some(Over::Unplayable));
    let mut bench = Bench::new((true, true));
    bench.video_config();
    for _ in 0..80 {
        bench.give(Track::Audio, Codec::G711A, Kind::Key, vec![0xd5; 160]);
        bench.video(1, 25, 10);
    }
    assert!(bench.ring.over().is_none());
    bench.video(30, 25, 100);
    let multivariant = String::from_utf8(bench.ring.multivariant("", 7).unwrap().to_vec()).unwrap();
    assert!(multivariant.contains("CODECS=\"avc1.64000c\","), "{multivariant}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Numbers rise by one, parts are no longer than said, nothing is lost at a cut.
    #[test]
    fn playlists_keep_their_rules_whatever_comes(
        frames in prop::collection::vec((any::<bool>(), prop_oneof![30 => 1i64..20_000, 1 => 1i64..2_000_000], 1usize..30_000, 0u8..40), 60..400),
    ) {
        let mut bench = Bench::new((true, false));
        bench.video_config();
        bench.give(Track::Video, Codec::H264, Kind::Key, &[1][..]);
        let mut said = None;
        for (key, duration, size, event) in frames {
            bench.time += duration;
            match event {
                0 => bench.with(Muxer::gap),
                1 => bench.with(Muxer::flush),
                _ => bench.give(Track::Video, Codec::H264, if key { Kind::Key } else { Kind::Delta }, vec![0; size]),
            }
            let Verdict::Ready(text) = bench.ring.media("", None) else { continue };
            let text = String::from_utf8(text.to_vec()).unwrap();
            let target = values(&text, "#EXT-X-TARGETDURATION:")[0];
            prop_assert!((*said.get_or_insert(target) - target).abs() < 0.5, "{}", text);
            let part_target = values(&text, "#EXT-X-PART-INF:PART-TARGET=")[0];
            prop_assert!(values(&text, "#EXTINF:").iter().all(|long| long.round() <= target), "{}", text);
            prop_assert!(values(&text, "#EXT-X-PART:DURATION=").iter().all(|long| *long <= part_target), "{}", text);
            let first = values(&text, "#EXT-X-MEDIA-SEQUENCE:")[0];
            let numbers = text.lines().filter_map(|line| line.strip_prefix("segment-")?.strip_suffix(".m4s")?.parse().ok());
            let numbers: Vec<u64> = numbers.collect();
            prop_assert!(numbers.iter().copied().eq((first as u64..).take(numbers.len())), "{}", text);
        }
    }
}
