//! Sets of numbers as spans: which sequence numbers of a stream have been seen, in bounded memory.

use std::collections::BTreeMap;

/// Spans kept of one stream. Beyond it the oldest two are joined, and what lay between them counts as missing for good.
const SPANS_MAX: usize = 4096;

/// A set of sequence numbers.
#[derive(Debug, Clone, Default)]
pub struct Spans {
    /// First to last, neither touching nor overlapping each other.
    spans: BTreeMap<u64, u64>,
    /// Numbers given up between spans that had to be joined.
    given_up: u64,
}

impl Spans {
    /// Puts `first..=last` in and answers how many of them were not in yet.
    pub fn insert(&mut self, first: u64, last: u64) -> u64 {
        if last < first {
            return 0;
        }
        let (mut start, mut end) = (first, last);
        let mut known = 0u64;
        // Spans that overlap or touch, from the last that can to the first.
        let reach = last.saturating_add(1);
        while let Some((&from, &to)) = self.spans.range(..=reach).next_back() {
            if to.saturating_add(1) < first {
                break;
            }
            let (low, high) = (from.max(first), to.min(last));
            if low <= high {
                known = known.saturating_add(high - low + 1);
            }
            start = start.min(from);
            end = end.max(to);
            self.spans.remove(&from);
        }
        self.spans.insert(start, end);
        self.bound();
        (last - first).saturating_add(1).saturating_sub(known)
    }

    pub fn contains(&self, number: u64) -> bool {
        self.spans.range(..=number).next_back().is_some_and(|(_, last)| *last >= number)
    }

    pub fn first(&self) -> Option<u64> {
        self.spans.keys().next().copied()
    }

    pub fn last(&self) -> Option<u64> {
        self.spans.values().next_back().copied()
    }

    /// Numbers missing between the first and the last.
    pub fn missing(&self) -> u64 {
        self.holes().fold(self.given_up, |sum, (first, last)| sum.saturating_add(last - first + 1))
    }

    /// The missing numbers as spans, rising.
    pub fn holes(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.spans.values().zip(self.spans.keys().skip(1)).map(|(last, next)| (last + 1, next - 1))
    }

    fn bound(&mut self) {
        while self.spans.len() > SPANS_MAX {
            let (Some((first, end)), Some((start, last))) = (self.spans.pop_first(), self.spans.pop_first()) else {
                return;
            };
            self.given_up = self.given_up.saturating_add(start - end - 1);
            self.spans.insert(first, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(inserts in prop::collection::vec((0u64..60, 0u64..6), 0..40)) {
            let (mut spans, mut set) = (Spans::default(), BTreeSet::new());
            for (first, more) in inserts {
                let new = (first..=first + more).filter(|number| set.insert(*number)).count();
                prop_assert_eq!(spans.insert(first, first + more), new as u64);
            }
            for number in 0..70 {
                prop_assert_eq!(spans.contains(number), set.contains(&number));
            }
            prop_assert_eq!((spans.first(), spans.last()), (set.first().copied(), set.last().copied()));
            let range = set.first().zip(set.last()).map_or(0, |(first, last)| last - first + 1);
            prop_assert_eq!(spans.missing(), range - set.len() as u64);
        }
    }

    #[test]
    fn it_stays_bounded_and_forgets_no_loss() {
        let mut spans = Spans::default();
        for number in 0..10_000 {
            spans.insert(number * 2, number * 2);
        }
        assert!(spans.spans.len() <= SPANS_MAX);
        assert_eq!(spans.missing(), 9_999);
        assert_eq!(spans.insert(u64::MAX, u64::MAX), 1);
        spans.insert(0, u64::MAX);
        assert_eq!((spans.first(), spans.last()), (Some(0), Some(u64::MAX)));
        assert!(spans.missing() > 0, "what was given up stays missing");
    }
}
