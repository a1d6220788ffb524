//! Publishers that are half-open, and those that take the place of others.

use std::thread::spawn;
use std::time::{Duration, Instant};

use protocols::media::{Kind, Picture, Track, Unit};
use rustix::process::Signal;
use sluicegate_tests::{Child, Door, Flv, Gateway, Options, PATIENCE, Viewer, run_ok, wait_for};
use tempfile::TempDir;

use super::{decodes, demo_clip, is_live, make_clip, push, stream};

/// Everything a viewer got when its connection ended.
fn to_the_end(mut viewer: Viewer) -> Vec<Unit> {
    std::iter::from_fn(|| viewer.next()).collect()
}

/// Times of a track go on by at most so much a step, and never back.
fn goes_on(units: &[Unit], track: Track, step_max_ms: i64) {
    let times: Vec<i64> =
        units.iter().filter(|u| u.track == track && u.kind != Kind::Config).map(Unit::dts_ms).collect();
    for pair in times.windows(2) {
        assert!((0..=step_max_ms).contains(&(pair[1] - pair[0])), "{track:?}: {} ms after {} ms", pair[1], pair[0]);
    }
}

#[test]
fn a_half_open_publisher_stands_in_nobodys_way_and_is_found_in_15_s() {
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let endless = ["-stream_loop", "-1"];
    // Frozen: the connection stays and nothing is ever said on it again, as after a power cut behind a router.
    let frozen = push(&demo_clip(), media, "taken", &endless);
    let silent = push(&demo_clip(), media, "silent", &endless);
    wait_for("both", PATIENCE, || is_live(&gateway, "taken").and_then(|()| is_live(&gateway, "silent")));
    let mut viewer = Viewer::open(media, Door::Rtmp, "taken");
    viewer.next_of(Track::Video).expect("a picture");
    let since = || stream(&gateway, "taken").and_then(|s| s["since_us"].as_i64()).unwrap_or(0);
    let began = since();
    frozen.signal(Signal::STOP);
    silent.signal(Signal::STOP);
    let stopped = Instant::now();

    // The next one is taken at once, and the viewer of the first goes on with it.
    let mut next = push(&demo_clip(), media, "taken", &endless);
    wait_for("the takeover", Duration::from_secs(5), || (since() > began).then_some(()));
    let mut last = 0;
    let pictures = Instant::now();
    while pictures.elapsed() < Duration::from_secs(2) {
        let unit = viewer.next_of(Track::Video).expect("the viewer stays");
        assert!(unit.dts_90k > last, "{} after {last}", unit.dts_90k);
        last = unit.dts_90k;
    }
    assert!(next.is_running());

    // Where nobody comes instead, the silence itself is found.
    wait_for("the silent one's end", PATIENCE, || is_live(&gateway, "silent").is_none().then_some(()));
    assert!(stopped.elapsed() < Duration::from_millis(17_500), "found after {:?}", stopped.elapsed());
    gateway.stop();
}

#[test]
fn another_publisher_with_another_picture_goes_on_on_the_viewers_own_connection() {
    let folder = TempDir::new().unwrap();
    let (small, large) = (make_clip(folder.path(), "320x180", 500, 4), make_clip(folder.path(), "640x360", 800, 4));
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 6"));
    let media = gateway.options.media;
    let mut first = push(&small, media, "x", &[]);
    wait_for("the stream", PATIENCE, || is_live(&gateway, "x"));
    let recorded = folder.path().join("seen.flv");
    let mut player = std::process::Command::new("ffmpeg");
    player.args(["-v", "error", "-nostdin", "-y", "-i", &format!("rtmp://127.0.0.1:{media}/live/x"), "-c", "copy"]);
    let mut player = Child::start(player.arg(&recorded));
    let watching: Vec<_> = [Door::HttpFlv, Door::Rtmp]
        .map(|door| Viewer::open(media, door, "x"))
        .into_iter()
        .map(|viewer| spawn(move || to_the_end(viewer)))
        .collect();
    assert!(first.wait(PATIENCE).success());
    wait_for("the pause", PATIENCE, || is_live(&gateway, "x").is_none().then_some(()));
    assert_eq!(stream(&gateway, "x").expect("its viewers are kept")["viewers"], 3);
    let mut second = push(&large, media, "x", &[]);
    wait_for("the stream again", PATIENCE, || is_live(&gateway, "x"));
    assert_eq!(stream(&gateway, "x").unwrap()["viewers"], 3, "the same three");
    assert!(second.wait(PATIENCE).success());

    for watched in watching {
        let units = watched.join().unwrap();
        let sizes: Vec<_> = units
            .iter()
            .filter(|unit| unit.track == Track::Video && unit.kind == Kind::Config)
            .map(|unit| Picture::of(unit).map(|picture| (picture.width, picture.height)).unwrap())
            .collect();
        assert_eq!(sizes, [(320, 180), (640, 360)], "each configuration once");
        // The new one stands before the new key frame, and time goes on: a frame after whatever came last,
        // which may be sound that was longer than the picture.
        let changed = units.iter().rposition(|u| u.track == Track::Video && u.kind == Kind::Config).unwrap();
        let opening = units[changed..].iter().find(|u| u.track == Track::Video && u.kind != Kind::Config).unwrap();
        assert_eq!(opening.kind, Kind::Key);
        goes_on(&units, Track::Video, 240);
        goes_on(&units, Track::Audio, 240);
        assert!(units.iter().filter(|u| u.track == Track::Video).count() > 150, "both clips");
    }
    // And a player that nobody here wrote has seen both, in one piece.
    assert!(player.wait(PATIENCE).success());
    decodes(&recorded);
    let show = ["-v", "error", "-select_streams", "v", "-show_entries", "frame=width", "-of", "csv=p=0"];
    let widths = run_ok("ffprobe", &[&show[..], &[&recorded.display().to_string()]].concat());
    let of = |width: &str| widths.lines().filter(|line| line.trim_matches(',') == width).count();
    assert!(of("320") > 50 && of("640") > 90, "{} and {} pictures", of("320"), of("640"));
    goes_on(&Flv::read(&recorded).units, Track::Video, 240);
    gateway.stop();
}
