//! RTSP out: what ffmpeg and GStreamer get over the connection and over UDP is what was pushed, and hostile clients hurt nobody.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use protocols::media::{Track, Unit, h264};
use sluicegate_tests::camera::{self, AAC};
use sluicegate_tests::{Child, Flv, Gateway, Options, PATIENCE, free_port, newer_ffmpeg, run, run_ok, wait_for};
use tempfile::TempDir;

pub(crate) const H264: &str = "-c:v libx264 -preset ultrafast -bf 2";

/// A gateway that speaks RTSP at a port of its own.
pub(crate) fn gateway(more: &str) -> (Gateway, u16) {
    let port = free_port();
    let adapter = format!(
        "[[adapter]]\nname = \"rtsp\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"rtsp\"\nallow_anonymous = true\n{more}"
    );
    (Gateway::start(Options::default().with(&adapter)), port)
}

pub(crate) fn clip(folder: &Path, ffmpeg: &str, codec: &str, seconds: u32) -> PathBuf {
    camera::clip(folder, ffmpeg, seconds, &format!("{codec} -g 25 -pix_fmt yuv420p {AAC}"))
}

fn push(ffmpeg: &str, clip: &Path, port: u16, more: &[&str]) -> Child {
    camera::push(ffmpeg, clip, &format!("rtmp://127.0.0.1:{port}/live/x"), more)
}

fn wait_live(gateway: &Gateway) {
    gateway.wait_stream("live/x", |s| s["width"].as_u64() > Some(0) && s["viewers"].is_u64());
}

/// What a player gets until the stream ends, as an FLV file of its own making.
fn play(ffmpeg: &str, transport: &str, port: u16, folder: &Path) -> Vec<Unit> {
    let file = folder.join(format!("{transport}-{}.flv", ffmpeg.len()));
    let url = format!("rtsp://127.0.0.1:{port}/live/x");
    let output = run(
        ffmpeg,
        &[
            "-v",
            "error",
            "-copyts",
            "-rtsp_transport",
            transport,
            "-i",
            &url,
            "-c",
            "copy",
            "-f",
            "flv",
            &file.display().to_string(),
        ],
    );
    assert!(output.status.success(), "{ffmpeg} over {transport}: {}", String::from_utf8_lossy(&output.stderr));
    Flv::read(&file).frames()
}

/// Presentation time, and the frame without its parameter sets (RTSP has them in every key frame, RTMP ahead of all).
fn bare(units: &[Unit], track: Track) -> Vec<(i64, Vec<Vec<u8>>)> {
    let keep = |nal: &&[u8]| match track {
        Track::Video => !matches!(nal.first().map(|head| head & 0x1f), Some(7..=9)),
        _ => true,
    };
    let frames = units.iter().filter(|unit| unit.track == track);
    let parts = |unit: &Unit| -> Vec<Vec<u8>> {
        if track == Track::Video {
            h264::nals(&unit.data, h264::NAL_LENGTH_SIZE).filter(keep).map(<[u8]>::to_vec).collect()
        } else {
            vec![unit.data.to_vec()]
        }
    };
    frames.map(|unit| (unit.pts_90k / 90, parts(unit))).collect()
}

/// Every frame of the track that was got was sent, none between them is missing, and times differ by one offset alone.
pub(crate) fn same(got: &[Unit], sent: &[Unit], track: Track, least: usize, how: &str) -> i64 {
    let (got, sent) = (bare(got, track), bare(sent, track));
    assert!(got.len() >= least, "{how}: only {} of {} frames", got.len(), sent.len());
    let begin = sent.iter().position(|(_, frame)| *frame == got[0].1).expect("the first frame is of the clip");
    let offset = sent[begin].0 - got[0].0;
    for ((at, (time, frame)), (sent_time, sent_frame)) in got.iter().enumerate().zip(&sent[begin..]) {
        assert_eq!(frame, sent_frame, "{how}: frame {at} of {track:?}");
        let off = sent_time - time - offset;
        assert!(off.abs() <= 1, "{how}: frame {at} of {track:?} is {off} ms off");
    }
    offset
}

