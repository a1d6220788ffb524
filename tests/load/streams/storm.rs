//! Everybody at once: thousands of viewers within a second.

use std::time::{Duration, Instant};

use clap::Args;

use super::publisher::Publisher;
use super::servers::{Kind, Peer, Server, Setup};
use super::viewers::Crowd;
use super::{Container, SETTLE, Scene, kinds};
use crate::process::{quantile, usage};
use crate::table::{Cell, Table};

/// Until the last of them plays.
const SECONDS_MAX: f64 = 3.0;

/// `load storm`.
#[derive(Debug, Args)]
pub(crate) struct StormPlan {
    /// Viewers, all of them within a second.
    #[arg(long, default_value_t = 5000)]
    viewers: usize,
    #[arg(long, value_delimiter = ',', value_enum, default_value = "http-flv,rtmp")]
    modes: Vec<Container>,
    /// Peers beside Debian's nginx-rtmp: fetched from npm, built from crates.io (which takes minutes).
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
}

pub(crate) fn run(plan: &StormPlan) -> anyhow::Result<Table> {
    let scene = Scene::make(super::VIDEO_KBPS)?;
    let mut table = Table::new(&[
        "server",
        "mode",
        "viewers",
        "all connecting s",
        "all playing s",
        "bar",
        "",
        "join p50 ms",
        "p99",
        "longest",
        "RSS MB",
        "lost",
    ]);
    table.note(format!("one camera, {:.2} Mb/s; playing: the first video frame has come", scene.clip.rate()));
    for &mode in &plan.modes {
        for kind in kinds(mode, &plan.peers, false) {
            add(&mut table, plan, kind, mode, &scene)?;
        }
    }
    Ok(table)
}

fn add(table: &mut Table, plan: &StormPlan, kind: Kind, mode: Container, scene: &Scene) -> anyhow::Result<()> {
    let server = Server::start(kind, &Setup::new(&scene.file))?;
    let epoch = Instant::now();
    let camera = Publisher::start(server.address, scene.clip.clone(), epoch);
    std::thread::sleep(SETTLE);
    let mut crowd = Crowd::new(server.door(mode), mode, epoch, false)?.pace(plan.viewers);
    let started = Instant::now();
    crowd.join(plan.viewers, Duration::from_secs(20))?;
    let playing = started.elapsed().as_secs_f64();
    let connecting = crowd.begun_within().as_secs_f64();
    let rss_mb = usage(server.pid())?.rss_kib as f64 * 1024e-6;
    let lost = plan.viewers - crowd.joins.len().min(plan.viewers);
    if let Err(error) = camera.stop() {
        table.warn(format!("{}, {}: the camera's connection failed: {error:#}", kind.name(), mode.name()));
    }
    let mut join = |part| Cell::maybe(quantile(&mut crowd.joins, part).map(|s| s * 1e3), 1);
    let joins = [join(0.5), join(0.99), join(1.0)];
    let [p50, p99, longest] = joins;
    table.row(vec![
        Cell::text(kind.name()),
        Cell::text(mode.name()),
        Cell::Figure(plan.viewers as f64, 0),
        Cell::Figure(connecting, 2),
        Cell::Figure(playing, 2),
        Cell::Figure(SECONDS_MAX, 0),
        Cell::at_most(if lost > 0 { f64::INFINITY } else { playing }, SECONDS_MAX),
        p50,
        p99,
        longest,
        Cell::Figure(rss_mb, 1),
        Cell::Figure(lost as f64, 0),
    ]);
    Ok(())
}
