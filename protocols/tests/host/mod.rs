//! A driver for tests: runs one session on virtual time and says yes to everything it asks.
//!
//! It keeps the same rules as the gateway's driver: outputs are carried out in order; as long as bytes are left and the
//! session moved (or got an answer), it is offered them again; a buffer that outgrows `frame_max` ends the talk.

#![allow(unreachable_pub, reason = "a module of test crates")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]
#![allow(dead_code, reason = "each test crate uses its part")]
#![allow(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use protocols::exchange::{Attached, Event as ExchangeEvent, Request};
use protocols::hls::{Body, Content};
use protocols::media::{Codec, Kind, Track, Tracks, Unit};
use protocols::{
    Capture, Endpoint, Fault, Identity, Input, Limits, MediaEvent, Outbox, Output, Peer, Protocol, Session, Ticket,
    Wire,
};

/// One talk: a session, what went in, what came out.
pub struct Host {
    session: Box<dyn Session>,
    pub limits: Limits,
    pub now: Instant,
    pub buffer: BytesMut,
    out: Outbox,
    pub events: Vec<Event>,
    /// Why the talk is over.
    pub closed: Option<String>,
    /// Most outputs that lay in the outbox at a time.
    pub outbox_peak: usize,
}

/// What a driver saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Send(Bytes),
    /// Any other output, as text.
    Output(String),
    Fault(Fault),
}

/// The row with the options of its example.
pub fn endpoint(row: &dyn Protocol) -> Arc<dyn Endpoint> {
    let example: toml::Table = toml::from_str(row.example()).expect("the example is TOML");
    let adapter = example["adapter"][0].as_table().expect("an adapter");
    let empty = toml::Table::new();
    let options = adapter.get("options").and_then(toml::Value::as_table).unwrap_or(&empty);
    row.configure(options).expect("the example configures")
}

pub fn peer() -> Peer {
    Peer { address: Some("192.0.2.7:40000".parse().unwrap()), adapter: Arc::from("test"), seed: [7; 32], secure: false }
}

/// The packets of a datagram capture.
pub fn packets(capture: &Capture) -> Vec<Bytes> {
    let mut rest = Bytes::from_static(capture.bytes);
    let mut packets = Vec::new();
    while !rest.is_empty() {
        assert!(rest.len() >= 2, "{}: a length is cut off", capture.name);
        let len = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let _length = rest.split_to(2);
        assert!(rest.len() >= len, "{}: a packet is cut off", capture.name);
        packets.push(rest.split_to(len));
    }
    packets
}

// === impl Host ===

impl Host {
    pub fn new(row: &dyn Protocol) -> Self {
        Self::open(&*endpoint(row))
    }

    pub fn open(endpoint: &dyn Endpoint) -> Self {
        Self {
            session: endpoint.open(&peer()),
            limits: endpoint.limits(),
            now: Instant::now(),
            buffer: BytesMut::new(),
            out: Outbox::default(),
            events: Vec::new(),
            closed: None,
            outbox_peak: 0,
        }
    }

    /// Plays a capture in one piece.
    pub fn play(row: &dyn Protocol, capture: &Capture) -> Self {
        let mut host = Self::new(row);
        match capture.wire {
            Wire::Stream => host.stream(capture.bytes),
            Wire::Datagram => {
                for packet in packets(capture) {
                    host.datagram(packet);
                }
            }
        }
        host
    }

    pub fn stream(&mut self, bytes: &[u8]) {
        if self.closed.is_none() {
            self.buffer.extend_from_slice(bytes);
            self.pump(true, VecDeque::new());
        }
    }

    pub fn datagram(&mut self, packet: Bytes) {
        self.input(Input::Datagram(packet));
    }

    pub fn input(&mut self, input: Input<'_>) {
        if self.closed.is_none() {
            let outcome = self.session.receive(self.now, input, &mut self.out);
            let mut answers = VecDeque::new();
            self.note(outcome, &mut answers);
            self.pump(false, answers);
        }
    }

