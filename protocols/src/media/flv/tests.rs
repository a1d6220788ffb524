//! Tags against a real file, and every oddity of their bodies.

use super::*;
use proptest::prelude::*;

/// ffmpeg 5.1: 64x48 H.264 with B-frames, AAC mono.
const CLIP: &[u8] = include_bytes!("../testdata/ffmpeg_h264_aac.flv");

fn tags(file: &[u8]) -> Vec<Tag> {
    let mut file = BytesMut::from(file);
    let tags = std::iter::from_fn(|| take_tag(&mut file).unwrap()).collect();
    assert!(file.is_empty());
    tags
}

fn units(tags: &[Tag]) -> Vec<Unit> {
    let mut demux = Demux::default();
    tags.iter().filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body.clone()).unwrap()).collect()
}

#[test]
fn a_real_file_comes_out_byte_for_byte() {
    let mut demux = Demux::default();
    let (mut expected, mut out) = (BytesMut::new(), BytesMut::new());
    for tag in tags(CLIP) {
        // ffmpeg ends its video with an end-of-sequence packet, which carries no media.
        let Some(unit) = demux.unit(tag.tag, tag.dts_ms, tag.body.clone()).unwrap() else {
            assert_eq!(tag.body[..2], [0x17, 2]);
            continue;
        };
        out.clear();
        write_tag(&unit, Hevc::Enhanced, &mut out);
        assert_eq!(out.len(), tag_len(&unit, Hevc::Enhanced));
        assert_eq!(tags(&out), [tag]);
        expected.extend_from_slice(&out);
    }
    assert!(CLIP.windows(expected.len()).any(|window| window == &expected[..]), "the file holds these very bytes");
}

#[test]
fn a_real_file_has_the_units_it_should() {
    let units = units(&tags(CLIP));
    let count = |track, kind| units.iter().filter(|u| u.track == track && u.kind == kind).count();
    assert_eq!((count(Track::Data, Kind::Config), count(Track::Video, Kind::Config)), (1, 1));
    assert_eq!(count(Track::Audio, Kind::Config), 1);
    assert_eq!(count(Track::Video, Kind::Key) + count(Track::Video, Kind::Delta), 13);
    let keys = units.iter().filter(|u| u.track == Track::Video && u.kind == Kind::Key);
    assert!(keys.into_iter().all(|u| h264::is_key(&u.data)));
    assert!(units.iter().any(|u| u.composition_ms() > 0), "the clip has B-frames");
    let config = units.iter().find(|u| u.track == Track::Video && u.kind == Kind::Config).unwrap();
    let picture = AvcC::parse(&config.data).unwrap().picture().unwrap();
    assert_eq!((picture.width, picture.height, picture.fps), (64, 48, Some(25.0)));
}

fn video(body: &[u8]) -> Result<Option<Unit>, MediaError> {
    Demux::default().unit(TagType::Video, 1_000, Bytes::copy_from_slice(body))
}

#[test]
fn composition_times_may_be_negative() {
    let unit = video(&[0x27, 1, 0xff, 0xff, 0xd8, 0, 0, 0, 1, 0x41]).unwrap().unwrap();
    assert_eq!((unit.dts_90k, unit.pts_90k, unit.composition_ms()), (90_000, 86_400, -40));
    assert_eq!(BodyHead::of(&unit, Hevc::Enhanced).as_slice(), [0x27, 1, 0xff, 0xff, 0xd8]);
}

#[test]
fn hevc_in_both_dialects() {
    let legacy = video(&[0x1c, 1, 0, 0, 40, 0, 0, 0, 2, 0x26, 1]).unwrap().unwrap();
    let enhanced = video(&[0x91, b'h', b'v', b'c', b'1', 0, 0, 40, 0, 0, 0, 2, 0x26, 1]).unwrap().unwrap();
    assert_eq!(legacy, enhanced);
    let no_composition = video(&[0x93, b'h', b'v', b'c', b'1', 0, 0, 0, 2, 0x26, 1]).unwrap().unwrap();
    assert_eq!((no_composition.composition_ms(), &no_composition.data), (0, &enhanced.data));
    assert_eq!((enhanced.codec, enhanced.kind), (Codec::H265, Kind::Key));
}

#[test]
fn what_carries_no_media_is_passed_over_and_what_we_cannot_do_is_said() {
    assert_eq!(video(&[0x17, 2, 0, 0, 0]), Ok(None));
    assert_eq!(video(&[0x57, 0]), Ok(None));
    assert_eq!(video(&[]), Ok(None));
    let sorenson = MediaError::Unsupported { part: "video tag", what: "codec", value: 2 };
    assert_eq!(video(&[0x22, 0, 0]), Err(sorenson));
    assert!(matches!(video(&[0x17, 0, 0, 0, 0, 1, 2]), Err(MediaError::Truncated { part: "avcC", .. })));
}

