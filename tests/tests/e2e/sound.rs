//! Audio that browsers cannot play, audio that comes late, never, or alone: picture and sound start all the same.

use std::path::{Path, PathBuf};
use std::thread::spawn;

use bytes::BytesMut;
use protocols::media::amf0::Value;
use protocols::media::{Codec, Container, Kind, Track, Unit};
use serde_json::Value as Json;
use sluicegate_tests::camera::{self};
use sluicegate_tests::{
    Browser, Child, Flv, Gateway, Options, PATIENCE, mpegts_js, newer_ffmpeg, push_rtmp_all, run_ok, shell, wait_for,
};
use tempfile::TempDir;

/// 20 s of a test pattern with a tone of 440 Hz.
fn make(folder: &Path, codecs: &str) -> PathBuf {
    let file = folder.join("clip.flv");
    shell(&format!(
        "ffmpeg -y -hide_banner -loglevel error -f lavfi -i testsrc2=s=320x180:r=25 -f lavfi -i sine=440:r=8000 -t 20 \
         -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p {codecs} -f flv {}",
        file.display()
    ));
    file
}

fn push(clip: &Path, port: u16) -> Child {
    camera::push("ffmpeg", clip, &format!("rtmp://127.0.0.1:{port}/live/x"), &["-stream_loop", "-1"])
}

fn wait_live(gateway: &Gateway, known: &str) -> Json {
    gateway.wait_stream("live/x", |s| !s[known].is_null())
}

/// A page with mpegts.js on the stream.
fn open(folder: &Path, port: u16) -> Browser {
    open_with(folder, port, 0)
}

/// … that comes again after so many errors, as a page in service does.
fn open_with(folder: &Path, port: u16, retries: u32) -> Browser {
    let player = mpegts_js(folder);
    let page = folder.join("page.html");
    let html = format!(
        "<video muted></video><script src=\"file://{}\"></script><script>window.errors = [];\
         function start(retries) {{\
         const player = mpegts.createPlayer({{type: 'flv', isLive: true, url: 'http://127.0.0.1:{port}/live/x.flv'}});\
         player.on(mpegts.Events.ERROR, (kind, detail) => {{ player.destroy();\
         if (retries) start(retries - 1); else errors.push(kind + ' ' + detail); }});\
         player.attachMediaElement(document.querySelector('video')); player.load(); player.play(); }}\
         start({retries});</script>",
        player.display()
    );
    std::fs::write(&page, html).unwrap();
    let browser = Browser::start();
    browser.open(&format!("file://{}", page.display()));
    browser
}

/// Waits until the video runs; `more` has to hold as well.
fn plays(browser: &Browser, more: &str) {
    let script = format!(
        "const v = document.querySelector('video'); if (errors.length) return errors; \
         return v.currentTime > 2 && v.videoWidth === 320 && {more} ? 'plays' : null"
    );
    let outcome = browser.until("a playing video", PATIENCE, &script);
    assert_eq!(outcome, "plays", "{:?}", browser.console());
}

const HEARD: &str = "v.webkitAudioDecodedByteCount > 0";
const SILENT: &str = "v.webkitAudioDecodedByteCount === 0";

#[test]
fn a_browser_hears_and_sees_a_camera_with_g711() {
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), "-c:a pcm_alaw");
    let gateway = Gateway::start(Options::default());
    let _publisher = push(&clip, gateway.options.media);
    assert_eq!(wait_live(&gateway, "audio")["audio"], "AAC");
    plays(&open(folder.path(), gateway.options.media), HEARD);
    gateway.stop();
}

#[test]
fn g711_comes_out_as_aac_that_sounds_the_same_and_keeps_its_time() {
    let folder = TempDir::new().unwrap();
    for (codecs, law) in [("-c:a pcm_alaw", "alaw"), ("-c:a pcm_mulaw", "mulaw")] {
        let clip = make(folder.path(), codecs);
        let gateway = Gateway::start(Options::default());
        let _publisher = push(&clip, gateway.options.media);
        wait_live(&gateway, "audio");
        let url = format!("rtmp://127.0.0.1:{}/live/x", gateway.options.media);
        let file = folder.path().join(format!("{law}.flv")).display().to_string();
        run_ok("ffmpeg", &["-v", "error", "-y", "-i", &url, "-t", "6", "-c", "copy", &file]);
        let show = ["-v", "error", "-show_entries", "stream=codec_name,sample_rate,channels", "-of", "csv=p=0", &file];
        assert!(run_ok("ffprobe", &show).contains("aac,8000,1"), "{law}");
        // Everything but the tone, the noise of G.711 itself included, is less than a tenth of it.
        let level = |filter: &str| {
            let heard = format!("atrim=1:5,{filter},volumedetect");
            let told = shell(&format!("ffmpeg -hide_banner -i {file} -vn -af {heard} -f null - 2>&1"));
            let mean = told.split("mean_volume: ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
            mean.unwrap_or_else(|| panic!("{told}"))
        };
        let (all, rest) = (level("anull"), level("bandreject=f=440:w=60,bandreject=f=440:w=60,bandreject=f=440:w=60"));
        assert!((-22.0..-20.0).contains(&all) && rest < all - 22.0, "{law}: {all} dB, beside the tone {rest} dB");
        let begins = |track: &str| {
            let show =
                ["-v", "error", "-select_streams", track, "-show_entries", "packet=pts_time", "-of", "csv=p=0", &file];
            let times = run_ok("ffprobe", &show);
            times.lines().next_back().and_then(|line| line.trim_matches(',').parse::<f64>().ok()).expect("a time")
        };
        let apart = begins("v") - begins("a");
        assert!((-0.1..0.5).contains(&apart), "{law}: the sound is {apart} s behind");
        gateway.stop();
    }
}

#[test]
fn g711_passes_or_is_left_out_where_a_rule_says_so() {
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), "-c:a pcm_alaw");
    for (choice, codec, flags) in [("pass", Some(Codec::G711A), 5), ("drop", None, 1)] {
        let rules = format!(
            "[stream]\ngrace_seconds = 1\naudio_rules = [{{ stream = \"live/*\", unplayable_audio = \"{choice}\" }}]"
        );
        let gateway = Gateway::start(Options::default().with(&rules));
        let media = gateway.options.media;
        let publisher = push(&clip, media);
        wait_live(&gateway, "video");
        wait_for("audio that is counted", PATIENCE, || {
            let left_out = gateway.metric("sluicegate_stream_audio_left_out_total{stream=\"live/x\"}");
            (choice == "pass" || left_out > 10.0).then_some(())
        });
        let viewer = spawn(move || Flv::get(media, "/live/x.flv"));
        if choice == "drop" {
            plays(&open(folder.path(), media), SILENT);
        } else {
            wait_for("viewers", PATIENCE, || (gateway.metric("sluicegate_stream_viewers") > 0.0).then_some(()));
        }
        drop(publisher);
        let got = viewer.join().unwrap();
        let audio = got.units.iter().find(|unit| unit.track == Track::Audio).map(|unit| unit.codec);
        assert_eq!((audio, got.flags), (codec, flags), "{choice}");
        gateway.stop();
    }
}

