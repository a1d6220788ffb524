//! Packets of a datagram wire, put back into their order within bounds.
//!
//! A packet that is missing is waited for while few others wait behind it, and not for long; then the order goes on without it
//! and [`Depacketizer`](super::Depacketizer) counts the loss.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Packets that may wait for one that is missing.
const PACKETS_MAX: usize = 64;

/// How long they wait at most: more than any network in a house needs.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// See the module.
#[derive(Debug, Default)]
pub struct Reorder {
    expected: Option<u16>,
    /// In order, with sequence number and arrival.
    held: VecDeque<(u16, Instant, Bytes)>,
}

impl Reorder {
    /// Waits for this packet first, within the same bounds.
    pub fn beginning_at(sequence: u16) -> Self {
        Self { expected: Some(sequence), ..Self::default() }
    }

    /// Takes an RTP packet. One that comes twice, or after its time, is left out.
    pub fn push(&mut self, now: Instant, packet: Bytes) {
        let Some(&[_, _, high, low]) = packet.first_chunk() else { return };
        let sequence = u16::from_be_bytes([high, low]);
        let expected = *self.expected.get_or_insert(sequence);
        let ahead = sequence.wrapping_sub(expected);
        let at = self.held.partition_point(|(other, ..)| other.wrapping_sub(expected) < ahead);
        let twice = self.held.get(at).is_some_and(|(other, ..)| *other == sequence);
        if ahead <= u16::MAX / 2 && !twice {
            self.held.insert(at, (sequence, now, packet));
        }
    }

    /// The next packet, as long as there is one whose turn it is.
    pub fn pop(&mut self, now: Instant) -> Option<Bytes> {
        let (sequence, ..) = *self.held.front()?;
        let oldest = self.held.iter().map(|(_, arrived, _)| *arrived).min();
        let overdue = oldest.is_some_and(|arrived| now.saturating_duration_since(arrived) >= WAIT_MAX);
        if self.expected != Some(sequence) && !overdue && self.held.len() <= PACKETS_MAX {
            return None;
        }
        self.expected = Some(sequence.wrapping_add(1));
        self.held.pop_front().map(|(_, _, packet)| packet)
    }

    /// When the packets that wait have waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.held.iter().map(|(_, arrived, _)| *arrived + WAIT_MAX).min()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "virtual time has to start somewhere")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(sequence: u16) -> Bytes {
        let [high, low] = sequence.to_be_bytes();
        Bytes::copy_from_slice(&[0x80, 96, high, low])
    }

    fn pops(reorder: &mut Reorder, now: Instant) -> Vec<u16> {
        std::iter::from_fn(|| reorder.pop(now)).map(|packet| u16::from_be_bytes([packet[2], packet[3]])).collect()
    }

    #[test]
    fn what_is_missing_is_waited_for_and_then_given_up() {
        let (mut reorder, now) = (Reorder::default(), Instant::now());
        for sequence in [65_534, 0, 65_534, 1] {
            reorder.push(now, packet(sequence));
        }
        assert_eq!(pops(&mut reorder, now), [65_534]);
        reorder.push(now, packet(65_535));
        assert_eq!(pops(&mut reorder, now), [65_535, 0, 1]);
        reorder.push(now, packet(65_535));
        reorder.push(now, packet(3));
        assert!(pops(&mut reorder, now + WAIT_MAX / 2).is_empty(), "2 may come");
        assert_eq!(reorder.due(), Some(now + WAIT_MAX));
        assert_eq!(pops(&mut reorder, now + WAIT_MAX), [3]);
        assert_eq!(reorder.due(), None);
        for sequence in 5..70 {
            reorder.push(now, packet(sequence));
        }
        assert_eq!(pops(&mut reorder, now), (5..70).collect::<Vec<u16>>(), "too many wait for 4");
    }

    proptest! {
        #[test]
        fn any_order_within_the_bound_is_mended(first: u16, keys in prop::collection::vec(0usize..30, 1..400)) {
            let (mut reorder, now) = (Reorder::default(), Instant::now());
            // Each packet is late by at most so many others; the first is not.
            let mut order: Vec<(usize, u16)> =
                keys.iter().enumerate().map(|(at, late)| (at + late, at as u16)).skip(1).collect();
            order.sort_unstable();
            let mut got = Vec::new();
            for (_, at) in [(0, 0)].into_iter().chain(order) {
                reorder.push(now, packet(first.wrapping_add(at)));
                got.extend(pops(&mut reorder, now));
                prop_assert!(reorder.held.len() <= PACKETS_MAX);
            }
            let whole: Vec<u16> = (0..keys.len()).map(|at| first.wrapping_add(at as u16)).collect();
            prop_assert_eq!(got, whole);
        }
    }
}
