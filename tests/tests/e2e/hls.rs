//! HLS and low-latency HLS: ffmpeg and a browser with hls.js watch, an independent parser reads, strangers ask for nonsense.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sluicegate_tests::camera::{self, AAC, H264_REORDERED, H265};
use sluicegate_tests::{
    Authority, Browser, Child, Gateway, Options, PATIENCE, free_port, newer_ffmpeg, root, run, run_ok, shell, wait_for,
};
use tempfile::TempDir;

/// hls.js as npm has it.
const HLS_JS: &str = "hls.js@1.6.13";

fn clip(folder: &Path, more: &str) -> String {
    camera::clip(folder, "ffmpeg", 12, &format!("{H264_REORDERED} {AAC} {more}")).display().to_string()
}

fn push(clip: &str, port: u16, more: &[&str]) -> Child {
    camera::push("ffmpeg", Path::new(clip), &format!("rtmp://127.0.0.1:{port}/live/x"), more)
}

/// Status and body.
fn get(port: u16, path: &str) -> (u16, Vec<u8>) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(head + 4))
}

fn text(port: u16, path: &str) -> String {
    let (status, body) = get(port, path);
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    String::from_utf8(body).unwrap()
}

fn wait_live(gateway: &Gateway) -> Value {
    gateway.wait_stream("live/x", |_| true)
}

/// A gateway with the stream `live/x` that goes on and on; what is in the folder goes with it.
fn playing(more: &str) -> (TempDir, Gateway, Child) {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "");
    let gateway = Gateway::start(Options::default().with(more));
    let publisher = push(&clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    (folder, gateway, publisher)
}

/// Size and checksum of each packet of a track.
fn contents(url: &str, track: &str) -> Vec<String> {
    let arguments = ["-v", "error", "-i", url, "-map", track, "-c", "copy", "-f", "framemd5", "-"];
    let lines = run_ok("ffmpeg", &arguments);
    let lines = lines.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit(',').take(2).map(str::trim).collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn hls_gives_ffmpeg_every_unit_as_it_was_published() {
    for (more, tracks) in [("", &["0:v", "0:a"][..]), ("-an", &["0:v"]), ("-vn", &["0:a"])] {
        let folder = TempDir::new().unwrap();
        let clip = clip(folder.path(), more);
        let gateway =
            Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1\n[hls]\nwindow_seconds = 30"));
        let mut publisher = push(&clip, gateway.options.media, &[]);
        wait_live(&gateway);
        assert!(gateway.metric("sluicegate_hls_streams{}") < 0.5, "nothing is muxed before somebody asks");
        let url = format!("http://127.0.0.1:{}/live/x/index.m3u8", gateway.options.media);
        let watch = |track: &'static str| {
            let url = url.clone();
            // From the first segment that is there, to the end of the list.
            std::thread::spawn(move || {
                let arguments = ["-v", "error", "-live_start_index", "0", "-i", &url, "-map", track, "-c", "copy"];
                let said = run("ffmpeg", &[&arguments[..], &["-f", "framemd5", "-"]].concat());
                assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
                let lines = String::from_utf8(said.stdout).unwrap();
                let lines = lines.lines().filter(|line| !line.starts_with('#'));
                lines.map(|l| l.rsplit(',').take(2).map(str::trim).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
            })
        };
        let watching: Vec<_> = tracks.iter().map(|track| (*track, watch(track))).collect();
        assert!(publisher.wait(PATIENCE).success());
        for (track, watcher) in watching {
            let (got, sent) = (watcher.join().unwrap(), contents(&clip, track));
            assert!(got.len() > sent.len() * 2 / 3, "{track}: {} of {} packets", got.len(), sent.len());
            assert_eq!(got[..], sent[sent.len() - got.len()..], "{track}: up to the very last");
        }
        gateway.stop();
    }
}

fn hls_js() -> PathBuf {
    let folder = root().join("target/peers-npm");
    let file = folder.join("package/dist/hls.min.js");
    if !file.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let folder = folder.display();
        shell(&format!("cd {folder} && npm pack --silent {HLS_JS} && tar xzf hls.js-*.tgz"));
    }
    file
}

