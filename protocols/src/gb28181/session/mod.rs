//! The talk with one camera, which says nothing but packets: the first names the stream and asks whether it may come in;
//! from the first whole key frame on the camera is the stream's source. Over TCP its connection moves to the stream, over UDP
//! it stays where its packets come in.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Names;
use super::frame::Framing;
use crate::media::ps::Demuxer;
use crate::media::rtp::{Header, Reorder, is_report};
use crate::media::{Kind, StreamName, Track, Unit};
use crate::pass::Pass;
use crate::session::{Claim, Fault, Input, MediaEvent, Outbox, Output, Refusal, Session, Ticket};

/// Bytes without any program stream after which a camera is told apart from one that had a bad moment.
const SEARCHED_MAX: usize = 1024 * 1024;

/// Packets ahead or behind that are a new beginning, not a loss or a straggler (RFC 3550, A.1, has 3,000 and 100).
const JUMP: u16 = 1_000;

/// Packets that may have been overtaken by the first that came.
const OVERTAKEN: u16 = 8;

/// Sound without a picture for so long: there is none, 1/90,000 s.
const SOUND_ALONE: i64 = 2 * 90_000;

/// Packets over UDP of whom nothing is wanted are let pass for so long; then they may ask again.
const MUTED: Duration = Duration::from_secs(15);

/// A stream that was parted from us while nothing came for so long ended for that: the camera may come back.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The one question a session asks, and the one stream it has.
const TICKET: Ticket = Ticket(0);

/// See the module.
#[derive(Debug)]
pub(super) struct GbSession {
    names: Arc<Names>,
    framing: Framing,
    gate: Gate,
    /// Packets come one by one, and may overtake one another.
    datagrams: bool,
    /// The packet that asked for admission.
    first: Option<Bytes>,
    ssrc: Option<u32>,
    reorder: Reorder,
    /// The newest sequence number taken off a datagram wire.
    newest: Option<u16>,
    /// A packet of another source, or that fits nowhere near the newest.
    astray: Option<(Header, Bytes)>,
    /// The sequence number that is next.
    expected: Option<u16>,
    demuxer: Demuxer,
    units: Vec<Unit>,
    /// Sound that came before there was a stream: its configuration, and when the first was.
    sound_config: Option<Unit>,
    sound_since_90k: Option<i64>,
    /// When a unit went out last, and when the first after a pause did.
    sent: Option<Instant>,
    resumed: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum Gate {
    /// Nobody has asked yet.
    Closed,
    Asked(StreamName),
    /// Until the first key frame.
    Open(StreamName),
    Source,
    /// Nothing is wanted of it until then.
    Muted(Instant),
}

// === impl Session ===

impl Session for GbSession {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => self.stream(now, buffer, out),
            Input::Datagram(packet) => {
                self.datagrams = true;
                self.packet(now, packet, out)
            }
            Input::Admission { ticket: TICKET, outcome } => self.admission(now, outcome.map(drop), out),
            Input::Media(MediaEvent::Parted { ticket: TICKET }) => {
                self.parted(now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        if let Gate::Muted(until) = self.gate
            && now >= until
        {
            self.gate = Gate::Closed;
            out.close("nothing is wanted of it");
        }
        // The end of waiting for what is lost. There is nobody to tell of faults here; the next packet's are told.
        let _fault = self.in_order(now, out);
    }

    fn deadline(&self) -> Option<Instant> {
        match self.gate {
            Gate::Muted(until) => Some(until),
            _ => self.reorder.due(),
        }
    }

    fn paused(&self) -> bool {
        matches!(self.gate, Gate::Asked(_))
    }
}

impl GbSession {
    pub(super) fn new(names: Arc<Names>) -> Self {
        Self {
            names,
            framing: Framing::default(),
            gate: Gate::Closed,
            datagrams: false,
            first: None,
            ssrc: None,
            reorder: Reorder::default(),
            newest: None,
            astray: None,
            expected: None,
            demuxer: Demuxer::default(),
            units: Vec::new(),
            sound_config: None,
            sound_since_90k: None,
            sent: None,
            resumed: None,
        }
    }

