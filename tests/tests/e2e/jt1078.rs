//! JT/T 1078: what terminals in vehicles push, from captures of terminals and stacks that nobody here wrote, is what players
//! get, however the bytes come; one terminal's channels are streams, and only those who may push do.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocols::media::g726::G726;
use protocols::media::{Kind, Track, Unit, h264};
use sluicegate_tests::{Flv, Gateway, Options, PATIENCE, free_port, root, run, run_ok, sample, wait_for};
use tempfile::TempDir;

/// A real terminal: 270 frames within 40 s, and what of it is in which stream.
const TERMINAL: (&str, &str, usize, &str) =
    ("jt1078/smallchi_jt1078_2.bin", "jt/012345678999/1", 270, "9715689b2bdca652");
/// Another stack: 101 frames within 4 s.
const STACK: (&str, &str, usize, &str) = ("jt1078/m7s_data.bin", "jt/295696659617/1", 101, "3df10d4cdc982d81");

/// Where the bytes of a packet's channel and type stand, and where its body begins.
const CHANNEL: usize = 14;
const TYPE: usize = 15;

/// A gateway that waits for streams to come, and the terminals' port.
fn gateway(wire: &str, protocol: &str) -> (Gateway, u16) {
    let port = free_port();
    let options = Options::default().with(&format!(
        "[stream]\nwait_max_seconds = 20\ngrace_seconds = 1\n[[adapter]]\nname = \"vehicles\"\n\
         listen = \"{wire}://127.0.0.1:{port}\"\nprotocol = {protocol}\npush_without_key = [\"jt/0*\", \"jt/2*\"]"
    ));
    (Gateway::start(options), port)
}

/// The packets of a capture, by their lengths.
fn packets(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut packets = Vec::new();
    while !bytes.is_empty() {
        assert!(bytes.starts_with(b"01cd"));
        let head = [30, 26, 18][usize::from(bytes[TYPE] >> 4).saturating_sub(2).min(2)];
        let body = usize::from(u16::from_be_bytes([bytes[head - 2], bytes[head - 1]]));
        let (packet, rest) = bytes.split_at(head + body);
        packets.push(packet);
        bytes = rest;
    }
    packets
}

fn is_video(packet: &[u8]) -> bool {
    packet[TYPE] >> 4 < 3
}

/// Video of one channel as a byte stream.
fn elementary(capture: &[u8], channel: u8) -> Vec<u8> {
    let packets = packets(capture).into_iter().filter(|packet| is_video(packet) && packet[CHANNEL] == channel);
    packets.flat_map(|packet| packet[30..].iter().copied()).collect()
}

/// The same with each packet moved to another channel.
fn moved(capture: &[u8], channel: u8) -> Vec<u8> {
    let mut bytes = capture.to_vec();
    let mut at = 0;
    for len in packets(capture).into_iter().map(<[u8]>::len) {
        bytes[at + CHANNEL] = channel;
        at += len;
    }
    bytes
}

/// What ffmpeg decodes: the checksum of each frame.
fn decoded(url: &str) -> Vec<String> {
    let text = run_ok("ffmpeg", &["-v", "error", "-i", url, "-map", "0:v", "-vsync", "0", "-f", "framemd5", "-"]);
    let frames = text.lines().filter(|line| !line.starts_with('#'));
    frames.filter_map(|line| line.rsplit(',').next()).map(|sum| sum.trim().to_owned()).collect()
}

fn decoded_bytes(folder: &Path, bytes: &[u8]) -> Vec<String> {
    let file = folder.join("elementary.h264");
    std::fs::write(&file, bytes).unwrap();
    decoded(&file.display().to_string())
}

/// Sends pieces, a frame's time apart: a few times faster than a camera.
fn push<'a>(port: u16, pieces: impl IntoIterator<Item = &'a [u8]>) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in pieces {
        socket.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(8));
    }
    socket
}

fn is_live(gateway: &Gateway, name: &str) -> bool {
    gateway.streams().iter().any(|stream| stream["name"] == name && stream["live"] == true)
}

/// All a viewer gets of a stream that is still to come.
fn viewer(gateway: &Gateway, name: &str) -> JoinHandle<Vec<Unit>> {
    Flv::frames_to_come(gateway.options.media, &format!("/{name}.flv"))
}

fn pictures(units: &[Unit]) -> Vec<&Unit> {
    units.iter().filter(|unit| unit.track == Track::Video).collect()
}