#[test]
fn hls_js_plays_low_latency_without_an_error() {
    let (folder, gateway, _publisher) = playing("[hls]\nidle_seconds = 2");
    let media = gateway.options.media;
    let page = folder.path().join("page.html");
    let html = format!(
        "<video muted></video><script src=\"file://{}\"></script><script>\
         const v = document.querySelector('video'); const hls = new Hls({{lowLatencyMode: true}}); \
         window.began = performance.now(); window.errors = []; window.lags = [];\
         hls.on(Hls.Events.ERROR, (_, data) => errors.push(data.details));\
         v.addEventListener('playing', () => {{ window.joined ??= performance.now() - began; }});\
         hls.loadSource('http://127.0.0.1:{media}/live/x/index.m3u8'); hls.attachMedia(v); v.play();\
         setInterval(() => {{ const at = hls.playingDate; if (at && v.currentTime > 2) lags.push(Date.now() - at); }}, 200);\
         </script>",
        hls_js().display()
    );
    std::fs::write(&page, html).unwrap();
    let browser = Browser::start();
    browser.open(&format!("file://{}", page.display()));
    browser.until(
        "a playing video",
        PATIENCE * 2,
        "return v.currentTime > 3 && v.videoWidth === 320 && lags.length > 24",
    );
    let seen = browser.run(
        "lags.sort((a, b) => a - b); return {join: joined, p50: lags[lags.length >> 1], most: lags.at(-1), \
         errors, low: hls.latestLevelDetails?.partList?.length ?? hls.levels[0].details.partList.length}",
    );
    println!("hls.js: {seen}");
    assert_eq!(seen["errors"], serde_json::json!([]), "{seen}");
    assert!(seen["low"].as_u64() > Some(0), "parts are played: {seen}");
    assert!(seen["p50"].as_f64().is_some_and(|ms| ms < 3_000.0), "{seen}");
    assert!(gateway.metric("sluicegate_hls_requests_total{piece=\"part\"}") > 5.0);
    let viewers = wait_live(&gateway)["viewers"].clone();
    assert_eq!(viewers, 1, "one player is one viewer, whatever its connections");
    let errors: Vec<String> = browser.console().into_iter().filter(|line| line.starts_with("SEVERE")).collect();
    assert!(errors.iter().all(|line| line.contains("favicon")), "{errors:?}");
    drop(browser);
    // The last viewer went: everything of it is given up.
    wait_for("nothing kept", PATIENCE, || (gateway.metric("sluicegate_hls_streams{}") < 0.5).then_some(()));
    wait_for("no viewer", PATIENCE, || (wait_live(&gateway)["viewers"] == 0).then_some(()));
    gateway.stop();
}

#[test]
fn an_independent_parser_reads_playlists_that_block() {
    let (folder, gateway, _publisher) = playing("");
    let media = gateway.options.media;
    let requirements = folder.path().join("m3u8.txt");
    std::fs::write(&requirements, "m3u8==6.0.0\n").unwrap();
    let python = sluicegate_tests::python("m3u8", &requirements);
    let script = folder.path().join("read.py");
    std::fs::write(&script, READER).unwrap();
    let base = format!("http://127.0.0.1:{media}/live/x/");
    let said = run_ok(&python.display().to_string(), &[&script.display().to_string(), &base]);
    assert!(said.trim_end().ends_with("read"), "{said}");
    gateway.stop();
}

/// Follows the playlist by blocking reloads for some seconds, with the parser of PyPI's m3u8.
const READER: &str = r#"
import sys, time, urllib.request, m3u8
base = sys.argv[1]
def get(path):
    with urllib.request.urlopen(base + path, timeout=15) as answer: return answer.read()
