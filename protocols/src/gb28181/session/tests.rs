//! The talk with cameras: streams of others over both wires, and what a network makes of them.
#![allow(clippy::disallowed_methods, reason = "virtual time has to start somewhere, and samples are files")]

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use super::*;
use crate::media::h264;
use crate::session::Identity;

const END: &[u8] = &[0, 0, 1, 0xb9];

/// A program stream nobody here wrote, or `None` where the samples are not (in CI they are).
fn sample(name: &str) -> Option<Vec<u8>> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/samples");
    let folder = std::env::var("SLUICEGATE_SAMPLES").unwrap_or_else(|_| beside.to_owned());
    let path = format!("{folder}/ps-rtp/{name}");
    let read = std::fs::read(&path).ok();
    assert!(read.is_some() || std::env::var_os("CI").is_none(), "{path} is not there: set SLUICEGATE_SAMPLES");
    read
}

/// Packets of 1,400 bytes, the last of each pack marked.
fn packets(stream: &[u8], ssrc: u32) -> Vec<Bytes> {
    let packs: Vec<usize> =
        stream.windows(4).enumerate().filter(|(_, w)| *w == [0, 0, 1, 0xba]).map(|(at, _)| at).collect();
    let ends = packs.iter().skip(1).copied().chain([stream.len()]);
    let mut packets = Vec::new();
    for (timestamp, (begin, end)) in (1_u32..).zip(packs.iter().copied().zip(ends)) {
        let count = stream[begin..end].chunks(1_400).count();
        for (at, piece) in stream[begin..end].chunks(1_400).enumerate() {
            let sequence = 65_500_u16.wrapping_add(packets.len() as u16);
            let mut packet = BytesMut::new();
            let marker = at + 1 == count;
            Header { marker, payload_type: 96, sequence, timestamp: timestamp * 3_600, ssrc }.write(&mut packet);
            packet.put_slice(piece);
            packets.push(packet.freeze());
        }
    }
    packets
}

struct Talk {
    session: GbSession,
    now: Instant,
    units: Vec<Unit>,
    sources: Vec<String>,
    missing: u64,
    faults: usize,
}

impl Talk {
    fn new() -> Self {
        let names = Arc::new(Names { all: None, by_ssrc: std::collections::BTreeMap::new() });
        let (session, now) = (GbSession::new(names), Instant::now());
        Self { session, now, units: Vec::new(), sources: Vec::new(), missing: 0, faults: 0 }
    }

    fn input(&mut self, input: Input<'_>) {
        let mut out = Outbox::default();
        self.faults += usize::from(self.session.receive(self.now, input, &mut out).is_err());
        while let Some(output) = out.pop() {
            match output {
                Output::Admit { ticket, .. } => {
                    self.input(Input::Admission { ticket, outcome: Ok(Identity::anonymous()) });
                }
                Output::Source { stream } | Output::Carry { stream, .. } => self.sources.push(stream.to_string()),
                Output::Unit(unit) | Output::Carried { unit, .. } => self.units.push(unit),
                Output::Missing { packets } => self.missing += packets,
                other => panic!("{other:?}"),
            }
        }
    }

    fn datagrams<'a>(packets: impl IntoIterator<Item = &'a Bytes>) -> Self {
        let mut talk = Self::new();
        for packet in packets {
            talk.now += Duration::from_millis(1);
            talk.input(Input::Datagram(packet.clone()));
        }
        talk
    }

    fn pictures(&self) -> Vec<&Unit> {
        self.units.iter().filter(|unit| unit.track == Track::Video && unit.kind != Kind::Config).collect()
    }
}

