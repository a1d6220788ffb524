//! WebRTC with peers that nobody here wrote: Chromium's own, and aiortc. The rules of its HTTP are in `http.rs`.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate_tests::camera::{self};
use sluicegate_tests::{
    Browser, Child, Gateway, Options, PATIENCE, aiortc, free_port, newer_ffmpeg, run_ok, shell, wait_for,
};
use tempfile::TempDir;

mod http;

pub(crate) use http::{OFFER, ask};

const SCRIPT: &str = include_str!("page.js");

fn options(more: &str) -> Options {
    let port = free_port();
    Options::default().with(&format!(
        "[stream]\ngrace_seconds = 2\nunplayable_audio = \"pass\"\n[webrtc]\nlisten = \"udp://127.0.0.1:{port}\"\nallow_anonymous = true\n{more}"
    ))
}

/// A clip as cameras make them: no B-frames, a key frame each second, a frame number in the picture.
fn clip(folder: &Path, name: &str, video: &str, audio: &str) -> String {
    let file = folder.join(name).display().to_string();
    shell(&format!(
        "ffmpeg -hide_banner -loglevel error -f lavfi -i testsrc2=s=640x360:r=25 -f lavfi -i sine=440:r=44100 -t 20 \
         {video} -g 25 -pix_fmt yuv420p {audio} -f flv {file}"
    ));
    file
}

const H264: &str = "-c:v libx264 -preset ultrafast -tune zerolatency -b:v 1M";
const AAC: &str = "-c:a aac -b:a 64k";

fn push(clip: &str, media: u16, name: &str) -> Child {
    camera::push("ffmpeg", Path::new(clip), &format!("rtmp://127.0.0.1:{media}/live/{name}"), &["-stream_loop", "-1"])
}

fn stream(gateway: &Gateway, name: &str) -> Option<Value> {
    gateway.streams().into_iter().find(|stream| stream["name"] == name)
}

/// A gateway with a stream `live/gate-1`, and its publisher.
fn with_stream(options: Options, folder: &Path, query: &str) -> (Gateway, Child) {
    let clip = clip(folder, "a.flv", H264, AAC);
    let gateway = Gateway::start(options);
    let publisher = push(&clip, gateway.options.media, &format!("gate-1{query}"));
    wait_live(&gateway, "live/gate-1");
    (gateway, publisher)
}

fn wait_live(gateway: &Gateway, name: &str) -> Value {
    gateway.wait_stream(name, |s| s["live"] == true)
}

/// A browser on the gateway's own page, with the script in it.
fn browser(gateway: &Gateway, more: &[&str]) -> Browser {
    let browser = Browser::start_with(more);
    browser.open(&format!("http://127.0.0.1:{}/healthz", gateway.options.admin));
    browser.run(SCRIPT);
    browser
}

/// Begins a peer in the page.
fn begin(browser: &Browser, kind: &str, name: &str, url: &str, more: &str) {
    browser.run(&format!(
        "{kind}('{name}', '{url}'{more}).catch((e) => {{ window.peers['{name}'] = null; window.failed = String(e); }})"
    ));
}