master = m3u8.loads(get("index.m3u8").decode())
assert master.is_variant and len(master.playlists) == 1, master.dumps()
info = master.playlists[0].stream_info
assert info.resolution == (320, 180) and info.codecs.startswith("avc1.") and info.codecs.endswith("mp4a.40.2"), info
media = master.playlists[0].uri
playlist = m3u8.loads(get(media).decode())
assert playlist.server_control.can_block_reload == "YES" and playlist.is_independent_segments
seen, waits = {}, []
for _ in range(20):
    newest = playlist.segments[-1]
    opened = playlist.media_sequence + len(playlist.segments)
    whole = [s for s in playlist.segments if s.uri]
    trailing = [s for s in playlist.segments if not s.uri]
    msn = playlist.media_sequence + len(whole)
    part = len(trailing[0].parts) if trailing else 0
    for segment in whole:
        assert round(segment.duration) <= playlist.target_duration
        for p in segment.parts: assert p.duration <= playlist.part_inf.part_target
        data = get(segment.uri)
        assert seen.setdefault(segment.uri, data) == data
        if segment.parts: assert b"".join(get(p.uri) for p in segment.parts) == data
    assert get(whole[0].init_section.uri)[4:8] == b"ftyp"
    began = time.monotonic()
    hint = playlist.preload_hint.uri if hasattr(playlist.preload_hint, "uri") else playlist.preload_hint["uri"]
    assert get(hint)[4:8] == b"moof"
    playlist = m3u8.loads(get(f"{media}&_HLS_msn={msn}&_HLS_part={part}").decode())
    waits.append(time.monotonic() - began)
    assert playlist.media_sequence + len([s for s in playlist.segments if s.uri]) >= msn
assert max(waits) < 2.5, waits
print("read")
"#;

#[test]
fn hostile_requests_for_hls_get_their_answer_and_hurt_nobody() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "");
    let more = "[stream]\nwait_max_seconds = 1\n[hls]\nwaiting_max = 2\nidle_seconds = 2";
    let gateway = Gateway::start(Options::default().with(more));
    let media = gateway.options.media;
    assert_eq!(get(media, "/live/x/index.m3u8").0, 404, "no such stream");
    assert_eq!(get(media, "/live/x/segment-1.m4s").0, 404);
    let _publisher = push(&clip, media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let playlist = text(media, "/live/x/media.m3u8?viewer=1&token=a%2Fb");
    assert!(playlist.lines().filter(|l| l.contains(".m4s") || l.contains(".mp4")).all(|l| l.contains("?token=a%2Fb")));
    let number: u64 = playlist.lines().find_map(|l| l.strip_prefix("#EXT-X-MEDIA-SEQUENCE:")?.parse().ok()).unwrap();
    for (path, status) in [
        ("media.m3u8?_HLS_msn=99999999999".to_owned(), 400),
        ("media.m3u8?_HLS_msn=x".to_owned(), 400),
        ("media.m3u8?_HLS_part=1".to_owned(), 400),
        (format!("media.m3u8?_HLS_msn={number}&_HLS_part=99999999"), 400),
        ("media.m3u8?token=%22%0d%0aX".to_owned(), 200),
        ("media.m3u8?token=\"".to_owned(), 400),
        ("segment-18446744073709551616.m4s".to_owned(), 404),
        (format!("segment-{}.m4s", number - 1), 404),
        ("part-0.m4s".to_owned(), 404),
        ("init-0.mp4".to_owned(), 404),
        ("../../../etc/passwd.m4s".to_owned(), 400),
    ] {
        assert_eq!(get(media, &format!("/live/x/{path}")).0, status, "{path}");
    }
    // One more than may wait is refused at once; those that wait get theirs.
    let ask = |n: u64| {
        let path = format!("/live/x/media.m3u8?_HLS_msn={n}");
        std::thread::spawn(move || get(media, &path).0)
    };
    let asking: Vec<_> = (0..6).map(|_| ask(number + 2)).collect();
    let answers: Vec<u16> = asking.into_iter().map(|asked| asked.join().unwrap()).collect();
    assert!(answers.iter().all(|status| [200, 400, 503].contains(status)), "{answers:?}");
    // A reader that takes nothing of what it asks for over and over costs no copies of it.
    let before = gateway.rss_kib();
    let stalled: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut socket = TcpStream::connect(("127.0.0.1", media)).unwrap();
            let request = format!("GET /live/x/segment-{number}.m4s HTTP/1.1\r\nHost: h\r\n\r\n");
            socket.write_all(request.repeat(50).as_bytes()).unwrap();
            socket
        })
        .collect();
    // Held up by every reader: what waits in their own buffers has not grown for ten looks.
    let (mut waiting, mut looks) = (0, 0);
    wait_for("the gateway to stop at full buffers", PATIENCE, || {
        let now = stalled.iter().map(|socket| rustix::io::ioctl_fionread(socket).unwrap()).sum();
        looks = if now == waiting { looks + 1 } else { 0 };
        waiting = now;
        (waiting > 0 && looks >= 10).then_some(())
    });
    let grown = gateway.rss_kib().saturating_sub(before);
    assert!(grown < 24 * 1024, "{grown} KiB for 100 readers that read nothing");
    drop(stalled);
    wait_for("nothing kept", PATIENCE, || (gateway.metric("sluicegate_hls_streams{}") < 0.5).then_some(()));
    gateway.stop();
}

