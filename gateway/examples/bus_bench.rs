//! Figures of the bus: `cargo run --release -p gateway --example bus_bench [FOLDER]`.
//!
//! Prints records a second through group commit, bytes written against payload, CPU, the latency of one settled record,
//! and the time to open a store with 1 GiB of backlog. Needs 1.2 GiB in FOLDER (default: the temporary folder).

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use device_models::Class;
use gateway::bus::Bus;
use gateway::config;

const RECORD: usize = 200;

fn main() -> anyhow::Result<()> {
    let root = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join("bus_bench");
    if root.exists() {
        std::fs::remove_dir_all(&root)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(measure(root.clone()))?;
    std::fs::remove_dir_all(&root)?;
    Ok(())
}

async fn measure(path: PathBuf) -> anyhow::Result<()> {
    let config = config::Store { path, cap_mib: 4096, free_min_mib: 0, ..config::Store::default() };
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