    /// Lets time pass up to and through the next deadline. Says whether there was one.
    pub fn pass_deadline(&mut self) -> bool {
        let Some(deadline) = self.session.deadline() else { return false };
        self.now = self.now.max(deadline);
        self.tick();
        true
    }

    pub fn tick(&mut self) {
        self.session.tick(self.now, &mut self.out);
        let mut answers = VecDeque::new();
        self.note(Ok(()), &mut answers);
        self.pump(false, answers);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.session.deadline()
    }

    pub fn paused(&self) -> bool {
        self.session.paused()
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.events.iter().filter_map(|event| match event {
            Event::Fault(fault) => Some(fault),
            _ => None,
        })
    }

    pub fn sends(&self) -> Vec<Bytes> {
        let send = |event: &Event| match event {
            Event::Send(bytes) => Some(bytes.clone()),
            _ => None,
        };
        self.events.iter().filter_map(send).collect()
    }

    /// What came out, one line each, for golden files and comparisons.
    pub fn text(&self) -> String {
        let lines = self.events.iter().map(line).chain(self.closed.iter().map(|reason| format!("closed: {reason}")));
        lines.flat_map(|line| [line, "\n".to_owned()]).collect()
    }

    fn pump(&mut self, mut offer: bool, mut answers: VecDeque<Input<'static>>) {
        while self.closed.is_none() {
            if let Some(answer) = answers.pop_front() {
                let outcome = self.session.receive(self.now, answer, &mut self.out);
                self.note(outcome, &mut answers);
                offer = true;
            } else if offer && !self.buffer.is_empty() {
                let before = self.buffer.len();
                let outcome = self.session.receive(self.now, Input::Stream(&mut self.buffer), &mut self.out);
                self.note(outcome, &mut answers);
                offer = self.buffer.len() < before;
            } else {
                break;
            }
        }
        if self.closed.is_none() && !self.session.paused() && self.buffer.len() > self.limits.frame_max {
            self.closed = Some(format!("frame larger than {}", self.limits.frame_max));
        }
    }

    /// Carries out what came before the fault, then writes the fault down.
    fn note(&mut self, outcome: Result<(), Fault>, answers: &mut VecDeque<Input<'static>>) {
        self.outbox_peak = self.outbox_peak.max(self.out.len());
        while let Some(output) = self.out.pop() {
            self.carry_out(output, answers);
        }
        if let Err(fault) = outcome {
            if fault.fatal {
                self.closed = Some(fault.what.to_string());
            }
            self.events.push(Event::Fault(fault));
        }
    }

    fn carry_out(&mut self, output: Output, answers: &mut VecDeque<Input<'static>>) {
        let settled = |ticket: Ticket| Input::Settled { ticket, outcome: Ok(()) };
        let text = shorten(format!("{output:?}"));
        match output {
            Output::Send(bytes) => {
                self.events.push(Event::Send(bytes));
                return;
            }
            Output::Admit { ticket, .. } => {
                answers.push_back(Input::Admission { ticket, outcome: Ok(Identity::anonymous()) });
            }
            Output::Report { ticket, .. } => answers.extend(ticket.map(settled)),
            Output::Exchange(request) => answers.extend(exchange(request)),
            Output::Describe { ticket, .. } => {
                let outcome = Ok(Box::new(tracks()));
                answers.push_back(Input::Media(MediaEvent::Described { ticket, outcome }));
            }
            Output::Open { ticket, .. } => {
                answers.push_back(Input::Media(MediaEvent::Opened { ticket, outcome: Ok([30_000, 30_001]) }));
            }
            Output::Watch { .. } => answers.push_back(Input::Media(MediaEvent::Joined { dts_90k: 90_000 })),
            Output::Fetch { ticket, .. } => {
                let chunks = vec![Bytes::from_static(b"a body in "), Bytes::from_static(b"two chunks")];
                answers.push_back(Input::Piece { ticket, outcome: Ok(Body { content: Content::Media, chunks }) });
            }
            Output::Close { ref reason } => self.closed = Some(reason.to_string()),
            _ => {}
        }
        self.events.push(Event::Output(text));
    }
}