#[test]
fn players_get_what_was_pushed_over_the_connection_and_over_udp() {
    let folder = TempDir::new().unwrap();
    // Without B-frames: ffmpeg takes no presentation time from RTP for the first of a stream that has them.
    let clip = clip(folder.path(), "ffmpeg", "-c:v libx264 -preset ultrafast -bf 0", 12);
    let (gateway, port) = gateway("[stream]\ngrace_seconds = 1");
    let mut publisher = push("ffmpeg", &clip, gateway.options.media, &[]);
    wait_live(&gateway);
    let newer = newer_ffmpeg().display().to_string();
    let players = [("ffmpeg", "tcp"), ("ffmpeg", "udp"), (newer.as_str(), "tcp"), (newer.as_str(), "udp")];
    let threads = players.map(|(ffmpeg, transport)| {
        let (ffmpeg, folder) = (ffmpeg.to_owned(), folder.path().to_owned());
        std::thread::spawn(move || play(&ffmpeg, transport, port, &folder))
    });
    let sent = Flv::read(&clip).frames();
    for (thread, how) in threads.into_iter().zip(players) {
        let (got, how) = (thread.join().unwrap(), format!("{how:?}"));
        let video = same(&got, &sent, Track::Video, 8 * 25, &how);
        let audio = same(&got, &sent, Track::Audio, 8 * 43, &how);
        assert!((video - audio).abs() <= 2, "{how}: sound and picture are {} ms apart", video - audio);
    }
    assert!(publisher.wait(PATIENCE).success());
    assert!(gateway.metric("sluicegate_packets_lost_total{adapter=\"rtsp\"}") < 1.0);
    gateway.stop();
}

#[test]
fn h265_is_played_over_rtsp() {
    let folder = TempDir::new().unwrap();
    let ffmpeg = newer_ffmpeg().display().to_string();
    let clip = clip(folder.path(), &ffmpeg, "-c:v libx265 -preset ultrafast -x265-params log-level=error", 10);
    let (gateway, port) = gateway("");
    let _publisher = push(&ffmpeg, &clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let url = format!("rtsp://127.0.0.1:{port}/live/x");
    let decoded = |ffmpeg: &str, transport: &str| {
        run_ok(
            ffmpeg,
            &["-v", "error", "-rtsp_transport", transport, "-i", &url, "-an", "-frames:v", "30", "-f", "framemd5", "-"],
        )
    };
    let sums = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.starts_with("0,"));
        lines.filter_map(|line| line.rsplit(' ').next().map(str::to_owned)).collect()
    };
    let file = clip.display().to_string();
    let sent = sums(&run_ok(&ffmpeg, &["-v", "error", "-i", &file, "-an", "-f", "framemd5", "-"]));
    for transport in ["tcp", "udp"] {
        let got = sums(&decoded("ffmpeg", transport));
        assert_eq!(got.len(), 30, "{transport}");
        let begin = sent.iter().position(|sum| *sum == got[0]).expect("a picture of the clip");
        let whole: Vec<_> = sent.iter().cycle().skip(begin).take(30).cloned().collect();
        assert_eq!(got, whole, "{transport}");
    }
    gateway.stop();
}

