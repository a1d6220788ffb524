//! How fast the backlog goes: a window that shrinks when confirmations are late, so that it never queues up before live
//! messages on a slow line, and the rate that the configuration allows.
//!
//! Pure: time is handed in.

use std::time::Duration;

use tokio::time::Instant;

/// Confirmed sooner: one batch more may be under way.
const SOON: Duration = Duration::from_millis(150);
/// Confirmed later: half as many.
const LATE: Duration = Duration::from_millis(300);

/// What the configuration allows, a second; 0: as much as goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rates {
    pub messages: u64,
    pub bytes: u64,
}

#[derive(Debug)]
pub(super) struct Pace {
    /// Batches that may be under way, and those that are.
    window: usize,
    window_max: usize,
    under_way: usize,
    /// When the window was last halved.
    halved: Option<Instant>,
    messages: Bucket,
    bytes: Bucket,
}

/// A token bucket that may go into debt by one batch.
#[derive(Debug)]
struct Bucket {
    /// Tokens a second; 0: no limit.
    rate: u64,
    tokens: f64,
    filled: Instant,
}

// === impl Pace ===

impl Pace {
    pub(super) const fn new(window_max: usize, rates: Rates, now: Instant) -> Self {
        Self {
            window: 1,
            window_max,
            under_way: 0,
            halved: None,
            messages: Bucket::new(rates.messages, now),
            bytes: Bucket::new(rates.bytes, now),
        }
    }

    /// A new connection: nothing is under way, and how fast it is has to be found out.
    pub(super) const fn reset(&mut self) {
        (self.window, self.under_way, self.halved) = (1, 0, None);
    }

    /// Whether another batch may go now.
    pub(super) fn may(&mut self, now: Instant) -> bool {
        self.messages.fill(now);
        self.bytes.fill(now);
        self.under_way < self.window && self.messages.tokens > 0.0 && self.bytes.tokens > 0.0
    }

    /// When a batch may go without anything being confirmed; `None`: not before that.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.under_way < self.window).then(|| self.messages.due().max(self.bytes.due()))
    }

    /// Messages that a batch may have: not more than a second's.
    pub(super) fn records_max(&self, most: usize) -> usize {
        match usize::try_from(self.messages.rate).unwrap_or(usize::MAX) {
            0 => most,
            rate => most.min(rate),
        }
    }

    pub(super) const fn sent(&mut self, messages: u64, bytes: u64) {
        self.under_way += 1;
        self.messages.take(messages);
        self.bytes.take(bytes);
    }

    /// A batch was confirmed, so long after it was sent.
    pub(super) fn confirmed(&mut self, now: Instant, took: Duration) {
        self.under_way = self.under_way.saturating_sub(1);
        if took <= SOON {
            self.window = (self.window + 1).min(self.window_max);
        } else if took > LATE && self.halved.is_none_or(|halved| now - halved > took) {
            // Batches sent before the last halving tell nothing new.
            self.halved = Some(now);
            self.window = (self.window / 2).max(1);
        }
    }
}

// === impl Bucket ===

impl Bucket {
    const fn new(rate: u64, now: Instant) -> Self {
        Self { rate, tokens: 1.0, filled: now }
    }

    fn fill(&mut self, now: Instant) {
        if self.rate > 0 {
            let seconds = now.saturating_duration_since(self.filled).as_secs_f64();
            // At most a second's worth is saved up.
            self.tokens = (self.tokens + seconds * self.rate as f64).min(self.rate as f64);
            self.filled = now;
        }
    }

    const fn take(&mut self, tokens: u64) {
        if self.rate > 0 {
            self.tokens -= tokens as f64;
        }
    }

    /// When there will be a token.
    fn due(&self) -> Instant {
        if self.rate == 0 || self.tokens > 0.0 {
            return self.filled;
        }
        self.filled + Duration::from_secs_f64((1.0 - self.tokens) / self.rate as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quick_destination_gets_all_and_a_slow_one_little() {
        let start = Instant::now();
        let mut pace = Pace::new(16, Rates::default(), start);
        let burst = |pace: &mut Pace| {
            let mut sent = 0;
            while pace.may(start) {
                pace.sent(1000, 65_536);
                sent += 1;
            }
            sent
        };
        assert_eq!(burst(&mut pace), 1);
        for _ in 0..40 {
            pace.confirmed(start, Duration::from_millis(2));
            burst(&mut pace);
        }
        assert_eq!(pace.under_way, 16);
        let later = start + Duration::from_secs(9);
        for at in 0..16 {
            pace.confirmed(later + Duration::from_millis(at), Duration::from_millis(900));
        }
        assert_eq!(burst(&mut pace), 8, "those that were under way count once");
        for round in 1..20 {
            pace.confirmed(later + Duration::from_secs(2 * round), Duration::from_millis(900));
        }
        assert_eq!(pace.window, 1);
    }

    #[test]
    fn a_rate_is_kept_on_the_average() {
        let start = Instant::now();
        let mut pace = Pace::new(16, Rates { messages: 500, bytes: 0 }, start);
        assert_eq!(pace.records_max(1000), 500);
        let (mut sent, mut now) = (0, start);
        while now < start + Duration::from_secs(10) {
            if pace.may(now) {
                pace.sent(200, 1);
                pace.confirmed(now, Duration::ZERO);
                sent += 200;
            }
            now = pace.due().unwrap().max(now + Duration::from_micros(1));
        }
        assert!((4_800..=5_400).contains(&sent), "{sent}");
    }
}
