//! Units that come back from their packets, losses, noise, and how AAC may be packed.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::{Depacketizer, Described};
use crate::media::aac::AudioSpecificConfig;
use crate::media::h264::AvcC;
use crate::media::h265::HvcC;
use crate::media::rtp::{Header, Packetizer, Sink};
use crate::media::{Codec, Kind, Track, Tracks, Unit};

#[derive(Default)]
struct Packets(Vec<BytesMut>);

impl Sink for Packets {
    fn packet(&mut self, len: usize) -> &mut BytesMut {
        self.0.push(BytesMut::with_capacity(len));
        self.0.last_mut().unwrap()
    }
}

fn packets(tracks: &Tracks, track: Track, units: &[Unit]) -> (Vec<Bytes>, Depacketizer) {
    let mut packetizer = Packetizer::new(tracks, track, 7, 65_530).unwrap();
    let format = packetizer.format();
    let mut packets = Packets::default();
    for unit in units {
        packetizer.unit(unit, &mut packets);
    }
    let packets: Vec<Bytes> = packets.0.into_iter().map(BytesMut::freeze).collect();
    assert!(packets.iter().all(|packet| packet.len() <= crate::media::rtp::packetize::PACKET_MAX));
    let sets = tracks.audio.iter().map(|config| config.data.clone()).collect();
    let described =
        Described { codec: format.codec, payload_type: format.payload_type, clock: format.clock, sets, latm: false };
    (packets, Depacketizer::new(described))
}

fn unpack(packets: &[Bytes], depacketizer: &mut Depacketizer) -> Vec<Unit> {
    let mut units = Vec::new();
    for packet in packets {
        depacketizer.packet(packet, &mut units).unwrap();
    }
    units
}

const SPS: [u8; 10] = [0x67, 66, 0xc0, 30, 0xd9, 0x01, 0x40, 0x7b, 0x20, 1];

/// A stream of frames with NAL units of these sizes; every fifth is a key frame.
fn video(codec: Codec, frames: &[Vec<usize>]) -> (Tracks, Vec<Unit>) {
    let hevc = codec == Codec::H265;
    let unit = |at: usize, kind, data| {
        let time = at as i64 * 3_600;
        Unit { track: Track::Video, codec, dts_90k: time, pts_90k: time, kind, data }
    };
    let pps = |byte| if hevc { vec![0x44, 1, byte] } else { vec![0x68, byte] };
    let config = if hevc {
        let sps = Bytes::copy_from_slice(&h265_sps());
        HvcC::of(vec![Bytes::from_static(&[0x40, 1, 5])], vec![sps], vec![pps(1).into()]).unwrap()
    } else {
        AvcC::of(Bytes::copy_from_slice(&SPS), vec![pps(1).into(), pps(2).into()]).unwrap().build()
    };
    let mut units = vec![unit(0, Kind::Config, config)];
    for (at, sizes) in frames.iter().enumerate() {
        let key = at % 5 == 0;
        let mut data = BytesMut::new();
        for &size in sizes {
            let head: &[u8] = match (hevc, key) {
                (true, true) => &[0x26, 1],
                (true, false) => &[0x02, 1],
                (false, true) => &[0x65],
                (false, false) => &[0x41],
            };
            data.put_u32((size + head.len()) as u32);
            data.put_slice(head);
            data.extend((0..size).map(|n| (n + at) as u8));
        }
        units.push(unit(at, if key { Kind::Key } else { Kind::Delta }, data.freeze()));
    }
    let mut tracks = Tracks::default();
    tracks.note(&units[0]);
    (tracks, units)
}

const fn h265_sps() -> [u8; 42] {
    [
        0x42, 0x01, 0x01, 0x01, 0x60, 0x00, 0x00, 0x03, 0x00, 0x90, 0x00, 0x00, 0x03, 0x00, 0x00, 0x03, 0x00, 0x3f,
        0xa0, 0x05, 0x02, 0x01, 0x69, 0x65, 0xba, 0x92, 0x4c, 0xaf, 0x01, 0x68, 0x08, 0x00, 0x00, 0x03, 0x00, 0x08,
        0x00, 0x00, 0x03, 0x00, 0xc8, 0x40,
    ]
}

fn audio(sizes: &[usize]) -> (Tracks, Vec<Unit>) {
    let config = AudioSpecificConfig { object_type: 2, rate: 48_000, channels: 2 }.build();
    let unit = |at: usize, kind, data| {
        let time = at as i64 * 1_920;
        Unit { track: Track::Audio, codec: Codec::Aac, dts_90k: time, pts_90k: time, kind, data }
    };
    let mut units = vec![unit(0, Kind::Config, config)];
    units.extend(sizes.iter().enumerate().map(|(at, &size)| unit(at, Kind::Key, vec![at as u8; size].into())));
    let mut tracks = Tracks::default();
    tracks.note(&units[0]);
    (tracks, units)
}

/// Without the decode times: with reordering in the parameter sets they lie before those sent.
fn shown(units: &[Unit]) -> Vec<(Kind, i64, Bytes)> {
    let frames = units.iter().filter(|unit| unit.kind != Kind::Config);
    frames.map(|unit| (unit.kind, unit.pts_90k, unit.data.clone())).collect()
}

