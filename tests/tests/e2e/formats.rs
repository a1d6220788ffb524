//! The formats a stream comes in and goes out: FLV over WebSocket, H.265 in both dialects.

use std::path::{Path, PathBuf};

use protocols::media::fmp4::{self, Description, Fragmenter};
use protocols::media::{Codec, Kind, Track, Unit};
use serde_json::Value;
use sluicegate_tests::camera::{self, AAC};
use sluicegate_tests::{Browser, Child, Flv, Gateway, Options, PATIENCE, WebSocket, mpegts_js, newer_ffmpeg};
use tempfile::TempDir;

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;

fn make(folder: &Path, ffmpeg: &str, codec: &str) -> PathBuf {
    camera::clip(folder, ffmpeg, 12, &format!("{codec} -g 25 -pix_fmt yuv420p {AAC}"))
}

fn push(ffmpeg: &str, clip: &Path, port: u16, more: &[&str]) -> Child {
    camera::push(ffmpeg, clip, &format!("rtmp://127.0.0.1:{port}/live/x"), more)
}

/// The stream, once its codec and size are known.
fn wait_live(gateway: &Gateway) -> Value {
    gateway.wait_stream("live/x", |s| s["width"].as_u64() > Some(0))
}

/// Everything of `part` is in `whole`, in order and in one piece per track.
fn is_piece_of(part: &[Unit], whole: &[Unit], least: usize) {
    assert!(part.len() >= least, "only {} of {} units", part.len(), whole.len());
    let begin = whole.iter().position(|unit| *unit == part[0]).expect("the first unit is of the pushed stream");
    for (offset, unit) in part.iter().enumerate() {
        assert_eq!(Some(unit), whole.get(begin + offset), "unit {offset} after {begin}");
    }
}

#[test]
fn a_web_socket_gives_what_was_pushed() {
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), "ffmpeg", "-c:v libx264 -preset ultrafast -bf 2");
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let mut publisher = push("ffmpeg", &clip, media, &[]);
    wait_live(&gateway);
    let mut leaves = WebSocket::open(media, "/live/x.flv");
    let mut stays = WebSocket::open(media, "/live/x.flv");
    // A ping finds its way between the messages; a goodbye is answered.
    leaves.say(PING, b"there?");
    let mut said = std::iter::from_fn(|| leaves.next());
    assert!(said.any(|(first, payload)| (first, &payload[..]) == (PONG, b"there?")));
    leaves.say(CLOSE, &1000u16.to_be_bytes());
    let rest: Vec<_> = std::iter::from_fn(|| leaves.next()).collect();
    let (first, payload) = rest.last().unwrap();
    assert_eq!((*first, &payload[..]), (CLOSE, &1000u16.to_be_bytes()[..]));
    // A message larger than a viewer's may be ends the connection with its code.
    let mut loud = WebSocket::open(media, "/live/x.flv");
    loud.say(BINARY, b"a word is nothing");
    loud.announce(5_000);
    let (first, payload) = std::iter::from_fn(|| loud.next()).last().unwrap();
    assert_eq!((first, &payload[..2]), (CLOSE, &1009u16.to_be_bytes()[..]));

    let (mut bytes, mut last) = (Vec::new(), None);
    while let Some((first, payload)) = stays.next() {
        if first == BINARY {
            let tags = Flv::parse(&payload).units.len();
            assert_eq!(tags, if bytes.is_empty() { 3 } else { 1 }, "each message is whole tags");
            bytes.extend_from_slice(&payload);
        }
        last = Some(first);
    }
    assert_eq!(last, Some(CLOSE));
    assert!(publisher.wait(PATIENCE).success());
    is_piece_of(&Flv::parse(&bytes).frames(), &Flv::read(&clip).frames(), 10 * (25 + 43));
    gateway.stop();
}

#[test]
fn a_browser_plays_over_a_web_socket() {
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), "ffmpeg", "-c:v libx264 -preset ultrafast -bf 0");
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let _publisher = push("ffmpeg", &clip, media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let player = mpegts_js(folder.path());
    let page = folder.path().join("page.html");
    let html = format!(
        "<video muted></video><script src=\"file://{}\"></script><script>\
         const player = mpegts.createPlayer({{type: 'flv', isLive: true, url: 'ws://127.0.0.1:{media}/live/x.flv'}});\
         player.attachMediaElement(document.querySelector('video')); player.load(); player.play();</script>",
        player.display()
    );
    std::fs::write(&page, html).unwrap();
    let browser = Browser::start();
    browser.open(&format!("file://{}", page.display()));
    browser.until(
        "a playing video",
        PATIENCE,
        "const v = document.querySelector('video'); \
         return v.currentTime > 2 && v.videoWidth === 320 && v.getVideoPlaybackQuality().totalVideoFrames > 40",
    );
    let errors: Vec<String> = browser.console().into_iter().filter(|line| line.starts_with("SEVERE")).collect();
    assert!(errors.iter().all(|line| line.contains("favicon")), "{errors:?}");
    drop(browser);
    gateway.stop();
}

