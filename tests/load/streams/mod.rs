//! Live streams: one camera and many viewers in here; the other runs in files of their own, on what they share.

mod channels;
mod clip;
mod fleet;
mod floor;
mod idle;
mod ingest;
mod peers;
mod publisher;
mod servers;
mod sessions;
mod sources;
mod storm;
mod viewers;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use tempfile::TempDir;

use crate::process::{Usage, quantile, usage};
use crate::table::{Cell, Table};
pub(crate) use channels::{ChannelsPlan, run as run_channels};
use clip::Clip;
pub(crate) use floor::{FloorPlan, floor};
pub(crate) use idle::{IdlePlan, run as run_idle};
pub(crate) use ingest::{IngestPlan, run as run_ingest};
use publisher::Publisher;
use servers::{Kind, Peer, Server, Setup};
pub(crate) use sessions::{SessionsPlan, run as run_sessions};
pub(crate) use sources::{SourcesPlan, run as run_sources};
pub(crate) use storm::{StormPlan, run as run_storm};
use viewers::Crowd;

/// Viewers that look at every frame, beside the crowd.
const PROBES: usize = 8;
/// With its audio, 1.05 Mb/s.
const VIDEO_KBPS: u32 = 960;
/// Time between the last viewer's arrival and the measurement.
const SETTLE: Duration = Duration::from_secs(2);

/// How the stream is wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Container {
    Rtmp,
    HttpFlv,
}

impl Container {
    fn name(self) -> &'static str {
        if self == Self::Rtmp { "rtmp" } else { "http-flv" }
    }
}

/// What every run begins with.
struct Scene {
    _folder: TempDir,
    file: PathBuf,
    clip: Arc<Clip>,
}

impl Scene {
    fn make(video_kbps: u32) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        let file = folder.path().join("clip.flv");
        clip::make(&file, video_kbps)?;
        let clip = Arc::new(Clip::read(&file)?);
        Ok(Self { _folder: folder, file, clip })
    }
}

/// The servers that offer this container, the gateway last; `alone`: no other.
fn kinds(container: Container, peers: &[Peer], alone: bool) -> Vec<Kind> {
    let debian = (container == Container::Rtmp).then_some(Kind::Nginx);
    let others = debian.into_iter().chain(Kind::named(peers)).filter(|_| !alone);
    others.chain([Kind::Gateway]).collect()
}

/// `load streams`.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    viewers: Vec<usize>,
    /// Fixed merge windows of the gateway and the floor, ms; `0-350` lets the gateway choose in that range.
    #[arg(long, value_delimiter = ',', default_value = "40,100,350")]
    windows: Vec<String>,
    #[arg(long, value_delimiter = ',', value_enum, default_value = "rtmp,http-flv")]
    modes: Vec<Container>,
    /// Time of one measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Measurements of each kind; the one with the median CPU is shown.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Of the viewers, so many stop reading after they have joined.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Leave the peer and the floor out.
    #[arg(long)]
    alone: bool,
    /// Peers beside Debian's nginx-rtmp: fetched from npm, built from crates.io (which takes minutes).
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
}

/// One server under one load.
#[derive(Debug, Clone)]
struct Case {
    kind: Kind,
    container: Container,
    viewers: usize,
    window: (u64, u64),
}

#[derive(Debug, Clone)]
struct Outcome {
    cpu_us: f64,
    core_percent: f64,
    rss_before_kib: u64,
    rss_kib: u64,
    rss_growth_kib: i64,
    join_s: [Option<f64>; 2],
    latency_s: [Option<f64>; 2],
    /// Received by a viewer that reads, Mb/s.
    rate: f64,
    lost: usize,
}

