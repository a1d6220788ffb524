//! `load drain`: how fast a backlog goes to a local broker once it is there, and how long live messages take beside one
//! that fills a slow line.

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::json;
use sluicegate_tests::{Child, Gateway, Mosquitto, Options, PATIENCE, Receiver, slow_line, wait_for};

use crate::process::{quantile, usage};
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
    /// Bits a second of the slow line; 0 leaves that run out.
    #[arg(long, default_value_t = 10_000_000)]
    line: u64,
    /// Seconds that the backlog fills the slow line.
    #[arg(long, default_value_t = 12)]
    seconds: u64,
}

/// Bytes of text in each report of the slow line's backlog, which no batch makes smaller.
const TEXT: usize = 4000;
/// Between two live reports beside it.
const LIVE_EVERY: Duration = Duration::from_millis(100);
/// When each live report was handed to its publisher, by its number from 1.
type Sent = Arc<Mutex<Vec<Instant>>>;

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
        "line Mbit/s",
        "live p50 ms",
        "live p99 ms",
    ]);
    table.note("backlog made while the broker (Debian's mosquitto, nobody subscribed) is away; from its return until everything is confirmed, the pause before the next try to connect left out");
    table.note("CPU: the gateway's process over the same time");
    table.note("one device, one QoS 0 connection in, walking values with one decimal");
    table.note("line: backlog of 4,000 B of text each over a token bucket, native; meanwhile another device reports every 100 ms: its report to the consumer behind the broker, commit window included");
    for dialect in &plan.dialects {
        table.row(one(plan, dialect)?);
    }
    if plan.line > 0 {
        table.row(beside(plan)?);
    }
    Ok(table)
}

fn one(plan: &Plan, dialect: &str) -> anyhow::Result<Vec<Cell>> {
    let mut broker = Mosquitto::start();
    broker.pause();
    let gateway = Gateway::start(Options::default().upstream(broker.port, dialect));
    publish(&gateway, plan.messages, |n| {
        let value = |p| json!(((n * 7 + p * 13) % 1000 + p * 10) as f64 / 10.0);
        (0..plan.points).map(|p| (format!("p{p}"), value(p))).collect()
    })?;
    wait_for("the backlog", PATIENCE * 4, || (backlog(&gateway) >= plan.messages as f64).then_some(()));
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
        Cell::None,
        Cell::None,
        Cell::None,
    ])
}

fn backlog(gateway: &Gateway) -> f64 {
    gateway.metric("sluicegate_backlog_messages{upstream=\"up\",class=\"live\"}")
}

/// Live messages beside a backlog that fills a slow line.
fn beside(plan: &Plan) -> anyhow::Result<Vec<Cell>> {
    let mut broker = Mosquitto::start();
    let line = slow_line(broker.port, plan.line);
    broker.pause();
    let gateway = Gateway::start(Options::default().upstream(line, "native"));
    let messages = plan.line / 8 * plan.seconds / TEXT as u64;
    publish(&gateway, messages, |n| {
        let text: String = (0..TEXT as u64).map(|at| char::from(b'a' + ((n * 31 + at * at * 7) % 26) as u8)).collect();
        [("n".to_owned(), json!(n)), ("text".to_owned(), json!(text))].into_iter().collect()
    })?;
    wait_for("the backlog", PATIENCE * 4, || (backlog(&gateway) >= messages as f64).then_some(()));
    broker.resume();
    let mut receiver = Receiver::start(broker.port, &[]);
    let is_of = |message: &serde_json::Value, thing: &str| message["thing"] == thing;
    receiver.until("the backlog to begin", PATIENCE * 2, |message| is_of(message, "drain"));
    let (started, before) = (Instant::now(), usage(gateway.child.pid())?);
    let sent = Sent::default();
    let done = Arc::new(AtomicBool::new(false));
    let live = report_live(&gateway, &sent, &done)?;
    let mut waits = Vec::new();
    loop {
        let next = receiver.next(DRAIN_MAX)?;
        let Some(n) = next["properties"]["n"].as_u64() else { continue };
        if is_of(&next, "live") {
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            let at = sent.get(n as usize - 1).context("a number that was not sent")?;
            waits.push(at.elapsed().as_secs_f64() * 1000.0);
        } else if n + 1 == messages {
            break;
        }
        ensure!(started.elapsed() < DRAIN_MAX, "the backlog does not end");
    }
    done.store(true, Ordering::Relaxed);
    let (took, after) = (started.elapsed().as_secs_f64(), usage(gateway.child.pid())?);
    drop(live);
    ensure!(!waits.is_empty(), "no live message came beside the backlog");
    Ok(vec![
        Cell::text("native".to_owned()),
        Cell::Figure(messages as f64, 0),
        Cell::Figure(2.0, 0),
        Cell::Figure(took, 2),
        Cell::Figure(messages as f64 / took, 0),
        Cell::Figure(messages as f64 * 2.0 / took, 0),
        Cell::Figure(after.cpu.saturating_sub(before.cpu).as_secs_f64() * 1e6 / (messages as f64 * 2.0), 2),
        Cell::None,
        Cell::Figure(after.rss_kib as f64 / 1024.0, 1),
        Cell::Figure(plan.line as f64 / 1e6, 0),
        Cell::Figure(quantile(&mut waits, 0.5).unwrap_or_default(), 0),
        Cell::Figure(quantile(&mut waits, 0.99).unwrap_or_default(), 0),
    ])
}

/// A second device that counts up at a steady pace until it is told to stop.
fn report_live(gateway: &Gateway, sent: &Sent, done: &Arc<AtomicBool>) -> anyhow::Result<Child> {
    let (child, mut lines) = device(gateway, "live", "1")?;
    let (sent, done) = (Arc::clone(sent), Arc::clone(done));
    std::thread::spawn(move || {
        for n in 1_u64.. {
            sent.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            let line = json!({ "properties": { "n": n } });
            if done.load(Ordering::Relaxed) || writeln!(lines, "{line}").and_then(|()| lines.flush()).is_err() {
                return;
            }
            std::thread::sleep(LIVE_EVERY);
        }
    });
    Ok(child)
}

/// The backlog: reports of one device.
fn publish(
    gateway: &Gateway,
    messages: u64,
    properties: impl Fn(u64) -> serde_json::Map<String, serde_json::Value>,
) -> anyhow::Result<()> {
    let (mut child, lines) = device(gateway, "drain", "0")?;
    let mut lines = std::io::BufWriter::new(lines);
    for n in 0..messages {
        writeln!(lines, "{}", json!({ "properties": properties(n) }))?;
    }
    drop(lines.into_inner().context("its input")?);
    ensure!(child.wait(DRAIN_MAX).success(), "mosquitto_pub failed");
    Ok(())
}

/// A device whose reports are lines of its input.
pub(crate) fn device(gateway: &Gateway, name: &str, qos: &str) -> anyhow::Result<(Child, ChildStdin)> {
    let (port, topic) = (gateway.options.mqtt.to_string(), format!("/generic/{name}/properties/report"));
    let mut command = Command::new("mosquitto_pub");
    command.args(["-p", &port, "-q", qos, "-i", name, "-t", &topic, "-l"]).stdin(Stdio::piped());
    let mut child = Child::start(&mut command);
    let lines = child.inner.stdin.take().context("its input")?;
    Ok((child, lines))
}
