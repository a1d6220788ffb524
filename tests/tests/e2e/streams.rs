//! A camera in, players out: every access unit and every timestamp as pushed.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate_tests::{Child, Gateway, Options, PATIENCE, root, run, run_ok, shell, wait_for};
use tempfile::TempDir;

/// A 30 s clip made from a test pattern, so that the packets are the same at each push.
pub(crate) fn clip(folder: &Path, seconds: u32) -> String {
    let file = folder.join(format!("clip-{seconds}.flv")).display().to_string();
    if !Path::new(&file).exists() {
        shell(&format!(
            "ffmpeg -hide_banner -loglevel error -f lavfi -i testsrc2=s=320x180:r=25 -f lavfi -i sine=440:r=44100 -t {seconds} \
             -c:v libx264 -preset ultrafast -bf 2 -g 25 -pix_fmt yuv420p -c:a aac -b:a 64k -f flv {file}"
        ));
    }
    file
}

pub(crate) fn ffmpeg(arguments: &[&str]) -> Child {
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-y"]).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Child::start(&mut command)
}

/// Packets of a file as `dts pts duration size md5`, in order, per stream. With `-copyts` times are those of the file, else
/// they begin at the file's first.
pub(crate) fn packets(how: &[&str], file: &str) -> [Vec<String>; 2] {
    let copy = ["-i", file, "-map", "0", "-c", "copy", "-f", "framemd5", "-"];
    let text = run_ok("ffmpeg", &[&["-v", "error"], how, &copy].concat());
    let mut tracks = [Vec::new(), Vec::new()];
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let track: usize = fields[0].parse().unwrap();
        tracks[track].push(fields[1..].join(" "));
    }
    tracks
}

/// Everything of `part` stands in `whole`, in one piece, and it is most of it.
pub(crate) fn is_piece_of(part: &[String], whole: &[String], least: usize) {
    assert!(part.len() >= least, "only {} of {} packets", part.len(), whole.len());
    let at =
        whole.iter().position(|p| *p == part[0]).unwrap_or_else(|| panic!("{} is not in the pushed stream", part[0]));
    for (offset, packet) in part.iter().enumerate() {
        assert_eq!(Some(packet), whole.get(at + offset), "packet {offset} after {at}");
    }
}

pub(crate) fn wait_live(gateway: &Gateway, stream: &str) -> Value {
    gateway.wait_stream(stream, |_| true)
}

#[test]
fn what_is_pulled_equals_what_was_pushed() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let rtmp_out = folder.path().join("rtmp.flv").display().to_string();
    let http_out = folder.path().join("http.flv").display().to_string();
    let rtmp_url = format!("rtmp://127.0.0.1:{media}/live/gate-1");
    let http_url = format!("http://127.0.0.1:{media}/live/gate-1.flv");
    let mut push = ffmpeg(&["-re", "-i", &clip, "-c", "copy", "-f", "flv", &rtmp_url]);
    wait_live(&gateway, "live/gate-1");
    let mut rtmp = ffmpeg(&["-copyts", "-i", &rtmp_url, "-c", "copy", "-f", "flv", &rtmp_out]);
    let mut http = ffmpeg(&["-copyts", "-i", &http_url, "-c", "copy", "-f", "flv", &http_out]);
    assert!(push.wait(Duration::from_secs(60)).success());
    // The publisher's goodbye ends the viewers after the grace time.
    assert!(rtmp.wait(Duration::from_secs(40)).success());
    assert!(http.wait(Duration::from_secs(40)).success());
    let sent = packets(&["-copyts"], &clip);
    for out in [&rtmp_out, &http_out] {
        let got = packets(&["-copyts"], out);
        // Viewers joined within the first seconds: at the latest at the second key frame after the start.
        is_piece_of(&got[0], &sent[0], 25 * 25);
        is_piece_of(&got[1], &sent[1], 25 * 43);
    }
    gateway.stop();
}

