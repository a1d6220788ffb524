//! Timestamps of every oddity, end to end: what a player sees goes on.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::spawn;
use std::time::Duration;

use bytes::BytesMut;
use protocols::media::flv::{Tag, TagType, take_tag};
use protocols::media::{Container, Kind, Track, Unit};
use sluicegate_tests::{
    Child, Clip, Door, Gateway, Options, PATIENCE, Publisher, Viewer, paced, run_ok, shell, wait_for,
};
use tempfile::TempDir;

use super::{is_live, make_clip, push};
use crate::streams::{is_piece_of, packets};

/// Times above this have an extended timestamp (RTMP 1.0, 5.3.1.3).
const EXTENDED: u32 = 0xff_ffff;
/// Chunks so small that every picture has many: RTMP's own size.
const CHUNK: usize = 128;

/// How an encoder writes chunks of messages whose time does not fit 24 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Each chunk of type 3 has the extended timestamp again (ffmpeg, OBS, Flash).
    Repeats,
    /// Only the message's first chunk has it (some hardware, older librtmp).
    LeavesOut,
    /// Full headers once, then steps (type 1).
    Steps,
}

/// Writes messages in one dialect.
struct Chunks {
    dialect: Dialect,
    /// The last time of each chunk stream.
    last: [Option<u32>; 8],
}

impl Chunks {
    fn write(&mut self, tag: &Tag, time: u32, out: &mut Vec<u8>) {
        let id = if tag.tag == TagType::Audio { 4 } else { 6 };
        let before = self.last[id].replace(time);
        let (format, field) = match before.filter(|_| self.dialect == Dialect::Steps) {
            Some(before) => (1, time.wrapping_sub(before)),
            None => (0, time),
        };
        let extended = (field >= EXTENDED).then_some(field);
        out.push(format << 6 | id as u8);
        out.extend(&field.min(EXTENDED).to_be_bytes()[1..]);
        out.extend(&u32::try_from(tag.body.len()).unwrap().to_be_bytes()[1..]);
        out.push(tag.tag as u8);
        if format == 0 {
            out.extend(1_u32.to_le_bytes());
        }
        out.extend(extended.iter().flat_map(|time| time.to_be_bytes()));
        for (at, piece) in tag.body.chunks(CHUNK).enumerate() {
            if at > 0 {
                out.push(0xc0 | id as u8);
                let again = extended.filter(|_| self.dialect == Dialect::Repeats);
                out.extend(again.iter().flat_map(|time| time.to_be_bytes()));
            }
            out.extend(piece);
        }
    }
}

fn tags(file: &Path) -> Vec<Tag> {
    let mut bytes = BytesMut::from(&std::fs::read(file).unwrap()[..]);
    std::iter::from_fn(|| take_tag(&mut bytes).unwrap()).filter(|tag| tag.tag != TagType::Script).collect()
}

/// Pushes the clip in its own time, with a clock that begins at `base`.
fn push_tags(media: u16, name: &str, file: &Path, dialect: Dialect, base: u32) {
    let mut camera = Publisher::publish(media, name);
    let mut chunks = Chunks { dialect, last: [None; 8] };
    // From here on our chunks are small.
    let size = u32::try_from(CHUNK).unwrap().to_be_bytes();
    camera.socket.write_all(&[&[2, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0], &size[..]].concat()).unwrap();
    let began = std::time::Instant::now();
    for tag in tags(file) {
        std::thread::sleep(Duration::from_millis(tag.dts_ms.unsigned_abs()).saturating_sub(began.elapsed()));
        let mut bytes = Vec::new();
        chunks.write(&tag, base.wrapping_add(tag.dts_ms as u32), &mut bytes);
        camera.socket.write_all(&bytes).expect("the publisher stays");
    }
}

