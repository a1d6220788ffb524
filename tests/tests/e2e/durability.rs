//! Nothing acknowledged is lost: SIGKILL at random moments, an upstream that goes and comes.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate_tests::{Counter, Gateway, Language, Mosquitto, Options, Receiver, SmallDisk, wait_for};
/// Kills in the test, over all four gateways at a time; more by `SLUICEGATE_KILLS`.
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

/// On each road (live, backlog) first appearances are in order. Returns how many acknowledged reports are not there.
fn check(device: &str, acknowledged: u64, seen: &[(u64, bool)]) -> u64 {
    let (mut known, mut last) = (HashSet::new(), [0, 0]);
    for (n, hist) in seen {
        // A device sends again what was not acknowledged.
        if known.insert(*n) {
            let last = &mut last[usize::from(*hist)];
            assert!(*n > *last, "{device}: {last} is followed by {n} (backlog: {hist})");
            *last = *n;
        }
    }
    (1..=acknowledged).filter(|n| !known.contains(n)).count() as u64
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

/// What a gateway is up to while it is killed, beside an upstream that goes and comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// Small segments that fill, roll, and go as soon as upstream has them.
    Segments,
    /// More than the cap holds while the upstream is away.
    Cap,
    /// The same on a disk that is full before the cap is reached.
    FullDisk,
}

impl Trouble {
    const ALL: [Self; 4] = [Self::Nothing, Self::Segments, Self::Cap, Self::FullDisk];

    /// Whether what was acknowledged may have to go; then it is named.
    fn lets_go(self) -> bool {
        matches!(self, Self::Cap | Self::FullDisk)
    }

    fn options(self, broker: u16, disk: &SmallDisk) -> Options {
        let mut options = Options::default().upstream(broker, "native");
        let mut set = |name: &str, value: &str| {
            options.environment.push((format!("SLUICEGATE_STORE_{name}"), value.to_owned()));
        };
        if self != Self::Nothing {
            set("SEGMENT_MIB", "1");
        }
        set("FREE_MIN_MIB", "0");
        match self {
            Self::Nothing | Self::Segments => {}
            Self::Cap => set("CAP_MIB", "8"),
            Self::FullDisk => {
                set("PATH", disk.path().to_str().expect("a plain path"));
                options.under = disk.enter();
            }
        }
        options
    }
}

/// Reports of 20 KB, as many as are acknowledged, until it is dropped.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    const AT_ONCE: usize = 16;

    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // The gateway may be killed at any moment: come again.
                if Self::talk(port, &stopped).is_err() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }

    fn talk(port: u16, stop: &AtomicBool) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let line = format!("{{\"device\":\"flood\",\"pad\":\"{}\"}}\n", "x".repeat(20_000)).repeat(Self::AT_ONCE);
        let mut answer = String::new();
        while !stop.load(Ordering::Acquire) {
            stream.write_all(line.as_bytes())?;
            for _ in 0..Self::AT_ONCE {
                answer.clear();
                if answers.read_line(&mut answer)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
        }
        Ok(())
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Live numbers that gap records name, each once.
fn named(seen: &[Value]) -> u64 {
    let gaps = seen.iter().map(|message| &message["gap"]).filter(|gap| gap["class"] == "live");
    let spans: HashSet<(u64, u64)> =
        gaps.filter_map(|gap| Some((gap["first"].as_u64()?, gap["last"].as_u64()?))).collect();
    spans.iter().map(|(first, last)| last - first + 1).sum()
}

/// Kills a gateway so often, and checks what came of it.
fn kill(trouble: Trouble, kills: u32) {
    let mut broker = Mosquitto::start();
    let mut receiver = Receiver::start(broker.port, &[]);
    let disk = SmallDisk::new(12);
    let mut gateway = Gateway::start(trouble.options(broker.port, &disk));
    let flood = (trouble != Trouble::Nothing).then(|| Flood::start(gateway.options.tcp));
    let devices: Vec<Counter> = (0..4)
        .map(|n| {
            let (language, port) =
                if n % 2 == 0 { (Language::Mqtt, gateway.options.mqtt) } else { (Language::Raw, gateway.options.tcp) };
            Counter::start(language, &format!("counter-{n}"), port)
        })
        .collect();
    let mut dice = Dice(7 + trouble as u64);
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(20 + dice.below(300)));
        // Where something has to go the upstream is away long enough for that.
        let (period, comes) = if trouble.lets_go() { (15, 13) } else { (10, 7) };
        match kill % period {
            2 => broker.pause(),
            at if at == comes => broker.resume(),
            _ => {}
        }
        gateway.kill_and_restart();
        receiver.drain();
        receiver.seen.retain(|message| message["thing"] != "flood");
    }
    drop(flood);
    broker.pause();
    broker.resume();
    let acknowledged: Vec<(String, u64)> = devices.into_iter().map(|d| (d.name.clone(), d.stop())).collect();
    assert!(acknowledged.iter().all(|(_, n)| *n > u64::from(kills)), "{trouble:?}: {acknowledged:?}");
    if !trouble.lets_go() {
        for (device, n) in &acknowledged {
            all_of(&mut receiver, device, *n);
        }
    }
    wait_for("an empty backlog", Duration::from_secs(180), || {
        receiver.drain();
        receiver.seen.retain(|message| message["thing"] != "flood");
        let left = ["ctl", "live"]
            .map(|class| gateway.metric(&format!("sluicegate_backlog_messages{{upstream=\"up\",class=\"{class}\"}}")));
        (left == [0.0, 0.0]).then_some(())
    });
    // The broker has all of it: what comes now comes to the consumer behind it.
    let last = Counter::start(Language::Raw, "last", gateway.options.tcp);
    receiver.until("a last report", Duration::from_secs(90), |message| message["thing"] == "last");
    last.stop();
    gateway.stop();
    let (status, seen) = receiver.finish();
    let (counts, named) = (counts(&seen), named(&seen));
    let mut missing = 0;
    for (device, n) in &acknowledged {
        missing += check(device, *n, &counts[device]);
    }
    let all: u64 = acknowledged.iter().map(|(_, n)| n).sum();
    eprintln!(
        "{trouble:?}: {kills} kills, {all} acknowledged, {missing} of them let go, {named} numbers named by gap records"
    );
    assert!(missing == 0 || trouble.lets_go() && missing <= named, "{trouble:?}: {missing} missing, {named} named");
    assert!(status.success(), "{trouble:?}: `receive` found a hole: {status}");
}

#[test]
fn fifty_kills_lose_nothing_acknowledged() {
    let kills: u32 = std::env::var("SLUICEGATE_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(KILLS);
    std::thread::scope(|scope| {
        for trouble in Trouble::ALL {
            scope.spawn(move || kill(trouble, kills.div_ceil(4)));
        }
    });
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
    assert_eq!(check("patient", acknowledged, &counts(&seen)["patient"]), 0, "{acknowledged} were acknowledged");
    assert!(status.success(), "`receive` found a hole: {status}");
}
