//! RTSP in: what ffmpeg and GStreamer push over the connection and over UDP is what viewers get, under the rules of any
//! publisher, and hostile publishers hurt nobody.

use std::io::Write;
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use protocols::media::{Codec, Track, Unit};
use serde_json::{Value, json};
use sluicegate_tests::camera;
use sluicegate_tests::{
    Child, Flv, Gateway, HookReply, HookServer, Options, PATIENCE, free_port, newer_ffmpeg, run_ok, shell, wait_for,
};
use tempfile::TempDir;

use crate::rtsp::{Client, H264, clip, gateway, same, session};

/// Viewers come first and wait; an ended stream is let go soon.
const PATIENT: &str = "[stream]\nwait_max_seconds = 20\ngrace_seconds = 1\n";

fn push(ffmpeg: &str, clip: &Path, transport: &str, url: &str) -> Child {
    let mut command = Command::new(ffmpeg);
    command.args(["-hide_banner", "-loglevel", "error", "-nostdin", "-re", "-i"]).arg(clip);
    command.args(["-c", "copy", "-f", "rtsp", "-rtsp_transport", transport, url]);
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()))
}

/// All that a viewer gets of a stream that is still to come.
fn viewer(gateway: &Gateway, name: &str) -> std::thread::JoinHandle<Vec<Unit>> {
    Flv::frames_to_come(gateway.options.media, &format!("/{name}.flv"))
}

fn streams(gateway: &Gateway) -> Vec<Value> {
    serde_json::from_str(&gateway.get("/api/v1/streams")).unwrap()
}

fn is_live(gateway: &Gateway, name: &str) -> bool {
    streams(gateway).iter().any(|s| s["name"] == name && s["live"] == true)
}

fn wait_live(gateway: &Gateway, name: &str) {
    wait_for(&format!("{name} live"), PATIENCE, || is_live(gateway, name).then_some(()));
}

fn count(units: &[Unit], track: Track) -> usize {
    units.iter().filter(|unit| unit.track == track).count()
}

#[test]
fn ffmpeg_pushes_over_the_connection_and_over_udp_and_every_access_unit_arrives() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 6);
    let (gateway, port) = gateway(PATIENT);
    let newer = newer_ffmpeg().display().to_string();
    let all = [("ffmpeg", "tcp"), ("ffmpeg", "udp"), (newer.as_str(), "tcp"), (newer.as_str(), "udp")];
    let talks: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(at, (ffmpeg, transport))| {
            let name = format!("live/x{at}");
            let viewer = viewer(&gateway, &name);
            (viewer, push(ffmpeg, &clip, transport, &format!("rtsp://127.0.0.1:{port}/{name}")))
        })
        .collect();
    let sent = Flv::read(&clip).frames();
    for ((viewer, mut publisher), how) in talks.into_iter().zip(all) {
        let (got, how) = (viewer.join().unwrap(), format!("{how:?}"));
        let video = same(&got, &sent, Track::Video, count(&sent, Track::Video), &how);
        // Sound from before the first key frame is not given to who comes then.
        let audio = same(&got, &sent, Track::Audio, count(&sent, Track::Audio) - 5, &how);
        assert!((video - audio).abs() <= 2, "{how}: sound and picture are {} ms apart", video - audio);
        assert!(publisher.wait(PATIENCE).success(), "{how}");
    }
    gateway.stop();
}

