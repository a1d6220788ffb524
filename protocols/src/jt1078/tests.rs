//! Packets, framing, channels and sound, with packets made here.
#![allow(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::frame::{DataType, Header, MARK, Packet, Part, Reader, Sim, Width};
use super::*;
use crate::media::{Codec, Kind, Track, Unit};
use crate::session::{Claim, Identity, Input, MediaEvent, Outbox, Output, Refusal, Ticket};

const SIM: Sim = Sim { width: Width::Six, bytes: [1, 0x23, 0x45, 0x67, 0x89, 1, 0, 0, 0, 0] };
const LONG: Sim = Sim { width: Width::Ten, bytes: [0, 0, 0, 0, 1, 0x39, 0x12, 0x34, 0x56, 0x78] };
const H264: u8 = 98;

fn header(sim: Sim, data_type: DataType, part: Part, sequence: u16, time_ms: u64) -> Header {
    let payload_type = if data_type == DataType::Audio { 6 } else { H264 };
    let marker = matches!(part, Part::Whole | Part::Last);
    let since_frame_ms = if data_type.is_video() { 40 } else { 0 };
    Header {
        marker,
        payload_type,
        sequence,
        sim,
        channel: 1,
        data_type,
        part,
        time_ms,
        since_key_ms: 0,
        since_frame_ms,
    }
}

fn bytes(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    header.write(body, &mut out);
    out.to_vec()
}

/// What a reader gives for these bytes, in pieces of this length; and how many faults.
fn read(stream: &[u8], piece: usize) -> (Vec<Packet>, usize) {
    let (mut reader, mut buffer, mut packets, mut faults) = (Reader::default(), BytesMut::new(), Vec::new(), 0);
    for piece in stream.chunks(piece.max(1)) {
        buffer.extend_from_slice(piece);
        loop {
            match reader.next(&mut buffer) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(_) => faults += 1,
            }
        }
    }
    (packets, faults)
}

/// A key frame with its parameter sets, or another frame; the byte tells it from others.
fn picture(key: bool, byte: u8, len: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    if key {
        frame.extend([0, 0, 0, 1, 0x67, 66, 0xc0, 30, 0xd9, 0x01, 0x40, 0x7b, 0x20, 1, 0, 0, 0, 1, 0x68, 7]);
    }
    frame.extend([0, 0, 0, 1, if key { 0x65 } else { 0x41 }, 0x88]);
    frame.resize(frame.len() + len, byte);
    frame.push(0x80);
    frame
}

struct Terminal {
    session: Box<dyn Session>,
    now: Instant,
    buffer: BytesMut,
    units: Vec<(u64, Unit)>,
    said: Vec<String>,
    sequence: u16,
}

impl Terminal {
    fn new() -> Self {
        Self::with("")
    }

    fn with(options: &str) -> Self {
        let endpoint = ROW.configure(&options.parse().unwrap()).unwrap();
        let peer = Peer { address: None, adapter: Arc::from("a"), seed: [0; 32], secure: false };
        let session = endpoint.open(&peer);
        let (buffer, units, said) = (BytesMut::new(), Vec::new(), Vec::new());
        Self { session, now: Instant::now(), buffer, units, said, sequence: 0 }
    }

    /// Sends bytes; streams of channel 9 are refused.
    fn send(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        let mut buffer = std::mem::take(&mut self.buffer);
        loop {
            let before = buffer.len();
            let answered = self.input(Input::Stream(&mut buffer));
            if !answered && buffer.len() == before {
                break;
            }
        }
        self.buffer = buffer;
    }

    fn input(&mut self, input: Input<'_>) -> bool {
        let mut out = Outbox::default();
        if let Err(fault) = self.session.receive(self.now, input, &mut out) {
            self.said.push(format!("fault: {fault}"));
        }
        let mut answered = false;
        while let Some(output) = out.pop() {
            match output {
                Output::Admit { ticket, claim: Claim::Publish { stream, .. } } => {
                    let refused = stream.as_str().ends_with("/9");
                    let outcome = if refused { Err(Refusal::Unauthorized) } else { Ok(Identity::anonymous()) };
                    self.input(Input::Admission { ticket, outcome });
                    answered = true;
                }
                Output::Carry { ticket, stream } => self.said.push(format!("{} is {stream}", ticket.0)),
                Output::Carried { ticket, unit } => self.units.push((ticket.0, unit)),
                Output::Close { reason } => self.said.push(format!("closed: {reason}")),
                other => panic!("{other:?}"),
            }
        }
        answered
    }