pub(crate) fn run(plan: &Plan) -> anyhow::Result<Table> {
    let Scene { _folder, file, clip } = Scene::make(VIDEO_KBPS)?;
    let rate = clip.rate();
    let mut table = Table::new(&[
        "server",
        "mode",
        "viewers",
        "stalled",
        "window ms",
        "CPU µs/viewer-s",
        "% of a core",
        "to nginx-rtmp",
        "to floor",
        "RSS MiB",
        "KiB/viewer",
        "growth in run KiB",
        "join p50 ms",
        "p99",
        "latency p50 ms",
        "p99",
        "Mb/s each",
        "lost",
    ]);
    table.note(format!(
        "one camera, {rate:.2} Mb/s, 25 fps H.264 + AAC, key frame every 2 s; {} s a measurement, median of {}",
        plan.seconds, plan.repeat
    ));
    table.note("join: connect to first byte of video; latency: frame sent by the camera to frame read by one of 8 probes; all on the same cores");
    for &viewers in &plan.viewers {
        for &container in &plan.modes {
            let mut peer = None;
            if container == Container::Rtmp && !plan.alone {
                let case = Case { kind: Kind::Nginx, container, viewers, window: (0, 0) };
                peer = Some(median(&case, plan, &clip, &file)?);
                add(&mut table, &case, plan, peer.as_ref(), None, None);
            }
            for kind in Kind::named(&plan.peers) {
                let case = Case { kind, container, viewers, window: (0, 0) };
                let outcome = median(&case, plan, &clip, &file)?;
                add(&mut table, &case, plan, Some(&outcome), peer.as_ref(), None);
            }
            for window in &plan.windows {
                let window = parse_window(window)?;
                let mut floor = None;
                if container == Container::HttpFlv && !plan.alone && window.0 == window.1 {
                    let case = Case { kind: Kind::Floor, container, viewers, window };
                    floor = Some(median(&case, plan, &clip, &file)?);
                    add(&mut table, &case, plan, floor.as_ref(), None, None);
                }
                let case = Case { kind: Kind::Gateway, container, viewers, window };
                let outcome = median(&case, plan, &clip, &file)?;
                add(&mut table, &case, plan, Some(&outcome), peer.as_ref(), floor.as_ref());
            }
        }
    }
    Ok(table)
}

fn parse_window(text: &str) -> anyhow::Result<(u64, u64)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Ok((low.parse().context("a window in ms")?, high.parse().context("a window in ms")?))
}

fn median(case: &Case, plan: &Plan, clip: &Arc<Clip>, file: &std::path::Path) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    for _ in 0..plan.repeat.max(1) {
        let outcome = measure(case, plan, clip, file).with_context(|| format!("{case:?}"))?;
        eprintln!("{case:?} {outcome:?}");
        all.push(outcome);
    }
    all.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    all.get(all.len() / 2).cloned().context("at least one measurement")
}

fn measure(case: &Case, plan: &Plan, clip: &Arc<Clip>, file: &std::path::Path) -> anyhow::Result<Outcome> {
    let (epoch, epoch_ns) = (Instant::now(), floor::clock_ns());
    let server = Server::start(case.kind, &Setup { window: case.window, epoch_ns, ..Setup::new(file) })?;
    let address = server.door(case.container);
    let publisher = || Publisher::start(server.address.to_string(), Arc::clone(clip), epoch);
    let camera = (case.kind != Kind::Floor).then(publisher);
    // Long enough that there is a key frame to begin with.
    std::thread::sleep(Duration::from_secs(2));
    let empty = usage(server.pid())?;
    let phase = Arc::new(AtomicU8::new(0));
    let probes = probe(address, case.container, epoch, Arc::clone(&phase));
    let mut crowd = Crowd::new(address, case.container, epoch, false)?;
    crowd.join(case.viewers, Duration::from_secs(30))?;
    let joined = crowd.joins.len();
    crowd.stall(plan.stalled)?;
    crowd.watch(SETTLE)?;
    phase.store(1, Ordering::Release);
    let (before, bytes_before, started) = (usage(server.pid())?, crowd.bytes(), Instant::now());
    crowd.watch(Duration::from_secs(plan.seconds))?;
    let (after, bytes, elapsed) = (usage(server.pid())?, crowd.bytes(), started.elapsed());
    phase.store(2, Ordering::Release);
    let mut latencies = probes.join().map_err(|_| anyhow::anyhow!("the probes panicked"))??;
    if let Some(camera) = camera {
        camera.stop()?;
    }
    let Usage { cpu, .. } = Usage { cpu: after.cpu.saturating_sub(before.cpu), ..after };
    let reading = (joined - plan.stalled.min(joined)).max(1) as f64;
    Ok(Outcome {
        cpu_us: cpu.as_secs_f64() * 1e6 / ((reading + PROBES as f64) * elapsed.as_secs_f64()),
        core_percent: cpu.as_secs_f64() * 100.0 / elapsed.as_secs_f64(),
        rss_before_kib: empty.rss_kib,
        rss_kib: after.rss_kib,
        rss_growth_kib: after.rss_kib as i64 - before.rss_kib as i64,
        join_s: [quantile(&mut crowd.joins, 0.5), quantile(&mut crowd.joins, 0.99)],
        latency_s: [quantile(&mut latencies, 0.5), quantile(&mut latencies, 0.99)],
        rate: (bytes - bytes_before) as f64 * 8e-6 / elapsed.as_secs_f64() / reading,
        lost: crowd.closed + case.viewers - joined.min(case.viewers),
    })
}

