//! Messages over a wire that drops, doubles, reorders and damages: each arrives once, in order.
//!
//! A [`Link`] is one end; both ends are alike. It numbers what it sends, keeps up to `window` messages unacknowledged,
//! repeats each with growing patience, and acknowledges what it gets; the receiver holds what came too early. No clock and
//! no wire: bytes and times go in, [`Event`]s come out through [`Link::poll`].
//!
//! Restarts: a sender numbers under a session of its own choice, new at each start, and every packet says the oldest
//! number still unacknowledged. A receiver that has just started begins there. So a restart of either end loses nothing;
//! what was delivered but not yet acknowledged when the receiver went down is delivered again to its next life.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;

use crate::frame::{self, Decoder, PACKET_MAX};
use crate::message::{Ack, Data, Packet, packet::Kind};

/// The most messages in flight: a microcontroller must hold as many that came too early.
pub const WINDOW_MAX: u32 = 8;
/// Bytes of one message: a packet less its envelope (session, two numbers, tags and lengths: at most 28 bytes).
pub const MESSAGE_MAX: usize = PACKET_MAX - 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Messages sent before the first must be acknowledged, 1 to [`WINDOW_MAX`] (held to that).
    pub window: u32,
    /// Patience before the first repetition; doubles each time.
    pub patience: Duration,
    /// Where the doubling ends.
    pub patience_max: Duration,
    /// Repetitions of one message before the link is given up.
    pub repeats_max: u32,
}

impl Default for Config {
    /// For a serial line: patience above the time a full window takes at 115,200 bit/s; gives up after about 40 s.
    fn default() -> Self {
        let (patience, patience_max) = (Duration::from_millis(800), Duration::from_secs(5));
        Self { window: WINDOW_MAX, patience, patience_max, repeats_max: 9 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes for the wire: one frame.
    Send(Vec<u8>),
    /// The peer's next message.
    Message(Bytes),
    /// The peer has started anew (not told for the first session seen).
    PeerRestarted,
    /// A message was repeated `repeats_max` times in vain. [`Link::into_unacknowledged`] has what is not known to have
    /// arrived.
    Broken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("{0} messages wait for their acknowledgement, which is the most")]
    Full(u32),
    #[error("a message of {0} bytes; the most is {MESSAGE_MAX}")]
    TooLong(usize),
    #[error("the link was given up: the peer acknowledges nothing")]
    Broken,
}

/// What the link did and turned away, since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub sent: u64,
    pub repeated: u64,
    pub delivered: u64,
    /// Messages that had come before.
    pub duplicates: u64,
    /// Frames with a wrong checksum, COBS code or length.
    pub damaged: u64,
    /// Whole packets that make no sense here: unknown kind, number beyond the window, an earlier session's.
    pub foreign: u64,
}

/// One end of a link.
#[derive(Debug)]
pub struct Link {
    config: Config,
    decoder: Decoder,
    events: VecDeque<Event>,
    counters: Counters,
    broken: bool,
    // As a sender.
    session: u32,
    next: u32,
    /// Unacknowledged, oldest first, numbers without a hole; at most `window`.
    waiting: VecDeque<Waiting>,
    // As a receiver.
    peer: Option<Peer>,
}

#[derive(Debug)]
struct Waiting {
    sequence: u32,
    payload: Bytes,
    due: Instant,
    repeats: u32,
}

#[derive(Debug)]
struct Peer {
    session: u32,
    /// Packets of it may still be under way; they are not a new start.
    session_before: Option<u32>,
    expected: u32,
    /// What came too early: index 0 is `expected`. At most `WINDOW_MAX`.
    early: VecDeque<Option<Bytes>>,
}

// === impl Link ===

impl Link {
    /// `session`: another number at each start of this end (random, or a boot counter).
    pub fn new(config: Config, session: u32) -> Self {
        let config = Config { window: config.window.clamp(1, WINDOW_MAX), ..config };
        Self {
            config,
            decoder: Decoder::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            broken: false,
            session,
            next: 0,
            waiting: VecDeque::new(),
            peer: None,
        }
    }

    /// Sends a message, or says why it cannot now.
    pub fn send(&mut self, now: Instant, payload: Bytes) -> Result<(), LinkError> {
        if self.broken {
            return Err(LinkError::Broken);
        }
        if payload.len() > MESSAGE_MAX {
            return Err(LinkError::TooLong(payload.len()));
        }
        if !self.can_send() {
            return Err(LinkError::Full(self.config.window));
        }
        let sequence = self.next;
        self.next = self.next.wrapping_add(1);
        self.waiting.push_back(Waiting {
            sequence,
            payload: payload.clone(),
            due: now + self.config.patience,
            repeats: 0,
        });
        self.counters.sent += 1;
        self.emit_data(sequence, payload);
        Ok(())
    }

    pub fn can_send(&self) -> bool {
        !self.broken && self.waiting.len() < self.config.window as usize
    }

