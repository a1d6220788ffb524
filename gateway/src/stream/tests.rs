//! The core as a whole, over loopback sockets: publishers that speak FLV tags, viewers that say nothing.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use bytes::Bytes;
use device_models::{Value, Word};
use protocols::media::flv::{Demux, take_tag};
use protocols::media::{Codec, Kind, Track, Unit, mux};
use protocols::{Fault, Input};

use super::*;

/// Publishes what it receives as FLV tags.
struct FlvSource(Demux);

impl Session for FlvSource {
    fn receive(&mut self, _: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        if let Input::Stream(buffer) = input {
            while let Some(tag) = take_tag(buffer).map_err(|_| Fault::fatal("not FLV"))? {
                let unit = self.0.unit(tag.tag, tag.dts_ms, tag.body).map_err(|_| Fault::fatal("not FLV"))?;
                if let Some(unit) = unit {
                    out.push(Output::Unit(unit));
                }
            }
        }
        Ok(())
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// Answers each byte with a script tag: something that has to find its way between the tags of the stream.
struct Echo;

impl Session for Echo {
    fn receive(&mut self, _: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        if let Input::Stream(buffer) = input {
            for _ in buffer.split() {
                out.send(tag(&unit(Track::Data, Kind::Delta, 0, &[2, 0, 1, b'!'])));
            }
        }
        Ok(())
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

fn tag(unit: &Unit) -> Bytes {
    let mut out = BytesMut::new();
    mux(Container::Flv).unit(unit, &mut out);
    out.freeze()
}

fn unit(track: Track, kind: Kind, dts_ms: i64, data: &[u8]) -> Unit {
    let codec = match track {
        Track::Video => Codec::H264,
        Track::Audio => Codec::Aac,
        Track::Data => Codec::Script,
    };
    let dts_90k = dts_ms * 90;
    Unit { track, codec, dts_90k, pts_90k: dts_90k, kind, data: Bytes::copy_from_slice(data) }
}

/// 64x48, of ffmpeg 5.1.
const CLIP: &[u8] = include_bytes!("../../../protocols/src/media/testdata/ffmpeg_h264_aac.flv");

fn avcc() -> Vec<u8> {
    let (mut file, mut demux) = (BytesMut::from(CLIP), Demux::default());
    let units = std::iter::from_fn(|| take_tag(&mut file).unwrap())
        .filter_map(|tag| demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap());
    let config = units.into_iter().find(|unit| unit.track == Track::Video && unit.kind == Kind::Config);
    config.unwrap().data.to_vec()
}

const ASC: [u8; 2] = [0x12, 0x10];

fn frame(kind: Kind, dts_ms: i64, len: usize) -> Unit {
    let mut nal = Vec::from((len as u32).to_be_bytes());
    nal.push(if kind == Kind::Key { 0x65 } else { 0x41 });
    nal.resize(4 + len, dts_ms as u8);
    unit(Track::Video, kind, dts_ms, &nal)
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (ours, theirs)
}

struct Rig {
    core: StreamCore,
    reports: mpsc::Receiver<Report>,
    tasks: Tasks,
}

impl Rig {
    fn new(change: impl FnOnce(&mut config::Stream)) -> Self {
        let mut config = config::Stream { threads: 2, wait_max_seconds: 1, ..config::Stream::default() };
        change(&mut config);
        let tasks = Tasks::new();
        let (send, reports) = mpsc::channel(256);
        let core = StreamCore::start(&config, send, &tasks).unwrap();
        Self { core, reports, tasks }
    }

    fn name() -> StreamName {
        StreamName::parse("live/gate").unwrap()
    }

    fn hand(&self, socket: TcpStream, session: Box<dyn Session>, first: Output) {
        let mut outbox = Outbox::default();
        outbox.push(first);
        let address = socket.peer_addr().ok();
        let peer = Peer { address, adapter: Arc::from("test"), seed: [0; 32], secure: false };
        let limits = Limits { frame_max: 1 << 20, silence_max: None, admission_max: Duration::from_secs(5) };
        let socket = Parked::Plain(socket);
        self.core.adopt(Handover { socket, session, outbox, unread: BytesMut::new(), limits, peer, stay: None });
    }

    async fn publish(&self) -> Push {
        let (ours, theirs) = pair();
        let before = self.publishers();
        self.hand(theirs, Box::new(FlvSource(Demux::default())), Output::Source { stream: Self::name() });
        self.until(|info| info.counters.publishers > before).await;
        Push(ours)
    }

    fn publishers(&self) -> u64 {
        self.core.list().first().map_or(0, |info| info.counters.publishers)
    }

    fn watch(&self, container: Container) -> Watcher {
        let (ours, theirs) = pair();
        self.hand(theirs, Box::new(Echo), Output::Watch { stream: Self::name(), container });
        Watcher { socket: ours, unread: BytesMut::new(), demux: Demux::default() }
    }

    /// Waits until the stream is as wanted: what the core tells about itself changes within a second.
    async fn until(&self, wanted: impl Fn(&StreamInfo) -> bool) {
        let patience = Instant::now() + Duration::from_secs(10);
        while !self.core.list().first().is_some_and(&wanted) {
            assert!(Instant::now() < patience, "{:#?}", self.core.list());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn close(self) {
        self.core.close().await;
        self.tasks.join(Duration::from_secs(2)).await;
    }
}

struct Push(TcpStream);

impl Push {
    fn send(&mut self, units: &[Unit]) {
        for unit in units {
            self.0.write_all(&tag(unit)).unwrap();
        }
    }

    fn begin(&mut self) {
        self.send(&[unit(Track::Video, Kind::Config, 0, &avcc()), unit(Track::Audio, Kind::Config, 0, &ASC)]);
    }

    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 64]), Ok(0) | Err(_))
    }
}

struct Watcher {
    socket: TcpStream,
    unread: BytesMut,
    demux: Demux,
}

impl Watcher {
    /// The next unit; `None` at the end of the stream.
    fn next(&mut self) -> Option<Unit> {
        loop {
            if let Some(tag) = take_tag(&mut self.unread).unwrap() {
                if let Some(unit) = self.demux.unit(tag.tag, tag.dts_ms, tag.body).unwrap() {
                    return Some(unit);
                }
                continue;
            }
            let mut buffer = [0; 16384];
            match self.socket.read(&mut buffer).unwrap() {
                0 => return None,
                read => self.unread.extend_from_slice(&buffer[..read]),
            }
        }
    }

    fn next_frame(&mut self) -> Option<Unit> {
        loop {
            let unit = self.next()?;
            if unit.kind != Kind::Config && unit.track != Track::Data {
                return Some(unit);
            }
        }
    }

    fn frames(&mut self, count: usize) -> Vec<Unit> {
        (0..count).map(|_| self.next_frame().unwrap()).collect()
    }
}

#[tokio::test]
async fn threads_have_their_names_and_their_cpus() {
    let cpus = threads::cpus();
    let rig = Rig::new(|config| config.threads = cpus.len());
    assert!(rig.core.responsive(Duration::from_secs(5)).await);
    let mut seen = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
        seen.push((name.trim().to_owned(), allowed.trim().to_owned()));
    }
    for index in 0..cpus.len() {
        let wanted = (format!("sg-stream-{index}"), cpus[cpus.len() - 1 - index].to_string());
        assert!(seen.contains(&wanted), "{wanted:?} is not among {seen:?}");
    }
    rig.close().await;
}

#[tokio::test]
async fn a_late_viewer_gets_everything_since_the_last_key_frame() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 100)]);
    let second: Vec<_> = std::iter::once(frame(Kind::Key, 80, 200_000))
        .chain((3..20).map(|n| frame(Kind::Delta, n * 40, 3000)))
        .collect();
    push.send(&second);
    rig.until(|info| info.counters.video_frames == 20).await;
    for container in [Container::Flv, Container::Flv] {
        let mut watcher = rig.watch(container);
        let head: Vec<_> = (0..3).map(|_| watcher.next().unwrap()).map(|unit| (unit.track, unit.kind)).collect();
        assert_eq!(head, [(Track::Data, Kind::Config), (Track::Video, Kind::Config), (Track::Audio, Kind::Config)]);
        assert_eq!(watcher.frames(18), second);
    }
    let mut live = rig.watch(Container::Flv);
    live.frames(18);
    push.send(&[frame(Kind::Delta, 800, 50)]);
    assert_eq!(live.next().unwrap(), frame(Kind::Delta, 800, 50));
    rig.close().await;
}

