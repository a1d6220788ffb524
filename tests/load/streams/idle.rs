//! Viewers of a camera that shows next to nothing: what being there costs.

use std::time::{Duration, Instant};

use clap::Args;

use super::fleet::{Fleet, Orders};
use super::publisher::NAME;
use super::servers::{Kind, Peer, Server, Setup};
use super::viewers::Crowd;
use super::{Container, SETTLE, Scene, kinds};
use crate::process::usage;
use crate::table::{Cell, Table};

/// Between two frames of the camera, ms.
const INTERVAL_MS: u32 = 5000;
/// The process as a whole with 10,000 viewers.
const RSS_MB_MAX: f64 = 60.0;
const BYTES_EACH_MAX: f64 = 1500.0;

/// `load idle-viewers`.
#[derive(Debug, Args)]
pub(crate) struct IdlePlan {
    #[arg(long, default_value_t = 10_000)]
    viewers: usize,
    #[arg(long, value_delimiter = ',', value_enum, default_value = "http-flv,rtmp")]
    modes: Vec<Container>,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Peers beside Debian's nginx-rtmp: fetched from npm, built from crates.io (which takes minutes).
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
}

pub(crate) fn run(plan: &IdlePlan) -> anyhow::Result<Table> {
    let scene = Scene::make(super::VIDEO_KBPS)?;
    let mut table = Table::new(&[
        "server",
        "mode",
        "viewers",
        "RSS before MB",
        "RSS MB",
        "bar MB",
        "",
        "bytes/viewer",
        "bar",
        "",
        "% of a core",
        "lost",
    ]);
    table.note(format!("one camera with a frame of 1 KiB every {} s", INTERVAL_MS / 1000));
    for &mode in &plan.modes {
        for kind in kinds(mode, &plan.peers, false) {
            add(&mut table, plan, kind, mode, &scene)?;
        }
    }
    Ok(table)
}

fn add(table: &mut Table, plan: &IdlePlan, kind: Kind, mode: Container, scene: &Scene) -> anyhow::Result<()> {
    let server = Server::start(kind, &Setup::new(&scene.file))?;
    let epoch = Instant::now();
    let camera = Fleet::start(Orders {
        address: server.address,
        names: vec![NAME.to_owned()],
        clip: scene.clip.quiet(INTERVAL_MS)?.into(),
        stagger: Duration::ZERO,
        epoch,
    });
    std::thread::sleep(SETTLE);
    let empty = usage(server.pid())?;
    let mut crowd = Crowd::new(server.door(mode), mode, epoch, false)?;
    crowd.join(plan.viewers, Duration::from_secs(60))?;
    crowd.watch(SETTLE)?;
    let (before, started) = (usage(server.pid())?, Instant::now());
    crowd.watch(Duration::from_secs(plan.seconds))?;
    let (after, elapsed) = (usage(server.pid())?, started.elapsed());
    camera.stop()?;
    let rss_mb = after.rss_kib as f64 * 1024e-6;
    let each = after.rss_kib.saturating_sub(empty.rss_kib) as f64 * 1024.0 / plan.viewers as f64;
    table.row(vec![
        Cell::text(kind.name()),
        Cell::text(mode.name()),
        Cell::Figure(plan.viewers as f64, 0),
        Cell::Figure(empty.rss_kib as f64 * 1024e-6, 1),
        Cell::Figure(rss_mb, 1),
        Cell::Figure(RSS_MB_MAX, 0),
        Cell::at_most(rss_mb, RSS_MB_MAX),
        Cell::Figure(each, 0),
        Cell::Figure(BYTES_EACH_MAX, 0),
        Cell::at_most(each, BYTES_EACH_MAX),
        Cell::Figure((after.cpu.saturating_sub(before.cpu)).as_secs_f64() * 100.0 / elapsed.as_secs_f64(), 1),
        Cell::Figure((plan.viewers - crowd.playing().min(plan.viewers)) as f64, 0),
    ]);
    Ok(())
}
