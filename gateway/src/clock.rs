//! Wall-clock time for messages. Everything that measures durations uses `tokio::time::Instant` or `std::time::Instant`.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use device_models::wire::Clock;

/// Before this (2026) no clock is right: the gateway is younger. A box without a battery begins at 1970, or when its
/// system was built.
const EARLIEST_S: u64 = 1_767_225_600;
/// The mark that systemd-timesyncd leaves when the network has set the clock.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";

/// Microseconds since 1970 UTC; before 1970 (a box without a clock) it is 0.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}

/// Microseconds since the box was started, sleep included: a clock that nobody sets.
pub fn boot_us() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).map_or(0, |time| i64::try_from(time.as_micros()).unwrap_or(i64::MAX))
}

/// How far the wall clock can be trusted now.
pub fn quality() -> Clock {
    judged(now_us(), Path::new(SYNCHRONIZED).exists())
}

fn judged(now_us: i64, synchronized: bool) -> Clock {
    if synchronized && is_plausible(now_us) { Clock::Synchronized } else { Clock::Unknown }
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
        let now_us = now_us();
        assert_eq!((judged(now_us, true), judged(now_us, false)), (Clock::Synchronized, Clock::Unknown));
        assert_eq!(judged(5_000_000, true), Clock::Unknown, "a mark that a power cut has outlived");
        assert!(boot_us() > 0);
    }
}