#[test]
fn h265_with_g711_is_pushed_by_rtsp() {
    let folder = TempDir::new().unwrap();
    let (newer, clip) = (newer_ffmpeg().display().to_string(), folder.path().join("clip.flv"));
    shell(&format!(
        "{newer} -v error -f lavfi -i testsrc2=s=320x180:r=25 -f lavfi -i sine=440:r=8000 -t 5 -c:v libx265 -preset ultrafast \
         -x265-params log-level=error -g 25 -pix_fmt yuv420p -c:a pcm_alaw -ac 1 -ar 8000 {}",
        clip.display()
    ));
    let (gateway, port) = gateway(&format!("{PATIENT}unplayable_audio = \"pass\"\n"));
    let sent = Flv::read(&clip).frames();
    let sound = |units: &[Unit]| -> Vec<u8> {
        let own = units.iter().filter(|unit| unit.track == Track::Audio);
        own.inspect(|unit| assert_eq!(unit.codec, Codec::G711A)).flat_map(|unit| unit.data.to_vec()).collect()
    };
    let talks = ["tcp", "udp"].map(|transport| {
        let name = format!("live/{transport}");
        let viewer = viewer(&gateway, &name);
        (viewer, push(&newer, &clip, transport, &format!("rtsp://127.0.0.1:{port}/{name}")), transport)
    });
    for (viewer, _publisher, how) in talks {
        let got = viewer.join().unwrap();
        let pictures = |units: &[Unit]| -> Vec<Vec<Vec<u8>>> {
            let own = units.iter().filter(|unit| unit.codec == Codec::H265);
            let slices = own.map(|unit| protocols::media::h264::nals(&unit.data, 4));
            slices.map(|nals| nals.filter(|nal| nal[0] >> 1 < 32).map(<[u8]>::to_vec).collect()).collect()
        };
        assert!(pictures(&got) == pictures(&sent) && !pictures(&got).is_empty(), "{how}: pictures differ");
        let (got, sent) = (sound(&got), sound(&sent));
        assert!(sent.ends_with(&got) && got.len() > 4 * 8_000, "{how}: sound differs: {} of {}", got.len(), sent.len());
    }
    gateway.stop();
}

#[test]
fn av1_with_opus_goes_in_and_comes_out_by_rtsp() {
    let folder = TempDir::new().unwrap();
    let newer = newer_ffmpeg().display().to_string();
    let codecs = "-c:v libsvtav1 -preset 12 -g 25 -pix_fmt yuv420p -svtav1-params pred-struct=1 -c:a libopus -b:a 48k";
    let clip = camera::clip(folder.path(), &newer, 8, codecs);
    let (gateway, port) = gateway(PATIENT);
    let viewer = viewer(&gateway, "live/in");
    let url = format!("rtsp://127.0.0.1:{port}/live/in");
    let mut command = Command::new(&newer);
    command.args(["-v", "error", "-nostdin", "-re", "-i"]).arg(&clip);
    command.args(["-c", "copy", "-strict", "experimental", "-f", "rtsp", "-rtsp_transport", "udp", &url]);
    let _publisher = Child::start(command.stdin(Stdio::null()).stdout(Stdio::null()));
    wait_live(&gateway, "live/in");
    let packets = |input: &[&str], count: &[&str]| -> Vec<String> {
        let bare = ["-c", "copy", "-bsf:v", "av1_metadata=td=remove", "-f", "framemd5", "-"];
        let text = run_ok(&newer, &[&["-v", "error"], input, &["-map", "0:v"], count, &bare].concat());
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(',').skip(4).take(2).map(str::trim).collect::<Vec<_>>().join(" ")).collect()
    };
    let file = clip.display().to_string();
    for transport in ["tcp", "udp"] {
        let got = packets(&["-rtsp_transport", transport, "-i", &url], &["-frames:v", "15"]);
        let sent = packets(&["-i", &file], &[]);
        let begin = sent.iter().position(|packet| *packet == got[0]).expect("a picture of the clip");
        assert!(got.len() == 15 && sent[begin..].starts_with(&got), "{transport}: {} pictures", got.len());
    }
    let (got, sent) = (viewer.join().unwrap(), Flv::read(&clip).frames());
    for track in [Track::Video, Track::Audio] {
        let all = |units: &[Unit]| -> Vec<_> {
            units.iter().filter(|unit| unit.track == track).map(|unit| unit.data.clone()).collect()
        };
        let (got, sent) = (all(&got), all(&sent));
        assert!(sent.ends_with(&got) && got.len() > sent.len() - 8, "{track:?}: {} of {}", got.len(), sent.len());
    }
    gateway.stop();
}

/// The milliseconds by which each unit of a track came out earlier than it was sent, from the first that is the clip's on.
fn offsets(got: &[Unit], sent: &[Unit], track: Track, missing_max: usize, how: &str) -> Vec<i64> {
    let all = |units: &[Unit]| -> Vec<Unit> { units.iter().filter(|unit| unit.track == track).cloned().collect() };
    let (got, sent) = (all(got), all(sent));
    let begin = sent.iter().position(|unit| unit.data == got[2].data).expect("of the clip") - 2;
    let pairs: Vec<(&Unit, &Unit)> = got.iter().zip(&sent[begin..]).collect();
    assert!(
        pairs.len() + missing_max >= sent.len() && pairs.iter().all(|(got, sent)| got.data == sent.data),
        "{how}: {track:?}"
    );
    pairs.iter().map(|(got, sent)| (sent.pts_90k - got.pts_90k) / 90).collect()
}

