//! GB/T 28181 media: program streams of muxers that nobody here wrote, in RTP over TCP and UDP, are what players get, however
//! the network treats them; cameras that freeze, lie or were not named harm nobody.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocols::media::aac::Adts;
use protocols::media::{Kind, Track, Unit, h264};
use sluicegate_tests::{
    Flv, Gateway, Options, PATIENCE, camera, free_port, root, run, run_ok, sample, shell, wait_for,
};
use tempfile::TempDir;

/// Streams of another muxer, what was put into them, and its sound.
const MUXED: [(&str, &str, &str); 3] = [
    ("h264_g711a.ps", "testsrc_640x360_25_g25.h264", "tone440_8k.alaw"),
    ("h265_aac.ps", "testsrc_640x360_25_g25.h265", "tone440_16k.aac"),
    ("h264_4slices_aud.ps", "testsrc_bframes_aud_4slices.h264", ""),
];
/// Pictures of each: the last of its hundred stayed in the muxer.
const PICTURES: usize = 99;

/// Bytes of a packet's header.
const HEAD: usize = 12;

/// A gateway that waits for streams to come, and the cameras' ports for TCP and UDP. Who falls silent is found fast.
fn gateway(options: &str) -> (Gateway, u16, u16) {
    let (tcp, udp) = (free_port(), free_port());
    let adapter = |(name, port)| {
        format!(
            "[[adapter]]\nname = \"gb-{name}\"\nlisten = \"{name}://127.0.0.1:{port}\"\nprotocol = \"gb28181\"\n\
             push_without_key = [\"gb/00*\"]\noptions = {{ {options} }}\n"
        )
    };
    let adapters: String = [("tcp", tcp), ("udp", udp)].map(adapter).concat();
    let toml = format!("[stream]\nwait_max_seconds = 20\ngrace_seconds = 1\nunplayable_audio = \"pass\"\n{adapters}");
    (Gateway::start(Options::default().with(&toml)), tcp, udp)
}

/// RTP packets of a program stream; the last of each pack is marked.
fn packets(stream: &[u8], ssrc: u32, payload_max: usize) -> Vec<Vec<u8>> {
    let begins = stream.windows(4).enumerate().filter(|(_, four)| *four == [0, 0, 1, 0xba]).map(|(at, _)| at);
    let begins: Vec<usize> = begins.chain([stream.len()]).collect();
    // Some packets before the numbers wrap.
    let mut sequence = 65_500_u16;
    let mut packets = Vec::new();
    for (timestamp, ends) in (1_u32..).zip(begins.windows(2)) {
        let pieces: Vec<&[u8]> = stream[ends[0]..ends[1]].chunks(payload_max).collect();
        for (at, piece) in pieces.iter().enumerate() {
            let marked = if at + 1 == pieces.len() { 0x80 } else { 0 };
            let mut packet = vec![0x80, 0x60 | marked];
            packet.extend(sequence.to_be_bytes());
            packet.extend((timestamp * 3_600).to_be_bytes());
            packet.extend(ssrc.to_be_bytes());
            packet.extend(*piece);
            packets.push(packet);
            sequence = sequence.wrapping_add(1);
        }
    }
    packets
}

/// As RFC 4571 has them on a connection.
fn framed(packet: &[u8]) -> Vec<u8> {
    [&(packet.len() as u16).to_be_bytes(), packet].concat()
}

fn name(ssrc: u32) -> String {
    format!("gb/{ssrc:010}")
}

/// Sends pieces over TCP, several times faster than a camera.
fn push<'a>(port: u16, pieces: impl IntoIterator<Item = &'a Vec<u8>>) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in pieces {
        socket.write_all(&framed(piece)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    socket
}

/// The same over UDP.
fn send<'a>(port: u16, packets: impl IntoIterator<Item = &'a Vec<u8>>) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", port)).unwrap();
    for packet in packets {
        socket.send(packet).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    socket
}

