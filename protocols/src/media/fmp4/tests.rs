//! The writer against golden bytes, and the fragmenter against the units it was given.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::media::flv::{Demux, take_tag};
use crate::media::{Codec, Kind, Unit};

const CLIP: &[u8] = include_bytes!("../testdata/ffmpeg_h264_aac.flv");

fn units() -> Vec<Unit> {
    let (mut file, mut demux) = (BytesMut::from(CLIP), Demux::default());
    std::iter::from_fn(|| take_tag(&mut file).unwrap())
        .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap())
        .collect()
}

fn descriptions(units: &[Unit]) -> Vec<Description> {
    let configs = units.iter().filter(|unit| unit.kind == Kind::Config && unit.track != Track::Data);
    configs.zip(1..).filter_map(|(unit, id)| Description::of(id, unit)).collect()
}

fn unit(track: Track, codec: Codec, kind: Kind, dts_90k: i64, data: &'static [u8]) -> Unit {
    Unit { track, codec, dts_90k, pts_90k: dts_90k, kind, data: Bytes::from_static(data) }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// The boxes at one level: name and body.
fn boxes(mut bytes: &[u8]) -> Vec<([u8; 4], &[u8])> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let len = be32(bytes) as usize;
        found.push((bytes[4..8].try_into().unwrap(), &bytes[8..len]));
        bytes = &bytes[len..];
    }
    found
}

/// One run as a reader sees it.
#[derive(Debug, PartialEq)]
struct Read {
    track_id: u32,
    dts: u64,
    /// Duration, flags, composition offset, bytes.
    samples: Vec<(u32, u32, i32, Vec<u8>)>,
}

fn read(fragment: &[u8]) -> Vec<Read> {
    let top = boxes(fragment);
    assert_eq!(top.iter().map(|(name, _)| name).collect::<Vec<_>>(), [b"moof", b"mdat"]);
    let trafs = boxes(top[0].1).into_iter().filter(|(name, _)| name == b"traf");
    trafs
        .map(|(_, traf)| {
            let parts = boxes(traf);
            let [(_, tfhd), (_, tfdt), (_, trun)] = parts[..] else { panic!("{parts:?}") };
            let flags = be32(trun) & 0xff_ffff;
            let (count, mut at) = (be32(&trun[4..]), be32(&trun[8..]) as usize);
            let mut fields = trun[12..].chunks_exact(4).map(be32);
            let mut field = |there: bool| if there { fields.next().unwrap() } else { 0 };
            let samples = (0..count)
                .map(|_| {
                    let (duration, size) = (field(true), field(true) as usize);
                    let said = if flags & 0x400 == 0 { be32(&tfhd[8..]) } else { field(true) };
                    let composition = field(flags & 0x800 != 0) as i32;
                    at += size;
                    (duration, said, composition, fragment[at - size..at].to_vec())
                })
                .collect();
            Read { track_id: be32(&tfhd[4..]), dts: u64::from_be_bytes(tfdt[4..12].try_into().unwrap()), samples }
        })
        .collect()
}

#[allow(clippy::disallowed_methods, reason = "golden files are files")]
fn golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/media/testdata").join(name);
    if std::env::var("SLUICEGATE_GOLDEN").is_ok_and(|v| v == "write") {
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(std::fs::read(&path).unwrap_or_default() == bytes, "{} differs", path.display());
}

#[test]
fn an_encoders_clip_gives_its_golden_bytes() {
    let units = units();
    let tracks = descriptions(&units);
    golden("ffmpeg_h264_aac.init.mp4", &init(&tracks));
    let mut fragmenter = Fragmenter::new(&tracks);
    let taken = units.iter().filter(|unit| fragmenter.push(unit)).count();
    let first = fragmenter.cut().unwrap();
    let last = fragmenter.finish().unwrap();
    assert!(first.key && fragmenter.cut().is_none() && fragmenter.bytes() == 0);
    assert_eq!(first.start_90k + first.duration_90k, last.start_90k);
    golden("ffmpeg_h264_aac.m4s", &first.data);
    let frames = |fragment: &[u8]| read(fragment).iter().map(|run| run.samples.len()).sum::<usize>();
    assert_eq!(frames(&first.data) + frames(&last.data), taken);
}

