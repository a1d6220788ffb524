//! Wall-clock time for messages. Everything that measures durations uses `tokio::time::Instant` or `std::time::Instant`.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 UTC; before 1970 (a box without a clock) it is 0.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}