#[test]
fn gstreamer_plays_over_the_connection_and_over_udp() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 10);
    let (gateway, port) = gateway("");
    let _publisher = push("ffmpeg", &clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    for transport in ["tcp", "udp"] {
        let file = folder.path().join(format!("{transport}.h264"));
        let line = format!(
            "-q rtspsrc location=rtsp://127.0.0.1:{port}/live/x protocols={transport} latency=200 name=s \
             s. ! application/x-rtp,media=audio ! fakesink async=false \
             s. ! application/x-rtp,media=video ! rtph264depay ! h264parse ! video/x-h264,stream-format=byte-stream,alignment=au \
             ! filesink buffer-mode=unbuffered location={}",
            file.display()
        );
        let mut player = Command::new("gst-launch-1.0");
        let player = Child::start(player.args(line.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::null()));
        let began = Instant::now();
        let (width, frames) = wait_for("two seconds in the file", PATIENCE, || {
            let show =
                ["-v", "quiet", "-count_frames", "-show_entries", "stream=width,nb_read_frames", "-of", "csv=p=0"];
            let told = run("ffprobe", &[&show[..], &[&file.display().to_string()]].concat()).stdout;
            let (width, frames) = std::str::from_utf8(&told).ok()?.trim().split_once(',')?;
            let (width, frames) = (width.parse::<u32>().ok()?, frames.parse::<u32>().ok()?);
            (frames >= 55).then_some((width, frames))
        });
        let took = began.elapsed().as_secs_f64();
        assert_eq!(width, 320, "{transport}: {frames} frames");
        assert!(took < 15.0, "{transport}: {frames} frames took {took:.1} s");
        // Its own end may wait for ever for a track's last packet.
        drop(player);
    }
    gateway.stop();
}

/// A client by hand.
pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    port: u16,
    cseq: u32,
}

impl Client {
    pub(crate) fn connect(port: u16) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, port, cseq: 0 }
    }

    /// Asks and reads the answer, past packets.
    pub(crate) fn ask(&mut self, method: &str, path: &str, fields: &str) -> String {
        self.ask_with(method, path, fields, "")
    }

    /// The same with a body.
    pub(crate) fn ask_with(&mut self, method: &str, path: &str, fields: &str, body: &str) -> String {
        self.cseq += 1;
        let (port, cseq) = (self.port, self.cseq);
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!("{method} rtsp://127.0.0.1:{port}{path} RTSP/1.0\r\nCSeq: {cseq}\r\n{fields}{length}\r\n");
        self.socket.write_all((head + body).as_bytes()).unwrap();
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> String {
        let mut byte = [0];
        let mut text = Vec::new();
        loop {
            if self.socket.read(&mut byte).unwrap_or(0) == 0 {
                return String::from_utf8_lossy(&text).into_owned();
            }
            if text.is_empty() && byte[0] == b'$' {
                let mut head = [0; 3];
                self.socket.read_exact(&mut head).unwrap();
                let mut packet = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
                self.socket.read_exact(&mut packet).unwrap();
                continue;
            }
            text.push(byte[0]);
            if text.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        let head = String::from_utf8_lossy(&text).into_owned();
        let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok()).unwrap_or(0);
        let mut body = vec![0; len];
        self.socket.read_exact(&mut body).unwrap();
        head + &String::from_utf8_lossy(&body)
    }

    /// The next packet: channel and bytes.
    fn packet(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 4];
        self.socket.read_exact(&mut head).unwrap();
        assert_eq!(head[0], b'$');
        let mut packet = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
        self.socket.read_exact(&mut packet).unwrap();
        (head[1], packet)
    }
}

pub(crate) fn session(answer: &str) -> String {
    let line = answer.lines().find(|line| line.starts_with("Session: ")).expect("a session");
    format!("Session: {}\r\n", line["Session: ".len()..].split(';').next().unwrap())
}