/// Units of a clip without the audio, or with it from this second on.
fn units(clip: &Path, audio_from: Option<i64>) -> Vec<Unit> {
    let mut units = Flv::read(clip).units;
    units.retain(|unit| unit.track == Track::Video || audio_from.is_some_and(|from| unit.dts_90k >= from * 90_000));
    units
}

fn push_units(port: u16, units: Vec<Unit>) {
    // It ends with the gateway at the latest.
    drop(spawn(move || push_rtmp_all(port, "x", &units, Container::Rtmp)));
}

#[test]
fn audio_that_is_announced_and_never_comes_holds_nobody_up() {
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), "-c:a aac -ar 44100");
    let mut units = units(&clip, None);
    let mut announced = BytesMut::new();
    Value::from("onMetaData").write(&mut announced);
    let fields =
        [("hasAudio", Value::Boolean(true)), ("hasVideo", Value::Boolean(true)), ("audiocodecid", 10.0.into())];
    Value::object(fields).write(&mut announced);
    let metadata = Unit {
        track: Track::Data,
        codec: Codec::Script,
        kind: Kind::Config,
        data: announced.freeze(),
        ..units[0].clone()
    };
    units.insert(0, metadata);
    let gateway = Gateway::start(Options::default());
    push_units(gateway.options.media, units);
    wait_live(&gateway, "video");
    plays(&open(folder.path(), gateway.options.media), SILENT);
    gateway.stop();
}

#[test]
fn audio_that_joins_late_comes_to_those_there_and_to_a_browser_that_tries_again() {
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), "-c:a aac -ar 44100");
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let mut late = units(&clip, Some(3));
    let config =
        Flv::read(&clip).units.into_iter().find(|unit| unit.track == Track::Audio && unit.kind == Kind::Config);
    let at = late.iter().position(|unit| unit.track == Track::Audio).unwrap();
    let dts_90k = late[at].dts_90k;
    late.insert(at, Unit { dts_90k, pts_90k: dts_90k, ..config.unwrap() });
    push_units(media, late);
    wait_live(&gateway, "video");
    // A browser that has begun without sound takes no further track (MSE): it has to come again, once.
    let early = open_with(folder.path(), media, 1);
    let flv = spawn(move || Flv::get(media, "/live/x.flv"));
    wait_live(&gateway, "audio");
    plays(&early, HEARD);
    let got = flv.join().unwrap();
    assert!(got.units.iter().any(|unit| unit.track == Track::Audio && unit.kind == Kind::Key), "audio came");
    gateway.stop();
}

#[test]
fn one_track_alone_plays() {
    let folder = TempDir::new().unwrap();
    let clip = folder.path().join("clip.flv");
    for (input, flags) in [
        ("testsrc2=s=320x180:r=25 -c:v libx264 -preset ultrafast -g 25 -pix_fmt yuv420p", 1),
        ("sine=440:r=44100 -c:a aac", 4),
    ] {
        shell(&format!(
            "ffmpeg -v error -y -f lavfi -i {} -t 8 {} {}",
            input.split_once(' ').unwrap().0,
            input.split_once(' ').unwrap().1,
            clip.display()
        ));
        let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
        let media = gateway.options.media;
        let publisher = push(&clip, media);
        wait_live(&gateway, if flags == 1 { "video" } else { "audio" });
        let browser = open(folder.path(), media);
        let script =
            "if (errors.length) return errors; return document.querySelector('video').currentTime > 2 ? 'plays' : null";
        assert_eq!(browser.until("a playing element", PATIENCE, script), "plays", "{:?}", browser.console());
        let peer = newer_ffmpeg().display().to_string();
        let url = format!("http://127.0.0.1:{media}/live/x.flv");
        let heard = run_ok(&peer, &["-v", "error", "-i", &url, "-t", "2", "-c", "copy", "-f", "framemd5", "-"]);
        assert!(heard.lines().filter(|line| !line.starts_with('#')).count() > 40, "{heard}");
        let viewer = spawn(move || Flv::get(media, "/live/x.flv"));
        wait_for("three viewers", PATIENCE, || (gateway.metric("sluicegate_stream_viewers") > 1.0).then_some(()));
        drop(publisher);
        assert_eq!(viewer.join().unwrap().flags, flags);
        gateway.stop();
    }
}