#[test]
fn a_late_viewer_starts_at_once_from_the_last_key_frame() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let mut push =
        ffmpeg(&["-re", "-i", &clip, "-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{media}/live/late")]);
    wait_live(&gateway, "live/late");
    for url in [format!("rtmp://127.0.0.1:{media}/live/late"), format!("http://127.0.0.1:{media}/live/late.flv")] {
        let started = Instant::now();
        let probe = ["-v", "error", "-select_streams", "v", "-show_entries", "packet=flags", "-read_intervals", "%+#1"];
        let first = run_ok("ffprobe", &[&probe[..], &["-of", "csv=p=0", &url]].concat());
        assert!(first.starts_with('K'), "{url}: the first frame is {first}");
        assert!(started.elapsed() < Duration::from_secs(8), "{url} took {:?}", started.elapsed());
    }
    assert!(push.is_running());
    gateway.stop();
}

#[test]
fn stream_threads_are_named_and_pinned() {
    let gateway = Gateway::start(Options::default().with("[stream]\nthreads = 2"));
    // A thread names and pins itself as its first act, which may be after the gateway said that it is ready.
    let pinned = wait_for("two pinned threads", PATIENCE, || {
        let pinned = pinned_threads(gateway.child.pid());
        (pinned.len() == 2).then_some(pinned)
    });
    assert_ne!(pinned[0].1, pinned[1].1, "both on one processor: {pinned:?}");
    gateway.stop();
}

/// Name and processor of each thread `sg-stream-N` that is bound to one processor.
fn pinned_threads(pid: i32) -> Vec<(String, usize)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let threads = tasks.filter_map(|task| {
        let path = task.ok()?.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let cpus = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
        name.starts_with("sg-stream-").then_some((name.trim().to_owned(), cpus.parse().ok()?))
    });
    threads.collect()
}

#[test]
fn the_camera_is_a_thing() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), 30);
    let broker = sluicegate_tests::Mosquitto::start();
    let mut receiver = sluicegate_tests::Receiver::start(broker.port, &[]);
    let gateway = Gateway::start(Options::default().upstream(broker.port, "native"));
    let media = gateway.options.media;
    let url = format!("rtmp://127.0.0.1:{media}/live/cam");
    let push = ffmpeg(&["-re", "-i", &clip, "-c", "copy", "-f", "flv", &url]);
    let is =
        |key: &'static str, value: Value| move |m: &Value| m["thing"] == "live/cam" && m["properties"][key] == value;
    receiver.until("its codec", PATIENCE, is("codec", "H264".into()));
    receiver.until("its width", PATIENCE, is("width", 320.into()));
    receiver.until("its height", PATIENCE, is("height", 180.into()));
    receiver.until("its rate", PATIENCE, |m| {
        m["thing"] == "live/cam" && m["properties"]["fps"].as_f64().is_some_and(|f| (24.0..26.0).contains(&f))
    });
    let event = |name: &'static str| move |m: &Value| m["thing"] == "live/cam" && m["event"]["name"] == name;
    receiver.until("the online event", PATIENCE, event("online"));
    drop(push);
    receiver.until("the offline event", PATIENCE, event("offline"));
    gateway.stop();
    assert!(receiver.finish().0.success());
}

#[test]
fn a_stream_that_is_not_there_is_said_so() {
    let gateway = Gateway::start(Options::default().with("[stream]\nwait_max_seconds = 1"));
    let url = format!("http://127.0.0.1:{}/live/none.flv", gateway.options.media);
    let output = run("ffprobe", &["-v", "error", &url]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("404"), "{output:?}");
    gateway.stop();
}

/// The clips that ship with the demo stay small.
#[test]
fn demo_clips_are_small() {
    let folder = root().join("gateway/src/demo/clips");
    let clips: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap()).collect();
    let flv: Vec<_> = clips.iter().filter(|e| e.path().extension().is_some_and(|x| x == "flv")).collect();
    assert_eq!(flv.len(), 2);
    assert!(flv.iter().all(|e| e.metadata().unwrap().len() <= 400 * 1024));
}