/// The same pictures, whatever the wire, and what ffmpeg's or libmpeg's stream holds: 99 or 100.
#[test]
fn program_streams_of_others_come_out_whole() {
    for (name, pictures, sounds) in [
        ("libmpeg_synth/h264_g711a.ps", 99, 90),
        ("libmpeg_synth/h265_aac.ps", 99, 50),
        ("libmpeg_synth/h264_4slices_aud.ps", 99, 0),
    ] {
        let Some(mut stream) = sample(name) else { return };
        stream.extend(END);
        let packets = packets(&stream, 100_000_001);
        let over_udp = Talk::datagrams(&packets);
        assert_eq!((over_udp.faults, over_udp.missing, over_udp.sources.len()), (0, 0, 1), "{name}");
        assert_eq!(over_udp.sources, ["gb/0100000001"]);
        assert_eq!(over_udp.pictures().len(), pictures, "{name}");
        let heard = over_udp.units.iter().filter(|unit| unit.track == Track::Audio && unit.kind == Kind::Key).count();
        assert!(heard >= sounds, "{name}: {heard}");
        // What a player is told of the sound stands ahead of the first picture, and nothing of the sound itself.
        let first = over_udp.units.iter().find(|unit| (unit.track, unit.kind) != (Track::Audio, Kind::Config));
        assert_eq!(first.map(|unit| (unit.track, unit.kind)), Some((Track::Video, Kind::Config)), "{name}");
        assert_eq!(over_udp.pictures()[0].kind, Kind::Key, "{name}");
        let (mut over_tcp, mut buffer) = (Talk::new(), BytesMut::new());
        for packet in &packets {
            buffer.put_u16(packet.len() as u16);
            buffer.put_slice(packet);
            while !buffer.is_empty() {
                over_tcp.input(Input::Stream(&mut buffer));
            }
        }
        assert_eq!(over_tcp.units, over_udp.units, "{name}");
    }
}

#[test]
fn a_key_frame_of_a_real_camera_comes_out_whole() {
    let Some(bytes) = sample("srs/hik_keyframe_filler.rfc4571") else { return };
    let (mut talk, mut buffer) = (Talk::new(), BytesMut::from(&bytes[..]));
    for _ in 0..2 {
        talk.input(Input::Stream(&mut buffer));
    }
    let mut end = BytesMut::new();
    Header { marker: false, payload_type: 96, sequence: 31_915, timestamp: 95_648_400, ssrc: 0x0beb_d135 }
        .write(&mut end);
    end.put_slice(END);
    buffer.put_u16(end.len() as u16);
    buffer.put_slice(&end);
    talk.input(Input::Stream(&mut buffer));
    assert_eq!((talk.faults, talk.sources.as_slice()), (0, &["gb/0200003893".to_owned()][..]));
    let [key] = talk.pictures()[..] else { panic!("{} pictures", talk.pictures().len()) };
    assert_eq!(key.kind, Kind::Key);
    // The information ahead of it, and the picture with every byte of its three packets.
    let lens: Vec<usize> = h264::nals(&key.data, 4).map(<[u8]>::len).collect();
    assert_eq!(lens.len(), 2, "{lens:?}");
    assert!((130_000..142_000).contains(&lens[1]), "{lens:?}");
}

#[test]
fn after_loss_pictures_go_on_at_a_key_frame_and_none_is_broken() {
    let Some(mut stream) = sample("libmpeg_synth/h264_g711a.ps") else { return };
    stream.extend(END);
    let packets = packets(&stream, 7);
    let whole: Vec<Bytes> = Talk::datagrams(&packets).pictures().iter().map(|unit| unit.data.clone()).collect();
    // Every 40th packet is lost, neighbours are swapped, some come twice.
    let mut order: Vec<Bytes> = Vec::new();
    for pair in packets.iter().enumerate().collect::<Vec<_>>().chunks(2) {
        order.extend(pair.iter().rev().filter(|(at, _)| at % 40 != 39).map(|(_, packet)| (*packet).clone()));
        order.extend(pair.first().filter(|(at, _)| at % 14 == 0).map(|(_, packet)| (*packet).clone()));
    }
    let talk = Talk::datagrams(&order);
    let got = talk.pictures();
    let mut waits = true;
    let mut at = 0;
    for unit in &got {
        let place =
            whole.iter().skip(at).position(|data| *data == unit.data).expect("a picture that was sent, in order");
        waits |= place > 0;
        assert!(!waits || unit.kind == Kind::Key, "a picture behind a gap is a key frame");
        (at, waits) = (at + place + 1, false);
    }
    assert!(talk.missing > 3 && got.len() < whole.len() && !got.is_empty(), "{} of {}", got.len(), whole.len());
    assert_eq!(talk.faults, 0);
}