/// The units of a stream to be described or followed.
fn units() -> impl Iterator<Item = Unit> {
    let unit = |track, codec, kind, data: &'static [u8]| Unit {
        track,
        codec,
        dts_90k: 90_000,
        pts_90k: 90_000,
        kind,
        data: Bytes::from_static(data),
    };
    let avcc = &[1, 66, 0xc0, 30, 0xff, 0xe1, 0, 4, 0x67, 66, 0xc0, 30, 1, 0, 2, 0x68, 1];
    [
        unit(Track::Video, Codec::H264, Kind::Config, avcc),
        unit(Track::Audio, Codec::Aac, Kind::Config, &[0x11, 0x90]),
        unit(Track::Video, Codec::H264, Kind::Key, &[0, 0, 0, 3, 0x65, 0x88, 1]),
        unit(Track::Audio, Codec::Aac, Kind::Key, &[1, 2, 3]),
    ]
    .into_iter()
}

fn tracks() -> Tracks {
    let mut tracks = Tracks::default();
    for unit in units() {
        tracks.note(&unit);
    }
    tracks
}

fn exchange(request: Request) -> Option<Input<'static>> {
    Some(match request {
        Request::Attach { ticket, expiry, .. } => {
            let outcome = Ok(Attached { session_present: false, expiry, unreleased: Vec::new() });
            Input::Exchange(ExchangeEvent::Attached { ticket, outcome })
        }
        Request::Subscribe { ticket, subscriptions } => {
            let outcomes = subscriptions.iter().map(|subscription| Ok(subscription.qos)).collect();
            Input::Exchange(ExchangeEvent::Subscribed { ticket, outcomes })
        }
        Request::Unsubscribe { ticket, filters } => {
            Input::Exchange(ExchangeEvent::Unsubscribed { ticket, outcomes: vec![true; filters.len()] })
        }
        Request::Command { ticket, .. } => Input::Exchange(ExchangeEvent::Commanded { ticket, outcome: Ok(()) }),
        Request::Received { delivery } => Input::Exchange(ExchangeEvent::Release { delivery, known: true }),
        Request::Publish { ticket: Some(ticket), .. } => Input::Settled { ticket, outcome: Ok(()) },
        Request::Publish { ticket: None, .. }
        | Request::Release { .. }
        | Request::Acknowledged { .. }
        | Request::Detach { .. } => return None,
    })
}

fn line(event: &Event) -> String {
    match event {
        Event::Send(bytes) => format!("send {} bytes: {}", bytes.len(), shorten(format!("{bytes:?}"))),
        Event::Output(text) => text.clone(),
        Event::Fault(fault) => format!("fault{}: {fault}", if fault.fatal { " (fatal)" } else { "" }),
    }
}

/// Keeps golden files readable: the beginning, and a number that changes with any byte of the rest.
fn shorten(text: String) -> String {
    const SHOWN: usize = 400;
    if text.chars().count() <= SHOWN {
        return text;
    }
    let shown: String = text.chars().take(SHOWN).collect();
    format!("{shown}… {} bytes of text, fnv {:016x}", text.len(), fnv(text.as_bytes()))
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Random numbers that are the same in every run of a seed (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A capture's bytes with a few faults: changed, lost, repeated and inserted bytes.
    pub fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 if !bytes.is_empty() => bytes[at] = [0x00, 0xff, 0x7f, 0x80][self.below(4)],
                3 => bytes.truncate(at),
                4 => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                _ => {
                    let len = self.below(9);
                    let noise = self.bytes(len);
                    bytes.splice(at..at, noise);
                }
            }
        }
        bytes
    }
}