/// What the page knows of a peer, once the condition holds.
fn until(browser: &Browser, name: &str, condition: &str) -> Value {
    let what = format!("{name}: {condition}");
    let ask = |seen: Value| {
        browser.run(&format!(
            "look('{name}').then((seen) => {{ window.seen = seen; }}, (e) => {{ window.failed = String(e); }})"
        ));
        seen
    };
    let mut last = Value::Null;
    let began = Instant::now();
    loop {
        last = ask(last);
        let seen = browser.run("return window.seen ?? null");
        if browser.run(&format!("const seen = window.seen; return Boolean(seen && ({condition}))")) == Value::Bool(true)
        {
            return seen;
        }
        let failed = || browser.run("return window.failed ?? null");
        assert!(began.elapsed() < PATIENCE, "waited for {what}: {seen:#} {}", failed());
        // A browser counts frames and packets only when it is asked (getStats); it has no event for them.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn no_complaints(browser: &Browser) {
    let errors: Vec<String> = browser.console().into_iter().filter(|line| line.starts_with("SEVERE")).collect();
    assert!(errors.iter().all(|line| line.contains("favicon")), "{errors:?}");
}

#[test]
fn chromium_plays_by_whep() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "a.flv", H264, AAC);
    let gateway = Gateway::start(options(""));
    let (media, admin) = (gateway.options.media, gateway.options.admin);
    let _publisher = push(&clip, media, "gate-1");
    wait_live(&gateway, "live/gate-1");
    let browser = browser(&gateway, &[]);
    let url = format!("http://127.0.0.1:{admin}/whep/live/gate-1");
    begin(&browser, "whep", "one", &url, "");
    begin(&browser, "whep", "two", &url, "");
    for name in ["one", "two"] {
        let seen = until(&browser, name, "seen.video && seen.video.framesDecoded > 100 && seen.time > 2");
        assert_eq!((&seen["status"], &seen["width"]), (&201.into(), &640.into()), "{seen:#}");
        let answer = seen["answer"].as_str().unwrap();
        assert!(answer.contains("profile-level-id=42e01e"), "the stream's own profile and level: {answer}");
        assert!(answer.contains("m=audio 0 "), "AAC is no sound of WebRTC: {answer}");
        assert_eq!(seen["video"]["packetsLost"], 0, "{seen:#}");
        // From the newest key frame, at once: not a second of waiting for the next.
        assert!(seen["first"].as_f64().unwrap() < 2_500.0, "{seen:#}");
        let (delay, frames) = (&seen["video"]["jitterBufferDelay"], &seen["video"]["jitterBufferEmittedCount"]);
        let held_seconds = delay.as_f64().unwrap() / frames.as_f64().unwrap();
        assert!(held_seconds < 0.15, "the picture is held back for {held_seconds} s: {seen:#}");
    }
    assert!(gateway.metric("sluicegate_webrtc_sessions{role=\"watch\"}") > 1.5);
    wait_for("both as viewers", PATIENCE, || stream(&gateway, "live/gate-1").filter(|s| s["viewers"] == 2));
    no_complaints(&browser);

    // One says goodbye over HTTP and is told so; the other's window is closed, which says nothing over HTTP.
    browser.run("fetch(peers.one.location, {method: 'DELETE'}).then((r) => { window.deleted = r.status; })");
    browser.until("the session's end", PATIENCE, "return window.deleted === 200");
    until(&browser, "one", "['closed', 'failed', 'disconnected'].includes(seen.state)");
    drop(browser);
    wait_for("no session", PATIENCE, || {
        (gateway.metric("sluicegate_webrtc_sessions{role=\"watch\"}") < 0.5).then_some(())
    });
    gateway.stop();
}

#[test]
fn the_console_plays_over_webrtc() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let browser = Browser::start();
    browser.open(&format!("http://127.0.0.1:{}/", gateway.options.admin));
    browser.until(
        "the button",
        PATIENCE,
        "const b = document.querySelector('button.webrtc'); b?.click(); return Boolean(b)",
    );
    browser.until(
        "a picture over WebRTC",
        PATIENCE,
        "const v = document.querySelector('video'); return v.srcObject && v.videoWidth === 640 && v.currentTime > 1",
    );
    browser.until(
        "the words about its sound",
        PATIENCE,
        "return document.querySelector('[data-stream]').textContent.includes('AAC (WebRTC cannot carry it)')",
    );
    no_complaints(&browser);
    drop(browser);
    gateway.stop();
}

