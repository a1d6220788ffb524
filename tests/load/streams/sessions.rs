//! Connect, publish, play, leave, thousands of times: what is left behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;

use super::clip::{Clip, MARK};
use super::fleet::{APP, publish};
use super::publisher::tag_message;
use super::servers::{Kind, Peer, Server, Setup};
use super::{Container, Scene, kinds};
use crate::process::{Holding, holding};
use crate::table::{Cell, Table};

/// Frames of a session.
const FRAMES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a server has to come to rest.
const REST_MAX: Duration = Duration::from_secs(40);

/// `load sessions`.
#[derive(Debug, Args)]
pub(crate) struct SessionsPlan {
    #[arg(long, default_value_t = 40_000)]
    sessions: usize,
    /// Different stream names among them.
    #[arg(long, default_value_t = 160)]
    names: usize,
    /// Of them, those after which everything that is made once is there, the allocator's high water included.
    #[arg(long, default_value_t = 10_000)]
    warm: usize,
    /// Sessions at a time.
    #[arg(long, default_value_t = 16)]
    workers: usize,
    /// What may be left of memory, threads and descriptors, %: 2 for sessions, 5 for as many names.
    #[arg(long, default_value_t = 2.0)]
    percent: f64,
    /// The gateway alone.
    #[arg(long)]
    alone: bool,
    /// Peers beside Debian's nginx-rtmp: fetched from npm, built from crates.io (which takes minutes).
    #[arg(long, value_delimiter = ',', value_enum)]
    peers: Vec<Peer>,
}

pub(crate) fn run(plan: &SessionsPlan) -> anyhow::Result<Table> {
    let scene = Scene::make(super::VIDEO_KBPS)?;
    let mut table = Table::new(&[
        "server",
        "sessions",
        "names",
        "a second",
        "RSS at start KiB",
        "after the first",
        "after all",
        "%",
        "bar",
        "",
        "threads",
        "after all",
        "descriptors",
        "after all",
        "failed",
    ]);
    table.note(format!(
        "a session: RTMP publisher with {FRAMES} frames, viewer until its first video, both leave; {} at a time; compared \
         with what was held after the first {}",
        plan.workers, plan.warm
    ));
    for kind in kinds(Container::Rtmp, &plan.peers, plan.alone) {
        add(&mut table, plan, kind, &scene)?;
    }
    Ok(table)
}

fn add(table: &mut Table, plan: &SessionsPlan, kind: Kind, scene: &Scene) -> anyhow::Result<()> {
    let setup = Setup { stream: "grace_seconds = 2\n".to_owned(), ..Setup::new(&scene.file) };
    let server = Server::start(kind, &setup)?;
    let talk = Arc::new(Talk::new(server.address, server.door(Container::HttpFlv), kind, plan, &scene.clip));
    let fresh = holding(server.pid())?;
    let first = plan.warm.min(plan.sessions);
    let mut failed = talk.run(0..first, plan.workers)?;
    let warm = rest(&server)?;
    let started = Instant::now();
    failed += talk.run(first..plan.sessions, plan.workers)?;
    let elapsed = started.elapsed().as_secs_f64();
    let left = rest(&server)?;
    let grown = (left.rss_kib as f64 / warm.rss_kib as f64 - 1.0) * 100.0;
    let same = left.threads <= warm.threads && left.descriptors <= warm.descriptors;
    table.row(vec![
        Cell::text(kind.name()),
        Cell::Figure(plan.sessions as f64, 0),
        Cell::Figure(plan.names.min(plan.sessions) as f64, 0),
        Cell::Figure((plan.sessions - first) as f64 / elapsed, 0),
        Cell::Figure(fresh.rss_kib as f64, 0),
        Cell::Figure(warm.rss_kib as f64, 0),
        Cell::Figure(left.rss_kib as f64, 0),
        Cell::Figure(grown, 1),
        Cell::Figure(plan.percent, 0),
        Cell::at_most(if same { grown } else { f64::INFINITY }, plan.percent),
        Cell::Figure(warm.threads as f64, 0),
        Cell::Figure(left.threads as f64, 0),
        Cell::Figure(warm.descriptors as f64, 0),
        Cell::Figure(left.descriptors as f64, 0),
        Cell::Figure(failed as f64, 0),
    ]);
    Ok(())
}

