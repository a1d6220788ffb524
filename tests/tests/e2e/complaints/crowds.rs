//! Thousands at once, and nobody at all.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use protocols::media::{Kind, Track};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sluicegate_tests::{Door, Gateway, Options, PATIENCE, Viewing, wait_for};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{demo_clip, is_live, make_clip, push, size};

/// Within which all connect, and after which all play.
const CONNECTS_WITHIN: Duration = Duration::from_secs(1);
const PLAYS_WITHIN: Duration = Duration::from_secs(3);

/// Connects at its moment; answers when the first key frame is there, and goes on watching until told to stop.
async fn watch(media: u16, door: Door, at: Instant, mut stop: watch::Receiver<bool>) -> io::Result<Duration> {
    tokio::time::sleep_until(at.into()).await;
    let mut socket = TcpStream::connect(("127.0.0.1", media)).await?;
    let (mut viewing, mut unread, mut units) = (Viewing::new(door, "crowded"), BytesMut::new(), VecDeque::new());
    let joined = loop {
        socket.write_all(&viewing.take()).await?;
        if socket.read_buf(&mut unread).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        viewing.receive(&mut unread, &mut units);
        if units.drain(..).any(|unit| unit.track == Track::Video && unit.kind == Kind::Key) {
            break at.elapsed();
        }
    };
    drop((viewing, unread));
    let mut scratch = vec![0; 16 << 10];
    loop {
        tokio::select! {
            read = socket.read(&mut scratch) => if read? == 0 { return Err(io::ErrorKind::UnexpectedEof.into()) },
            _told = stop.changed() => return Ok(joined),
        }
    }
}

#[test]
fn a_storm_of_connections_plays_within_3_s() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("descriptors");
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let _camera = push(&demo_clip(), media, "crowded", &["-stream_loop", "-1"]);
    wait_for("the stream", PATIENCE, || is_live(&gateway, "crowded"));
    let count = size(1_000, 5_000);
    let (tell, stop) = watch::channel(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let watched = Arc::new(gateway);
    let told = Arc::clone(&watched);
    let joins = runtime.block_on(async move {
        let start = Instant::now() + Duration::from_millis(200);
        let viewers: Vec<_> = (0..count)
            .map(|n| {
                let at = start + CONNECTS_WITHIN * u32::try_from(n).unwrap() / u32::try_from(count).unwrap();
                let door = if n % 2 == 0 { Door::HttpFlv } else { Door::Rtmp };
                tokio::task::spawn(watch(media, door, at, stop.clone()))
            })
            .collect();
        // All of them at once, still there when the last has come.
        let all = tokio::task::spawn_blocking(move || {
            wait_for("all viewers", PATIENCE, || {
                (told.metric("sluicegate_stream_viewers{stream=\"live/crowded\"}") >= count as f64).then_some(())
            });
        });
        all.await.unwrap();
        tell.send(true).unwrap();
        let mut joins = Vec::new();
        for viewer in viewers {
            joins.push(viewer.await.unwrap().expect("nobody is turned away"));
        }
        joins
    });
    let gateway = Arc::into_inner(watched).unwrap();
    let latest = joins.iter().max().unwrap();
    assert!(*latest < PLAYS_WITHIN, "the last of {count} waited {latest:?} for its picture");
    let refused = gateway.get("/metrics");
    let refused: Vec<_> = refused.lines().filter(|l| l.starts_with("sluicegate_connections_refused_total")).collect();
    assert!(refused.is_empty(), "{refused:?}");
    gateway.stop();
}

/// Voluntary switches of all threads so far: each is a thread that woke up and went to sleep again.
fn wakeups(pid: i32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |status: String| {
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
        line.and_then(|number| number.trim().parse::<u64>().ok())
    };
    tasks.filter_map(|task| of(std::fs::read_to_string(task.ok()?.path().join("status")).ok()?)).sum()
}

/// User and system time so far.
fn cpu(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

#[test]
fn without_a_stream_nothing_wakes_and_nothing_works() {
    let gateway = Gateway::start(Options::default());
    let pid = gateway.child.pid();
    // What a start leaves to do is done when a second goes by in rest.
    let mut last = wakeups(pid);
    wait_for("rest after the start", PATIENCE, || {
        std::thread::sleep(Duration::from_secs(1));
        let now = wakeups(pid);
        (now - std::mem::replace(&mut last, now) <= 20).then_some(())
    });
    let (before, worked) = (wakeups(pid), cpu(pid));
    let span = Duration::from_secs(10);
    std::thread::sleep(span);
    let (woken, worked) = (wakeups(pid) - before, cpu(pid).saturating_sub(worked));
    eprintln!("idle: {woken} wakeups and {worked:?} of processor time in {span:?}");
    assert!(woken <= 100, "{woken} wakeups in {span:?}");
    assert!(worked <= span * 3 / 1_000, "{worked:?} of processor time in {span:?}");
    gateway.stop();
}

#[test]
fn a_camera_that_nobody_watches_wakes_its_thread_seldom() {
    let gateway = Gateway::start(Options::default());
    let pid = gateway.child.pid();
    let folder = tempfile::tempdir().unwrap();
    let clip = make_clip(folder.path(), "160x120", 100, 10);
    let _camera = push(&clip, gateway.options.media, "unwatched", &["-stream_loop", "-1"]);
    wait_for("the stream", PATIENCE, || is_live(&gateway, "unwatched"));
    // Its sound and pictures come in more than 50 pieces a second. What a new camera brings about is done when two seconds
    // have gone by in rest.
    let span = Duration::from_secs(2);
    let mut last = wakeups(pid);
    let woken = wait_for("rest after the start", PATIENCE, || {
        std::thread::sleep(span);
        let now = wakeups(pid);
        let woken = now - std::mem::replace(&mut last, now);
        (woken <= 44).then_some(woken)
    });
    // Its pictures come all the same.
    let frames = || gateway.metric("sluicegate_stream_frames_total{stream=\"live/unwatched\"}");
    let before = frames();
    wait_for("50 pictures more", PATIENCE, || (frames() >= before + 50.0).then_some(()));
    eprintln!("unwatched: {woken} wakeups in {span:?}");
    gateway.stop();
}
