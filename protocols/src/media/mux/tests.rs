//! Muxers against the demultiplexer, over units of a real encoder.

use super::*;
use crate::media::flv::{Demux, take_tag};

const CLIP: &[u8] = include_bytes!("../testdata/ffmpeg_h264_aac.flv");

fn units() -> Vec<Unit> {
    let (mut file, mut demux) = (BytesMut::from(CLIP), Demux::default());
    std::iter::from_fn(|| take_tag(&mut file).unwrap())
        .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap())
        .collect()
}

fn tracks(units: &[Unit]) -> Tracks {
    let mut tracks = Tracks::default();
    for unit in units {
        tracks.note(unit);
    }
    tracks
}

fn demux(mut file: BytesMut) -> Vec<Unit> {
    let mut demux = Demux::default();
    let units = std::iter::from_fn(|| take_tag(&mut file).unwrap())
        .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap())
        .collect();
    assert!(file.is_empty());
    units
}

/// Takes the chunks of HTTP's chunked coding apart.
fn unchunk(mut bytes: &[u8]) -> BytesMut {
    let mut plain = BytesMut::new();
    while !bytes.is_empty() {
        let line = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
        let len = usize::from_str_radix(std::str::from_utf8(&bytes[..line]).unwrap(), 16).unwrap();
        plain.extend_from_slice(&bytes[line + 2..line + 2 + len]);
        assert_eq!(&bytes[line + 2 + len..line + 4 + len], b"\r\n");
        bytes = &bytes[line + 4 + len..];
    }
    plain
}

#[test]
fn a_viewer_that_joins_late_gets_the_head_at_its_first_units_time() {
    let units = units();
    let tracks = tracks(&units);
    let from = units.iter().rposition(|u| u.track == Track::Video && u.kind == Kind::Key).unwrap();
    let start = units[from].dts_90k;
    for container in [Container::Flv, Container::FlvChunked] {
        let mut mux = mux(container);
        let mut out = BytesMut::from(&mux.preamble(&tracks, start)[..]);
        for unit in &units[from..] {
            mux.unit(unit, &mut out);
        }
        let out = if container == Container::FlvChunked { unchunk(&out) } else { out };
        assert_eq!(out[4], 5, "audio and video");
        let got = demux(out);
        assert_eq!(&got[3..], &units[from..]);
        assert!(got[..3].iter().all(|unit| unit.kind == Kind::Config));
        assert_eq!([got[0].dts_90k, got[1].dts_90k, got[2].dts_90k], [0, start, start]);
    }
}

/// Takes binary messages apart.
fn messages(mut bytes: &[u8]) -> Vec<BytesMut> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        assert_eq!(bytes[0], 0x82);
        let (len, head) = match bytes[1] {
            126 => (usize::from(u16::from_be_bytes(bytes[2..4].try_into().unwrap())), 4),
            127 => (u64::from_be_bytes(bytes[2..10].try_into().unwrap()) as usize, 10),
            len => (usize::from(len), 2),
        };
        messages.push(BytesMut::from(&bytes[head..head + len]));
        bytes = &bytes[head + len..];
    }
    messages
}

#[test]
fn each_tag_is_one_message_of_a_web_socket() {
    let mut units = units();
    let huge = Unit { data: vec![7; 70_000].into(), ..units[units.len() - 1].clone() };
    units.push(huge);
    let mut mux = mux(Container::FlvWebSocket);
    let head = messages(&mux.preamble(&tracks(&units), 0));
    assert_eq!((head.len(), demux(head[0].clone()).len()), (1, 3));
    let mut out = BytesMut::new();
    for unit in &units {
        mux.unit(unit, &mut out);
    }
    let got: Vec<Unit> = messages(&out).into_iter().flat_map(demux).collect();
    assert_eq!(got, units);
    assert_eq!(messages(&out).len(), units.len());
}

fn hevc_units() -> Vec<Unit> {
    let unit = |kind, dts_90k, pts_90k, data: &[u8]| Unit {
        track: Track::Video,
        codec: Codec::H265,
        dts_90k,
        pts_90k,
        kind,
        data: Bytes::copy_from_slice(data),
    };
    let mut record = [0; 23];
    (record[0], record[21]) = (1, 0xff);
    vec![
        unit(Kind::Config, 0, 0, &record),
        unit(Kind::Key, 0, 7_200, &[0, 0, 0, 2, 0x26, 1]),
        unit(Kind::Delta, 3_600, 3_600, &[0, 0, 0, 2, 0x02, 1]),
    ]
}

#[test]
fn both_dialects_of_h265_say_the_same() {
    let units = hevc_units();
    for (container, config, key) in [
        (Container::Flv, &[0x90, b'h', b'v', b'c', b'1'][..], &[0x91, b'h', b'v', b'c', b'1', 0, 0, 80][..]),
        (Container::FlvLegacy, &[0x1c, 0, 0, 0, 0], &[0x1c, 1, 0, 0, 80]),
    ] {
        let mut mux = mux(container);
        let mut out = BytesMut::new();
        for unit in &units {
            mux.unit(unit, &mut out);
        }
        let mut file = out.clone();
        let bodies: Vec<Bytes> = std::iter::from_fn(|| take_tag(&mut file).unwrap()).map(|tag| tag.body).collect();
        assert!(bodies[0].starts_with(config) && bodies[1].starts_with(key), "{container:?} {bodies:02x?}");
        assert_eq!(demux(out), units);
    }
}