/// Times of decoding, ms, video and audio, as ffprobe reads them to the stream's end.
fn probe(url: &str) -> [Vec<i64>; 2] {
    let show = ["-v", "error", "-show_entries", "packet=codec_type,dts_time", "-of", "csv=p=0", url];
    let text = run_ok("ffprobe", &show);
    let mut times = [Vec::new(), Vec::new()];
    for line in text.lines() {
        let mut fields = line.split(',');
        let track = usize::from(fields.next() == Some("audio"));
        let seconds: f64 = fields.next().and_then(|f| f.parse().ok()).unwrap_or_else(|| panic!("{url}: {line}"));
        times[track].push((seconds * 1_000.0).round() as i64);
    }
    times
}

/// Both doors, read by ffprobe from now to the end of the stream.
fn probe_both(media: u16, name: &str) -> [[Vec<i64>; 2]; 2] {
    let urls = [format!("rtmp://127.0.0.1:{media}/live/{name}"), format!("http://127.0.0.1:{media}/live/{name}.flv")];
    urls.map(|url| spawn(move || probe(&url))).map(|probed| probed.join().expect("ffprobe"))
}

/// Never back, and no hole.
fn goes_on(what: &str, times: &[i64], least: usize, step_max_ms: i64) {
    assert!(times.len() >= least, "{what}: {} packets", times.len());
    for pair in times.windows(2) {
        assert!((0..=step_max_ms).contains(&(pair[1] - pair[0])), "{what}: {} ms after {} ms", pair[1], pair[0]);
    }
}

#[test]
fn clocks_that_pass_24_and_32_bits_go_on_in_either_dialect_of_chunks() {
    let folder = TempDir::new().unwrap();
    let clip = make_clip(folder.path(), "320x180", 300, 7);
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    // Each passes the mark about 4 s after it began.
    let cases = [
        ("repeats-24", Dialect::Repeats, EXTENDED - 4_000),
        ("leaves-out-24", Dialect::LeavesOut, EXTENDED - 4_000),
        ("repeats-32", Dialect::Repeats, u32::MAX - 4_000),
        ("leaves-out-32", Dialect::LeavesOut, u32::MAX - 4_000),
        ("steps-32", Dialect::Steps, u32::MAX - 4_000),
    ];
    let watching = cases.map(|(name, dialect, base)| {
        let file = clip.clone();
        drop(spawn(move || push_tags(media, name, &file, dialect, base)));
        wait_for(name, PATIENCE, || is_live(&gateway, name));
        spawn(move || (name, base, probe_both(media, name)))
    });
    // The same from an encoder that nobody here wrote; it cannot say times of more than 31 bits.
    let own = ["-v", "error", "-nostdin", "-re", "-i", &clip.display().to_string(), "-c", "copy", "-output_ts_offset"];
    let mut encoder = Command::new("ffmpeg");
    encoder.args(own).args(["16773.215", "-f", "flv", &format!("rtmp://127.0.0.1:{media}/live/ffmpeg-24")]);
    let _encoder = Child::start(encoder.stdin(Stdio::null()).stdout(Stdio::null()));
    wait_for("ffmpeg", PATIENCE, || is_live(&gateway, "ffmpeg-24"));
    let watching: Vec<_> = watching
        .into_iter()
        .chain([spawn(move || ("ffmpeg-24", EXTENDED - 4_000, probe_both(media, "ffmpeg-24")))])
        .collect();
    let sent = tags(&clip);
    for watched in watching {
        let (name, base, doors) = watched.join().unwrap();
        for (door, [video, audio]) in ["RTMP", "HTTP-FLV"].iter().zip(doors) {
            let what = format!("{name} over {door}");
            goes_on(&format!("{what}, video"), &video, 100, 40);
            goes_on(&format!("{what}, audio"), &audio, 170, 25);
            // Every time is the one that was sent, audio beside video as it was.
            for (times, tag) in [(&video, TagType::Video), (&audio, TagType::Audio)] {
                let known: Vec<u32> = sent.iter().filter(|t| t.tag == tag).map(|t| t.dts_ms as u32).collect();
                // ffmpeg begins its own count at the first picture shown.
                for time in times.iter().filter(|_| name != "ffmpeg-24") {
                    assert!(known.contains(&(*time as u32).wrapping_sub(base)), "{what}: {time} ms was not sent");
                }
            }
            let passes = |mark: i64| *video.first().unwrap() < mark && *video.last().unwrap() > mark;
            assert!(base > EXTENDED || passes(EXTENDED.into()), "{what}: {:?} to {:?}", video.first(), video.last());
        }
    }
    gateway.stop();
}

