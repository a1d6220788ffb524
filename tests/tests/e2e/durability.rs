//! Nothing acknowledged is lost: SIGKILL at random moments, an upstream that goes and comes.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate_tests::{Counter, Gateway, Language, Mosquitto, Options, Receiver};

/// Kills in the test; more by `SLUICEGATE_KILLS`.
const KILLS: u32 = 50;

/// Every report of each device as it came first: its count, and whether it was backlog.
fn counts(seen: &[Value]) -> HashMap<String, Vec<(u64, bool)>> {
    let mut counts: HashMap<String, Vec<(u64, bool)>> = HashMap::new();
    for message in seen {
        if let (Some(thing), Some(n)) = (message["thing"].as_str(), message["properties"]["n"].as_u64()) {
            counts.entry(thing.to_owned()).or_default().push((n, message["hist"] == true));
        }
    }
    counts
}

/// Every acknowledged report is there, and on each road (live, backlog) first appearances are in order.
fn check(device: &str, acknowledged: u64, seen: &[(u64, bool)]) {
    let (mut known, mut last) = (HashSet::new(), [0, 0]);
    for (n, hist) in seen {
        // A device sends again what was not acknowledged.
        if known.insert(*n) {
            let last = &mut last[usize::from(*hist)];
            assert!(*n > *last, "{device}: {last} is followed by {n} (backlog: {hist})");
            *last = *n;
        }
    }
    let missing = (1..=acknowledged).find(|n| !known.contains(n));
    assert_eq!(missing, None, "{device}: {acknowledged} was acknowledged");
}

/// Waits until every report of a device has come, on whichever road.
fn all_of(receiver: &mut Receiver, device: &str, last: u64) {
    let missing = RefCell::new((1..=last).collect::<HashSet<u64>>());
    receiver.until(&format!("all {last} reports of {device}"), Duration::from_secs(90), |m| {
        if m["thing"] == *device
            && let Some(n) = m["properties"]["n"].as_u64()
        {
            missing.borrow_mut().remove(&n);
        }
        missing.borrow().is_empty()
    });
}

/// A fixed sequence of pauses: a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn fifty_kills_lose_nothing_acknowledged() {
    let kills = std::env::var("SLUICEGATE_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(KILLS);
    let mut broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let mut gateway = Gateway::start(Options::default().upstream(broker.port, "native"));
    let devices: Vec<Counter> = (0..4)
        .map(|n| {
            let (language, port) =
                if n % 2 == 0 { (Language::Mqtt, gateway.options.mqtt) } else { (Language::Raw, gateway.options.tcp) };
            Counter::start(language, &format!("counter-{n}"), port)
        })
        .collect();
    let mut dice = Dice(7);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(20 + dice.below(400)));
        match kill % 10 {
            3 => broker.pause(),
            6 => broker.resume(),
            _ => {}
        }
        gateway.kill_and_restart();
        receiver.drain();
    }
    let acknowledged: Vec<(String, u64)> = devices.into_iter().map(|d| (d.name.clone(), d.stop())).collect();
    assert!(acknowledged.iter().all(|(_, n)| *n > u64::from(kills)), "{acknowledged:?}");
    for (device, n) in &acknowledged {
        all_of(&mut receiver, device, *n);
    }
    gateway.stop();
    let (status, seen) = receiver.finish();
    let counts = counts(&seen);
    for (device, n) in &acknowledged {
        check(device, *n, &counts[device]);
    }
    assert!(status.success(), "`receive` found a hole: {status}");
}

#[test]
fn a_backlog_survives_an_absent_upstream_and_a_restart() {
    let mut broker = Mosquitto::start();
    let receiver_port = broker.port;
    let mut receiver = Receiver::start(receiver_port, &[]);
    let mut gateway = Gateway::start(Options::default().upstream(broker.port, "native"));
    let device = Counter::start(Language::Mqtt, "patient", gateway.options.mqtt);
    receiver.until("the first report", Duration::from_secs(30), |m| m["thing"] == "patient");
    broker.pause();
    let before = device.acknowledged();
    let started = Instant::now();
    while device.acknowledged() < before + 500 {
        assert!(started.elapsed() < Duration::from_secs(30), "devices wait for the upstream");
        std::thread::sleep(Duration::from_millis(20));
    }
    gateway.kill_and_restart();
    let acknowledged = device.stop();
    broker.resume();
    all_of(&mut receiver, "patient", acknowledged);
    gateway.stop();
    let (status, seen) = receiver.finish();
    check("patient", acknowledged, &counts(&seen)["patient"]);
    assert!(status.success(), "`receive` found a hole: {status}");
}