#[test]
fn another_publisher_with_another_picture_is_a_discontinuity() {
    let folder = TempDir::new().unwrap();
    let first = clip(folder.path(), "");
    let gateway = Gateway::start(Options::default().with("[hls]\nwindow_seconds = 30"));
    let media = gateway.options.media;
    let one = push(&first, media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    assert!(text(media, "/live/x/index.m3u8").contains("RESOLUTION=320x180"));
    text(media, "/live/x/media.m3u8");
    drop(one);
    let other_folder = TempDir::new().unwrap();
    let second = clip(other_folder.path(), "-s 640x360");
    let _two = push(&second, media, &["-stream_loop", "-1"]);
    let playlist = wait_for("a discontinuity", PATIENCE, || {
        let playlist = text(media, "/live/x/media.m3u8");
        playlist.contains("#EXT-X-DISCONTINUITY\n#EXT-X-MAP").then_some(playlist)
    });
    assert_eq!(playlist.matches("#EXT-X-MAP").count(), 2, "{playlist}");
    assert!(text(media, "/live/x/index.m3u8").contains("RESOLUTION=640x360"));
    gateway.stop();
}

#[test]
fn gstreamer_plays_hls() {
    let (folder, gateway, _publisher) = playing("[stream]\ngrace_seconds = 1");
    let media = gateway.options.media;
    let video = folder.path().join("video.h264");
    let line = format!(
        "-q souphttpsrc location=http://127.0.0.1:{media}/live/x/index.m3u8 ! hlsdemux ! qtdemux name=d \
         d.video_0 ! h264parse ! video/x-h264,stream-format=byte-stream ! filesink buffer-mode=2 location={}",
        video.display()
    );
    let mut command = Command::new("gst-launch-1.0");
    command.args(line.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::null());
    let mut player = Child::start(&mut command);
    let frames = |file: &Path| {
        let counted = run(
            "ffprobe",
            &[
                "-v",
                "quiet",
                "-count_packets",
                "-show_entries",
                "stream=nb_read_packets",
                "-of",
                "csv=p=0",
                &file.display().to_string(),
            ],
        );
        String::from_utf8_lossy(&counted.stdout).trim().parse().unwrap_or(0u32)
    };
    wait_for("three seconds of video", PATIENCE * 2, || (frames(&video) >= 75).then_some(()));
    assert!(player.is_running());
    drop(player);
    gateway.stop();
}

/// A session is a viewer, whatever connections it uses: it is listed, and one that is closed gets no more.
#[test]
fn viewers_are_listed_and_closed_one_by_one() {
    let (_folder, gateway, _publisher) = playing("");
    let media = gateway.options.media;
    let playlists = [0, 1].map(|_| {
        let index = text(media, "/live/x/index.m3u8");
        format!("/live/x/{}", index.lines().find(|line| line.starts_with("media.m3u8?viewer=")).expect("a playlist"))
    });
    for playlist in &playlists {
        drop(text(media, playlist));
    }
    let viewers = || -> Vec<Value> { serde_json::from_str(&gateway.get("/api/v1/streams/live%2Fx/viewers")).unwrap() };
    let listed = viewers();
    assert!(listed.len() == 2 && listed.iter().all(|viewer| viewer["container"] == "hls"), "{listed:?}");
    assert!(listed[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"), "{listed:?}");
    let id = listed[0]["id"].as_u64().unwrap();
    assert_eq!(gateway.request("DELETE", &format!("/api/v1/streams/live%2Fx/viewers/{id}"), "").0, 204);
    assert_eq!(viewers().len(), 1);
    let mut answers = playlists.each_ref().map(|playlist| get(media, playlist).0);
    answers.sort_unstable();
    assert_eq!(answers, [200, 403], "the other one watches on");
    assert_eq!(gateway.request("DELETE", &format!("/api/v1/streams/live%2Fx/viewers/{id}"), "").0, 404);
    // A player that plays: what it got, and that it is near the end.
    let url = format!("http://127.0.0.1:{media}/live/x/index.m3u8");
    run_ok("ffmpeg", &["-v", "error", "-i", &url, "-t", "2", "-c", "copy", "-f", "null", "-"]);
    let player = viewers().into_iter().find(|viewer| viewer["tags"].as_u64() > Some(0)).expect("one that got pieces");
    assert!(player["bytes"].as_u64() > Some(50_000) && player["lag_ms"].as_u64() < Some(20_000), "{player}");
    assert!(player["written_us"].as_i64() > player["since_us"].as_i64(), "{player}");
    assert!(gateway.metric("sluicegate_hls_sent_bytes_total") >= player["bytes"].as_f64().unwrap());
    gateway.stop();
}

#[test]
fn hls_over_tls_carries_h265_and_av1() {
    let (folder, newer) = (TempDir::new().unwrap(), newer_ffmpeg().display().to_string());
    let (authority, port) = (Authority::new(), free_port());
    let gateway = Gateway::start(Options::default().with(&format!(
        "[[adapter]]\nname = \"secure\"\nlisten = \"tls://127.0.0.1:{port}\"\nprotocol = [\"hls\"]\nallow_anonymous = true\n{}",
        authority.certify("one").toml()
    )));
    let ca = authority.file().display().to_string();
    let av1 = "-c:v libsvtav1 -preset 12 -g 25 -pix_fmt yuv420p";
    for (codec, name) in [(H265, "hevc"), (av1, "av1")] {
        let clip = camera::clip(folder.path(), &newer, 6, &format!("{codec} {AAC}"));
        let address = format!("rtmp://127.0.0.1:{}/live/{name}", gateway.options.media);
        let _publisher = camera::push(&newer, &clip, &address, &["-stream_loop", "-1"]);
        gateway.wait_stream(&format!("live/{name}"), |s| s["width"].as_u64() > Some(0));
        let url = format!("https://localhost:{port}/live/{name}/index.m3u8");
        let index = run_ok("curl", &["-sS", "--fail", "--cacert", &ca, &url]);
        assert!(index.contains(if name == "hevc" { "CODECS=\"hvc1." } else { "CODECS=\"av01." }), "{index}");
        let packets = |input: &[&str]| -> Vec<String> {
            let rest = ["-map", "0:v", "-c", "copy", "-f", "framemd5", "-"];
            let text = run_ok("ffmpeg", &[&["-v", "error"], input, &rest].concat());
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(|line| line.rsplit(',').take(2).map(str::trim).collect::<Vec<_>>().join(" ")).collect()
        };
        let got = packets(&["-t", "3", "-i", &url]);
        // Debian's ffmpeg reads neither from FLV: the newer one makes a file that it does.
        let file = folder.path().join(format!("{name}.mp4")).display().to_string();
        run_ok(&newer, &["-v", "error", "-i", &clip.display().to_string(), "-c", "copy", &file]);
        let sent = packets(&["-i", &file]);
        let begin = sent.iter().position(|packet| *packet == got[0]).expect("a picture of the clip");
        let whole: Vec<String> = sent.iter().cycle().skip(begin).take(got.len()).cloned().collect();
        assert!(got.len() > 60 && got == whole, "{name}: {} pictures", got.len());
    }
    gateway.stop();
}
