//! The talk with one MQTT client.
//!
//! Small while idle: a fleet is ten thousand of these, so whatever only busy clients need is allocated when they do.
//! `connect.rs` gets a client in, `inbound.rs` takes what it sends, `outbound.rs` gives what the exchange has for it,
//! `commands.rs` carries orders down and finds their answers.

mod commands;
mod connect;
mod inbound;
mod outbound;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::Settings;
use super::frame::{self, Connect, Goodbye, Malformed, Packet, PropertySet, Reason, Side, Version};
use crate::exchange::{self, Event, KickReason};
use crate::session::{Fault, Identity, Input, Outbox, Output, Peer, Refusal, Session, Ticket};
use commands::Sent;

/// See the module.
pub struct MqttSession {
    settings: Arc<Settings>,
    state: State,
    version: Version,
    /// What an assigned client id is made of.
    seed: [u8; 12],
    client: Arc<str>,
    by: Identity,
    /// The device that the client itself is: its client id, or its credential's name.
    own: Arc<str>,
    /// Seconds.
    keep_alive: Option<NonZeroU16>,
    /// When the last whole packet came.
    heard: Option<Instant>,
    tickets: u64,
    /// Publications whose acknowledgement is owed, in their order.
    owed: VecDeque<Owed>,
    /// The talk ends as soon as nothing is owed: what came before the end gets its acknowledgement, wherever the bytes
    /// were cut.
    ending: Option<Box<Ending>>,
    /// Filters in the exchange's hands.
    filing: VecDeque<Filing>,
    /// PUBRECs of the client whose PUBREL the exchange has yet to order.
    releasing: u32,
    /// QoS 2 packet ids taken and not released.
    unreleased: BTreeMap<u16, Taken>,
    /// Bytes of a packet the client takes.
    packet_max: usize,
    session_expiry_asked: bool,
    reasons_wanted: bool,
    aliases: Option<Box<Aliases>>,
    spoken: BTreeMap<Box<str>, Spoken>,
    commands: Vec<Sent>,
}

enum State {
    /// Nothing but CONNECT is welcome.
    New,
    Admitting(Box<Connect>),
    Attaching(Box<Connect>),
    Up,
    Over,
}

/// An acknowledgement that goes out when the publication is settled and all before it are.
struct Owed {
    ticket: Ticket,
    packet_id: u16,
    exactly_once: bool,
    outcome: Option<Result<(), Refusal>>,
    /// Repetitions that came meanwhile; each gets its acknowledgement too.
    again: u8,
    /// The refusal was returned as a fault already.
    said: bool,
}

/// Why the talk ends.
enum Ending {
    Malformed(Malformed),
    Broken(Reason, Cow<'static, str>),
    Disconnect(Goodbye),
}

/// A SUBSCRIBE or UNSUBSCRIBE that waits for the exchange.
struct Filing {
    ticket: Ticket,
    packet_id: u16,
    /// Outcomes known beforehand; `None`: the exchange says.
    known: Vec<Option<Reason>>,
}

/// When an unreleased QoS 2 publication was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Now,
    /// On an earlier connection: only a repetition is a duplicate of it, a first sending reuses the id.
    Earlier,
}

/// Topic aliases of MQTT 5, both ways.
#[derive(Default)]
struct Aliases {
    theirs: Vec<Option<Arc<str>>>,
    ours: HashMap<Arc<str>, u16>,
    ours_max: u16,
}

/// How a device last spoke.
struct Spoken {
    dialect: usize,
    base: Box<str>,
}

