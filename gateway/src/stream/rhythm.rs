//! When a publisher's next picture is due. Between two pictures only sound comes, in one or two pieces, and viewers get it
//! together with the picture behind it: to wake for each piece costs more than half of what a quiet stream costs.
//!
//! The times in the stream say how far apart pictures are; when one came to a thread that waited for it says where they
//! fall. A read at the due time then finds picture and sound. Each that finds a picture is a little earlier than the one
//! before, until one comes too early and waits for its picture: so delay is never more than [`SLACK_US`] and what the
//! network's own delay varies by.
//!
//! Must not be in here: sockets, tasks.

/// Pictures nearer to each other or further apart have no rhythm, microseconds: 60 and 10 of them a second.
const STEP_US: std::ops::RangeInclusive<i64> = 16_000..=100_000;
/// So long after the moment in which the last one that was waited for came, in its own place, microseconds.
const SLACK_US: i64 = 2_000;
/// So much earlier than the last, while pictures are there when they are looked for, microseconds.
const EASE_US: i64 = 100;
/// A pause shorter than this is not worth it, microseconds.
const PAUSE_MIN_US: i64 = 4_000;

/// The rhythm of one publisher's pictures. Times are microseconds of a clock that never steps.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rhythm {
    /// Time of the newest picture in the stream, and from the one before it.
    last_us: i64,
    step_us: i64,
    /// From a picture's time in the stream to the moment in which it is looked for.
    lag_us: i64,
    /// There is sound to leave for later.
    sound: bool,
}

impl Rhythm {
    pub(super) fn sound(&mut self) {
        self.sound = true;
    }

    /// A picture came; `awaited`: the thread waited for it, so that it came just now.
    pub(super) fn picture(&mut self, now_us: i64, dts_90k: i64, awaited: bool) {
        let dts_us = dts_90k.saturating_mul(100) / 9;
        self.step_us = dts_us.saturating_sub(self.last_us);
        self.last_us = dts_us;
        self.lag_us = if awaited { now_us.saturating_sub(dts_us) + SLACK_US } else { self.lag_us - EASE_US };
    }

    /// When to look for the next picture; `None`: wait for whatever comes.
    pub(super) fn due_us(&self, now_us: i64) -> Option<i64> {
        let due = self.last_us.saturating_add(self.step_us).saturating_add(self.lag_us);
        let pause = due.saturating_sub(now_us);
        let fits = self.sound && STEP_US.contains(&self.step_us) && pause >= PAUSE_MIN_US;
        (fits && pause <= self.step_us + SLACK_US).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a publisher's pictures, which come at these moments with these times; returns when each was read, and how often
    /// the thread woke for all of them.
    fn follow(pictures: &[(i64, i64)]) -> (Vec<i64>, usize) {
        let mut rhythm = Rhythm::default();
        rhythm.sound();
        let (mut read, mut now, mut wakes) = (Vec::new(), 0, 0);
        for (came, dts_90k) in pictures {
            let due = rhythm.due_us(now);
            wakes += usize::from(due.is_some());
            let found = due.is_some_and(|due| *came <= due);
            wakes += usize::from(!found);
            now = due.unwrap_or(0).max(*came).max(now);
            read.push(now);
            rhythm.picture(now, *dts_90k, !found);
        }
        (read, wakes)
    }

    #[test]
    fn pictures_of_a_steady_camera_are_found_when_they_are_looked_for() {
        // 25 a second, each up to 1.5 ms late.
        let pictures: Vec<_> = (0..1_000).map(|n| (n * 40_000 + n * n % 1_500, n * 3_600)).collect();
        let (read, wakes) = follow(&pictures);
        assert!(wakes < 1_100, "{wakes} wake-ups for 1,000 pictures");
        let delays = read.iter().zip(&pictures).map(|(read, (came, _))| read - came);
        assert!(delays.max().unwrap() <= SLACK_US + 1_500);
    }

    #[test]
    fn without_sound_nothing_is_left_for_later() {
        let mut rhythm = Rhythm::default();
        rhythm.picture(0, 0, true);
        rhythm.picture(40_000, 3_600, true);
        assert_eq!(rhythm.due_us(40_000), None);
        rhythm.sound();
        assert_eq!(rhythm.due_us(40_000), Some(80_000 + SLACK_US));
        assert_eq!(rhythm.due_us(80_000), None, "it is near enough to wait for");
    }

    proptest! {
        /// Whatever a publisher says and whenever it comes, the next look is at most one step away.
        #[test]
        fn no_look_is_far_away(steps in prop::collection::vec((0_i64..300_000, any::<i64>(), any::<bool>()), 1..50)) {
            let (mut rhythm, mut now) = (Rhythm::default(), 0);
            rhythm.sound();
            for (passed, dts_90k, awaited) in steps {
                now += passed;
                rhythm.picture(now, dts_90k, awaited);
                let pause = rhythm.due_us(now).map_or(0, |due| due - now);
                prop_assert!((0..=STEP_US.end() + SLACK_US).contains(&pause));
            }
        }
    }
}
