//! Wall-clock time for messages. Everything that measures durations uses `tokio::time::Instant` or `std::time::Instant`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Before this (2026) no clock is right: the gateway is younger. A box without a battery begins at 1970, or when its
/// system was built.
const EARLIEST_S: u64 = 1_767_225_600;

/// Microseconds since 1970 UTC; before 1970 (a box without a clock) it is 0.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

/// Seconds since 1970 UTC, for what is good until a time; `None` while the clock is obviously not set.
pub fn now_s() -> Option<u64> {
    plausible(u64::try_from(now_us() / 1_000_000).unwrap_or(0))
}

/// Whether a time was told by a clock that was set.
pub fn is_plausible(time_us: i64) -> bool {
    u64::try_from(time_us / 1_000_000).is_ok_and(|time_s| plausible(time_s).is_some())
}

fn plausible(now_s: u64) -> Option<u64> {
    (now_s >= EARLIEST_S).then_some(now_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_never_set_is_none() {
        assert_eq!((plausible(0), plausible(EARLIEST_S - 1)), (None, None));
        assert_eq!(plausible(EARLIEST_S), Some(EARLIEST_S));
        assert!(now_s().is_some());
    }
}