/// GStreamer sends its AAC as LATM, and its first sender report later than its first packets. It ends by itself over the
/// connection; over UDP its sink may wait forever for its own end, so it is let go when nothing comes any more.
#[test]
fn gstreamer_pushes_over_the_connection_and_over_udp() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 6);
    let (gateway, port) = gateway(PATIENT);
    let sent = Flv::read(&clip).frames();
    let pictures = sent.iter().filter(|unit| unit.track == Track::Video).count();
    let talks = ["tcp", "udp"].map(|transport| {
        let viewer = viewer(&gateway, &format!("live/{transport}"));
        let mut line = Command::new("gst-launch-1.0");
        line.args(["-q", "rtspclientsink", "name=s", &format!("protocols={transport}")]);
        line.arg(format!("location=rtsp://127.0.0.1:{port}/live/{transport}"));
        line.args(["filesrc", &format!("location={}", clip.display()), "!", "flvdemux", "name=d"]);
        line.args("d.video ! queue ! h264parse ! s. d.audio ! queue ! aacparse ! s.".split(' '));
        (viewer, Child::start(line.stdin(Stdio::null()).stdout(Stdio::null())), transport)
    });
    for (viewer, publisher, how) in talks {
        let name = format!("live/{how}");
        let frames = || gateway.metric(&format!("sluicegate_stream_frames_total{{stream=\"{name}\"}}"));
        let flows = || streams(&gateway).iter().any(|stream| stream["name"] == name.as_str() && stream["fps"] != 0.0);
        let through = || viewer.is_finished() || frames() + 3.0 >= pictures as f64 && !flows();
        wait_for("the clip's end", PATIENCE, || through().then_some(()));
        drop(publisher);
        let got = viewer.join().unwrap();
        // Where a track arrives it begins, and with the first report the one that is early is moved beside the other, once,
        // if that is by more than 20 ms.
        let [video, audio] =
            [(Track::Video, 3), (Track::Audio, 24)].map(|(track, max)| offsets(&got, &sent, track, max, how));
        for own in [&video, &audio] {
            let late = &own[own.len() / 2 + 20..];
            let apart = late.iter().map(|offset| (offset - video[video.len() - 1]).abs()).max();
            assert!(apart <= Some(22), "{how}: {video:?} {audio:?}");
            assert!(own[2..].windows(2).filter(|pair| (pair[1] - pair[0]).abs() > 2).count() <= 1, "{how}: {own:?}");
        }
    }
    gateway.stop();
}

#[test]
fn a_publisher_over_rtsp_is_held_to_the_rules_of_any() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 20);
    let secret = folder.path().join("key");
    std::fs::write(&secret, "sesame").unwrap();
    let hooks = HookServer::start();
    hooks.reply("on_publish", "live/no", HookReply::Status(403));
    let port = free_port();
    let gateway =
        Gateway::start(Options::default().with(&hooks.toml(&["on_publish", "on_publish_done"])).with(&format!(
            "[[adapter]]\nname = \"rtsp\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"rtsp\"\n\
         [[credential]]\nname = \"camera\"\nsecret_file = \"{}\"\npush = [\"live/*\"]\n{PATIENT}",
            secret.display()
        )));
    for wrong in [
        "rtsp://127.0.0.1:PORT/live/x",
        "rtsp://camera:wrong@127.0.0.1:PORT/live/x",
        "rtsp://127.0.0.1:PORT/live/no?key=sesame",
    ] {
        let mut denied = push("ffmpeg", &clip, "tcp", &wrong.replace("PORT", &port.to_string()));
        assert!(!denied.wait(PATIENCE).success(), "{wrong}");
    }
    assert!(streams(&gateway).is_empty());
    let viewer = viewer(&gateway, "live/x");
    let first = push("ffmpeg", &clip, "tcp", &format!("rtsp://127.0.0.1:{port}/live/x?key=sesame"));
    let asked = hooks.until("on_publish", "live/x");
    assert_eq!((asked.target.as_str(), &asked.body["protocol"]), ("/on_publish?key=sesame", &json!("rtsp")));
    wait_live(&gateway, "live/x");
    // Another takes over, over UDP with its key as the password, and one more over RTMP; the viewer stays.
    let frames = || gateway.metric("sluicegate_stream_frames_total{stream=\"live/x\"}");
    wait_for("two seconds", PATIENCE, || (frames() > 120.0).then_some(()));
    let mut second = push("ffmpeg", &clip, "udp", &format!("rtsp://camera:sesame@127.0.0.1:{port}/live/x"));
    wait_for("a takeover", PATIENCE, || (hooks.asked("on_publish_done").len() == 1).then_some(()));
    drop(first);
    let before = frames();
    wait_for("two seconds more", PATIENCE, || (frames() > before + 120.0).then_some(()));
    let rtmp = format!("rtmp://127.0.0.1:{}/live/x", gateway.options.media);
    let mut third = Command::new("ffmpeg");
    third.args(["-v", "error", "-nostdin", "-re", "-i"]).arg(&clip).args(["-t", "3", "-c", "copy", "-f", "flv", &rtmp]);
    let mut third = Child::start(third.stdin(Stdio::null()));
    wait_for("another takeover", PATIENCE, || (hooks.asked("on_publish_done").len() == 2).then_some(()));
    assert!(!second.wait(PATIENCE).success(), "the one over UDP hears of it");
    assert!(third.wait(PATIENCE).success());
    let got = viewer.join().unwrap();
    let times: Vec<i64> = got.iter().filter(|unit| unit.track == Track::Video).map(|unit| unit.dts_90k).collect();
    assert!(times.len() > 150 && times.windows(2).all(|pair| (0..90_000).contains(&(pair[1] - pair[0]))), "{times:?}");
    gateway.stop();
}

