//! What a small site has: a few cameras, each with a few viewers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::fleet::{Fleet, Orders};
use super::servers::{Kind, Peer, Server, Setup};
use super::viewers::Crowd;
use super::{Container, Scene, kinds};
use crate::process::{quantile, run_time, usage};
use crate::table::{Cell, Table};

/// With its audio, 2 Mb/s.
const VIDEO_KBPS: u32 = 1930;
/// Between the starts of two cameras: no whole number of frames, so that they do not fall together.
const STAGGER: Duration = Duration::from_millis(333);
const SETTLE: Duration = Duration::from_secs(5);

const CORE_PERCENT_MAX: f64 = 1.0;
const RSS_MB_MAX: f64 = 30.0;

/// `load channels`.
#[derive(Debug, Args)]
pub(crate) struct ChannelsPlan {
    /// 0: what the gateway takes with nothing to do.
    #[arg(long, default_value_t = 3)]
    cameras: usize,
    /// Viewers of each.
    #[arg(long, default_value_t = 3)]
    viewers: usize,
    #[arg(long, value_delimiter = ',', value_enum, default_value = "http-flv,rtmp")]
    modes: Vec<Container>,
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Peers beside Debian's nginx-rtmp: fetched from npm, built from crates.io (which takes minutes).
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
    /// The gateway alone.
    #[arg(long)]
    alone: bool,
}

pub(crate) fn run(plan: &ChannelsPlan) -> anyhow::Result<Table> {
    let scene = Scene::make(VIDEO_KBPS)?;
    let mut table = Table::new(&[
        "server",
        "mode",
        "cameras",
        "viewers each",
        "% of a core",
        "bar",
        "",
        "RSS MB",
        "bar",
        "",
        "latency p50 ms",
        "p99",
        "lost",
    ]);
    table.note(format!("each {:.2} Mb/s, 25 fps H.264 + AAC, key frame every 2 s", scene.clip.rate()));
    for &mode in &plan.modes {
        for kind in kinds(mode, &plan.peers, plan.alone) {
            add(&mut table, plan, kind, mode, &scene)?;
        }
    }
    Ok(table)
}

fn add(table: &mut Table, plan: &ChannelsPlan, kind: Kind, mode: Container, scene: &Scene) -> anyhow::Result<()> {
    let server = Server::start(kind, &Setup::new(&scene.file))?;
    let (epoch, names) = (Instant::now(), (0..plan.cameras).map(|n| format!("camera-{n}")).collect::<Vec<_>>());
    let fleet = Fleet::start(Orders {
        address: server.address,
        names: names.clone(),
        clip: Arc::clone(&scene.clip),
        stagger: STAGGER,
        epoch,
    });
    std::thread::sleep(STAGGER * plan.cameras as u32 + Duration::from_secs(2));
    // All of them look at every frame: there are few.
    let count = plan.cameras * plan.viewers;
    let mut crowd = Crowd::new(server.door(mode), mode, epoch, true)?.of(&names);
    crowd.join(count, Duration::from_secs(10))?;
    crowd.watch(SETTLE)?;
    crowd.latencies.clear();
    // Finer than ticks, of which one more or less is 0.05 % here.
    let (before, started) = (run_time(server.pid())?, Instant::now());
    crowd.watch(Duration::from_secs(plan.seconds))?;
    let (after, elapsed) = (run_time(server.pid())?, started.elapsed().as_secs_f64());
    let rss_mb = usage(server.pid())?.rss_kib as f64 * 1024e-6;
    fleet.stop()?;
    let percent = after.saturating_sub(before).as_secs_f64() * 100.0 / elapsed;
    let mut latency = |part| Cell::maybe(quantile(&mut crowd.latencies, part).map(|s| s * 1e3), 1);
    let latencies = [latency(0.5), latency(0.99)];
    let [p50, p99] = latencies;
    table.row(vec![
        Cell::text(kind.name()),
        Cell::text(mode.name()),
        Cell::Figure(plan.cameras as f64, 0),
        Cell::Figure(plan.viewers as f64, 0),
        Cell::Figure(percent, 2),
        Cell::Figure(CORE_PERCENT_MAX, 0),
        Cell::at_most(percent, CORE_PERCENT_MAX),
        Cell::Figure(rss_mb, 1),
        Cell::Figure(RSS_MB_MAX, 0),
        Cell::at_most(rss_mb, RSS_MB_MAX),
        p50,
        p99,
        Cell::Figure((count - crowd.playing().min(count)) as f64, 0),
    ]);
    Ok(())
}