#[test]
fn a_fragment_gives_back_what_was_put_in() {
    let units = units();
    let tracks = descriptions(&units);
    let mut fragmenter = Fragmenter::new(&tracks);
    let mut fragments = Vec::new();
    for unit in &units {
        fragmenter.push(unit);
        if fragmenter.span_90k() >= 9_000 {
            fragments.push(fragmenter.cut().unwrap());
        }
    }
    fragments.extend(fragmenter.finish());
    let mut sequences = fragments.iter().map(|fragment| be32(&boxes(boxes(&fragment.data)[0].1)[0].1[4..]));
    assert!(sequences.by_ref().eq(1..=fragments.len() as u32) && fragments.len() > 2);
    for track in &tracks {
        let runs = fragments.iter().flat_map(|fragment| read(&fragment.data));
        let mut given = units.iter().filter(|unit| unit.track == track.track && unit.kind != Kind::Config);
        let mut end = None;
        for run in runs.filter(|run| run.track_id == track.id) {
            assert!(end.is_none_or(|end| end == run.dts), "fragments touch: {end:?} {}", run.dts);
            let mut at = run.dts;
            for (duration, flags, composition, data) in run.samples {
                let unit = given.next().unwrap();
                let ticks = |time: i64| time * i64::from(track.timescale) / 90_000;
                assert_eq!(data, unit.data);
                assert_eq!(flags, if unit.kind == Kind::Key { SYNC } else { NOT_SYNC });
                assert_eq!(i64::from(composition), ticks(unit.pts_90k) - ticks(unit.dts_90k));
                let off = ticks(unit.dts_90k).abs_diff(at as i64) * 1_000 / u64::from(track.timescale);
                assert!(off <= 3, "{off} ms off");
                assert!(track.track == Track::Video || duration == 1_024, "audio in whole milliseconds has no gaps");
                at += u64::from(duration);
            }
            end = Some(at);
        }
        assert!(given.next().is_none());
    }
}

#[test]
fn codecs_strings_as_browsers_know_them() {
    let names: Vec<_> = descriptions(&units()).iter().map(Description::codecs).collect();
    assert!(names[0].starts_with("avc1.") && names[0].len() == 11, "{names:?}");
    assert_eq!(names[1], "mp4a.40.2");
    let config = |track, codec, data| Description::of(1, &unit(track, codec, Kind::Config, 0, data));
    // x265's main profile, level 3.0
    let record: &[u8] = &[1, 1, 0x60, 0, 0, 0, 0x90, 0, 0, 0, 0, 0, 90, 0xf0, 0, 0xfc, 0xfd, 0xf8, 0xf8, 0, 0, 0x0f, 0];
    let hevc = config(Track::Video, Codec::H265, Bytes::copy_from_slice(record).to_vec().leak()).unwrap();
    assert_eq!(hevc.codecs(), "hvc1.1.6.L90.90");
    assert_eq!(config(Track::Audio, Codec::Aac, &[0x2b, 0x92, 0x08, 0x00]).unwrap().codecs(), "mp4a.40.5");
    let av1 = config(Track::Video, Codec::Av1, &[0x81, 0x04, 0x0c, 0x00]).unwrap();
    assert_eq!(av1.codecs(), "av01.0.04M.08");
    let opus = config(Track::Audio, Codec::Opus, b"OpusHead\x01\x02\x38\x01\x80\xbb\0\0\0\0\0").unwrap();
    assert_eq!((opus.codecs().as_str(), opus.timescale, opus.channels), ("opus", 48_000, 2));
    assert_eq!(opus.ticks_of(&[0xf8, 0]), Some(960));
    let mut entry = BytesMut::new();
    opus.write_entry(&mut entry);
    assert!(entry.ends_with(b"\0\0\0\x13dOps\0\x02\x01\x38\0\0\xbb\x80\0\0\0"), "{entry:02x?}");
    let frame = |codec, data| Description::of(1, &unit(Track::Audio, codec, Kind::Key, 0, data));
    let mp3 = frame(Codec::Mp3, &[0xff, 0xfb, 0x90, 0xc4]).unwrap();
    assert_eq!((mp3.codecs().as_str(), mp3.timescale, mp3.channels), ("mp4a.6B", 44_100, 1));
    assert_eq!(frame(Codec::Mp3, &[0xff, 0xf3, 0x90, 0x04]).unwrap().codecs(), "mp4a.69");
    assert_eq!(
        frame(Codec::G711A, &[0xd5; 160]).map(|track| (track.codecs(), track.timescale)),
        Some(("alaw".into(), 8_000))
    );
    assert_eq!(frame(Codec::G711U, &[0xff; 160]).unwrap().codecs(), "ulaw");
}