#[test]
fn nal_lengths_of_two_bytes_leave_as_four() {
    let mut demux = Demux::default();
    let record = AvcC {
        nal_length_size: 2,
        ..AvcC::of(Bytes::from_static(&[0x67, 100, 0, 13, 1]), vec![Bytes::from_static(&[0x68])]).unwrap()
    };
    let mut config = BytesMut::from(&[0x17, 0, 0, 0, 0][..]);
    config.extend_from_slice(&record.build());
    let unit = demux.unit(TagType::Video, 0, config.freeze()).unwrap().unwrap();
    assert_eq!(AvcC::parse(&unit.data).unwrap().nal_length_size, 4);
    let frame = Bytes::from_static(&[0x17, 1, 0, 0, 0, 0, 2, 0x65, 9]);
    assert_eq!(demux.unit(TagType::Video, 0, frame).unwrap().unwrap().data[..], [0, 0, 0, 2, 0x65, 9]);
    let broken = Bytes::from_static(&[0x17, 1, 0, 0, 0, 0, 9, 0x65, 9]);
    assert!(demux.unit(TagType::Video, 0, broken).is_err());
}

proptest! {
    #[test]
    fn timestamps_keep_their_milliseconds(ms in 0i64..1 << 40, cts in -(1i32 << 23)..1 << 23) {
        let mut body = vec![0x27, 1];
        body.extend_from_slice(&cts.to_be_bytes()[1..]);
        body.push(0);
        let unit = Demux::default().unit(TagType::Video, ms, body.clone().into()).unwrap().unwrap();
        prop_assert_eq!(unit.dts_ms(), ms);
        let mut out = BytesMut::new();
        write_tag(&unit, Hevc::Enhanced, &mut out);
        let tag = take_tag(&mut out).unwrap().unwrap();
        prop_assert_eq!(tag.dts_ms, i64::from(ms as u32));
        prop_assert_eq!(&tag.body[..], &body[..]);
    }

    #[test]
    fn noise_is_never_a_panic(tag in prop::sample::select(vec![8u8, 9, 18]), noise: Vec<u8>) {
        let _unit = Demux::default().unit(TagType::of(tag).unwrap(), 0, noise.clone().into());
        let _tag = take_tag(&mut BytesMut::from(&noise[..]));
    }
}

fn audio(body: &[u8]) -> Result<Option<Unit>, MediaError> {
    Demux::default().unit(TagType::Audio, 1_000, Bytes::copy_from_slice(body))
}

fn with_four_cc(first: u8, four_cc: &[u8], rest: &[u8]) -> Vec<u8> {
    [&[first], four_cc, rest].concat()
}

/// SVT-AV1 4.2 in ffmpeg 9.
const AV1C: &[u8] =
    &[0x81, 0x00, 0x0c, 0x00, 0x0a, 0x0b, 0x02, 0x00, 0x00, 0x05, 0x21, 0xe7, 0xf6, 0x60, 0x17, 0xc0, 0x02];

#[test]
fn newer_codecs_come_in_and_go_out_by_four_cc() {
    let opus_head = b"OpusHead\x01\x01\x38\x01\x80\xbb\0\0\0\0\0";
    let all = [
        (TagType::Video, with_four_cc(0x90, b"av01", AV1C), Codec::Av1, Kind::Config),
        (TagType::Video, with_four_cc(0x91, b"av01", &[0x0a, 1, 7]), Codec::Av1, Kind::Key),
        (
            TagType::Video,
            with_four_cc(0x90, b"vp09", &[0, 0, 0, 0, 0, 11, 0x82, 2, 2, 2, 0, 0]),
            Codec::Vp9,
            Kind::Config,
        ),
        (TagType::Video, with_four_cc(0xa1, b"vp09", &[0x86]), Codec::Vp9, Kind::Delta),
        (TagType::Audio, with_four_cc(0x90, b"Opus", opus_head), Codec::Opus, Kind::Config),
        (TagType::Audio, with_four_cc(0x91, b"Opus", &[0xf8, 1]), Codec::Opus, Kind::Key),
        (TagType::Audio, with_four_cc(0x91, b"fLaC", &[0xff, 0xf8]), Codec::Flac, Kind::Key),
        (TagType::Audio, with_four_cc(0x91, b"ac-3", &[0x0b, 0x77]), Codec::Ac3, Kind::Key),
    ];
    for (tag, body, codec, kind) in all {
        let unit = Demux::default().unit(tag, 1_000, body.clone().into()).unwrap().unwrap();
        assert_eq!((unit.codec, unit.kind, unit.dts_90k, unit.pts_90k), (codec, kind, 90_000, 90_000));
        let mut out = BytesMut::new();
        write_tag(&unit, Hevc::Enhanced, &mut out);
        assert_eq!(tags(&out)[0].body, body, "{codec:?}");
    }
}

