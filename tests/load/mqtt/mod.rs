//! Many devices into one broker that forwards to a second one.

mod brokers;
mod devices;

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::process::{quantile, usage};
use crate::table::{Cell, Table};
use brokers::{Broker, Mosquitto};
use devices::Devices;

/// The longest the backlog may take to go upstream after the devices have stopped.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// `load mqtt`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[arg(long, default_value_t = 100)]
    publishers: usize,
    /// Reports a device has on their way at a time.
    #[arg(long, default_value_t = 100)]
    window: u16,
    /// Reports a second of all together, one run each; 0: as fast as they are acknowledged.
    #[arg(long, value_delimiter = ',', default_value = "0,5000")]
    rates: Vec<u64>,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measurements of each kind; the one with the median CPU is shown.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Leave the peer out.
    #[arg(long)]
    alone: bool,
}

/// `load idle`.
#[derive(Debug, Args)]
pub(crate) struct IdlePlan {
    #[arg(long, default_value_t = 9_900)]
    connections: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Leave the peer out.
    #[arg(long)]
    alone: bool,
}

#[derive(Debug, Clone)]
struct Outcome {
    per_second: f64,
    forwarded_per_second: f64,
    left: u64,
    cpu_s_per_million: f64,
    latency_s: [Option<f64>; 2],
    rss_kib: u64,
    written_per_message: f64,
}

pub(crate) fn run(plan: &Plan) -> anyhow::Result<Table> {
    let mut table = Table::new(&[
        "broker",
        "publishers",
        "window",
        "asked msg/s",
        "acknowledged msg/s",
        "upstream msg/s",
        "not upstream",
        "CPU s/million",
        "to mosquitto",
        "PUBACK p50 ms",
        "p99",
        "RSS MiB",
        "disk B/msg",
    ]);
    table.note(format!(
        "QoS 1 in, about 45 B of JSON each, {} s, median of {}; upstream: a second mosquitto; sluicegate: native batches, commit 100 ms; mosquitto: bridge at QoS 1, persistence on (it writes when it ends and every 30 min), no queue limit",
        plan.seconds, plan.repeat
    ));
    table.note("CPU: the broker's process from the first report until everything is upstream, per million acknowledged; disk: bytes it caused to be written");
    for &rate in &plan.rates {
        let peer = if plan.alone { None } else { Some(median(plan, rate, false)?) };
        if let Some(peer) = &peer {
            add(&mut table, plan, "mosquitto", rate, peer, None);
        }
        let own = median(plan, rate, true)?;
        add(&mut table, plan, "sluicegate", rate, &own, peer.as_ref());
    }
    Ok(table)
}

fn median(plan: &Plan, rate: u64, own: bool) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    for _ in 0..plan.repeat.max(1) {
        let sink = Mosquitto::start(None)?;
        let broker = if own { Broker::gateway(Some(sink.port)) } else { Broker::mosquitto(Some(sink.port))? };
        let outcome = measure(plan, rate, &broker).with_context(|| broker.name())?;
        eprintln!("{} {rate} {outcome:?}", broker.name());
        all.push(outcome);
    }
    all.sort_by(|a, b| a.cpu_s_per_million.total_cmp(&b.cpu_s_per_million));
    all.get(all.len() / 2).cloned().context("at least one measurement")
}