#[tokio::test]
async fn a_new_publisher_takes_over_and_viewers_see_time_go_on() {
    let rig = Rig::new(|_| {});
    let mut first = rig.publish().await;
    first.begin();
    first.send(&[frame(Kind::Key, 10_000, 500), frame(Kind::Delta, 10_040, 500)]);
    rig.until(|info| info.counters.video_frames == 2).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.frames(2);
    let mut second = rig.publish().await;
    assert!(first.is_closed(), "the old publisher is let go");
    second.begin();
    second.send(&[frame(Kind::Delta, 0, 10), frame(Kind::Key, 40, 700), frame(Kind::Delta, 80, 70)]);
    let seen: Vec<_> =
        (0..2).map(|_| watcher.next().unwrap()).map(|u| (u.kind, u.dts_90k / 90, u.data.len())).collect();
    assert_eq!(seen, [(Kind::Key, 10_080, 704), (Kind::Delta, 10_120, 74)], "no configuration again, no keyless frame");
    // Another configuration is passed on.
    let mut third = rig.publish().await;
    let mut other = avcc();
    other[3] ^= 1;
    third.send(&[unit(Track::Video, Kind::Config, 0, &other), frame(Kind::Key, 0, 9)]);
    assert_eq!(watcher.next().unwrap().kind, Kind::Config);
    assert_eq!(watcher.next().unwrap().dts_90k / 90, 10_160);
    let info = rig.core.list().remove(0);
    assert_eq!((info.counters.takeovers, info.viewers), (2, 1));
    rig.close().await;
}