#[test]
fn chromium_publishes_by_whip_and_ffmpeg_pulls() {
    let gateway = Gateway::start(options(""));
    let (media, admin) = (gateway.options.media, gateway.options.admin);
    let browser = browser(&gateway, &["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]);
    let url = format!("http://127.0.0.1:{admin}/whip/live/browser");
    begin(&browser, "whip", "cam", &url, ", null, 'video/H264'");
    until(&browser, "cam", "seen.state === 'connected' && seen.video && seen.video.framesEncoded > 50");
    let info = wait_for("picture and sound", PATIENCE, || {
        stream(&gateway, "live/browser").filter(|s| s["video"] == "H264" && s["audio"] == "Opus")
    });
    assert_eq!((&info["width"], &info["height"]), (&640.into(), &360.into()), "{info}");
    // ffmpeg decodes four seconds of it, picture and sound, without a complaint.
    let ffmpeg = newer_ffmpeg().display().to_string();
    let rtmp = format!("rtmp://127.0.0.1:{media}/live/browser");
    for url in [format!("http://127.0.0.1:{media}/live/browser.flv"), rtmp] {
        let decode = ["-v", "error", "-xerror", "-i", &url, "-t", "4", "-f", "framemd5", "-"];
        let frames = run_ok(&ffmpeg, &decode);
        let of = |track: &str| frames.lines().filter(|line| line.starts_with(track)).count();
        assert!(of("0,") > 60, "{url}: {} pictures", of("0,"));
        assert!(of("1,") > 150, "{url}: {} packets of sound", of("1,"));
    }
    no_complaints(&browser);
    // And a browser sees the browser.
    begin(&browser, "whep", "mirror", &format!("http://127.0.0.1:{admin}/whep/live/browser"), "");
    let seen = until(
        &browser,
        "mirror",
        "seen.video && seen.video.framesDecoded > 50 && seen.audio && seen.audio.packetsReceived > 50",
    );
    assert!(seen["codecs"].to_string().contains("opus"), "{seen:#}");
    browser.run("peers.cam.pc.close()");
    wait_for("the publisher's end", PATIENCE, || {
        stream(&gateway, "live/browser").is_none_or(|s| s["live"] == false).then_some(())
    });
    drop(browser);
    gateway.stop();
}

/// A browser's AV1, and H.265 (which browsers without hardware for it do not send) of ffmpeg's RTP in aiortc's session:
/// out by HTTP-FLV, where every frame decodes.
#[test]
fn av1_and_h265_are_published_by_whip() {
    let gateway = Gateway::start(options(""));
    let (media, admin) = (gateway.options.media, gateway.options.admin);
    let browser = browser(&gateway, &["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]);
    begin(&browser, "whip", "cam", &format!("http://127.0.0.1:{admin}/whip/live/av1"), ", null, 'video/AV1'");
    let rtp = free_port().to_string();
    let mut h265 = peer("h265", &format!("http://127.0.0.1:{admin}/whip/live/h265"), 1, 60, &["--rtp", &rtp]);
    let _out = connected(&mut h265);
    let ffmpeg = newer_ffmpeg().display().to_string();
    let mut sender = Command::new(&ffmpeg);
    sender.args(["-v", "error", "-nostdin", "-re", "-f", "lavfi", "-i", "testsrc2=s=640x360:r=25", "-c:v", "libx265"]);
    sender.args(["-preset", "ultrafast", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error:keyint=25:bframes=0"]);
    sender.args(["-f", "rtp", &format!("rtp://127.0.0.1:{rtp}?pkt_size=1200")]);
    let _sender = Child::start(sender.stdin(Stdio::null()).stdout(Stdio::null()));
    for (name, codec) in [("live/av1", "AV1"), ("live/h265", "H265")] {
        let info = wait_for(name, PATIENCE, || stream(&gateway, name).filter(|s| s["video"] == codec));
        assert_eq!((&info["width"], &info["height"]), (&640.into(), &360.into()), "{info}");
        let url = format!("http://127.0.0.1:{media}/{name}.flv");
        let decode = ["-v", "error", "-xerror", "-i", &url, "-an", "-frames:v", "25", "-f", "framemd5", "-"];
        let frames = run_ok(&ffmpeg, &decode);
        assert_eq!(frames.lines().filter(|line| line.starts_with("0,")).count(), 25, "{name}: {frames}");
    }
    // And a browser sees the browser's.
    begin(&browser, "whep", "mirror", &format!("http://127.0.0.1:{admin}/whep/live/av1"), "");
    let seen = until(&browser, "mirror", "seen.video && seen.video.framesDecoded > 25 && seen.width === 640");
    assert!(seen["codecs"].to_string().contains("AV1"), "{seen:#}");
    no_complaints(&browser);
    drop(browser);
    gateway.stop();
}

/// aiortc, which shares no code with Chromium or with us: `role` is watch or publish.
fn peer(role: &str, url: &str, sessions: usize, seconds: u32, more: &[&str]) -> Child {
    let script = sluicegate_tests::root().join("tests/tests/e2e/webrtc/peer.py");
    let mut command = Command::new(aiortc());
    command.arg(script).args([role, url, &sessions.to_string(), &seconds.to_string()]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Child::start(&mut command)
}

/// Waits for the line that says that all sessions are connected.
fn connected(peer: &mut Child) -> BufReader<ChildStdout> {
    let mut out = BufReader::new(peer.inner.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("its words");
    assert_eq!(line, "connected\n");
    out
}

fn sessions(gateway: &Gateway, role: &str) -> f64 {
    gateway.metric(&format!("sluicegate_webrtc_sessions{{role=\"{role}\"}}"))
}

#[test]
fn aiortc_plays_and_publishes() {
    let folder = TempDir::new().unwrap();
    let clip = clip(
        folder.path(),
        "a.flv",
        "-c:v libx264 -preset ultrafast -profile:v baseline -b:v 500k",
        "-c:a pcm_alaw -ar 8000 -ac 1",
    );
    let gateway = Gateway::start(options(""));
    let (media, admin) = (gateway.options.media, gateway.options.admin);
    let _publisher = push(&clip, media, "gate-1");
    wait_live(&gateway, "live/gate-1");
    let mut viewer = peer("watch", &format!("http://127.0.0.1:{admin}/whep/live/gate-1"), 1, 5, &[]);
    let mut words = String::new();
    connected(&mut viewer).read_to_string(&mut words).unwrap();
    let seen: Value = serde_json::from_str(&words).unwrap();
    let seen = &seen["sessions"][0];
    assert_eq!((&seen["width"], &seen["height"]), (&640.into(), &360.into()), "{seen}");
    assert!(seen["video"].as_u64() > Some(75) && seen["audio"].as_u64() > Some(100), "picture and G.711: {seen}");

    // And as a publisher: its picture comes out of the HTTP-FLV door.
    let mut publisher = peer("publish", &format!("http://127.0.0.1:{admin}/whip/live/aiortc"), 1, 12, &[]);
    let _out = connected(&mut publisher);
    wait_for("its picture", PATIENCE, || stream(&gateway, "live/aiortc").filter(|s| s["video"] == "H264"));
    let url = format!("http://127.0.0.1:{media}/live/aiortc.flv");
    let frames = run_ok("ffmpeg", &["-v", "error", "-xerror", "-i", &url, "-t", "2", "-f", "framemd5", "-"]);
    assert!(frames.lines().filter(|line| line.starts_with("0,")).count() > 30, "{frames}");
    gateway.stop();
}

/// aiortc takes nothing of an answer whose rejected line names no format that it knows.
#[test]
fn aiortc_plays_the_picture_of_a_stream_with_aac() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "a.flv", BASELINE, AAC);
    let gateway = Gateway::start(options(""));
    let _publisher = push(&clip, gateway.options.media, "gate-1");
    wait_live(&gateway, "live/gate-1");
    let seen = watched(&gateway, "gate-1");
    assert!(seen["video"].as_u64() > Some(50) && seen["audio"].is_null(), "{seen}");
    gateway.stop();
}

/// G.711 is WebRTC's own: it is heard there as it came, although viewers of FLV get AAC.
#[test]
fn g711_is_heard_over_webrtc_though_others_get_aac() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "a.flv", BASELINE, "-c:a pcm_mulaw -ar 8000 -ac 1");
    let port = free_port();
    let gateway = Gateway::start(Options::default().with(&format!(
        "[stream]\nunplayable_audio = \"aac\"\n[webrtc]\nlisten = \"udp://127.0.0.1:{port}\"\nallow_anonymous = true\n"
    )));
    let _publisher = push(&clip, gateway.options.media, "gate-1");
    gateway.wait_stream("live/gate-1", |s| s["audio"] == "AAC");
    let seen = watched(&gateway, "gate-1");
    assert!(seen["video"].as_u64() > Some(50) && seen["audio"].as_u64() > Some(100), "{seen}");
    let url = format!("http://127.0.0.1:{}/live/gate-1.flv", gateway.options.media);
    let heard = run_ok("ffprobe", &["-v", "error", "-show_entries", "stream=codec_name", "-of", "csv=p=0", &url]);
    assert!(heard.contains("aac"), "{heard}");
    gateway.stop();
}

const BASELINE: &str = "-c:v libx264 -preset ultrafast -profile:v baseline -b:v 500k";

/// What aiortc sees of a stream in 5 s.
fn watched(gateway: &Gateway, name: &str) -> Value {
    let url = format!("http://127.0.0.1:{}/whep/live/{name}", gateway.options.admin);
    let mut viewer = peer("watch", &url, 1, 5, &[]);
    let mut words = String::new();
    connected(&mut viewer).read_to_string(&mut words).unwrap();
    let seen: Value = serde_json::from_str(&words).unwrap();
    seen["sessions"][0].clone()
}

#[test]
fn a_viewer_that_vanishes_is_found_in_15_s() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "a.flv", H264, "-c:a pcm_alaw -ar 8000 -ac 1");
    let gateway = Gateway::start(options(""));
    let _publisher = push(&clip, gateway.options.media, "gate-1");
    wait_live(&gateway, "live/gate-1");
    let url = format!("http://127.0.0.1:{}/whep/live/gate-1", gateway.options.admin);
    let mut viewers = peer("watch", &url, 2, 60, &["--blind"]);
    let _out = connected(&mut viewers);
    wait_for("two sessions", PATIENCE, || (sessions(&gateway, "watch") > 1.5).then_some(()));
    viewers.signal(rustix::process::Signal::KILL);
    let gone = Instant::now();
    wait_for("their end", PATIENCE, || (sessions(&gateway, "watch") < 0.5).then_some(()));
    assert!(gone.elapsed() < Duration::from_secs(15), "found after {:?}", gone.elapsed());
    assert!(gateway.metric("sluicegate_webrtc_ended_total{reason=\"silent\"}") > 1.5);
    gateway.stop();
}
