//! Figures of the bus: `cargo run --release -p gateway --example bus_bench [FOLDER]`.
//!
//! Prints bytes a point of 100 tags at 1 Hz, and for each commit window what 1,000 messages a second write to the disk;
//! records a second through group commit, bytes written against payload, CPU, the latency of one settled record,
//! what a store at its cap takes (with `BUS_BENCH_SMALL_DISK=FOLDER` also one on a small disk), and the time to open a
//! store with 1 GiB of backlog. Needs 1.2 GiB in FOLDER (default: the temporary folder). What goes to
//! the disk is the kernel's count of its block device: it has to be one that nobody else writes to.

#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "its output is its purpose; it is no part of the gateway"
)]

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use device_models::wire::{Recorder, message_json};
use device_models::{Body, Class, Message, Quality, Sample, Value};
use gateway::bus::Bus;
use gateway::config;

const RECORD: usize = 200;

fn main() -> anyhow::Result<()> {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join("bus_bench");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(points(&root.join("points")))?;
    for window_ms in [0, 10, 100, 1000] {
        runtime.block_on(wear(&root.join(format!("window-{window_ms}")), window_ms))?;
    }
    runtime.block_on(limits("a cap of 64 MiB", &root.join("cap"), 64))?;
    if let Some(small) = std::env::var_os("BUS_BENCH_SMALL_DISK") {
        runtime.block_on(limits("a full disk", &PathBuf::from(small).join("bus_bench"), 4096))?;
    }
    if std::env::var_os("BUS_BENCH_SHORT").is_none() {
        runtime.block_on(measure(root.join("all")))?;
    }
    std::fs::remove_dir_all(&root)?;
    Ok(())
}

async fn measure(path: PathBuf) -> anyhow::Result<()> {
    let config = store(&path);
    let (bus, _) = Bus::open(&config)?;
    throughput(&bus).await?;
    paced(&bus, 10_000).await?;
    latency(&bus).await?;
    drain(&bus).await?;
    fill(&bus, 1 << 30).await?;
    let bytes = bus.stat().bytes;
    bus.close().await;
    let started = Instant::now();
    let (bus, findings) = Bus::open(&config)?;
    println!("open with {} MiB of backlog: {:?}, {} findings", bytes >> 20, started.elapsed(), findings.len());
    drain(&bus).await?;
    bus.close().await;
    Ok(())
}

/// One report of walking values with one decimal.
fn report(thing: &str, second: i64, walk: &mut [i64], state: &mut u32) -> Message {
    let samples = (1u32..).zip(walk.iter_mut()).map(|(alias, v)| {
        *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *v += i64::from(*state >> 16) % 11 - 5;
        let (name, value) = (format!("tag{alias}").into(), Value::Float(*v as f64 / 10.0));
        Sample { alias, name, value, quality: Quality::Good }
    });
    let (time_us, body) = (1_700_000_000_000_000 + second * 1_000_000, Body::Properties(samples.collect()));
    Message { thing: thing.into(), model: "plc".into(), time_us, received_us: time_us, body }
}

/// An hour of 100 tags at 1 Hz, without the pauses; then some seconds with each report made durable for itself.
async fn points(path: &Path) -> anyhow::Result<()> {
    let (bus, _) = Bus::open(&store(path))?;
    let (mut recorder, mut state) = (Recorder::default(), 7);
    let mut walk: Vec<i64> = (0..100).map(|tag| 200 + tag * 3).collect();
    let mut last = 0;
    for second in 0..3600 {
        let record = recorder.record(&report("plc-1", second, &mut walk, &mut state));
        last = bus.append_record(Class::Live, &record, None).await?;
    }
    bus.settled(Class::Live, last).await?;
    println!("100 tags at 1 Hz for an hour: {:.2} bytes a point", bus.stat().class_bytes[2] as f64 / 360_000.0);
    let (before, mut payload) = (written(path)?, 0);
    for second in 3600..3660 {
        let message = report("plc-1", second, &mut walk, &mut state);
        payload += message_json(&message).to_string().len() as u64;
        let seq = bus.append_record(Class::Live, &recorder.record(&message), Some(Duration::ZERO)).await?;
        bus.settled(Class::Live, seq).await?;
    }
    let bytes = written(path)? - before;
    println!(
        "one report a commit: {} B to the disk each, {:.1} times its JSON of {} B",
        bytes / 60,
        bytes as f64 / payload as f64,
        payload / 60
    );
    bus.close().await;
    Ok(())
}

/// 1,000 messages a second of 50 things for 20 s.
async fn wear(path: &Path, window_ms: u64) -> anyhow::Result<()> {
    const SECONDS: u64 = 20;
    let (bus, _) = Bus::open(&store(path))?;
    let (mut recorder, mut state, mut walks) = (Recorder::default(), 7, vec![vec![200; 3]; 50]);
    let (mut waits, mut payload, mut last) = (Vec::new(), 0, 0);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let (before, within) = (written(path)?, Some(Duration::from_millis(window_ms)));
    for n in 0..SECONDS * 1000 {
        ticks.tick().await;
        let at = n as usize % walks.len();
        let message = report(&format!("meter-{at}"), n as i64 / 1000, &mut walks[at], &mut state);
        payload += message_json(&message).to_string().len() as u64;
        last = bus.append_record(Class::Live, &recorder.record(&message), within).await?;
        if n % 97 == 0 {
            let (bus, began) = (bus.clone(), Instant::now());
            waits.push(tokio::spawn(async move { bus.settled(Class::Live, last).await.map(|()| began.elapsed()) }));
        }
    }
    bus.settled(Class::Live, last).await?;
    let bytes = written(path)? - before;
    let mut took = Vec::new();
    for wait in waits {
        took.push(wait.await??);
    }
    took.sort();
    println!(
        "commit_ms {window_ms}: {} B to the disk a message ({:.1} times its JSON), {:.2} GB a day, wait {:?} median, {:?} p99",
        bytes / (SECONDS * 1000),
        bytes as f64 / payload as f64,
        bytes as f64 / SECONDS as f64 * 86_400.0 / 1e9,
        took[took.len() / 2],
        took[took.len() * 99 / 100]
    );
    bus.close().await;
    Ok(())
}