#[test]
fn classic_codecs_said_by_four_cc_are_the_same_units() {
    let same = [
        (audio(&with_four_cc(0x91, b"mp4a", &[1, 2])), audio(&[0xaf, 1, 1, 2])),
        (audio(&with_four_cc(0x90, b"mp4a", &[0x12, 0x08])), audio(&[0xaf, 0, 0x12, 0x08])),
        (audio(&with_four_cc(0x91, b".mp3", &[0xff, 0xfb])), audio(&[0x2f, 0xff, 0xfb])),
        (
            video(&with_four_cc(0x91, b"avc1", &[0, 0, 40, 0, 0, 0, 1, 0x65])),
            video(&[0x17, 1, 0, 0, 40, 0, 0, 0, 1, 0x65]),
        ),
    ];
    for (enhanced, classic) in same {
        assert!(enhanced.as_ref().is_ok_and(Option::is_some), "{enhanced:?}");
        assert_eq!(enhanced, classic);
    }
}

#[test]
fn an_av1_frame_leaves_without_its_delimiter() {
    let unit = video(&with_four_cc(0x91, b"av01", &[0x12, 0, 0x0a, 1, 7])).unwrap().unwrap();
    assert_eq!(unit.data[..], [0x0a, 1, 7]);
    assert_eq!(video(&with_four_cc(0x91, b"av01", &[0x12, 0])), Ok(None));
}

#[test]
fn extensions_are_passed_over() {
    // A nanosecond offset, then one of 256 bytes, then a key frame.
    let body = [&[0x97, 2, 1, 2, 3, 0x07, 0xff, 0, 0xff][..], &[9; 256], &[0x01], b"hvc1", &[0, 0, 0, 5]].concat();
    let unit = video(&body).unwrap().unwrap();
    assert_eq!((unit.codec, unit.kind, &unit.data[..]), (Codec::H265, Kind::Key, &[5][..]));
    let endless = [0x97, 0, 0, 7].repeat(3);
    assert!(matches!(video(&endless), Err(MediaError::Truncated { .. })));
}

#[test]
fn what_is_no_frame_is_passed_over() {
    for nothing in [&[0xd4, b'a', b'v', b'0', b'1', 2, 0, 9][..], &[0xd1, 0], &[0x92, b'a', b'v', b'0', b'1']] {
        assert_eq!(video(nothing), Ok(None), "{nothing:02x?}");
    }
    assert_eq!(audio(&with_four_cc(0x94, b"Opus", &[1, 1, 0, 0, 0, 4])), Ok(None));
    assert_eq!(audio(&with_four_cc(0x90, b"ac-3", &[])), Ok(None));
    let vp8 = MediaError::Unsupported { part: "video tag", what: "codec FourCC", value: u32::from_be_bytes(*b"vp08") };
    assert_eq!(video(&with_four_cc(0x91, b"vp08", &[1])), Err(vp8));
    assert!(video(&with_four_cc(0x91, b"Opus", &[1])).is_err(), "sound is no picture");
}

#[test]
fn of_several_tracks_the_lowest_is_carried_and_the_others_are_counted() {
    let mut demux = Demux::default();
    let mut take =
        |body: &[u8]| demux.unit(TagType::Video, 0, Bytes::copy_from_slice(body)).unwrap().map(|unit| unit.data);
    let one = |track: u8, byte: u8| [&[0x96, 0x01][..], b"av01", &[track, 0x0a, 1, byte]].concat();
    // Track 1 came first; once track 0 is there it is the one.
    assert_eq!(take(&one(1, 5)), Some(Bytes::from_static(&[0x0a, 1, 5])));
    assert_eq!(take(&one(0, 6)), Some(Bytes::from_static(&[0x0a, 1, 6])));
    assert_eq!(take(&one(1, 7)), None);
    // Two tracks in one message, of one codec and of two.
    let many = [&[0x96, 0x11][..], b"av01", &[0, 0, 0, 3, 0x0a, 1, 8, 1, 0, 0, 3, 0x0a, 1, 9]].concat();
    assert_eq!(take(&many), Some(Bytes::from_static(&[0x0a, 1, 8])));
    let codecs = [&[0x96, 0x21][..], b"vp09", &[1, 0, 0, 1, 9], b"av01", &[0, 0, 0, 3, 0x0a, 1, 4]].concat();
    assert_eq!(take(&codecs), Some(Bytes::from_static(&[0x0a, 1, 4])));
    assert_eq!(demux.left_out(), 3);
    // A body that is not numbered is track 0.
    assert!(
        demux.unit(TagType::Video, 0, Bytes::from_static(&[0x17, 1, 0, 0, 0, 0, 0, 0, 1, 0x65])).unwrap().is_some()
    );
    assert!(demux.unit(TagType::Video, 0, many[..12].to_vec().into()).is_err(), "cut off");
}