#[test]
fn a_first_packet_that_was_overtaken_costs_no_picture() {
    let Some(stream) = sample("libmpeg_synth/h264_g711a.ps") else { return };
    let mut packets = packets(&stream, 7);
    packets.swap(0, 2);
    let talk = Talk::datagrams(&packets);
    assert_eq!(
        talk.pictures().len(),
        Talk::datagrams(&{
            packets.swap(0, 2);
            packets
        })
        .pictures()
        .len()
    );
}

#[test]
fn a_camera_that_began_anew_goes_on_whatever_its_numbers() {
    let Some(stream) = sample("libmpeg_synth/h264_g711a.ps") else { return };
    let first = packets(&stream, 7);
    let again: Vec<Bytes> = first
        .iter()
        .enumerate()
        .map(|(at, packet)| {
            let mut packet = packet.to_vec();
            packet[2..4].copy_from_slice(&(30_000_u16 + at as u16).to_be_bytes());
            packet.into()
        })
        .collect();
    let once = Talk::datagrams(&first).pictures().len();
    let talk = Talk::datagrams(first.iter().chain(&again));
    assert!(talk.pictures().len() >= 2 * once, "{} of {once} twice", talk.pictures().len());
    assert_eq!(talk.sources.len(), 1);
}

#[test]
fn who_may_not_come_in_moves_nothing() {
    let packet = packets(&[0, 0, 1, 0xba, 0x44], 7).remove(0);
    let (mut session, mut out) = (GbSession::new(Talk::new().session.names), Outbox::default());
    session.receive(Instant::now(), Input::Datagram(packet.clone()), &mut out).unwrap();
    assert!(session.paused() && matches!(out.pop(), Some(Output::Admit { .. })));
    let refused = Input::Admission { ticket: TICKET, outcome: Err(Refusal::Unauthorized) };
    let now = Instant::now();
    session.receive(now, refused, &mut out).unwrap();
    for _ in 0..3 {
        session.receive(now, Input::Datagram(packet.clone()), &mut out).unwrap();
    }
    assert!(out.is_empty() && !session.paused(), "asked once");
    assert_eq!(session.deadline(), Some(now + MUTED));
    session.tick(now + MUTED, &mut out);
    assert!(matches!(out.pop(), Some(Output::Close { .. })), "it may ask again");
}

#[test]
fn who_lost_its_stream_to_another_is_muted_and_who_paused_asks_again() {
    let Some(stream) = sample("libmpeg_synth/h264_g711a.ps") else { return };
    let packets = packets(&stream, 7);
    for pause in [false, true] {
        let mut talk = Talk::datagrams(&packets[..100]);
        assert_eq!(talk.sources.len(), 1);
        talk.now += if pause { Duration::from_secs(20) } else { Duration::from_millis(40) };
        for packet in &packets[100..130] {
            talk.input(Input::Datagram(packet.clone()));
        }
        talk.input(Input::Media(MediaEvent::Parted { ticket: TICKET }));
        assert_eq!(talk.session.deadline().is_some(), !pause);
        for packet in &packets[130..] {
            talk.input(Input::Datagram(packet.clone()));
        }
        assert_eq!(talk.sources.len(), if pause { 2 } else { 1 });
    }
}

#[test]
fn a_lone_packet_of_another_source_costs_nothing_but_a_fault() {
    let Some(stream) = sample("libmpeg_synth/h264_g711a.ps") else { return };
    let mut all = packets(&stream, 7);
    let whole = Talk::datagrams(&all).pictures().len();
    all.insert(60, packets(&stream, 8)[3].clone());
    let talk = Talk::datagrams(&all);
    assert_eq!((talk.pictures().len(), talk.faults, talk.missing), (whole, 1, 0));
}

#[test]
fn packets_without_a_program_stream_end_the_talk_with_a_word() {
    let mut talk = Talk::new();
    let end = (0..2_000_u16).find_map(|sequence| {
        let mut packet = BytesMut::new();
        Header { marker: true, payload_type: 98, sequence, timestamp: 0, ssrc: 7 }.write(&mut packet);
        packet.put_slice(&[0x41; 1_400]);
        let mut out = Outbox::default();
        talk.session.gate = Gate::Source;
        let outcome = talk.session.receive(talk.now, Input::Datagram(packet.freeze()), &mut out);
        outcome.err().filter(|fault| fault.fatal)
    });
    assert!(end.unwrap().to_string().contains("MPEG-PS"));
}
