//! GStreamer as the player: a demultiplexer and an RTMP client that share nothing with ffmpeg's.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use sluicegate_tests::{Child, Gateway, Options, PATIENCE, run_ok, shell, wait_for};
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

/// Lets GStreamer pull for 7 s (an interrupted gst-launch ends with 0 or 130): both tracks go through their parsers into files, in which ffprobe counts the frames.
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
    shell(&format!(
        "timeout --preserve-status -s INT 7 gst-launch-1.0 -q -e {source} location={path} ! flvdemux name=d \
         d.video ! queue ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au ! filesink location={} \
         d.audio ! queue ! aacparse ! audio/mpeg,stream-format=adts ! filesink location={} || [ $? = 130 ]",
        video.display(),
        audio.display(),
        path = path.replace("PORT", &media.to_string()),
    ));
    let frames = |file: &Path| {
        let count = ["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"];
        let told = run_ok("ffprobe", &[&count[..], &[&file.display().to_string()]].concat());
        told.trim().trim_matches(',').parse::<u32>().unwrap_or_else(|_| panic!("{told}"))
    };
    let counted = (frames(&video), frames(&audio));
    assert!(counted.0 >= 75 && counted.1 >= 130, "{counted:?} frames of video and audio in 7 s");
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
