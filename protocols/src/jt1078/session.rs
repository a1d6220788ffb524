//! The talk with one terminal: it only ever sends, and each of its channels is a stream.
//!
//! A channel is claimed with its first packet, which is kept until the answer. Must not be in here: the bytes of packets.

use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::Options;
use super::channel::Channel;
use super::frame::{DataType, Packet, Reader, Sim};
use crate::media::StreamName;
use crate::pass::Pass;
use crate::session::{Claim, Fault, Input, MediaEvent, Outbox, Output, Refusal, Session, Ticket};

/// A stream that was parted from us while its channel said nothing for so long ended for that: the channel may come back.
const PAUSE_MIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Jt1078Session {
    options: Options,
    reader: Reader,
    channels: Vec<Claimed>,
    /// The newest sequence number of all channels.
    sequence: Option<u16>,
    waiting: Option<Waiting>,
    tickets: u64,
}

/// Asked for, not answered yet.
#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    stream: StreamName,
    packet: Packet,
    datagram: bool,
}

#[derive(Debug)]
struct Claimed {
    ticket: Ticket,
    sim: Sim,
    number: u8,
    /// `None`: refused, or another has its stream; its packets are left out.
    channel: Option<Box<Channel>>,
    heard: Instant,
    /// When it spoke again after a pause.
    resumed: Option<Instant>,
}

// === impl Session ===

impl Session for Jt1078Session {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => self.stream(now, buffer, out),
            Input::Datagram(datagram) => {
                let packet = Packet::of_datagram(&datagram)?;
                self.packet(now, packet, true, out)
            }
            Input::Admission { ticket, outcome } => self.admission(now, ticket, outcome.map(drop), out),
            Input::Media(MediaEvent::Parted { ticket }) => {
                self.parted(now, ticket, out);
                Ok(())
            }
            Input::Settled { .. }
            | Input::Exchange(_)
            | Input::Command(_)
            | Input::Media(_)
            | Input::Piece { .. }
            | Input::Ended { .. } => Ok(()),
        }
    }

    fn tick(&mut self, _now: Instant, _out: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn paused(&self) -> bool {
        self.waiting.is_some()
    }
}

impl Jt1078Session {
    pub(super) fn new(options: Options) -> Self {
        Self { options, reader: Reader::default(), channels: Vec::new(), sequence: None, waiting: None, tickets: 0 }
    }

    fn stream(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while !self.paused() {
            let Some(packet) = self.reader.next(buffer)? else { break };
            self.packet(now, packet, false, out)?;
        }
        Ok(())
    }

    fn packet(&mut self, now: Instant, packet: Packet, datagram: bool, out: &mut Outbox) -> Result<(), Fault> {
        let header = packet.header;
        let held: usize = self.channels.iter().flat_map(|claimed| &claimed.channel).map(|channel| channel.held()).sum();
        let of = |claimed: &&mut Claimed| claimed.sim == header.sim && claimed.number == header.channel;
        let Some(claimed) = self.channels.iter_mut().find(of) else {
            return self.claim(now, packet, datagram, out);
        };
        if now.saturating_duration_since(std::mem::replace(&mut claimed.heard, now)) >= PAUSE_MIN {
            claimed.resumed = Some(now);
        }
        let others = self.sequence.replace(header.sequence);
        let Some(channel) = &mut claimed.channel else { return Ok(()) };
        let room = (self.options.frame_max_kib * 1024).saturating_sub(held);
        let mut units = Vec::new();
        let outcome = channel.packet(packet, others, datagram, room, &mut units);
        for unit in units {
            out.push(Output::Carried { ticket: claimed.ticket, unit });
        }
        outcome
    }

    /// A channel's first packet.
    fn claim(&mut self, now: Instant, packet: Packet, datagram: bool, out: &mut Outbox) -> Result<(), Fault> {
        let (sim, number) = (packet.header.sim, packet.header.channel);
        if packet.header.data_type == DataType::Transparent {
            return Err(Fault::recoverable("transparent data is not carried").ours());
        }
        if self.channels.len() >= self.options.channels_max {
            return Err(Fault::recoverable(format!("more than {} channels", self.options.channels_max)));
        }
        // The app is checked with the options; digits and a number are plain.
        let name = format!("{}/{sim}/{number}", self.options.app);
        let Some(stream) = StreamName::parse(&name) else { return Err(Fault::recoverable("no name for a stream")) };
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.channels.push(Claimed { ticket, sim, number, channel: None, heard: now, resumed: None });
        self.waiting = Some(Waiting { ticket, stream: stream.clone(), packet, datagram });
        out.push(Output::Admit { ticket, claim: Claim::Publish { stream, pass: Pass::default() } });
        Ok(())
    }

    fn admission(
        &mut self,
        now: Instant,
        answered: Ticket,
        outcome: Result<(), Refusal>,
        out: &mut Outbox,
    ) -> Result<(), Fault> {
        let Some(waiting) = self.waiting.take_if(|waiting| waiting.ticket == answered) else { return Ok(()) };
        if let Err(refusal) = outcome {
            self.close_if_idle(refusal.to_string(), out);
            return Ok(());
        }
        let Waiting { ticket, stream, packet, datagram } = waiting;
        if let Some(claimed) = self.channels.iter_mut().find(|claimed| claimed.ticket == ticket) {
            claimed.channel = Some(Box::new(Channel::new(self.options.g726_big_endian)));
        }
        out.push(Output::Carry { ticket, stream });
        self.packet(now, packet, datagram, out)
    }

    /// The stream has another source, was closed, or fell silent.
    fn parted(&mut self, now: Instant, ticket: Ticket, out: &mut Outbox) {
        let Some(at) = self.channels.iter().position(|claimed| claimed.ticket == ticket) else { return };
        let long_ago = |at: Instant| now.saturating_duration_since(at) >= PAUSE_MIN;
        let paused = |claimed: &Claimed| long_ago(claimed.heard) || claimed.resumed.is_some_and(|at| !long_ago(at));
        if self.channels.get(at).is_some_and(paused) {
            self.channels.remove(at);
        } else if let Some(claimed) = self.channels.get_mut(at) {
            claimed.channel = None;
            self.close_if_idle("another has the stream, or it was closed".to_owned(), out);
        }
    }

    /// A terminal of which nothing is wanted goes.
    fn close_if_idle(&self, reason: String, out: &mut Outbox) {
        if self.channels.iter().all(|claimed| claimed.channel.is_none()) {
            out.close(reason);
        }
    }
}