fn measure(plan: &Plan, rate: u64, broker: &Broker) -> anyhow::Result<Outcome> {
    let mut devices = Devices::connect(broker.address(), plan.publishers, plan.window)?;
    // What connecting made goes upstream first: one message a device that comes online.
    std::thread::sleep(Duration::from_secs(2));
    let (before, forwarded_before, started) = (usage(broker.pid())?, broker.forwarded(), Instant::now());
    devices.report(Duration::from_secs(plan.seconds), rate)?;
    let (while_reporting, took) = (devices.acknowledged, started.elapsed());
    devices.finish(Duration::from_secs(10))?;
    let sent = devices.sent;
    let mut forwarded = broker.forwarded() - forwarded_before;
    while forwarded < sent && started.elapsed() < took + DRAIN_MAX {
        std::thread::sleep(Duration::from_millis(100));
        forwarded = broker.forwarded() - forwarded_before;
    }
    let (all, after) = (started.elapsed(), usage(broker.pid())?);
    let acknowledged = devices.acknowledged.max(1) as f64;
    Ok(Outcome {
        per_second: while_reporting as f64 / took.as_secs_f64(),
        forwarded_per_second: forwarded.min(sent) as f64 / all.as_secs_f64(),
        left: sent.saturating_sub(forwarded),
        cpu_s_per_million: after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / acknowledged,
        latency_s: [quantile(&mut devices.latencies, 0.5), quantile(&mut devices.latencies, 0.99)],
        rss_kib: after.rss_kib,
        written_per_message: (after.written - before.written) as f64 / acknowledged,
    })
}

fn add(table: &mut Table, plan: &Plan, name: &str, rate: u64, outcome: &Outcome, peer: Option<&Outcome>) {
    let ms = |s: Option<f64>| Cell::maybe(s.map(|s| s * 1e3), 1);
    table.row(vec![
        Cell::text(name),
        Cell::Figure(plan.publishers as f64, 0),
        Cell::Figure(f64::from(plan.window), 0),
        Cell::text(if rate == 0 { "all it takes".to_owned() } else { rate.to_string() }),
        Cell::Figure(outcome.per_second, 0),
        Cell::Figure(outcome.forwarded_per_second, 0),
        Cell::Figure(outcome.left as f64, 0),
        Cell::Figure(outcome.cpu_s_per_million, 2),
        Cell::maybe(peer.map(|p| outcome.cpu_s_per_million / p.cpu_s_per_million), 2),
        ms(outcome.latency_s[0]),
        ms(outcome.latency_s[1]),
        Cell::Figure(outcome.rss_kib as f64 / 1024.0, 1),
        Cell::Figure(outcome.written_per_message, 0),
    ]);
}

pub(crate) fn run_idle(plan: &IdlePlan) -> anyhow::Result<Table> {
    let mut table = Table::new(&["broker", "connections", "RSS MiB", "KiB/connection", "% of a core"]);
    table.note(format!(
        "idle: CPU over {} s, first with nothing connected, then with MQTT clients that say nothing after CONNECT",
        plan.seconds
    ));
    let mut brokers = vec![Broker::gateway(None)];
    if !plan.alone {
        brokers.push(Broker::mosquitto(None)?);
    }
    for broker in &brokers {
        std::thread::sleep(Duration::from_secs(2));
        let (empty, busy) = idle(broker, plan.seconds)?;
        table.row(vec![
            Cell::text(broker.name()),
            Cell::Figure(0.0, 0),
            Cell::Figure(empty as f64 / 1024.0, 1),
            Cell::None,
            Cell::Figure(busy, 2),
        ]);
        let devices = Devices::connect(broker.address(), plan.connections, 1)?;
        std::thread::sleep(Duration::from_secs(3));
        let (full, busy) = idle(broker, plan.seconds)?;
        drop(devices);
        table.row(vec![
            Cell::text(broker.name()),
            Cell::Figure(plan.connections as f64, 0),
            Cell::Figure(full as f64 / 1024.0, 1),
            Cell::Figure(full.saturating_sub(empty) as f64 / plan.connections as f64, 2),
            Cell::Figure(busy, 2),
        ]);
    }
    Ok(table)
}

/// RSS, KiB, and CPU, percent of a core, of a process left alone.
fn idle(broker: &Broker, seconds: u64) -> anyhow::Result<(u64, f64)> {
    let before = usage(broker.pid())?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = usage(broker.pid())?;
    Ok((after.rss_kib, after.cpu.saturating_sub(before.cpu).as_secs_f64() * 100.0 / seconds as f64))
}