#[tokio::test]
async fn a_live_stream_is_not_taken_over_where_that_is_off() {
    let rig = Rig::new(|config| config.takeover = false);
    let _first = rig.publish().await;
    assert!(rig.core.publishable(&Rig::name()).is_err());
    let (ours, theirs) = pair();
    rig.hand(theirs, Box::new(FlvSource(Demux::default())), Output::Source { stream: Rig::name() });
    assert!(Push(ours).is_closed());
    assert_eq!(rig.core.refused().publishers, 1);
    assert!(rig.core.list()[0].live);
    rig.close().await;
}

#[tokio::test]
async fn viewers_are_kept_for_the_grace_time_and_then_let_go() {
    let rig = Rig::new(|config| config.grace_seconds = 2);
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 500)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.frames(1);
    drop(push);
    rig.until(|info| !info.live && info.viewers == 1).await;
    assert!(rig.core.available(&Rig::name()).await.is_ok());
    assert!(watcher.next().is_none(), "closed after the grace time");
    let gone = Instant::now() + Duration::from_secs(5);
    while !rig.core.list().is_empty() {
        assert!(Instant::now() < gone);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(rig.core.available(&Rig::name()).await, Err(Refusal::NotFound(_))));
    rig.close().await;
}

#[tokio::test]
async fn without_a_grace_time_a_stream_ends_with_its_publisher_and_its_viewers_have_all_of_it() {
    let rig = Rig::new(|config| {
        (config.grace_seconds, config.window_min_ms, config.window_max_ms) = (0, 5_000, 5_000);
    });
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 500)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.frames(1);
    let mut changes = rig.core.changes();
    push.send(&[frame(Kind::Delta, 40, 500), frame(Kind::Delta, 80, 500)]);
    drop(push);
    loop {
        tokio::time::timeout(Duration::from_secs(5), changes.changed()).await.unwrap().unwrap();
        match rig.core.list().first() {
            None => break,
            Some(info) => assert!(info.live, "nobody may land on a stream that has ended"),
        }
    }
    assert!(matches!(rig.core.available(&Rig::name()).await, Err(Refusal::NotFound(_))));
    assert_eq!(watcher.frames(2).len(), 2, "what waited for its merge window");
    assert!(watcher.next().is_none());
    rig.close().await;
}

#[tokio::test]
async fn a_silent_publisher_is_let_go() {
    let rig = Rig::new(|config| config.silence_max_seconds = 1);
    let mut push = rig.publish().await;
    assert!(push.is_closed());
    rig.until(|info| !info.live).await;
    rig.close().await;
}

#[tokio::test]
async fn a_viewer_that_waits_is_let_in_when_the_stream_appears() {
    let rig = Rig::new(|config| config.wait_max_seconds = 10);
    let (appeared, push) = tokio::join!(async { rig.core.available(&Rig::name()).await }, async {
        tokio::task::yield_now().await;
        rig.publish().await
    });
    assert!(appeared.is_ok());
    drop(push);
    rig.close().await;
}

