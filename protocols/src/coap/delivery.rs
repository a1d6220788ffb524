//! The message layer (RFC 7252 section 4): what was received already, and what we sent that is not acknowledged yet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// A message id can mean the same message for this long (EXCHANGE_LIFETIME, section 4.8.2).
const EXCHANGE_LIFETIME: Duration = Duration::from_secs(247);

/// Message ids remembered of one peer; the oldest goes first. With answers of some 20 bytes that is about 8 KiB.
const RECENT_MAX: usize = 128;

/// Transmission parameters (section 4.8).
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const ACK_RANDOM_FACTOR: f64 = 1.5;
const MAX_RETRANSMIT: u8 = 4;

/// Messages to one peer that wait for an acknowledgement.
const FLIGHTS_MAX: usize = 32;

/// Requests of the last minutes, by message id, with their answers.
#[derive(Debug, Default)]
pub(super) struct Recent {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u16,
    since: Instant,
    answer: Option<Bytes>,
}

/// What became of a message with this id.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    New,
    /// It was received before; the packet that answered it, if it is answered.
    Before(Option<Bytes>),
}

/// Confirmable messages of ours on their way.
#[derive(Debug)]
pub(super) struct Flights {
    flights: Vec<Flight>,
    /// State of the random numbers for the time-outs.
    random: u64,
}

#[derive(Debug)]
struct Flight {
    id: u16,
    packet: Bytes,
    /// When it is sent again, or given up.
    next: Instant,
    timeout: Duration,
    resent: u8,
    cargo: Cargo,
}

/// What a confirmable message of ours carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cargo {
    Response,
    /// The order with this id, for the observer with this token.
    Command {
        id: String,
        token: Bytes,
    },
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    Resend(Bytes),
    GivenUp(Cargo),
}

// === impl Recent ===

impl Recent {
    pub(super) fn look(&mut self, now: Instant, id: u16) -> Seen {
        while self.entries.front().is_some_and(|e| now.saturating_duration_since(e.since) >= EXCHANGE_LIFETIME) {
            self.entries.pop_front();
        }
        if let Some(entry) = self.entries.iter().rev().find(|entry| entry.id == id) {
            return Seen::Before(entry.answer.clone());
        }
        if self.entries.len() >= RECENT_MAX {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { id, since: now, answer: None });
        Seen::New
    }

    pub(super) fn answered(&mut self, id: u16, packet: &Bytes) {
        if let Some(entry) = self.entries.iter_mut().rev().find(|entry| entry.id == id) {
            entry.answer = Some(packet.clone());
        }
    }
}

// === impl Flights ===

impl Flights {
    pub(super) fn new(seed: u64) -> Self {
        Self { flights: Vec::new(), random: seed | 1 }
    }

    pub(super) fn full(&self) -> bool {
        self.flights.len() >= FLIGHTS_MAX
    }

    /// The packet was sent for the first time.
    pub(super) fn sent(&mut self, now: Instant, id: u16, packet: Bytes, cargo: Cargo) {
        let timeout = ACK_TIMEOUT.mul_f64(1.0 + (ACK_RANDOM_FACTOR - 1.0) * self.fraction());
        self.flights.push(Flight { id, packet, next: now + timeout, timeout, resent: 0, cargo });
    }

    /// The peer acknowledged or reset the message with this id.
    pub(super) fn landed(&mut self, id: u16) -> Option<Cargo> {
        let at = self.flights.iter().position(|flight| flight.id == id)?;
        Some(self.flights.swap_remove(at).cargo)
    }

    /// One message whose time has come. Called until there is none.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let at = self.flights.iter().position(|flight| flight.next <= now)?;
        let flight = self.flights.get_mut(at)?;
        if flight.resent >= MAX_RETRANSMIT {
            return Some(Due::GivenUp(self.flights.swap_remove(at).cargo));
        }
        flight.resent += 1;
        flight.timeout *= 2;
        flight.next = now + flight.timeout;
        Some(Due::Resend(flight.packet.clone()))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.flights.iter().map(|flight| flight.next).min()
    }

    /// Between 0 and 1 (xorshift64).
    fn fraction(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_new_once_in_its_lifetime() {
        let now = Instant::now();
        let mut recent = Recent::default();
        assert_eq!(recent.look(now, 7), Seen::New);
        assert_eq!(recent.look(now, 7), Seen::Before(None));
        recent.answered(7, &Bytes::from_static(b"answer"));
        assert_eq!(recent.look(now, 7), Seen::Before(Some(Bytes::from_static(b"answer"))));
        assert_eq!(recent.look(now + EXCHANGE_LIFETIME, 7), Seen::New);
        for id in 100..100 + RECENT_MAX as u16 {
            assert_eq!(recent.look(now + EXCHANGE_LIFETIME, id), Seen::New);
        }
        assert_eq!(recent.entries.len(), RECENT_MAX);
    }

    #[test]
    fn a_message_is_sent_five_times_and_then_given_up() {
        let start = Instant::now();
        let mut flights = Flights::new(99);
        let packet = Bytes::from_static(b"p");
        flights.sent(start, 1, packet.clone(), Cargo::Response);
        let mut waits = Vec::new();
        let mut now = start;
        for _ in 0..MAX_RETRANSMIT {
            let next = flights.deadline().unwrap();
            assert_eq!(flights.due(now), None);
            waits.push(next - now);
            now = next;
            assert_eq!(flights.due(now), Some(Due::Resend(packet.clone())));
        }
        assert!(waits[0] >= ACK_TIMEOUT && waits[0] <= ACK_TIMEOUT.mul_f64(ACK_RANDOM_FACTOR));
        assert!(waits.windows(2).all(|pair| pair[1] == pair[0] * 2), "{waits:?}");
        now = flights.deadline().unwrap();
        assert_eq!(flights.due(now), Some(Due::GivenUp(Cargo::Response)));
        assert_eq!(flights.deadline(), None);
    }

    #[test]
    fn an_acknowledgement_ends_it() {
        let now = Instant::now();
        let mut flights = Flights::new(1);
        flights.sent(now, 1, Bytes::new(), Cargo::Response);
        assert_eq!(flights.landed(2), None);
        assert_eq!(flights.landed(1), Some(Cargo::Response));
        assert_eq!(flights.deadline(), None);
    }
}
