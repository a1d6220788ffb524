//! A box whose clock is not set, is set, and jumps: libfaketime between the binary and the system's clock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, Receiver, run_ok};
use tempfile::TempDir;

/// An hour, and a day: by how much the clock jumps while the gateway runs, seconds.
const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 86_400;
/// How long after a report its age may be looked at, seconds.
const LATE_MAX_S: i64 = 120;

/// Debian's libfaketime.
fn library() -> PathBuf {
    let path = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    assert!(Path::new(&path).exists(), "{path} is missing");
    PathBuf::from(path)
}

/// A gateway whose clock is as many seconds beside the right one as the file says, on a box that has been told the time by
/// its network: `/run` of its own has systemd-timesyncd's mark, which the last boot may have left.
fn faked(mut options: Options, file: &Path) -> Options {
    let mark = "mount -t tmpfs none /run && mkdir -p /run/systemd/timesync && touch /run/systemd/timesync/synchronized";
    let enter = format!("{mark} && export LD_PRELOAD=\"$LIBRARY\" && exec \"$0\" \"$@\"");
    options.under = ["unshare", "--mount", "sh", "-c", &enter].map(str::to_owned).to_vec();
    for (name, value) in [
        ("LIBRARY", library().to_str().expect("a plain path")),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a plain path")),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ] {
        options.environment.push((name.to_owned(), value.to_owned()));
    }
    options
}

/// Moves the gateway's clock to so many seconds beside the right one.
fn set(file: &Path, offset_s: i64) {
    let new = file.with_extension("new");
    std::fs::write(&new, format!("{offset_s:+}\n")).expect("the clock's file");
    std::fs::rename(new, file).expect("the clock's file");
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs().cast_signed()
}

/// What came of a count first.
struct Came {
    age_s: i64,
    seq: u64,
    hist: bool,
    /// `clock` of its batch.
    clock: u64,
}

/// By count what came of it, and the counts in the order in which they came, by road.
fn counts(seen: &[Value]) -> (BTreeMap<u64, Came>, [Vec<u64>; 2]) {
    let (mut counts, mut roads) = (BTreeMap::new(), [Vec::new(), Vec::new()]);
    for message in seen {
        let Some(n) = message["properties"]["n"].as_u64().filter(|n| !counts.contains_key(n)) else { continue };
        let time = run_ok("date", &["+%s", "-d", message["time"].as_str().expect("a time")]);
        let age_s = now_s() - time.trim().parse::<i64>().expect("seconds");
        let (seq, clock) = (message["seq"].as_u64().expect("a number"), message["clock"].as_u64().expect("a number"));
        let hist = message["hist"] == true;
        roads[usize::from(hist)].push(n);
        counts.insert(n, Came { age_s, seq, hist, clock });
    }
    (counts, roads)
}

fn until(receiver: &mut Receiver, n: u64) {
    receiver.until(&format!("report {n}"), PATIENCE, |message| message["properties"]["n"] == n);
}

/// By how many seconds each `clock` event says that the clock was set, in order.
fn steps(seen: &[Value]) -> Vec<i64> {
    let events = seen.iter().filter(|message| message["event"]["name"] == "clock");
    events.map(|message| message["event"]["data"]["by_ms"].as_i64().expect("milliseconds") / 1000).collect()
}

#[test]
fn a_clock_of_1970_is_corrected_later_and_jumps_move_no_message() {
    let folder = TempDir::new().expect("a temporary folder");
    let file = folder.path().join("clock");
    let unset_s = 60 - now_s();
    set(&file, unset_s);
    let mut broker = Mosquitto::start();
    let mut gateway = Gateway::start(faked(Options::default().upstream(broker.port, "native"), &file));
    let mut receiver = Receiver::start(broker.port, &[]);
    gateway.count_up(1..=3);
    until(&mut receiver, 3);
    // The upstream goes; reports come without a clock, then with one; a kill; only then the upstream hears of them.
    broker.pause();
    gateway.count_up(4..=6);
    set(&file, 0);
    gateway.count_up(7..=9);
    gateway.kill_and_restart();
    broker.resume();
    until(&mut receiver, 6);
    until(&mut receiver, 9);
    // A set clock goes an hour back, on again, and a day ahead.
    let mut last = 9;
    for (offset_s, by_s) in [(-HOUR_S, -HOUR_S), (0, HOUR_S), (DAY_S, DAY_S)] {
        set(&file, offset_s);
        gateway.count_up(last + 1..=last + 3);
        last += 3;
        until(&mut receiver, last);
        receiver.until(&format!("that the clock was set by {by_s} s"), PATIENCE, |message| {
            message["event"]["data"]["by_ms"].as_i64().is_some_and(|ms| (ms / 1000 - by_s).abs() < 10)
        });
    }
    gateway.stop();
    let (status, seen) = receiver.finish();
    assert!(status.success(), "a number is missing, or out of order");
    let (counts, roads) = counts(&seen);
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), (1..=last).collect::<Vec<_>>());
    for (n, came) in &counts {
        let (behind_s, clock) = match n {
            // Told before anybody could know better.
            1..=3 => (-unset_s, 0),
            10..=12 => (HOUR_S, 1),
            16..=18 => (-DAY_S, 1),
            _ => (0, 1),
        };
        let age_s = came.age_s;
        assert!((behind_s - 5..=behind_s + LATE_MAX_S).contains(&age_s), "report {n}: {age_s} s old, not {behind_s}");
        assert_eq!(came.clock, clock, "report {n}");
    }
    assert!(counts.values().is_sorted_by_key(|came| came.seq), "numbers rise whatever the clock does");
    assert!((4..=6).all(|n| counts[&n].hist), "the backlog says that it is one");
    for road in roads {
        assert!(road.is_sorted(), "out of order: {road:?}");
    }
    let steps = steps(&seen);
    let near = |by_s: i64, wanted: i64| (by_s - wanted).abs() < 10;
    let wanted = [-unset_s, -HOUR_S, HOUR_S, DAY_S];
    assert!(steps.len() == wanted.len() && std::iter::zip(&steps, wanted).all(|(by, at)| near(*by, at)), "{steps:?}");
}