/// All a viewer gets of a stream that is still to come.
fn viewer(gateway: &Gateway, ssrc: u32) -> JoinHandle<Vec<Unit>> {
    Flv::frames_to_come(gateway.options.media, &format!("/{}.flv", name(ssrc)))
}

fn is_live(gateway: &Gateway, ssrc: u32) -> bool {
    gateway.streams().iter().any(|stream| stream["name"] == name(ssrc) && stream["live"] == true)
}

fn of(units: &[Unit], track: Track) -> Vec<&Unit> {
    units.iter().filter(|unit| unit.track == track).collect()
}

/// NAL units of pictures, without parameter sets and delimiters: what was put in, and what a viewer got.
fn slices(bytes: &[u8], h265: bool) -> Vec<Vec<u8>> {
    let carried =
        |nal: &&[u8]| if h265 { !(32..=35).contains(&(nal[0] >> 1)) } else { !(7..=9).contains(&(nal[0] & 31)) };
    h264::annex_b_nals(bytes).filter(carried).map(<[u8]>::to_vec).collect()
}

fn slices_of(units: &[&Unit]) -> Vec<Vec<u8>> {
    units.iter().flat_map(|unit| h264::nals(&unit.data, 4).map(<[u8]>::to_vec)).collect()
}

fn random(seed: u32) -> impl FnMut(usize) -> usize {
    let mut state = seed;
    move |end| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % end
    }
}

#[test]
fn every_picture_and_sound_of_another_muxer_reaches_players_over_tcp_and_udp() {
    let (gateway, tcp, udp) = gateway("silence_seconds = 1");
    let mut talks = Vec::new();
    for ((file, pictures, sound), ssrc) in MUXED.into_iter().zip([10, 20, 30]) {
        let Some(stream) = sample(&format!("ps-rtp/libmpeg_synth/{file}")) else { return };
        let put_in = |file: &str| sample(&format!("es/synthetic/{file}")).unwrap_or_default();
        let views = [viewer(&gateway, ssrc), viewer(&gateway, ssrc + 1)];
        let (over_tcp, over_udp) = (packets(&stream, ssrc, 1_400), packets(&stream, ssrc + 1, 1_400));
        let sent = [
            std::thread::spawn(move || drop(push(tcp, &over_tcp))),
            std::thread::spawn(move || drop(send(udp, &over_udp))),
        ];
        let sound = if sound.is_empty() { Vec::new() } else { put_in(sound) };
        talks.push((file, views, sent, slices(&put_in(pictures), pictures.ends_with('5')), sound));
    }
    for (file, views, sent, put_in, sound) in talks {
        for sent in sent {
            sent.join().unwrap();
        }
        let [over_tcp, over_udp] = views.map(|view| view.join().unwrap());
        let data = |units: &[Unit]| units.iter().map(|unit| unit.data.clone()).collect::<Vec<_>>();
        assert_eq!(data(&over_tcp), data(&over_udp), "{file}");
        let got = slices_of(&of(&over_tcp, Track::Video));
        assert_eq!(of(&over_tcp, Track::Video).len(), PICTURES, "{file}");
        assert!(put_in.starts_with(&got), "{file}: {} NAL units of {}", got.len(), put_in.len());
        let heard: Vec<u8> = of(&over_tcp, Track::Audio).into_iter().flat_map(|unit| unit.data.to_vec()).collect();
        let said = if file.contains("aac") { without_adts(&sound) } else { sound };
        // What is ahead of the first picture is left out.
        let whole = heard.is_empty() || said.windows(heard.len()).any(|window| window == heard);
        assert!(whole, "{file}: {} bytes of sound of {}", heard.len(), said.len());
        assert!(heard.len() * 10 >= said.len() * 9, "{file}: {} bytes of sound of {}", heard.len(), said.len());
    }
    assert!(gateway.metric("sluicegate_packets_missing_total") < 1.0, "none is missing");
    gateway.stop();
}