/// What the server holds when it holds no more than before: all streams over, and no descriptor closed for a second.
fn rest(server: &Server) -> anyhow::Result<Holding> {
    let started = Instant::now();
    let mut before = holding(server.pid())?;
    let mut still = Instant::now();
    loop {
        std::thread::sleep(Duration::from_millis(500));
        let now = holding(server.pid())?;
        if now != before || server.metric("sluicegate_streams").is_some_and(|streams| streams > 0.0) {
            (before, still) = (now, Instant::now());
        }
        if still.elapsed() > Duration::from_secs(4) || started.elapsed() > REST_MAX {
            return Ok(now);
        }
    }
}

/// What is said in a session.
struct Talk {
    address: SocketAddr,
    door: SocketAddr,
    container: Container,
    names: usize,
    /// What a publisher sends once it is let in.
    media: Vec<u8>,
}

impl Talk {
    fn new(address: SocketAddr, door: SocketAddr, kind: Kind, plan: &SessionsPlan, clip: &Clip) -> Self {
        let head = clip.head.iter().map(|tag| tag_message(tag, 0));
        let media = head.chain(clip.frames.iter().take(FRAMES).map(|tag| tag_message(tag, tag.time_ms))).flatten();
        let container = if kind == Kind::Nginx { Container::Rtmp } else { Container::HttpFlv };
        Self { address, door, container, names: plan.names.max(1), media: media.collect() }
    }

    /// These sessions, so many at a time; how many failed.
    fn run(self: &Arc<Self>, numbers: std::ops::Range<usize>, workers: usize) -> anyhow::Result<usize> {
        let next = Arc::new(AtomicUsize::new(numbers.start));
        let work = |_| {
            let (talk, next, end) = (Arc::clone(self), Arc::clone(&next), numbers.end);
            std::thread::spawn(move || {
                let mut failed = 0;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return failed;
                    }
                    failed += usize::from(talk.session(number).is_err());
                }
            })
        };
        let threads: Vec<_> = (0..workers.max(1)).map(work).collect();
        let counts = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a session panicked")));
        Ok(counts.collect::<Result<Vec<_>, _>>()?.into_iter().sum())
    }

    fn session(&self, number: usize) -> anyhow::Result<()> {
        let name = format!("session-{}", number % self.names);
        // nginx-rtmp keeps nothing for those who come later: its viewer comes first.
        let early = if self.container == Container::Rtmp { Some(self.play(&name)?) } else { None };
        let mut publisher = publish(self.address, &name)?;
        publisher.write_all(&self.media)?;
        let mut viewer = early.map_or_else(|| self.play(&name), Ok)?;
        watch(&mut viewer)
    }

    fn play(&self, name: &str) -> anyhow::Result<TcpStream> {
        if self.container == Container::Rtmp {
            return super::fleet::open(self.address, "play", name);
        }
        let mut viewer = TcpStream::connect(self.door)?;
        viewer.set_read_timeout(Some(PATIENCE))?;
        write!(viewer, "GET /{APP}/{name}.flv HTTP/1.1\r\nHost: {}\r\n\r\n", self.door)?;
        Ok(viewer)
    }
}

/// Reads until the first video frame.
fn watch(viewer: &mut TcpStream) -> anyhow::Result<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = viewer.read(&mut buffer).context("no picture")?;
        ensure!(read > 0, "the server closed the connection");
        seen.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if seen.windows(MARK.len()).any(|window| window == MARK) {
            return Ok(());
        }
    }
}
