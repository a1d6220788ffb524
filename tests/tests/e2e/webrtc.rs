//! WebRTC with peers that nobody here wrote: Chromium's own, and aiortc.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluicegate_tests::camera::{self};
use sluicegate_tests::{
    Browser, Child, Gateway, Options, PATIENCE, aiortc, free_port, newer_ffmpeg, run_ok, shell, wait_for,
};
use tempfile::TempDir;

const SCRIPT: &str = include_str!("webrtc.js");

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

/// aiortc, which shares no code with Chromium or with us: `role` is watch or publish.
fn peer(role: &str, url: &str, sessions: usize, seconds: u32, more: &[&str]) -> Child {
    let script = sluicegate_tests::root().join("tests/tests/e2e/webrtc_peer.py");
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

/// What Chromium offers for one picture to watch, shortened.
pub(crate) const OFFER: &str = "v=0\r\no=- 46117 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=msid-semantic: WMS\r\n\
    m=video 9 UDP/TLS/RTP/SAVPF 96 103\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\na=ice-ufrag:Zx4q\r\n\
    a=ice-pwd:o1u6RmBNJUPa4YkS4xjuWZLc\r\na=ice-options:trickle\r\na=fingerprint:sha-256 \
    F3:CF:16:0F:E3:11:30:29:22:2E:86:FB:16:73:23:8D:97:C2:EA:C8:AB:8F:D2:37:19:20:76:9D:C3:13:A6:34\r\n\
    a=setup:actpass\r\na=mid:0\r\na=recvonly\r\na=rtcp-mux\r\na=rtpmap:96 VP8/90000\r\na=rtpmap:103 H264/90000\r\n\
    a=rtcp-fb:103 nack\r\na=rtcp-fb:103 nack pli\r\n\
    a=fmtp:103 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\n";

/// A request to the console's port: status, head and body.
pub(crate) fn ask(gateway: &Gateway, method: &str, path: &str, headers: &[&str], body: &[u8]) -> (u16, String, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.options.admin)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let headers = headers.iter().fold(String::new(), |all, line| all + line + "\r\n");
    let len = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: elsewhere.example\r\nOrigin: http://page.example\r\n{headers}Content-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).unwrap();
    // A body that is refused unread ends the connection.
    drop(socket.write_all(body));
    let mut answer = Vec::new();
    drop(socket.read_to_end(&mut answer));
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0), head.to_lowercase(), body.to_owned())
}

const SDP: &str = "Content-Type: application/sdp";

/// A gateway with a stream `live/gate-1`, and its publisher.
fn with_stream(options: Options, folder: &Path, query: &str) -> (Gateway, Child) {
    let clip = clip(folder, "a.flv", H264, AAC);
    let gateway = Gateway::start(options);
    let publisher = push(&clip, gateway.options.media, &format!("gate-1{query}"));
    wait_live(&gateway, "live/gate-1");
    (gateway, publisher)
}