fn without_adts(mut bytes: &[u8]) -> Vec<u8> {
    let mut frames = Vec::new();
    while let Ok(adts) = Adts::parse(bytes) {
        let (frame, rest) = bytes.split_at(adts.frame_len);
        frames.extend(&frame[adts.header_len..]);
        bytes = rest;
    }
    frames
}

#[test]
fn streams_of_ffmpeg_and_gstreamer_are_taken_as_ffmpeg_itself_reads_them() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (gateway, tcp, _) = gateway("");
    let source = "ffmpeg -y -v error -f lavfi -i testsrc2=s=320x180:r=25 -t 4 -an";
    for (ssrc, muxer, line) in [
        (40, "vob.ps", format!("{source} {} -f vob {}", camera::H264, file("vob.ps"))),
        (41, "reordered.ps", format!("{source} {} -f vob {}", camera::H264_REORDERED, file("reordered.ps"))),
        (42, "mpeg1.ps", format!("{source} {} -f mpeg {}", camera::H264, file("mpeg1.ps"))),
        (
            43,
            "gstreamer.ps",
            format!(
                "gst-launch-1.0 -q videotestsrc num-buffers=100 ! video/x-raw,width=320,height=180,framerate=25/1 ! \
                 x264enc key-int-max=25 tune=zerolatency ! h264parse ! mpegpsmux ! filesink location={}",
                file("gstreamer.ps")
            ),
        ),
    ] {
        shell(&line);
        let (stream, elementary) = (std::fs::read(file(muxer)).unwrap(), file("elementary.h264"));
        run_ok("ffmpeg", &["-y", "-v", "error", "-i", &file(muxer), "-c", "copy", "-f", "h264", &elementary]);
        let put_in = slices(&std::fs::read(&elementary).unwrap(), false);
        let view = viewer(&gateway, ssrc);
        drop(push(tcp, &packets(&stream, ssrc, 1_400)));
        let units = view.join().unwrap();
        let pictures = of(&units, Track::Video);
        assert!((98..=100).contains(&pictures.len()), "{muxer}: {} pictures", pictures.len());
        let got = slices_of(&pictures);
        let differs = got.iter().zip(&put_in).position(|(got, put_in)| got != put_in);
        assert_eq!((differs, got.len() <= put_in.len()), (None, true), "{muxer}");
        // 25 a second, whatever share of them has a time of its own.
        let span = pictures.last().unwrap().dts_90k - pictures[0].dts_90k;
        let wanted = (pictures.len() as i64 - 1) * 3_600;
        assert!((span - wanted).abs() <= 3 * 3_600, "{muxer}: {span} of {wanted}");
        assert!(pictures.windows(2).all(|pair| pair[0].dts_90k < pair[1].dts_90k), "{muxer}");
    }
    gateway.stop();
}

#[test]
fn key_frames_of_a_real_camera_reach_players_with_every_byte() {
    let Some(capture) = sample("ps-rtp/srs/hik_keyframe_filler.rfc4571") else { return };
    let mut all = Vec::new();
    let mut rest = &capture[..];
    while let Some((len, bytes)) = rest.split_first_chunk() {
        let (packet, behind) = bytes.split_at(usize::from(u16::from_be_bytes(*len)));
        all.push(packet.to_vec());
        rest = behind;
    }
    assert_eq!(all.len(), 102);
    // The same again, as the camera would go on to count.
    let count = |packet: &Vec<u8>, by: u16| {
        let mut packet = packet.clone();
        let sequence = u16::from_be_bytes([packet[2], packet[3]]).wrapping_add(by);
        packet[2..4].copy_from_slice(&sequence.to_be_bytes());
        packet
    };
    let sent: Vec<Vec<u8>> =
        (0..4).flat_map(|round| all.iter().map(move |packet| count(packet, round * 102))).collect();
    let (gateway, tcp, _) = gateway("streams = { \"200003893\" = \"gb/00-real\" }");
    let view = Flv::frames_to_come(gateway.options.media, "/gb/00-real.flv");
    drop(push(tcp, &sent));
    let units = view.join().unwrap();
    assert!(units.len() >= 3 && units.iter().all(|unit| unit.kind == Kind::Key), "{} units", units.len());
    for unit in &units {
        let lens: Vec<usize> = h264::nals(&unit.data, 4).map(<[u8]>::len).collect();
        assert!(lens.len() == 2 && lens[1] > 130_000, "{lens:?}");
        assert_eq!(unit.data, units[0].data);
    }
    gateway.stop();
}

