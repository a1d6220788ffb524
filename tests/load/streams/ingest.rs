//! Many publishers that nobody watches: what taking them in costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::fleet::{Fleet, Orders};
use super::servers::{Kind, Peer, Server, Setup};
use super::{Container, Scene, kinds};
use crate::process::{quantile, usage};
use crate::table::{Cell, Table};

/// Between the starts of two cameras: all are there after the clip's length, their key frames spread over it.
const STAGGER: Duration = Duration::from_millis(7);
/// Time after which every camera has sent a group of pictures.
const SETTLE: Duration = Duration::from_secs(5);

const CORE_PERCENT_MAX: f64 = 35.0;
const KB_EACH_MAX: f64 = 300.0;

/// `load publishers`.
#[derive(Debug, Args)]
pub(crate) struct IngestPlan {
    #[arg(long, default_value_t = 1000)]
    publishers: usize,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Peers beside Debian's nginx-rtmp: fetched from npm, built from crates.io (which takes minutes).
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
    /// The gateway alone.
    #[arg(long)]
    alone: bool,
}

pub(crate) fn run(plan: &IngestPlan) -> anyhow::Result<Table> {
    let scene = Scene::make(super::VIDEO_KBPS)?;
    let mut table = Table::new(&[
        "server",
        "publishers",
        "Mb/s in all",
        "% of a core",
        "bar",
        "",
        "RSS before MB",
        "RSS MB",
        "KB/publisher",
        "bar",
        "",
        "cameras' own delay p99 ms",
        "lost",
    ]);
    table.note(format!(
        "each {:.2} Mb/s, 25 fps H.264 + AAC, key frame every 2 s ({} KB with its audio); {} s a measurement",
        scene.clip.rate(),
        scene.clip.gop_bytes() / 1000,
        plan.seconds
    ));
    for kind in kinds(Container::Rtmp, &plan.peers, plan.alone) {
        add(&mut table, plan, kind, &scene)?;
    }
    Ok(table)
}

fn add(table: &mut Table, plan: &IngestPlan, kind: Kind, scene: &Scene) -> anyhow::Result<()> {
    let server = Server::start(kind, &Setup::new(&scene.file))?;
    let empty = usage(server.pid())?;
    let fleet = Fleet::start(Orders {
        address: server.address,
        names: (0..plan.publishers).map(|n| format!("camera-{n}")).collect(),
        clip: Arc::clone(&scene.clip),
        stagger: STAGGER,
        epoch: Instant::now(),
    });
    std::thread::sleep(STAGGER * plan.publishers as u32 + SETTLE);
    let (before, bytes, started) = (usage(server.pid())?, fleet.bytes(), Instant::now());
    std::thread::sleep(Duration::from_secs(plan.seconds));
    let (after, bytes, elapsed) = (usage(server.pid())?, fleet.bytes() - bytes, started.elapsed().as_secs_f64());
    let live = server.metric("sluicegate_streams");
    let mut sent = fleet.stop()?;
    let missing = live.map_or(sent.lost as f64, |live| plan.publishers as f64 - live);
    let percent = after.cpu.saturating_sub(before.cpu).as_secs_f64() * 100.0 / elapsed;
    let each = after.rss_kib.saturating_sub(empty.rss_kib) as f64 * 1.024 / plan.publishers as f64;
    table.row(vec![
        Cell::text(kind.name()),
        Cell::Figure(plan.publishers as f64, 0),
        Cell::Figure(bytes as f64 * 8e-6 / elapsed, 0),
        Cell::Figure(percent, 1),
        Cell::Figure(CORE_PERCENT_MAX, 0),
        Cell::at_most(percent, CORE_PERCENT_MAX),
        Cell::Figure(empty.rss_kib as f64 * 1024e-6, 1),
        Cell::Figure(after.rss_kib as f64 * 1024e-6, 1),
        Cell::Figure(each, 0),
        Cell::Figure(KB_EACH_MAX, 0),
        Cell::at_most(each, KB_EACH_MAX),
        Cell::maybe(quantile(&mut sent.late, 0.99).map(|s| s * 1e3), 1),
        Cell::Figure(missing, 0),
    ]);
    Ok(())
}