    /// Takes bytes off the wire. Poll until empty before the next call: events are no more than the bytes can hold.
    pub fn receive(&mut self, now: Instant, mut bytes: &[u8]) {
        while let Some(frame) = self.decoder.next(&mut bytes) {
            let Ok(packet) = frame else {
                self.counters.damaged += 1;
                continue;
            };
            match Packet::decode(packet.as_slice()) {
                Ok(Packet { session, kind: Some(Kind::Data(data)) }) => self.take(session, data),
                Ok(Packet { session, kind: Some(Kind::Ack(ack)) }) => self.acknowledged(now, session, ack.next),
                _ => self.counters.foreign += 1,
            }
        }
    }

    /// Repeats what is due. Call when [`deadline`](Self::deadline) has passed.
    pub fn tick(&mut self, now: Instant) {
        if self.broken {
            return;
        }
        let mut again = Vec::new();
        for waiting in &mut self.waiting {
            if waiting.due > now {
                continue;
            }
            if waiting.repeats >= self.config.repeats_max {
                self.broken = true;
                self.events.push_back(Event::Broken);
                return;
            }
            waiting.repeats += 1;
            let patience = self.config.patience.saturating_mul(1 << waiting.repeats.min(16));
            waiting.due = now + patience.min(self.config.patience_max);
            again.push((waiting.sequence, waiting.payload.clone()));
        }
        for (sequence, payload) in again {
            self.counters.repeated += 1;
            self.emit_data(sequence, payload);
        }
    }

    /// When the next repetition is due.
    pub fn deadline(&self) -> Option<Instant> {
        if self.broken { None } else { self.waiting.iter().map(|waiting| waiting.due).min() }
    }

    pub fn poll(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The messages not known to have arrived, oldest first: for the next link.
    pub fn into_unacknowledged(self) -> Vec<Bytes> {
        self.waiting.into_iter().map(|waiting| waiting.payload).collect()
    }

    fn emit_data(&mut self, sequence: u32, payload: Bytes) {
        let oldest = self.waiting.front().map_or(sequence, |waiting| waiting.sequence);
        let data = Data { sequence, oldest, payload: payload.into() };
        self.emit(Packet { session: self.session, kind: Some(Kind::Data(data)) });
    }

    fn emit(&mut self, packet: Packet) {
        let mut frame = Vec::with_capacity(packet.encoded_len() + 16);
        // Payloads are held to MESSAGE_MAX, so every packet fits its frame.
        if frame::encode(&packet.encode_to_vec(), &mut frame).is_ok() {
            self.events.push_back(Event::Send(frame));
        }
    }

    fn acknowledged(&mut self, now: Instant, session: u32, next: u32) {
        let Some(oldest) = self.waiting.front().map(|waiting| waiting.sequence) else { return };
        let count = next.wrapping_sub(oldest) as usize;
        if session != self.session || count > self.waiting.len() {
            // An old acknowledgement that was overtaken looks the same: it is harmless.
            self.counters.foreign += 1;
            return;
        }
        self.waiting.drain(..count);
        // The wire carries something: what waits gets its patience afresh.
        if count > 0 {
            for waiting in &mut self.waiting {
                waiting.repeats = 0;
                waiting.due = waiting.due.min(now + self.config.patience);
            }
        }
    }

    fn take(&mut self, session: u32, data: Data) {
        let peer = match &mut self.peer {
            Some(peer) if peer.session == session => peer,
            Some(peer) if peer.session_before == Some(session) => {
                self.counters.foreign += 1;
                return;
            }
            known => {
                let session_before = known.as_ref().map(|peer| peer.session);
                if session_before.is_some() {
                    self.events.push_back(Event::PeerRestarted);
                }
                known.insert(Peer { session, session_before, expected: data.oldest, early: VecDeque::new() })
            }
        };
        peer.catch_up(data.oldest);
        let ahead = data.sequence.wrapping_sub(peer.expected);
        if ahead > u32::MAX / 2 {
            self.counters.duplicates += 1;
        } else if ahead >= WINDOW_MAX {
            self.counters.foreign += 1;
            return;
        } else {
            let fresh = peer.hold(ahead as usize, data.payload.into());
            self.counters.duplicates += u64::from(!fresh);
        }
        while let Some(Some(_)) = peer.early.front() {
            if let Some(Some(payload)) = peer.early.pop_front() {
                peer.expected = peer.expected.wrapping_add(1);
                self.counters.delivered += 1;
                self.events.push_back(Event::Message(payload));
            }
        }
        let ack = Ack { next: peer.expected };
        self.emit(Packet { session, kind: Some(Kind::Ack(ack)) });
    }
}

// === impl Peer ===

impl Peer {
    /// The sender has acknowledgements for everything before `oldest`: this end gave them, now or in an earlier life.
    fn catch_up(&mut self, oldest: u32) {
        let behind = oldest.wrapping_sub(self.expected);
        if (1..=u32::MAX / 2).contains(&behind) {
            self.early.drain(..self.early.len().min(behind as usize));
            self.expected = oldest;
        }
    }

    /// Whether the message was not held yet.
    fn hold(&mut self, ahead: usize, payload: Bytes) -> bool {
        while self.early.len() <= ahead {
            self.early.push_back(None);
        }
        match self.early.get_mut(ahead) {
            Some(slot @ None) => {
                *slot = Some(payload);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