/// Time from decoding to showing of the nth unit.
type Shift = fn(i64) -> i64;

/// What becomes of the times of a clip.
type Oddity = fn(usize, &Unit) -> i64;

/// A camera whose clock is odd: each unit leaves in its own time and says another. Answers when all are sent.
fn push_odd(media: u16, name: &str, clip: &Clip, oddity: Oddity) -> io::Result<()> {
    let mut camera = Publisher::open(media, name, Container::Rtmp)?;
    let units = clip.configs.iter().chain(&clip.frames).cloned();
    for (at, unit) in paced(units).enumerate() {
        let dts_90k = oddity(at, &unit);
        let pts_90k = dts_90k + if name == "zeros" { 0 } else { unit.pts_90k - unit.dts_90k };
        camera.send(&Unit { dts_90k, pts_90k, ..unit })?;
    }
    Ok(())
}

#[test]
fn clocks_that_jump_repeat_stand_still_or_differ_come_out_as_one_that_goes_on() {
    let folder = TempDir::new().unwrap();
    let clip = Clip::read(&make_clip(folder.path(), "320x180", 300, 8));
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    let cases: [(&str, Oddity); 5] = [
        // An hour ahead after 3 s, and back to nothing after 5 s.
        ("jumps", |_, unit| match unit.dts_90k {
            270_000..450_000 => unit.dts_90k + 3_600 * 90_000,
            450_000.. => unit.dts_90k - 450_000,
            _ => unit.dts_90k,
        }),
        ("doubled", |_, unit| if unit.track == Track::Video { unit.dts_90k / 7_200 * 7_200 } else { unit.dts_90k }),
        ("zeros", |_, _| 0),
        ("apart", |_, unit| unit.dts_90k + if unit.track == Track::Audio { 36_000 * 90_000 } else { 0 }),
        // A recorder that mixes them up within half a second.
        ("messy", |at, unit| (unit.dts_90k - [0, 9_000, 2_000, 15_000][at % 4]).max(0)),
    ];
    let watching = cases.map(|(name, oddity)| {
        let clip = clip.clone();
        let pushing = spawn(move || push_odd(media, name, &clip, oddity));
        wait_for(name, PATIENCE, || is_live(&gateway, name));
        spawn(move || {
            let doors = probe_both(media, name);
            pushing.join().unwrap().unwrap_or_else(|error| panic!("{name}: the publisher was closed: {error}"));
            (name, doors)
        })
    });
    for watched in watching {
        let (name, doors) = watched.join().unwrap();
        for (door, [video, audio]) in ["RTMP", "HTTP-FLV"].iter().zip(doors) {
            let what = format!("{name} over {door}");
            goes_on(&format!("{what}, video"), &video, 110, 700);
            goes_on(&format!("{what}, audio"), &audio, 190, 700);
            let span = |times: &[i64]| times.last().unwrap() - times.first().unwrap();
            // As much time as went by: what was sent since the key frame before the viewer came.
            let (pictures, sounds) = (video.len() as i64 * 40, audio.len() as i64 * 1_024_000 / 44_100);
            assert!((span(&video) - pictures).abs() < 1_000, "{what}: {} ms, {pictures} went by", span(&video));
            assert!((span(&audio) - sounds).abs() < 1_000, "{what}: {} ms, {sounds} went by", span(&audio));
            let apart = (video.last().unwrap() - audio.last().unwrap()).abs();
            assert!(apart < 400, "{what}: picture and sound end {apart} ms apart");
        }
    }
    gateway.stop();
}