#[test]
fn what_a_client_may_not_do_is_said_in_its_own_code() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 10);
    let (gateway, port) = gateway("options = { udp = false }\n[stream]\nwait_max_seconds = 1");
    let _publisher = push("ffmpeg", &clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let mut client = Client::connect(port);
    let track = "/live/x/trackID=0";
    for (method, path, fields, code) in [
        ("OPTIONS", "/live/x", "", "200 "),
        ("DESCRIBE", "/live/none", "", "404 "),
        ("DESCRIBE", "/live/x", "Accept: text/html\r\n", "406 "),
        ("PLAY", "/live/x", "", "455 "),
        ("PLAY", "/live/x", "Session: 12345678\r\n", "454 "),
        ("DESCRIBE", "/live/x", "Require: com.example.magic\r\n", "551 "),
        ("REDIRECT", "/live/x", "", "501 "),
        ("SETUP", track, "Transport: RTP/AVP;unicast;client_port=5000-5001\r\n", "461 "),
        ("SETUP", track, "Transport: RTP/AVP;multicast\r\n", "461 "),
        ("SETUP", "/live/x/trackID=7", "Transport: RTP/AVP/TCP;interleaved=0-1\r\n", "404 "),
        ("SETUP", track, "Transport: RTP/AVP/TCP;interleaved=4-5\r\n", "200 "),
        ("SETUP", track, "Transport: RTP/AVP/TCP;interleaved=6-7\r\n", "455 "),
        ("PAUSE", "/live/x", "", "405 "),
        ("PLAY", "/live/x", "", "454 "),
        ("PLAY", "/live/x", "Session: wrong\r\n", "454 "),
    ] {
        let answer = client.ask(method, path, fields);
        assert!(answer.starts_with(&format!("RTSP/1.0 {code}")), "{method} {path} {fields}: {answer}");
        assert!(answer.contains(&format!("CSeq: {}\r\n", client.cseq)), "{answer}");
    }
    // The channels it asked for, although nobody else has those.
    let mut chooser = Client::connect(port);
    let answer = chooser.ask("SETUP", track, "Transport: RTP/AVP/TCP;unicast;interleaved=8-9\r\n");
    assert!(answer.contains("interleaved=8-9"), "{answer}");
    let answer = chooser.ask("PLAY", "/live/x", &session(&answer));
    assert!(answer.starts_with("RTSP/1.0 200 ") && answer.contains("RTP-Info: url=trackID=0;seq="), "{answer}");
    let seen: Vec<u8> = (0..50).map(|_| chooser.packet().0).collect();
    assert!(seen.iter().all(|channel| [8, 9].contains(channel)) && seen.contains(&8) && seen.contains(&9), "{seen:?}");
    for request in ["OPTIONS * RTSP/2.0\r\nCSeq: 1\r\n\r\n", "OPTIONS * RTSP/3.0\r\nCSeq: 1\r\n\r\n"] {
        let mut client = Client::connect(port);
        client.socket.write_all(request.as_bytes()).unwrap();
        let answer = client.answer();
        assert!(answer.starts_with("RTSP/1.0 505 "), "{request}: {answer}");
    }
    gateway.stop();
}

#[test]
fn a_key_opens_as_parameter_and_as_password() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 10);
    let secret = folder.path().join("key");
    std::fs::write(&secret, "sesame").unwrap();
    let port = free_port();
    let gateway = Gateway::start(Options::default().with(&format!(
        "[[adapter]]\nname = \"rtsp\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = \"rtsp\"\n\
         [[credential]]\nname = \"viewer\"\nsecret_file = \"{}\"\nwatch = [\"live/*\"]",
        secret.display()
    )));
    let _publisher = push("ffmpeg", &clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let probe = |url: &str| {
        let output =
            run("ffprobe", &["-v", "error", "-rtsp_transport", "tcp", "-show_entries", "stream=codec_name", url]);
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
        )
    };
    for (url, opens) in [
        (format!("rtsp://127.0.0.1:{port}/live/x"), false),
        (format!("rtsp://127.0.0.1:{port}/live/x?key=wrong"), false),
        (format!("rtsp://viewer:wrong@127.0.0.1:{port}/live/x"), false),
        (format!("rtsp://127.0.0.1:{port}/live/x?key=sesame"), true),
        (format!("rtsp://viewer:sesame@127.0.0.1:{port}/live/x"), true),
    ] {
        let (opened, said) = probe(&url);
        assert_eq!(opened, opens, "{url}: {said}");
        assert!(said.contains(if opens { "h264" } else { "401" }), "{url}: {said}");
    }
    assert!(!gateway.stop().contains("sesame"));
}

