//! What is fuzzed: every row of the table as a talk, and the media parsers below them.

#![allow(unreachable_pub, reason = "a module of a test crate")]

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use device_models::{Command, Order, Value};
use protocols::media::aac::{Adts, AudioSpecificConfig};
use protocols::media::amf0::Reader;
use protocols::media::av1::{self, Av1C, Obus, SequenceHeader};
use protocols::media::flv::{Demux, take_tag};
use protocols::media::fmp4::Description;
use protocols::media::g726::G726;
use protocols::media::h264::AvcC;
use protocols::media::h265::{self, HvcC};
use protocols::media::metadata::Metadata;
use protocols::media::opus::{self, OpusHead};
use protocols::media::ps;
use protocols::media::rtp::depacketize::Described;
use protocols::media::rtp::{self, Depacketizer};
use protocols::media::{Codec, Container, Mux, Picture, Sound, Track, Tracks, adpcm, g711, mux};
use protocols::{Input, PROTOCOLS, Protocol, Wire};

use crate::evolve::fnv;
use crate::host::{Event, Host, Random};

type Run = dyn Fn(&[u8]) -> u64;

/// A parser, or several that read the same kind of thing.
pub struct Target {
    pub name: &'static str,
    pub seeds: Vec<Vec<u8>>,
    /// Says what came of an input in a number that differs where the parser went another way.
    pub run: Box<Run>,
}

pub fn all() -> Vec<Target> {
    let media = |name, run: fn(&[u8]) -> u64, seeds: &[&[u8]]| Target {
        name,
        seeds: seeds.iter().map(|seed| seed.to_vec()).collect(),
        run: Box::new(run),
    };
    let mut all: Vec<Target> = PROTOCOLS.iter().map(|row| talk(*row)).collect();
    all.push(media("flv", flv, &[include_bytes!("../../src/media/testdata/ffmpeg_h264_aac.flv")]));
    all.push(media("video_records", video_records, &[]));
    all.push(media("audio_records", audio_records, &[b"OpusHead\x01\x02\x38\x01\x80\xbb\0\0\0\0\0"]));
    all.push(media("script", script, &[]));
    all.push(media("rtp", depacketize, &[]));
    all.push(media("ps", program_stream, &[]));
    all
}

/// Outcomes in short: what was said, without its numbers.
#[derive(Default)]
struct Seen(BTreeSet<u64>);

impl Seen {
    fn note(&mut self, what: &impl std::fmt::Debug) {
        let text: String = format!("{what:?}").chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
        self.0.insert(fnv(text.as_bytes()));
    }

    fn number(&self) -> u64 {
        self.0.iter().fold(self.0.len() as u64, |all, one| all.rotate_left(7) ^ one)
    }
}

// === rows ===

fn talk(row: &'static dyn Protocol) -> Target {
    // Each input goes over every wire of which there are captures.
    let wires: BTreeSet<bool> = row.captures().iter().map(|capture| capture.wire == Wire::Datagram).collect();
    let seeds = row.captures().iter().map(|capture| capture.bytes[..capture.bytes.len().min(16 * 1024)].to_vec());
    let name = match row.name() {
        "http-flv" => "http_flv",
        "http-things" => "http_things",
        plain => plain,
    };
    let run = move |input: &[u8]| {
        wires.iter().fold(0, |all: u64, datagrams| all.rotate_left(1) ^ converse(row, *datagrams, input))
    };
    Target { name, seeds: seeds.collect(), run: Box::new(run) }
}

/// One talk: the input in pieces, with commands and deadlines in between, all by chance that the input decides.
fn converse(row: &dyn Protocol, datagrams: bool, input: &[u8]) -> u64 {
    let mut random = Random::new(fnv(input));
    let mut host = Host::new(row);
    let mut rest = Bytes::copy_from_slice(input);
    while !rest.is_empty() {
        if datagrams {
            let len = rest.first_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
            drop(rest.split_to(rest.len().min(2)));
            host.datagram(rest.split_to(rest.len().min(len)));
        } else {
            host.stream(&rest.split_to((1 + random.below(2000)).min(rest.len())));
        }
        match random.below(8) {
            0 => host.input(Input::Command(command(&mut random))),
            1 if host.closed.is_none() => {
                let before = host.deadline();
                host.pass_deadline();
                let after = host.deadline();
                assert!(host.closed.is_some() || after.is_none() || after > before, "stuck deadline");
            }
            2 => host.pass(Duration::from_millis(random.next() % 400_000)),
            _ => {}
        }
        assert!(host.closed.is_some() || host.paused() || host.buffer.len() <= host.limits.frame_max);
    }
    host.input(Input::Ended { reason: "the end" });
    let mut seen = Seen::default();
    for event in &host.events {
        match event {
            Event::Send(bytes) => seen.note(&(bytes.len().min(16), bytes.first())),
            other => seen.note(other),
        }
    }
    seen.number()
}

