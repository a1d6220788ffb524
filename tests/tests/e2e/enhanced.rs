//! Enhanced RTMP with an encoder and player that speak it: AV1 and Opus, several tracks, H.265 for a player that says nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{JoinHandle, spawn};

use protocols::media::{Codec, Kind, Unit};
use serde_json::Value;
use sluicegate_tests::camera::{self};
use sluicegate_tests::{Child, Flv, Gateway, Options, PATIENCE, newer_ffmpeg, run_ok, wait_for};
use tempfile::TempDir;

fn make(folder: &Path, ffmpeg: &str, codecs: &str) -> PathBuf {
    camera::clip(folder, ffmpeg, 12, &format!("{codecs} -g 25 -pix_fmt yuv420p"))
}

fn push(ffmpeg: &str, clip: &Path, port: u16, more: &[&str]) -> Child {
    let mut command = Command::new(ffmpeg);
    command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-re", "-i"]).arg(clip);
    command.args(more).args(["-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{port}/live/x")]);
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

fn wait_live(gateway: &Gateway) -> Value {
    gateway.wait_stream("live/x", |s| s["width"].as_u64() > Some(0) && !s["audio"].is_null())
}

/// What a player of a URL gets, in the background: decode time, length and checksum of each packet of a track. The
/// delimiter that ffmpeg puts before each AV1 frame says nothing, and is taken off on both sides.
fn player(ffmpeg: &str, url: String, track: &'static str, av1: bool) -> JoinHandle<Vec<String>> {
    let ffmpeg = ffmpeg.to_owned();
    spawn(move || {
        let mut arguments = vec!["-v", "error", "-copyts", "-i", &url, "-map", track, "-c", "copy"];
        arguments.extend_from_slice(if av1 { &["-bsf", "av1_metadata=td=remove"] } else { &[] });
        arguments.extend_from_slice(&["-f", "framemd5", "-"]);
        let text = run_ok(&ffmpeg, &arguments);
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    })
}

/// Everything of `part` is in `whole`, in order and in one piece.
fn is_piece_of<T: PartialEq + std::fmt::Debug>(part: &[T], whole: &[T], least: usize) {
    assert!(part.len() >= least, "only {} of {}", part.len(), whole.len());
    let begin = whole.iter().position(|one| *one == part[0]).expect("the first is of what was pushed");
    for (offset, one) in part.iter().enumerate() {
        assert_eq!(Some(one), whole.get(begin + offset), "{offset} after {begin}");
    }
}

fn track(units: &[Unit], codec: Codec) -> Vec<Unit> {
    units.iter().filter(|unit| unit.codec == codec && unit.kind != Kind::Config).cloned().collect()
}

#[test]
fn av1_and_opus_come_out_as_they_went_in() {
    let ffmpeg = newer_ffmpeg().display().to_string();
    let folder = TempDir::new().unwrap();
    let clip = make(folder.path(), &ffmpeg, "-c:v libsvtav1 -preset 12 -c:a libopus -b:a 48k");
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let mut publisher = push(&ffmpeg, &clip, media, &[]);
    let info = wait_live(&gateway);
    assert_eq!((&info["video"], &info["width"], &info["height"]), (&"AV1".into(), &320.into(), &180.into()), "{info}");
    assert_eq!(info["audio"], "Opus", "{info}");

    let (rtmp, http) = (format!("rtmp://127.0.0.1:{media}/live/x"), format!("http://127.0.0.1:{media}/live/x.flv"));
    let players: Vec<_> = [&rtmp, &http]
        .into_iter()
        .flat_map(|url| [player(&ffmpeg, url.clone(), "0:v", true), player(&ffmpeg, url.clone(), "0:a", false)])
        .collect();
    let got = Flv::get(media, "/live/x.flv");
    assert!(publisher.wait(PATIENCE).success());

    let sent = Flv::read(&clip);
    is_piece_of(&track(&got.units, Codec::Av1), &track(&sent.units, Codec::Av1), 9 * 25);
    is_piece_of(&track(&got.units, Codec::Opus), &track(&sent.units, Codec::Opus), 9 * 50);
    let file = clip.display().to_string();
    let sent = [player(&ffmpeg, file.clone(), "0:v", true), player(&ffmpeg, file, "0:a", false)];
    let sent = sent.map(|player| player.join().unwrap());
    for (at, player) in players.into_iter().enumerate() {
        let least = 8 * if at % 2 == 0 { 25 } else { 50 };
        is_piece_of(&player.join().unwrap(), &sent[at % 2], least);
    }
    gateway.stop();
}

#[test]
fn of_several_tracks_the_first_is_carried_and_the_rest_is_counted() {
    let ffmpeg = newer_ffmpeg().display().to_string();
    let folder = TempDir::new().unwrap();
    let clip = make(
        folder.path(),
        &ffmpeg,
        "-f lavfi -i testsrc2=s=160x90:r=25 -f lavfi -i sine=880:r=48000 -map 0 -map 2 -map 1 -map 3 \
         -c:v libx264 -preset ultrafast -c:a aac",
    );
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let mut publisher = push(&ffmpeg, &clip, gateway.options.media, &["-map", "0"]);
    let info = wait_live(&gateway);
    assert_eq!(
        (&info["video"], &info["width"], &info["audio"]),
        (&"H264".into(), &320.into(), &"AAC".into()),
        "{info}"
    );
    let media = gateway.options.media;
    let viewer = spawn(move || Flv::get(media, "/live/x.flv"));
    wait_for("packets of the other tracks to be counted", PATIENCE, || {
        (gateway.metric("sluicegate_stream_faults_total{stream=\"live/x\"}") > 200.0).then_some(())
    });
    assert!(publisher.wait(PATIENCE).success());
    let got = viewer.join().unwrap();
    let sent = Flv::read(&clip);
    is_piece_of(&track(&got.units, Codec::H264), &track(&sent.units, Codec::H264), 9 * 25);
    is_piece_of(&track(&got.units, Codec::Aac), &track(&sent.units, Codec::Aac), 9 * 46);
    gateway.stop();
}

/// ffmpeg 6.1 and later know H.265 in FLV by FourCC, announce nothing, and cannot read codec id 12.
#[test]
fn a_player_that_announces_nothing_but_is_ffmpeg_plays_h265() {
    let ffmpeg = newer_ffmpeg().display().to_string();
    let folder = TempDir::new().unwrap();
    let codecs = "-c:v libx265 -preset ultrafast -x265-params log-level=error -c:a aac";
    let clip = make(folder.path(), &ffmpeg, codecs);
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let mut publisher = push(&ffmpeg, &clip, media, &[]);
    wait_live(&gateway);
    let plays = player(&ffmpeg, format!("rtmp://127.0.0.1:{media}/live/x"), "0:v", false);
    assert!(publisher.wait(PATIENCE).success());
    let sent = player(&ffmpeg, clip.display().to_string(), "0:v", false).join().unwrap();
    is_piece_of(&plays.join().unwrap(), &sent, 8 * 25);
    gateway.stop();
}
