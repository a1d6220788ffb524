//! When records were written, without asking them: a few checkpoints for each class, on a clock that never jumps.
//!
//! A checkpoint (number, time) says that records before the number were written by then, and records from it on not
//! before. After a start the segments' headers give the first ones; a wall clock that is plainly wrong gives none.

use std::collections::VecDeque;
use std::time::Instant;

use device_models::Class;

use super::index;

/// Checkpoints kept for each class; beyond it every second one goes, which makes the old ones coarser, never wrong.
const CHECKPOINTS_MAX: usize = 128;
/// A wall clock before this (2024-01-01) was never set.
const PLAUSIBLE_US: i64 = 1_704_067_200_000_000;

/// The checkpoints of all classes.
#[derive(Debug)]
pub(super) struct Ages {
    opened: Instant,
    /// Number, and seconds since `opened` (before it: negative).
    classes: [VecDeque<(u64, i64)>; 4],
}

// === impl Ages ===

impl Ages {
    pub(super) fn new() -> Self {
        Self { opened: Instant::now(), classes: Default::default() }
    }

    /// Seconds since the start, on the clock of the checkpoints.
    pub(super) fn now(&self) -> i64 {
        self.opened.elapsed().as_secs() as i64
    }

    /// A segment found at the start: its first number, and when its header says it was begun. Oldest first.
    pub(super) fn found(&mut self, class: Class, first: u64, begun_us: i64, now_us: i64) {
        if begun_us >= PLAUSIBLE_US && now_us >= begun_us {
            self.push(class, first, (begun_us - now_us) / 1_000_000);
        }
    }

    /// Numbers `first..=last` were written at `now`.
    pub(super) fn note(&mut self, class: Class, first: u64, last: u64, now: i64) {
        self.push(class, first, now);
        self.push(class, last + 1, now);
    }

    /// Everything before `next` was written before the start.
    pub(super) fn reached(&mut self, class: Class, next: u64) {
        self.push(class, next, 0);
    }

    fn push(&mut self, class: Class, seq: u64, at: i64) {
        let marks = &mut self.classes[index(class)];
        let newest = marks.back().copied();
        if newest == Some((seq, at)) || newest.is_some_and(|(old, then)| old > seq || then > at) {
            return;
        }
        // Two in one second, the first and the last, say all that a second can say.
        let same = marks.iter().rev().take(2).filter(|(_, then)| *then == at).count();
        if same == 2 {
            marks.pop_back();
        }
        marks.push_back((seq, at));
        if marks.len() > CHECKPOINTS_MAX {
            let mut n = 0;
            marks.retain(|_| {
                n += 1;
                n % 2 == 1
            });
        }
    }

    /// The record was written at this time or later; the start's, when nothing is known.
    pub(super) fn earliest(&self, class: Class, seq: u64) -> i64 {
        let marks = &self.classes[index(class)];
        marks.iter().rev().find(|(first, _)| *first <= seq).map_or(0, |(_, at)| *at)
    }

    /// The record was written by this time; now, when nothing is known.
    pub(super) fn latest(&self, class: Class, seq: u64) -> i64 {
        let marks = &self.classes[index(class)];
        let after = marks.partition_point(|(first, _)| *first <= seq);
        marks.get(after).map_or_else(|| self.now(), |(_, at)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: i64 = 86_400_000_000;

    #[test]
    fn a_record_is_never_called_younger_or_older_than_it_can_be() {
        let mut ages = Ages::new();
        // One batch of ten a second, after a silence of an hour each hundred seconds.
        let time = |n: i64| n + n / 100 * 3600;
        for n in 0..10_000 {
            ages.note(Class::Live, n as u64 * 10 + 1, n as u64 * 10 + 10, time(n));
        }
        assert!(ages.classes[2].len() <= CHECKPOINTS_MAX);
        for n in 0..10_000 {
            for seq in [n as u64 * 10 + 1, n as u64 * 10 + 10] {
                assert!(ages.earliest(Class::Live, seq) <= time(n), "{seq}");
                assert!(ages.latest(Class::Live, seq) >= time(n), "{seq}");
            }
        }
        assert_eq!(ages.earliest(Class::Live, 100_000), time(9_999));
    }

    #[test]
    fn a_record_after_a_long_silence_is_young_and_the_one_before_is_old() {
        let mut ages = Ages::new();
        ages.note(Class::Event, 1, 5, 10);
        ages.note(Class::Event, 6, 6, 90_000);
        assert_eq!((ages.latest(Class::Event, 5), ages.earliest(Class::Event, 6)), (10, 90_000));
        assert_eq!(ages.earliest(Class::Control, 9), 0, "classes are apart");
    }

    #[test]
    fn segments_found_give_their_age_and_a_clock_that_was_never_set_gives_none() {
        let mut ages = Ages::new();
        let now = PLAUSIBLE_US + 30 * DAY_US;
        ages.found(Class::Live, 1, now - 2 * DAY_US, now);
        ages.found(Class::Live, 50, now - DAY_US, now);
        ages.found(Class::Event, 1, 5_000_000, now);
        ages.found(Class::Control, 1, now + DAY_US, now);
        assert_eq!(ages.earliest(Class::Live, 49), -2 * 86_400);
        assert_eq!(ages.latest(Class::Live, 49), -86_400);
        assert_eq!(ages.earliest(Class::Event, 1), 0);
        assert_eq!(ages.earliest(Class::Control, 1), 0);
    }
}