#[test]
fn no_order_of_pictures_closes_a_publisher() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("reordered.flv");
    shell(&format!(
        "ffmpeg -y -v error -f lavfi -i testsrc2=s=320x180:r=25,format=yuv420p -t 6 -c:v libx264 -preset medium -g 25 \
         -bf 16 -x264-params b-adapt=0:b-pyramid=normal:ref=16 -f flv {}",
        file.display()
    ));
    let clip = Clip::read(&file);
    let gateway = Gateway::start(Options::default().with("[stream]\ngrace_seconds = 1"));
    let media = gateway.options.media;
    // Presentation times of no encoder: far ahead, far behind, before decoding, all over the place.
    let shown: [(&str, Shift); 4] = [
        ("ahead", |_| 3_000 * 90_000),
        ("behind", |_| -3_000 * 90_000),
        ("before", |at| -(at % 50) * 3_600),
        ("scattered", |at| (at * 7_919 % 1_601 - 800) * 900),
    ];
    let watching = shown.map(|(name, shift)| {
        let clip = clip.clone();
        spawn(move || (name, push_reordered(media, name, &clip, shift)))
    });
    // And what an encoder makes of it, pushed and recorded by programs that nobody here wrote.
    let mut encoder = push(&file, media, "encoded", &[]);
    wait_for("the encoder", PATIENCE, || is_live(&gateway, "encoded"));
    let recorded = folder.path().join("recorded.flv").display().to_string();
    let url = format!("http://127.0.0.1:{media}/live/encoded.flv");
    run_ok("ffmpeg", &["-v", "error", "-copyts", "-i", &url, "-c", "copy", "-f", "flv", &recorded]);
    assert!(encoder.wait(PATIENCE).success());
    is_piece_of(&packets(&[], &recorded)[0], &packets(&[], &file.display().to_string())[0], 100);

    for watched in watching {
        let (name, watched) = watched.join().unwrap();
        let pictures: Vec<_> = watched.iter().filter(|unit| unit.kind != Kind::Config).collect();
        let first = clip.frames.iter().position(|unit| unit.data == pictures[0].data).expect("a picture of the clip");
        assert!(first <= 50, "{name}: begins at picture {first}");
        assert!(
            pictures.iter().map(|u| &u.data).eq(clip.frames[first..].iter().map(|u| &u.data)),
            "{name}: every picture"
        );
        let odd = pictures.iter().filter(|unit| (unit.pts_90k - unit.dts_90k).abs() > 10 * 90_000).count();
        assert_eq!(odd, 0, "{name}: shown at times of no encoder");
    }
    let log = gateway.stop();
    assert!(!log.contains("protocol fault"), "{log}");
}

/// Sends the clip with pictures shown so long after they are decoded; what a viewer got of it.
fn push_reordered(media: u16, name: &'static str, clip: &Clip, shift: Shift) -> Vec<Unit> {
    let mut camera = Publisher::publish(media, name);
    let watching = spawn(move || {
        let mut viewer = Viewer::open(media, Door::HttpFlv, name);
        std::iter::from_fn(|| viewer.next()).filter(|unit| unit.track == Track::Video).collect()
    });
    for (at, unit) in (0..).zip(paced(clip.configs.iter().chain(&clip.frames).cloned())) {
        let by = if unit.kind == Kind::Config { 0 } else { shift(at) };
        let sent = camera.send(&Unit { pts_90k: unit.dts_90k + by, ..unit });
        sent.unwrap_or_else(|error| panic!("{name}: the publisher was closed: {error}"));
    }
    drop(camera);
    watching.join().unwrap()
}