#[tokio::test]
async fn what_a_session_says_comes_between_the_tags() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 300_000)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    let mut watcher = rig.watch(Container::Flv);
    watcher.socket.write_all(b"ping").unwrap();
    let mut answers = 0;
    let mut frames = 0;
    for n in 1.. {
        push.send(&[frame(Kind::Delta, n * 40, 20_000)]);
        while answers < 4 || frames < 10 {
            let unit = watcher.next().unwrap();
            answers += i32::from(unit.track == Track::Data && unit.kind == Kind::Delta);
            frames += i32::from(unit.track == Track::Video && unit.kind != Kind::Config);
            if frames > n as i32 {
                break;
            }
        }
        if answers == 4 && frames >= 10 {
            break;
        }
        assert!(n < 1000);
    }
    rig.close().await;
}

#[tokio::test]
async fn a_stalled_viewer_is_closed_and_costs_nobody_else_anything() {
    let rig = Rig::new(|config| {
        (config.stall_max_seconds, config.lag_max_ms, config.gop_kib) = (2, 500, 1024);
    });
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    let stalled = rig.watch(Container::Flv);
    let mut healthy = rig.watch(Container::Flv);
    healthy.frames(1);
    let end = Instant::now() + Duration::from_secs(20);
    let mut sent = 0;
    // 8 MB/s for the few seconds until the core has lost patience with the one that reads nothing.
    while rig.core.list()[0].counters.viewers_stalled == 0 {
        assert!(Instant::now() < end, "{:#?}", rig.core.list());
        sent += 1;
        let kind = if sent % 25 == 0 { Kind::Key } else { Kind::Delta };
        push.send(&[frame(kind, sent * 40, 80_000)]);
        assert_eq!(healthy.next().unwrap().dts_90k, sent * 40 * 90);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let info = rig.core.list().remove(0);
    assert!(info.counters.skips >= 1, "it was moved ahead first: {info:#?}");
    assert!(info.kept_bytes < 4 * 1024 * 1024, "{} bytes kept", info.kept_bytes);
    assert_eq!(info.viewers, 1);
    drop(stalled);
    rig.close().await;
}

#[tokio::test]
async fn a_slow_viewer_goes_on_at_a_key_frame() {
    let rig = Rig::new(|config| {
        (config.lag_max_ms, config.gop_kib) = (400, 1024);
    });
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    let mut slow = rig.watch(Container::Flv);
    slow.frames(1);
    let mut sent = 0;
    while rig.core.list()[0].counters.skips == 0 {
        sent += 1;
        let kind = if sent % 10 == 0 { Kind::Key } else { Kind::Delta };
        push.send(&[frame(kind, sent * 40, 80_000)]);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(sent < 4000);
    }
    let (mut last, mut gaps) = (0, 0);
    while last < sent {
        let unit = slow.next_frame().unwrap();
        let number = unit.dts_90k / 3600;
        assert_eq!(unit, frame(unit.kind, number * 40, 80_000), "whole frames");
        if number != last + 1 {
            gaps += 1;
            assert_eq!(unit.kind, Kind::Key, "after a gap the first frame is a key frame");
        }
        last = number;
    }
    assert!(gaps >= 1);
    rig.close().await;
}

#[tokio::test]
async fn viewers_are_listed_with_what_they_got_and_closed_by_number() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 500)]);
    rig.until(|info| info.counters.video_frames == 2).await;
    let mut first = rig.watch(Container::Flv);
    let mut second = rig.watch(Container::Rtmp);
    assert_eq!(first.frames(2).len(), 2);
    let listed = rig.core.viewers(&Rig::name()).await;
    assert_eq!(listed.iter().map(|viewer| viewer.container).collect::<Vec<_>>(), ["http-flv", "rtmp"]);
    assert_eq!(listed[0].peer, first.socket.local_addr().ok());
    assert_eq!((listed[0].tags, listed[0].skips, listed[0].lag_ms), (2, 0, 0));
    assert!(listed[0].bytes > 1500 && listed[0].written_us >= listed[0].since_us && listed[0].id < listed[1].id);
    assert!(listed[0].thread.starts_with("sg-stream-"));
    assert!(!rig.core.close_viewer(&Rig::name(), u64::MAX).await);
    assert!(rig.core.close_viewer(&Rig::name(), listed[1].id).await);
    second.socket.read_to_end(&mut Vec::new()).unwrap();
    push.send(&[frame(Kind::Delta, 80, 700)]);
    assert_eq!(first.frames(1), [frame(Kind::Delta, 80, 700)]);
    let left = rig.core.viewers(&Rig::name()).await;
    assert_eq!(left.iter().map(|viewer| (viewer.id, viewer.tags)).collect::<Vec<_>>(), [(listed[0].id, 3)]);
    rig.until(|info| info.counters.viewers_dismissed == 1).await;
    rig.close().await;
}