/// NAL units of pictures, without parameter sets: what a capture holds, and what a viewer got.
fn slices(bytes: &[u8]) -> Vec<Vec<u8>> {
    let nals = h264::annex_b_nals(bytes).filter(|nal| !matches!(nal[0] & 0x1f, 7..=9));
    nals.map(<[u8]>::to_vec).collect()
}

fn slices_of(units: &[&Unit]) -> Vec<Vec<u8>> {
    units.iter().flat_map(|unit| h264::nals(&unit.data, 4).map(<[u8]>::to_vec)).collect()
}

#[test]
fn every_frame_of_terminals_reaches_players_as_it_was() {
    let folder = TempDir::new().unwrap();
    let (gateway, port) = gateway("tcp", "\"jt1078\"");
    let media = gateway.options.media;
    let mut talks = Vec::new();
    for ((file, name, count, sum), door) in [(TERMINAL, "http"), (STACK, "rtmp")] {
        let Some(capture) = sample(file) else { return };
        let bytes = elementary(&capture, 1);
        let sent = decoded_bytes(folder.path(), &bytes);
        assert_eq!(sent.len(), count);
        let read = run_ok("sha256sum", &[&folder.path().join("elementary.h264").display().to_string()]);
        assert!(read.starts_with(sum), "{file}: {read}");
        let url = format!("{door}://127.0.0.1:{media}/{name}{}", if door == "http" { ".flv" } else { "" });
        let player = std::thread::spawn(move || decoded(&url));
        let units = viewer(&gateway, name);
        let terminal = std::thread::spawn(move || drop(push(port, packets(&capture))));
        talks.push((player, units, terminal, sent, bytes));
    }
    for (player, units, terminal, sent, bytes) in talks {
        terminal.join().unwrap();
        assert_eq!(slices_of(&pictures(&units.join().unwrap())), slices(&bytes), "every NAL unit");
        assert_eq!(player.join().unwrap(), sent, "every picture");
    }
    gateway.stop();
}

#[test]
fn halves_and_runs_of_packets_with_garbage_between_them_cost_no_frame() {
    let Some(capture) = sample(STACK.0) else { return };
    let (gateway, port) = gateway("tcp", "\"jt1078\"");
    let units = viewer(&gateway, STACK.1);
    let mut random = 7_u32;
    let mut next = |end: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as usize % end
    };
    let mut stream = Vec::new();
    for (at, packet) in packets(&capture).into_iter().enumerate() {
        if at % 7 == 3 {
            stream.extend((0..=next(300)).map(|n| [b'0', b'1', b'c', b'd', 0, 0x81][(n * 7 + at) % 6]));
        }
        // What a terminal had begun to send when it began anew.
        if at % 19 == 5 {
            stream.extend(&packet[..=next(packet.len() - 1)]);
        }
        stream.extend(packet);
    }
    let mut pieces = Vec::new();
    let mut rest = &stream[..];
    while !rest.is_empty() {
        let len = if next(4) == 0 { 1 + next(6) } else { 1 + next(4_000) };
        let (piece, left) = rest.split_at(len.min(rest.len()));
        pieces.push(piece);
        rest = left;
    }
    drop(push(port, pieces));
    assert_eq!(slices_of(&pictures(&units.join().unwrap())), slices(&elementary(&capture, 1)));
    assert!(gateway.metric("sluicegate_faults_total{adapter=\"vehicles\",protocol=\"jt1078\"}") > 20.0, "counted");
    gateway.stop();
}

