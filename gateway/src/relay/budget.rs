//! The bit rate that relays may take together: each reserves what its stream needs before it sends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often a relay that does not fit looks again.
pub(super) const AGAIN: Duration = Duration::from_secs(2);

/// A stream in the budget may swing up by this share before it is out of it, so that it does not come and go.
const SWING: f64 = 1.1;

#[derive(Debug, Default)]
pub(super) struct Budget {
    /// kbit/s of all relays together; 0: no limit.
    kbps_max: u64,
    taken: Mutex<BTreeMap<u64, u64>>,
    next: AtomicU64,
}

/// A relay's part; given back when dropped.
#[derive(Debug)]
pub(super) struct Share<'b> {
    budget: &'b Budget,
    id: u64,
    /// kbit/s of this relay alone; 0: no limit.
    own_max: u64,
}

impl Budget {
    pub(super) fn new(kbps_max: u64) -> Self {
        Self { kbps_max, ..Self::default() }
    }

    pub(super) fn share(&self, own_max: u64) -> Share<'_> {
        Share { budget: self, id: self.next.fetch_add(1, Ordering::Relaxed), own_max }
    }

    fn taken(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share<'_> {
    /// Whether there is any limit to ask.
    pub(super) fn is_limited(&self) -> bool {
        self.own_max > 0 || self.budget.kbps_max > 0
    }

    /// Takes so much, or says why it cannot; what it had before is given back then.
    pub(super) fn take(&self, kbps: u64) -> Result<(), String> {
        let mut taken = self.budget.taken();
        let before = taken.remove(&self.id);
        let limit = |max: u64| if before.is_some() { (max as f64 * SWING) as u64 } else { max };
        if self.own_max > 0 && kbps > limit(self.own_max) {
            return Err(format!("the stream has {kbps} kbit/s, this relay may take {}", self.own_max));
        }
        let others: u64 = taken.values().sum();
        let max = self.budget.kbps_max;
        if max > 0 && others.saturating_add(kbps) > limit(max) {
            return Err(format!("the stream has {kbps} kbit/s, other relays take {others} of {max}"));
        }
        taken.insert(self.id, kbps);
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.budget.taken().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_share_what_there_is_and_give_it_back() {
        let budget = Budget::new(3_000);
        let (one, two) = (budget.share(0), budget.share(0));
        one.take(2_000).unwrap();
        assert_eq!(two.take(1_500).unwrap_err(), "the stream has 1500 kbit/s, other relays take 2000 of 3000");
        two.take(1_000).unwrap();
        two.take(1_200).unwrap();
        drop(one);
        two.take(3_000).unwrap();
    }

    #[test]
    fn one_relay_keeps_to_its_own_limit_and_may_swing_a_little_within() {
        let budget = Budget::new(0);
        let share = budget.share(1_000);
        assert!(share.is_limited() && !budget.share(0).is_limited());
        assert!(share.take(1_050).is_err());
        share.take(1_000).unwrap();
        share.take(1_050).unwrap();
        assert_eq!(share.take(1_200).unwrap_err(), "the stream has 1200 kbit/s, this relay may take 1000");
        assert!(share.take(1_050).is_err(), "it has to come down to the limit again");
    }
}
