//! How long bytes for viewers are collected before a write: nothing while the thread has time to spare, more the
//! busier it is. Below about 30 KB a write the system call costs more than the copy, so collecting is what makes
//! thousands of viewers fit on one core; collecting without need is only delay.
//!
//! Must not be in here: clocks; the caller measures.

use std::time::Duration;

/// The windows, ms.
const LEVELS: [u64; 5] = [0, 40, 100, 200, 350];

/// Busy fraction above which the next larger window is taken.
const BUSY_HIGH: f64 = 0.30;

/// What the next smaller window costs in CPU, at 1 Mb/s and 25 fps, times a margin against swinging.
const COST_BELOW: [f64; 5] = [1.0, 2.2, 2.6, 1.8, 1.6];

/// Weight of a new measurement.
const WEIGHT: f64 = 0.5;

/// The thread's window.
#[derive(Debug)]
pub(super) struct Window {
    level: usize,
    busy: f64,
    min_ms: u64,
    max_ms: u64,
}

impl Window {
    pub(super) fn new(min_ms: u64, max_ms: u64) -> Self {
        Self { level: 0, busy: 0.0, min_ms: min_ms.min(max_ms), max_ms }
    }

    /// Takes a measured busy fraction (0 to 1), about twice a second.
    pub(super) fn measured(&mut self, busy: f64) {
        self.busy += (busy.clamp(0.0, 1.0) - self.busy) * WEIGHT;
        let cost_below = COST_BELOW.get(self.level).copied().unwrap_or(1.0);
        if self.busy > BUSY_HIGH {
            let next = (self.level + 1).min(LEVELS.len() - 1);
            let grows = LEVELS.get(self.level).is_some_and(|ms| *ms < self.max_ms);
            self.level = if grows { next } else { self.level };
        } else if self.level > 0 && self.busy * cost_below < BUSY_HIGH {
            self.level -= 1;
        }
    }

    /// Zero: write with every unit.
    pub(super) fn length(&self) -> Duration {
        let ms = LEVELS.get(self.level).copied().unwrap_or(0);
        Duration::from_millis(ms.clamp(self.min_ms, self.max_ms))
    }

    pub(super) fn busy(&self) -> f64 {
        self.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(window: &mut Window, busy: f64, rounds: usize) -> u64 {
        for _ in 0..rounds {
            window.measured(busy);
        }
        window.length().as_millis() as u64
    }

    #[test]
    fn grows_with_load_and_falls_back_when_it_is_gone() {
        let mut window = Window::new(0, 350);
        assert_eq!(after(&mut window, 0.25, 20), 0);
        assert_eq!(after(&mut window, 0.9, 20), 350);
        assert_eq!(after(&mut window, 0.01, 20), 0);
    }

    #[test]
    fn does_not_swing() {
        // 45 % busy at no window, 25 % at 40 ms: it must stay at 40.
        let mut window = Window::new(0, 350);
        let mut changes = 0;
        let mut before = 0;
        for _ in 0..100 {
            let now = after(&mut window, if before == 0 { 0.45 } else { 0.25 }, 1);
            changes += u32::from(now != before);
            before = now;
        }
        assert_eq!(changes, 1);
    }

    #[test]
    fn keeps_its_bounds() {
        let mut window = Window::new(0, 60);
        assert_eq!(after(&mut window, 1.0, 20), 60);
        let mut window = Window::new(350, 350);
        assert_eq!(after(&mut window, 0.0, 20), 350);
    }
}