/// What a network does to packets.
#[derive(Debug, Clone, Copy)]
struct Network {
    /// Packets lost, of 1,000.
    lost: usize,
    /// Packets by which one may come too late.
    depth: usize,
    /// Every so manieth comes twice.
    twice: usize,
    /// The camera begins anew with another SSRC after this share of the packets, percent.
    anew: usize,
}

const KIND: Network = Network { lost: 0, depth: 0, twice: 0, anew: 0 };

impl Network {
    fn treat(self, packets: Vec<Vec<u8>>, seed: u32) -> Vec<Vec<u8>> {
        let mut next = random(seed);
        let (count, first) = (packets.len(), packets[0].clone());
        let mut order: Vec<(usize, Vec<u8>)> = Vec::new();
        for (at, mut packet) in packets.into_iter().enumerate() {
            if self.anew > 0 && at >= count * self.anew / 100 {
                packet[8..12].copy_from_slice(&0x0077_0000_u32.to_be_bytes());
                packet[2] ^= 0x40;
            }
            // One that is the last is not missed.
            if at > 0 && at + 1 < count && next(1_000) < self.lost {
                continue;
            }
            if self.twice > 0 && at % self.twice == 1 {
                order.push((at + 3, packet.clone()));
            }
            order.push((if at == 0 { 0 } else { at + next(self.depth + 1) }, packet));
        }
        order.sort_by_key(|(place, _)| *place);
        assert_eq!(order[0].1, first, "where a stream begins is another test's affair");
        order.into_iter().map(|(_, packet)| packet).collect()
    }
}

#[test]
fn complaint_10_loss_and_disorder_over_udp_cost_pictures_up_to_the_next_key_frame_and_break_none() {
    let Some(stream) = sample("ps-rtp/libmpeg_synth/h264_g711a.ps") else { return };
    let sent = slices(&sample("es/synthetic/testsrc_640x360_25_g25.h264").unwrap(), false);
    let folder = TempDir::new().unwrap();
    let (gateway, _, udp) = gateway("silence_seconds = 1");
    let losses = [1, 5, 10, 20, 50].map(|lost| Network { lost, ..KIND });
    let orders = [1, 10, 50].map(|depth| Network { depth, ..KIND });
    let both = Network { lost: 10, depth: 20, twice: 9, anew: 0 };
    let others = [Network { twice: 3, ..KIND }, Network { anew: 40, ..KIND }, both];
    let networks = losses.into_iter().chain(orders).chain(others);
    for (ssrc, network) in (100..).zip(networks) {
        let view = viewer(&gateway, ssrc);
        let missing = gateway.metric("sluicegate_packets_missing_total{adapter=\"gb-udp\"");
        let packets = packets(&stream, ssrc, 1_400);
        let count = packets.len();
        let treated = network.treat(packets, ssrc);
        let arrived = treated.iter().map(|packet| &packet[2..4]).collect::<std::collections::BTreeSet<_>>().len();
        drop(send(udp, &treated));
        let units = view.join().unwrap();
        let pictures = of(&units, Track::Video);
        let got = slices_of(&pictures);
        let missed = gateway.metric("sluicegate_packets_missing_total{adapter=\"gb-udp\"") - missing;
        assert_eq!(missed as usize, count - arrived, "{network:?}: each packet that is missing is counted");
        if arrived == count && network.anew == 0 {
            assert!(sent.starts_with(&got) && pictures.len() == PICTURES, "{network:?}: {} pictures", pictures.len());
            continue;
        }
        let kept = if network.lost > 10 { 1 } else { 20 };
        assert!((kept..PICTURES).contains(&pictures.len()), "{network:?}: {} pictures", pictures.len());
        assert_whole(&pictures, &sent, network);
        decodes(folder.path(), &pictures);
    }
    gateway.stop();
}