impl MqttSession {
    pub fn new(settings: Arc<Settings>, peer: &Peer) -> Self {
        let mut seed = [0; 12];
        for (to, from) in seed.iter_mut().zip(peer.seed) {
            *to = from;
        }
        let nobody: Arc<str> = Arc::from("");
        Self {
            settings,
            state: State::New,
            version: Version::V311,
            seed,
            client: Arc::clone(&nobody),
            by: Identity::anonymous(),
            own: nobody,
            keep_alive: None,
            heard: None,
            tickets: 0,
            owed: VecDeque::new(),
            ending: None,
            filing: VecDeque::new(),
            releasing: 0,
            unreleased: BTreeMap::new(),
            packet_max: usize::MAX,
            session_expiry_asked: false,
            reasons_wanted: true,
            aliases: None,
            spoken: BTreeMap::new(),
            commands: Vec::new(),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    fn send(&self, packet: &Packet, out: &mut Outbox) {
        out.send(frame::encode(packet, self.version));
    }

    fn take(&mut self, now: Instant, buffer: &mut BytesMut, out: &mut Outbox) -> Result<(), Fault> {
        while !self.paused() && !matches!(self.state, State::Over) {
            let version = self.version;
            let read = frame::split(buffer, self.settings.packet_max)
                .and_then(|raw| raw.map(|raw| frame::decode(raw, version, Side::Client)).transpose());
            match read {
                Ok(Some(packet)) => {
                    self.heard = Some(now);
                    self.packet(packet, out)?;
                }
                Ok(None) => break,
                Err(malformed) => return self.end(Ending::Malformed(malformed), out),
            }
        }
        Ok(())
    }

    /// Whether the exchange or the disk still has something to say about what came in.
    fn is_waiting(&self) -> bool {
        !self.owed.is_empty() || !self.filing.is_empty() || self.releasing > 0
    }

    /// Ends the talk if an end is due and nothing stands before it.
    fn end_if_due(&mut self, out: &mut Outbox) -> Result<(), Fault> {
        if self.is_waiting() {
            return Ok(());
        }
        self.ending.take().map_or(Ok(()), |ending| self.end(*ending, out))
    }

    /// Ends the talk, now or as soon as nothing is owed.
    fn end(&mut self, ending: Ending, out: &mut Outbox) -> Result<(), Fault> {
        if self.is_waiting() {
            self.ending = Some(Box::new(ending));
            return Ok(());
        }
        let fault = match ending {
            Ending::Disconnect(goodbye) => return self.disconnect(&goodbye, out),
            Ending::Broken(reason, what) => {
                self.goodbye(reason, None, out);
                Fault::fatal(what)
            }
            Ending::Malformed(malformed) => {
                if matches!(self.state, State::New) {
                    Self::refuse_unread(malformed.reason, out);
                }
                self.goodbye(malformed.reason, None, out);
                Fault::from(&malformed)
            }
        };
        self.state = State::Over;
        Err(fault)
    }

    /// The client broke the rules in a way that no single packet shows.
    fn broken(&mut self, reason: Reason, what: impl Into<Cow<'static, str>>, out: &mut Outbox) -> Result<(), Fault> {
        self.end(Ending::Broken(reason, what.into()), out)
    }

    /// DISCONNECT from the server, which only MQTT 5 has.
    fn goodbye(&self, reason: Reason, text: Option<&str>, out: &mut Outbox) {
        if self.version == Version::V5 && matches!(self.state, State::Up) {
            let properties = text.and_then(|text| self.because(text));
            self.send(&Packet::Disconnect(Goodbye { reason, properties }), out);
        }
    }

    /// A reason string, if the client wants to hear any.
    fn because(&self, text: &str) -> Option<Box<PropertySet>> {
        let wanted = self.version == Version::V5 && self.reasons_wanted;
        wanted.then(|| Box::new(PropertySet { reason: Some(Arc::from(text)), ..PropertySet::default() }))
    }

    fn kicked(&mut self, reason: KickReason, out: &mut Outbox) {
        let (reason, text) = match reason {
            KickReason::TakenOver => (Reason::TAKEN_OVER, "another connection took the client id"),
            KickReason::Administrative => (Reason::ADMINISTRATIVE, "closed by an operator"),
            KickReason::ShuttingDown => (Reason::SHUTTING_DOWN, "the gateway stops"),
        };
        self.goodbye(reason, None, out);
        self.state = State::Over;
        out.close(text);
    }

    fn event(&mut self, now: Instant, event: Event, out: &mut Outbox) -> Result<(), Fault> {
        match event {
            Event::Attached { outcome, .. } => self.attached(now, outcome, out),
            Event::Subscribed { ticket, outcomes } => {
                self.subscribed(ticket, outcomes, out);
                self.end_if_due(out)
            }
            Event::Unsubscribed { ticket, outcomes } => {
                self.unsubscribed(ticket, &outcomes, out);
                self.end_if_due(out)
            }
            Event::Deliver(delivery) => self.deliver(delivery, out),
            Event::Release { delivery, known } => {
                self.release(delivery, known, out);
                self.end_if_due(out)
            }
            Event::Commanded { ticket, outcome } => {
                self.commanded(now, ticket, outcome, out);
                Ok(())
            }
            Event::Kicked { reason } => {
                self.kicked(reason, out);
                Ok(())
            }
        }
    }
}

impl Session for MqttSession {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        match input {
            Input::Stream(buffer) => self.take(now, buffer, out),
            Input::Admission { outcome, .. } => self.admitted(outcome, out),
            Input::Settled { ticket, outcome } => self.settled(now, ticket, outcome, out),
            Input::Exchange(event) => self.event(now, event, out),
            Input::Command(command) => {
                self.command(now, command, out);
                Ok(())
            }
            Input::Ended { .. } => {
                self.goodbye(Reason::SHUTTING_DOWN, None, out);
                self.state = State::Over;
                Ok(())
            }
            Input::Datagram(_) | Input::Media(_) | Input::Piece { .. } => {
                Err(Fault::fatal("MQTT runs on a stream").ours())
            }
        }
    }

    fn tick(&mut self, now: Instant, out: &mut Outbox) {
        if self.paused() {
            // The client's bytes wait here, unread: its silence is ours.
            self.heard = Some(now);
            return;
        }
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            self.goodbye(Reason::KEEP_ALIVE_TIMEOUT, None, out);
            self.state = State::Over;
            out.close("keep alive: nothing heard for one and a half times its interval");
        }
    }

    /// One and a half keep alives after the last packet came (3.1.2.10), whatever is sent meanwhile.
    fn deadline(&self) -> Option<Instant> {
        let (State::Up, Some(heard), Some(keep_alive)) = (&self.state, self.heard, self.keep_alive) else {
            return None;
        };
        heard.checked_add(Duration::from_millis(u64::from(keep_alive.get()) * 1500))
    }

    fn paused(&self) -> bool {
        match self.state {
            _ if self.ending.is_some() => true,
            State::Admitting(_) | State::Attaching(_) => true,
            // An MQTT 5 client was told the limit, so going past it is its fault and is judged as such.
            State::Up if self.version < Version::V5 => self.owed.len() >= usize::from(self.settings.receive_max),
            _ => false,
        }
    }
}

impl fmt::Debug for MqttSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MqttSession")
            .field("client", &self.client)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Hands a request to the exchange.
fn ask(request: exchange::Request, out: &mut Outbox) {
    out.push(Output::Exchange(request));
}
