//! What streams and sessions leave behind: nothing.

use std::net::Shutdown;

use protocols::media::{Container, Kind, Track, Unit};
use sluicegate_tests::{Door, Gateway, Options, PATIENCE, Publisher, Viewer, wait_for};

use super::{size, snippet};

/// Sessions at a time.
const WORKERS: usize = 8;
/// Sessions before memory is looked at.
const WARM: usize = 700;
/// Names that are published before memory is looked at: what grows to its limit with names (the store's page cache, the
/// cameras that are remembered) has reached it by then.
const WARM_NAMES: usize = 4_500;
/// What the store's page cache swings by.
const CACHE_KIB: u64 = 4 * 1024;

/// What the process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    rss_kib: u64,
    threads: usize,
    descriptors: usize,
}

impl Held {
    fn of(gateway: &Gateway) -> Self {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", gateway.child.pid())).unwrap().count();
        let environment = std::fs::read(format!("/proc/{}/environ", gateway.child.pid())).unwrap();
        assert!(String::from_utf8_lossy(&environment).contains("MALLOC_ARENA_MAX="), "the allocator was not told");
        Self { rss_kib: gateway.rss_kib(), threads: count("task"), descriptors: count("fd") }
    }

    /// When the last session is over: no connection, no stream.
    fn after_all(gateway: &Gateway) -> Self {
        let connections = "sluicegate_connections{adapter=\"media\"}";
        wait_for("the end of all sessions", PATIENCE, || {
            let over = gateway.metric(connections) == 0.0 && gateway.get("/api/v1/streams") == "[]";
            over.then_some(())
        });
        Self::of(gateway)
    }

    fn is_as(self, before: Self, percent: u64, more_kib: u64) -> bool {
        let rss = self.rss_kib <= before.rss_kib * (100 + percent) / 100 + more_kib;
        // Threads of blocking work come and go, and this test's own last questions may not be closed yet.
        rss && self.threads <= before.threads && self.descriptors <= before.descriptors + 2
    }
}

/// Rounds at the most. What fills up (arenas of the C library, tables up to their limits) is full some day, and a round leaves
/// the process as it was; what leaks grows in each.
const ROUNDS: usize = 3;

/// Plays rounds until one leaves the process as it was.
fn levels_off(gateway: &Gateway, percent: u64, more_kib: u64, round: impl Fn(usize)) {
    let mut seen = vec![Held::after_all(gateway)];
    for at in 0..ROUNDS {
        round(at);
        let (after, before) = (Held::after_all(gateway), seen[at]);
        if after.is_as(before, percent, more_kib) {
            return;
        }
        seen.push(after);
    }
    panic!("each round leaves something behind: {seen:?}");
}

fn options(grace_seconds: u32) -> Options {
    Options::default().with(&format!("[stream]\ngrace_seconds = {grace_seconds}\nsources_max = 2000"))
}

/// Connects, publishes, plays by either door, leaves; as often as told, under the names that `name` gives.
fn sessions(gateway: &Gateway, count: usize, name: impl Fn(usize) -> String + Sync) {
    let (media, name) = (gateway.options.media, &name);
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                let (_, units) = snippet(6);
                // Names that come again come again with the same worker: nobody takes over from another.
                for at in (worker..count).step_by(WORKERS) {
                    session(media, &name(at), at / WORKERS, &units);
                }
            });
        }
    });
}

/// By turns over either door, and with a goodbye or without.
fn session(media: u16, name: &str, at: usize, units: &[Unit]) {
    let door = if at.is_multiple_of(2) { Door::HttpFlv } else { Door::Rtmp };
    let mut camera = Publisher::open(media, name, Container::Rtmp).unwrap_or_else(|e| panic!("live/{name}: {e}"));
    for unit in units {
        camera.send(unit).expect("to send");
    }
    let mut viewer = Viewer::open(media, door, name);
    assert_eq!(viewer.next_of(Track::Video).expect("a picture").kind, Kind::Key);
    // Half of them say goodbye, half just go.
    if at % 4 < 2 {
        camera.socket.shutdown(Shutdown::Both).expect("a goodbye");
    }
}

#[test]
fn ten_thousand_names_leave_no_memory_behind() {
    let gateway = Gateway::start(options(0));
    sessions(&gateway, WARM_NAMES, |n| format!("warm-{n}"));
    Held::after_all(&gateway);
    let things = gateway.metric("sluicegate_things{}");
    levels_off(&gateway, 5, CACHE_KIB, |round| {
        sessions(&gateway, size(1_500, 10_000), |n| format!("camera-{round}-{n}"));
    });
    // And no table has them any more.
    assert!(gateway.metric("sluicegate_things{}") <= things.max(512.0), "things are forgotten");
    wait_for("everybody offline", PATIENCE, || (gateway.metric("sluicegate_things_online{}") < 0.5).then_some(()));
    let figures = gateway.get("/metrics");
    let named = figures.lines().find(|line| line.contains("live/camera-") || line.contains("live/warm-"));
    assert_eq!(named, None, "no figure has its name");
    gateway.stop();
}

#[test]
fn forty_thousand_sessions_leave_memory_threads_and_descriptors_as_they_were() {
    let gateway = Gateway::start(options(2));
    let name = |n: usize| format!("gate-{}", n % 64);
    sessions(&gateway, WARM, name);
    levels_off(&gateway, 2, 0, |_| sessions(&gateway, size(2_000, 40_000), name));
    gateway.stop();
}
