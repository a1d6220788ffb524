//! WebRTC with peers that nobody here wrote: Chromium's own, and aiortc.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use sluicegate_tests::{Browser, Child, Gateway, Options, PATIENCE, free_port, newer_ffmpeg, run_ok, shell, wait_for};
use tempfile::TempDir;

const SCRIPT: &str = include_str!("webrtc.js");

fn options(more: &str) -> Options {
    let port = free_port();
    Options::default().with(&format!(
        "[stream]\ngrace_seconds = 2\n[webrtc]\nlisten = \"udp://127.0.0.1:{port}\"\nallow_anonymous = true\n{more}"
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
    let mut command = Command::new("ffmpeg");
    command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-re", "-stream_loop", "-1", "-i", clip]);
    command.args(["-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{media}/live/{name}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Child::start(&mut command)
}

fn stream(gateway: &Gateway, name: &str) -> Option<Value> {
    let streams: Value = serde_json::from_str(&gateway.get("/api/v1/streams")).ok()?;
    streams.as_array()?.iter().find(|s| s["name"] == name).cloned()
}

fn wait_live(gateway: &Gateway, name: &str) -> Value {
    wait_for(&format!("{name} live"), PATIENCE, || stream(gateway, name).filter(|s| s["live"] == true))
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
    let began = std::time::Instant::now();
    loop {
        last = ask(last);
        let seen = browser.run("return window.seen ?? null");
        if browser.run(&format!("const seen = window.seen; return Boolean(seen && ({condition}))")) == Value::Bool(true)
        {
            return seen;
        }
        let failed = || browser.run("return window.failed ?? null");
        assert!(began.elapsed() < PATIENCE, "waited for {what}: {seen:#} {}", failed());
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