/// Every picture is one that was sent, in order, and behind a hole stands a key frame.
fn assert_whole(pictures: &[&Unit], sent: &[Vec<u8>], network: Network) {
    let mut next = 0;
    for unit in pictures {
        let got = slices_of(&[unit]);
        let place = sent[next..].windows(got.len()).position(|window| window == got);
        let place = next + place.unwrap_or_else(|| panic!("{network:?}: a picture that was not sent, or out of order"));
        assert!(place == next || unit.kind == Kind::Key, "{network:?}: {place} follows {next}");
        next = place + got.len();
    }
}

/// ffmpeg has nothing to complain about.
fn decodes(folder: &Path, pictures: &[&Unit]) {
    let elementary = sample("es/synthetic/testsrc_640x360_25_g25.h264").unwrap();
    let sets = h264::annex_b_nals(&elementary).filter(|nal| matches!(nal[0] & 31, 7 | 8)).take(2);
    let mut bytes: Vec<u8> = sets.flat_map(|nal| [&[0, 0, 0, 1], nal].concat()).collect();
    for unit in pictures {
        bytes.extend(h264::to_annex_b(&unit.data));
    }
    let file = folder.join("got.h264");
    std::fs::write(&file, bytes).unwrap();
    let output = run("ffmpeg", &["-v", "error", "-xerror", "-i", &file.display().to_string(), "-f", "null", "-"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn complaint_11_the_first_viewer_gets_the_first_picture_and_all_behind_it() {
    let Some(stream) = sample("ps-rtp/libmpeg_synth/h264_g711a.ps") else { return };
    let sent = slices(&sample("es/synthetic/testsrc_640x360_25_g25.h264").unwrap(), false);
    // The sound becomes AAC, which is ready later than the picture; over UDP the first packets overtake one another.
    let (tcp, udp) = (free_port(), free_port());
    let adapter = |wire: &str, port: u16| {
        format!(
            "[[adapter]]\nname = \"gb-{wire}\"\nlisten = \"{wire}://127.0.0.1:{port}\"\nprotocol = \"gb28181\"\n\
             push_without_key = [\"gb/*\"]\noptions = {{ silence_seconds = 1 }}\n"
        )
    };
    let stream_rules = "[stream]\nwait_max_seconds = 20\ngrace_seconds = 1\nunplayable_audio = \"aac\"\n";
    let toml = format!("{stream_rules}{}{}", adapter("tcp", tcp), adapter("udp", udp));
    let gateway = Gateway::start(Options::default().with(&toml));
    // Sound ahead of the first picture: players are not made to wait for it, nor does it begin the stream.
    let begins = |four: &[u8]| four == [0, 0, 1, 0xba];
    let packs: Vec<usize> = stream.windows(4).enumerate().filter(|(_, four)| begins(four)).map(|(at, _)| at).collect();
    let sound = packs.windows(2).find(|ends| stream[ends[0]..ends[1]].windows(4).any(|four| four == [0, 0, 1, 0xc0]));
    let sound = &stream[sound.unwrap()[0]..sound.unwrap()[1]];
    let stream = [sound, sound, &stream].concat();
    for (ssrc, wire) in [(200, "tcp"), (201, "udp")] {
        let view = viewer(&gateway, ssrc);
        let mut packets = packets(&stream, ssrc, 1_000);
        if wire == "udp" {
            packets.swap(0, 3);
            packets.swap(1, 2);
            drop(send(udp, &packets));
        } else {
            drop(push(tcp, &packets));
        }
        let units = view.join().unwrap();
        let pictures = of(&units, Track::Video);
        assert_eq!((pictures[0].kind, pictures.len()), (Kind::Key, PICTURES), "{wire}");
        assert!(sent.starts_with(&slices_of(&pictures)), "{wire}: from the first on, and none is left out");
        assert!(of(&units, Track::Audio).len() > 27, "{wire}: {} of sound", of(&units, Track::Audio).len());
    }
    gateway.stop();
}

#[test]
fn complaint_12_a_half_open_camera_is_found_in_15_s_keeps_its_viewers_and_stands_in_nobodys_way() {
    let Some(stream) = sample("ps-rtp/libmpeg_synth/h264_g711a.ps") else { return };
    let (gateway, tcp, udp) = gateway("");
    // The connections stay, and nothing is said on them any more; 300 and 301 come back, 302 and 303 do not.
    let mut frozen = push(tcp, &packets(&stream, 300, 1_400));
    let _udp = send(udp, &packets(&stream, 301, 1_400));
    let _silent = push(tcp, &packets(&stream, 302, 1_400));
    let _silent_udp = send(udp, &packets(&stream, 303, 1_400));
    let stopped = Instant::now();
    assert!((300..304).all(|ssrc| is_live(&gateway, ssrc)));
    let views = [viewer(&gateway, 300), viewer(&gateway, 301)];
    let (again, again_udp) = (packets(&stream, 300, 1_400), packets(&stream, 301, 1_400));
    drop(push(tcp, &again));
    drop(send(udp, &again_udp));
    frozen.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(frozen.read(&mut [0; 16]).unwrap(), 0, "closed by the gateway");
    assert!(stopped.elapsed() < Duration::from_secs(10), "its place was taken: {:?}", stopped.elapsed());
    for view in views {
        let units = view.join().unwrap();
        let pictures = of(&units, Track::Video).len();
        assert!(pictures > PICTURES, "the viewer saw both: {pictures}");
    }
    wait_for("the silent ones to be found", PATIENCE, || (300..304).all(|ssrc| !is_live(&gateway, ssrc)).then_some(()));
    let found = stopped.elapsed();
    assert!((Duration::from_secs(12)..Duration::from_millis(18_500)).contains(&found), "found after {found:?}");
    gateway.stop();
}

#[test]
fn garbage_lies_and_streams_in_other_codecs_are_said_and_counted_and_cost_no_whole_picture() {
    let Some(stream) = sample("ps-rtp/libmpeg_synth/h264_g711a.ps") else { return };
    let sent = slices(&sample("es/synthetic/testsrc_640x360_25_g25.h264").unwrap(), false);
    let (gateway, tcp, udp) = gateway("");
    let faults = |wire: &str| gateway.metric(&format!("sluicegate_faults_total{{adapter=\"gb-{wire}\""));
    // Noise between packets: the next is found, and no picture with noise in it goes out.
    let (view, mut next) = (viewer(&gateway, 400), random(4));
    let mut socket = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    for (at, packet) in packets(&stream, 400, 1_400).iter().enumerate() {
        if at % 60 == 50 {
            let noise: Vec<u8> = (0..=next(200)).map(|_| next(256) as u8).collect();
            socket.write_all(&noise).unwrap();
        }
        socket.write_all(&framed(packet)).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let told = gateway.wait_stream(&name(400), |stream| stream["faults"].as_u64() >= Some(3));
    assert!(told["live"] == true, "{told}");
    drop(socket);
    let units = view.join().unwrap();
    assert_whole(&of(&units, Track::Video), &sent, KIND);
    assert!(of(&units, Track::Video).len() >= 20, "{} pictures", of(&units, Track::Video).len());
    // A video codec that is not carried, and no program stream at all.
    let svac = b"\0\0\x01\xba\x44\0\x04\0\x04\x01\0\x5f\x6b\xf8\0\0\x01\xbc\0\x0e\xe0\xff\0\0\0\x04\x80\xe0\0\0\x01\x02\x03\x04\
                 \0\0\x01\xe0\0\x07\x80\0\0abcd";
    let socket = send(udp, &packets(svac, 401, 1_400));
    wait_for("the codec to be said", PATIENCE, || (faults("udp") >= 1.0).then_some(()));
    assert!(!is_live(&gateway, 401));
    drop(socket);
    let mut socket = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    let before = faults("tcp");
    let mut raw = packets(b"\0\0\x01\xba", 402, 1_400).remove(0);
    raw.resize(60_000, 0x41);
    // It is closed before all is sent.
    let closed = (0..40_u16).any(|sequence| {
        raw[2..4].copy_from_slice(&sequence.to_be_bytes());
        raw[HEAD..HEAD + 4].fill(0x41);
        socket.write_all(&framed(&raw)).is_err()
    });
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(closed || !matches!(socket.read(&mut [0; 16]), Ok(1..)), "nothing is said to it");
    wait_for("its end", PATIENCE, || (faults("tcp") > before).then_some(()));
    // A packet of a picture without an end, far beyond all pictures.
    let mut endless =
        b"\0\0\x01\xba\x44\0\x04\0\x04\x01\0\x5f\x6b\xf8\0\0\x01\xe0\0\0\x80\0\0\0\0\0\x01\x65\x88".to_vec();
    endless.resize(12_000_000, 0x55);
    let memory = gateway.rss_kib();
    let before = faults("tcp");
    let mut socket = TcpStream::connect(("127.0.0.1", tcp)).unwrap();
    // It is closed before all is sent.
    let closed = packets(&endless, 403, 60_000).iter().any(|packet| socket.write_all(&framed(packet)).is_err());
    assert!(closed || !matches!(socket.read(&mut [0; 16]), Ok(1..)), "nothing is said to it");
    wait_for("its fault", PATIENCE, || (faults("tcp") > before).then_some(()));
    assert!(gateway.rss_kib() < memory + 40 * 1024, "{} KiB after {memory}", gateway.rss_kib());
    gateway.stop();
}

#[test]
fn cameras_that_are_not_named_push_nothing_and_the_named_share_a_port_with_rtmp() {
    let Some(stream) = sample("ps-rtp/libmpeg_synth/h264_4slices_aud.ps") else { return };
    let port = free_port();
    let (gateway, tcp, udp) = gateway("");
    let foreign = packets(&stream, 3_402_000_001, 1_400);
    let mut socket = push(tcp, &foreign[..3]);
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(!matches!(socket.read(&mut [0; 16]), Ok(1..)), "it is closed, and nothing is said to it");
    let _udp = send(udp, &foreign[..50]);
    for wire in ["tcp", "udp"] {
        let refused = format!("sluicegate_refused_total{{adapter=\"gb-{wire}\"");
        wait_for("the refusal", PATIENCE, || (gateway.metric(&refused) >= 1.0).then_some(()));
    }
    assert!(gateway.metric("sluicegate_refused_total{adapter=\"gb-udp\"") < 2.0, "asked once, not for every packet");
    assert!(gateway.streams().is_empty(), "no byte of media moved");
    gateway.stop();
    let toml = format!(
        "[[adapter]]\nname = \"both\"\nlisten = \"tcp://127.0.0.1:{port}\"\nprotocol = [\"rtmp\", \"gb28181\"]\n\
         allow_anonymous = true\noptions = {{ gb28181 = {{ stream = \"live/gate\" }} }}\n"
    );
    let gateway = Gateway::start(Options::default().with(&toml));
    let _camera = push(port, &packets(&stream, 5, 1_400));
    gateway.wait_stream("live/gate", |stream| stream["live"] == true);
    let clip = root().join("gateway/src/demo/clips/gate-1.flv");
    let _rtmp = camera::push("ffmpeg", &clip, &format!("rtmp://127.0.0.1:{port}/live/other"), &[]);
    gateway.wait_stream("live/other", |stream| stream["live"] == true);
    gateway.stop();
}
