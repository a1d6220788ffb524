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
    /// When what was counted last came, where that is known.
    arrived: Option<Instant>,
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
            arrived: None,
            now: Slot::default(),
            last_key: None,
            key_interval: 0,
        }
    }

    /// What is counted next came at this moment.
    pub(super) fn arrived(&mut self, at: Instant) {
        self.arrived = Some(at);
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

    /// Closes the second that ends now, or ended with the newest arrival: a stream that is read five times a second would
    /// have a fifth more or less of its frames in it.
    pub(super) fn turn(&mut self, now: Instant) {
        let end = self.arrived.take().unwrap_or(now);
        self.now.span = end.saturating_duration_since(self.turned);
        self.turned = end;
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

    #[test]
    fn reads_that_are_far_apart_move_no_rate() {
        let began = Instant::now();
        let mut figures = Figures::new(began);
        let mut reads_ms = (1..).map(|n| n * 185).peekable();
        for second in 1..=20 {
            let now = began + Duration::from_secs(second);
            while let Some(read_ms) = reads_ms.next_if(|read_ms| *read_ms <= second * 1_000) {
                figures.arrived(began + Duration::from_millis(read_ms));
                // 25 frames a second.
                ((read_ms - 185) / 40..read_ms / 40).for_each(|_| figures.video());
            }
            figures.turn(now);
            assert!(second < 5 || (figures.fps() - 25.0).abs() < 0.5, "{}", figures.fps());
        }
        // Nothing comes any more.
        for second in 21..=25 {
            figures.turn(began + Duration::from_secs(second));
        }
        assert!(figures.fps() < f64::EPSILON);
    }
}