#[test]
fn after_lost_packets_the_picture_goes_on_at_the_next_key_frame_and_none_is_broken() {
    let Some(capture) = sample(TERMINAL.0) else { return };
    let folder = TempDir::new().unwrap();
    let (gateway, port) = gateway("tcp", "\"jt1078\"");
    let all = packets(&capture);
    let units = viewer(&gateway, TERMINAL.1);
    // In a frame, a whole frame, and in a key frame.
    let key = all.iter().enumerate().filter(|(_, packet)| packet[TYPE] == 0x01).map(|(at, _)| at).nth(2).unwrap();
    let lost = [20, 21, 120, key + 2];
    let kept = all.iter().enumerate().filter(|(at, _)| !lost.contains(at)).map(|(_, packet)| *packet);
    drop(push(port, kept));
    let units = units.join().unwrap();
    let pictures = pictures(&units);
    let (got, sent) = (slices_of(&pictures), slices(&elementary(&capture, 1)));
    assert!((120..262).contains(&pictures.len()), "{} pictures", pictures.len());
    assert!(got.iter().all(|nal| sent.contains(nal)), "no picture is another than it was");
    // Times go on while the picture stands: a hole is followed by a key frame.
    let from = |nal: &Vec<u8>| sent.iter().position(|other| other == nal).unwrap();
    for pair in pictures.windows(2) {
        let ends = [slices_of(&[pair[0]]), slices_of(&[pair[1]])];
        let missing = from(&ends[1][0]) > from(ends[0].last().unwrap()) + 1;
        assert!(!missing || pair[1].kind == Kind::Key, "after {} ms", pair[0].dts_ms());
    }
    assert!(pictures.iter().filter(|unit| unit.kind == Kind::Key).count() >= 5);
    // A decoder has nothing to complain about.
    let file = folder.path().join("got.h264");
    let mut bytes = Vec::new();
    bytes.extend(h264::annex_b_nals(&elementary(&capture, 1)).take(2).flat_map(|nal| [&[0, 0, 0, 1], nal].concat()));
    for unit in &pictures {
        bytes.extend(h264::to_annex_b(&unit.data));
    }
    std::fs::write(&file, bytes).unwrap();
    let output = run("ffmpeg", &["-v", "error", "-xerror", "-i", &file.display().to_string(), "-f", "null", "-"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    gateway.stop();
}

#[test]
fn channels_are_streams_with_their_sound_on_one_connection_or_two_beside_rtmp() {
    let capture = std::fs::read(root().join("protocols/src/jt1078/testdata/two_channels_2013.bin")).unwrap();
    let (gateway, port) = gateway("tcp", "[\"rtmp\", \"jt1078\"]");
    let names = ["jt/012345678901/1", "jt/012345678901/2"];
    let views = names.map(|name| viewer(&gateway, name));
    drop(push(port, packets(&capture)));
    for (view, channel) in views.into_iter().zip(1..) {
        let units = view.join().unwrap();
        assert_eq!(slices_of(&pictures(&units)), slices(&elementary(&capture, channel)));
        let sound = units.iter().filter(|unit| unit.track == Track::Audio).count();
        assert_eq!(sound > 0, channel == 1, "{sound} packets of sound");
    }
    // Each on a connection of its own; ffmpeg pushes at the same port.
    let one: Vec<u8> = packets(&capture).into_iter().filter(|packet| packet[CHANNEL] == 2).flatten().copied().collect();
    let other = moved(&one, 5);
    let views = ["jt/012345678901/2", "jt/012345678901/5"].map(|name| viewer(&gateway, name));
    let pushed = [one.clone(), other].map(|bytes| std::thread::spawn(move || drop(push(port, packets(&bytes)))));
    for (view, pushed) in views.into_iter().zip(pushed) {
        pushed.join().unwrap();
        assert_eq!(slices_of(&pictures(&view.join().unwrap())), slices(&elementary(&one, 2)));
    }
    let clip = root().join("gateway/src/demo/clips/gate-1.flv");
    let _rtmp = sluicegate_tests::camera::push("ffmpeg", &clip, &format!("rtmp://127.0.0.1:{port}/jt/0-rtmp"), &[]);
    wait_for("RTMP beside it", PATIENCE, || is_live(&gateway, "jt/0-rtmp").then_some(()));
    gateway.stop();
}

#[test]
fn datagrams_carry_the_same() {
    let capture = std::fs::read(root().join("protocols/src/jt1078/testdata/two_channels_2013.bin")).unwrap();
    let (gateway, port) = gateway("udp", "\"jt1078\"");
    let views = ["jt/012345678901/1", "jt/012345678901/2"].map(|name| viewer(&gateway, name));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    for packet in packets(&capture) {
        socket.send(packet).unwrap();
        std::thread::sleep(Duration::from_millis(8));
    }
    let live = || gateway.streams().iter().filter(|stream| stream["live"] == true).count();
    assert_eq!(live(), 2);
    // A terminal on UDP does not say goodbye: the API does.
    for name in ["jt%2F012345678901%2F1", "jt%2F012345678901%2F2"] {
        assert_eq!(gateway.request("DELETE", &format!("/api/v1/streams/{name}"), "").0 / 100, 2);
    }
    for (view, channel) in views.into_iter().zip(1..) {
        assert_eq!(slices_of(&pictures(&view.join().unwrap())), slices(&elementary(&capture, channel)));
    }
    gateway.stop();
}

#[test]
fn a_half_open_terminal_is_found_in_15_s_and_stands_in_nobodys_way() {
    let capture = std::fs::read(root().join("protocols/src/jt1078/testdata/two_channels_2013.bin")).unwrap();
    let (gateway, port) = gateway("tcp", "\"jt1078\"");
    let name = "jt/012345678901/1";
    // The connection stays, and nothing is said on it any more.
    let frozen = push(port, packets(&capture));
    let stopped = Instant::now();
    assert!(is_live(&gateway, name));
    // The terminal comes back: it is taken at once, and leaves; the silence of the first is found by itself.
    let units = viewer(&gateway, name);
    drop(push(port, packets(&capture)));
    assert!(pictures(&units.join().unwrap()).len() > 12, "of both");
    let mut frozen = frozen;
    frozen.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(frozen.read(&mut [0; 16]).unwrap(), 0, "closed by the gateway");
    let found = stopped.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_millis(17_500)).contains(&found), "found after {found:?}");
    assert!(!is_live(&gateway, "jt/012345678901/2"));
    gateway.stop();
}

