//! Cameras asked for their stream by RTSP: an RTSP server that others wrote, our own, and what happens when there is none.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use protocols::media::{Track, Unit};
use sluicegate_tests::camera::{self, AAC, H264};
use sluicegate_tests::{Child, Flv, Gateway, Options, PATIENCE, free_port, shell, wait_for};
use tempfile::TempDir;

/// The RTSP server of GStreamer: a clip from its beginning for each client, asking for user and password.
const SERVER: &str = r#"
import sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gst, GstRtspServer, GLib
Gst.init(None)
server = GstRtspServer.RTSPServer(); server.set_address("127.0.0.1"); server.set_service(sys.argv[1])
auth = GstRtspServer.RTSPAuth(); token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "viewer")
auth.add_basic(GstRtspServer.RTSPAuth.make_basic("viewer", "sesame"), token)
server.set_auth(auth)
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch("( filesrc location=%s ! matroskademux name=d d.video_0 ! queue ! h264parse ! rtph264pay name=pay0 pt=96 "
    "d.audio_0 ! queue ! aacparse ! rtpmp4gpay name=pay1 pt=97 )" % sys.argv[2])
role = GstRtspServer.RTSPPermissions(); role.add_permission_for_role("viewer", "media.factory.access", True)
role.add_permission_for_role("viewer", "media.factory.construct", True); factory.set_permissions(role)
server.get_mount_points().add_factory("/door", factory); server.attach(None)
GLib.MainLoop().run()
"#;

fn clip(folder: &Path) -> PathBuf {
    camera::clip(folder, "ffmpeg", 12, &format!("{H264} {AAC}"))
}

/// Frames of a track that came in one piece from the clip, by content; how far their times are off at most, ms.
fn piece(got: &[Unit], sent: &[Unit], track: Track) -> (usize, i64) {
    let of = |units: &[Unit]| -> Vec<(i64, Vec<u8>)> {
        let own = units.iter().filter(|unit| unit.track == track);
        own.map(|unit| (unit.pts_90k / 90, unit.data.to_vec())).collect()
    };
    let (got, sent) = (of(got), of(sent));
    // The encoder's name stands in the first frame alone, and a server may leave it out.
    let begin = sent.iter().position(|(_, data)| *data == got[2].1).expect("a frame of the clip");
    let offset = sent[begin].0 - got[2].0;
    let pairs = got[2..].iter().zip(&sent[begin..]);
    let alike: Vec<i64> =
        pairs.take_while(|(got, sent)| got.1 == sent.1).map(|(got, sent)| (sent.0 - got.0 - offset).abs()).collect();
    (alike.len(), alike.into_iter().max().unwrap_or(i64::MAX))
}

fn pull(url: &str, more: &str) -> String {
    format!("[[pull]]\nstream = \"live/door\"\nurl = \"{url}\"\n{more}\n")
}

#[test]
fn a_camera_of_another_make_is_pulled_whole_when_somebody_watches() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path());
    let (matroska, script, key) =
        (folder.path().join("clip.mkv"), folder.path().join("server.py"), folder.path().join("key"));
    shell(&format!("ffmpeg -v error -i {} -c copy {}", clip.display(), matroska.display()));
    std::fs::write(&script, SERVER).unwrap();
    std::fs::write(&key, "sesame\n").unwrap();
    let port = free_port();
    let mut server = Command::new("/usr/bin/python3");
    server.arg(&script).arg(port.to_string()).arg(&matroska).stdout(Stdio::null());
    let _server = Child::start(&mut server);
    wait_for("the RTSP server", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    let sent = Flv::read(&clip).frames();
    for transport in ["tcp", "udp"] {
        let more = format!(
            "user = \"viewer\"\npassword_file = \"{}\"\ntransport = \"{transport}\"\nwhen = \"on-demand\"\nidle_seconds = 1\n\
             [stream]\nwait_max_seconds = 20\ngrace_seconds = 0",
            key.display()
        );
        let gateway = Gateway::start(Options::default().with(&pull(&format!("rtsp://127.0.0.1:{port}/door"), &more)));
        assert!(!gateway.get("/metrics").contains("sluicegate_pull_up{stream=\"live/door\"} 1"), "nobody asked yet");
        let got = Flv::get(gateway.options.media, "/live/door.flv").frames();
        for (track, least) in [(Track::Video, 9 * 25), (Track::Audio, 9 * 43)] {
            let (alike, off) = piece(&got, &sent, track);
            assert!(
                alike >= least && off <= 1,
                "{transport} {track:?}: {alike} alike, {off} ms off\n{}",
                gateway.log()
            );
        }
        wait_for("the camera to be let go", PATIENCE, || {
            (gateway.metric("sluicegate_pull_up{stream=\"live/door\"}") < 0.5).then_some(())
        });
        assert!(!gateway.stop().contains("sesame"), "a password is never logged");
    }
}

#[test]
fn what_we_serve_we_can_pull_and_a_camera_that_comes_late_is_found() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path());
    let port = free_port();
    let second =
        Gateway::start(Options::default().with(&pull(
            &format!("rtsp://127.0.0.1:{port}/live/x"),
            "[stream]\nwait_max_seconds = 30\ngrace_seconds = 1",
        )));
    wait_for("a failure", PATIENCE, || {
        (second.metric("sluicegate_pull_failures_total{stream=\"live/door\"}") > 0.5).then_some(())
    });
    let viewer = std::thread::spawn({
        let media = second.options.media;
        move || Flv::get(media, "/live/door.flv").frames()
    });
    let first = Gateway::start(Options::default().with(&format!(
        "[[adapter]]\nname = \"rtsp\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"rtsp\"\nallow_anonymous = true\n\
         [stream]\nwait_max_seconds = 1\ngrace_seconds = 1"
    )));
    let mut camera = Command::new("ffmpeg");
    camera
        .args(["-v", "error", "-nostdin", "-re", "-stream_loop", "-1", "-i"])
        .arg(&clip)
        .args(["-c", "copy", "-f", "flv"]);
    camera.arg(format!("rtmp://127.0.0.1:{}/live/x", first.options.media)).stdin(Stdio::null()).stdout(Stdio::null());
    let camera = Child::start(&mut camera);
    wait_for("the pull", PATIENCE, || {
        (second.metric("sluicegate_stream_frames_total{stream=\"live/door\"}") > 8.0 * 25.0).then_some(())
    });
    drop(camera);
    let (got, sent) = (viewer.join().unwrap(), Flv::read(&clip).frames());
    for (track, least) in [(Track::Video, 2 * 25), (Track::Audio, 2 * 43)] {
        let (alike, off) = piece(&got, &sent, track);
        assert!(alike >= least && off <= 1, "{track:?}: {alike} alike, {off} ms off\n{}", second.log());
    }
    first.stop();
    second.stop();
}
