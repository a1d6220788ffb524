//! Live streams: one camera and many viewers in here; the other runs in files of their own, on what they share.

mod channels;
mod clip;
mod fleet;
mod floor;
mod idle;
mod ingest;
mod peers;
mod probes;
mod publisher;
mod servers;
mod sessions;
mod sources;
mod storm;
mod viewers;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
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
use probes::{PROBES, Probes};
use publisher::Publisher;
use servers::{Kind, Peer, Server, Setup};
pub(crate) use sessions::{SessionsPlan, run as run_sessions};
pub(crate) use sources::{SourcesPlan, run as run_sources};
pub(crate) use storm::{StormPlan, run as run_storm};
use viewers::Crowd;

/// With its audio, 1.05 Mb/s.
const VIDEO_KBPS: u32 = 960;
/// Time between the last viewer's arrival and the measurement.
const SETTLE: Duration = Duration::from_secs(2);
/// Until the last viewer has joined; who has not by then is counted, not waited for.
const JOIN_PATIENCE: Duration = Duration::from_secs(30);

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
    /// Viewers that saw video.
    joined: usize,
    /// Closed on before they did.
    refused: usize,
    /// Closed on after they did.
    cut: usize,
    /// Of those that were there and read: nothing came in the whole measurement.
    silent: usize,
    /// What ended the camera before its time.
    camera: Option<String>,
}

impl Outcome {
    /// CPU for each viewer, µs a second; nothing where there is none.
    fn cpu_each(&self) -> Option<f64> {
        (self.joined > 0).then_some(self.cpu_us)
    }
}

pub(crate) fn run(plan: &Plan) -> anyhow::Result<Table> {
    let scene = Scene::make(VIDEO_KBPS)?;
    let rate = scene.clip.rate();
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
        "joined",
        "cut",
        "got nothing",
    ]);
    table.note(format!(
        "one camera, {rate:.2} Mb/s, 25 fps H.264 + AAC, key frame every 2 s; {} s a measurement, median of {}",
        plan.seconds, plan.repeat
    ));
    table.note("join: connect to first byte of video; latency: frame sent by the camera to frame read by one of 8 probes; all on the same cores");
    table.note("joined: has seen video; cut: the server closed the connection, whenever; got nothing: joined, was not cut, and no byte came in the whole measurement");
    for &viewers in &plan.viewers {
        for &container in &plan.modes {
            let mut peer = None;
            if container == Container::Rtmp && !plan.alone {
                let case = Case { kind: Kind::Nginx, container, viewers, window: (0, 0) };
                peer = show(&mut table, &case, plan, &scene, None, None)?;
            }
            for kind in Kind::named(&plan.peers) {
                let case = Case { kind, container, viewers, window: (0, 0) };
                show(&mut table, &case, plan, &scene, peer.as_ref(), None)?;
            }
            for window in &plan.windows {
                let window = parse_window(window)?;
                let mut floor = None;
                if container == Container::HttpFlv && !plan.alone && window.0 == window.1 {
                    let case = Case { kind: Kind::Floor, container, viewers, window };
                    floor = show(&mut table, &case, plan, &scene, None, None)?;
                }
                let case = Case { kind: Kind::Gateway, container, viewers, window };
                show(&mut table, &case, plan, &scene, peer.as_ref(), floor.as_ref())?;
            }
        }
    }
    Ok(table)
}

fn parse_window(text: &str) -> anyhow::Result<(u64, u64)> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    Ok((low.parse().context("a window in ms")?, high.parse().context("a window in ms")?))
}

/// Measures a server and adds its row. Of a peer that cannot be measured it says why, and the others go on.
fn show(
    table: &mut Table,
    case: &Case,
    plan: &Plan,
    scene: &Scene,
    peer: Option<&Outcome>,
    floor: Option<&Outcome>,
) -> anyhow::Result<Option<Outcome>> {
    match median(case, plan, scene) {
        Err(error) if case.kind.is_peer() => {
            table.warn(format!("{case} could not be measured: {}", error.root_cause()));
            Ok(None)
        }
        Err(error) => Err(error),
        Ok(outcome) => {
            add(table, case, plan, &outcome, peer, floor);
            if let Some(fault) = fault(case, &outcome) {
                table.warn(fault);
            }
            Ok(Some(outcome))
        }
    }
}

fn median(case: &Case, plan: &Plan, scene: &Scene) -> anyhow::Result<Outcome> {
    let mut all = Vec::new();
    for _ in 0..plan.repeat.max(1) {
        let outcome = measure(case, plan, scene).with_context(|| format!("{case:?}"))?;
        eprintln!("{case:?} {outcome:?}");
        all.push(outcome);
    }
    all.sort_by(|a, b| a.cpu_us.total_cmp(&b.cpu_us));
    all.get(all.len() / 2).cloned().context("at least one measurement")
}

