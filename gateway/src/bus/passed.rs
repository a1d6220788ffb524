//! How far a reader is done in one class: everything up to a number, and a few spans beyond it, where newer records went
//! before older ones.

/// Spans kept beyond the number. A reader that begins at the newest records does so at most this often before the older
/// ones are done; what does not fit is read again after a restart.
pub(super) const BEYOND_MAX: usize = 16;

/// Numbers that are done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Passed {
    /// Everything up to here.
    pub through: u64,
    /// First and last of each span beyond; they neither touch nor overlap, and rise.
    beyond: Vec<(u64, u64)>,
}

impl Passed {
    pub(super) const fn new(through: u64) -> Self {
        Self { through, beyond: Vec::new() }
    }

    /// `first..=last` is done too. False: that changes nothing, or there is no room for one more span.
    pub(super) fn pass(&mut self, first: u64, last: u64) -> bool {
        if last < first || last <= self.through {
            return false;
        }
        let (mut first, mut last) = (first, last);
        if self.beyond.iter().any(|(start, end)| *start <= first && last <= *end) {
            return false;
        }
        let touches = |(start, end): &(u64, u64)| *start <= last.saturating_add(1) && first <= end.saturating_add(1);
        if !self.beyond.iter().any(touches) && first > self.through + 1 && self.beyond.len() >= BEYOND_MAX {
            return false;
        }
        self.beyond.retain(|(start, end)| {
            let joins = *start <= last.saturating_add(1) && first <= end.saturating_add(1);
            if joins {
                (first, last) = (first.min(*start), last.max(*end));
            }
            !joins
        });
        if first <= self.through + 1 {
            self.through = last;
            // What the number has reached is part of it.
            while let Some((start, end)) = self.beyond.first().copied().filter(|(start, _)| *start <= self.through + 1)
            {
                debug_assert!(start > 0);
                self.through = self.through.max(end);
                self.beyond.remove(0);
            }
        } else {
            let at = self.beyond.partition_point(|(start, _)| *start < first);
            self.beyond.insert(at, (first, last));
        }
        true
    }

    /// The first number at or behind `seq` that is not done.
    pub(super) fn next(&self, seq: u64) -> u64 {
        let mut next = seq.max(self.through + 1);
        for (start, end) in &self.beyond {
            if *start <= next && next <= *end {
                next = end + 1;
            }
        }
        next
    }

    /// The last number from `seq` on, itself not done, before one that is.
    pub(super) fn end(&self, seq: u64) -> u64 {
        self.beyond.iter().find(|(start, _)| *start > seq).map_or(u64::MAX, |(start, _)| start - 1)
    }

    /// Numbers up to `through` that are not done.
    pub(super) fn left(&self, through: u64) -> u64 {
        let beyond: u64 = self.beyond.iter().map(|(start, end)| end.min(&through).saturating_sub(start - 1)).sum();
        through.saturating_sub(self.through).saturating_sub(beyond)
    }

    /// The highest number that is done.
    pub(super) fn last(&self) -> u64 {
        self.beyond.last().map_or(self.through, |(_, end)| *end)
    }

    /// Spans beyond the number.
    pub(super) fn spans(&self) -> &[(u64, u64)] {
        &self.beyond
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_touches_becomes_one() {
        let mut passed = Passed::new(10);
        assert!(passed.pass(21, 30) && passed.pass(41, 50) && !passed.pass(25, 28) && !passed.pass(5, 10));
        assert_eq!(passed.spans(), [(21, 30), (41, 50)]);
        assert_eq!((passed.next(0), passed.next(22), passed.end(11), passed.end(31)), (11, 31, 20, 40));
        assert_eq!((passed.left(60), passed.left(45), passed.last()), (30, 20, 50));
        assert!(passed.pass(31, 40));
        assert_eq!(passed.spans(), [(21, 50)]);
        assert!(passed.pass(11, 20));
        assert_eq!((passed.through, passed.spans().len()), (50, 0));
    }

    #[test]
    fn there_is_an_end_to_spans() {
        let mut passed = Passed::default();
        let told = (1..100).filter(|at| passed.pass(at * 10, at * 10)).count();
        assert_eq!((told, passed.spans().len()), (BEYOND_MAX, BEYOND_MAX));
        assert!(passed.pass(11, 12), "one that touches always fits");
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_what_was_passed(spans in proptest::collection::vec((1_u64..60, 0_u64..9), 0..12)) {
            let (mut passed, mut set) = (Passed::default(), std::collections::BTreeSet::new());
            for (first, len) in spans {
                passed.pass(first, first + len);
                set.extend(first..=first + len);
            }
            for seq in 1..80 {
                let done = passed.next(seq) != seq;
                prop_assert_eq!(done, set.contains(&seq), "{} {:?}", seq, passed);
            }
            prop_assert_eq!(passed.left(80), 80 - set.len() as u64);
        }
    }
}