#[test]
fn only_terminals_that_are_named_push() {
    let capture = std::fs::read(root().join("protocols/src/jt1078/testdata/two_channels_2013.bin")).unwrap();
    let mut foreign = capture.clone();
    let mut at = 0;
    for len in packets(&capture).into_iter().map(<[u8]>::len) {
        foreign[at + 8] = 0x91;
        at += len;
    }
    let (gateway, port) = gateway("tcp", "\"jt1078\"");
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // It may be closed before all is sent.
    let _sent = socket.write_all(&foreign);
    let read = socket.read(&mut [0; 16]);
    assert!(!matches!(read, Ok(1..)), "nothing is said to it");
    assert!(gateway.streams().is_empty(), "no byte of media moved");
    assert!(gateway.metric("sluicegate_refused_total{adapter=\"vehicles\"") >= 1.0);
    let kept = push(port, packets(&capture));
    assert!(is_live(&gateway, "jt/012345678901/1"));
    drop(kept);
    gateway.stop();
}

/// Signal to noise, against what ffmpeg makes of the same bytes, dB.
fn likeness(ours: &[i16], theirs: &[i16]) -> f64 {
    let pairs = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*b), f64::from(*a) - f64::from(*b)));
    let (signal, noise) = pairs.fold((1.0, 1e-9), |(s, n), (b, d)| (s + b * b, n + d * d));
    10.0 * (signal / noise).log10()
}

#[test]
fn g726_sounds_alike_at_every_rate_and_in_both_orders() {
    let folder = TempDir::new().unwrap();
    let loud = |samples: &[i16]| samples.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>().sqrt();
    let mut loudness = 0.0;
    for (bits, file) in (2..=5).zip(["in_16", "in_24", "in_32", "in_40"]) {
        let Some(bytes) = sample(&format!("g726/{file}.g726")) else { return };
        let coded = folder.path().join("coded");
        // The same codes with the first in the low bits: what most terminals send.
        let codes = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect::<Vec<u8>>();
        let mut turned = vec![0_u8; bytes.len()];
        for (code, bits_of_code) in codes.chunks_exact(bits).enumerate() {
            for (at, bit) in bits_of_code.iter().rev().enumerate() {
                turned[(code * bits + at) / 8] |= bit << ((code * bits + at) % 8);
            }
        }
        for (format, bytes) in [("g726", &bytes), ("g726le", &turned)] {
            std::fs::write(&coded, bytes).unwrap();
            let (size, coded) = (bits.to_string(), coded.display().to_string());
            let output =
                run("ffmpeg", &["-v", "error", "-f", format, "-code_size", &size, "-i", &coded, "-f", "s16le", "-"]);
            let theirs: Vec<i16> =
                output.stdout.chunks_exact(2).map(|two| i16::from_le_bytes([two[0], two[1]])).collect();
            let mut decoder = G726::new(bits as u32, format == "g726");
            let ours: Vec<i16> =
                bytes.chunks(bits * 40).flat_map(|packet| decoder.samples(packet).collect::<Vec<_>>()).collect();
            assert!(ours.len().abs_diff(theirs.len()) < 1_000, "{} and {} samples", ours.len(), theirs.len());
            // ffmpeg rounds in some places as the recommendation does not, and at 40 kbit/s forgets too fast: what it makes
            // of that is quieter by a third than the same recording at every other rate.
            if bits < 5 {
                let alike = likeness(&ours, &theirs);
                assert!(alike > 18.0, "{format} of {bits} bits: {alike:.1} dB");
                loudness = loud(&theirs);
            } else {
                assert!((loud(&ours) / loudness - 1.0).abs() < 0.02, "{} and {loudness}", loud(&ours));
            }
        }
    }
}
