//! Viewers that read slowly, or not at all for a while.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use protocols::media::{Kind, Track, Unit};
use serde_json::Value;
use sluicegate_tests::{
    Child, Clip, Door, Flv, Gateway, Options, PATIENCE, Publisher, Viewer, paced, root, run_ok, slow_line_back,
    wait_for,
};
use tempfile::TempDir;

use super::{decodes, is_live, make_clip, throughout};

/// Of the clip, kbit/s: enough to fill what the kernel holds for a viewer within a second.
const KBPS: u32 = 4_000;
/// A tenth of it.
const THROTTLED_BITS: u64 = KBPS as u64 * 100;
/// A frame of the clip, 1/90,000 s.
const FRAME: i64 = 3_600;

/// When each picture left the camera, by its time.
type Sent = Arc<Mutex<HashMap<i64, Instant>>>;

/// A camera that goes on until it is dropped, and knows when it sent what.
struct Running {
    sent: Sent,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(gateway: &Gateway, clip: &Path, name: &str) -> Self {
        let mut camera = Publisher::publish(gateway.options.media, name);
        let (sent, stop) = (Sent::default(), Arc::new(AtomicBool::new(false)));
        let (noted, told, clip) = (Arc::clone(&sent), Arc::clone(&stop), Clip::read(clip));
        let thread = spawn(move || {
            for unit in paced(clip.endless()).take_while(|_| !told.load(Ordering::Acquire)) {
                if unit.track == Track::Video {
                    noted.lock().unwrap().insert(unit.dts_90k, Instant::now());
                }
                camera.send(&unit).expect("to send");
            }
        });
        wait_for("the camera", PATIENCE, || is_live(gateway, name));
        Self { sent, stop, thread: Some(thread) }
    }

    /// How long the picture was on its way.
    fn age(sent: &Sent, unit: &Unit) -> Duration {
        sent.lock().unwrap().get(&unit.dts_90k).expect("a picture that was sent").elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the camera broke");
    }
}

/// A viewer that reads everything at once; ages of its pictures so far.
fn watch_closely(media: u16, name: &'static str, sent: &Sent) -> Arc<Mutex<Vec<Duration>>> {
    let (ages, sent) = (Arc::new(Mutex::new(Vec::new())), Arc::clone(sent));
    let kept = Arc::clone(&ages);
    let mut viewer = Viewer::open(media, Door::HttpFlv, name);
    spawn(move || {
        while let Some(picture) = viewer.next_of(Track::Video) {
            kept.lock().unwrap().push(Running::age(&sent, &picture));
        }
    });
    ages
}

/// The middle and the 99th of a hundred.
fn quantiles(ages: &Mutex<Vec<Duration>>) -> (Duration, Duration) {
    let mut ages = std::mem::take(&mut *ages.lock().unwrap());
    ages.sort_unstable();
    assert!(ages.len() > 50, "{} pictures", ages.len());
    (ages[ages.len() / 2], ages[ages.len() * 99 / 100])
}