#[tokio::test]
async fn a_hot_stream_spills_to_another_thread_and_its_viewers_see_no_difference() {
    let rig = Rig::new(|config| config.spill_percent = 0);
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 500)]);
    rig.until(|info| info.counters.video_frames == 2).await;
    let (mut flv, mut rtmp) = (rig.watch(Container::Flv), rig.watch(Container::Rtmp));
    assert_eq!(flv.frames(2), [frame(Kind::Key, 0, 1000), frame(Kind::Delta, 40, 500)], "all since the key frame");
    let listed = rig.core.viewers(&Rig::name()).await;
    let home = rig.core.list()[0].thread.clone();
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|viewer| viewer.thread != home), "{listed:#?}, home is {home}");
    rig.until(|info| info.viewers == 2 && info.viewers_elsewhere == 2 && info.counters.bytes_out > 3000).await;

    // Another publisher: the viewers over there stay, and time goes on.
    let mut next = rig.publish().await;
    next.begin();
    next.send(&[frame(Kind::Key, 0, 2000), frame(Kind::Delta, 40, 700)]);
    let after = flv.frames(2);
    assert_eq!(after.iter().map(|unit| unit.data.len()).collect::<Vec<_>>(), [2004, 704]);
    assert!(after[0].dts_90k > 40 * 90 && after[1].dts_90k == after[0].dts_90k + 3600);

    assert!(rig.core.close_viewer(&Rig::name(), listed[1].id).await, "found on its thread");
    rtmp.socket.read_to_end(&mut Vec::new()).unwrap();
    rig.until(|info| info.viewers == 1 && info.counters.viewers_dismissed == 1).await;
    assert!(rig.core.end(&Rig::name()).await);
    assert_eq!(flv.next_frame(), None, "the end of the stream is the end there too");
    assert!(next.is_closed());
    assert!(rig.core.list().is_empty(), "the publisher's own end does not bring it back");
    assert!(rig.core.viewers(&Rig::name()).await.is_empty());
    rig.close().await;
}

#[tokio::test]
async fn limits_turn_away_what_is_too_much() {
    let rig = Rig::new(|config| (config.viewers_max, config.sources_max) = (1, 1));
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 100)]);
    let mut first = rig.watch(Container::Flv);
    first.frames(1);
    assert!(matches!(rig.core.available(&Rig::name()).await, Err(Refusal::Limit(_))));
    assert!(rig.watch(Container::Flv).next().is_none());
    let other = StreamName::parse("live/other").unwrap();
    assert!(matches!(rig.core.publishable(&other), Err(Refusal::Limit(_))));
    let (ours, theirs) = pair();
    rig.hand(theirs, Box::new(FlvSource(Demux::default())), Output::Source { stream: other });
    assert!(Push(ours).is_closed());
    let refused = rig.core.refused();
    assert_eq!((refused.viewers, refused.publishers), (2, 1));
    // The place is free again when the viewer has left.
    drop(first);
    let patience = Instant::now() + Duration::from_secs(5);
    while rig.core.available(&Rig::name()).await.is_err() {
        assert!(Instant::now() < patience);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.close().await;
}

#[tokio::test]
async fn a_publisher_that_breaks_its_protocol_is_closed_and_its_stream_said_to_be_offline() {
    let mut rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.0.write_all(b"FLV\x01\x05\xff\xff\xff\xff noise noise noise").unwrap();
    assert!(push.is_closed());
    rig.until(|info| !info.live).await;
    let mut words = Vec::new();
    while let Ok(report) = rig.reports.try_recv() {
        assert_eq!((report.device.as_str(), report.product.as_deref()), ("live/gate", Some("ip-camera")));
        words.push(report.word);
    }
    assert!(words.contains(&Word::Event { name: "online".to_owned(), data: Value::Null }), "{words:?}");
    let offline = words.iter().any(|word| matches!(word, Word::Event { name, .. } if name == "offline"));
    assert!(offline, "{words:?}");
    rig.close().await;
}