/// The packets of one track, as ffmpeg sees them: time, size, checksum.
fn packets(ffmpeg: &str, more: &[&str], url: &str, track: &str) -> Vec<String> {
    let mut arguments = vec!["-v", "error", "-copyts"];
    arguments.extend_from_slice(more);
    arguments.extend_from_slice(&["-i", url, "-map", track, "-c", "copy", "-f", "framemd5", "-"]);
    let text = sluicegate_tests::run_ok(ffmpeg, &arguments);
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn h265_goes_out_in_the_dialect_a_viewer_asks_for() {
    let ffmpeg = newer_ffmpeg().display().to_string();
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), &ffmpeg, "-c:v libx265 -preset ultrafast -x265-params log-level=error");
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let mut publisher = push(&ffmpeg, &clip, media, &[]);
    let info = wait_live(&gateway);
    assert_eq!((&info["video"], &info["height"]), (&"H265".into(), &180.into()), "{info}");

    // ffmpeg that announces hvc1 gets Enhanced RTMP, and HTTP-FLV is Enhanced unless asked otherwise.
    let url = format!("http://127.0.0.1:{media}/live/x.flv");
    let rtmp = format!("rtmp://127.0.0.1:{media}/live/x");
    let peer = ffmpeg.clone();
    let over_http = std::thread::spawn(move || packets(&peer, &[], &url, "0:v"));
    let peer = ffmpeg.clone();
    let over_rtmp = std::thread::spawn(move || packets(&peer, &["-rtmp_enhanced_codecs", "hvc1"], &rtmp, "0:v"));
    let legacy = std::thread::spawn(move || Flv::get(media, "/live/x.flv?hevc=legacy"));
    let enhanced = Flv::get(media, "/live/x.flv?hevc=enhanced");
    let legacy = legacy.join().unwrap();
    assert!(publisher.wait(PATIENCE).success());

    assert!(
        legacy.heads.len() > 200 && legacy.heads.iter().all(|head| head[0] & 0x8f == 12),
        "{:?}",
        &legacy.heads[..3]
    );
    assert!(enhanced.heads.len() > 200 && enhanced.heads.iter().all(|head| head[0] & 0x80 != 0 && head[1] == b'h'));
    let sent = Flv::read(&clip).frames();
    assert!(sent.iter().any(|unit| unit.codec == Codec::H265));
    for got in [legacy, enhanced] {
        is_piece_of(&got.frames(), &sent, 9 * (25 + 43));
    }
    let sent = packets(&ffmpeg, &[], &clip.display().to_string(), "0:v");
    for got in [over_http.join().unwrap(), over_rtmp.join().unwrap()] {
        assert!(got.len() > 200, "{} packets", got.len());
        let begin = sent.iter().position(|packet| *packet == got[0]).expect("the first packet is of the clip");
        assert_eq!(got[..], sent[begin..begin + got.len()]);
    }
    gateway.stop();
}

#[test]
fn h265_of_the_old_dialect_is_taken_and_said_anew() {
    let ffmpeg = newer_ffmpeg().display().to_string();
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), &ffmpeg, "-c:v libx265 -preset ultrafast -x265-params log-level=error");
    let sent = Flv::read(&clip);
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let publisher = std::thread::spawn({
        let units = sent.units.clone();
        move || sluicegate_tests::push_rtmp(media, "x", &units, protocols::media::Container::RtmpLegacy)
    });
    wait_live(&gateway);
    let got = Flv::get(media, "/live/x.flv");
    publisher.join().unwrap();
    assert!(got.heads.iter().all(|head| head[0] & 0x80 != 0));
    is_piece_of(&got.frames(), &sent.frames(), 25);
    gateway.stop();
}

/// Size and checksum of each packet of one track, whatever the container's clock.
fn contents(ffmpeg: &str, url: &str, track: &str) -> Vec<String> {
    let content = |line: &String| line.rsplit(',').take(2).map(str::trim).collect::<Vec<_>>().join(" ");
    packets(ffmpeg, &[], url, track).iter().map(content).collect()
}

#[test]
fn fmp4_plays_in_ffmpeg_with_every_unit_as_it_was() {
    let newer = newer_ffmpeg().display().to_string();
    for (ffmpeg, codec, known) in [
        ("ffmpeg", "-c:v libx264 -preset ultrafast -bf 2", "avc1."),
        (newer.as_str(), "-c:v libx265 -preset ultrafast -x265-params log-level=error", "hvc1.1.6.L"),
    ] {
        let folder = TempDir::new().unwrap();
        let clip = make(folder.path(), ffmpeg, codec);
        let units = Flv::read(&clip).units;
        let mut configs: Vec<&Unit> = units.iter().filter(|unit| unit.kind == Kind::Config).collect();
        configs.retain(|unit| unit.track != Track::Data);
        let tracks: Vec<_> = configs.iter().zip(1..).filter_map(|(unit, id)| Description::of(id, unit)).collect();
        assert!(tracks[0].codecs().starts_with(known) && tracks[1].codecs() == "mp4a.40.2", "{tracks:?}");
        let mut fragmenter = Fragmenter::new(&tracks);
        let mut file = fmp4::init(&tracks).to_vec();
        for unit in &units {
            fragmenter.push(unit);
            if fragmenter.span_90k() >= 90_000 {
                file.extend(fragmenter.cut().unwrap().data);
            }
        }
        file.extend(fragmenter.finish().unwrap().data);
        let mp4 = folder.path().join("clip.mp4");
        std::fs::write(&mp4, file).unwrap();
        let (mp4, clip) = (mp4.display().to_string(), clip.display().to_string());
        let decoded = sluicegate_tests::run("ffmpeg", &["-v", "warning", "-xerror", "-i", &mp4, "-f", "null", "-"]);
        let said = String::from_utf8_lossy(&decoded.stderr);
        assert!(decoded.status.success() && said.is_empty(), "{said}");
        for track in ["0:v", "0:a"] {
            assert_eq!(contents("ffmpeg", &mp4, track), contents(ffmpeg, &clip, track));
        }
        let about = sluicegate_tests::run_ok("ffprobe", &["-v", "warning", "-show_streams", "-of", "json", &mp4]);
        let about: Value = serde_json::from_str(&about).unwrap();
        assert_eq!(
            (&about["streams"][0]["width"], &about["streams"][1]["sample_rate"]),
            (&320.into(), &"44100".into())
        );
    }
}