/// Reads HTTP-FLV at this rate for so long; the bytes of the file.
fn read_slowly(media: u16, path: &str, bits_per_second: u64, time: Duration) -> Vec<u8> {
    let mut socket = TcpStream::connect(("127.0.0.1", slow_line_back(media, bits_per_second))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(socket, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let (mut answer, mut buffer, end) = (Vec::new(), [0; 16 << 10], Instant::now() + time);
    while Instant::now() < end {
        let read = socket.read(&mut buffer).expect("bytes");
        assert!(read > 0, "the viewer was closed");
        answer.extend_from_slice(&buffer[..read]);
    }
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    answer.split_off(body)
}

/// Without the tag in which the reading ended.
fn whole_tags(file: &[u8]) -> &[u8] {
    let mut end = 13;
    while let Some([_, a, b, c, ..]) = file.get(end..) {
        let next = end + 11 + u32::from_be_bytes([0, *a, *b, *c]) as usize + 4;
        if next > file.len() {
            break;
        }
        end = next;
    }
    &file[..end]
}

/// Pictures follow each other, or a key frame opens what is shown after a gap. The number of gaps.
fn gaps_end_at_key_frames(units: &[Unit]) -> usize {
    let pictures: Vec<_> = units.iter().filter(|u| u.track == Track::Video && u.kind != Kind::Config).collect();
    let mut gaps = 0;
    for pair in pictures.windows(2) {
        if pair[1].dts_90k - pair[0].dts_90k > FRAME * 3 / 2 {
            gaps += 1;
            assert_eq!(pair[1].kind, Kind::Key, "after a gap at {} ms", pair[0].dts_ms());
        }
    }
    gaps
}

fn viewers(gateway: &Gateway, name: &str) -> Vec<Value> {
    serde_json::from_str(&gateway.get(&format!("/api/v1/streams/live%2F{name}/viewers"))).unwrap()
}

#[test]
fn a_viewer_throttled_to_a_tenth_gets_whole_pictures_from_key_frames_on_and_costs_nobody_anything() {
    let folder = TempDir::new().unwrap();
    let clip = make_clip(folder.path(), "640x360", KBPS, 10);
    let gateway = Gateway::start(Options::default().with("[stream]\nlag_max_ms = 1000"));
    let media = gateway.options.media;
    let camera = Running::start(&gateway, &clip, "fast");
    let ages = watch_closely(media, "fast", &camera.sent);
    throughout(Duration::from_secs(4), || {});
    let (before, before_rss) = (quantiles(&ages), gateway.rss_kib());

    // Over RTMP a player that nobody here wrote, over HTTP-FLV the bare bytes.
    let recorded = folder.path().join("rtmp.flv");
    let url = format!("rtmp://127.0.0.1:{}/live/fast", slow_line_back(media, THROTTLED_BITS));
    let mut player = Command::new("ffmpeg");
    player.args(["-v", "error", "-nostdin", "-y", "-i", &url, "-c", "copy"]).arg(&recorded);
    let player = Child::start(player.stdin(Stdio::null()).stdout(Stdio::null()));
    let bytes = spawn(move || read_slowly(media, "/live/fast.flv", THROTTLED_BITS, Duration::from_secs(17)));
    let mut rss = before_rss;
    throughout(Duration::from_secs(15), || rss = rss.max(gateway.rss_kib()));
    let throttled = viewers(&gateway, "fast");
    let bytes = bytes.join().unwrap();

    assert!(gateway.metric("sluicegate_stream_skips_total{stream=\"live/fast\"}") >= 4.0, "{throttled:#?}");
    assert!(throttled.iter().filter(|viewer| viewer["skips"].as_u64() > Some(0)).count() >= 2, "{throttled:#?}");
    assert!(rss < before_rss + 4 * 1024, "{rss} KiB after {before_rss}");
    let (middle, late) = quantiles(&ages);
    // What the two take of a processor that others use too; a viewer that waited for them would be seconds behind.
    assert!(middle < before.0 + Duration::from_millis(20), "{middle:?} after {before:?}");
    assert!(late < before.1 + Duration::from_millis(250), "{late:?} after {before:?}");

    player.signal(rustix::process::Signal::INT);
    { player }.wait(PATIENCE);
    let http = folder.path().join("http.flv");
    std::fs::write(&http, whole_tags(&bytes)).unwrap();
    assert!(gaps_end_at_key_frames(&Flv::read(&http).units) >= 1, "nothing was skipped");
    // The player may still have been at what lies before its first skip: it looks at the stream for seconds first.
    gaps_end_at_key_frames(&Flv::read(&recorded).units);
    decodes(&http);
    decodes(&recorded);
    drop(camera);
    gateway.stop();
}

#[test]
fn a_viewer_that_stalls_for_5_s_is_live_again_within_a_group_of_pictures() {
    let folder = TempDir::new().unwrap();
    let clip = make_clip(folder.path(), "640x360", KBPS, 10);
    let gateway = Gateway::start(Options::default());
    let camera = Running::start(&gateway, &clip, "live");
    for door in [Door::HttpFlv, Door::Rtmp] {
        let mut viewer = Viewer::narrow(gateway.options.media, door, "live");
        while Running::age(&camera.sent, &viewer.next_of(Track::Video).unwrap()) > Duration::from_millis(500) {}
        // What is kept for it never exceeds the limit and the group of pictures it goes on with.
        let lag = || viewers(&gateway, "live").iter().filter_map(|v| v["lag_ms"].as_u64()).max().unwrap();
        let mut worst = 0;
        throughout(Duration::from_secs(5), || worst = worst.max(lag()));
        assert!((1_000..=4_200).contains(&worst), "{door:?}: at most {worst} ms behind while it stalled");
        let released = Instant::now();
        let mut age = Duration::MAX;
        while released.elapsed() < Duration::from_millis(1_200) || age > Duration::from_secs(3) {
            age = Running::age(&camera.sent, &viewer.next_of(Track::Video).unwrap());
            assert!(released.elapsed() < PATIENCE, "{door:?}: {age:?} behind after {:?}", released.elapsed());
        }
        assert!(released.elapsed() < Duration::from_millis(2_200), "{door:?}: live after {:?}", released.elapsed());
        assert!(lag() <= 3_000, "{door:?}: {} ms behind", lag());
        // And stays live: nothing of the stall is left.
        for _ in 0..25 {
            age = Running::age(&camera.sent, &viewer.next_of(Track::Video).unwrap());
        }
        assert!(age < Duration::from_secs(1), "{door:?}: {age:?} behind");
    }
    drop(camera);
    gateway.stop();
}

/// A reader of RTMP that shares nothing with ours holds each chunk of a stalled player's stream to the specification.
#[test]
fn an_rtmp_player_that_stalled_gets_whole_messages_that_go_on_at_a_key_frame() {
    let folder = TempDir::new().unwrap();
    let clip = make_clip(folder.path(), "640x360", KBPS, 10);
    let gateway = Gateway::start(Options::default().with("[stream]\nlag_max_ms = 1000"));
    let camera = Running::start(&gateway, &clip, "stalls");
    let script = root().join("tests/tests/e2e/complaints/rtmp_chunks.py").display().to_string();
    let (port, skips) = (gateway.options.media.to_string(), "sluicegate_stream_skips_total{stream=\"live/stalls\"}");
    let told = run_ok("python3", &[&script, &port, "live", "stalls", "4", "6"]);
    let seen: Value = serde_json::from_str(&told).unwrap();
    assert!(seen["gaps"].as_u64() >= Some(1) && gateway.metric(skips) >= 1.0, "nothing was skipped: {seen}");
    assert!(seen["video"].as_u64() > Some(100) && seen["keys"].as_u64() >= Some(4), "{seen}");
    assert!(seen["audio"].as_u64() > Some(150), "{seen}");
    drop(camera);
    gateway.stop();
}