#[test]
fn the_http_rules_of_whep_and_whip() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let (status, head, _) = ask(&gateway, "OPTIONS", "/whep/live/gate-1", &[], b"");
    assert!(status == 204 && head.contains("access-control-allow-methods: post, patch, delete, options"), "{head}");
    assert!(head.contains("access-control-allow-origin: *") && head.contains("accept-post: application/sdp"), "{head}");
    let (status, head, answer) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], OFFER.as_bytes());
    assert!(status == 201 && head.contains("content-type: application/sdp"), "{head}\n{answer}");
    assert!(answer.contains("a=ice-lite") && answer.contains("a=sendonly") && answer.contains("H264"), "{answer}");
    let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap().to_owned();
    // The head is in lower case here: the session's own name is not, and is asked for below.
    assert!(field("location:").starts_with("/whep/live/gate-1/"));
    assert!(field("etag:").starts_with('"') && head.contains("access-control-expose-headers: location, etag"));

    type Case = (&'static str, &'static str, &'static [&'static str], &'static [u8], u16);
    let cases: [Case; 11] = [
        ("GET", "/whep/live/gate-1", &[], b"", 405),
        ("PUT", "/whip/live/gate-1", &[SDP], OFFER.as_bytes(), 405),
        ("POST", "/whep/live/gate-1", &["Content-Type: application/json"], OFFER.as_bytes(), 415),
        ("POST", "/whep/live/nobody", &[SDP], OFFER.as_bytes(), 404),
        ("POST", "/whep/live", &[SDP], OFFER.as_bytes(), 404),
        ("POST", "/whep/live/../x", &[SDP], OFFER.as_bytes(), 404),
        ("DELETE", "/whep/live/gate-1/nothing", &[], b"", 404),
        ("PATCH", "/whep/live/gate-1/nothing", &["Content-Type: application/trickle-ice-sdpfrag"], b"a=x", 404),
        ("PATCH", "/whep/live/gate-1/nothing", &[SDP], b"a=x", 415),
        ("POST", "/whep/live/gate-1", &[SDP], b"v=0\r\n", 406),
        ("POST", "/whep/live/gate-1", &[SDP], &[0xff, 0xfe], 400),
    ];
    for (method, path, headers, body, expected) in cases {
        let (status, _, answer) = ask(&gateway, method, path, headers, body);
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
    let only_vp8 = OFFER.replace("H264", "VP9");
    let (status, _, why) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], only_vp8.as_bytes());
    assert!(status == 406 && why.contains("is H264; the offer has VP8, VP9"), "{why}");
    gateway.stop();
}

#[test]
fn a_session_is_patched_and_deleted_by_its_own_name_alone() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let mut socket = TcpStream::connect(("127.0.0.1", gateway.options.admin)).unwrap();
    write!(
        socket,
        "POST /whep/live/gate-1 HTTP/1.1\r\nHost: h\r\n{SDP}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{OFFER}",
        OFFER.len()
    )
    .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let field = |name: &str| answer.lines().find_map(|l| l.strip_prefix(name)).map(str::trim).unwrap().to_owned();
    let (session, etag) = (field("location: "), format!("If-Match: {}", field("etag: ")));
    let kind = "Content-Type: application/trickle-ice-sdpfrag";
    let (same, other) = (b"a=ice-ufrag:Zx4q\r\na=end-of-candidates\r\n", b"a=ice-ufrag:else\r\n");
    let patch = |headers: &[&str], body: &[u8]| ask(&gateway, "PATCH", &session, headers, body).0;
    assert_eq!(patch(&[kind, &etag], same), 204);
    assert_eq!(patch(&[kind], same), 428);
    assert_eq!(patch(&[kind, "If-Match: \"other\""], same), 412);
    assert_eq!(patch(&[kind, &etag], other), 422);
    let elsewhere = session.replace("gate-1", "gate-2");
    assert_eq!(ask(&gateway, "DELETE", &elsewhere, &[], b"").0, 404);
    assert_eq!(ask(&gateway, "DELETE", &session.replace("whep", "whip"), &[], b"").0, 404);
    assert_eq!(ask(&gateway, "DELETE", &session, &[], b"").0, 200);
    wait_for("its end", PATIENCE, || (ask(&gateway, "DELETE", &session, &[], b"").0 == 404).then_some(()));
    gateway.stop();
}