fn measure(case: &Case, plan: &Plan, scene: &Scene) -> anyhow::Result<Outcome> {
    let (epoch, epoch_ns) = (Instant::now(), floor::clock_ns());
    let server = Server::start(case.kind, &Setup { window: case.window, epoch_ns, ..Setup::new(&scene.file) })?;
    let address = server.door(case.container);
    let publisher = || Publisher::start(server.address, Arc::clone(&scene.clip), epoch);
    let camera = (case.kind != Kind::Floor).then(publisher);
    // Long enough that there is a key frame to begin with.
    std::thread::sleep(Duration::from_secs(2));
    let empty = usage(server.pid())?;
    let probes = Probes::start(address, case.container, epoch);
    let mut crowd = Crowd::new(address, case.container, epoch, false)?;
    crowd.join(case.viewers, JOIN_PATIENCE)?;
    let joined = crowd.joins.len();
    crowd.stall(plan.stalled)?;
    crowd.watch(SETTLE)?;
    probes.measure();
    crowd.mark();
    let (before, bytes_before, started) = (usage(server.pid())?, crowd.bytes(), Instant::now());
    crowd.watch(Duration::from_secs(plan.seconds))?;
    let (after, bytes, elapsed) = (usage(server.pid())?, crowd.bytes(), started.elapsed());
    let mut latencies = probes.end()?;
    let camera = camera.and_then(|camera| camera.stop().err()).map(|error| format!("{error:#}"));
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
        joined,
        refused: crowd.refused,
        cut: crowd.cut,
        silent: crowd.silent(),
        camera,
    })
}

/// What the server did not do that was asked of it. `None`: all joined, stayed and were sent
/// something, and it took what the camera sent.
fn fault(case: &Case, outcome: &Outcome) -> Option<String> {
    let Outcome { joined, refused, cut, silent, camera, .. } = outcome;
    if *joined == case.viewers && cut + silent == 0 && camera.is_none() {
        return None;
    }
    let waiting = case.viewers.saturating_sub(joined + refused);
    let camera = camera.as_ref().map_or(String::new(), |error| format!("; the camera's connection failed: {error}"));
    Some(format!(
        "{case}: {joined} joined, {refused} were refused, {waiting} still waited after {} s; {cut} were cut \
         and {silent} got nothing afterwards{camera}",
        JOIN_PATIENCE.as_secs(),
    ))
}

fn add(
    table: &mut Table,
    case: &Case,
    plan: &Plan,
    outcome: &Outcome,
    peer: Option<&Outcome>,
    floor: Option<&Outcome>,
) {
    let ratio = |to: Option<&Outcome>| {
        Cell::maybe(outcome.cpu_each().zip(to.and_then(Outcome::cpu_each)).map(|(own, to)| own / to), 2)
    };
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
        Cell::maybe(outcome.cpu_each(), 1),
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
        Cell::Figure(outcome.joined as f64, 0),
        Cell::Figure((outcome.refused + outcome.cut) as f64, 0),
        Cell::Figure(outcome.silent as f64, 0),
    ]);
}

// === impl Display ===

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}, {} viewers", self.kind.name(), self.container.name(), self.viewers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome([joined, refused, cut, silent]: [usize; 4], camera: Option<&str>) -> Outcome {
        Outcome {
            cpu_us: 1.0,
            core_percent: 1.0,
            rss_before_kib: 0,
            rss_kib: 0,
            rss_growth_kib: 0,
            join_s: [None; 2],
            latency_s: [None; 2],
            rate: 0.0,
            joined,
            refused,
            cut,
            silent,
            camera: camera.map(str::to_owned),
        }
    }

    #[test]
    fn who_is_not_let_in_or_is_cut_off_is_said() {
        let case = Case { kind: Kind::Xiu, container: Container::Rtmp, viewers: 50, window: (0, 0) };
        assert_eq!(fault(&case, &outcome([50, 0, 0, 0], None)), None);
        let told = fault(&case, &outcome([40, 3, 2, 1], Some("broken pipe"))).unwrap();
        assert_eq!(
            told,
            "xiu, rtmp, 50 viewers: 40 joined, 3 were refused, 7 still waited after 30 s; 2 were cut and 1 \
             got nothing afterwards; the camera's connection failed: broken pipe"
        );
        assert_eq!(outcome([0, 50, 0, 0], None).cpu_each(), None);
    }
}