    /// A frame in pieces of so many bytes, without the pieces of these numbers.
    fn frame(&mut self, channel: u8, key: bool, time_ms: u64, byte: u8, without: &[usize]) {
        let data_type = if key { DataType::Key } else { DataType::Predicted };
        let frame = picture(key, byte, 250);
        let pieces: Vec<&[u8]> = frame.chunks(100).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let part = if at == 0 {
                Part::First
            } else if at + 1 == pieces.len() {
                Part::Last
            } else {
                Part::Middle
            };
            let header = Header { channel, ..header(SIM, data_type, part, self.sequence, time_ms) };
            self.sequence = self.sequence.wrapping_add(1);
            if !without.contains(&at) {
                self.send(&bytes(&header, piece));
            }
        }
    }

    fn sound(&mut self, payload_type: u8, time_ms: u64, body: &[u8]) {
        let header = Header { payload_type, ..header(SIM, DataType::Audio, Part::Whole, self.sequence, time_ms) };
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&bytes(&header, body));
    }

    /// Kind and last but one byte of each picture.
    fn pictures(&self) -> Vec<(Kind, u8)> {
        let video = self.units.iter().filter(|(_, unit)| unit.track == Track::Video && unit.kind != Kind::Config);
        video.map(|(_, unit)| (unit.kind, unit.data[unit.data.len() - 2])).collect()
    }
}

#[test]
fn both_widths_of_numbers_are_told_from_the_packets() {
    for sim in [SIM, LONG] {
        let packets: Vec<(Header, Vec<u8>)> = (0..6)
            .map(|n| {
                let data_type = [DataType::Key, DataType::Predicted, DataType::Audio][usize::from(n) % 3];
                (header(sim, data_type, Part::Whole, n, u64::from(n) * 40), picture(true, n as u8, 60))
            })
            .collect();
        let stream: Vec<u8> = packets.iter().flat_map(|(header, body)| bytes(header, body)).collect();
        for piece in [1, 7, 100, stream.len()] {
            let (read, faults) = read(&stream, piece);
            assert_eq!(faults, 0);
            // The last may wait for the next to be told.
            assert!(read.len() >= 5, "{sim}: {} packets", read.len());
            for (packet, (header, body)) in read.iter().zip(&packets) {
                assert_eq!((packet.header, &packet.body[..]), (*header, &body[..]));
            }
        }
        for (header, body) in &packets {
            let packet = Packet::of_datagram(&bytes(header, body).into()).unwrap();
            assert_eq!((packet.header, &packet.body[..]), (*header, &body[..]));
        }
    }
    assert_eq!((SIM.to_string(), LONG.to_string()), ("012345678901".to_owned(), "00000000013912345678".to_owned()));
}

#[test]
fn a_body_may_hold_the_mark() {
    let mut body = picture(false, 3, 40);
    body.extend(MARK.repeat(3));
    body.extend([0x81, 0xe2, 0, 0]);
    body.extend(MARK);
    let first = header(SIM, DataType::Predicted, Part::Whole, 1, 40);
    let second = header(SIM, DataType::Predicted, Part::Whole, 2, 80);
    let stream = [bytes(&first, &body), bytes(&second, b"x")].concat();
    for piece in [1, 5, 1_000] {
        let (packets, faults) = read(&stream, piece);
        assert_eq!((packets.len(), faults), (2, 0));
        assert_eq!(packets[0].body, body);
    }
}

proptest! {
    /// Garbage and torn packets between packets cost themselves alone, wherever the bytes are cut.
    #[test]
    fn what_is_whole_between_garbage_is_read(
        noise in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 1..200)), 12),
        torn in prop::collection::vec(prop::option::weighted(0.3, 1usize..120), 12),
        piece in 1usize..300,
    ) {
        let packets: Vec<(Header, Vec<u8>)> = (0..12u8)
            .map(|n| (header(SIM, DataType::Predicted, Part::Whole, u16::from(n), u64::from(n) * 40), picture(false, n, 90)))
            .collect();
        let (mut stream, mut whole, mut faults_max) = (bytes(&packets[0].0, &packets[0].1), vec![packets[0].clone()], 0);
        // Where the last whole packet or noise ends.
        let mut last = stream.len();
        for (at, (header, body)) in packets.iter().enumerate().skip(1) {
            if let Some(noise) = &noise[at] {
                stream.extend(noise);
                faults_max += 1;
                last = stream.len();
            }
            let packet = bytes(header, body);
            // A packet that is torn and followed by noise takes the noise for its own bytes. A head too short to be told,
            // behind another torn one, may make a whole packet of both.
            let untold = |len: usize| len < 10 && stream.len() > last;
            match torn[at].filter(|len| !untold(*len)) {
                Some(len) if noise.get(at + 1).is_some_and(Option::is_none) && len < packet.len() && at < 11 => {
                    stream.extend(&packet[..len]);
                    faults_max += 2;
                }
                _ => {
                    stream.extend(packet);
                    whole.push((*header, body.clone()));
                    last = stream.len();
                }
            }
        }
        stream.extend(MARK);
        let (read, faults) = read(&stream, piece);
        let read: Vec<_> = read.into_iter().map(|packet| (packet.header, packet.body.to_vec())).collect();
        prop_assert_eq!(read, whole);
        prop_assert!(faults <= faults_max);
    }
}