#[test]
fn streams_want_their_key_over_webrtc_too() {
    let folder = TempDir::new().unwrap();
    for (name, key) in [("play", "watch-me"), ("push", "push-me")] {
        std::fs::write(folder.path().join(name), key).unwrap();
    }
    let place = folder.path().display();
    let keys = format!(
        "[[credential]]\nname = \"play\"\nsecret_file = \"{place}/play\"\nwatch = [\"live/gate-1\"]\n\
         [[credential]]\nname = \"push\"\nsecret_file = \"{place}/push\"\npush = [\"live/browser\"]"
    );
    let mut options = options(&keys);
    options.more = options.more.replace("allow_anonymous = true", "");
    let (gateway, _publisher) = with_stream(options, folder.path(), "");
    let publish = OFFER.replace("recvonly", "sendonly");
    let cases = [
        ("/whep/live/gate-1", "", OFFER, 401),
        ("/whep/live/gate-1?key=wrong", "", OFFER, 401),
        ("/whep/live/gate-1", "Authorization: Bearer wrong", OFFER, 401),
        ("/whep/live/gate-1", "Authorization: Bearer push-me", OFFER, 403),
        ("/whep/live/other?key=watch-me", "", OFFER, 403),
        ("/whep/live/gate-1?key=watch-me", "", OFFER, 201),
        ("/whep/live/gate-1", "Authorization: Bearer watch-me", OFFER, 201),
        ("/whip/live/browser", "", &publish, 401),
        ("/whip/live/gate-1?key=push-me", "", &publish, 403),
        ("/whip/live/browser", "Authorization: Bearer push-me", &publish, 201),
    ];
    for (path, authorization, offer, expected) in cases {
        let headers: Vec<&str> = [SDP, authorization].into_iter().filter(|line| !line.is_empty()).collect();
        let (status, head, answer) = ask(&gateway, "POST", path, &headers, offer.as_bytes());
        assert_eq!(status, expected, "{path} {authorization}: {answer}");
        assert!(status != 401 || head.contains("www-authenticate: bearer"), "{head}");
    }
    let refused =
        |reason: &str| gateway.metric(&format!("sluicegate_refused_total{{adapter=\"webrtc\",reason=\"{reason}\"}}"));
    assert!(refused("unauthorized") > 3.5 && refused("forbidden") > 2.5);
    // Nobody but those let in has a session, and not a byte of media left.
    assert!(
        sessions(&gateway, "watch") < 2.5 && gateway.metric("sluicegate_webrtc_bytes_total{direction=\"out\"}") < 1.0
    );
    gateway.stop();
}

#[test]
fn floods_of_offers_and_noise_have_limits() {
    let folder = TempDir::new().unwrap();
    let (gateway, _publisher) = with_stream(options(""), folder.path(), "");
    let (status, _, _) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], &vec![b'a'; 1_000_000]);
    assert!(status == 413 || status == 0, "{status}");
    let before = gateway.rss_kib();
    let mut taken = 0;
    for _ in 0..100 {
        let (status, head, _) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], OFFER.as_bytes());
        assert!(status == 201 || (status == 503 && head.contains("retry-after: 5")), "{head}");
        taken += usize::from(status == 201);
    }
    assert!((32..100).contains(&taken), "{taken} offers taken");
    assert!(gateway.metric("sluicegate_refused_total{adapter=\"webrtc\",reason=\"limit\"}") > 0.5);
    // Halves of an offer, and an offer with one byte changed, at many places: never more than an error.
    for at in (0..OFFER.len()).step_by(29) {
        let mut near = OFFER.as_bytes().to_vec();
        near[at] = b'\xb5';
        for offer in [&OFFER.as_bytes()[..at], &near] {
            let (status, _, answer) = ask(&gateway, "POST", "/whep/live/gate-1", &[SDP], offer);
            assert!([201, 400, 406, 503].contains(&status), "{at}: {status} {answer}");
        }
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = gateway.options.more.split("udp://127.0.0.1:").nth(1).unwrap().split('"').next().unwrap();
    let mut noise = 88_172_645_463_325_252_u64;
    for n in 0..20_000_usize {
        let packet: Vec<u8> = (0..n % 1_500)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect();
        drop(socket.send_to(&packet, format!("127.0.0.1:{port}")));
    }
    wait_for("the noise to be counted", PATIENCE, || {
        (gateway.metric("sluicegate_webrtc_datagrams_dropped_total{reason=\"unknown\"}") > 1_000.0).then_some(())
    });
    wait_for("offers that never connect to be given up", PATIENCE, || {
        (sessions(&gateway, "watch") < 0.5).then_some(())
    });
    let grown = gateway.rss_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB more than before");
    gateway.stop();
}