#[test]
fn what_tells_no_track_is_none() {
    let none = |track, codec, kind, data| assert_eq!(Description::of(1, &unit(track, codec, kind, 0, data)), None);
    none(Track::Video, Codec::H264, Kind::Key, &[0, 0, 0, 1, 0x65]);
    none(Track::Video, Codec::H264, Kind::Config, &[1, 2]);
    none(Track::Video, Codec::H265, Kind::Config, &[]);
    none(Track::Audio, Codec::Aac, Kind::Config, &[0]);
    none(Track::Audio, Codec::Mp3, Kind::Key, &[0xff, 0x00, 0, 0]);
    none(Track::Data, Codec::Script, Kind::Config, &[]);
}

#[test]
fn a_track_that_stops_leaves_the_other_going() {
    let tracks = descriptions(&units());
    let mut fragmenter = Fragmenter::new(&tracks);
    for n in 0..50 {
        assert!(fragmenter.push(&unit(Track::Audio, Codec::Aac, Kind::Key, n * 2_090, &[7; 9])));
    }
    let fragment = fragmenter.cut().unwrap();
    assert_eq!((fragment.key, read(&fragment.data).len()), (true, 1));
    assert!(fragment.duration_90k.abs_diff(49 * 2_090) < 400, "{}", fragment.duration_90k);
    assert!(!fragmenter.push(&unit(Track::Audio, Codec::Mp3, Kind::Key, 0, &[1])), "another codec is not of this file");
}

proptest! {
    #[test]
    fn any_times_give_decode_times_that_rise(
        times in prop::collection::vec((-1i64 << 40..1 << 40, -90_000i64..90_000, any::<bool>()), 1..40),
        cut_every in 1usize..8,
    ) {
        let tracks = descriptions(&units());
        let mut fragmenter = Fragmenter::new(&tracks);
        let mut fragments = Vec::new();
        for (n, (dts_90k, composition, video)) in times.iter().enumerate() {
            let (track, codec) = if *video { (Track::Video, Codec::H264) } else { (Track::Audio, Codec::Aac) };
            let unit = Unit { pts_90k: dts_90k + composition, ..unit(track, codec, Kind::Key, *dts_90k, &[1, 2, 3]) };
            prop_assert!(fragmenter.push(&unit));
            if n % cut_every == 0 {
                fragments.extend(fragmenter.cut());
            }
        }
        fragments.extend(fragmenter.finish());
        let runs: Vec<_> = fragments.iter().flat_map(|fragment| read(&fragment.data)).collect();
        prop_assert_eq!(runs.iter().map(|run| run.samples.len()).sum::<usize>(), times.len());
        prop_assert!(runs.iter().flat_map(|run| &run.samples).all(|(duration, ..)| *duration > 0));
    }
}