#[test]
fn bytes_without_end_and_without_a_packet_end_the_talk() {
    let mut reader = Reader::default();
    let mut fatal = false;
    for _ in 0..300 {
        let mut buffer = BytesMut::from(&[0x30; 1024][..]);
        while let Err(fault) = reader.next(&mut buffer) {
            fatal |= fault.fatal;
            if fatal {
                break;
            }
        }
    }
    assert!(fatal);
}

#[test]
fn a_lost_packet_costs_its_frame_and_those_that_lean_on_it() {
    let mut terminal = Terminal::new();
    terminal.frame(1, true, 0, 1, &[]);
    terminal.frame(1, false, 40, 2, &[]);
    terminal.frame(1, false, 80, 3, &[1]);
    terminal.frame(1, false, 120, 4, &[]);
    terminal.frame(1, true, 160, 5, &[]);
    terminal.frame(1, false, 200, 6, &[0]);
    terminal.frame(1, true, 240, 7, &[]);
    terminal.frame(1, false, 280, 8, &[2]);
    terminal.frame(1, true, 320, 9, &[]);
    terminal.frame(1, false, 360, 10, &[0, 1, 2]);
    terminal.frame(1, false, 400, 11, &[]);
    let frames = terminal.pictures();
    let expected = [(Kind::Key, 1), (Kind::Delta, 2), (Kind::Key, 5), (Kind::Key, 7), (Kind::Key, 9)];
    assert_eq!(frames, expected);
    let configs = terminal.units.iter().filter(|(_, unit)| unit.kind == Kind::Config).count();
    assert_eq!(configs, 1, "said when it changes");
}

#[test]
fn lost_sound_costs_no_picture_where_the_terminal_tells_and_kinds_may_be_counted_apart() {
    let mut terminal = Terminal::new();
    terminal.frame(1, true, 1_000, 1, &[]);
    terminal.sequence += 1;
    terminal.frame(1, false, 1_040, 2, &[]);
    assert_eq!(terminal.pictures(), [(Kind::Key, 1), (Kind::Delta, 2)]);
    // A count of its own for the sound.
    let video = terminal.sequence;
    for n in 0..3 {
        terminal.sequence = 7 + n;
        terminal.sound(6, 1_050, &[0xd5; 160]);
        terminal.sequence = video + n * 3;
        terminal.frame(1, false, 2_000 + u64::from(n), n as u8 + 3, &[]);
    }
    assert_eq!(terminal.pictures().len(), 5);
    assert_eq!(terminal.units.iter().filter(|(_, unit)| unit.codec == Codec::G711A).count(), 3);
}

#[test]
fn marks_that_are_wrong_tear_no_frame() {
    let mut terminal = Terminal::new();
    let frame = |byte| picture(byte == 1, byte, 100);
    for byte in 1..4u8 {
        let data_type = if byte == 1 { DataType::Key } else { DataType::Predicted };
        let frame = frame(byte);
        let (one, two) = frame.split_at(60);
        // The last piece says that it is one of the middle.
        for (part, piece) in [(Part::First, one), (Part::Middle, two)] {
            let header = header(SIM, data_type, part, terminal.sequence, u64::from(byte) * 40);
            terminal.sequence += 1;
            terminal.send(&bytes(&header, piece));
        }
    }
    assert_eq!(terminal.pictures(), [(Kind::Key, 1), (Kind::Delta, 2)]);
}