proptest! {
    #[test]
    fn units_come_back_from_their_packets(
        hevc: bool,
        frames in prop::collection::vec(prop::collection::vec(1usize..6_000, 1..6), 1..12),
    ) {
        let (tracks, units) = video(if hevc { Codec::H265 } else { Codec::H264 }, &frames);
        let (packets, mut depacketizer) = packets(&tracks, Track::Video, &units);
        let back = unpack(&packets, &mut depacketizer);
        prop_assert_eq!(shown(&back), shown(&units));
        prop_assert_eq!(&back[0].data, &units[0].data);
        prop_assert_eq!(back.iter().filter(|unit| unit.kind == Kind::Config).count(), 1);
        prop_assert_eq!(depacketizer.lost(), 0);
    }

    #[test]
    fn audio_comes_back_from_its_packets(sizes in prop::collection::vec(1usize..8_000, 1..20)) {
        let (tracks, units) = audio(&sizes);
        let (packets, mut depacketizer) = packets(&tracks, Track::Audio, &units);
        prop_assert_eq!(unpack(&packets, &mut depacketizer), units);
    }

    /// A lost packet costs its frame and those up to the next key frame, no more, and nothing comes out damaged.
    #[test]
    fn what_is_lost_is_left_out_up_to_the_next_key_frame(
        frames in prop::collection::vec(prop::collection::vec(1usize..6_000, 1..4), 10..20),
        lost in any::<prop::sample::Index>(),
    ) {
        let (tracks, units) = video(Codec::H264, &frames);
        let (mut packets, mut depacketizer) = packets(&tracks, Track::Video, &units);
        // The loss of the very first or the very last cannot be noticed.
        let lost = 1 + lost.index(packets.len() - 2);
        let (header, _) = Header::parse(&packets.remove(lost)).unwrap();
        let back = shown(&unpack(&packets, &mut depacketizer));
        let (frame, all) = (header.timestamp as usize / 3_600, shown(&units));
        let next_key = (frame + 1).div_ceil(5) * 5;
        prop_assert!(back.iter().all(|unit| all.contains(unit)));
        let kept = |range: std::ops::Range<usize>| all.get(range).is_none_or(|range| range.iter().all(|unit| back.contains(unit)));
        prop_assert!(kept(next_key..all.len()));
        prop_assert!(kept(0..frame));
        prop_assert_eq!(depacketizer.lost(), 1);
    }

    #[test]
    fn noise_is_never_a_panic(codec in prop::sample::select(vec![Codec::H264, Codec::H265, Codec::Aac, Codec::G711A]), payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let described = Described { codec, payload_type: 96, clock: 90_000, sets: Vec::new(), latm: false };
        let mut depacketizer = Depacketizer::new(described);
        for (sequence, payload) in payloads.iter().enumerate() {
            let mut packet = BytesMut::new();
            let marker = payload.first().is_some_and(|byte| byte & 1 == 1);
            let timestamp = sequence as u32 / 3;
            Header { marker, payload_type: 96, sequence: sequence as u16, timestamp, ssrc: 1 }.write(&mut packet);
            packet.put_slice(payload);
            let _taken = depacketizer.packet(&packet.freeze(), &mut Vec::new());
        }
    }
}

#[test]
fn several_audio_frames_of_a_packet_have_times_of_their_own() {
    let config = AudioSpecificConfig { object_type: 2, rate: 48_000, channels: 2 }.build();
    let described = Described { codec: Codec::Aac, payload_type: 97, clock: 48_000, sets: vec![config], latm: false };
    let mut packet = BytesMut::new();
    Header { marker: true, payload_type: 97, sequence: 0, timestamp: 5, ssrc: 1 }.write(&mut packet);
    packet.put_slice(&[0, 32, 0, 2 << 3, 0, 3 << 3, 1, 1, 2, 2, 2]);
    let units = unpack(&[packet.freeze()], &mut Depacketizer::new(described));
    let shown: Vec<(i64, &[u8])> = units[1..].iter().map(|unit| (unit.pts_90k, &unit.data[..])).collect();
    assert_eq!(shown, [(0, &[1, 1][..]), (1_920, &[2, 2, 2][..])]);
}

#[test]
fn latm_frames_come_whole_or_in_pieces_and_never_spoiled() {
    let described = Described {
        codec: Codec::Aac,
        payload_type: 96,
        clock: 48_000,
        sets: vec![Bytes::from_static(&[0x11, 0x90])],
        latm: true,
    };
    let mut depacketizer = Depacketizer::new(described);
    let packet = |marker, sequence, timestamp, payload: &[u8]| {
        let mut packet = BytesMut::new();
        Header { marker, payload_type: 96, sequence, timestamp, ssrc: 1 }.write(&mut packet);
        packet.extend_from_slice(payload);
        packet.freeze()
    };
    let (mut units, long) = (Vec::new(), vec![7; 300]);
    depacketizer.packet(&packet(true, 0, 0, &[2, 1, 1, 1, 9]), &mut units).unwrap();
    depacketizer.packet(&packet(false, 1, 2_048, &[&[255, 45], &long[..100]].concat()), &mut units).unwrap();
    depacketizer.packet(&packet(true, 2, 2_048, &long[100..]), &mut units).unwrap();
    depacketizer.packet(&packet(true, 4, 4_096, &[9, 9]), &mut units).unwrap();
    assert!(depacketizer.packet(&packet(true, 5, 5_120, &[9, 9]), &mut units).is_err(), "longer than the packet");
    depacketizer.packet(&packet(true, 6, 6_144, &[1, 4]), &mut units).unwrap();
    let shown: Vec<(i64, usize)> = units[1..].iter().map(|unit| (unit.pts_90k, unit.data.len())).collect();
    assert_eq!((units[0].kind, shown), (Kind::Config, vec![(0, 2), (1_920, 1), (3_840, 300), (11_520, 1)]));
}