    fn stream(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while !self.paused() {
            let Some(packet) = self.framing.take(buffer).inspect_err(|_| self.demuxer.lose())? else { break };
            self.packet(now, packet, out)?;
        }
        Ok(())
    }

    /// A packet off the wire.
    fn packet(&mut self, now: Instant, packet: Bytes, out: &mut Outbox) -> Result<(), Fault> {
        match self.gate {
            Gate::Closed => self.claim(packet, out),
            // The driver hands in nothing now; another loses it.
            Gate::Asked(_) | Gate::Muted(_) => Ok(()),
            Gate::Open(_) | Gate::Source if self.datagrams => self.datagram(now, packet, out),
            Gate::Open(_) | Gate::Source => self.take(now, &packet, out),
        }
    }

    /// A camera's first packet.
    fn claim(&mut self, packet: Bytes, out: &mut Outbox) -> Result<(), Fault> {
        let (header, _) = Header::parse(&packet).map_err(|error| Fault::recoverable(error.to_string()))?;
        if is_report(&packet) {
            return Ok(());
        }
        let Some(stream) = self.names.of(header.ssrc) else {
            return Err(Fault::fatal("no stream of this name"));
        };
        self.first = Some(packet);
        self.gate = Gate::Asked(stream.clone());
        out.push(Output::Admit { ticket: TICKET, claim: Claim::Publish { stream, pass: Pass::default() } });
        Ok(())
    }

    fn admission(&mut self, now: Instant, outcome: Result<(), Refusal>, out: &mut Outbox) -> Result<(), Fault> {
        let Gate::Asked(stream) = &self.gate else { return Ok(()) };
        let Some(packet) = self.first.take() else { return Ok(()) };
        match outcome {
            Ok(()) => {
                self.gate = Gate::Open(stream.clone());
                return self.packet(now, packet, out);
            }
            // There is nobody to answer to; its packets would come as a new talk each.
            Err(_) if self.datagrams => self.gate = Gate::Muted(now + MUTED),
            Err(refusal) => out.close(refusal.to_string()),
        }
        Ok(())
    }

    /// The stream has another source, was closed, or fell silent.
    fn parted(&mut self, now: Instant) {
        let paused = self.resumed.is_some_and(|at| now.saturating_duration_since(at) < PAUSE_MIN);
        let names = Arc::clone(&self.names);
        *self = Self { datagrams: true, ..Self::new(names) };
        if !paused {
            self.gate = Gate::Muted(now + MUTED);
        }
    }

    /// A packet of a wire that loses and overtakes.
    fn datagram(&mut self, now: Instant, packet: Bytes, out: &mut Outbox) -> Result<(), Fault> {
        if is_report(&packet) {
            return Ok(());
        }
        let (header, payload) = Header::parse(&packet).map_err(|error| Fault::recoverable(error.to_string()))?;
        let ahead = header.sequence.wrapping_sub(self.newest.unwrap_or(header.sequence));
        match self.ssrc {
            None => self.begin_anew(&header, &payload),
            Some(ssrc) if ssrc == header.ssrc && !(JUMP..u16::MAX - JUMP).contains(&ahead) => {}
            // One such packet is an error, two that follow one another are a camera that began anew.
            Some(_) => {
                let before = self.astray.replace((header, packet.clone())).filter(|(before, _)| {
                    before.ssrc == header.ssrc && before.sequence.wrapping_add(1) == header.sequence
                });
                let Some((first, before)) = before else {
                    return Err(Fault::recoverable("a packet of another source, or out of all order"));
                };
                let payload = Header::parse(&before).map(|(_, payload)| payload).unwrap_or_default();
                self.begin_anew(&first, &payload);
                self.reorder.push(now, before);
                self.newest = Some(header.sequence);
            }
        }
        self.astray = None;
        if ahead < JUMP {
            self.newest = Some(header.sequence);
        }
        self.reorder.push(now, packet);
        self.in_order(now, out)
    }

