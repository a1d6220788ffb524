//! GStreamer as the player: a demultiplexer and an RTMP client that share nothing with ffmpeg's.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use sluicegate_tests::{Child, Gateway, Options, PATIENCE, run, shell, wait_for};
use tempfile::TempDir;

fn camera(folder: &Path, port: u16) -> Child {
    let clip = folder.join("clip.flv");
    shell(&format!(
        "ffmpeg -v error -f lavfi -i testsrc2=s=320x180:r=25 -f lavfi -i sine=440:r=44100 -t 20 -c:v libx264 -preset ultrafast \
         -bf 2 -g 25 -pix_fmt yuv420p -c:a aac -f flv {}",
        clip.display()
    ));
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-nostdin", "-re", "-stream_loop", "-1", "-i"]).arg(clip);
    command.args(["-c", "copy", "-f", "flv", &format!("rtmp://127.0.0.1:{port}/live/x")]);
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// Lets GStreamer pull until both tracks went through their parsers into files, in which ffprobe then counts the frames.
fn pulls(source: &str, path: &str) {
    let folder = TempDir::new().unwrap();
    let gateway = Gateway::start(Options::default());
    let media = gateway.options.media;
    let _camera = camera(folder.path(), media);
    wait_for("live/x", PATIENCE, || {
        let streams: Value = serde_json::from_str(&gateway.get("/api/v1/streams")).ok()?;
        let list = streams.as_array().or_else(|| streams["streams"].as_array())?;
        list.iter().any(|s| s["name"] == "live/x" && !s["audio"].is_null()).then_some(())
    });
    let (video, audio) = (folder.path().join("video.h264"), folder.path().join("audio.aac"));
    let mut line = Command::new("gst-launch-1.0");
    line.args(["-q", "-e"])
        .args(source.split(' '))
        .arg(format!("location={}", path.replace("PORT", &media.to_string())));
    line.args("! flvdemux name=d d.video ! queue ! h264parse !".split(' '));
    line.args("video/x-h264,stream-format=byte-stream,alignment=au ! filesink buffer-mode=unbuffered".split(' '));
    line.arg(format!("location={}", video.display()));
    line.args(
        "d.audio ! queue ! aacparse ! audio/mpeg,stream-format=adts ! filesink buffer-mode=unbuffered".split(' '),
    );
    line.arg(format!("location={}", audio.display()));
    let mut player = Child::start(line.stdin(Stdio::null()).stdout(Stdio::null()));
    let began = Instant::now();
    let frames = |file: &Path| {
        let count = ["-v", "quiet", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"];
        let told = run("ffprobe", &[&count[..], &[&file.display().to_string()]].concat()).stdout;
        String::from_utf8_lossy(&told).trim().trim_matches(',').parse::<u32>().unwrap_or(0)
    };
    wait_for("three seconds in files", PATIENCE, || (frames(&video) >= 75 && frames(&audio) >= 130).then_some(()));
    // A second comes from before it joined, the rest at the camera's pace.
    let joined = began.elapsed().as_secs_f64();
    assert!(joined < 15.0, "three seconds of the stream took {joined:.1} s");
    player.signal(rustix::process::Signal::INT);
    let ended = player.wait(PATIENCE);
    assert!(ended.success() || ended.code() == Some(130), "{ended}");
    gateway.stop();
}

#[test]
fn gstreamer_plays_rtmp() {
    pulls("rtmp2src", "rtmp://127.0.0.1:PORT/live/x");
}

#[test]
fn gstreamer_plays_http_flv() {
    pulls("souphttpsrc is-live=true", "http://127.0.0.1:PORT/live/x.flv");
}
