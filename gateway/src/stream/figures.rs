//! Rates of one stream: frames and bits a second over the last seconds, and the key frame interval.

use std::time::{Duration, Instant};

/// Slots of about a second each.
const SLOTS: usize = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    frames: u64,
    bytes: u64,
    span: Duration,
}

/// Fed per unit, turned once a second.
#[derive(Debug)]
pub(super) struct Figures {
    slots: [Slot; SLOTS],
    at: usize,
    turned: Instant,
    now: Slot,
    last_key: Option<i64>,
    /// Media clock ticks.
    pub key_interval: i64,
}

impl Figures {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slots: [Slot::default(); SLOTS],
            at: 0,
            turned: now,
            now: Slot::default(),
            last_key: None,
            key_interval: 0,
        }
    }

    pub(super) fn video(&mut self) {
        self.now.frames += 1;
    }

    pub(super) fn bytes(&mut self, bytes: usize) {
        self.now.bytes += bytes as u64;
    }

    pub(super) fn key(&mut self, dts_90k: i64) {
        if let Some(last) = self.last_key.replace(dts_90k) {
            self.key_interval = dts_90k.saturating_sub(last).max(0);
        }
    }

    /// Closes the second that ends now.
    pub(super) fn turn(&mut self, now: Instant) {
        self.now.span = now.duration_since(self.turned);
        self.turned = now;
        if let Some(slot) = self.slots.get_mut(self.at) {
            *slot = std::mem::take(&mut self.now);
        }
        self.at = (self.at + 1) % SLOTS;
    }

    pub(super) fn fps(&self) -> f64 {
        self.per_second(|slot| slot.frames)
    }

    pub(super) fn bits_per_second(&self) -> u64 {
        (self.per_second(|slot| slot.bytes) * 8.0) as u64
    }

    fn per_second(&self, what: impl Fn(&Slot) -> u64) -> f64 {
        let span: f64 = self.slots.iter().map(|slot| slot.span.as_secs_f64()).sum();
        let sum: u64 = self.slots.iter().map(what).sum();
        if span > 0.1 { sum as f64 / span } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let mut now = Instant::now();
        let mut figures = Figures::new(now);
        assert!(figures.fps() < f64::EPSILON);
        for second in 0..10_u64 {
            for _ in 0..if second < 5 { 50 } else { 25 } {
                figures.video();
                figures.bytes(5000);
            }
            now += Duration::from_secs(1);
            figures.turn(now);
        }
        assert!((figures.fps() - 25.0).abs() < 0.01, "{}", figures.fps());
        assert_eq!(figures.bits_per_second(), 1_000_000);
        figures.key(0);
        figures.key(180_000);
        assert_eq!(figures.key_interval, 180_000);
    }
}