#[test]
fn channels_are_streams_and_a_refused_one_holds_no_other_up() {
    let mut terminal = Terminal::new();
    terminal.frame(1, true, 0, 1, &[]);
    terminal.frame(2, true, 0, 2, &[]);
    terminal.frame(9, true, 0, 9, &[]);
    terminal.frame(1, false, 40, 3, &[]);
    assert_eq!(terminal.said, ["1 is jt/012345678901/1", "2 is jt/012345678901/2"]);
    let tickets: Vec<u64> =
        terminal.units.iter().filter(|(_, unit)| unit.kind != Kind::Config).map(|(ticket, _)| *ticket).collect();
    assert_eq!(tickets, [1, 2, 1]);
    // Another took the first: it stays away; the second was silent and comes back.
    terminal.input(Input::Media(MediaEvent::Parted { ticket: Ticket(1) }));
    terminal.frame(1, true, 80, 4, &[]);
    terminal.now += Duration::from_secs(20);
    terminal.input(Input::Media(MediaEvent::Parted { ticket: Ticket(2) }));
    terminal.frame(2, true, 20_000, 5, &[]);
    assert_eq!(terminal.said[2..], ["4 is jt/012345678901/2"]);
    assert_eq!(terminal.pictures().last(), Some(&(Kind::Key, 5)));
    terminal.input(Input::Media(MediaEvent::Parted { ticket: Ticket(4) }));
    assert!(terminal.said.last().unwrap().starts_with("closed: "));
}

#[test]
fn a_terminal_of_which_nothing_is_wanted_is_closed() {
    let mut terminal = Terminal::new();
    terminal.frame(9, true, 0, 9, &[]);
    assert_eq!(terminal.said, ["closed: wrong or missing credentials"]);
    assert!(terminal.units.is_empty());
}

#[test]
fn frames_and_channels_have_an_end() {
    let mut terminal = Terminal::with("frame_max_kib = 64\nchannels_max = 2");
    terminal.frame(1, true, 0, 1, &[]);
    for n in 0..100 {
        let part = if n == 0 { Part::First } else { Part::Middle };
        let header = header(SIM, DataType::Predicted, part, terminal.sequence, 40);
        terminal.sequence += 1;
        terminal.send(&bytes(&header, &[7; 950]));
    }
    assert_eq!(terminal.said[1..], ["fault: a frame larger than `frame_max_kib`"]);
    terminal.frame(2, true, 0, 1, &[]);
    terminal.frame(3, true, 0, 1, &[]);
    assert!(terminal.said.last().unwrap().contains("more than 2 channels"));
}

#[test]
fn sound_of_terminals_becomes_what_viewers_know() {
    let mut terminal = Terminal::new();
    terminal.frame(1, true, 0, 1, &[]);
    terminal.units.clear();
    // HiSilicon's header goes, where it is one.
    terminal.sound(6, 40, &[&[0, 1, 4, 0][..], &[1, 2, 3, 4, 5, 6, 7, 8]].concat());
    terminal.sound(7, 80, &[0, 1, 9, 0, 5]);
    terminal.sound(8, 120, &[0; 120]);
    terminal.sound(26, 160, &[0; 84]);
    terminal.sound(9, 200, &[0; 84]);
    terminal.sound(9, 240, &[0; 84]);
    let sound: Vec<(Codec, usize)> = terminal.units.iter().map(|(_, unit)| (unit.codec, unit.data.len())).collect();
    assert_eq!(sound, [(Codec::G711A, 8), (Codec::G711U, 5), (Codec::G711A, 320), (Codec::G711A, 160)]);
    assert_eq!(terminal.said[1..], ["fault: audio of payload type 9 is not carried"]);
    assert_eq!(terminal.units[0].1.data, Bytes::from_static(&[1, 2, 3, 4, 5, 6, 7, 8]));
}

#[test]
fn times_begin_with_the_first_packet_and_stand_still_where_the_terminals_do() {
    let mut terminal = Terminal::new();
    for (n, ms) in [1_566_919_211_506, 1_566_919_211_546, 1_566_919_211_546, 0].into_iter().enumerate() {
        terminal.frame(1, true, ms, n as u8, &[]);
    }
    let times: Vec<i64> =
        terminal.units.iter().filter(|(_, unit)| unit.kind == Kind::Key).map(|(_, unit)| unit.dts_ms()).collect();
    assert_eq!(times, [1_000, 1_040, 1_040, 1_000 - 1_566_919_211_506]);
}

#[test]
fn options_have_ranges() {
    for wrong in ["app = \"a/b\"", "app = \"\"", "channels_max = 0", "frame_max_kib = 63", "silence_seconds = 0"] {
        let error = ROW.configure(&wrong.parse().unwrap()).unwrap_err();
        assert!(wrong.starts_with(error.key.as_deref().unwrap()), "{error}");
    }
}