fn command(random: &mut Random) -> Command {
    let order = match random.below(3) {
        0 => Order::Write(vec![("target".to_owned(), Value::Int(60))]),
        1 => Order::Read(vec!["target".to_owned()]),
        _ => Order::Invoke { action: "vent".to_owned(), input: Value::Null },
    };
    Command {
        id: format!("c{}", random.below(100)),
        device: ["boiler", "hut", "aio", "nobody"][random.below(4)].to_owned(),
        product: "energy-meter".to_owned(),
        order,
        patience: Duration::from_secs(random.next() % 100),
    }
}

// === media ===

/// A file, or what follows its header: tags to units, units to every container and to MP4, and back from FLV.
fn flv(input: &[u8]) -> u64 {
    let (mut file, mut demux, mut tracks, mut seen) =
        (BytesMut::from(input), Demux::default(), Tracks::default(), Seen::default());
    let mut muxes: Vec<Box<dyn Mux>> =
        [Container::Flv, Container::FlvChunkedLegacy, Container::FlvWebSocket, Container::RtmpLegacy].map(mux).into();
    loop {
        let tag = match take_tag(&mut file) {
            Ok(Some(tag)) => tag,
            Ok(None) => break,
            Err(error) => {
                seen.note(&error);
                break;
            }
        };
        match demux.unit(tag.tag, tag.dts_ms, tag.body) {
            Ok(Some(unit)) => {
                seen.note(&(unit.codec, unit.kind, tracks.note(&unit), Picture::of(&unit).is_some()));
                seen.note(&Sound::of(unit.codec, Some(&unit)).map(|sound| sound.channels));
                seen.note(&Description::of(1, &unit).map(|description| description.codecs()));
                let mut out = BytesMut::new();
                for mux in &mut muxes {
                    mux.unit(&unit, &mut out);
                }
                // FLV came first: it says the same unit.
                let again = take_tag(&mut out).expect("a tag").expect("a whole tag");
                let again = Demux::default().unit(again.tag, unit.dts_ms(), again.body);
                assert!(again.is_ok_and(|again| again.is_some_and(|again| again.codec == unit.codec)), "{unit:?}");
            }
            other => seen.note(&other),
        }
    }
    for mux in &muxes {
        assert!(mux.preamble(&tracks, 0).len() < 1 << 20);
    }
    seen.note(&demux.left_out().min(3));
    seen.number()
}

fn video_records(input: &[u8]) -> u64 {
    let mut seen = Seen::default();
    let (which, input) = input.split_first().unwrap_or((&0, &[]));
    match which % 6 {
        0 => {
            let parsed = AvcC::parse(input);
            seen.note(&parsed.as_ref().map(|record| (record.picture().is_some(), record.build().len() > 11)));
            if let Ok(record) = parsed {
                // Whatever was read can be said again and reads the same.
                assert_eq!(AvcC::parse(&record.build()).map(|again| again.sps), Ok(record.sps));
            }
        }
        1 => seen.note(&HvcC::parse(input).map(|record| (record.picture(), record.vps.len(), record.pps.len()))),
        2 => seen.note(&h265::picture_of(input)),
        3 => {
            let parsed = Av1C::parse(input);
            seen.note(&parsed.as_ref().map(|record| (record.picture(), record.bit_depth, record.monochrome)));
            if let Ok(record) = parsed {
                assert_eq!(Av1C::parse(&record.build()), Ok(record));
            }
        }
        4 => seen.note(&SequenceHeader::parse(input)),
        _ => {
            let unit = Bytes::copy_from_slice(input);
            let plain = av1::without_delimiters(&unit);
            let kinds: Vec<_> = Obus::new(&plain).map(|obu| obu.map(|obu| obu.obu_type)).collect();
            seen.note(&(kinds.len().min(9), kinds.last(), av1::is_key(&plain), av1::sequence_header(&plain).is_some()));
        }
    }
    seen.number()
}

