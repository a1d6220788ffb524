//! What is on disk, as everyone who waits for an acknowledgement sees it.

use device_models::Class;

use super::index;

/// Ranges of failed numbers kept apart for each class; older ones are joined, which can only refuse too much.
const FAILED_MAX: usize = 16;

/// How far the log is durable. Published after each commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Durable {
    /// By class number: everything up to here is decided: on disk, unless it is in a failed range.
    pub through: [u64; 4],
    /// Batches that could not be written, since the start.
    pub failures: u64,
    failed: [Vec<(u64, u64)>; 4],
}

// === impl Durable ===

impl Durable {
    /// Whether the record is on disk: `None` while that is open, `Some(false)` if it could not be written and is lost
    /// (a gap names it; it must not be acknowledged). Every number given by `append` is decided in the end.
    pub fn settled(&self, class: Class, seq: u64) -> Option<bool> {
        if self.failed[index(class)].iter().any(|(first, last)| (*first..=*last).contains(&seq)) {
            return Some(false);
        }
        (seq <= self.through[index(class)]).then_some(true)
    }

    pub(crate) fn from_disk(through: [u64; 4]) -> Self {
        Self { through, ..Self::default() }
    }

    pub(super) fn succeed(&mut self, class: Class, through: u64) {
        let slot = &mut self.through[index(class)];
        *slot = through.max(*slot);
    }

    pub(super) fn fail(&mut self, class: Class, first: u64, last: u64) {
        self.failures += 1;
        let ranges = &mut self.failed[index(class)];
        match ranges.last_mut() {
            Some(old) if old.1 + 1 == first => old.1 = last,
            _ => ranges.push((first, last)),
        }
        if ranges.len() > FAILED_MAX {
            let (oldest, _) = ranges.remove(0);
            if let Some(next) = ranges.first_mut() {
                next.0 = oldest;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_number_stays_failed_after_later_ones_are_durable() {
        let mut durable = Durable::default();
        durable.succeed(Class::Live, 3);
        durable.fail(Class::Live, 4, 5);
        assert_eq!(durable.settled(Class::Live, 6), None);
        durable.succeed(Class::Live, 9);
        let settled: Vec<_> = (3..=10).map(|seq| durable.settled(Class::Live, seq)).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(settled, [yes, no, no, yes, yes, yes, yes, None]);
        assert_eq!(durable.settled(Class::Event, 1), None, "classes are apart");
    }

    #[test]
    fn many_failures_are_joined_and_never_forgotten() {
        let mut durable = Durable::default();
        for n in 0..100 {
            durable.fail(Class::Event, n * 10 + 1, n * 10 + 2);
        }
        durable.succeed(Class::Event, 2000);
        assert!(durable.failed[1].len() <= FAILED_MAX);
        assert!((0..100).all(|n| durable.settled(Class::Event, n * 10 + 1) == Some(false)));
        assert_eq!(durable.settled(Class::Event, 1001), Some(true));
    }
}
