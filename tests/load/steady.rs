//! `load wear` and `load rules`: what one device alone costs the disk, and what rules cost at a steady 100,000 points a second.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use sluicegate_tests::{Gateway, Mosquitto, Options};

use crate::drain::device;
use crate::process::usage;
use crate::table::{Cell, Table};

/// So long the gateway is left to itself first: it has registered its device and written what a start writes.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(crate) struct WearPlan {
    /// Reports, one a second.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    #[arg(long, default_value_t = 100)]
    points: u64,
    /// Where the store is to be: a file system that nobody else writes to, on a block device of its own.
    /// Without one there are no figures of the device.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct RulesPlan {
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Reports a second, of a hundred points each.
    #[arg(long, default_value_t = 1_000)]
    reports: u32,
}

/// One device alone, at 1 Hz.
pub(crate) fn run_wear(plan: &WearPlan) -> anyhow::Result<Table> {
    let columns = ["s", "points each", "JSON B", "device B each", "to JSON", "write_bytes each", "to JSON again"];
    let mut table = Table::new(&columns);
    table.note("one device, a report of walking values a second at QoS 1, the upstream a mosquitto that is there");
    table.note("device: the kernel's count of sectors of the block device, journal included; write_bytes: what the process brought about (/proc/PID/io), without the journal");
    let broker = Mosquitto::start();
    let mut options = Options::default().upstream(broker.port, "native");
    if let Some(folder) = &plan.folder {
        options.environment.push(("SLUICEGATE_STORE_PATH".to_owned(), folder.join("state").display().to_string()));
    }
    let gateway = Gateway::start(options);
    let (mut child, mut lines) = device(&gateway, "alone", "1")?;
    let mut walk = Walk::new(plan.points);
    let mut second = || -> anyhow::Result<usize> {
        let next = Instant::now() + Duration::from_secs(1);
        let line = walk.line().to_string();
        writeln!(lines, "{line}").and_then(|()| lines.flush())?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        Ok(line.len())
    };
    for _ in 0..SETTLE.as_secs() {
        second()?;
    }
    let disk_now = || plan.folder.as_deref().map(written).transpose().map(Option::flatten);
    let (disk, own) = (disk_now()?, usage(gateway.child.pid())?.written);
    let mut payload = 0;
    for _ in 0..plan.seconds {
        payload += second()?;
    }
    let own = usage(gateway.child.pid())?.written.saturating_sub(own) as f64;
    let disk = disk_now()?.zip(disk).map(|(now, before)| now.saturating_sub(before) as f64);
    let (reports, payload) = (f64::from(plan.seconds), payload as f64);
    drop(lines);
    ensure!(child.wait(SETTLE).success(), "mosquitto_pub failed");
    gateway.stop();
    table.row(vec![
        Cell::Figure(reports, 0),
        Cell::Figure(plan.points as f64, 0),
        Cell::Figure(payload / reports, 0),
        Cell::maybe(disk.map(|bytes| bytes / reports), 0),
        Cell::maybe(disk.map(|bytes| bytes / payload), 1),
        Cell::Figure(own / reports, 0),
        Cell::Figure(own / payload, 1),
    ]);
    Ok(table)
}

/// The same load without a rule, and under rules that let everything and next to nothing through.
pub(crate) fn run_rules(plan: &RulesPlan) -> anyhow::Result<Table> {
    let mut table = Table::new(&["rules", "points/s", "% of a core", "held back/s"]);
    table.note("one device at QoS 0, reports of 100 walking values; the whole gateway: validated, ruled, on disk, upstream in native batches to a mosquitto");
    table.note("CPU: the gateway's process until all is sent; held back: sluicegate_held_values_total");
    for (name, rule) in [
        ("none", None),
        ("100 by exception, any change", Some("")),
        ("100 by exception, deadband of 1,000", Some("deadband = 1000")),
    ] {
        table.row(ruled(plan, name, rule)?);
    }
    Ok(table)
}

fn ruled(plan: &RulesPlan, name: &str, rule: Option<&str>) -> anyhow::Result<Vec<Cell>> {
    const POINTS: u64 = 100;
    let broker = Mosquitto::start();
    let mut options = Options::default().upstream(broker.port, "native");
    for point in (0..POINTS).filter(|_| rule.is_some()) {
        let rule = rule.unwrap_or_default();
        options = options.with(&format!("[[rule]]\nproduct = \"generic\"\nproperty = \"p{point}\"\n{rule}"));
    }
    let gateway = Gateway::start(options);
    let (mut child, mut lines) = device(&gateway, "ruled", "0")?;
    let mut walk = Walk::new(POINTS);
    let (began, held) = (Instant::now(), || gateway.metric("sluicegate_held_values_total"));
    let (cpu, before) = (usage(gateway.child.pid())?.cpu, held());
    let (pause, reports) = (Duration::from_secs(1) / plan.reports.max(1), plan.seconds * plan.reports);
    for n in 1..=reports {
        writeln!(lines, "{}", walk.line())?;
        std::thread::sleep((began + pause * n).saturating_duration_since(Instant::now()));
    }
    drop(lines);
    ensure!(child.wait(SETTLE).success(), "mosquitto_pub failed");
    let (took, cpu) = (began.elapsed().as_secs_f64(), usage(gateway.child.pid())?.cpu.saturating_sub(cpu));
    let held = (held() - before) / took;
    gateway.stop();
    Ok(vec![
        Cell::text(name),
        Cell::Figure(f64::from(reports) * POINTS as f64 / took, 0),
        Cell::Figure(cpu.as_secs_f64() / took * 100.0, 1),
        Cell::Figure(held, 0),
    ])
}

/// Values with one decimal, each a little beside the one before.
struct Walk {
    state: u32,
    values: Vec<i64>,
}

impl Walk {
    fn new(points: u64) -> Self {
        Self { state: 7, values: (0..points).map(|point| 200 + point.cast_signed() * 3).collect() }
    }

    /// The next report.
    fn line(&mut self) -> Value {
        let mut properties = Map::new();
        for (point, value) in self.values.iter_mut().enumerate() {
            self.state = self.state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *value += i64::from(self.state >> 16) % 11 - 5;
            properties.insert(format!("p{point}"), json!(*value as f64 / 10.0));
        }
        json!({ "properties": properties })
    }
}

/// Bytes that the block device under this folder was given to write so far; `None` where there is none, as under a
/// container's layers.
fn written(folder: &Path) -> anyhow::Result<Option<u64>> {
    rustix::fs::syncfs(std::fs::File::open(folder)?)?;
    let device = std::fs::metadata(folder)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let Ok(stat) = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")) else { return Ok(None) };
    let sectors: u64 = stat.split_whitespace().nth(6).context("the device's figures")?.parse()?;
    Ok(Some(sectors * 512))
}