/// 256 MiB that nobody reads, into less room: what the files took at most, and the slowest of the commits.
async fn limits(what: &str, path: &Path, cap_mib: u64) -> anyhow::Result<()> {
    const PIECE: usize = 4096;
    let (bus, _) = Bus::open(&config::Store { cap_mib, ..store(path) })?;
    let _reader = bus.reader("never")?;
    let (mut most, mut slowest, mut refused) = (0, Duration::ZERO, 0);
    for _ in 0..(256 << 20) / PIECE / 64 {
        let (mut last, began) = (0, Instant::now());
        for _ in 0..64 {
            last = bus.append(Class::Live, &[7; PIECE]).await?;
        }
        refused += u64::from(bus.settled(Class::Live, last).await.is_err());
        slowest = slowest.max(began.elapsed());
        let mut bytes = 0;
        for file in std::fs::read_dir(path.join("log"))? {
            // One that went meanwhile takes nothing.
            bytes += file?.metadata().map_or(0, |data| data.len());
        }
        most = most.max(bytes);
    }
    println!(
        "{what}, 256 MiB unread: at most {:.1} MiB of files, {} numbers let go, slowest of 4096 commits {slowest:?}, {refused} refused",
        most as f64 / (1 << 20) as f64,
        bus.stat().dropped.values().sum::<u64>()
    );
    bus.close().await;
    Ok(())
}

/// Bytes that the block device under this folder was given to write so far.
fn written(path: &Path) -> anyhow::Result<u64> {
    rustix::fs::syncfs(std::fs::File::open(path)?)?;
    let device = std::fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat"))?;
    let sectors: u64 = stat.split_whitespace().nth(6).unwrap_or("0").parse()?;
    Ok(sectors * 512)
}

fn store(path: &Path) -> config::Store {
    config::Store { path: path.to_owned(), cap_mib: 4096, free_min_mib: 0, ..config::Store::default() }
}

async fn throughput(bus: &Bus) -> anyhow::Result<()> {
    let (started, before) = (Instant::now(), Usage::now()?);
    let mut last = 0;
    let count = 500_000_u64;
    for _ in 0..count {
        last = bus.append(Class::Live, &[7; RECORD]).await?;
    }
    bus.settled(Class::Live, last).await?;
    let took = started.elapsed();
    println!(
        "as fast as it goes: {:.0} records/s of {RECORD} B, {}",
        count as f64 / took.as_secs_f64(),
        before.until_now(took, count * RECORD as u64)?
    );
    Ok(())
}

/// A steady rate, handed in every millisecond.
async fn paced(bus: &Bus, a_second: u64) -> anyhow::Result<()> {
    let (started, before) = (Instant::now(), Usage::now()?);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let mut last = 0;
    for _ in 0..5_000 {
        ticks.tick().await;
        for _ in 0..a_second / 1000 {
            last = bus.append(Class::Live, &[7; RECORD]).await?;
        }
    }
    bus.settled(Class::Live, last).await?;
    let took = started.elapsed();
    println!("at {a_second}/s: {}", before.until_now(took, 5 * a_second * RECORD as u64)?);
    Ok(())
}

async fn latency(bus: &Bus) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(120)).await;
        let started = Instant::now();
        let seq = bus.append(Class::Live, &[7; RECORD]).await?;
        bus.settled(Class::Live, seq).await?;
        all.push(started.elapsed());
    }
    all.sort();
    println!("one record after a quiet spell: settled in {:?} median, {:?} at most", all[10], all[19]);
    Ok(())
}

async fn fill(bus: &Bus, bytes: u64) -> anyhow::Result<()> {
    let mut last = 0;
    for _ in 0..bytes / (RECORD as u64 + 16) {
        last = bus.append(Class::Live, &[7; RECORD]).await?;
    }
    bus.settled(Class::Live, last).await?;
    Ok(())
}

async fn drain(bus: &Bus) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut reader = bus.reader("drain")?;
    let mut count = 0;
    loop {
        let entries = reader.next(Class::Live, 1000, 64 * 1024).await?;
        let Some(last) = entries.last() else { break };
        reader.commit(Class::Live, last.last());
        count += entries.len();
    }
    println!("drain: {count} records, {:.0}/s", count as f64 / started.elapsed().as_secs_f64());
    Ok(())
}

/// What the process has used, from /proc.
struct Usage {
    written: u64,
    ticks: u64,
}

impl Usage {
    fn now() -> anyhow::Result<Self> {
        let io = std::fs::read_to_string("/proc/self/io")?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap_or("0").parse()?;
        let stat = std::fs::read_to_string("/proc/self/stat")?;
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        Ok(Self { written, ticks: fields[11].parse::<u64>()? + fields[12].parse::<u64>()? })
    }

    fn until_now(&self, took: Duration, payload: u64) -> anyhow::Result<String> {
        let now = Self::now()?;
        Ok(format!(
            "written/payload {:.3}, {:.0} % of a core",
            (now.written - self.written) as f64 / payload as f64,
            (now.ticks - self.ticks) as f64 / took.as_secs_f64()
        ))
    }
}
