//! What the gateway keeps of a stream: memory by source, with nobody watching, and in one and in two containers.
//!
//! All cameras send the same frames at the same time, so that the moment before a key frame, when most is kept, is the
//! same for all; the largest of many looks counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use super::fleet::{Fleet, Orders};
use super::servers::{Kind, Server, Setup};
use super::viewers::Crowd;
use super::{Container, Scene};
use crate::process::usage;
use crate::table::{Cell, Table};

/// Of a group of pictures, and beside it for each container in use.
const GOP_SHARE: f64 = 1.3;
const CONTAINER_KIB: f64 = 256.0;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// `load sources`.
#[derive(Debug, Args)]
pub(crate) struct SourcesPlan {
    #[arg(long, default_value_t = 100)]
    sources: usize,
    #[arg(long, default_value_t = 6)]
    seconds: u64,
}

pub(crate) fn run(plan: &SourcesPlan) -> anyhow::Result<Table> {
    let scene = Scene::make(super::VIDEO_KBPS)?;
    let gop_kib = scene.clip.gop_bytes() as f64 / 1024.0;
    let mut table =
        Table::new(&["containers", "sources", "GOP KiB", "RSS before MiB", "RSS MiB", "KiB/source", "bar", ""]);
    table.note(format!("each {:.2} Mb/s, one viewer of each in each container", scene.clip.rate()));
    let server = Server::start(Kind::Gateway, &Setup::new(&scene.file))?;
    let empty = usage(server.pid())?.rss_kib;
    let (epoch, names) = (Instant::now(), (0..plan.sources).map(|n| format!("camera-{n}")).collect::<Vec<_>>());
    let fleet = Fleet::start(Orders {
        address: server.address,
        names: names.clone(),
        clip: Arc::clone(&scene.clip),
        stagger: Duration::ZERO,
        epoch,
    });
    std::thread::sleep(Duration::from_secs(5));
    let mut crowds: Vec<Crowd> = Vec::new();
    for mode in [None, Some(Container::HttpFlv), Some(Container::Rtmp)] {
        if let Some(mode) = mode {
            let mut crowd = Crowd::new(server.door(mode), mode, epoch, false)?.of(&names);
            crowd.join(plan.sources, Duration::from_secs(10))?;
            crowds.push(crowd);
            watch(&mut crowds, Duration::from_secs(5), || Ok(()))?;
        }
        let mut most = 0;
        watch(&mut crowds, Duration::from_secs(plan.seconds), || {
            most = usage(server.pid())?.rss_kib.max(most);
            Ok(())
        })?;
        let each = most.saturating_sub(empty) as f64 / plan.sources as f64;
        let bar = gop_kib * GOP_SHARE + CONTAINER_KIB * crowds.len() as f64;
        table.row(vec![
            Cell::Figure(crowds.len() as f64, 0),
            Cell::Figure(plan.sources as f64, 0),
            Cell::Figure(gop_kib, 0),
            Cell::Figure(empty as f64 / 1024.0, 1),
            Cell::Figure(most as f64 / 1024.0, 1),
            Cell::Figure(each, 0),
            Cell::Figure(bar, 0),
            Cell::at_most(each, bar),
        ]);
    }
    fleet.stop()?;
    Ok(table)
}

fn watch(crowds: &mut [Crowd], time: Duration, mut look: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        let next = Instant::now() + LOOK;
        for crowd in &mut *crowds {
            crowd.watch(LOOK / 4)?;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        look()?;
    }
    Ok(())
}