fn audio_records(input: &[u8]) -> u64 {
    let mut seen = Seen::default();
    seen.note(&AudioSpecificConfig::parse(input));
    if let Ok(config) = AudioSpecificConfig::parse(input)
        && config.object_type <= 30
    {
        assert_eq!(AudioSpecificConfig::parse(&config.build()), Ok(config));
    }
    seen.note(&Adts::parse(input));
    if let Ok(adts) = Adts::parse(input) {
        let header = Adts::header(&adts.config, adts.frame_len - adts.header_len);
        assert!(header.is_none_or(|header| Adts::parse(&header).is_ok_and(|again| again.config == adts.config)));
    }
    let head = OpusHead::parse(input);
    seen.note(&head);
    if let Ok(head) = head {
        assert_eq!(OpusHead::parse(&head.build()), Ok(head));
    }
    seen.note(&opus::samples(input).map(|samples| samples > 960));
    assert_eq!(g711::samples(Codec::G711U, input).count(), input.len());
    for bits in 2..=5 {
        assert_eq!(G726::new(bits, bits % 2 == 0).samples(input).count(), input.len() * 8 / bits as usize);
    }
    assert_eq!(adpcm::samples(input).count(), input.len().saturating_sub(4) * 2);
    seen.number()
}

/// AMF0 values one after another, then as metadata; what was read is written and reads the same.
fn script(input: &[u8]) -> u64 {
    let mut seen = Seen::default();
    let mut reader = Reader::new(input);
    while !reader.is_empty() {
        let value = reader.value();
        seen.note(&value);
        let Ok(value) = value else { break };
        let mut out = BytesMut::new();
        value.write(&mut out);
        // Not a number is not equal to itself: compared as text.
        assert_eq!(Reader::new(&out).value().map(|again| format!("{again:?}")), Ok(format!("{value:?}")));
    }
    seen.note(&Metadata::parse(input));
    seen.number()
}

/// Packets, each behind its length; the first byte says of which codec.
fn depacketize(input: &[u8]) -> u64 {
    const CODECS: [(Codec, u32); 5] = [
        (Codec::H264, 90_000),
        (Codec::H265, 90_000),
        (Codec::Aac, 48_000),
        (Codec::G711A, 8_000),
        (Codec::Av1, 90_000),
    ];
    let mut seen = Seen::default();
    let (which, rest) = input.split_first().unwrap_or((&0, &[]));
    let (codec, clock) = CODECS[usize::from(*which) % CODECS.len()];
    let sets = if codec == Codec::Aac { vec![Bytes::from_static(&[0x11, 0x90])] } else { Vec::new() };
    let mut depacketizer = Depacketizer::new(Described {
        codec,
        payload_type: 96,
        clock,
        sets,
        latm: codec == Codec::Aac && *which >= 0x80,
    });
    let mut rest = Bytes::copy_from_slice(rest);
    let mut units = Vec::new();
    while let Some(len) = rest.first_chunk().map(|len| usize::from(u16::from_be_bytes(*len))) {
        drop(rest.split_to(2));
        let packet = rest.split_to(rest.len().min(len));
        seen.note(&rtp::is_report(&packet));
        seen.note(&depacketizer.packet(&packet, &mut units));
        assert!(units.len() < 10_000, "one packet makes few units");
        units
            .drain(..)
            .for_each(|unit| seen.note(&(unit.codec, unit.kind, unit.track == Track::Video, unit.data.len() > 99)));
    }
    seen.note(&depacketizer.lost().min(2));
    seen.number()
}

/// A program stream in pieces, with losses and marks by chance that the input decides.
fn program_stream(input: &[u8]) -> u64 {
    let (mut seen, mut random) = (Seen::default(), Random::new(fnv(input)));
    let (mut demuxer, mut units, mut rest) = (ps::Demuxer::default(), Vec::new(), input);
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at((1 + random.below(1_400)).min(rest.len()));
        rest = behind;
        seen.note(&demuxer.push(piece, &mut units));
        match random.below(12) {
            0 => demuxer.lose(),
            1 => demuxer.mark(&mut units),
            _ => {}
        }
        units.drain(..).for_each(|unit| seen.note(&(unit.codec, unit.kind, unit.data.len() > 99)));
    }
    seen.note(&(demuxer.left_out().min(3), demuxer.searched() > 0, demuxer.is_sound_alone()));
    seen.number()
}
