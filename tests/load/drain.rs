//! `load drain`: how fast a backlog goes to a local broker once it is there.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use sluicegate_tests::{Gateway, Mosquitto, Options, PATIENCE, wait_for};

use crate::process::usage;
use crate::table::{Cell, Table};

/// The longest a drain may take.
const DRAIN_MAX: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// Reports in the backlog.
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
    /// Property values in each.
    #[arg(long, default_value_t = 100)]
    points: u64,
    #[arg(long, value_delimiter = ',', default_value = "native,json")]
    dialects: Vec<String>,
}

pub(crate) fn run(plan: &Plan) -> anyhow::Result<Table> {
    let mut table = Table::new(&[
        "dialect",
        "messages",
        "points each",
        "seconds",
        "messages/s",
        "points/s",
        "CPU s/million points",
        "wire B/point",
        "RSS MiB",
    ]);
    table.note("backlog made while the broker (Debian's mosquitto, nobody subscribed) is away; from its return until everything is confirmed, the pause before the next try to connect left out");
    table.note("CPU: the gateway's process over the same time");
    table.note("one device, one QoS 1 connection in, walking values with one decimal");
    for dialect in &plan.dialects {
        table.row(one(plan, dialect)?);
    }
    Ok(table)
}

fn one(plan: &Plan, dialect: &str) -> anyhow::Result<Vec<Cell>> {
    let mut broker = Mosquitto::start();
    broker.pause();
    let gateway = Gateway::start(Options::default().upstream(broker.port, dialect));
    publish(&gateway, plan)?;
    let backlog = || gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}");
    wait_for("the backlog", PATIENCE * 4, || (backlog() >= plan.messages as f64).then_some(()));
    broker.resume();
    let up = || gateway.metric("sluicegate_link_up{upstream=\"up\"}") > 0.5;
    let waiting = Instant::now();
    while !up() {
        ensure!(waiting.elapsed() < DRAIN_MAX, "no connection");
        std::thread::sleep(Duration::from_millis(2));
    }
    let (started, before) = (Instant::now(), usage(gateway.child.pid())?);
    let sent = || gateway.metric("sluicegate_messages_sent_total{upstream=\"up\"}");
    while sent() < plan.messages as f64 {
        ensure!(started.elapsed() < DRAIN_MAX, "{} of {} after {DRAIN_MAX:?}", sent(), plan.messages);
        std::thread::sleep(Duration::from_millis(5));
    }
    let (took, after) = (started.elapsed().as_secs_f64(), usage(gateway.child.pid())?);
    let (messages, points) = (plan.messages as f64, (plan.messages * plan.points) as f64);
    let bytes = gateway.metric("sluicegate_upstream_bytes_total{upstream=\"up\"}");
    Ok(vec![
        Cell::text(dialect.to_owned()),
        Cell::Figure(messages, 0),
        Cell::Figure(plan.points as f64, 0),
        Cell::Figure(took, 2),
        Cell::Figure(messages / took, 0),
        Cell::Figure(points / took, 0),
        Cell::Figure(after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / points, 2),
        Cell::Figure(bytes / points, 2),
        Cell::Figure(after.rss_kib as f64 / 1024.0, 1),
    ])
}

/// The backlog: reports of one device, whose values walk.
fn publish(gateway: &Gateway, plan: &Plan) -> anyhow::Result<()> {
    let port = gateway.options.mqtt.to_string();
    let mut child = Command::new("mosquitto_pub")
        .args(["-p", &port, "-q", "1", "-i", "drain", "-t", "/generic/drain/properties/report", "-l"])
        .stdin(Stdio::piped())
        .spawn()
        .context("mosquitto_pub")?;
    let mut lines = std::io::BufWriter::new(child.stdin.take().context("its input")?);
    for n in 0..plan.messages {
        let values =
            (0..plan.points).map(|p| (format!("p{p}"), json!(((n * 7 + p * 13) % 1000 + p * 10) as f64 / 10.0)));
        let properties: serde_json::Map<String, serde_json::Value> = values.collect();
        writeln!(lines, "{}", json!({ "properties": properties }))?;
    }
    lines.into_inner().context("its input")?;
    ensure!(child.wait()?.success(), "mosquitto_pub failed");
    Ok(())
}