/// A few viewers on a thread of their own that read every frame's stamp. Phase 1: measure; phase 2: end.
fn probe(
    address: SocketAddr,
    container: Container,
    epoch: Instant,
    phase: Arc<AtomicU8>,
) -> std::thread::JoinHandle<anyhow::Result<Vec<f64>>> {
    std::thread::spawn(move || {
        let mut probes = Crowd::new(address, container, epoch, true)?;
        probes.join(PROBES, Duration::from_secs(10))?;
        while phase.load(Ordering::Acquire) == 0 {
            probes.turn(Duration::from_millis(20))?;
        }
        probes.latencies.clear();
        while phase.load(Ordering::Acquire) == 1 {
            probes.turn(Duration::from_millis(20))?;
        }
        Ok(std::mem::take(&mut probes.latencies))
    })
}

fn add(
    table: &mut Table,
    case: &Case,
    plan: &Plan,
    outcome: Option<&Outcome>,
    peer: Option<&Outcome>,
    floor: Option<&Outcome>,
) {
    let Some(outcome) = outcome else { return };
    let ratio = |to: Option<&Outcome>| Cell::maybe(to.map(|to| outcome.cpu_us / to.cpu_us), 2);
    let ms = |s: Option<f64>| Cell::maybe(s.map(|s| s * 1e3), 1);
    let window = match (case.kind, case.window) {
        (Kind::Gateway | Kind::Floor, (low, high)) if low == high => low.to_string(),
        (Kind::Gateway | Kind::Floor, (low, high)) => format!("{low}-{high}"),
        _ => "-".to_owned(),
    };
    let grown = outcome.rss_kib.saturating_sub(outcome.rss_before_kib) as f64 / case.viewers as f64;
    table.row(vec![
        Cell::text(case.kind.name()),
        Cell::text(case.container.name()),
        Cell::Figure(case.viewers as f64, 0),
        Cell::Figure(plan.stalled as f64, 0),
        Cell::text(window),
        Cell::Figure(outcome.cpu_us, 1),
        Cell::Figure(outcome.core_percent, 1),
        ratio(peer),
        ratio(floor),
        Cell::Figure(outcome.rss_kib as f64 / 1024.0, 1),
        Cell::Figure(grown, 2),
        Cell::Figure(outcome.rss_growth_kib as f64, 0),
        ms(outcome.join_s[0]),
        ms(outcome.join_s[1]),
        ms(outcome.latency_s[0]),
        ms(outcome.latency_s[1]),
        Cell::Figure(outcome.rate, 2),
        Cell::Figure(outcome.lost as f64, 0),
    ]);
}