/// Packets go to the peer's own address alone, and stop when its connection does.
#[test]
fn udp_ends_with_the_connection() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 10);
    let (gateway, port) = gateway("");
    let _publisher = push("ffmpeg", &clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let own = socket.local_addr().unwrap().port();
    let mut client = Client::connect(port);
    // Whoever else it names gets nothing.
    let transport = format!("Transport: RTP/AVP;unicast;destination=127.0.0.9;client_port={own}-{}\r\n", own ^ 1);
    let answer = client.ask("SETUP", "/live/x/trackID=0", &transport);
    assert!(answer.contains("server_port="), "{answer}");
    client.ask("PLAY", "/live/x", &session(&answer));
    let mut packet = [0; 2048];
    let (len, from) = socket.recv_from(&mut packet).unwrap();
    assert!(len > 12 && packet[0] == 0x80 && answer.contains(&format!("server_port={}-", from.port())));
    let viewers = || gateway.metric("sluicegate_stream_viewers{stream=\"live/x\"}");
    wait_for("a viewer over UDP", PATIENCE, || (viewers() > 0.5).then_some(()));
    drop(client);
    wait_for("the viewer's end", PATIENCE, || (viewers() < 0.5).then_some(()));
    wait_for("silence", PATIENCE, || socket.recv_from(&mut packet).is_err().then_some(()));
    gateway.stop();
}

#[test]
fn noise_and_floods_hurt_no_viewer() {
    let folder = TempDir::new().unwrap();
    let clip = clip(folder.path(), "ffmpeg", H264, 10);
    let (gateway, port) = gateway("");
    let _publisher = push("ffmpeg", &clip, gateway.options.media, &["-stream_loop", "-1"]);
    wait_live(&gateway);
    let mut viewer = Client::connect(port);
    let answer = viewer.ask("SETUP", "/live/x/trackID=0", "Transport: RTP/AVP/TCP;interleaved=0-1\r\n");
    viewer.ask("PLAY", "/live/x", &session(&answer));
    let before = gateway.rss_kib();
    // Heads without end, bodies beyond any bound, packets where requests belong, and half a request.
    let huge = [b"DESCRIBE rtsp://h/live/x RTSP/1.0\r\nX: ".to_vec(), vec![b'a'; 4 << 20]].concat();
    let body = b"ANNOUNCE rtsp://h/live/x RTSP/1.0\r\nCSeq: 1\r\nContent-Length: 999999999\r\n\r\n".to_vec();
    let packets = b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n$\x07\xff\xff"
        .iter()
        .copied()
        .chain(vec![0; 3 << 20])
        .collect::<Vec<u8>>();
    for noise in [&huge, &body, &packets] {
        let mut client = Client::connect(port);
        // The gateway may close before all of it is written.
        let _closed = client.socket.write_all(noise);
    }
    let half: Vec<_> = (0..200)
        .map(|_| {
            let mut client = Client::connect(port);
            client.socket.write_all(b"SETUP rtsp://h/li").unwrap();
            client
        })
        .collect();
    // Ports are given to two tracks a connection, and a client that never plays has its answers counted.
    let mut flood = Client::connect(port);
    let mut refused = 0;
    for n in 0..120 {
        let track = n % 2;
        let answer = flood.ask(
            "SETUP",
            &format!("/live/x/trackID={track}"),
            &format!("Transport: RTP/AVP;unicast;client_port={}-{}\r\n", 40_000 + 2 * n, 40_001 + 2 * n),
        );
        refused += usize::from(!answer.starts_with("RTSP/1.0 200 "));
        if answer.is_empty() || answer.contains("Connection: close") {
            break;
        }
    }
    assert!(refused >= 90, "{refused}");
    for _ in 0..200 {
        viewer.packet();
    }
    let answer = viewer.ask("GET_PARAMETER", "/live/x", &session(&answer));
    assert!(answer.starts_with("RTSP/1.0 200 "), "{answer}");
    drop(half);
    assert!(gateway.rss_kib() < before + 12 * 1024, "{} to {} KiB", before, gateway.rss_kib());
    gateway.stop();
}