#[test]
fn metadata_names_the_codec_in_the_viewers_dialect() {
    let enhanced = metadata::unit_of(&tracks(&hevc_units()));
    let legacy = metadata::for_viewers(&enhanced, Hevc::Legacy);
    let id = |unit: &Unit| {
        let mut reader = crate::media::amf0::Reader::new(&unit.data);
        reader.value().unwrap();
        reader.value().unwrap().get("videocodecid").unwrap().as_number().unwrap()
    };
    assert_eq!((id(&enhanced), id(&legacy)), (f64::from(u32::from_be_bytes(*b"hvc1")), 12.0));
    assert_eq!(*metadata::for_viewers(&legacy, Hevc::Enhanced), enhanced);
    assert_eq!(*metadata::for_viewers(&enhanced, Hevc::Enhanced), enhanced);
}

#[test]
fn without_h265_the_dialects_are_equal() {
    let units = units();
    for container in [Container::Flv, Container::FlvChunked, Container::FlvWebSocket, Container::Rtmp] {
        let bytes = |container: Container| {
            let mut mux = mux(container);
            let mut out = BytesMut::from(&mux.preamble(&tracks(&units), 0)[..]);
            for unit in &units {
                mux.unit(unit, &mut out);
            }
            out
        };
        let legacy = container.with_hevc(Hevc::Legacy);
        assert_ne!(container, legacy);
        assert_eq!(legacy.with_hevc(Hevc::Enhanced), container);
        assert!(bytes(container) == bytes(legacy), "{container:?}");
    }
}

#[test]
fn flags_say_what_there_is() {
    let audio: Vec<Unit> = units().into_iter().filter(|u| u.track == Track::Audio).collect();
    assert_eq!(mux(Container::Flv).preamble(&tracks(&audio), 0)[4], 4);
    let g711 = Unit { codec: Codec::G711A, kind: Kind::Key, ..audio[0].clone() };
    assert_eq!(mux(Container::Flv).preamble(&tracks(&[g711]), 0)[4], 4, "G.711 has no configuration");
    let video: Vec<Unit> = units().into_iter().filter(|u| u.track == Track::Video).collect();
    assert_eq!(mux(Container::Flv).preamble(&tracks(&video), 0)[4], 1);
}

#[test]
fn metadata_is_made_up_where_there_is_none() {
    let bare: Vec<Unit> = units().into_iter().filter(|u| u.track != Track::Data).collect();
    let preamble = mux(Container::Flv).preamble(&tracks(&bare), 0);
    let first = &demux(BytesMut::from(&preamble[..]))[0];
    let metadata = metadata::Metadata::parse(&first.data).unwrap().unwrap();
    assert_eq!((metadata.width, metadata.height, metadata.fps), (Some(64.0), Some(48.0), Some(25.0)));
    assert_eq!(metadata.audio_rate, Some(44_100.0));
}

#[test]
fn a_repeated_configuration_is_no_change() {
    let units = units();
    let config = units.iter().find(|u| u.track == Track::Video && u.kind == Kind::Config).unwrap();
    let mut tracks = Tracks::default();
    assert_eq!(tracks.note(config), Change::New);
    assert_eq!(tracks.note(&Unit { dts_90k: 90_000, ..config.clone() }), Change::None);
    let other = Unit { data: Bytes::from_static(b"other"), ..config.clone() };
    assert_eq!(tracks.note(&other), Change::Replaced);
    let huge = Unit { data: vec![0; Tracks::CONFIG_MAX + 1].into(), ..config.clone() };
    assert_eq!((tracks.note(&huge), tracks.video.unwrap().data), (Change::None, Bytes::from_static(b"other")));
}

#[test]
fn a_unit_that_no_container_can_say_appends_nothing() {
    let unit = Unit { data: vec![0; Unit::LEN_MAX + 1].into(), ..units().remove(5) };
    for container in [Container::Flv, Container::FlvChunked, Container::FlvWebSocket, Container::Rtmp] {
        let mut out = BytesMut::new();
        mux(container).unit(&unit, &mut out);
        assert!(out.is_empty(), "{container:?}");
    }
}

#[test]
fn a_chunk_size_is_hexadecimal_without_leading_zeros() {
    for len in [0, 1, 9, 10, 15, 16, 255, 256, 65_535, 1 << 20] {
        let mut out = BytesMut::new();
        put_chunk_size(len, &mut out);
        assert_eq!(out, format!("{len:x}\r\n").as_bytes());
    }
}

#[test]
fn an_extended_timestamp_is_in_every_chunk() {
    let header = MessageHeader { chunk_stream: 6, timestamp: 0x0100_0000, type_id: 9, stream_id: 1 };
    let mut out = BytesMut::new();
    write_message(&header, &[&[1, 2, 3], &[4, 5]], 2, &mut out);
    let time = [1, 0, 0, 0];
    let mut expected = vec![6, 0xff, 0xff, 0xff, 0, 0, 5, 9, 1, 0, 0, 0];
    for piece in [&[1u8, 2][..], &[0xc6], &time, &[3, 4], &[0xc6], &time, &[5]] {
        if expected.len() == 12 {
            expected.extend_from_slice(&time);
        }
        expected.extend_from_slice(piece);
    }
    assert_eq!(out, expected);
    out.clear();
    write_message(&MessageHeader { timestamp: 0xff_fffe, ..header }, &[&[1]], 2, &mut out);
    assert_eq!(out[..4], [6, 0xff, 0xff, 0xfe]);
    out.clear();
    write_message(&MessageHeader { timestamp: 0xff_ffff, ..header }, &[&[1]], 2, &mut out);
    assert_eq!(out[12..16], [0, 0xff, 0xff, 0xff]);
}