    fn in_order(&mut self, now: Instant, out: &mut Outbox) -> Result<(), Fault> {
        let mut outcome = Ok(());
        while let Some(packet) = self.reorder.pop(now) {
            outcome = outcome.and(self.take(now, &packet, out));
        }
        outcome
    }

    /// The next packets are of another encoder, or of the same after a restart.
    fn begin_anew(&mut self, first: &Header, payload: &[u8]) {
        self.demuxer = Demuxer::default();
        (self.ssrc, self.newest, self.expected) = (Some(first.ssrc), Some(first.sequence), None);
        // A first packet in the middle of things may have overtaken the one with the beginning.
        let overtaken = if payload.starts_with(&[0, 0, 1, 0xba]) { 0 } else { OVERTAKEN };
        self.reorder = Reorder::beginning_at(first.sequence.wrapping_sub(overtaken));
    }

    /// The next packet in order.
    fn take(&mut self, now: Instant, packet: &Bytes, out: &mut Outbox) -> Result<(), Fault> {
        let (header, payload) = Header::parse(packet).map_err(|error| Fault::recoverable(error.to_string()))?;
        if self.ssrc.is_none_or(|ssrc| ssrc != header.ssrc) {
            self.begin_anew(&header, &payload);
        }
        let missing = header.sequence.wrapping_sub(self.expected.unwrap_or(header.sequence));
        self.expected = Some(header.sequence.wrapping_add(1));
        if missing > 0 {
            self.demuxer.lose();
            // Backwards is a new beginning: how many are missing is not known.
            out.push(Output::Missing { packets: u64::from(if missing > u16::MAX / 2 { 0 } else { missing }) });
        }
        let taken = self.demuxer.push(&payload, &mut self.units);
        if header.marker {
            self.demuxer.mark(&mut self.units);
        }
        self.pass_on(now, out);
        if self.demuxer.searched() > SEARCHED_MAX {
            return Err(Fault::fatal("no program stream is in these packets: send MPEG-PS"));
        }
        if let Some(kind) = self.demuxer.take_refused() {
            return Err(Fault::recoverable(format!("a stream of type 0x{kind:02x} is not carried")).ours());
        }
        taken.map_err(|error| Fault::recoverable(error.to_string()))
    }

    /// Hands units on: from the first picture on, or where there is none, sound.
    fn pass_on(&mut self, now: Instant, out: &mut Outbox) {
        for unit in std::mem::take(&mut self.units) {
            if let Gate::Open(stream) = &self.gate {
                let stream = stream.clone();
                if unit.track == Track::Audio && !self.is_sound_alone(&unit) {
                    if unit.kind == Kind::Config {
                        self.sound_config = Some(unit);
                    }
                    continue;
                }
                let carry = Output::Carry { ticket: TICKET, stream: stream.clone() };
                out.push(if self.datagrams { carry } else { Output::Source { stream } });
                self.gate = Gate::Source;
                if let Some(config) = self.sound_config.take() {
                    let (dts_90k, pts_90k) = (unit.dts_90k, unit.dts_90k);
                    self.send(now, Unit { dts_90k, pts_90k, ..config }, out);
                }
            }
            self.send(now, unit, out);
        }
    }

    fn send(&mut self, now: Instant, unit: Unit, out: &mut Outbox) {
        if self.sent.replace(now).is_some_and(|sent| now.saturating_duration_since(sent) >= PAUSE_MIN) {
            self.resumed = Some(now);
        }
        out.push(if self.datagrams { Output::Carried { ticket: TICKET, unit } } else { Output::Unit(unit) });
    }

    fn is_sound_alone(&mut self, unit: &Unit) -> bool {
        let since_90k = *self.sound_since_90k.get_or_insert(unit.dts_90k);
        unit.kind == Kind::Key && unit.dts_90k - since_90k >= SOUND_ALONE && self.demuxer.is_sound_alone()
    }
}

#[cfg(test)]
mod tests;
