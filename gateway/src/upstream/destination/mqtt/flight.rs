//! QoS 0 publishes between the write and the proof that the broker has them. Nobody confirms such a publish, and one that
//! was written may be lost with the connection for as long as its loss is not noticed. So it counts as confirmed only
//!
//! - one and a half keep-alive times after it was written, when a ping that was written after it has been answered too; or
//! - at once, when a QoS 1 publish that was written after it is confirmed (the last word before an orderly end).
//!
//! What is not confirmed when a connection breaks goes again. Pure: time is handed in.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Publishes in flight; beyond it an answered ping is enough, and new ones wait for it. A few ten bytes each.
const FLYING_MAX: usize = 20_000;
/// A look at what is left to wait, where only a ping can help.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Flight {
    settle: Duration,
    /// Token and when it was written, in order.
    flying: VecDeque<(u64, Instant)>,
    /// The newest token written before a ping that is not answered yet; and before one that is.
    asked: u64,
    answered: u64,
    /// The newest token that a confirmed publish has overtaken.
    passed: u64,
}

// === impl Flight ===

impl Flight {
    pub(super) fn new(keep_alive: Duration) -> Self {
        Self { settle: keep_alive * 3 / 2, flying: VecDeque::new(), asked: 0, answered: 0, passed: 0 }
    }

    pub(super) fn written(&mut self, token: u64, now: Instant) {
        self.flying.push_back((token, now));
    }

    pub(super) fn asked(&mut self) {
        self.asked = self.flying.back().map_or(self.asked, |(token, _)| *token);
    }

    pub(super) const fn answered(&mut self) {
        self.answered = self.asked;
    }

    /// A later publish is confirmed.
    pub(super) const fn passed(&mut self, token: u64) {
        self.passed = token;
    }

    /// The next one that counts as confirmed.
    pub(super) fn landed(&mut self, now: Instant) -> Option<u64> {
        let (token, written) = *self.flying.front()?;
        let settled = now >= written + self.settle || self.flying.len() > FLYING_MAX;
        if token < self.passed || (token <= self.answered && settled) {
            self.flying.pop_front();
            return Some(token);
        }
        None
    }

    /// How long nothing can become of them without anything being heard.
    pub(super) fn patience(&self, now: Instant) -> Duration {
        match self.flying.front() {
            Some((token, written)) if *token <= self.answered => {
                (*written + self.settle).saturating_duration_since(now).max(Duration::from_millis(1))
            }
            Some(_) => LOOK,
            None => Duration::MAX,
        }
    }

    /// Those that hold up others: landed for sure and not yet told, or too many.
    pub(super) fn pressing(&self) -> usize {
        let landed = match self.flying.front() {
            Some((first, _)) if *first < self.passed => self.flying.partition_point(|(token, _)| *token < self.passed),
            _ => 0,
        };
        landed.max(self.flying.len().saturating_sub(FLYING_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP_ALIVE: Duration = Duration::from_secs(10);

    fn flight(tokens: std::ops::RangeInclusive<u64>, now: Instant) -> Flight {
        let mut flight = Flight::new(KEEP_ALIVE);
        for token in tokens {
            flight.written(token, now);
        }
        flight
    }

    fn landed(flight: &mut Flight, now: Instant) -> Vec<u64> {
        std::iter::from_fn(|| flight.landed(now)).collect()
    }

    #[test]
    fn it_takes_an_answered_ping_and_one_and_a_half_keep_alive_times() {
        let start = Instant::now();
        let mut flight = flight(1..=2, start);
        let late = start + KEEP_ALIVE * 3 / 2;
        assert!(landed(&mut flight, late).is_empty(), "the connection may have been dead all the time");
        flight.asked();
        flight.written(3, start);
        assert!(landed(&mut flight, late).is_empty(), "asked is not answered");
        flight.answered();
        assert!(landed(&mut flight, late - Duration::from_millis(1)).is_empty());
        assert_eq!(flight.patience(late - Duration::from_secs(2)), Duration::from_secs(2));
        assert_eq!(landed(&mut flight, late), [1, 2], "the third was written after the ping");
    }

    #[test]
    fn a_confirmed_publish_proves_all_before_it() {
        let now = Instant::now();
        let mut flight = flight(1..=3, now);
        assert_eq!(flight.pressing(), 0);
        flight.passed(3);
        assert_eq!((flight.pressing(), landed(&mut flight, now)), (2, vec![1, 2]));
        assert_eq!((flight.pressing(), flight.flying.len()), (0, 1));
    }

    #[test]
    fn too_many_hold_up_others_until_a_ping_is_answered() {
        let now = Instant::now();
        let mut flight = flight(1..=FLYING_MAX as u64 + 5, now);
        assert_eq!(flight.pressing(), 5);
        flight.asked();
        flight.answered();
        assert_eq!((landed(&mut flight, now).len(), flight.pressing()), (5, 0));
    }
}