/// A publisher that stops in the middle is found, over either wire.
#[test]
fn a_half_open_publisher_is_found_over_either_wire() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 20);
    let (gateway, port) = gateway("[stream]\nsilence_max_seconds = 2\ngrace_seconds = 0\n");
    let publishers = ["tcp", "udp"]
        .map(|transport| push("ffmpeg", &clip, transport, &format!("rtsp://127.0.0.1:{port}/live/{transport}")));
    for name in ["live/tcp", "live/udp"] {
        wait_live(&gateway, name);
    }
    for publisher in &publishers {
        publisher.signal(rustix::process::Signal::STOP);
    }
    let began = Instant::now();
    wait_for("both to be let go", PATIENCE, || {
        ["live/tcp", "live/udp"].iter().all(|name| !is_live(&gateway, name)).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    wait_for("their connections", PATIENCE, || {
        (gateway.metric("sluicegate_connections{adapter=\"rtsp\"}") < 0.5).then_some(())
    });
    for publisher in &publishers {
        publisher.signal(rustix::process::Signal::CONT);
    }
    gateway.stop();
}

const DESCRIPTION: &str = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n\
    m=audio 0 RTP/AVP 8\r\na=control:streamid=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n\
    a=fmtp:96 sprop-parameter-sets=Z0LAC9oKEflwEQAAAwABAAADADIPFCqg,aM48gA==\r\na=control:streamid=1\r\n";

fn announce(client: &mut Client, path: &str, description: &str) -> String {
    client.ask_with("ANNOUNCE", path, "Content-Type: application/sdp\r\n", description)
}

/// A key frame in one packet.
fn packet(sequence: u16) -> Vec<u8> {
    let [high, low] = sequence.to_be_bytes();
    let mut packet = vec![0x80, 0xe0, high, low, 0, high, low, 0, 1, 2, 3, 4, 0x65, 0x88];
    packet.extend([0xd5; 160]);
    packet
}

#[test]
fn hostile_publishers_get_their_answers_and_hurt_nobody() {
    let (gateway, port) = gateway("[stream]\ngrace_seconds = 0\nunplayable_audio = \"pass\"\n");
    let mut client = Client::connect(port);
    let many = "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n".repeat(200);
    for (description, code) in [
        ("", "400 "),
        ("hello", "400 "),
        ("v=0\r\nm=video\r\n", "400 "),
        ("v=0\r\n", "415 "),
        ("v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 theora/90000\r\nm=audio 0 RTP/AVP 8\r\n", "415 "),
        ("v=0\r\nm=audio 0 RTP/AVP 97\r\na=rtpmap:97 MPEG4-GENERIC/0\r\na=fmtp:97 config=zz\r\n", "415 "),
        ("v=0\r\nm=audio 0 RTP/AVP 97\r\na=rtpmap:97 MP4A-LATM/44100\r\na=fmtp:97 config=40\r\n", "415 "),
        (&format!("v=0\r\n{many}"), "200 "),
        (DESCRIPTION, "455 "),
    ] {
        let answer = announce(&mut client, "/live/x", description);
        assert!(answer.starts_with(&format!("RTSP/1.0 {code}")), "{description:.60}: {answer}");
    }
    assert!(client.ask("DESCRIBE", "/live/x", "").starts_with("RTSP/1.0 455 "));
    let mut client = Client::connect(port);
    assert!(announce(&mut client, "/live/..", DESCRIPTION).starts_with("RTSP/1.0 404 "));
    assert!(announce(&mut client, "/live/x", DESCRIPTION).starts_with("RTSP/1.0 200 "));
    assert!(client.ask("RECORD", "/live/x", "").starts_with("RTSP/1.0 455 "), "nothing is set up");
    assert!(
        client
            .ask("SETUP", "/live/x/streamid=7", "Transport: RTP/AVP/TCP;interleaved=0-1\r\n")
            .starts_with("RTSP/1.0 404 ")
    );
    let answer = client.ask("SETUP", "/live/x/streamid=1", "Transport: RTP/AVP/TCP;interleaved=2-3;mode=record\r\n");
    assert!(answer.contains("interleaved=2-3;mode=record"), "{answer}");
    let own = session(&answer);
    assert!(client.ask("PLAY", "/live/x", &own).starts_with("RTSP/1.0 455 "));
    assert!(client.ask("RECORD", "/live/x", &own).starts_with("RTSP/1.0 200 "));
    // Empty packets, other channels, other payload types, broken headers: faults, and the good ones between them arrive.
    for sequence in 0..50 {
        let good = packet(sequence);
        for (channel, packet) in
            [(2, &[][..]), (9, &good), (3, &[0x80, 200, 255, 255]), (2, &[0x80, 99, 0, 0]), (2, &good)]
        {
            let len = u16::try_from(packet.len()).unwrap().to_be_bytes();
            client.socket.write_all(&[&[b'$', channel, len[0], len[1]], packet].concat()).unwrap();
        }
    }
    let frames = |name: &str| gateway.metric(&format!("sluicegate_stream_frames_total{{stream=\"{name}\"}}"));
    wait_for("50 packets", PATIENCE, || (frames("live/x") >= 50.0).then_some(()));
    assert!(frames("live/x") < 51.0);
    assert!(client.ask("GET_PARAMETER", "/live/x", &own).starts_with("RTSP/1.0 200 "));
    assert!(client.ask("TEARDOWN", "/live/x", &own).starts_with("RTSP/1.0 200 "));
    wait_for("its end", PATIENCE, || (!is_live(&gateway, "live/x")).then_some(()));
    gateway.stop();
}

#[test]
fn packets_over_udp_count_from_the_publisher_alone_and_in_any_order() {
    let (gateway, port) = gateway("[stream]\ngrace_seconds = 0\n");
    let frames = |name: &str| gateway.metric(&format!("sluicegate_stream_frames_total{{stream=\"{name}\"}}"));
    let mut client = Client::connect(port);
    announce(&mut client, "/live/u", DESCRIPTION);
    let (rtp, stranger) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let at = rtp.local_addr().unwrap().port();
    let transport = format!("Transport: RTP/AVP;unicast;client_port={at}-{};mode=record\r\n", at ^ 1);
    let answer = client.ask("SETUP", "/live/u/streamid=1", &transport);
    let to: u16 = answer.split("server_port=").nth(1).unwrap().split('-').next().unwrap().parse().unwrap();
    assert!(client.ask("RECORD", "/live/u", &session(&answer)).starts_with("RTSP/1.0 200 "));
    rtp.send_to(&packet(0), ("127.0.0.1", to)).unwrap();
    for _ in 0..100 {
        let _refused = stranger.send_to(&packet(1), ("127.0.0.1", to));
    }
    rtp.send_to(&vec![0x80; 4_000], ("127.0.0.1", to)).unwrap();
    for pair in 0..25u16 {
        for sequence in [2 * pair + 2, 2 * pair + 1, 2 * pair + 1] {
            rtp.send_to(&packet(sequence), ("127.0.0.1", to)).unwrap();
        }
    }
    wait_for("51 packets", PATIENCE, || (frames("live/u") >= 51.0).then_some(()));
    assert!(frames("live/u") < 52.0);
    drop(client);
    wait_for("its end", PATIENCE, || (!is_live(&gateway, "live/u")).then_some(()));
    gateway.stop();
}