/// Stumbles, recoverably, over every script tag.
struct Stumbling(FlvSource);

impl Session for Stumbling {
    fn receive(&mut self, now: Instant, input: Input<'_>, out: &mut Outbox) -> Result<(), Fault> {
        let Input::Stream(buffer) = input else { return Ok(()) };
        while let Some(tag) = take_tag(buffer).map_err(|_| Fault::fatal("not FLV"))? {
            let unit = self.0.0.unit(tag.tag, tag.dts_ms, tag.body).map_err(|_| Fault::fatal("not FLV"))?;
            let Some(unit) = unit else { continue };
            if unit.track == Track::Data {
                return Err(Fault::recoverable("a script tag"));
            }
            out.push(Output::Unit(unit));
        }
        self.0.receive(now, Input::Ended { reason: "" }, out)
    }

    fn tick(&mut self, _: Instant, _: &mut Outbox) {}

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

#[tokio::test]
async fn what_follows_a_recoverable_fault_in_the_same_bytes_is_read_at_once() {
    let rig = Rig::new(|_| {});
    let (ours, theirs) = pair();
    let session = Stumbling(FlvSource(Demux::default()));
    rig.hand(theirs, Box::new(session), Output::Source { stream: Rig::name() });
    let script = unit(Track::Data, Kind::Delta, 0, &[2, 0, 1, b'!']);
    let mut bytes = BytesMut::new();
    for unit in [unit(Track::Video, Kind::Config, 0, &avcc()), script.clone(), script, frame(Kind::Key, 0, 100)] {
        bytes.extend_from_slice(&tag(&unit));
    }
    Push(ours).0.write_all(&bytes).unwrap();
    rig.until(|info| info.counters.video_frames == 1).await;
    rig.close().await;
}

fn hevc(kind: Kind, dts_ms: i64) -> Unit {
    let mut record = [0; 23];
    (record[0], record[21]) = (1, 0xff);
    let data: &[u8] = if kind == Kind::Config { &record } else { &[0, 0, 0, 2, 0x26, 1] };
    Unit { codec: Codec::H265, ..unit(Track::Video, kind, dts_ms, data) }
}

#[tokio::test]
async fn each_viewer_gets_h265_in_its_own_dialect() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.send(&[hevc(Kind::Config, 0), hevc(Kind::Key, 0)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    for (container, first) in [(Container::Flv, 0x91), (Container::FlvLegacy, 0x1c)] {
        let mut watcher = rig.watch(container);
        let body = loop {
            let mut buffer = [0; 4096];
            let read = watcher.socket.read(&mut buffer).unwrap();
            watcher.unread.extend_from_slice(&buffer[..read]);
            let bodies: Vec<Bytes> =
                std::iter::from_fn(|| take_tag(&mut watcher.unread).unwrap()).map(|t| t.body).collect();
            if bodies.len() == 3 {
                break bodies[2].clone();
            }
            assert!(bodies.is_empty(), "the head came in pieces");
        };
        assert_eq!(body[0], first, "{container:?}");
    }
    rig.close().await;
}

#[tokio::test]
async fn viewers_of_both_dialects_share_what_has_no_h265_until_there_is_some() {
    let rig = Rig::new(|_| {});
    let mut push = rig.publish().await;
    push.begin();
    push.send(&[frame(Kind::Key, 0, 100)]);
    rig.until(|info| info.counters.video_frames == 1).await;
    let mut plain = rig.watch(Container::Flv);
    plain.frames(1);
    rig.until(|info| info.viewers == 1).await;
    let alone = rig.core.list()[0].kept_bytes;
    let mut legacy = rig.watch(Container::FlvLegacy);
    legacy.frames(1);
    rig.until(|info| info.viewers == 2).await;
    assert_eq!(rig.core.list()[0].kept_bytes, alone, "a log of its own");
    push.send(&[hevc(Kind::Config, 40), hevc(Kind::Key, 40)]);
    assert_eq!(plain.next_frame().map(|unit| unit.codec), Some(Codec::H265));
    while legacy.next().is_some() {}
    rig.until(|info| info.viewers == 1).await;
    rig.close().await;
}
